//! What a run comes to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Most findings that a verdict lists; the rest is counted.
const FINDINGS_MAX: usize = 50;

/// Whether the history keeps the promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validity {
    /// It does.
    Good,
    /// It does not.
    Bad,
    /// Nobody can tell, or too little was done to tell: as bad as bad.
    Unknown,
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The judgement.
    pub validity: Validity,
    /// Operations that were acknowledged.
    pub ok: u64,
    /// Operations that were refused or reads that got no answer.
    pub failed: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Broken promises, as sentences.
    pub findings: Vec<String>,
    /// More of them than are listed.
    pub findings_left_off: u64,
    /// Why nobody can tell.
    pub doubts: Vec<String>,
    /// Measured on the way.
    pub notes: Vec<String>,
    /// What can be added up over runs: `faults.KIND`, `corruptions.put`, `.found`, `.repaired` and so on.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
}

impl Verdict {
    /// No complaint so far.
    pub(crate) fn new() -> Self {
        Self {
            validity: Validity::Good,
            ok: 0,
            failed: 0,
            unknown: 0,
            findings: Vec::new(),
            findings_left_off: 0,
            doubts: Vec::new(),
            notes: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// A promise is broken.
    pub(crate) fn finding(&mut self, what: impl Into<String>) {
        self.validity = Validity::Bad;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what.into());
        } else {
            self.findings_left_off += 1;
        }
    }

    /// Something can't be told.
    pub(crate) fn doubt(&mut self, what: impl Into<String>) {
        if self.validity == Validity::Good {
            self.validity = Validity::Unknown;
        }
        self.doubts.push(what.into());
    }

    /// Takes in the verdict on a part.
    pub(crate) fn absorb(&mut self, part: &str, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.findings_left_off += other.findings_left_off;
        other.findings.into_iter().for_each(|finding| self.finding(format!("{part}: {finding}")));
        other.doubts.into_iter().for_each(|doubt| self.doubt(format!("{part}: {doubt}")));
        self.notes.extend(other.notes.into_iter().map(|note| format!("{part}: {note}")));
        other.counts.into_iter().for_each(|(what, count)| self.count(&what, count));
    }

    /// Adds to what can be added up over runs.
    pub(crate) fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }

    /// What could not be told is told now: doubts become notes. Findings stay.
    pub(crate) fn settle(&mut self, how: &str) {
        if self.validity == Validity::Unknown {
            self.validity = Validity::Good;
        }
        let settled = std::mem::take(&mut self.doubts);
        self.notes.extend(settled.into_iter().map(|doubt| format!("settled: {doubt}: {how}")));
    }

    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    /// Whether the run has passed.
    pub fn is_good(&self) -> bool {
        self.validity == Validity::Good
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}: {} ok, {} failed, {} unknown; {} findings, {} doubts",
            self.validity,
            self.ok,
            self.failed,
            self.unknown,
            self.findings.len() as u64 + self.findings_left_off,
            self.doubts.len()
        )
    }
}
