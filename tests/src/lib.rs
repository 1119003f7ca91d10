//! Whole-system stories: a cluster of real `gfs` processes that a test starts, hurts and looks at.

mod binary;
mod cluster;
mod disks;
mod hosts;
mod leftovers;
mod process;
mod stage;
mod tree;
mod wait;

pub use binary::{gfs_binary, gfs_has_faults, program};
pub use cluster::{Cluster, Role, Shape};
pub use disks::Disks;
pub use hosts::{Hosts, Loopback};
pub use leftovers::{name_of_this_process, remove_leftovers};
pub use process::End;
pub use stage::Stage;
pub use tree::{Digest, Tree, digest_of, digest_of_file, write_noise};
pub use wait::eventually;
