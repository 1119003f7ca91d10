//! What is told of the replicas: every change is noted once, and each master is sent what it has not seen. Pure.

use std::collections::BTreeMap;

use gfs_proto::id::ChunkHandle;

use crate::replica::Generation;

/// Most removed replicas that are remembered; a master that is further behind gets a full report.
const REMOVED_MAX: usize = 100_000;

/// Which replicas changed, in the order of their last change.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    last: Generation,
    /// Up to here removals have been forgotten.
    floor: Generation,
    by_chunk: BTreeMap<ChunkHandle, Generation>,
    by_age: BTreeMap<Generation, (ChunkHandle, Change)>,
    removed: usize,
}

/// How a replica changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// It is there; what it holds is told as it is when the report is made.
    Changed,
    /// It is gone.
    Removed,
}

impl Journal {
    /// The last change noted.
    pub(crate) fn last(&self) -> Generation {
        self.last
    }

    /// Notes a change, after it was made.
    pub(crate) fn note(&mut self, handle: ChunkHandle, change: Change) -> Generation {
        self.last = Generation(self.last.0 + 1);
        if let Some(before) = self.by_chunk.insert(handle, self.last) {
            self.forget(before);
        }
        self.by_age.insert(self.last, (handle, change));
        self.removed += usize::from(change == Change::Removed);
        while self.removed > REMOVED_MAX {
            let oldest = self.by_age.iter().find(|(_, (_, change))| *change == Change::Removed);
            let Some((&generation, &(handle, _))) = oldest else { break };
            self.forget(generation);
            self.by_chunk.remove(&handle);
            self.floor = self.floor.max(generation);
        }
        self.last
    }

    fn forget(&mut self, generation: Generation) {
        if let Some((_, Change::Removed)) = self.by_age.remove(&generation) {
            self.removed -= 1;
        }
    }

    /// The changes after a generation, at most `limit`, and the generation that they reach up to; `None` if some have been
    /// forgotten.
    pub(crate) fn since(
        &self,
        seen: Generation,
        limit: usize,
    ) -> Option<(Vec<(ChunkHandle, Change)>, Generation)> {
        if seen < self.floor {
            return None;
        }
        let after = Generation(seen.0 + 1);
        let mut reached = self.last;
        let mut changes = Vec::new();
        for (generation, change) in self.by_age.range(after..) {
            if changes.len() == limit {
                break;
            }
            reached = *generation;
            changes.push(*change);
        }
        if changes.len() < limit {
            reached = self.last;
        }
        Some((changes, reached))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(raw: u64) -> ChunkHandle {
        ChunkHandle::from_raw(raw)
    }

    #[test]
    fn a_master_gets_each_change_once_and_only_the_last_one_of_a_chunk() {
        let mut journal = Journal::default();
        for raw in [1, 2, 1, 3] {
            journal.note(chunk(raw), Change::Changed);
        }
        journal.note(chunk(2), Change::Removed);
        let (first, reached) = journal.since(Generation::default(), 2).unwrap();
        assert_eq!(first, [(chunk(1), Change::Changed), (chunk(3), Change::Changed)]);
        let (rest, reached) = journal.since(reached, 2).unwrap();
        assert_eq!((rest, reached), (vec![(chunk(2), Change::Removed)], journal.last()));
        assert_eq!(journal.since(reached, 2).unwrap().0, []);
    }

    #[test]
    fn who_missed_forgotten_removals_is_told_so() {
        let mut journal = Journal::default();
        for raw in 0..=REMOVED_MAX as u64 {
            journal.note(chunk(raw), Change::Removed);
        }
        assert_eq!(journal.since(Generation::default(), 1), None);
        assert!(journal.since(Generation(1), 1).is_some());
        assert_eq!(journal.by_chunk.len(), REMOVED_MAX);
    }
}
