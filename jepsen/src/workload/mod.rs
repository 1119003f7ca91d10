//! What the clients do. A workload is one file here, one checker, and one line in [`WORKLOADS`].

pub(crate) mod append;
mod bank;
mod cells;
mod mixed;
mod namespace;
mod retry;
mod shadow;
mod snapshot;
mod speaker;
mod trash;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::FutureExt;
use futures::future::{BoxFuture, LocalBoxFuture};
use gfs_client::{Client, Options};
use gfs_proto::id::ServerId;
use gfs_proto::{Environment, Error};
use gfs_tests::Shape;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::nemesis::Needs;
use crate::outcome::Outcome;
use crate::recorder::Recorder;
use crate::verdict::Verdict;

/// How long a call goes on without progress: short enough for unknown outcomes to occur.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last look may take.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// The same for all chunks of a file one after the other.
const LAYOUT_PATIENCE: Duration = Duration::from_secs(180);

/// Pause between two attempts of the last look.
const AGAIN: Duration = Duration::from_millis(100);

/// A workload and its judge.
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What must be acknowledged, at least: with less the run proves nothing.
    pub(crate) minimum: Minimum,
    /// Makes what the clients need.
    pub prepare: fn(Arc<Scene>) -> LocalBoxFuture<'static, Result<()>>,
    /// What one client does until it is told to stop.
    pub client: fn(Arc<Scene>, u64) -> BoxFuture<'static, Result<()>>,
    /// Looks at everything, after the faults.
    pub finish: fn(Arc<Scene>) -> LocalBoxFuture<'static, Result<()>>,
    /// Judges the history.
    pub check: fn(&str) -> Result<Verdict>,
    /// What its cluster has beside the usual.
    pub(crate) tune: fn(&mut Shape),
    /// Whether its files have anything in them: else no chunk can be damaged.
    pub(crate) writes_chunks: bool,
}

impl Workload {
    /// Whether what a fault needs is there as far as the workload has a say in it.
    pub(crate) fn can_suffer(&self, needs: Needs) -> bool {
        self.writes_chunks || needs != Needs::Chunks
    }

    /// What most workloads have in common.
    const PLAIN: Self = Self {
        name: "",
        minimum: Minimum { all_per_second: 1, quiet_per_second: 1 },
        prepare: |_| async { Ok(()) }.boxed_local(),
        client: |_, _| async { Ok(()) }.boxed(),
        finish: |_| async { Ok(()) }.boxed_local(),
        check: |_| Ok(Verdict::new()),
        tune: |_| (),
        writes_chunks: true,
    };
}

/// Acknowledged operations per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Minimum {
    /// Over the whole time, faults or not.
    pub(crate) all_per_second: u64,
    /// In the middle one of the seconds that no fault touched.
    pub(crate) quiet_per_second: u64,
}

/// Every workload.
pub const WORKLOADS: &[Workload] = &[
    append::WORKLOAD,
    cells::WORKLOAD,
    namespace::WORKLOAD,
    bank::WORKLOAD,
    snapshot::WORKLOAD,
    shadow::WORKLOAD,
    trash::WORKLOAD,
    retry::APPENDS,
    retry::CELLS,
    retry::NAMES,
    mixed::WORKLOAD,
];

/// How much the clients of a scene do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Of all their choices.
    pub seed: u64,
    /// Pause of a client after each operation.
    pub think: Duration,
    /// Whether what is deleted may have gone from the trash before the run is over.
    pub trash_expires: bool,
}

/// What the clients of a run share.
pub struct Scene {
    /// The doors through which the clients go.
    pub(crate) environment: Environment,
    pub(crate) masters: Vec<String>,
    /// Shadow masters.
    pub(crate) shadows: Vec<String>,
    pub(crate) recorder: Recorder,
    pub(crate) seed: u64,
    /// Set when the time is over.
    pub(crate) stop: Arc<AtomicBool>,
    /// Operations begun, by which workloads go on to new rounds.
    pub(crate) begun: AtomicU64,
    /// Whether what is deleted may have gone from the trash before the run is over.
    pub(crate) trash_expires: bool,
    /// Operations of each client, if they are counted.
    pub(crate) operations: Option<u64>,
    /// The scenes of workloads that run side by side; behind a lock because whoever comes first makes them.
    pub(crate) parts: Mutex<BTreeMap<&'static str, Arc<Self>>>,
}

impl Scene {
    /// The scene of one of several workloads on the same cluster: its lines in the history have its name.
    fn part(&self, name: &'static str) -> Arc<Self> {
        let make = || {
            Arc::new(Self {
                environment: self.environment.clone(),
                masters: self.masters.clone(),
                shadows: self.shadows.clone(),
                recorder: self.recorder.part(name),
                // Not the dice of another part: sessions are told apart by what is drawn.
                seed: self.seed.wrapping_add(u64::from(crc32fast::hash(name.as_bytes()))),
                stop: self.stop.clone(),
                begun: AtomicU64::new(0),
                trash_expires: self.trash_expires,
                operations: self.operations,
                parts: Mutex::default(),
            })
        };
        self.parts.lock().entry(name).or_insert_with(make).clone()
    }

    /// A scene without shadows and with no bound but the time.
    pub(crate) fn new(masters: Vec<String>, recorder: Recorder, seed: u64) -> Self {
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
        let (shadows, parts) = (Vec::new(), Mutex::default());
        let environment = Environment::real();
        Self {
            environment,
            masters,
            shadows,
            recorder,
            seed,
            stop,
            begun,
            trash_expires: false,
            operations: None,
            parts,
        }
    }

    /// A scene of clients that go through `environment` to these masters, and write their history to a new file.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn over(
        environment: Environment,
        masters: Vec<String>,
        history: &Path,
        load: Load,
    ) -> Result<Arc<Self>> {
        let recorder = Recorder::create_with(history, environment.clock.clone(), load.think)?;
        let trash_expires = load.trash_expires;
        Ok(Arc::new(Self { environment, trash_expires, ..Self::new(masters, recorder, load.seed) }))
    }

    /// Tells the clients that the time is over. What is called from now on is no load any more.
    ///
    /// # Errors
    /// The history can't be written.
    pub fn stop(&self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.recorder.nemesis("heal")
    }

    /// Writes out and judges the history that was written to this file.
    ///
    /// # Errors
    /// The file can't be written or read, or is no history.
    pub fn judge(&self, workload: &Workload, history: &Path) -> Result<Verdict> {
        self.recorder.finish()?;
        (workload.check)(&std::fs::read_to_string(history)?)
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// How many operations had been begun before this one.
    fn tick(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// How many operations have been begun.
    fn ticks(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether a client that has done so many operations does another.
    pub(crate) fn goes_on_after(&self, done: u64) -> bool {
        self.goes_on() && self.operations.is_none_or(|operations| done < operations)
    }

    /// The dice of one client.
    fn dice(&self, client: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ client)
    }

    async fn connect(&self, patience: Duration) -> Result<Client> {
        self.connect_over(&self.environment, patience).await
    }

    /// The same over a given network.
    async fn connect_over(&self, environment: &Environment, patience: Duration) -> Result<Client> {
        let options = Options { patience, ..Options::default() };
        Ok(Client::connect_with(environment, &self.masters, options).await?)
    }
}

/// After the faults everything works.
fn demand<T>(outcome: &Outcome<T>, what: &str) -> Result<()> {
    match outcome {
        Outcome::Ok { .. } => Ok(()),
        Outcome::Fail { reason } | Outcome::Info { reason } => bail!("{what} came to nothing: {reason}"),
    }
}

/// Reads all that a server's replica of a chunk holds. A replica that has just become a member may not be validated yet.
async fn read_replica(
    file: &gfs_client::File,
    server: u64,
    start: u64,
    chunk_bytes: u32,
) -> gfs_client::Result<Vec<u8>> {
    patiently(async || read_once(file, server, start, chunk_bytes).await).await
}

/// The same without patience.
async fn read_once(
    file: &gfs_client::File,
    server: u64,
    start: u64,
    chunk_bytes: u32,
) -> gfs_client::Result<Vec<u8>> {
    const PIECE_BYTES: u32 = 256 << 10;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < u64::from(chunk_bytes) {
        let at = start + bytes.len() as u64;
        let piece = file.read_from(ServerId::from_raw(server), at, PIECE_BYTES).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Current holders of each chunk, when every chunk has as many as it should and each of them can be read: damage that
/// nobody has met is found now, and then there are others. Each chunk may take its time: what a killed primary has left
/// undecided is decided when somebody reads it, chunk by chunk.
async fn layout(file: &gfs_client::File) -> gfs_client::Result<Vec<Vec<u64>>> {
    let until = Instant::now() + LAYOUT_PATIENCE;
    let count = patiently(async || file.chunks().await).await?.len();
    for at in 0..count {
        let left = until.saturating_duration_since(Instant::now()).min(LAST_PATIENCE);
        let read_it = async || match file.chunks().await?.get(at) {
            Some(chunk) => read_all_replicas(file, chunk).await,
            None => Err(Error::unavailable(format!("chunk {at} is not there, and there were {count}"))),
        };
        within(left, read_it).await?;
    }
    // What one chunk has waited for may have changed another, and the last append of unknown outcome may have added one.
    patiently(async || {
        let mut layout = Vec::new();
        for chunk in file.chunks().await? {
            layout.push(read_all_replicas(file, &chunk).await?);
        }
        Ok(layout)
    })
    .await
}

/// Reads every replica of one chunk, if it has as many as it should; whose they are.
async fn read_all_replicas(
    file: &gfs_client::File,
    chunk: &gfs_client::Chunk,
) -> gfs_client::Result<Vec<u64>> {
    let (index, count) = (u64::from(chunk.index.raw()), chunk.replicas.len());
    if count < chunk.goal as usize {
        return Err(Error::unavailable(format!("chunk {index} has {count} of {} replicas", chunk.goal)));
    }
    let chunk_bytes = file.chunk_bytes().raw();
    for replica in &chunk.replicas {
        read_once(file, replica.id.raw(), index * u64::from(chunk_bytes), chunk_bytes).await?;
    }
    Ok(chunk.replicas.iter().map(|replica| replica.id.raw()).collect())
}

/// Tries again until it works or the patience of the last look ends: faults have an aftermath.
async fn patiently<T>(attempt: impl AsyncFnMut() -> gfs_client::Result<T>) -> gfs_client::Result<T> {
    within(LAST_PATIENCE, attempt).await
}

/// The same for another time.
async fn within<T>(
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> gfs_client::Result<T>,
) -> gfs_client::Result<T> {
    let until = Instant::now() + patience;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}
