//! Replicas one by one, so that they can be compared: what reading a file keeps from sight.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use gfs_proto::id::{ChunkIndex, ServerId};
use gfs_proto::link::Range;
use gfs_proto::size::BLOCK_BYTES;
use gfs_proto::{Error, Result};

use crate::entry::{Chunk, Server};
use crate::file::File;
use crate::read::UNIT_BYTES;

/// How often replicas are compared that do not agree: they may be in the middle of a write or a new grant.
const ATTEMPTS: u32 = 5;
/// Pause before they are compared again.
const PAUSE: Duration = Duration::from_millis(300);

/// What one replica of a chunk gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaBytes {
    /// The committed bytes from the offset on: fewer than wanted where the chunk ends.
    pub bytes: Bytes,
    /// Committed length of the chunk, as this replica says.
    pub committed_length: u32,
    /// Whether it takes no more appends, as this replica says.
    pub sealed: bool,
}

/// What one replica holds, block by block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaSums {
    /// Whose it is.
    pub server: Server,
    /// Committed length of the chunk there.
    pub length: u32,
    /// Whether it takes no more appends.
    pub sealed: bool,
    /// CRC-32 of each 64 KiB block, computed here over the bytes that came.
    pub blocks: Vec<u32>,
    /// Why it could not be read to its end: [`Error::is_damage`] if a block does not match its own checksum.
    pub error: Option<Error>,
}

/// The replicas of a chunk side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    /// The chunk as the master had it.
    pub chunk: Chunk,
    /// Its live replicas.
    pub replicas: Vec<ReplicaSums>,
}

impl Comparison {
    /// Blocks that the replicas which could be read do not have alike.
    pub fn differing_blocks(&self) -> Vec<u32> {
        let whole = || self.replicas.iter().filter(|replica| replica.error.is_none());
        let count = whole().map(|replica| replica.blocks.len()).max().unwrap_or(0);
        let differs = |block: usize| {
            let mut sums = whole().map(|replica| replica.blocks.get(block));
            let first = sums.next();
            sums.any(|sum| Some(sum) != first)
        };
        (0..count).filter(|block| differs(*block)).filter_map(|block| u32::try_from(block).ok()).collect()
    }

    /// Whether some replica is damaged, or two of them differ in length, seal or bytes.
    pub fn is_corrupt(&self) -> bool {
        let whole = || self.replicas.iter().filter(|replica| replica.error.is_none());
        let end = |replica: &ReplicaSums| (replica.length, replica.sealed);
        let first = whole().next().map(end);
        self.is_damaged()
            || whole().any(|replica| Some(end(replica)) != first)
            || !self.differing_blocks().is_empty()
    }

    fn is_damaged(&self) -> bool {
        self.replicas.iter().any(|replica| replica.error.as_ref().is_some_and(Error::is_damage))
    }

    /// Whether every live replica could be read, and there is one.
    pub fn is_complete(&self) -> bool {
        !self.replicas.is_empty() && self.replicas.iter().all(|replica| replica.error.is_none())
    }
}

impl File {
    /// Reads from one server's replica, to compare replicas: within one chunk, at most a frame's payload.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the server has no replica; what that server says; nobody else is asked.
    pub async fn read_from(&self, server: ServerId, offset: u64, length: u32) -> Result<Bytes> {
        let (index, within) = self.position(offset)?;
        let chunk = self.chunk(index).await?;
        let Some(server) = chunk.replicas.iter().find(|replica| replica.id == server) else {
            return Err(Error::NotFound { what: format!("a replica of chunk {index} on {server}") });
        };
        Ok(self.read_replica(&chunk, server, within, length).await?.bytes)
    }

    /// Reads from this server's replica of a chunk: at most a frame's payload. The server reads all of it from its disk and
    /// checks it against its checksums, this client checks it again.
    ///
    /// # Errors
    /// What that server says; nobody else is asked.
    pub async fn read_replica(
        &self,
        chunk: &Chunk,
        server: &Server,
        offset: u32,
        length: u32,
    ) -> Result<ReplicaBytes> {
        let length = length.min(self.core.chunk_bytes.raw().saturating_sub(offset));
        let range = Range { handle: chunk.handle, version: chunk.version, offset, length };
        let reply = self.core.links.read(&server.peer(), &range, true, self.core.patience()).await?;
        Ok(ReplicaBytes {
            bytes: reply.bytes,
            committed_length: reply.committed_length,
            sealed: reply.sealed,
        })
    }

    /// Reads all live replicas of a chunk and compares them. Differences that go away when looked at again were a write on
    /// its way, and are not told.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such chunk, or what the master says. What the replicas say is in the answer.
    pub async fn compare_replicas(&self, index: ChunkIndex) -> Result<Comparison> {
        let mut attempt = 1;
        loop {
            let chunk = self.chunk(index).await?;
            let sums = chunk.replicas.iter().map(|server| self.replica_sums(&chunk, server));
            let replicas = join_all(sums).await;
            let compared = Comparison { chunk, replicas };
            let settled = compared.is_complete() && !compared.is_corrupt();
            // Damage is told at once: it may be healed a moment later.
            if settled || compared.is_damaged() || attempt >= ATTEMPTS {
                return Ok(compared);
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn chunk(&self, index: ChunkIndex) -> Result<Chunk> {
        let located = self.core.locate(&self.opened, index, self.core.patience()).await?;
        let chunk = located.chunks.into_iter().find(|chunk| chunk.index == index);
        chunk.ok_or_else(|| Error::NotFound { what: format!("chunk {index} of {}", self.path()) })
    }

    async fn replica_sums(&self, chunk: &Chunk, server: &Server) -> ReplicaSums {
        let mut sums =
            ReplicaSums { server: server.clone(), length: 0, sealed: false, blocks: Vec::new(), error: None };
        let mut offset = 0;
        loop {
            match self.read_replica(chunk, server, offset, UNIT_BYTES).await {
                Ok(reply) => {
                    if offset == 0 {
                        // What is appended meanwhile is no difference: the end is as it was at first.
                        (sums.length, sums.sealed) = (reply.committed_length, reply.sealed);
                    }
                    let wanted = sums.length.saturating_sub(offset).min(UNIT_BYTES) as usize;
                    let bytes = &reply.bytes[..reply.bytes.len().min(wanted)];
                    sums.blocks.extend(bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash));
                    if bytes.len() < wanted {
                        sums.error = Some(Error::unavailable(format!("{} gave too few bytes", server.id)));
                    }
                }
                Err(error) => sums.error = Some(error),
            }
            offset = offset.saturating_add(UNIT_BYTES);
            if sums.error.is_some() || offset >= sums.length {
                return sums;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gfs_proto::id::{ChunkHandle, ChunkVersion};

    use super::*;

    fn replica(id: u64, length: u32, blocks: &[u32]) -> ReplicaSums {
        let server = Server { id: ServerId::from_raw(id), address: format!("s{id}:1"), rack: String::new() };
        ReplicaSums { server, length, sealed: false, blocks: blocks.to_vec(), error: None }
    }
    fn compared(replicas: Vec<ReplicaSums>) -> Comparison {
        let chunk = Chunk {
            index: ChunkIndex::from_raw(0),
            handle: ChunkHandle::from_raw(1),
            version: ChunkVersion::from_raw(1),
            replicas: Vec::new(),
            goal: 3,
            primary: None,
        };
        Comparison { chunk, replicas }
    }

    #[test]
    fn replicas_differ_by_block_length_and_seal_and_one_that_is_silent_proves_nothing() {
        let alike = compared(vec![replica(1, 70_000, &[5, 6]), replica(2, 70_000, &[5, 6])]);
        assert!(alike.is_complete() && !alike.is_corrupt());
        let block = compared(vec![replica(1, 70_000, &[5, 6]), replica(2, 70_000, &[5, 7])]);
        assert_eq!((block.differing_blocks(), block.is_corrupt()), (vec![1], true));
        let shorter = compared(vec![replica(1, 70_000, &[5, 6]), replica(2, 65_536, &[5])]);
        assert_eq!((shorter.differing_blocks(), shorter.is_corrupt()), (vec![1], true));
        let sealed = ReplicaSums { sealed: true, ..replica(2, 3, &[1]) };
        assert!(compared(vec![replica(1, 3, &[1]), sealed]).is_corrupt());
        let silent = ReplicaSums { error: Some(Error::unavailable("x")), ..replica(2, 0, &[]) };
        let silent = compared(vec![replica(1, 3, &[1]), silent]);
        assert!(!silent.is_corrupt() && !silent.is_complete());
        let damage = Error::Corrupt { handle: ChunkHandle::from_raw(1), block: 0 };
        let damaged = ReplicaSums { error: Some(damage), ..replica(2, 0, &[]) };
        assert!(compared(vec![replica(1, 3, &[1]), damaged]).is_corrupt());
        assert!(!compared(Vec::new()).is_complete());
    }
}
