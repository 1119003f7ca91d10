//! The seam for work that blocks: on threads made for it, or, in a simulation, at once on the one thread there is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Result};

/// Where work that blocks is done.
#[derive(Clone, Default)]
pub enum Workers {
    /// On threads for it.
    #[default]
    Threads,
    /// On the thread that asks. What a server does in threads of its own is then done by tasks of the runtime, each
    /// piece after the time that a disk may take: so nothing but the runtime's order decides what comes first.
    Inline(Pace),
}

/// How long the next piece of work takes a simulated disk.
pub type Pace = Arc<dyn Fn() -> Duration + Send + Sync>;

impl Workers {
    /// Does work that blocks.
    ///
    /// # Errors
    /// [`Error::Internal`] if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(Error::internal),
            Self::Inline(_) => Ok(work()),
        }
    }

    /// Does work that blocks, and waits for nothing.
    pub fn start(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Threads => drop(tokio::task::spawn_blocking(work)),
            Self::Inline(_) => drop(tokio::spawn(async move { work() })),
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads => f.write_str("Threads"),
            Self::Inline(_) => f.write_str("Inline"),
        }
    }
}
