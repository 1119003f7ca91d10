//! Builds without faults: every function is empty, and the compiler leaves none of them.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;

use super::{Count, Simulated};
use crate::Result;
use crate::time::{Clock, SystemClock};

/// Passes a fail point of a thread that can't fail.
#[inline(always)]
pub const fn at(_point: &'static str) {}

/// Passes a fail point of a thread.
///
/// # Errors
/// None in this build.
#[inline(always)]
pub const fn try_at(_point: &'static str) -> io::Result<()> {
    Ok(())
}

/// Passes a fail point of a task that can't fail.
#[inline(always)]
pub fn reach(_point: &'static str) -> Ready<()> {
    ready(())
}

/// Passes a fail point of a task.
///
/// # Errors
/// None in this build.
#[inline(always)]
pub fn try_reach(_point: &'static str) -> Ready<Result<()>> {
    ready(Ok(()))
}

/// Whether this seeded bug is switched on: never in this build.
#[inline(always)]
pub const fn mutant(_name: &'static str) -> bool {
    false
}

/// A constant that fault builds can make smaller.
#[inline(always)]
pub const fn tuned(_name: &'static str, value: u64) -> u64 {
    value
}

/// Takes the settings of the environment: there are none in this build.
///
/// # Errors
/// None in this build.
#[inline(always)]
pub const fn start() -> Result<()> {
    Ok(())
}

/// The clock of this machine.
pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Tells fail points what to do.
///
/// # Errors
/// This build has none.
pub fn arm(_text: &str) -> Result<()> {
    Err(crate::Error::bad_argument("this build has no fail points: build it with the feature `faults`"))
}

/// Tells fail points of one host of a simulation what to do.
///
/// # Errors
/// This build has none.
pub fn arm_host(_host: u64, text: &str) -> Result<()> {
    arm(text)
}

/// Disarms all fail points.
pub const fn clear() {}

/// How often each fail point was passed.
pub const fn counts() -> BTreeMap<&'static str, Count> {
    BTreeMap::new()
}

/// Says that this process simulates many hosts.
pub const fn simulate(_simulated: Simulated) {}
