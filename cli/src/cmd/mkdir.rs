//! `gfs mkdir`

use anyhow::Result;
use serde_json::json;

use crate::args::Mkdir;
use crate::cmd::{Session, trimmed};

/// Makes directories.
pub(crate) async fn run(session: &Session, args: &Mkdir) -> Result<()> {
    for path in &args.paths {
        let path = trimmed(path);
        let entry = if args.parents {
            session.client.mkdir_all(path).await?
        } else {
            session.client.mkdir(path).await?
        };
        session.print(&json!({"path": path, "id": entry.id.raw()}), String::new)?;
    }
    Ok(())
}
