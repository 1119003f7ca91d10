//! What the parts of a chunkserver share: the store, the table of chunks, the fence, who we are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ClusterId, Epoch, Serial, ServerId};
use gfs_proto::link::Links;
use gfs_proto::net::{self, blocking};
use gfs_proto::pb;
use gfs_proto::pb::chunkserver_client::ChunkserverClient;
use gfs_proto::pb::registry_client::RegistryClient;
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::time::Moment;
use gfs_proto::{Environment, Error, Result, fault};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::chunk::{Chunk, State, held};
use crate::expiry::Expired;
use crate::replica::{Fence, Replica, Standing};
use crate::report::{Change, Journal};
use crate::store::{self, Store};

/// Longest time that a call between chunkservers may take: an adoption copies a whole chunk.
const PEER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);
/// Most peers whose gRPC channels are kept.
const CHANNELS_MAX: usize = 1024;

/// A member that failed a mutation, as the leader is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) version: ChunkVersion,
    pub(crate) server: ServerId,
}

/// When a chunk was last mutated by this server as its primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Use {
    pub(crate) version: ChunkVersion,
    pub(crate) at: Moment,
}

/// One chunkserver.
pub(crate) struct Chunkserver {
    pub(crate) store: Store,
    pub(crate) links: Links,
    pub(crate) environment: Environment,
    /// Changes once, at the first registration.
    identity: RwLock<Option<(ClusterId, ServerId)>>,
    /// Read at every read, changed by every heartbeat's answer.
    pub(crate) fence: Mutex<Fence>,
    /// All chunks that are or were here; locked only to look one up.
    chunks: Mutex<BTreeMap<ChunkHandle, Arc<Chunk>>>,
    /// Locked after a chunk, never before.
    pub(crate) journal: Mutex<Journal>,
    pub(crate) uses: Mutex<BTreeMap<ChunkHandle, Use>>,
    /// Who failed under the present version of a chunk, until that ends here. Locked after a chunk, never before.
    pub(crate) failures: Mutex<BTreeMap<ChunkHandle, Failure>>,
    /// Chunks of which nobody could say what is committed, and when a reader last asked.
    pub(crate) doubts: Mutex<BTreeMap<ChunkHandle, (Failure, Moment)>>,
    /// Chunks whose commit mark on the disk is behind, and the last mutation here when that was last looked at.
    pub(crate) marks: Mutex<BTreeMap<ChunkHandle, Option<Serial>>>,
    /// Copies of replicas that are being made here.
    pub(crate) copying: Mutex<BTreeSet<ChunkHandle>>,
    channels: Mutex<BTreeMap<String, Channel>>,
    /// The master that last answered as the leader.
    pub(crate) leader: Mutex<Option<RegistryClient<Channel>>>,
    /// Sessions that have ended. Locked after a chunk, never before.
    pub(crate) expired: Mutex<Expired>,
    /// Disks whose failure has been dealt with.
    pub(crate) failed_disks: AtomicUsize,
    /// Changes when heartbeats should go out at once.
    pub(crate) urgent: watch::Sender<u64>,
}

impl std::fmt::Debug for Chunkserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunkserver({:?})", self.identity.read())
    }
}

impl Chunkserver {
    /// A server without roles and validations over what the store holds.
    pub(crate) fn new(store: Store, environment: Environment) -> Arc<Self> {
        let epoch = Epoch::from_raw(environment.clock.wall().raw().max(1));
        let links = Links::new(&environment);
        let identity = store.identity().registered;
        if let Some((cluster, server)) = identity {
            links.set_identity(cluster, Some(server));
        }
        let server = Self {
            links,
            identity: RwLock::new(identity),
            fence: Mutex::new(Fence::new(epoch)),
            chunks: Mutex::default(),
            journal: Mutex::default(),
            uses: Mutex::default(),
            failures: Mutex::default(),
            doubts: Mutex::default(),
            marks: Mutex::default(),
            copying: Mutex::default(),
            channels: Mutex::default(),
            leader: Mutex::default(),
            expired: Mutex::default(),
            failed_disks: AtomicUsize::new(0),
            urgent: watch::Sender::new(0),
            store,
            environment,
        };
        server.restore();
        Arc::new(server)
    }

    fn restore(&self) {
        let us = self.us();
        let mut chunks = self.chunks.lock();
        for state in self.store.list() {
            let born = self.journal.lock().note(state.handle, Change::Changed);
            let standing = Standing { born, ..Standing::default() };
            let clean = state.commit_mark.is_some_and(|mark| mark >= state.serial);
            let replica = Replica::restored(us, state.handle, held(&state), clean, standing);
            chunks.insert(state.handle, Chunk::new(state.handle, Some(replica)));
        }
    }

    /// Cluster and server id.
    ///
    /// # Errors
    /// [`Error::Unavailable`] before the first registration.
    pub(crate) fn identity(&self) -> Result<(ClusterId, ServerId)> {
        let identity = *self.identity.read();
        identity.ok_or_else(|| Error::unavailable("this chunkserver has not registered yet"))
    }

    /// Our server id; 0 before the first registration, when there is no chunk that could ask.
    pub(crate) fn us(&self) -> ServerId {
        self.identity.read().map(|(_, server)| server).unwrap_or_default()
    }

    /// Remembers who the cluster says we are, durably.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] or [`Error::WrongServer`] if that is not who we were; the store's.
    pub(crate) fn registered(&self, cluster: ClusterId, server: ServerId) -> Result<()> {
        if let Some((ours, us)) = *self.identity.read() {
            check_identity((ours, us), &cluster.to_string(), server.raw())?;
            return Ok(());
        }
        blocking(|| self.store.set_identity(cluster, server)).map_err(|error| error.to_wire(server))?;
        self.links.set_identity(cluster, Some(server));
        *self.identity.write() = Some((cluster, server));
        tracing::info!(%cluster, %server, "registered");
        Ok(())
    }

    /// Checks that a message is meant for this server.
    ///
    /// # Errors
    /// [`Error::WrongCluster`], [`Error::WrongServer`], and before the first registration [`Error::Unavailable`].
    pub(crate) fn meant(&self, cluster: &str, server: u64) -> Result<ServerId> {
        let ours = self.identity()?;
        check_identity(ours, cluster, server)?;
        Ok(ours.1)
    }

    /// Checks that an order is for this server, from the newest leader.
    ///
    /// # Errors
    /// As [`Chunkserver::meant`], and [`Error::StaleTerm`].
    pub(crate) fn ordered(&self, head: Option<pb::OrderHead>) -> Result<ServerId> {
        let head = head.ok_or_else(|| Error::bad_argument("an order without a head"))?;
        let us = self.meant(&head.cluster, head.server)?;
        let term = gfs_proto::id::Term::from_raw(head.term);
        let mut fence = self.fence.lock();
        if fence.obey(term) { Ok(us) } else { Err(Error::StaleTerm { term, seen: fence.term() }) }
    }

    /// Monotonic time.
    pub(crate) fn now(&self) -> Moment {
        // Mutant wall_clock_fence: the time of day, which an operator may set back.
        if fault::mutant("wall_clock_fence") {
            let since = std::time::Duration::from_millis(self.environment.clock.wall().raw());
            return Moment::from_start(since);
        }
        self.environment.clock.moment()
    }

    // ---- chunks ----

    /// A chunk that is here.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`].
    pub(crate) fn chunk(&self, handle: ChunkHandle) -> Result<Arc<Chunk>> {
        self.chunks.lock().get(&handle).cloned().ok_or(Error::NoSuchChunk { handle })
    }

    /// Calls with the state of a chunk that is here or may come.
    pub(crate) fn with_chunk<T>(
        &self,
        handle: ChunkHandle,
        call: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut call = Some(call);
        loop {
            let chunk = self.chunks.lock().entry(handle).or_insert_with(|| Chunk::new(handle, None)).clone();
            let done = chunk.with(|state| match (state.gone(), call.take()) {
                (false, Some(call)) => Some(self.call(handle, state, call)),
                (_, kept) => {
                    call = kept;
                    None
                }
            });
            if let Some(result) = done {
                return result;
            }
        }
    }

    /// After the call a chunk without a replica does not stay in the table.
    fn call<T>(
        &self,
        handle: ChunkHandle,
        state: &mut State,
        call: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let result = call(state);
        if state.replica.is_none() {
            state.end();
            self.chunks.lock().remove(&handle);
        }
        result
    }

    /// All chunks after a handle, at most `limit`.
    pub(crate) fn chunks_after(&self, after: Option<ChunkHandle>, limit: usize) -> Vec<Arc<Chunk>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.chunks.lock().range((from, Unbounded)).take(limit).map(|(_, chunk)| chunk.clone()).collect()
    }

    /// Notes that a replica changed, for the reports. The chunk's lock is held.
    pub(crate) fn note(&self, handle: ChunkHandle, change: Change) {
        self.journal.lock().note(handle, change);
    }

    /// A block did not verify: the replica serves nothing more, and the masters hear of it.
    pub(crate) fn found_corrupt(&self, handle: ChunkHandle, block: u32) {
        tracing::warn!(%handle, block, "checksum mismatch");
        let Ok(chunk) = self.chunk(handle) else { return };
        chunk.quick(|state| {
            if let Some(replica) = &mut state.replica {
                replica.mark_corrupt();
                self.note(handle, Change::Changed);
            }
        });
        self.hurry();
    }

    /// Reads a whole replica against its checksums, and says whether they all match. Blocks on the disk.
    pub(crate) fn verify(&self, handle: ChunkHandle) -> Result<bool> {
        let blocks = self.store.verify(handle).map_err(|error| self.wire(&error))?;
        blocks.first().into_iter().for_each(|block| self.found_corrupt(handle, *block));
        Ok(blocks.is_empty())
    }

    /// The wire's words for an error of the store.
    pub(crate) fn wire(&self, error: &store::Error) -> Error {
        error.to_wire(self.us())
    }

    // ---- peers ----

    /// The control service of another chunkserver.
    ///
    /// # Errors
    /// [`Error::BadArgument`] if the address is none.
    pub(crate) fn peer(&self, address: &str) -> Result<ChunkserverClient<Channel>> {
        let mut channels = self.channels.lock();
        if channels.len() >= CHANNELS_MAX && !channels.contains_key(address) {
            channels.clear();
        }
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = net::channel(self.environment.net.clone(), address, PEER_TIMEOUT)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(ChunkserverClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

fn check_identity(ours: (ClusterId, ServerId), cluster: &str, server: u64) -> Result<()> {
    if ours.0.to_string() != cluster {
        return Err(Error::WrongCluster { ours: ours.0.to_string(), theirs: cluster.to_owned() });
    }
    if ours.1.raw() != server {
        return Err(Error::WrongServer { ours: ours.1.raw(), theirs: server });
    }
    Ok(())
}
