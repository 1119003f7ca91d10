//! Snapshots of a file while others append to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_client::Client;
use gfs_client::record::{self, RecordId};
use rand::Rng;
use tokio::time::Instant;

use super::append::{Scan, scan};
use super::{LAST_PATIENCE, Minimum, PATIENCE, Scene, Workload, patiently};
use crate::check::append::Record;
use crate::check::snapshot::{Call, Reply, check};
use crate::outcome::Outcome;

const ROOT: &str = "/snapshot";
const PATH: &str = "/snapshot/log";
/// One client of so many also makes copies, the first one among them.
const COPIERS: u64 = 4;
/// Copies of a client are numbered from its number times this.
const COPIES_PER_CLIENT: u64 = 1000;
/// Copies of a client that are made at most: each ends the leases of its file.
const COPIES_MAX: u64 = 12;
/// Time between its first two copies, and by how much it grows from one to the next: so that short runs have some, and
/// long ones have them until late.
const PAUSE_MS: std::ops::Range<u64> = 100..600;
const PAUSE_GROWS: f64 = 1.4;
const PAYLOAD_BYTES: std::ops::Range<usize> = 0..2000;

pub(super) const WORKLOAD: Workload = Workload {
    name: "snapshot",
    minimum: Minimum { all_per_second: 3, quiet_per_second: 5 },
    prepare: |scene| prepare(scene).boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(scene, number).boxed() },
    finish: |scene| finish(scene).boxed_local(),
    check,
    ..Workload::PLAIN
};

async fn prepare(scene: Arc<Scene>) -> Result<()> {
    let client = scene.connect(LAST_PATIENCE).await?;
    client.mkdir_all(ROOT).await?;
    client.create(PATH, 0).await?;
    Ok(())
}

async fn client(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let client = scene.connect(PATIENCE).await?;
    let file = client.open(PATH).await?;
    let mut process = scene.recorder.process();
    let copies = if number.is_multiple_of(COPIERS) { COPIES_MAX } else { 0 };
    let first = number * COPIES_PER_CLIENT;
    let mut copies = (first..first + copies).peekable();
    let mut pause = Duration::from_millis(dice.random_range(PAUSE_MS));
    let mut due = Instant::now() + pause;
    let mut sequence = 0;
    while scene.goes_on_after(process.performed()) {
        if let Some(copy) = copies.next_if(|_| due <= Instant::now()) {
            let make = async {
                let made = client.snapshot(PATH, &format!("{ROOT}/{copy}")).await;
                Outcome::of_mutation(made.map(|_| Reply::Made))
            };
            process.perform(Call::Snapshot { copy }, make).await?;
            pause = pause.mul_f64(PAUSE_GROWS);
            due = Instant::now() + pause;
            continue;
        }
        sequence += 1;
        let mut payload = vec![0; dice.random_range(PAYLOAD_BYTES)];
        dice.fill(&mut payload[..]);
        let id = RecordId { producer: number, sequence };
        let bytes = record::encode(id, &payload).context("the payload is too large")?;
        let (length, crc) = (u32::try_from(bytes.len())?, crc32fast::hash(&payload));
        let call = Call::Append(Record { producer: number, sequence, length, crc });
        let append = async { Outcome::of_mutation(file.append(bytes).await.map(Reply::At)) };
        process.perform(call, append).await?;
    }
    Ok(())
}

async fn finish(scene: Arc<Scene>) -> Result<()> {
    use futures::TryStreamExt;
    let client = scene.connect(LAST_PATIENCE).await?;
    let mut process = scene.recorder.process();
    let entries: Vec<_> = patiently(async || client.list(ROOT).try_collect().await).await?;
    for entry in entries {
        let copy = entry.name.parse().ok();
        let read = async {
            let content = patiently(async || content(&client, &format!("{ROOT}/{}", entry.name)).await).await;
            Outcome::of_mutation(content)
        };
        process.perform(Call::Content { copy }, read).await?;
    }
    Ok(())
}

async fn content(client: &Client, path: &str) -> gfs_client::Result<Reply> {
    let file = client.open(path).await?;
    let bytes = file.read_at(0, file.len().await?).await?;
    let Scan { records, damage, .. } = scan(&bytes, 0);
    Ok(Reply::Content { records, damage })
}
