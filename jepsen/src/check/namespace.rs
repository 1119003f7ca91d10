//! Judges namespace operations (design P1, P8): replays them in the order of the log index of each reply, which must
//! respect real time.
//!
//! A refusal carries no log index: some state between its call and its return has to explain it, and refusals that
//! follow one another can't go back in the log. A lookup that need not be the newest answers from the state of its
//! index all the same, never behind what its session has seen, never older than it allows. Mutations of unknown
//! outcome are asked for again under their request ids, so that hardly any are left; of those, either is allowed:
//! they are tried where the replay can't go on without them, and `second` judges what is then in doubt.

use std::collections::BTreeMap;

use anyhow::Result;

use super::tree::{Call, Reply, Tree};
use super::{History, count, doubt_without, read, second};
use crate::history::Operation;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// An operation and what its client knows.
pub(crate) type Op = Operation<Call, Reply>;

/// Until when the last state lasts.
const END: u64 = u64::MAX;

/// Something that was answered, with the index of the log.
struct Decided<'a> {
    rev: u64,
    operation: &'a Op,
    reply: &'a Reply,
}

/// A refusal, and the log indices of the states that may explain it.
struct Refusal<'a> {
    operation: &'a Op,
    returned: u64,
    from: u64,
    to: u64,
}

/// Judges a history of namespace operations.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    judge_text(text, &mut verdict)?;
    Ok(verdict)
}

/// Judges a history of namespace operations; what was done in it.
pub(super) fn judge_text(text: &str, verdict: &mut Verdict) -> Result<Vec<Op>> {
    let History { operations, healed_ns } = read::<Call, Reply>(text, verdict)?;
    count(verdict, &operations, healed_ns);
    judge(&operations, verdict);
    check_load(&operations, verdict);
    Ok(operations)
}

/// A namespace that nobody could change proves nothing, however often it was read.
fn check_load(operations: &[Op], verdict: &mut Verdict) {
    doubt_without(verdict, "change", operations.iter().filter(|op| op.call.changes()));
}

/// Judges namespace operations.
fn judge(operations: &[Op], verdict: &mut Verdict) {
    replay_all(operations, verdict);
    second::opinion(operations, verdict);
}

/// The main check.
pub(crate) fn replay_all(operations: &[Op], verdict: &mut Verdict) {
    let mut decided: Vec<Decided<'_>> = operations
        .iter()
        .filter_map(|operation| match &operation.outcome {
            Outcome::Ok { value } => Some(Decided { rev: value.rev, operation, reply: value }),
            Outcome::Fail { .. } | Outcome::Info { .. } => None,
        })
        .collect();
    // A lookup saw what was changed at its own index.
    decided.sort_by_key(|one| (one.rev, !one.operation.call.changes(), one.operation.called_at_ns));
    check_once(&decided, verdict);
    let told = Told::new(&decided);
    check_real_time(&decided, &told, verdict);
    let refusals = refusals(operations, &decided, &told);
    let unknown: Vec<&Op> = operations
        .iter()
        .filter(|operation| operation.call.changes() && matches!(operation.outcome, Outcome::Info { .. }))
        .collect();
    let replay = Replay { doubtful: unknown.clone(), tree: Tree::default(), unknown, verdict };
    replay.run(&decided, refusals);
}

/// No index decides two changes, and no id is given twice.
fn check_once(decided: &[Decided<'_>], verdict: &mut Verdict) {
    let mut ids: BTreeMap<u64, &Call> = BTreeMap::new();
    let mut last: Option<&Decided<'_>> = None;
    for one in decided.iter().filter(|one| one.operation.call.changes()) {
        if let Some(other) = last.filter(|other| other.rev == one.rev) {
            let (first, second) = (&other.operation.call, &one.operation.call);
            verdict.finding(format!("twice: index {} for {first:?} and {second:?}", one.rev));
        }
        last = Some(one);
        // What comes back has the id that it had.
        if matches!(one.operation.call, Call::Undelete { .. }) {
            continue;
        }
        if let Some(made) = one.reply.entries.first()
            && let Some(other) = ids.insert(made.id, &one.operation.call)
        {
            verdict.finding(format!("reused: id {} for {other:?} and {:?}", made.id, one.operation.call));
        }
    }
}

/// What had been told to anybody at a moment.
struct Told {
    /// Moments of returns with the newest index told until then.
    newest: Vec<(u64, u64)>,
    /// Moments of calls with the last index at which a state may be that was seen before any of the calls from then on.
    oldest: Vec<(u64, u64)>,
}

impl Told {
    fn new(decided: &[Decided<'_>]) -> Self {
        let mut newest: Vec<_> =
            decided.iter().filter_map(|one| Some((one.operation.returned_at_ns?, one.rev))).collect();
        newest.sort_unstable();
        let mut highest = 0;
        for (_, rev) in &mut newest {
            highest = highest.max(*rev);
            *rev = highest;
        }
        // A lookup that may be old says nothing about what was seen before it.
        let bounds = decided.iter().filter(|one| one.operation.call.stale().is_none());
        let mut oldest: Vec<_> = bounds
            // A change at index 0 is a finding, and no reason to stop.
            .map(|one| {
                let changes = u64::from(one.operation.call.changes());
                (one.operation.called_at_ns, one.rev.saturating_sub(changes))
            })
            .collect();
        oldest.sort_unstable();
        let mut lowest = u64::MAX;
        for (_, rev) in oldest.iter_mut().rev() {
            lowest = lowest.min(*rev);
            *rev = lowest;
        }
        Self { newest, oldest }
    }

    /// The newest index told before a moment.
    fn before(&self, moment: u64) -> u64 {
        let count = self.newest.partition_point(|(at, _)| *at < moment);
        count.checked_sub(1).and_then(|index| self.newest.get(index)).map_or(0, |(_, rev)| *rev)
    }

    /// The last index that what returned at a moment can have seen.
    fn after(&self, moment: u64) -> u64 {
        let index = self.oldest.partition_point(|(at, _)| *at <= moment);
        self.oldest.get(index).map_or(u64::MAX, |(_, rev)| *rev)
    }

    /// The lowest index that an operation may have been decided at.
    fn floor(&self, operation: &Op) -> u64 {
        match operation.call.stale() {
            None => self.before(operation.called_at_ns),
            Some(stale) => {
                let bound_ns = stale.bound_ms.saturating_mul(1_000_000);
                stale.floor.max(self.before(operation.called_at_ns.saturating_sub(bound_ns)))
            }
        }
    }
}

/// The order of the log is possible in real time.
fn check_real_time(decided: &[Decided<'_>], told: &Told, verdict: &mut Verdict) {
    for one in decided {
        let (rev, call, floor) = (one.rev, &one.operation.call, told.floor(one.operation));
        match call.stale() {
            Some(stale) if rev < stale.floor => {
                verdict.finding(format!("back: {call:?} was answered at {rev}"));
            }
            Some(_) if rev < floor => {
                verdict.finding(format!(
                    "old: {call:?} was answered at {rev}, {floor} had been told too long before"
                ));
            }
            Some(_) => {}
            None if rev < floor || (call.changes() && rev == floor) => {
                verdict
                    .finding(format!("past: {call:?} was decided at {rev} although {floor} had been told"));
            }
            None => {}
        }
    }
}

/// Each refusal with the states that may explain it, in the order of their calls.
fn refusals<'a>(operations: &'a [Op], decided: &[Decided<'_>], told: &Told) -> Vec<Refusal<'a>> {
    let last = decided.last().map_or(0, |one| one.rev);
    let mut refusals: Vec<_> = operations
        .iter()
        .filter_map(|operation| match (&operation.outcome, operation.returned_at_ns) {
            (Outcome::Fail { .. }, Some(returned)) => {
                let (from, to) = (told.floor(operation), told.after(returned));
                // Beyond the last index nothing changes.
                Some(Refusal { operation, returned, from: from.min(last), to })
            }
            _ => None,
        })
        .collect();
    refusals.sort_by_key(|refusal| (refusal.operation.called_at_ns, refusal.returned));
    refusals
}

/// A replay under way.
struct Replay<'a, 'v> {
    tree: Tree,
    /// Changes of unknown outcome that were not needed yet.
    unknown: Vec<&'a Op>,
    /// All of them.
    doubtful: Vec<&'a Op>,
    verdict: &'v mut Verdict,
}

impl<'a> Replay<'a, '_> {
    fn run(mut self, decided: &[Decided<'a>], refusals: Vec<Refusal<'a>>) {
        let (mut old, new): (Vec<_>, Vec<_>) =
            refusals.into_iter().partition(|refusal| refusal.operation.call.stale().is_some());
        let mut waiting = new.into_iter().peekable();
        // Those that may be old come in no order, and put no order on others: nothing is to be said of one before this.
        let first_word = |refusal: &Refusal<'_>| refusal.from.min(refusal.to);
        old.sort_by_key(first_word);
        let mut waiting_old = old.into_iter().peekable();
        let (mut open, mut open_old) = (Vec::new(), Vec::new());
        for next in 0..=decided.len() {
            // This state lasts until the next change, or until a lookup that needs a change of unknown outcome.
            let following = decided.get(next);
            let until = following.map_or(END, |one| one.rev);
            open.extend(std::iter::from_fn(|| waiting.next_if(|refusal| refusal.from < until)));
            open_old.extend(std::iter::from_fn(|| {
                waiting_old.next_if(|refusal| first_word(refusal) < until || until == END)
            }));
            self.explain(&mut open, until);
            self.explain_old(&mut open_old, until);
            let Some(one) = following else { break };
            self.step(one);
        }
    }

    /// Lets the state that lasts until `until` explain refusals, one after the other.
    fn explain(&mut self, open: &mut Vec<Refusal<'a>>, until: u64) {
        // The first return among those that wait for a later state: what was called after it waits too.
        let mut bar = u64::MAX;
        open.retain(|refusal| {
            if refusal.operation.called_at_ns <= bar && self.tree.refuses(&refusal.operation.call) {
                return false;
            }
            let overdue = refusal.to < until || until == END;
            if overdue {
                self.complain_refused(refusal);
            } else {
                bar = bar.min(refusal.returned);
            }
            !overdue
        });
    }

    fn explain_old(&mut self, open: &mut Vec<Refusal<'a>>, until: u64) {
        open.retain(|refusal| {
            let explained = refusal.from < until && self.tree.refuses(&refusal.operation.call);
            let overdue = !explained && (refusal.to < until || until == END);
            if overdue {
                self.complain_refused(refusal);
            }
            !explained && !overdue
        });
    }

    fn complain_refused(&mut self, refusal: &Refusal<'_>) {
        let (call, from, to) = (&refusal.operation.call, refusal.from, refusal.to);
        self.complain(refusal.operation, format!("refused: {call:?} between {from} and {to}"));
    }

    /// Something does not fit. A change of unknown outcome may be the reason: then nobody can tell.
    fn complain(&mut self, operation: &Op, what: String) {
        let ours = second::tops(&operation.call);
        let returned = operation.returned_at_ns.unwrap_or(u64::MAX);
        let doubtful = self.doubtful.iter().any(|unknown| {
            unknown.called_at_ns < returned
                && (second::tops(&unknown.call).iter().any(|top| ours.contains(top)) || ours.contains(&""))
        });
        if doubtful { self.verdict.doubt(what) } else { self.verdict.finding(what) }
    }

    fn step(&mut self, one: &Decided<'a>) {
        let (call, reply) = (&one.operation.call, one.reply);
        if self.tree.apply(call, Some(reply)).is_ok() {
            return;
        }
        let helps = |candidate: &&Op| {
            let mut trial = self.tree.clone();
            one.operation.returned_at_ns.is_none_or(|returned| candidate.called_at_ns < returned)
                && trial.apply(&candidate.call, None).is_ok()
                && trial.apply(call, Some(reply)).is_ok()
        };
        let Some(index) = self.unknown.iter().position(helps) else {
            return self.complain(one.operation, format!("inexplicable: {call:?} -> {reply:?}"));
        };
        let chosen = self.unknown.remove(index);
        // Both were tried just now.
        drop(self.tree.apply(&chosen.call, None).and_then(|()| self.tree.apply(call, Some(reply))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tree::{Entry, Stale};
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
                "remove" => Call::Delete { path, recursive: true },
                "rename" => Call::Rename { source: path, target: words[4].into(), replace: false },
                "snapshot" => Call::Snapshot { source: path, target: words[4].into() },
                "undelete" | "undelete-in-time" => {
                    let (id, expires) = (words[5].parse().unwrap(), words[2] != "undelete");
                    Call::Undelete { id, source: path, target: words[4].into(), expires }
                }
                "stat" => Call::Stat { path, stale: stale(words.get(4..)) },
                _ => Call::List { path, stale: stale(words.get(4..)) },
            };
            let outcome: Outcome<Reply> = match told {
                "no" => Outcome::Fail { reason: "no".into() },
                "?" => Outcome::Info { reason: "?".into() },
                told => {
                    let mut words = told.split_whitespace();
                    let rev = words.next().unwrap().parse().unwrap();
                    let entry = |word: &str| {
                        // A slash behind it says directory.
                        let directory = asked.contains("mkdir") || word.ends_with('/');
                        let word = word.trim_end_matches('/');
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
        let mut verdict = Verdict::new();
        let History { operations, healed_ns } = read(&lines.join("\n"), &mut verdict).unwrap();
        count(&mut verdict, &operations, healed_ns);
        super::judge(&operations, &mut verdict);
        verdict
    }

    /// Of a lookup that need not be the newest: milliseconds and the floor.
    fn stale(words: Option<&[&str]>) -> Option<Stale> {
        let [bound, floor] = words? else { return None };
        Some(Stale { bound_ms: bound.parse().unwrap(), floor: floor.parse().unwrap(), shadow: None })
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
            // Refused before it was called, needed by the next lookup (simulation, seed 8110).
            "1 2 create /y -> 10 1\n3 4 stat /x -> no\n5 6 create /x -> ?\n7 8 stat /x -> 20 2",
            // A snapshot is the tree of its moment; what is in it has ids that lookups tell.
            "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 mkdir /s -> 3 3\n7 8 snapshot /a /s/a -> 4 4\n9 10 delete /a/x -> 5\n11 12 list /s/a -> 5 x=9\n13 14 stat /s/a/x -> 5 9",
            // What was deleted comes back as it was, elsewhere too, if it was deleted, once.
            "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 remove /a -> 3\n7 8 stat /a -> no\n9 10 undelete /a /b 1 -> 4 1/\n11 12 list /b -> 4 x=2\n13 14 undelete /a /a 1 -> no",
            "1 2 create /x -> 1 1\n3 4 undelete /x /y 1 -> no\n5 6 delete /x -> 2\n7 8 create /x -> 3 2\n9 10 undelete /x /x 1 -> no\n11 12 undelete /x /y 1 -> 4 1",
            // Whether it was deleted before nobody knows, so either is fine.
            "1 2 create /x -> 1 1\n3 4 delete /x -> ?\n5 6 undelete /x /y 1 -> 4 1\n7 8 stat /x -> no",
            "1 2 create /x -> 1 1\n3 4 delete /x -> 2\n5 6 undelete-in-time /x /y 1 -> no\n7 8 stat /y -> no",
            "1 2 create /x -> 1 1\n3 9 delete /x -> 2\n4 8 undelete /x /x 1 -> no\n10 11 undelete /x /x 1 -> ?\n12 13 stat /x -> 3 1",
            // An old answer within its bound, and an old refusal.
            "1 2 create /x -> 10 1\n5 6 stat /x 1 0 -> no\n7 8 stat /x 1 0 -> 10 1",
            "1 2 create /x -> 10 1\n3 4 list / 1 0 -> 9",
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
            // The second refusal would need a state before that of the first.
            ("refused", "1 99 create /x -> 10 1\n2 3 create /x -> no\n4 5 stat /x -> no"),
            // A state that was seen after it is no explanation.
            (
                "refused",
                "1 99 create /x -> 10 1\n2 3 create /x -> no\n4 5 list / -> 9\n6 98 create /y -> 11 2",
            ),
            ("reused", "1 2 create /x -> 10 1\n3 4 create /y -> 11 1"),
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 snapshot /a /s -> 4 4\n9 10 list /s -> 5",
            ),
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 snapshot /a /s -> 4 4\n7 8 stat /s/x -> 4 8\n9 10 stat /s/x -> 4 9",
            ),
            // What is told of a copy for the first time is nobody else's: not the original's, not another's, not a deleted file's.
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 snapshot /a /s -> 4 4\n7 8 stat /s/x -> 4 2",
            ),
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 create /a/y -> 3 3\n7 8 snapshot /a /s -> 5 5\n9 10 list /s -> 5 x=9 y=9",
            ),
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 create /y -> 3 3\n7 8 delete /y -> 4\n9 10 snapshot /a /s -> 5 5\n11 12 stat /s/x -> 5 3",
            ),
            // What was not deleted, or is back already, can't come back; nor as something else, nor without what was in it.
            ("inexplicable", "1 2 create /x -> 1 1\n3 4 undelete /x /y 1 -> 2 1"),
            (
                "inexplicable",
                "1 2 create /x -> 1 1\n3 4 delete /x -> 2\n5 6 undelete /x /x 1 -> 3 1\n7 8 undelete /x /y 1 -> 4 1",
            ),
            (
                "inexplicable",
                "1 2 create /x -> 1 1\n3 4 delete /x -> 2\n5 6 create /x -> 3 2\n7 8 undelete /x /x 1 -> 4 1",
            ),
            ("inexplicable", "1 2 create /x -> 1 1\n3 4 delete /x -> 2\n5 6 undelete /x /y 1 -> 3 2"),
            (
                "inexplicable",
                "1 2 mkdir /a -> 1 1\n3 4 create /a/x -> 2 2\n5 6 remove /a -> 3\n7 8 undelete /a /b 1 -> 4 1/\n9 10 list /b -> 4",
            ),
            ("inexplicable", "1 2 mkdir /a -> 1 1\n3 4 delete /a -> 2\n5 6 undelete /a /b 1 -> 3 1"),
            ("refused", "1 2 create /x -> 1 1\n3 4 delete /x -> 2\n5 6 undelete /x /y 1 -> no"),
            ("inexplicable", "1 2 create /x -> 1 1\n3 4 undelete-in-time /x /y 1 -> 2 1"),
            // Shadows: older than allowed, behind what the session has seen, not a state that ever was.
            ("old", "1 2 create /x -> 10 1\n3000000 3000001 list / 1 0 -> 9"),
            ("back", "1 2 create /x -> 10 1\n3 4 list / 1 10 -> 9"),
            ("inexplicable", "1 2 create /x -> 10 1\n3 4 list / 1 0 -> 10"),
            ("refused", "1 2 create /x -> 10 1\n3 4 stat /x 1 10 -> no"),
            ("refused", "1 2 create /x -> 10 1\n3 4 delete /x -> no\n5 6 delete /x -> 11"),
        ] {
            let verdict = judge(script);
            let first = verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap());
            assert_eq!((first, verdict.validity), (word, Validity::Bad), "{script} {verdict:?}");
        }
    }
}
