//! The chunks of this server, on its disks: plain files, with checksums and everything else that is known of them carried
//! by one log per disk. Blocking, safe to share between threads, knows no network.

mod adopt;
mod content;
mod error;
pub mod files;
mod ticket;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, ClusterId, RequestId, Serial, ServerId, Uuid};
use gfs_proto::random::Random;
use gfs_proto::size::ChunkBytes;

pub use adopt::Adoption;
pub use content::{
    Content, DiskState, Durability, Membership, Mutation, MutationKind, Outcome, REQUESTS_MAX, ReplicaState,
};
pub use error::{Error, Result};
pub use ticket::Ticket;

/// Sizes of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Largest chunk that is taken.
    pub chunk_bytes_max: ChunkBytes,
    /// Bytes of one log segment.
    pub segment_bytes: u32,
    /// Most segments of one log.
    pub segments: u32,
    /// Room on each disk that chunks may not take, for the store itself.
    pub headroom_bytes: u64,
    /// Most files that are kept open.
    pub open_files: usize,
    /// A new directory beside known ones is a new disk, not an emptied one.
    pub add_directories: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk_bytes_max: ChunkBytes::DEFAULT,
            segment_bytes: 64 << 20,
            segments: 4,
            headroom_bytes: 512 << 20,
            open_files: 512,
            add_directories: false,
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

/// All chunks of this server.
#[derive(Clone)]
pub struct Store {}

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
        let _ = (directories, options, files, random);
        Err(Error::Closed)
    }
    /// Makes everything durable and leaves the directories clean. The store takes nothing after that.
    ///
    /// # Errors
    /// The disks': the next start then recovers as after a crash.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Who this server is.
    pub fn identity(&self) -> Identity {
        Identity { uuid: Uuid::from_bytes([0; 16]), registered: None }
    }
    /// Remembers cluster and server id, durably.
    ///
    /// # Errors
    /// [`Error::WrongDirectory`] if it has others already; the disks'.
    pub fn set_identity(&self, cluster: ClusterId, server: ServerId) -> Result<()> {
        let _ = (cluster, server);
        Err(Error::Closed)
    }
    /// Room and failures, disk by disk.
    pub fn disks(&self) -> Vec<DiskState> {
        Vec::new()
    }

    /// All replicas, in the order of their handles. Those on a failed disk are gone.
    pub fn list(&self) -> Vec<ReplicaState> {
        Vec::new()
    }
    /// One replica.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn state(&self, handle: ChunkHandle) -> Result<ReplicaState> {
        Err(Error::NoSuchChunk { handle })
    }
    /// All that a replica holds but the bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn content(&self, handle: ChunkHandle) -> Result<Content> {
        Err(Error::NoSuchChunk { handle })
    }

    /// Where the mutation of a request lies, if its id is in the content.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::DiskFailed`].
    pub fn outcome(&self, handle: ChunkHandle, request: RequestId) -> Result<Option<Outcome>> {
        let _ = request;
        Err(Error::NoSuchChunk { handle })
    }

    /// Makes an empty replica at the version of a fresh grant, adopted at once; durable. A replica at a lower version is
    /// emptied (its grant was never confirmed, so it has no acknowledged content).
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if the stored version is higher; [`Error::DiskFull`] and the disk's.
    pub fn create(&self, handle: ChunkHandle, version: ChunkVersion) -> Result<ReplicaState> {
        let _ = version;
        Err(Error::NoSuchChunk { handle })
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
        let _ = (version, membership);
        Err(Error::NoSuchChunk { handle })
    }
    /// Starts to take over reconciled content at the stored version.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], [`Error::AlreadyAdopted`] (guard *adopt_twice*), [`Error::BadContent`],
    /// [`Error::DiskFull`] and the disk's.
    pub fn adopt(&self, handle: ChunkHandle, version: ChunkVersion, content: Content) -> Result<Adoption> {
        let _ = (version, content);
        Err(Error::NoSuchChunk { handle })
    }
    /// Removes a replica, durably, if its stored version is at most this; tells whether it did.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete(&self, handle: ChunkHandle, version_max: ChunkVersion) -> Result<bool> {
        let _ = version_max;
        Err(Error::NoSuchChunk { handle })
    }

    /// Applies the next mutation: readable when this returns, durable when the ticket says so.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`], [`Error::NotAdopted`], [`Error::Gap`], [`Error::DuplicateRequest`],
    /// [`Error::Sealed`], [`Error::OutOfRange`], [`Error::Corrupt`] if a block that the mutation changes in part does
    /// not verify, [`Error::Busy`], [`Error::DiskFull`] and the disk's.
    pub fn apply(&self, handle: ChunkHandle, mutation: &Mutation) -> Result<Ticket> {
        let _ = mutation;
        Err(Error::NoSuchChunk { handle })
    }
    /// Reads bytes below the length, verified; the caller keeps within what is committed.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Corrupt`] (and the replica is marked), [`Error::NoSuchChunk`], the disk's.
    pub fn read(&self, handle: ChunkHandle, offset: u32, length: u32) -> Result<Read> {
        let _ = (offset, length);
        Err(Error::NoSuchChunk { handle })
    }
    /// Whole blocks below the length, for sending from the file; `offset` and `length` are multiples of a block.
    ///
    /// # Errors
    /// [`Error::NotFromFile`] if bytes of the range are not in the file yet: [`Store::read`] has them. Else as there.
    pub fn file_range(&self, handle: ChunkHandle, offset: u32, length: u32) -> Result<FileRange> {
        let _ = (offset, length);
        Err(Error::NoSuchChunk { handle })
    }

    /// Notes that the adopted content and mutations up to `serial` are committed; written lazily, never goes backwards.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], [`Error::VersionMismatch`] if that is not the adopted version.
    pub fn set_commit_mark(&self, handle: ChunkHandle, version: ChunkVersion, serial: Serial) -> Result<()> {
        let _ = (version, serial);
        Err(Error::NoSuchChunk { handle })
    }
    /// Marks a replica as corrupt, until it adopts.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`].
    pub fn mark_corrupt(&self, handle: ChunkHandle) -> Result<()> {
        Err(Error::NoSuchChunk { handle })
    }
    /// Forgets the requests of sessions that have expired everywhere.
    ///
    /// # Errors
    /// The disks'.
    pub fn forget_requests(&self, clients: &[ClientId]) -> Result<()> {
        let _ = clients;
        Err(Error::Closed)
    }
    /// Reads a whole replica and returns the blocks that do not match; marks it if there are any.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`], the disk's.
    pub fn verify(&self, handle: ChunkHandle) -> Result<Vec<u32>> {
        Err(Error::NoSuchChunk { handle })
    }
    /// Verifies about `bytes` more of everything that is here, going round and round (GFS §5.2).
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn scrub(&self, bytes: u64) -> Result<Scrubbed> {
        let _ = bytes;
        Err(Error::Closed)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}
