//! Judges namespace operations (design P1): replays them in the order of the log index of each reply, which must
//! respect real time.
//!
//! A refusal carries no log index: some state between its call and its return has to explain it. Mutations of
//! unknown outcome are asked for again under their request ids after the faults, so that hardly any are left; of
//! those, either is allowed: they are tried where the replay can't go on without them.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::count;
use crate::history::{Operation, pair_up};
use crate::outcome::Outcome;
use crate::recorder;
use crate::verdict::Verdict;

/// What is asked. Paths begin with a slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    Mkdir { path: String },
    Create { path: String },
    Delete { path: String, recursive: bool },
    Rename { source: String, target: String, replace: bool },
    Stat { path: String },
    List { path: String },
}

impl Call {
    fn changes(&self) -> bool {
        !matches!(self, Self::Stat { .. } | Self::List { .. })
    }
}

/// What is answered, and the index of the log at which it was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) rev: u64,
    /// The entry made or found, or those listed, by name.
    pub(crate) entries: Vec<Entry>,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) directory: bool,
}

/// Every path with its id and whether it is a directory.
#[derive(Clone, Debug, Default)]
struct Tree(BTreeMap<String, (u64, bool)>);

/// Why an operation does not fit.
struct Refused;

impl Tree {
    fn find(&self, path: &str) -> Result<(u64, bool), Refused> {
        if path == "/" { Ok((0, true)) } else { self.0.get(path).copied().ok_or(Refused) }
    }
    fn parent(path: &str) -> &str {
        match path.rfind('/') {
            Some(0) | None => "/",
            Some(at) => &path[..at],
        }
    }
    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a String, &'a (u64, bool))> {
        let prefix = if path == "/" { path.to_owned() } else { format!("{path}/") };
        let end = prefix.clone();
        self.0.range(prefix..).take_while(move |(name, _)| name.starts_with(&end))
    }
    fn children(&self, path: &str) -> Vec<Entry> {
        let start = if path == "/" { 1 } else { path.len() + 1 };
        self.below(path)
            .filter(|(name, _)| !name[start..].contains('/'))
            .map(|(name, (id, directory))| Entry {
                name: name[start..].to_owned(),
                id: *id,
                directory: *directory,
            })
            .collect()
    }
    fn add(&mut self, path: &str, id: u64, directory: bool) -> Result<(), Refused> {
        let (_, is_directory) = self.find(Self::parent(path))?;
        if !is_directory || self.0.contains_key(path) {
            return Err(Refused);
        }
        self.0.insert(path.to_owned(), (id, directory));
        Ok(())
    }
    fn take(&mut self, path: &str) -> Vec<(String, (u64, bool))> {
        let mut paths: Vec<String> = self.below(path).map(|(name, _)| name.clone()).collect();
        paths.push(path.to_owned());
        paths.into_iter().filter_map(|path| self.0.remove_entry(&path)).collect()
    }
    fn rename(&mut self, source: &str, target: &str, replace: bool) -> Result<(), Refused> {
        let (_, source_directory) = self.find(source)?;
        let (_, parent_directory) = self.find(Self::parent(target))?;
        // As rename(2): to itself is nothing, below itself is refused.
        if source == target {
            return Ok(());
        }
        let inside = target.strip_prefix(source).is_some_and(|rest| rest.starts_with('/'));
        if !parent_directory || inside {
            return Err(Refused);
        }
        if let Some((_, target_directory)) = self.0.get(target) {
            // A file makes way for a file, an empty directory for a directory.
            if !replace || *target_directory != source_directory || self.below(target).next().is_some() {
                return Err(Refused);
            }
            self.0.remove(target);
        }
        for (path, entry) in self.take(source) {
            self.0.insert(format!("{target}{}", &path[source.len()..]), entry);
        }
        Ok(())
    }

    /// Applies an operation; `reply` is `None` if nobody knows what it answered.
    fn apply(&mut self, call: &Call, reply: Option<&Reply>) -> Result<(), Refused> {
        let told = reply.and_then(|reply| reply.entries.first());
        match call {
            // The id of what an unknown operation made is unknown too: 0 fits every answer.
            Call::Mkdir { path } => self.add(path, told.map_or(0, |entry| entry.id), true),
            Call::Create { path } => self.add(path, told.map_or(0, |entry| entry.id), false),
            Call::Delete { path, recursive } => {
                let (_, directory) = self.find(path)?;
                if path == "/" || (directory && !recursive && self.below(path).next().is_some()) {
                    return Err(Refused);
                }
                self.take(path);
                Ok(())
            }
            Call::Rename { source, target, replace } => self.rename(source, target, *replace),
            Call::Stat { path } => {
                let (id, directory) = self.find(path)?;
                let fits = |told: &Entry| told.directory == directory && (told.id == id || id == 0);
                if told.is_none_or(fits) { Ok(()) } else { Err(Refused) }
            }
            Call::List { path } => {
                let (_, directory) = self.find(path)?;
                let children = self.children(path);
                let fits = |told: &[Entry]| {
                    told.len() == children.len()
                        && told.iter().zip(&children).all(|(told, entry)| {
                            let same_id = told.id == entry.id || entry.id == 0;
                            told.name == entry.name && told.directory == entry.directory && same_id
                        })
                };
                if directory && reply.is_none_or(|reply| fits(&reply.entries)) {
                    Ok(())
                } else {
                    Err(Refused)
                }
            }
        }
    }
}

type Op = Operation<Call, Reply>;

/// A refusal, and the log indices of the states that may explain it.
struct Refusal<'a> {
    call: &'a Call,
    from: u64,
    to: u64,
}

/// Judges a history of namespace operations.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let operations = pair_up(recorder::read::<Call, Reply>(text)?)?;
    let mut verdict = Verdict::new();
    count(&mut verdict, &operations);
    let mut decided: Vec<(u64, &Op, &Reply)> = operations
        .iter()
        .filter_map(|operation| match &operation.outcome {
            Outcome::Ok { value } => Some((value.rev, operation, value)),
            Outcome::Fail { .. } | Outcome::Info { .. } => None,
        })
        .collect();
    // A lookup saw what was changed at its own index.
    decided.sort_by_key(|(rev, operation, _)| (*rev, !operation.call.changes(), operation.called_at_ns));
    check_real_time(&decided, &mut verdict);
    let refusals = refusals(&operations, &decided);
    let unknown: Vec<&Op> = operations
        .iter()
        .filter(|operation| operation.call.changes() && matches!(operation.outcome, Outcome::Info { .. }))
        .collect();
    replay(&decided, refusals, unknown, &mut verdict);
    Ok(verdict)
}

/// The order of the log is possible in real time, and no index is used twice.
fn check_real_time(decided: &[(u64, &Op, &Reply)], verdict: &mut Verdict) {
    for pair in decided.windows(2) {
        if let [(rev, first, _), (other, second, _)] = pair
            && rev == other
            && first.call.changes()
            && second.call.changes()
        {
            verdict.finding(format!("twice: index {rev} for {:?} and {:?}", first.call, second.call));
        }
    }
    let mut calls: Vec<_> =
        decided.iter().map(|(rev, operation, _)| (operation.called_at_ns, *rev, *operation)).collect();
    calls.sort_by_key(|(called, _, _)| *called);
    let mut returns: Vec<_> =
        decided.iter().filter_map(|(rev, operation, _)| Some((operation.returned_at_ns?, *rev))).collect();
    returns.sort_unstable();
    let mut returns = returns.into_iter().peekable();
    let mut highest = 0;
    for (called, rev, operation) in calls {
        while let Some((_, earlier)) = returns.next_if(|(returned, _)| *returned < called) {
            highest = highest.max(earlier);
        }
        if rev < highest || (operation.call.changes() && rev == highest) {
            verdict.finding(format!(
                "past: {:?} was decided at {rev} although {highest} had been told",
                operation.call
            ));
        }
    }
}

/// Each refusal with the states that may explain it: from the newest that was told before its call to the last
/// before any change that began after its return. The earliest first.
fn refusals<'a>(operations: &'a [Op], decided: &[(u64, &Op, &Reply)]) -> Vec<Refusal<'a>> {
    let mut returns: Vec<_> =
        decided.iter().filter_map(|(rev, operation, _)| Some((operation.returned_at_ns?, *rev))).collect();
    returns.sort_unstable();
    // By how many have returned: the newest index that is told.
    let mut newest = vec![0];
    for (_, rev) in &returns {
        newest.push(newest.last().copied().unwrap_or(0).max(*rev));
    }
    let changes = decided.iter().filter(|(_, operation, _)| operation.call.changes());
    let mut calls: Vec<_> = changes.map(|(rev, operation, _)| (operation.called_at_ns, *rev)).collect();
    calls.sort_unstable();
    // By how many have been called: the lowest index of the others.
    let mut lowest = vec![u64::MAX; calls.len() + 1];
    for (index, (_, rev)) in calls.iter().enumerate().rev() {
        lowest[index] = lowest[index + 1].min(*rev);
    }
    let mut refusals: Vec<_> = operations
        .iter()
        .filter_map(|operation| match (&operation.outcome, operation.returned_at_ns) {
            (Outcome::Fail { .. }, Some(returned)) => {
                let from = newest[returns.partition_point(|(at, _)| *at < operation.called_at_ns)];
                let to = lowest[calls.partition_point(|(at, _)| *at <= returned)].saturating_sub(1);
                Some(Refusal { call: &operation.call, from, to })
            }
            _ => None,
        })
        .collect();
    refusals.sort_by_key(|refusal| refusal.from);
    refusals
}

fn replay(
    decided: &[(u64, &Op, &Reply)],
    refusals: Vec<Refusal<'_>>,
    mut unknown: Vec<&Op>,
    verdict: &mut Verdict,
) {
    let mut tree = Tree::default();
    let mut waiting = refusals.into_iter().peekable();
    let mut open: Vec<Refusal<'_>> = Vec::new();
    let mut since = 0;
    for next in 0..=decided.len() {
        // This state lasts from index `since` until the next change.
        let following = decided.get(next);
        let until = following.map_or(u64::MAX, |(rev, _, _)| *rev);
        if following.is_none_or(|(_, operation, _)| operation.call.changes()) {
            open.extend(std::iter::from_fn(|| waiting.next_if(|refusal| refusal.from < until)));
            open.retain(|refusal| {
                if tree.clone().apply(refusal.call, None).is_err() {
                    return false;
                }
                let overdue = refusal.to < until;
                if overdue {
                    let what =
                        format!("refused: {:?} between {} and {}", refusal.call, refusal.from, refusal.to);
                    if unknown.is_empty() { verdict.finding(what) } else { verdict.doubt(what) }
                }
                !overdue
            });
        }
        let Some((rev, operation, reply)) = following else { break };
        if operation.call.changes() {
            since = *rev;
        }
        if tree.apply(&operation.call, Some(reply)).is_ok() {
            continue;
        }
        let helps = |candidate: &&Op| {
            let mut trial = tree.clone();
            operation.returned_at_ns.is_none_or(|returned| candidate.called_at_ns < returned)
                && trial.apply(&candidate.call, None).is_ok()
                && trial.apply(&operation.call, Some(reply)).is_ok()
        };
        let Some(index) = unknown.iter().position(helps) else {
            let what = format!("inexplicable: {:?} -> {reply:?} after {since}", operation.call);
            if unknown.is_empty() {
                verdict.finding(what)
            } else {
                verdict.doubt(what)
            }
            continue;
        };
        let chosen = unknown.remove(index);
        // Both were tried just now.
        drop(tree.apply(&chosen.call, None).and_then(|()| tree.apply(&operation.call, Some(reply))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    /// Lines of `called returned call -> rev [id]`, `-> no` for a refusal, `-> ?` for an unknown outcome.
    fn judge(script: &str) -> Verdict {
        let mut events = Vec::new();
        for (process, line) in script.lines().enumerate() {
            let (asked, told) = line.trim().split_once(" -> ").unwrap();
            let words: Vec<&str> = asked.split_whitespace().collect();
            let (called, returned): (u64, u64) = (words[0].parse().unwrap(), words[1].parse().unwrap());
            let path = words[3].to_owned();
            let call = match words[2] {
                "mkdir" => Call::Mkdir { path },
                "create" => Call::Create { path },
                "delete" => Call::Delete { path, recursive: false },
                "rename" => Call::Rename { source: path, target: words[4].into(), replace: false },
                "stat" => Call::Stat { path },
                _ => Call::List { path },
            };
            let outcome: Outcome<Reply> = match told {
                "no" => Outcome::Fail { reason: "no".into() },
                "?" => Outcome::Info { reason: "?".into() },
                told => {
                    let mut words = told.split_whitespace();
                    let rev = words.next().unwrap().parse().unwrap();
                    let directory = asked.contains("mkdir");
                    let entry = |word: &str| {
                        let (name, id) = word.split_once('=').unwrap_or(("", word));
                        Entry { name: name.into(), id: id.parse().unwrap(), directory }
                    };
                    Outcome::Ok { value: Reply { rev, entries: words.map(entry).collect() } }
                }
            };
            let call =
                serde_json::json!({"event": "call", "process": process, "at_ns": called, "call": call});
            let end = serde_json::json!({"event": "return", "process": process, "at_ns": returned, "outcome": outcome});
            events.extend([(called, call), (returned, end)]);
        }
        events.sort_by_key(|(at, _)| *at);
        let lines: Vec<String> = events.iter().map(|(_, line)| line.to_string()).collect();
        check(&lines.join("\n")).unwrap()
    }

    #[test]
    fn good_histories_are_good() {
        for script in [
            "1 2 mkdir /a -> 10 1\n3 4 create /a/x -> 11 2\n5 6 rename /a /b -> 12\n7 8 list /b -> 12 x=2\n9 10 stat /a -> no",
            // At the same time: the refusal is before, the other after.
            "1 9 create /x -> 10 1\n2 8 stat /x -> no\n2 8 stat /x -> 10 1",
            // Unknown, and read afterwards or not.
            "1 2 create /x -> ?\n3 4 stat /x -> 9 7",
            "1 2 create /x -> ?\n3 4 stat /x -> no",
        ] {
            let verdict = judge(script);
            assert!(verdict.is_good(), "{script} {verdict:?}");
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        for (word, script) in [
            ("past", "1 2 create /x -> 10 1\n3 4 stat /x -> 9 1"),
            ("past", "1 2 create /x -> 10 1\n3 4 create /y -> 9 2"),
            ("twice", "1 9 create /x -> 10 1\n2 8 create /y -> 10 2"),
            ("inexplicable", "1 2 create /x -> 10 1\n3 4 stat /x -> 10 2"),
            ("inexplicable", "1 2 create /x -> 10 1\n3 4 create /x -> 11 2"),
            ("inexplicable", "1 2 create /x -> 10 1\n3 4 list / -> 10"),
            ("refused", "1 2 create /x -> 10 1\n3 4 stat /x -> no"),
            ("refused", "1 2 create /x -> no"),
            ("refused", "1 2 create /x -> 10 1\n3 4 delete /x -> no\n5 6 delete /x -> 11"),
        ] {
            let verdict = judge(script);
            let first = verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap());
            assert_eq!((first, verdict.validity), (word, Validity::Bad), "{script} {verdict:?}");
        }
    }
}
