//! The client of gfs: namespace operations, files, streams. The public SDK.
//!
//! ```no_run
//! # async fn demo() -> gfs_client::Result<()> {
//! use gfs_client::{Client, Options};
//!
//! let client = Client::connect(&["127.0.0.1:7000".to_owned()], Options::default()).await?;
//! client.mkdir_all("/logs/today").await?;
//! let file = client.create("/logs/today/events", 0).await?;
//! let offset = file.append("one record".into()).await?;
//! assert_eq!(&file.read_at(offset, 10).await?[..], b"one record");
//! # Ok(())
//! # }
//! ```
//!
//! # What an answer means
//!
//! | answer | what it says about the operation |
//! |---|---|
//! | `Ok` | It happened, exactly once. A write or append is on every replica of the chunk's lease set: fsynced with [`Durability::Synced`], at least in their page caches with [`Durability::Replicated`]. Every later read sees it. |
//! | [`Error::DeadlineExceeded`] | Nothing moved for [`Options::patience`]. What was asked **may have happened**, and may still happen; the text says what was in the way. |
//! | [`Error::SessionExpired`] | The client was cut off for so long (minutes) that the cluster has forgotten its requests. An operation that had been sent before **may have happened**. |
//! | any other error | The operation did not happen, and asking again without a change gives the same answer. Of a write over several chunks or units, a part may have happened. |
//!
//! Every mutation carries a request id, which all its repeats share: a lost reply, a new leader or a new
//! primary never makes it happen twice, and its real outcome is what is told. A reader never sees bytes that
//! were not acknowledged and that later disappear. There is no cache of file data.
//!
//! A future that is dropped leaves its operation unsettled: it may have happened.

mod append;
mod cache;
mod check;
mod client;
mod entry;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod lease;
mod mutate;
mod options;
mod read;
pub mod record;
mod replica;
mod session;
mod transfer;
mod trash;
mod write;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use entry::{Chunk, Entry, EntryKind, Server};
pub use file::File;
pub use options::{Durability, Options};
pub use read::Reader;
pub use replica::{Comparison, ReplicaBytes, ReplicaSums};
pub use transfer::{PutOptions, TransferError, is_unfinished};
pub use trash::Trashed;
pub use write::Writer;

pub use gfs_proto::pb::{
    CheckChunksReply, CheckedChunk, CheckedReplica, ChunkHealth, ClusterStatusReply, InspectReplicaReply,
    LeaderReply, MasterStatus, ReplicaState, ServerStatus,
};
pub use gfs_proto::{Error, Result};
