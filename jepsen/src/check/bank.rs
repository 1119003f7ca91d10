//! Judges a bank: as any namespace history, and by what its books must say, without any log index.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::namespace::{Op, judge_text};
use super::tree::{Call, Entry};
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// Directories between which tokens move.
pub(crate) const SIDES: [&str; 2] = ["left", "right"];
/// Tokens of a bank: each has its number as name, wherever it is.
pub(crate) const TOKENS: usize = 8;

/// So many moves and lists of tokens come with an audit, as certainly as it matters: clients draw one for every twelfth.
const MOVES_WITH_AUDIT: usize = 150;

/// Judges a history of a bank.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    let operations = judge_text(text, &mut verdict)?;
    check_books(&operations, &mut verdict);
    Ok(verdict)
}

/// Every audit, which is a snapshot, has each token once; no list has one twice.
fn check_books(operations: &[Op], verdict: &mut Verdict) {
    // By audit: the tokens of the sides that were listed.
    let mut audits: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    let mut audited = 0;
    for operation in operations {
        let (Call::List { path, .. }, Outcome::Ok { value }) = (&operation.call, &operation.outcome) else {
            continue;
        };
        let Some((parent, side)) = path.rsplit_once('/').filter(|(_, side)| SIDES.contains(side)) else {
            continue;
        };
        let names: BTreeSet<&str> = value.entries.iter().map(|entry: &Entry| entry.name.as_str()).collect();
        let ids: BTreeSet<u64> = value.entries.iter().map(|entry| entry.id).collect();
        if names.len() < value.entries.len() || ids.len() < value.entries.len() {
            verdict.finding(format!("forged: a token is in {path} twice: {:?}", value.entries));
        }
        if !parent.contains("/audit-") {
            continue;
        }
        let sides = audits.entry(parent).or_default();
        sides.insert(side, names);
        if sides.len() < SIDES.len() {
            continue;
        }
        audited += 1;
        let total: usize = sides.values().map(BTreeSet::len).sum();
        let all: BTreeSet<&str> = sides.values().flatten().copied().collect();
        if total != TOKENS || all.len() != TOKENS {
            verdict.finding(format!(
                "torn: the snapshot {parent} has {total} tokens, {} of them different: {sides:?}",
                all.len()
            ));
        }
    }
    verdict.note(format!("{audited} audits"));
    let moves = operations.iter().filter(|operation| is_move(operation)).count();
    if audited == 0 && moves >= MOVES_WITH_AUDIT {
        verdict.doubt(format!("no audit was told of, and {moves} moves and lists of tokens"));
    }
}

/// Whether an operation has moved or listed tokens of a bank that was founded.
fn is_move(operation: &Op) -> bool {
    let (path, _) = operation.call.paths();
    let moves = matches!(operation.call, Call::Rename { .. } | Call::List { .. }) && path.contains("/bank/");
    moves && matches!(operation.outcome, Outcome::Ok { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tree::Reply;

    /// Two lists of a snapshot with these tokens.
    fn audit(left: &[usize], right: &[usize]) -> Verdict {
        let list = |side: &str, tokens: &[usize]| Op {
            process: 0,
            call: Call::List { path: format!("/b0/audit-1/{side}"), stale: None },
            called_at_ns: 1,
            returned_at_ns: Some(2),
            outcome: Outcome::Ok {
                value: Reply {
                    rev: 1,
                    entries: tokens
                        .iter()
                        .map(|token| Entry {
                            name: token.to_string(),
                            id: 1 + *token as u64,
                            directory: false,
                        })
                        .collect(),
                },
            },
        };
        let mut verdict = Verdict::new();
        check_books(&[list("left", left), list("right", right)], &mut verdict);
        verdict
    }

    #[test]
    fn a_bank_at_work_without_an_audit_is_doubted() {
        let list = |path: &str| Op {
            process: 0,
            call: Call::List { path: path.to_owned(), stale: None },
            called_at_ns: 1,
            returned_at_ns: Some(2),
            outcome: Outcome::Ok { value: Reply { rev: 1, entries: Vec::new() } },
        };
        for (path, count, good) in [
            ("/b0/bank/left", MOVES_WITH_AUDIT, false),
            ("/b0/bank/left", MOVES_WITH_AUDIT - 1, true),
            ("/b0/aside/left", MOVES_WITH_AUDIT, true),
        ] {
            let mut verdict = Verdict::new();
            check_books(&vec![list(path); count], &mut verdict);
            assert_eq!(verdict.is_good(), good, "{path} {count} {verdict:?}");
        }
    }

    #[test]
    fn books_that_balance_are_good_and_others_are_found() {
        assert!(audit(&[0, 1, 2, 3, 4, 5, 6, 7], &[]).is_good());
        assert!(audit(&[0, 7], &[1, 2, 3, 4, 5, 6]).is_good());
        for (word, left, right) in [
            ("torn", &[0, 1, 2][..], &[3, 4, 5, 6][..]),
            ("torn", &[0, 1, 2, 3], &[3, 4, 5, 6, 7]),
            ("torn", &[0, 1, 2, 3], &[3, 4, 5, 6]),
            ("forged", &[0, 1, 1, 2], &[3, 4, 5, 6]),
        ] {
            let verdict = audit(left, right);
            assert!(verdict.findings[0].starts_with(word), "{verdict:?}");
        }
    }
}
