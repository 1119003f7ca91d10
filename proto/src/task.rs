//! Background work: named, stopped by one token, one bounded step at a time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Calls `tick` every `period` until `stop`, the next call never before the last one has ended.
/// A tick's error is logged and the work goes on: what a tick leaves undone the next one finds again.
pub async fn every<F, E>(name: &'static str, period: Duration, stop: CancellationToken, mut tick: F)
where
    F: AsyncFnMut() -> Result<(), E>,
    E: std::fmt::Display,
{
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        if let Err(error) = tick().instrument(tracing::debug_span!("tick", name)).await {
            tracing::debug!(name, %error, "tick failed");
        }
    }
}
