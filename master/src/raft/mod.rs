//! Consensus between masters: openraft's glue, and nothing of what is decided (GFS §5.1.3).
//!
//! ```text
//! propose ─► openraft ─► log ──────► quorum ─► machine ─► state::apply ─► store ─► reply
//!               │         RocksDB, one writer             RocksDB without WAL: the log is its log
//!               └── network / service ◄──gRPC──► the other masters
//! ```
//! Nothing of openraft is named outside this module, and no bytes on disk or wire are openraft's own: an
//! upgrade of it can't change a format (docs/decisions/0001).

mod clock;
mod codec;
mod fail;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gate;
mod log;
mod machine;
mod members;
mod message;
mod network;
mod node;
mod poison;
mod room;
mod service;
mod start;
mod store;
mod tasks;
#[cfg(test)]
mod tests;
mod transfer;
mod types;

use std::path::PathBuf;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, LogIndex, MasterId, Term};
use gfs_proto::size::ChunkBytes;

pub use node::Node;
pub use service::RaftService;
pub use store::ReadView;

/// How a node with an empty data directory begins; one that has an identity goes on as what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Makes a new cluster, of which it is the first member.
    Bootstrap(BootstrapConfig),
    /// Asks the cluster of these masters for an id.
    Join {
        /// Addresses of some masters.
        masters: Vec<String>,
        /// Whether it stays a learner for ever.
        shadow: bool,
    },
}

/// What is fixed for a whole cluster when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootstrapConfig {
    /// Size of every chunk.
    pub chunk_bytes: ChunkBytes,
    /// Default number of replicas.
    pub replication: u32,
    /// How long deleted files can be restored.
    pub trash: Duration,
    /// How long the session of a client lives that has fallen silent.
    pub session: Duration,
}

/// Settings of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Data directory: identity, log and state.
    pub dir: PathBuf,
    /// `host:port` under which the other masters reach this one.
    pub address: String,
    /// How fast it notices and acts.
    pub timers: Timers,
    /// Memory for blocks of the state read from disk.
    pub block_cache_bytes: usize,
    /// Entries between two checkpoints.
    pub checkpoint_every: u64,
    /// Entries that stay in the log behind a checkpoint, so that a lagging master needs no checkpoint.
    pub log_keep: u64,
    /// What stays free on the disk of `dir`: nearer to its end the state does not grow (decision 0025). A small disk keeps a
    /// tenth of itself. `None` if nobody looks at the disk.
    pub headroom_bytes: Option<u64>,
    /// Most connections; beyond them new ones are closed at once.
    pub connections_max: usize,
}

/// Heartbeats and elections. A dead leader is replaced after `election_max` plus a random time from
/// `election_min` to `election_max`: below 2 s with the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// Shortest silence of a leader before an election.
    pub election_min: Duration,
    /// Longest silence of a leader before an election; also the leader's lease on proposals.
    pub election_max: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
        }
    }
}

impl NodeConfig {
    /// The default settings for this directory and address.
    pub fn new(dir: impl Into<PathBuf>, address: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            address: address.into(),
            timers: Timers::default(),
            block_cache_bytes: 128 << 20,
            // A follower that installs a checkpoint must find the entries since then still in the log,
            // also when the transfer takes minutes under load: else it needs another one, for ever.
            checkpoint_every: gfs_proto::fault::tuned("checkpoint_every", 500_000),
            log_keep: gfs_proto::fault::tuned("log_keep", 2_000_000),
            // For the log up to its next purge, and for what is written anew before what it replaces goes.
            headroom_bytes: Some(512 << 20),
            connections_max: crate::CONNECTIONS_MAX,
        }
    }
}

/// Who leads, as this node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The leader's id and address, if one is known.
    pub leader: Option<(MasterId, String)>,
    /// The newest term seen.
    pub term: Term,
    /// Whether it is this node. Not an authority to answer reads: that is [`Node::read_index`].
    pub leading: bool,
}

/// What entries of the log changed, in the order of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// One entry changed these chunks.
    Chunks(LogIndex, Vec<ChunkHandle>),
    /// A checkpoint replaced the state: any chunk may have changed.
    Everything(LogIndex),
}

/// A master of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its id.
    pub id: MasterId,
    /// Where it is.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it is to stay a learner.
    pub shadow: bool,
}

/// What [`Node::leader_read_index`] confirms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadIndex {
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader: MasterId,
    /// Everything that was acknowledged before the question is at or below this index.
    pub index: LogIndex,
}
