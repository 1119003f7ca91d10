//! `gfs stat`, and how entries are shown.

use anyhow::Result;
use gfs_client::{Client, Entry, EntryKind, Error};
use serde::Serialize;

use crate::args::Stat;
use crate::cmd::{Session, last_name, trimmed, visible};
use crate::units::{show_bytes, show_time};

/// A file or directory as it is printed.
#[derive(Serialize, Debug)]
pub(crate) struct Shown {
    path: String,
    kind: &'static str,
    id: u64,
    /// Of a file, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<u32>,
    created_ms: u64,
    modified_ms: u64,
}

impl Shown {
    /// What is known of an entry; the length of a file has to be asked from its last chunk's servers.
    pub(crate) async fn of(
        client: &Client,
        path: &str,
        entry: &Entry,
        with_length: bool,
    ) -> Result<Self, Error> {
        let is_file = entry.kind == EntryKind::File;
        let bytes = match with_length && is_file {
            true if entry.chunk_count == 0 => Some(0),
            true => Some(client.file(entry)?.len().await?),
            false => None,
        };
        Ok(Self {
            path: path.to_owned(),
            kind: if is_file { "file" } else { "directory" },
            id: entry.id.raw(),
            bytes,
            replication: is_file.then_some(entry.replication),
            chunks: is_file.then_some(entry.chunk_count),
            created_ms: entry.created.raw(),
            modified_ms: entry.modified.raw(),
        })
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.replication.is_none()
    }
    /// Its last name.
    pub(crate) fn name(&self) -> &str {
        last_name(&self.path)
    }
    /// The columns of `ls -l` before the name.
    pub(crate) fn long(&self) -> String {
        let kind = if self.is_directory() { 'd' } else { '-' };
        let replicas = self.replication.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let bytes = self.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        format!("{kind} {replicas:>2} {bytes:>14} {}", show_time(self.modified_ms))
    }
    fn text(&self) -> String {
        let mut lines = vec![
            format!("{}: {}", visible(&self.path), self.kind),
            format!("  id        {}", self.id),
            format!("  created   {} UTC", show_time(self.created_ms)),
            format!("  modified  {} UTC", show_time(self.modified_ms)),
        ];
        if let (Some(bytes), Some(chunks), Some(replication)) = (self.bytes, self.chunks, self.replication) {
            lines.push(format!("  length    {bytes} bytes ({})", show_bytes(bytes)));
            lines.push(format!("  chunks    {chunks}, {replication} replicas each"));
        }
        lines.join("\n")
    }
}

/// Shows files and directories.
pub(crate) async fn run(session: &Session, args: &Stat) -> Result<()> {
    for path in &args.paths {
        let path = trimmed(path);
        let entry = session.client.stat(path).await?;
        let shown = Shown::of(&session.client, path, &entry, true).await?;
        session.print(&shown, || shown.text())?;
    }
    Ok(())
}
