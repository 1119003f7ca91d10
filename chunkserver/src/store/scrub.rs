//! Idle verification: rarely read chunks must not rot unnoticed (GFS §5.2).

use std::sync::Arc;

use gfs_proto::id::ChunkHandle;
use gfs_proto::size::BLOCK_BYTES;

use super::Scrubbed;
use super::block;
use super::chunk::Chunk;
use super::disk::Disk;
use super::error::{Error, Result};
use super::read;

/// Bytes that are read at a time.
const PIECE_BYTES: u32 = 16 * BLOCK_BYTES;

/// Where the scrubber is: the next byte of this chunk, or of the one after it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    pub(crate) handle: ChunkHandle,
    offset: u32,
}

impl Cursor {
    /// The start of a chunk.
    pub(crate) fn at(handle: ChunkHandle) -> Self {
        Self { handle, offset: 0 }
    }

    /// Verifies a piece of a chunk. `false` at its end.
    pub(crate) fn step(
        &mut self,
        disk: &Arc<Disk>,
        chunk: &Arc<Chunk>,
        scrubbed: &mut Scrubbed,
    ) -> Result<bool> {
        let length = chunk.state.lock().length();
        let piece = length.saturating_sub(self.offset).min(PIECE_BYTES);
        if piece == 0 {
            scrubbed.chunks += 1;
            return Ok(false);
        }
        match read::read(disk, chunk, self.offset, piece) {
            Ok(_) => self.offset += piece,
            Err(Error::Corrupt { handle, block }) => {
                scrubbed.corrupt.push((handle, block));
                // On with the block after it.
                self.offset = block::start_of(block).saturating_add(BLOCK_BYTES);
            }
            // It was changed or removed meanwhile.
            Err(Error::OutOfRange { .. } | Error::NoSuchChunk { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        scrubbed.bytes += u64::from(piece);
        Ok(true)
    }
}

/// Verifies a whole chunk.
pub(crate) fn verify(disk: &Arc<Disk>, chunk: &Arc<Chunk>) -> Result<Vec<u32>> {
    let mut scrubbed = Scrubbed::default();
    let mut cursor = Cursor::at(chunk.handle);
    while cursor.step(disk, chunk, &mut scrubbed)? {}
    Ok(scrubbed.corrupt.into_iter().map(|(_, block)| block).collect())
}
