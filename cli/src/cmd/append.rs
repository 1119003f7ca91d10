//! `gfs append`

use std::pin::Pin;

use anyhow::{Context, Result};
use gfs_client::record::HEAD_BYTES;
use gfs_client::{Client, Error, File};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::args::{Append, Split};
use crate::cmd::{Session, trimmed};
use crate::exit::{self, Failed};

/// Appends one record, or one per line, and prints where they lie.
pub(crate) async fn run(session: &Session, args: &Append) -> Result<()> {
    let name = if args.record == "-" { "standard input" } else { &args.record };
    let source: Pin<Box<dyn AsyncRead + Send>> = if args.record == "-" {
        Box::pin(tokio::io::stdin())
    } else {
        Box::pin(tokio::fs::File::open(&args.record).await.with_context(|| name.to_owned())?)
    };
    let path = trimmed(&args.path);
    let limit = session.client.chunk_bytes().record_bytes_max();
    let framed_limit = limit.saturating_sub(u32::try_from(HEAD_BYTES)?);
    match args.records {
        None => {
            let record = read(source, limit).await.with_context(|| name.to_owned())?;
            let bytes = record.len();
            let offset = open_or_create(&session.client, path).await?.append(record.into()).await?;
            session.print(&json!({"path": path, "offset": offset, "bytes": bytes}), || offset.to_string())
        }
        Some(Split::Whole) => {
            let payload = read(source, framed_limit).await.with_context(|| name.to_owned())?;
            let file = open_or_create(&session.client, path).await?;
            append_record(session, &file, &payload).await
        }
        Some(Split::Lines) => {
            let mut source = BufReader::new(source);
            let file = open_or_create(&session.client, path).await?;
            // One after the other: the file keeps the order of the lines.
            while let Some(line) =
                next_line(&mut source, framed_limit).await.with_context(|| name.to_owned())?
            {
                append_record(session, &file, &line).await?;
            }
            Ok(())
        }
    }
}

/// Appends a payload with its head, and prints where the record lies.
async fn append_record(session: &Session, file: &File, payload: &[u8]) -> Result<()> {
    let (id, offset) = file.append_record(payload).await?;
    let value = json!({"path": file.path(), "offset": offset, "id": id.to_string(), "bytes": payload.len()});
    session.print(&value, || offset.to_string())
}

/// The next line without its end; no more than a record may have is held.
async fn next_line(source: &mut (impl AsyncBufRead + Unpin), limit: u32) -> Result<Option<Vec<u8>>> {
    let limit = u64::from(limit);
    let mut line = Vec::new();
    // The end of the line is read along.
    let size = source.take(limit + 1).read_until(b'\n', &mut line).await? as u64;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if size > limit {
        return Err(too_large("a line of the input", size, limit));
    }
    Ok((size > 0).then_some(line))
}

/// Reads the whole record, but no more than a record may have.
async fn read(source: impl AsyncRead + Unpin, limit: u32) -> Result<Vec<u8>> {
    let limit = u64::from(limit);
    let mut record = Vec::new();
    source.take(limit + 1).read_to_end(&mut record).await?;
    let size = record.len() as u64;
    if size > limit {
        return Err(too_large("the record", size, limit));
    }
    Ok(record)
}

fn too_large(what: &str, size: u64, limit: u64) -> anyhow::Error {
    let error = Error::TooLarge { what: what.into(), size, limit };
    Failed { what: error.to_string(), step: "split it, or store it with `gfs put`".into(), code: exit::USAGE }
        .into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_without_their_end_also_the_last_one_and_none_is_over_the_limit() {
        let mut source = &b"one\n\nthree\r\nlast"[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut source, 6).await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, [&b"one"[..], b"", b"three\r", b"last"]);
        let error = next_line(&mut &b"1234567\n"[..], 6).await.unwrap_err();
        assert!(error.to_string().contains("line"), "{error}");
        assert!(exit::next_step(&error).unwrap().contains("split"));
        assert_eq!(next_line(&mut &b"123456\n"[..], 6).await.unwrap().unwrap(), b"123456");
    }
}
