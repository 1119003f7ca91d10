//! Links to chunkservers: pooled, multiplexed connections for data frames. Used by clients and chunkservers.

mod calls;

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::id::{ClusterId, ServerId};
use crate::{Environment, pb};

pub use calls::{Mutation, Range, ReadReply, Source};

/// How long a call waits for its answer if its frame gives no `deadline_ms`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

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

/// All links of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    environment: Environment,
}

impl Links {
    /// Links without an identity yet; no connection is made before the first call.
    pub fn new(environment: &Environment) -> Self {
        Self { environment: environment.clone() }
    }

    /// Who we are, told to every peer from now on: the cluster, and our server id (`None` for a client).
    /// Without it the cluster of a peer is not checked.
    pub fn set_identity(&self, cluster: ClusterId, from: Option<ServerId>) {
        let _ = (cluster, from, &self.environment);
    }

    /// Sends one frame with its payload and returns the answer to it, which is never [`crate::frame::Kind::Failed`]:
    /// that becomes the error it carries. The request id is chosen here. Calls made at the same time overtake each other.
    /// A payload of more than 64 KiB, either way, travels on connections of its own kind.
    ///
    /// # Errors
    /// The error that the peer answered; [`Error::Unavailable`] if there is no connection, it failed or no answer
    /// came in time (what was asked may have happened); [`Error::Busy`] if the deadline passed in our own queue (it has not);
    /// [`Error::Corrupt`] if the answer's payload does not match its checksums.
    ///
    /// # Cancel safety
    /// A dropped call is either not sent or sent whole; its answer is thrown away.
    pub async fn call(&self, peer: &Peer, frame: Frame, payload: Vec<Bytes>) -> Result<(Frame, Bytes)> {
        let _ = (frame, payload);
        Err(Error::unavailable(format!("{}: links are not there yet", peer.address)))
    }
}
