//! Chunkservers in one process over real sockets and memory files, a master that says what the test wants, and orders
//! as a leader would send them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, ClusterId, RequestId, ServerId};
use gfs_proto::link::{Links, Mutation, Peer, Range, ReadReply, Source};
use gfs_proto::net::{Net, TcpNet};
use gfs_proto::pb::chunkserver_client::ChunkserverClient;
use gfs_proto::random::SystemRandom;
use gfs_proto::{Environment, Error, Result, pb};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::store::files::memory::MemoryFiles;
use crate::store::{Options, Store};
use crate::{ChunkserverConfig, run_on};

const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);
const CHUNK: ChunkHandle = ChunkHandle::from_raw(42);
const CHUNK_BYTES: u32 = 4 * 65_536;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the master says and has heard.
#[derive(Default)]
struct Said {
    uuids: Vec<Vec<u8>>,
    /// Whether it answers as a leader.
    silent: bool,
    denied: Vec<u64>,
    reports: Vec<pb::ReportRequest>,
    failures: Vec<pb::MemberFailure>,
    uses: Vec<pb::LeaseUse>,
    epochs: Vec<u64>,
    beating: std::collections::BTreeSet<u64>,
}

/// A master that trusts the test.
#[derive(Clone, Default)]
struct Master(Arc<Mutex<Said>>);

#[tonic::async_trait]
impl pb::registry_server::Registry for Master {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> std::result::Result<Response<pb::RegisterReply>, Status> {
        let request = request.into_inner();
        let mut said = self.0.lock();
        let known = said.uuids.iter().position(|uuid| *uuid == request.uuid[..]);
        let index = known.unwrap_or(said.uuids.len());
        if known.is_none() {
            said.uuids.push(request.uuid.to_vec());
        }
        said.epochs.push(request.epoch);
        Ok(Response::new(pb::RegisterReply {
            cluster: CLUSTER.to_string(),
            server: index as u64 + 1,
            term: 1,
            chunk_bytes: CHUNK_BYTES,
            masters: Vec::new(),
        }))
    }
    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> std::result::Result<Response<pb::ReportReply>, Status> {
        self.0.lock().reports.push(request.into_inner());
        Ok(Response::new(pb::ReportReply { term: 1, full_report_wanted: false }))
    }
    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> std::result::Result<Response<pb::HeartbeatReply>, Status> {
        let request = request.into_inner();
        let mut said = self.0.lock();
        said.beating.insert(request.server);
        said.failures.extend(request.failures);
        said.uses.extend(request.extend);
        Ok(Response::new(pb::HeartbeatReply {
            term: 1,
            leader: !said.silent,
            epoch: request.epoch,
            sequence: request.sequence,
            reported: request.reported,
            denied: said.denied.clone(),
            ..Default::default()
        }))
    }
}

/// One chunkserver and the machine it runs on.
struct Server {
    peer: Peer,
    files: MemoryFiles,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<()>>>,
}

/// Some chunkservers, a master, a client.
struct Cluster {
    master: Master,
    master_address: String,
    servers: Vec<Server>,
    links: Links,
    sequence: u64,
    environment: Environment,
}

impl Cluster {
    async fn start(servers: usize) -> Self {
        let environment = Environment::real();
        let master = Master::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master_address = listener.local_addr().unwrap().to_string();
        let service = pb::registry_server::RegistryServer::new(master.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let links = Links::new(&environment);
        links.set_identity(CLUSTER, None);
        let mut cluster =
            Self { master, master_address, servers: Vec::new(), links, sequence: 0, environment };
        for i in 0..servers {
            let files = MemoryFiles::new(1 << 30);
            let server = cluster.run(files, "127.0.0.1:0").await;
            cluster.servers.push(server);
            // One after the other, so that the ids are 1, 2, ..
            let master = cluster.master.clone();
            until("registered", || master.0.lock().beating.len() == i + 1).await;
            cluster.servers[i].peer.server = ServerId::from_raw(i as u64 + 1);
        }
        cluster
    }

    async fn run(&self, files: MemoryFiles, address: &str) -> Server {
        let listener = TcpNet.listen(address).await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let options = Options { segment_bytes: 1 << 20, headroom_bytes: 1 << 20, ..Options::default() };
        let data = PathBuf::from("/data");
        let store = Store::open(std::slice::from_ref(&data), options, Arc::new(files.clone()), &SystemRandom)
            .unwrap();
        let config = ChunkserverConfig::new([data], vec![self.master_address.clone()]);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_on(store, config, self.environment.clone(), listener, stop.clone()));
        Server { peer: Peer { server: ServerId::from_raw(0), address }, files, stop, task: Some(task) }
    }

    /// Ends a process without a farewell.
    async fn kill(&mut self, server: usize) {
        let server = &mut self.servers[server];
        server.files.kill();
        server.stop.cancel();
        if let Some(task) = server.task.take() {
            drop(task.await);
        }
    }

    async fn restart(&mut self, server: usize) {
        let old = &self.servers[server];
        let (files, peer) = (old.files.clone(), old.peer.clone());
        let new = self.run(files, &peer.address).await;
        self.servers[server] = Server { peer, ..new };
    }

    fn peer(&self, server: u64) -> &Peer {
        &self.servers[server as usize - 1].peer
    }

    async fn control(&self, server: u64) -> ChunkserverClient<tonic::transport::Channel> {
        ChunkserverClient::connect(format!("http://{}", self.peer(server).address)).await.unwrap()
    }

    fn head(server: u64) -> Option<pb::OrderHead> {
        Some(pb::OrderHead { cluster: CLUSTER.to_string(), term: 1, server })
    }

    /// Prepares, reconciles and activates, as a leader does; the first member is the primary.
    async fn grant(&self, version: u64, members: &[u64], base: &[u64]) -> Result<pb::ReconcileReply> {
        let primary = members[0];
        for server in members {
            let request = pb::StoreVersionRequest {
                head: Self::head(*server),
                handle: CHUNK.raw(),
                version,
                members: members.iter().map(|id| self.peer(*id).into()).collect(),
                base: base.to_vec(),
                primary,
                writer: true,
                fresh: base.is_empty(),
                chunk_bytes: CHUNK_BYTES,
            };
            self.control(*server).await.store_version(request).await?;
        }
        let head = Self::head(primary);
        let request = pb::ReconcileRequest { head: head.clone(), handle: CHUNK.raw(), version };
        let reply = self.control(primary).await.reconcile(request).await?.into_inner();
        let request = pb::ActivateRequest { head, handle: CHUNK.raw(), version, lease_ms: 60_000 };
        self.control(primary).await.activate(request).await?;
        Ok(reply)
    }

    fn mutation(&mut self, version: u64) -> Mutation {
        self.sequence += 1;
        Mutation {
            handle: CHUNK,
            version: ChunkVersion::from_raw(version),
            request: RequestId { client: ClientId::from_raw(1), sequence: self.sequence },
            durability: pb::Durability::Synced,
        }
    }

    async fn append(
        &self,
        primary: u64,
        mutation: &Mutation,
        data: &'static [u8],
    ) -> Result<pb::WriteReplyMeta> {
        let source = Source::Inline(Payload::new(0, Bytes::from_static(data)));
        self.links.append(self.peer(primary), mutation, &source, PATIENCE).await
    }

    async fn write(&self, primary: u64, mutation: &Mutation, offset: u32, data: Bytes) -> Result<u32> {
        let source = Source::Inline(Payload::new(offset, data));
        let reply = self.links.write(self.peer(primary), mutation, offset, &source, PATIENCE).await?;
        Ok(reply.committed_length)
    }

    async fn read_once(&self, server: u64, version: u64) -> Result<ReadReply> {
        let version = ChunkVersion::from_raw(version);
        let range = Range { handle: CHUNK, version, offset: 0, length: CHUNK_BYTES };
        self.links.read(self.peer(server), &range, false, PATIENCE).await
    }

    /// Reads everything from one replica, once it may serve.
    async fn read(&self, server: u64, version: u64) -> Bytes {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            match self.read_once(server, version).await {
                Ok(reply) => return reply.bytes,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("s{server}: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// The same request under another version.
fn under(version: u64, mutation: &Mutation) -> Mutation {
    Mutation { version: ChunkVersion::from_raw(version), ..mutation.clone() }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_dies_another_joins_and_all_hold_the_same_with_each_record_once() {
    let mut cluster = Cluster::start(4).await;
    cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();

    let first = cluster.mutation(1);
    let big = Bytes::from((0..150_000u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>());
    assert_eq!(cluster.write(1, &first, 10, big.clone()).await.unwrap(), 150_010);
    let second = cluster.mutation(1);
    let reply = cluster.append(1, &second, b"record").await.unwrap();
    assert_eq!((reply.offset, reply.committed_length), (150_010, 150_016));
    // A retry has the same outcome, and leaves nothing behind.
    assert_eq!(cluster.append(1, &second, b"record").await.unwrap(), reply);
    for server in 1..=3 {
        let bytes = cluster.read(server, 1).await;
        assert_eq!((bytes.len(), &bytes[..10], &bytes[10..150_010]), (150_016, &[0; 10][..], &big[..]));
        assert_eq!(&bytes[150_010..], b"record");
    }
    let master = cluster.master.clone();
    until("the use of the lease is told", || master.0.lock().uses.iter().any(|used| used.handle == 42)).await;

    // One member dies in the middle: nothing is acknowledged, and the leader hears who failed.
    cluster.kill(2).await;
    let third = cluster.mutation(1);
    let error = cluster.append(1, &third, b"lost?").await.unwrap_err();
    assert_eq!(error, Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(3) });
    until("the failure is told", || master.0.lock().failures.iter().any(|failure| failure.server == 3)).await;
    assert!(cluster.append(1, &third, b"lost?").await.is_err());

    // A grant with a joiner and another primary: the retry finds the first try, or is the first.
    cluster.grant(2, &[2, 1, 4], &[1, 2]).await.unwrap();
    let (second, third) = (under(2, &second), under(2, &third));
    let reply = cluster.append(2, &third, b"lost?").await.unwrap();
    assert_eq!((reply.offset, reply.committed_length), (150_016, 150_021));
    assert_eq!(cluster.append(2, &second, b"record").await.unwrap().offset, 150_010);
    let expected = cluster.read(2, 2).await;
    assert_eq!(&expected[150_010..], b"recordlost?");
    for server in [1, 4] {
        assert_eq!(cluster.read(server, 2).await, expected, "s{server}");
    }
    // The old primary's version is gone.
    assert!(matches!(cluster.append(1, &third, b"lost?").await, Err(Error::NotPrimary { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_appends_at_once_lie_in_one_order_everywhere_until_the_chunk_is_sealed() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutations: Vec<_> = (0..100).map(|_| cluster.mutation(1)).collect();
    let appends = mutations.iter().map(|mutation| cluster.append(1, mutation, &[7; 4096]));
    let results = futures::future::join_all(appends).await;
    let mut offsets: Vec<_> =
        results.iter().filter_map(|result| Some(result.as_ref().ok()?.offset)).collect();
    offsets.sort_unstable();
    // 64 of them fit.
    assert_eq!(offsets, (0..64).map(|i| i * 4096).collect::<Vec<_>>());
    let sealed = results.iter().filter(|result| **result == Err(Error::Sealed { handle: CHUNK })).count();
    assert_eq!(sealed, 36, "{results:?}");
    let lost = mutations[results.iter().position(Result::is_err).unwrap()].request;
    let version = ChunkVersion::from_raw(1);
    let outcome = cluster.links.outcome(cluster.peer(1), CHUNK, version, lost, PATIENCE).await.unwrap();
    assert_eq!((outcome.offset, outcome.sealed), (None, true));
    assert_eq!(cluster.read(1, 1).await, cluster.read(2, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_has_no_role_but_its_data_and_its_word_and_serves_when_validated() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"kept").await.unwrap();
    cluster.kill(0).await;
    cluster.restart(0).await;
    let again = cluster.mutation(1);
    let master = cluster.master.clone();
    until("it registers again", || master.0.lock().epochs.len() == 3).await;
    assert!(matches!(cluster.append(1, &again, b"more").await, Err(Error::NotPrimary { .. })));
    // Neither a late activation nor a repeated store makes it primary again.
    let request =
        pb::ActivateRequest { head: Cluster::head(1), handle: CHUNK.raw(), version: 1, lease_ms: 1 };
    assert!(cluster.control(1).await.activate(request).await.is_err());
    cluster.grant(2, &[1, 2], &[1, 2]).await.unwrap();
    assert_eq!(cluster.append(1, &under(2, &again), b"more").await.unwrap().offset, 4);
    assert_eq!(cluster.append(1, &under(2, &mutation), b"kept").await.unwrap().offset, 0);
    assert_eq!(&cluster.read(2, 2).await[..], b"keptmore");
    assert_eq!(&cluster.read(1, 2).await[..], b"keptmore");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_denies_or_excludes_is_not_served_and_silence_ends_everything() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"data").await.unwrap();
    cluster.read(2, 1).await;
    let request = pb::ExcludeRequest { head: Cluster::head(2), handle: CHUNK.raw(), version: 2 };
    let epoch = cluster.control(2).await.exclude(request).await.unwrap().into_inner().epoch;
    assert_eq!(Some(&epoch), cluster.master.0.lock().epochs.last());
    let refused = Err(Error::NotValidated { handle: CHUNK });
    assert_eq!(cluster.read_once(2, 1).await, refused);
    cluster.read(1, 1).await;
    cluster.master.0.lock().denied = vec![CHUNK.raw()];
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while cluster.read_once(1, 1).await != refused {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.master.0.lock().denied.clear();
    cluster.read(1, 1).await;
    cluster.master.0.lock().silent = true;
    while cluster.read_once(1, 1).await != refused {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.master.0.lock().silent = false;
    cluster.read(1, 1).await;
    assert!(cluster.master.0.lock().epochs.len() > 2, "a lapse begins a new epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_obeyed_only_for_this_server_and_from_the_newest_leader() {
    let cluster = Cluster::start(1).await;
    let head = Cluster::head(1).unwrap();
    let mut control = cluster.control(1).await;
    let mut probe = async |head: pb::OrderHead| -> Result<()> {
        let request = pb::ProbeRequest { head: Some(head) };
        control.probe(request).await.map(drop).map_err(Error::from)
    };
    probe(head.clone()).await.unwrap();
    let theirs = ClusterId::from_bytes([8; 16]).to_string();
    let other = probe(pb::OrderHead { cluster: theirs, ..head.clone() }).await;
    assert!(matches!(other, Err(Error::WrongCluster { .. })));
    let other = probe(pb::OrderHead { server: 2, ..head.clone() }).await;
    assert!(matches!(other, Err(Error::WrongServer { .. })));
    probe(pb::OrderHead { term: 9, ..head.clone() }).await.unwrap();
    assert!(matches!(probe(head).await, Err(Error::StaleTerm { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_replica_is_gone_and_reported_so_but_not_one_that_was_granted_anew() {
    let cluster = Cluster::start(1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    cluster.grant(2, &[1], &[1]).await.unwrap();
    let mut control = cluster.control(1).await;
    let order =
        |version_max| pb::DeleteReplicaRequest { head: Cluster::head(1), handle: CHUNK.raw(), version_max };
    assert!(!control.delete_replica(order(1)).await.unwrap().into_inner().deleted);
    assert!(control.delete_replica(order(2)).await.unwrap().into_inner().deleted);
    assert!(!control.delete_replica(order(2)).await.unwrap().into_inner().deleted);
    assert_eq!(cluster.read_once(1, 2).await, Err(Error::NoSuchChunk { handle: CHUNK }));
    let master = cluster.master.clone();
    until("told", || master.0.lock().reports.iter().any(|report| report.removed == [CHUNK.raw()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_is_refused_and_the_server_lives() {
    let cluster = Cluster::start(1).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * garbage", b"GFSDgarbage", b"\0\0\0\0", b"x"] {
        let mut connection = TcpNet.connect(&cluster.peer(1).address).await.unwrap();
        connection.write_all(garbage).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Whatever it says, it closes.
        drop(tokio::time::timeout(DEADLINE, connection.read_to_end(&mut answer)).await.unwrap());
    }
    let probe = pb::ProbeRequest { head: Cluster::head(1) };
    cluster.control(1).await.probe(probe).await.unwrap();
}
