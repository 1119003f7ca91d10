//! Links to chunkservers: pooled, multiplexed connections for data frames. Used by clients and chunkservers.
//!
//! Each peer has one connection for small frames and up to [`BULK_LINKS_MAX`] for large ones, so that a small one never
//! waits behind a large one. A connection that fails or is idle is dropped; the next call makes another.

mod calls;
mod connection;
mod forward;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::frame::{Frame, Kind};
use crate::id::{ClusterId, ServerId};
use crate::size::BLOCK_BYTES;
use crate::time::Moment;
use crate::{Environment, pb};

pub use calls::{Mutation, Range, ReadReply, Source};
pub use forward::Forward;

use connection::{Body, Call, Link, Unsent};

/// How long a call waits for its answer if its frame gives no `deadline_ms`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting and the greeting may take.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection without calls is closed after this long.
pub const IDLE_CLOSE: Duration = Duration::from_secs(60);
/// Most connections for large frames to one peer.
pub const BULK_LINKS_MAX: usize = 4;
/// Calls on each open connection for large frames before another one is opened: one travels, one waits to follow.
const BULK_CALLS_EACH: usize = 2;
/// Frames whose payload, either way, is larger than this are large.
const SMALL_BYTES_MAX: u32 = BLOCK_BYTES;
/// Peers without any connection are forgotten when there are more than this.
const PEERS_MAX: usize = 256;

/// A chunkserver: who is meant, and where it is thought to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer {
    /// The server that is meant; another one at this address refuses ([`Error::WrongServer`]). 0: whoever is there.
    pub server: ServerId,
    /// `host:port`.
    pub address: String,
}

impl From<&pb::Replica> for Peer {
    fn from(replica: &pb::Replica) -> Self {
        Self { server: ServerId::from_raw(replica.server), address: replica.address.clone() }
    }
}
impl From<&Peer> for pb::Replica {
    fn from(peer: &Peer) -> Self {
        Self { server: peer.server.raw(), address: peer.address.clone(), rack: String::new() }
    }
}
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.server, self.address)
    }
}

/// All links of one process. Cheap to clone; the connections close when the last clone is gone.
#[derive(Clone)]
pub struct Links {
    environment: Environment,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Who we are; behind a lock because it is learnt after the start.
    identity: Mutex<Option<Identity>>,
    /// Behind a lock because every call looks its peer up; never held across an await.
    peers: Mutex<BTreeMap<Peer, Arc<PeerLinks>>>,
}

#[derive(Clone, Copy)]
struct Identity {
    cluster: ClusterId,
    from: Option<ServerId>,
}

#[derive(Default)]
struct PeerLinks {
    small: Class,
    bulk: Class,
}

/// The connections of one kind to one peer.
#[derive(Default)]
struct Class {
    /// Behind a lock because every call picks one; never held across an await.
    links: Mutex<Vec<Arc<Link>>>,
    /// Held while connecting: many callers share one attempt, and its failure.
    connecting: tokio::sync::Mutex<Option<(Moment, Error)>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Links({} peers)", self.shared.peers.lock().len())
    }
}

impl Links {
    /// Links without an identity yet; no connection is made before the first call.
    pub fn new(environment: &Environment) -> Self {
        Self { environment: environment.clone(), shared: Arc::default() }
    }

    /// Who we are, told to every peer from now on: the cluster, and our server id (`None` for a client).
    /// Without it the cluster of a peer is not checked.
    pub fn set_identity(&self, cluster: ClusterId, from: Option<ServerId>) {
        *self.shared.identity.lock() = Some(Identity { cluster, from });
    }

    /// Sends one frame with its payload and returns the answer to it, which is never [`Kind::Failed`]:
    /// that becomes the error it carries. The request id is chosen here. Calls made at the same time overtake each other.
    /// A payload of more than 64 KiB, either way, travels on connections of its own kind.
    ///
    /// # Errors
    /// The error that the peer answered; [`Error::Unavailable`] if there is no connection, it failed or no answer
    /// came in time (what was asked may have happened); [`Error::Busy`] if the deadline passed in our own queue (it has not);
    /// [`Error::Corrupt`] if the answer's payload does not match its checksums; [`Error::BadArgument`] for a frame over the limits.
    ///
    /// # Cancel safety
    /// A dropped call is either not sent or sent whole; its answer is thrown away.
    pub async fn call(&self, peer: &Peer, frame: Frame, payload: Vec<Bytes>) -> Result<(Frame, Bytes)> {
        let length: usize = payload.iter().map(Bytes::len).sum();
        if length != frame.head.payload_length() as usize {
            return Err(Error::bad_argument("the payload is not as long as the frame says"));
        }
        let (call, left) = self.start(peer, &frame, || Body::Whole(payload.clone())).await?;
        call.answer(left).await
    }

    /// Starts a frame whose payload comes piece by piece, while it is still being received.
    ///
    /// # Errors
    /// As [`Links::call`].
    pub async fn forward(&self, peer: &Peer, frame: Frame) -> Result<Forward> {
        let mut ends = None;
        let body = || {
            let (body, new_ends) = forward::channels();
            ends = Some(new_ends);
            body
        };
        let (call, left) = self.start(peer, &frame, body).await?;
        let ends = ends.ok_or_else(|| Error::internal("a frame was sent without a body"))?;
        Ok(Forward::new(call, ends, left))
    }

    /// Puts a frame into the queue of a connection; returns what is left of the caller's patience with it.
    async fn start(
        &self,
        peer: &Peer,
        frame: &Frame,
        mut body: impl FnMut() -> Body,
    ) -> Result<(Call, Duration)> {
        let started = self.environment.clock.moment();
        let patience = patience(frame);
        let sent = async {
            loop {
                match self.link(peer, frame).await?.send(frame, body()).await {
                    Ok(call) => return Ok(call),
                    Err(Unsent::Closed) => {}
                    Err(Unsent::Refused(error)) => return Err(error),
                }
            }
        };
        let call = tokio::time::timeout(patience, sent)
            .await
            .map_err(|_| Error::Busy { what: format!("the link to {peer}") })??;
        Ok((call, patience.saturating_sub(self.environment.clock.moment().since(started))))
    }

    /// An open connection for this frame.
    async fn link(&self, peer: &Peer, frame: &Frame) -> Result<Arc<Link>> {
        let links = self.peer_links(peer);
        // Also the length of what is asked for: the answer comes on the same connection.
        if frame.head.length > SMALL_BYTES_MAX || frame.head.kind == Kind::Push {
            self.pick(peer, &links.bulk, BULK_LINKS_MAX).await
        } else {
            self.pick(peer, &links.small, 1).await
        }
    }

    fn peer_links(&self, peer: &Peer) -> Arc<PeerLinks> {
        let mut peers = self.shared.peers.lock();
        if let Some(links) = peers.get(peer) {
            return links.clone();
        }
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, links| !links.small.is_unused() || !links.bulk.is_unused());
        }
        let links = Arc::<PeerLinks>::default();
        peers.insert(peer.clone(), links.clone());
        links
    }

    /// The least busy connection, or a new one if all are busy and there may be more.
    async fn pick(&self, peer: &Peer, class: &Class, links_max: usize) -> Result<Arc<Link>> {
        let came = self.environment.clock.moment();
        let enough = |link: &Link, count| count >= links_max || link.calls() < BULK_CALLS_EACH;
        if let (Some(least), count) = class.least_busy() {
            if enough(&least, count) {
                return Ok(least);
            }
            return match class.connecting.try_lock() {
                // Another caller is at it already.
                Err(_) => Ok(least),
                Ok(_connecting) => Ok(self.connect(peer, class).await.unwrap_or(least)),
            };
        }
        let mut last_failure = class.connecting.lock().await;
        if let (Some(least), count) = class.least_busy() {
            if enough(&least, count) {
                return Ok(least);
            }
            return Ok(self.connect(peer, class).await.unwrap_or(least));
        }
        // An attempt that failed while we stood in line was ours as well.
        if let Some((failed, error)) = &*last_failure
            && *failed > came
        {
            return Err(error.clone());
        }
        let result = self.connect(peer, class).await;
        *last_failure = result.as_ref().err().map(|error| (self.environment.clock.moment(), error.clone()));
        result
    }

    async fn connect(&self, peer: &Peer, class: &Class) -> Result<Arc<Link>> {
        let identity = *self.shared.identity.lock();
        let greeting = Link::connect(&self.environment, peer, identity);
        let link = tokio::time::timeout(GREETING_TIMEOUT, greeting)
            .await
            .map_err(|_| Error::unavailable(format!("{peer} does not greet")))??;
        class.links.lock().push(link.clone());
        tracing::debug!(%peer, "linked");
        Ok(link)
    }
}

impl Class {
    fn is_unused(&self) -> bool {
        self.least_busy().0.is_none() && self.connecting.try_lock().is_ok()
    }

    /// The connection with the fewest calls, and how many connections there are.
    fn least_busy(&self) -> (Option<Arc<Link>>, usize) {
        let mut links = self.links.lock();
        links.retain(|link| !link.is_closed());
        (links.iter().min_by_key(|link| link.calls()).cloned(), links.len())
    }
}

/// How long the caller of this frame waits.
fn patience(frame: &Frame) -> Duration {
    match frame.head.deadline_ms {
        0 => CALL_TIMEOUT,
        deadline_ms => Duration::from_millis(deadline_ms.into()),
    }
}
