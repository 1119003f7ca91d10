//! `gfs put`: files, trees and pipes of this machine into the cluster.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{self, Poll};

use anyhow::{Context, Result, anyhow};
use gfs_client::{Client, Error, PutOptions, TransferError};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::args::Put;
use crate::cmd::transfer::{Finds, Found, Progress, Search, carry_all, is_reachable, stop_on_signal, tell};
use crate::cmd::{Session, join, transfer_error, trimmed};
use crate::exit::{Interrupted, say, usage};

/// One file to be stored.
struct Job {
    local: PathBuf,
    remote: String,
    /// Named by the user, not found in a tree: then a pipe or device is meant to be read.
    named: bool,
}

/// Stores what is named.
pub(crate) async fn run(session: &Session, args: &Put) -> Result<()> {
    let Some((remote, locals)) = args.paths.split_last() else {
        return Err(usage("nothing is named"));
    };
    let into = target_directory(&session.client, remote, locals).await?;
    let options = PutOptions { replication: args.replication.unwrap_or(0), replace: args.force };
    if locals == ["-"] {
        return put_stdin(session, args, trimmed(remote), options).await;
    }
    let mut roots = Vec::new();
    for local in locals {
        roots.push(root(args, local, remote, into)?);
    }
    check_names(&roots)?;
    let single = matches!(roots.as_slice(), [root] if !root.local.is_dir());
    let progress = Progress::new(session, &args.transfer);
    let stop = stop_on_signal()?;
    let search = Search::start(&stop, |finds| search(session.client.clone(), roots, finds, progress.clone()));
    let reachable = async || is_reachable(&session.client).await;
    let carried = carry_all((search, reachable), &args.transfer, &progress, single, |job: Job| {
        carry(session.client.clone(), job, options, (progress.clone(), stop.clone()))
    });
    tell(session, &args.transfer, "stored", carried.await)
}

/// Whether the remote path is a directory into which things go under their own names.
async fn target_directory(client: &Client, remote: &str, locals: &[String]) -> Result<bool> {
    if locals.len() > 1 && locals.iter().any(|local| local == "-") {
        return Err(usage("the standard input (-) is stored alone"));
    }
    let is_directory = match client.stat(trimmed(remote)).await {
        Ok(entry) => entry.is_directory(),
        Err(Error::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let must_be = locals.len() > 1;
    if must_be && !is_directory {
        return Err(usage(format!(
            "{remote} must be a directory to take several: `gfs mkdir {remote}` makes it"
        )));
    }
    if is_directory && locals == ["-"] {
        return Err(usage(format!(
            "{remote} is a directory and the standard input has no name: give a whole path"
        )));
    }
    Ok(is_directory)
}

async fn put_stdin(session: &Session, args: &Put, remote: &str, options: PutOptions) -> Result<()> {
    let progress = Progress::new(session, &args.transfer);
    let stop = stop_on_signal()?;
    let search = Search::start(&stop, |finds| async move {
        finds.send(Found::File(())).await.ok();
    });
    let carried = carry_all((search, async || true), &args.transfer, &progress, true, |()| {
        let (client, remote, moved) = (session.client.clone(), remote.to_owned(), progress.of_file(remote));
        let source = Stoppable::new(tokio::io::stdin(), &stop);
        async move { client.put(source, &remote, options, moved).await.map_err(put_error) }
    });
    tell(session, &args.transfer, "stored", carried.await)
}

/// Where a named file or directory goes.
fn root(args: &Put, local: &str, remote: &str, into: bool) -> Result<Job> {
    let path = PathBuf::from(local);
    let metadata = std::fs::metadata(&path).with_context(|| local.to_owned())?;
    if metadata.is_dir() && !args.recursive {
        return Err(usage(format!("{local} is a directory: -r stores it with all that lies in it")));
    }
    if !into && !metadata.is_dir() && remote.ends_with('/') {
        return Err(usage(format!("{remote} is no directory: `gfs mkdir {remote}` makes it")));
    }
    if !into {
        return Ok(Job { local: path, remote: trimmed(remote).to_owned(), named: true });
    }
    // Also `.` and `..` have a name: that of the directory they stand for.
    let named = if path.file_name().is_some() { path.clone() } else { path.canonicalize()? };
    let name = named.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| usage(format!("{local} has no name that can be stored")))?;
    Ok(Job { local: path, remote: join(trimmed(remote), name), named: true })
}

/// Of two sources with one name the later would take the place of the other, which nobody would notice.
fn check_names(roots: &[Job]) -> Result<()> {
    let mut names = BTreeMap::new();
    for Job { local, remote, .. } in roots {
        if let Some(other) = names.insert(remote, local) {
            return Err(usage(format!(
                "{} and {} would both be stored as {remote}: store them in different directories, one after the other",
                other.display(),
                local.display()
            )));
        }
    }
    Ok(())
}

/// Finds all files below the roots; a directory is made before what lies in it is told.
async fn search(client: Client, roots: Vec<Job>, finds: Finds<Job>, progress: Progress) {
    let mut waiting: Vec<Job> = roots.into_iter().rev().collect();
    while let Some(job) = waiting.pop() {
        let found = match look_at(&client, job, &mut waiting, &progress).await {
            Ok(found) => found,
            Err(error) => vec![Found::Failed(error)],
        };
        for found in found {
            if finds.send(found).await.is_err() {
                return;
            }
        }
    }
}

async fn look_at(
    client: &Client,
    job: Job,
    waiting: &mut Vec<Job>,
    progress: &Progress,
) -> Result<Vec<Found<Job>>> {
    let local = job.local.display().to_string();
    let metadata = tokio::fs::metadata(&job.local).await.with_context(|| local.clone())?;
    if metadata.is_file() || (job.named && !metadata.is_dir()) {
        progress.found(metadata.len());
        return Ok(vec![Found::File(job)]);
    }
    if !metadata.is_dir() {
        say(&format!("gfs: {local}: neither file nor directory, left out"));
        return Ok(vec![Found::Skipped]);
    }
    make_directory(client, &job.remote).await?;
    let first_below = waiting.len();
    let mut found = vec![Found::Directory];
    for entry in read_directory(job.local).await.with_context(|| local.clone())? {
        match entry {
            Below::Entry(path, name) => {
                waiting.push(Job { local: path, remote: join(&job.remote, &name), named: false });
            }
            Below::Link(path) => {
                say(&format!("gfs: {}: a link to a directory, left out", path.display()));
                found.push(Found::Skipped);
            }
            Below::Nameless(path) => found.push(Found::Failed(anyhow!(
                "{}: the name is no UTF-8, so it can't be stored: rename it",
                path.display()
            ))),
        }
    }
    waiting[first_below..].reverse();
    Ok(found)
}

async fn make_directory(client: &Client, remote: &str) -> Result<()> {
    match client.mkdir(remote).await {
        Ok(_) => Ok(()),
        Err(Error::AlreadyExists { .. }) if client.stat(remote).await?.is_directory() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What lies in a local directory.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Below {
    /// A file, a directory or something else, and its name.
    Entry(PathBuf, String),
    /// A link to a directory: it may lead in a circle.
    Link(PathBuf),
    /// Its name is no UTF-8.
    Nameless(PathBuf),
}

/// The entries of a local directory by name.
async fn read_directory(path: PathBuf) -> Result<Vec<Below>> {
    tokio::task::spawn_blocking(move || {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            let path = entry.path();
            entries.push(match entry.file_name().into_string() {
                Ok(_) if leads_away(&path) => Below::Link(path),
                Ok(name) => Below::Entry(path, name),
                Err(_) => Below::Nameless(path),
            });
        }
        entries.sort();
        Ok(entries)
    })
    .await?
}

fn leads_away(path: &Path) -> bool {
    path.is_symlink() && path.is_dir()
}

async fn carry(
    client: Client,
    job: Job,
    options: PutOptions,
    (progress, stop): (Progress, CancellationToken),
) -> Result<u64> {
    let local = || job.local.display().to_string();
    let file = open(&job.local, &stop).await.with_context(local)?;
    let moved = progress.of_file(&job.remote);
    let source = Stoppable::new(file, &stop);
    client.put(source, &job.remote, options, moved).await.map_err(put_error).with_context(local)
}

/// Opens a source; a pipe that nobody writes into opens when somebody does, which may be never.
async fn open(local: &Path, stop: &CancellationToken) -> Result<tokio::fs::File> {
    tokio::select! {
        file = tokio::fs::File::open(local) => Ok(file?),
        () = stop.cancelled() => Err(Interrupted.into()),
    }
}

/// A source that fails when the command is told to stop: then `put` removes what it has stored so far.
struct Stoppable<R> {
    source: R,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<R> Stoppable<R> {
    fn new(source: R, stop: &CancellationToken) -> Self {
        Self { source, stopped: Box::pin(stop.clone().cancelled_owned()) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Stoppable<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::other(Interrupted)));
        }
        Pin::new(&mut self.source).poll_read(cx, buf)
    }
}

/// What an interrupted source says is no error of this machine's files.
fn put_error(error: TransferError) -> anyhow::Error {
    match error {
        TransferError::Local(error) if error.get_ref().is_some_and(|inner| inner.is::<Interrupted>()) => {
            Interrupted.into()
        }
        error @ (TransferError::Local(_) | TransferError::Gfs(_)) => transfer_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sources_of_one_name_are_refused_and_both_are_named() {
        let job = |local: &str, remote: &str| Job { local: local.into(), remote: remote.into(), named: true };
        check_names(&[job("a/x", "/docs/x"), job("b/y", "/docs/y")]).unwrap();
        let told = check_names(&[job("a/x", "/docs/x"), job("b/y", "/docs/y"), job("b/x", "/docs/x")]);
        let told = told.unwrap_err();
        assert_eq!(crate::exit::code_of(&told), crate::exit::USAGE);
        assert!(told.to_string().starts_with("a/x and b/x would both be stored as /docs/x"), "{told}");
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_writes_into_does_not_keep_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let stop = CancellationToken::new();
        let (opened, ()) = tokio::join!(open(&pipe, &stop), async { stop.cancel() });
        assert_eq!(crate::exit::code_of(&opened.unwrap_err()), crate::exit::INTERRUPTED);
        // Lets go the thread that still waits, whenever it comes to that.
        std::mem::forget(std::fs::File::options().read(true).write(true).open(&pipe).unwrap());
    }
}
