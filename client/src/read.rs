//! Reading: the nearest replica first, every byte verified, the next replica on any error (GFS §2.4).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use gfs_proto::{Error, Result};
use tokio::io::{AsyncRead, ReadBuf};

/// Streams a file in order, reading ahead within a bound.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// The next bytes, at most 1 MiB; `None` at the end.
    ///
    /// # Errors
    /// What the master or the replicas say.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        Err(Error::unavailable("not built yet"))
    }
    /// Where the stream will end: the file's length when the reader was made.
    pub fn end(&self) -> u64 {
        0
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other(Error::unavailable("not built yet"))))
    }
}
