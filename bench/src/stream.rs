//! Streams of large files, through a chain of three servers and back.

use std::time::Instant;

use anyhow::{Result, ensure};
use gfs_client::Client;

use crate::table::Table;
use crate::{Bench, limit};

const PIECE_BYTES: usize = 1 << 20;

/// Writes files by so many streams at once, reads them back, and removes them. `shown`: which of both goes into the table.
pub(crate) async fn write_and_read(
    bench: &Bench,
    streams: usize,
    table: &mut Table,
    shown: (bool, bool),
) -> Result<()> {
    let each = bench.stream_bytes / streams as u64;
    let client = bench.client().await?;
    client.mkdir_all("/bench/stream").await?;
    if shown.0 {
        let bare = limit::three_files(&bench.directory, bench.stream_bytes)?;
        let round = bench.throughput(bare, write(&client, streams, each)).await?;
        let name = format!("write, {streams} stream{}, synced at the end", plural(streams));
        table.add(name, "GB/s", "3 files at once, page cache, fdatasync", round);
    } else {
        write(&client, streams, each).await?;
    }
    if shown.1 {
        let bare = limit::sendfile(&bench.directory, bench.stream_bytes, streams)?;
        let round = bench.throughput(bare, read(&client, streams, each)).await?;
        let name = format!("read, {streams} stream{}, cached", plural(streams));
        table.add(name, "GB/s", "sendfile over loopback, unchecked", round);
    }
    client.delete_tree("/bench/stream").await?;
    Ok(())
}

async fn write(client: &Client, streams: usize, each: u64) -> Result<f64> {
    let data = limit::noise(PIECE_BYTES);
    let started = Instant::now();
    let writes = (0..streams).map(|stream| {
        let (client, data) = (client.clone(), data.clone());
        tokio::spawn(async move {
            let mut writer = client.create(&path(stream), 3).await?.writer(0);
            for _ in 0..each / PIECE_BYTES as u64 {
                writer.write(&data).await?;
            }
            ensure!(writer.finish().await? == each, "the file is not as long as what was written");
            Ok(())
        })
    });
    for write in futures::future::try_join_all(writes).await? {
        write?;
    }
    Ok(limit::gigabytes(each * streams as u64, started.elapsed()))
}

async fn read(client: &Client, streams: usize, each: u64) -> Result<f64> {
    let started = Instant::now();
    let reads = (0..streams).map(|stream| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut reader = client.open(&path(stream)).await?.reader(0).await?;
            let mut bytes = 0;
            while let Some(piece) = reader.next().await? {
                bytes += piece.len() as u64;
            }
            ensure!(bytes == each, "{bytes} bytes of {each} were read");
            Ok(())
        })
    });
    for read in futures::future::try_join_all(reads).await? {
        read?;
    }
    Ok(limit::gigabytes(each * streams as u64, started.elapsed()))
}

fn path(stream: usize) -> String {
    format!("/bench/stream/{stream}")
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
