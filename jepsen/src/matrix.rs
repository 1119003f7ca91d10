//! Which runs a matrix has.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::nemesis::{FAULTS, Needs};

/// The mixes of faults of a matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mixes {
    /// Those to be run with each workload; the empty one is no fault.
    pub runs: Vec<Vec<String>>,
    /// Those of which nothing can be done here.
    pub left_out: Vec<Vec<String>>,
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
