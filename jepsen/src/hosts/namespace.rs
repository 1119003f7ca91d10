//! A network namespace without a name: it lives as long as this handle or a process in it.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A handle of a network namespace.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// A new one.
    pub(super) fn create() -> Result<Self> {
        // A thread of its own: it has left for good.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
            Self::here()
        });
        made.join().map_err(|_| anyhow!("a thread has panicked"))?
    }

    /// That of this thread.
    fn here() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net").context("/proc is needed")?.into()))
    }

    /// Moves this thread there; threads and processes that it starts will be there too.
    pub(super) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("a network namespace can't be entered")
    }

    /// Does something there, and comes back.
    pub(super) fn visit<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Self::here()?;
        self.enter()?;
        let result = action();
        home.enter()?;
        result
    }
}
