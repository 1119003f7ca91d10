//! Jepsen-style checks: what a client was told during faults is written down, then judged.
//!
//! A run is a cluster of real processes, a workload and faults (`runner`); the history it leaves is judged by a
//! pure checker (`check`), at once or later. `README.md` beside this crate has the reasoning.

mod check;
mod converge;
mod export;
mod flaky;
mod history;
mod hosts;
mod inside;
mod ledger;
mod matrix;
mod measure;
mod mutants;
mod nemesis;
mod outcome;
mod power;
mod recorder;
mod report;
mod rot;
mod runner;
mod sweep;
mod timeline;
mod units;
mod verdict;
mod workload;

// The simulation leaves things behind as well.
pub use gfs_tests::{name_of_this_process, remove_leftovers};

pub use export::{Format, export};
pub use history::{Event, Operation, pair_up};
pub use hosts::{Placement, Site};
pub use ledger::{Ledger, Sum, tally};
pub use matrix::{Mixes, Strikes, cells, mixes};
pub use measure::{Loss, Measured, Subject, measure};
pub use mutants::{Line, mutants};
pub use nemesis::{FAULTS, Fault, Needs};
pub use outcome::Outcome;
pub use power::{PowerReport, Promise, power};
pub use report::report;
pub use rot::{RotReport, rot};
pub use runner::{Plan, check_file, run};
pub use sweep::{ACTIONS, Cell, Sweep, sweep};
pub use units::parse_time;
pub use verdict::{Validity, Verdict};
pub use workload::{Load, Scene, WORKLOADS, Workload};
