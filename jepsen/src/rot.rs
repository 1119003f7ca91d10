//! Replicas that rot by the thousand, of each chunk up to all but one: none of it is served, all of it is found, and all of it
//! is made good again.
//!
//! A round: every chunk has all its replicas; some of them are damaged in their files under running servers, never the last
//! one; clients read everything and each damaged replica is read by itself, in one order or the other; then every replica of
//! every chunk has to be there again and right (`docs/promises.md`, P6).

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use gfs_client::{Chunk, Client, File, Options, Server};
use gfs_proto::Error;
use gfs_proto::id::ChunkIndex;
use gfs_tests::{Cluster, Shape, eventually};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};

use crate::measure::middle_and_longest;
use crate::nemesis::{Corruption, Fate, chunk_file};
use crate::runner::wait_until_whole;

/// Files at most, and bytes of one: some chunks are full, some are not.
const FILES_MAX: u64 = 64;
const FILE_BYTES_MAX: usize = 3 << 20;
/// Files that are read or written at the same time.
const AT_ONCE: usize = 4;
/// How long every replica may take to be right again.
const REPAIR_PATIENCE: Duration = Duration::from_secs(120);
/// How long a server may take to speak of damage, or to drop a file that it was left out with.
const NOTICE_PATIENCE: Duration = Duration::from_secs(60);
/// Of a hundred damaged replicas so many may go before anybody has looked at them: nobody writes to these files.
const GONE_PERCENT_MAX: u64 = 5;
/// Rounds in a row in which nothing can be damaged.
const IDLE_ROUNDS_MAX: u32 = 3;

/// What the rounds have come to.
#[derive(Debug, Default)]
pub struct RotReport {
    /// Rounds that were judged.
    pub rounds: u32,
    /// Damage that was done.
    pub put: u64,
    /// What servers noticed; all of it was made good in the end.
    pub found: u64,
    /// Of that, what was refused for its checksum when the replica itself was asked; the others were on their way out already.
    pub refused: u64,
    /// What was written over, or went with its file, before anybody looked.
    pub gone: u64,
    /// Bytes that clients have read, and were right.
    pub bytes: u64,
    /// From the damage until every replica was right again.
    pub repairs: Vec<Duration>,
    /// Broken promises, as sentences.
    pub findings: Vec<String>,
    /// Where everything was left, if there are findings.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for RotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (repair, repair_max) = middle_and_longest(&self.repairs);
        write!(
            f,
            "{} rounds: {} corruptions, {} found and made good ({} refused when asked), {} gone before anybody looked; \
             {} MiB read and right; {} findings; all replicas right again after p50 {repair} ms, max {repair_max} ms",
            self.rounds,
            self.put,
            self.found,
            self.refused,
            self.gone,
            self.bytes >> 20,
            self.findings.len()
        )
    }
}

/// A file and what it holds.
struct Written {
    file: File,
    content: Bytes,
}

/// A replica that was damaged.
struct Damaged<'a> {
    written: &'a Written,
    chunk: Chunk,
    server: Server,
    corruption: Corruption,
}

/// What a damaged replica said when it was asked itself.
enum Asked {
    /// That it is damaged.
    Refused,
    /// It is out of its chunk, or good again.
    Out,
    /// It gave wrong bytes: a finding.
    Served(String),
}

/// Damages replicas until so many were; `tell` hears of each round.
///
/// # Errors
/// The machinery fails, which says nothing about the system.
pub async fn rot(corruptions: u64, seed: u64, mut tell: impl FnMut(&str) -> Result<()>) -> Result<RotReport> {
    // What servers log is what shows that they have noticed.
    let shape = Shape { masters: 3, chunkservers: 4, log: Some("info"), ..Shape::default() };
    let mut cluster = Cluster::start(shape).await?;
    // What goes wrong in it is for the report.
    cluster.judge_elsewhere();
    let client = Client::connect(&cluster.masters(), Options::default()).await?;
    let mut dice = StdRng::seed_from_u64(seed);
    let files = write_files(&client, corruptions.min(FILES_MAX), &mut dice).await?;
    let (mut report, mut idle) = (RotReport::default(), 0);
    while report.put < corruptions && report.findings.is_empty() {
        let before = report.put;
        if let Err(error) = round(&mut cluster, (&files, corruptions - before), &mut dice, &mut report).await
        {
            report.findings.push(format!("round {} broke off: {error:#}", report.rounds));
        }
        report.rounds += 1;
        tell(&format!("round {}: {report}", report.rounds))?;
        idle = if report.put == before { idle + 1 } else { 0 };
        ensure!(idle < IDLE_ROUNDS_MAX, "no file of a chunk can be damaged");
    }
    if report.gone * 100 > report.put * GONE_PERCENT_MAX {
        report.findings.push(format!("of {} corruptions only {} were noticed", report.put, report.found));
    }
    report.findings.extend(cluster.unexpected_errors().into_iter().map(|line| format!("logged: {line}")));
    report.findings.extend(cluster.take_ends()?.into_iter().map(|end| end.what));
    if !report.findings.is_empty() {
        report.kept = Some(cluster.keep());
    }
    Ok(report)
}

async fn write_files(client: &Client, count: u64, dice: &mut StdRng) -> Result<Vec<Written>> {
    let contents: Vec<Bytes> = (0..count)
        .map(|_| {
            let mut content = vec![0; dice.random_range(1..=FILE_BYTES_MAX)];
            dice.fill_bytes(&mut content);
            content.into()
        })
        .collect();
    let writes = contents.into_iter().enumerate().map(async |(number, content)| {
        let file = client.create(&format!("/rot-{number}"), 0).await?;
        file.write_at(0, content.clone()).await?;
        anyhow::Ok(Written { file, content })
    });
    stream::iter(writes).buffered(AT_ONCE).try_collect().await
}

/// A round with at most so much damage.
async fn round(
    cluster: &mut Cluster,
    (files, most): (&[Written], u64),
    dice: &mut StdRng,
    report: &mut RotReport,
) -> Result<()> {
    wait_until_whole(cluster).await?;
    let started = Instant::now();
    let damaged = damage(cluster, (files, most), dice).await?;
    report.put += damaged.len() as u64;
    // Whoever comes second finds most of it on its way out.
    let readers_first = dice.random();
    if readers_first {
        read_all(cluster, files, report).await?;
    }
    for answer in all(damaged.iter().map(Damaged::ask)).await? {
        match answer {
            Asked::Refused => report.refused += 1,
            Asked::Out => {}
            Asked::Served(finding) => report.findings.push(finding),
        }
    }
    if !readers_first {
        read_all(cluster, files, report).await?;
    }
    let left = || REPAIR_PATIENCE.saturating_sub(started.elapsed());
    all(files.iter().map(|written| written.wait_until_sound(left()))).await?;
    report.repairs.push(started.elapsed());
    for Damaged { corruption, .. } in damaged {
        let noticed = async || {
            let fate = corruption.fate()?;
            ensure!(fate != Fate::Hidden, "{corruption}");
            Ok(fate)
        };
        match eventually("somebody notices damage", NOTICE_PATIENCE, noticed).await? {
            Fate::Found => report.found += 1,
            Fate::Gone | Fate::Hidden => report.gone += 1,
        }
    }
    // Rot in chunks is no reason for a server to end.
    cluster.wait_until_up().await
}

/// A client reads everything. It asks the replicas of a chunk in the same order each time, and another client in another one.
async fn read_all(cluster: &Cluster, files: &[Written], report: &mut RotReport) -> Result<()> {
    let reader = Client::connect(&cluster.masters(), Options::default()).await?;
    for bytes in all(files.iter().map(|written| written.read(&reader))).await? {
        match bytes {
            Ok(bytes) => report.bytes += bytes,
            Err(finding) => report.findings.push(finding),
        }
    }
    Ok(())
}

/// What all of these come to, a few at a time.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    stream::iter(futures).buffer_unordered(AT_ONCE).try_collect().await
}

/// Damages some replicas of each chunk that has all of them, never the last one.
async fn damage<'a>(
    cluster: &Cluster,
    (files, most): (&'a [Written], u64),
    dice: &mut StdRng,
) -> Result<Vec<Damaged<'a>>> {
    let mut damaged = Vec::new();
    for written in files {
        for chunk in written.file.chunks().await? {
            let mut replicas = chunk.replicas.clone();
            if replicas.len() < chunk.goal as usize {
                continue;
            }
            replicas.shuffle(dice);
            replicas.truncate(dice.random_range(1..replicas.len().max(2)));
            for server in replicas {
                if damaged.len() as u64 >= most {
                    return Ok(damaged);
                }
                let name = cluster.name_at(&server.address).context("no such server")?;
                let Some(path) = chunk_file(cluster, &name, chunk.handle)? else { continue };
                if let Some(corruption) = Corruption::inflict(cluster, &name, path, dice)? {
                    damaged.push(Damaged { written, chunk: chunk.clone(), server, corruption });
                }
            }
        }
    }
    Ok(damaged)
}

impl Written {
    /// Bytes read, or what was wrong with them.
    async fn read(&self, reader: &Client) -> Result<Result<u64, String>> {
        let length = self.content.len() as u64;
        let file = reader.open(self.file.path()).await?;
        let bytes = file.read_at(0, length).await.with_context(|| self.file.path().to_owned())?;
        Ok(if bytes == self.content {
            Ok(length)
        } else {
            Err(format!("a client read wrong bytes of {}", self.file.path()))
        })
    }

    /// What a chunk holds.
    fn of(&self, index: ChunkIndex) -> &[u8] {
        let size = self.file.chunk_bytes();
        let start = usize::try_from(size.start_of(index).raw()).unwrap_or(usize::MAX).min(self.content.len());
        let end = start.saturating_add(size.raw() as usize).min(self.content.len());
        &self.content[start..end]
    }

    /// Waits until every chunk has all its replicas, and each holds what was written.
    async fn wait_until_sound(&self, patience: Duration) -> Result<()> {
        let what = format!("every replica of {} is right", self.file.path());
        eventually(&what, patience, async || {
            for chunk in self.file.chunks().await? {
                let (there, goal) = (chunk.replicas.len(), chunk.goal as usize);
                ensure!(there >= goal, "{} has {there} of {goal} replicas", chunk.handle);
                for server in &chunk.replicas {
                    let read =
                        self.file.read_replica(&chunk, server, 0, self.file.chunk_bytes().raw()).await?;
                    ensure!(read.bytes == self.of(chunk.index), "{} on {}", chunk.handle, server.id);
                }
            }
            Ok(())
        })
        .await
    }
}

impl Damaged<'_> {
    /// Reads the replica itself, so that its holder has met the damage.
    async fn ask(&self) -> Result<Asked> {
        let Self { written, chunk, server, corruption } = self;
        match written.file.read_replica(chunk, server, 0, written.file.chunk_bytes().raw()).await {
            Ok(read) if read.bytes == written.of(chunk.index) => Ok(Asked::Out),
            Ok(_) => Ok(Asked::Served(format!("{} gave damaged bytes as good: {corruption}", server.id))),
            Err(Error::Corrupt { .. }) => Ok(Asked::Refused),
            // A reader met it before: the replica has left its chunk, or has come back to it anew.
            Err(_) => Ok(Asked::Out),
        }
    }
}
