//! What the faults of a run have done, counted when it is done: one that begins may not come to it before the run is over, or find
//! nothing to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

/// What the counts of faults that have struck begin with.
pub(crate) const STRUCK: &str = "faults.";

/// The deeds of a run.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// How often what was done, for the verdict.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Told at every strike; remembers one that nobody was waiting for.
    pub(crate) struck: Arc<Notify>,
    /// The fault that is at work, and whether it has struck.
    at_work: Option<(&'static str, bool)>,
}

impl Deeds {
    pub(super) fn begin(&mut self, fault: &'static str) {
        self.at_work = Some((fault, false));
    }

    /// The fault at work does what it is there for; it counts once, however often.
    pub(super) fn strike(&mut self) {
        if let Some((fault, struck @ false)) = &mut self.at_work {
            *struck = true;
            let what = format!("{STRUCK}{fault}");
            self.count(&what, 1);
            self.struck.notify_one();
        }
    }

    /// No fault is at work any more; the one that was, if it has not struck.
    pub(super) fn end(&mut self) -> Option<&'static str> {
        let (fault, _) = self.at_work.take().filter(|(_, struck)| !struck)?;
        self.count(&format!("idle.{fault}"), 1);
        Some(fault)
    }

    pub(super) fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }

    /// Faults that began and did not strike.
    pub(crate) fn idle(&self) -> Vec<&str> {
        self.counts.keys().filter_map(|what| what.strip_prefix("idle.")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_counts_when_it_strikes_and_once() {
        let mut deeds = Deeds::default();
        deeds.begin("storm");
        deeds.strike();
        deeds.strike();
        assert_eq!(deeds.end(), None);
        deeds.begin("replace");
        assert_eq!(deeds.end(), Some("replace"), "the run was over before");
        deeds.begin("storm");
        deeds.strike();
        // What heals is no fault.
        assert_eq!((deeds.end(), deeds.end()), (None, None));
        deeds.strike();
        assert_eq!(deeds.idle(), ["replace"]);
        let counts: Vec<_> = deeds.counts.iter().map(|(what, times)| (what.as_str(), *times)).collect();
        assert_eq!(counts, [("faults.storm", 2), ("idle.replace", 1)]);
    }
}
