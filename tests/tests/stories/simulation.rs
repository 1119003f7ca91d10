//! A small slice of the simulation (`make sim`), and what all of it stands on: a seed says everything.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Shows every message on the simulated network.
const MESSAGES: &str = "info,turmoil=trace,gfs_master=debug,gfs_chunkserver=debug";

/// The `gfs-sim` program of this build.
fn simulator() -> PathBuf {
    gfs_tests::program("gfs-sim").unwrap()
}

/// The report of a run of one seed.
fn report(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {output:?}"))
}

fn run(seed: u64, time: &str, trace: &str) -> serde_json::Value {
    let output = Command::new(simulator())
        .args(["run", "--json", "--seed", &seed.to_string(), "--time", time, "--trace", trace])
        .output()
        .unwrap();
    report(&output)
}

fn check(seed: u64) {
    let report = run(seed, "5s", "warn");
    assert_eq!(report["good"], true, "cargo run -p gfs-sim -- run --seed {seed} --time 5s: {report:#}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    // Each in a process of its own, with every message in the trace.
    let runs = [run(2, "1s", MESSAGES), run(2, "1s", MESSAGES), run(3, "1s", MESSAGES)];
    let hash = |index: usize| runs[index]["hash"].as_str().unwrap();
    assert_eq!(hash(0), hash(1));
    assert_ne!(hash(0), hash(2));
}

#[test]
fn a_few_seeds_of_the_simulation_are_good() {
    [11, 12].into_iter().for_each(check);
}
