//! A disk that failed once is not trusted again: the first error sticks, and the node stops (T32).

use std::io;
use std::sync::OnceLock;

use tokio::sync::watch;

struct PanicGuard<'a>(&'a Poison);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set("a thread panicked");
        }
    }
}

/// The first failure of a store.
#[derive(Debug)]
pub(crate) struct Poison {
    first: OnceLock<String>,
    failed: watch::Sender<bool>,
}

impl Poison {
    /// Nothing failed yet.
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new(), failed: watch::channel(false).0 }
    }

    /// Remembers a failure; the first one counts.
    pub(crate) fn set(&self, error: impl std::fmt::Display) -> io::Error {
        if self.first.set(error.to_string()).is_ok() {
            tracing::error!(%error, "a store failed: this node stops");
            self.failed.send_replace(true);
        }
        io::Error::other(error.to_string())
    }

    /// The result, with a failure remembered.
    pub(crate) fn watch_result<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> io::Result<T> {
        result.map_err(|error| self.set(error))
    }

    /// Refuses to go on after a failure.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(io::Error::other(format!("the store failed before: {first}"))),
        }
    }

    /// While this lives, a panic of its thread counts as a failure: nobody else would notice that a
    /// worker of openraft is gone.
    pub(crate) fn guard(&self) -> impl Drop + '_ {
        PanicGuard(self)
    }

    /// Waits for a failure.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        // An error means that the store is gone, and then nothing fails any more.
        if failed.wait_for(|failed| *failed).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.first.get().cloned().unwrap_or_default()
    }
}
