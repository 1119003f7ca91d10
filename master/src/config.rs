//! What a master is told at its start: plain values, checked once.

use std::path::PathBuf;
use std::time::Duration;

use gfs_proto::size::{ChunkBytes, REPLICATION_DEFAULT, REPLICATION_MAX};
use gfs_proto::{Error, Result};

/// How long a deleted file can be restored by default (GFS §4.4).
pub const TRASH_DEFAULT: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long the session of a client lives that has fallen silent; only simulations and sweeps of fail points have others.
pub const SESSION_DEFAULT: Duration = Duration::from_secs(600);
/// Longest time that a deleted file may be kept.
const TRASH_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// How a master with an empty data directory begins; a directory with an identity ignores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// Makes a new cluster, of which it is the first member.
    Bootstrap,
    /// Joins the cluster of these masters.
    Join(Vec<String>),
}

/// Settings of one master or shadow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterConfig {
    /// Data directory: identity, log and state.
    pub data: PathBuf,
    /// `host:port` that the others are told; the listener's own address if `None`.
    pub advertise: Option<String>,
    /// What to do with an empty data directory.
    pub start: Start,
    /// Whether to join as a shadow: a learner that never votes.
    pub shadow: bool,
    /// Chunk size of a new cluster (bootstrap only).
    pub chunk_bytes: ChunkBytes,
    /// Default number of replicas of a new cluster (bootstrap only).
    pub replication: u32,
    /// How long deleted files of a new cluster can be restored (bootstrap only).
    pub trash: Duration,
}

impl MasterConfig {
    /// The default settings for this data directory.
    pub fn new(data: impl Into<PathBuf>, start: Start) -> Self {
        Self {
            data: data.into(),
            advertise: None,
            start,
            shadow: false,
            chunk_bytes: ChunkBytes::DEFAULT,
            replication: REPLICATION_DEFAULT,
            trash: TRASH_DEFAULT,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Error::BadArgument`] that names the setting.
    pub fn check(&self) -> Result<()> {
        if !(1..=REPLICATION_MAX).contains(&self.replication) {
            return Err(Error::bad_argument(format!("replication is from 1 to {REPLICATION_MAX}")));
        }
        if self.trash > TRASH_MAX {
            return Err(Error::bad_argument("deleted files are kept for at most ten years"));
        }
        match &self.start {
            Start::Bootstrap if self.shadow => Err(Error::bad_argument("a shadow joins, it can't bootstrap")),
            Start::Join(masters) if masters.is_empty() => {
                Err(Error::bad_argument("no master is given to join"))
            }
            Start::Bootstrap | Start::Join(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert_eq!(MasterConfig::new("/d", Start::Bootstrap).check(), Ok(()));
        let shadow = MasterConfig { shadow: true, ..MasterConfig::new("/d", Start::Bootstrap) };
        assert!(shadow.check().is_err());
        assert!(MasterConfig::new("/d", Start::Join(Vec::new())).check().is_err());
        let none = MasterConfig { replication: 0, ..MasterConfig::new("/d", Start::Bootstrap) };
        assert!(none.check().is_err());
    }
}
