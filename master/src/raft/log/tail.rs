//! The extent of the log and its newest entries, in memory: what is appended can be read at once.

use std::collections::VecDeque;
use std::io;

use openraft::EntryPayload;

use crate::raft::codec;
use crate::raft::types::{Entry, LogId};

/// Bytes of entries that stay in memory after they are written; unwritten ones always do.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// What an entry costs beside its payload.
const ENTRY_BYTES: usize = 96;

/// The newest entries `first_cached..=last`, and where the log begins and ends.
#[derive(Debug)]
pub(crate) struct Tail {
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Entries below this index are written as they are now.
    written: u64,
    /// Raised by each truncation: an older write says nothing about the entries there now.
    generation: u64,
}

/// The index after this position.
pub(crate) fn next_index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn cost(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(operation) => ENTRY_BYTES + operation.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_BYTES,
    }
}

impl Tail {
    /// A log as found on the disk, with nothing in memory.
    pub(crate) fn new(purged: Option<LogId>, last: Option<LogId>) -> Self {
        let written = next_index(last);
        Self { purged, last, entries: VecDeque::new(), bytes: 0, written, generation: 0 }
    }

    /// The last entry that is gone.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }
    /// The last entry.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last
    }
    /// The first entry that is in memory; all after it are too.
    pub(crate) fn first_cached(&self) -> u64 {
        self.entries.front().map_or_else(|| next_index(self.last), |entry| entry.log_id.index)
    }

    /// Takes new entries; returns the generation they belong to.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> io::Result<u64> {
        for entry in entries {
            // An empty log may begin anywhere: openraft has reasons of its own there.
            let expected = self.last.map_or(entry.log_id.index, |last| last.index + 1);
            if entry.log_id.index != expected {
                return Err(codec::invalid(&format!(
                    "entry {} does not follow {:?}",
                    entry.log_id, self.last
                )));
            }
            self.bytes += cost(&entry);
            self.last = Some(entry.log_id);
            self.entries.push_back(entry);
        }
        Ok(self.generation)
    }

    /// Forgets the entries after `last`; returns the range of indexes to delete, if it has any.
    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) -> Option<(u64, u64)> {
        let (from, until) = (next_index(last), next_index(self.last));
        if from >= until {
            return None;
        }
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.log_id.index >= from) {
            self.bytes -= cost(&entry);
        }
        self.last = last.max(self.purged);
        self.written = self.written.min(from);
        self.generation += 1;
        Some((from, until))
    }

    /// Forgets the entries up to `id`; returns the first index to delete, if anything changes.
    pub(crate) fn purge(&mut self, id: LogId) -> Option<u64> {
        if self.purged >= Some(id) {
            return None;
        }
        let from = next_index(self.purged);
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.log_id.index <= id.index) {
            self.bytes -= cost(&entry);
        }
        self.purged = Some(id);
        if next_index(self.last) <= id.index + 1 {
            self.last = Some(id);
        }
        self.written = self.written.max(id.index + 1);
        Some(from)
    }

    /// Everything of this generation below `next` is on its way to the disk by way of RocksDB: from now on
    /// it can be read there, and memory may let go of it.
    pub(crate) fn mark_written(&mut self, generation: u64, next: u64) {
        if generation == self.generation {
            self.written = self.written.max(next);
        }
        while self.bytes > CACHE_BYTES_MAX
            && let Some(entry) = self.entries.pop_front_if(|entry| entry.log_id.index < self.written)
        {
            self.bytes -= cost(&entry);
        }
    }

    /// The entries in memory with `from <= index < until`.
    pub(crate) fn cached(&self, from: u64, until: u64) -> impl Iterator<Item = &Entry> {
        let first = self.first_cached();
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        self.entries.iter().skip(skip).take_while(move |entry| entry.log_id.index < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{LogLeader, Operation};

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        let log_id = LogId::new(LogLeader::new(term), index);
        Entry { log_id, payload: EntryPayload::Normal(Operation(vec![0; bytes].into())) }
    }

    #[test]
    fn an_unwritten_entry_never_leaves_memory_and_an_old_write_says_nothing_about_a_new_entry() {
        let mut tail = Tail::new(None, None);
        let big = CACHE_BYTES_MAX / 2;
        let old = tail.append(vec![entry(1, 0, big), entry(1, 1, big), entry(1, 2, big)]).unwrap();
        tail.mark_written(old, 0);
        assert_eq!(tail.first_cached(), 0);
        assert_eq!(tail.truncate_after(Some(entry(1, 0, 0).log_id)), Some((1, 3)));
        let new = tail.append(vec![entry(2, 1, big), entry(2, 2, big)]).unwrap();
        tail.mark_written(old, 3);
        assert_eq!(tail.cached(0, 9).count(), 3);
        tail.mark_written(new, 2);
        assert_eq!(tail.first_cached(), 2);
    }

    #[test]
    fn a_gap_is_refused_and_a_purge_beyond_the_end_moves_the_end() {
        let mut tail = Tail::new(None, None);
        tail.append(vec![entry(1, 0, 1)]).unwrap();
        assert!(tail.append(vec![entry(1, 2, 1)]).is_err());
        assert_eq!(tail.purge(entry(1, 7, 0).log_id), Some(0));
        assert_eq!((tail.last().map(|id| id.index), tail.first_cached()), (Some(7), 8));
        assert_eq!(tail.purge(entry(1, 7, 0).log_id), None);
        tail.append(vec![entry(1, 8, 1)]).unwrap();
        assert_eq!(tail.cached(8, 9).count(), 1);
    }
}
