//! `gfs cat`

use anyhow::Result;

use crate::args::Cat;
use crate::cmd::{Session, transfer_error, trimmed};

/// Writes files to the standard output, one after the other.
pub(crate) async fn run(session: &Session, args: &Cat) -> Result<()> {
    for path in &args.paths {
        let sent = session.client.get(trimmed(path), tokio::io::stdout(), |_| {}).await;
        sent.map_err(transfer_error)?;
    }
    Ok(())
}
