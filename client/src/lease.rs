//! Finds chunks and their leases, and judges what to do when a mutation fails (GFS §3.1).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result, Retry, pb};
use parking_lot::Mutex;

use crate::cache::{Lease, Location};
use crate::client::Core;
use crate::entry::{Chunk, Server};
use crate::session::in_turn;
use crate::write::Unsynced;

/// Chunks that are asked for at once: those that follow are likely to be wanted too (GFS §2.4).
const LOCATE_COUNT: u32 = 16;

/// How long data is not pushed along a chain that it did not get through: whoever can't reach whom may do so again.
const CHAIN_PAUSE: Duration = Duration::from_secs(30);

/// What all handles and streams of one opened file share.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: EntryId,
    /// The file has at least so many chunks.
    pub(crate) chunks_seen: AtomicU32,
    /// The file has at least so many acknowledged bytes.
    pub(crate) length_seen: AtomicU64,
    /// Chunks that were written without being synced.
    pub(crate) unsynced: Mutex<Unsynced>,
    /// One question for a lease at a time, so that overlapping writes share the answer.
    leasing: tokio::sync::Mutex<()>,
    /// The chunk and version of which data last could not be pushed along the chain, and when.
    broken_chain: Mutex<Option<(ChunkHandle, ChunkVersion, Moment)>>,
    /// Held by the appender that finds the chunk after a sealed one; the others wait for that.
    pub(crate) moving_on: tokio::sync::Mutex<()>,
}

impl Opened {
    pub(crate) fn new(id: EntryId, chunk_count: u32) -> Self {
        Self {
            id,
            chunks_seen: AtomicU32::new(chunk_count),
            length_seen: AtomicU64::new(0),
            unsynced: Mutex::default(),
            broken_chain: Mutex::default(),
            leasing: tokio::sync::Mutex::default(),
            moving_on: tokio::sync::Mutex::default(),
        }
    }
    pub(crate) fn see_chunks(&self, count: u32) {
        self.chunks_seen.fetch_max(count, Ordering::Relaxed);
    }
    pub(crate) fn see_length(&self, length: u64) {
        self.length_seen.fetch_max(length, Ordering::Relaxed);
    }
    /// Takes note that data did not get through the members of this lease from one to the next. If the master says that they
    /// are all there it may be two of them that can't reach each other, which nobody has to be left out for: at this version
    /// the data goes along in the request for a while, and the primary brings it to each.
    pub(crate) fn chain_broke(&self, lease: &Lease, now: Moment) {
        *self.broken_chain.lock() = Some((lease.handle, lease.version, now));
    }
    /// Whether data can be pushed to the members of this lease, as far as is known.
    pub(crate) fn has_chain(&self, lease: &Lease, now: Moment) -> bool {
        let is_this = |(handle, version, since)| {
            (handle, version) == (lease.handle, lease.version) && now.since(since) < CHAIN_PAUSE
        };
        !self.broken_chain.lock().is_some_and(is_this)
    }
}

/// What the master says about the chunks of a file.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) chunk_count: u32,
}

impl Core {
    /// Asks the master for chunks from `first` on, and keeps the answer.
    pub(crate) async fn locate(
        &self,
        file: &Opened,
        first: ChunkIndex,
        patience: Duration,
    ) -> Result<Located> {
        let request = pb::LocateRequest {
            file: file.id.raw(),
            first: first.raw(),
            count: LOCATE_COUNT,
            freshness: self.freshness(),
        };
        let reply =
            self.fresh_lookup(patience, |mut master| async move { master.locate(request).await }).await?;
        self.seen(reply.rev);
        file.see_chunks(reply.chunk_count);
        let chunks: Vec<Chunk> = reply.chunks.into_iter().map(Chunk::from).collect();
        for chunk in &chunks {
            self.cache.put_location(file.id, chunk.index, Location::from(chunk), self.now());
        }
        Ok(Located { chunks, chunk_count: reply.chunk_count })
    }

    /// Who may mutate a chunk: from the cache, else from the master. Chunks up to it are added if missing.
    pub(crate) async fn lease(
        &self,
        file: &Opened,
        index: ChunkIndex,
        patience: Duration,
    ) -> Result<Arc<Lease>> {
        if let Some(lease) = self.cache.lease(file.id, index, self.now()) {
            return Ok(lease);
        }
        let (_one_at_a_time, patience) =
            in_turn(&*self.environment.clock, file.leasing.lock(), patience).await?;
        if let Some(lease) = self.cache.lease(file.id, index, self.now()) {
            return Ok(lease);
        }
        loop {
            let count = file.chunks_seen.load(Ordering::Relaxed);
            if index.raw() < count {
                return self.find_lease(file, index, None, patience).await;
            }
            // The loser of the compare-and-set gets the chunk that stands there (trap T10): also a step ahead.
            if let Some(lease) = self.add_chunk(file, count, patience).await?
                && lease.index == index
            {
                return Ok(lease);
            }
        }
    }

    /// Drops a lease that failed and asks the master for a new one, with a hint on what failed.
    pub(crate) async fn lease_after(
        &self,
        file: &Opened,
        failed: &Lease,
        server: Option<ServerId>,
        patience: Duration,
    ) -> Result<Arc<Lease>> {
        self.cache.drop_lease(file.id, failed);
        let (_one_at_a_time, patience) =
            in_turn(&*self.environment.clock, file.leasing.lock(), patience).await?;
        if let Some(lease) = self.cache.lease(file.id, failed.index, self.now()) {
            return Ok(lease);
        }
        self.find_lease(file, failed.index, Some((failed.handle, failed.version, server)), patience).await
    }

    /// Asks the master for the lease of a chunk, which may drive a new grant; `failed` hints at what is wrong.
    pub(crate) async fn find_lease(
        &self,
        file: &Opened,
        index: ChunkIndex,
        failed: Option<(ChunkHandle, ChunkVersion, Option<ServerId>)>,
        patience: Duration,
    ) -> Result<Arc<Lease>> {
        let mut request =
            pb::FindLeaseRequest { file: file.id.raw(), index: index.raw(), ..Default::default() };
        if let Some((handle, version, server)) = failed {
            request.handle = handle.raw();
            request.failed_version = version.raw();
            request.failed_server = server.map_or(0, ServerId::raw);
        }
        let reply =
            self.lookup(patience, |mut master| async move { master.find_lease(request).await }).await?;
        self.seen(reply.rev);
        self.keep_lease(file, index, reply.lease)?
            .ok_or_else(|| Error::internal("a master answered without a lease"))
    }

    /// Adds the chunk after the first `count`; `None` if there was one that has no lease now.
    async fn add_chunk(&self, file: &Opened, count: u32, patience: Duration) -> Result<Option<Arc<Lease>>> {
        let id = file.id.raw();
        let reply = self
            .sessions
            .change(patience, |mut master, request| {
                let message = pb::AddChunkRequest { request: Some(request), file: id, expected_count: count };
                async move { master.add_chunk(message).await }
            })
            .await?;
        self.seen(reply.rev);
        if reply.index < count {
            return Err(Error::internal("a master added a chunk in the middle of a file"));
        }
        file.see_chunks(reply.index.saturating_add(1));
        self.keep_lease(file, ChunkIndex::from_raw(reply.index), reply.lease)
    }

    fn keep_lease(
        &self,
        file: &Opened,
        index: ChunkIndex,
        lease: Option<pb::Lease>,
    ) -> Result<Option<Arc<Lease>>> {
        let Some(lease) = lease else { return Ok(None) };
        let life = Duration::from_millis(lease.remaining_ms);
        let Some(lease) = Lease::parse(index, lease)?.map(Arc::new) else { return Ok(None) };
        self.cache.put_lease(file.id, &lease, self.now(), life);
        Ok(Some(lease))
    }

    /// The order in which data is pushed through the members of a lease: silent ones last, so that another enters first and
    /// can say whether they are there for it.
    pub(crate) fn chain(&self, lease: &Lease) -> Vec<Peer> {
        let servers = spread(&lease.replicas, self.seed ^ lease.handle.raw());
        let host = self.options.host.as_deref().unwrap_or_default();
        let mut chain = chain_by_distance(host, servers);
        self.cache.avoided_last(&mut chain, self.now());
        chain.iter().map(Server::peer).collect()
    }

    /// What the failure of a push means: if the first of the chain did not answer, it is the one that failed. The primary was
    /// not asked anything, and can't know of it.
    pub(crate) fn blamed(&self, lease: &Lease, chain: &[Peer], error: Error) -> Error {
        match (error, chain.first()) {
            (Error::Unavailable { .. }, Some(first)) if first.server != lease.primary.server => {
                self.cache.avoid(first.server, self.now());
                Error::MemberFailed { handle: lease.handle, server: first.server }
            }
            (error, _) => error,
        }
    }

    /// The order in which the replicas of a chunk are asked: the same host first, then at random, but for each chunk
    /// the same, so that one server's read-ahead serves a whole stream; silent ones last.
    pub(crate) fn nearest(&self, handle: ChunkHandle, replicas: &[Server]) -> Vec<Server> {
        let mut servers = spread(replicas, self.seed ^ handle.raw());
        if let Some(host) = &self.options.host {
            servers.sort_by_key(|server| server.host() != host);
        }
        self.cache.avoided_last(&mut servers, self.now());
        servers
    }
}

impl Server {
    pub(crate) fn peer(&self) -> Peer {
        Peer { server: self.id, address: self.address.clone() }
    }
    pub(crate) fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or(&self.address, |(host, _)| host)
    }
}

impl Lease {
    /// Reads a master's answer; `None` if nobody has the lease.
    ///
    /// # Errors
    /// [`Error::Internal`] if the answer contradicts itself.
    pub(crate) fn parse(index: ChunkIndex, lease: pb::Lease) -> Result<Option<Self>> {
        if lease.primary == 0 {
            return Ok(None);
        }
        let replicas: Vec<Server> = lease.replicas.into_iter().map(Server::from).collect();
        let primary = replicas
            .iter()
            .find(|replica| replica.id.raw() == lease.primary)
            .map(Server::peer)
            .ok_or_else(|| Error::internal("a lease's primary is not among its replicas"))?;
        let (handle, version) = (ChunkHandle::from_raw(lease.handle), ChunkVersion::from_raw(lease.version));
        Ok(Some(Self { index, handle, version, primary, replicas }))
    }
}

impl From<&Chunk> for Location {
    fn from(chunk: &Chunk) -> Self {
        Self { handle: chunk.handle, version: chunk.version, replicas: chunk.replicas.clone() }
    }
}

/// Puts servers in the order that a seed gives.
fn spread(servers: &[Server], seed: u64) -> Vec<Server> {
    let mut servers = servers.to_vec();
    servers.sort_by_key(|server| mix(mix(seed) ^ server.id.raw()));
    servers
}

/// Scatters the bits of a number (splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Each hop goes to the closest server that does not have the data yet (GFS §3.2); among equals the given order decides.
pub(crate) fn chain_by_distance(from_host: &str, mut servers: Vec<Server>) -> Vec<Server> {
    let mut chain: Vec<Server> = Vec::with_capacity(servers.len());
    loop {
        let (host, rack) = match chain.last() {
            Some(last) => (last.host(), last.rack.as_str()),
            None => (from_host, ""),
        };
        let closest = servers.iter().enumerate().min_by_key(|(_, server)| distance(host, rack, server));
        let Some((at, _)) = closest else { return chain };
        chain.push(servers.remove(at));
    }
}

/// Estimated from addresses (GFS §3.2): same host, same rack, then by how much of the address differs.
fn distance(host: &str, rack: &str, to: &Server) -> u32 {
    if host == to.host() {
        return 0;
    }
    if !rack.is_empty() && rack == to.rack {
        return 1;
    }
    match (host.parse::<Ipv4Addr>(), to.host().parse::<Ipv4Addr>()) {
        (Ok(here), Ok(there)) => 34 - (here.to_bits() ^ there.to_bits()).leading_zeros(),
        _ => 35,
    }
}

/// What to do after a mutation failed at the primary or on the way there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Give up: the same request fails again.
    Fail,
    /// Push the data again and repeat.
    PushAgain,
    /// Repeat under the same lease after a pause.
    Wait,
    /// Ask the master for the lease, telling it which server failed, and repeat.
    NewLease(Option<ServerId>),
    /// The chunk takes no more.
    NextChunk,
}

/// Judges an error of a mutation that `primary` was to order.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the judge of errors is Error::retry; these are exceptions"
)]
pub(crate) fn step_after(error: &Error, primary: ServerId) -> Step {
    match error {
        Error::MemberFailed { server, .. } => Step::NewLease(Some(*server)),
        // Nobody answered: the primary itself is the suspect.
        Error::Unavailable { .. } => Step::NewLease(Some(primary)),
        // A full disk stays full: the master has to choose other members.
        Error::DiskFull { server } => Step::NewLease(Some(*server)),
        Error::Busy { .. } => Step::Wait,
        // As WrongServer: an address that the master knows was given to somebody else.
        Error::WrongCluster { .. } => Step::NewLease(None),
        other => match other.retry() {
            Retry::Never => Step::Fail,
            Retry::PushAgain => Step::PushAgain,
            Retry::NextChunk => Step::NextChunk,
            Retry::Refresh | Retry::OtherReplica | Retry::OtherMaster | Retry::Later => Step::NewLease(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_proto::id::DataId;

    fn server(id: u64, address: &str, rack: &str) -> Server {
        Server { id: ServerId::from_raw(id), address: address.into(), rack: rack.into() }
    }
    fn ids(servers: &[Server]) -> Vec<u64> {
        servers.iter().map(|server| server.id.raw()).collect()
    }

    #[test]
    fn data_takes_the_shortest_way_from_server_to_server() {
        let servers = vec![
            server(1, "10.1.0.1:1", "a"),
            server(2, "10.0.0.9:1", "b"),
            server(3, "10.1.0.2:1", "a"),
            server(4, "10.0.0.5:1", "c"),
        ];
        assert_eq!(ids(&chain_by_distance("10.0.0.5", servers.clone())), [4, 2, 1, 3]);
        assert_eq!(ids(&chain_by_distance("10.1.0.2", servers.clone())), [3, 1, 2, 4]);
        assert_eq!(ids(&chain_by_distance("", servers))[0], 1, "without a host the given order decides");
        assert!(chain_by_distance("x", Vec::new()).is_empty());
    }

    #[test]
    fn every_order_of_replicas_comes_up_and_for_one_chunk_it_stays() {
        let servers = [server(1, "a:1", ""), server(2, "b:1", ""), server(3, "c:1", "")];
        let orders: std::collections::BTreeSet<Vec<u64>> =
            (0..200).map(|seed| ids(&spread(&servers, seed))).collect();
        assert_eq!(orders.len(), 6);
        let mut turned = servers.clone();
        turned.rotate_left(1);
        assert_eq!(spread(&servers, 5), spread(&turned, 5));
    }

    #[test]
    fn each_error_of_a_mutation_has_its_next_step() {
        let (primary, member) = (ServerId::from_raw(1), ServerId::from_raw(2));
        let handle = ChunkHandle::from_raw(5);
        let version = ChunkVersion::from_raw(6);
        for (error, step) in [
            (Error::unavailable("x"), Step::NewLease(Some(primary))),
            (Error::MemberFailed { handle, server: member }, Step::NewLease(Some(member))),
            (Error::DiskFull { server: member }, Step::NewLease(Some(member))),
            (Error::NotPrimary { handle, version }, Step::NewLease(None)),
            (Error::VersionMismatch { handle, asked: version, here: version.next() }, Step::NewLease(None)),
            (Error::NotValidated { handle, damaged: false }, Step::NewLease(None)),
            (Error::DataUnknown { data: DataId::from_bytes([0; 16]) }, Step::PushAgain),
            (Error::Busy { what: "buffer".into() }, Step::Wait),
            (Error::Sealed { handle }, Step::NextChunk),
            (Error::WrongCluster { ours: "a".into(), theirs: "b".into() }, Step::NewLease(None)),
            (Error::bad_argument("x"), Step::Fail),
        ] {
            assert_eq!(step_after(&error, primary), step, "{error}");
        }
    }
}
