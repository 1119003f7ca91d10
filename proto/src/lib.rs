//! The shared words and the wire: ids, paths, sizes, time, errors, data frames, and the protobuf messages.
//! Knows no server and no disk. Every other crate stands on this one.

pub mod error;
pub mod fault;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod id;
pub mod leader;
pub mod link;
pub mod net;
pub mod path;
pub mod random;
pub mod retry;
pub mod size;
pub mod task;
pub mod time;
pub mod work;

pub use error::{Error, Result, Retry};

/// The generated messages and services of `proto/*.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    clippy::nursery,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("gfs.v1");
}

/// The doors to the outside world that a process is given at its start.
///
/// The fourth door, the store, belongs to the servers: RocksDB in `master/`, files in `chunkserver/`.
#[derive(Clone)]
pub struct Environment {
    /// Listens and connects.
    pub net: std::sync::Arc<dyn net::Net>,
    /// Wall and monotonic time.
    pub clock: std::sync::Arc<dyn time::Clock>,
    /// Randomness.
    pub random: std::sync::Arc<dyn random::Random>,
    /// Where work that blocks is done.
    pub workers: work::Workers,
}

impl Environment {
    /// The real network, clock, randomness and threads of this machine.
    pub fn real() -> Self {
        Self {
            net: std::sync::Arc::new(net::TcpNet),
            clock: fault::clock(),
            random: std::sync::Arc::new(random::SystemRandom),
            workers: work::Workers::Threads,
        }
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}
