//! The clients: the workloads of `jepsen/`, one that makes snapshots, and the judge who begins and ends the run.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gfs_client::{Client, Options};
use gfs_jepsen::{Load, Scene, Verdict, WORKLOADS, Workload};
use gfs_proto::{Environment, Error};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::hosts::Servers;
use crate::plan::Plan;
use crate::points;

/// Workloads that run side by side, each in files of its own.
const NAMES: [&str; 4] = ["append", "cells", "namespace", "bank"];
/// How often somebody looks whether it is their turn.
const LOOK: Duration = Duration::from_millis(20);
/// How long the cluster may take to come up.
const UP_PATIENCE: Duration = Duration::from_secs(60);
/// How long the cluster may take to be whole again after the last fault.
const WHOLE_PATIENCE: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(10);
/// Snapshots that are kept at a time.
const SNAPSHOTS: u64 = 3;

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// The cluster comes up.
    Setup,
    /// Clients work while faults happen.
    Rage,
    /// Faults are over; clients end.
    Heal,
    /// The clients have ended; the judge looks at everything.
    Look,
    /// All is told.
    Done,
}

/// A snapshot that was acknowledged, and what it held then.
struct Snapshot {
    path: String,
    crc: Option<u32>,
}

/// What the clients of a run have in common.
pub(crate) struct Stage {
    pub(crate) phase: Cell<Phase>,
    directory: PathBuf,
    pub(crate) scenes: Vec<(&'static Workload, Arc<Scene>)>,
    clients_at_work: Cell<usize>,
    snapshots_pause: Duration,
    snapshots: RefCell<Vec<Snapshot>>,
    pub(crate) snapshots_made: Cell<u64>,
    pub(crate) findings: RefCell<Vec<String>>,
    pub(crate) doubts: RefCell<Vec<String>>,
    pub(crate) notes: RefCell<Vec<String>>,
}

impl Stage {
    /// A stage of all workloads, whose clients go through `environment`.
    pub(crate) fn new(
        environment: &Environment,
        masters: &[String],
        directory: &Path,
        plan: &Plan,
    ) -> Result<Rc<Self>> {
        let mut scenes = Vec::new();
        let workloads = WORKLOADS.iter().filter(|workload| NAMES.contains(&workload.name));
        for (number, workload) in (0_u64..).zip(workloads) {
            // Seeds of their own: clients with the same nonce would share a session.
            let seed = plan.seed.wrapping_mul(NAMES.len() as u64).wrapping_add(number);
            let load = Load { seed, think: plan.think, trash_expires: true };
            let history = directory.join(format!("{}.jsonl", workload.name));
            scenes.push((workload, Scene::over(environment.clone(), masters.to_vec(), &history, load)?));
        }
        Ok(Rc::new(Self {
            directory: directory.to_owned(),
            phase: Cell::new(Phase::Setup),
            scenes,
            clients_at_work: Cell::new(0),
            snapshots_pause: plan.snapshots,
            snapshots: RefCell::default(),
            snapshots_made: Cell::new(0),
            findings: RefCell::default(),
            doubts: RefCell::default(),
            notes: RefCell::default(),
        }))
    }

    /// Tells the clients to end.
    pub(crate) fn stop(&self) -> Result<()> {
        self.phase.set(Phase::Heal);
        self.scenes.iter().try_for_each(|(_, scene)| scene.stop())
    }

    async fn wait_for(&self, phase: Phase) {
        while self.phase.get() < phase {
            sleep(LOOK).await;
        }
    }

    /// One host of clients: those whose number is `host` modulo `hosts`.
    pub(crate) async fn client_host(self: Rc<Self>, host: u64, hosts: u64, clients: u64) {
        points::begin(points::CLIENTS + host, None);
        self.clients_at_work.set(self.clients_at_work.get() + 1);
        self.wait_for(Phase::Rage).await;
        let mut tasks = JoinSet::new();
        for (workload, scene) in &self.scenes {
            for number in (0..clients).filter(|number| number % hosts == host) {
                tasks.spawn_local(persist(self.clone(), workload, scene.clone(), number));
            }
        }
        while tasks.join_next().await.is_some() {}
        self.clients_at_work.set(self.clients_at_work.get() - 1);
    }

    /// Makes snapshots of the files that are being written, and deletes old ones.
    pub(crate) async fn snapshot_client(self: Rc<Self>, environment: Environment, masters: Vec<String>) {
        self.clients_at_work.set(self.clients_at_work.get() + 1);
        self.wait_for(Phase::Rage).await;
        let mut number = 0;
        while self.phase.get() == Phase::Rage {
            if let Err(error) = self.make_snapshots(&environment, &masters, &mut number).await {
                tracing::info!(%error, "the client of snapshots begins anew");
                sleep(Duration::from_millis(200)).await;
            }
        }
        self.clients_at_work.set(self.clients_at_work.get() - 1);
    }

    async fn make_snapshots(
        &self,
        environment: &Environment,
        masters: &[String],
        number: &mut u64,
    ) -> Result<()> {
        let options = Options { patience: PATIENCE, ..Options::default() };
        let client = Client::connect_with(environment, masters, options).await?;
        while tokio::time::timeout(self.snapshots_pause, self.wait_for(Phase::Heal)).await.is_err() {
            *number += 1;
            let source = if number.is_multiple_of(2) { "/log" } else { "/cells" };
            let path = format!("/snapshot-{number}");
            client.snapshot(source, &path).await?;
            self.snapshots_made.set(self.snapshots_made.get() + 1);
            let crc = read_all(&client, &path).await.ok().map(|bytes| crc32fast::hash(&bytes));
            self.snapshots.borrow_mut().push(Snapshot { path, crc });
            if self.snapshots.borrow().len() as u64 > SNAPSHOTS {
                let old = self.snapshots.borrow_mut().remove(0);
                client.delete(&old.path).await?;
            }
        }
        Ok(())
    }

    /// Brings the run about from its beginning to its end.
    pub(crate) async fn judge(self: Rc<Self>, servers: Servers, environment: Environment) {
        if let Err(error) = self.try_judge(&servers, &environment).await {
            self.doubts.borrow_mut().push(format!("the run broke off: {error:#}"));
        }
        self.phase.set(Phase::Done);
    }

    async fn try_judge(&self, servers: &Servers, environment: &Environment) -> Result<()> {
        let options = Options { patience: PATIENCE, ..Options::default() };
        let until = Instant::now() + UP_PATIENCE;
        let client = loop {
            match Client::connect_with(environment, &servers.masters(), options.clone()).await {
                Ok(client) => break client,
                Err(error) if Instant::now() > until => return Err(error).context("no leader"),
                Err(_) => sleep(LOOK).await,
            }
        };
        wait_until_whole(&client, servers, UP_PATIENCE).await.context("the cluster does not come up")?;
        for (workload, scene) in &self.scenes {
            (workload.prepare)(scene.clone())
                .await
                .with_context(|| format!("{} can't begin", workload.name))?;
        }
        self.phase.set(Phase::Rage);
        self.wait_for(Phase::Heal).await;
        let healed = Instant::now();
        while self.clients_at_work.get() > 0 {
            if healed.elapsed() > WHOLE_PATIENCE {
                bail!("{} hosts' clients do not end", self.clients_at_work.get());
            }
            sleep(LOOK).await;
        }
        self.phase.set(Phase::Look);
        if let Err(error) = wait_until_whole(&client, servers, WHOLE_PATIENCE).await {
            self.findings.borrow_mut().push(format!("the cluster does not become whole: {error:#}"));
            return Ok(());
        }
        self.notes
            .borrow_mut()
            .push(format!("whole {} ms after the last fault", healed.elapsed().as_millis()));
        for (workload, scene) in &self.scenes {
            (workload.finish)(scene.clone()).await?;
        }
        self.look_at_snapshots(&client).await?;
        for path in ["/log", "/cells"] {
            self.compare(&client, path).await?;
        }
        Ok(())
    }

    /// A snapshot is what it was, on all replicas.
    async fn look_at_snapshots(&self, client: &Client) -> Result<()> {
        for Snapshot { path, crc } in self.snapshots.take() {
            match read_all(client, &path).await {
                // It was acknowledged, and nobody has asked for its deletion: those are off the list.
                Err(error @ Error::NotFound { .. }) => {
                    self.findings.borrow_mut().push(format!("lost: the snapshot {path}: {error}"));
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("{path} can't be read")),
                Ok(bytes) => {
                    let now = crc32fast::hash(&bytes);
                    if crc.is_some_and(|then| then != now) {
                        self.findings.borrow_mut().push(format!("{path} is not what it was"));
                    }
                }
            }
            self.compare(client, &path).await?;
        }
        Ok(())
    }

    /// All replicas of all chunks of a file are alike.
    async fn compare(&self, client: &Client, path: &str) -> Result<()> {
        let file = client.open(path).await?;
        for chunk in file.chunks().await? {
            let until = Instant::now() + WHOLE_PATIENCE;
            loop {
                let comparison = file.compare_replicas(chunk.index).await?;
                let all = comparison.replicas.len() >= chunk.goal as usize;
                if all && comparison.is_complete() && !comparison.is_corrupt() {
                    break;
                }
                if Instant::now() > until {
                    let told: Vec<_> = comparison
                        .replicas
                        .iter()
                        .map(|replica| {
                            (replica.server.id, replica.length, replica.sealed, replica.error.clone())
                        })
                        .collect();
                    self.findings.borrow_mut().push(format!(
                        "replicas of chunk {} of {path}, of {} that there should be, differ in blocks {:?}: {told:?}",
                        chunk.index.raw(),
                        chunk.goal,
                        comparison.differing_blocks()
                    ));
                    break;
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

/// A client that begins anew, as another one, when it could not begin.
async fn persist(stage: Rc<Stage>, workload: &'static Workload, scene: Arc<Scene>, number: u64) {
    let mut attempt = 0;
    while stage.phase.get() == Phase::Rage {
        if let Err(error) = (workload.client)(scene.clone(), number + attempt * 1000).await {
            tracing::info!(%error, workload = workload.name, number, "a client begins anew");
            sleep(Duration::from_millis(100)).await;
        }
        attempt += 1;
    }
}

async fn read_all(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.open(path).await?;
    let length = file.len().await?;
    Ok(file.read_at(0, length).await?.to_vec())
}

async fn wait_until_whole(client: &Client, servers: &Servers, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    let masters = servers.masters().len();
    loop {
        let missing = match client.cluster_status().await {
            Err(error) => error.to_string(),
            Ok(status) => {
                let alive = status.servers.iter().filter(|server| server.alive).count();
                let together =
                    status.masters.iter().filter(|master| master.lag.is_some_and(|lag| lag < 20)).count();
                let voters = status.masters.iter().filter(|master| master.voter).count();
                if alive >= servers.plan.chunkservers
                    && together >= masters
                    && voters >= servers.plan.masters
                    // A leader that has not counted yet knows of none.
                    && status.counted
                    && status.chunks_below_goal == 0
                    && status.chunks_without_replica == 0
                {
                    return Ok(());
                }
                format!(
                    "{alive} chunkservers alive, {together} masters together, {voters} vote, {} chunks below goal, {} without replica",
                    status.chunks_below_goal, status.chunks_without_replica
                )
            }
        };
        if Instant::now() > until {
            bail!("{missing}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// What the checkers say about the histories.
pub(crate) fn verdicts(stage: &Stage) -> Result<Vec<(&'static str, Verdict)>> {
    let judge = |(workload, scene): &(&'static Workload, Arc<Scene>)| {
        let history = stage.directory.join(format!("{}.jsonl", workload.name));
        Ok((workload.name, scene.judge(workload, &history)?))
    };
    stage.scenes.iter().map(judge).collect()
}
