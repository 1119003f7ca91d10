//! Judges record appends (design P2, P4, P5): a log whose order is its offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{History, count, count_writes, doubt_without, read};
use crate::history::Operation;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    /// Append this record.
    Append(Record),
    /// What the file looks like after all faults are over.
    Layout,
    /// What one server holds of a chunk.
    Scan {
        /// Index of the chunk.
        chunk: u32,
        /// The server.
        server: u64,
    },
}

/// A record as its producer made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) producer: u64,
    pub(crate) sequence: u64,
    /// Length with its head.
    pub(crate) length: u32,
    /// Of the payload.
    pub(crate) crc: u32,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// The record is at this offset of the file.
    At(u64),
    /// Per chunk, the servers that hold a current replica.
    Layout {
        /// Size of a chunk.
        chunk_bytes: u64,
        /// Servers by chunk.
        servers: Vec<Vec<u64>>,
    },
    /// What a replica holds.
    Scan(Scan),
}

/// The content of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scan {
    /// Bytes in it.
    pub(crate) length: u64,
    /// Checksum of all bytes.
    pub(crate) hash: u32,
    /// Offset in the file and record, in order.
    pub(crate) records: Vec<(u64, Record)>,
    /// Offsets in the file where something begins that is neither a record nor zeros.
    pub(crate) damage: Vec<u64>,
    /// Zeros that are followed by something: (offset in the file, length).
    pub(crate) gaps: Vec<(u64, u64)>,
}

/// Judges a history of appends.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    let History { operations, healed_ns } = read::<Call, Reply>(text, &mut verdict)?;
    let appends: Vec<_> = operations
        .iter()
        .filter_map(|operation| match operation.call {
            Call::Append(record) => Some((record, operation)),
            Call::Layout | Call::Scan { .. } => None,
        })
        .collect();
    count(&mut verdict, appends.iter().map(|(_, operation)| *operation), healed_ns);
    count_writes(&mut verdict, appends.iter().map(|(_, operation)| *operation));
    let Some(found) = one_content(&operations, &mut verdict) else {
        return Ok(verdict);
    };
    let offset = |reply: &Reply| match reply {
        Reply::At(at) => Some(*at),
        Reply::Layout { .. } | Reply::Scan(_) => None,
    };
    check_log(&appends, offset, &found, &mut verdict);
    Ok(verdict)
}

/// What is known of a log at the end.
#[derive(Default)]
pub(super) struct Found {
    /// Offsets and records.
    pub(super) records: Vec<(u64, Record)>,
    /// Parts that nobody has read: what may be there is neither lost nor found.
    pub(super) unread: Vec<std::ops::Range<u64>>,
}

/// Judges what is in a log at the end, with the offset that each append was told.
pub(super) fn check_log<C, R: Debug>(
    appends: &[(Record, &Operation<C, R>)],
    offset_of: impl Fn(&R) -> Option<u64>,
    found: &Found,
    verdict: &mut Verdict,
) {
    let places = places(&found.records, verdict);
    let is_unread = |offset: u64| found.unread.iter().any(|part| part.contains(&offset));
    let mut moments = Vec::new();
    for (record, operation) in appends {
        let place = places.get(&(record.producer, record.sequence));
        match (&operation.outcome, place) {
            (Outcome::Ok { value }, Some((offset, there)))
                if offset_of(value) == Some(*offset) && there == record => {}
            (Outcome::Ok { value }, None) if offset_of(value).is_some_and(is_unread) => {}
            (Outcome::Ok { value }, _) => {
                verdict
                    .finding(format!("lost: {record:?} was acknowledged with {value:?}, there is {place:?}"));
            }
            (Outcome::Fail { reason }, Some(_)) => {
                verdict.finding(format!("undead: {record:?} had failed ({reason}) and is at {place:?}"));
            }
            // The file is there, nobody deletes it, and the record is not too long.
            (Outcome::Fail { reason }, None) => {
                verdict.finding(format!("refused: {record:?}: {reason}"));
            }
            (Outcome::Info { .. }, Some((_, there))) if there != record => {
                verdict.finding(format!("damaged: {record:?} is there as {there:?}"));
            }
            (Outcome::Info { .. }, _) => {}
        }
        if let Some((offset, _)) = place {
            moments.push((operation.called_at_ns, operation.returned_at_ns, *offset));
        }
    }
    doubt_without(verdict, "append", appends.iter().map(|(_, operation)| *operation));
    let asked: BTreeSet<_> = appends.iter().map(|(record, _)| (record.producer, record.sequence)).collect();
    for (id, place) in places.iter().filter(|(id, _)| !asked.contains(*id)) {
        verdict.finding(format!("phantom: nobody appended {id:?}, it is at {place:?}"));
    }
    check_order(&moments, verdict);
}

/// The records of the file, if every replica of each chunk tells the same.
fn one_content(operations: &[Operation<Call, Reply>], verdict: &mut Verdict) -> Option<Found> {
    let layout = operations.iter().rev().find_map(|operation| match &operation.outcome {
        Outcome::Ok { value: Reply::Layout { chunk_bytes, servers } } => Some((*chunk_bytes, servers)),
        Outcome::Ok { .. } | Outcome::Fail { .. } | Outcome::Info { .. } => None,
    });
    let Some((chunk_bytes, layout)) = layout else {
        verdict.doubt("the history ends before the file was read back");
        return None;
    };
    let mut scans: BTreeMap<(u32, u64), &Scan> = BTreeMap::new();
    for operation in operations {
        if let (Call::Scan { chunk, server }, Outcome::Ok { value: Reply::Scan(scan) }) =
            (&operation.call, &operation.outcome)
        {
            scans.insert((*chunk, *server), scan);
        }
    }
    let mut found = Found::default();
    for (chunk, servers) in (0_u32..).zip(layout) {
        let mut first: Option<(u64, &Scan)> = None;
        for server in servers {
            let Some(scan) = scans.get(&(chunk, *server)) else {
                verdict.doubt(format!("chunk {chunk} was not read from server {server}"));
                continue;
            };
            match first {
                None => first = Some((*server, scan)),
                Some((_, other)) if other == *scan => {}
                Some((other, _)) => {
                    verdict.finding(format!("different: chunk {chunk} of servers {other} and {server}"));
                }
            }
        }
        let Some((server, scan)) = first else {
            if servers.is_empty() {
                verdict.finding(format!("nobody holds chunk {chunk}"));
            } else {
                let start = u64::from(chunk).saturating_mul(chunk_bytes);
                found.unread.push(start..start.saturating_add(chunk_bytes));
            }
            continue;
        };
        check_scan((chunk, server), scan, chunk_bytes, verdict);
        found.records.extend(scan.records.iter().copied());
    }
    verdict.note(format!("{} chunks, {} records in the file", layout.len(), found.records.len()));
    Some(found)
}

/// Nothing but records, and zeros after the last.
fn check_scan((chunk, server): (u32, u64), scan: &Scan, chunk_bytes: u64, verdict: &mut Verdict) {
    for at in &scan.damage {
        verdict.finding(format!("damage: chunk {chunk} of server {server} at {at}"));
    }
    for (at, length) in &scan.gaps {
        verdict.finding(format!("gap: {length} zeros at {at} inside chunk {chunk} of server {server}"));
    }
    let start = u64::from(chunk).saturating_mul(chunk_bytes);
    for (offset, record) in &scan.records {
        let end = offset.saturating_add(record.length.into());
        if *offset < start || end > start.saturating_add(chunk_bytes) {
            verdict.finding(format!("across chunks: {record:?} at {offset}"));
        }
    }
}

/// Where each record is, each once.
fn places(found: &[(u64, Record)], verdict: &mut Verdict) -> BTreeMap<(u64, u64), (u64, Record)> {
    let mut places: BTreeMap<(u64, u64), (u64, Record)> = BTreeMap::new();
    for (offset, record) in found {
        if let Some((first, _)) = places.insert((record.producer, record.sequence), (*offset, *record)) {
            verdict.finding(format!("twice: {record:?} is at {first} and at {offset}"));
        }
    }
    places
}

/// What was acknowledged before another append began is before it in the file.
fn check_order(moments: &[(u64, Option<u64>, u64)], verdict: &mut Verdict) {
    let mut calls: Vec<_> = moments.iter().map(|(called, _, offset)| (*called, *offset)).collect();
    calls.sort_unstable();
    let mut returns: Vec<_> =
        moments.iter().filter_map(|(_, returned, offset)| Some(((*returned)?, *offset))).collect();
    returns.sort_unstable();
    let mut returns = returns.into_iter().peekable();
    let mut highest: Option<u64> = None;
    for (called, offset) in calls {
        while let Some((_, earlier)) = returns.next_if(|(returned, _)| *returned < called) {
            highest = highest.max(Some(earlier));
        }
        if let Some(before) = highest.filter(|before| *before > offset) {
            verdict
                .finding(format!("order: the append at {offset} began after that at {before} had returned"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    /// Producer, called at, returned at and offset if acknowledged.
    type Asked = (u64, u64, Option<(u64, u64)>);

    /// `calls`: producer, called at, returned at and offset if acknowledged; `files`: per server, offsets and producers.
    fn judge(calls: &[Asked], files: &[&[(u64, u64)]]) -> Verdict {
        judge_all(calls, &[], files)
    }

    /// The same with appends that were refused: producer, called at, returned at.
    fn judge_all(calls: &[Asked], refused: &[(u64, u64, u64)], files: &[&[(u64, u64)]]) -> Verdict {
        check(&text(calls, refused, files)).unwrap()
    }

    /// The history of it.
    fn text(calls: &[Asked], refused: &[(u64, u64, u64)], files: &[&[(u64, u64)]]) -> String {
        let record = |producer| Record { producer, sequence: 1, length: 10, crc: 7 };
        let mut events: Vec<(u64, serde_json::Value)> = Vec::new();
        let mut push = |process: u64, call: &Call, at: u64, end: u64, outcome: Outcome<Reply>| {
            events.push((
                at,
                serde_json::json!({"event": "call", "process": process, "at_ns": at, "call": call}),
            ));
            events.push((
                end,
                serde_json::json!({"event": "return", "process": process, "at_ns": end, "outcome": outcome}),
            ));
        };
        for (producer, at, reply) in calls {
            let end = reply.map_or(at + 1, |(end, _)| end);
            let unknown = Outcome::Info { reason: "?".into() };
            let outcome = reply.map_or(unknown, |(_, at)| Outcome::Ok { value: Reply::At(at) });
            push(*producer, &Call::Append(record(*producer)), *at, end, outcome);
        }
        for (producer, at, end) in refused {
            let outcome = Outcome::Fail { reason: "not found".into() };
            push(*producer, &Call::Append(record(*producer)), *at, *end, outcome);
        }
        let servers = (0..files.len() as u64).collect();
        push(
            100,
            &Call::Layout,
            1000,
            1001,
            Outcome::Ok { value: Reply::Layout { chunk_bytes: 100, servers: vec![servers] } },
        );
        for (server, records) in (0_u64..).zip(files) {
            let records: Vec<_> = records.iter().map(|(at, producer)| (*at, record(*producer))).collect();
            let hash = u32::try_from(records.len()).unwrap();
            let scan = Scan { length: 100, hash, records, damage: vec![], gaps: vec![] };
            let at = 1002 + 2 * server;
            push(
                101 + server,
                &Call::Scan { chunk: 0, server },
                at,
                at + 1,
                Outcome::Ok { value: Reply::Scan(scan) },
            );
        }
        events.sort_by_key(|(at, _)| *at);
        let text: Vec<String> = events.iter().map(|(_, line)| line.to_string()).collect();
        text.join("\n")
    }

    fn first_word(verdict: &Verdict) -> &str {
        verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap())
    }

    #[test]
    fn a_good_log_is_good_with_and_without_the_append_of_unknown_outcome() {
        let calls = [(1, 1, Some((5, 0))), (2, 2, Some((9, 10))), (3, 10, None)];
        for file in [&[(0, 1), (10, 2)][..], &[(0, 1), (10, 2), (20, 3)]] {
            let verdict = judge(&calls, &[file, file]);
            assert!(verdict.is_good(), "{verdict:?}");
            assert_eq!((verdict.ok, verdict.unknown), (2, 1));
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        let calls = [(1, 1, Some((5, 0))), (2, 6, Some((9, 10)))];
        let good: &[(u64, u64)] = &[(0, 1), (10, 2)];
        for (word, files) in [
            ("lost", [&[(0, 1)][..]; 2]),
            ("lost", [&[(0, 1), (20, 2)][..]; 2]),
            ("twice", [&[(0, 1), (10, 2), (20, 2)][..]; 2]),
            ("different", [good, &[(0, 1)]]),
            ("phantom", [&[(0, 1), (10, 2), (20, 9)][..]; 2]),
            ("across chunks", [&[(0, 1), (10, 2), (95, 3)][..]; 2]),
        ] {
            assert_eq!(first_word(&judge(&calls, &files)), word);
        }
        for (word, file) in [("refused", &[(0, 1)][..]), ("undead", &[(0, 1), (10, 2)])] {
            assert_eq!(first_word(&judge_all(&calls[..1], &[(2, 6, 9)], &[file, file])), word);
        }
        let reordered = [(1, 1, Some((5, 10))), (2, 6, Some((9, 0)))];
        let file: &[(u64, u64)] = &[(0, 2), (10, 1)];
        assert_eq!(first_word(&judge(&reordered, &[file, file])), "order");
    }

    #[test]
    fn what_stands_in_a_log_that_nobody_appended_is_found() {
        // The third is of unknown outcome and there.
        let calls = [(1, 1, Some((5, 0))), (2, 6, Some((9, 10))), (3, 10, None)];
        let file: &[(u64, u64)] = &[(0, 1), (10, 2), (20, 3)];
        let good = text(&calls, &[], &[file, file]);
        assert!(check(&good).unwrap().is_good());
        let third = r#""crc":7,"length":10,"producer":3"#;
        for (word, from, to) in [
            ("damaged", third, r#""crc":8,"length":10,"producer":3"#),
            ("damage", r#""damage":[]"#, r#""damage":[30]"#),
            ("gap", r#""gaps":[]"#, r#""gaps":[[20,5]]"#),
        ] {
            assert!(good.contains(from), "{from}");
            // What was asked comes first; of the replicas all tell the same.
            let times = if word == "damaged" { 1 } else { 2 };
            let bad = check(&good.replacen(from, to, times)).unwrap();
            assert_eq!((first_word(&bad), bad.findings.len()), (word, 1), "{bad:?}");
        }
    }

    #[test]
    fn what_the_last_look_did_not_come_to_is_doubted_and_not_called_lost() {
        let (good, ends) = ([(1, 1, Some((5, 0))), (2, 6, Some((9, 10)))], Some((12, 250)));
        // Three chunks of 100 bytes; nobody has read the third, and its append is not there.
        let layout = |third: &str| {
            let told = format!(r#"{{"layout":{{"chunk_bytes":100,"servers":[[0],[],{third}]}}}}"#);
            [
                r#"{"event":"call","process":200,"at_ns":1100,"call":"layout"}"#.to_owned(),
                format!(
                    r#"{{"event":"return","process":200,"at_ns":1101,"outcome":{{"type":"ok","value":{told}}}}}"#
                ),
            ]
            .join("\n")
        };
        let history = text(&[&good[..], &[(3, 10, ends)]].concat(), &[], &[&[(0, 1), (10, 2)]]);
        let cut_short = check(&format!("{history}\n{}", layout("[0]"))).unwrap();
        assert_eq!(cut_short.findings, ["nobody holds chunk 1"], "{cut_short:?}");
        assert_eq!(cut_short.doubts, ["chunk 2 was not read from server 0"]);
        let lost = check(&format!("{history}\n{}", layout("[]"))).unwrap();
        assert!(lost.findings.iter().any(|finding| finding.starts_with("lost")), "{lost:?}");
    }

    #[test]
    fn a_log_to_which_nothing_could_be_appended_is_no_good_history() {
        let verdict = judge(&[(1, 1, None)], &[&[], &[]]);
        assert_eq!((verdict.validity, verdict.findings.len()), (Validity::Unknown, 0), "{verdict:?}");
    }

    #[test]
    fn a_history_without_its_end_is_no_good_history() {
        let text = r#"{"event":"call","process":1,"at_ns":1,"call":"layout"}"#;
        assert_eq!(check(text).unwrap().validity, Validity::Unknown);
    }
}
