//! Overlapping writes of tagged cells around the borders of a file's chunks, with reads meanwhile.

use std::sync::Arc;

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_proto::Environment;
use rand::Rng;
use rand::rngs::StdRng;

use super::{LAST_PATIENCE, Minimum, PATIENCE, Scene, Workload, demand, layout, read_replica};
use crate::check::cells::{Call, HOLE, Reply, TORN, check};
use crate::outcome::Outcome;

/// The file of all cells.
const PATH: &str = "/cells";
/// Bytes of a cell: tag, number, checksum of both, then the tag's lowest byte repeated.
const CELL_BYTES: usize = 64;
/// Chunks of the file. Most are often quiet: then their replicas know all they hold to be committed, and answer readers without
/// asking anybody.
const CHUNKS: u64 = 16;
/// Every other operation goes to one of the first so many: there something is always under way.
const BUSY_CHUNKS: u64 = 4;
/// Cells on either side of a border where operations begin.
const NEAR: u64 = 100;
/// Lengths of operations in cells: mostly small; some are larger than what goes along in a request.
const SMALL: std::ops::Range<u64> = 1..60;
const LARGE: std::ops::Range<u64> = 1100..2000;
const LARGE_PERCENT: u32 = 4;
const WRITE_PERCENT: u32 = 50;
/// Of so many clients one only reads. A client that also writes learns the new primary from its next write and stops asking the old
/// one; only a pure reader goes on asking a server that was left out and doesn't know it.
const ONE_READER_IN: u64 = 3;
/// Tags of a client: its number times this, and up.
const TAGS_PER_CLIENT: u64 = 1 << 32;
/// Tag of what is written to the first chunk when the faults are over; below those of all clients.
const FIRST_LAST_TAG: u64 = 1;

pub(super) const WORKLOAD: Workload = Workload {
    name: "cells",
    minimum: Minimum { all_per_second: 10, quiet_per_second: 20 },
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
    let connected = scene.connect_over(&environment, PATIENCE).await?;
    let per_chunk = u64::from(connected.chunk_bytes().raw()) / CELL_BYTES as u64;
    let file = connected.open(path).await?;
    let mut process = scene.recorder.process();
    let mut tag = (number + 1) * TAGS_PER_CLIENT;
    let only_reads = number % ONE_READER_IN == 1;
    while scene.goes_on_after(process.performed()) {
        let (first, count) = range(&mut dice, per_chunk);
        let offset = first * CELL_BYTES as u64;
        if !only_reads && dice.random_range(0..100) < WRITE_PERCENT {
            tag += 1;
            let data = encode(tag, first, count);
            let write =
                async { Outcome::of_mutation(file.write_at(offset, data).await.map(|()| Reply::Written)) };
            process.perform(Call::Write { tag, first, count }, write).await?;
        } else {
            let read = async {
                let bytes = file.read_at(offset, count * CELL_BYTES as u64).await;
                // The file is there: whoever says that it isn't has decided wrongly, and that is not just no answer.
                Outcome::of_mutation(bytes.map(|bytes| Reply::Cells(decode(&bytes, first, count))))
            };
            process.perform(Call::Read { first, count }, read).await?;
        }
    }
    Ok(())
}

/// A range near the beginning of a chunk, often over the border.
fn range(dice: &mut StdRng, per_chunk: u64) -> (u64, u64) {
    let chunks = if dice.random() { BUSY_CHUNKS } else { CHUNKS };
    let border = dice.random_range(0..chunks) * per_chunk;
    let first = (border + dice.random_range(0..2 * NEAR)).saturating_sub(NEAR);
    let large = dice.random_range(0..100) < LARGE_PERCENT;
    (first, dice.random_range(if large { LARGE } else { SMALL }))
}

fn encode(tag: u64, first: u64, count: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    for cell in first..first + count {
        let start = bytes.len();
        bytes.put_u64_le(tag);
        bytes.put_u64_le(cell);
        let crc = crc32fast::hash(&bytes[start..]);
        bytes.put_u32_le(crc);
        bytes.put_bytes(tag.to_le_bytes()[0], CELL_BYTES - 20);
    }
    bytes.freeze()
}

/// Runs of equal tags; what lies past the end of the bytes is a hole.
fn decode(bytes: &[u8], first: u64, count: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut pieces = bytes.chunks(CELL_BYTES);
    for cell in first..first + count {
        let tag = pieces.next().map_or(HOLE, |piece| tag_of(piece, cell));
        match runs.last_mut() {
            Some((length, last)) if *last == tag => *length += 1,
            _ => runs.push((1, tag)),
        }
    }
    runs
}

fn tag_of(piece: &[u8], cell: u64) -> u64 {
    if piece.iter().all(|byte| *byte == 0) {
        return HOLE;
    }
    let tag = piece.first_chunk().map_or(TORN, |raw| u64::from_le_bytes(*raw));
    if encode(tag, cell, 1) == piece { tag } else { TORN }
}

pub(super) async fn finish(scene: Arc<Scene>, path: &str) -> Result<()> {
    let client = scene.connect(LAST_PATIENCE).await?;
    let chunk_bytes = client.chunk_bytes().raw();
    let cells_per_chunk = u64::from(chunk_bytes) / CELL_BYTES as u64;
    let file = client.open(path).await?;
    let mut process = scene.recorder.process();
    // Whole is not enough: a chunk whose primary takes nothing any more looks so, too.
    let mut last = Vec::new();
    // Also to a file that has none yet.
    for chunk in 0..file.len().await?.div_ceil(u64::from(chunk_bytes)).max(1) {
        let (tag, first) = (FIRST_LAST_TAG + chunk, chunk * cells_per_chunk);
        let data = encode(tag, first, 1);
        let offset = first * CELL_BYTES as u64;
        let write =
            async { Outcome::of_mutation(file.write_at(offset, data).await.map(|()| Reply::Written)) };
        let written = process.perform(Call::Write { tag, first, count: 1 }, write).await?;
        last.push((format!("the last write to chunk {chunk}"), written));
    }
    let look = async {
        Outcome::of_read(layout(&file).await.map(|servers| Reply::Layout { cells_per_chunk, servers }))
    };
    let Outcome::Ok { value: Reply::Layout { servers, .. } } = process.perform(Call::Layout, look).await?
    else {
        return demand_all(&last);
    };
    for (chunk, servers) in (0_u64..).zip(servers) {
        for server in servers {
            let scan = async {
                let bytes = read_replica(&file, server, chunk * u64::from(chunk_bytes), chunk_bytes).await;
                let first = chunk * cells_per_chunk;
                Outcome::of_read(bytes.map(|bytes| Reply::Cells(decode(&bytes, first, cells_per_chunk))))
            };
            process.perform(Call::Scan { chunk, server }, scan).await?;
        }
    }
    demand_all(&last)
}

fn demand_all(last: &[(String, Outcome<Reply>)]) -> Result<()> {
    last.iter().try_for_each(|(what, outcome)| demand(outcome, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_as_runs_and_torn_ones_are_seen() {
        let mut bytes = [&encode(7, 3, 2)[..], &encode(9, 5, 1), &[0; CELL_BYTES]].concat();
        assert_eq!(decode(&bytes, 3, 6), [(2, 7), (1, 9), (3, HOLE)]);
        bytes[CELL_BYTES + 40] ^= 1;
        assert_eq!(decode(&bytes, 3, 3), [(1, 7), (1, TORN), (1, 9)]);
        assert_eq!(decode(&bytes[..CELL_BYTES + 10], 3, 2), [(1, 7), (1, TORN)]);
        // Whole, but in the wrong place.
        assert_eq!(decode(&encode(7, 3, 1), 4, 1), [(1, TORN)]);
    }
}
