//! `gfs mv`

use anyhow::Result;
use gfs_client::Error;
use serde_json::json;

use crate::args::Mv;
use crate::cmd::{Session, join, last_name, trimmed};

/// Renames a file or directory, or moves it into a directory.
pub(crate) async fn run(session: &Session, args: &Mv) -> Result<()> {
    let (source, target) = (trimmed(&args.source), trimmed(&args.target));
    let target = match session.client.stat(target).await {
        Ok(entry) if entry.is_directory() && target != source => join(target, last_name(source)),
        Ok(_) | Err(Error::NotFound { .. }) => target.to_owned(),
        Err(error) => return Err(error.into()),
    };
    if args.force {
        session.client.replace(source, &target).await?;
    } else {
        session.client.rename(source, &target).await?;
    }
    session.print(&json!({"source": source, "target": target}), String::new)
}
