//! `gfs fsck`: what the replicas of all chunks are, and decisions about those that wait for one (docs/decisions/0020).

mod show;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use futures::TryStreamExt;
use gfs_client::{CheckChunksReply, CheckedChunk, ChunkHealth, Entry, Error};
use gfs_proto::id::{ChunkHandle, ChunkVersion, EntryId, ServerId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::args::Fsck;
use crate::cmd::{Session, join, print_json, print_line, trimmed};
use crate::exit::{self, Failed};
use show::Spot;

/// Files asked for at a time, a page of chunks of each.
const FILES_AT_A_TIME: usize = 16;
/// How long a master that is still hearing from its chunkservers is waited for, and how often it is asked.
const COUNT_PATIENCE: Duration = Duration::from_secs(30);
const COUNT_PAUSE: Duration = Duration::from_millis(500);

/// Looks at a tree or file, or decides about a chunk.
pub(crate) async fn run(session: &Session, args: &Fsck) -> Result<()> {
    if let (Some((handle, version)), Some(server)) = (args.accept, args.from) {
        return decide(session, args, (handle, version), server).await;
    }
    let path = trimmed(&args.path);
    let entry = session.client.stat(path).await?;
    let mut walk = Walk { session, tally: Tally::default(), bar: bar(session, args) };
    let walked = if entry.is_file() { walk.one(path, &entry).await } else { walk.tree(path).await };
    walk.bar.finish_and_clear();
    walked?;
    walk.tally.tell(session)
}

/// Makes what one server holds the content of a chunk.
async fn decide(session: &Session, args: &Fsck, (handle, version): (u64, u64), server: u64) -> Result<()> {
    let given_up: Vec<ServerId> = args.given_up.iter().copied().map(ServerId::from_raw).collect();
    let (handle, server) = (ChunkHandle::from_raw(handle), ServerId::from_raw(server));
    let version = ChunkVersion::from_raw(version);
    let counts = match session.client.accept_replica(handle, version, server, &given_up).await {
        Err(Error::BadArgument { what }) => {
            let step = "`gfs fsck` shows what waits for a decision, and what each replica holds";
            return Err(Failed { what, step: step.into(), code: exit::USAGE }.into());
        }
        counts => counts?,
    };
    let told = json!({"handle": handle.raw(), "server": server.raw(), "version": counts.raw()});
    session.print(&told, || {
        format!(
            "{handle}: what {server} has is its content from {counts} on; the other replicas are made from it"
        )
    })
}

/// A line that moves, if anybody looks at it.
fn bar(session: &Session, args: &Fsck) -> ProgressBar {
    if args.quiet || session.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// What was found so far.
#[derive(Default)]
struct Tally {
    files: u64,
    chunks: u64,
    below_goal: u64,
    away: u64,
    waiting: u64,
    lost: u64,
    damaged: u64,
}

impl Tally {
    fn add(&mut self, chunk: &CheckedChunk) {
        self.damaged += u64::from(show::is_damaged(chunk));
        match chunk.health() {
            ChunkHealth::BelowGoal => self.below_goal += 1,
            ChunkHealth::Away | ChunkHealth::Unspecified => self.away += 1,
            ChunkHealth::Waiting => self.waiting += 1,
            ChunkHealth::Lost => self.lost += 1,
            ChunkHealth::Healthy => {}
        }
    }

    fn text(&self) -> String {
        let Self { files, chunks, below_goal, away, waiting, lost, damaged } = self;
        format!(
            "{files} files, {chunks} chunks: {waiting} wait for a decision, {lost} lost, {damaged} damaged, {away} away, \
             {below_goal} below their goal"
        )
    }

    /// Prints the sum, and says what to do about it.
    fn tell(&self, session: &Session) -> Result<()> {
        let Self { files, chunks, below_goal, away, waiting, lost, damaged } = *self;
        if session.json {
            print_json(&json!({"files": files, "chunks": chunks, "below_goal": below_goal, "away": away,
                               "waiting": waiting, "lost": lost, "damaged": damaged}))?;
        } else {
            print_line(&self.text())?;
        }
        let failed = |step: &str, code| Err(Failed { what: self.text(), step: step.into(), code }.into());
        match (waiting, lost, damaged, away + below_goal) {
            (1.., ..) => failed(
                "nobody reads those that wait before `gfs fsck --accept HANDLE@VERSION --from SERVER` has decided what they are",
                exit::CORRUPTION,
            ),
            (_, 1.., ..) => failed(
                "if the servers and disks that had them are gone for good: restore the files from a copy, or `gfs rm` them",
                exit::CORRUPTION,
            ),
            (_, _, 1.., _) => failed(
                "damaged replicas are replaced by good ones without your help; if they stay, `gfs df` shows whether there is room",
                exit::CORRUPTION,
            ),
            (.., 1..) => failed(
                "missing replicas are made up for; `gfs df` names the servers that are away",
                exit::UNAVAILABLE,
            ),
            (0, 0, 0, 0) => Ok(()),
        }
    }
}

/// A walk under way.
struct Walk<'a> {
    session: &'a Session,
    tally: Tally,
    bar: ProgressBar,
}

/// What a directory has.
enum Found {
    Directory(String),
    File(String, EntryId, CheckChunksReply),
    /// It went away while it was looked at.
    Gone,
}

impl Walk<'_> {
    async fn one(&mut self, path: &str, entry: &Entry) -> Result<()> {
        let first = self.page(entry.id, 0).await?;
        self.file(path, entry.id, first).await
    }

    /// Depth first, so that a wide tree needs little memory.
    async fn tree(&mut self, top: &str) -> Result<()> {
        let mut waiting = vec![top.to_owned()];
        while let Some(directory) = waiting.pop() {
            let session = self.session;
            let mut found = session
                .client
                .list(&directory)
                .map_ok(|entry| {
                    let path = join(&directory, &entry.name);
                    async move {
                        if entry.is_directory() {
                            return Ok(Found::Directory(path));
                        }
                        match page(session, entry.id, 0).await {
                            Ok(first) => Ok(Found::File(path, entry.id, first)),
                            Err(Error::NotFound { .. }) => Ok(Found::Gone),
                            Err(error) => Err(error),
                        }
                    }
                })
                .try_buffered(FILES_AT_A_TIME);
            loop {
                match found.try_next().await {
                    Ok(Some(Found::Directory(path))) => waiting.push(path),
                    Ok(Some(Found::File(path, id, first))) => self.file(&path, id, first).await?,
                    Ok(Some(Found::Gone)) => {}
                    Ok(None) => break,
                    Err(Error::NotFound { .. }) if directory != top => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    async fn page(&self, file: EntryId, first: u32) -> Result<CheckChunksReply, Error> {
        page(self.session, file, first).await
    }

    /// The chunks of a file, page by page.
    async fn file(&mut self, path: &str, id: EntryId, first: CheckChunksReply) -> Result<()> {
        self.tally.files += 1;
        let (mut page, mut checked) = (first, 0);
        loop {
            checked += page.checked;
            self.tally.chunks += u64::from(page.checked);
            for chunk in page.unhealthy {
                self.chunk(path, chunk).await?;
            }
            self.bar.set_message(self.tally.text());
            self.bar.tick();
            if page.checked == 0 || checked >= page.chunk_count {
                return Ok(());
            }
            page = match self.page(id, checked).await {
                Err(Error::NotFound { .. }) => return Ok(()),
                page => page?,
            };
        }
    }

    async fn chunk(&mut self, path: &str, chunk: CheckedChunk) -> Result<()> {
        let spot = Spot { path, index: chunk.index };
        let is_plain = chunk.health() == ChunkHealth::BelowGoal && !show::is_damaged(&chunk);
        // What needs a human is looked at closely; the servers may say something else by now.
        let chunk = if is_plain { chunk } else { self.closely(chunk).await? };
        if chunk.health() == ChunkHealth::Healthy && !show::is_damaged(&chunk) {
            return Ok(());
        }
        self.tally.add(&chunk);
        let (session, bar) = (self.session, &self.bar);
        bar.suspend(|| session.print(&show::as_json(&spot, &chunk), || show::as_text(&spot, &chunk)))
    }

    async fn closely(&self, known: CheckedChunk) -> Result<CheckedChunk, Error> {
        match self.session.client.inspect_chunk(ChunkHandle::from_raw(known.handle)).await {
            // Copied or removed meanwhile.
            Err(Error::NoSuchChunk { .. }) => {
                Ok(CheckedChunk { health: ChunkHealth::Healthy.into(), replicas: vec![], ..known })
            }
            inspected => inspected,
        }
    }
}

/// A page of chunks, from a master that has heard from its chunkservers.
async fn page(session: &Session, file: EntryId, first: u32) -> Result<CheckChunksReply, Error> {
    let counted = async {
        loop {
            let page = session.client.check_chunks(file, first).await?;
            if page.counted {
                return Ok(page);
            }
            tokio::time::sleep(COUNT_PAUSE).await;
        }
    };
    let waited = tokio::time::timeout(COUNT_PATIENCE, counted).await;
    waited.unwrap_or_else(|_| {
        Err(Error::unavailable("chunkservers are still telling the leader what they have"))
    })
}
