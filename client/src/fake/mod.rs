//! A cluster in memory for tests: real frames and real gRPC over pipes, virtual time, faults on demand.
//!
//! Its chunks are kept once, not per replica: what tests here judge is the client.

mod chunkserver;
mod master;
mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::id::{ClusterId, RequestId};
use gfs_proto::random::SeededRandom;
use gfs_proto::time::SystemClock;
use gfs_proto::work::Workers;
use gfs_proto::{Environment, Error, pb};
use parking_lot::Mutex;

use crate::client::Client;
use crate::options::Options;

pub(crate) use net::FakeNet;

/// Chunks of four units, so that tests can fill them.
pub(crate) const CHUNK_BYTES: u32 = 4 << 20;

/// What happens to a call, as a test decides.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// It is carried out and answered.
    Go,
    /// It is carried out, and the answer is lost with its connection.
    LoseReply,
    /// It is not carried out.
    Refuse(Error),
    /// It is carried out; a bit of the answered payload flips on the way.
    Corrupt,
    /// Neither carried out nor answered.
    Silence,
}

type Judge = Box<dyn FnMut(&str, &mut Cluster) -> Verdict + Send>;

/// One chunk.
#[derive(Default, Clone)]
pub(crate) struct FakeChunk {
    pub(crate) version: u64,
    /// The first is the primary.
    pub(crate) members: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) requests: BTreeMap<RequestId, u32>,
    pub(crate) sealed: bool,
}

/// Everything the fake servers know.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) leader: u64,
    /// Masters that are told as members.
    pub(crate) masters: Vec<u64>,
    /// Masters whose addresses were given to another cluster, where each of them leads.
    pub(crate) foreign: BTreeSet<u64>,
    /// Whether masters do not look which cluster is meant.
    pub(crate) answers_everybody: bool,
    pub(crate) dead: BTreeSet<u64>,
    pub(crate) names: BTreeMap<String, u64>,
    pub(crate) files: BTreeMap<u64, Vec<u64>>,
    /// Deleted files and their paths, in the order of deletion.
    pub(crate) trash: Vec<(u64, String)>,
    pub(crate) chunks: BTreeMap<u64, FakeChunk>,
    pub(crate) replies: BTreeMap<(u64, u64), Result<Bytes, Error>>,
    pub(crate) nonces: BTreeMap<Bytes, u64>,
    pub(crate) expired: BTreeSet<u64>,
    /// The life of a session.
    pub(crate) session_ms: u64,
    pub(crate) first_unacked: u64,
    /// Of each data mutation, in the order in which they came: its number, and the first that is not given up.
    pub(crate) data_requests: Vec<(u64, u64)>,
    /// Pushed data that is not written yet.
    pub(crate) buffers: BTreeMap<(u64, Bytes), Bytes>,
    /// Most bytes that the buffers of one server ever held.
    pub(crate) buffered_max: usize,
    /// Of each stat, in order: the state behind which its answer must not be.
    pub(crate) floors: Vec<u64>,
    /// What came, in order.
    pub(crate) log: Vec<String>,
    pub(crate) rev: u64,
}

impl Cluster {
    fn next_rev(&mut self) -> u64 {
        self.rev += 1;
        self.rev
    }
    fn live_servers(&self) -> Vec<u64> {
        (1..=4).filter(|server| !self.dead.contains(server)).collect()
    }
    fn new_chunk(&mut self) -> u64 {
        let handle = self.chunks.len() as u64 + 1;
        let members = self.live_servers().into_iter().take(3).collect();
        self.chunks.insert(handle, FakeChunk { version: 1, members, ..FakeChunk::default() });
        handle
    }
    /// A new grant to the live servers, the next one as the primary.
    pub(crate) fn regrant(&mut self, handle: u64) {
        let mut members = self.live_servers();
        let chunk = self.chunks.get_mut(&handle).unwrap();
        let turn = members.iter().position(|server| *server > chunk.members[0]).unwrap_or(0);
        members.rotate_left(turn);
        members.truncate(3);
        chunk.version += 1;
        chunk.members = members;
    }
    pub(crate) fn lease(&self, handle: u64) -> pb::Lease {
        let chunk = &self.chunks[&handle];
        pb::Lease {
            handle,
            version: chunk.version,
            primary: chunk.members[0],
            replicas: chunk.members.iter().map(|server| replica(*server)).collect(),
            remaining_ms: 60_000,
        }
    }
    /// The content of a file as a reader should see it.
    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        let mut all = Vec::new();
        for (index, handle) in self.files[&self.names[path]].iter().enumerate() {
            all.resize(index * CHUNK_BYTES as usize, 0);
            all.extend_from_slice(&self.chunks[handle].bytes);
        }
        all
    }
    /// The logged calls that contain a text.
    pub(crate) fn calls(&self, what: &str) -> Vec<String> {
        self.log.iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

fn replica(server: u64) -> pb::Replica {
    pb::Replica { server, address: format!("s{server}:1"), rack: String::new() }
}

/// Masters m1 and m2, which are told to clients, and m3; chunkservers s1 to s4.
#[derive(Clone)]
pub(crate) struct Fake {
    cluster: Arc<Mutex<Cluster>>,
    judge: Arc<Mutex<Judge>>,
    net: Arc<FakeNet>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let net = Arc::new(FakeNet::default());
        let cluster = Arc::new(Mutex::new(Cluster { leader: 1, session_ms: 600_000, ..Cluster::default() }));
        let judge: Judge = Box::new(|_, _| Verdict::Go);
        let fake = Self { cluster, judge: Arc::new(Mutex::new(judge)), net };
        for id in 1..=3 {
            tokio::spawn(master::serve(fake.clone(), id));
        }
        for id in 1..=4 {
            tokio::spawn(chunkserver::serve(fake.clone(), id));
        }
        fake
    }

    pub(crate) async fn client(&self, options: Options) -> Client {
        let environment = Environment {
            net: self.net.clone(),
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SeededRandom::new(7)),
            workers: Workers::Threads,
        };
        Client::connect_with(&environment, &["m1:1".into(), "m2:1".into()], options).await.unwrap()
    }

    /// Looks at the cluster or changes it.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T {
        look(&mut self.cluster.lock())
    }
    /// Decides about every call from now on: it is named like `m1 create`, `s2 write c1 0+65536`.
    pub(crate) fn judge(&self, judge: impl FnMut(&str, &mut Cluster) -> Verdict + Send + 'static) {
        *self.judge.lock() = Box::new(judge);
    }
    /// Decides about the first call whose name contains `what`, and lets all others go.
    pub(crate) fn once(&self, what: &'static str, verdict: Verdict) {
        let mut verdict = Some(verdict);
        self.judge(move |call, _| match call.contains(what) {
            true => verdict.take().unwrap_or(Verdict::Go),
            false => Verdict::Go,
        });
    }

    fn verdict(&self, call: &str) -> Verdict {
        let mut cluster = self.cluster.lock();
        cluster.log.push(call.to_owned());
        (self.judge.lock())(call, &mut cluster)
    }
}

fn cluster_id() -> ClusterId {
    ClusterId::from_bytes([0xc1; 16])
}

/// The cluster of a master.
fn cluster_of(cluster: &Cluster, master: u64) -> ClusterId {
    if cluster.foreign.contains(&master) { ClusterId::from_bytes([0xc2; 16]) } else { cluster_id() }
}
