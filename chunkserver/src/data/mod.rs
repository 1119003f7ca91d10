//! The data plane of a chunkserver: what comes as framed TCP (decision 0003).
//!
//! This part moves bytes and knows no rules of the chunk protocol: those are behind [`Handler`].

mod buffer;
mod push;
pub mod read;
mod request;
mod send;
mod server;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClusterId, DataId, RequestId, Serial, ServerId};
use gfs_proto::{Result, pb};

pub use buffer::Buffer;
pub use read::{FileRange, Part, ReadPlan};
pub use server::{Data, Settings};

#[cfg(any(test, fuzzing))]
pub(crate) use request::fuzz_parse;

/// What the data plane asks of the replicas. Every method may be called many times at once, in any order.
///
/// A method's future is never dropped before it ends, also if the asker has gone. `patience` is how long the
/// asker waits, counted from the call.
///
/// The bytes of a mutation come as a `Result`, because a repeat of what was already done must succeed although the pushed data has
/// been thrown away after the first time: look the request id or serial up first, and only then use `payload?`
/// ([`gfs_proto::Error::DataUnknown`]).
pub trait Handler: Send + Sync + 'static {
    /// Who this server is; an error as long as it is not registered.
    ///
    /// # Errors
    /// [`gfs_proto::Error::Unavailable`] before the first registration.
    fn identity(&self) -> Result<(ClusterId, ServerId)>;

    /// A client's mutation, for the primary: orders it, applies it here and on the members, answers when all have it.
    fn mutate(
        &self,
        request: WriteRequest,
        payload: Result<Payload>,
    ) -> impl Future<Output = Result<pb::WriteReplyMeta>> + Send;

    /// An ordered mutation of the primary, for a member. The futures of one connection are first polled in the order in which
    /// their frames came; over several connections a later serial may come first, and has to wait for the others.
    fn apply(
        &self,
        request: ApplyRequest,
        payload: Result<Payload>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// A client's read: decides whether and up to where this replica may serve it, and hands out the parts,
    /// made by [`read::parts`] under the same state of the chunk as the decision.
    /// `None` if all of it has to be in memory, for which `request.verify` says that there is room.
    fn read(&self, request: ReadRequest) -> impl Future<Output = Result<Option<ReadPlan>>> + Send;

    /// Like `read`, for a member that adopts the primary's plan at this version.
    fn fetch(&self, request: ReadRequest) -> impl Future<Output = Result<ReadPlan>> + Send;

    /// What the active primary has committed, for another replica.
    fn committed(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
    ) -> impl Future<Output = Result<pb::CommittedReplyMeta>> + Send;

    /// What became of a client's request.
    fn outcome(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        request: RequestId,
    ) -> impl Future<Output = Result<pb::OutcomeReplyMeta>> + Send;

    /// A chunk's file could not be sent: it wants to be verified soon. Returns at once.
    fn suspect(&self, handle: ChunkHandle);
}

/// A client's mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRequest {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The version of the client's lease.
    pub version: ChunkVersion,
    /// `Write`, `Append`, or `Sync` (a client sends that as a write of no bytes).
    pub kind: pb::MutationKind,
    /// Where a write goes.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
    /// Names the mutation.
    pub request: RequestId,
    /// The client asks for no request of its below this one any more.
    pub first_unacked: u64,
    /// What the acknowledgement promises.
    pub durability: pb::Durability,
    /// Id under which the bytes were pushed to all members; `None` if they came with the request.
    pub data: Option<DataId>,
    /// How long the client waits.
    pub patience: Duration,
}

/// A mutation in the primary's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApplyRequest {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The primary's version.
    pub version: ChunkVersion,
    /// Position in the order.
    pub serial: Serial,
    /// Everything up to this position is committed.
    pub committed: Serial,
    /// What it is.
    pub kind: pb::MutationKind,
    /// Where it goes, also for an append.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
    /// The client's name for it.
    pub request: Option<RequestId>,
    /// Its client asks for no request of its below this one any more.
    pub first_unacked: u64,
    /// What the acknowledgement promises.
    pub durability: pb::Durability,
    /// Id under which the bytes were pushed; `None` if they came with the request.
    pub data: Option<DataId>,
    /// How long the primary waits.
    pub patience: Duration,
}

/// A read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The version that the reader knows.
    pub version: ChunkVersion,
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
    /// Whether every byte is to be read and checked here, in memory.
    pub verify: bool,
    /// How long the reader waits.
    pub patience: Duration,
}
