//! One server process of a test cluster.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::binary::gfs_binary;
use crate::hosts::Hosts;

/// The end of a server that nobody has brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who, how, and the last line that it has logged.
    pub what: String,
    /// Killed by somebody else: by the kernel for want of memory, as a rule. That says nothing about the server.
    pub from_outside: bool,
}

/// A server: how it is started, and its process while it runs.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    pub(crate) address: String,
    arguments: Vec<OsString>,
    log: PathBuf,
    hosts: Arc<dyn Hosts>,
    /// Stands before the command line; ends by becoming the program after it.
    wrapper: Vec<OsString>,
    child: Option<Child>,
    /// Whether it was killed from here, so that its end is no news.
    killed: bool,
    /// How it ended by itself; until it is killed or started again.
    ended: Option<ExitStatus>,
    /// Whether it may end by itself in this life: it was given a reason.
    excused: bool,
    /// Its ends without one.
    ends: Vec<End>,
    /// What it logs, if not as this process does.
    pub(crate) verbosity: Option<&'static str>,
}

impl Process {
    /// A server that is not started yet.
    pub(crate) fn new(
        name: &str,
        address: String,
        arguments: Vec<OsString>,
        log: PathBuf,
        hosts: Arc<dyn Hosts>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address,
            arguments,
            log,
            hosts,
            wrapper: Vec::new(),
            child: None,
            killed: false,
            ended: None,
            excused: false,
            ends: Vec::new(),
            verbosity: None,
        }
    }

    /// Lets another program start it, which becomes the server.
    pub(crate) fn wrap(&mut self, wrapper: Vec<OsString>) {
        self.wrapper.extend(wrapper);
    }

    /// Starts it. It is killed when the thread that started it ends, whatever becomes of the test.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.look()?;
        ensure!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let words = [&self.wrapper[..], &[gfs_binary()?.into()], &self.arguments].concat();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("GFS_PARENT_PID", std::process::id().to_string())
            .env_remove("GFS_MASTERS")
            .env_remove("GFS_CONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(verbosity) = self.verbosity {
            command.env("RUST_LOG", verbosity);
        }
        self.child = Some(self.hosts.spawn(&self.name, &mut command)?);
        (self.killed, self.ended, self.excused) = (false, None, false);
        Ok(())
    }

    /// Starts it where it may end at once.
    pub(crate) fn start_to_refuse(&mut self) -> Result<()> {
        self.start()?;
        // Without a look: it may have ended already.
        self.excused = true;
        Ok(())
    }

    /// The process id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(self.signal_if_it_runs(signal)?, "{} does not run", self.name);
        Ok(())
    }

    /// The same if it runs; whether it does.
    pub(crate) fn signal_if_it_runs(&mut self, signal: Signal) -> Result<bool> {
        // Who has ended takes signals until somebody takes note of the end.
        self.look()?;
        let Some(id) = self.id() else { return Ok(false) };
        self.killed |= signal == Signal::KILL;
        kill_process(Pid::from_raw(id.cast_signed()).context("no process id")?, signal)?;
        Ok(true)
    }

    /// Kills it at once and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.look()?;
        if let Some(child) = &mut self.child {
            self.killed = true;
            child.kill()?;
            let status = child.wait()?;
            self.note(status);
        }
        self.ended = None;
        Ok(())
    }

    /// Takes note of its end, if it has ended.
    pub(crate) fn look(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.note(status);
        }
        Ok(())
    }

    fn note(&mut self, status: ExitStatus) {
        self.child = None;
        let by_signal = status.signal() == Some(Signal::KILL.as_raw());
        if self.killed && by_signal {
            return;
        }
        self.ended = Some(status);
        if !self.excused {
            let last = self.log_tail().lines().last().unwrap_or_default().to_owned();
            let what = format!("{} ended by itself: {status}; the last line of its log: {last:?}", self.name);
            self.ends.push(End { what, from_outside: by_signal });
        }
    }

    /// It may end by itself until it is started again: it was given a reason.
    pub(crate) fn excuse(&mut self) -> Result<()> {
        // Not for what was before.
        self.look()?;
        self.excused = true;
        Ok(())
    }

    /// Fails if it has ended by itself without a reason, with the end of its log; until it is started again.
    pub(crate) fn check_runs(&mut self) -> Result<()> {
        self.look()?;
        match self.ended {
            Some(status) if !self.excused => {
                bail!("{} ended: {status}; the end of its log:\n{}", self.name, self.log_tail())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How it ended, if it did by itself. Whoever asks has expected it.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.look()?;
        let ended = self.ended.take();
        if ended.is_some() && !self.excused {
            self.ends.pop();
        }
        Ok(ended)
    }

    /// Its ends without a reason that were not told before.
    pub(crate) fn take_ends(&mut self) -> Result<Vec<End>> {
        self.look()?;
        Ok(std::mem::take(&mut self.ends))
    }

    /// The lines of its log that say a human must look.
    pub(crate) fn errors(&self) -> Vec<String> {
        [" ERROR ", "panicked at"].iter().flat_map(|part| self.lines_with(part)).collect()
    }

    /// The lines of its log with this text.
    pub(crate) fn lines_with(&self, part: &str) -> Vec<String> {
        read_log(&self.log).lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} can't be killed: {error:#}", self.address);
        }
    }
}

/// A kill may tear a line in the middle of a character.
fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn log_tail(path: &Path) -> String {
    let text = read_log(path);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Loopback;
    use crate::wait::eventually;
    use std::time::Duration;

    /// A "server" that is a shell with this script, in place of the program that would stand after the wrapper.
    fn server(directory: &Path, script: &str) -> Process {
        let log = directory.join("log");
        let mut process =
            Process::new("chunkserver-3", "127.0.0.1:1".into(), vec![], log, Arc::new(Loopback));
        process.wrap(["sh", "-c", script].into_iter().map(OsString::from).collect());
        process
    }

    /// Waits for its end without taking note of it.
    async fn wait_for_end(process: &Process) {
        let stat = format!("/proc/{}/stat", process.id().unwrap());
        eventually("it ends", Duration::from_secs(30), async || {
            let text = std::fs::read_to_string(&stat)?;
            ensure!(text.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'), "{text}");
            Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn an_end_without_a_reason_stays_known_and_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = server(directory.path(), "echo last words; exit 3");
        process.start().unwrap();
        wait_for_end(&process).await;
        for _ in 0..2 {
            let error = process.check_runs().unwrap_err();
            assert!(error.to_string().contains("last words"), "each look finds it: {error}");
        }
        assert!(process.signal(Signal::STOP).is_err(), "who has ended can't be paused");
        process.kill().unwrap();
        process.start().unwrap();
        process.kill().unwrap();
        let ends = process.take_ends().unwrap();
        assert!(!ends.is_empty() && ends[0].what.contains("chunkserver-3 ended by itself"), "{ends:?}");
        assert!(ends[0].what.contains("last words") && !ends[0].from_outside, "{ends:?}");
        assert_eq!(process.take_ends().unwrap(), []);
    }

    #[tokio::test]
    async fn an_end_that_was_brought_about_or_expected_is_no_news() {
        let directory = tempfile::tempdir().unwrap();
        let mut lives = server(directory.path(), "sleep 60");
        lives.start().unwrap();
        lives.kill().unwrap();
        lives.start().unwrap();
        // As when all are killed first and waited for then.
        lives.signal(Signal::KILL).unwrap();
        wait_for_end(&lives).await;
        lives.kill().unwrap();
        lives.check_runs().unwrap();
        assert_eq!(lives.take_ends().unwrap(), []);
        let mut ends = server(directory.path(), "sleep 0.3; exit 3");
        ends.start().unwrap();
        ends.excuse().unwrap();
        wait_for_end(&ends).await;
        ends.check_runs().unwrap();
        ends.start().unwrap();
        wait_for_end(&ends).await;
        assert_eq!(ends.ended().unwrap().and_then(|status| status.code()), Some(3));
        ends.check_runs().unwrap();
        assert_eq!(ends.take_ends().unwrap(), []);
    }

    #[tokio::test]
    async fn a_reason_excuses_nothing_that_was_before() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = server(directory.path(), "exit 3");
        process.start().unwrap();
        wait_for_end(&process).await;
        process.excuse().unwrap();
        process.kill().unwrap();
        assert_eq!(process.take_ends().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_is_killed_from_outside_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = server(directory.path(), "kill -9 $$");
        process.start().unwrap();
        wait_for_end(&process).await;
        let ends = process.take_ends().unwrap();
        assert!(ends.len() == 1 && ends[0].from_outside, "{ends:?}");
    }

    #[test]
    fn a_byte_that_is_no_text_hides_no_panic() {
        let directory = tempfile::tempdir().unwrap();
        let process = server(directory.path(), "");
        std::fs::write(directory.path().join("log"), b"torn \xc3\nthread 'x' panicked at src/lib.rs:1\n")
            .unwrap();
        assert_eq!(process.errors().len(), 1);
    }
}
