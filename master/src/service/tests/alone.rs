//! The handlers of one master that does nothing by itself, and applies the log when it is let: what they say before that.

use std::path::Path;

use gfs_proto::id::{ChunkHandle, ChunkVersion, EntryId, ServerId, Term};
use gfs_proto::path::FilePath;
use gfs_proto::pb::master_server::Master as _;
use gfs_proto::pb::registry_server::Registry as _;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;
use tempfile::TempDir;

use super::*;
use crate::cluster::Reign;
use crate::leader::Leader;
use crate::raft::{BootstrapConfig, Node, NodeConfig, Origin, Timers};
use crate::service::Service;
use crate::state::{Applied, Command, Proposal, read};

/// How long something is watched that must not come.
const GLANCE: Duration = Duration::from_millis(500);

struct Alone {
    node: Node,
    leader: Arc<Leader>,
    service: Service,
    dir: TempDir,
}

impl Alone {
    /// Not the leader yet, if it has been one in this directory.
    async fn start(dir: TempDir) -> Self {
        let bootstrap = BootstrapConfig {
            chunk_bytes: ChunkBytes::DEFAULT,
            replication: 3,
            trash: Duration::from_secs(1),
            session: crate::SESSION_DEFAULT,
        };
        // Slow elections: a test looks around before this one leads.
        let (election_min, election_max) = (Duration::from_millis(1000), Duration::from_millis(1200));
        let timers = Timers { election_min, election_max, ..Timers::default() };
        let config = NodeConfig { timers, ..NodeConfig::new(dir.path(), "127.0.0.1:1") };
        let environment = Environment::real();
        let node = Node::start(config, &Origin::Bootstrap(bootstrap), &environment).await.unwrap();
        let leader = Leader::new(node.clone(), &environment);
        let service = Service::new(node.clone(), leader.clone(), environment);
        Self { node, leader, service, dir }
    }

    /// Waits until the node leads; its term.
    async fn lead(&self) -> u64 {
        let mut leadership = self.node.leadership();
        let leading = leadership.wait_for(|leadership| leadership.leading);
        let term = tokio::time::timeout(PATIENCE, leading).await.unwrap().unwrap().term.raw();
        self.reign(term);
        term
    }

    fn reign(&self, term: u64) {
        let started = self.leader.soft().with(|_, _, now| now);
        let over = CancellationToken::new();
        self.leader.pretend(Reign { term: Term::from_raw(term), started, over });
    }

    async fn propose(&self, command: Command) -> Applied {
        self.node.propose(Proposal::internal(UnixMs::from_raw(1), command)).await.unwrap().1.unwrap()
    }

    async fn create(&self, path: &str) -> EntryId {
        let path = FilePath::parse(path).unwrap();
        let applied = self.propose(Command::Create { path, replication: 0 }).await;
        let Applied::Entry { entry } = applied else { panic!("{applied}") };
        entry.id
    }

    /// A chunk that is confirmed on servers 1, 2 and 3.
    async fn add_chunk(&self, file: EntryId, index: u32) -> ChunkHandle {
        let members: Vec<ServerId> = (1..=3).map(ServerId::from_raw).collect();
        let primary = ServerId::from_raw(1);
        let command = Command::AddChunk { file, expected_count: index, members, primary };
        let Applied::ChunkAdded { handle, .. } = self.propose(command).await else { panic!("no chunk") };
        let (version, lease_expires_at) = (ChunkVersion::from_raw(1), UnixMs::default());
        self.propose(Command::ConfirmGrant { handle, version, lease_expires_at }).await;
        handle
    }

    /// A chunkserver that holds no more than these chunks, at version 1; nothing is known yet if `None`.
    async fn register(&self, number: u8, holds: Option<&[ChunkHandle]>) -> u64 {
        let address = format!("127.0.0.1:{number}");
        let uuid = vec![number; 16].into();
        let register = pb::RegisterRequest { uuid, address, epoch: 1, ..Default::default() };
        let registered = self.service.register(Request::new(register)).await.unwrap();
        let server = registered.into_inner().server;
        if let Some(holds) = holds {
            self.report(server, holds).await;
        }
        server
    }
    async fn report(&self, server: u64, holds: &[ChunkHandle]) {
        let replica = |handle: &ChunkHandle| pb::ReplicaReport {
            handle: handle.raw(),
            version: 1,
            adopted: 1,
            ..Default::default()
        };
        let report = pb::ReportRequest {
            server,
            epoch: 1,
            sequence: 1,
            full: true,
            first: true,
            last: true,
            replicas: holds.iter().map(replica).collect(),
            ..Default::default()
        };
        let reply = self.service.report(Request::new(report)).await.unwrap().into_inner();
        assert!(!reply.full_report_wanted);
    }

    async fn heartbeat(&self, server: u64) -> pb::HeartbeatReply {
        let request = pb::HeartbeatRequest { server, epoch: 1, reported: 1, ..Default::default() };
        self.service.heartbeat(Request::new(request)).await.unwrap().into_inner()
    }

    /// Starts once more on the same directory, and leads.
    async fn restart(self) -> Self {
        let Self { node, leader, service, dir } = self;
        drop((leader, service));
        node.shutdown().await;
        drop(node);
        let again = Self::start(dir).await;
        again.lead().await;
        again
    }
}

/// What the power leaves behind: all that was synced, and nothing of the state, which is not.
fn power_cut(from: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_only_begun_does_not_say_that_a_file_is_not_there() {
    // Found under jepsen: after a power cut of all masters an append to a file that exists was refused for good.
    let before = Alone::start(tempfile::tempdir().unwrap()).await;
    before.lead().await;
    let file = before.create("/f").await;
    let alone = Alone::start(power_cut(before.dir.path())).await;
    let hold = alone.node.hold().await;
    alone.lead().await;
    let is_there = |alone: &Alone| read::file_by_id(&alone.node.view(), file).is_ok();
    assert!(!is_there(&alone), "it has applied the log already: this proves nothing");
    let ask = async || {
        let add = pb::AddChunkRequest { request: id(1, 1), file: file.raw(), expected_count: 0 };
        alone.service.add_chunk(Request::new(add)).await.map(drop).map_err(Error::from)
    };
    if let Ok(answer) = tokio::time::timeout(GLANCE, ask()).await {
        panic!("it does not know yet, and says {answer:?}");
    }
    drop(hold);
    assert_eq!(ask().await, Err(Error::NotEnoughServers { wanted: 3, alive: 0 }));
    assert!(is_there(&alone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_answered_from_a_state_that_has_all_that_was_committed_before_it_came() {
    // Guard answer_without_quorum: the log may have a grant that leaves the server out.
    let alone = Alone::start(tempfile::tempdir().unwrap()).await;
    alone.lead().await;
    for number in 1..=3 {
        alone.register(number, None).await;
    }
    let file = alone.create("/f").await;
    let handle = alone.add_chunk(file, 0).await;
    alone.report(3, &[handle]).await;
    let reply = alone.heartbeat(3).await;
    assert!(reply.leader && reply.denied.is_empty());

    let hold = alone.node.hold().await;
    let members: Vec<ServerId> = [1, 2].map(ServerId::from_raw).to_vec();
    let prepare = Command::PrepareGrant {
        handle,
        expected_version: ChunkVersion::from_raw(1),
        base: members.clone(),
        primary: members[0],
        members,
        writer: false,
        fresh: false,
    };
    let held = async {
        let applied = *alone.node.applied().borrow();
        while alone.node.leader_read_index().await.unwrap().index <= applied {
            tokio::task::yield_now().await;
        }
        if let Ok(reply) = tokio::time::timeout(GLANCE, alone.heartbeat(3)).await {
            panic!("answered from an old state: {reply:?}");
        }
        drop(hold);
    };
    tokio::join!(alone.propose(prepare), held);
    let reply = alone.heartbeat(3).await;
    assert_eq!((reply.leader, reply.denied), (true, vec![handle.raw()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_for_the_term_that_a_quorum_has_confirmed_and_for_no_other() {
    // Guard answer_without_quorum: fences of a reign are counted by the answers of its own term.
    let alone = Alone::start(tempfile::tempdir().unwrap()).await;
    let term = alone.lead().await;
    let server = alone.register(1, Some(&[])).await;
    let answered = || {
        alone.leader.soft().with(|cluster, _, _| cluster.server(ServerId::from_raw(server)).unwrap().answered)
    };
    for other in [term - 1, term + 1] {
        alone.reign(other);
        assert!(!alone.heartbeat(server).await.leader, "term {other} in term {term}");
        assert_eq!(answered(), None);
    }
    alone.reign(term);
    assert!(alone.heartbeat(server).await.leader);
    assert_eq!(answered().map(|(term, _)| term.raw()), Some(term));
}

#[tokio::test(flavor = "multi_thread")]
async fn right_after_a_restart_of_everything_a_status_says_that_replicas_are_still_being_counted() {
    // Promise P9: "none is missing" is said only by who has heard what is there.
    let alone = Alone::start(tempfile::tempdir().unwrap()).await;
    alone.lead().await;
    for number in 1..=3 {
        alone.register(number, None).await;
    }
    let file = alone.create("/f").await;
    let (kept, lost) = (alone.add_chunk(file, 0).await, alone.add_chunk(file, 1).await);
    let (first, second) = (alone.add_chunk(file, 2).await, alone.add_chunk(file, 3).await);

    let alone = alone.restart().await;
    let status = async || {
        alone.service.cluster_status(Request::new(pb::ClusterStatusRequest {})).await.unwrap().into_inner()
    };
    assert!(!status().await.counted, "nobody has come");
    alone.register(1, Some(&[kept, first, second])).await;
    assert!(!status().await.counted, "one of three has come");
    alone.register(2, Some(&[kept, first])).await;
    let third = alone.register(3, None).await;
    assert!(!status().await.counted, "one has not said what it holds");
    alone.report(third, &[kept]).await;
    for server in 1..=3 {
        alone.heartbeat(server).await;
    }
    let status = status().await;
    assert!(status.counted);
    let found = (status.chunks, status.chunks_below_goal, status.chunks_without_replica);
    assert_eq!(found, (4, 3, 1), "nobody has said anything of {lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_is_one_entry_of_the_log_and_one_that_is_refused_changes_nothing() {
    let alone = Alone::start(tempfile::tempdir().unwrap()).await;
    alone.lead().await;
    let file = alone.create("/f").await;
    let nonce = vec![7; 16].into();
    let open = pb::OpenSessionRequest { nonce };
    let client = alone.service.open_session(Request::new(open)).await.unwrap().into_inner().client;
    let rename = async |sequence, target: &str| {
        let request = id(client, sequence);
        let (source, target) = ("/f".into(), target.into());
        let rename = pb::RenameRequest { request, source, target, replace: false };
        let before = alone.node.applied().borrow().raw();
        let renamed = alone.service.rename(Request::new(rename)).await.map(|reply| reply.into_inner().rev);
        (renamed.map_err(Error::from), alone.node.applied().borrow().raw() - before)
    };
    let place = || read::path_of(&alone.node.view(), file).unwrap().map(|path| path.to_string());
    let (refused, entries) = rename(1, "/nowhere/f").await;
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    assert_eq!((entries, place().as_deref()), (1, Some("/f")));
    let (renamed, entries) = rename(2, "/g").await;
    assert_eq!((renamed.is_ok(), entries, place().as_deref()), (true, 1, Some("/g")));
}
