//! One server process of a test cluster.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::binary::gfs_binary;
use crate::hosts::Hosts;

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
        let (name, wrapper, child, verbosity) = (name.to_owned(), Vec::new(), None, None);
        Self { name, address, arguments, log, hosts, wrapper, child, verbosity }
    }

    /// Lets another program start it, which becomes the server.
    pub(crate) fn wrap(&mut self, wrapper: Vec<OsString>) {
        self.wrapper.extend(wrapper);
    }

    /// Starts it. It is killed when the thread that started it ends, whatever becomes of the test.
    pub(crate) fn start(&mut self) -> Result<()> {
        anyhow::ensure!(self.child.is_none(), "it runs already");
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
        Ok(())
    }

    /// The process id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it does not run")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it at once and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Fails if it has ended by itself, with the end of its log.
    pub(crate) fn check_runs(&mut self) -> Result<()> {
        let Some(status) = self.ended()? else {
            return Ok(());
        };
        bail!("{} ended: {status}; the end of its log:\n{}", self.address, log_tail(&self.log));
    }

    /// How it ended, if it did by itself.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// The lines of its log that say a human must look.
    pub(crate) fn errors(&self) -> Vec<String> {
        [" ERROR ", "panicked at"].iter().flat_map(|part| self.lines_with(part)).collect()
    }

    /// The lines of its log with this text.
    pub(crate) fn lines_with(&self, part: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
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

fn log_tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
