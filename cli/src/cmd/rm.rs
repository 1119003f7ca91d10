//! `gfs rm`

use anyhow::Result;
use gfs_client::Error;
use serde_json::json;

use crate::args::Rm;
use crate::cmd::{Session, trimmed};

/// Removes files or trees; they stay in the trash until their date.
pub(crate) async fn run(session: &Session, args: &Rm) -> Result<()> {
    for path in &args.paths {
        let path = trimmed(path);
        let removed = if args.recursive {
            session.client.delete_tree(path).await
        } else {
            session.client.delete(path).await
        };
        let removed = match removed {
            Ok(()) => true,
            Err(Error::NotFound { .. }) if args.force => false,
            Err(error) => return Err(error.into()),
        };
        session.print(&json!({"path": path, "removed": removed}), String::new)?;
    }
    Ok(())
}
