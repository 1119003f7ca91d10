//! One member of the master group, as the rest of the master sees it.

use gfs_proto::id::{ClusterId, LogIndex, MasterId, Uuid};
use gfs_proto::{Environment, Error, Result, pb};
use tokio::sync::{broadcast, watch};

use super::{Leadership, Member, NodeConfig, Origin, ReadIndex, Touched};
use crate::state::{Applied, Proposal, Rejected, Row, Table, View};

/// A running member of the master group. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    leadership: watch::Receiver<Leadership>,
    touched: broadcast::Sender<Touched>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

/// The state as of one log index; later entries don't show.
#[derive(Debug)]
pub struct ReadView {
    applied: LogIndex,
}

impl ReadView {
    /// The last entry that it contains.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Checks that no read so far failed: call it before an answer leaves the process.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the disk failed.
    pub fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl View for ReadView {
    fn get(&self, _table: Table, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }
    fn scan(&self, _table: Table, _from: &[u8], _until: &[u8], _limit: usize) -> Vec<Row> {
        Vec::new()
    }
}

fn not_yet<T>() -> Result<T> {
    Err(Error::unavailable("consensus is not here yet"))
}

impl Node {
    /// Starts this node: makes or joins a cluster if the directory is empty, else goes on.
    ///
    /// # Errors
    /// Why the directory is refused, or what stands in the way of bootstrap or join.
    pub async fn start(_config: NodeConfig, _origin: &Origin, _environment: &Environment) -> Result<Self> {
        not_yet()
    }
    /// This node's id.
    pub fn id(&self) -> MasterId {
        MasterId::from_raw(0)
    }
    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        ClusterId::from_bytes([0; 16])
    }
    /// Puts a command into the log and applies it. Safe to repeat with the same request id.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint; [`Error::Busy`] before it was tried; [`Error::Unavailable`] if the outcome is
    /// unknown: repeat with the same request id.
    pub async fn propose(&self, _proposal: Proposal) -> Result<(LogIndex, Result<Applied, Rejected>)> {
        not_yet()
    }
    /// Waits until this node has applied everything that was acknowledged anywhere before this call;
    /// afterwards [`Node::view`] is linearizable. Concurrent calls share one round.
    ///
    /// # Errors
    /// [`Error::NotLeader`] or [`Error::Unavailable`] if no leader with a quorum answers.
    pub async fn read_index(&self) -> Result<LogIndex> {
        not_yet()
    }
    /// The leader's side of [`Node::read_index`]: for `Peer.ReadIndex`.
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere, [`Error::Unavailable`] without a quorum.
    pub async fn leader_read_index(&self) -> Result<ReadIndex> {
        not_yet()
    }
    /// The state as it is now here.
    pub fn view(&self) -> ReadView {
        ReadView { applied: LogIndex::from_raw(0) }
    }
    /// The last entry applied here.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        watch::channel(LogIndex::default()).1
    }
    /// Who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }
    /// What each entry changes from now on; a receiver that falls behind gets `Lagged` and reads anew.
    pub fn touched(&self) -> broadcast::Receiver<Touched> {
        self.touched.subscribe()
    }
    /// The masters and shadows.
    pub fn membership(&self) -> Vec<Member> {
        Vec::new()
    }
    /// On the leader: how many entries each other member is behind.
    pub fn lags(&self) -> Vec<(MasterId, u64)> {
        Vec::new()
    }
    /// The leader's side of a join, for `Peer.Join`: allots the id (a repeat returns the same) and adds a
    /// learner, which is promoted once it has caught up, unless it is a shadow.
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere, [`Error::Unavailable`] if unfinished: repeat it.
    pub async fn join(&self, _uuid: Uuid, _address: &str, _shadow: bool) -> Result<MasterId> {
        not_yet()
    }
    /// Adds a member that doesn't vote.
    ///
    /// # Errors
    /// As [`Node::join`].
    pub async fn add_learner(&self, _id: MasterId, _address: &str, _shadow: bool) -> Result<()> {
        not_yet()
    }
    /// Lets a learner vote.
    ///
    /// # Errors
    /// As [`Node::join`]; [`Error::NotFound`] if there is no such member.
    pub async fn promote(&self, _id: MasterId) -> Result<()> {
        not_yet()
    }
    /// Takes a member out.
    ///
    /// # Errors
    /// As [`Node::join`].
    pub async fn remove(&self, _id: MasterId) -> Result<()> {
        not_yet()
    }
    /// Asks this leader to hand over to another voter.
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere.
    pub async fn transfer(&self, _id: MasterId) -> Result<()> {
        not_yet()
    }
    /// The Raft service, to be mounted beside the others.
    pub fn raft_service(&self) -> pb::raft_server::RaftServer<RaftService> {
        pb::raft_server::RaftServer::new(RaftService)
    }
    /// Waits until the node has failed and can't go on (a disk, a broken promise); the process must exit.
    pub async fn failed(&self) -> Error {
        std::future::pending().await
    }
    /// Stops and closes the stores.
    pub async fn shutdown(&self) {}
}

/// Serves the other masters' Raft messages.
#[derive(Debug)]
pub struct RaftService;

#[tonic::async_trait]
impl pb::raft_server::Raft for RaftService {
    async fn append(
        &self,
        _request: tonic::Request<pb::RaftMessage>,
    ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status> {
        not_yet().map_err(Into::into)
    }
    async fn vote(
        &self,
        _request: tonic::Request<pb::RaftMessage>,
    ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status> {
        not_yet().map_err(Into::into)
    }
    async fn pre_vote(
        &self,
        _request: tonic::Request<pb::RaftMessage>,
    ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status> {
        not_yet().map_err(Into::into)
    }
    async fn transfer_leader(
        &self,
        _request: tonic::Request<pb::RaftMessage>,
    ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status> {
        not_yet().map_err(Into::into)
    }
    async fn install_snapshot(
        &self,
        _request: tonic::Request<tonic::Streaming<pb::SnapshotFrame>>,
    ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status> {
        not_yet().map_err(Into::into)
    }
}
