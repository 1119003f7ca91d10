//! Adoption: a replica takes over reconciled content aside, and switches to it at once (protocol.md, Grant 4).
//!
//! What is here already stays if it came about in the same way: by the same mutations of what was adopted together.
//! Otherwise all of it is taken anew, into a file of a new generation. Equal checksums prove nothing: CRC-32 is linear, so
//! that records which end with a CRC-32 of their own look all the same to it (docs/decisions/0022). The switch is one record
//! in the log. Guard *adopt_in_place*: until then the replica is as it was.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion};
use gfs_proto::size::BLOCK_BYTES;

use super::block;
use super::chunk::{Chunk, Lending, State};
use super::content::{Content, REQUESTS_MAX, ReplicaState};
use super::disk::{Disk, SMALL_RECORD_BYTES};
use super::error::{Error, Result};
use super::files::{File, Open};
use super::format::Record;
use super::log::{Firmness, Then};

/// Where content comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From this very replica.
    Own,
    /// From one that had adopted the content of this version, and was changed by as many mutations as the content says.
    Adopted(ChunkVersion),
    /// Nobody knows any more.
    Unknown,
}

/// Content on its way in. Dropping it before the commit leaves the replica as it was.
pub struct Adoption {
    disk: Arc<Disk>,
    chunk: Arc<Chunk>,
    version: ChunkVersion,
    content: Content,
    /// Tells this adoption from a newer one of the same chunk.
    number: u64,
    /// What the replica holds is the content.
    same: bool,
    missing: BTreeSet<u32>,
    aside: Option<Aside>,
    committed: bool,
}

/// A file of a new generation.
struct Aside {
    generation: u64,
    file: Arc<dyn File>,
    name_change: u64,
}

/// Starts to take over content.
pub(crate) fn adopt(
    disk: &Arc<Disk>,
    chunk: &Arc<Chunk>,
    version: ChunkVersion,
    (content, origin): (Content, Origin),
) -> Result<Adoption> {
    check_content(chunk.handle, &content, disk.options.chunk_bytes_max.raw())?;
    fault::at("store::adopt::begin");
    let mut state = chunk.state.lock();
    let (handle, here) = (chunk.handle, state.meta.version);
    if state.removed {
        return Err(Error::NoSuchChunk { handle });
    }
    if here != version {
        return Err(Error::VersionMismatch { handle, asked: version, here });
    }
    // Guard adopt_twice: mutations may follow the first adoption; a second one would take them back.
    // Mutant adopt_twice: here and in the replica's own rules.
    if state.meta.adopted == version && !fault::mutant("adopt_twice") {
        return Err(Error::AlreadyAdopted { handle, version });
    }
    disk.check_space(u64::from(content.length.saturating_sub(state.length())))?;
    disk.settle_all(chunk, &mut state)?;
    state.adoption += 1;
    disk.cut_tail(chunk, &mut state)?;
    let own = &state.meta;
    let same = match origin {
        Origin::Own => true,
        // What was adopted together and has changed by as many mutations is the same (promise P5), unless something is lost.
        Origin::Adopted(adopted) => {
            adopted == own.adopted && own.content.serial == content.serial && !own.partial
        }
        Origin::Unknown => false,
    };
    let whole = same && !own.corrupt && own.content.block_crcs == content.block_crcs;
    let number = state.adoption;
    let mut adoption = Adoption {
        disk: disk.clone(),
        chunk: chunk.clone(),
        version,
        number,
        same,
        missing: BTreeSet::new(),
        aside: None,
        committed: false,
        content,
    };
    let begun = if whole {
        Ok(())
    } else {
        adoption.missing = (0..adoption.blocks()).collect();
        // Behind nothing new bytes can stand in place.
        if state.length() == 0 { Ok(()) } else { adoption.go_aside(&mut state) }
    };
    // Before the adoption may be dropped, which locks the chunk.
    drop(state);
    begun.map(|()| adoption)
}

fn check_content(handle: ChunkHandle, content: &Content, limit: u32) -> Result<()> {
    let bad = |what| Err(Error::BadContent { handle, what });
    if content.length > limit {
        return bad("longer than a chunk");
    }
    if content.block_crcs.len() != content.length.div_ceil(BLOCK_BYTES) as usize {
        return bad("checksums and length do not fit");
    }
    if content.requests.len() > REQUESTS_MAX {
        return bad("too many requests");
    }
    let end = |offset: u32, length: u32| u64::from(offset) + u64::from(length);
    if content.requests.outcomes().any(|(_, at)| end(at.offset, at.length) > u64::from(content.length)) {
        return bad("a request lies behind the end");
    }
    Ok(())
}

impl Adoption {
    /// Whether the replica holds the content already: the same mutations of what was adopted together.
    pub fn is_same(&self) -> bool {
        self.same
    }

    /// Ranges of the content that have to be fetched: from block to block, the last one to the end of the content.
    pub fn missing(&self) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for block in &self.missing {
            let start = block::start_of(*block);
            let end = start + block::block_length(*block, self.content.length);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Takes bytes of the content: whole blocks, checked against its checksums. Any order; repeats are harmless.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the bytes are not the content's, [`Error::OutOfRange`] if they are not whole blocks of it,
    /// [`Error::AdoptionOvertaken`], [`Error::DiskFull`] and the disk's.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let (handle, end) = (self.chunk.handle, self.content.length);
        for (index, piece) in (block::block_of(offset)..).zip(data.chunks(BLOCK_BYTES as usize)) {
            let whole = piece.len() == block::block_length(index, end) as usize;
            if !offset.is_multiple_of(BLOCK_BYTES) || !whole {
                let (offset, length) = (u64::from(offset), data.len() as u64);
                return Err(Error::OutOfRange { handle, offset, length, end: end.into() });
            }
            // Mutant copy_not_verified: what comes from another replica is believed.
            if crc32fast::hash(piece) != self.content.block_crcs[index as usize]
                && !fault::mutant("copy_not_verified")
            {
                return Err(Error::Corrupt { handle, block: index });
            }
        }
        for (index, piece) in (block::block_of(offset)..).zip(data.chunks(BLOCK_BYTES as usize)) {
            if self.missing.contains(&index) {
                self.write_block(index, piece)?;
                self.missing.remove(&index);
            }
        }
        Ok(())
    }

    /// Makes the content the replica's, durably, and clears `partial`.
    ///
    /// # Errors
    /// [`Error::BadContent`] if something is missing, [`Error::AdoptionOvertaken`], and the disk's.
    pub fn commit(mut self) -> Result<ReplicaState> {
        let handle = self.chunk.handle;
        if !self.missing.is_empty() {
            return Err(Error::BadContent { handle, what: "blocks are missing" });
        }
        let (disk, chunk) = (self.disk.clone(), self.chunk.clone());
        let content = std::mem::take(&mut self.content);
        let bytes = 4 * content.block_crcs.len() + 24 * content.requests.len() + SMALL_RECORD_BYTES;
        if let Some(aside) = &self.aside {
            fault::try_at("store::adopt::before_sync")
                .and_then(|()| aside.file.sync_all())
                .map_err(|error| disk.fail("syncing a chunk", &error))?;
            disk.sync_names(aside.name_change)?;
        }
        let mut permit = disk.log.reserve(bytes)?;
        let mut state = chunk.state.lock();
        self.check(&state)?;
        let mut old = None;
        let mut generation = state.meta.generation;
        if let Some(aside) = &self.aside {
            old = state.created.then(|| disk.path_of(handle, generation));
            generation = aside.generation;
            state.created = true;
            state.lending = Lending::None;
            state.writes_synced = state.writes;
        } else {
            drop(state);
            state = disk.sync_file(&chunk, chunk.state.lock())?;
            self.check(&state)?;
        }
        fault::at("store::adopt::before_record");
        state.meta.adopt(self.version, generation, content);
        state.unsynced = false;
        // Guard partial_forgotten: `partial` is cleared by this record and not before.
        let record = Record::Full { handle, meta: state.meta.clone() };
        let then = Then { firmness: Firmness::Durable, ..Then::lazily() };
        let sequence = disk.record((&chunk, &mut state), &mut permit, &record, then);
        let summary = state.summary(handle);
        drop(state);
        self.committed = true;
        disk.log.wait_durable(sequence)?;
        fault::at("store::adopt::committed");
        if let Some(old) = old {
            disk.remove_file(&old)?;
        }
        Ok(summary)
    }

    fn blocks(&self) -> u32 {
        self.content.length.div_ceil(BLOCK_BYTES)
    }

    /// Whether this adoption is still the one.
    fn check(&self, state: &State) -> Result<()> {
        if state.removed || state.adoption != self.number || state.meta.version != self.version {
            return Err(Error::AdoptionOvertaken { handle: self.chunk.handle });
        }
        Ok(())
    }

    fn write_block(&mut self, index: u32, piece: &[u8]) -> Result<()> {
        let chunk = self.chunk.clone();
        let mut state = chunk.state.lock();
        self.check(&state)?;
        let start = block::start_of(index);
        // One after the other, and not at the beginning: several adoptions at a time may each find the same room (T34).
        self.disk.take_space(piece.len() as u64)?;
        match &self.aside {
            Some(aside) => write_aside(&self.disk, &aside.file, start, piece),
            None => self.disk.write_file(&chunk, &mut state, start, piece),
        }
    }

    /// Starts a file of a new generation: with the blocks that are not damaged, which are missing no more, if what is here is
    /// the content.
    fn go_aside(&mut self, state: &mut State) -> Result<()> {
        let (disk, chunk) = (self.disk.clone(), self.chunk.clone());
        let failed = |error: io::Error| disk.fail_unless_full("making a chunk", &error);
        disk.check_space(self.content.length.into())?;
        let generation = disk.next_generation();
        let path = disk.path_of(chunk.handle, generation);
        let file = disk.open_files.open(&path, Open::Create).map_err(failed)?;
        let name_change = disk.name_changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.aside = Some(Aside { generation, file: file.clone(), name_change });
        if !self.same {
            return Ok(());
        }
        let old = match disk.existing_file(&chunk, state) {
            Ok(old) => old,
            // Damage, which is to be fetched; unless it can be looked at later.
            Err(error) => match Error::too_many_files(&error) {
                Some(busy) => return Err(busy),
                None => None,
            },
        };
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        for index in 0..self.blocks() {
            let bytes = &mut buffer[..block::block_length(index, self.content.length) as usize];
            let Some(old) = &old else { break };
            let read = old.read_at(bytes, block::start_of(index).into());
            let good = read.is_ok_and(|read| read == bytes.len())
                && crc32fast::hash(bytes) == self.content.block_crcs[index as usize];
            if good {
                disk.take_space(bytes.len() as u64)?;
                write_aside(&disk, &file, block::start_of(index), bytes)?;
                self.missing.remove(&index);
            } else if state.meta.content.block_crcs.get(index as usize)
                == self.content.block_crcs.get(index as usize)
            {
                // Our checksum says that we have it, and the file has not: the next attempt must not rely on it either.
                state.meta.corrupt = true;
            }
        }
        Ok(())
    }
}

fn write_aside(disk: &Disk, file: &Arc<dyn File>, offset: u32, data: &[u8]) -> Result<()> {
    file.write_at(data, offset.into()).map_err(|error| disk.fail_unless_full("writing a chunk", &error))
}

impl Drop for Adoption {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let mut state = self.chunk.state.lock();
        let result = match &self.aside {
            Some(aside) => self.disk.remove_file(&self.disk.path_of(self.chunk.handle, aside.generation)),
            // Should that not be possible now: nobody mutates the chunk before the next adoption, which does the same.
            None if self.check(&state).is_ok() => self.disk.cut_tail(&self.chunk, &mut state),
            None => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(handle = %self.chunk.handle, %error, "an abandoned adoption was not cleared away");
        }
    }
}

impl std::fmt::Debug for Adoption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Adoption({} at {})", self.chunk.handle, self.version)
    }
}
