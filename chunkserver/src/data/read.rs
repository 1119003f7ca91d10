//! What a read sends: whole blocks straight from the file with the checksums of the table, the rest read and verified.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::Result;
use gfs_proto::size::BLOCK_BYTES;

/// The answer to a read, before its bytes are sent.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// The committed length of the chunk.
    pub committed_length: u32,
    /// Whether the chunk is sealed.
    pub sealed: bool,
    /// What to send, one after the other.
    pub parts: Vec<Part>,
}

/// Some bytes of a read.
#[derive(Clone, Debug)]
pub enum Part {
    /// Verified bytes with the checksums of their pieces.
    Bytes(Bytes, Vec<u32>),
    /// Whole blocks of a file, unread.
    File(FileRange),
}

/// Whole blocks of a chunk file with their checksums from the table.
#[derive(Clone, Debug)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Position in the file.
    pub offset: u64,
    /// Number of bytes, a multiple of a block.
    pub length: u32,
    /// One for each block.
    pub crcs: Vec<u32>,
}

/// A chunk that can be read: the store, at one handle.
pub trait Source {
    /// Reads and verifies; the checksums are those of `size::block_pieces(offset, length)`. Blocks on the disk.
    ///
    /// # Errors
    /// [`gfs_proto::Error::Corrupt`] if a block does not match.
    fn bytes(&self, offset: u32, length: u32) -> Result<(Bytes, Vec<u32>)>;

    /// The file and checksums of whole blocks; both numbers are multiples of a block.
    ///
    /// # Errors
    /// What the store says.
    fn file_range(&self, offset: u32, length: u32) -> Result<FileRange>;
}

/// Splits `offset..offset + length`, which the chunk must hold, into ragged edges, read and verified at once,
/// and whole blocks in between, to be sent from the file; with `verify` everything is read. Blocks on the disk.
///
/// # Errors
/// What the source says.
pub fn parts(source: &impl Source, offset: u32, length: u32, verify: bool) -> Result<Vec<Part>> {
    let end = u64::from(offset) + u64::from(length);
    let block = u64::from(BLOCK_BYTES);
    let first = u64::from(offset).next_multiple_of(block);
    let last = end / block * block;
    let mut parts = Vec::with_capacity(3);
    if verify || first >= last {
        if length > 0 {
            let (bytes, crcs) = source.bytes(offset, length)?;
            parts.push(Part::Bytes(bytes, crcs));
        }
        return Ok(parts);
    }
    if u64::from(offset) < first {
        let (bytes, crcs) = source.bytes(offset, narrow(first - u64::from(offset)))?;
        parts.push(Part::Bytes(bytes, crcs));
    }
    parts.push(Part::File(source.file_range(narrow(first), narrow(last - first))?));
    if last < end {
        let (bytes, crcs) = source.bytes(narrow(last), narrow(end - last))?;
        parts.push(Part::Bytes(bytes, crcs));
    }
    Ok(parts)
}

/// Positions in a chunk fit 32 bits: it is at most 1 GiB.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
