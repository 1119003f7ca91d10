//! Loops that count operations and take their times.

use std::time::{Duration, Instant};

use anyhow::Result;

/// What a loop of operations did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Operations a second.
    pub(crate) per_second: f64,
    /// Half of them took at most this, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 took at most this, in milliseconds.
    pub(crate) p99_ms: f64,
    /// How many there were.
    pub(crate) count: u64,
}

/// Runs `workers` loops at once, each its next operation when the last one has ended, for this long.
pub(crate) async fn closed_loop<F>(
    workers: usize,
    duration: Duration,
    operation: impl Fn(usize, u64) -> F,
) -> Result<Rate>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let operation = &operation;
    // Each loop's operations are tasks of their own, so that they use all processors.
    let loops = (0..workers).map(|worker| async move {
        let mut times = Vec::new();
        let mut count = 0;
        while started.elapsed() < duration {
            let begun = Instant::now();
            tokio::spawn(operation(worker, count)).await??;
            times.push(begun.elapsed());
            count += 1;
        }
        anyhow::Ok(times)
    });
    let times = futures::future::try_join_all(loops).await?;
    Ok(rate(times.into_iter().flatten().collect(), started.elapsed()))
}

/// Sums up single times.
pub(crate) fn rate(mut times: Vec<Duration>, total: Duration) -> Rate {
    times.sort_unstable();
    let quantile = |percent: usize| {
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of operations")]
    let per_second = times.len() as f64 / total.as_secs_f64();
    Rate { per_second, p50_ms: quantile(50), p99_ms: quantile(99), count: times.len() as u64 }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        None => 0.0,
        Some(upper) if values.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(*upper, values[middle - 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!([median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])], [0.0, 2.0, 2.5]);
    }
}
