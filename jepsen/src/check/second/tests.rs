//! Histories of a simulated cluster, as they are and changed at random: the search and the replay on each.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::check::namespace::replay_all;
use crate::check::tree::Entry;
use crate::verdict::Validity;

/// A cluster that answers as it should, and its clients.
struct Simulated {
    dice: StdRng,
    tree: Tree,
    now: u64,
    rev: u64,
    next_id: u64,
    operations: Vec<Op>,
    /// What was deleted, as clients know it: id and path.
    deleted: Vec<(u64, String)>,
    /// Ids that some client was told.
    told: BTreeSet<u64>,
}

impl Simulated {
    fn path(&mut self) -> String {
        let depth = self.dice.random_range(0..=1);
        let name = |dice: &mut StdRng| *["a", "b", "c"].choose(dice).unwrap();
        let mut path = String::from("/t");
        for _ in 0..=depth {
            path = format!("{path}/{}", name(&mut self.dice));
        }
        path
    }

    fn draw(&mut self) -> Call {
        let (path, other) = (self.path(), self.path());
        // Nobody can ask for what nobody was told.
        let known: Vec<_> = self.deleted.iter().filter(|(id, _)| self.told.contains(id)).collect();
        if let Some((id, source)) = known.choose(&mut self.dice).filter(|_| self.dice.random_range(0..6) == 0)
        {
            let target = if self.dice.random() { source.clone() } else { path };
            return Call::Undelete { id: *id, source: source.clone(), target, expires: false };
        }
        match self.dice.random_range(0..10) {
            0..2 => Call::Mkdir { path },
            2..4 => Call::Create { path },
            4 => Call::Delete { path, recursive: self.dice.random() },
            5 => Call::Rename { source: path, target: other, replace: self.dice.random() },
            6..9 => Call::Stat { path, stale: None },
            _ => Call::List { path: "/t".into(), stale: None },
        }
    }

    /// Decides an operation now.
    fn decide(&mut self, call: &Call) -> Outcome<Reply> {
        let mut entries = Vec::new();
        let directory = matches!(call, Call::Mkdir { .. });
        if directory || matches!(call, Call::Create { .. }) {
            self.next_id += 1;
            entries.push(Entry { name: "x".into(), id: self.next_id, directory });
        }
        if let Call::Undelete { id, .. } = call {
            let kinds = [false, true].map(|directory| Entry { name: "x".into(), id: *id, directory });
            let fits = |entry: &Entry| {
                let reply = Reply { rev: 0, entries: vec![entry.clone()] };
                self.tree.clone().apply(call, Some(&reply)).is_ok()
            };
            entries.extend(kinds.into_iter().find(fits));
        }
        let buried = if let Call::Delete { path, .. } = call {
            self.tree.answer(&Call::Stat { path: path.clone(), stale: None })
        } else {
            None
        };
        if self.tree.apply(call, Some(&Reply { rev: 0, entries: entries.clone() })).is_err() && call.changes()
        {
            return Outcome::Fail { reason: "no".into() };
        }
        if !call.changes() {
            match self.tree.answer(call) {
                Some(found) => entries = found,
                None => return Outcome::Fail { reason: "no".into() },
            }
        }
        if let (Some(buried), Call::Delete { path, .. }) = (buried, call) {
            self.deleted.push((buried[0].id, path.clone()));
        }
        self.rev += u64::from(call.changes());
        Outcome::Ok { value: Reply { rev: self.rev, entries } }
    }

    /// `clients` at once, `count` operations, some of unknown outcome.
    fn run(seed: u64, clients: usize, count: usize, unknown_percent: u32) -> Vec<Op> {
        let dice = StdRng::seed_from_u64(seed);
        let (tree, operations, deleted) = (Tree::default(), Vec::new(), Vec::new());
        let mut us =
            Self { dice, tree, now: 0, rev: 0, next_id: 0, operations, deleted, told: BTreeSet::new() };
        let root = Call::Mkdir { path: "/t".into() };
        let outcome = us.decide(&root);
        us.operations.push(Op { process: 0, call: root, called_at_ns: 1, returned_at_ns: Some(2), outcome });
        us.now = 3;
        // What each client has open, and whether it is decided.
        let mut open: Vec<Option<(usize, bool)>> = vec![None; clients];
        // Of unknown outcome: they take effect later, if at all.
        let mut late: Vec<Call> = Vec::new();
        while us.operations.len() < count || open.iter().any(Option::is_some) {
            us.now += 1;
            let client = us.dice.random_range(0..clients);
            match open[client] {
                None if us.operations.len() < count => {
                    let call = us.draw();
                    let outcome = Outcome::Info { reason: "?".into() };
                    open[client] = Some((us.operations.len(), false));
                    us.operations.push(Op {
                        process: 0,
                        call,
                        called_at_ns: us.now,
                        returned_at_ns: None,
                        outcome,
                    });
                }
                None => {}
                Some((index, false)) => {
                    let call = us.operations[index].call.clone();
                    if call.changes() && us.dice.random_range(0..100) < unknown_percent {
                        late.push(call);
                        open[client] = None;
                        continue;
                    }
                    let outcome = us.decide(&call);
                    if let Outcome::Ok { value } = &outcome {
                        us.told.extend(value.entries.iter().map(|entry| entry.id));
                    }
                    us.operations[index].outcome = outcome;
                    open[client] = Some((index, true));
                }
                Some((index, true)) => {
                    us.operations[index].returned_at_ns = Some(us.now);
                    open[client] = None;
                }
            }
            if us.dice.random_range(0..20) == 0
                && let Some(call) = late.pop()
                && us.dice.random()
            {
                drop(us.decide(&call));
            }
        }
        us.operations
    }
}

/// Changes what one client was told. Log indices stay.
fn mutate(operations: &mut [Op], dice: &mut StdRng) {
    for _ in 0..1000 {
        let index = dice.random_range(0..operations.len());
        let operation = &mut operations[index];
        let rev = index as u64;
        match &mut operation.outcome {
            Outcome::Ok { value } if !value.entries.is_empty() => {
                let which = dice.random_range(0..value.entries.len());
                // Another id, or an entry less.
                if dice.random() {
                    value.entries[which].id += 1000 + rev
                } else {
                    value.entries.remove(which);
                }
                // A lookup of nothing at all says nothing.
                if value.entries.is_empty() && !matches!(operation.call, Call::List { .. }) {
                    continue;
                }
                return;
            }
            Outcome::Ok { .. } => {
                operation.outcome = Outcome::Fail { reason: "no".into() };
                return;
            }
            Outcome::Fail { .. } | Outcome::Info { .. } => {}
        }
    }
}

fn replayed(operations: &[Op]) -> Validity {
    let mut verdict = Verdict::new();
    replay_all(operations, &mut verdict);
    verdict.validity
}

fn searched(operations: &[Op]) -> Judgement {
    let all: Vec<&Op> = operations.iter().collect();
    judge(&all, LIMITS, &mut 0).0
}

#[test]
fn what_a_right_cluster_answers_is_linearizable_to_both() {
    for seed in 0..60 {
        for (clients, unknown_percent) in [(1, 0), (4, 0), (8, 0), (4, 1)] {
            let operations = Simulated::run(seed, clients, 150, unknown_percent);
            let (search, replay) = (searched(&operations), replayed(&operations));
            assert_eq!(search, Judgement::Linearizable, "seed {seed}, {clients} clients");
            // With outcomes unknown it may not be able to tell.
            let fine = replay == Validity::Good || (unknown_percent > 0 && replay == Validity::Unknown);
            assert!(fine, "seed {seed}, {clients} clients: {replay:?}");
        }
    }
}

#[test]
fn on_changed_histories_both_say_the_same() {
    let (mut illegal, mut all) = (0, 0);
    for seed in 0..150 {
        for clients in [1, 4] {
            let mut operations = Simulated::run(seed, clients, 100, 0);
            mutate(&mut operations, &mut StdRng::seed_from_u64(seed));
            let (search, replay) = (searched(&operations), replayed(&operations));
            let bad = matches!(search, Judgement::Illegal { .. });
            // An order by log index is an order: what the search refuses, the replay must refuse.
            assert!(!bad || replay == Validity::Bad, "seed {seed}: {search:?}, {replay:?}");
            // Of one client there is only one order.
            assert!(clients > 1 || bad == (replay == Validity::Bad), "seed {seed}: {search:?}, {replay:?}");
            (illegal, all) = (illegal + usize::from(bad), all + 1);
        }
    }
    assert!(illegal * 10 > all * 8, "only {illegal} of {all} changes were noticed");
}

#[test]
fn a_second_opinion_on_few_of_the_trees_is_doubted() {
    let is_good = |judged, gave_up, too_large| {
        let mut verdict = Verdict::new();
        // What is left over when the steps are used up is a long run's, and no doubt.
        Tally { judged, gave_up, too_large, left_over: 100, illegal: Vec::new() }.doubt_if_few(&mut verdict);
        verdict.is_good()
    };
    for (judged, gave_up, too_large) in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 3), (5, 5, 10)] {
        assert!(is_good(judged, gave_up, too_large), "{judged}, {gave_up}, {too_large}");
    }
    for (judged, gave_up, too_large) in [(0, 1, 0), (0, 0, 1), (1, 2, 0), (1, 0, 4), (1, 49, 0)] {
        assert!(!is_good(judged, gave_up, too_large), "{judged}, {gave_up}, {too_large}");
    }
}

#[test]
fn trees_are_judged_apart_unless_something_moves_between_them() {
    let rename = |source: &str, target: &str| Op {
        process: 0,
        call: Call::Rename { source: source.into(), target: target.into(), replace: false },
        called_at_ns: 1,
        returned_at_ns: Some(2),
        outcome: Outcome::Fail { reason: "no".into() },
    };
    let operations =
        [rename("/a/x", "/a/y"), rename("/b/x", "/c/x"), rename("/d/x", "/d"), rename("/c/y", "/e/y")];
    let trees = trees(&operations);
    let sizes: Vec<usize> = trees.values().map(Vec::len).collect();
    assert_eq!(sizes, [1, 2, 1]);
}

#[test]
fn a_doubt_of_the_replay_is_settled_by_the_search() {
    // Two unknown outcomes of which the replay takes the wrong one: of what is in a copy the ids are not known.
    let op = |called, returned: Option<u64>, call, outcome| Op {
        process: 0,
        call,
        called_at_ns: called,
        returned_at_ns: returned,
        outcome,
    };
    let info = || Outcome::Info { reason: "?".into() };
    let mkdir = |path: &str| Call::Mkdir { path: path.into() };
    let entry = |name: &str, id| Entry { name: name.into(), id, directory: true };
    let ok = |rev, entries| Outcome::Ok { value: Reply { rev, entries } };
    let rename = Call::Rename { source: "/t/c/x".into(), target: "/t/c/z".into(), replace: false };
    let copy = Call::Snapshot { source: "/t/s".into(), target: "/t/c".into() };
    let operations = [
        op(1, Some(2), mkdir("/t"), ok(1, vec![entry("t", 1)])),
        op(3, Some(4), mkdir("/t/s"), ok(2, vec![entry("s", 2)])),
        op(5, Some(6), mkdir("/t/s/x"), ok(3, vec![entry("x", 3)])),
        op(7, Some(8), copy, ok(4, vec![entry("c", 4)])),
        op(9, None, mkdir("/t/c/z"), info()),
        op(10, None, rename, info()),
        op(11, Some(12), Call::Stat { path: "/t/c/z".into(), stale: None }, ok(5, vec![entry("", 9)])),
        op(13, Some(14), Call::List { path: "/t/c".into(), stale: None }, ok(5, vec![entry("z", 9)])),
    ];
    let mut verdict = Verdict::new();
    replay_all(&operations, &mut verdict);
    assert_eq!(verdict.validity, Validity::Unknown, "{verdict:?}");
    opinion(&operations, &mut verdict);
    assert_eq!(verdict.validity, Validity::Good, "{verdict:?}");
    // What no choice explains is found, unknown outcomes or not.
    let mut worse = operations.to_vec();
    let still_there = Call::Stat { path: "/t/c/x".into(), stale: None };
    worse.push(op(15, Some(16), still_there, ok(5, vec![entry("", 9)])));
    let mut verdict = Verdict::new();
    replay_all(&worse, &mut verdict);
    opinion(&worse, &mut verdict);
    assert_eq!(verdict.validity, Validity::Bad, "{verdict:?}");
}
