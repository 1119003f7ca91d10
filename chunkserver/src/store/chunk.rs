//! One chunk in memory: what is known of it, and what of that is not on the disk yet.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, Serial};
use gfs_proto::net::blocking;
use parking_lot::{Mutex, MutexGuard};

use super::block;
use super::content::{Content, Outcome, ReplicaState};
use super::files::File;
use super::format::{Change, Meta};
use super::ticket::Completion;

/// Who holds a chunk's lock is mostly done before this: a mutation is no more than a write to the page cache.
const LOCK_PATIENCE: Duration = Duration::from_micros(100);

/// A chunk of one disk.
pub(crate) struct Chunk {
    pub(crate) handle: ChunkHandle,
    /// Held while one mutation is applied, so also while its bytes go to the page cache. The log never takes it.
    pub(crate) state: Mutex<State>,
    /// Whether its overlays are going to be looked at: one worker at a time is enough.
    pub(crate) settle_queued: AtomicBool,
    /// Held from a sync of the file until the disk has stopped, if it fails: the kernel tells one of two who sync at a time,
    /// and the other one nothing (T32). Nobody waits for the state with it.
    pub(crate) syncing: Mutex<()>,
}

/// Bytes that the log has, or will have, and the file has not: a crash in the middle of writing them to the file
/// would tear bytes that were there before.
pub(crate) struct Overlay {
    /// The file may have them when this record is durable.
    pub(crate) sequence: u64,
    pub(crate) offset: u32,
    pub(crate) data: Bytes,
}

/// What was lent of a chunk's file: handed out to be sent without the chunk's lock, while its pages could still change. It
/// must not: who receives a mixture of pages can't tell it from what it asked for (docs/decisions/0022).
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) enum Lending {
    /// Nothing.
    #[default]
    None,
    /// Blocks in this range, which have not been changed since.
    Lent(Range<u32>),
    /// The same, perhaps none, and changes of the file came after it: nothing more is lent of it.
    Over(Range<u32>),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    pub(crate) removed: bool,
    /// The file is there.
    pub(crate) created: bool,
    /// Which change of the directory made it (`Disk::sync_names`).
    pub(crate) name_change: u64,
    pub(crate) overlays: VecDeque<Overlay>,
    pub(crate) lending: Lending,
    /// The log has changes whose bytes only the file has, and no sync of the file after them.
    pub(crate) unsynced: bool,
    /// Counts the writes to the file, and how many of them a sync has covered.
    pub(crate) writes: u64,
    pub(crate) writes_synced: u64,
    /// The record that said `meta.promised`.
    pub(crate) promised_at: u64,
    /// The newest record of this chunk.
    pub(crate) last_sequence: u64,
    /// Who waits for a sync of the file, and whether somebody is on it.
    pub(crate) sync_waiters: Vec<Completion>,
    pub(crate) sync_queued: bool,
    /// The running adoption; a newer one takes its place.
    pub(crate) adoption: u64,
}

impl Chunk {
    pub(crate) fn new(handle: ChunkHandle, state: State) -> Arc<Self> {
        Arc::new(Self {
            handle,
            state: Mutex::new(state),
            settle_queued: AtomicBool::new(false),
            syncing: Mutex::default(),
        })
    }
    /// Locks the chunk for a mutation. Other tasks leave this thread if it has to wait for long.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.try_lock_for(LOCK_PATIENCE) {
            Some(state) => state,
            None => blocking(|| self.state.lock()),
        }
    }
    pub(crate) fn summary(&self) -> ReplicaState {
        self.state.lock().summary(self.handle)
    }
    /// Adds the clients after `after` whose requests are here; `all` keeps the lowest `limit`.
    pub(crate) fn clients(&self, after: ClientId, limit: usize, all: &mut BTreeSet<ClientId>) {
        self.state.lock().meta.content.requests.clients(after, limit, all);
    }
}

impl Lending {
    /// Blocks are handed out.
    pub(crate) fn lend(&mut self, blocks: Range<u32>) {
        match self {
            Self::None => *self = Self::Lent(blocks),
            Self::Lent(lent) | Self::Over(lent) => {
                *lent = lent.start.min(blocks.start)..lent.end.max(blocks.end);
            }
        }
    }

    /// Bytes that are there are about to change.
    pub(crate) fn end(&mut self) {
        *self = match std::mem::take(self) {
            Self::None => Self::Over(0..0),
            Self::Lent(lent) | Self::Over(lent) => Self::Over(lent),
        };
    }

    /// Whether one of these blocks may have been lent.
    pub(crate) fn has(&self, blocks: &Range<u32>) -> bool {
        match self {
            Self::None => false,
            Self::Lent(lent) | Self::Over(lent) => lent.start < blocks.end && blocks.start < lent.end,
        }
    }
}

impl State {
    pub(crate) fn summary(&self, handle: ChunkHandle) -> ReplicaState {
        let Meta { version, adopted, commit_mark, partial, corrupt, .. } = self.meta;
        let Content { length, serial, sealed, .. } = self.meta.content;
        ReplicaState { handle, version, adopted, length, serial, commit_mark, sealed, partial, corrupt }
    }
    pub(crate) fn length(&self) -> u32 {
        self.meta.content.length
    }
}

impl Meta {
    /// Content as a first grant or a joining member has it.
    pub(crate) fn empty(version: ChunkVersion, generation: u64) -> Self {
        Self { version, generation, ..Self::default() }
    }

    /// Changes the content as a record says: the same now and in a replay.
    pub(crate) fn apply(&mut self, change: &Change) {
        let content = &mut self.content;
        content.length = change.chunk_length;
        content.serial = change.serial;
        content.sealed = change.sealed;
        block::put_crcs(&mut content.block_crcs, change.first_block, &change.crcs);
        if let Some(request) = change.request {
            let outcome = Outcome { offset: change.offset, length: change.length };
            content.requests.record(request, change.first_unacked, outcome);
        }
        self.commit_mark = self.commit_mark.max(change.commit_mark);
        self.promised |= change.promised;
    }

    /// The file has been synced with all changes up to `through` in it.
    pub(crate) fn synced(&mut self, promised: bool) {
        self.promised = promised;
    }

    /// A replica adopts this content: mutations count from the start again.
    pub(crate) fn adopt(&mut self, version: ChunkVersion, generation: u64, content: Content) {
        let serial = Serial::default();
        self.adopted = version;
        self.generation = generation;
        self.content = Content { serial, ..content };
        // Mutant ids_not_content: who takes over content does not take over its request ids.
        if fault::mutant("ids_not_content") {
            self.content.requests = super::requests::Requests::default();
        }
        // Guard committed_before_confirm: adopted is not yet known to be committed.
        self.commit_mark = None;
        (self.partial, self.corrupt, self.promised) = (false, false, false);
    }
}

/// An open chunk file with what is needed to read from it without the lock.
pub(crate) struct Snapshot {
    pub(crate) file: Option<Arc<dyn File>>,
    pub(crate) length: u32,
    pub(crate) first_block: u32,
    pub(crate) crcs: Vec<u32>,
    pub(crate) overlays: Vec<(u32, Bytes)>,
}
