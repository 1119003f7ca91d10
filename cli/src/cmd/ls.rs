//! `gfs ls`

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use gfs_client::{Entry, EntryKind};
use gfs_proto::Error;

use crate::args::Ls;
use crate::cmd::stat::Shown;
use crate::cmd::{Session, join, print_line, trimmed, visible};
use crate::exit::{self, SomeFailed};

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
    let mut outcome = Outcome::default();
    while let Some(directory) = waiting.pop() {
        list(session, args, (path, &directory), &mut waiting, &mut outcome).await?;
    }
    outcome.finish()
}

/// How many entries there were, and how many of them could not be shown.
#[derive(Default)]
struct Outcome {
    all: u64,
    failed: u64,
    /// The exit code of the first that failed.
    code: Option<u8>,
}

impl Outcome {
    fn fails(&mut self, error: anyhow::Error) {
        exit::say(&format!("gfs: {error:#}"));
        self.failed += 1;
        self.code.get_or_insert(exit::code_of(&error));
    }
    fn finish(self) -> Result<()> {
        let Some(code) = self.code else { return Ok(()) };
        Err(SomeFailed { failed: self.failed, all: self.all, given_up: false, code }.into())
    }
}

async fn list(
    session: &Session,
    args: &Ls,
    (top, directory): (&str, &str),
    waiting: &mut Vec<String>,
    outcome: &mut Outcome,
) -> Result<()> {
    let first_below = waiting.len();
    let entries = session.client.list(directory);
    let mut shown = entries
        .map(|entry| entry.map(|entry: Entry| (join(directory, &entry.name), entry)))
        .map_ok(|(path, entry)| async move {
            let shown = Shown::of(&session.client, &path, &entry, args.long).await;
            Ok((path, entry.kind, shown))
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
        outcome.all += 1;
        match entry {
            Ok(entry) => show(session, args, &path, &entry)?,
            // It went away since its name was read.
            Err(Error::NotFound { .. }) => outcome.all -= 1,
            // The names after it are listed all the same.
            Err(error) => outcome.fails(anyhow::Error::from(error).context(path.clone())),
        }
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
    let name = visible(if whole { path } else { entry.name() });
    if args.long {
        print_line(&format!("{} {name}{slash}", entry.long()))
    } else {
        print_line(&format!("{name}{slash}"))
    }
}
