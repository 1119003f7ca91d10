//! One member of the master group, as the rest of the master sees it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use gfs_proto::id::{ClusterId, LogIndex, MasterId, Term, Uuid};
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::time::{Clock, UnixMs};
use gfs_proto::{Environment, Error, Result, fault, pb};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::clock::GroupClock;
use super::gate::{Gate, at_leader};
use super::log;
use super::machine::Feeds;
use super::members::{self, Members};
use super::network::Network;
use super::poison::Poison;
use super::room::Room;
use super::service::RaftService;
use super::start;
use super::store::{ReadView, StateStore};
use super::types::{Metrics, Operation, Raft, TypeConfig};
use super::{Leadership, Member, NodeConfig, Origin, ReadIndex, Touched};
use crate::identity::Home;
use crate::state::{Applied, Proposal, Rejected};

/// Largest encoded proposal: one entry must not hold up the log (GFS §2.6.3).
const PROPOSAL_BYTES_MAX: usize = 1 << 20;
/// Proposals under way at once; more are turned away before they cost anything.
pub(super) const PROPOSALS_MAX: usize = 8192;
/// How long a proposal may take before its outcome counts as unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read index may take to be confirmed, and then to be applied here.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a leader that stops waits for another to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long closing the stores may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running member of the master group. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) raft: Raft,
    pub(super) cluster: ClusterId,
    pub(super) id: MasterId,
    pub(super) store: Arc<StateStore>,
    pub(super) log: Weak<log::Shared>,
    pub(super) log_poison: Arc<Poison>,
    pub(super) feeds: Feeds,
    pub(super) network: Arc<Network>,
    pub(super) clock: Arc<GroupClock>,
    pub(super) room: Arc<Room>,
    pub(super) members: Arc<Members>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) stop: CancellationToken,
    pub(super) read_here: Gate<ReadIndex>,
    pub(super) read_there: Gate<ReadIndex>,
    pub(super) admission: Semaphore,
    /// Last, so that the lock outlives the stores.
    pub(super) _home: Home,
}

impl Inner {
    /// The same for a node that is not started yet.
    pub(super) async fn failed(&self) -> Error {
        let mut metrics = self.raft.metrics();
        let fatal = async {
            loop {
                let state = metrics.borrow_watched().running_state.clone();
                match state {
                    Err(fatal) if !self.stop.is_cancelled() => return fatal.to_string(),
                    Ok(()) | Err(_) => {}
                }
                if metrics.changed().await.is_err() {
                    return "raft has stopped".to_owned();
                }
            }
        };
        let what = tokio::select! {
            what = self.log_poison.failed() => what,
            what = self.store.poison.failed() => what,
            what = fatal => what,
        };
        Error::unavailable(format!("this master has failed: {what}"))
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.inner.id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        // A node that is dropped without a shutdown stops too, a moment later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let raft = self.raft.clone();
            runtime.spawn(async move {
                if let Err(error) = raft.shutdown().await {
                    tracing::debug!(%error, "raft did not stop cleanly");
                }
            });
        }
    }
}

/// What a caller does when another node must decide.
pub(super) fn forwarded(forward: &ForwardToLeader<TypeConfig>) -> Error {
    match forward.reason {
        ForwardReason::NotLeader => {
            Error::NotLeader { leader: forward.leader_node.as_ref().map(|node| node.address.clone()) }
        }
        ForwardReason::LeadershipTransfer => Error::unavailable("leadership is being handed over"),
        ForwardReason::LeaseExpired => Error::unavailable("the leader has no quorum now"),
    }
}

/// Puts a proposal into the log and waits for its answer.
pub(super) async fn propose(
    raft: &Raft,
    proposal: &Proposal,
) -> Result<(LogIndex, Result<Applied, Rejected>)> {
    let bytes = proposal.encode();
    if bytes.len() > PROPOSAL_BYTES_MAX {
        let (size, limit) = (bytes.len() as u64, PROPOSAL_BYTES_MAX as u64);
        return Err(Error::TooLarge { what: "a command".into(), size, limit });
    }
    fault::try_reach("raft::propose::before").await?;
    let write = raft.client_write(Operation(bytes.into()));
    let written = tokio::time::timeout(PROPOSE_TIMEOUT, write)
        .await
        .map_err(|_| Error::unavailable("the log takes long: the outcome is unknown"))?;
    let answer = written.map_err(|error| match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forwarded(&forward),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            Error::unavailable("the leader changed: the outcome is unknown")
        }
        RaftError::APIError(error) => Error::unavailable(error),
        RaftError::Fatal(error) => Error::unavailable(error),
    })?;
    fault::try_reach("raft::propose::committed").await?;
    let reply = answer.data.state.ok_or_else(|| Error::internal("an entry without an answer"))?;
    Ok((reply.decided_at, reply.result))
}

impl Node {
    /// Starts this node: makes or joins a cluster if the directory is empty, else goes on.
    ///
    /// # Errors
    /// Why the directory is refused, or what stands in the way of bootstrap or join.
    pub async fn start(config: NodeConfig, origin: &Origin, environment: &Environment) -> Result<Self> {
        let inner = start::start(config, origin, environment).await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This node's id.
    pub fn id(&self) -> MasterId {
        self.inner.id
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Puts a command into the log and applies it. Safe to repeat with the same request id. Returns the
    /// index at which the answer was decided.
    ///
    /// # Errors
    /// [`Error::NotLeader`] with a hint; [`Error::Busy`], [`Error::MastersFull`] and [`Error::TooLarge`] before it was tried;
    /// [`Error::Unavailable`] if the outcome may be unknown: repeat with the same request id.
    pub async fn propose(&self, proposal: Proposal) -> Result<(LogIndex, Result<Applied, Rejected>)> {
        let _permit = self
            .inner
            .admission
            .try_acquire()
            .map_err(|_| Error::Busy { what: "the queue of commands".into() })?;
        if proposal.command.grows() {
            self.may_grow()?;
        }
        propose(&self.inner.raft, &proposal).await
    }

    /// Whether the state may grow (decision 0025).
    ///
    /// # Errors
    /// [`Error::MastersFull`] if the masters' disks are nearly full.
    pub fn may_grow(&self) -> Result<()> {
        self.inner.room.check()
    }

    /// Waits until this node has applied everything that was acknowledged anywhere before this call;
    /// afterwards [`Node::view`] is linearizable. Concurrent calls share one round.
    ///
    /// # Errors
    /// [`Error::NotLeader`] or [`Error::Unavailable`] if no leader with a quorum answers.
    pub async fn read_index(&self) -> Result<LogIndex> {
        let leadership = self.inner.leadership.borrow().clone();
        let confirmed = match leadership.leader {
            _ if leadership.leading => self.leader_read_index().await?,
            Some(_) => self.ask_leader().await?,
            None => return Err(Error::NotLeader { leader: None }),
        };
        self.until_applied(confirmed.index).await
    }

    /// Waits until this node has applied the log up to `index`; returns how far it is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if that takes long, or never comes because the node has failed.
    pub async fn until_applied(&self, index: LogIndex) -> Result<LogIndex> {
        let mut applied = self.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        tokio::select! {
            reached = tokio::time::timeout(READ_TIMEOUT, reached) => match reached {
                Ok(Ok(applied)) => Ok(*applied),
                Ok(Err(_)) => Err(Error::unavailable("this master is stopping")),
                Err(_) => Err(Error::unavailable(format!("{index} is not applied here yet"))),
            },
            error = self.failed() => Err(error),
        }
    }

    /// The leader's side of [`Node::read_index`]: for `Peer.ReadIndex`.
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere, [`Error::Unavailable`] without a quorum.
    pub async fn leader_read_index(&self) -> Result<ReadIndex> {
        let (raft, leader) = (self.inner.raft.clone(), self.inner.id);
        let round = move || {
            let raft = raft.clone();
            async move {
                fault::try_reach("raft::read_index::before").await?;
                // Never by lease: that is unsafe across a fast restart of a follower (openraft).
                let confirmed = raft.get_read_linearizer(ReadPolicy::ReadIndex);
                let confirmed = tokio::time::timeout(READ_TIMEOUT, confirmed)
                    .await
                    .map_err(|_| Error::unavailable("no quorum answers"))?;
                let confirmed = confirmed.map_err(|error| match error {
                    RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                        forwarded(&forward)
                    }
                    RaftError::APIError(error) => Error::unavailable(error),
                    RaftError::Fatal(error) => Error::unavailable(error),
                })?;
                fault::try_reach("raft::read_index::confirmed").await?;
                let id = confirmed.read_log_id();
                let term = Term::from_raw(id.committed_leader_id().term);
                Ok(ReadIndex { term, leader, index: LogIndex::from_raw(id.index()) })
            }
        };
        self.inner.read_here.pass(round).await
    }

    async fn ask_leader(&self) -> Result<ReadIndex> {
        let (network, clock) = (self.inner.network.clone(), self.inner.clock.clone());
        let (room, own) = (self.inner.room.clone(), self.inner.id);
        let ask = move |address: String| {
            let (network, clock) = (network.clone(), clock.clone());
            let free_bytes = room.free_bytes(own);
            async move {
                let (confirmed, group) = network.read_index(&address, clock.time(), free_bytes).await?;
                if let Some(time) = group {
                    clock.told(time);
                }
                Ok(confirmed)
            }
        };
        self.inner.read_there.pass(at_leader(self.leadership(), ask)).await
    }

    /// The group's wall clock (decision 0023), and this machine's monotonic one.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock.clone()
    }

    /// The date for a command: the group's time, for which commands wait a second at most right after a start.
    pub async fn date(&self) -> UnixMs {
        self.inner.clock.date().await
    }

    /// The leader's side of a question for the read index: what the asking master's own clock shows, and what it was told
    /// of the group's, and how much room there is on its disk.
    pub fn heard(&self, request: &pb::ReadIndexRequest) {
        let master = MasterId::from_raw(request.master);
        if let Some(wall) = request.clock_ms.map(UnixMs::from_raw) {
            let group = request.group_ms.map(UnixMs::from_raw);
            self.inner.clock.heard(master, wall, group);
        }
        if let Some(free_bytes) = request.free_bytes {
            self.inner.room.heard(master, free_bytes);
        }
    }

    /// Bytes beyond the headroom on a master's disk, if it has told this one lately, and its disk tells how large it is.
    pub fn free_bytes(&self, master: MasterId) -> Option<u64> {
        self.inner.room.known_free_bytes(master)
    }

    /// The group's time, if it is known.
    pub fn group_time(&self) -> Option<UnixMs> {
        self.inner.clock.time()
    }

    /// The state as it is now here.
    pub fn view(&self) -> ReadView {
        self.inner.store.view()
    }

    /// The last entry applied here.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        self.inner.feeds.applied.subscribe()
    }

    /// Who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// What each entry changes from now on; a receiver that falls behind gets `Lagged` and reads anew.
    pub fn touched(&self) -> broadcast::Receiver<Touched> {
        self.inner.feeds.touched.subscribe()
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.inner.raft.metrics().borrow_watched().clone()
    }

    /// The masters and shadows.
    pub fn membership(&self) -> Vec<Member> {
        members::list(&self.metrics())
    }

    /// On the leader: how many entries each other member is behind.
    pub fn lags(&self) -> Vec<(MasterId, u64)> {
        members::lags(&self.metrics())
    }

    /// The leader's side of a join, for `Peer.Join`: allots the id (a repeat returns the same) and adds a
    /// learner, which is promoted once it has caught up, unless it is a shadow.
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere, [`Error::Unavailable`] if unfinished: repeat it.
    pub async fn join(&self, uuid: Uuid, address: &str, shadow: bool) -> Result<MasterId> {
        self.inner.members.join(uuid, address, shadow).await
    }

    /// Adds a member that doesn't vote.
    ///
    /// # Errors
    /// As [`Node::join`].
    pub async fn add_learner(&self, id: MasterId, address: &str, shadow: bool) -> Result<()> {
        self.inner.members.add_learner(id, address, shadow).await
    }

    /// Lets a learner vote.
    ///
    /// # Errors
    /// As [`Node::join`]; [`Error::NotFound`] if there is no such member.
    pub async fn promote(&self, id: MasterId) -> Result<()> {
        self.inner.members.promote(id).await
    }

    /// Takes a member out; its process is to be stopped then.
    ///
    /// # Errors
    /// As [`Node::join`]; [`Error::BadArgument`] for the last voter.
    pub async fn remove(&self, id: MasterId) -> Result<()> {
        self.inner.members.remove(id).await
    }

    /// Asks this leader to hand over to another voter; whether it did shows in [`Node::leadership`].
    ///
    /// # Errors
    /// [`Error::NotLeader`] elsewhere.
    pub async fn transfer(&self, id: MasterId) -> Result<()> {
        let leadership = self.inner.leadership.borrow().clone();
        if !leadership.leading {
            return Err(Error::NotLeader { leader: leadership.leader.map(|(_, address)| address) });
        }
        self.inner.raft.trigger().transfer_leader(id.raw()).await.map_err(Error::unavailable)
    }

    /// Builds a checkpoint soon, besides those of the schedule.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the node has stopped.
    pub async fn checkpoint(&self) -> Result<()> {
        self.inner.raft.trigger().snapshot().await.map_err(Error::unavailable)
    }

    /// The Raft service, to be mounted beside the others.
    pub fn raft_service(&self) -> pb::raft_server::RaftServer<RaftService> {
        pb::raft_server::RaftServer::new(self.service())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    #[cfg(test)]
    pub(super) fn poison(&self) -> &Poison {
        &self.inner.log_poison
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> &Room {
        &self.inner.room
    }

    /// Lets nothing be applied here until what it returns is dropped.
    #[cfg(test)]
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.inner.feeds.turn.clone().acquire_owned().await.unwrap()
    }

    pub(super) fn service(&self) -> RaftService {
        let inner = &self.inner;
        RaftService::new(inner.raft.clone(), &inner.store, inner.cluster, inner.id.raw())
    }

    /// Waits until the node has failed and can't go on (a disk, a broken promise); the process must exit.
    pub async fn failed(&self) -> Error {
        self.inner.failed().await
    }

    /// Hands leadership over if it has it, stops, and closes the log. The state closes when the last clone and
    /// the last view are dropped.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.halt().await;
    }

    /// Spares the others the wait for an election, if one of them is close behind.
    pub(crate) async fn hand_over(&self) {
        let mut leadership = self.leadership();
        let voters: Vec<MasterId> =
            self.membership().into_iter().filter(|member| member.voter).map(|member| member.id).collect();
        let lags = self.lags().into_iter().filter(|(id, _)| voters.contains(id));
        let Some((nearest, _)) = lags.min_by_key(|(_, lag)| *lag) else { return };
        if let Err(error) = self.transfer(nearest).await {
            tracing::debug!(%error, "leadership is not handed over");
            return;
        }
        let deposed = leadership.wait_for(|leadership| !leadership.leading);
        if tokio::time::timeout(HAND_OVER_TIMEOUT, deposed).await.is_err() {
            tracing::info!(to = %nearest, "nobody took over leadership in time");
        }
    }

    /// Stops at once.
    pub(super) async fn halt(&self) {
        self.inner.stop.cancel();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        let closed = async {
            // The log's writer still has to write what is queued; openraft does not wait for the machine.
            while self.inner.log.strong_count() > 0 || Arc::strong_count(&self.inner.store) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the stores are still in use");
        }
    }
}
