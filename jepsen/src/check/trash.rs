//! Judges files that come and go while the trash is emptied: garbage collection takes nothing that a name still has,
//! what is deleted is not there any more, and it comes back whole until its date and not after. Each file is one
//! client's own, so that it always knows.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{History, TORN, count, count_writes, doubt_without, pair};
use crate::history::{Event, Operation};
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;

/// How long deleted files stay.
pub(crate) const TRASH: Duration = Duration::from_millis(500);
/// By how much the wall clock, which dates are of, and that of the history may differ over one stay in the trash.
const SLACK: Duration = Duration::from_millis(50);

/// What is asked. Nobody else touches the paths of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    /// Make a file with this tag as its content.
    Put { path: String, tag: u64 },
    /// Make a snapshot of a file.
    Copy { source: String, target: String },
    /// Delete a file: it stays in the trash for a moment.
    Remove { path: String },
    /// Take what was deleted there out of the trash.
    Undelete { path: String },
    /// Read a file.
    Read { path: String },
    /// The paths of all files, after all faults.
    Names,
}

/// What is answered: of a read, the tag, or none if the content is no tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    Done,
    Tag(Option<u64>),
    Names(Vec<String>),
}

/// What a client knows of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// With what it held and when it was deleted, if it can come back.
    Gone(Option<Deleted>),
    Holds(u64),
}

/// A file in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deleted {
    tag: u64,
    /// It was deleted at some time between these.
    called_at_ns: u64,
    returned_at_ns: u64,
}

impl Deleted {
    /// Whether what was decided before a moment was decided before its date.
    fn surely_stays_until(&self, moment_ns: u64) -> bool {
        u128::from(moment_ns) + SLACK.as_nanos() < u128::from(self.called_at_ns) + TRASH.as_nanos()
    }
    /// Whether what was decided after a moment was decided past its date.
    fn surely_is_past_at(&self, moment_ns: u64) -> bool {
        u128::from(moment_ns) > u128::from(self.returned_at_ns) + TRASH.as_nanos() + SLACK.as_nanos()
    }
}

/// Judges a history of files that come and go.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    if recorder::is_torn(text) {
        verdict.doubt(TORN);
    }
    let events = recorder::read::<Call, Reply>(text)?;
    let clocks_until_ns = clocks_until(&events);
    let History { operations, healed_ns } = pair(events)?;
    count(&mut verdict, &operations, healed_ns);
    let puts = || operations.iter().filter(|operation| matches!(operation.call, Call::Put { .. }));
    count_writes(&mut verdict, puts());
    doubt_without(&mut verdict, "file", puts());
    let mut known: BTreeMap<&str, Known> = BTreeMap::new();
    let mut listed = false;
    let (mut restored, mut refused) = (0_u64, 0_u64);
    for operation in &operations {
        let holds = |path: &str| known.get(path).copied().unwrap_or(Known::Gone(None));
        let happened = match &operation.outcome {
            Outcome::Ok { .. } => Some(true),
            Outcome::Fail { .. } => Some(false),
            Outcome::Info { .. } => None,
        };
        let settle = |after: Known, before: Known| match happened {
            Some(true) => after,
            Some(false) => before,
            None => Known::Nothing,
        };
        match &operation.call {
            Call::Put { path, tag } => {
                check_put(path, &operation.outcome, &mut verdict);
                let after = settle(Known::Holds(*tag), Known::Nothing);
                known.insert(path, after);
            }
            Call::Copy { source, target } => {
                if happened == Some(false) && matches!(holds(source), Known::Holds(_)) {
                    verdict.finding(format!("lost: {:?} -> {:?}", operation.call, operation.outcome));
                }
                let after = settle(holds(source), holds(target));
                known.insert(target, after);
            }
            Call::Remove { path } => {
                if happened == Some(false) && matches!(holds(path), Known::Holds(_)) {
                    verdict.finding(format!("lost: {:?} -> {:?}", operation.call, operation.outcome));
                }
                let after = removed(operation, happened, holds(path));
                known.insert(path, after);
            }
            Call::Undelete { path } => {
                let dated =
                    clocks_until_ns.is_none_or(|end| operation.returned_at_ns.is_some_and(|at| at < end));
                let after = undeleted(operation, holds(path), dated, &mut verdict);
                known.insert(path, after);
                restored += u64::from(happened == Some(true));
                refused += u64::from(happened == Some(false));
            }
            Call::Read { path } => check_read(path, &operation.outcome, (holds(path), listed), &mut verdict),
            Call::Names => listed |= check_names(&operation.outcome, &known, &mut verdict),
        }
    }
    if !listed {
        verdict.doubt("the history ends before the names were read back");
    }
    let live = known.values().filter(|known| matches!(known, Known::Holds(_))).count();
    if clocks_until_ns.is_some() {
        verdict.note("dates were not judged any more once the clock of a master had been put off");
    }
    verdict.note(format!("{live} files at the end, {restored} were restored, {refused} had gone before"));
    Ok(verdict)
}

/// When the clock of a master was first put off: dates are on the masters' wall clocks.
fn clocks_until(events: &[Event<Call, Reply>]) -> Option<u64> {
    events.iter().find_map(|event| match event {
        Event::Nemesis { at_ns, what } if what.contains("of master") && what.contains("clock") => {
            Some(*at_ns)
        }
        Event::Nemesis { .. } | Event::Call { .. } | Event::Return { .. } => None,
    })
}

/// Nothing is in the way of a file: it has a name of its own.
fn check_put(path: &str, outcome: &Outcome<Reply>, verdict: &mut Verdict) {
    if let Outcome::Fail { reason } = outcome {
        verdict.finding(format!("refused: {path} can't be made: {reason}"));
    }
}

/// What is known of a file after somebody deleted it.
fn removed(operation: &Operation<Call, Reply>, happened: Option<bool>, before: Known) -> Known {
    let deleted = match (before, operation.returned_at_ns) {
        (Known::Holds(tag), Some(returned_at_ns)) => {
            Some(Deleted { tag, called_at_ns: operation.called_at_ns, returned_at_ns })
        }
        _ => None,
    };
    match (happened, before) {
        // What it holds nobody knows, so what comes back neither.
        (_, Known::Nothing) | (None, _) => Known::Nothing,
        (Some(true), _) => Known::Gone(deleted),
        (Some(false), _) => Known::Gone(None),
    }
}

/// Judges what a read says of a file; `listed` if the faults are over.
fn check_read(path: &str, outcome: &Outcome<Reply>, (known, listed): (Known, bool), verdict: &mut Verdict) {
    match (outcome, known) {
        (Outcome::Ok { value }, Known::Gone(_)) => {
            verdict.finding(format!("undead: {path} was deleted and reads as {value:?}"));
        }
        (Outcome::Ok { value }, Known::Holds(tag)) if *value != Reply::Tag(Some(tag)) => {
            verdict.finding(format!("wrong: {path} holds {tag} and reads as {value:?}"));
        }
        (Outcome::Fail { reason }, Known::Holds(tag)) => {
            verdict.finding(format!("lost: {path} holds {tag} and can't be read: {reason}"));
        }
        (Outcome::Info { reason }, Known::Holds(_)) if listed => {
            verdict.doubt(format!("{path} could not be read after the faults: {reason}"));
        }
        _ => {}
    }
}

/// What is known of a file after somebody wanted it back; `dated` if the masters' clocks told the time.
fn undeleted(operation: &Operation<Call, Reply>, before: Known, dated: bool, verdict: &mut Verdict) -> Known {
    match (&operation.outcome, before) {
        (Outcome::Info { .. }, _) | (_, Known::Nothing) => Known::Nothing,
        (Outcome::Ok { .. }, Known::Gone(Some(deleted))) => {
            if dated && deleted.surely_is_past_at(operation.called_at_ns) {
                verdict.finding(format!("late: {:?} brings back {deleted:?}", operation.call));
            }
            Known::Holds(deleted.tag)
        }
        (Outcome::Ok { .. }, Known::Gone(None) | Known::Holds(_)) => {
            verdict.finding(format!("undead: {:?} brings back what was not in the trash", operation.call));
            Known::Nothing
        }
        // Its date may have passed on the clock of one master and not on that of the next.
        (Outcome::Fail { .. }, Known::Gone(_)) if !dated => before,
        (Outcome::Fail { reason }, Known::Gone(deleted)) => {
            let returned = operation.returned_at_ns.unwrap_or(u64::MAX);
            if let Some(deleted) = deleted.filter(|deleted| deleted.surely_stays_until(returned)) {
                verdict
                    .finding(format!("lost: {:?} does not bring back {deleted:?}: {reason}", operation.call));
            }
            // Its date has passed, for good.
            Known::Gone(None)
        }
        (Outcome::Fail { .. }, Known::Holds(_)) => before,
    }
}

/// The names at the end are those that there should be; whether they were told.
fn check_names(outcome: &Outcome<Reply>, known: &BTreeMap<&str, Known>, verdict: &mut Verdict) -> bool {
    let names = match outcome {
        Outcome::Ok { value: Reply::Names(names) } => names,
        Outcome::Fail { reason } => {
            verdict.finding(format!("lost: the directory of all files can't be listed: {reason}"));
            return false;
        }
        Outcome::Ok { .. } | Outcome::Info { .. } => return false,
    };
    for (path, known) in known {
        match (known, names.iter().any(|name| name == path)) {
            (Known::Holds(tag), false) => {
                verdict.finding(format!("lost: {path} holds {tag} and has no name"))
            }
            (Known::Gone(_), true) => verdict.finding(format!("undead: {path} was deleted and has a name")),
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    /// One client's operations, one after the other: `put p 1`, `copy p q`, `remove p`, `undelete p`, `read p` -> `ok`, `no`,
    /// `?`, a tag. Each takes a nanosecond; `wait` takes as long as the trash keeps; `clock` puts that of a master off.
    fn judge(script: &str) -> Verdict {
        let mut lines = Vec::new();
        let mut at = 0;
        for line in script.split(", ") {
            at += 2;
            if line == "wait" {
                at += u64::try_from((TRASH + 2 * SLACK).as_nanos()).unwrap();
                continue;
            }
            if line == "clock" {
                let what = "wall clock of master-2 is -7 ms off";
                lines.push(serde_json::json!({"event": "nemesis", "at_ns": at, "what": what}).to_string());
                continue;
            }
            let (asked, told) = line.split_once(" -> ").unwrap();
            let words: Vec<&str> = asked.split_whitespace().collect();
            let path = words[1].to_owned();
            let call = match words[0] {
                "put" => Call::Put { path, tag: words[2].parse().unwrap() },
                "copy" => Call::Copy { source: path, target: words[2].into() },
                "remove" => Call::Remove { path },
                "undelete" => Call::Undelete { path },
                "names" => Call::Names,
                _ => Call::Read { path },
            };
            let outcome = match told {
                "ok" => Outcome::Ok { value: Reply::Done },
                "no" => Outcome::Fail { reason: "no".into() },
                "?" => Outcome::Info { reason: "?".into() },
                names if asked.starts_with("names") => {
                    Outcome::Ok { value: Reply::Names(names.split_whitespace().map(str::to_owned).collect()) }
                }
                tag => Outcome::Ok { value: Reply::Tag(tag.parse().ok()) },
            };
            lines.push(
                serde_json::json!({"event": "call", "process": at, "at_ns": at, "call": call}).to_string(),
            );
            lines.push(
                serde_json::json!({"event": "return", "process": at, "at_ns": at + 1, "outcome": outcome})
                    .to_string(),
            );
        }
        check(&lines.join("\n")).unwrap()
    }

    #[test]
    fn files_that_come_and_go_are_good() {
        for script in [
            "put a 1 -> ok, copy a b -> ok, remove a -> ok, read a -> no, read b -> 1, names x -> b",
            "put a 1 -> ?, read a -> 1, read a -> no, put c 3 -> ok, names x -> a c",
            "put a 1 -> ok, remove a -> ?, read a -> 1, read a -> no, remove a -> no, names x -> c",
            "put a 1 -> ok, copy a b -> ?, read b -> no, read b -> 1, names x -> a b",
            "put a 1 -> ok, remove a -> ok, read a -> no, undelete a -> ok, read a -> 1, names x -> a",
            "put a 1 -> ok, remove a -> ok, wait, undelete a -> no, read a -> no, names x -> b",
            "put a 1 -> ok, remove a -> ok, undelete a -> ?, read a -> 1, names x -> a",
            "put a 1 -> ok, remove a -> ?, undelete a -> no, undelete a -> ok, names x -> a",
            "put a 1 -> ok, undelete a -> no, read a -> 1, names x -> a",
            "put a 1 -> ok, remove a -> ok, clock, wait, undelete a -> ok, read a -> 1, names x -> a",
            "put a 1 -> ok, remove a -> ok, clock, undelete a -> no, undelete a -> ok, names x -> a",
        ] {
            let verdict = judge(script);
            assert!(verdict.is_good(), "{script} {verdict:?}");
        }
    }

    #[test]
    fn where_no_file_could_be_made_nothing_is_proved() {
        for script in ["names x -> ", "put a 1 -> ?, read a -> no, names x -> "] {
            let verdict = judge(script);
            assert_eq!((verdict.validity, verdict.findings.len()), (Validity::Unknown, 0), "{verdict:?}");
        }
    }

    #[test]
    fn names_that_nobody_told_are_no_last_look() {
        let verdict = judge("put a 1 -> ok, names x -> ?");
        assert_eq!((verdict.validity, verdict.findings.len()), (Validity::Unknown, 0), "{verdict:?}");
    }

    #[test]
    fn each_broken_promise_is_found() {
        for (kind, script) in [
            ("lost", "put a 1 -> ok, read a -> no"),
            ("lost", "put a 1 -> ok, copy a b -> ok, remove a -> ok, read b -> no"),
            ("lost", "put a 1 -> ok, copy a b -> no"),
            ("lost", "put a 1 -> ok, remove a -> no"),
            ("wrong", "put a 1 -> ok, read a -> 2"),
            ("wrong", "put a 1 -> ok, read a -> x"),
            ("lost", "put a 1 -> ok, names x -> b"),
            ("undead", "put a 1 -> ok, remove a -> ok, names x -> a"),
            ("undead", "put a 1 -> ok, remove a -> ok, read a -> 1"),
            ("lost", "put a 1 -> ok, remove a -> ok, undelete a -> no"),
            ("lost", "put a 1 -> ok, remove a -> ok, undelete a -> ok, read a -> no"),
            ("lost", "put a 1 -> ok, remove a -> ok, undelete a -> ok, names x -> b"),
            ("wrong", "put a 1 -> ok, remove a -> ok, undelete a -> ok, read a -> 2"),
            ("late", "put a 1 -> ok, remove a -> ok, wait, undelete a -> ok"),
            ("undead", "put a 1 -> ok, remove a -> ok, wait, undelete a -> no, undelete a -> ok"),
            ("late", "put a 1 -> ok, remove a -> ok, wait, undelete a -> ok, clock"),
            ("wrong", "put a 1 -> ok, clock, remove a -> ok, undelete a -> ok, read a -> 2"),
            ("undead", "put a 1 -> ok, undelete a -> ok"),
            ("undead", "undelete a -> ok"),
            ("refused", "put a 1 -> no, names x -> b"),
            ("lost", "put a 1 -> ok, names x -> no"),
        ] {
            let verdict = judge(script);
            assert!(
                verdict.findings.first().is_some_and(|finding| finding.starts_with(kind)),
                "{script} {verdict:?}"
            );
        }
    }
}
