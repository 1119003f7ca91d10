//! Disks that rot: damage is found, told, and made good from another replica, and nobody ever reads it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gfs_client::{Chunk, Client, PutOptions};
use gfs_proto::id::ChunkIndex;
use gfs_tests::{Cluster, Shape, eventually};

/// The scrubber comes round, and a chunk with two good replicas is given some seconds.
const PATIENCE: Duration = Duration::from_secs(90);
const READ: &str = "/read";
const UNREAD: &str = "/unread";

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_chunks_and_in_metadata_is_found_and_made_good_while_readers_see_right_bytes() {
    let mut cluster = Cluster::start(Shape { chunkservers: 4, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let bytes: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
    for path in [READ, UNREAD] {
        client.put(&bytes[..], path, PutOptions::default(), |_| {}).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read_again_and_again(cluster.client().await.unwrap(), bytes, stop.clone()));

    // One copy of a chunk that is read, and one of a chunk that only the scrubber looks at, under running servers.
    let (read, unread) = (chunks(&client, READ).await, chunks(&client, UNREAD).await);
    let rotten = [(holder(&cluster, &read[0], 0), &read[0]), (holder(&cluster, &unread[1], 1), &unread[1])];
    for (server, chunk) in &rotten {
        flip(&chunk_file(&cluster, server, chunk).unwrap(), 77_777).unwrap();
    }
    // And one under a server that is down.
    let down = holder(&cluster, &read[1], 0);
    cluster.kill(&down).unwrap();
    flip(&chunk_file(&cluster, &down, &read[1]).unwrap(), 5).unwrap();
    cluster.restart(&down).unwrap();
    for (server, chunk) in rotten.iter().chain([&(down, &read[1])]) {
        let line = format!("checksum mismatch handle={}", chunk.handle);
        eventually("the damage is found", PATIENCE, async || {
            ensure!(!cluster.logged(&line).is_empty(), "{server} has not found it: {line}");
            Ok(())
        })
        .await
        .unwrap();
    }
    wait_until_whole(&client, 3).await;

    // A damaged table: the server does not guess, and what it held is made again elsewhere.
    let lost = holder(&cluster, &chunks(&client, READ).await[0], 0);
    cluster.expect_error("disk can't be opened");
    cluster.expect_error("is damaged");
    cluster.kill(&lost).unwrap();
    flip(&newest_table(&cluster.data_of(&lost)).unwrap(), 40).unwrap();
    cluster.restart(&lost).unwrap();
    let (code, log) = cluster.wait_for_end(&lost).await.unwrap();
    assert!(code != Some(0) && log.contains("is damaged"), "{code:?} {log}");
    wait_until_whole(&client, 3).await;

    stop.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap().unwrap() > 0);
}

async fn read_again_and_again(client: Client, bytes: Vec<u8>, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let file = client.open(READ).await?;
        let read = file.read_at(0, bytes.len() as u64).await?;
        ensure!(read == bytes, "wrong bytes after {reads} reads");
        reads += 1;
    }
    Ok(reads)
}

async fn chunks(client: &Client, path: &str) -> Vec<Chunk> {
    client.chunks(path).await.unwrap()
}

fn holder(cluster: &Cluster, chunk: &Chunk, which: usize) -> String {
    cluster.name_at(&chunk.replicas[which].address).unwrap()
}

fn chunk_file(cluster: &Cluster, server: &str, chunk: &Chunk) -> Result<PathBuf> {
    let directory = cluster.data_of(server).join("chunks");
    let prefix = format!("{:016x}-", chunk.handle.raw());
    let mut names = std::fs::read_dir(&directory)?.filter_map(|entry| Some(entry.ok()?.file_name()));
    let name = names.find(|name| name.to_string_lossy().starts_with(&prefix)).context("no such file")?;
    Ok(directory.join(name))
}

fn newest_table(directory: &Path) -> Result<PathBuf> {
    let paths = std::fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let table =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("table-0"));
    paths.filter(table).max().context("no table")
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 4], at)?)
}

/// Every chunk has so many good replicas that are alike.
async fn wait_until_whole(client: &Client, goal: usize) {
    eventually("every chunk is whole again", PATIENCE, async || {
        for path in [READ, UNREAD] {
            let file = client.open(path).await?;
            for index in 0..file.chunks().await?.len() {
                let index = ChunkIndex::from_raw(u32::try_from(index)?);
                let compared = file.compare_replicas(index).await?;
                let good = compared.is_complete() && !compared.is_corrupt();
                ensure!(good && compared.replicas.len() >= goal, "{path} {index}: {:?}", compared.replicas);
            }
        }
        Ok(())
    })
    .await
    .unwrap();
}
