//! The one retry policy: repeat until a deadline, with growing pauses and jitter.

use std::time::Duration;

use crate::Environment;
use crate::error::{Error, RETRY_PAUSE_MIN, Result};
use crate::time::Moment;

/// Longest pause between two attempts: a new leader is found soon after its election (design P10).
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// When to give up, and how long to pause before each repeat.
#[derive(Clone, Debug)]
pub struct Backoff {
    environment: Environment,
    started: Moment,
    patience: Duration,
    pause: Duration,
}

impl Backoff {
    /// Starts now and gives up after `patience`.
    pub fn new(environment: &Environment, patience: Duration) -> Self {
        Self {
            environment: environment.clone(),
            started: environment.clock.moment(),
            patience,
            pause: RETRY_PAUSE_MIN,
        }
    }

    /// What is left of the patience.
    pub fn remaining(&self) -> Duration {
        self.patience.saturating_sub(self.environment.clock.moment().since(self.started))
    }

    /// Pauses before the next attempt: twice as long each time, with jitter.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] with `last` if the patience would end before.
    pub async fn pause(&mut self, last: &Error) -> Result<()> {
        let pause = self.pause / 2 + self.pause.mul_f64(jitter(&self.environment)) / 2;
        if pause >= self.remaining() {
            return Err(self.gave_up(last));
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    /// The error of a caller that can't wait any longer.
    pub fn gave_up(&self, last: &Error) -> Error {
        let waited = self.environment.clock.moment().since(self.started);
        Error::DeadlineExceeded {
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            last: last.to_string(),
        }
    }
}

/// A number from 0 to 1.
fn jitter(environment: &Environment) -> f64 {
    f64::from(u32::try_from(environment.random.bits64() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pauses_grow_and_end_at_the_deadline_with_the_last_error() {
        let mut backoff = Backoff::new(&Environment::real(), Duration::from_secs(3));
        let mut attempts = 0;
        let end = loop {
            attempts += 1;
            if let Err(end) = backoff.pause(&Error::unavailable("x")).await {
                break end;
            }
        };
        assert!((12..30).contains(&attempts), "{attempts}");
        assert!(matches!(end, Error::DeadlineExceeded { last, .. } if last == "unavailable: x"));
    }
}
