//! Judges lookups at shadows (promise P8): as any namespace history, and by whether the shadows have said anything at all.

use std::collections::BTreeMap;

use anyhow::Result;

use super::namespace::{Op, judge_text};
use crate::outcome::Outcome;
use crate::verdict::Verdict;

/// A shadow that was asked so often has answered once: it begins up to date, and no fault is there from the beginning.
const ASKED_ENOUGH: u64 = 50;
/// Of so many lookups at shadows one was answered at least.
const ANSWERED_ONE_IN: u64 = 20;

/// Judges a history of lookups at shadows.
pub(crate) fn check(text: &str) -> Result<Verdict> {
    let mut verdict = Verdict::new();
    let operations = judge_text(text, &mut verdict)?;
    check_answers(&operations, &mut verdict);
    Ok(verdict)
}

/// Shadows that answer nothing keep every promise.
fn check_answers(operations: &[Op], verdict: &mut Verdict) {
    // By shadow: lookups, and those that were answered.
    let mut shadows: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for operation in operations {
        let Some(shadow) = operation.call.stale().and_then(|stale| stale.shadow) else { continue };
        let (asked, answered) = shadows.entry(shadow).or_default();
        *asked += 1;
        *answered += u64::from(matches!(operation.outcome, Outcome::Ok { .. }));
    }
    let sum = |of: fn(&(u64, u64)) -> u64| shadows.values().map(of).sum::<u64>();
    let (asked, answered) = (sum(|both| both.0), sum(|both| both.1));
    if answered == 0 || answered.saturating_mul(ANSWERED_ONE_IN) < asked {
        verdict.doubt(format!("the shadows have answered {answered} of {asked} lookups"));
    }
    for (shadow, (asked, answered)) in &shadows {
        if *asked >= ASKED_ENOUGH && *answered == 0 {
            verdict.doubt(format!("shadow {shadow} has answered none of {asked} lookups"));
        }
        verdict.note(format!("shadow {shadow} has answered {answered} of {asked} lookups"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tree::{Call, Reply, Stale};

    /// Whether this is good: by shadow, how often it was asked and how often it answered.
    fn judge(shadows: &[(u32, u64, u64)]) -> bool {
        let look = |shadow, answered: bool| Op {
            process: 0,
            call: Call::Stat { path: "/a".into(), stale: Some(Stale { bound_ms: 100, floor: 0, shadow }) },
            called_at_ns: 1,
            returned_at_ns: answered.then_some(2),
            outcome: if answered {
                Outcome::Ok { value: Reply { rev: 1, entries: Vec::new() } }
            } else {
                Outcome::Info { reason: "too old".into() }
            },
        };
        let ops: Vec<Op> = shadows
            .iter()
            .flat_map(|(shadow, asked, answered)| {
                (0..*asked).map(move |number| look(Some(*shadow), number < *answered))
            })
            .chain([look(None, true)])
            .collect();
        let mut verdict = Verdict::new();
        check_answers(&ops, &mut verdict);
        assert!(verdict.findings.is_empty());
        verdict.is_good()
    }

    /// A file is made at index 10; long afterwards a shadow is asked for what is in the root, with these bounds, and answers.
    fn history(bound_ms: u64, floor: u64, rev: u64, names: &str) -> String {
        let second = 1_000_000_000;
        let event = |kind: &str, process: u64, at: u64, rest: &str| {
            format!(r#"{{"event":"{kind}","process":{process},"at_ns":{at},{rest}}}"#)
        };
        let ok = |rev: u64, entries: &str| {
            format!(r#""outcome":{{"type":"ok","value":{{"rev":{rev},"entries":[{entries}]}}}}"#)
        };
        let stale = format!(r#"{{"bound_ms":{bound_ms},"floor":{floor},"shadow":0}}"#);
        [
            event("call", 1, 1, r#""call":{"create":{"path":"/x"}}"#),
            event("return", 1, 2, &ok(10, X)),
            event("call", 2, second, &format!(r#""call":{{"list":{{"path":"/","stale":{stale}}}}}"#)),
            event("return", 2, second + 1, &ok(rev, names)),
        ]
        .join("\n")
    }
    const X: &str = r#"{"name":"x","id":1,"directory":false}"#;

    #[test]
    fn a_shadow_may_be_behind_as_far_as_it_was_told_and_no_further() {
        for good in [history(500, 10, 10, X), history(2000, 0, 9, "")] {
            let verdict = check(&good).unwrap();
            assert!(verdict.is_good(), "{good} {verdict:?}");
        }
        for (word, bad) in [
            ("old", history(500, 0, 9, "")),
            ("back", history(2000, 10, 9, "")),
            ("inexplicable", history(2000, 0, 10, "")),
        ] {
            let verdict = check(&bad).unwrap();
            let first = verdict.findings.first().map_or("", |finding| finding.split(':').next().unwrap());
            assert_eq!(first, word, "{bad} {verdict:?}");
        }
    }

    #[test]
    fn a_history_in_which_no_shadow_was_asked_is_doubted() {
        let text = history(500, 10, 10, X).replace(r#","shadow":0"#, "");
        let verdict = check(&text).unwrap();
        assert!(verdict.findings.is_empty() && !verdict.is_good(), "{verdict:?}");
    }

    #[test]
    fn shadows_that_answer_nothing_prove_nothing() {
        assert!(judge(&[(0, 100, 60), (1, 100, 5)]));
        assert!(judge(&[(0, 3, 1), (1, 2, 0)]), "too short a run to say so of one of them");
        for bad in [&[][..], &[(0, 100, 0), (1, 100, 0)], &[(0, 100, 100), (1, 100, 0)], &[(0, 100, 4)]] {
            assert!(!judge(bad), "{bad:?}");
        }
    }
}
