//! The checkers: pure functions from a history to a verdict.

pub(crate) mod append;
pub(crate) mod bank;
pub(crate) mod cells;
pub(crate) mod lease;
pub(crate) mod namespace;
mod second;
pub(crate) mod snapshot;
pub(crate) mod trash;
pub(crate) mod tree;
mod wgl;

use crate::history::Operation;
use crate::outcome::Outcome;
use crate::verdict::Verdict;

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

/// Counts the outcomes of operations.
fn count<'a, C: 'a, R: 'a>(verdict: &mut Verdict, operations: impl IntoIterator<Item = &'a Operation<C, R>>) {
    for operation in operations {
        match operation.outcome {
            Outcome::Ok { .. } => verdict.ok += 1,
            Outcome::Fail { .. } => verdict.failed += 1,
            Outcome::Info { .. } => verdict.unknown += 1,
        }
    }
}
