//! Writing: data is pushed along a chain, then the primary orders it (GFS §3.1, §3.2).

use gfs_proto::{Error, Result};

/// Writes a file in order, with several units in flight and bounded memory.
#[derive(Debug)]
pub struct Writer {}

impl Writer {
    /// Takes more bytes; waits while too many are in flight.
    ///
    /// # Errors
    /// The first error of any unit; the stream can't go on.
    pub async fn write(&mut self, _data: &[u8]) -> Result<()> {
        Err(Error::unavailable("not built yet"))
    }
    /// Waits until everything that was taken is acknowledged, with the client's durability.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn flush(&mut self) -> Result<()> {
        Err(Error::unavailable("not built yet"))
    }
    /// Flushes, and returns the position after the last byte. A writer that is only dropped leaves unknown
    /// how much was written.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn finish(mut self) -> Result<u64> {
        self.flush().await?;
        Ok(0)
    }
}
