//! One file, addressed by its id: it stays the same file when its path changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gfs_proto::id::{ChunkIndex, EntryId};
use gfs_proto::{Error, Result};

use crate::client::Core;
use crate::entry::{Chunk, Entry};
use crate::lease::{Located, Opened};
use crate::read::{self, Reader};
use crate::write::{self, Writer};

/// Most bytes of one [`File::read_at`]: more is what [`File::reader`] is for.
const READ_BYTES_MAX: u64 = 256 << 20;

/// A file. Clones are the same file; calls may overlap.
#[derive(Clone, Debug)]
pub struct File {
    pub(crate) core: Arc<Core>,
    pub(crate) opened: Arc<Opened>,
    path: Arc<str>,
}

impl File {
    pub(crate) fn new(core: &Arc<Core>, entry: &Entry, path: &str) -> Result<Self> {
        if entry.is_directory() {
            return Err(Error::IsADirectory { path: path.to_owned() });
        }
        core.cache.purge(entry.id);
        let opened = Arc::new(Opened::new(entry.id, entry.chunk_count));
        Ok(Self { core: core.clone(), opened, path: path.into() })
    }

    /// Its id, never reused.
    pub fn id(&self) -> EntryId {
        self.opened.id
    }
    /// The path by which it was opened.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The chunk size of its cluster.
    pub fn chunk_bytes(&self) -> gfs_proto::size::ChunkBytes {
        self.core.chunk_bytes
    }

    /// Its exact length in bytes now: what is acknowledged, up to the end of the last chunk that is not empty.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn len(&self) -> Result<u64> {
        read::length(&self.core, &self.opened).await
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn read_at(&self, offset: u64, length: u64) -> Result<Bytes> {
        if length > READ_BYTES_MAX {
            return Err(Error::TooLarge { what: "read".into(), size: length, limit: READ_BYTES_MAX });
        }
        let mut end = offset.saturating_add(length);
        if end > self.opened.length_seen.load(Ordering::Relaxed) {
            // Where the file ends is never guessed from a short answer (trap T13).
            end = end.min(self.len().await?);
        }
        read::collect(&self.core, &self.opened, offset..end.max(offset)).await
    }

    /// Writes at `offset`; the file grows as needed, and what is skipped reads as zeros.
    ///
    /// # Errors
    /// What the master or the primary says; a part may then have been written.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        write::write_at(self, offset, data).await
    }

    /// Makes everything durable that was written through this file with [`crate::Durability::Replicated`].
    ///
    /// # Errors
    /// What the master or the primary says.
    pub async fn flush(&self) -> Result<()> {
        write::sync_all(self).await
    }

    /// The chunks and where their replicas are, fresh from the master.
    ///
    /// # Errors
    /// What the master says.
    pub async fn chunks(&self) -> Result<Vec<Chunk>> {
        let mut all: Vec<Chunk> = Vec::new();
        loop {
            let next = ChunkIndex::from_raw(u32::try_from(all.len()).unwrap_or(u32::MAX));
            let Located { chunks, chunk_count } =
                self.core.locate(&self.opened, next, self.core.patience()).await?;
            let came = !chunks.is_empty();
            all.extend(chunks);
            if !came || all.len() >= chunk_count as usize {
                return Ok(all);
            }
        }
    }

    /// Streams the file from `offset` to the end that it has now.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn reader(&self, offset: u64) -> Result<Reader> {
        let end = self.len().await?;
        Ok(Reader::new(&self.core, &self.opened, offset, end))
    }

    /// A stream that writes from `offset` on.
    pub fn writer(&self, offset: u64) -> Writer {
        Writer::new(self, offset)
    }

    /// The chunk in which an offset lies, and the position in it.
    pub(crate) fn position(&self, offset: u64) -> Result<(ChunkIndex, u32)> {
        let limit = self.core.chunk_bytes.file_bytes_max();
        self.core
            .chunk_bytes
            .locate(gfs_proto::size::ByteOffset::from_raw(offset))
            .ok_or_else(|| Error::TooLarge { what: "file".into(), size: offset, limit })
    }
}
