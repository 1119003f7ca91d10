//! The checkers: pure functions from a history to a verdict.

pub(crate) mod append;
pub(crate) mod bank;
pub(crate) mod cells;
pub(crate) mod lease;
pub(crate) mod namespace;
mod second;
pub(crate) mod shadow;
pub(crate) mod snapshot;
pub(crate) mod trash;
pub(crate) mod tree;
mod wgl;

use anyhow::Result;
use serde::de::DeserializeOwned;

use crate::history::{Event, Operation, pair_up};
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;

/// Why a history without its end can't be good.
const TORN: &str = "the last line is torn: whoever wrote it was killed";

/// What a checker judges.
struct History<C, R> {
    /// In the order of their calls.
    operations: Vec<Operation<C, R>>,
    /// When the faults were over and the clients were told to stop; the end of time if nobody was.
    healed_ns: u64,
}

/// Reads a history; one that was torn off can be good no more.
fn read<C: DeserializeOwned, R: DeserializeOwned>(
    text: &str,
    verdict: &mut Verdict,
) -> Result<History<C, R>> {
    if recorder::is_torn(text) {
        verdict.doubt(TORN);
    }
    pair(recorder::read(text)?)
}

/// The same of what was read.
fn pair<C, R>(events: Vec<Event<C, R>>) -> Result<History<C, R>> {
    let healed = events.iter().find_map(|event| match event {
        Event::Nemesis { at_ns, what } if what == "heal" => Some(*at_ns),
        Event::Nemesis { .. } | Event::Call { .. } | Event::Return { .. } => None,
    });
    Ok(History { operations: pair_up(events)?, healed_ns: healed.unwrap_or(u64::MAX) })
}

/// Reading alone proves nothing: one of these has to have been acknowledged.
fn doubt_without<'a, C: 'a, R: 'a>(
    verdict: &mut Verdict,
    what: &str,
    operations: impl IntoIterator<Item = &'a Operation<C, R>>,
) {
    if !operations.into_iter().any(|operation| matches!(operation.outcome, Outcome::Ok { .. })) {
        verdict.doubt(format!("no {what} was acknowledged"));
    }
}

/// Counts the outcomes of operations, but for those of the last look: they are nobody's load.
fn count<'a, C: 'a, R: 'a>(
    verdict: &mut Verdict,
    operations: impl IntoIterator<Item = &'a Operation<C, R>>,
    healed_ns: u64,
) {
    for operation in operations.into_iter().filter(|operation| operation.called_at_ns <= healed_ns) {
        match operation.outcome {
            Outcome::Ok { .. } => verdict.ok += 1,
            Outcome::Fail { .. } => verdict.failed += 1,
            Outcome::Info { .. } => verdict.unknown += 1,
        }
    }
}

/// What a verdict counts that was acknowledged of writes and appends: chunkservers have to have traced some of it.
pub(crate) const WRITES: &str = "writes";

/// Counts what was acknowledged of writes and appends.
fn count_writes<'a, C: 'a, R: 'a>(
    verdict: &mut Verdict,
    writes: impl IntoIterator<Item = &'a Operation<C, R>>,
) {
    let acknowledged = |write: &&Operation<C, R>| matches!(write.outcome, Outcome::Ok { .. });
    let count = writes.into_iter().filter(acknowledged).count();
    if count > 0 {
        verdict.count(WRITES, count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_last_look_does_is_no_load() {
        let lines = [
            r#"{"event":"call","process":1,"at_ns":1,"call":1}"#,
            r#"{"event":"nemesis","at_ns":2,"what":"heal"}"#,
            r#"{"event":"return","process":1,"at_ns":3,"outcome":{"type":"ok","value":1}}"#,
            r#"{"event":"call","process":2,"at_ns":4,"call":1}"#,
            r#"{"event":"return","process":2,"at_ns":5,"outcome":{"type":"ok","value":1}}"#,
        ];
        let counted = |text: &str| {
            let mut verdict = Verdict::new();
            let History { operations, healed_ns } = read::<u64, u64>(text, &mut verdict).unwrap();
            count(&mut verdict, &operations, healed_ns);
            (verdict.ok, verdict.is_good())
        };
        assert_eq!(counted(&lines.join("\n")), (1, true));
        assert_eq!(counted(&[lines[0], lines[2], lines[3], lines[4]].join("\n")), (2, true));
        let torn = format!("{}\n{}", lines[0], &lines[1][..9]);
        assert_eq!(counted(&torn), (0, false), "a torn history is doubted");
    }
}
