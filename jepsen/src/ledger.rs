//! What many runs come to together: each run adds a line to a ledger, and ledgers of several sittings are added up.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::runner::Plan;
use crate::verdict::{Validity, Verdict};

/// A line of a ledger: one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    workload: String,
    nemesis: Vec<String>,
    seed: u64,
    time_ms: u64,
    validity: Validity,
    ok: u64,
    failed: u64,
    unknown: u64,
    findings: u64,
    counts: BTreeMap<String, u64>,
}

/// A file with one JSON object a line, to which runs are added.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

/// What the runs of some ledgers come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Runs of each judgement.
    pub good: u64,
    /// See [`Sum::good`].
    pub bad: u64,
    /// See [`Sum::good`].
    pub undecided: u64,
    /// How long clients worked under faults, in milliseconds.
    pub time_ms: u64,
    /// Operations that were acknowledged.
    pub ok: u64,
    /// Operations that were refused or reads that got no answer.
    pub failed: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Broken promises.
    pub findings: u64,
    /// What was done: faults by kind, corruptions.
    pub counts: BTreeMap<String, u64>,
}

impl Ledger {
    /// The ledger in this file, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Adds a run.
    ///
    /// # Errors
    /// The disk says no.
    pub fn add(&self, plan: &Plan, verdict: &Verdict) -> Result<()> {
        let entry = Entry {
            workload: plan.workload.clone(),
            nemesis: plan.nemesis.clone(),
            seed: plan.seed,
            time_ms: plan.time_ms,
            validity: verdict.validity,
            ok: verdict.ok,
            failed: verdict.failed,
            unknown: verdict.unknown,
            findings: verdict.findings.len() as u64 + verdict.findings_left_off,
            counts: verdict.counts.clone(),
        };
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let mut file = file.with_context(|| self.path.display().to_string())?;
        // One write: two sittings may share a ledger.
        Ok(file.write_all((serde_json::to_string(&entry)? + "\n").as_bytes())?)
    }
}

/// Adds up ledgers.
///
/// # Errors
/// One can't be read, or a line of it is none.
pub fn tally(files: &[PathBuf]) -> Result<Sum> {
    let mut sum = Sum::default();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        sum.add(&text).with_context(|| describe(file))?;
    }
    Ok(sum)
}

fn describe(file: &Path) -> String {
    format!("{} is no ledger", file.display())
}

impl Sum {
    /// Adds the lines of a ledger.
    fn add(&mut self, text: &str) -> Result<()> {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let entry: Entry = serde_json::from_str(line)?;
            *match entry.validity {
                Validity::Good => &mut self.good,
                Validity::Bad => &mut self.bad,
                Validity::Unknown => &mut self.undecided,
            } += 1;
            self.time_ms += entry.time_ms;
            self.ok += entry.ok;
            self.failed += entry.failed;
            self.unknown += entry.unknown;
            self.findings += entry.findings;
            for (what, count) in entry.counts {
                *self.counts.entry(what).or_default() += count;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} runs good, {} bad, {} undecided; {} s under faults; {} acknowledged, {} failed, {} unknown; {} findings",
            self.good,
            self.bad,
            self.undecided,
            self.time_ms / 1000,
            self.ok,
            self.failed,
            self.unknown,
            self.findings
        )?;
        self.counts.iter().try_for_each(|(what, count)| writeln!(f, "  {what:<28} {count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_several_sittings_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["monday", "tuesday"].map(|day| directory.path().join(day));
        let plan = Plan {
            workload: "append".into(),
            nemesis: vec!["kill".into()],
            time_ms: 2000,
            seed: 1,
            clients: 8,
            operations: None,
        };
        for (file, found) in files.iter().zip([false, true]) {
            let ledger = Ledger::new(file.clone());
            let mut verdict = Verdict::new();
            (verdict.ok, verdict.unknown) = (10, 1);
            verdict.count("faults.kill", 3);
            ledger.add(&plan, &verdict).unwrap();
            if found {
                verdict.finding("lost");
                verdict.count("corruptions.put", 2);
            }
            ledger.add(&plan, &verdict).unwrap();
        }
        let sum = tally(&files).unwrap();
        assert_eq!((sum.good, sum.bad, sum.undecided, sum.findings), (3, 1, 0, 1));
        assert_eq!((sum.ok, sum.unknown, sum.time_ms), (40, 4, 8000));
        assert_eq!((sum.counts["faults.kill"], sum.counts["corruptions.put"]), (12, 2));
        std::fs::write(&files[0], "{}\n").unwrap();
        assert!(tally(&files).is_err());
    }
}
