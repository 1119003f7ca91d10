//! The history of a test: calls and returns in the order of one clock, one JSON object per line.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<C, R> {
    /// A process calls an operation.
    Call {
        /// Who: a process has at most one operation open. After an `Info` it goes on under a new number.
        process: u64,
        /// When, in nanoseconds since the start of the test, on the clock of the host that runs all processes.
        at_ns: u64,
        /// What.
        call: C,
    },
    /// The call returns.
    Return {
        /// Who.
        process: u64,
        /// When.
        at_ns: u64,
        /// What is known then.
        outcome: Outcome<R>,
    },
    /// A fault begins or ends, for the reader of the history.
    Nemesis {
        /// When.
        at_ns: u64,
        /// What was done.
        what: String,
    },
}

/// An operation from its call to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<C, R> {
    /// Who.
    pub process: u64,
    /// What.
    pub call: C,
    /// When it was called.
    pub called_at_ns: u64,
    /// When it returned; `None` if it may take effect at any later time.
    pub returned_at_ns: Option<u64>,
    /// What is known of it.
    pub outcome: Outcome<R>,
}

/// Joins calls with their returns, in the order of the calls. A call without a return is `Info`.
///
/// # Errors
/// The history is none: a return without a call, two open calls of one process, or time that runs backwards.
pub fn pair_up<C, R>(events: impl IntoIterator<Item = Event<C, R>>) -> Result<Vec<Operation<C, R>>> {
    let mut operations: Vec<Operation<C, R>> = Vec::new();
    // Index of the open operation of each process.
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    let mut now = 0;
    for event in events {
        let (Event::Call { at_ns, .. } | Event::Return { at_ns, .. } | Event::Nemesis { at_ns, .. }) = &event;
        ensure!(*at_ns >= now, "time runs backwards at {at_ns}");
        now = *at_ns;
        match event {
            Event::Call { process, at_ns, call } => {
                if open.insert(process, operations.len()).is_some() {
                    bail!("process {process} calls again at {at_ns} before its call returned");
                }
                let outcome = Outcome::Info { reason: "it never returned".into() };
                operations.push(Operation {
                    process,
                    call,
                    called_at_ns: at_ns,
                    returned_at_ns: None,
                    outcome,
                });
            }
            Event::Return { process, at_ns, outcome } => {
                let Some(operation) = open.remove(&process).and_then(|index| operations.get_mut(index))
                else {
                    bail!("process {process} returns at {at_ns} from nothing");
                };
                // An unknown outcome has no end: the effect may come after the return.
                operation.returned_at_ns = (!matches!(outcome, Outcome::Info { .. })).then_some(at_ns);
                operation.outcome = outcome;
            }
            Event::Nemesis { .. } => {}
        }
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Line = Event<String, u64>;

    fn read(text: &str) -> Result<Vec<Operation<String, u64>>> {
        let events: Result<Vec<Line>, _> = text.lines().map(serde_json::from_str).collect();
        pair_up(events?)
    }

    #[test]
    fn calls_and_returns_pair_up_and_an_unknown_outcome_has_no_end() {
        let operations = read(
            r#"{"event":"call","process":1,"at_ns":1,"call":"append"}
{"event":"call","process":2,"at_ns":2,"call":"append"}
{"event":"nemesis","at_ns":3,"what":"kill the leader"}
{"event":"return","process":2,"at_ns":4,"outcome":{"type":"ok","value":7}}
{"event":"return","process":1,"at_ns":5,"outcome":{"type":"info","reason":"deadline"}}
{"event":"call","process":3,"at_ns":6,"call":"read"}"#,
        )
        .unwrap();
        let ends: Vec<Option<u64>> = operations.iter().map(|operation| operation.returned_at_ns).collect();
        assert_eq!(ends, [None, Some(4), None]);
        assert_eq!(operations[1].outcome, Outcome::Ok { value: 7 });
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for bad in [
            r#"{"event":"return","process":1,"at_ns":1,"outcome":{"type":"ok","value":1}}"#,
            "{\"event\":\"call\",\"process\":1,\"at_ns\":2,\"call\":\"a\"}\n{\"event\":\"call\",\"process\":1,\"at_ns\":3,\"call\":\"a\"}",
            "{\"event\":\"nemesis\",\"at_ns\":2,\"what\":\"a\"}\n{\"event\":\"nemesis\",\"at_ns\":1,\"what\":\"a\"}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
