//! Raft's messages to the other masters, over gRPC.
//!
//! Every message names the cluster and the node it is meant for: an address that was given to another
//! server gets no answer that counts. Heartbeats have a connection of their own, so that they never wait
//! behind entries, and so do checkpoints.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ClusterId, LogIndex, MasterId, Term, Uuid};
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::time::UnixMs;
use gfs_proto::{Environment, Error, net, pb};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use pb::peer_client::PeerClient;
use pb::raft_client::RaftClient;
use tonic::transport::Channel;

use super::message::{
    AppendBody, AppendReply, SnapshotReply, TransferBody, TransferReply, VoteBody, VoteReply,
};
use super::store::CheckpointHandle;
use super::transfer;
use super::types::{MasterNode, TypeConfig, Vote};
use super::{ReadIndex, codec, message};
use crate::identity::Membership;

/// How long entries may be on the way: some heartbeats, and one slow sync of the other's disk.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the leader may take to confirm that it leads.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the leader may take to take in a member: two entries.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Ceiling of a connection's calls; each has a shorter limit of its own, but a checkpoint has none in total.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Purpose {
    Entries,
    Heartbeat,
    Checkpoint,
    /// Questions of the masters' own.
    Peer,
}

/// Who we are, and the connections.
pub(crate) struct Network {
    pub(crate) environment: Environment,
    pub(crate) cluster: ClusterId,
    pub(crate) source: u64,
    /// Where the members are now: openraft keeps the clients that it has when one moves.
    addresses: Mutex<BTreeMap<u64, String>>,
    /// Behind a lock because every client may drop a connection that hangs; never held across an await.
    channels: Mutex<BTreeMap<(String, Purpose), Channel>>,
}

impl Network {
    /// No connection yet.
    pub(crate) fn new(environment: Environment, cluster: ClusterId, source: u64) -> Self {
        let (addresses, channels) = (Mutex::default(), Mutex::default());
        Self { environment, cluster, source, addresses, channels }
    }

    /// Where the members are from now on.
    pub(crate) fn learn_addresses(&self, members: impl Iterator<Item = (u64, String)>) {
        *self.addresses.lock() = members.collect();
    }

    fn channel(&self, address: &str, purpose: Purpose) -> gfs_proto::Result<Channel> {
        let key = (address.to_owned(), purpose);
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let channel = net::channel(self.environment.net.clone(), address, CALL_TIMEOUT_MAX)?;
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    fn peer(&self, address: &str) -> gfs_proto::Result<PeerClient<Channel>> {
        Ok(PeerClient::new(self.channel(address, Purpose::Peer)?))
    }

    /// Asks the leader for its read index, and for the group's time if it knows it; tells what our own clock shows, what
    /// we know of the group's, and how much room there is on our disk.
    ///
    /// # Errors
    /// What the leader or the connection says.
    pub(crate) async fn read_index(
        &self,
        address: &str,
        group: Option<UnixMs>,
        free_bytes: Option<u64>,
    ) -> gfs_proto::Result<(ReadIndex, Option<UnixMs>)> {
        let mut peer = self.peer(address)?;
        let question = pb::ReadIndexRequest {
            cluster: self.cluster.to_string(),
            master: self.source,
            clock_ms: Some(self.environment.clock.wall().raw()),
            group_ms: group.map(UnixMs::raw),
            free_bytes,
        };
        let reply = self.bounded(address, PEER_TIMEOUT, peer.read_index(question)).await?;
        let confirmed = ReadIndex {
            term: Term::from_raw(reply.term),
            leader: MasterId::from_raw(reply.leader),
            index: LogIndex::from_raw(reply.index),
        };
        Ok((confirmed, reply.group_ms.map(UnixMs::from_raw)))
    }

    /// Asks a master for an id in its cluster, or tells it where the member with this identity is now.
    ///
    /// # Errors
    /// What the master or the connection says.
    pub(crate) async fn join(
        &self,
        master: &str,
        uuid: Uuid,
        address: &str,
        shadow: bool,
    ) -> gfs_proto::Result<Membership> {
        let mut peer = self.peer(master)?;
        // A new member does not know it.
        let cluster = if self.source == 0 { String::new() } else { self.cluster.to_string() };
        let question = pb::JoinRequest {
            cluster,
            uuid: uuid.bytes().to_vec().into(),
            address: address.to_owned(),
            shadow,
        };
        let reply = self.bounded(master, JOIN_TIMEOUT, peer.join(question)).await?;
        let cluster = ClusterId::from_hex(&reply.cluster).ok_or_else(|| Error::internal("odd cluster id"))?;
        Ok(Membership { cluster, id: MasterId::from_raw(reply.id) })
    }

    async fn bounded<T>(
        &self,
        address: &str,
        timeout: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> gfs_proto::Result<T> {
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                self.forget(address, Purpose::Peer);
                Err(Error::unavailable(format!("{address} did not answer")))
            }
        }
    }

    fn forget(&self, address: &str, purpose: Purpose) {
        self.channels.lock().remove(&(address.to_owned(), purpose));
    }
}

/// Makes clients for openraft.
#[derive(Clone)]
pub(crate) struct Factory(pub(crate) Arc<Network>);

impl Factory {
    fn client(&self, target: u64, node: &MasterNode, purpose: Purpose) -> Client {
        Client { network: self.0.clone(), target, address: node.address.clone(), purpose }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &MasterNode) -> Client {
        self.client(target, node, Purpose::Entries)
    }
    async fn new_heartbeat_client(&mut self, target: u64, node: &MasterNode) -> Client {
        self.client(target, node, Purpose::Heartbeat)
    }
    async fn new_snapshot_client(&mut self, target: u64, node: &MasterNode) -> Client {
        self.client(target, node, Purpose::Checkpoint)
    }
}

/// Sends to one other master.
pub(crate) struct Client {
    network: Arc<Network>,
    target: u64,
    /// Where it was when the client was made.
    address: String,
    purpose: Purpose,
}

/// The peer can't be used now: openraft backs off.
fn unreachable(error: &Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn malformed(error: &io::Error) -> RPCError<TypeConfig> {
    unreachable(&Error::internal(error))
}

impl Client {
    fn address(&self) -> String {
        self.network.addresses.lock().get(&self.target).unwrap_or(&self.address).clone()
    }

    fn client(&self) -> gfs_proto::Result<RaftClient<Channel>> {
        let channel = self.network.channel(&self.address(), self.purpose)?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn envelope(&self, body: &impl prost::Message) -> pb::RaftMessage {
        pb::RaftMessage {
            cluster: self.network.cluster.to_string(),
            target: self.target,
            source: self.network.source,
            format: u32::from(codec::FORMAT),
            body: body.encode_to_vec().into(),
        }
    }

    /// One question, one answer, in bounded time.
    async fn ask<Reply: prost::Message + Default>(
        &self,
        timeout: Duration,
        body: &impl prost::Message,
        call: impl AsyncFnOnce(
            RaftClient<Channel>,
            pb::RaftMessage,
        ) -> Result<tonic::Response<pb::RaftMessage>, tonic::Status>,
    ) -> Result<Reply, RPCError<TypeConfig>> {
        let client = self.client().map_err(|error| unreachable(&error))?;
        let answer = match tokio::time::timeout(timeout, call(client, self.envelope(body))).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(unreachable(&self.refused(status))),
            Err(_) => {
                // The connection may hang for ever, as into a black hole: the next call makes a new one.
                self.network.forget(&self.address(), self.purpose);
                return Err(unreachable(&Error::unavailable(format!("{} did not answer", self.address()))));
            }
        };
        message::open(&answer).map_err(|error| malformed(&error))
    }

    fn refused(&self, status: tonic::Status) -> Error {
        let error = Error::from(status);
        if matches!(
            error,
            Error::WrongCluster { .. } | Error::WrongServer { .. } | Error::UnsupportedVersion { .. }
        ) {
            tracing::warn!(target = self.target, address = self.address(), %error, "a master refuses our messages");
        }
        error
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = CheckpointHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        // openraft bounds heartbeats itself, and entries not at all.
        let body = AppendBody::from(&request);
        let reply: AppendReply =
            self.ask(APPEND_TIMEOUT, &body, async |mut client, message| client.append(message).await).await?;
        reply.into_response().map_err(|error| malformed(&error))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = VoteBody::from(&request);
        let reply: VoteReply = self
            .ask(option.hard_ttl(), &body, async |mut client, message| client.vote(message).await)
            .await?;
        reply.into_response().map_err(|error| malformed(&error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = VoteBody::from(&request);
        let reply: VoteReply = self
            .ask(option.hard_ttl(), &body, async |mut client, message| client.pre_vote(message).await)
            .await?;
        reply.into_response().map_err(|error| malformed(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, CheckpointHandle>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // Deliberately no deadline for the whole: progress is watched instead.
        let start = self.envelope(&message::SnapshotStart::new(&vote, &snapshot.meta));
        let sending = async {
            let client = self.client()?;
            transfer::send(client, start, &snapshot.snapshot).await
        };
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = sending => answer,
        };
        let reply: Result<SnapshotReply, RPCError<TypeConfig>> = match answer {
            Ok(answer) => message::open(&answer).map_err(|error| malformed(&error)),
            Err(error) => {
                tracing::warn!(target = self.target, %error, "sending a checkpoint failed");
                self.network.forget(&self.address(), self.purpose);
                Err(unreachable(&error))
            }
        };
        Ok(reply?.into_response().map_err(|error| malformed(&error))?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = TransferBody::from(&request);
        let reply: TransferReply = self
            .ask(option.hard_ttl(), &body, async |mut client, message| client.transfer_leader(message).await)
            .await?;
        reply.into_response().map_err(|error| malformed(&error))
    }
}
