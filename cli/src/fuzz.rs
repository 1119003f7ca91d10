//! Fuzz target of this crate: what people write in flags and files (`fuzz/src/lib.rs` says how it is run).

use std::time::Duration;

use gfs_fuzz::{Dice, Target};

use crate::config;
use crate::units::{parse_bytes, parse_duration, show_bytes, show_time};

const TARGET: Target = Target::new("settings", settings);

/// Sizes, times and settings: read as they are meant or refused, never a panic.
fn settings(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(bytes) = parse_bytes(&text) {
        assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
        assert!(!show_bytes(bytes).is_empty());
    }
    if let Ok(time) = parse_duration(&text) {
        assert_eq!(parse_duration(&format!("{}ms", time.as_millis())), Ok(time));
    }
    let mut dice = Dice::new(data);
    assert!(show_time(dice.number()).len() >= 19);
    let _refused = config::parse_any(&text);
    let addresses: Vec<String> = text.split(',').map(str::to_owned).collect();
    if config::check_addresses("--masters", &addresses).is_ok() {
        for address in &addresses {
            let port =
                address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>().is_ok()));
            assert_eq!(port, Some((false, true)), "{address}");
        }
    }
}

#[test]
fn settings_hold_for_the_corpus_and_random_inputs() {
    gfs_fuzz::check(&TARGET);
}

/// The long run of `make fuzz`, without coverage: this crate is a program, to which libFuzzer can't be linked.
#[test]
#[ignore = "runs for a while; make fuzz calls it"]
fn settings_hold_for_a_while() {
    let seconds = std::env::var("GFS_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    gfs_fuzz::drive(&TARGET, Duration::from_secs(seconds.unwrap_or(20)));
}
