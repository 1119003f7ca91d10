//! Judges positioned writes: every cell of 64 bytes is a register of unique values (Gibbons and Korach's zones).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{History, count, count_writes, doubt_without, read};
use crate::history::Operation;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// The value of a cell that nobody wrote.
pub(crate) const HOLE: u64 = 0;
/// What is in no write: a torn or damaged cell.
pub(crate) const TORN: u64 = u64::MAX;

/// Most cells of an operation and of a chunk, and where the last one may be: more is no history of ours.
const CELLS_MAX: u64 = 1 << 26;
const CELL_MAX: u64 = 1 << 48;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    /// Write `count` cells from `first` on, all with this tag.
    Write { tag: u64, first: u64, count: u64 },
    /// Read cells.
    Read { first: u64, count: u64 },
    /// Who holds the chunks, after all faults.
    Layout,
    /// Read all cells of a chunk from one server.
    Scan { chunk: u64, server: u64 },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    Written,
    /// Runs of (cells, tag).
    Cells(Vec<(u64, u64)>),
    Layout {
        cells_per_chunk: u64,
        servers: Vec<Vec<u64>>,
    },
}

/// What is known of one value of one cell.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// When its write was called: nobody can read it before.
    written_from: u64,
    /// The first end of what wrote or read it: it was there by then.
    first_end: u64,
    /// The last beginning of what wrote or read it: it was not over before.
    last_start: u64,
    /// Whether it was ever there for certain.
    certain: bool,
}

type Op = Operation<Call, Reply>;
/// Runs of (cells, tag).
type Runs = [(u64, u64)];
/// The values of each cell, by tag.
type Cells = BTreeMap<u64, BTreeMap<u64, Value>>;

/// Judges a history of cells.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    let History { operations, healed_ns } = read::<Call, Reply>(text, &mut verdict)?;
    operations.iter().try_for_each(check_bounds)?;
    let load = operations.iter().filter(|op| matches!(op.call, Call::Write { .. } | Call::Read { .. }));
    count(&mut verdict, load, healed_ns);
    let writes = || operations.iter().filter(|op| matches!(op.call, Call::Write { .. }));
    count_writes(&mut verdict, writes());
    // Those of the last look come when nothing is broken any more.
    let under_faults = writes().filter(|write| write.called_at_ns <= healed_ns);
    doubt_without(&mut verdict, "write", under_faults);
    // The file is there, and nobody deletes it.
    for operation in &operations {
        if let (Call::Write { .. } | Call::Read { .. }, Outcome::Fail { reason }) =
            (&operation.call, &operation.outcome)
        {
            verdict.finding(format!("refused: {:?}: {reason}", operation.call));
        }
    }
    let contents = check_replicas(&operations, &mut verdict);
    let mut cells = Cells::new();
    for operation in &operations {
        note_write(operation, &mut cells);
    }
    for operation in &operations {
        note_reads(operation, contents.as_ref().map(|contents| contents.per_chunk), &mut cells, &mut verdict);
    }
    for (cell, values) in &cells {
        check_cell(*cell, values, &mut verdict);
    }
    if let Some(contents) = contents {
        check_whole(&operations, &contents, &mut verdict);
    }
    verdict.note(format!("{} cells were written", cells.len()));
    Ok(verdict)
}

/// Numbers with which nothing can be reckoned are not from a client.
fn check_bounds(operation: &Op) -> Result<()> {
    let (first, count) = match operation.call {
        Call::Write { first, count, .. } | Call::Read { first, count } => (first, count),
        Call::Scan { chunk, .. } => (chunk.saturating_mul(CELLS_MAX), 0),
        Call::Layout => (0, 0),
    };
    let count = match &operation.outcome {
        Outcome::Ok { value: Reply::Cells(runs) } => {
            runs.iter().fold(count, |sum, (cells, _)| sum.saturating_add(*cells))
        }
        Outcome::Ok { value: Reply::Layout { cells_per_chunk, .. } } => {
            ensure!((1..=CELLS_MAX).contains(cells_per_chunk), "{cells_per_chunk} cells in a chunk");
            count
        }
        Outcome::Ok { value: Reply::Written } | Outcome::Fail { .. } | Outcome::Info { .. } => count,
    };
    ensure!(count <= 2 * CELLS_MAX && first <= CELL_MAX, "too many cells: {:?}", operation.call);
    Ok(())
}

fn note_write(operation: &Op, cells: &mut Cells) {
    let Call::Write { tag, first, count } = operation.call else { return };
    if matches!(operation.outcome, Outcome::Fail { .. }) {
        return;
    }
    for cell in first..first + count {
        let value = Value {
            written_from: operation.called_at_ns,
            first_end: operation.returned_at_ns.unwrap_or(u64::MAX),
            last_start: operation.called_at_ns,
            // Of an unknown outcome: it counts once somebody has read it.
            certain: operation.returned_at_ns.is_some(),
        };
        cells.entry(cell).or_default().insert(tag, value);
    }
}

/// The first cell of a read, its runs, and its end.
fn as_read(operation: &Op, per_chunk: Option<u64>) -> Option<(u64, &Runs, u64)> {
    let first = match operation.call {
        Call::Read { first, .. } => first,
        Call::Scan { chunk, .. } => chunk * per_chunk?,
        Call::Write { .. } | Call::Layout => return None,
    };
    match (&operation.outcome, operation.returned_at_ns) {
        (Outcome::Ok { value: Reply::Cells(runs) }, Some(returned)) => Some((first, runs, returned)),
        _ => None,
    }
}

fn note_reads(operation: &Op, per_chunk: Option<u64>, cells: &mut Cells, verdict: &mut Verdict) {
    let Some((first, runs, returned)) = as_read(operation, per_chunk) else { return };
    let called = operation.called_at_ns;
    let mut next = first;
    for (count, tag) in runs {
        let run = next..next + count;
        next = run.end;
        if *tag == TORN {
            verdict.finding(format!("torn: {count} cells from {} on, read at {called}", run.start));
            continue;
        }
        for cell in run {
            if *tag == HOLE {
                // What nobody ever wrote is a hole at any time.
                let Some(values) = cells.get_mut(&cell) else { continue };
                let hole = Value { written_from: 0, first_end: 0, last_start: 0, certain: true };
                let hole = values.entry(HOLE).or_insert(hole);
                hole.last_start = hole.last_start.max(called);
                continue;
            }
            match cells.get_mut(&cell).and_then(|values| values.get_mut(tag)) {
                Some(value) if value.written_from <= returned => {
                    value.first_end = value.first_end.min(returned);
                    value.last_start = value.last_start.max(called);
                    value.certain = true;
                }
                found => {
                    verdict.finding(format!("phantom: tag {tag} in cell {cell} read at {called}: {found:?}"))
                }
            }
        }
    }
}

/// Values follow one another: the times when two of them were certainly there don't overlap, and none came and
/// went wholly within the time of another.
fn check_cell(cell: u64, values: &BTreeMap<u64, Value>, verdict: &mut Verdict) {
    let certain = || values.iter().filter(|(_, value)| value.certain);
    let mut stays: Vec<(u64, u64, u64)> = certain()
        .filter(|(_, value)| value.first_end < value.last_start)
        .map(|(tag, value)| (value.first_end, value.last_start, *tag))
        .collect();
    stays.sort_unstable();
    for pair in stays.windows(2) {
        if let [(from, until, tag), (next, _, other)] = pair
            && next < until
        {
            verdict.finding(format!(
                "stale: cell {cell} held {tag} from {from} to {until} and also {other} from {next} on"
            ));
        }
    }
    for (tag, value) in certain().filter(|(_, value)| value.first_end >= value.last_start) {
        let before = stays.partition_point(|(from, _, _)| *from < value.last_start);
        if let Some((from, until, other)) = before.checked_sub(1).and_then(|index| stays.get(index))
            && value.first_end < *until
        {
            verdict.finding(format!(
                "lost: cell {cell} was given {tag} from {} to {}, and held {other} from {from} to {until}",
                value.last_start, value.first_end
            ));
        }
    }
}

/// The tags of all cells at the end.
struct Contents {
    per_chunk: u64,
    tags: BTreeMap<u64, u64>,
    /// Chunks that nobody has read.
    unread: BTreeSet<u64>,
}

/// Every replica of a chunk holds the same.
fn check_replicas(operations: &[Op], verdict: &mut Verdict) -> Option<Contents> {
    let layout = operations.iter().rev().find_map(|operation| match &operation.outcome {
        Outcome::Ok { value: Reply::Layout { cells_per_chunk, servers } } => {
            Some((*cells_per_chunk, servers))
        }
        Outcome::Ok { .. } | Outcome::Fail { .. } | Outcome::Info { .. } => None,
    });
    let Some((per_chunk, layout)) = layout else {
        verdict.doubt("the history ends before the file was read back");
        return None;
    };
    let mut scans = BTreeMap::new();
    for operation in operations {
        if let (Call::Scan { chunk, server }, Some((first, runs, _))) =
            (&operation.call, as_read(operation, Some(per_chunk)))
        {
            scans.insert((*chunk, *server), (first, runs));
        }
    }
    let (mut tags, mut unread) = (BTreeMap::new(), BTreeSet::new());
    for (chunk, servers) in (0_u64..).zip(layout) {
        let mut first: Option<&Runs> = None;
        for server in servers {
            let Some((start, runs)) = scans.get(&(chunk, *server)) else {
                verdict.doubt(format!("chunk {chunk} was not read from server {server}"));
                continue;
            };
            if *first.get_or_insert(runs) != *runs {
                verdict.finding(format!("different: chunk {chunk} of server {server} and of another"));
            }
            let mut cell = *start;
            for (count, tag) in *runs {
                tags.extend((cell..cell + count).map(|cell| (cell, *tag)));
                cell += count;
            }
        }
        if servers.is_empty() {
            verdict.finding(format!("nobody holds chunk {chunk}"));
        } else if first.is_none() {
            unread.insert(chunk);
        }
    }
    Some(Contents { per_chunk, tags, unread })
}

/// A write is whole within a chunk: what two writes left over of one another has one order of the writes.
fn check_whole(operations: &[Op], contents: &Contents, verdict: &mut Verdict) {
    // The writes that came after each, by chunk and tag, as the last content shows.
    let mut later: BTreeMap<(u64, u64), BTreeSet<u64>> = BTreeMap::new();
    for operation in operations {
        let Call::Write { tag, first, count } = operation.call else { continue };
        let written = matches!(operation.outcome, Outcome::Ok { .. });
        let mut over: BTreeMap<u64, (bool, BTreeSet<u64>)> = BTreeMap::new();
        for cell in first..first + count {
            let last = contents.tags.get(&cell).copied().unwrap_or(HOLE);
            let (there, others) = over.entry(cell / contents.per_chunk).or_default();
            if last == tag {
                *there = true;
            } else {
                others.insert(last);
            }
        }
        for (chunk, (there, others)) in over {
            if contents.unread.contains(&chunk) {
                continue;
            }
            if written || there {
                later.insert((chunk, tag), others);
            }
        }
    }
    for ((chunk, tag), others) in &later {
        for other in others {
            if *other == HOLE || later.get(&(*chunk, *other)).is_some_and(|after| after.contains(tag)) {
                verdict.finding(format!(
                    "parted: in chunk {chunk}, writes {tag} and {other} are each over the other"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations of (called, returned or 0 = unknown, call, reply); 2 cells a chunk, `last` = the replicas at the end.
    fn judge(operations: &[(u64, u64, Call, Reply)], last: &[Vec<(u64, u64)>]) -> Verdict {
        check(&text(operations, last)).unwrap()
    }
    /// The history of it.
    fn text(operations: &[(u64, u64, Call, Reply)], last: &[Vec<(u64, u64)>]) -> String {
        let servers: Vec<u64> = (0..last.len() as u64).collect();
        let layout = Reply::Layout { cells_per_chunk: 2, servers: vec![servers.clone()] };
        let mut all = operations.to_vec();
        all.push((1000, 1001, Call::Layout, layout));
        for (server, runs) in servers.iter().zip(last) {
            let at = 1002 + 2 * server;
            all.push((at, at + 1, Call::Scan { chunk: 0, server: *server }, Reply::Cells(runs.clone())));
        }
        let mut events = Vec::new();
        for (process, (called, returned, call, reply)) in (0_u64..).zip(all) {
            let line =
                serde_json::json!({"event": "call", "process": process, "at_ns": called, "call": call});
            events.push((called, line));
            if returned > 0 {
                let outcome = Outcome::Ok { value: reply };
                let line = serde_json::json!({"event": "return", "process": process, "at_ns": returned, "outcome": outcome});
                events.push((returned, line));
            }
        }
        events.sort_by_key(|(at, _)| *at);
        let lines: Vec<String> = events.iter().map(|(_, line)| line.to_string()).collect();
        lines.join("\n")
    }
    fn write(called: u64, returned: u64, tag: u64) -> (u64, u64, Call, Reply) {
        (called, returned, Call::Write { tag, first: 0, count: 2 }, Reply::Written)
    }
    fn read(called: u64, returned: u64, tag: u64) -> (u64, u64, Call, Reply) {
        (called, returned, Call::Read { first: 0, count: 2 }, Reply::Cells(vec![(2, tag)]))
    }
    fn first_word(verdict: &Verdict) -> &str {
        verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap())
    }

    #[test]
    fn a_good_history_is_good() {
        let all_5 = [vec![(2, 5)], vec![(2, 5)]];
        for operations in [
            &[write(1, 4, 5), read(2, 3, HOLE), read(2, 3, 5), read(6, 7, 5)][..],
            &[write(1, 9, 4), write(2, 8, 5), read(3, 4, 4), read(5, 6, 5)],
            // Unknown: it may come late, or never.
            &[write(1, 2, 4), write(3, 0, 5), read(6, 7, 4), read(8, 9, 5)],
            &[write(1, 2, 5), write(3, 0, 4), read(6, 7, 5)],
        ] {
            let verdict = judge(operations, &all_5);
            assert!(verdict.is_good(), "{operations:?} {verdict:?}");
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        let all_5 = [vec![(2, 5)], vec![(2, 5)]];
        for (word, operations) in [
            ("stale", &[write(1, 2, 4), write(3, 4, 5), read(5, 6, 4), read(7, 8, 5)][..]),
            ("stale", &[write(1, 2, 5), read(3, 4, HOLE)]),
            ("lost", &[write(1, 2, 5), write(3, 4, 6), read(5, 6, 5)]),
            ("lost", &[write(1, 0, 4), write(2, 0, 5), read(3, 4, 5), read(5, 6, 4), read(7, 8, 5)]),
            ("phantom", &[write(1, 2, 5), read(3, 4, 9)]),
            ("phantom", &[read(1, 2, 5), write(3, 4, 5)]),
            ("torn", &[write(1, 2, 5), read(3, 4, TORN)]),
        ] {
            assert_eq!(first_word(&judge(operations, &all_5)), word, "{operations:?}");
        }
    }

    #[test]
    fn a_refused_write_and_a_refused_read_are_found() {
        // The file is there.
        let all_5 = [vec![(2, 5)], vec![(2, 5)]];
        let good = text(&[write(1, 2, 4), write(3, 4, 5), read(5, 6, 5)], &all_5);
        assert!(check(&good).unwrap().is_good());
        for answer in [r#"{"type":"ok","value":"written"}"#, r#"{"type":"ok","value":{"cells":[[2,5]]}}"#] {
            assert!(good.contains(answer), "{good}");
            let bad = check(&good.replacen(answer, r#"{"type":"fail","reason":"not found"}"#, 1)).unwrap();
            assert_eq!((first_word(&bad), bad.findings.len()), ("refused", 1), "{bad:?}");
        }
    }

    #[test]
    fn what_the_last_look_did_not_come_to_is_doubted_and_not_called_parted() {
        let event = |kind: &str, at: u64, rest: &str| {
            format!(r#"{{"event":"{kind}","process":{at},"at_ns":{at},{rest}}}"#)
        };
        let returned = |process: u64, value: &str| {
            let at = process + 1;
            format!(
                r#"{{"event":"return","process":{process},"at_ns":{at},"outcome":{{"type":"ok","value":{value}}}}}"#
            )
        };
        let history = |servers: &str, tags: &str| {
            [
                event("call", 1, r#""call":{"write":{"tag":5,"first":0,"count":4}}"#),
                returned(1, r#""written""#),
                event("call", 3, r#""call":"layout""#),
                returned(3, &format!(r#"{{"layout":{{"cells_per_chunk":2,"servers":{servers}}}}}"#)),
                event("call", 5, r#""call":{"scan":{"chunk":0,"server":0}}"#),
                returned(5, &format!(r#"{{"cells":{tags}}}"#)),
            ]
            .join("\n")
        };
        let verdict = |servers, tags| check(&history(servers, tags)).unwrap();
        let cut_short = verdict("[[0],[0]]", "[[2,5]]");
        assert_eq!((cut_short.findings.len(), cut_short.doubts.len()), (0, 1), "{cut_short:?}");
        let nobody = verdict("[[0],[]]", "[[2,5]]");
        assert_eq!(nobody.findings[0], "nobody holds chunk 1");
        let read = verdict("[[0],[0]]", "[[1,5],[1,0]]");
        assert!(read.findings.iter().any(|finding| finding.starts_with("parted: in chunk 0")), "{read:?}");
        // Nobody can have done so much.
        for (from, to) in [
            ("\"cells_per_chunk\":2", "\"cells_per_chunk\":0"),
            ("\"first\":0,\"count\":4", "\"first\":18446744073709551615,\"count\":4"),
            ("\"count\":4", "\"count\":1152921504606846976"),
            ("\"chunk\":0", "\"chunk\":9223372036854775808"),
            ("[[2,5]]", "[[18446744073709551615,5],[3,5]]"),
        ] {
            let text = history("[[0]]", "[[2,5]]");
            assert!(text.contains(from), "{from}");
            assert!(check(&text.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn replicas_that_differ_and_writes_in_parts_are_found() {
        let both = [write(1, 9, 4), write(2, 8, 5)];
        assert_eq!(first_word(&judge(&both, &[vec![(2, 5)], vec![(2, 4)]])), "different");
        let parted = [vec![(1, 4), (1, 5)], vec![(1, 4), (1, 5)]];
        assert_eq!(first_word(&judge(&both, &parted)), "parted");
    }
}
