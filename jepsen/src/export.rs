//! Histories in the formats of other checkers, so that anyone can judge them with tools that are not ours.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::check::{append, cells};
use crate::history::{Event, Operation, pair_up};
use crate::outcome::Outcome;
use crate::recorder;
use crate::timeline::{Line, lines};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `history.edn` of Jepsen: every line of any workload.
    Jepsen,
    /// A register for Knossos: one cell of the workload `cells`.
    Knossos,
    /// Transactions for Elle: list-append of the workload `append`, rw-register of `cells`.
    Elle,
}

/// A history in another format, one map per line; `cell` chooses a cell where only one can be shown, else the one
/// that was written most.
///
/// # Errors
/// The text is no history, or its workload has nothing that the format can tell.
pub fn export(text: &str, format: Format, cell: Option<u64>) -> Result<String> {
    match format {
        Format::Jepsen => jepsen(&lines(text)?),
        Format::Knossos => register(text, cell, knossos_value),
        Format::Elle if recorder::read::<append::Call, append::Reply>(text).is_ok() => elle_lists(text),
        Format::Elle => register(text, cell, elle_value),
    }
}

/// JSON as EDN: keys that are words become keywords.
fn edn(value: &Value) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(edn).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{} {}", keyword(name), edn(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

fn keyword(name: &str) -> String {
    let word = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-');
    if word && !name.is_empty() {
        format!(":{}", name.replace('_', "-"))
    } else {
        Value::from(name).to_string()
    }
}

/// Name and arguments of a call: `{"append": {..}}` or `"layout"`.
fn function(call: &Value) -> (String, Value) {
    if let Some(name) = call.as_str() {
        return (keyword(name), Value::Null);
    }
    let fields = call.as_object().filter(|fields| fields.len() == 1);
    let only = fields.and_then(|fields| fields.iter().next());
    only.map_or_else(|| (":call".into(), call.clone()), |(name, value)| (keyword(name), value.clone()))
}

fn jepsen(events: &[Line]) -> Result<String> {
    let mut text = String::new();
    // What each process has called.
    let mut open = std::collections::BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        match event {
            Event::Call { process, at_ns, call } => {
                let (name, value) = function(call);
                let value_text = edn(&value);
                writeln!(
                    text,
                    "{{:index {index}, :time {at_ns}, :type :invoke, :process {process}, :f {name}, :value {value_text}}}"
                )?;
                open.insert(*process, (name, value_text));
            }
            Event::Return { process, at_ns, outcome } => {
                let (name, asked) = open.remove(process).context("a return from nothing")?;
                let head = format!("{{:index {index}, :time {at_ns}, :process {process}, :f {name}");
                match outcome {
                    Outcome::Ok { value } => {
                        writeln!(text, "{head}, :type :ok, :value [{asked} {}]}}", edn(value))?;
                    }
                    Outcome::Fail { reason } => {
                        let error = Value::from(reason.as_str());
                        writeln!(text, "{head}, :type :fail, :value {asked}, :error {error}}}")?;
                    }
                    Outcome::Info { reason } => {
                        let error = Value::from(reason.as_str());
                        writeln!(text, "{head}, :type :info, :value {asked}, :error {error}}}")?;
                    }
                }
            }
            Event::Nemesis { at_ns, what } => {
                let value = Value::from(what.as_str());
                writeln!(
                    text,
                    "{{:index {index}, :time {at_ns}, :type :info, :process :nemesis, :f :fault, :value {value}}}"
                )?;
            }
        }
    }
    Ok(text)
}

/// One entry of a register's or list's history.
struct Entry {
    at_ns: u64,
    kind: &'static str,
    process: u64,
    body: String,
}

fn print(mut entries: Vec<Entry>) -> Result<String> {
    entries.sort_by_key(|entry| entry.at_ns);
    let mut text = String::new();
    for (index, Entry { at_ns, kind, process, body }) in entries.iter().enumerate() {
        writeln!(text, "{{:index {index}, :time {at_ns}, :type :{kind}, :process {process}, {body}}}")?;
    }
    Ok(text)
}

/// Both entries of an operation; one that is open to the end has none for its return but `info`.
fn both<C, R>(operation: &Operation<C, R>, asked: String, answered: String, end_ns: u64) -> [Entry; 2] {
    let kind = match operation.outcome {
        Outcome::Ok { .. } => "ok",
        Outcome::Fail { .. } => "fail",
        Outcome::Info { .. } => "info",
    };
    let (process, called) = (operation.process, operation.called_at_ns);
    let returned = operation.returned_at_ns.unwrap_or(end_ns);
    let body = if kind == "ok" { answered } else { asked.clone() };
    [
        Entry { at_ns: called, kind: "invoke", process, body: asked },
        Entry { at_ns: returned, kind, process, body },
    ]
}

/// The body of a write or, with what was read, of a read: 0 is a cell that nobody wrote.
type Body = fn(write: Option<u64>, read: Option<u64>, cell: u64) -> String;

fn knossos_value(write: Option<u64>, read: Option<u64>, _cell: u64) -> String {
    match (write, read) {
        (Some(tag), _) => format!(":f :write, :value {tag}"),
        (None, Some(tag)) => format!(":f :read, :value {tag}"),
        (None, None) => ":f :read, :value nil".into(),
    }
}

fn elle_value(write: Option<u64>, read: Option<u64>, cell: u64) -> String {
    match (write, read.filter(|tag| *tag != cells::HOLE)) {
        (Some(tag), _) => format!(":f :txn, :value [[:w {cell} {tag}]]"),
        (None, Some(tag)) => format!(":f :txn, :value [[:r {cell} {tag}]]"),
        (None, None) => format!(":f :txn, :value [[:r {cell} nil]]"),
    }
}

/// The operations on one cell.
fn register(text: &str, cell: Option<u64>, body: Body) -> Result<String> {
    let events = recorder::read::<cells::Call, cells::Reply>(text);
    let operations = pair_up(events.context("only histories of the workload cells have registers")?)?;
    let Some(cell) = cell.or_else(|| most_written(&operations)) else { bail!("no cell was written") };
    let end_ns = operations.iter().filter_map(|operation| operation.returned_at_ns).max().unwrap_or(0) + 1;
    let mut entries = Vec::new();
    for operation in &operations {
        match (&operation.call, &operation.outcome) {
            (cells::Call::Write { tag, first, count }, _) if (*first..first + count).contains(&cell) => {
                entries.extend(both(
                    operation,
                    body(Some(*tag), None, cell),
                    body(Some(*tag), None, cell),
                    end_ns,
                ));
            }
            (cells::Call::Read { first, count }, Outcome::Ok { value: cells::Reply::Cells(runs) })
                if (*first..first + count).contains(&cell) =>
            {
                let mut at = *first;
                let run = runs.iter().find(|(length, _)| {
                    at += length;
                    cell < at
                });
                let read = run.map(|(_, tag)| *tag);
                entries.extend(both(operation, body(None, None, cell), body(None, read, cell), end_ns));
            }
            _ => {}
        }
    }
    print(entries)
}

fn most_written(operations: &[Operation<cells::Call, cells::Reply>]) -> Option<u64> {
    let mut counts = std::collections::BTreeMap::new();
    for operation in operations {
        if let cells::Call::Write { first, count, .. } = operation.call {
            (first..first + count).for_each(|cell| *counts.entry(cell).or_insert(0_u64) += 1);
        }
    }
    counts.into_iter().max_by_key(|(cell, count)| (*count, std::cmp::Reverse(*cell))).map(|(cell, _)| cell)
}

/// Appends, and the last content of the file as one read of the list.
fn elle_lists(text: &str) -> Result<String> {
    let operations = pair_up(recorder::read::<append::Call, append::Reply>(text)?)?;
    let end_ns = operations.iter().filter_map(|operation| operation.returned_at_ns).max().unwrap_or(0) + 1;
    // Elements are told apart by one number.
    let number = |record: &append::Record| record.producer * 1_000_000_000 + record.sequence;
    let mut entries = Vec::new();
    let (mut list, mut scanned, mut last) = (Vec::new(), std::collections::BTreeSet::new(), None);
    for operation in &operations {
        match (&operation.call, &operation.outcome) {
            (append::Call::Append(record), _) => {
                let body = format!(":f :txn, :value [[:append 0 {}]]", number(record));
                entries.extend(both(operation, body.clone(), body, end_ns));
            }
            (append::Call::Scan { chunk, .. }, Outcome::Ok { value: append::Reply::Scan(scan) })
                if scanned.insert(*chunk) =>
            {
                list.extend(scan.records.iter().map(|(_, record)| number(record).to_string()));
                last = Some(operation);
            }
            _ => {}
        }
    }
    if let Some(operation) = last {
        let read = format!(":f :txn, :value [[:r 0 [{}]]]", list.join(" "));
        entries.extend(both(operation, ":f :txn, :value [[:r 0 nil]]".into(), read, end_ns));
    }
    print(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELLS: &str = r#"{"event":"call","process":1,"at_ns":1,"call":{"write":{"tag":7,"first":0,"count":2}}}
{"event":"call","process":2,"at_ns":2,"call":{"read":{"first":1,"count":2}}}
{"event":"nemesis","at_ns":3,"what":"begin kill"}
{"event":"return","process":2,"at_ns":4,"outcome":{"type":"ok","value":{"cells":[[1,7],[1,0]]}}}
{"event":"return","process":1,"at_ns":5,"outcome":{"type":"info","reason":"no \"answer\""}}"#;

    #[test]
    fn a_history_becomes_the_one_of_jepsen() {
        assert_eq!(
            export(CELLS, Format::Jepsen, None).unwrap(),
            r#"{:index 0, :time 1, :type :invoke, :process 1, :f :write, :value {:count 2, :first 0, :tag 7}}
{:index 1, :time 2, :type :invoke, :process 2, :f :read, :value {:count 2, :first 1}}
{:index 2, :time 3, :type :info, :process :nemesis, :f :fault, :value "begin kill"}
{:index 3, :time 4, :process 2, :f :read, :type :ok, :value [{:count 2, :first 1} {:cells [[1 7] [1 0]]}]}
{:index 4, :time 5, :process 1, :f :write, :type :info, :value {:count 2, :first 0, :tag 7}, :error "no \"answer\""}
"#
        );
    }

    #[test]
    fn a_cell_becomes_a_register_for_knossos_and_elle() {
        assert_eq!(
            export(CELLS, Format::Knossos, Some(1)).unwrap(),
            "{:index 0, :time 1, :type :invoke, :process 1, :f :write, :value 7}
{:index 1, :time 2, :type :invoke, :process 2, :f :read, :value nil}
{:index 2, :time 4, :type :ok, :process 2, :f :read, :value 7}
{:index 3, :time 5, :type :info, :process 1, :f :write, :value 7}
"
        );
        let elle = export(CELLS, Format::Elle, Some(2)).unwrap();
        assert_eq!(
            elle,
            "{:index 0, :time 2, :type :invoke, :process 2, :f :txn, :value [[:r 2 nil]]}
{:index 1, :time 4, :type :ok, :process 2, :f :txn, :value [[:r 2 nil]]}
"
        );
        assert!(
            export(r#"{"event":"call","process":1,"at_ns":1,"call":"x"}"#, Format::Knossos, None).is_err()
        );
    }

    #[test]
    fn appends_become_a_list_for_elle() {
        let record = r#"{"producer":1,"sequence":2,"length":40,"crc":9}"#;
        let text = format!(
            r#"{{"event":"call","process":1,"at_ns":1,"call":{{"append":{record}}}}}
{{"event":"return","process":1,"at_ns":2,"outcome":{{"type":"ok","value":{{"at":0}}}}}}
{{"event":"call","process":2,"at_ns":3,"call":{{"scan":{{"chunk":0,"server":5}}}}}}
{{"event":"return","process":2,"at_ns":4,"outcome":{{"type":"ok","value":{{"scan":{{"length":9,"hash":1,"records":[[0,{record}]],"damage":[],"gaps":[]}}}}}}}}"#
        );
        assert_eq!(
            export(&text, Format::Elle, None).unwrap(),
            "{:index 0, :time 1, :type :invoke, :process 1, :f :txn, :value [[:append 0 1000000002]]}
{:index 1, :time 2, :type :ok, :process 1, :f :txn, :value [[:append 0 1000000002]]}
{:index 2, :time 3, :type :invoke, :process 2, :f :txn, :value [[:r 0 nil]]}
{:index 3, :time 4, :type :ok, :process 2, :f :txn, :value [[:r 0 [1000000002]]]}
"
        );
    }
}
