//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Looks until `condition` gives a value, for at most `patience`.
///
/// # Errors
/// It never did: what was waited for, and why it was not so the last time.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let error = match tokio::time::timeout(left.max(POLL), condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("looking took too long"),
        };
        if started.elapsed() >= patience {
            bail!("not within {patience:?}: {what}; the last look: {error:#}");
        }
        tokio::time::sleep(POLL).await;
    }
}
