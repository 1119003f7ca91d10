//! The child processes of a dev cluster: each with its log, all ended when the parent ends, however that happens.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::plan::Server;
use crate::parent;

/// How long the servers may take to stop before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// All servers of the cluster, by name.
pub(crate) struct Children {
    servers: Vec<Server>,
    running: BTreeMap<String, Child>,
    /// Kept for a server that died: `cluster.json` names the process that was.
    pids: BTreeMap<String, u32>,
}

/// A server that ended by itself.
#[derive(Debug)]
pub(crate) struct Death {
    pub(crate) name: String,
    pid: u32,
    status: ExitStatus,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}) died: {}", self.name, self.pid, self.status)
    }
}

/// Where a server's log is.
pub(crate) fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.log"))
}

impl Children {
    /// Starts all servers. Must be called on the main thread: children are ended with the thread that made them.
    pub(crate) fn start(dir: &Path, servers: Vec<Server>) -> Result<Self> {
        std::fs::create_dir_all(dir.join("logs")).context("the directory of logs")?;
        let mut children = Self { servers, running: BTreeMap::new(), pids: BTreeMap::new() };
        for name in children.servers.iter().map(|server| server.name.clone()).collect::<Vec<_>>() {
            children.start_again(dir, &name)?;
        }
        Ok(children)
    }

    /// Starts one server, the first time or after its death.
    pub(crate) fn start_again(&mut self, dir: &Path, name: &str) -> Result<()> {
        let server = self.servers.iter().find(|server| server.name == name);
        let server = server.with_context(|| format!("no server {name}"))?;
        let log = open_log(&log_path(dir, name))?;
        let program = std::env::current_exe().context("the path of this program")?;
        let child = Command::new(program)
            .args(&server.arguments)
            .env(parent::VARIABLE, std::process::id().to_string())
            .env_remove("GFS_MASTERS")
            .env_remove("GFS_CONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C comes to the parent, which stops the children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} can't be started"))?;
        let pid = child.id().with_context(|| format!("{name} ended at once"))?;
        self.pids.insert(name.to_owned(), pid);
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// Waits until a server ends by itself; forever if none runs.
    ///
    /// # Cancel safety
    /// Nothing is lost: a death that was not returned is returned by the next call.
    pub(crate) async fn next_death(&mut self) -> Death {
        let ended = std::future::poll_fn(|cx| {
            for (name, child) in &mut self.running {
                let wait = std::pin::pin!(child.wait());
                if let std::task::Poll::Ready(Ok(status)) = wait.poll(cx) {
                    return std::task::Poll::Ready((name.clone(), status));
                }
            }
            std::task::Poll::Pending
        });
        let (name, status) = ended.await;
        self.running.remove(&name);
        let pid = self.pids.get(&name).copied().unwrap_or_default();
        Death { name, pid, status }
    }

    /// Every server with its last process.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Server, u32)> {
        self.servers.iter().map(|server| (server, self.pids.get(&server.name).copied().unwrap_or_default()))
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Asks every server to stop, and kills those that do not.
    pub(crate) async fn stop(&mut self) {
        for child in self.running.values() {
            signal(child, Signal::TERM);
        }
        let all_dead = async {
            while !self.running.is_empty() {
                self.next_death().await;
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, all_dead).await.is_ok() {
            return;
        }
        for (name, child) in &mut self.running {
            tracing::warn!(%name, "did not stop in time: killing it");
            // Also waits for the end, so that the ports and locks are free again.
            if let Err(error) = child.kill().await {
                tracing::warn!(%name, %error, "can't be killed");
            }
        }
    }
}

fn open_log(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("log {} can't be opened", path.display()))
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        tracing::debug!(%error, "a child has ended already");
    }
}
