//! `gfs get`: files and trees of the cluster to this machine, or down a pipe.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use gfs_client::{Client, Entry, Error, is_unfinished};
use gfs_proto::random::{Random, SystemRandom};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::args::Get;
use crate::cmd::transfer::{Finds, Found, Progress, Search, carry_all, is_reachable, stop_on_signal, tell};
use crate::cmd::{Session, join, last_name, transfer_error, trimmed};
use crate::exit::{Interrupted, say, usage};

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
    let root = Job { remote, local, entry };
    let stop = stop_on_signal()?;
    let search = Search::start(&stop, |finds| search(session.client.clone(), root, finds));
    let reachable = async || is_reachable(&session.client).await;
    let force = args.force;
    let carried = carry_all((search, reachable), &args.transfer, &progress, single, |job: Job| {
        carry(session.client.clone(), job, force, (progress.clone(), stop.clone()))
    });
    tell(session, &args.transfer, "fetched", carried.await)
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
        let found = if job.entry.is_file() && is_unfinished(&job.entry.name) {
            say(&format!(
                "gfs: {}: somebody stores it, or has not stored it to its end; left out",
                job.remote
            ));
            Found::Skipped
        } else if job.entry.is_file() {
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

async fn carry(
    client: Client,
    job: Job,
    force: bool,
    (progress, stop): (Progress, CancellationToken),
) -> Result<u64> {
    let fetched = tokio::select! {
        fetched = fetch(&client, &job, force, &progress) => fetched,
        () = stop.cancelled() => Err(Interrupted.into()),
    };
    fetched.with_context(|| job.local.display().to_string())
}

/// Fetches a file. What is there before is replaced only when all is here, and only by force; a pipe or device is
/// written into, and a link stays one.
async fn fetch(client: &Client, job: &Job, force: bool, progress: &Progress) -> Result<u64> {
    let local = tokio::fs::canonicalize(&job.local).await.unwrap_or_else(|_| job.local.clone());
    match tokio::fs::metadata(&local).await {
        Ok(there) if !there.is_file() && !there.is_dir() => {
            let mut sink = tokio::fs::File::options().write(true).open(&local).await?;
            let bytes = copy_into(client, job, &mut sink, progress).await?;
            // Pipes and terminals know no sync.
            if there.file_type().is_block_device() {
                sink.sync_data().await?;
            }
            return Ok(bytes);
        }
        Ok(_) if !force => return Err(exists(&local)),
        Ok(_) | Err(_) => {}
    }
    let (aside, mut sink) = Aside::create(&local).await?;
    let bytes = copy_into(client, job, &mut sink, progress).await?;
    aside.become_whole(&sink, &local, force).await?;
    Ok(bytes)
}

fn exists(local: &Path) -> anyhow::Error {
    Error::AlreadyExists { path: local.display().to_string() }.into()
}

/// A file that is not whole yet, beside the place where it will be. Nothing half fetched stays: it is removed with this.
struct Aside(PathBuf);

impl Aside {
    async fn create(local: &Path) -> Result<(Self, tokio::fs::File)> {
        // Nobody else's name: others may fetch the same file to the same place.
        let name = format!(".gfs-get-{:016x}", SystemRandom.bits64());
        let path = local.with_file_name(name);
        let sink = tokio::fs::File::options().write(true).create_new(true).open(&path).await?;
        Ok((Self(path), sink))
    }

    /// Gives it its name, in one step; without force only if nothing has it meanwhile. All of it is on the disk before: a full
    /// one, a quota or a server may say no only then, and what stood there has to stay.
    async fn become_whole(&self, sink: &tokio::fs::File, local: &Path, force: bool) -> Result<()> {
        sink.sync_data().await?;
        if force {
            return Ok(tokio::fs::rename(&self.0, local).await?);
        }
        match tokio::fs::hard_link(&self.0, local).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(local)),
            // A file system without links.
            Err(_) if tokio::fs::try_exists(local).await? => Err(exists(local)),
            Err(_) => Ok(tokio::fs::rename(&self.0, local).await?),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After a rename it is not there any more.
        std::fs::remove_file(&self.0).ok();
    }
}

async fn copy_into(
    client: &Client,
    job: &Job,
    sink: &mut tokio::fs::File,
    progress: &Progress,
) -> Result<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_come_to_stand_there_meanwhile_stays_and_nothing_half_fetched_does() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("out");
        let (first, _first_sink) = Aside::create(&local).await.unwrap();
        let (second, mut sink) = Aside::create(&local).await.unwrap();
        assert_ne!(first.0, second.0);
        sink.write_all(b"fetched").await.unwrap();
        sink.flush().await.unwrap();
        std::fs::write(&local, "somebody's").unwrap();
        let told = second.become_whole(&sink, &local, false).await.unwrap_err();
        assert_eq!(crate::exit::code_of(&told), crate::exit::EXISTS);
        assert_eq!(std::fs::read(&local).unwrap(), b"somebody's");
        second.become_whole(&sink, &local, true).await.unwrap();
        assert_eq!(std::fs::read(&local).unwrap(), b"fetched");
        drop((first, second));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_the_disk_does_not_take_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("out");
        std::fs::write(&local, "good").unwrap();
        let (aside, _sink) = Aside::create(&local).await.unwrap();
        // A pipe takes what is written and refuses to sync it.
        let (_reader, writer) = io::pipe().unwrap();
        let refuses = tokio::fs::File::from_std(std::os::fd::OwnedFd::from(writer).into());
        aside.become_whole(&refuses, &local, true).await.unwrap_err();
        assert_eq!(std::fs::read(&local).unwrap(), b"good");
    }
}
