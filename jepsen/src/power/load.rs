//! What the clients of a round do, and what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use gfs_client::record::{self, RecordId};
use gfs_client::{Client, Error, File, PutOptions, TransferError};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use tokio::task::JoinSet;

use super::{Promise, Round};
use crate::check::append::Record;
use crate::outcome::Outcome;

const APPENDERS: u64 = 4;
const WRITERS: u64 = 2;
/// The file of all records of a round.
pub(super) const LOG: &str = "log";
/// The directory of the names that change.
pub(super) const NAMES: &str = "names";
/// Payloads: mostly such as go along in a request and in the chunkservers' logs; some go straight to the files.
const SMALL_BYTES: std::ops::Range<usize> = 0..3000;
const LARGE_BYTES: std::ops::Range<usize> = 60_000..200_000;
const LARGE_PERCENT: u32 = 8;
/// Unit in which the written files are judged.
pub(super) const CELL_BYTES: usize = 512;
/// Cells of a written file: more than one chunk.
const CELLS: u64 = 2600;
const CELLS_WRITTEN: std::ops::Range<u64> = 1..40;
const CELLS_WRITTEN_LARGE: std::ops::Range<u64> = 150..600;
const PUT_BYTES: std::ops::Range<usize> = 1_500_000..4_000_000;
const READ_BYTES: u64 = 64 << 10;

/// What the clients of a round were told.
#[derive(Default)]
pub(super) struct Told {
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    pub(super) findings: Vec<String>,
    /// Every record that was sent; where it is, if that was acknowledged.
    pub(super) appends: Vec<(Record, Option<u64>)>,
    /// By file: what each cell may hold. The first is the last that was acknowledged, 0 is a hole.
    pub(super) cells: BTreeMap<String, BTreeMap<u64, Vec<u64>>>,
    /// Names that are there, and names of which nobody knows.
    pub(super) names: BTreeSet<String>,
    pub(super) unsure: BTreeSet<String>,
    /// Files that were stored: length and checksum.
    pub(super) puts: BTreeMap<String, (u64, u32)>,
    /// What readers have seen of the log.
    pub(super) seen: Vec<(u64, Bytes)>,
}

impl Told {
    pub(super) fn add(&mut self, mut other: Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.findings.append(&mut other.findings);
        self.appends.append(&mut other.appends);
        self.cells.append(&mut other.cells);
        self.names.append(&mut other.names);
        self.unsure.append(&mut other.unsure);
        self.puts.append(&mut other.puts);
        self.seen.append(&mut other.seen);
    }

    /// Notes the end of a call; its value if it was acknowledged.
    fn note<T>(&mut self, result: Result<T, Error>) -> Outcome<T> {
        let outcome = Outcome::of_mutation(result);
        match &outcome {
            Outcome::Ok { .. } => self.acknowledged += 1,
            Outcome::Info { .. } => self.unknown += 1,
            Outcome::Fail { reason } => self.findings.push(format!("refused: {reason}")),
        }
        outcome
    }
}

/// Makes what the clients need and starts them.
pub(super) async fn start(round: &Arc<Round>) -> Result<JoinSet<Result<Told>>> {
    let client = round.connect().await?;
    client.mkdir(&round.directory).await?;
    client.mkdir(&round.path(NAMES)).await?;
    client.create(&round.path(LOG), 0).await?;
    let mut clients = JoinSet::new();
    for number in 0..APPENDERS {
        clients.spawn(append(round.clone(), number));
    }
    for number in 0..WRITERS {
        clients.spawn(write(round.clone(), number));
    }
    clients.spawn(rename(round.clone()));
    clients.spawn(put(round.clone()));
    clients.spawn(read(round.clone()));
    Ok(clients)
}

/// Bytes that look like nothing else.
fn noise(dice: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    dice.fill(&mut bytes[..]);
    bytes
}

async fn append(round: Arc<Round>, number: u64) -> Result<Told> {
    let mut told = Told::default();
    let mut dice = round.dice(number);
    let file = round.connect().await?.open(&round.path(LOG)).await?;
    for sequence in 1.. {
        if !round.goes_on() {
            break;
        }
        let large = dice.random_range(0..100) < LARGE_PERCENT;
        let length = dice.random_range(if large { LARGE_BYTES } else { SMALL_BYTES });
        let payload = noise(&mut dice, length);
        let bytes = record::encode(RecordId { producer: number, sequence }, &payload)
            .context("the payload is too large")?;
        let (length, crc) = (u32::try_from(bytes.len())?, crc32fast::hash(&payload));
        let record = Record { producer: number, sequence, length, crc };
        let place = match told.note(file.append(bytes).await) {
            Outcome::Ok { value } => {
                round.appended.fetch_add(1, Ordering::Relaxed);
                Some(value)
            }
            Outcome::Fail { .. } | Outcome::Info { .. } => None,
        };
        told.appends.push((record, place));
    }
    Ok(told)
}

/// The bytes of a cell: its tag and place, again and again.
pub(super) fn cell(tag: u64, index: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(CELL_BYTES);
    while bytes.len() < CELL_BYTES {
        bytes.put_u64_le(tag);
        bytes.put_u64_le(index);
    }
    bytes.freeze()
}

async fn write(round: Arc<Round>, number: u64) -> Result<Told> {
    let mut told = Told::default();
    let mut dice = round.dice(100 + number);
    let path = round.path(&format!("cells-{number}"));
    let file = round.connect().await?.create(&path, 0).await?;
    let mut cells: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for tag in 1_u64.. {
        if !round.goes_on() {
            break;
        }
        let large = dice.random_range(0..100) < LARGE_PERCENT;
        let count = dice.random_range(if large { CELLS_WRITTEN_LARGE } else { CELLS_WRITTEN });
        let first = dice.random_range(0..CELLS);
        let mut bytes = BytesMut::new();
        (first..first + count).for_each(|index| bytes.extend_from_slice(&cell(tag, index)));
        let written = told.note(file.write_at(first * CELL_BYTES as u64, bytes.freeze()).await);
        for index in first..first + count {
            let may_hold = cells.entry(index).or_insert_with(|| vec![0]);
            match &written {
                Outcome::Ok { .. } => *may_hold = vec![tag],
                // It may also still come, so what is written later does not settle it.
                Outcome::Info { .. } => may_hold.push(tag),
                Outcome::Fail { .. } => {}
            }
        }
        if matches!(written, Outcome::Info { .. }) {
            break;
        }
    }
    told.cells.insert(path, cells);
    Ok(told)
}

/// Creates, renames and deletes files.
async fn rename(round: Arc<Round>) -> Result<Told> {
    let mut told = Told::default();
    let mut dice = round.dice(200);
    let client = round.connect().await?;
    let path = |name: &str| round.path(&format!("{NAMES}/{name}"));
    for number in 0_u64.. {
        if !round.goes_on() {
            break;
        }
        let (old, new) = (told.names.iter().choose(&mut dice).cloned(), format!("n{number}"));
        let (outcome, gone, come) = match (dice.random_range(0..4), old) {
            (0, Some(old)) => (told.note(client.delete(&path(&old)).await), Some(old), None),
            (1, Some(old)) => {
                (told.note(client.rename(&path(&old), &path(&new)).await), Some(old), Some(new))
            }
            (2, _) => (told.note(client.mkdir(&path(&new)).await.map(drop)), None, Some(new)),
            _ => (told.note(client.create(&path(&new), 0).await.map(drop)), None, Some(new)),
        };
        match outcome {
            Outcome::Ok { .. } => {
                gone.iter().for_each(|name| {
                    told.names.remove(name);
                });
                told.names.extend(come);
            }
            Outcome::Info { .. } => told.unsure.extend(gone.into_iter().chain(come)),
            Outcome::Fail { .. } => {}
        }
        told.names.retain(|name| !told.unsure.contains(name));
    }
    Ok(told)
}

/// Stores files of several chunks.
async fn put(round: Arc<Round>) -> Result<Told> {
    let mut told = Told::default();
    let mut dice = round.dice(300);
    let client: Client = round.connect().await?;
    for number in 0_u64.. {
        if !round.goes_on() {
            break;
        }
        let length = dice.random_range(PUT_BYTES);
        let bytes = noise(&mut dice, length);
        let path = round.path(&format!("put-{number}"));
        match client.put(&bytes[..], &path, PutOptions::default(), |_| {}).await {
            Ok(length) => {
                told.acknowledged += 1;
                told.puts.insert(path, (length, crc32fast::hash(&bytes)));
            }
            Err(TransferError::Gfs(_)) => told.unknown += 1,
            Err(error @ TransferError::Local(_)) => return Err(error.into()),
        }
    }
    Ok(told)
}

/// Reads the log, mostly where it grows.
async fn read(round: Arc<Round>) -> Result<Told> {
    let mut told = Told::default();
    let mut dice = round.dice(400);
    let file: File = round.connect().await?.open(&round.path(LOG)).await?;
    while round.goes_on() {
        let Ok(length) = file.len().await else { continue };
        let from = if dice.random_range(0..3) == 0 { dice.random_range(0..=length) } else { length };
        let from = from.saturating_sub(READ_BYTES / 2);
        match file.read_at(from, READ_BYTES).await {
            Ok(bytes) => told.seen.push((from, bytes)),
            Err(error) if error.is_damage() => {
                told.findings.push(format!("wrong bytes: reading the log at {from}: {error}"));
            }
            // Everybody is back long before a reader's patience ends.
            Err(error @ Error::DeadlineExceeded { .. }) if round.promise == Promise::Synced => {
                told.findings.push(format!("unreadable: reading the log at {from}: {error}"));
            }
            // Nobody could be asked, or not yet.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    Ok(told)
}
