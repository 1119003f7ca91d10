//! `gfs cat`

use std::io::{Read, Write};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gfs_client::record::Record;
use gfs_client::{Error, File, Server};
use serde_json::{Value, json};

use crate::args::Cat;
use crate::cmd::{Session, print_json, transfer_error, trimmed};
use crate::exit::say;

/// Bytes of one replica that are read at a time.
const PIECE_BYTES: u32 = 1 << 20;

/// Writes files to the standard output, one after the other.
pub(crate) async fn run(session: &Session, args: &Cat) -> Result<()> {
    for path in &args.paths {
        let path = trimmed(path);
        if args.records {
            records(session, &session.client.open(path).await?, args.from).await?;
        } else if let Some(server) = &args.replica {
            replica(&session.client.open(path).await?, server).await?;
        } else {
            let sent = session.client.get(path, tokio::io::stdout(), |_| {}).await;
            sent.map_err(transfer_error)?;
        }
    }
    Ok(())
}

/// Writes out the bytes as one server has them.
async fn replica(file: &File, wanted: &str) -> Result<()> {
    let chunk_bytes = u64::from(file.chunk_bytes().raw());
    let mut written = 0;
    for chunk in file.chunks().await? {
        let named = |server: &&Server| {
            let id = server.id;
            [id.to_string(), id.raw().to_string(), server.address.clone()].iter().any(|name| name == wanted)
        };
        let Some(server) = chunk.replicas.iter().find(named) else {
            let what = format!("a live replica of chunk {} on {wanted}", chunk.index);
            return Err(Error::NotFound { what }.into());
        };
        let (start, mut offset) = (u64::from(chunk.index.raw()) * chunk_bytes, 0);
        loop {
            let reply = file.read_replica(&chunk, server, offset, PIECE_BYTES).await?;
            if reply.bytes.is_empty() {
                break;
            }
            // What a chunk before this one does not fill reads as zeros.
            let gap = start.saturating_sub(written);
            let mut out = std::io::stdout().lock();
            std::io::copy(&mut std::io::repeat(0).take(gap), &mut out)?;
            out.write_all(&reply.bytes)?;
            written += gap + reply.bytes.len() as u64;
            offset = offset.saturating_add(u32::try_from(reply.bytes.len())?);
            if offset >= reply.committed_length {
                break;
            }
        }
    }
    std::io::stdout().lock().flush()?;
    Ok(())
}

/// Prints the payload of each record on a line of its own.
async fn records(session: &Session, file: &File, from: u64) -> Result<()> {
    let mut reader = file.record_reader(from);
    while let Some(record) = reader.next().await? {
        if session.json {
            print_json(&as_json(&record))?;
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(&record.payload)?;
            out.write_all(b"\n")?;
        }
    }
    let damaged = reader.damaged_bytes();
    if damaged > 0 {
        say(&format!("gfs: {}: {damaged} bytes are no records and were passed over", file.path()));
    }
    Ok(())
}

/// The payload is text where it is text, else base64.
fn as_json(record: &Record) -> Value {
    let (name, payload) = match std::str::from_utf8(&record.payload) {
        Ok(text) => ("payload", text.to_owned()),
        Err(_) => ("payload_base64", STANDARD.encode(&record.payload)),
    };
    json!({"position": record.position, "next": record.next, "id": record.id.to_string(), name: payload})
}
