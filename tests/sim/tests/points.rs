//! Fail points in the simulation: only in builds with the feature `faults`.

use std::collections::BTreeMap;
use std::process::Command;

/// Arms fail points about three times a second.
const SEED: u64 = 14;

/// The report of a run of one seed, with every message in its trace.
fn run(seed: u64, time: &str) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_gfs-sim"))
        .args(["run", "--json", "--seed", &seed.to_string(), "--time", time])
        .args(["--trace", "info,turmoil=trace,gfs_master=debug,gfs_chunkserver=debug"])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {output:?}"))
}

/// Passes and strikes of each fail point.
fn points(report: &serde_json::Value) -> BTreeMap<String, (u64, u64)> {
    serde_json::from_value(report["points"].clone()).unwrap()
}

#[test]
fn the_same_seed_arms_the_same_fail_points_and_gives_the_same_trace() {
    let runs = [run(SEED, "10s"), run(SEED, "10s")];
    assert_eq!(runs[0]["hash"], runs[1]["hash"]);
    assert_eq!(points(&runs[0]), points(&runs[1]));
    assert!(runs[0]["faults"]["FailPoint"].as_u64().is_some_and(|crashes| crashes > 0), "{:#}", runs[0]);
    let struck = points(&runs[0]).values().filter(|(_, struck)| *struck > 0).count();
    assert!(struck >= 3, "{:#}", runs[0]);
}
