//! Reads of the state: as of one entry for readers, and as it is for the one who applies.

use std::sync::Arc;

use gfs_proto::id::LogIndex;
use gfs_proto::{Error, Result};
use rocksdb::{DB, DBIteratorWithThreadMode, Direction, IteratorMode, ReadOptions, Snapshot};

use super::{KEY_APPLIED, Live, RAFT};
use crate::raft::codec::{self, LogIdRow};
use crate::raft::poison::Poison;
use crate::raft::types::LogId;
use crate::state::{Row, Table, View};

struct Pinned<'a>(Snapshot<'a>);

self_cell::self_cell!(
    /// A database and a snapshot of it, which borrows from it.
    struct PinnedLive {
        owner: Arc<Live>,
        #[not_covariant]
        dependent: Pinned,
    }
);

/// The state as of one log index; later entries don't show.
pub struct ReadView {
    pinned: PinnedLive,
    poison: Arc<Poison>,
}

impl std::fmt::Debug for ReadView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadView({})", self.applied())
    }
}

impl ReadView {
    pub(super) fn new(live: Arc<Live>, poison: Arc<Poison>) -> Self {
        Self { pinned: PinnedLive::new(live, |live| Pinned(live.db.snapshot())), poison }
    }

    /// The last entry that it contains; 0 for an empty state.
    pub fn applied(&self) -> LogIndex {
        let row = self.pinned.with_dependent(|live, pinned| {
            let raft = live.db.cf_handle(RAFT)?;
            answer(pinned.0.get_cf(raft, KEY_APPLIED), &self.poison).flatten()
        });
        let id = row.and_then(|row| answer(codec::from_disk::<LogIdRow>(row), &self.poison));
        LogIndex::from_raw(id.map_or(0, |id| LogId::from(id).index))
    }

    /// Checks that no read so far failed: call it before an answer leaves the process.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the disk failed.
    pub fn check(&self) -> Result<()> {
        self.poison.check().map_err(Error::unavailable)
    }
}

/// The value; a failure is remembered.
fn answer<T, E: std::fmt::Display>(result: Result<T, E>, poison: &Poison) -> Option<T> {
    poison.watch_result(result).ok()
}

fn bounded(until: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(until);
    options
}

fn rows(iterator: DBIteratorWithThreadMode<'_, DB>, limit: usize, poison: &Poison) -> Vec<Row> {
    let rows = iterator.take(limit).map_while(|row| answer(row, poison));
    rows.map(|(key, value)| (key.into_vec(), value.into_vec())).collect()
}

impl View for ReadView {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.pinned.with_dependent(|live, pinned| {
            let family = live.db.cf_handle(table.name())?;
            answer(pinned.0.get_cf(family, key), &self.poison).flatten()
        })
    }

    fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row> {
        if from >= until {
            return Vec::new();
        }
        self.pinned.with_dependent(|live, pinned| {
            let Some(family) = live.db.cf_handle(table.name()) else { return Vec::new() };
            let mode = IteratorMode::From(from, Direction::Forward);
            rows(pinned.0.iterator_cf_opt(family, bounded(until), mode), limit, &self.poison)
        })
    }
}

/// The state as it is: for the machine, the only one who writes.
pub(crate) struct Direct<'a> {
    pub(crate) live: &'a Live,
    pub(crate) poison: &'a Poison,
}

impl View for Direct<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let family = self.live.db.cf_handle(table.name())?;
        answer(self.live.db.get_cf(family, key), self.poison).flatten()
    }

    fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row> {
        if from >= until {
            return Vec::new();
        }
        let Some(family) = self.live.db.cf_handle(table.name()) else { return Vec::new() };
        let mode = IteratorMode::From(from, Direction::Forward);
        rows(self.live.db.iterator_cf_opt(family, bounded(until), mode), limit, self.poison)
    }
}
