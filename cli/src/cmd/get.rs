//! `gfs get`: files and trees of the cluster to this machine, or down a pipe.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use gfs_client::{Client, Entry, Error};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::args::Get;
use crate::cmd::transfer::{FOUND_MAX, Finds, Found, Progress, carry_all, tell};
use crate::cmd::{Session, join, last_name, transfer_error, trimmed};
use crate::exit::usage;

/// What is to be fetched: a file or a directory, and where to.
struct Job {
    remote: String,
    local: PathBuf,
    entry: Entry,
}

/// Fetches what is named.
pub(crate) async fn run(session: &Session, args: &Get) -> Result<()> {
    let remote = trimmed(&args.remote).to_owned();
    if args.local == "-" {
        let sent = session.client.get(&remote, tokio::io::stdout(), |_| {}).await;
        sent.map_err(transfer_error)?;
        return Ok(());
    }
    let entry = session.client.stat(&remote).await?;
    if entry.is_directory() && !args.recursive {
        return Err(usage(format!("{remote} is a directory: -r fetches it with all that lies in it")));
    }
    let single = entry.is_file();
    let mut local = PathBuf::from(&args.local);
    if local.is_dir() && remote != "/" {
        local.push(last_name(&remote));
    }
    let progress = Progress::new(session, &args.transfer);
    let (finds, found) = mpsc::channel(FOUND_MAX);
    let search = search(session.client.clone(), Job { remote, local, entry }, finds);
    let search = tokio::spawn(search);
    let force = args.force;
    let tally = carry_all(found, &args.transfer, &progress, single, |job: Job| {
        carry(session.client.clone(), job, force, progress.clone())
    });
    let tally = tally.await;
    search.abort();
    tell(session, &args.transfer, "fetched", &tally?)
}

/// Finds all files from the root down; a local directory is made before what lies in it is told.
async fn search(client: Client, root: Job, finds: Finds<Job>) {
    let mut directories = Vec::new();
    let found = if root.entry.is_file() {
        Found::File(root)
    } else {
        directories.push(root);
        Found::Directory
    };
    if finds.send(found).await.is_err() {
        return;
    }
    while let Some(directory) = directories.pop() {
        if let Err(error) = list(&client, &directory, &mut directories, &finds).await
            && finds.send(Found::Failed(error)).await.is_err()
        {
            return;
        }
    }
}

async fn list(
    client: &Client,
    directory: &Job,
    directories: &mut Vec<Job>,
    finds: &Finds<Job>,
) -> Result<()> {
    tokio::fs::create_dir_all(&directory.local)
        .await
        .with_context(|| format!("{} can't be made", directory.local.display()))?;
    let mut entries = client.list(&directory.remote);
    while let Some(entry) = entries.try_next().await? {
        let job = Job {
            remote: join(&directory.remote, &entry.name),
            local: directory.local.join(&entry.name),
            entry,
        };
        let found = if job.entry.is_file() {
            Found::File(job)
        } else {
            directories.push(job);
            Found::Directory
        };
        // The receiver has gone only when the transfer was given up.
        finds.send(found).await.ok().context("the transfer has ended")?;
    }
    Ok(())
}

async fn carry(client: Client, job: Job, force: bool, progress: Progress) -> Result<u64> {
    let local = &job.local;
    if !force && tokio::fs::try_exists(local).await.unwrap_or(false) {
        return Err(Error::AlreadyExists { path: local.display().to_string() }.into());
    }
    let aside = aside(&job);
    let fetched = fetch(&client, &job, &aside, &progress).await;
    let outcome = match fetched {
        Ok(bytes) => tokio::fs::rename(&aside, local).await.map(|()| bytes).map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        // Nothing half fetched stays; that it can't be removed is less than what went wrong before.
        tokio::fs::remove_file(&aside).await.ok();
    }
    outcome.with_context(|| local.display().to_string())
}

/// Where a file is written until it is whole.
fn aside(job: &Job) -> PathBuf {
    job.local.with_file_name(format!(".gfs-get-{}-{}", std::process::id(), job.entry.id))
}

async fn fetch(client: &Client, job: &Job, aside: &Path, progress: &Progress) -> Result<u64> {
    let mut sink = tokio::fs::File::create(aside).await?;
    let file = client.file(&job.entry)?;
    let mut reader = file.reader(0).await?;
    progress.found(reader.end());
    let mut moved = progress.of_file(&job.remote);
    let mut position = 0;
    while let Some(bytes) = reader.next().await? {
        sink.write_all(&bytes).await?;
        position += bytes.len() as u64;
        moved(position);
    }
    sink.flush().await?;
    Ok(position)
}
