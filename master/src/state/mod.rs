//! The replicated state: a pure function of the command log (GFS §2.6.1, §2.6.3). Knows no disk, network,
//! clock or dice.
//!
//! One way in: [`apply`]. Lookups: [`read`]. Keys and values: [`format`](mod@format).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub(crate) mod codec;
pub mod command;
pub mod format;
pub mod read;
pub mod reply;
pub mod table;

use gfs_proto::id::{ChunkHandle, LogIndex};

pub use codec::DecodeError;
pub use command::{Command, Proposal};
pub use format::{
    Chunk, Counters, Entry, EntryKind, Lease, Master, Pending, Place, Server, Session, Settings, Trashed,
};
pub use reply::{Applied, Rejected, Reply};
pub use table::{Memory, Overlay, Row, Table, View, Writes};

/// What a command does to the state, and what it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The changes, to be made in one piece.
    pub writes: Writes,
    /// Log index at which the answer was decided: for a repeated request that of the first time.
    pub decided_at: LogIndex,
    /// The answer.
    pub reply: Result<Applied, Rejected>,
    /// Chunks whose members, version, lease or existence changed.
    pub touched: Vec<ChunkHandle>,
}

impl Outcome {
    /// Whether the state can't be read: this master has to stop, and nothing of the outcome may be used.
    pub fn is_damaged(&self) -> bool {
        self.reply == Err(Rejected::Damaged {})
    }
    /// The answer, as raft carries it.
    pub fn into_reply(self) -> Reply {
        Reply { decided_at: self.decided_at, result: self.reply }
    }
}

/// Applies one committed command: the only way this state ever changes.
///
/// A refused command changes nothing but the stored reply of its session and the clock.
pub fn apply(view: &dyn View, index: LogIndex, proposal: &Proposal) -> Outcome {
    let _ = (view, proposal);
    Outcome {
        writes: Writes::default(),
        decided_at: index,
        reply: Err(Rejected::NotBootstrapped {}),
        touched: Vec::new(),
    }
}
