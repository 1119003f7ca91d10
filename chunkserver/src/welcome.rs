//! Whether the cluster takes this server at all: the first master that knows decides.

use std::sync::OnceLock;

use gfs_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

/// The first word of a master on who this server is. A server that is refused at its start ends, and says why: its
/// directory is of another cluster, or somebody else's. One that was taken before lives on: a stray master is not its
/// cluster.
#[derive(Debug)]
pub(crate) struct Welcome {
    first: OnceLock<Result<()>>,
    end: CancellationToken,
}

impl Welcome {
    /// Nothing was heard yet; a refusal ends `end`.
    pub(crate) fn new(end: CancellationToken) -> Self {
        Self { first: OnceLock::new(), end }
    }

    /// Takes note of how a registration ended.
    pub(crate) fn heard(&self, outcome: &Result<()>, master: &str) {
        match outcome {
            Ok(()) => {
                self.first.get_or_init(|| Ok(()));
            }
            Err(error @ (Error::WrongCluster { .. } | Error::WrongServer { .. })) => {
                tracing::error!(master, %error, "refused by a master");
                if self.first.get_or_init(|| Err(error.clone())).is_err() {
                    self.end.cancel();
                }
            }
            Err(_) => {}
        }
    }

    /// Why the server was refused at its start, if it was.
    ///
    /// # Errors
    /// What the master said.
    pub(crate) fn outcome(&self) -> Result<()> {
        self.first.get().cloned().unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_decides_and_a_server_that_was_taken_lives_on() {
        let wrong = Err(Error::WrongCluster { ours: "a".into(), theirs: "b".into() });
        let (taken, refused) = (CancellationToken::new(), CancellationToken::new());
        let welcome = Welcome::new(taken.clone());
        welcome.heard(&Err(Error::unavailable("no leader")), "m");
        welcome.heard(&Ok(()), "m");
        welcome.heard(&wrong, "stray");
        assert!(!taken.is_cancelled() && welcome.outcome().is_ok());
        let welcome = Welcome::new(refused.clone());
        welcome.heard(&wrong, "m");
        assert!(refused.is_cancelled() && welcome.outcome().is_err());
    }
}
