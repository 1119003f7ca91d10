//! Times as they are given on the command line.

use std::time::Duration;

/// The longest that can be asked for: a year.
const TIME_MAX_MS: u64 = 365 * 86_400_000;

/// Parses `30s`, `500ms`, `2m`; a bare number is seconds.
///
/// # Errors
/// It is none, it is nothing, or it is more than a year.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        other => return Err(format!("no unit of time: {other:?}")),
    };
    match number.checked_mul(unit_ms).filter(|time_ms| *time_ms <= TIME_MAX_MS) {
        None => Err("more than a year".to_owned()),
        Some(0) => Err("in no time at all nothing is proved".to_owned()),
        Some(time_ms) => Ok(Duration::from_millis(time_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        for (text, time_ms) in [("30s", 30_000), ("2", 2000), ("500ms", 500), ("2m", 120_000)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(time_ms)), "{text}");
        }
        for text in ["0s", "0", "x", "5h", "-1s", "18446744073709551615m", "400000000000ms", ""] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
