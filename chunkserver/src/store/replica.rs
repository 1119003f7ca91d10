//! The life of a replica: made, given a version, emptied, removed. Every step is one durable record.

use std::cmp::Ordering;
use std::sync::Arc;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion};
use parking_lot::MutexGuard;

use super::chunk::{Chunk, Lending, State};
use super::content::{Membership, ReplicaState};
use super::disk::{Disk, SMALL_RECORD_BYTES};
use super::error::{Error, Result};
use super::format::{Meta, Record};
use super::log::{Firmness, Permit, Then};
use super::ticket::Completion;

fn durably() -> Then {
    Then { firmness: Firmness::Durable, ..Then::lazily() }
}

/// What an empty replica is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Empty {
    /// Of a first grant: that is its content.
    Fresh,
    /// Of a joining member: it has to adopt.
    Partial,
}

impl Empty {
    fn meta(self, version: ChunkVersion, generation: u64) -> Meta {
        let empty = Meta::empty(version, generation);
        match self {
            Self::Fresh => Meta { adopted: version, ..empty },
            // Mutant partial_forgotten: an empty joiner passes for whole.
            Self::Partial => Meta { partial: !fault::mutant("partial_forgotten"), ..empty },
        }
    }
}

/// Makes an empty replica where there is none. `None` if there is one after all.
pub(crate) fn make(
    disk: &Arc<Disk>,
    handle: ChunkHandle,
    version: ChunkVersion,
    empty: Empty,
) -> Result<Option<ReplicaState>> {
    disk.check_space(0)?;
    let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
    let meta = empty.meta(version, disk.next_generation());
    let chunk = Chunk::new(handle, State { meta: meta.clone(), ..State::default() });
    let (sequence, summary) = {
        let mut chunks = disk.chunks.write();
        if chunks.contains_key(&handle) {
            return Ok(None);
        }
        chunks.insert(handle, chunk.clone());
        // Nobody else has this chunk's lock for long: nobody has known it.
        let mut state = chunk.state.lock();
        let record = Record::Full { handle, meta };
        let sequence = disk.record((&chunk, &mut state), &mut permit, &record, durably());
        (sequence, state.summary(handle))
    };
    fault::at("store::replica::made");
    disk.log.wait_durable(sequence)?;
    Ok(Some(summary))
}

/// What is left to do when a replica has been emptied.
struct Emptied {
    sequence: u64,
    old: Option<std::path::PathBuf>,
    waiters: Vec<Completion>,
}

/// Empties a locked replica. The old file goes when the record is durable.
fn empty_out(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    permit: &mut Permit<'_>,
    meta: Meta,
) -> Emptied {
    let old = state.created.then(|| disk.path_of(chunk.handle, state.meta.generation));
    let waiters = std::mem::take(&mut state.sync_waiters);
    state.meta = meta.clone();
    state.created = false;
    state.overlays.clear();
    state.lending = Lending::None;
    state.unsynced = false;
    state.adoption += 1;
    (state.writes, state.writes_synced) = (0, 0);
    let record = Record::Full { handle: chunk.handle, meta };
    let sequence = disk.record((chunk, state), permit, &record, durably());
    Emptied { sequence, old, waiters }
}

impl Emptied {
    fn finish(self, disk: &Arc<Disk>, handle: ChunkHandle) -> Result<()> {
        self.waiters.iter().for_each(|waiter| waiter.finish(Err(Error::AdoptionOvertaken { handle })));
        disk.log.wait_durable(self.sequence)?;
        fault::at("store::emptied::before_file");
        self.old.map_or(Ok(()), |old| disk.remove_file(&old))
    }
}

/// What a version that is to be stored meets.
enum Meets<'a> {
    /// A replica at a lower version.
    Lower(MutexGuard<'a, State>),
    /// One at the same, and its newest record.
    Same(u64, ReplicaState),
}

/// Looks what is here before a version is stored: compare and set, never backwards, under the replica's lock (T50).
fn meet(chunk: &Chunk, version: ChunkVersion) -> Result<Meets<'_>> {
    let state = chunk.state.lock();
    let (handle, here) = (chunk.handle, state.meta.version);
    if state.removed {
        return Err(Error::NoSuchChunk { handle });
    }
    match here.cmp(&version) {
        Ordering::Less => Ok(Meets::Lower(state)),
        Ordering::Equal => Ok(Meets::Same(state.last_sequence, state.summary(handle))),
        Ordering::Greater => Err(Error::VersionMismatch { handle, asked: version, here }),
    }
}

/// A fresh replica where there is one already.
pub(crate) fn create_again(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    version: ChunkVersion,
) -> Result<ReplicaState> {
    let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
    let handle = chunk.handle;
    let mut state = match meet(chunk, version)? {
        Meets::Lower(state) => state,
        Meets::Same(sequence, summary) if summary.adopted == version => {
            return repeated(disk, sequence, summary);
        }
        Meets::Same(..) => return Err(Error::VersionMismatch { handle, asked: version, here: version }),
    };
    let meta = Empty::Fresh.meta(version, disk.next_generation());
    let emptied = empty_out(disk, chunk, &mut state, &mut permit, meta);
    let summary = state.summary(handle);
    drop(state);
    emptied.finish(disk, handle)?;
    Ok(summary)
}

/// Stores a version for a replica that is there.
pub(crate) fn store_version(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    version: ChunkVersion,
    membership: Membership,
) -> Result<ReplicaState> {
    let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
    let handle = chunk.handle;
    let mut state = match meet(chunk, version)? {
        Meets::Lower(state) => state,
        Meets::Same(sequence, summary) => return repeated(disk, sequence, summary),
    };
    state.adoption += 1;
    match membership {
        Membership::Base => {
            fault::at("store::version::before_record");
            state.meta.version = version;
            let record = Record::Version { handle, version };
            let sequence = disk.record((chunk, &mut state), &mut permit, &record, durably());
            let summary = state.summary(handle);
            drop(state);
            // Mutant version_not_durable: a crash takes the version back.
            if !fault::mutant("version_not_durable") {
                disk.log.wait_durable(sequence)?;
            }
            fault::at("store::version::stored");
            Ok(summary)
        }
        Membership::Joiner => {
            let empty = Empty::Partial.meta(version, disk.next_generation());
            // It keeps what it adopted last in mind, for nothing: its content is gone.
            let emptied = empty_out(disk, chunk, &mut state, &mut permit, empty);
            let summary = state.summary(handle);
            drop(state);
            emptied.finish(disk, handle)?;
            Ok(summary)
        }
    }
}

/// A repeated order is answered when what the first one did is durable.
fn repeated(disk: &Arc<Disk>, sequence: u64, summary: ReplicaState) -> Result<ReplicaState> {
    if disk.log.durable() < sequence {
        let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
        let nothing = Record::Forget { clients: Vec::new() }.encode();
        let then = durably();
        let sequence = disk.log.append(&mut permit, nothing, then);
        disk.log.wait_durable(sequence)?;
    }
    Ok(summary)
}

/// Removes a replica if its version is at most this.
pub(crate) fn delete(disk: &Arc<Disk>, chunk: &Arc<Chunk>, version_max: ChunkVersion) -> Result<bool> {
    let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
    let handle = chunk.handle;
    let mut state = chunk.state.lock();
    // Mutant delete_any_version: an order to delete reaches a replica that was granted anew.
    if state.removed || (state.meta.version > version_max && !fault::mutant("delete_any_version")) {
        return Ok(false);
    }
    let old = state.created.then(|| disk.path_of(handle, state.meta.generation));
    let waiters = std::mem::take(&mut state.sync_waiters);
    fault::at("store::delete::before_record");
    state.removed = true;
    state.overlays.clear();
    let record = Record::Delete { handle };
    let sequence = disk.record((chunk, &mut state), &mut permit, &record, durably());
    // With the chunk locked: who finds it in the map finds it whole.
    disk.chunks.write().remove(&handle);
    drop(state);
    Emptied { sequence, old, waiters }.finish(disk, handle)?;
    Ok(true)
}
