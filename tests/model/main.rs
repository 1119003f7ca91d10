//! A model checker for the chunk protocol: grants in two commits, reconcile, fences, all-members acknowledgement, reads from
//! any replica, exactly-once record append, chunk change, snapshot with copy on write. Explicit states, breadth first, so the
//! trace of a failure is a shortest one. Needs nothing but the standard library.
//!
//! `make model` runs all of it; by hand:
//! cargo run -p gfs-tests --bin gfs-model -- check [NAME]     the protocol as it should be, every scenario or one (`list` names them)
//!   .. bugs             every seeded bug must be caught, with the length of the shortest trace
//!   .. bug NAME         one bug, with that trace
//!   .. variants         rules changed or taken away that must not matter
//!   .. fence            when a fence has surely run out: a small model of its own, with a clock
//!   .. walk SECONDS [SEED]   random walks, longer and with more of everything
//! Exit code 0: all as expected. STATES=n bounds a search (default 150 million states, about 6 GiB), QUIET=1 hides progress.
//! On one core: check 15 minutes, bugs 2, variants 10, fence 1.
//!
//! What is modelled. The master log is one linearizable register of committed decisions (Raft is trusted); a leader change
//! wipes the leader's soft state, at any time. Messages are facts that stay for ever: each may arrive late, often, in any
//! order, or never, also after a leader change. A restart empties a chunkserver's memory; its disk stays (or, in `power`,
//! loses what was not synced). Time is one event, "the fence of this server has run out": it stops serving, and heartbeat
//! answers on their way to it are void. Guard and read are one step, and the answer is judged against all that was
//! acknowledged or read before it, the strictest legal interval. Requests may reach any active primary at any time, also
//! twice, also after their acknowledgement. Primaries accept and acknowledge without looking at a clock; no message carries a
//! leader's term. A chunk is a sequence of records (a positioned write is a record too: the content is the fold).
//!
//! What is not: checksums, disk errors, a write torn inside a record, liveness, the Raft log itself, deletion, client caches
//! other than those of copy on write.

#![allow(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "a program of its own for people to read; its numbers are a few bits wide by construction"
)]

mod config;
mod effect;
mod fence;
mod log;
mod search;
mod state;
mod step;

use std::ops::BitAnd;
use std::time::Instant;

use config::{Config, SCENARIOS, bug, config, variant};
use search::{Outcome, explore, tell, walk};

fn check(c: &Config, limit: usize) -> bool {
    let started = Instant::now();
    let Outcome { states, depth, bad, exhausted, witnesses } =
        explore(c, limit, std::env::var("QUIET").is_ok());
    let how = if exhausted { "all" } else { "bounded" };
    match &bad {
        None => println!(
            "{:<16} ok   {how} {states} states, depth {depth}, {:.0?}; {witnesses}",
            c.name,
            started.elapsed()
        ),
        Some((what, lines)) => {
            println!("{:<16} BAD  {what} after {} steps", c.name, lines.len() - 1);
            tell(lines);
        }
    }
    bad.is_none()
}

/// Looks for a seeded bug in the smallest scenarios first, a little in each, then more.
fn hunt(&(name, flags, text): &(&str, u64, &str), limit: usize, show: bool) -> bool {
    let started = Instant::now();
    let power = Config { cuts: 1, ..config("power", 0b111, 3, 1) };
    let snapshot = Config { snapshot: true, join: false, ..config("snapshot", 0b011, 3, 1) };
    let seal = Config { seal: true, ..config("seal", 0b111, 2, 2) };
    let grounds = [
        config("joiner", 0b011, 3, 1),
        config("three-members", 0b111, 3, 1),
        config("two-requests", 0b111, 2, 2),
        seal,
        power,
        snapshot,
    ];
    for limit in [30_000, 1_000_000, 6_000_000, limit] {
        for ground in grounds {
            if let Some((what, lines)) = explore(&Config { flags, ..ground }, limit, true).bad {
                println!(
                    "{name:<26} caught in {} after {} steps, {:.1?}: {what}",
                    ground.name,
                    lines.len() - 1,
                    started.elapsed()
                );
                if show {
                    println!("  the bug: {text}");
                    tell(&lines);
                }
                return true;
            }
        }
    }
    println!("{name:<26} NOT CAUGHT in {:.0?}: {text}", started.elapsed());
    false
}

/// The right rules must be safe, and so must the one rule that turned out not to matter; the others are bugs.
fn fences() -> bool {
    let rules = std::iter::once(&("right", "the rules as they should be")).chain(fence::BUGS);
    rules.fold(true, |fine, &(name, text)| {
        let (states, story) = fence::explore(name);
        let safe = story.is_none();
        println!("{name:<22} {} ({states} states): {text}", if safe { "safe" } else { "BROKEN" });
        tell(&story.unwrap_or_default());
        fine && safe == ["right", "no_lapse_check"].contains(&name)
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |i: usize| arguments.get(i).map(String::as_str);
    let wanted = |name: &str| word(1).is_none_or(|w| w == name);
    let limit = std::env::var("STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(150_000_000);
    let fine = match word(0) {
        Some("list") => {
            SCENARIOS.iter().for_each(|c| println!("{}", c.name));
            bug::ALL.iter().chain(variant::ALL).for_each(|(name, _, text)| println!("{name}: {text}"));
            true
        }
        Some("check") => {
            SCENARIOS.iter().filter(|c| wanted(c.name)).map(|c| check(c, limit)).fold(true, BitAnd::bitand)
        }
        Some("bugs") => bug::ALL.iter().map(|b| hunt(b, limit, false)).fold(true, BitAnd::bitand),
        Some("bug") => {
            bug::ALL.iter().filter(|b| wanted(b.0)).map(|b| hunt(b, limit, true)).fold(true, BitAnd::bitand)
        }
        Some("variants") => {
            variant::ALL.iter().filter(|v| wanted(v.0)).fold(true, |fine, (name, flags, text)| {
                println!("{name}: {text}");
                SCENARIOS[..3]
                    .iter()
                    .fold(fine, |fine, c| check(&Config { flags: *flags, ..*c }, limit) && fine)
            })
        }
        Some("fence") => fences(),
        Some("walk") => {
            let number = |i: usize| word(i).and_then(|w| w.parse().ok());
            walk(
                &Config { seal: true, deaths: 1, cuts: 1, ..config("walk", 0b111, 6, 3) },
                number(1).unwrap_or(60),
                number(2).unwrap_or(1),
            )
        }
        _ => {
            println!("usage: see the head of the source");
            false
        }
    };
    std::process::exit(i32::from(!fine));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeded bugs that take more than two seconds to find; `make model` looks for them too.
    const SLOW: &[&str] = &[
        "current_by_version",
        "seal_told_early",
        "next_without_asking",
        "answer_without_quorum",
        "power_cut_ignored",
        "bump_before_map",
        "partial_forgotten",
    ];

    #[test]
    fn no_scenario_goes_wrong_within_its_first_states() {
        for scenario in SCENARIOS {
            assert!(check(scenario, 100_000), "{}", scenario.name);
        }
    }

    #[test]
    fn every_guard_that_is_taken_away_is_missed() {
        for seeded in bug::ALL.iter().filter(|seeded| !SLOW.contains(&seeded.0)) {
            assert!(hunt(seeded, 1_000_000, false), "{}", seeded.0);
        }
    }

    /// `make model` also explores the right rules, all 14 million states of them.
    #[test]
    fn every_rule_of_the_fence_that_is_taken_away_is_missed() {
        for (name, text) in fence::BUGS.iter().filter(|bug| bug.0 != "no_lapse_check") {
            assert!(fence::explore(name).1.is_some(), "{text}");
        }
    }
}
