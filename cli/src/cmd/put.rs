//! `gfs put`: files, trees and pipes of this machine into the cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gfs_client::{Client, Error, PutOptions};
use tokio::sync::mpsc;

use crate::args::Put;
use crate::cmd::transfer::{FOUND_MAX, Finds, Found, Progress, carry_all, tell};
use crate::cmd::{Session, join, transfer_error, trimmed};
use crate::exit::usage;

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
    let single = matches!(roots.as_slice(), [root] if !root.local.is_dir());
    let progress = Progress::new(session, &args.transfer);
    let (finds, found) = mpsc::channel(FOUND_MAX);
    let search = search(session.client.clone(), roots, finds, progress.clone());
    let search = tokio::spawn(search);
    let tally = carry_all(found, &args.transfer, &progress, single, |job: Job| {
        carry(session.client.clone(), job, options, progress.clone())
    });
    let tally = tally.await;
    search.abort();
    tell(session, &args.transfer, "stored", &tally?)
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
    let (finds, found) = mpsc::channel(1);
    finds.try_send(Found::File(())).ok().context("the queue is empty")?;
    drop(finds);
    let tally = carry_all(found, &args.transfer, &progress, true, |()| {
        let (client, remote, moved) = (session.client.clone(), remote.to_owned(), progress.of_file(remote));
        async move { client.put(tokio::io::stdin(), &remote, options, moved).await.map_err(transfer_error) }
    });
    tell(session, &args.transfer, "stored", &tally.await?)
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

/// Finds all files below the roots; a directory is made before what lies in it is told.
async fn search(client: Client, roots: Vec<Job>, finds: Finds<Job>, progress: Progress) {
    let mut waiting: Vec<Job> = roots.into_iter().rev().collect();
    while let Some(job) = waiting.pop() {
        let what = match look_at(&client, job, &mut waiting, &progress).await {
            Ok(found) => found,
            Err(error) => Found::Failed(error),
        };
        if finds.send(what).await.is_err() {
            return;
        }
    }
}

async fn look_at(
    client: &Client,
    job: Job,
    waiting: &mut Vec<Job>,
    progress: &Progress,
) -> Result<Found<Job>> {
    let local = job.local.display().to_string();
    let metadata = tokio::fs::metadata(&job.local).await.with_context(|| local.clone())?;
    if metadata.is_file() || (job.named && !metadata.is_dir()) {
        progress.found(metadata.len());
        return Ok(Found::File(job));
    }
    if !metadata.is_dir() {
        eprintln!("gfs: {local}: neither file nor directory, left out");
        return Ok(Found::Skipped);
    }
    make_directory(client, &job.remote).await?;
    let first_below = waiting.len();
    let (entries, left_out) = read_directory(job.local).await.with_context(|| local.clone())?;
    for name in left_out {
        eprintln!("gfs: {local}/{name}: a link to a directory, or a name that is no UTF-8: left out");
    }
    for (path, name) in entries {
        waiting.push(Job { local: path, remote: join(&job.remote, &name), named: false });
    }
    waiting[first_below..].reverse();
    Ok(Found::Directory)
}

async fn make_directory(client: &Client, remote: &str) -> Result<()> {
    match client.mkdir(remote).await {
        Ok(_) => Ok(()),
        Err(Error::AlreadyExists { .. }) if client.stat(remote).await?.is_directory() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

type Entries = (Vec<(PathBuf, String)>, Vec<String>);

/// The entries of a local directory by name. A link to a directory may lead in a circle: it is left out.
async fn read_directory(path: PathBuf) -> Result<Entries> {
    tokio::task::spawn_blocking(move || {
        let (mut entries, mut left_out) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            let path = entry.path();
            match entry.file_name().into_string() {
                Ok(name) if !leads_away(&path) => entries.push((path, name)),
                Ok(name) => left_out.push(name),
                Err(name) => left_out.push(name.to_string_lossy().into_owned()),
            }
        }
        entries.sort();
        Ok((entries, left_out))
    })
    .await?
}

fn leads_away(path: &Path) -> bool {
    path.is_symlink() && path.is_dir()
}

async fn carry(client: Client, job: Job, options: PutOptions, progress: Progress) -> Result<u64> {
    let file = match tokio::fs::File::open(&job.local).await {
        Ok(file) => file,
        Err(error) => bail!(anyhow::Error::from(error).context(job.local.display().to_string())),
    };
    let moved = progress.of_file(&job.remote);
    client.put(file, &job.remote, options, moved).await.map_err(transfer_error)
}
