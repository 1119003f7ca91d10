//! What this server says to every master and shadow: who it is, what it holds, that it lives (GFS §2.6.2). And what it
//! takes from the answers: which chunks it may serve (docs/protocol.md, Fence).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ClusterId, Epoch, ServerId, Term};
use gfs_proto::net;
use gfs_proto::pb::registry_client::RegistryClient;
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::{Error, Result, fault, pb};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::replica::{Answer, Generation};
use crate::report::Change;
use crate::server::Chunkserver;
use crate::welcome::Welcome;

/// How often every master hears from this server.
const PERIOD: Duration = Duration::from_millis(500);
/// How long an urgent heartbeat or report waits for more of the kind.
const HURRY_PAUSE: Duration = Duration::from_millis(10);
/// How long one heartbeat may take: less than a third of the validity, so that one lost answer costs nothing.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(900);
/// How long a registration may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a batch of a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Replicas in one batch of a report.
const BATCH: usize = 2000;
/// Answered batches that are remembered: an answer may be about an earlier one than the last.
const BATCHES_KEPT: usize = 64;
/// Most masters that are followed.
const MASTERS_MAX: usize = 64;

/// Who this server says it is.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    /// `host:port` for everybody.
    pub(crate) address: String,
    /// Where it stands.
    pub(crate) rack: String,
    /// New at every start.
    pub(crate) boot: [u8; 16],
    /// Whether the cluster takes it.
    pub(crate) welcome: Arc<Welcome>,
}

/// What was heard of other masters.
#[derive(Debug)]
enum Masters {
    /// There are these.
    Some(Vec<String>),
    /// There are these and no others, says a leader.
    All(Vec<String>),
}

/// Follows all masters until `stop`: the given ones, and those that the leader names.
pub(crate) async fn follow_masters(
    server: Arc<Chunkserver>,
    person: Person,
    given: Vec<String>,
    stop: CancellationToken,
) {
    let (learn, mut learnt) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let mut followed: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut wanted: BTreeSet<String> = given.iter().cloned().collect();
    loop {
        followed.retain(|address, end| {
            let stays = wanted.contains(address);
            if !stays {
                end.cancel();
            }
            stays
        });
        for address in &wanted {
            if followed.len() >= MASTERS_MAX || followed.contains_key(address) {
                continue;
            }
            let end = stop.child_token();
            match Master::new(&server, &person, address, learn.clone()) {
                Ok(master) => {
                    let master = Arc::new(master);
                    tasks.spawn(master.clone().heartbeats(end.clone()));
                    tasks.spawn(master.reports(end.clone()));
                    followed.insert(address.clone(), end);
                }
                Err(error) => tracing::debug!(address, %error, "not a master's address"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            Some(masters) = learnt.recv() => match masters {
                Masters::Some(some) => {
                    let room = MASTERS_MAX.saturating_sub(wanted.len());
                    wanted.extend(some.into_iter().take(room));
                }
                Masters::All(all) => {
                    wanted = given.iter().cloned().chain(all).take(MASTERS_MAX).collect();
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// What one master has been told in one epoch.
#[derive(Debug, Default)]
struct Told {
    /// The epoch under which this master knows us.
    epoch: Option<Epoch>,
    /// The last batch that it answered.
    reported: u64,
    /// Its last batches with what they reached; `None` within a full report.
    batches: VecDeque<(u64, Option<Generation>)>,
    /// All changes up to here are in it.
    reached: Option<Generation>,
}

impl Told {
    fn begin(&mut self, epoch: Epoch) {
        *self = Self { epoch: Some(epoch), ..Self::default() };
    }

    /// Notes that a batch was answered.
    fn answered(&mut self, sequence: u64, reached: Option<Generation>) {
        self.reported = sequence;
        self.batches.push_back((sequence, reached));
        while self.batches.len() > BATCHES_KEPT {
            self.batches.pop_front();
        }
        self.reached = reached;
    }

    /// What a master that has taken the batches up to this one knows; `None` if it has not all.
    fn covered(&self, sequence: u64) -> Option<Generation> {
        self.batches.iter().rev().find(|(known, _)| *known <= sequence).and_then(|(_, reached)| *reached)
    }
}

/// One master or shadow that this server follows.
struct Master {
    server: Arc<Chunkserver>,
    person: Person,
    address: String,
    client: RegistryClient<Channel>,
    learn: mpsc::Sender<Masters>,
    /// Shared by the heartbeats and the reports, which must not wait for each other (T47).
    told: Mutex<Told>,
    /// The reports have something to do.
    report: tokio::sync::Notify,
    /// The reports have told something new.
    reported: tokio::sync::Notify,
    /// Whether it led when it last answered.
    leads: AtomicBool,
}

impl Master {
    fn new(
        server: &Arc<Chunkserver>,
        person: &Person,
        address: &str,
        learn: mpsc::Sender<Masters>,
    ) -> Result<Self> {
        let channel = net::channel(server.environment.net.clone(), address, REPORT_TIMEOUT)?;
        let client = RegistryClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            server: server.clone(),
            person: person.clone(),
            address: address.to_owned(),
            client,
            learn,
            told: Mutex::default(),
            report: tokio::sync::Notify::new(),
            reported: tokio::sync::Notify::new(),
            leads: AtomicBool::new(false),
        })
    }

    /// Registers and sends heartbeats, every period and, to the leader, when there is something urgent or news was
    /// reported: a new chunk can be read once an answer covers it.
    async fn heartbeats(self: Arc<Self>, stop: CancellationToken) {
        let mut urgent = self.server.urgent.subscribe();
        let mut interval = tokio::time::interval(PERIOD);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sequence = 0;
        loop {
            let hurried = tokio::select! {
                () = stop.cancelled() => return,
                _ = interval.tick() => false,
                Ok(()) = urgent.changed() => true,
                () = self.reported.notified() => true,
            };
            if hurried {
                if !self.leads.load(Ordering::Relaxed) {
                    continue;
                }
                // Many chunks at once have one heartbeat.
                tokio::time::sleep(HURRY_PAUSE).await;
                urgent.mark_unchanged();
            }
            sequence += 1;
            let beat = async {
                let registered = self.register().await;
                self.person.welcome.heard(&registered, &self.address);
                registered?;
                self.heartbeat(sequence).await
            };
            tokio::select! {
                () = stop.cancelled() => return,
                result = beat => if let Err(error) = result {
                    tracing::debug!(master = self.address, %error, "heartbeat failed");
                }
            }
        }
    }

    /// Registers under the present epoch, if this master does not know it.
    async fn register(&self) -> Result<()> {
        let server = &self.server;
        let epoch = server.fence.lock().epoch();
        if self.told.lock().epoch == Some(epoch) {
            return Ok(());
        }
        let (cluster, id) = match server.identity() {
            Ok((cluster, id)) => (cluster.to_string(), id.raw()),
            Err(_) => (String::new(), 0),
        };
        let request = pb::RegisterRequest {
            cluster,
            uuid: server.store.identity().uuid.bytes().to_vec().into(),
            server: id,
            address: self.person.address.clone(),
            rack: self.person.rack.clone(),
            epoch: epoch.raw(),
            boot: self.person.boot.to_vec().into(),
        };
        fault::try_reach("heartbeat::before_register").await?;
        let reply = match within(REGISTER_TIMEOUT, self.client.clone().register(request)).await {
            Ok(reply) => reply,
            Err(Error::NotLeader { leader: Some(leader) }) => {
                self.learn(Masters::Some(vec![leader]));
                return Err(Error::NotLeader { leader: None });
            }
            Err(error) => return Err(error),
        };
        let cluster = ClusterId::from_hex(&reply.cluster);
        let cluster = cluster.ok_or_else(|| Error::bad_argument("no cluster in the reply"))?;
        if reply.server == 0 {
            return Err(Error::unavailable("this master has no id for this server yet"));
        }
        fault::try_reach("heartbeat::registered").await?;
        server.registered(cluster, ServerId::from_raw(reply.server))?;
        self.learn(Masters::Some(reply.masters));
        self.told.lock().begin(epoch);
        self.report.notify_one();
        tracing::debug!(master = self.address, %epoch, "registered at a master");
        Ok(())
    }

    fn learn(&self, masters: Masters) {
        if self.learn.try_send(masters).is_err() {
            tracing::debug!("too many lists of masters at once");
        }
    }

    async fn heartbeat(&self, sequence: u64) -> Result<()> {
        let server = &self.server;
        let now = server.now();
        server.lapse();
        let epoch = server.fence.lock().epoch();
        let reported = {
            let told = self.told.lock();
            if told.epoch != Some(epoch) {
                return Err(Error::unavailable("not registered in this epoch"));
            }
            told.reported
        };
        let request = server.heartbeat(epoch, sequence, reported)?;
        // Guard from_receipt: what the answer allows, it allows from this moment on.
        let sent = now;
        fault::try_reach("heartbeat::before_send").await?;
        let reply = within(HEARTBEAT_TIMEOUT, self.client.clone().heartbeat(request)).await;
        self.leads.store(reply.as_ref().is_ok_and(|reply| reply.leader), Ordering::Relaxed);
        let reply = reply?;
        // Mutant from_receipt: validity counts from the answer.
        let sent = if fault::mutant("from_receipt") { server.now() } else { sent };
        fault::try_reach("heartbeat::answered").await?;
        if reply.leader {
            *server.leader.lock() = Some(self.client.clone());
        }
        if reply.register_wanted {
            self.told.lock().epoch = None;
        }
        if reply.full_report_wanted {
            self.told.lock().reached = None;
            self.report.notify_one();
        }
        if reply.leader && !reply.masters.is_empty() {
            self.learn(Masters::All(reply.masters.clone()));
        }
        // An answer that does not cover all replicas would take the others' validation away.
        let Some(reported) = self.told.lock().covered(reply.reported) else { return Ok(()) };
        let answer = Answer {
            leader: reply.leader,
            term: Term::from_raw(reply.term),
            epoch: Epoch::from_raw(reply.epoch),
            sent,
            reported,
            denied: reply.denied.into_iter().map(ChunkHandle::from_raw).collect(),
        };
        server.lapse();
        server.fence.lock().answered(answer, server.now());
        Ok(())
    }

    /// Sends a full report after each registration, and what changed since.
    async fn reports(self: Arc<Self>, stop: CancellationToken) {
        let mut urgent = self.server.urgent.subscribe();
        let mut interval = tokio::time::interval(PERIOD);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = interval.tick() => {}
                () = self.report.notified() => {}
                Ok(()) = urgent.changed(), if self.leads.load(Ordering::Relaxed) => {
                    tokio::time::sleep(HURRY_PAUSE).await;
                    urgent.mark_unchanged();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                result = self.send_reports() => if let Err(error) = result {
                    tracing::debug!(master = self.address, %error, "report failed");
                }
            }
        }
    }

    async fn send_reports(&self) -> Result<()> {
        loop {
            let (epoch, reached) = {
                let told = self.told.lock();
                let Some(epoch) = told.epoch else { return Ok(()) };
                (epoch, told.reached)
            };
            let changes = reached.and_then(|reached| self.server.journal.lock().since(reached, BATCH));
            match changes {
                None => self.full_report(epoch).await?,
                Some((changes, _)) if changes.is_empty() => return Ok(()),
                Some((changes, reached)) => {
                    let (replicas, removed) = self.server.describe(&changes);
                    let request = pb::ReportRequest { replicas, removed, ..Default::default() };
                    self.batch(epoch, request, Some(reached)).await?;
                }
            }
        }
    }

    /// Reports everything, in batches.
    async fn full_report(&self, epoch: Epoch) -> Result<()> {
        let reached = self.server.journal.lock().last();
        let mut after = None;
        loop {
            let chunks = self.server.chunks_after(after, BATCH);
            let last = chunks.len() < BATCH;
            let first = after.is_none();
            after = chunks.last().map(|chunk| chunk.handle).or(after);
            let changes: Vec<_> = chunks.iter().map(|chunk| (chunk.handle, Change::Changed)).collect();
            let (replicas, _) = self.server.describe(&changes);
            let request = pb::ReportRequest { full: true, first, last, replicas, ..Default::default() };
            self.batch(epoch, request, last.then_some(reached)).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn batch(
        &self,
        epoch: Epoch,
        mut request: pb::ReportRequest,
        reached: Option<Generation>,
    ) -> Result<()> {
        let (cluster, server) = self.server.identity()?;
        let sequence = self.told.lock().reported + 1;
        request.cluster = cluster.to_string();
        request.server = server.raw();
        request.epoch = epoch.raw();
        request.sequence = sequence;
        fault::try_reach("report::before_send").await?;
        let reply = within(REPORT_TIMEOUT, self.client.clone().report(request)).await;
        fault::reach("report::answered").await;
        let mut told = self.told.lock();
        if told.epoch != Some(epoch) {
            return Err(Error::unavailable("a new epoch began"));
        }
        match reply {
            Ok(reply) => {
                told.answered(sequence, reached);
                self.reported.notify_one();
                if reply.full_report_wanted {
                    told.reached = None;
                }
                Ok(())
            }
            Err(error) => {
                // Whether the batch came is unknown: everything again, under a number of its own.
                told.answered(sequence, None);
                Err(error)
            }
        }
    }
}

/// Bounds a call, and puts its failure in our words.
async fn within<T>(
    patience: Duration,
    call: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match timeout(patience, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Error::unavailable("no answer in time")),
    }
}
