//! Adoption: a replica takes over reconciled content aside, and switches to it at once (protocol.md, Grant 4).

use std::ops::Range;

use super::content::ReplicaState;
use super::error::{Error, Result};

/// Content on its way in. Dropping it before the commit leaves the replica as it was.
#[derive(Debug)]
pub struct Adoption {}

impl Adoption {
    /// Ranges of the content that have to be fetched: from block to block, the last one to the end of the content.
    pub fn missing(&self) -> Vec<Range<u32>> {
        Vec::new()
    }
    /// Takes bytes of the content: whole blocks, checked against its checksums. Any order, any size, repeats are harmless.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the bytes are not the content's, [`Error::AdoptionOvertaken`], and the disk's.
    pub fn write(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let _ = (offset, data);
        Err(Error::Closed)
    }
    /// Makes the content the replica's, durably, and clears `partial`.
    ///
    /// # Errors
    /// [`Error::BadContent`] if something is missing, [`Error::AdoptionOvertaken`], and the disk's.
    pub fn commit(self) -> Result<ReplicaState> {
        Err(Error::Closed)
    }
}
