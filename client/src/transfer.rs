//! Whole files in and out.

use std::io;

use gfs_proto::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Client;

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

impl Client {
    /// Stores everything that `source` gives under `target`. The file appears under its name only when it is
    /// whole: it is written under a hidden name in the same directory, then renamed.
    /// `progress` hears the number of bytes taken so far.
    ///
    /// # Errors
    /// [`TransferError::Local`] if `source` fails; [`Error::AlreadyExists`] if `target` exists and may not be
    /// replaced; else what the cluster says. `target` is then as before, unless the deadline was exceeded.
    pub async fn put(
        &self,
        _source: impl AsyncRead + Unpin,
        _target: &str,
        _options: PutOptions,
        _progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        Err(Error::unavailable("not built yet").into())
    }

    /// Writes the file at `source` into `sink`, with several reads in flight and bounded memory; returns the
    /// number of bytes. `progress` hears the number of bytes given so far.
    ///
    /// # Errors
    /// [`TransferError::Local`] if `sink` fails, else what the cluster says.
    pub async fn get(
        &self,
        _source: &str,
        _sink: impl AsyncWrite + Unpin,
        _progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        Err(Error::unavailable("not built yet").into())
    }
}
