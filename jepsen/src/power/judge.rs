//! What is there after a power cut, against what the clients were told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use gfs_client::{Chunk, Client, Error, File, Server};
use gfs_tests::Cluster;

use super::load::{CELL_BYTES, LOG, NAMES, Told, cell};
use super::{Promise, Round};
use crate::workload::append::{Scan, scan};

/// How long the cluster may take until every replica can be read.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const AGAIN: Duration = Duration::from_millis(50);
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
    /// Files by path.
    pub(super) kept: BTreeMap<String, Kept>,
}

/// Reads everything back, replica by replica, and compares.
pub(super) async fn judge(round: &Round, told: &Told, cluster: &Cluster) -> Result<Judged> {
    let client = cluster.client().await?;
    let mut judged = Judged::default();
    let mut paths = vec![round.path(LOG)];
    paths.extend(told.cells.keys().cloned().chain(told.puts.keys().cloned()));
    for path in paths {
        let file = client.open(&path).await.with_context(|| format!("{path} is gone"))?;
        let Some(content) = judged.content(&file, &path, round).await? else {
            continue;
        };
        if path == round.path(LOG) {
            judged.log(&content, told, u64::from(client.chunk_bytes().raw()));
        } else if let Some(cells) = told.cells.get(&path) {
            judged.cells(&content, &path, cells);
        } else if told.puts.get(&path) != Some(&sum(&content)) {
            judged.findings.push(format!("lost: {path} was stored with {:?}", told.puts.get(&path)));
        }
        judged.kept.insert(path, sum(&content));
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
        let content = patiently(async || {
            let length = file.len().await?;
            file.read_at(0, length).await
        });
        let now = sum(&content.await?);
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
async fn patiently<T>(mut attempt: impl AsyncFnMut() -> gfs_client::Result<T>) -> gfs_client::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Err(error @ Error::Corrupt { .. }) => return Err(error),
            Err(_) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}

impl Judged {
    /// The content of a file, which is the same on every replica. `None` if it waits for a decision.
    async fn content(&mut self, file: &File, path: &str, round: &Round) -> Result<Option<Vec<u8>>> {
        let whole = async || {
            let chunks = file.chunks().await?;
            // With all replicas now and then only: a server that came back late is made up for after a while.
            let enough = |chunk: &Chunk| if round.settles { chunk.goal as usize } else { 1 };
            match chunks.iter().find(|chunk| chunk.replicas.len() < enough(chunk)) {
                Some(chunk) => Err(Error::unavailable(format!("{chunk:?}"))),
                None => Ok(chunks),
            }
        };
        let chunks = match round.promise {
            Promise::Synced => patiently(whole).await.with_context(|| format!("replicas of {path}"))?,
            Promise::Replicated => return self.waits(file, path).await,
        };
        let mut content = Vec::new();
        for chunk in &chunks {
            let start = u64::from(chunk.index.raw()) * u64::from(file.chunk_bytes().raw());
            let mut first: Option<Bytes> = None;
            for server in &chunk.replicas {
                let bytes = match patiently(async || replica(file, start, server).await).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        bail!("{path}: the replica of {chunk:?} on {server:?} can't be read: {error}");
                    }
                };
                self.replicas += 1;
                match &first {
                    None => first = Some(bytes),
                    Some(other) if *other == bytes => {}
                    Some(_) => self.findings.push(format!("different: {path}: replicas of {chunk:?}")),
                }
            }
            content.resize(usize::try_from(start)?, 0);
            content.extend_from_slice(&first.unwrap_or_default());
        }
        Ok(Some(content))
    }

    /// Every acknowledged record is at its place, once, and nothing else is there; what was read before is still so.
    fn log(&mut self, content: &[u8], told: &Told, chunk_bytes: u64) {
        let mut records = Vec::new();
        for (index, chunk) in
            (0_u64..).zip(content.chunks(usize::try_from(chunk_bytes).unwrap_or(usize::MAX)))
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
                (there, _) => {
                    self.findings.push(format!("lost: {record:?} acknowledged at {place:?}, is {there:?}"))
                }
            }
        }
        self.findings.extend(places.keys().map(|id| format!("phantom: nobody appended {id:?}")));
        for (from, bytes) in &told.seen {
            let from = usize::try_from(*from).unwrap_or(usize::MAX);
            let now = content.get(from..from + bytes.len());
            if now != Some(bytes) {
                self.findings.push(format!(
                    "taken back: {} bytes at {from} were read, and are not there",
                    bytes.len()
                ));
            }
        }
    }

    fn cells(&mut self, content: &[u8], path: &str, cells: &BTreeMap<u64, Vec<u64>>) {
        let hole = vec![0; CELL_BYTES];
        for (index, may_hold) in cells {
            let start = usize::try_from(*index).unwrap_or(usize::MAX) * CELL_BYTES;
            let there = content.get(start..start + CELL_BYTES).unwrap_or(&hole);
            let fits = |tag: &u64| if *tag == 0 { there == hole } else { there == cell(*tag, *index) };
            if !may_hold.iter().any(fits) {
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

    async fn waits(&mut self, _file: &File, path: &str) -> Result<Option<Vec<u8>>> {
        bail!("{path}: not judged yet")
    }
}

/// All that a server's replica of a chunk holds. Its version is looked up for each piece: a restart may raise it meanwhile.
async fn replica(file: &File, start: u64, server: &Server) -> gfs_client::Result<Bytes> {
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
