//! A real master on a real port, with chunkservers that only say yes: what goes over the wire.

mod alone;
mod leases;

use std::sync::Arc;
use std::time::Duration;

use gfs_proto::leader::{CLUSTER_KEY, refused_at};
use gfs_proto::net::{Listener, Net, TcpNet, channel};
use gfs_proto::pb::chunkserver_server::{Chunkserver, ChunkserverServer};
use gfs_proto::pb::master_client::MasterClient;
use gfs_proto::pb::registry_client::RegistryClient;
use gfs_proto::{Environment, Error, Result, pb};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::incoming::{SILENCE_MAX, incoming};
use crate::{MasterConfig, Start, run};

const PATIENCE: Duration = Duration::from_secs(20);

/// A chunkserver that does as it is told, and remembers it.
#[derive(Clone, Default)]
struct Yes {
    told: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl Chunkserver for Yes {
    async fn store_version(
        &self,
        request: Request<pb::StoreVersionRequest>,
    ) -> Result<Response<pb::StoreVersionReply>, Status> {
        let request = request.into_inner();
        self.told.lock().push(format!("store v{}", request.version));
        Ok(Response::new(pb::StoreVersionReply { version: request.version, partial: false, epoch: 1 }))
    }
    async fn reconcile(
        &self,
        _: Request<pb::ReconcileRequest>,
    ) -> Result<Response<pb::ReconcileReply>, Status> {
        Ok(Response::new(pb::ReconcileReply::default()))
    }
    async fn activate(
        &self,
        request: Request<pb::ActivateRequest>,
    ) -> Result<Response<pb::ActivateReply>, Status> {
        self.told.lock().push(format!("activate v{}", request.into_inner().version));
        Ok(Response::new(pb::ActivateReply {}))
    }
    async fn exclude(&self, _: Request<pb::ExcludeRequest>) -> Result<Response<pb::ExcludeReply>, Status> {
        Ok(Response::new(pb::ExcludeReply { epoch: 1 }))
    }
    async fn delete_replica(
        &self,
        _: Request<pb::DeleteReplicaRequest>,
    ) -> Result<Response<pb::DeleteReplicaReply>, Status> {
        Ok(Response::new(pb::DeleteReplicaReply { deleted: true }))
    }
    async fn copy_replica(
        &self,
        request: Request<pb::CopyReplicaRequest>,
    ) -> Result<Response<pb::CopyReplicaReply>, Status> {
        let request = request.into_inner();
        self.told.lock().push(format!("copy v{}", request.version));
        Ok(Response::new(pb::CopyReplicaReply::default()))
    }
    async fn inspect_replica(
        &self,
        _: Request<pb::InspectReplicaRequest>,
    ) -> Result<Response<pb::InspectReplicaReply>, Status> {
        Ok(Response::new(pb::InspectReplicaReply::default()))
    }
    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeReply>, Status> {
        Ok(Response::new(pb::ProbeReply { epoch: 1 }))
    }
    async fn collect(&self, _: Request<pb::CollectRequest>) -> Result<Response<pb::CollectReply>, Status> {
        Err(Status::unimplemented("no data here"))
    }
    async fn adopt(&self, _: Request<pb::AdoptRequest>) -> Result<Response<pb::AdoptReply>, Status> {
        Err(Status::unimplemented("no data here"))
    }
}

/// One running master.
struct Stage {
    address: String,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<()>>,
    _dir: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        Self::start(Start::Bootstrap).await
    }
    async fn start(start: Start) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let stop = CancellationToken::new();
        let config = MasterConfig::new(dir.path(), start);
        let running = tokio::spawn(run(config, Environment::real(), listener, stop.clone()));
        Self { address, stop, running, _dir: dir }
    }
    fn channel(&self) -> Channel {
        channel(Arc::new(TcpNet), &self.address, Duration::from_secs(5)).unwrap()
    }
    /// Calls until the answer is no "wait" or "not the leader".
    async fn patiently<T>(
        &self,
        mut call: impl AsyncFnMut(MasterClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let master = MasterClient::new(self.channel());
        let patient = async {
            loop {
                match call(master.clone()).await.map_err(Error::from) {
                    Err(Error::Unavailable { .. } | Error::NotLeader { .. } | Error::GrantPending { .. }) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    answer => return answer.map(Response::into_inner),
                }
            }
        };
        tokio::time::timeout(PATIENCE, patient).await.unwrap()
    }
    async fn session(&self) -> u64 {
        let nonce = vec![7; 16];
        let open = async |mut master: MasterClient<Channel>| {
            master.open_session(pb::OpenSessionRequest { nonce: nonce.clone().into() }).await
        };
        self.patiently(open).await.unwrap().client
    }
    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }
}

fn id(client: u64, sequence: u64) -> Option<pb::RequestId> {
    Some(pb::RequestId { client, sequence, first_unacked: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_serves_the_namespace_survives_garbage_and_stops_when_told() {
    let stage = Stage::new().await;
    let client = stage.session().await;
    assert_eq!(stage.session().await, client, "the same nonce is the same session");
    let mut master = MasterClient::new(stage.channel());
    let mkdir = pb::MkdirRequest { request: id(client, 1), path: "/a/b".into(), parents: true };
    let made = master.mkdir(mkdir.clone()).await.unwrap().into_inner();
    let again = master.mkdir(mkdir).await.unwrap().into_inner();
    assert_eq!(made, again, "a repeat gets the first answer, with its log index");
    for (path, reason) in [("/a//b", "bad path"), ("/a/..", "bad path"), ("relative", "bad path")] {
        let request = pb::CreateRequest { request: id(client, 2), path: path.into(), replication: 0 };
        let error = Error::from(master.create(request).await.unwrap_err());
        assert!(error.to_string().starts_with(reason), "{error}");
    }
    let without_id = pb::CreateRequest { request: None, path: "/f".into(), replication: 0 };
    assert!(matches!(Error::from(master.create(without_id).await.unwrap_err()), Error::BadArgument { .. }));
    let create = pb::CreateRequest { request: id(client, 2), path: "/a/f".into(), replication: 0 };
    let file = master.create(create).await.unwrap().into_inner().entry.unwrap();
    assert_eq!((file.replication, file.name.as_str()), (3, "f"));

    // Garbage ends its own connection only.
    let mut garbage = TcpNet.connect(&stage.address).await.unwrap();
    garbage.write_all(&[0xfe; 4096]).await.unwrap();
    let mut answer = Vec::new();
    // However the connection ends, it ends.
    drop(tokio::time::timeout(PATIENCE, garbage.read_to_end(&mut answer)).await.unwrap());

    let list = pb::ListRequest { path: "/a".into(), ..Default::default() };
    let listed = master.list(list).await.unwrap().into_inner();
    let names: Vec<&str> = listed.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!((names, listed.more), (vec!["b", "f"], false));
    let huge = pb::StatRequest { path: "/".to_owned() + &"x".repeat(100_000), ..Default::default() };
    assert!(master.stat(huge).await.is_err());
    // Too few chunkservers: the caller is told.
    let add = pb::AddChunkRequest { request: id(client, 3), file: file.id, expected_count: 0 };
    let error = Error::from(master.add_chunk(add).await.unwrap_err());
    assert_eq!(error, Error::NotEnoughServers { wanted: 3, alive: 0 });
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_meant_for_another_cluster_is_refused_and_a_refusal_says_in_which_state() {
    let stage = Stage::new().await;
    let client = stage.session().await;
    let mut master = MasterClient::new(stage.channel());
    let create =
        |sequence| pb::CreateRequest { request: id(client, sequence), path: "/a".into(), replication: 0 };
    let meant = |cluster: &str, sequence| {
        let mut request = Request::new(create(sequence));
        request.metadata_mut().insert(CLUSTER_KEY, cluster.parse().unwrap());
        request
    };
    let refused = master.create(meant(&"ff".repeat(16), 1)).await.unwrap_err();
    assert_eq!(refused_at(&refused), 0);
    assert!(matches!(Error::from(refused), Error::WrongCluster { .. }));
    let ours = master.leader(pb::LeaderRequest {}).await.unwrap().into_inner().cluster;
    let rev = master.create(meant(&ours, 1)).await.unwrap().into_inner().rev;
    let taken = master.create(create(2)).await.unwrap_err();
    assert!(refused_at(&taken) > rev, "{taken:?}");
    let stat = pb::StatRequest { path: "/b".into(), ..Default::default() };
    let missing = master.stat(stat).await.unwrap_err();
    assert!(refused_at(&missing) >= refused_at(&taken), "{missing:?}");
    assert!(matches!(Error::from(missing), Error::NotFound { .. }));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_listed_restored_once_and_deleted_again() {
    let stage = Stage::new().await;
    let client = stage.session().await;
    let mut master = MasterClient::new(stage.channel());
    let mut ids = Vec::new();
    for (sequence, path) in [(1, "/f"), (3, "/g")] {
        let create = pb::CreateRequest { request: id(client, sequence), path: path.into(), replication: 0 };
        ids.push(master.create(create).await.unwrap().into_inner().entry.unwrap().id);
        let delete =
            pb::DeleteRequest { request: id(client, sequence + 1), path: path.into(), recursive: false };
        master.delete(delete).await.unwrap();
    }
    let list = async |after, limit| {
        let request = pb::ListTrashRequest { after, limit, ..Default::default() };
        MasterClient::new(stage.channel()).list_trash(request).await.unwrap().into_inner()
    };
    let first = list(None, 1).await;
    let second = list(first.next, 1).await;
    assert_eq!((first.entries[0].path.as_str(), second.entries[0].path.as_str()), ("/f", "/g"));
    assert!(second.next.is_none(), "there is nothing more");
    assert_eq!(second.entries[0].entry.as_ref().unwrap().id, ids[1]);
    assert_eq!(second.entries[0].collect_ms - second.entries[0].deleted_ms, 3 * 24 * 3_600_000);

    let undelete = pb::UndeleteRequest { request: id(client, 5), id: ids[0], target: "/back".into() };
    let restored = master.undelete(undelete.clone()).await.unwrap().into_inner();
    assert_eq!(restored.entry.as_ref().unwrap().name, "back");
    let again = master.undelete(undelete.clone()).await.unwrap().into_inner();
    assert_eq!(restored, again, "a repeat gets the first answer, with its log index");
    let error = async |sequence, id_: u64, target: &str| {
        let request = pb::UndeleteRequest { request: id(client, sequence), id: id_, target: target.into() };
        Error::from(MasterClient::new(stage.channel()).undelete(request).await.unwrap_err())
    };
    let in_trash = |id: u64| Error::NotFound { what: format!("e{id} in the trash") };
    assert_eq!(error(6, ids[0], "/twice").await, in_trash(ids[0]));
    assert_eq!(error(7, ids[1], "/back").await, Error::AlreadyExists { path: "/back".into() });
    assert_eq!(error(8, ids[1], "/no/where").await, Error::NotFound { what: "/no".into() });
    let without_id = pb::UndeleteRequest { request: None, ..undelete };
    assert!(matches!(Error::from(master.undelete(without_id).await.unwrap_err()), Error::BadArgument { .. }));

    let expedite = pb::ExpediteRequest { request: id(client, 9), id: ids[1] };
    let expedited = master.expedite(expedite).await.unwrap().into_inner();
    assert_eq!(master.expedite(expedite).await.unwrap().into_inner(), expedited);
    assert!(list(None, 0).await.entries.is_empty());
    assert_eq!(error(10, ids[1], "/g").await, in_trash(ids[1]));
    stage.end().await;
}

/// Registers a chunkserver that listens, with an empty full report.
async fn chunkserver(stage: &Stage, number: u8, yes: Yes) -> u64 {
    let listener: Box<dyn Listener> = TcpNet.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let serving = tonic::transport::Server::builder().add_service(ChunkserverServer::new(yes));
    let connections = incoming((listener, 64), SILENCE_MAX);
    tokio::spawn(serving.serve_with_incoming_shutdown(connections, stage.stop.clone().cancelled_owned()));
    let mut registry = RegistryClient::new(stage.channel());
    let register =
        pb::RegisterRequest { uuid: vec![number; 16].into(), address, epoch: 1, ..Default::default() };
    let server = registry.register(register).await.unwrap().into_inner().server;
    let report = pb::ReportRequest {
        server,
        epoch: 1,
        sequence: 1,
        full: true,
        first: true,
        last: true,
        ..Default::default()
    };
    assert!(!registry.report(report).await.unwrap().into_inner().full_report_wanted);
    server
}
async fn heartbeat(stage: &Stage, server: u64, reported: u64) -> pb::HeartbeatReply {
    let mut registry = RegistryClient::new(stage.channel());
    let (total_bytes, free_bytes) = (1 << 40, 1 << 39);
    let request =
        pb::HeartbeatRequest { server, epoch: 1, reported, total_bytes, free_bytes, ..Default::default() };
    registry.heartbeat(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_added_on_registered_servers_and_only_its_members_are_validated() {
    let stage = Stage::new().await;
    let client = stage.session().await;
    let yes = Yes::default();
    let mut servers = Vec::new();
    for number in 1..=4 {
        let server = chunkserver(&stage, number, yes.clone()).await;
        assert!(heartbeat(&stage, server, 1).await.leader);
        servers.push(server);
    }
    assert_eq!(servers, [1, 2, 3, 4]);
    let stranger = heartbeat(&stage, 9, 0).await;
    assert!(stranger.register_wanted && !stranger.leader);
    assert!(!heartbeat(&stage, 1, 2).await.leader, "a report is missing here");

    let mut master = MasterClient::new(stage.channel());
    let create = pb::CreateRequest { request: id(client, 1), path: "/f".into(), replication: 0 };
    let file = master.create(create).await.unwrap().into_inner().entry.unwrap().id;
    let add = pb::AddChunkRequest { request: id(client, 2), file, expected_count: 0 };
    let add = async |mut master: MasterClient<Channel>| master.add_chunk(add).await;
    let added = stage.patiently(add).await.unwrap();
    let lease = added.lease.unwrap();
    assert!(lease.replicas.len() == 3 && lease.remaining_ms > 50_000);
    assert_eq!(lease.primary, lease.replicas[0].server);
    let mut told = yes.told.lock().clone();
    told.sort();
    assert_eq!(told, ["activate v1", "store v1", "store v1", "store v1"]);

    // The loser of the compare-and-set gets the same chunk and its running lease.
    let request = pb::AddChunkRequest { request: id(client, 3), file, expected_count: 0 };
    let second = master.add_chunk(request).await.unwrap().into_inner();
    assert_eq!((second.index, second.lease.unwrap().handle), (0, lease.handle));
    let locate = pb::LocateRequest { file, count: 10, ..Default::default() };
    let located = master.locate(locate).await.unwrap().into_inner();
    assert_eq!((located.chunk_count, located.chunks[0].replicas.len()), (1, 3));
    assert_eq!(located.chunks[0].primary, lease.primary);

    // A server that is no member reports the chunk: its next answer denies it, a member's does not.
    let mut registry = RegistryClient::new(stage.channel());
    for server in servers {
        let replica =
            pb::ReplicaReport { handle: lease.handle, version: 1, adopted: 1, ..Default::default() };
        let report = pb::ReportRequest {
            server,
            epoch: 1,
            sequence: 2,
            replicas: vec![replica],
            ..Default::default()
        };
        registry.report(report).await.unwrap();
        let is_member = lease.replicas.iter().any(|replica| replica.server == server);
        let denied = heartbeat(&stage, server, 2).await.denied;
        assert_eq!(denied, if is_member { vec![] } else { vec![lease.handle] });
    }
    let status = master.cluster_status(pb::ClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.chunks, status.chunks_below_goal, status.servers.len()), (1, 0, 4));
    let elsewhere =
        pb::HeartbeatRequest { cluster: "ff".repeat(16), server: 1, epoch: 1, ..Default::default() };
    let error = Error::from(registry.heartbeat(elsewhere).await.unwrap_err());
    assert!(matches!(error, Error::WrongCluster { .. }));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_an_open_session_has_expired_and_one_with_it_has_not() {
    let stage = Stage::new().await;
    let client = stage.session().await;
    let mut registry = RegistryClient::new(stage.channel());
    let request = pb::ExpiredClientsRequest { clients: vec![1, client, 2], ..Default::default() };
    let reply = registry.expired_clients(request).await.unwrap().into_inner();
    assert_eq!(reply.expired, [1, 2]);
    let mut master = MasterClient::new(stage.channel());
    let renew = pb::RenewSessionRequest { client, first_unacked: 1 };
    let life_ms = master.renew_session(renew).await.unwrap().into_inner().expires_in_ms;
    assert!(reply.keep_ms > life_ms, "{} against {life_ms}: the client may not know yet", reply.keep_ms);
    let too_many = pb::ExpiredClientsRequest { clients: vec![1; 10_000], ..Default::default() };
    let error = Error::from(registry.expired_clients(too_many).await.unwrap_err());
    assert!(matches!(error, Error::BadArgument { .. }), "{error}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_answers_only_lookups_that_may_be_as_old_as_its_state() {
    let stage = Stage::new().await;
    // Now it leads.
    stage.session().await;
    let server = chunkserver(&stage, 1, Yes::default()).await;
    let second = Stage::start(Start::Join(vec![stage.address.clone()])).await;
    let status = async |mut master: MasterClient<Channel>| {
        let status = master.cluster_status(pb::ClusterStatusRequest {}).await?.into_inner();
        let voters = status.masters.iter().filter(|member| member.voter).count();
        if voters == 2 {
            Ok(Response::new(()))
        } else {
            Err(Error::unavailable("it does not vote yet").into())
        }
    };
    stage.patiently(status).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !heartbeat(&stage, server, 1).await.leader {
        assert!(tokio::time::Instant::now() < deadline, "it never answers as the leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let look = async |max_staleness_ms, min_rev| {
        let freshness = Some(pb::Freshness { max_staleness_ms, min_rev });
        let request = pb::StatRequest { path: "/".into(), freshness, ..Default::default() };
        MasterClient::new(stage.channel()).stat(request).await.map(drop).map_err(Error::from)
    };
    let hour = 3_600_000;
    assert_eq!(look(hour, 0).await, Ok(()));
    second.end().await;
    let request = pb::HeartbeatRequest { server, epoch: 1, reported: 1, ..Default::default() };
    let mut registry = RegistryClient::new(stage.channel());
    let (newest, bounded, old, floor, beat) = tokio::join!(
        look(0, 0),
        look(1, 0),
        look(hour, 0),
        look(hour, u64::MAX),
        registry.heartbeat(request)
    );
    assert!(newest.is_err(), "reads_unasked: nobody knows whether this is the newest");
    assert!(bounded.is_err(), "shadow_past_bound: it is older than 1 ms");
    assert_eq!(old, Ok(()));
    assert!(matches!(floor, Err(Error::TooOld { .. })), "floor_ignored: {floor:?}");
    let leads = beat.is_ok_and(|reply| reply.into_inner().leader);
    assert!(!leads, "guard answer_without_quorum: the others may have another leader");
    stage.end().await;
}
