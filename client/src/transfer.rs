//! Whole files in and out.

use std::io;
use std::time::Duration;

use gfs_proto::Error;
use gfs_proto::id::EntryId;
use gfs_proto::path::FilePath;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::client::{Client, parsed};
use crate::file::File;

/// How long the removal of an unfinished file is tried.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(3);
/// How the name of an unfinished file begins; 16 hexadecimal digits follow.
const UNFINISHED: &str = ".gfs-put-";

/// Whether a name is that of a file which [`Client::put`] has not stored to its end (yet).
pub fn is_unfinished(name: &str) -> bool {
    let digits = name.strip_prefix(UNFINISHED);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// How [`Client::put`] stores a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PutOptions {
    /// Replication goal; 0 = the cluster's default.
    pub replication: u32,
    /// Whether an existing file of that name may be replaced.
    pub replace: bool,
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The local side: the source could not be read or the sink not written.
    #[error("local: {0}")]
    Local(#[source] io::Error),
    /// The cluster's side.
    #[error(transparent)]
    Gfs(#[from] Error),
}

/// A file under its hidden name. Somebody hears of it if it may be left there, also when the work on it is given up.
struct Unfinished<'a> {
    path: &'a FilePath,
    is_gone: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_gone {
            tracing::warn!(path = ?self.path.as_str(), "an unfinished file may be left behind: `gfs rm` removes it");
        }
    }
}

impl Client {
    /// Stores everything that `source` gives under `target`, and returns the number of bytes. The file appears
    /// under its name only when it is whole: it is written under a hidden name (`.gfs-put-..`) in the same
    /// directory, then renamed; an older file of that name goes to the trash in the same step (paper §6.3.4).
    /// `progress` hears the number of bytes taken so far.
    ///
    /// # Errors
    /// [`TransferError::Local`] if `source` fails; [`Error::AlreadyExists`] if `target` exists and may not be
    /// replaced; else what the cluster says. `target` is then as before, unless the deadline was exceeded.
    ///
    /// # Cancel safety
    /// Not cancel safe: what was stored stays under the hidden name, and a warning says so. It is the same if it can't be
    /// removed after a failure.
    pub async fn put(
        &self,
        mut source: impl AsyncRead + Unpin,
        target: &str,
        options: PutOptions,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        let path = parsed(target)?;
        let Some((directory, name)) = path.split() else {
            return Err(Error::IsADirectory { path: target.to_owned() }.into());
        };
        // What is sure to fail at the end is better said before the bytes are sent.
        match self.stat(target).await {
            Ok(entry) if entry.is_directory() => {
                return Err(Error::IsADirectory { path: target.to_owned() }.into());
            }
            Ok(_) if !options.replace => {
                return Err(Error::AlreadyExists { path: target.to_owned() }.into());
            }
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tracing::debug!(%directory, name, "put");
        let hidden = format!("{UNFINISHED}{:016x}", self.core.environment.random.bits64());
        let hidden = directory.join(&hidden).map_err(|reason| Error::bad_path(target, reason))?;
        let mut unfinished = Unfinished { path: &hidden, is_gone: false };
        let created = self.create(hidden.as_str(), options.replication).await;
        let id = created.as_ref().map(File::id).ok();
        let stored = async {
            let bytes = fill(created?, &mut source, &mut progress).await?;
            self.move_entry(hidden.as_str(), target, options.replace).await?;
            Ok(bytes)
        };
        let stored = stored.await;
        unfinished.is_gone = stored.is_ok() || self.clean_up(&hidden, id).await;
        stored
    }

    /// Removes an unfinished file; whether nothing has its name any more. Nobody will want it back, so what it has stored is
    /// not kept in the trash.
    async fn clean_up(&self, hidden: &FilePath, id: Option<EntryId>) -> bool {
        match self.remove(hidden.as_str(), false, CLEANUP_PATIENCE).await {
            Ok(()) => {
                if let Some(id) = id
                    && let Err(error) = self.expedite_within(id, CLEANUP_PATIENCE).await
                {
                    tracing::debug!(path = %hidden, %id, %error, "an unfinished file stays in the trash until its date");
                }
                true
            }
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => true,
            Err(error) => {
                tracing::debug!(path = %hidden, %error, "an unfinished file is not removed");
                false
            }
        }
    }

    /// Writes the file at `source` into `sink`, with several reads in flight and bounded memory; returns the
    /// number of bytes. `progress` hears the number of bytes given so far.
    ///
    /// # Errors
    /// [`TransferError::Local`] if `sink` fails, else what the cluster says.
    pub async fn get(
        &self,
        source: &str,
        mut sink: impl AsyncWrite + Unpin,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        let mut reader = self.open(source).await?.reader(0).await?;
        while let Some(bytes) = reader.next().await? {
            sink.write_all(&bytes).await.map_err(TransferError::Local)?;
            progress(reader.position());
        }
        sink.flush().await.map_err(TransferError::Local)?;
        Ok(reader.position())
    }
}

/// Writes everything that a source gives into a new file.
async fn fill(
    file: File,
    source: &mut (impl AsyncRead + Unpin),
    progress: &mut impl FnMut(u64),
) -> Result<u64, TransferError> {
    let mut writer = file.writer(0);
    loop {
        let count = writer.fill_from(source).await.map_err(TransferError::Local)??;
        if count == 0 {
            return Ok(writer.finish().await?);
        }
        progress(writer.position());
    }
}
