//! Mutations: from the primary's order to the page cache and the log.
//!
//! | mutation | bytes go to | durable when |
//! |---|---|---|
//! | extends, synced, at most 64 KiB, all before it proven | the file's page cache and the log | the log is |
//! | extends, otherwise | the file | the file is synced, and then the log |
//! | changes bytes that are there | the log, then the file (what it adds behind them: the file at once, too) | the log is |
//!
//! Called on a thread that has other things to do: it leaves them to others ([`blocking`]) where it waits for the disk, and
//! only there. A write of a small record to the page cache is quicker than that.
//!
//! *Proven* is what survives a power cut: its bytes are in a synced file or in the log. A change of bytes that are there
//! reaches the file only when its record is durable and all before it is proven, so that a crash leaves old or new.

use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::net::blocking;
use gfs_proto::size::BLOCK_BYTES;

use super::block;
use super::chunk::{Chunk, Overlay, State};
use super::content::{Durability, Mutation, MutationKind, REQUESTS_MAX};
use super::disk::{Disk, SMALL_RECORD_BYTES};
use super::error::{Error, Result};
use super::format::{Change, Record};
use super::log::{Firmness, Permit, Then};
use super::read;
use super::requests::Recall;
use super::ticket::{Completion, Ticket};

/// Largest synced mutation whose data rides in the log; a larger one is cheaper written once (decision 0011).
const LOGGED_BYTES_MAX: usize = 64 * 1024;
/// Ranges of this size are sent on to the disk as soon as they are full, so that the sync at the end finds little to do.
const WRITEBACK_BYTES: u32 = 8 << 20;

/// Where the bytes of a mutation go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Page cache and log.
    Logged,
    /// File; a sync proves them.
    Direct,
    /// Log; the file later.
    Overwrite,
}

/// Applies the next mutation of a chunk.
pub(crate) fn apply(disk: &Arc<Disk>, chunk: &Arc<Chunk>, mutation: &Mutation) -> Result<Ticket> {
    let limit = disk.options.chunk_bytes_max.raw();
    let mut way = way_of(&chunk.lock(), mutation);
    loop {
        // Room is waited for before the chunk is locked; should the way change meanwhile, again.
        let mut permit = disk.log.reserve(room_for(disk, mutation, way))?;
        let mut state = chunk.lock();
        let now = way_of(&state, mutation);
        if now != way && now != Way::Direct {
            way = now;
            continue;
        }
        disk.check()?;
        check(chunk, &state, mutation, limit)?;
        fault::at("store::apply::begin");
        if now == Way::Overwrite && state.unsynced {
            state = blocking(|| prove(disk, chunk, state, &mut permit))?;
            // The lock was let go.
            check(chunk, &state, mutation, limit)?;
        }
        return match now {
            Way::Overwrite => overwrite(disk, chunk, &mut state, &mut permit, mutation),
            Way::Logged | Way::Direct => extend(disk, chunk, &mut state, &mut permit, (mutation, now)),
        };
    }
}

fn way_of(state: &State, mutation: &Mutation) -> Way {
    let offset = match mutation.kind {
        MutationKind::Write { offset } => offset,
        MutationKind::Append | MutationKind::Seal | MutationKind::Sync => state.length(),
    };
    if offset < state.length() && !mutation.data.is_empty() {
        Way::Overwrite
    } else if durability(mutation) == Durability::Synced
        && !state.unsynced
        && mutation.data.len() <= LOGGED_BYTES_MAX
    {
        Way::Logged
    } else {
        Way::Direct
    }
}

fn durability(mutation: &Mutation) -> Durability {
    if mutation.kind == MutationKind::Sync { Durability::Synced } else { mutation.durability }
}

fn room_for(disk: &Disk, mutation: &Mutation, way: Way) -> usize {
    let data = if way == Way::Direct { 0 } else { mutation.data.len() };
    // The checksums of a hole may be many; and a sync before an overwrite has a record, too.
    let blocks = disk.options.chunk_bytes_max.raw() / BLOCK_BYTES;
    data + 4 * blocks as usize + 3 * SMALL_RECORD_BYTES
}

/// Refuses what is not the next mutation of this content. Nothing has been changed yet.
fn check(chunk: &Chunk, state: &State, mutation: &Mutation, limit: u32) -> Result<()> {
    let handle = chunk.handle;
    let meta = &state.meta;
    if state.removed {
        return Err(Error::NoSuchChunk { handle });
    }
    // Guard old_version_applied: only mutations of the stored version, and only after its content was adopted.
    if mutation.version != meta.version && !fault::mutant("old_version_applied") {
        return Err(Error::VersionMismatch { handle, asked: mutation.version, here: meta.version });
    }
    if meta.adopted != meta.version || meta.partial {
        return Err(Error::NotAdopted { handle, version: meta.version });
    }
    // Guard gap_applied: in order, without gaps; a short replica must not be extended (T39).
    let expected = meta.content.serial.next();
    if mutation.serial != expected && !fault::mutant("gap_applied") {
        return Err(Error::Gap { handle, asked: mutation.serial, expected });
    }
    if let Some(request) = &mutation.request {
        if let Recall::Known(outcome) = meta.content.requests.recall(*request) {
            return Err(Error::DuplicateRequest { handle, offset: outcome.offset, length: outcome.length });
        }
        // The outcome, and perhaps what its client gives up with it: more could not be read again.
        if meta.content.requests.len() + 2 > REQUESTS_MAX {
            return Err(Error::Busy { what: "the list of request outcomes of the chunk" });
        }
    }
    let appends = matches!(mutation.kind, MutationKind::Append | MutationKind::Seal);
    if appends && meta.content.sealed {
        return Err(Error::Sealed { handle });
    }
    let offset = offset_of(state, mutation);
    let end = u64::from(offset) + mutation.data.len() as u64;
    let limit = match mutation.kind {
        MutationKind::Write { .. } | MutationKind::Append => limit,
        MutationKind::Seal | MutationKind::Sync => state.length(),
    };
    if end > u64::from(limit) {
        let length = mutation.data.len() as u64;
        return Err(Error::OutOfRange { handle, offset: offset.into(), length, end: limit.into() });
    }
    Ok(())
}

fn offset_of(state: &State, mutation: &Mutation) -> u32 {
    match mutation.kind {
        // An empty write changes nothing, wherever it points.
        MutationKind::Write { offset } if !mutation.data.is_empty() => offset,
        MutationKind::Write { .. } | MutationKind::Append | MutationKind::Seal | MutationKind::Sync => {
            state.length()
        }
    }
}

/// The record of a mutation, but for the checksums.
fn change_of(chunk: &Chunk, state: &State, mutation: &Mutation) -> Change {
    let offset = offset_of(state, mutation);
    // Checked to fit (`check`).
    let length = u32::try_from(mutation.data.len()).unwrap_or(0);
    Change {
        handle: chunk.handle,
        generation: state.meta.generation,
        serial: mutation.serial,
        commit_mark: state.meta.commit_mark,
        in_file: false,
        promised: false,
        sealed: state.meta.content.sealed || mutation.kind == MutationKind::Seal,
        offset,
        length,
        chunk_length: state.length().max(offset.saturating_add(length)),
        first_block: block::block_of(state.length()),
        crcs: Vec::new(),
        request: mutation.request,
        first_unacked: mutation.first_unacked,
    }
}

/// Puts bytes behind those that are there, or only changes what is known of the chunk.
fn extend(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    permit: &mut Permit<'_>,
    (mutation, way): (&Mutation, Way),
) -> Result<Ticket> {
    let mut change = change_of(chunk, state, mutation);
    if !mutation.data.is_empty() {
        disk.take_space(mutation.data.len() as u64)?;
        let (length, hole) = (state.length(), change.offset - state.length());
        (change.first_block, change.crcs) =
            block::extended(&state.meta.content.block_crcs, length, hole, &mutation.data);
        write_behind(disk, chunk, state, (change.offset, &mutation.data))?;
        fault::at("store::apply::file_written");
        start_writeback(disk, chunk, state, change.chunk_length);
    }
    let completion = Completion::new();
    let ticket = Ticket::new(change.offset, change.chunk_length, completion.clone());
    let durability = durability(mutation);
    change.in_file = way == Way::Direct && (!mutation.data.is_empty() || state.unsynced);
    state.unsynced |= change.in_file;
    change.promised = durability == Durability::Replicated;
    if durability == Durability::Synced && change.in_file {
        commit(disk, chunk, state, permit, (change, Then::lazily()));
        state.sync_waiters.push(completion);
        if !std::mem::replace(&mut state.sync_queued, true) {
            disk.work.sync(chunk.clone());
        }
        return Ok(ticket);
    }
    let first_promise = change.promised && !state.meta.promised;
    let firmness = match durability {
        Durability::Synced => Firmness::Durable,
        // The disk must know of the promise before it is given, so that after a power cut the replica can say that
        // it may have lost something. Guard power_cut_ignored.
        Durability::Replicated if first_promise || disk.log.durable() < state.promised_at => {
            Firmness::Durable
        }
        Durability::Replicated | Durability::Deferred => Firmness::Written,
    };
    let done = Box::new(move |result| completion.finish(result));
    let data = if way == Way::Logged { mutation.data.clone() } else { Bytes::new() };
    let sequence = commit(disk, chunk, state, permit, (change, Then { data, firmness, done: Some(done) }));
    if first_promise {
        state.promised_at = sequence;
    }
    Ok(ticket)
}

/// Writes bytes that lie behind all that are there. Until a record says that they count, they harm nothing: a recovery cuts
/// them off.
fn write_behind(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    (offset, data): (u32, &[u8]),
) -> Result<()> {
    if data.len() <= LOGGED_BYTES_MAX {
        disk.write_file(chunk, state, offset, data)
    } else {
        blocking(|| disk.write_file(chunk, state, offset, data))
    }
}

/// Changes the memory and the log alike.
fn commit(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    permit: &mut Permit<'_>,
    (change, then): (Change, Then),
) -> u64 {
    state.meta.apply(&change);
    disk.record((chunk, state), permit, &Record::Change(change), then)
}

/// Changes bytes that are there, and perhaps adds some behind them.
fn overwrite(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    permit: &mut Permit<'_>,
    mutation: &Mutation,
) -> Result<Ticket> {
    let mut change = change_of(chunk, state, mutation);
    let added = change.chunk_length - state.length();
    disk.check_space(added.into())?;
    change.first_block = block::block_of(change.offset);
    change.crcs = overwritten(disk, chunk, state, &change, &mutation.data)?;
    // What is added goes to the file at once, while it can still be refused: a promise must not need room later (T34).
    let (_, behind) = mutation.data.split_at(mutation.data.len() - added as usize);
    if !behind.is_empty() {
        disk.take_space(added.into())?;
        let length = state.length();
        write_behind(disk, chunk, state, (length, behind))?;
    }
    state.lending.end();
    // All before is proven, and this is durable when its ticket is done: no promise is less than that.
    let completion = Completion::new();
    let ticket = Ticket::new(change.offset, change.chunk_length, completion.clone());
    let offset = change.offset;
    let (work, whose) = (disk.work.clone(), chunk.clone());
    let done = Box::new(move |result: Result<()>| {
        if result.is_ok() {
            work.settle(whose);
        }
        completion.finish(result);
    });
    let then = Then { data: mutation.data.clone(), firmness: Firmness::Durable, done: Some(done) };
    let sequence = commit(disk, chunk, state, permit, (change, then));
    state.overlays.push_back(Overlay { sequence, offset, data: mutation.data.clone() });
    fault::at("store::apply::overwritten");
    Ok(ticket)
}

/// New checksums of the blocks that an overwrite touches. Those that it changes only in part are verified first, so that
/// a checksum is never computed over damage (T35).
fn overwritten(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &mut State,
    change: &Change,
    data: &[u8],
) -> Result<Vec<u32>> {
    let end = change.offset + change.length;
    let last = block::block_of(end - 1);
    let mut crcs = Vec::new();
    for index in change.first_block..=last {
        let start = block::start_of(index);
        let before = block::block_length(index, state.length());
        let after = block::block_length(index, change.chunk_length);
        let covered = change.offset <= start && end >= start + before;
        let mut bytes = if covered || before == 0 {
            Vec::new()
        } else {
            // Perhaps from the disk.
            match blocking(|| read::blocks_of(disk, chunk, state, index..index + 1)) {
                Err(Error::Corrupt { handle, block }) => {
                    state.meta.corrupt = true;
                    disk.lazy.lock().insert(handle, chunk.clone());
                    return Err(Error::Corrupt { handle, block });
                }
                other => other?,
            }
        };
        bytes.resize(after as usize, 0);
        block::lay_over(&mut bytes, start, data, change.offset);
        crcs.push(crc32fast::hash(&bytes));
    }
    Ok(crcs)
}

/// Syncs the file so that all that was applied is proven, and says so in the log.
fn prove<'a>(
    disk: &Arc<Disk>,
    chunk: &'a Arc<Chunk>,
    state: parking_lot::MutexGuard<'a, State>,
    permit: &mut Permit<'_>,
) -> Result<parking_lot::MutexGuard<'a, State>> {
    let (through, adopted) = (state.meta.content.serial, state.meta.adopted);
    let mut state = disk.sync_file(chunk, state)?;
    if state.removed || state.meta.adopted != adopted || state.meta.content.serial != through {
        // Mutations of one chunk come one after the other, so this is a grant that overtook it.
        return Err(Error::AdoptionOvertaken { handle: chunk.handle });
    }
    state.unsynced = false;
    state.meta.synced(false);
    let record = Record::Synced { handle: chunk.handle, through, promised: false };
    disk.record((chunk, &mut state), permit, &record, Then::lazily());
    Ok(state)
}

/// Sends ranges that have become full on to the disk.
fn start_writeback(disk: &Arc<Disk>, chunk: &Chunk, state: &mut State, end: u32) {
    let (before, after) = (state.length() / WRITEBACK_BYTES, end / WRITEBACK_BYTES);
    if before < after
        && let Ok(file) = disk.file(chunk, state)
    {
        let (offset, end) = (before * WRITEBACK_BYTES, after * WRITEBACK_BYTES);
        blocking(|| file.start_writeback(offset.into(), (end - offset).into()));
    }
}
