//! Servers that end by themselves: what they must not do, unless they have a reason.

use anyhow::Result;

use super::Cluster;
use crate::process::End;

impl Cluster {
    /// Takes note that a server may end by itself until it is started again: somebody has given it a reason.
    ///
    /// # Errors
    /// There is no such server.
    pub fn excuse(&mut self, name: &str) -> Result<()> {
        self.server(name)?.excuse()
    }

    /// Starts a server that has to refuse, and to end by itself.
    ///
    /// # Errors
    /// There is no such server, or it can't be started.
    pub fn restart_to_refuse(&mut self, name: &str) -> Result<()> {
        self.server(name)?.start_to_refuse()
    }

    /// Takes note that any server may end by itself from now on: somebody makes them fail.
    pub fn expect_ends(&mut self) {
        self.ends_expected = true;
    }

    /// Ends of servers that had no reason for it, those that have left for good among them. Each is told once.
    ///
    /// # Errors
    /// The machine does not say whether a server runs.
    pub fn take_ends(&mut self) -> Result<Vec<End>> {
        let mut ends = Vec::new();
        for server in self.servers.values_mut().chain(self.retired.values_mut()) {
            ends.extend(server.take_ends()?);
        }
        Ok(if self.ends_expected { Vec::new() } else { ends })
    }
}
