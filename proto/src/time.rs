//! The clock seam: the only place that reads a clock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How long a replica may serve a chunk, counted on the chunkserver's clock from the sending of the heartbeat that
/// validated it; a leader that waits for a fence counts with the same number (docs/protocol.md, Fence).
pub const VALIDITY: Duration = Duration::from_secs(3);

/// Wall time in milliseconds since 1970; may jump. For people and for dates in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(u64);

impl UnixMs {
    /// The time with this number.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    /// Milliseconds since 1970.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The time `duration` later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
    /// The time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment on this process's monotonic clock; means nothing elsewhere. For fences, leases and deadlines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The moment this long after the clock's start.
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }
    /// The moment `duration` later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
    /// The time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Nanoseconds of this machine's monotonic clock, which all its processes share, as they do not share [`Moment`]s. Only
/// for lines that are compared afterwards: nothing may be decided by it.
pub fn machine_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// Tells the time. Sleeping is tokio's, whose time the simulation controls.
pub trait Clock: Send + Sync {
    /// Wall time.
    fn wall(&self) -> UnixMs;
    /// Monotonic time.
    fn moment(&self) -> Moment;
}

/// The clocks of this machine; monotonic time is tokio's, and what the machine was suspended for on top, in which that one
/// stands still.
#[derive(Debug)]
pub struct SystemClock {
    start: tokio::time::Instant,
    /// The longest that the machine is known to have been suspended, in nanoseconds, at the start and now.
    suspended_before: u64,
    suspended: AtomicU64,
}

impl SystemClock {
    /// A clock that starts now.
    #[expect(clippy::new_without_default, reason = "reads the clock, which a default should not")]
    pub fn new() -> Self {
        let suspended = suspended_ns();
        let start = tokio::time::Instant::now();
        Self { start, suspended_before: suspended, suspended: AtomicU64::new(suspended) }
    }

    /// The moment now, if the machine is known to have been suspended for so long since it was started.
    fn moment_after(&self, suspended_ns: u64) -> Moment {
        // Never less than before: who was interrupted between its two looks at the clocks knows of too little.
        let known = self.suspended.load(Ordering::Relaxed);
        if suspended_ns > known {
            self.suspended.fetch_max(suspended_ns, Ordering::Relaxed);
        }
        let suspended = known.max(suspended_ns);
        let suspended = Duration::from_nanos(suspended.saturating_sub(self.suspended_before));
        Moment(self.start.elapsed().saturating_add(suspended))
    }
}

/// For how long this machine has been suspended since it was started, at least, in nanoseconds.
fn suspended_ns() -> u64 {
    let with = nanoseconds(rustix::time::ClockId::Boottime);
    with.saturating_sub(nanoseconds(rustix::time::ClockId::Monotonic))
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    let (seconds, rest) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
impl Clock for SystemClock {
    fn wall(&self) -> UnixMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    fn moment(&self) -> Moment {
        self.moment_after(suspended_ns())
    }
}

/// A clock that a test moves by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: parking_lot::Mutex<Duration>,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, duration: Duration) {
        *self.now.lock() += duration;
    }
}
impl Clock for ManualClock {
    fn wall(&self) -> UnixMs {
        UnixMs(0).plus(*self.now.lock())
    }
    fn moment(&self) -> Moment {
        Moment(*self.now.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_machine_is_suspended_counts_and_never_goes_back() {
        let clock = SystemClock::new();
        let before = clock.moment();
        tokio::time::advance(Duration::from_secs(1)).await;
        let passed = clock.moment().since(before);
        let second = Duration::from_secs(1)..Duration::from_millis(1500);
        assert!(second.contains(&passed), "this machine was not suspended: {passed:?}");
        let woken = clock.moment_after(clock.suspended_before + 3_600_000_000_000);
        assert!(woken.since(before) >= Duration::from_secs(3601));
        // A look at the clocks that was interrupted tells less.
        assert_eq!(clock.moment_after(clock.suspended_before + 5), woken);
        assert_eq!(clock.moment(), woken);
    }
}
