//! What a read sends: whole blocks straight from the file with the checksums of the table, the rest read and verified.

use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::Result;
use gfs_proto::id::ChunkHandle;
use gfs_proto::size::BLOCK_BYTES;

use crate::store::files::File;
use crate::store::{self, Store};

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
#[derive(Clone)]
pub enum Part {
    /// Verified bytes with the checksums of their pieces.
    Bytes(Bytes, Vec<u32>),
    /// Whole blocks of a file, unread.
    File(FileRange),
}

/// Whole blocks of a chunk file with their checksums from the table.
#[derive(Clone)]
pub struct FileRange {
    /// The file.
    pub file: Arc<dyn File>,
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

    /// The file and checksums of whole blocks; both numbers are multiples of a block. `None` if the file alone
    /// does not have them.
    ///
    /// # Errors
    /// What the store says.
    fn file_range(&self, offset: u32, length: u32) -> Result<Option<FileRange>>;
}

/// One chunk of the store.
impl Source for (&Store, ChunkHandle) {
    fn bytes(&self, offset: u32, length: u32) -> Result<(Bytes, Vec<u32>)> {
        let read = self.0.read(self.1, offset, length)?;
        Ok((read.data, read.crcs))
    }
    fn file_range(&self, offset: u32, length: u32) -> Result<Option<FileRange>> {
        match self.0.file_range(self.1, offset, length) {
            Ok(store::FileRange { file, crcs }) => {
                Ok(Some(FileRange { file, offset: offset.into(), length, crcs }))
            }
            Err(store::Error::NotFromFile { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Splits `offset..offset + length`, which the chunk must hold, into ragged edges, read and verified at once,
/// and whole blocks in between, to be sent from the file; with `verify` everything is read. `None` without `verify` if the
/// file alone does not have the whole blocks: all of it has to be in memory then. Blocks on the disk.
///
/// # Errors
/// What the source says.
pub fn parts(source: &impl Source, offset: u32, length: u32, verify: bool) -> Result<Option<Vec<Part>>> {
    let end = u64::from(offset) + u64::from(length);
    let block = u64::from(BLOCK_BYTES);
    let first = u64::from(offset).next_multiple_of(block);
    let last = end / block * block;
    let read = |from: u64, to: u64| {
        source.bytes(narrow(from), narrow(to - from)).map(|(bytes, crcs)| Part::Bytes(bytes, crcs))
    };
    if length == 0 {
        return Ok(Some(Vec::new()));
    }
    if verify || first >= last {
        return Ok(Some(vec![read(offset.into(), end)?]));
    }
    let Some(whole) = source.file_range(narrow(first), narrow(last - first))? else { return Ok(None) };
    let mut parts = Vec::with_capacity(3);
    if u64::from(offset) < first {
        parts.push(read(offset.into(), first)?);
    }
    parts.push(Part::File(whole));
    if last < end {
        parts.push(read(last, end)?);
    }
    Ok(Some(parts))
}

/// Positions in a chunk fit 32 bits: it is at most 1 GiB.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Part {
    /// Number of bytes.
    pub fn length(&self) -> u32 {
        match self {
            Self::Bytes(bytes, _) => narrow(bytes.len() as u64),
            Self::File(range) => range.length,
        }
    }
    /// Checksums of its pieces.
    pub fn crcs(&self) -> &[u32] {
        match self {
            Self::Bytes(_, crcs) => crcs,
            Self::File(range) => &range.crcs,
        }
    }
}
impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes, _) => write!(f, "Bytes({})", bytes.len()),
            Self::File(range) => write!(f, "File({} from {})", range.length, range.offset),
        }
    }
}
impl ReadPlan {
    /// Number of bytes that will be sent.
    pub fn length(&self) -> u32 {
        self.parts.iter().map(Part::length).sum()
    }
}
