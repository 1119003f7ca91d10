//! The master: replicated namespace, leases, background work.

mod config;
pub mod raft;
pub mod state;

use gfs_proto::net::Listener;
use gfs_proto::{Environment, Error, Result};
use tokio_util::sync::CancellationToken;

pub use config::{MasterConfig, Start, TRASH_DEFAULT};

/// Runs one master or shadow on `listener` until `stop`.
///
/// # Errors
/// Why it could not start, or what it died of.
pub async fn run(
    config: MasterConfig,
    _environment: Environment,
    _listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<()> {
    config.check()?;
    stop.cancelled().await;
    Err(Error::unavailable("the master is not here yet"))
}
