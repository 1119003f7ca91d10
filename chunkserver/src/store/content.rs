//! The words of the store: what a replica holds, and what changes it.

use bytes::{Buf, Bytes};
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, RequestId, Serial};
use gfs_proto::pb;

use super::requests::Requests;

/// Most request outcomes that one chunk keeps. The primary stops at less than half of it: a member that forgets expired
/// requests later than the primary must still have room for those that the primary lets in after it (decision 0012).
pub const REQUESTS_MAX: usize = 128 * 1024;

/// What is known of a replica, in a few words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaState {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The stored version: of the newest grant that this replica heard of.
    pub version: ChunkVersion,
    /// The version at which content was adopted last; [`ChunkVersion::NONE`] if never.
    pub adopted: ChunkVersion,
    /// Bytes in the chunk.
    pub length: u32,
    /// Serial of the last mutation applied since the adoption.
    pub serial: Serial,
    /// Mutations up to here are known to be committed: a lower bound, written lazily. `None` from an adoption on (guard
    /// *committed_before_confirm*), until [`super::Store::set_commit_mark`] says that the adopted content is, too.
    pub commit_mark: Option<Serial>,
    /// The chunk takes no more appends.
    pub sealed: bool,
    /// It may lack content that it should have: serves nothing, is no base, until it adopts.
    pub partial: bool,
    /// A checksum did not match.
    pub corrupt: bool,
}

/// Where the mutation of a request lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// First byte in the chunk.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

/// What a replica holds, without the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// Bytes in the chunk.
    pub length: u32,
    /// CRC-32 of each 64 KiB block, the last one over what is there.
    pub block_crcs: Vec<u32>,
    /// The outcomes of requests: as much content as the bytes (guard *ids_not_content*).
    pub requests: Requests,
    /// The chunk takes no more appends.
    pub sealed: bool,
    /// Serial of the last mutation applied since the adoption.
    pub serial: Serial,
}

impl From<&Content> for pb::Content {
    fn from(content: &Content) -> Self {
        Self {
            length: content.length,
            block_crcs: content.block_crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect(),
            requests: content
                .requests
                .outcomes()
                .map(|(request, outcome)| pb::RequestOutcome {
                    request: Some(request.into()),
                    offset: outcome.offset,
                    length: outcome.length,
                })
                .collect(),
            first_kept: content
                .requests
                .first_kept()
                .map(|(client, sequence)| pb::FirstKept { client: client.raw(), sequence })
                .collect(),
            sealed: content.sealed,
            serial: content.serial.raw(),
        }
    }
}
impl From<pb::Content> for Content {
    /// Takes the message as it is; [`Store::adopt`](super::Store::adopt) checks that it makes sense.
    fn from(content: pb::Content) -> Self {
        let mut crcs = &content.block_crcs[..];
        let mut block_crcs = Vec::with_capacity(crcs.len() / 4);
        while crcs.remaining() >= 4 {
            block_crcs.push(crcs.get_u32_le());
        }
        let outcome = |one: &pb::RequestOutcome| Outcome { offset: one.offset, length: one.length };
        Self {
            length: content.length,
            block_crcs,
            requests: Requests::new(
                content.requests.iter().filter_map(|one| Some((one.request?.into(), outcome(one)))),
                content.first_kept.iter().map(|one| (ClientId::from_raw(one.client), one.sequence)),
            ),
            sealed: content.sealed,
            serial: Serial::from_raw(content.serial),
        }
    }
}

/// What a mutation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MutationKind {
    /// Puts the data here. Past the end the hole reads as zeros, under checksums like any byte.
    Write {
        /// First byte in the chunk.
        offset: u32,
    },
    /// Puts the data at the end.
    Append,
    /// Ends the chunk: no more appends. The padding up to the chunk's size is not stored, it reads as zeros.
    Seal,
    /// Changes nothing; its promise covers everything before it.
    Sync,
}

/// How firm a mutation is when its ticket is done. The promise covers all mutations before it, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// No promise; survives the process, in general. A later synced mutation promises it.
    Deferred,
    /// Survives the process. After a power cut the replica says that it is partial.
    Replicated,
    /// Survives a power cut.
    Synced,
}
impl From<pb::Durability> for Durability {
    fn from(durability: pb::Durability) -> Self {
        match durability {
            pb::Durability::Synced => Self::Synced,
            pb::Durability::Replicated => Self::Replicated,
            pb::Durability::Deferred => Self::Deferred,
        }
    }
}

/// One change of a chunk's content, in the order that the primary gave (GFS §3.1).
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The version that the replica must have stored and adopted.
    pub version: ChunkVersion,
    /// Its place in the order: the next one.
    pub serial: Serial,
    /// What it does.
    pub kind: MutationKind,
    /// The bytes; empty for seal and sync.
    pub data: Bytes,
    /// Whose it is, remembered with the content.
    pub request: Option<RequestId>,
    /// Its client asks for no request of its below this one any more: they are forgotten with this mutation.
    pub first_unacked: u64,
    /// The promise.
    pub durability: Durability,
}

/// What a member of a new grant was before (protocol.md, Grant 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Membership {
    /// A current replica: keeps its content.
    Base,
    /// Drops what it held and is partial until it adopts.
    Joiner,
}

/// Room on one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskState {
    /// The directory.
    pub directory: std::path::PathBuf,
    /// Bytes of the filesystem.
    pub total_bytes: u64,
    /// Bytes that chunks may still take, headroom subtracted.
    pub free_bytes: u64,
    /// Chunks on it.
    pub chunks: u64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}
