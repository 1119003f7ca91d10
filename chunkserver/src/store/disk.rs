//! One disk: a directory with its log, its tables, its chunk files, and the threads that work for it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::id::ChunkHandle;
use gfs_proto::size::BLOCK_BYTES;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::Options;
use super::chunk::{Chunk, Lending, State};
use super::content::DiskState;
use super::error::{Error, Result};
use super::files::{File, Files, Lock, Open};
use super::format::Record;
use super::log::{Failure, Log, Permit, Then};
use super::open_files::OpenFiles;
use super::read;
use super::table::Tables;
use super::worker::Work;

/// Bytes that a small record takes at most, head included.
pub(crate) const SMALL_RECORD_BYTES: usize = 256;

/// Most bytes that are taken without looking how much room is left; the headroom is far more than that.
const SPACE_GRANT_BYTES_MAX: u64 = 1 << 20;

pub(crate) struct Disk {
    pub(crate) directory: PathBuf,
    pub(crate) options: Options,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) failure: Failure,
    pub(crate) log: Log,
    pub(crate) work: Arc<Work>,
    /// The chunks by handle; a chunk's own lock is never waited for while this is held.
    pub(crate) chunks: RwLock<BTreeMap<ChunkHandle, Arc<Chunk>>>,
    /// Chunks with records that no table covers.
    pub(crate) dirty: Mutex<BTreeMap<ChunkHandle, Arc<Chunk>>>,
    /// Chunks with a commit mark that the log has not.
    pub(crate) lazy: Mutex<BTreeMap<ChunkHandle, Arc<Chunk>>>,
    /// One checkpoint at a time.
    pub(crate) tables: Mutex<Tables>,
    pub(crate) generation: AtomicU64,
    pub(crate) open_files: OpenFiles,
    /// Counts new names in the directory of chunks, and how many of them are durable.
    pub(crate) name_changes: AtomicU64,
    pub(crate) names_synced: Mutex<u64>,
    /// Bytes of the tables, for which there has to be room once more.
    pub(crate) table_bytes: AtomicU64,
    /// Held while a chunk gets another file.
    pub(crate) renewing: Mutex<()>,
    /// Bytes that mutations may still take before they ask for the room there is.
    pub(crate) space_granted: AtomicU64,
    /// Held until the store is closed.
    pub(crate) lock: Mutex<Option<Box<dyn Lock>>>,
}

/// Directory of the chunk files.
pub(crate) fn chunk_directory(directory: &std::path::Path) -> PathBuf {
    directory.join("chunks")
}
/// Name of a chunk's file.
pub(crate) fn chunk_file_name(handle: ChunkHandle, generation: u64) -> String {
    format!("{:016x}-{generation:x}", handle.raw())
}

impl Disk {
    /// The name of the disk in messages.
    pub(crate) fn name(&self) -> String {
        self.directory.display().to_string()
    }

    /// The first failure, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Stops the disk for good: an error of a sync or a write says that what we think is on it may not be. It is never
    /// tried again as if nothing had happened, since the kernel forgets the pages that it could not write.
    pub(crate) fn fail(&self, doing: &str, cause: &io::Error) -> Error {
        let error = Error::failed(&self.directory, doing, cause);
        if self.failure.set(error.clone()).is_ok() {
            tracing::error!(disk = %self.directory.display(), %cause, doing, "disk stopped");
        }
        self.log.wake();
        self.failure.get().cloned().unwrap_or(error)
    }

    /// An error of what opens a file or a directory: that no more can be open now stops nothing.
    pub(crate) fn fail_unless_busy(&self, doing: &str, cause: &io::Error) -> Error {
        Error::too_many_files(cause).unwrap_or_else(|| self.fail(doing, cause))
    }

    /// An error of a write or of a new file: want of room stops nothing, neither on the disk nor in a quota. Not for syncs:
    /// one that fails so has lost what was written.
    pub(crate) fn fail_unless_full(&self, doing: &str, cause: &io::Error) -> Error {
        if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Error::DiskFull { disk: self.name() };
        }
        self.fail_unless_busy(doing, cause)
    }

    pub(crate) fn state(&self) -> DiskState {
        let space = self.files.space(&self.directory);
        let failure = match (&space, self.failure.get()) {
            (_, Some(error)) => Some(error.to_string()),
            (Err(error), None) => Some(error.to_string()),
            (Ok(_), None) => None,
        };
        let (total_bytes, free_bytes) = space.map_or((0, 0), |space| (space.total_bytes, space.free_bytes));
        DiskState {
            directory: self.directory.clone(),
            total_bytes,
            free_bytes: free_bytes.saturating_sub(self.headroom_bytes()),
            chunks: self.chunks.read().len() as u64,
            failure,
        }
    }

    /// Room that chunks may not take: what is configured, and for tables that only say what has changed until they are as
    /// large as the full one, and the next full one beside them. On a large disk that is the larger part (T34).
    fn headroom_bytes(&self) -> u64 {
        let tables = self.table_bytes.load(Ordering::Relaxed);
        self.options.headroom_bytes.saturating_add(tables.saturating_mul(2))
    }

    /// Refuses if so many more bytes would reach the headroom (T34).
    pub(crate) fn check_space(&self, bytes: u64) -> Result<()> {
        self.space_beyond(bytes).map(drop)
    }

    /// The room that so many more bytes would leave above the headroom.
    fn space_beyond(&self, bytes: u64) -> Result<u64> {
        let space =
            self.files.space(&self.directory).map_err(|error| self.fail("asking for space", &error))?;
        space
            .free_bytes
            .checked_sub(self.headroom_bytes().saturating_add(bytes))
            .ok_or_else(|| Error::DiskFull { disk: self.name() })
    }

    /// The same for bytes that are added, without asking the filesystem each time: one answer is good for a sixteenth of the
    /// room that there was, so that the headroom is reached in ever smaller steps, and never for much of the headroom.
    pub(crate) fn take_space(&self, bytes: u64) -> Result<()> {
        let take = |granted: u64| granted.checked_sub(bytes);
        if self.space_granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        let left = self.space_beyond(bytes)?;
        let granted = (left.min(self.headroom_bytes()) / 16).min(SPACE_GRANT_BYTES_MAX);
        self.space_granted.store(granted, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn chunk(&self, handle: ChunkHandle) -> Option<Arc<Chunk>> {
        self.chunks.read().get(&handle).cloned()
    }

    /// A generation that no file has had.
    pub(crate) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a record of a locked chunk to the log. The chunk is dirty from before the record has a sequence, so a
    /// checkpoint that starts after the record does not miss it.
    pub(crate) fn record(
        &self,
        (chunk, state): (&Arc<Chunk>, &mut State),
        permit: &mut Permit<'_>,
        record: &Record,
        then: Then,
    ) -> u64 {
        self.dirty.lock().insert(chunk.handle, chunk.clone());
        let sequence = self.log.append(permit, record.encode(), then);
        state.last_sequence = sequence;
        sequence
    }

    pub(crate) fn path_of(&self, handle: ChunkHandle, generation: u64) -> PathBuf {
        chunk_directory(&self.directory).join(chunk_file_name(handle, generation))
    }

    /// The file of a locked chunk, made if it is not there yet.
    pub(crate) fn file(&self, chunk: &Chunk, state: &mut State) -> io::Result<Arc<dyn File>> {
        let path = self.path_of(chunk.handle, state.meta.generation);
        if state.created {
            return self.open_files.open(&path, Open::Existing);
        }
        let file = self.open_files.open(&path, Open::Create)?;
        state.created = true;
        state.name_change = self.name_changes.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(file)
    }

    /// The file of a locked chunk, if it has been made.
    pub(crate) fn existing_file(&self, chunk: &Chunk, state: &State) -> io::Result<Option<Arc<dyn File>>> {
        if !state.created {
            return Ok(None);
        }
        self.open_files.open(&self.path_of(chunk.handle, state.meta.generation), Open::Existing).map(Some)
    }

    /// Removes a file that nothing names any more.
    pub(crate) fn remove_file(&self, path: &std::path::Path) -> Result<()> {
        fault::at("store::file::before_remove");
        match self.open_files.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.fail("removing a chunk", &error))
            }
            _ => Ok(()),
        }
    }

    /// Syncs a chunk's file, and its name if it is new. The lock is not held meanwhile; on return it covers all writes
    /// that had been made before the call.
    pub(crate) fn sync_file<'a>(
        &self,
        chunk: &'a Chunk,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>> {
        if state.writes == state.writes_synced || !state.created || state.removed {
            return Ok(state);
        }
        let (writes, generation, name_change) = (state.writes, state.meta.generation, state.name_change);
        let file =
            self.file(chunk, &mut state).map_err(|error| self.fail_unless_busy("opening a chunk", &error))?;
        drop(state);
        let turn = chunk.syncing.lock();
        // Guard failed_sync_repeated: after one that failed this one would succeed, and prove nothing.
        self.check()?;
        fault::try_at("store::file::before_sync")
            // Mutant file_not_synced: the file is taken for synced when it is not.
            .and_then(|()| if fault::mutant("file_not_synced") { Ok(()) } else { file.sync_data() })
            .map_err(|error| self.fail("syncing a chunk", &error))?;
        drop(turn);
        fault::at("store::file::synced");
        self.sync_names(name_change)?;
        let mut state = chunk.state.lock();
        if state.meta.generation == generation {
            state.writes_synced = state.writes_synced.max(writes);
        }
        Ok(state)
    }

    /// Makes new names in the directory of chunks durable up to this change; one sync serves all that wait.
    pub(crate) fn sync_names(&self, change: u64) -> Result<()> {
        let mut synced = self.names_synced.lock();
        // Mutant names_not_synced: a file is durable, its name is not.
        if *synced >= change || fault::mutant("names_not_synced") {
            return Ok(());
        }
        self.check()?;
        let now = self.name_changes.load(Ordering::SeqCst);
        fault::try_at("store::names::before_sync")
            .and_then(|()| self.files.sync_directory(&chunk_directory(&self.directory)))
            .map_err(|error| self.fail_unless_busy("syncing a directory", &error))?;
        *synced = now;
        Ok(())
    }

    /// Writes bytes of a locked chunk to its file, as far as the page cache.
    pub(crate) fn write_file(
        &self,
        chunk: &Chunk,
        state: &mut State,
        offset: u32,
        data: &[u8],
    ) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let failed = |error: io::Error| self.fail_unless_full("writing a chunk", &error);
        let file = fault::try_at("store::file::before_write").and_then(|()| self.file(chunk, state));
        let file = file.map_err(failed)?;
        state.writes += 1;
        let written = file.write_at(data, offset.into()).map_err(failed);
        if matches!(written, Err(Error::DiskFull { .. })) {
            // The file that is open: perhaps no other can be opened now.
            self.cut(chunk, &*file, state.length())?;
        }
        written
    }

    /// Takes away what lies in the file behind the chunk's length, durably: a hole that is made there later has to read
    /// as zeros.
    pub(crate) fn cut_tail(&self, chunk: &Chunk, state: &mut State) -> Result<()> {
        if !state.created {
            return Ok(());
        }
        state.writes += 1;
        let file =
            self.file(chunk, state).map_err(|error| self.fail_unless_busy("opening a chunk", &error))?;
        self.cut(chunk, &*file, state.length())
    }

    fn cut(&self, chunk: &Chunk, file: &dyn File, length: u32) -> Result<()> {
        let length = u64::from(length);
        let _turn = chunk.syncing.lock();
        let cut = || {
            if file.len()? > length {
                file.set_len(length)?;
                file.sync_all()?;
            }
            Ok(())
        };
        cut().map_err(|error| self.fail("cutting a chunk", &error))
    }

    /// Brings overlays whose records are durable into the file of a locked chunk, in order.
    pub(crate) fn settle(&self, chunk: &Chunk, state: &mut State) -> Result<()> {
        let durable = self.log.durable();
        while let Some(overlay) = state.overlays.front() {
            if overlay.sequence > durable {
                break;
            }
            let (offset, data) = (overlay.offset, overlay.data.clone());
            // A mutation's bytes fit in a chunk (`apply::check`).
            let blocks = read::blocks_in(offset, u32::try_from(data.len()).unwrap_or(u32::MAX));
            if state.lending.has(&blocks) {
                self.renew_file(chunk, state)?;
            }
            self.write_overlay(chunk, state, offset, &data)?;
            state.overlays.pop_front();
        }
        Ok(())
    }

    /// Gives a locked chunk another file with the same bytes: what was lent stays what it was, for as long as somebody has
    /// it (guard `sent_and_overwritten`).
    fn renew_file(&self, chunk: &Chunk, state: &mut State) -> Result<()> {
        let path = self.path_of(chunk.handle, state.meta.generation);
        let beside = self.path_of(chunk.handle, self.next_generation());
        // One at a time, so that the room of one is enough.
        let turn = self.renewing.lock();
        let file =
            self.file(chunk, state).map_err(|error| self.fail_unless_busy("opening a chunk", &error))?;
        // It may go into the headroom, and may not use up the last of it: other changes are promised, too.
        let space =
            self.files.space(&self.directory).map_err(|error| self.fail("asking for space", &error))?;
        if space.free_bytes < u64::from(state.length()) {
            return Err(Error::DiskFull { disk: self.name() });
        }
        let renewed = self.copy_file(&*file, &beside).and_then(|()| self.open_files.rename(&beside, &path));
        if let Err(error) = renewed {
            self.remove_file(&beside)?;
            return Err(self.fail_unless_full("copying a chunk", &error));
        }
        drop(turn);
        // Before anything is written to it: else a power cut might bring back the old one, which never gets that.
        state.name_change = self.name_changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.sync_names(state.name_change)?;
        state.lending = Lending::Over(0..0);
        tracing::debug!(handle = %chunk.handle, "a file that may still be being sent was replaced by a copy");
        Ok(())
    }

    /// Copies a file as it is, durably. What can't be read is left out: its checksum finds that.
    fn copy_file(&self, from: &dyn File, to: &std::path::Path) -> io::Result<()> {
        let to = self.files.open(to, Open::Create)?;
        if let (Some(from), Some(to)) = (from.descriptor(), to.descriptor())
            && rustix::fs::ioctl_ficlone(to, from).is_ok()
        {
            return rustix::fs::fsync(to).map_err(io::Error::from);
        }
        let length = from.len()?;
        to.set_len(length)?;
        let mut block = vec![0; BLOCK_BYTES as usize];
        for offset in (0..length).step_by(block.len()) {
            match from.read_at(&mut block, offset) {
                // A hole stays one.
                Ok(read) if block[..read].iter().any(|byte| *byte != 0) => {
                    to.write_at(&block[..read], offset)?;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(disk = %self.name(), %error, offset, "not copied"),
            }
        }
        to.sync_all()
    }

    /// Unlike a new write, this one is promised already. Its room is taken (`apply`); should there be none all the same, or no
    /// more files can be open, it is made later: until then the log has it, and every checkpoint tries again.
    fn write_overlay(&self, chunk: &Chunk, state: &mut State, offset: u32, data: &Bytes) -> Result<()> {
        state.writes += 1;
        fault::try_at("store::settle::before_write")
            .and_then(|()| self.file(chunk, state))
            .and_then(|file| file.write_at(data, offset.into()))
            .map_err(|error| self.fail_unless_full("writing a logged change to its chunk", &error))
    }

    /// Waits until all overlays of a locked chunk can be settled, and settles them.
    pub(crate) fn settle_all(&self, chunk: &Chunk, state: &mut State) -> Result<()> {
        if let Some(last) = state.overlays.back() {
            self.log.wait_durable(last.sequence)?;
            self.settle(chunk, state)?;
        }
        Ok(())
    }
}
