//! Raft's messages from the other masters.

use std::sync::{Arc, Weak};

use gfs_proto::id::ClusterId;
use gfs_proto::{Error, fault, pb};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::codec::FORMAT;
use super::message::{
    self, AppendBody, AppendReply, SnapshotReply, SnapshotStart, TransferBody, TransferReply, VoteBody,
    VoteReply,
};
use super::store::StateStore;
use super::transfer::{self, Receiver};
use super::types::Raft;

/// Checkpoints that may come in at once: two masters may both believe that they lead.
const RECEIVE_MAX: usize = 2;

/// Serves the other masters' Raft messages.
pub struct RaftService {
    raft: Raft,
    /// Weak, so that the state can close while the server still runs.
    store: Weak<StateStore>,
    cluster: ClusterId,
    id: u64,
    receiving: Semaphore,
}

impl std::fmt::Debug for RaftService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftService(m{})", self.id)
    }
}

fn malformed(error: std::io::Error) -> Status {
    Error::bad_argument(error).into()
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Error::unavailable(error).into()
}

impl RaftService {
    pub(crate) fn new(raft: Raft, store: &Arc<StateStore>, cluster: ClusterId, id: u64) -> Self {
        Self { raft, store: Arc::downgrade(store), cluster, id, receiving: Semaphore::new(RECEIVE_MAX) }
    }

    #[cfg(test)]
    pub(crate) fn for_test(node: &super::Node) -> Self {
        node.service()
    }

    /// Refuses what is meant for another cluster or node, and what a later version wrote.
    fn open<Body: prost::Message + Default>(&self, message: &pb::RaftMessage) -> Result<Body, Status> {
        if ClusterId::from_hex(&message.cluster) != Some(self.cluster) {
            let theirs = message.cluster.clone();
            return Err(Error::WrongCluster { ours: self.cluster.to_string(), theirs }.into());
        }
        if message.target != self.id || message.source == self.id {
            return Err(Error::WrongServer { ours: self.id, theirs: message.target }.into());
        }
        if message.format != u32::from(FORMAT) {
            let (found, known) = (message.format, u32::from(FORMAT));
            return Err(Error::UnsupportedVersion { what: "raft message".into(), found, known }.into());
        }
        message::open(message).map_err(malformed)
    }

    fn answer(&self, to: u64, body: &impl prost::Message) -> Response<pb::RaftMessage> {
        Response::new(pb::RaftMessage {
            cluster: self.cluster.to_string(),
            target: to,
            source: self.id,
            format: u32::from(FORMAT),
            body: body.encode_to_vec().into(),
        })
    }
}

#[tonic::async_trait]
impl pb::raft_server::Raft for RaftService {
    async fn append(&self, request: Request<pb::RaftMessage>) -> Result<Response<pb::RaftMessage>, Status> {
        let message = request.into_inner();
        fault::try_reach("raft::rpc::append_received").await?;
        let append = self.open::<AppendBody>(&message)?.into_request().map_err(malformed)?;
        let response = self.raft.append_entries(append).await.map_err(stopped)?;
        fault::try_reach("raft::rpc::before_append_reply").await?;
        Ok(self.answer(message.source, &AppendReply::from(response)))
    }

    async fn vote(&self, request: Request<pb::RaftMessage>) -> Result<Response<pb::RaftMessage>, Status> {
        let message = request.into_inner();
        let vote = self.open::<VoteBody>(&message)?.into_request().map_err(malformed)?;
        fault::try_reach("raft::rpc::vote_received").await?;
        let response = self.raft.vote(vote).await.map_err(stopped)?;
        fault::try_reach("raft::rpc::before_vote_reply").await?;
        Ok(self.answer(message.source, &VoteReply::from(response)))
    }

    async fn pre_vote(&self, request: Request<pb::RaftMessage>) -> Result<Response<pb::RaftMessage>, Status> {
        let message = request.into_inner();
        let vote = self.open::<VoteBody>(&message)?.into_request().map_err(malformed)?;
        let response = self.raft.pre_vote(vote).await.map_err(stopped)?;
        Ok(self.answer(message.source, &VoteReply::from(response)))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::RaftMessage>,
    ) -> Result<Response<pb::RaftMessage>, Status> {
        let message = request.into_inner();
        let transfer = self.open::<TransferBody>(&message)?.into_request().map_err(malformed)?;
        let response = self.raft.handle_transfer_leader(transfer).await.map_err(stopped)?;
        Ok(self.answer(message.source, &TransferReply::from(response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<tonic::Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::RaftMessage>, Status> {
        let mut stream = request.into_inner();
        let first = transfer::next(&mut stream).await?.and_then(|frame| frame.part);
        let Some(pb::snapshot_frame::Part::Start(start)) = first else {
            return Err(Error::bad_argument("a checkpoint begins with its start").into());
        };
        let (vote, meta) = self.open::<SnapshotStart>(&start)?.into_parts().map_err(malformed)?;
        let _permit = self
            .receiving
            .try_acquire()
            .map_err(|_| Error::Busy { what: "the queue of incoming checkpoints".into() })?;
        let store = self.store.upgrade().ok_or_else(|| stopped("this master is stopping"))?;
        let dir = store.receive_dir().map_err(stopped)?;
        drop(store);
        let snapshot = Receiver::new(dir).receive(&mut stream, meta.clone()).await?;
        let snapshot = openraft::storage::Snapshot { meta, snapshot };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        fault::try_reach("raft::rpc::before_install_reply").await?;
        Ok(self.answer(start.source, &SnapshotReply::from(response)))
    }
}
