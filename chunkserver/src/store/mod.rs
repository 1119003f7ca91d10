//! The chunks of this server, on its disks: plain files, with checksums and everything else that is known of them carried
//! by one log per disk. Blocking, safe to share between threads, knows no network. A task that calls it is to do so within
//! `gfs_proto::net::blocking`; only [`Store::apply`] and what just looks into the memory see to that themselves.

mod adopt;
mod apply;
mod block;
mod chunk;
mod content;
mod copy;
mod disk;
mod error;
pub mod files;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod identity;
mod log;
mod open;
mod open_files;
mod read;
mod recover;
mod replica;
mod requests;
mod scrub;
mod segment;
mod table;
mod ticket;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, ClusterId, RequestId, Serial, ServerId, Uuid};
use gfs_proto::random::Random;
use gfs_proto::size::ChunkBytes;
use gfs_proto::work::Workers;
use parking_lot::Mutex;

pub use adopt::{Adoption, Origin};
pub use content::{
    Content, DiskState, Durability, Membership, Mutation, MutationKind, Outcome, REQUESTS_MAX, ReplicaState,
};
pub use error::{Error, Result};
pub use requests::{Recall, Requests};
pub use ticket::Ticket;

use chunk::Chunk;
use disk::Disk;
use identity::IdentityFile;
use replica::Empty;
use scrub::Cursor;
use worker::Threads;

/// Sizes of a store, and who works for it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest chunk that is taken.
    pub chunk_bytes_max: ChunkBytes,
    /// Bytes of one log segment.
    pub segment_bytes: u32,
    /// Most segments of one log.
    pub segments: u32,
    /// Room on each disk that chunks may not take, for the store itself: the segments that its log may still get, and tables.
    pub headroom_bytes: u64,
    /// Most files that are kept open.
    pub open_files: usize,
    /// A new directory beside known ones is a new disk, not an emptied one.
    pub add_directories: bool,
    /// Who writes the log and syncs the files: threads of the store, or tasks of the runtime that opens it.
    pub workers: Workers,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk_bytes_max: ChunkBytes::DEFAULT,
            segment_bytes: u32::try_from(fault::tuned("segment_bytes", 64 << 20)).unwrap_or(u32::MAX),
            segments: 4,
            headroom_bytes: 512 << 20,
            open_files: 512,
            add_directories: false,
            workers: Workers::Threads,
        }
    }
}

/// Who this server is, as its directories say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Made with the first directory; registering with it again gives the same server id.
    pub uuid: Uuid,
    /// The cluster that it belongs to, and its id there, once it has registered.
    pub registered: Option<(ClusterId, ServerId)>,
}

/// A verified read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The bytes.
    pub data: Bytes,
    /// CRC-32 of each piece between block borders ([`gfs_proto::size::block_pieces`]).
    pub crcs: Vec<u32>,
}

/// Whole blocks of a chunk, to be sent from the page cache without looking at them: the receiver checks.
#[derive(Clone)]
pub struct FileRange {
    /// The chunk's file; stays good for reading even if the chunk is deleted or replaced.
    pub file: Arc<dyn files::File>,
    /// CRC-32 of each block.
    pub crcs: Vec<u32>,
}

/// What one step of the scrubber found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Chunks that were read to their end.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Blocks that do not match.
    pub corrupt: Vec<(ChunkHandle, u32)>,
}

/// All chunks of this server. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    disks: Vec<Arc<Disk>>,
    /// Directories that could not be opened, and why.
    lost: Vec<DiskState>,
    identities: Mutex<Vec<(usize, IdentityFile)>>,
    threads: Mutex<Vec<(Arc<Disk>, Threads)>>,
    scrub: Mutex<Cursor>,
}

impl Store {
    /// Opens or makes the directories and recovers what they hold. A directory that can't be read costs its chunks,
    /// as long as another one is left ([`Store::disks`] says why).
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NewerFormat`], [`Error::WrongDirectory`] if a directory must not be used;
    /// [`Error::Damaged`] or [`Error::DiskFailed`] if none is left.
    pub fn open(
        directories: &[PathBuf],
        options: Options,
        files: Arc<dyn files::Files>,
        random: &dyn Random,
    ) -> Result<Self> {
        open::open(directories, options, &files, random).map(|inner| Self { inner: Arc::new(inner) })
    }
    /// Makes everything durable and leaves the directories clean. The store takes nothing after that.
    ///
    /// # Errors
    /// The disks': the next start then recovers as after a crash.
    pub fn close(&self) -> Result<()> {
        let mut result = Ok(());
        for (disk, threads) in std::mem::take(&mut *self.inner.threads.lock()) {
            threads.end(&disk);
            disk.log.stop();
            let closed = table::checkpoint(&disk, table::Closing::Yes);
            *disk.lock.lock() = None;
            result = result.and(closed);
        }
        result
    }

    /// Who this server is.
    pub fn identity(&self) -> Identity {
        let identities = self.inner.identities.lock();
        let first = identities.first().map(|(_, identity)| identity);
        let nobody = Uuid::from_bytes([0; 16]);
        Identity {
            uuid: first.map_or(nobody, |identity| identity.uuid),
            registered: first.and_then(IdentityFile::registered),
        }
    }
    /// Remembers cluster and server id, durably.
    ///
    /// # Errors
    /// [`Error::WrongDirectory`] if it has others already; the disks'.
    pub fn set_identity(&self, cluster: ClusterId, server: ServerId) -> Result<()> {
        let mut identities = self.inner.identities.lock();
        for (index, identity) in &mut *identities {
            let disk = &self.inner.disks[*index];
            match identity.registered() {
                Some(registered) if registered == (cluster, server) => {}
                Some((cluster, server)) => {
                    let reason = format!("belongs to server {server} of cluster {cluster}");
                    return Err(Error::WrongDirectory { disk: disk.name(), reason });
                }
                None => identity.register((cluster, server), &*disk.files, &disk.directory)?,
            }
        }
        Ok(())
    }
    /// Room and failures, disk by disk.
    pub fn disks(&self) -> Vec<DiskState> {
        let disks = self.inner.disks.iter().map(|disk| disk.state());
        disks.chain(self.inner.lost.iter().cloned()).collect()
    }

    /// How many disks have stopped since the start. One that only can't say how much room it has is none of them: what is
    /// on it is still served.
    pub fn failed_disks(&self) -> usize {
        self.inner.disks.len() - self.healthy().count()
    }

    /// All replicas, in the order of their handles. Those on a failed disk are gone.
    pub fn list(&self) -> Vec<ReplicaState> {
        let chunks: BTreeMap<ChunkHandle, Arc<Chunk>> =
            self.healthy().flat_map(|disk| disk.chunks.read().clone()).collect();
        chunks.values().map(|chunk| chunk.summary()).collect()
    }
    /// One replica.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn state(&self, handle: ChunkHandle) -> Result<ReplicaState> {
        let (disk, chunk) = self.find(handle)?;
        disk.check()?;
        Ok(chunk.summary())
    }
    /// All that a replica holds but the bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn content(&self, handle: ChunkHandle) -> Result<Content> {
        let (disk, chunk) = self.find(handle)?;
        disk.check()?;
        Ok(chunk.state.lock().meta.content.clone())
    }

    /// What the content says of a request, and how many entries about requests it keeps.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn recall(&self, handle: ChunkHandle, request: RequestId) -> Result<(Recall, usize)> {
        let (disk, chunk) = self.find(handle)?;
        disk.check()?;
        let state = chunk.lock();
        let requests = &state.meta.content.requests;
        Ok((requests.recall(request), requests.len()))
    }

    /// Makes an empty replica at the version of a fresh grant, adopted at once; durable. A replica at a lower version is
    /// emptied (its grant was never confirmed, so it has no acknowledged content).
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if the stored version is higher; [`Error::DiskFull`] and the disk's.
    pub fn create(&self, handle: ChunkHandle, version: ChunkVersion) -> Result<ReplicaState> {
        self.make(handle, version, Empty::Fresh, replica::create_again)
    }
    /// Stores a higher version, durably; the same again is harmless. Guard *version_not_durable*.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if the stored version is higher; [`Error::NoSuchChunk`] if a base member has no
    /// replica; the disk's.
    pub fn store_version(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        membership: Membership,
    ) -> Result<ReplicaState> {
        match membership {
            Membership::Base => {
                let (disk, chunk) = self.find(handle)?;
                replica::store_version(disk, &chunk, version, membership)
            }
            Membership::Joiner => self.make(handle, version, Empty::Partial, |disk, chunk, version| {
                replica::store_version(disk, chunk, version, membership)
            }),
        }
    }
    /// Starts to take over reconciled content at the stored version. What is here counts if it has the same history.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], [`Error::AlreadyAdopted`] (guard *adopt_twice*), [`Error::BadContent`],
    /// [`Error::DiskFull`] and the disk's.
    pub fn adopt(&self, at: (ChunkHandle, ChunkVersion), content: (Content, Origin)) -> Result<Adoption> {
        let (disk, chunk) = self.find(at.0)?;
        disk.check()?;
        adopt::adopt(disk, &chunk, at.1, content)
    }
    /// Copies a replica that nobody mutates under a new handle, durably; the same again is harmless.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], [`Error::NotAdopted`] and [`Error::Corrupt`] if the source is not good at that version;
    /// [`Error::DiskFull`] and the disks'.
    pub fn copy(
        &self,
        source: (ChunkHandle, ChunkVersion),
        copy: (ChunkHandle, ChunkVersion),
    ) -> Result<ReplicaState> {
        copy::copy(self, source, copy)
    }
    /// Removes a replica, durably, if its stored version is at most this; tells whether it did.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete(&self, handle: ChunkHandle, version_max: ChunkVersion) -> Result<bool> {
        match self.find(handle) {
            Ok((disk, chunk)) => replica::delete(disk, &chunk, version_max),
            Err(_) => Ok(false),
        }
    }

    /// Applies the next mutation: readable when this returns, durable when the ticket says so.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], [`Error::NotAdopted`], [`Error::Gap`], [`Error::DuplicateRequest`],
    /// [`Error::Sealed`], [`Error::OutOfRange`], [`Error::Corrupt`] if a block that the mutation changes in part does
    /// not verify, [`Error::Busy`], [`Error::DiskFull`] and the disk's.
    pub fn apply(&self, handle: ChunkHandle, mutation: &Mutation) -> Result<Ticket> {
        let (disk, chunk) = self.find(handle)?;
        apply::apply(disk, &chunk, mutation)
    }
    /// Reads bytes below the length, verified; the caller keeps within what is committed.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Corrupt`] (and the replica is marked), [`Error::NoSuchChunk`], the disk's.
    pub fn read(&self, handle: ChunkHandle, offset: u32, length: u32) -> Result<Read> {
        let (disk, chunk) = self.find(handle)?;
        read::read(disk, &chunk, offset, length)
    }
    /// Whole blocks below the length, for sending from the file; `offset` and `length` are multiples of a block.
    ///
    /// # Errors
    /// [`Error::NotFromFile`] if bytes of the range are not in the file yet: [`Store::read`] has them. Else as there.
    pub fn file_range(&self, handle: ChunkHandle, offset: u32, length: u32) -> Result<FileRange> {
        let (disk, chunk) = self.find(handle)?;
        read::file_range(disk, &chunk, offset, length)
    }

    /// Notes that the adopted content and mutations up to `serial` are committed; written lazily, never goes backwards.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::VersionMismatch`] if that is not the adopted version.
    pub fn set_commit_mark(&self, handle: ChunkHandle, version: ChunkVersion, serial: Serial) -> Result<()> {
        let (disk, chunk) = self.find(handle)?;
        let mut state = chunk.state.lock();
        let here = state.meta.adopted;
        if here != version {
            return Err(Error::VersionMismatch { handle, asked: version, here });
        }
        let serial = serial.min(state.meta.content.serial);
        if Some(serial) > state.meta.commit_mark {
            state.meta.commit_mark = Some(serial);
            disk.lazy.lock().insert(handle, chunk.clone());
        }
        Ok(())
    }
    /// Marks a replica as corrupt, until it adopts.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`].
    pub fn mark_corrupt(&self, handle: ChunkHandle) -> Result<()> {
        let (disk, chunk) = self.find(handle)?;
        read::mark_corrupt(disk, &chunk, &mut chunk.state.lock());
        Ok(())
    }
    /// Up to `limit` clients of which requests are kept, the lowest ids after `after`.
    pub fn clients(&self, after: ClientId, limit: usize) -> BTreeSet<ClientId> {
        let mut clients = BTreeSet::new();
        for disk in self.healthy() {
            let chunks: Vec<Arc<Chunk>> = disk.chunks.read().values().cloned().collect();
            for chunk in chunks {
                chunk.clients(after, limit, &mut clients);
            }
        }
        clients
    }
    /// Forgets the requests of sessions that have expired everywhere; the chunks that had any. Failed disks have none.
    ///
    /// # Errors
    /// The first disk's that could not; the others have all the same.
    pub fn forget_requests(&self, clients: &[ClientId]) -> Result<BTreeSet<ChunkHandle>> {
        let mut changed = BTreeSet::new();
        let mut result = Ok(());
        for disk in self.healthy() {
            // One that is full, or fails at this moment, does not keep the others from it.
            result = result.and(requests::forget(disk, clients, &mut changed));
        }
        result.map(|()| changed)
    }
    /// Reads a whole replica and returns the blocks that do not match; marks it if there are any.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], the disk's.
    pub fn verify(&self, handle: ChunkHandle) -> Result<Vec<u32>> {
        let (disk, chunk) = self.find(handle)?;
        scrub::verify(disk, &chunk)
    }
    /// Verifies about `bytes` more of everything that is here, going round and round (GFS §5.2).
    ///
    /// # Errors
    /// The disk's.
    pub fn scrub(&self, bytes: u64) -> Result<Scrubbed> {
        let mut scrubbed = Scrubbed::default();
        let mut cursor = self.inner.scrub.lock();
        // Once round at most, should everything be shorter than that. A chunk costs something, however short it is.
        let chunks = self.healthy().map(|disk| disk.chunks.read().len() as u64).sum();
        let spent = |done: &Scrubbed| done.bytes + done.chunks * u64::from(gfs_proto::size::BLOCK_BYTES);
        while spent(&scrubbed) < bytes && scrubbed.chunks < chunks {
            let more = match self.find(cursor.handle) {
                Ok((disk, chunk)) if disk.check().is_ok() => cursor.step(disk, &chunk, &mut scrubbed)?,
                _ => false,
            };
            if !more {
                match self.next_chunk(cursor.handle) {
                    Some(handle) => *cursor = Cursor::at(handle),
                    None => break,
                }
            }
        }
        Ok(scrubbed)
    }

    fn healthy(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.inner.disks.iter().filter(|disk| disk.check().is_ok())
    }

    fn find(&self, handle: ChunkHandle) -> Result<(&Arc<Disk>, Arc<Chunk>)> {
        let found = self.inner.disks.iter().filter_map(|disk| Some((disk, disk.chunk(handle)?)));
        // It may have been made anew since its first disk failed.
        found.min_by_key(|(disk, _)| disk.check().is_err()).ok_or(Error::NoSuchChunk { handle })
    }

    /// The chunk after this one, or the first one.
    fn next_chunk(&self, handle: ChunkHandle) -> Option<ChunkHandle> {
        let after = (std::ops::Bound::Excluded(handle), std::ops::Bound::Unbounded);
        let next = self
            .healthy()
            .filter_map(|disk| disk.chunks.read().range(after).next().map(|(next, _)| *next))
            .min();
        next.or_else(|| self.healthy().filter_map(|disk| disk.chunks.read().keys().next().copied()).min())
    }

    /// Makes an empty replica on the disk with most room, or does `again` to the one that is there.
    fn make(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        empty: Empty,
        again: impl Fn(&Arc<Disk>, &Arc<Chunk>, ChunkVersion) -> Result<ReplicaState>,
    ) -> Result<ReplicaState> {
        for _ in 0..MAKE_TRIES {
            if let Ok((disk, chunk)) = self.find(handle)
                && disk.check().is_ok()
            {
                match again(disk, &chunk, version) {
                    // Deleted at this moment.
                    Err(Error::NoSuchChunk { .. }) => continue,
                    other => return other,
                }
            }
            let disk = self.healthy().max_by_key(|disk| disk.state().free_bytes).ok_or(Error::Closed)?;
            if let Some(made) = replica::make(disk, handle, version, empty)? {
                return Ok(made);
            }
        }
        Err(Error::Busy { what: "the chunk" })
    }
}

/// How often a chunk that comes and goes is tried to be made.
const MAKE_TRIES: usize = 16;

impl Drop for Inner {
    /// Ends the threads, and leaves the directories as a crash would: only [`Store::close`] leaves them clean.
    fn drop(&mut self) {
        for (disk, threads) in std::mem::take(&mut *self.threads.lock()) {
            threads.leave(&disk);
            disk.log.stop();
            *disk.lock.lock() = None;
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}
