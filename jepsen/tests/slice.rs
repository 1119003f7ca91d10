//! A small slice of `make jepsen`: that clients, faults, network and checkers work together.
#![allow(clippy::unwrap_used, reason = "a run that can't be made fails")]

use gfs_jepsen::{Needs, Placement, Plan, Site, rot, run};
use tokio::runtime::Runtime;

/// Clients work this long under faults.
const TIME_MS: u64 = 5000;

#[test]
fn records_appended_while_servers_are_killed_and_cut_off_are_all_there_once() {
    let (site, why_not) = Site::open(Placement::Auto).unwrap();
    if let Some(why_not) = why_not {
        eprintln!("{why_not}");
    }
    let faults: &[&str] =
        if site.has(Needs::Network) { &["kill", "cut", "cut-leader"] } else { &["kill", "leader"] };
    let plan = Plan {
        workload: "append".into(),
        nemesis: faults.iter().map(|name| (*name).to_owned()).collect(),
        time_ms: TIME_MS,
        seed: 4,
        clients: 4,
        operations: None,
    };
    let (directory, verdict) = Runtime::new().unwrap().block_on(run(&plan, &site)).unwrap();
    // How much is done in a second says something of the machine that the tests run on, and nothing here.
    let doubts: Vec<_> =
        verdict.doubts.iter().filter(|doubt| !doubt.starts_with("too little load")).collect();
    assert!(
        verdict.findings.is_empty() && doubts.is_empty() && verdict.ok > 0,
        "{verdict}: {:?} {doubts:?}; all of it is in {}; again: {}",
        verdict.findings,
        directory.display(),
        plan.command()
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn damaged_replicas_are_found_and_made_good_and_never_served() {
    let report = Runtime::new().unwrap().block_on(rot(12, 1, |_| Ok(()))).unwrap();
    assert!(report.findings.is_empty(), "{report}: {:?}, all of it is in {:?}", report.findings, report.kept);
    assert_eq!((report.put, report.found), (12, 12), "{report}");
}
