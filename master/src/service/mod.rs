//! What this master answers over gRPC: thin handlers over the node, the state's lookups and the leader.

mod check;
mod client;
mod convert;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod incoming;
mod moving;
mod peer;
mod refusal;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{LogIndex, RequestId};
use gfs_proto::leader::CLUSTER_KEY;
use gfs_proto::net::Listener;
use gfs_proto::pb::master_server::MasterServer;
use gfs_proto::pb::peer_server::PeerServer;
use gfs_proto::pb::registry_server::RegistryServer;
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::time::Moment;
use gfs_proto::{Environment, Error, Result, fault, pb};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use refusal::Refusal;

use crate::leader::Leader;
use crate::raft::{Node, ReadView};
use crate::state::{Applied, Command, Proposal, Rejected};

/// Most client calls that are being answered at one time.
const CALLS_MAX: usize = 8192;
/// Largest request of a client: a path or two and some numbers.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// HTTP/2 streams of one connection.
const STREAMS_MAX: u32 = 4096;
/// How long a lookup waits for the log to come as far as the caller has seen.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(1);
/// How long open calls may go on after `stop`.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The handlers of every service; clones are the same.
#[derive(Clone)]
pub(crate) struct Service {
    node: Node,
    leader: Arc<Leader>,
    environment: Environment,
    /// Bounds the calls in flight: what does not fit is refused at once.
    calls: Arc<Semaphore>,
    /// Bounds the readings of the whole state.
    hashing: Arc<Semaphore>,
    /// A moment at which this node's state was known to be the newest; never held across an await.
    fresh_at: Arc<Mutex<Option<Moment>>>,
}

impl Service {
    /// Handlers over this node.
    pub(crate) fn new(node: Node, leader: Arc<Leader>, environment: Environment) -> Self {
        let (calls, fresh_at) = (Arc::new(Semaphore::new(CALLS_MAX)), Arc::default());
        let hashing = Arc::new(Semaphore::new(1));
        Self { node, leader, environment, calls, hashing, fresh_at }
    }

    /// Serves on `listener`, at most so many connections at a time, until `stop`, then lets open calls end.
    ///
    /// # Errors
    /// What the transport says.
    pub(crate) async fn serve(
        &self,
        (listener, most): (Box<dyn Listener>, usize),
        stop: CancellationToken,
    ) -> Result<()> {
        let master = MasterServer::new(self.clone())
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let door = self.clone();
        let router = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_service(InterceptedService::new(master, move |request| door.check_meant(request)))
            .add_service(
                RegistryServer::new(self.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(PeerServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(self.node.raft_service());
        let connections = incoming::incoming((listener, most), incoming::SILENCE_MAX);
        let serving = router.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
        tokio::select! {
            served = serving => served.map_err(Error::unavailable),
            () = async { stop.cancelled().await; tokio::time::sleep(STOP_PATIENCE).await; } => Ok(()),
        }
    }

    /// Keeps the age of this node's state known, for lookups that allow one: asks the leader how far the log is.
    ///
    /// # Errors
    /// No leader answers.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let asked = self.environment.clock.moment();
        self.node.read_index().await?;
        *self.fresh_at.lock() = Some(asked);
        Ok(())
    }

    fn admit(&self) -> Result<SemaphorePermit<'_>> {
        self.calls.try_acquire().map_err(|_| Error::Busy { what: "the list of calls in flight".into() })
    }

    /// Puts a client's mutation into the log: the index at which it was decided, and the answer.
    async fn mutate(
        &self,
        request: Option<pb::RequestId>,
        command: Command,
    ) -> Result<(u64, Applied), Refusal> {
        let _permit = self.admit()?;
        let first_unacked = request.map_or(0, |request| request.first_unacked);
        let request = request.map(RequestId::from).filter(|request| request.client.raw() != 0);
        let request =
            request.ok_or_else(|| Error::bad_argument("a mutation needs a session's request id"))?;
        self.propose(Some(request), first_unacked, command).await
    }

    async fn propose(
        &self,
        request: Option<RequestId>,
        first_unacked: u64,
        command: Command,
    ) -> Result<(u64, Applied), Refusal> {
        let now = self.node.date().await;
        let (rev, applied) = self.node.propose(Proposal { request, first_unacked, now, command }).await?;
        let applied = applied.map_err(|rejected| Refusal::in_state(rejected, rev))?;
        Ok((rev.raw(), applied))
    }

    /// Looks something up in a state that is as fresh as asked for: the answer, and the state's log index.
    async fn look_up<T>(
        &self,
        freshness: Option<pb::Freshness>,
        lookup: impl FnOnce(&ReadView) -> Result<T, Rejected>,
    ) -> Result<(T, u64), Refusal> {
        let _permit = self.admit()?;
        self.freshen(freshness.unwrap_or_default()).await?;
        let view = self.node.view();
        let found = lookup(&view);
        view.check()?;
        let found = found.map_err(|rejected| Refusal::in_state(rejected, view.applied()))?;
        Ok((found, view.applied().raw()))
    }

    /// Waits until the state is as fresh as asked for (promise P8).
    async fn freshen(&self, freshness: pb::Freshness) -> Result<()> {
        let bound = Duration::from_millis(freshness.max_staleness_ms);
        let now = self.environment.clock.moment();
        let is_fresh = !bound.is_zero()
            && self.fresh_at.lock().is_some_and(|at| {
                // Mutant shadow_past_bound: fresh once is fresh for ever.
                now.since(at) <= bound || fault::mutant("shadow_past_bound")
            });
        // Mutant reads_unasked: any master answers from what it has, as if it led.
        if !is_fresh && !fault::mutant("reads_unasked") {
            self.refresh().await?;
        }
        // Mutant floor_ignored: a client may see less than it has seen.
        let floor = if fault::mutant("floor_ignored") { 0 } else { freshness.min_rev };
        let floor = LogIndex::from_raw(floor);
        let mut applied = self.node.applied();
        let caught_up =
            tokio::time::timeout(CATCH_UP_PATIENCE, applied.wait_for(|applied| *applied >= floor));
        match caught_up.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::TooOld { applied: self.node.view().applied() }),
        }
    }

    /// Checks that a message is for this cluster; an empty id is of one that does not know it yet.
    fn check_cluster(&self, theirs: &str) -> Result<()> {
        let ours = self.node.cluster().to_string();
        if theirs.is_empty() || theirs == ours {
            return Ok(());
        }
        let theirs = theirs.chars().take(64).collect();
        Err(Error::WrongCluster { ours, theirs })
    }

    /// Checks that a client's call is for this cluster, before it is looked at: the address may have been another one's, and
    /// a session or a path means something else there.
    fn check_meant(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let meant = request.metadata().get(CLUSTER_KEY).and_then(|value| value.to_str().ok());
        self.check_cluster(meant.unwrap_or_default())?;
        Ok(request)
    }

    fn master_addresses(&self) -> Vec<String> {
        self.node.membership().into_iter().map(|member| member.address).collect()
    }
}

#[cfg(test)]
mod tests;
