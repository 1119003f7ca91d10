//! Which runs a matrix has.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use crate::nemesis::{FAULTS, Needs, STRUCK};
use crate::runner::Plan;
use crate::verdict::Verdict;
use crate::workload::WORKLOADS;

/// The mixes of faults of a matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mixes {
    /// Those to be run with each workload; the empty one is no fault.
    pub runs: Vec<Vec<String>>,
    /// Those of which nothing can be done here.
    pub left_out: Vec<Vec<String>>,
}

/// Clients of each run.
const CLIENTS: u64 = 8;

/// The runs of a matrix: every workload under every mix, each with dice of its own, so that no two workloads meet the same faults.
pub fn cells(mixes: &[Vec<String>], time_ms: u64, seed: u64) -> impl Iterator<Item = Plan> {
    let pairs = WORKLOADS.iter().flat_map(move |workload| mixes.iter().map(move |mix| (workload, mix)));
    (0..).zip(pairs).map(move |(number, (workload, mix))| Plan {
        workload: workload.name.into(),
        nemesis: mix.clone(),
        time_ms,
        seed: seed.wrapping_add(number),
        clients: CLIENTS,
        operations: None,
    })
}

/// Which of the faults of a matrix have struck.
#[derive(Clone, Debug, Default)]
pub struct Strikes {
    wanted: BTreeSet<String>,
    struck: BTreeMap<String, u64>,
}

impl Strikes {
    /// Of no run yet; with what was to strike all the same.
    pub fn of(left_out: &[Vec<String>]) -> Self {
        Self { wanted: left_out.concat().into_iter().collect(), struck: BTreeMap::new() }
    }

    /// These are to strike.
    pub fn expect(&mut self, mix: &[String]) {
        self.wanted.extend(mix.iter().cloned());
    }

    /// Adds what has struck in a run.
    pub fn add(&mut self, verdict: &Verdict) {
        for (what, times) in &verdict.counts {
            if let Some(fault) = what.strip_prefix(STRUCK) {
                *self.struck.entry(fault.to_owned()).or_default() += times;
            }
        }
    }

    /// How often each has struck, and those that never did; nothing if none was to.
    pub fn lines(&self) -> Vec<String> {
        let struck: Vec<_> = self.struck.iter().map(|(fault, times)| format!("{fault} {times}")).collect();
        let never = self.wanted.iter().filter(|fault| !self.struck.contains_key(*fault));
        let never: Vec<_> = never.map(String::as_str).collect();
        let line = |head: &str, list: String| (!list.is_empty()).then(|| format!("{head}: {list}"));
        let lines = [line("struck", struck.join(", ")), line("never struck", never.join(", "))];
        lines.into_iter().flatten().collect()
    }
}

/// The mixes that were asked for, each joined by `+`. If none was: no fault, each, and all that are promised to be survived
/// and can be had here.
///
/// # Errors
/// A fault has no such name.
pub fn mixes(asked: &[String], has: impl Fn(Needs) -> bool) -> Result<Mixes> {
    let possible: BTreeSet<&str> =
        FAULTS.iter().filter(|fault| has(fault.needs)).map(|fault| fault.name).collect();
    if asked.is_empty() {
        let promised = FAULTS.iter().filter(|fault| !fault.beyond_promise && possible.contains(fault.name));
        let all: Vec<String> = promised.map(|fault| fault.name.to_owned()).collect();
        let each = all.iter().map(|name| vec![name.clone()]);
        let runs = std::iter::once(vec![]).chain(each).chain([all.clone()]).collect();
        return Ok(Mixes { runs, left_out: Vec::new() });
    }
    let mut mixes = Mixes::default();
    for mix in asked {
        let names: Vec<String> = mix.split('+').filter(|name| *name != "none").map(str::to_owned).collect();
        for name in &names {
            ensure!(FAULTS.iter().any(|fault| fault.name == name), "no fault {name:?} in the mix {mix:?}");
        }
        let can = names.is_empty() || names.iter().any(|name| possible.contains(name.as_str()));
        if can { mixes.runs.push(names) } else { mixes.left_out.push(names) }
    }
    Ok(mixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(mixes: &[&str]) -> Vec<String> {
        mixes.iter().map(|mix| (*mix).to_owned()).collect()
    }

    #[test]
    fn every_cell_has_a_seed_of_its_own() {
        let plans: Vec<Plan> = cells(&[vec![], asked(&["kill"])], 7000, u64::MAX).collect();
        assert_eq!(plans.len(), 2 * WORKLOADS.len());
        let seeds: BTreeSet<u64> = plans.iter().map(|plan| plan.seed).collect();
        assert_eq!(seeds.len(), plans.len());
        assert_eq!((plans[0].seed, plans[1].seed, &*plans[1].nemesis[0]), (u64::MAX, 0, "kill"));
    }

    #[test]
    fn what_never_struck_is_told_also_if_it_was_left_out() {
        let mut strikes = Strikes::of(&[asked(&["power"])]);
        assert!(Strikes::default().lines().is_empty(), "nothing was to strike");
        strikes.expect(&asked(&["kill", "cut"]));
        for (what, times) in [("faults.kill", 2), ("idle.cut", 1), ("writes", 9)] {
            let mut verdict = Verdict::new();
            verdict.count(what, times);
            strikes.add(&verdict);
            strikes.add(&verdict);
        }
        assert_eq!(strikes.lines(), ["struck: kill 4", "never struck: cut, power"]);
    }

    #[test]
    fn a_name_that_no_fault_has_is_no_mix() {
        for bad in ["kil", "kill+", "", "kill,pause"] {
            assert!(mixes(&asked(&[bad]), |_| true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mix_is_left_out_only_if_nothing_of_it_can_be_done() {
        let without_network = |needs| needs != Needs::Network;
        let got = mixes(&asked(&["none", "kill+cut", "cut+halves"]), without_network).unwrap();
        assert_eq!(got.runs, [vec![], asked(&["kill", "cut"])]);
        assert_eq!(got.left_out, [asked(&["cut", "halves"])]);
    }

    #[test]
    fn without_a_wish_there_is_no_fault_each_and_all() {
        let got = mixes(&[], |needs| needs == Needs::Nothing).unwrap();
        let plain = FAULTS.iter().filter(|fault| fault.needs == Needs::Nothing).count();
        assert_eq!((got.runs.len(), got.runs[0].len()), (plain + 2, 0));
        assert_eq!(got.runs[plain + 1].len(), plain);
        let all = mixes(&[], |_| true).unwrap();
        assert!(!all.runs.concat().contains(&"clock-beyond".to_owned()));
    }
}
