//! What the state answers: the outcome of a command, or why it was refused. Both are values, the same on
//! every replica, and are kept for repeats.

use std::fmt;

use gfs_proto::Error;
use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, LogIndex, MasterId, RequestId,
    ServerId,
};
use gfs_proto::path::{FilePath, PathError};
use gfs_proto::time::UnixMs;

use crate::state::codec::{self, DecodeError, record, tagged};
use crate::state::format::Entry;

record! {
    /// The answer to a proposal, as raft carries it to the proposer.
    pub struct Reply {
        /// Log index at which it was decided: for a repeat that of the first time. The `rev` of an answer.
        decided_at: LogIndex,
        /// The answer.
        result: Result<Applied, Rejected>,
    }
}

impl Rejected {
    /// Whether nothing is decided yet: the same request comes again when what is in its way has gone.
    pub fn is_undecided(&self) -> bool {
        matches!(
            self,
            Self::Unsettled { .. } | Self::Held { .. } | Self::TooLarge { what: Limit::Snapshot {}, .. }
        )
    }
}

impl Reply {
    /// The bytes for the wire between masters.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }
    /// Reads what [`Reply::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are no reply that this version knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }
}

tagged! {
    /// What a command did. Tags are persisted in stored replies.
    pub enum Applied {
        /// Done, and nothing to tell.
        1 Done {}
        /// The session is open.
        2 SessionOpened {
            /// Its id.
            client: ClientId,
            /// When it ends unless it is used, by the state's clock.
            expires_at: UnixMs,
        }
        /// The session lives on.
        3 SessionRenewed {
            /// When it ends unless it is used, by the state's clock.
            expires_at: UnixMs,
        }
        /// Sessions were removed.
        4 SessionsExpired {
            /// How many.
            count: u32,
            /// Whether more are due.
            more: bool,
        }
        /// A file or directory was made, restored, or found where it was wanted.
        5 Entry {
            /// As it was right after the command.
            entry: Entry,
        }
        /// The entry is in the trash.
        6 Deleted {
            /// Its id.
            entry: EntryId,
            /// Until when it can be restored, by the state's clock.
            collect_at: UnixMs,
        }
        /// The file has a chunk at the wanted index.
        7 ChunkAdded {
            /// The index.
            index: ChunkIndex,
            /// The chunk there.
            handle: ChunkHandle,
            /// Whether this command made it.
            added: bool,
        }
        /// The grant is pending under this version.
        8 Prepared {
            /// The version.
            version: ChunkVersion,
        }
        /// The grant stands.
        9 Confirmed {
            /// The version.
            version: ChunkVersion,
        }
        /// Leases were extended.
        10 Extended {
            /// Those that still ran, with their versions.
            leases: Vec<(ChunkHandle, ChunkVersion)>,
        }
        /// The chunkserver belongs to the cluster.
        11 ServerRegistered {
            /// Its id.
            server: ServerId,
        }
        /// The master has an id.
        12 MasterRegistered {
            /// Its id.
            master: MasterId,
        }
        /// Trash was collected.
        13 Collected {
            /// Steps taken.
            steps: u32,
            /// Whether more is due.
            more: bool,
        }
        /// A handle was drawn.
        14 Reserved {
            /// The handle.
            handle: ChunkHandle,
        }
        /// A snapshot of a large tree came forward.
        15 Built {
            /// Names and chunks copied in this step.
            rows: u32,
            /// Whether there is more to do; else the request has its answer.
            more: bool,
            /// The chunk that has to be revoked before the next step.
            unsettled: Option<ChunkHandle>,
        }
    }
}

tagged! {
    /// Why a command was refused; the state is as before. Tags are persisted in stored replies.
    pub enum Rejected {
        /// Nothing has this path.
        1 NotFound {
            /// The path.
            path: FilePath,
        }
        /// Nothing has this id, or what has it is deleted.
        2 NoSuchEntry {
            /// The id.
            entry: EntryId,
        }
        /// The name is taken.
        3 AlreadyExists {
            /// The path.
            path: FilePath,
        }
        /// A directory is needed and this is a file.
        4 NotADirectory {
            /// The path.
            path: FilePath,
        }
        /// A file is needed and this is a directory.
        5 IsADirectory {
            /// The path.
            path: FilePath,
        }
        /// The directory has entries.
        6 NotEmpty {
            /// The path.
            path: FilePath,
        }
        /// The root directory can't be deleted, moved or replaced.
        7 Root {}
        /// A directory can't move into itself (traps T45).
        8 IntoItself {
            /// From.
            source: FilePath,
            /// To.
            target: FilePath,
        }
        /// The id is not of a file.
        9 NotAFile {
            /// The id.
            entry: EntryId,
        }
        /// The entry is not in the trash, or its date has passed.
        10 NotInTrash {
            /// The id.
            entry: EntryId,
        }
        /// Something is larger than its limit.
        11 TooLarge {
            /// What it is.
            what: Limit,
            /// Its size.
            size: u64,
            /// The limit.
            limit: u64,
        }
        /// The file has fewer chunks than the caller says.
        12 BadChunkCount {
            /// The caller's.
            expected: u32,
            /// The file's.
            found: u32,
        }
        /// No chunk has this handle.
        13 NoSuchChunk {
            /// The handle.
            handle: ChunkHandle,
        }
        /// The chunk's version is another one: somebody else was faster.
        14 VersionMismatch {
            /// The chunk.
            handle: ChunkHandle,
            /// In the command.
            asked: ChunkVersion,
            /// In the state.
            here: ChunkVersion,
        }
        /// A grant breaks a rule of the protocol: the leader's mistake.
        15 BadGrant {
            /// The rule.
            rule: GrantRule,
        }
        /// The session is not there (any more).
        16 SessionExpired {
            /// The session.
            client: ClientId,
        }
        /// The client has said that it has the answer, so it is gone.
        17 AlreadyAcknowledged {
            /// The request.
            request: RequestId,
        }
        /// The client has too many unacknowledged requests.
        18 WindowFull {
            /// The request.
            request: RequestId,
            /// The first request of the window.
            first_unacked: u64,
        }
        /// The request id was used for a command of another kind.
        19 RequestReused {
            /// The request.
            request: RequestId,
        }
        /// There is no cluster yet.
        20 NotBootstrapped {}
        /// The state belongs to a cluster already.
        21 AlreadyBootstrapped {
            /// The cluster.
            cluster: ClusterId,
        }
        /// The id of a master is taken or 0.
        22 BadMasterId {
            /// The id.
            master: MasterId,
        }
        /// A counter has come to its end.
        23 Exhausted {}
        /// The state on this master can't be read: it must stop. Never decided by the log.
        24 Damaged {}
        /// Several files have this chunk, so nobody may write it: a file that is written gets a copy first.
        25 Shared {
            /// The chunk.
            handle: ChunkHandle,
        }
        /// Somebody may still be writing this chunk, or what it was copied from can still be read under its old
        /// version. Passes when the leader has revoked, so it is never kept as the answer to a request.
        26 Unsettled {
            /// The chunk.
            handle: ChunkHandle,
        }
        /// A snapshot of this tree is being built: until then it stands still. Passes, so it is never kept as the answer
        /// to a request.
        27 Held {
            /// The source of the snapshot.
            entry: EntryId,
        }
        /// The snapshot was given up: the lease of this chunk can't be revoked, or the masters' disks are nearly full.
        28 NotSettled {
            /// The chunk; 0 if it is for want of room.
            handle: ChunkHandle,
        }
    }
}

tagged! {
    /// What can be too large.
    pub enum Limit {
        /// Chunks of one file.
        1 Chunks {}
        /// Wanted replicas of a file.
        2 Replication {}
        /// Bytes of an address.
        3 Address {}
        /// Bytes of a rack's name.
        4 Rack {}
        /// Open sessions.
        5 Sessions {}
        /// Leases in one command.
        6 Leases {}
        /// Chunkservers ever registered.
        7 Servers {}
        /// Files, directories and chunks of a snapshot.
        8 Snapshot {}
    }
}

tagged! {
    /// The rules of a grant (protocol.md, Grant 1).
    pub enum GrantRule {
        /// There are members, not more than a chunk may have, each once, each a registered server.
        1 Members {}
        /// The base is some of the members, each once, and not empty.
        2 Base {}
        /// The base is of the confirmed members.
        3 BaseConfirmed {}
        /// The primary is of the base.
        4 Primary {}
        /// A grant is fresh exactly if the chunk was never confirmed.
        5 Fresh {}
        /// A copy gets a handle that was reserved for it, and a chunk is only copied if it is shared.
        6 Copy {}
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(applied) => applied.fmt(f),
            Err(rejected) => write!(f, "rejected: {rejected}"),
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done {} => f.write_str("done"),
            Self::SessionOpened { client, expires_at } => write!(f, "session {client} until {expires_at}"),
            Self::SessionRenewed { expires_at } => write!(f, "renewed until {expires_at}"),
            Self::SessionsExpired { count, more } => {
                write!(f, "{count} sessions expired{}", if *more { ", more are due" } else { "" })
            }
            Self::Entry { entry } => entry.fmt(f),
            Self::Deleted { entry, collect_at } => write!(f, "{entry} in the trash until {collect_at}"),
            Self::ChunkAdded { index, handle, added } => {
                write!(f, "{} {handle} at {index}", if *added { "added" } else { "found" })
            }
            Self::Prepared { version } => write!(f, "prepared {version}"),
            Self::Confirmed { version } => write!(f, "confirmed {version}"),
            Self::Extended { leases } => write!(f, "extended {leases:?}"),
            Self::ServerRegistered { server } => write!(f, "chunkserver {server}"),
            Self::MasterRegistered { master } => write!(f, "master {master}"),
            Self::Collected { steps, more } => {
                write!(f, "collected in {steps} steps{}", if *more { ", more is due" } else { "" })
            }
            Self::Reserved { handle } => write!(f, "reserved {handle}"),
            Self::Built { rows, more: true, unsettled: None } => write!(f, "built {rows} rows"),
            Self::Built { rows, more: true, unsettled: Some(handle) } => {
                write!(f, "built {rows} rows, {handle} may still be written")
            }
            Self::Built { more: false, .. } => f.write_str("built"),
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchEntry { entry } => write!(f, "{entry}: not found"),
            Self::NotAFile { entry } => write!(f, "{entry}: not a file"),
            Self::NotInTrash { entry } => write!(f, "{entry}: not in the trash"),
            Self::BadChunkCount { expected, found } => {
                write!(f, "the file has {found} chunks, not {expected}")
            }
            Self::VersionMismatch { handle, asked, here } => write!(f, "{handle} is at {here}, not {asked}"),
            Self::BadGrant { rule } => write!(f, "bad grant: {rule:?}"),
            Self::AlreadyAcknowledged { request } => write!(f, "{request} was acknowledged by the client"),
            Self::WindowFull { request, first_unacked } => {
                write!(f, "{request} is too far past {first_unacked}, the first unacknowledged request")
            }
            Self::RequestReused { request } => write!(f, "{request} was another request"),
            Self::NotBootstrapped {} => f.write_str("there is no cluster yet"),
            Self::AlreadyBootstrapped { cluster } => write!(f, "this is cluster {cluster} already"),
            Self::BadMasterId { master } => write!(f, "{master} can't be a master's id"),
            Self::Exhausted {} => f.write_str("a counter has come to its end"),
            Self::Damaged {} => f.write_str("the state on this master can't be read"),
            Self::Shared { handle } => write!(f, "{handle} is shared: it is copied before it is written"),
            Self::Unsettled { handle } => write!(f, "{handle} may still be written"),
            Self::Held { entry } => write!(f, "a snapshot of {entry} is being made"),
            Self::NotSettled { handle } if handle.raw() == 0 => {
                f.write_str("the disks of the masters are nearly full, so there is no snapshot")
            }
            Self::NotSettled { handle } => write!(f, "{handle} can't be revoked, so there is no snapshot"),
            Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::NotADirectory { .. }
            | Self::IsADirectory { .. }
            | Self::NotEmpty { .. }
            | Self::Root {}
            | Self::IntoItself { .. }
            | Self::TooLarge { .. }
            | Self::NoSuchChunk { .. }
            | Self::SessionExpired { .. } => Error::from(self.clone()).fmt(f),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chunks {} => "the number of chunks of the file",
            Self::Replication {} => "the number of replicas",
            Self::Address {} => "the length of the address",
            Self::Rack {} => "the length of the rack's name",
            Self::Sessions {} => "the number of open sessions",
            Self::Leases {} => "the number of leases in one command",
            Self::Servers {} => "the number of chunkservers ever registered",
            Self::Snapshot {} => "the number of files, directories and chunks in the snapshot",
        })
    }
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::NotFound { path } => Self::NotFound { what: path.to_string() },
            Rejected::NoSuchEntry { entry } => Self::NotFound { what: entry.to_string() },
            Rejected::NotInTrash { entry } => Self::NotFound { what: format!("{entry} in the trash") },
            Rejected::AlreadyExists { path } => Self::AlreadyExists { path: path.to_string() },
            Rejected::NotADirectory { path } => Self::NotADirectory { path: path.to_string() },
            Rejected::IsADirectory { path } => Self::IsADirectory { path: path.to_string() },
            Rejected::NotAFile { entry } => Self::IsADirectory { path: entry.to_string() },
            Rejected::NotEmpty { path } => Self::NotEmpty { path: path.to_string() },
            Rejected::Root {} => Self::bad_path("/", PathError::Root),
            Rejected::IntoItself { source, target } => Self::BadRename {
                source_path: source.to_string(),
                target_path: target.to_string(),
                reason: "the target lies inside the source".to_owned(),
            },
            // Sessions end by themselves: the only limit that waiting helps against.
            Rejected::TooLarge { what: Limit::Sessions {}, .. } => {
                Self::Busy { what: "the table of sessions".to_owned() }
            }
            Rejected::TooLarge { what, size, limit } => {
                Self::TooLarge { what: what.to_string(), size, limit }
            }
            Rejected::NoSuchChunk { handle } => Self::NoSuchChunk { handle },
            Rejected::Shared { handle } | Rejected::Unsettled { handle } => Self::GrantPending { handle },
            Rejected::VersionMismatch { handle, asked, here } => {
                Self::VersionMismatch { handle, asked, here }
            }
            Rejected::SessionExpired { client } => Self::SessionExpired { client },
            Rejected::WindowFull { .. } => Self::Busy { what: "the session's window of requests".to_owned() },
            Rejected::NotBootstrapped {} => Self::unavailable(rejected),
            // This master is the right one to ask again.
            Rejected::Held { entry } => {
                Self::Busy { what: format!("{entry}, of which a snapshot is being made,") }
            }
            Rejected::NotSettled { handle } if handle.raw() == 0 => Self::unavailable(rejected),
            Rejected::NotSettled { handle } => Self::NoReplica { handle },
            Rejected::BadChunkCount { .. }
            | Rejected::AlreadyAcknowledged { .. }
            | Rejected::RequestReused { .. }
            | Rejected::AlreadyBootstrapped { .. }
            | Rejected::BadMasterId { .. } => Self::bad_argument(rejected),
            Rejected::BadGrant { .. } | Rejected::Exhausted {} | Rejected::Damaged {} => {
                Self::internal(rejected)
            }
        }
    }
}
