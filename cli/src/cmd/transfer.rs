//! Many files at a time, for `put` and `get`: bounded, with a progress bar, going on after a failure.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use gfs_client::Client;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::args::Transfer;
use crate::cmd::dev::StopSignal;
use crate::cmd::{Session, print_json, visible};
use crate::exit::{self, Interrupted, SomeFailed};
use crate::units::show_bytes;

/// Files found and not yet begun.
const FOUND_MAX: usize = 1024;
/// How long a master has to answer, after a file failed as if nobody did, for the others to be tried.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// How long those under way have to remove what they have stored, if no master answers: longer than each of them tries.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// What a transfer came to.
#[derive(Serialize, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
    /// Neither files nor directories, as links to directories and sockets; of the cluster, what is not stored to its end.
    pub(crate) skipped: u64,
    failed: u64,
    seconds: f64,
    /// Longest time in which nothing moved.
    longest_stall_ms: u64,
}

/// What was carried, and what went wrong.
pub(crate) struct Carried {
    tally: Tally,
    error: Option<anyhow::Error>,
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

/// A search under way. Ends with whoever listens to it.
pub(crate) struct Search<J> {
    found: mpsc::Receiver<Found<J>>,
    task: AbortOnDropHandle<()>,
    /// Ends the transfer.
    stop: CancellationToken,
}

impl<J: Send + 'static> Search<J> {
    /// Begins to search.
    pub(crate) fn start<F>(stop: &CancellationToken, search: impl FnOnce(Finds<J>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (finds, found) = mpsc::channel(FOUND_MAX);
        Self { found, task: AbortOnDropHandle::new(tokio::spawn(search(finds))), stop: stop.clone() }
    }
}

/// Ctrl-C, SIGTERM or the end of the terminal: the first cancels this, so that what is half done is removed; another Ctrl-C
/// or SIGTERM ends the process.
///
/// # Errors
/// The signals can't be listened to.
pub(crate) fn stop_on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut signal = StopSignal::listen()?;
    let mut hangup = if ignores_hangup() { None } else { Some(unix::signal(SignalKind::hangup())?) };
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = signal.received() => {}
            Some(()) = async { hangup.as_mut()?.recv().await } => {}
        }
        token.cancel();
        signal.received().await;
        std::process::exit(exit::INTERRUPTED.into());
    });
    Ok(stop)
}

/// Whether the end of the terminal ends nothing, as under `nohup`: to listen for it would change that.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // One bit for each signal; this one is the first.
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 == 1)
}

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
        bar.set_message(visible(name));
        let mut last = 0;
        move |position: u64| {
            stall.lock().moved();
            bar.inc(position.saturating_sub(last));
            last = position;
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| exit::say(text));
    }
}

/// Carries everything that is found, at most `args.jobs` files at a time. A failure of one file is told and
/// the others go on, unless the cluster can't be reached; `single` files fail by themselves. What went wrong in the end is
/// the failure of a single file, or that some of many failed.
pub(crate) async fn carry_all<J, F>(
    (mut search, is_reachable): (Search<J>, impl AsyncFn() -> bool),
    args: &Transfer,
    progress: &Progress,
    single: bool,
    carry: impl Fn(J) -> F,
) -> Carried
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let started = Instant::now();
    let mut running = JoinSet::new();
    let mut outcome = Outcome::new(single, progress);
    let (mut more, mut stopped) = (true, false);
    loop {
        if running.is_empty() && (!more || stopped) {
            break;
        }
        let room = running.len() < usize::from(args.jobs) && !stopped;
        let mut unavailable = false;
        tokio::select! {
            // Those under way end by themselves.
            () = search.stop.cancelled(), if !stopped => stopped = true,
            Some(done) = running.join_next() => {
                unavailable = outcome.note(done.unwrap_or_else(|error| Err(anyhow!(error))));
            }
            next = search.found.recv(), if room && more => match next {
                Some(Found::File(job)) => { running.spawn(carry(job)); }
                Some(Found::Directory) => outcome.tally.directories += 1,
                Some(Found::Skipped) => outcome.tally.skipped += 1,
                Some(Found::Failed(error)) => unavailable = outcome.note(Err(error)),
                None => more = false,
            },
        }
        // Every other file would wait for the whole deadline as well; a file that has lost its replicas waits alone.
        if unavailable && !stopped && !is_reachable().await {
            outcome.given_up = more;
            search.stop.cancel();
            drain(&mut running, &mut outcome).await;
            break;
        }
    }
    progress.bar.finish_and_clear();
    if stopped {
        return Carried { error: Some(Interrupted.into()), ..outcome.finish(started.elapsed()) };
    }
    // One that broke off has not found everything.
    if !more && let Err(error) = (&mut search.task).await {
        outcome.note(Err(anyhow!(error).context("the search for files")));
    }
    outcome.finish(started.elapsed())
}

/// Lets those under way come to their end, but not for ever. Who is ended before has said itself what may be left behind.
async fn drain(running: &mut JoinSet<Result<u64>>, outcome: &mut Outcome) {
    let ends = async {
        while let Some(done) = running.join_next().await {
            outcome.note(done.unwrap_or_else(|error| Err(anyhow!(error))));
        }
    };
    tokio::time::timeout(DRAIN_PATIENCE, ends).await.ok();
    outcome.tally.failed += running.len() as u64;
    running.shutdown().await;
}

/// Whether the cluster answers at all.
pub(crate) async fn is_reachable(client: &Client) -> bool {
    tokio::time::timeout(PROBE_PATIENCE, client.stat("/")).await.is_ok_and(|answer| answer.is_ok())
}

struct Outcome {
    tally: Tally,
    first: Option<anyhow::Error>,
    single: bool,
    given_up: bool,
    progress: Progress,
}

impl Outcome {
    fn new(single: bool, progress: &Progress) -> Self {
        Self { tally: Tally::default(), first: None, single, given_up: false, progress: progress.clone() }
    }

    /// Takes note of one file; whether it failed because somebody did not answer.
    fn note(&mut self, done: Result<u64>) -> bool {
        self.progress.stall.lock().moved();
        match done {
            Ok(bytes) => {
                self.tally.files += 1;
                self.tally.bytes += bytes;
                false
            }
            Err(error) => {
                self.tally.failed += 1;
                if !self.single && exit::code_of(&error) != exit::INTERRUPTED {
                    self.progress.say(&format!("gfs: {error:#}"));
                }
                let unavailable = exit::code_of(&error) == exit::UNAVAILABLE;
                self.first.get_or_insert(error);
                unavailable
            }
        }
    }

    fn finish(mut self, took: Duration) -> Carried {
        self.tally.seconds = took.as_secs_f64();
        let longest = self.progress.stall.lock().longest;
        self.tally.longest_stall_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let (failed, all) = (self.tally.failed, self.tally.files + self.tally.failed);
        let error = self.first.map(|error| match self.single {
            true => error,
            false => {
                let (given_up, code) = (self.given_up, exit::code_of(&error));
                SomeFailed { failed, all, given_up, code }.into()
            }
        });
        Carried { tally: self.tally, error }
    }
}

/// Tells what was carried: as JSON also if something went wrong, on a terminal in one line.
///
/// # Errors
/// What went wrong.
pub(crate) fn tell(session: &Session, args: &Transfer, verb: &str, carried: Carried) -> Result<()> {
    let Carried { tally, error } = carried;
    if session.json {
        print_json(&tally)?;
    }
    if let Some(error) = error {
        return Err(error);
    }
    if !session.json && !args.quiet && std::io::stderr().is_terminal() {
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let speed = tally.bytes as f64 / 1e6 / tally.seconds.max(1e-3);
        exit::say(&format!(
            "{verb} {} files, {} in {:.1} s ({speed:.0} MB/s)",
            tally.files,
            show_bytes(tally.bytes),
            tally.seconds
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use gfs_client::Error;

    use super::*;

    fn progress() -> Progress {
        let stall = Arc::new(Mutex::new(Stall { last: Instant::now(), longest: Duration::ZERO }));
        Progress { bar: ProgressBar::hidden(), stall }
    }

    /// Carries a hundred files, of which the second and the tenth fail because nobody answers.
    async fn carried(reachable: bool) -> (anyhow::Error, Tally) {
        let search = Search::start(&CancellationToken::new(), |finds| async move {
            for number in 0..100 {
                finds.send(Found::File(number)).await.ok();
            }
        });
        let (done, args) = (Arc::new(AtomicUsize::new(0)), Transfer { jobs: 1, quiet: true });
        let progress = progress();
        let tally = carry_all((search, async || reachable), &args, &progress, false, |number: u64| {
            let done = done.clone();
            async move {
                match number {
                    0 => Err(Error::AlreadyExists { path: "/0".into() }.into()),
                    2 | 10 => Err(Error::DeadlineExceeded { waited_ms: 1, last: String::new() }.into()),
                    _ => Ok(done.fetch_add(1, Ordering::Relaxed) as u64),
                }
            }
        });
        let Carried { tally, error } = tally.await;
        assert_eq!(tally.files, done.load(Ordering::Relaxed) as u64);
        (error.unwrap(), tally)
    }

    #[tokio::test]
    async fn one_file_that_nobody_answers_for_stops_the_others_only_if_no_master_does() {
        let (told, tally) = carried(true).await;
        assert_eq!((told.to_string(), tally.failed, tally.files), ("3 of 100 failed".to_owned(), 3, 97));
        assert_eq!(exit::code_of(&told), exit::EXISTS);
        let (told, tally) = carried(false).await;
        assert_eq!((tally.failed, tally.files), (2, 1));
        assert!(told.to_string().starts_with("2 of 3 failed, the others were not tried"), "{told}");
    }

    #[tokio::test]
    async fn those_under_way_when_no_master_answers_remove_what_they_have_stored() {
        let stop = CancellationToken::new();
        let search = Search::start(&stop, |finds| async move {
            for number in 0..3 {
                finds.send(Found::File(number)).await.ok();
            }
        });
        let (removed, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Barrier::new(3)));
        let (args, progress) = (Transfer { jobs: 3, quiet: true }, progress());
        let carried = carry_all((search, async || false), &args, &progress, false, |number: u64| {
            let (removed, begun, stop) = (removed.clone(), begun.clone(), stop.clone());
            async move {
                begun.wait().await;
                if number == 0 {
                    return Err(Error::DeadlineExceeded { waited_ms: 1, last: String::new() }.into());
                }
                stop.cancelled().await;
                removed.fetch_add(1, Ordering::Relaxed);
                Err(Interrupted.into())
            }
        });
        assert_eq!((carried.await.tally.failed, removed.load(Ordering::Relaxed)), (3, 2));
    }

    #[tokio::test]
    async fn a_search_that_breaks_off_is_a_failure() {
        let search = Search::start(&CancellationToken::new(), |finds| async move {
            finds.send(Found::File(())).await.ok();
            panic!("nobody saw this");
        });
        let (args, progress) = (Transfer { jobs: 2, quiet: true }, progress());
        let tally = carry_all((search, async || true), &args, &progress, false, |()| async { Ok(1) });
        assert_eq!(tally.await.error.unwrap().to_string(), "1 of 2 failed");
    }
}
