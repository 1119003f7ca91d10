//! Many files at a time, for `put` and `get`: bounded, with a progress bar, going on after a failure.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::args::Transfer;
use crate::cmd::Session;
use crate::exit::{self, SomeFailed};
use crate::units::show_bytes;

/// Files found and not yet begun.
pub(crate) const FOUND_MAX: usize = 1024;

/// What a transfer came to.
#[derive(Serialize, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
    /// Neither files nor directories: links to directories, sockets and the like.
    pub(crate) skipped: u64,
    failed: u64,
    seconds: f64,
    /// Longest time in which nothing moved.
    longest_stall_ms: u64,
}

/// What the search for files finds.
pub(crate) enum Found<J> {
    /// A file to be carried.
    File(J),
    /// A directory, made already on the other side.
    Directory,
    /// Something that can't be carried, which was told to the user.
    Skipped,
    /// A failure of the search itself.
    Failed(anyhow::Error),
}

/// Where the search puts what it finds.
pub(crate) type Finds<J> = mpsc::Sender<Found<J>>;

/// How far a transfer is; shown on a terminal, counted anyway.
#[derive(Clone)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Behind a lock because every file's task moves it; held for a comparison.
    stall: Arc<Mutex<Stall>>,
}

/// When something last moved, and the longest time in which nothing did.
struct Stall {
    last: Instant,
    longest: Duration,
}

impl Stall {
    fn moved(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

impl Progress {
    /// A bar, if anybody looks at it.
    pub(crate) fn new(session: &Session, args: &Transfer) -> Self {
        let stall = Arc::new(Mutex::new(Stall { last: Instant::now(), longest: Duration::ZERO }));
        if args.quiet || session.json || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), stall };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, stall }
    }

    /// Another file of this length has been found.
    pub(crate) fn found(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    /// A callback that hears the position within one file.
    pub(crate) fn of_file(&self, name: &str) -> impl FnMut(u64) + Send + use<> {
        let (bar, stall) = (self.bar.clone(), self.stall.clone());
        bar.set_message(name.to_owned());
        let mut last = 0;
        move |position: u64| {
            stall.lock().moved();
            bar.inc(position.saturating_sub(last));
            last = position;
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

/// Carries everything that is found, at most `args.jobs` files at a time. A failure of one file is told and
/// the others go on, unless the cluster can't be reached; `single` files fail by themselves.
///
/// # Errors
/// The failure of a single file, or that some of many failed.
pub(crate) async fn carry_all<J, F>(
    mut found: mpsc::Receiver<Found<J>>,
    args: &Transfer,
    progress: &Progress,
    single: bool,
    carry: impl Fn(J) -> F,
) -> Result<Tally>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let started = Instant::now();
    let mut running = JoinSet::new();
    let mut outcome = Outcome { tally: Tally::default(), first: None, single, progress: progress.clone() };
    let mut more = true;
    loop {
        let room = running.len() < usize::from(args.jobs);
        tokio::select! {
            Some(done) = running.join_next() => outcome.note(done.unwrap_or_else(|error| Err(anyhow!(error)))),
            next = found.recv(), if room && more => match next {
                Some(Found::File(job)) => { running.spawn(carry(job)); }
                Some(Found::Directory) => outcome.tally.directories += 1,
                Some(Found::Skipped) => outcome.tally.skipped += 1,
                Some(Found::Failed(error)) => outcome.note(Err(error)),
                None => more = false,
            },
            else => break,
        }
        // Every other file would wait for the whole deadline as well.
        if outcome.first.as_ref().is_some_and(|error| exit::code_of(error) == exit::UNAVAILABLE) {
            break;
        }
    }
    progress.bar.finish_and_clear();
    outcome.finish(started.elapsed())
}

struct Outcome {
    tally: Tally,
    first: Option<anyhow::Error>,
    single: bool,
    progress: Progress,
}

impl Outcome {
    fn note(&mut self, done: Result<u64>) {
        self.progress.stall.lock().moved();
        match done {
            Ok(bytes) => {
                self.tally.files += 1;
                self.tally.bytes += bytes;
            }
            Err(error) => {
                self.tally.failed += 1;
                if !self.single {
                    self.progress.say(&format!("gfs: {error:#}"));
                }
                self.first.get_or_insert(error);
            }
        }
    }

    fn finish(mut self, took: Duration) -> Result<Tally> {
        self.tally.seconds = took.as_secs_f64();
        let longest = self.progress.stall.lock().longest;
        self.tally.longest_stall_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        match self.first {
            None => Ok(self.tally),
            Some(error) if self.single => Err(error),
            Some(error) => {
                let all = self.tally.files + self.tally.failed;
                Err(SomeFailed { failed: self.tally.failed, all, code: exit::code_of(&error) }.into())
            }
        }
    }
}

/// Tells what was carried: as JSON, or on a terminal in one line.
pub(crate) fn tell(session: &Session, args: &Transfer, verb: &str, tally: &Tally) -> Result<()> {
    if session.json {
        return session.print(tally, String::new);
    }
    if !args.quiet && std::io::stderr().is_terminal() {
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let speed = tally.bytes as f64 / 1e6 / tally.seconds.max(1e-3);
        eprintln!(
            "{verb} {} files, {} in {:.1} s ({speed:.0} MB/s)",
            tally.files,
            show_bytes(tally.bytes),
            tally.seconds
        );
    }
    Ok(())
}
