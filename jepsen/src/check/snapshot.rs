//! Judges snapshots of a file that is appended to (GFS §3.4): each is the file at one moment between its call and its
//! return.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::append::Record;
use super::count;
use crate::history::{Operation, pair_up};
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    /// Append this record.
    Append(Record),
    /// Make a copy with this number.
    Snapshot { copy: u64 },
    /// Read a copy, or the file itself, after all faults.
    Content { copy: Option<u64> },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    At(u64),
    Made,
    /// Offsets and records.
    Content(Vec<(u64, Record)>),
}

type Op = Operation<Call, Reply>;

/// Judges a history of snapshots.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let operations = pair_up(recorder::read::<Call, Reply>(text)?)?;
    let mut verdict = Verdict::new();
    count(&mut verdict, operations.iter().filter(|op| !matches!(op.call, Call::Content { .. })));
    let mut contents: BTreeMap<Option<u64>, BTreeMap<u64, Record>> = BTreeMap::new();
    for operation in &operations {
        if let (Call::Content { copy }, Outcome::Ok { value: Reply::Content(records) }) =
            (&operation.call, &operation.outcome)
        {
            contents.insert(*copy, records.iter().copied().collect());
        }
    }
    let Some(last) = contents.get(&None) else {
        verdict.doubt("the history ends before the file was read back");
        return Ok(verdict);
    };
    let mut judged = 0;
    for operation in &operations {
        let Call::Snapshot { copy } = operation.call else { continue };
        match (&operation.outcome, contents.get(&Some(copy))) {
            (Outcome::Ok { .. }, Some(content)) => {
                judged += 1;
                check_copy((copy, operation), content, last, &operations, &mut verdict);
            }
            (Outcome::Fail { reason }, Some(_)) => {
                verdict.finding(format!("undead: copy {copy} is there, and had failed: {reason}"));
            }
            // Too many to be read, or never made.
            (Outcome::Ok { .. } | Outcome::Fail { .. } | Outcome::Info { .. }, _) => {}
        }
    }
    if judged == 0 {
        verdict.doubt("no copy was read");
    }
    verdict.note(format!("{judged} copies judged"));
    Ok(verdict)
}

fn check_copy(
    (copy, snapshot): (u64, &Op),
    content: &BTreeMap<u64, Record>,
    last: &BTreeMap<u64, Record>,
    operations: &[Op],
    verdict: &mut Verdict,
) {
    let end = content.last_key_value().map_or(0, |(at, record)| at + u64::from(record.length));
    // One file, one order: what was there then is the beginning of what is there at last.
    let beginning: BTreeMap<u64, Record> = last.range(..end).map(|(at, record)| (*at, *record)).collect();
    if *content != beginning {
        verdict.finding(format!(
            "torn: copy {copy} has {} records up to {end}, the file has {} there",
            content.len(),
            beginning.len()
        ));
    }
    for operation in operations {
        let Call::Append(record) = operation.call else { continue };
        if let Outcome::Ok { value: Reply::At(at) } = operation.outcome
            && operation.returned_at_ns.is_some_and(|returned| returned < snapshot.called_at_ns)
            && content.get(&at) != Some(&record)
        {
            verdict
                .finding(format!("lost: {record:?} at {at} was acknowledged before copy {copy} was begun"));
        }
        let later = snapshot.returned_at_ns.is_some_and(|returned| operation.called_at_ns > returned);
        let same = |other: &&Record| (other.producer, other.sequence) == (record.producer, record.sequence);
        if later && content.values().any(|other| same(&other)) {
            verdict.finding(format!("future: {record:?} was begun after copy {copy} was made"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(producer: u64) -> Record {
        Record { producer, sequence: 1, length: 10, crc: 7 }
    }

    /// Appends as (producer, called, returned, offset), one snapshot from 10 to 20, and both contents by producer.
    fn judge(appends: &[(u64, u64, u64, u64)], copy: &[u64], last: &[u64]) -> Verdict {
        let content = |producers: &[u64]| {
            Reply::Content(
                (0..).step_by(10).zip(producers).map(|(at, producer)| (at, record(*producer))).collect(),
            )
        };
        let mut all: Vec<(u64, u64, Call, Reply)> = appends
            .iter()
            .map(|(producer, called, returned, at)| {
                (*called, *returned, Call::Append(record(*producer)), Reply::At(*at))
            })
            .collect();
        all.push((10, 20, Call::Snapshot { copy: 1 }, Reply::Made));
        all.push((100, 101, Call::Content { copy: Some(1) }, content(copy)));
        all.push((102, 103, Call::Content { copy: None }, content(last)));
        let mut events = Vec::new();
        for (process, (called, returned, call, reply)) in (0_u64..).zip(all) {
            let outcome = Outcome::Ok { value: reply };
            events.push((
                called,
                serde_json::json!({"event": "call", "process": process, "at_ns": called, "call": call}),
            ));
            events.push((returned, serde_json::json!({"event": "return", "process": process, "at_ns": returned, "outcome": outcome})));
        }
        events.sort_by_key(|(at, _)| *at);
        check(&events.iter().map(|(_, line)| line.to_string()).collect::<Vec<_>>().join("\n")).unwrap()
    }

    #[test]
    fn a_copy_of_one_moment_is_good() {
        let appends = [(1, 1, 2, 0), (2, 9, 15, 10), (3, 30, 31, 20)];
        for copy in [&[1][..], &[1, 2]] {
            let verdict = judge(&appends, copy, &[1, 2, 3]);
            assert!(verdict.is_good(), "{verdict:?}");
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        let appends = [(1, 1, 2, 0), (2, 9, 15, 10), (3, 30, 31, 20)];
        for (kind, copy, last) in [
            ("lost", &[][..], &[1, 2, 3][..]),
            ("future", &[1, 2, 3], &[1, 2, 3]),
            ("torn", &[1, 4], &[1, 2, 3]),
        ] {
            let verdict = judge(&appends, copy, last);
            assert!(verdict.findings.iter().any(|finding| finding.starts_with(kind)), "{kind}: {verdict:?}");
        }
    }
}
