//! Stores a file, reads it back, appends records. Needs a running cluster: `gfs dev`, then
//! `GFS_MASTERS=127.0.0.1:7000 cargo run -p gfs-client --example quickstart`.

use std::io::Write;

use anyhow::{Context, ensure};
use futures::TryStreamExt;
use gfs_client::{Client, Options, PutOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let masters = std::env::var("GFS_MASTERS").context("GFS_MASTERS=HOST:PORT,.. names the masters")?;
    let masters: Vec<String> = masters.split(',').map(str::to_owned).collect();
    let client = Client::connect(&masters, Options::default()).await?;
    client.mkdir_all("/quickstart").await?;

    // A whole file: it appears under its name when it is complete.
    let text = "Files are broken into chunks.\n".repeat(100_000);
    let options = PutOptions { replace: true, ..PutOptions::default() };
    let stored = client.put(text.as_bytes(), "/quickstart/text", options, |_| {}).await?;

    let mut back = Vec::new();
    client.get("/quickstart/text", &mut back, |_| {}).await?;
    ensure!(back == text.as_bytes(), "what came back is not what was stored");

    // Records: each is appended exactly once, at an offset that the system chooses.
    if !client.exists("/quickstart/log").await? {
        client.create("/quickstart/log", 0).await?;
    }
    let log = client.open("/quickstart/log").await?;
    let offset = log.append("one record\n".into()).await?;
    ensure!(&log.read_at(offset, 11).await?[..] == b"one record\n", "the record is not where it was put");

    let mut out = std::io::stdout();
    writeln!(out, "{stored} bytes stored and read back, a record at offset {offset}")?;
    let mut entries = client.list("/quickstart");
    while let Some(entry) = entries.try_next().await? {
        let length = client.file(&entry)?.len().await?;
        writeln!(out, "{:>12}  {}  ({} chunks)", length, entry.name, entry.chunk_count)?;
    }
    Ok(())
}
