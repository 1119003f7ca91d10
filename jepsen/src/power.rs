//! Power cuts of all servers at once, round after round, each under load: nothing that was acknowledged is lost.
//!
//! A round: clients append records, write cells, change names, put large files and read back (`load`); the power of every
//! server goes in the middle of it, now and then a second time while they recover; the clients go on with what they were
//! at when the servers are back, under the same request ids; then every replica of every chunk is read and judged (`judge`).
//! What a round has made is looked at again after the next cut, and removed.

mod decide;
mod judge;
mod load;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gfs_client::{Client, Durability, Options};
use gfs_tests::{Cluster, Shape, eventually};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::measure::middle_and_longest;
use judge::Kept;
use load::Told;

/// Bytes of each server's disk: sparse, and more than the headroom that a chunkserver leaves free.
pub(crate) const DISK_BYTES: u64 = 3 << 30;
/// How long a client goes on with a call: over the cut and everybody's recovery.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where what it waits for may be lost with the power.
const PATIENCE_REPLICATED: Duration = Duration::from_secs(15);
/// How long clients may take to end.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(90);
/// How long the clients work before the power goes.
const LOAD_MS: std::ops::Range<u64> = 300..1500;
/// One of so many cuts is followed by a second one, so long after the servers were started.
const SECOND_CUT_ONE_IN: u32 = 5;
const SECOND_CUT_MS: std::ops::Range<u64> = 50..1500;
/// One of so many rounds waits for all replicas of every chunk.
const SETTLES_ONE_IN: u32 = 8;
/// Fewer acknowledged appends before the cut prove nothing; so long they may take on a machine that has much else to do.
const ACKNOWLEDGED_MIN: u64 = 10;
const LOAD_PATIENCE: Duration = Duration::from_secs(30);

/// What the promise is that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// An acknowledgement survives the power cut.
    Synced,
    /// It may not, but then the chunk says so: nothing is silently shortened or changed.
    Replicated,
}

/// What a series of rounds has come to.
#[derive(Debug, Default)]
pub struct PowerReport {
    /// Rounds that were judged.
    pub rounds: u32,
    /// Power cuts, second ones included.
    pub cuts: u32,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Replicas of chunks that were read and compared.
    pub replicas: u64,
    /// Chunks that could not be read: with [`Promise::Replicated`] only.
    pub waiting: u64,
    /// Those of them that waited for a decision and got it.
    pub decided: u64,
    /// From the start of the processes until every chunk has its replicas.
    pub recoveries: Vec<Duration>,
    /// A whole round.
    pub times: Vec<Duration>,
    /// Broken promises, as sentences.
    pub findings: Vec<String>,
    /// Where everything was left, if there are findings.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for PowerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (recovery, recovery_max) = middle_and_longest(&self.recoveries);
        let (round, round_max) = middle_and_longest(&self.times);
        write!(
            f,
            "{} rounds, {} power cuts of all servers: {} acknowledged, {} unknown, {} replicas compared, {} chunks not read, {} decided; \
             {} findings; whole again after p50 {recovery} ms, max {recovery_max} ms; a round p50 {round} ms, max {round_max} ms",
            self.rounds,
            self.cuts,
            self.acknowledged,
            self.unknown,
            self.replicas,
            self.waiting,
            self.decided,
            self.findings.len()
        )
    }
}

/// What the clients of a round share.
pub(crate) struct Round {
    masters: Vec<String>,
    directory: String,
    promise: Promise,
    seed: u64,
    stop: AtomicBool,
    /// Appends that were acknowledged so far.
    appended: AtomicU64,
    /// It is judged when every chunk has all its replicas again.
    settles: bool,
}

impl Round {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
    fn dice(&self, client: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ client)
    }
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }
    async fn connect(&self) -> Result<Client> {
        let (durability, patience) = match self.promise {
            Promise::Synced => (Durability::Synced, PATIENCE),
            Promise::Replicated => (Durability::Replicated, PATIENCE_REPLICATED),
        };
        Ok(Client::connect(&self.masters, Options { durability, patience, ..Options::default() }).await?)
    }
}

/// A cluster whose power goes.
struct Trial {
    cluster: Cluster,
    promise: Promise,
    dice: StdRng,
    report: PowerReport,
    /// Of the round before, to be looked at again.
    kept: BTreeMap<String, Kept>,
}

/// Cuts the power so many times; `tell` hears of each round.
///
/// # Errors
/// The machinery fails, which says nothing about the system.
pub async fn power(
    rounds: u32,
    promise: Promise,
    seed: u64,
    mut tell: impl FnMut(&str) -> Result<()>,
) -> Result<PowerReport> {
    let shape =
        Shape { masters: 3, trash: Duration::from_secs(1), disk_bytes: Some(DISK_BYTES), ..Shape::default() };
    let mut cluster = Cluster::start(shape).await?;
    // What goes wrong in it is for the report.
    cluster.judge_elsewhere();
    let report = PowerReport::default();
    let dice = StdRng::seed_from_u64(seed);
    let mut trial = Trial { cluster, promise, dice, report, kept: BTreeMap::new() };
    for number in 0..rounds {
        let started = Instant::now();
        let outcome = trial.round(number).await;
        trial.report.times.push(started.elapsed());
        if let Err(error) = outcome {
            trial.report.findings.push(format!("round {number} broke off: {error:#}"));
        }
        trial.read_logs();
        trial.report.findings.extend(trial.cluster.take_ends()?.into_iter().map(|end| end.what));
        trial.report.rounds += 1;
        tell(&format!("round {number}: {}", trial.report))?;
        if !trial.report.findings.is_empty() {
            trial.report.kept = Some(trial.cluster.keep());
            break;
        }
    }
    Ok(trial.report)
}

impl Trial {
    async fn round(&mut self, number: u32) -> Result<()> {
        let round = Arc::new(Round {
            masters: self.cluster.masters(),
            directory: format!("/round-{number}"),
            promise: self.promise,
            seed: self.dice.random(),
            stop: AtomicBool::new(false),
            appended: AtomicU64::new(0),
            settles: self.dice.random_range(0..SETTLES_ONE_IN) == 0,
        });
        let mut clients = load::start(&round).await?;
        self.wait(LOAD_MS).await;
        let enough = async || {
            ensure!(round.appended.load(Ordering::Relaxed) >= ACKNOWLEDGED_MIN, "too little load");
            Ok(())
        };
        eventually("clients have got to work", LOAD_PATIENCE, enough).await?;
        self.cut()?;
        round.stop.store(true, Ordering::Relaxed);
        let started = Instant::now();
        self.cluster.restart_all()?;
        if self.dice.random_range(0..SECOND_CUT_ONE_IN) == 0 {
            self.wait(SECOND_CUT_MS).await;
            self.cut()?;
            self.cluster.restart_all()?;
        }
        let told = tokio::time::timeout(CLIENTS_PATIENCE, collect(&mut clients));
        let told = told.await.context("a client does not end")??;
        self.cluster.wait_until_up().await?;
        let judged = judge::judge(&round, &told, &self.cluster).await?;
        self.report.recoveries.push(started.elapsed());
        self.report.acknowledged += told.acknowledged;
        self.report.unknown += told.unknown;
        self.report.replicas += judged.replicas;
        self.report.waiting += judged.waiting;
        self.report.decided += judged.decided;
        self.report.findings.extend(told.findings.iter().cloned().chain(judged.findings));
        let before = std::mem::replace(&mut self.kept, judged.kept);
        self.report.findings.extend(judge::look_again(&round, before).await?);
        Ok(())
    }

    /// The servers see the end of their disks, or stand still when it comes.
    fn cut(&mut self) -> Result<()> {
        if self.dice.random() {
            self.cluster.freeze_all()?;
        }
        self.report.cuts += 1;
        self.cluster.cut_power()
    }

    async fn wait(&mut self, range: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.dice.random_range(range))).await;
    }

    /// A panic is a finding; so is a checksum that does not match, since nothing has damaged a disk.
    fn read_logs(&mut self) {
        let errors = self.cluster.unexpected_errors();
        let panics = errors.into_iter().filter(|line| line.contains("panicked at"));
        self.report.findings.extend(panics.map(|line| format!("panic: {line}")));
        // What a dying disk answers is taken for damage, too.
        let dying = self.cluster.logged("read failed").concat();
        let damaged = self.cluster.logged("checksum mismatch").into_iter().filter(|line| {
            let mut words = line.split_whitespace();
            !words.any(|word| word.starts_with("handle=") && dying.contains(&format!("{word} ")))
        });
        self.report.findings.extend(damaged.map(|line| format!("damage: {line}")));
    }
}

async fn collect(clients: &mut JoinSet<Result<Told>>) -> Result<Told> {
    let mut all = Told::default();
    while let Some(told) = clients.join_next().await {
        all.add(told??);
    }
    Ok(all)
}
