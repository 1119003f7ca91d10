//! Reading: every byte that leaves is checked against its block's checksum (GFS §5.2), here or by who receives it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::size::{BLOCK_BYTES, block_pieces};

use super::block;
use super::chunk::{Chunk, Lending, Snapshot, State};
use super::disk::Disk;
use super::error::{Error, Result};
use super::{FileRange, Read};

/// Reads verified bytes.
pub(crate) fn read(disk: &Arc<Disk>, chunk: &Arc<Chunk>, offset: u32, length: u32) -> Result<Read> {
    disk.check()?;
    let snapshot = {
        let state = chunk.state.lock();
        check_range(chunk, &state, offset, length)?;
        if length == 0 {
            return Ok(Read { data: Bytes::new(), crcs: Vec::new() });
        }
        snapshot(disk, chunk, &state, blocks_in(offset, length))?
    };
    let bytes = match load(disk, chunk, &snapshot) {
        // A change may have reached the file since the snapshot. With the lock held none can.
        Err(Error::Corrupt { .. }) => read_locked(disk, chunk, offset, length)?,
        other => other?,
    };
    let start = offset - block::start_of(block::block_of(offset));
    let data = Bytes::from(bytes).slice(start as usize..(start + length) as usize);
    let mut at = 0;
    let crcs = block_pieces(offset, length)
        .map(|piece| {
            let piece = &data[at..at + piece as usize];
            at += piece.len();
            crc32fast::hash(piece)
        })
        .collect();
    Ok(Read { data, crcs })
}

fn read_locked(disk: &Arc<Disk>, chunk: &Arc<Chunk>, offset: u32, length: u32) -> Result<Vec<u8>> {
    let mut state = chunk.state.lock();
    check_range(chunk, &state, offset, length)?;
    let result = blocks_of(disk, chunk, &state, blocks_in(offset, length));
    if matches!(result, Err(Error::Corrupt { .. })) {
        mark_corrupt(disk, chunk, &mut state);
    }
    result
}

/// Whole blocks to be sent from the file; of one that is changed, and not only extended, none.
pub(crate) fn file_range(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    offset: u32,
    length: u32,
) -> Result<FileRange> {
    disk.check()?;
    let mut state = chunk.state.lock();
    check_range(chunk, &state, offset, length)?;
    let whole = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES) && length > 0;
    // Guard sent_and_overwritten: of a file that changes nothing is lent.
    if !whole || matches!(state.lending, Lending::Over(_)) {
        return Err(Error::NotFromFile { handle: chunk.handle });
    }
    let blocks = blocks_in(offset, length);
    let snapshot = snapshot(disk, chunk, &state, blocks.clone())?;
    let file = snapshot.file.ok_or(Error::NotFromFile { handle: chunk.handle })?;
    state.lending.lend(blocks);
    Ok(FileRange { file, crcs: snapshot.crcs })
}

/// Notes that a checksum did not match; the log hears of it lazily.
pub(crate) fn mark_corrupt(disk: &Arc<Disk>, chunk: &Arc<Chunk>, state: &mut State) {
    if !state.removed && !std::mem::replace(&mut state.meta.corrupt, true) {
        tracing::warn!(handle = %chunk.handle, "checksum mismatch");
        disk.lazy.lock().insert(chunk.handle, chunk.clone());
    }
}

fn check_range(chunk: &Chunk, state: &State, offset: u32, length: u32) -> Result<()> {
    let handle = chunk.handle;
    if state.removed {
        return Err(Error::NoSuchChunk { handle });
    }
    let (offset, length, end) = (u64::from(offset), u64::from(length), u64::from(state.length()));
    if offset + length > end {
        return Err(Error::OutOfRange { handle, offset, length, end });
    }
    Ok(())
}

pub(crate) fn blocks_in(offset: u32, length: u32) -> Range<u32> {
    block::block_of(offset)..block::block_of((offset + length).max(1) - 1) + 1
}

/// Verified bytes of whole blocks of a locked chunk; the last one as far as it goes.
pub(crate) fn blocks_of(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    state: &State,
    blocks: Range<u32>,
) -> Result<Vec<u8>> {
    let snapshot = snapshot(disk, chunk, state, blocks)?;
    load(disk, chunk, &snapshot)
}

fn snapshot(disk: &Arc<Disk>, chunk: &Arc<Chunk>, state: &State, blocks: Range<u32>) -> Result<Snapshot> {
    let missing = || Error::Corrupt { handle: chunk.handle, block: blocks.start };
    // That no more files can be open says nothing about the bytes.
    let file = disk
        .existing_file(chunk, state)
        .map_err(|error| Error::too_many_files(&error).unwrap_or_else(missing))?;
    let start = block::start_of(blocks.start);
    let length = state.length().min(block::start_of(blocks.end - 1) + BLOCK_BYTES);
    let crcs = state.meta.content.block_crcs.get(blocks.start as usize..blocks.end as usize);
    let overlaps = |offset: u32, bytes: usize| {
        u64::from(offset) < u64::from(length) && u64::from(offset) + bytes as u64 > u64::from(start)
    };
    Ok(Snapshot {
        file,
        length: length - start,
        first_block: blocks.start,
        crcs: crcs.ok_or_else(missing)?.to_vec(),
        overlays: state
            .overlays
            .iter()
            .filter(|overlay| overlaps(overlay.offset, overlay.data.len()))
            .map(|overlay| (overlay.offset, overlay.data.clone()))
            .collect(),
    })
}

/// Reads and verifies what a snapshot describes.
fn load(disk: &Arc<Disk>, chunk: &Chunk, snapshot: &Snapshot) -> Result<Vec<u8>> {
    let mut bytes = vec![0; snapshot.length as usize];
    let start = block::start_of(snapshot.first_block);
    if let Some(file) = &snapshot.file {
        // A file that is too short leaves zeros: the checksums find that, unless an overlay covers it.
        file.read_at(&mut bytes, start.into()).map_err(|error| {
            tracing::warn!(disk = %disk.directory.display(), handle = %chunk.handle, %error, "read failed");
            Error::Corrupt { handle: chunk.handle, block: snapshot.first_block }
        })?;
    }
    for (offset, data) in &snapshot.overlays {
        block::lay_over(&mut bytes, start, data, *offset);
    }
    for ((block, piece), crc) in
        (snapshot.first_block..).zip(bytes.chunks(BLOCK_BYTES as usize)).zip(&snapshot.crcs)
    {
        // Mutant read_not_verified: whatever the disk gives is believed.
        if crc32fast::hash(piece) != *crc && !fault::mutant("read_not_verified") {
            return Err(Error::Corrupt { handle: chunk.handle, block });
        }
    }
    Ok(bytes)
}
