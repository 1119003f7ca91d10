//! What the leader's work stands on, each a trait with a real and a test side: the log, the chunkservers, and
//! the soft state beside them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use gfs_proto::id::{ChunkHandle, ServerId};
use gfs_proto::time::{Clock, Moment};
use gfs_proto::{Result, pb};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use crate::cluster::Cluster;
use crate::raft::{Node, Touched};
use crate::state::{Applied, Command, Proposal, Rejected, View};

/// The replicated log and its state: Raft in production.
pub(crate) trait Log: Send + Sync {
    /// Puts a command of the leader's own into the log and applies it.
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<std::result::Result<Applied, Rejected>>>;
    /// Whether the state may grow.
    ///
    /// # Errors
    /// [`MastersFull`](gfs_proto::Error::MastersFull) if the masters' disks are nearly full.
    fn may_grow(&self) -> Result<()>;
    /// The state as it is now here.
    fn view(&self) -> Box<dyn View + '_>;
    /// What each applied entry changes from now on.
    fn touched(&self) -> broadcast::Receiver<Touched>;
}

/// Raft, which dates the leader's own commands by the group's clock.
pub(crate) struct RaftLog {
    /// This master's node.
    pub(crate) node: Node,
}

impl Log for RaftLog {
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<std::result::Result<Applied, Rejected>>> {
        Box::pin(async move {
            let proposal = Proposal::internal(self.node.date().await, command);
            Ok(self.node.propose(proposal).await?.1)
        })
    }
    fn may_grow(&self) -> Result<()> {
        self.node.may_grow()
    }
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(self.node.view())
    }
    fn touched(&self) -> broadcast::Receiver<Touched> {
        self.node.touched()
    }
}

/// One chunkserver, as orders are addressed: the id is checked at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// Who is meant.
    pub(crate) server: ServerId,
    /// Where it was last.
    pub(crate) address: String,
}

/// Orders to chunkservers: gRPC in production. Each is cut off at a time that suits it.
pub(crate) trait Orders: Send + Sync {
    /// Grant step 2.
    fn store_version(
        &self,
        target: Target,
        request: pb::StoreVersionRequest,
    ) -> BoxFuture<'_, Result<pb::StoreVersionReply>>;
    /// Grant steps 3 and 4.
    fn reconcile(&self, target: Target, request: pb::ReconcileRequest) -> BoxFuture<'_, Result<()>>;
    /// Grant step 6.
    fn activate(&self, target: Target, request: pb::ActivateRequest) -> BoxFuture<'_, Result<()>>;
    /// Stop serving a chunk: the epoch in which it was taken note of.
    fn exclude(&self, target: Target, request: pb::ExcludeRequest)
    -> BoxFuture<'_, Result<pb::ExcludeReply>>;
    /// Copies a replica locally, for a copy on write.
    fn copy_replica(&self, target: Target, request: pb::CopyReplicaRequest) -> BoxFuture<'_, Result<()>>;
    /// Removes garbage: whether it is gone.
    fn delete(&self, target: Target, request: pb::DeleteReplicaRequest) -> BoxFuture<'_, Result<bool>>;
    /// What it holds of a chunk.
    fn inspect(
        &self,
        target: Target,
        request: pb::InspectReplicaRequest,
    ) -> BoxFuture<'_, Result<pb::InspectReplicaReply>>;
    /// Is it there?
    fn probe(&self, target: Target, request: pb::ProbeRequest) -> BoxFuture<'_, Result<()>>;
}

/// How long after the start of this process the soft state may still be full of holes.
const SETTLING: Duration = Duration::from_secs(10);

/// The soft state, always as new as the replicated state that it is read with.
pub(crate) struct Soft {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    started: Moment,
    /// Behind one lock, so that what follows from both states is never computed from an older one of either;
    /// never held across an await.
    inner: Mutex<Inner>,
}

struct Inner {
    cluster: Cluster,
    touched: broadcast::Receiver<Touched>,
}

impl Soft {
    /// Nothing is known yet.
    pub(crate) fn new(log: Arc<dyn Log>, clock: Arc<dyn Clock>) -> Self {
        let (touched, started) = (log.touched(), clock.moment());
        Self { log, clock, started, inner: Mutex::new(Inner { cluster: Cluster::default(), touched }) }
    }

    /// Whether the servers have had the time to register here and to report: before that, nobody is missing
    /// (trap T46). A new leader that was a follower before need not wait.
    pub(crate) fn is_settled(&self) -> bool {
        self.clock.moment().since(self.started) >= SETTLING
    }

    /// Whether what was counted of the replicas says something: every server has reported, or had the time to. A live one
    /// whose report is not in yet may hold anything.
    ///
    /// # Errors
    /// Only a state that can't be read.
    pub(crate) fn has_heard_everybody(&self) -> Result<bool> {
        let had_time = self.is_settled();
        self.with(|cluster, view, now| {
            let servers = crate::state::read::servers(view)?;
            Ok(servers.iter().all(|row| match cluster.server(row.server) {
                Some(known) if known.is_alive(now) => known.has_full_report(),
                Some(_) | None => had_time,
            }))
        })
    }

    /// Calls `call` with the soft state, the replicated state, and the time, when the soft state has caught up
    /// with every entry that was applied before this call.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut Cluster, &dyn View, Moment) -> T) -> T {
        let mut inner = self.inner.lock();
        let Inner { cluster, touched } = &mut *inner;
        let changed = drain(touched);
        // Taken after the changes, and so at least as new as they are.
        let view = self.log.view();
        let now = self.clock.moment();
        match changed {
            Some(handles) => handles.into_iter().for_each(|handle| cluster.examine_in(handle, &*view, now)),
            None => cluster.start_over(&*view, now),
        }
        call(cluster, &*view, now)
    }

    /// Where a server is, by its last registration here, or else by the log.
    pub(crate) fn target(&self, server: ServerId) -> Target {
        let address = self.with(|cluster, view, _| match cluster.server(server) {
            Some(known) => known.address.clone(),
            None => crate::state::read::server(view, server)
                .ok()
                .flatten()
                .map(|row| row.address)
                .unwrap_or_default(),
        });
        Target { server, address }
    }
}

/// The chunks that have changed; `None` if that can't be told, so all may have.
fn drain(touched: &mut broadcast::Receiver<Touched>) -> Option<BTreeSet<ChunkHandle>> {
    let mut changed = Some(BTreeSet::new());
    loop {
        match touched.try_recv() {
            Ok(Touched::Chunks(_, handles)) => {
                if let Some(changed) = &mut changed {
                    changed.extend(handles);
                }
            }
            Ok(Touched::Everything(_)) | Err(TryRecvError::Lagged(_)) => changed = None,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return changed,
        }
    }
}
