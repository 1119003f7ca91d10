//! `gfs ls`

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use gfs_client::{Entry, EntryKind};
use gfs_proto::Error;

use crate::args::Ls;
use crate::cmd::stat::Shown;
use crate::cmd::{Session, join, print_line, trimmed};

/// Lengths asked for at a time.
const LENGTHS_AT_A_TIME: usize = 16;

/// Lists a directory, or shows one file.
pub(crate) async fn run(session: &Session, args: &Ls) -> Result<()> {
    let path = trimmed(&args.path);
    let entry = session.client.stat(path).await?;
    if entry.is_file() {
        return show(session, args, path, &Shown::of(&session.client, path, &entry, args.long).await?);
    }
    // Directories still to be listed; depth first, so that a wide tree needs little memory.
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        list(session, args, path, &directory, &mut waiting).await?;
    }
    Ok(())
}

async fn list(
    session: &Session,
    args: &Ls,
    top: &str,
    directory: &str,
    waiting: &mut Vec<String>,
) -> Result<()> {
    let first_below = waiting.len();
    let entries = session.client.list(directory);
    let mut shown = entries
        .map(|entry| entry.map(|entry: Entry| (join(directory, &entry.name), entry)))
        .map_ok(|(path, entry)| async move {
            let shown = Shown::of(&session.client, &path, &entry, args.long).await;
            shown.map(|shown| (path, entry.kind, shown))
        })
        .try_buffered(LENGTHS_AT_A_TIME);
    loop {
        let (path, kind, entry) = match shown.try_next().await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            // A directory that went away while its parent was listed is no failure of the listing.
            Err(Error::NotFound { .. }) if directory != top => break,
            Err(error) => return Err(error.into()),
        };
        show(session, args, &path, &entry)?;
        if args.recursive && kind == EntryKind::Directory {
            waiting.push(path);
        }
    }
    // The next to be popped is the first in order.
    waiting[first_below..].reverse();
    Ok(())
}

fn show(session: &Session, args: &Ls, path: &str, entry: &Shown) -> Result<()> {
    if session.json {
        return session.print(entry, String::new);
    }
    let slash = if entry.is_directory() && path != "/" { "/" } else { "" };
    // A file that was named itself is shown as it was named.
    let whole = args.recursive || path == trimmed(&args.path);
    let name = if whole { path } else { entry.name() };
    if args.long {
        print_line(&format!("{} {name}{slash}", entry.long()))
    } else {
        print_line(&format!("{name}{slash}"))
    }
}
