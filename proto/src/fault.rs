//! Faults on purpose: fail points, and mutants (seeded bugs that our checks must find; docs/mutants.md).
//!
//! A fail point stands at a boundary of persisting or acknowledging and has a name. In a build with the feature `faults` it
//! counts how often it is passed, and can be told to crash the process, to fail, or to stand still for a while:
//!
//! ```text
//! GFS_FAILPOINTS='store::log::before_sync=crash@3; grant::prepared=sleep(500)*1'
//! action := crash | error | sleep(MILLISECONDS), then @N: from the N-th pass on, then *N: at most N times
//! GFS_FAILPOINTS_FILE=path   the same text, looked at again and again; the counts go to path.PID
//! GFS_MUTANT=name            the one seeded bug of this process
//! GFS_TUNED='checkpoint_every=200'   constants that a short run has to be smaller
//! GFS_CLOCK_FILE=path        how wrong this process's clock is, looked at again and again (`fault/clock.rs`)
//! ```
//! Without the feature nothing of this is left in the program (docs/decisions/0016).

use std::time::Duration;

#[cfg(not(feature = "faults"))]
mod absent;
#[cfg(feature = "faults")]
mod clock;
mod list;
#[cfg(feature = "faults")]
mod live;

#[cfg(not(feature = "faults"))]
pub use absent::{
    arm, arm_host, at, clear, clock, counts, mutant, reach, simulate, start, try_at, try_reach, tuned,
};
#[cfg(feature = "faults")]
pub use clock::clock;
pub use list::{MUTANTS, POINTS, Point};
#[cfg(feature = "faults")]
pub use live::{arm, arm_host, at, clear, counts, mutant, reach, simulate, start, try_at, try_reach, tuned};

/// Whether this build has fail points and mutants at all.
pub const BUILT: bool = cfg!(feature = "faults");

/// How often a fail point was passed, and how often it struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Passes, those that struck included.
    pub passed: u64,
    /// Crashes, errors and pauses.
    pub struck: u64,
}

/// How a simulation of many hosts in one process stands behind the fail points. None of these passes a fail point.
#[derive(Clone, Copy, Debug)]
pub struct Simulated {
    /// The host that runs at the moment; 0 if none does.
    pub host: fn() -> u64,
    /// Crashes that host at this point, as far as that goes from inside: a task never goes on; a thread fails if its point
    /// can, and goes on otherwise, so that nothing it does from then on may have an effect.
    pub crash: fn(&'static str),
    /// Lets simulated time pass where a thread would stand still.
    pub pause: fn(Duration),
}
