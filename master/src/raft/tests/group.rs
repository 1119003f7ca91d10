//! Groups of nodes in one process, over loopback.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use gfs_proto::id::{ClusterId, LogIndex, MasterId, Uuid};
use gfs_proto::net::{Connection, Listener};
use gfs_proto::path::FilePath;
use gfs_proto::random::SeededRandom;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;
use gfs_proto::work::Workers;
use gfs_proto::{Environment, Error, Result, pb};
use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use pb::raft_server::Raft as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::identity::{Home, Membership};
use crate::raft::log::LogStore;
use crate::raft::members::CARE_PERIOD;
use crate::raft::start::owner_of;
use crate::raft::types::{Entry, LogId, Vote};
use crate::raft::{BootstrapConfig, Node, NodeConfig, Origin};
use crate::state::{Applied, Command, Proposal, Rejected, read};

/// How long anything may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The part of the Peer service that a group needs.
struct Peer(Node);

#[tonic::async_trait]
impl pb::peer_server::Peer for Peer {
    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let request = request.into_inner();
        let uuid = Uuid::from_slice(&request.uuid).unwrap();
        let id = self.0.join(uuid, &request.address, request.shadow).await?;
        Ok(Response::new(pb::JoinReply { id: id.raw(), cluster: self.0.cluster().to_string() }))
    }
    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexReply>, Status> {
        self.0.heard(&request.into_inner());
        let found = self.0.leader_read_index().await?;
        let (term, leader, index) = (found.term.raw(), found.leader.raw(), found.index.raw());
        let group_ms = self.0.group_time().map(UnixMs::raw);
        Ok(Response::new(pb::ReadIndexReply { term, leader, index, group_ms }))
    }

    async fn state_hash(
        &self,
        _: Request<pb::StateHashRequest>,
    ) -> Result<Response<pb::StateHashReply>, Status> {
        Err(Status::unimplemented("nobody asks here"))
    }
}

/// One running node with its server.
pub(super) struct Running {
    pub(super) node: Node,
    dir: TempDir,
    pub(super) address: String,
    origin: Origin,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// A stopped one.
pub(super) struct Stopped {
    pub(super) id: MasterId,
    pub(super) dir: TempDir,
    pub(super) address: String,
    pub(super) origin: Origin,
}

pub(super) fn bootstrap() -> Origin {
    Origin::Bootstrap(BootstrapConfig {
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash: Duration::from_secs(3600),
        session: crate::SESSION_DEFAULT,
    })
}

fn config(dir: &TempDir, address: &str) -> NodeConfig {
    NodeConfig {
        block_cache_bytes: 4 << 20,
        // Small, so that some hundred entries are enough for checkpoints and purges.
        checkpoint_every: 100,
        log_keep: 20,
        ..NodeConfig::new(dir.path(), address)
    }
}

async fn serve(node: Node, listener: Box<dyn Listener>, stop: CancellationToken) {
    let connections = futures::stream::unfold(listener, |mut listener| async {
        let connection: std::io::Result<Connection> = listener.accept().await;
        Some((connection, listener))
    });
    tonic::transport::Server::builder()
        .add_service(node.raft_service())
        .add_service(pb::peer_server::PeerServer::new(Peer(node)))
        .serve_with_incoming_shutdown(connections, stop.cancelled())
        .await
        .unwrap();
}

pub(super) async fn start_at(dir: TempDir, address: &str, origin: Origin) -> Running {
    start_in(&Environment::real(), dir, address, origin).await
}

async fn start_in(environment: &Environment, dir: TempDir, address: &str, origin: Origin) -> Running {
    let listener = environment.net.listen(address).await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let starting = async {
        loop {
            match Node::start(config(&dir, &address), &origin, environment).await {
                Ok(node) => return node,
                // Connections of its last life may still hold it: a process would have taken them along.
                Err(error) if error.to_string().contains("another process") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let node = tokio::time::timeout(PATIENCE, starting).await.unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(node.clone(), listener, stop.clone()));
    Running { node, dir, address, origin, stop, server }
}

pub(super) async fn start(origin: Origin) -> Running {
    start_with(&Environment::real(), origin).await
}

pub(super) async fn start_with(environment: &Environment, origin: Origin) -> Running {
    static NODES: AtomicU8 = AtomicU8::new(1);
    // A loopback address of its own: while a node is down nobody else gets its port.
    let (process, node) = (std::process::id() % 250 + 1, NODES.fetch_add(1, Ordering::Relaxed));
    start_in(environment, tempfile::tempdir().unwrap(), &format!("127.{process}.{node}.1:0"), origin).await
}

impl Running {
    pub(super) fn joining(&self, shadow: bool) -> Origin {
        Origin::Join { masters: vec![self.address.clone()], shadow }
    }

    /// Takes the node away without asking the others.
    pub(super) async fn kill(self) -> Stopped {
        let Self { node, dir, address, origin, stop, server } = self;
        // Its connections die with the server, as with a process.
        server.abort();
        stop.cancel();
        assert!(server.await.is_err() || stop.is_cancelled());
        node.halt().await;
        Stopped { id: node.id(), dir, address, origin }
    }

    pub(super) fn id(&self) -> MasterId {
        self.node.id()
    }

    fn directories(&self) -> u64 {
        read::counters(&self.node.view()).unwrap().directories
    }

    pub(super) async fn applies(&self, index: LogIndex) {
        let mut applied = self.node.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        tokio::time::timeout(PATIENCE, reached).await.expect("applies in time").unwrap();
    }
}

impl Stopped {
    async fn restart(self) -> Running {
        start_at(self.dir, &self.address, self.origin).await
    }
}

/// Three voters.
pub(super) async fn group() -> Vec<Running> {
    let first = start(bootstrap()).await;
    let second = start(first.joining(false)).await;
    let third = start(first.joining(false)).await;
    let group = vec![first, second, third];
    // Not only all three, as in the middle of the change, when the group before it is still needed, too.
    let settled = |node: &Node| node.metrics().membership_config.membership().get_joint_config().len() == 1;
    until("three vote", || group.iter().all(|running| voters(&running.node) == 3 && settled(&running.node)))
        .await;
    group
}

pub(super) fn voters(node: &Node) -> usize {
    node.membership().iter().filter(|member| member.voter).count()
}

/// Waits for a condition.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited too long: {what}"));
}

pub(super) fn mkdir(name: &str) -> Proposal {
    let path = FilePath::parse(&format!("/{name}")).unwrap();
    let clock = UnixMs::from_raw(1);
    Proposal::internal(clock, Command::Mkdir { path, parents: false })
}

/// Makes a directory through whoever leads; the index of its entry.
pub(super) async fn make(group: &[Running], name: &str) -> LogIndex {
    let trying = async {
        loop {
            for running in group.iter().filter(|running| running.node.leadership().borrow().leading) {
                match running.node.propose(mkdir(name)).await {
                    // An earlier try of unknown outcome made it.
                    Ok((index, Ok(_) | Err(Rejected::AlreadyExists { .. }))) => return index,
                    Ok((_, Err(rejected))) => panic!("{rejected}"),
                    Err(error) => tracing::debug!(%error, "again"),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.expect("a command is decided in time")
}

fn exists(node: &Node, name: &str) -> bool {
    read::stat(&node.view(), &FilePath::parse(&format!("/{name}")).unwrap()).is_ok()
}

pub(super) async fn leader(group: &[Running]) -> usize {
    let mut found = None;
    until("somebody leads", || {
        found = group.iter().position(|running| running.node.leadership().borrow().leading);
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_survives_the_death_of_the_leader_and_of_everybody() {
    let mut group = group().await;
    for number in 0..20 {
        make(&group, &format!("before-{number}")).await;
    }
    let dead = group.remove(leader(&group).await);
    let old_term = dead.node.leadership().borrow().term;
    let dead = dead.kill().await;
    let last = make(&group, "after").await;
    let term = group[leader(&group).await].node.leadership().borrow().term;
    assert!(term > old_term, "{term} {old_term}");
    group.push(dead.restart().await);
    for running in &group {
        running.applies(last).await;
        assert!((0..20).all(|number| exists(&running.node, &format!("before-{number}"))));
        assert!(exists(&running.node, "after"));
    }
    let mut stopped = Vec::new();
    for running in group {
        stopped.push(running.kill().await);
    }
    let mut group = Vec::new();
    for dead in stopped {
        group.push(dead.restart().await);
    }
    let last = make(&group, "again").await;
    for running in &group {
        running.applies(last).await;
        assert_eq!(running.directories(), group[0].directories());
        assert!(exists(&running.node, "before-0") && exists(&running.node, "after"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lags_behind_the_log_gets_a_checkpoint_and_a_shadow_follows_without_a_vote() {
    let first = start(bootstrap()).await;
    let shadow = start(first.joining(true)).await;
    let mut group = vec![first];
    make(&group, "early").await;
    until("the shadow follows", || exists(&shadow.node, "early")).await;
    assert_eq!(
        shadow.node.propose(mkdir("x")).await.unwrap_err(),
        Error::NotLeader { leader: Some(group[0].address.clone()) }
    );
    let here = shadow.node.applied().borrow().raw();
    let stopped = shadow.kill().await;
    let mut last = LogIndex::default();
    for number in 0..300 {
        last = make(&group, &format!("d{number}")).await;
    }
    // What the shadow misses is gone from the log: only a checkpoint can bring it.
    until("the log is purged", || group[0].node.metrics().purged.is_some_and(|purged| purged.index > here))
        .await;
    let shadow = stopped.restart().await;
    shadow.applies(last).await;
    assert!(exists(&shadow.node, "d0") && exists(&shadow.node, "d299"));
    assert_eq!(shadow.directories(), group[0].directories());
    // It goes on by itself from there.
    let last = make(&group, "late").await;
    shadow.applies(last).await;
    let members = group[0].node.membership();
    let voters: BTreeSet<_> = members.iter().filter(|member| member.voter).map(|member| member.id).collect();
    assert_eq!(voters, BTreeSet::from([group[0].id()]));
    assert!(members.iter().any(|member| member.shadow && member.id == shadow.id()));
    group.push(shadow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_on_a_follower_sees_everything_acknowledged_before_and_without_a_quorum_nothing() {
    let mut group = group().await;
    let mut checked = 0;
    while checked < 30 {
        let name = format!("r{checked}");
        make(&group, &name).await;
        let lead = leader(&group).await;
        let follower = &group[(lead + 1) % 3].node;
        // A change of leader is not what this test is about.
        if follower.read_index().await.is_ok() {
            assert!(exists(follower, &name), "{name}");
        }
        checked += 1;
    }
    let lead = leader(&group).await;
    group.swap(0, lead);
    let mut stopped = Vec::new();
    while group.len() > 1 {
        stopped.push(group.remove(1).kill().await);
    }
    let read = tokio::time::timeout(PATIENCE, group[0].node.read_index()).await.unwrap();
    assert!(matches!(read, Err(Error::Unavailable { .. } | Error::NotLeader { leader: None })), "{read:?}");
    let proposed = tokio::time::timeout(PATIENCE, group[0].node.propose(mkdir("never"))).await.unwrap();
    assert!(matches!(proposed, Err(Error::Unavailable { .. } | Error::NotLeader { .. })), "{proposed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_can_be_asked_to_lead_and_a_leader_that_leaves_hands_over_and_can_be_removed() {
    let mut group = group().await;
    let lead = leader(&group).await;
    let next = (lead + 1) % 3;
    until("the next one has everything", || {
        group[lead].node.lags().iter().all(|(_, lag)| *lag == 0) && group[lead].node.lags().len() == 2
    })
    .await;
    group[lead].node.transfer(group[next].id()).await.unwrap();
    until("the next one leads", || group[next].node.leadership().borrow().leading).await;
    make(&group, "transferred").await;
    let gone = group.remove(leader(&group).await);
    let removed = gone.id();
    gone.node.shutdown().await;
    let last = make(&group, "handed over").await;
    for running in &group {
        running.applies(last).await;
    }
    let removing = async {
        while group[leader(&group).await].node.remove(removed).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, removing).await.unwrap();
    assert!(group[leader(&group).await].node.membership().iter().all(|member| member.id != removed));
    make(&group, "without").await;
}

/// A crash in the middle of a join leaves such a member: it has an id, and its directory does not know it. The log was short,
/// so it did not seem far behind; with its vote the group of two never decided anything again, not even its own join.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_never_answered_or_has_fallen_silent_gets_no_vote() {
    let first = start(bootstrap()).await;
    first.node.add_learner(MasterId::from_raw(1000), "127.0.0.1:1", false).await.unwrap();
    let shadow = start(first.joining(true)).await;
    let silent = shadow.node.id();
    until("the shadow answers", || first.node.lags() == [(silent, 0)]).await;
    shadow.kill().await;
    // The directory of a shadow that is started as a master votes as soon as the leader finds that it may.
    first.node.add_learner(silent, "127.0.0.1:1", false).await.unwrap();
    tokio::time::sleep(CARE_PERIOD * 8).await;
    assert_eq!(voters(&first.node), 1, "{:?}", first.node.membership());
    let group = [first];
    make(&group, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_failed_says_so_and_acknowledges_nothing_more() {
    let running = start(bootstrap()).await;
    running.node.poison().set("no such luck");
    let proposed = tokio::time::timeout(PATIENCE, running.node.propose(mkdir("lost"))).await.unwrap();
    assert!(matches!(proposed, Err(Error::Unavailable { .. })), "{proposed:?}");
    let failed = tokio::time::timeout(PATIENCE, running.node.failed()).await.unwrap();
    assert!(failed.to_string().contains("no such luck"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_a_failed_node_will_never_apply() {
    // A duty of the leader did, so that a master whose store had failed never ended (seed 5000 of the simulation).
    let running = start(bootstrap()).await;
    let waiting = running.node.until_applied(LogIndex::from_raw(1_000_000));
    let failing = async {
        running.node.poison().set("no such luck");
        std::future::pending::<()>().await;
    };
    let waited = async {
        tokio::select! {
            waited = waiting => waited,
            () = failing => unreachable!(),
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(3), waited).await.unwrap();
    assert!(waited.as_ref().is_err_and(|error| error.to_string().contains("no such luck")), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_ahead_of_its_log_is_covered_by_a_checkpoint_before_the_log_is_dropped() {
    let running = start(bootstrap()).await;
    let mut group = vec![running];
    make(&group, "early").await;
    group[0].node.checkpoint().await.unwrap();
    until("there is a checkpoint", || group[0].node.metrics().snapshot.is_some()).await;
    let last = make(&group, "then").await;
    let stopped = group.remove(0).kill().await;
    // As after a power cut: the quorum had entries, the state was flushed with them, the log was not.
    let applied = crate::raft::tests::crash::apply_beyond(&stopped.dir.path().join("state"), 50, 0).await;
    assert!(applied > last.raw());
    group.push(stopped.restart().await);
    // Who joins needs what the log does not have any more.
    let shadow = start(group[0].joining(true)).await;
    let last = make(&group, "late").await;
    shadow.applies(last).await;
    assert!(exists(&shadow.node, "then") && exists(&shadow.node, "late"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_log_that_a_later_term_has_replaced_in_the_state_already_goes_at_the_start() {
    let running = start(bootstrap()).await;
    let mut group = vec![running];
    make(&group, "early").await;
    let stopped = group.remove(0).kill().await;
    let (path, random) = (stopped.dir.path().to_owned(), SeededRandom::new(1));
    until("nobody uses it", || Home::open(&path, &random).is_ok()).await;
    let home = Home::open(&path, &random).unwrap();
    let owner = owner_of(&home, home.member().unwrap());
    let mut log = LogStore::reopen(&home.log_dir(), &owner, &Workers::Threads).unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id.unwrap();
    let blank = |index| Entry { log_id: LogId::new(last.leader_id, index), payload: EntryPayload::Blank };
    log.blocking_append((last.index + 1..last.index + 30).map(blank)).await.unwrap();
    log.save_vote(&Vote::new(last.leader_id.term + 1, 1)).await.unwrap();
    drop((log, home));
    // As after a power cut: the next leader's entries were committed without this one's disk, and it had applied them.
    let applied = crate::raft::tests::crash::apply_beyond(&path.join("state"), 10, 1).await;
    assert!(applied < last.index + 29);
    group.push(stopped.restart().await);
    let shadow = start(group[0].joining(true)).await;
    let last = make(&group, "late").await;
    shadow.applies(last).await;
    assert!(exists(&shadow.node, "early") && exists(&shadow.node, "late"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_received_to_its_end_goes_before_anything_that_needs_room() {
    let stopped = start(bootstrap()).await.kill().await;
    let (path, random) = (stopped.dir.path(), SeededRandom::new(1));
    until("nobody uses it", || Home::open(path, &random).is_ok()).await;
    let half = path.join("state/receive-9");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("000001.sst"), "half").unwrap();
    // As if there were no room for what RocksDB writes at each start.
    std::fs::write(path.join("log/CURRENT"), "MANIFEST-none\n").unwrap();
    let config = config(&stopped.dir, &stopped.address);
    assert!(Node::start(config, &stopped.origin, &Environment::real()).await.is_err());
    assert!(!half.exists());
}

fn message(cluster: ClusterId, target: u64, format: u32) -> Request<pb::RaftMessage> {
    Request::new(pb::RaftMessage {
        cluster: cluster.to_string(),
        target,
        source: 9,
        format,
        body: Vec::new().into(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_another_cluster_node_or_format_are_refused_and_so_is_a_second_start() {
    let running = start(bootstrap()).await;
    let (node, cluster) = (&running.node, running.node.cluster());
    let service = crate::raft::RaftService::for_test(node);
    let refused = |status: Result<Response<pb::RaftMessage>, Status>| Error::from(status.unwrap_err());
    let other = ClusterId::from_bytes([1; 16]);
    let wrong = refused(service.append(message(other, 1, 1)).await);
    assert!(matches!(wrong, Error::WrongCluster { .. }), "{wrong}");
    let wrong = refused(service.vote(message(cluster, 2, 1)).await);
    assert_eq!(wrong, Error::WrongServer { ours: 1, theirs: 2 });
    let wrong = refused(service.pre_vote(message(cluster, 1, 2)).await);
    assert!(matches!(wrong, Error::UnsupportedVersion { found: 2, .. }), "{wrong}");
    let wrong = refused(service.transfer_leader(message(cluster, 1, 1)).await);
    assert!(matches!(wrong, Error::BadArgument { .. }), "{wrong}");
    let second = Node::start(config(&running.dir, "127.0.0.1:1"), &bootstrap(), &Environment::real()).await;
    assert!(second.unwrap_err().to_string().contains("another process"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_of_a_request_gets_the_first_answer_and_a_started_node_never_bootstraps_again() {
    let group = vec![start(bootstrap()).await];
    let clock = UnixMs::from_raw(1);
    let open = Proposal::internal(clock, Command::OpenSession { nonce: [3; 16] });
    let (_, opened) = group[0].node.propose(open).await.unwrap();
    let Ok(Applied::SessionOpened { client, .. }) = opened else { panic!("{opened:?}") };
    let request = Some(gfs_proto::id::RequestId { client, sequence: 1 });
    let once = Proposal { request, first_unacked: 1, ..mkdir("once") };
    let first = group[0].node.propose(once.clone()).await.unwrap();
    assert_eq!(group[0].node.propose(once).await.unwrap(), first);
    let cluster = group[0].node.cluster();
    let mut group: Vec<Running> = group;
    let again = group.remove(0).kill().await.restart().await;
    assert_eq!((again.node.cluster(), exists(&again.node, "once")), (cluster, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_started_is_refused_without_its_log_and_one_that_has_not_makes_it() {
    // Guard emptied_log. Its first start was cut off when it had an id, and no stores yet.
    let (dir, random) = (tempfile::tempdir().unwrap(), SeededRandom::new(1));
    let mut home = Home::open(dir.path(), &random).unwrap();
    let member = Membership { cluster: ClusterId::from_bytes([7; 16]), id: MasterId::from_raw(1) };
    home.become_member(member).unwrap();
    drop(home);
    let stopped = start_at(dir, "127.0.0.1:0", bootstrap()).await.kill().await;
    until("nobody uses it", || Home::open(stopped.dir.path(), &random).is_ok()).await;
    for file in std::fs::read_dir(stopped.dir.path().join("log")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let config = config(&stopped.dir, &stopped.address);
    let refused = Node::start(config, &stopped.origin, &Environment::real()).await.unwrap_err();
    assert!(matches!(refused, Error::BadArgument { .. }), "{refused}");
    assert!(refused.to_string().contains("new member"), "{refused}");
}
