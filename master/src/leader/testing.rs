//! A leader without a cluster: the log is the pure state in memory, the chunkservers are rules.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use gfs_proto::Result;
use gfs_proto::id::{ChunkHandle, ClusterId, EntryId, Epoch, LogIndex, MasterId, ServerId, Term, Uuid};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::{Clock, Moment, SystemClock, UnixMs};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

mod servers;

use super::grant::Granter;
use super::seams::{Log, Soft};
use crate::cluster::{Held, Part, Registration, Reign, Report, Space};
use crate::raft::Touched;
use crate::state::{self, Applied, Chunk, Command, Memory, Proposal, Rejected, View, read};
pub(super) use servers::{Mood, Servers};

/// The log of one process: applied as soon as it is proposed, unless it is told to take longer.
pub(super) struct PlainLog {
    state: Mutex<(Memory, u64)>,
    /// How long a command takes until it is applied; never locked across an await.
    delay: Mutex<Duration>,
    /// What the leader's commands are dated with.
    now: Mutex<UnixMs>,
    touched: broadcast::Sender<Touched>,
    /// Masters whose disks are nearly full, too many of them.
    pub(super) full: Mutex<Vec<MasterId>>,
}

impl PlainLog {
    pub(super) fn set_delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }
    pub(super) fn set_now(&self, now: UnixMs) {
        *self.now.lock() = now;
    }
    fn apply(&self, command: Command) -> Result<Applied, Rejected> {
        let mut state = self.state.lock();
        state.1 += 1;
        let index = LogIndex::from_raw(state.1);
        let outcome = state::apply(&state.0, index, &Proposal::internal(*self.now.lock(), command));
        state.0.write(outcome.writes.clone());
        state::invariant::check(&state.0).unwrap();
        // Nobody may be listening.
        drop(self.touched.send(Touched::Chunks(index, outcome.touched.clone())));
        outcome.reply
    }
}
impl Log for PlainLog {
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Result<Applied, Rejected>>> {
        let delay = *self.delay.lock();
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            Ok(self.apply(command))
        })
    }
    fn may_grow(&self) -> Result<()> {
        let masters = self.full.lock().clone();
        if masters.is_empty() { Ok(()) } else { Err(gfs_proto::Error::MastersFull { masters }) }
    }
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(self.state.lock().0.clone())
    }
    fn touched(&self) -> broadcast::Receiver<Touched> {
        self.touched.subscribe()
    }
}

/// Tokio's time, and a wall clock that can be set ahead.
pub(super) struct StageClock {
    system: SystemClock,
    ahead: Mutex<Duration>,
}

impl StageClock {
    pub(super) fn set_wall_ahead(&self, by: Duration) {
        *self.ahead.lock() = by;
    }
}
impl Clock for StageClock {
    fn wall(&self) -> UnixMs {
        // Of tokio's time too, so that a paused test sees it pass.
        UnixMs::from_raw(1_000_000)
            .plus(self.system.moment().since(Moment::default()))
            .plus(*self.ahead.lock())
    }
    fn moment(&self) -> Moment {
        self.system.moment()
    }
}

/// A leader with four chunkservers and a file of goal 3.
pub(super) struct Stage {
    pub(super) log: Arc<PlainLog>,
    pub(super) servers: Arc<Servers>,
    pub(super) soft: Arc<Soft>,
    pub(super) clock: Arc<StageClock>,
    pub(super) granter: Arc<Granter>,
    pub(super) reign: Reign,
    pub(super) file: EntryId,
}

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

impl Stage {
    /// `count` chunkservers are alive, the leader has just begun its reign.
    pub(super) fn new(count: u64) -> Self {
        let log = Arc::new(PlainLog {
            full: Mutex::default(),
            state: Mutex::default(),
            delay: Mutex::default(),
            now: Mutex::new(UnixMs::from_raw(1)),
            touched: broadcast::channel(1000).0,
        });
        let path = FilePath::parse("/f").unwrap();
        log.apply(Command::Bootstrap {
            cluster: CLUSTER,
            chunk_bytes: ChunkBytes::DEFAULT,
            replication: 3,
            trash_ms: 1000,
            session_ms: 1000,
            master: MasterId::from_raw(1),
            uuid: Uuid::from_bytes([1; 16]),
            address: "m:1".into(),
        })
        .unwrap();
        let Ok(Applied::Entry { entry }) = log.apply(Command::Create { path, replication: 0 }) else {
            panic!("no file")
        };
        let servers = Arc::new(Servers::default());
        let clock = Arc::new(StageClock { system: SystemClock::new(), ahead: Mutex::default() });
        let soft = Arc::new(Soft::new(log.clone(), clock.clone()));
        let stage_clock: Arc<dyn Clock> = clock.clone();
        let granter = Granter::new(log.clone(), servers.clone(), soft.clone(), stage_clock, CLUSTER);
        let reign = Self::reign(&clock, 1);
        let stage = Self { log, servers, soft, clock, granter, reign, file: entry.id };
        (1..=count).for_each(|server| stage.register(server));
        stage
    }

    fn reign(clock: &StageClock, term: u64) -> Reign {
        Reign { term: Term::from_raw(term), started: clock.moment(), over: CancellationToken::new() }
    }

    fn register(&self, raw: u64) {
        let server = self.register_without_report(raw);
        let (epoch, part) = (Epoch::from_raw(1), Part { first: true, last: true });
        let report =
            Report { epoch, sequence: 1, full: Some(part), replicas: Vec::new(), removed: Vec::new() };
        self.soft.with(|cluster, view, now| assert!(cluster.report(server, &report, view, now)));
        self.heartbeat(raw);
    }

    /// A server that is there, and has not said yet what it holds.
    pub(super) fn register_without_report(&self, raw: u64) -> ServerId {
        let uuid = Uuid::from_bytes([u8::try_from(raw).unwrap(); 16]);
        let (address, rack) = (format!("s:{raw}"), String::new());
        let command = Command::RegisterServer { uuid, address: address.clone(), rack: rack.clone() };
        let Ok(Applied::ServerRegistered { server }) = self.log.apply(command) else { panic!("no server") };
        assert_eq!(server.raw(), raw);
        let registration = Registration { address, rack, epoch: Epoch::from_raw(1) };
        self.soft.with(|cluster, _, now| cluster.register(server, registration, now));
        server
    }

    /// Another leader takes over, on another machine: same log, same servers, nothing else.
    pub(super) fn fail_over(&mut self, count: u64) {
        self.reign.over.cancel();
        let clock: Arc<dyn Clock> = self.clock.clone();
        self.soft = Arc::new(Soft::new(self.log.clone(), clock.clone()));
        self.granter =
            Granter::new(self.log.clone(), self.servers.clone(), self.soft.clone(), clock, CLUSTER);
        self.reign = Self::reign(&self.clock, self.reign.term.raw() + 1);
        (1..=count).for_each(|server| self.register(server));
    }

    /// A heartbeat that is answered as the leader; the dead send none.
    pub(super) fn heartbeat(&self, raw: u64) {
        let (server, epoch) = (ServerId::from_raw(raw), Epoch::from_raw(1));
        if self.servers.mood(server) == Mood::Dead {
            return;
        }
        let free_bytes = if self.servers.full.lock().contains(&raw) { 0 } else { 1 << 39 };
        let space = Space { total_bytes: 1 << 40, free_bytes, used_bytes: 0 };
        self.soft.with(|cluster, _, now| {
            cluster.heartbeat(server, epoch, space, now);
            cluster.answer(server, epoch, 1, (self.reign.term, now)).unwrap();
        });
    }

    /// Lets `time` pass, with heartbeats of those who live.
    pub(super) async fn pass(&self, time: Duration) {
        let step = Duration::from_millis(100);
        let mut left = time;
        while !left.is_zero() {
            tokio::time::sleep(step.min(left)).await;
            left = left.saturating_sub(step);
            (1..=9)
                .filter(|raw| self.soft.with(|c, _, _| c.server(ServerId::from_raw(*raw)).is_some()))
                .for_each(|raw| self.heartbeat(raw));
        }
    }

    /// Calls `work` while time passes and heartbeats come; how long it took.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> (T, Duration) {
        let begun = self.clock.moment();
        let beating = async {
            loop {
                self.pass(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            done = work => (done, self.clock.moment().since(begun)),
            () = beating => panic!("heartbeats never end"),
        }
    }

    /// Adds a chunk on servers 1, 2 and 3, with 1 as the primary.
    pub(super) fn add_chunk(&self, index: u32) -> ChunkHandle {
        self.add_chunk_on(index, [1, 2, 3])
    }

    /// Adds a chunk on these servers, with the first as the primary.
    pub(super) fn add_chunk_on(&self, index: u32, servers: [u64; 3]) -> ChunkHandle {
        let members: Vec<ServerId> = servers.into_iter().map(ServerId::from_raw).collect();
        let primary = members[0];
        let command = Command::AddChunk { file: self.file, expected_count: index, members, primary };
        match self.log.apply(command) {
            Ok(Applied::ChunkAdded { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    }

    /// A chunk that is confirmed on servers 1, 2 and 3 and leased to 1.
    pub(super) async fn leased_chunk(&self) -> ChunkHandle {
        let handle = self.add_chunk(0);
        self.granter.find_lease(&self.reign, handle, None).await.unwrap();
        self.servers.trace();
        handle
    }

    pub(super) fn chunk(&self, handle: ChunkHandle) -> Chunk {
        read::chunk(&*self.log.view(), handle).unwrap()
    }

    pub(super) fn propose(&self, command: Command) -> Result<Applied, Rejected> {
        self.log.apply(command)
    }

    /// A server reports one replica.
    pub(super) fn reports(&self, raw: u64, handle: ChunkHandle, held: Held, sequence: u64) {
        self.reports_all(raw, vec![(handle, held)], Vec::new(), sequence);
    }

    /// A server reports what has changed.
    pub(super) fn reports_all(
        &self,
        raw: u64,
        replicas: Vec<(ChunkHandle, Held)>,
        removed: Vec<ChunkHandle>,
        sequence: u64,
    ) {
        let report = Report { epoch: Epoch::from_raw(1), sequence, full: None, replicas, removed };
        let server = ServerId::from_raw(raw);
        assert!(self.soft.with(|cluster, view, now| cluster.report(server, &report, view, now)));
    }

    pub(super) fn view(&self) -> Box<dyn View + '_> {
        self.log.view()
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.moment()
    }
}
