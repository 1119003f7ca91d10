//! What happened when, whatever the workload: for the load, the report and the exports.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use crate::history::{Event, Operation, pair_up};
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;
use crate::workload::Minimum;

/// How long after a fault its seconds are still not quiet: elections, new grants.
const AFTERMATH_NS: u64 = 3 * SECOND_NS;
/// Fewer quiet seconds than these are not judged by.
const QUIET_SECONDS_MIN: usize = 3;
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// A line of a history, of any workload.
pub(crate) type Line = Event<Value, Value>;
/// An operation of any workload.
pub(crate) type AnyOperation = Operation<Value, Value>;

/// A fault from its begin to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Band {
    pub(crate) name: String,
    pub(crate) from_ns: u64,
    pub(crate) until_ns: u64,
}

/// A history without its meaning.
pub(crate) struct Timeline {
    pub(crate) operations: Vec<AnyOperation>,
    /// What the faults did, line by line.
    pub(crate) marks: Vec<(u64, String)>,
    pub(crate) bands: Vec<Band>,
    /// When the faults were over and the clients were told to stop.
    pub(crate) healed_ns: u64,
    /// The last line.
    pub(crate) end_ns: u64,
}

/// The lines of a history.
pub(crate) fn lines(text: &str) -> Result<Vec<Line>> {
    recorder::read(text)
}

/// Reads a history.
pub(crate) fn read(text: &str) -> Result<Timeline> {
    let events = lines(text)?;
    let mut marks = Vec::new();
    let mut end_ns = 0;
    for event in &events {
        let (Event::Call { at_ns, .. } | Event::Return { at_ns, .. } | Event::Nemesis { at_ns, .. }) = event;
        end_ns = end_ns.max(*at_ns);
        if let Event::Nemesis { at_ns, what } = event {
            marks.push((*at_ns, what.clone()));
        }
    }
    let healed_ns = marks.iter().find(|(_, what)| what == "heal").map_or(end_ns, |(at, _)| *at);
    let bands = bands(&marks, end_ns);
    Ok(Timeline { operations: pair_up(events)?, marks, bands, healed_ns, end_ns })
}

/// Faults lie between `begin NAME` and `end NAME`, or the healing.
fn bands(marks: &[(u64, String)], end_ns: u64) -> Vec<Band> {
    let mut bands = Vec::new();
    let mut open: BTreeMap<&str, u64> = BTreeMap::new();
    let mut close = |name: &str, from_ns: u64, until_ns: u64| {
        bands.push(Band { name: name.to_owned(), from_ns, until_ns });
    };
    for (at, what) in marks {
        if let Some(name) = what.strip_prefix("begin ") {
            open.insert(name, *at);
        } else if let Some(name) = what.strip_prefix("end ") {
            if let Some(from) = open.remove(name) {
                close(name, from, *at);
            }
        } else if what == "heal" {
            std::mem::take(&mut open).into_iter().for_each(|(name, from)| close(name, from, *at));
        }
    }
    open.into_iter().for_each(|(name, from)| close(name, from, end_ns));
    bands
}

impl Timeline {
    /// Acknowledged operations in each second from the first call to the healing; whether a fault touched it.
    pub(crate) fn seconds(&self) -> Vec<(u64, bool)> {
        let Some(first) = self.operations.first().map(|operation| operation.called_at_ns) else {
            return Vec::new();
        };
        let count = usize::try_from(self.healed_ns.saturating_sub(first) / SECOND_NS).unwrap_or(0);
        let mut seconds = vec![(0, false); count];
        for operation in &self.operations {
            if let (Outcome::Ok { .. }, Some(returned)) = (&operation.outcome, operation.returned_at_ns)
                && let Ok(index) = usize::try_from((returned - first) / SECOND_NS)
                && let Some((acknowledged, _)) = seconds.get_mut(index)
            {
                *acknowledged += 1;
            }
        }
        for (index, (_, touched)) in (0_u64..).zip(&mut seconds) {
            let (from, until) = (first + index * SECOND_NS, first + (index + 1) * SECOND_NS);
            *touched = self
                .bands
                .iter()
                .any(|band| band.from_ns < until && band.until_ns.saturating_add(AFTERMATH_NS) > from);
        }
        seconds
    }
}

/// Whether enough was done for the run to prove something (issue 4; etcd's robustness tests have the same).
pub(crate) fn check_load(text: &str, minimum: Minimum, verdict: &mut Verdict) -> Result<()> {
    let mut quiet: Vec<u64> = read(text)?
        .seconds()
        .into_iter()
        .filter(|(_, touched)| !touched)
        .map(|(acknowledged, _)| acknowledged)
        .collect();
    quiet.sort_unstable();
    let Some(median) = quiet.get(quiet.len() / 2).filter(|_| quiet.len() >= QUIET_SECONDS_MIN) else {
        return Ok(());
    };
    verdict.note(format!("load: {median} acknowledged in the middle one of {} quiet seconds", quiet.len()));
    if *median < minimum.quiet_per_second {
        verdict.doubt(format!(
            "too little load: {median} per quiet second, {} needed",
            minimum.quiet_per_second
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history with an operation every `step` ms over ten seconds, and a fault from 5 to 6 s.
    fn history(step: u64) -> String {
        let mut lines = Vec::new();
        for at in (0..10_000_u64).step_by(usize::try_from(step).unwrap()) {
            let (called, returned) = (at * 1_000_000, at * 1_000_000 + 1);
            if at == 5000 {
                lines.push(format!(r#"{{"event":"nemesis","at_ns":{called},"what":"begin kill"}}"#));
            }
            if at == 6000 {
                lines.push(format!(r#"{{"event":"nemesis","at_ns":{called},"what":"end kill"}}"#));
            }
            lines.push(format!(r#"{{"event":"call","process":1,"at_ns":{called},"call":"x"}}"#));
            let outcome = r#"{"type":"ok","value":1}"#;
            lines.push(format!(r#"{{"event":"return","process":1,"at_ns":{returned},"outcome":{outcome}}}"#));
        }
        lines.push(r#"{"event":"nemesis","at_ns":10000000000,"what":"heal"}"#.into());
        lines.join("\n")
    }

    #[test]
    fn seconds_that_a_fault_touched_are_known() {
        let timeline = read(&history(100)).unwrap();
        assert_eq!(
            timeline.bands,
            [Band { name: "kill".into(), from_ns: 5 * SECOND_NS, until_ns: 6 * SECOND_NS }]
        );
        let touched: Vec<bool> = timeline.seconds().iter().map(|(_, touched)| *touched).collect();
        assert_eq!(touched, [false, false, false, false, false, true, true, true, true, false]);
        assert!(timeline.seconds().iter().all(|(acknowledged, _)| *acknowledged == 10));
    }

    #[test]
    fn a_run_with_too_little_load_is_doubted() {
        let judge = |step| {
            let mut verdict = Verdict::new();
            check_load(&history(step), Minimum { all_per_second: 0, quiet_per_second: 10 }, &mut verdict)
                .unwrap();
            verdict
        };
        assert!(judge(100).is_good());
        assert!(!judge(200).is_good());
    }
}
