//! Opening a disk: what the tables and the log prove, what the page cache has kept, and nothing else.
//!
//! After a crash the log's records are replayed over the tables. Bytes that only the file has, and no sync of it is on
//! record (*pending*), are kept as far as they verify: all of them after the death of a process, since the page
//! cache has survived it. What lies behind the last kept byte is cut off. Then all is synced and a full table written,
//! so that the old log is not needed any more; until then a crash starts the same over again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, Serial};
use gfs_proto::size::{BLOCK_BYTES, CHUNK_BYTES_MAX};

use super::block;
use super::chunk::{Chunk, State};
use super::content::Content;
use super::disk::{chunk_directory, chunk_file_name};
use super::error::{Error, Result};
use super::files::{File, Files, Open};
use super::format::{COUNT_MAX, Change, Meta, Record, TableEntry, TableHeader};
use super::segment::{Replay, Segment, segment_path};
use super::table::{self, Loaded, TableWriter, Tables};

/// Most segments that a log ever had.
const SEGMENTS_MAX: usize = 100;

/// A recovered disk, before its threads start.
pub(crate) struct Recovered {
    pub(crate) chunks: BTreeMap<ChunkHandle, Arc<Chunk>>,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) tables: Tables,
    pub(crate) next_sequence: u64,
    pub(crate) generation: u64,
}

/// What opening a disk needs to know.
pub(crate) struct Opening<'a> {
    pub(crate) files: &'a dyn Files,
    pub(crate) directory: &'a Path,
    pub(crate) segment_bytes: u32,
    pub(crate) boot_id: String,
    /// A number that no log has had.
    pub(crate) life: u64,
}

/// What is surely as the process left it.
#[derive(Clone, Copy)]
struct Survived {
    /// What was written and not synced.
    page_cache: bool,
    /// The log, to its end. Else its last records are gone, and they may have been durable: nobody knows whose they were.
    log: bool,
}

/// A chunk during the replay.
#[derive(Default)]
struct Replayed {
    meta: Meta,
    as_of: u64,
    pending: Vec<Change>,
    promised: bool,
    /// Records whose data the file may lack.
    logged: Vec<u64>,
    /// The file was changed, or has bytes that were never synced.
    touched: bool,
    /// The file could not be opened or read: what is pending counts as lost, and what was proven is damaged.
    unreadable: bool,
}

impl Opening<'_> {
    /// Recovers a disk; a new one if there are no tables.
    pub(crate) fn recover(&self) -> Result<Recovered> {
        let loaded = table::load(self.files, self.directory)?;
        let found = self.segments().map_err(|error| self.failed(&error))?;
        let all: Vec<_> = found.iter().map(|(segment, _)| segment.clone()).collect();
        let header = loaded.as_ref().map(|loaded| loaded.header.clone());
        let mut replay = None;
        let mut chunks = BTreeMap::new();
        if let Some(Loaded { header, chunks: known }) = loaded {
            let replayed = |(handle, (as_of, meta)): (_, (u64, Meta))| {
                let promised = meta.promised;
                (handle, Replayed { meta, as_of, promised, ..Replayed::default() })
            };
            chunks = known.into_iter().map(replayed).collect();
            if !header.clean {
                replay = Some(self.replay(all, &header, &mut chunks)?);
            }
        }
        fault::try_at("store::recover::replayed").map_err(|error| self.failed(&error))?;
        // A clean close has lost nothing, whatever happened to the power after it.
        let powered = header.as_ref().is_none_or(|header| header.clean || header.boot_id == self.boot_id);
        let names = self.files.list(&chunk_directory(self.directory)).map_err(|error| self.failed(&error))?;
        // Looked up for each of what may be a million chunks.
        let names: BTreeSet<String> = names.into_iter().collect();
        let generation = self
            .settle(&mut chunks, replay.as_mut(), &names, powered)
            .map_err(|error| self.failed(&error))?
            .max(header.as_ref().map_or(1, |header| header.generation));
        let beyond = replay.as_ref().map_or(1, |replay| replay.beyond);
        let next_sequence = beyond.max(header.as_ref().map_or(1, |header| header.log_from)) + 1;
        let number = header.map_or(0, |header| header.number) + 1;
        let header = TableHeader {
            number,
            life: self.life,
            log_from: next_sequence,
            generation,
            entries: 0,
            full: true,
            clean: false,
            boot_id: self.boot_id.clone(),
        };
        fault::try_at("store::recover::before_table").map_err(|error| self.failed(&error))?;
        let full_bytes = self.write(header, &chunks).map_err(|error| self.failed(&error))?;
        let segments = self.keep_segments(found).map_err(|error| self.failed(&error))?;
        let (life, boot_id) = (self.life, self.boot_id.clone());
        let tables = Tables { number, life, boot_id, full_bytes, changes_bytes: 0 };
        let chunks = chunks.into_iter().map(|(handle, replayed)| {
            let created =
                replayed.touched || names.contains(&chunk_file_name(handle, replayed.meta.generation));
            let state = State { meta: replayed.meta, created, ..State::default() };
            (handle, Chunk::new(handle, state))
        });
        Ok(Recovered { chunks: chunks.collect(), segments, tables, next_sequence, generation })
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::failed(self.directory, "recovering", error)
    }

    /// All segments, each with its length.
    fn segments(&self) -> io::Result<Vec<(Arc<Segment>, u64)>> {
        let mut segments = Vec::new();
        for index in 0..SEGMENTS_MAX {
            match Segment::open(self.files, segment_path(self.directory, index)) {
                Ok((segment, bytes)) => segments.push((Arc::new(segment), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(segments)
    }

    /// Keeps the segments from the first one on that have the right length, and makes one if there is none. The old log
    /// is not needed any more.
    fn keep_segments(&self, found: Vec<(Arc<Segment>, u64)>) -> io::Result<Vec<Arc<Segment>>> {
        let count = found.len();
        let mut kept: Vec<Arc<Segment>> = found
            .into_iter()
            .take_while(|(_, bytes)| *bytes == u64::from(self.segment_bytes))
            .map(|(segment, _)| segment)
            .collect();
        // From the last one, so that a crash leaves no gap in the names.
        for index in (kept.len()..count).rev() {
            self.files.remove(&segment_path(self.directory, index))?;
        }
        if kept.is_empty() {
            let path = segment_path(self.directory, 0);
            kept.push(Arc::new(Segment::create(self.files, path, self.segment_bytes)?));
        }
        Ok(kept)
    }

    fn replay(
        &self,
        segments: Vec<Arc<Segment>>,
        header: &TableHeader,
        chunks: &mut BTreeMap<ChunkHandle, Replayed>,
    ) -> Result<Replay> {
        let damaged =
            || Error::Damaged { disk: self.directory.display().to_string(), what: "the log".into() };
        let scanned =
            Replay::scan(segments, header.life, header.log_from).map_err(|error| self.failed(&error))?;
        let mut replay = scanned.map_err(|_| damaged())?;
        // What is read here may be in the page cache only. Before a file is changed or removed because of it: else a second
        // crash could take back the record, and not what it did (guard logged_first).
        replay.make_durable()?;
        while let Some((sequence, bytes)) = replay.next().map_err(|error| self.failed(&error))? {
            let record = Record::decode(&mut &bytes[..]).ok_or_else(damaged)?;
            replay_record(chunks, sequence, record).ok_or_else(damaged)?;
        }
        Ok(replay)
    }

    /// Brings the files to what the log says; returns the next unused generation.
    fn settle(
        &self,
        chunks: &mut BTreeMap<ChunkHandle, Replayed>,
        replay: Option<&mut Replay>,
        names: &BTreeSet<String>,
        powered: bool,
    ) -> io::Result<u64> {
        let generation = self.remove_unused(chunks, names)?;
        let mut survived = Survived { page_cache: powered, log: true };
        if let Some(replay) = replay {
            survived.log = replay.ends_clean;
            self.write_logged(chunks, replay)?;
        }
        if !survived.log {
            tracing::info!(disk = %self.directory.display(), "the last record of the log is not whole");
        }
        for (handle, chunk) in &mut *chunks {
            let name = chunk_file_name(*handle, chunk.meta.generation);
            let path = chunk_directory(self.directory).join(&name);
            let there = chunk.touched || names.contains(&name);
            let file = if there { self.open_one(&path, Open::Existing)? } else { None };
            chunk.unreadable |= there && file.is_none();
            chunk.finish(*handle, file.as_deref(), survived)?;
        }
        self.files.sync_directory(&chunk_directory(self.directory))?;
        Ok(generation)
    }

    /// Removes the files that no chunk has any more; returns the next unused generation. First of all, since there may be no
    /// room but theirs (T34).
    fn remove_unused(
        &self,
        chunks: &BTreeMap<ChunkHandle, Replayed>,
        names: &BTreeSet<String>,
    ) -> io::Result<u64> {
        let mut generation = 1;
        let mut used = BTreeSet::new();
        for (handle, chunk) in chunks {
            used.insert(chunk_file_name(*handle, chunk.meta.generation));
            generation = generation.max(chunk.meta.generation + 1);
        }
        for name in names {
            if let Some((_, number)) = name.split_once('-')
                && let Ok(number) = u64::from_str_radix(number, 16)
                // No file of ours is called anything else.
                && number <= COUNT_MAX
            {
                generation = generation.max(number + 1);
                if !used.contains(name) {
                    self.files.remove(&chunk_directory(self.directory).join(name))?;
                }
            }
        }
        Ok(generation)
    }

    /// Writes the data that the log carries into the files, in the order of the log.
    fn write_logged(
        &self,
        chunks: &mut BTreeMap<ChunkHandle, Replayed>,
        replay: &mut Replay,
    ) -> io::Result<()> {
        let logged: BTreeSet<u64> =
            chunks.values_mut().flat_map(|chunk| std::mem::take(&mut chunk.logged)).collect();
        replay.rewind();
        while let Some((sequence, bytes)) = replay.next()? {
            if !logged.contains(&sequence) {
                continue;
            }
            let mut data = &bytes[..];
            if let Some(Record::Change(change)) = Record::decode(&mut data)
                && data.len() == change.length as usize
                && let Some(chunk) = chunks.get_mut(&change.handle)
            {
                let name = chunk_file_name(change.handle, change.generation);
                let path = chunk_directory(self.directory).join(name);
                match self.open_one(&path, Open::Create)? {
                    Some(file) => {
                        file.write_at(data, change.offset.into())?;
                        chunk.touched = true;
                    }
                    None => chunk.unreadable = true,
                }
            }
        }
        Ok(())
    }

    /// Opens the file of a chunk; `None` if that is damaged, which costs this chunk and not the disk.
    fn open_one(&self, path: &Path, how: Open) -> io::Result<Option<Arc<dyn File>>> {
        match self.files.open(path, how) {
            // Says nothing about the file.
            Err(error) if Error::too_many_files(&error).is_some() || is_full(&error) => Err(error),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a chunk can't be opened");
                Ok(None)
            }
            Ok(file) => Ok(Some(file)),
        }
    }

    /// Writes a full table of what was recovered.
    fn write(&self, header: TableHeader, chunks: &BTreeMap<ChunkHandle, Replayed>) -> io::Result<u64> {
        let mut writer = TableWriter::create(self.files, self.directory)?;
        for (handle, chunk) in chunks {
            let meta = Some(chunk.meta.clone());
            writer.put(&TableEntry { handle: *handle, as_of: header.log_from - 1, meta })?;
        }
        writer.finish(header)
    }
}

/// Applies one record; `None` if it makes no sense, although its checksum matches.
fn replay_record(chunks: &mut BTreeMap<ChunkHandle, Replayed>, sequence: u64, record: Record) -> Option<()> {
    // A record of a chunk that is not there: it was deleted later, and a table was written after that.
    let mut with = |handle: ChunkHandle, change: &mut dyn FnMut(&mut Replayed) -> Option<()>| match chunks
        .get_mut(&handle)
    {
        Some(chunk) if chunk.as_of < sequence => change(chunk),
        _ => Some(()),
    };
    match record {
        Record::Full { handle, meta } => {
            if chunks.get(&handle).is_none_or(|chunk| chunk.as_of < sequence) {
                let promised = meta.promised;
                let chunk = Replayed { meta, as_of: sequence, promised, ..Replayed::default() };
                chunks.insert(handle, chunk);
            }
            Some(())
        }
        Record::Version { handle, version } => with(handle, &mut |chunk| {
            chunk.meta.version = chunk.meta.version.max(version);
            Some(())
        }),
        Record::Change(change) => with(change.handle, &mut |chunk| chunk.change(sequence, change.clone())),
        Record::Synced { handle, through, promised } => with(handle, &mut |chunk| {
            chunk.synced(through, promised);
            Some(())
        }),
        Record::Mark { handle, adopted, commit_mark, corrupt } => with(handle, &mut |chunk| {
            if chunk.meta.adopted == adopted {
                chunk.meta.commit_mark = chunk.meta.commit_mark.max(commit_mark);
                chunk.meta.corrupt |= corrupt;
            }
            Some(())
        }),
        Record::Delete { handle } => {
            if chunks.get(&handle).is_some_and(|chunk| chunk.as_of < sequence) {
                chunks.remove(&handle);
            }
            Some(())
        }
        Record::Forget { clients } if clients.is_empty() => Some(()),
        Record::Forget { clients } => {
            for chunk in chunks.values_mut().filter(|chunk| chunk.as_of < sequence) {
                chunk.meta.content.requests.forget(&clients);
                for change in &mut chunk.pending {
                    change.request = change.request.filter(|request| !clients.contains(&request.client));
                }
            }
            Some(())
        }
    }
}

impl Replayed {
    fn change(&mut self, sequence: u64, change: Change) -> Option<()> {
        let last = self.pending.last().map_or(self.meta.content.serial, |pending| pending.serial);
        let follows = change.serial == last.next() && change.generation == self.meta.generation;
        let before = self.pending.last().map_or(self.meta.content.length, |pending| pending.chunk_length);
        if !follows || !makes_sense(&change, before) {
            return None;
        }
        self.promised |= change.promised;
        if !change.in_file && change.length > 0 {
            self.logged.push(sequence);
        }
        if change.in_file || !self.pending.is_empty() {
            self.pending.push(change);
        } else {
            self.meta.apply(&change);
        }
        Some(())
    }

    fn synced(&mut self, through: Serial, promised: bool) {
        let proven = self.pending.partition_point(|change| change.serial <= through);
        for change in self.pending.drain(..proven) {
            self.meta.apply(&change);
        }
        self.promised = promised;
    }

    /// Decides on the pending changes, makes the file as long as the content, and syncs it.
    fn finish(&mut self, handle: ChunkHandle, file: Option<&dyn File>, survived: Survived) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.touched |= !pending.is_empty() && file.is_some();
        let mut lost = 0;
        let mut kept = self.meta.clone();
        pending.iter().for_each(|change| kept.apply(change));
        if self.verifies(&kept, &pending, file)? {
            self.meta = kept;
        } else {
            // Without the requests, which may be many for each of many changes, and are not looked at.
            let bare = |content: &Content| Content {
                length: content.length,
                block_crcs: content.block_crcs.clone(),
                ..Content::default()
            };
            for (index, change) in pending.iter().enumerate() {
                let mut next = Meta { content: bare(&self.meta.content), ..Meta::default() };
                next.apply(change);
                if !self.verifies(&next, std::slice::from_ref(change), file)? {
                    lost = pending.len() - index;
                    break;
                }
                self.meta.apply(change);
            }
            tracing::info!(%handle, lost, "mutations that nobody was promised to survive are gone");
        }
        // Guard power_cut_ignored: somebody may have been promised what the page cache has lost.
        // Mutant power_cut_ignored: a replica that may have lost something passes for whole.
        self.meta.partial |=
            self.promised && (!survived.page_cache || lost > 0) && !fault::mutant("power_cut_ignored");
        self.meta.promised = false;
        self.meta.corrupt |= self.unreadable;
        let content = &self.meta.content;
        // Guard restart_is_clean: after a power cut something committed may be missing, and nothing here tells. The same if
        // the end of the log is damaged: what a mark calls committed may not be all of it.
        let complete = survived.page_cache && survived.log && lost == 0;
        self.meta.commit_mark = self.meta.commit_mark.filter(|mark| complete && *mark <= content.serial);
        let length = u64::from(content.length);
        match file {
            Some(file) => {
                let found = file.len()?;
                if found > length {
                    file.set_len(length)?;
                    self.touched = true;
                }
                // Something cut it: found at once, not only when the scrubber comes by.
                self.meta.corrupt |= found < length;
                if self.touched {
                    file.sync_all()?;
                }
            }
            None => self.meta.corrupt |= length > 0,
        }
        Ok(())
    }

    /// Whether the blocks that these changes touch are in the file as `meta` has them. Those that are get written again: after a
    /// sync that failed they can be read, and the next sync does nothing for them (T32). What was on the disk stays the same.
    fn verifies(&mut self, meta: &Meta, changes: &[Change], file: Option<&dyn File>) -> io::Result<bool> {
        let touched: BTreeSet<u32> = changes
            .iter()
            .flat_map(|change| (change.first_block..).zip(&change.crcs).map(|(block, _)| block))
            .collect();
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        for index in touched {
            let (Some(file), Some(crc), false) =
                (file, meta.content.block_crcs.get(index as usize), self.unreadable)
            else {
                return Ok(false);
            };
            let bytes = &mut buffer[..block::block_length(index, meta.content.length) as usize];
            let read = match file.read_at(bytes, block::start_of(index).into()) {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(%error, "a chunk can't be read");
                    self.unreadable = true;
                    return Ok(false);
                }
            };
            if read < bytes.len() || crc32fast::hash(bytes) != *crc {
                return Ok(false);
            }
            // A hole stays one: nobody has counted its room.
            let is_last = block::start_of(index) + block::block_length(index, meta.content.length)
                == meta.content.length;
            if is_last || bytes.iter().any(|byte| *byte != 0) {
                file.write_at(bytes, block::start_of(index).into())?;
            }
        }
        Ok(true)
    }
}

/// Whether a change of a chunk with `before` bytes leaves a checksum for each block, no more and no less.
fn makes_sense(change: &Change, before: u32) -> bool {
    let [here, wanted] = [before, change.chunk_length].map(|length| u64::from(length.div_ceil(BLOCK_BYTES)));
    let end = u64::from(change.first_block) + change.crcs.len() as u64;
    let reached = if change.crcs.is_empty() { here } else { here.max(end) };
    (before..=CHUNK_BYTES_MAX).contains(&change.chunk_length)
        && u64::from(change.first_block) <= here
        && reached == wanted
        && u64::from(change.offset) + u64::from(change.length) <= u64::from(change.chunk_length)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
