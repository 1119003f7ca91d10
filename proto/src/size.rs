//! Sizes and the arithmetic of offsets, chunks and blocks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ChunkIndex;

/// The checksum unit within a chunk (GFS §5.2).
pub const BLOCK_BYTES: u32 = 64 * 1024;
/// Default size of a chunk (GFS §2.5).
pub const CHUNK_BYTES_DEFAULT: u32 = 64 * 1024 * 1024;
/// Smallest chunk size that a cluster may have.
pub const CHUNK_BYTES_MIN: u32 = 4 * BLOCK_BYTES;
/// Largest chunk size that a cluster may have.
pub const CHUNK_BYTES_MAX: u32 = 1024 * 1024 * 1024;
/// Most chunks in a file.
pub const CHUNKS_PER_FILE_MAX: u32 = 1 << 24;
/// Most bytes of one data frame's payload, and so of one write or append request.
pub const PAYLOAD_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Default number of replicas (GFS §2.3).
pub const REPLICATION_DEFAULT: u32 = 3;
/// Largest number of replicas that a file may ask for.
pub const REPLICATION_MAX: u32 = 16;
/// Largest gRPC message that a server takes or a client expects.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A byte position in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteOffset(u64);

impl ByteOffset {
    /// The position with this number.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }
}
impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of every chunk of a cluster: whole blocks, from [`CHUNK_BYTES_MIN`] to [`CHUNK_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ChunkBytes(u32);

/// Why a number is no chunk size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a chunk size is a multiple of 64 KiB from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} bytes, not {0}")]
pub struct ChunkBytesError(pub u64);

impl ChunkBytes {
    /// The default size, 64 MiB.
    pub const DEFAULT: Self = Self(CHUNK_BYTES_DEFAULT);

    /// Checks a chunk size.
    ///
    /// # Errors
    /// The number, if it is not a multiple of a block within the limits.
    pub fn parse(bytes: u64) -> Result<Self, ChunkBytesError> {
        match u32::try_from(bytes) {
            Ok(size) if size % BLOCK_BYTES == 0 && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(ChunkBytesError(bytes)),
        }
    }
    /// The number of bytes.
    pub const fn raw(self) -> u32 {
        self.0
    }
    /// Largest record of a record append: a quarter of a chunk (GFS §3.3), and never more than a payload.
    pub const fn record_bytes_max(self) -> u32 {
        let quarter = self.0 / 4;
        if quarter < PAYLOAD_BYTES_MAX { quarter } else { PAYLOAD_BYTES_MAX }
    }
    /// The chunk in which a position lies, and the position in it; `None` past the largest file.
    pub fn locate(self, offset: ByteOffset) -> Option<(ChunkIndex, u32)> {
        let index = u32::try_from(offset.0 / u64::from(self.0)).ok()?;
        let within = u32::try_from(offset.0 % u64::from(self.0)).ok()?;
        (index < CHUNKS_PER_FILE_MAX).then_some((ChunkIndex::from_raw(index), within))
    }
    /// The position of the first byte of a chunk.
    pub fn start_of(self, index: ChunkIndex) -> ByteOffset {
        ByteOffset(u64::from(index.raw()) * u64::from(self.0))
    }
    /// Most bytes in a file.
    pub fn file_bytes_max(self) -> u64 {
        u64::from(CHUNKS_PER_FILE_MAX) * u64::from(self.0)
    }
}
impl TryFrom<u32> for ChunkBytes {
    type Error = ChunkBytesError;
    fn try_from(bytes: u32) -> Result<Self, ChunkBytesError> {
        Self::parse(bytes.into())
    }
}
impl From<ChunkBytes> for u32 {
    fn from(size: ChunkBytes) -> Self {
        size.0
    }
}

/// Splits `length` bytes at `offset` of a chunk at block borders: the length of each piece, in order.
/// The pieces that a data frame's checksums cover.
pub fn block_pieces(offset: u32, length: u32) -> impl Iterator<Item = u32> {
    let mut at = u64::from(offset);
    let end = at + u64::from(length);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let border = (at / u64::from(BLOCK_BYTES) + 1) * u64::from(BLOCK_BYTES);
        let piece = border.min(end) - at;
        at += piece;
        u32::try_from(piece).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_block_borders_and_cover_everything() {
        assert_eq!(block_pieces(0, 0).count(), 0);
        assert_eq!(block_pieces(65_535, 2).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(block_pieces(10, 200_000).sum::<u32>(), 200_000);
        assert_eq!(block_pieces(u32::MAX, u32::MAX).map(u64::from).sum::<u64>(), u64::from(u32::MAX));
    }

    #[test]
    fn a_position_lies_in_one_chunk() {
        let size = ChunkBytes::parse(1 << 20).unwrap();
        let (index, within) = size.locate(ByteOffset::from_raw((3 << 20) + 5)).unwrap();
        assert_eq!((index.raw(), within), (3, 5));
        assert_eq!(size.start_of(index).raw(), 3 << 20);
        assert_eq!(size.locate(ByteOffset::from_raw(u64::MAX)), None);
        assert!(ChunkBytes::parse(100).is_err() && ChunkBytes::parse(u64::MAX).is_err());
    }
}
