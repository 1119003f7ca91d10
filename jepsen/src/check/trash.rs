//! Judges files that come and go while the trash is emptied: garbage collection takes nothing that a name still has,
//! and what is deleted is not there any more. Each file is one client's own, so that it always knows.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::count;
use crate::history::pair_up;
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;

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
    Gone,
    Holds(u64),
}

/// Judges a history of files that come and go.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let operations = pair_up(recorder::read::<Call, Reply>(text)?)?;
    let mut verdict = Verdict::new();
    count(&mut verdict, &operations);
    let mut known: BTreeMap<&str, Known> = BTreeMap::new();
    let mut listed = false;
    for operation in &operations {
        let holds = |path: &str| known.get(path).copied().unwrap_or(Known::Gone);
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
                let after = settle(Known::Gone, Known::Gone);
                known.insert(path, after);
            }
            Call::Read { path } => match (&operation.outcome, holds(path)) {
                (Outcome::Ok { value }, Known::Gone) => {
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
            },
            Call::Names => {
                listed = true;
                if let Outcome::Ok { value: Reply::Names(names) } = &operation.outcome {
                    check_names(names, &known, &mut verdict);
                }
            }
        }
    }
    if !listed {
        verdict.doubt("the history ends before the names were read back");
    }
    let live = known.values().filter(|known| matches!(known, Known::Holds(_))).count();
    verdict.note(format!("{live} files at the end"));
    Ok(verdict)
}

/// The names at the end are those that there should be.
fn check_names(names: &[String], known: &BTreeMap<&str, Known>, verdict: &mut Verdict) {
    for (path, known) in known {
        match (known, names.iter().any(|name| name == path)) {
            (Known::Holds(tag), false) => {
                verdict.finding(format!("lost: {path} holds {tag} and has no name"))
            }
            (Known::Gone, true) => verdict.finding(format!("undead: {path} was deleted and has a name")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One client's operations, one after the other: `put p 1`, `copy p q`, `remove p`, `read p` -> `ok`, `no`, `?`, a tag.
    fn judge(script: &str) -> Verdict {
        let mut lines = Vec::new();
        for (at, line) in (0_u64..).step_by(2).zip(script.split(", ")) {
            let (asked, told) = line.split_once(" -> ").unwrap();
            let words: Vec<&str> = asked.split_whitespace().collect();
            let path = words[1].to_owned();
            let call = match words[0] {
                "put" => Call::Put { path, tag: words[2].parse().unwrap() },
                "copy" => Call::Copy { source: path, target: words[2].into() },
                "remove" => Call::Remove { path },
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
            "put a 1 -> ?, read a -> 1, read a -> no, names x -> a",
            "put a 1 -> ok, remove a -> ?, read a -> 1, read a -> no, remove a -> no, names x -> c",
            "put a 1 -> ok, copy a b -> ?, read b -> no, read b -> 1, names x -> a b",
        ] {
            let verdict = judge(script);
            assert!(verdict.is_good(), "{script} {verdict:?}");
        }
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
        ] {
            let verdict = judge(script);
            assert!(
                verdict.findings.first().is_some_and(|finding| finding.starts_with(kind)),
                "{script} {verdict:?}"
            );
        }
    }
}
