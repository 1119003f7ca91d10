//! Record appends of many clients to one file.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_client::record::{self, HEAD_BYTES, RecordId};
use gfs_proto::Environment;
use rand::Rng;
use rand::rngs::StdRng;

use super::{LAST_PATIENCE, Minimum, PATIENCE, Scene, Workload, demand, layout, read_replica};
pub(crate) use crate::check::append::Scan;
use crate::check::append::{Call, Record, Reply, check};
use crate::outcome::Outcome;

/// The file of all records.
const PATH: &str = "/log";
/// Who appends when the faults are over.
const LAST_PRODUCER: u64 = u64::MAX;
const LAST: &str = "the last append";
/// Payloads are mostly small; some are larger than what goes along in a request.
const SMALL_BYTES: std::ops::Range<usize> = 0..3000;
const LARGE_BYTES: std::ops::Range<usize> = 60_000..150_000;
const LARGE_PERCENT: u32 = 3;

pub(super) const WORKLOAD: Workload = Workload {
    name: "append",
    minimum: Minimum { all_per_second: 5, quiet_per_second: 25 },
    prepare: |scene| prepare(scene, PATH).boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> {
        let environment = scene.environment.clone();
        client(scene, number, PATH, environment).boxed()
    },
    finish: |scene| finish(scene, PATH).boxed_local(),
    check,
    ..Workload::PLAIN
};

pub(super) async fn prepare(scene: Arc<Scene>, path: &str) -> Result<()> {
    scene.connect(LAST_PATIENCE).await?.create(path, 0).await?;
    Ok(())
}

pub(super) async fn client(
    scene: Arc<Scene>,
    number: u64,
    path: &str,
    environment: Environment,
) -> Result<()> {
    let mut dice = scene.dice(number);
    let file = scene.connect_over(&environment, PATIENCE).await?.open(path).await?;
    let mut process = scene.recorder.process();
    let mut sequence = 0;
    while scene.goes_on_after(process.performed()) {
        sequence += 1;
        let (call, bytes) = record(number, sequence, &payload(&mut dice))?;
        let append = async { Outcome::of_mutation(file.append(bytes).await.map(Reply::At)) };
        process.perform(call, append).await?;
    }
    Ok(())
}

/// The call that appends a record, and its bytes.
fn record(producer: u64, sequence: u64, payload: &[u8]) -> Result<(Call, Bytes)> {
    let bytes =
        record::encode(RecordId { producer, sequence }, payload).context("the payload is too large")?;
    let length = u32::try_from(bytes.len())?;
    let crc = crc32fast::hash(payload);
    Ok((Call::Append(Record { producer, sequence, length, crc }), bytes))
}

fn payload(dice: &mut StdRng) -> Vec<u8> {
    let large = dice.random_range(0..100) < LARGE_PERCENT;
    let length = dice.random_range(if large { LARGE_BYTES } else { SMALL_BYTES });
    let mut payload = vec![0; length];
    dice.fill(&mut payload[..]);
    payload
}

pub(super) async fn finish(scene: Arc<Scene>, path: &str) -> Result<()> {
    let client = scene.connect(LAST_PATIENCE).await?;
    let chunk_bytes = client.chunk_bytes().raw();
    let file = client.open(path).await?;
    let mut process = scene.recorder.process();
    // Whole is not enough: a chunk whose primary takes nothing any more looks so, too.
    let (call, bytes) = record(LAST_PRODUCER, 1, b"after the faults")?;
    let append = async { Outcome::of_mutation(file.append(bytes).await.map(Reply::At)) };
    let appended = process.perform(call, append).await?;
    let look = async {
        Outcome::of_read(
            layout(&file).await.map(|servers| Reply::Layout { chunk_bytes: chunk_bytes.into(), servers }),
        )
    };
    let Outcome::Ok { value: Reply::Layout { servers, .. } } = process.perform(Call::Layout, look).await?
    else {
        return demand(&appended, LAST);
    };
    for (chunk, servers) in (0_u32..).zip(servers) {
        let start = u64::from(chunk) * u64::from(chunk_bytes);
        for server in servers {
            let scan = async {
                let bytes = read_replica(&file, server, start, chunk_bytes).await;
                Outcome::of_read(bytes.map(|bytes| Reply::Scan(scan(&bytes, start))))
            };
            process.perform(Call::Scan { chunk, server }, scan).await?;
        }
    }
    demand(&appended, LAST)
}

/// Finds every record, also one that is there twice, and everything that is none.
pub(crate) fn scan(bytes: &[u8], start: u64) -> Scan {
    let mut scan = Scan {
        length: bytes.len() as u64,
        hash: crc32fast::hash(bytes),
        records: vec![],
        damage: vec![],
        gaps: vec![],
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        if zeros == rest.len() {
            break;
        }
        let position = start + at as u64;
        if let Some((length, record)) = record_at(rest) {
            scan.records.push((position, record));
            at += length;
        } else if zeros > 0 {
            scan.gaps.push((position, zeros as u64));
            at += zeros;
        } else {
            scan.damage.push(position);
            // On to the next thing that could be one.
            at += 1 + rest[1..].windows(4).position(|window| window == b"GFSR").unwrap_or(rest.len());
        }
    }
    scan
}

fn record_at(rest: &[u8]) -> Option<(usize, Record)> {
    let payload_length = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?) as usize;
    let length = payload_length.checked_add(HEAD_BYTES)?;
    // A scanner of its own for each, because a scanner passes over repeats.
    let mut scanner = record::Scanner::new(0);
    scanner.feed(rest.get(..length)?);
    let found = scanner.next_record().filter(|found| found.position == 0)?;
    let crc = crc32fast::hash(&found.payload);
    let record = Record {
        producer: found.id.producer,
        sequence: found.id.sequence,
        length: u32::try_from(length).ok()?,
        crc,
    };
    Some((length, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_tells_records_padding_gaps_and_damage_apart() {
        let record = |sequence| record::encode(RecordId { producer: 1, sequence }, b"xy").unwrap();
        let bytes = [&record(1)[..], &record(1), &[0; 5], &record(2), b"junk", &record(3), &[0; 9]].concat();
        let scan = scan(&bytes, 1000);
        let found: Vec<_> = scan.records.iter().map(|(at, record)| (*at, record.sequence)).collect();
        assert_eq!(found, [(1000, 1), (1034, 1), (1073, 2), (1111, 3)]);
        assert_eq!((scan.gaps, scan.damage), (vec![(1068, 5)], vec![1107]));
    }
}
