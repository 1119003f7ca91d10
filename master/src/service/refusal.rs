//! A refusal, with the log index of the state that it comes from.

use gfs_proto::Error;
use gfs_proto::id::LogIndex;
use gfs_proto::leader::REV_KEY;
use tonic::Status;

/// Why something is refused, and in which state. Whoever was told that something is not there, or is already, must not be
/// told otherwise by an older state later (promise P8).
#[derive(Debug)]
pub(super) struct Refusal {
    error: Error,
    /// `None` if no state was looked at.
    rev: Option<LogIndex>,
}

impl Refusal {
    /// A refusal that comes from this state.
    pub(super) fn in_state(error: impl Into<Error>, rev: LogIndex) -> Self {
        Self { error: error.into(), rev: Some(rev) }
    }
    /// Why.
    pub(super) fn error(&self) -> &Error {
        &self.error
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, rev: None }
    }
}
impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}
impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::from(refusal.error);
        if let Some(rev) = refusal.rev {
            status.metadata_mut().insert(REV_KEY, rev.raw().into());
        }
        status
    }
}
