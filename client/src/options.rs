//! What a user of the client may choose.

use std::time::Duration;

use gfs_proto::{Error, Result, pb};

/// Units in flight of one stream: 4 to 8 MiB fill a fast network, more only costs cache misses (measured).
const WINDOW_DEFAULT: usize = 8;
/// Most units in flight of one stream.
const WINDOW_MAX: usize = 64;
/// How long a call goes on without progress.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);

/// What an acknowledged write or append has reached (design P2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// The disk of every replica.
    #[default]
    Synced,
    /// At least the page cache of every replica, as in GFS; a power cut of all of them can lose it.
    Replicated,
}

impl From<Durability> for pb::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Synced => Self::Synced,
            Durability::Replicated => Self::Replicated,
        }
    }
}

/// How a client behaves. The default is right for most programs.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call goes on without any progress before it gives up; a long transfer that moves never does.
    pub patience: Duration,
    /// Durability of writes and appends.
    pub durability: Durability,
    /// Units of 1 MiB in flight of one reading or writing stream, 1 to 64: bounds its memory.
    pub window: usize,
    /// Address of this host as chunkservers have it (without port): its replicas are read first.
    pub host: Option<String>,
    /// How old the answer of a lookup (stat, list, locations) may be. Zero: never old, every lookup goes to the
    /// leader. Otherwise any master or shadow answers that is at most this far behind, also while there is no
    /// leader; what this client has seen once it never sees undone (design P8).
    pub max_staleness: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: PATIENCE_DEFAULT,
            durability: Durability::default(),
            window: WINDOW_DEFAULT,
            host: None,
            max_staleness: Duration::ZERO,
        }
    }
}

impl Options {
    /// Checks the values.
    pub(crate) fn checked(self) -> Result<Self> {
        if self.window == 0 || self.window > WINDOW_MAX {
            return Err(Error::bad_argument(format!("window {} is not from 1 to {WINDOW_MAX}", self.window)));
        }
        if self.patience.is_zero() {
            return Err(Error::bad_argument("the patience is zero"));
        }
        Ok(self)
    }
}
