//! The error of every boundary between processes, and what the caller does about it.
//!
//! On the wire the whole value rides in the details of a gRPC status, or in the metadata of an error
//! frame, as JSON: a peer that does not know a variant still has the code and the text.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use crate::id::{ChunkHandle, ChunkVersion, ClientId, DataId, LogIndex, MasterId, ServerId, Term};
use crate::path::PathError;

/// Shorthand for results of this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Longest text that an error takes over from outside.
const TEXT_BYTES_MAX: usize = 1024;
/// Longest text beside the details of a status: for people who look at the wire, and for peers that can't read the details.
const STATUS_TEXT_BYTES_MAX: usize = 256;

/// What can go wrong between a caller and a server. Split by what the caller does next: see [`Error::retry`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    // ---- the caller's mistake: the same call can't succeed ----
    /// A path or name breaks a rule.
    #[error("bad path {path:?}: {reason}")]
    BadPath {
        /// The path as given, shortened.
        path: String,
        /// The rule.
        reason: PathError,
    },
    /// An argument makes no sense.
    #[error("bad argument: {what}")]
    BadArgument {
        /// What is wrong with it.
        what: String,
    },
    /// Something is larger than its limit.
    #[error("{what} is too large: {size}, the limit is {limit}")]
    TooLarge {
        /// What it is.
        what: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Nothing has this name or id.
    #[error("{what}: not found")]
    NotFound {
        /// The path or id.
        what: String,
    },
    /// The name is taken.
    #[error("{path}: exists already")]
    AlreadyExists {
        /// The path.
        path: String,
    },
    /// A directory is needed and this is a file.
    #[error("{path}: not a directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// A file is needed and this is a directory.
    #[error("{path}: is a directory")]
    IsADirectory {
        /// The path.
        path: String,
    },
    /// The directory has entries.
    #[error("{path}: directory not empty (use -r to remove a tree)")]
    NotEmpty {
        /// The path.
        path: String,
    },
    /// A directory can't move into itself or replace something in this way.
    #[error("can't move {source_path} to {target_path}: {reason}")]
    BadRename {
        /// From.
        source_path: String,
        /// To.
        target_path: String,
        /// Why not.
        reason: String,
    },
    /// The session has expired, so the outcome of its unanswered requests can't be told any more.
    #[error("session {client} has expired: open a new one")]
    SessionExpired {
        /// The session.
        client: ClientId,
    },
    /// The caller speaks another version of the protocol.
    #[error("unsupported {what} version {found}, this server knows up to {known}")]
    UnsupportedVersion {
        /// Which format.
        what: String,
        /// What came.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// The message is meant for another cluster.
    #[error("wrong cluster: this is {ours}, the message is for {theirs}")]
    WrongCluster {
        /// Our id.
        ours: String,
        /// The id in the message.
        theirs: String,
    },
    /// The message is meant for another server: an address was reused.
    #[error("wrong server: this is {ours}, the message is for {theirs}")]
    WrongServer {
        /// Our id.
        ours: u64,
        /// The id in the message.
        theirs: u64,
    },

    // ---- go elsewhere, or look again ----
    /// This master does not lead.
    #[error("not the leader{}", leader.as_ref().map(|at| format!("; {at} is")).unwrap_or_default())]
    NotLeader {
        /// Address of the leader, if known.
        leader: Option<String>,
    },
    /// The lookup's state is older than the caller allows.
    #[error("state at {applied} is older than allowed")]
    TooOld {
        /// Log index of the state.
        applied: LogIndex,
    },
    /// No such chunk, or no replica of it here.
    #[error("{handle}: no such chunk here")]
    NoSuchChunk {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// The version in the request is not the one here: look the chunk up again.
    #[error("{handle}: {asked} was asked for, here is {here}")]
    VersionMismatch {
        /// The chunk.
        handle: ChunkHandle,
        /// In the request.
        asked: ChunkVersion,
        /// Here.
        here: ChunkVersion,
    },
    /// An order comes from a leader that has been replaced.
    #[error("order of {term}, the newest leader seen is of {seen}")]
    StaleTerm {
        /// Of the order.
        term: Term,
        /// Seen here.
        seen: Term,
    },
    /// This server is not the chunk's active primary: ask the master who is.
    #[error("{handle}: this server is not the primary at {version}")]
    NotPrimary {
        /// The chunk.
        handle: ChunkHandle,
        /// In the request.
        version: ChunkVersion,
    },
    /// The replica may not serve reads now: its validation lapsed, it is partial, or damage was found in it before. Another may.
    #[error("{handle}: this replica is {}", if *damaged { "damaged" } else { "not validated for reading" })]
    NotValidated {
        /// The chunk.
        handle: ChunkHandle,
        /// Whether damage was found in it. Left out if not, as before there was such a field.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        damaged: bool,
    },
    /// Checksums do not match: another replica may be good.
    #[error("{handle}: checksum mismatch in block {block}")]
    Corrupt {
        /// The chunk.
        handle: ChunkHandle,
        /// Index of the 64 KiB block.
        block: u32,
    },
    /// The chunk is sealed: records go to the next chunk of the file.
    #[error("{handle}: sealed, go to the next chunk")]
    Sealed {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// Pushed data is not in the buffer (any more): push it again.
    #[error("data {data} is not in the buffer: push it again")]
    DataUnknown {
        /// The data.
        data: DataId,
    },

    // ---- wait ----
    /// Not enough chunkservers for the wanted replicas.
    #[error("{wanted} replicas wanted, {alive} chunkservers alive")]
    NotEnoughServers {
        /// Replicas wanted.
        wanted: u32,
        /// Chunkservers alive, with room.
        alive: u32,
    },
    /// A chunk has no current replica that answers.
    #[error("{handle}: no live replica")]
    NoReplica {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// A member of a chunk's lease set failed: a new grant is on its way.
    #[error("{server} failed as a replica of {handle}")]
    MemberFailed {
        /// The chunk.
        handle: ChunkHandle,
        /// The member.
        server: ServerId,
    },
    /// No other member answers the primary of a chunk's lease set, so it may be the primary that is cut off: a new grant
    /// is on its way.
    #[error("{handle}: its primary reaches no other replica")]
    CutOff {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// A new lease of the chunk is on its way.
    #[error("{handle}: a new lease is being granted")]
    GrantPending {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// A queue or buffer is full, or a file or tree stands still for a while.
    #[error("{what} is busy: try again later")]
    Busy {
        /// Which.
        what: String,
    },
    /// A server does not answer, is starting or stopping, or has no quorum.
    #[error("unavailable: {what}")]
    Unavailable {
        /// What is.
        what: String,
    },
    /// A disk is full.
    #[error("no space left on {server}")]
    DiskFull {
        /// The server.
        server: ServerId,
    },

    /// The disks of too many masters are nearly full.
    #[error(
        "nearly no space left on the disks of masters {masters:?}: the tree can't grow until there is room, or something is deleted"
    )]
    MastersFull {
        /// Those that are.
        masters: Vec<MasterId>,
    },

    // ---- the end ----
    /// The caller's deadline has passed. What was asked may have happened.
    #[error("gave up after {waited_ms} ms; the last answer was: {last}")]
    DeadlineExceeded {
        /// How long was tried, in milliseconds.
        waited_ms: u64,
        /// Text of the last error.
        last: String,
    },
    /// A broken promise of our own, or an error that this version does not know.
    #[error("internal error: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
}

/// What the caller does about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Nothing: the same call fails again.
    Never,
    /// Follow the hint, or ask another master; at once.
    OtherMaster,
    /// Look the chunk up at the master, then repeat.
    Refresh,
    /// Try another replica; if none is left, look the chunk up again.
    OtherReplica,
    /// Push the data again, then repeat.
    PushAgain,
    /// Settle the outcome at this chunk, then go to the next.
    NextChunk,
    /// Repeat after a pause.
    Later,
}

impl Error {
    /// The only judge of what to do next.
    pub fn retry(&self) -> Retry {
        match self {
            Self::BadPath { .. }
            | Self::BadArgument { .. }
            | Self::TooLarge { .. }
            | Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::NotADirectory { .. }
            | Self::IsADirectory { .. }
            | Self::NotEmpty { .. }
            | Self::BadRename { .. }
            | Self::SessionExpired { .. }
            | Self::UnsupportedVersion { .. }
            | Self::WrongCluster { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Internal { .. } => Retry::Never,
            Self::NotLeader { .. } | Self::TooOld { .. } => Retry::OtherMaster,
            Self::WrongServer { .. }
            | Self::NoSuchChunk { .. }
            | Self::VersionMismatch { .. }
            | Self::StaleTerm { .. }
            | Self::NotPrimary { .. }
            | Self::MemberFailed { .. }
            | Self::CutOff { .. } => Retry::Refresh,
            Self::NotValidated { .. } | Self::Corrupt { .. } => Retry::OtherReplica,
            Self::Sealed { .. } => Retry::NextChunk,
            Self::DataUnknown { .. } => Retry::PushAgain,
            Self::NotEnoughServers { .. }
            | Self::NoReplica { .. }
            | Self::GrantPending { .. }
            | Self::Busy { .. }
            | Self::Unavailable { .. }
            | Self::DiskFull { .. }
            | Self::MastersFull { .. } => Retry::Later,
        }
    }

    /// Whether a replica is damaged: its bytes do not match their checksums, now or when they were looked at before.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::NotValidated { damaged: true, .. })
    }

    /// An [`Error::Unavailable`] with the text of what failed.
    pub fn unavailable(what: impl std::fmt::Display) -> Self {
        Self::Unavailable { what: shortened(&what.to_string()) }
    }
    /// An [`Error::Internal`] with the text of what failed.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        Self::Internal { what: shortened(&what.to_string()) }
    }
    /// An [`Error::BadArgument`] that says what is wrong.
    pub fn bad_argument(what: impl std::fmt::Display) -> Self {
        Self::BadArgument { what: shortened(&what.to_string()) }
    }
    /// An [`Error::BadPath`] for a path as given.
    pub fn bad_path(path: &str, reason: PathError) -> Self {
        Self::BadPath { path: shortened(path), reason }
    }

    /// The bytes that carry this error over the wire.
    pub fn to_wire(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
    /// Reads what [`Error::to_wire`] wrote; anything else becomes [`Error::Internal`].
    pub fn from_wire(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Self::internal("an error that this version can't read"))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "every other mistake of the caller has one code")]
    fn code(&self) -> Code {
        match self.retry() {
            Retry::Later | Retry::OtherMaster => Code::Unavailable,
            Retry::Refresh | Retry::OtherReplica | Retry::PushAgain | Retry::NextChunk => Code::Aborted,
            Retry::Never => match self {
                Self::NotFound { .. } => Code::NotFound,
                Self::AlreadyExists { .. } => Code::AlreadyExists,
                Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
                Self::Internal { .. } => Code::Internal,
                _ => Code::FailedPrecondition,
            },
        }
    }
}

/// At most [`TEXT_BYTES_MAX`] bytes of a text.
fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// At most [`STATUS_TEXT_BYTES_MAX`] bytes of an error's text: its two ends, since a name stands first and the reason last.
fn both_ends(text: &str) -> String {
    const BETWEEN: &str = " .. ";
    if text.len() <= STATUS_TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end_bytes = (STATUS_TEXT_BYTES_MAX - BETWEEN.len()) / 2;
    let first = &text[..text.floor_char_boundary(end_bytes)];
    let last = &text[text.ceil_char_boundary(text.len() - end_bytes)..];
    [first, BETWEEN, last].concat()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = both_ends(&error.to_string());
        Self::with_details(error.code(), text, error.to_wire().into())
    }
}

impl From<Status> for Error {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "our servers always send details with the other codes"
    )]
    fn from(status: Status) -> Self {
        if !status.details().is_empty() {
            return Self::from_wire(status.details());
        }
        // No details: the status was made by the transport.
        match status.code() {
            Code::Internal | Code::Unknown | Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => {
                Self::unavailable(status.message())
            }
            Code::ResourceExhausted => Self::Busy { what: shortened(status.message()) },
            Code::OutOfRange => {
                Self::BadArgument { what: format!("message too large: {}", shortened(status.message())) }
            }
            _ => Self::internal(format!("{}: {}", status.code(), status.message())),
        }
    }
}

/// How long a server asks a caller to wait before it repeats, at the first repeat.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire_whole() {
        for error in [
            Error::NotLeader { leader: Some("127.0.0.1:7000".into()) },
            Error::bad_path("/..", PathError::Dots),
            Error::VersionMismatch {
                handle: ChunkHandle::from_raw(1),
                asked: ChunkVersion::from_raw(2),
                here: ChunkVersion::from_raw(3),
            },
            Error::DataUnknown { data: DataId::from_bytes([7; 16]) },
        ] {
            assert_eq!(Error::from(Status::from(error.clone())), error);
        }
    }

    #[test]
    fn the_text_beside_the_details_is_short_and_the_error_whole() {
        let error = Error::bad_path(&"\u{436}".repeat(2000), PathError::NameTooLong);
        let status = Status::from(error.clone());
        assert!(status.message().len() <= STATUS_TEXT_BYTES_MAX, "{}", status.message());
        assert!(status.message().ends_with(&PathError::NameTooLong.to_string()), "{}", status.message());
        assert_eq!(Error::from(status), error);
    }

    #[test]
    fn peers_that_know_nothing_of_damage_and_those_that_do_read_each_other() {
        let handle = ChunkHandle::from_raw(1);
        let before = br#"{"NotValidated":{"handle":1}}"#;
        let fine = Error::NotValidated { handle, damaged: false };
        assert_eq!((Error::from_wire(before), &*fine.to_wire()), (fine, &before[..]));
        // An older peer passes over the field that it does not know.
        let damaged = Error::NotValidated { handle, damaged: true };
        assert_eq!(damaged.to_wire(), br#"{"NotValidated":{"handle":1,"damaged":true}}"#);
        assert_eq!(Error::from_wire(&damaged.to_wire()), damaged);
        let fields = Error::from_wire(br#"{"NotValidated":{"handle":1,"of_later":7}}"#);
        assert_eq!(fields, Error::NotValidated { handle, damaged: false });
    }

    #[test]
    fn garbage_in_the_details_is_an_error_that_is_not_retried() {
        let error = Error::from(Status::with_details(Code::Aborted, "x", vec![0xff; 10].into()));
        assert_eq!(error.retry(), Retry::Never);
    }
}
