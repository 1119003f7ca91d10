//! Judges snapshots of a file that is appended to (GFS §3.4): each is the file at one moment between its call and its
//! return, and the file itself keeps every promise of record appends, though copies on write go on under it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::append::{Found, Record, check_log};
use super::{History, count, count_writes, read};
use crate::history::Operation;
use crate::outcome::Outcome;
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
    /// Offsets and records, and the offsets where something begins that is none.
    Content {
        records: Vec<(u64, Record)>,
        damage: Vec<u64>,
    },
}

type Op = Operation<Call, Reply>;

/// Judges a history of snapshots.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    let History { operations, healed_ns } = read::<Call, Reply>(text, &mut verdict)?;
    count(&mut verdict, operations.iter().filter(|op| !matches!(op.call, Call::Content { .. })), healed_ns);
    count_writes(&mut verdict, operations.iter().filter(|op| matches!(op.call, Call::Append(_))));
    let mut contents: BTreeMap<Option<u64>, BTreeMap<u64, Record>> = BTreeMap::new();
    // Of what is there and could not be read nothing is known.
    let mut unread = BTreeSet::new();
    for operation in &operations {
        let Call::Content { copy } = &operation.call else { continue };
        let whose = copy.map_or("the file".to_owned(), |copy| format!("copy {copy}"));
        match &operation.outcome {
            Outcome::Ok { value: Reply::Content { records, damage } } => {
                for at in damage {
                    verdict.finding(format!("damage: {whose} at {at}"));
                }
                if contents.insert(*copy, records.iter().copied().collect()).is_none() && copy.is_none() {
                    let found = Found { records: records.clone(), unread: Vec::new() };
                    check_log(&appends(&operations), offset_of, &found, &mut verdict);
                }
            }
            Outcome::Fail { reason } => verdict.finding(format!("lost: {whose} can't be read: {reason}")),
            Outcome::Ok { .. } | Outcome::Info { .. } => {
                verdict.doubt(format!("{whose} could not be read: {:?}", operation.outcome));
                unread.extend(*copy);
            }
        }
    }
    let Some(last) = contents.get(&None) else {
        verdict.doubt("the history ends before the file was read back");
        return Ok(verdict);
    };
    let (mut judged, mut longest) = (0, 0);
    for operation in &operations {
        let Call::Snapshot { copy } = operation.call else { continue };
        match (&operation.outcome, contents.get(&Some(copy))) {
            (Outcome::Ok { .. } | Outcome::Info { .. }, Some(content)) => {
                judged += 1;
                longest = longest.max(content.len());
                check_copy((copy, operation), content, last, &operations, &mut verdict);
            }
            (Outcome::Ok { .. }, None) if unread.contains(&copy) => {}
            (Outcome::Ok { .. }, None) => {
                verdict.finding(format!("lost: copy {copy} was made, and was not there at the end"));
            }
            (Outcome::Fail { reason }, Some(_)) => {
                verdict.finding(format!("undead: copy {copy} is there, and had failed: {reason}"));
            }
            // Its number is its own, and the file is there.
            (Outcome::Fail { reason }, None) => verdict.finding(format!("refused: copy {copy}: {reason}")),
            (Outcome::Info { .. }, None) => {}
        }
    }
    if longest == 0 {
        verdict.doubt("no copy with a record in it was read");
    }
    verdict.note(format!("{judged} copies judged"));
    Ok(verdict)
}

/// Each append with its record.
fn appends(operations: &[Op]) -> Vec<(Record, &Op)> {
    let record = |operation: &Op| match operation.call {
        Call::Append(record) => Some(record),
        Call::Snapshot { .. } | Call::Content { .. } => None,
    };
    operations.iter().filter_map(|operation| Some((record(operation)?, operation))).collect()
}

fn offset_of(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::At(at) => Some(*at),
        Reply::Made | Reply::Content { .. } => None,
    }
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
    let there: BTreeSet<_> = content.values().map(|record| (record.producer, record.sequence)).collect();
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
        if later && there.contains(&(record.producer, record.sequence)) {
            verdict.finding(format!("future: {record:?} was begun after copy {copy} was made"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    fn record(producer: u64) -> Record {
        Record { producer, sequence: 1, length: 10, crc: 7 }
    }

    /// Appends as (producer, called, returned, offset), one snapshot from 10 to 20, and both contents by producer.
    fn judge(appends: &[(u64, u64, u64, u64)], copy: &[u64], last: &[u64]) -> Verdict {
        judge_with(appends, Outcome::Ok { value: Reply::Made }, Some(content(copy)), content(last))
    }

    /// Records of these producers, one after the other.
    fn content(producers: &[u64]) -> Reply {
        let records = (0..).step_by(10).zip(producers).map(|(at, producer)| (at, record(*producer)));
        Reply::Content { records: records.collect(), damage: vec![] }
    }

    /// The same with what the snapshot came to; the copy may not be there.
    fn judge_with(
        appends: &[(u64, u64, u64, u64)],
        made: Outcome<Reply>,
        copy: Option<Reply>,
        last: Reply,
    ) -> Verdict {
        let ok = |value| Outcome::Ok { value };
        let mut all: Vec<(u64, u64, Call, Outcome<Reply>)> = appends
            .iter()
            .map(|(producer, called, returned, at)| {
                (*called, *returned, Call::Append(record(*producer)), ok(Reply::At(*at)))
            })
            .collect();
        all.push((10, 20, Call::Snapshot { copy: 1 }, made));
        all.extend(copy.map(|copy| (100, 101, Call::Content { copy: Some(1) }, ok(copy))));
        all.push((102, 103, Call::Content { copy: None }, ok(last)));
        let mut events = Vec::new();
        for (process, (called, returned, call, outcome)) in (0_u64..).zip(all) {
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
            // Of the file itself.
            ("lost", &[1], &[1, 2]),
            ("twice", &[1, 2, 1], &[1, 2, 1]),
            ("phantom", &[1], &[1, 2, 3, 9]),
        ] {
            let verdict = judge(&appends, copy, last);
            assert!(verdict.findings.iter().any(|finding| finding.starts_with(kind)), "{kind}: {verdict:?}");
        }
    }

    #[test]
    fn a_copy_that_is_not_there_or_was_refused_is_found_and_one_of_unknown_outcome_is_judged() {
        let appends = [(1, 1, 2, 0)];
        let made = || Outcome::Ok { value: Reply::Made };
        let refused = || Outcome::Fail { reason: "not found".into() };
        let unknown = || Outcome::Info { reason: "?".into() };
        let damaged = Reply::Content { records: vec![(0, record(1))], damage: vec![10] };
        for (kind, made, copy, last) in [
            ("lost", made(), None, content(&[1])),
            ("refused", refused(), None, content(&[1])),
            ("undead", refused(), Some(content(&[1])), content(&[1])),
            ("lost", unknown(), Some(content(&[])), content(&[1])),
            ("damage", made(), Some(damaged.clone()), content(&[1])),
            ("damage", made(), Some(content(&[1])), damaged.clone()),
        ] {
            let verdict = judge_with(&appends, made, copy, last);
            assert!(verdict.findings.iter().any(|finding| finding.starts_with(kind)), "{kind}: {verdict:?}");
        }
        let never = judge_with(&appends, unknown(), None, content(&[1]));
        assert_eq!((never.validity, never.findings.len()), (Validity::Unknown, 0), "{never:?}");
    }

    #[test]
    fn a_copy_that_could_not_be_read_is_doubted_and_not_called_lost() {
        let text = [
            r#"{"event":"call","process":1,"at_ns":1,"call":{"snapshot":{"copy":1}}}"#,
            r#"{"event":"return","process":1,"at_ns":2,"outcome":{"type":"ok","value":"made"}}"#,
            r#"{"event":"call","process":2,"at_ns":3,"call":{"content":{"copy":1}}}"#,
            r#"{"event":"return","process":2,"at_ns":4,"outcome":{"type":"info","reason":"?"}}"#,
            r#"{"event":"call","process":3,"at_ns":5,"call":{"content":{"copy":null}}}"#,
            r#"{"event":"return","process":3,"at_ns":6,"outcome":{"type":"ok","value":{"content":{"records":[],"damage":[]}}}}"#,
        ];
        let verdict = check(&text.join("\n")).unwrap();
        assert_eq!((verdict.validity, verdict.findings.len()), (Validity::Unknown, 0), "{verdict:?}");
    }

    #[test]
    fn copies_of_an_empty_file_prove_nothing() {
        let verdict = judge(&[(1, 30, 31, 0)], &[], &[1]);
        assert_eq!((verdict.validity, verdict.findings.len()), (Validity::Unknown, 0), "{verdict:?}");
    }
}
