//! One file, addressed by its id: it stays the same file when its path changes.

use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::id::{EntryId, ServerId};
use gfs_proto::{Error, Result};

use crate::client::Core;
use crate::entry::Chunk;
use crate::read::Reader;
use crate::write::Writer;

/// A file. Clones are the same file; calls may overlap.
#[derive(Clone, Debug)]
pub struct File {
    core: Arc<Core>,
    id: EntryId,
    path: String,
}

fn unbuilt() -> Error {
    Error::unavailable("not built yet")
}

impl File {
    pub(crate) fn new(core: Arc<Core>, id: EntryId, path: String) -> Self {
        Self { core, id, path }
    }

    /// Its id, never reused.
    pub fn id(&self) -> EntryId {
        self.id
    }
    /// The path by which it was opened.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its exact length in bytes now: what is acknowledged, up to the end of the last chunk that is not empty.
    ///
    /// # Errors
    /// What the master or the replicas say.
    #[expect(clippy::len_without_is_empty, reason = "asks servers")]
    pub async fn len(&self) -> Result<u64> {
        let _ = &self.core;
        Err(unbuilt())
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn read_at(&self, _offset: u64, _length: u64) -> Result<Bytes> {
        Err(unbuilt())
    }

    /// Reads from one replica's server, to compare replicas.
    ///
    /// # Errors
    /// What that server says; there is no retry elsewhere.
    pub async fn read_from(&self, _server: ServerId, _offset: u64, _length: u32) -> Result<Bytes> {
        Err(unbuilt())
    }

    /// Writes at `offset`; the file grows as needed, and what is skipped reads as zeros.
    ///
    /// # Errors
    /// What the master or the primary says; a part may then have been written.
    pub async fn write_at(&self, _offset: u64, _data: Bytes) -> Result<()> {
        Err(unbuilt())
    }

    /// Appends one record, of at most a quarter of a chunk, as a whole and exactly once, at an offset that the
    /// system chooses and that is returned (GFS §3.3).
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a larger record, or what the master or the primary says.
    pub async fn append(&self, _record: Bytes) -> Result<u64> {
        Err(unbuilt())
    }

    /// Makes everything durable that was written through this file with [`crate::Durability::Replicated`].
    ///
    /// # Errors
    /// What the master or the primary says.
    pub async fn flush(&self) -> Result<()> {
        Err(unbuilt())
    }

    /// The chunks and where their replicas are, fresh from the master.
    ///
    /// # Errors
    /// What the master says.
    pub async fn chunks(&self) -> Result<Vec<Chunk>> {
        Err(unbuilt())
    }

    /// Streams the file from `offset` to the end that it has now.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn reader(&self, _offset: u64) -> Result<Reader> {
        Err(unbuilt())
    }

    /// A stream that writes from `offset` on.
    pub fn writer(&self, _offset: u64) -> Writer {
        Writer {}
    }
}
