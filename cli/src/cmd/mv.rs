//! `gfs mv`

use anyhow::Result;
use gfs_client::{Entry, Error};
use serde_json::json;

use crate::args::Mv;
use crate::cmd::{Session, join, last_name, trimmed};
use crate::exit::usage;

/// Renames a file or directory, or moves it into a directory.
pub(crate) async fn run(session: &Session, args: &Mv) -> Result<()> {
    let (source, target) = (trimmed(&args.source), trimmed(&args.target));
    let there = match session.client.stat(target).await {
        Ok(entry) => Some(entry),
        Err(Error::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let into = there.as_ref().is_some_and(Entry::is_directory);
    // A directory may get a new name that is written as one; a file is never meant to be in the place of a directory.
    if args.target.ends_with('/')
        && !into
        && (there.is_some() || session.client.stat(source).await?.is_file())
    {
        let step = if there.is_some() { "it is a file" } else { "`gfs mkdir` makes it" };
        return Err(usage(format!("{} is no directory: {step}", args.target)));
    }
    let target = if into && target != source { join(target, last_name(source)) } else { target.to_owned() };
    if args.force {
        session.client.replace(source, &target).await?;
    } else {
        session.client.rename(source, &target).await?;
    }
    session.print(&json!({"source": source, "target": target}), String::new)
}
