//! A clock that can be set wrong while its process runs: only in builds with the feature `faults`.
//!
//! What is wrong stands in the file `GFS_CLOCK_FILE`, as `wall_ms=-5000 rate_ppm=40000`; one that is not there says that
//! nothing is. A thread looks at it again and again, so reading the time costs a lock and never a file. Timers are
//! tokio's and stay right, as in the simulation: what is tried is what is decided by comparing moments.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::live::{POLL, follow_file};
use crate::time::{Clock, Moment, SystemClock, UnixMs};
use crate::{Error, Result};

/// A wall clock is at most a day off: more is a typing error.
const WALL_MS_MAX: i64 = 24 * 3600 * 1000;
/// A clock that stands still or runs backwards is none.
const RATE_PPM_MAX: i64 = 900_000;

/// The clock of this process, if it can be set wrong.
static CLOCK: OnceLock<Arc<SkewedClock<SystemClock>>> = OnceLock::new();

/// How wrong a clock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Skew {
    /// How far the wall clock is off.
    wall_ms: i64,
    /// How much faster both clocks run than real time, in parts per million.
    rate_ppm: i64,
}

impl Skew {
    fn parse(text: &str) -> Result<Self> {
        let mut skew = Self::default();
        for part in text.split_whitespace() {
            let bad = || Error::bad_argument(format!("clock {part:?}"));
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            let value: i64 = value.parse().map_err(|_| bad())?;
            let (field, most) = match name {
                "wall_ms" => (&mut skew.wall_ms, WALL_MS_MAX),
                "rate_ppm" => (&mut skew.rate_ppm, RATE_PPM_MAX),
                _ => return Err(bad()),
            };
            if !(-most..=most).contains(&value) {
                return Err(bad());
            }
            *field = value;
        }
        Ok(skew)
    }
}

/// What is wrong since when: until the next change one rate holds.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    skew: Skew,
    /// The right clock then, and what this one showed.
    real: Moment,
    shown: Moment,
}

impl Since {
    fn at(&self, real: Moment) -> Moment {
        let passed = real.since(self.real);
        let more =
            i128::from(self.skew.rate_ppm) * i128::try_from(passed.as_nanos()).unwrap_or(0) / 1_000_000;
        let nanos = i128::try_from(passed.as_nanos()).unwrap_or(0) + more;
        self.shown.plus(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    }
}

/// A clock beside the right one. Its moments never go back, whatever it is told.
#[derive(Debug)]
struct SkewedClock<C> {
    right: C,
    /// Held for moments only; readers and the thread that follows the file take it.
    since: Mutex<Since>,
}

impl<C: Clock> SkewedClock<C> {
    fn new(right: C) -> Self {
        Self { right, since: Mutex::default() }
    }

    fn set(&self, skew: Skew) {
        let mut since = self.since.lock();
        let real = self.right.moment();
        *since = Since { skew, real, shown: since.at(real) };
    }
}

impl<C: Clock> Clock for SkewedClock<C> {
    fn wall(&self) -> UnixMs {
        let since = self.since.lock();
        let real = self.right.moment();
        let shown = since.at(real);
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let drifted = ms(shown.since(real)) - ms(real.since(shown));
        UnixMs::from_raw(self.right.wall().raw().saturating_add_signed(drifted + since.skew.wall_ms))
    }
    fn moment(&self) -> Moment {
        let since = self.since.lock();
        since.at(self.right.moment())
    }
}

/// The clock of a process: one that its file can set wrong, if [`start`] has found that there is one.
pub fn clock() -> Arc<dyn Clock> {
    match CLOCK.get() {
        Some(clock) => clock.clone(),
        None => Arc::new(SystemClock::new()),
    }
}

/// Follows this file.
pub(super) fn start(path: &Path) -> Result<()> {
    let clock = CLOCK.get_or_init(|| Arc::new(SkewedClock::new(SystemClock::new()))).clone();
    follow_file("clock", POLL, path, move |text| Skew::parse(text).map(|skew| clock.set(skew)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;

    fn clock() -> SkewedClock<ManualClock> {
        SkewedClock::new(ManualClock::default())
    }
    fn shown_ms(clock: &SkewedClock<ManualClock>) -> u128 {
        clock.moment().since(Moment::default()).as_millis()
    }
    fn skew(text: &str) -> Skew {
        Skew::parse(text).unwrap()
    }

    #[test]
    fn a_skew_is_parsed_or_refused() {
        assert_eq!(skew("wall_ms=-5000 rate_ppm=40000\n"), Skew { wall_ms: -5000, rate_ppm: 40_000 });
        assert_eq!(skew(""), Skew::default());
        for bad in
            ["wall_ms", "wall_ms=x", "rate=1", "rate_ppm=1000000", "rate_ppm=-900001", "wall_ms=86400001"]
        {
            assert!(Skew::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_change_of_the_rate_moves_both_clocks_from_then_on_and_never_back() {
        let clock = clock();
        let second = Duration::from_secs(1);
        clock.right.advance(10 * second);
        clock.set(skew("rate_ppm=-500000"));
        assert_eq!(shown_ms(&clock), 10_000);
        clock.right.advance(10 * second);
        assert_eq!((shown_ms(&clock), clock.wall().raw()), (15_000, 15_000));
        clock.set(skew("rate_ppm=100000"));
        assert_eq!(shown_ms(&clock), 15_000);
        clock.right.advance(10 * second);
        assert_eq!((shown_ms(&clock), clock.wall().raw()), (26_000, 26_000));
        clock.set(Skew::default());
        clock.right.advance(second);
        assert_eq!((shown_ms(&clock), clock.wall().raw()), (27_000, 27_000));
    }

    #[test]
    fn a_jump_moves_the_wall_clock_alone() {
        let clock = clock();
        clock.right.advance(Duration::from_secs(100));
        clock.set(skew("wall_ms=-60000"));
        assert_eq!((shown_ms(&clock), clock.wall().raw()), (100_000, 40_000));
        clock.set(skew("wall_ms=60000"));
        assert_eq!((shown_ms(&clock), clock.wall().raw()), (100_000, 160_000));
        // Before 1970 there is nothing.
        clock.set(skew("wall_ms=-600000"));
        assert_eq!(clock.wall().raw(), 0);
    }
}
