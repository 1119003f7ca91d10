//! Reads entries: the newest from memory, older ones from the disk.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::Stream;
use gfs_proto::net::blocking;
use openraft::storage::RaftLogReader;
use rocksdb::{Direction, IteratorMode, ReadOptions};

use super::tail::next_index;
use super::{ENTRIES, Shared, cf};
use crate::raft::codec::{self, EntryRow};
use crate::raft::types::{Entry, TypeConfig, Vote};

/// Bytes of entries in one message, or in one piece of a long read; one entry may be larger.
const PIECE_BYTES_MAX: usize = 2 << 20;

/// A reader of the log; any number of them.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The entries with `from <= index < until` that the log has, at most about `bytes_max`.
    fn read(&self, from: u64, until: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        self.shared.poison.check()?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut push = |entry: Entry| {
            bytes += size(&entry);
            let more = entries.is_empty() || bytes <= bytes_max;
            if more {
                entries.push(entry);
            }
            more
        };
        // The snapshot is taken under the lock: what the disk holds below the cached entries is then what
        // belongs below them, whatever is truncated or appended later.
        let tail = self.shared.tail.read();
        let from = from.max(next_index(tail.purged()));
        let until = until.min(next_index(tail.last()));
        let cached = tail.first_cached();
        if from < until.min(cached) {
            let snapshot = self.shared.db.snapshot();
            let newer: Vec<Entry> = tail.cached(cached, until).cloned().collect();
            drop(tail);
            let older = blocking(|| self.read_disk(&snapshot, from, until.min(cached), &mut push))?;
            if older {
                newer.into_iter().all(push);
            }
        } else if from < until {
            tail.cached(from, until).cloned().all(push);
        }
        Ok(entries)
    }

    /// Reads from the disk; false if `push` wanted no more.
    fn read_disk(
        &self,
        snapshot: &rocksdb::Snapshot<'_>,
        from: u64,
        until: u64,
        push: &mut impl FnMut(Entry) -> bool,
    ) -> io::Result<bool> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(until.to_be_bytes());
        // Seeks from the first entry that is wanted, never from the start: purged ones leave tombstones.
        let start = from.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut expected = None;
        for row in snapshot.iterator_cf_opt(cf(&self.shared.db, ENTRIES)?, options, mode) {
            let (_, value) = self.shared.poison.watch_result(row)?;
            let entry = codec::from_disk::<EntryRow>(value.into_vec())?.into_entry()?;
            let index = entry.log_id.index;
            if expected.is_some_and(|expected| expected != index) {
                return Err(self.shared.poison.set(format!("the log has a hole before entry {index}")));
            }
            expected = Some(index + 1);
            if !push(entry) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn size(entry: &Entry) -> usize {
    prost::Message::encoded_len(&EntryRow::from(entry))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let until = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, until)
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, until) = bounds(&range);
        self.read(from, until, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, PIECE_BYTES_MAX)
    }

    /// In pieces: a follower that was away may have millions of entries to apply.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, until) = bounds(&range);
        let reader = &*self;
        let pieces = futures::stream::try_unfold(from, move |from| async move {
            let entries = reader.read(from, until, PIECE_BYTES_MAX)?;
            let next = entries.last().map(|entry| entry.log_id.index + 1);
            Ok::<_, io::Error>(next.map(|next| (futures::stream::iter(entries.into_iter().map(Ok)), next)))
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.shared.poison.check()?;
        Ok(*self.shared.vote.lock())
    }
}
