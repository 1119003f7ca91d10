//! Chunkservers in one process over real sockets and memory files, a master that says what the test wants, and orders
//! as a leader would send them.

mod decision;
mod exactly_once;
mod refusals;
mod stories;
pub(crate) mod upkeep;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, ClusterId, RequestId, ServerId};
use gfs_proto::link::{Links, Mutation, Peer, Range, ReadReply, Source};
use gfs_proto::net::{Net, TcpNet};
use gfs_proto::pb::chunkserver_client::ChunkserverClient;
use gfs_proto::random::SystemRandom;
use gfs_proto::time::{Clock, Moment, SystemClock, UnixMs};
use gfs_proto::{Environment, Result, pb};
use parking_lot::Mutex;
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

/// How late a heartbeat is answered that is held: the server still waits for it.
const HELD: Duration = Duration::from_millis(700);

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
    /// Sessions that have ended, and how long their ids are kept.
    expired: Vec<u64>,
    keep_ms: u64,
    /// The next heartbeat is answered as a leader's, but late, and no other after it; when it came.
    hold: bool,
    held_at: Option<tokio::time::Instant>,
    /// How long the answer to a heartbeat is on its way, and how many of them confirmed the leadership.
    travel: Duration,
    answered: u64,
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
        let held = std::mem::take(&mut self.0.lock().hold);
        if held {
            let came = tokio::time::Instant::now();
            {
                let mut said = self.0.lock();
                (said.silent, said.held_at) = (true, Some(came));
            }
            tokio::time::sleep(HELD).await;
        }
        let (reply, travel) = {
            let mut said = self.0.lock();
            said.beating.insert(request.server);
            said.failures.extend(request.failures);
            said.uses.extend(request.extend);
            said.answered += u64::from(!said.silent);
            let reply = pb::HeartbeatReply {
                term: 1,
                leader: held || !said.silent,
                epoch: request.epoch,
                sequence: request.sequence,
                reported: request.reported,
                denied: said.denied.clone(),
                ..Default::default()
            };
            (reply, said.travel)
        };
        tokio::time::sleep(travel).await;
        Ok(Response::new(reply))
    }
    async fn expired_clients(
        &self,
        request: Request<pb::ExpiredClientsRequest>,
    ) -> std::result::Result<Response<pb::ExpiredClientsReply>, Status> {
        let clients = request.into_inner().clients;
        let said = self.0.lock();
        let expired = clients.into_iter().filter(|client| said.expired.contains(client)).collect();
        Ok(Response::new(pb::ExpiredClientsReply { expired, keep_ms: said.keep_ms }))
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

/// The clocks of this machine, with a time of day that somebody sets back.
struct SetBack {
    real: SystemClock,
    back_ms: AtomicU64,
}

impl Clock for SetBack {
    fn wall(&self) -> UnixMs {
        UnixMs::from_raw(self.real.wall().raw().saturating_sub(self.back_ms.load(Ordering::Relaxed)))
    }
    fn moment(&self) -> Moment {
        self.real.moment()
    }
}

impl Cluster {
    async fn start(servers: usize) -> Self {
        Self::start_in(Environment::real(), servers).await
    }

    async fn start_in(environment: Environment, servers: usize) -> Self {
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
        &self.servers[usize::try_from(server).unwrap() - 1].peer
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
                accepted: false,
                chunk_bytes: CHUNK_BYTES,
            };
            self.control(*server).await.store_version(request).await?;
        }
        let head = Self::head(primary);
        let verify = members.len() == 1;
        let request = pb::ReconcileRequest { head: head.clone(), handle: CHUNK.raw(), version, verify };
        let reply = self.control(primary).await.reconcile(request).await?.into_inner();
        let request = pb::ActivateRequest { head, handle: CHUNK.raw(), version };
        self.control(primary).await.activate(request).await?;
        Ok(reply)
    }

    fn mutation(&mut self, version: u64) -> Mutation {
        self.sequence += 1;
        Mutation {
            handle: CHUNK,
            version: ChunkVersion::from_raw(version),
            request: RequestId { client: ClientId::from_raw(1), sequence: self.sequence },
            first_unacked: 0,
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
