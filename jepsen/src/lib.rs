//! Jepsen-style checks: what a client was told during faults is written down, then judged.
//!
//! So far: the history and what its outcomes mean. `README.md` beside this crate has the reasoning.

mod history;
mod outcome;

pub use history::{Event, Operation, pair_up};
pub use outcome::Outcome;
