//! The chunkserver: chunk store, replicas, data plane.

mod config;
pub mod data;
pub mod store;

use gfs_proto::net::Listener;
use gfs_proto::{Environment, Error, Result};
use tokio_util::sync::CancellationToken;

pub use config::{BUFFER_BYTES_DEFAULT, ChunkserverConfig};

/// Runs one chunkserver on `listener` until `stop`.
///
/// # Errors
/// Why it could not start, or what it died of.
pub async fn run(
    config: ChunkserverConfig,
    _environment: Environment,
    _listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<()> {
    config.check()?;
    stop.cancelled().await;
    Err(Error::unavailable("the chunkserver is not here yet"))
}
