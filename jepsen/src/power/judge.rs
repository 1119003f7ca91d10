//! What is there after a power cut, against what the clients were told.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use gfs_client::{Chunk, Client, Error, File, Server};
use gfs_tests::Cluster;

use super::decide::{self, Decided};
use super::load::{CELL_BYTES, LOG, NAMES, Told, cell};
use super::{Promise, Round};
use crate::workload::append::{Scan, scan};

/// How long the cluster may take until every replica can be read.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The same where a chunk may wait for a decision: then nobody will be able to read it.
const PATIENCE_WAITING: Duration = Duration::from_secs(8);
/// Pause between two looks.
pub(super) const AGAIN: Duration = Duration::from_millis(50);
/// Bytes of one read of a replica.
const PIECE_BYTES: u32 = 1 << 20;

/// Length and checksum of a file that was found good.
pub(super) type Kept = (u64, u32);

/// What was found.
#[derive(Default)]
pub(super) struct Judged {
    pub(super) findings: Vec<String>,
    pub(super) replicas: u64,
    pub(super) waiting: u64,
    pub(super) decided: u64,
    /// Files by path.
    pub(super) kept: BTreeMap<String, Kept>,
}

/// Reads everything back, replica by replica, and compares.
pub(super) async fn judge(round: &Round, told: &Told, cluster: &Cluster) -> Result<Judged> {
    let client = cluster.client().await?;
    let mut judged = Judged::default();
    let mut waiting = Vec::new();
    let mut paths = vec![round.path(LOG)];
    paths.extend(told.cells.keys().cloned().chain(told.puts.keys().cloned()));
    for path in paths {
        let file = client.open(&path).await.with_context(|| format!("{path} is gone"))?;
        let content = judged.content(&file, &path, round).await?;
        if path == round.path(LOG) {
            judged.log(&content, told, u64::from(client.chunk_bytes().raw()));
        } else if let Some(cells) = told.cells.get(&path) {
            judged.cells(&content, &path, cells);
        } else if content.waiting.is_empty() && told.puts.get(&path) != Some(&sum(&content.bytes)) {
            judged.findings.push(format!("lost: {path} was stored with {:?}", told.puts.get(&path)));
        }
        let chunk_bytes = u64::from(file.chunk_bytes().raw());
        let indices =
            content.waiting.iter().filter_map(|range| u32::try_from(range.start / chunk_bytes).ok());
        waiting.extend(indices.map(|index| (path.clone(), index)));
        if content.waiting.is_empty() {
            judged.kept.insert(path, sum(&content.bytes));
        }
    }
    if judged.waiting > 0 {
        judged.is_told(&client).await?;
        judged.decide(&client, &waiting).await?;
    }
    judged.names(round, &client, told).await?;
    Ok(judged)
}

fn sum(content: &[u8]) -> Kept {
    (content.len() as u64, crc32fast::hash(content))
}

/// Looks at what was found good before, and removes it.
pub(super) async fn look_again(round: &Round, kept: BTreeMap<String, Kept>) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let client = round.connect().await?;
    let mut directories = std::collections::BTreeSet::new();
    for (path, before) in kept {
        let file = client.open(&path).await.with_context(|| format!("{path} is gone"))?;
        let content = patiently(PATIENCE, async || {
            let length = file.len().await?;
            file.read_at(0, length).await
        });
        let now = match content.await {
            Ok(content) => sum(&content),
            // It may wait for a decision since.
            Err(_) if round.promise == Promise::Replicated => continue,
            Err(error) => return Err(error).with_context(|| format!("{path} was there before")),
        };
        if now != before {
            findings.push(format!("changed: {path} was {before:?}, is {now:?}"));
        }
        directories.extend(path.rsplit_once('/').map(|(directory, _)| directory.to_owned()));
    }
    for directory in directories {
        client.delete_tree(&directory).await?;
    }
    Ok(findings)
}

/// Tries again until it works or patience ends: servers come back one after the other. Damage is told at once.
pub(super) async fn patiently<T>(
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> gfs_client::Result<T>,
) -> gfs_client::Result<T> {
    let until = Instant::now() + patience;
    loop {
        match attempt().await {
            Err(error @ Error::Corrupt { .. }) => return Err(error),
            Err(_) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}

/// What a file holds, and which ranges of it nobody may read before somebody has decided.
#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    waiting: Vec<Range<u64>>,
}

impl Content {
    fn waits(&self, offset: u64, length: u64) -> bool {
        self.waiting.iter().any(|range| offset < range.end && range.start < offset.saturating_add(length))
    }
}

impl Judged {
    /// The content of a file, which is the same on every current replica.
    async fn content(&mut self, file: &File, path: &str, round: &Round) -> Result<Content> {
        let patience = match round.promise {
            Promise::Synced => PATIENCE,
            Promise::Replicated => PATIENCE_WAITING,
        };
        let located = patiently(patience, async || {
            let chunks = file.chunks().await?;
            // With all replicas now and then only: a server that came back late is made up for after a while.
            let enough = |chunk: &Chunk| match (round.promise, round.settles) {
                (Promise::Synced, true) => chunk.goal as usize,
                (Promise::Synced, false) => 1,
                (Promise::Replicated, _) => 0,
            };
            match chunks.iter().find(|chunk| chunk.replicas.len() < enough(chunk)) {
                Some(chunk) => Err(Error::unavailable(format!("{chunk:?}"))),
                None => Ok(chunks),
            }
        });
        let mut content = Content::default();
        for chunk in located.await.with_context(|| format!("replicas of {path}"))? {
            let start = u64::from(chunk.index.raw()) * u64::from(file.chunk_bytes().raw());
            content.bytes.resize(usize::try_from(start)?, 0);
            match self.chunk(file, &chunk, start, patience).await {
                Ok(bytes) => content.bytes.extend_from_slice(&bytes),
                Err(Error::Corrupt { .. }) => self.findings.push(format!("damage: {path}: {chunk:?}")),
                Err(error) if round.promise == Promise::Synced => {
                    bail!("{path}: {chunk:?} can't be read: {error}");
                }
                Err(_) => {
                    self.waiting += 1;
                    content.waiting.push(start..start + u64::from(file.chunk_bytes().raw()));
                }
            }
        }
        Ok(content)
    }

    /// The bytes of a chunk, from each of its replicas.
    async fn chunk(
        &mut self,
        file: &File,
        chunk: &Chunk,
        start: u64,
        patience: Duration,
    ) -> gfs_client::Result<Bytes> {
        let mut first: Option<Bytes> = None;
        for server in &chunk.replicas {
            let bytes = patiently(patience, async || replica(file, start, server).await).await?;
            self.replicas += 1;
            match &first {
                None => first = Some(bytes),
                Some(other) if *other == bytes => {}
                Some(_) => self.findings.push(format!("different: replicas of {chunk:?}")),
            }
        }
        first.ok_or_else(|| Error::unavailable("it has no current replica"))
    }

    /// What waits for a decision is counted by the masters, not merely silent.
    async fn is_told(&mut self, client: &Client) -> Result<()> {
        let waiting = self.waiting;
        let told = patiently(PATIENCE, async || {
            let status = client.cluster_status().await?;
            match status.chunks_without_replica {
                told if told < waiting => Err(Error::unavailable(format!("{told} chunks have no replica"))),
                told => Ok(told),
            }
        });
        if let Err(error) = told.await {
            self.findings
                .push(format!("silent: {waiting} chunks can't be read, and the masters say: {error}"));
        }
        Ok(())
    }

    /// Each gets a decision, if it waits for one.
    async fn decide(&mut self, client: &Client, waiting: &[(String, u32)]) -> Result<()> {
        for (path, index) in waiting {
            let file = client.open(path).await?;
            match decide::decide(client, &file, path, *index).await.with_context(|| path.clone())? {
                Decided::Healed => {}
                Decided::By => self.decided += 1,
                Decided::Broken(what) => self.findings.push(what),
            }
        }
        Ok(())
    }

    /// Every acknowledged record is at its place, once, and nothing else is there; what was read before is still so.
    fn log(&mut self, content: &Content, told: &Told, chunk_bytes: u64) {
        let mut records = Vec::new();
        for (index, chunk) in
            (0_u64..).zip(content.bytes.chunks(usize::try_from(chunk_bytes).unwrap_or(usize::MAX)))
        {
            let Scan { records: found, damage, gaps, .. } = scan(chunk, index * chunk_bytes);
            records.extend(found);
            if !damage.is_empty() || !gaps.is_empty() {
                self.findings.push(format!("damage: chunk {index} of the log: {damage:?}, gaps {gaps:?}"));
            }
        }
        let mut places = BTreeMap::new();
        for (at, record) in &records {
            if let Some((other, _)) = places.insert((record.producer, record.sequence), (*at, *record)) {
                self.findings.push(format!("twice: {record:?} at {other} and {at}"));
            }
        }
        for (record, place) in &told.appends {
            match (places.remove(&(record.producer, record.sequence)), place) {
                (Some((at, there)), Some(place)) if there == *record && at == *place => {}
                (Some((_, there)), None) if there == *record => {}
                (None, None) => {}
                (None, Some(place)) if content.waits(*place, record.length.into()) => {}
                (there, _) => {
                    self.findings.push(format!("lost: {record:?} acknowledged at {place:?}, is {there:?}"))
                }
            }
        }
        self.findings.extend(places.keys().map(|id| format!("phantom: nobody appended {id:?}")));
        for (from, bytes) in &told.seen {
            let start = usize::try_from(*from).unwrap_or(usize::MAX);
            let now = content.bytes.get(start..start.saturating_add(bytes.len()));
            if now != Some(bytes) && !content.waits(*from, bytes.len() as u64) {
                self.findings.push(format!(
                    "taken back: {} bytes at {from} were read, and are not there",
                    bytes.len()
                ));
            }
        }
    }

    fn cells(&mut self, content: &Content, path: &str, cells: &BTreeMap<u64, Vec<u64>>) {
        let hole = vec![0; CELL_BYTES];
        for (index, may_hold) in cells {
            let start = usize::try_from(*index).unwrap_or(usize::MAX) * CELL_BYTES;
            let there = content.bytes.get(start..start + CELL_BYTES).unwrap_or(&hole);
            let fits = |tag: &u64| if *tag == 0 { there == hole } else { there == cell(*tag, *index) };
            if !may_hold.iter().any(fits) && !content.waits(start as u64, CELL_BYTES as u64) {
                let begins = there.get(..16);
                self.findings.push(format!(
                    "lost: cell {index} of {path} may be {may_hold:?}, begins with {begins:?}"
                ));
            }
        }
    }

    async fn names(&mut self, round: &Round, client: &Client, told: &Told) -> Result<()> {
        let entries: Vec<_> = client.list(&round.path(NAMES)).try_collect().await?;
        let there: std::collections::BTreeSet<String> = entries.into_iter().map(|entry| entry.name).collect();
        for name in told.names.difference(&there) {
            self.findings.push(format!("lost: the name {name}"));
        }
        for name in there.difference(&told.names).filter(|name| !told.unsure.contains(*name)) {
            self.findings.push(format!("phantom: the name {name}"));
        }
        Ok(())
    }
}

/// All that a server's replica of a chunk holds. Its version is looked up for each piece: a restart may raise it meanwhile.
pub(super) async fn replica(file: &File, start: u64, server: &Server) -> gfs_client::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while bytes.len() < file.chunk_bytes().raw() as usize {
        let piece = file.read_from(server.id, start + bytes.len() as u64, PIECE_BYTES).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}
