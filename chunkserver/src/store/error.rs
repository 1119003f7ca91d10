//! What the store can't do, split by what the caller does next.

use std::io;
use std::path::Path;

use gfs_proto::id::{ChunkHandle, ChunkVersion, Serial, ServerId};
use rustix::io::Errno;

/// What [`Error::Busy`] names if this process, or the machine, can open no more files for now.
pub(crate) const OPEN_FILES: &str = "the table of open files";

/// Shorthand for results of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in the store. Nothing was changed, unless a variant says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- about one chunk ----
    /// There is no replica of this chunk here.
    #[error("{handle}: no such chunk here")]
    NoSuchChunk {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// The stored version is not the one that was asked for, or would go backwards.
    #[error("{handle}: {asked} was asked for, here is {here}")]
    VersionMismatch {
        /// The chunk.
        handle: ChunkHandle,
        /// In the request.
        asked: ChunkVersion,
        /// Stored here.
        here: ChunkVersion,
    },
    /// The replica has not adopted the content of its version, so it can't be changed.
    #[error("{handle}: not adopted at {version}")]
    NotAdopted {
        /// The chunk.
        handle: ChunkHandle,
        /// The stored version.
        version: ChunkVersion,
    },
    /// Content was adopted at this version before; it is taken once per version.
    #[error("{handle}: adopted at {version} already")]
    AlreadyAdopted {
        /// The chunk.
        handle: ChunkHandle,
        /// The stored version.
        version: ChunkVersion,
    },
    /// An adoption was overtaken by a newer version or another adoption.
    #[error("{handle}: the adoption was overtaken")]
    AdoptionOvertaken {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// The mutation is not the next one.
    #[error("{handle}: {asked} came, {expected} is next")]
    Gap {
        /// The chunk.
        handle: ChunkHandle,
        /// In the mutation.
        asked: Serial,
        /// The next one.
        expected: Serial,
    },
    /// The request id is in the content already.
    #[error("{handle}: the request was applied before, at {offset}")]
    DuplicateRequest {
        /// The chunk.
        handle: ChunkHandle,
        /// Where its mutation lies.
        offset: u32,
        /// How many bytes it has.
        length: u32,
    },
    /// The chunk takes no more appends.
    #[error("{handle}: sealed")]
    Sealed {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// The range does not fit: past the end of the chunk, or past what is there.
    #[error("{handle}: {offset}+{length} is out of range, the end is {end}")]
    OutOfRange {
        /// The chunk.
        handle: ChunkHandle,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Where the range has to end.
        end: u64,
    },
    /// A block's bytes do not match its checksum.
    #[error("{handle}: checksum mismatch in block {block}")]
    Corrupt {
        /// The chunk.
        handle: ChunkHandle,
        /// Index of the 64 KiB block.
        block: u32,
    },
    /// The content given to adopt contradicts itself, or an adoption is committed before it is whole.
    #[error("{handle}: bad content: {what}")]
    BadContent {
        /// The chunk.
        handle: ChunkHandle,
        /// What is wrong.
        what: &'static str,
    },
    /// The range can't be sent from the file now: read it instead.
    #[error("{handle}: not servable from the file now")]
    NotFromFile {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// A bound of the store is reached.
    #[error("{what} is full")]
    Busy {
        /// Which.
        what: &'static str,
    },

    // ---- about a disk ----
    /// The disk is at its headroom.
    #[error("no space left on {disk}")]
    DiskFull {
        /// Its directory.
        disk: String,
    },
    /// The disk failed, once and for all until the server restarts: what is on it is not served.
    #[error("disk {disk} failed: {cause}")]
    DiskFailed {
        /// Its directory.
        disk: String,
        /// The first failure.
        cause: String,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,

    // ---- a directory that must not be opened ----
    /// Another process has the directory.
    #[error("{disk}: in use by another process")]
    Locked {
        /// The directory.
        disk: String,
    },
    /// The directory was written by a newer version of this program.
    #[error("{disk}: format {found}, this program knows up to {known}")]
    NewerFormat {
        /// The directory.
        disk: String,
        /// Its format.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The directory is not the one it says it is: copied, emptied, or of another server.
    #[error("{disk}: {reason}")]
    WrongDirectory {
        /// The directory.
        disk: String,
        /// Why.
        reason: String,
    },
    /// The store's own files are damaged.
    #[error("{disk}: {what} is damaged")]
    Damaged {
        /// The directory.
        disk: String,
        /// Which file.
        what: String,
    },
}

impl Error {
    /// A disk failure with the text of its cause.
    pub(crate) fn failed(disk: &Path, doing: &str, cause: &io::Error) -> Self {
        Self::DiskFailed { disk: disk.display().to_string(), cause: format!("{doing}: {cause}") }
    }

    /// [`Error::Busy`] if that is the cause: it says nothing about the disk. Only an open fails so, and has done nothing.
    pub(crate) fn too_many_files(cause: &io::Error) -> Option<Self> {
        let too_many = matches!(Errno::from_io_error(cause), Some(Errno::MFILE | Errno::NFILE));
        too_many.then_some(Self::Busy { what: OPEN_FILES })
    }

    /// The error of the wire; `server` is this one.
    pub fn to_wire(&self, server: ServerId) -> gfs_proto::Error {
        use gfs_proto::Error as Wire;
        match self {
            Self::NoSuchChunk { handle } => Wire::NoSuchChunk { handle: *handle },
            Self::VersionMismatch { handle, asked, here } => {
                Wire::VersionMismatch { handle: *handle, asked: *asked, here: *here }
            }
            Self::NotAdopted { handle, .. } => Wire::NotValidated { handle: *handle, damaged: false },
            Self::Sealed { handle } => Wire::Sealed { handle: *handle },
            Self::Corrupt { handle, block } => Wire::Corrupt { handle: *handle, block: *block },
            Self::OutOfRange { .. } | Self::BadContent { .. } => Wire::bad_argument(self),
            Self::Busy { what } => Wire::Busy { what: (*what).to_owned() },
            Self::DiskFull { .. } => Wire::DiskFull { server },
            Self::AlreadyAdopted { .. }
            | Self::AdoptionOvertaken { .. }
            | Self::Gap { .. }
            | Self::DuplicateRequest { .. }
            | Self::NotFromFile { .. }
            | Self::DiskFailed { .. }
            | Self::Closed
            | Self::Locked { .. }
            | Self::NewerFormat { .. }
            | Self::WrongDirectory { .. }
            | Self::Damaged { .. } => Wire::unavailable(self),
        }
    }
}

impl From<Error> for gfs_proto::Error {
    /// As [`Error::to_wire`], without saying which server it is.
    fn from(error: Error) -> Self {
        error.to_wire(ServerId::default())
    }
}
