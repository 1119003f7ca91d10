//! `gfs append`

use anyhow::{Context, Result};
use gfs_client::{Client, Error, File};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::args::Append;
use crate::cmd::{Session, trimmed};

/// Appends one record and prints where it lies.
pub(crate) async fn run(session: &Session, args: &Append) -> Result<()> {
    let path = trimmed(&args.path);
    let limit = session.client.chunk_bytes().record_bytes_max();
    let record = if args.record == "-" {
        read(tokio::io::stdin(), limit).await.context("standard input")?
    } else {
        let file = tokio::fs::File::open(&args.record).await.with_context(|| args.record.clone())?;
        read(file, limit).await.with_context(|| args.record.clone())?
    };
    let bytes = record.len();
    let offset = open_or_create(&session.client, path).await?.append(record.into()).await?;
    session.print(&json!({"path": path, "offset": offset, "bytes": bytes}), || offset.to_string())
}

/// Reads the whole record, but no more than a record may have.
async fn read(source: impl AsyncRead + Unpin, limit: u32) -> Result<Vec<u8>> {
    let limit = u64::from(limit);
    let mut record = Vec::new();
    source.take(limit + 1).read_to_end(&mut record).await?;
    let size = record.len() as u64;
    if size > limit {
        return Err(Error::TooLarge { what: "the record".into(), size, limit }.into());
    }
    Ok(record)
}

async fn open_or_create(client: &Client, path: &str) -> Result<File, Error> {
    match client.open(path).await {
        Err(Error::NotFound { .. }) => {}
        other => return other,
    }
    match client.create(path, 0).await {
        // Another client was quicker: it is there now.
        Err(Error::AlreadyExists { .. }) => client.open(path).await,
        other => other,
    }
}
