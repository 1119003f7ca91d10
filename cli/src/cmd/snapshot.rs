//! `gfs snapshot`

use anyhow::Result;
use serde_json::json;

use crate::args::Snapshot;
use crate::cmd::{Session, trimmed};

/// Copies a file or tree that shares its chunks with the original until one of them is written.
pub(crate) async fn run(session: &Session, args: &Snapshot) -> Result<()> {
    let (source, target) = (trimmed(&args.source), trimmed(&args.target));
    let entry = session.client.snapshot(source, target).await?;
    session.print(&json!({"source": source, "target": target, "id": entry.id.raw()}), String::new)
}
