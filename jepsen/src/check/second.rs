//! A second opinion on namespace histories, by search (`wgl`): it trusts no log index, so a master that counts wrong
//! can't deceive it, and where outcomes are unknown it tries all that is possible.
//!
//! Each tree below the root is judged by itself: what happens in one says nothing of another. Clients go on to new
//! trees after a while, so that each is small enough.

use std::collections::BTreeMap;

use super::namespace::Op;
use super::tree::{Call, Reply, Tree};
use super::wgl::{Item, Judgement, Limits, Model, Step, Told, search};
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// Most operations of a tree that is searched, and most of them of unknown outcome: more seldom come to an end.
const OPERATIONS_MAX: usize = 4000;
const UNKNOWN_MAX: usize = 12;
/// Of one tree.
const LIMITS: Limits = Limits { steps: 300_000, remembered: 200_000 };
/// Placements for all trees together.
const STEPS_MAX: u64 = 2_000_000;
/// Of the trees that were small enough for the search, one in so many is judged at least; and one in so many of those that it was
/// to look at, large or not. Most runs have all of both.
const TRIED_JUDGED_ONE_IN: usize = 2;
const JUDGED_ONE_IN: usize = 4;
/// Operations named of what blocks a history.
const NAMED: usize = 6;

/// The namespace as the search sees it.
struct Namespace;

impl Model for Namespace {
    type State = Tree;
    type Call = Call;
    type Reply = Reply;

    fn step(tree: &Tree, call: &Call, told: Told<'_, Reply>) -> Step<Tree> {
        let reply = match told {
            Told::Refusal => return if tree.refuses(call) { Step::Same } else { Step::Misfit },
            Told::Answer(reply) => Some(reply),
            Told::Unknown => None,
        };
        if !call.changes() && tree.look(call, reply).is_ok_and(|learnt| learnt.is_empty()) {
            return Step::Same;
        }
        let mut next = tree.clone();
        match next.apply(call, reply) {
            Err(_) => Step::Misfit,
            Ok(()) if next == *tree => Step::Same,
            Ok(()) => Step::To(next),
        }
    }
}

/// The top-level names of a call; empty for the root.
pub(crate) fn tops(call: &Call) -> Vec<&str> {
    let top = |path: &str| path.trim_start_matches('/').split('/').next().map_or(0, str::len);
    let (first, second) = call.paths();
    [Some(first), second]
        .into_iter()
        .flatten()
        .map(|path| path.get(1..=top(path)).unwrap_or_default())
        .collect()
}

/// What was found out about all trees.
#[derive(Default)]
struct Tally {
    judged: usize,
    gave_up: usize,
    too_large: usize,
    /// After the steps for all trees were used up: a long run has more than can be searched.
    left_over: usize,
    illegal: Vec<String>,
}

impl Tally {
    /// A second opinion on little of what was done is none.
    fn doubt_if_few(&self, verdict: &mut Verdict) {
        let Self { judged, gave_up, too_large, .. } = *self;
        let (tried, met) = (judged + gave_up, judged + gave_up + too_large);
        if judged * TRIED_JUDGED_ONE_IN < tried || judged * JUDGED_ONE_IN < met {
            verdict.doubt(format!(
                "second opinion on too little: {judged} trees judged, {gave_up} given up, {too_large} too large"
            ));
        }
    }
}

/// Judges every tree that is small enough; settles what the replay could not tell, and disagrees where it must.
pub(crate) fn opinion(operations: &[Op], verdict: &mut Verdict) {
    let mut tally = Tally::default();
    let mut steps = 0;
    for (top, tree) in trees(operations) {
        let unknown = tree.iter().filter(|operation| operation.returned_at_ns.is_none()).count();
        if steps > STEPS_MAX {
            tally.left_over += 1;
            continue;
        }
        if tree.len() > OPERATIONS_MAX || unknown > UNKNOWN_MAX {
            tally.too_large += 1;
            continue;
        }
        let (judgement, items) = judge(&tree, LIMITS, &mut steps);
        match judgement {
            Judgement::Linearizable => tally.judged += 1,
            Judgement::GaveUp => tally.gave_up += 1,
            Judgement::Illegal { prefix, blocking } => {
                tally.judged += 1;
                let named: Vec<String> =
                    blocking.iter().take(NAMED).map(|index| tell(items[*index])).collect();
                let (placed, all) = (prefix.len(), items.len());
                tally.illegal.push(format!(
                    "not linearizable: tree {top:?}, {placed} of {all} operations can be placed; then none of {}",
                    named.join("; ")
                ));
            }
        }
    }
    tally.doubt_if_few(verdict);
    let Tally { judged, gave_up, too_large, left_over, illegal } = tally;
    verdict.note(format!(
        "second opinion: {judged} trees judged in {steps} steps, {gave_up} given up, {too_large} too large, {left_over} left over"
    ));
    for (what, trees) in [("trees.judged", judged), ("trees.not-judged", gave_up + too_large + left_over)] {
        if trees > 0 {
            verdict.count(what, trees as u64);
        }
    }
    let agreed = illegal.is_empty();
    illegal.into_iter().for_each(|what| verdict.finding(what));
    let all_searched = operations.iter().all(is_searched);
    if agreed && all_searched && gave_up + too_large + left_over == 0 {
        // Every answer of every tree has an explanation, whatever became of the unknown ones.
        verdict.settle("the search found an order");
    }
}

fn tell(operation: &Op) -> String {
    let outcome = match &operation.outcome {
        Outcome::Ok { value } => format!("{value:?}"),
        Outcome::Fail { reason } | Outcome::Info { reason } => reason.clone(),
    };
    format!("{:?} called at {} -> {outcome}", operation.call, operation.called_at_ns)
}

/// Searches one tree; the operations that were searched, by index.
fn judge<'a>(tree: &[&'a Op], limits: Limits, steps: &mut u64) -> (Judgement, Vec<&'a Op>) {
    let told = |operation: &'a Op| match &operation.outcome {
        Outcome::Ok { value } => Told::Answer(value),
        Outcome::Fail { .. } => Told::Refusal,
        Outcome::Info { .. } => Told::Unknown,
    };
    // A lookup without an answer says nothing.
    let searched: Vec<&Op> = tree
        .iter()
        .copied()
        .filter(|operation| operation.call.changes() || operation.returned_at_ns.is_some())
        .collect();
    let items: Vec<Item<'_, Namespace>> = searched
        .iter()
        .copied()
        .map(|operation| Item {
            call: &operation.call,
            told: told(operation),
            called: operation.called_at_ns,
            returned: operation.returned_at_ns,
        })
        .collect();
    (search(&items, limits, steps), searched)
}

/// The operations by tree; trees between which something was moved are one. What names the root, and lookups that
/// may be old, are the replay's alone.
fn trees(operations: &[Op]) -> BTreeMap<&str, Vec<&Op>> {
    let plain =
        || operations.iter().filter(|op| is_searched(op)).map(|operation| (operation, tops(&operation.call)));
    // Each name with one that stands for it.
    let mut stands: BTreeMap<&str, &str> = BTreeMap::new();
    for (_, tops) in plain() {
        let roots: Vec<&str> = tops.iter().map(|top| root(&stands, top)).collect();
        let Some(first) = roots.first().copied() else { continue };
        stands.entry(first).or_insert(first);
        for other in roots {
            stands.insert(other, first);
        }
    }
    let mut trees: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for (operation, tops) in plain() {
        if let Some(top) = tops.first() {
            trees.entry(root(&stands, top)).or_default().push(operation);
        }
    }
    trees
}

fn is_searched(operation: &Op) -> bool {
    operation.call.stale().is_none() && !tops(&operation.call).contains(&"")
}

fn root<'a>(stands: &BTreeMap<&'a str, &'a str>, top: &'a str) -> &'a str {
    let mut here = top;
    while let Some(next) = stands.get(here).filter(|next| **next != here) {
        here = next;
    }
    here
}

#[cfg(test)]
mod tests;
