//! Snapshots of a file while others append to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_client::Client;
use gfs_client::record::{self, RecordId};
use rand::Rng;

use super::append::scan;
use super::{LAST_PATIENCE, Minimum, PATIENCE, Scene, Workload, patiently};
use crate::check::append::Record;
use crate::check::snapshot::{Call, Reply, check};
use crate::outcome::Outcome;

const ROOT: &str = "/snapshot";
const PATH: &str = "/snapshot/log";
/// One client of so many makes copies.
const APPENDERS: u64 = 4;
/// Copies of a client are numbered from its number times this.
const COPIES_PER_CLIENT: u64 = 1000;
/// Copies of a client that are made at most, and the time between two: each ends the leases of its file.
const COPIES_MAX: u64 = 12;
const PAUSE_MS: std::ops::Range<u64> = 100..900;
const PAYLOAD_BYTES: std::ops::Range<usize> = 0..2000;

pub(super) const WORKLOAD: Workload = Workload {
    name: "snapshot",
    minimum: Minimum { all_per_second: 3, quiet_per_second: 5 },
    prepare: |scene| prepare(scene).boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> {
        if number % APPENDERS == 0 { copier(scene, number).boxed() } else { appender(scene, number).boxed() }
    },
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

async fn appender(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let file = scene.connect(PATIENCE).await?.open(PATH).await?;
    let mut process = scene.recorder.process();
    let mut sequence = 0;
    while scene.goes_on_after(process.performed()) {
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

async fn copier(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let client = scene.connect(PATIENCE).await?;
    let mut process = scene.recorder.process();
    for copy in (number * COPIES_PER_CLIENT..).take(usize::try_from(COPIES_MAX)?) {
        if !scene.goes_on_after(process.performed()) {
            break;
        }
        let make = async {
            let made = client.snapshot(PATH, &format!("{ROOT}/{copy}")).await;
            Outcome::of_mutation(made.map(|_| Reply::Made))
        };
        process.perform(Call::Snapshot { copy }, make).await?;
        let pause = Duration::from_millis(dice.random_range(PAUSE_MS));
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

async fn finish(scene: Arc<Scene>) -> Result<()> {
    use futures::TryStreamExt;
    let client = scene.connect(LAST_PATIENCE).await?;
    let mut process = scene.recorder.process();
    let entries: Vec<_> = client.list(ROOT).try_collect().await?;
    for entry in entries {
        let copy = entry.name.parse().ok();
        let read = async {
            let content = patiently(async || content(&client, &format!("{ROOT}/{}", entry.name)).await).await;
            Outcome::of_read(content.map(Reply::Content))
        };
        process.perform(Call::Content { copy }, read).await?;
    }
    Ok(())
}

async fn content(client: &Client, path: &str) -> gfs_client::Result<Vec<(u64, Record)>> {
    let file = client.open(path).await?;
    let bytes = file.read_at(0, file.len().await?).await?;
    Ok(scan(&bytes, 0).records)
}
