//! What can be asked of the state. Whatever depends on time, dice or soft state was settled by the leader
//! before it got here (GFS §2.6.3; traps T31).

use std::fmt;

use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, MasterId, RequestId, ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;

use crate::state::codec::{self, DecodeError, record, tagged};

record! {
    /// One entry of the operation log.
    pub struct Proposal {
        /// Names a client's mutation, so that a repeat gets the first answer; `None` for the leader's own.
        request: Option<RequestId>,
        /// The client has every answer below this sequence, so they need not be kept; with a request or a
        /// renewal of its session.
        first_unacked: u64,
        /// The group's wall clock when the leader proposed (decision 0023).
        now: UnixMs,
        /// What to do.
        command: Command,
    }
}

impl Proposal {
    /// A proposal of the leader itself, without a session.
    pub fn internal(now: UnixMs, command: Command) -> Self {
        Self { request: None, first_unacked: 0, now, command }
    }
    /// The bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }
    /// Reads what [`Proposal::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are no proposal that this version knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }
}

tagged! {
    /// One replicated decision. Tags are persisted in the log.
    pub enum Command {
        /// Makes an empty state into a cluster's; a repeat for the same cluster is harmless.
        1 Bootstrap {
            /// The cluster's id, drawn by whoever makes the cluster.
            cluster: ClusterId,
            /// Size of every chunk.
            chunk_bytes: ChunkBytes,
            /// Replicas of a file that does not say how many.
            replication: u32,
            /// How long a deleted file can be restored, in milliseconds (GFS §4.4: three days).
            trash_ms: u64,
            /// How long an idle session lives, in milliseconds.
            session_ms: u64,
            /// Id of the first master.
            master: MasterId,
            /// Identity of the first master's directory.
            uuid: Uuid,
            /// Address of the first master.
            address: String,
        }
        /// Opens a client session; its id is the log index.
        2 OpenSession {
            /// Drawn by the client: a repeat with the same one returns the same session.
            nonce: [u8; 16],
        }
        /// Keeps a session alive.
        3 RenewSession {
            /// The session.
            client: ClientId,
        }
        /// Removes sessions whose time has passed, in bounded steps.
        4 ExpireSessions {
            /// Most sessions to remove.
            limit: u32,
        }
        /// Makes a directory.
        5 Mkdir {
            /// Its path.
            path: FilePath,
            /// Also makes missing parents, and a directory that exists is success.
            parents: bool,
        }
        /// Makes an empty file.
        6 Create {
            /// Its path.
            path: FilePath,
            /// Wanted replicas of its chunks; 0 is the cluster's default.
            replication: u32,
        }
        /// Moves a file or directory into the trash in one step, whatever its size (GFS §4.4).
        7 Delete {
            /// Its path.
            path: FilePath,
            /// Without it a directory must be empty.
            recursive: bool,
        }
        /// Moves a file or directory in one step, whatever its size.
        8 Rename {
            /// From.
            source: FilePath,
            /// To.
            target: FilePath,
            /// A file at the target goes to the trash in the same step; an empty directory there makes way.
            replace: bool,
        }
        /// Takes a deleted entry out of the trash before its date.
        9 Undelete {
            /// The entry, as the list of the trash names it.
            entry: EntryId,
            /// Where to; the name must be free.
            target: FilePath,
        }
        /// Deletes a deleted entry again: it may be collected at once (GFS §4.4).
        10 Expedite {
            /// The entry, as the list of the trash names it.
            entry: EntryId,
        }
        /// Removes what is in the trash past its date, in bounded steps.
        11 CollectTrash {
            /// Most rows (chunks of files, names in directories) to work through.
            limit: u32,
        }
        /// Appends a chunk to a file if it has `expected_count` chunks; a loser gets the chunk that stands
        /// there (traps T10). The new chunk's handle is drawn from the state's counter; its first grant,
        /// version 1 and fresh, is pending from the start.
        12 AddChunk {
            /// The file.
            file: EntryId,
            /// The index that the new chunk is to have.
            expected_count: u32,
            /// Where its replicas shall be.
            members: Vec<ServerId>,
            /// One of the members.
            primary: ServerId,
        }
        /// First commit of a grant: raises the version (protocol.md, Grant 1).
        13 PrepareGrant {
            /// The chunk.
            handle: ChunkHandle,
            /// The version that the leader saw: compare-and-set.
            expected_version: ChunkVersion,
            /// The members of the new grant.
            members: Vec<ServerId>,
            /// The current ones among them: confirmed members that are whole. Ignored if `fresh`.
            base: Vec<ServerId>,
            /// One of the base.
            primary: ServerId,
            /// Whether mutations will be allowed; a grant without a writer is a revocation.
            writer: bool,
            /// The chunk was never confirmed, so nobody has content that counts: all start from nothing.
            fresh: bool,
        }
        /// Second commit of a grant, when all members have adopted and all others are fenced out
        /// (protocol.md, Grant 5). A repeat is harmless.
        14 ConfirmGrant {
            /// The chunk.
            handle: ChunkHandle,
            /// The version of the pending grant: compare-and-set.
            version: ChunkVersion,
            /// End of the lease, if the grant has a writer.
            lease_expires_at: UnixMs,
        }
        /// Extends running leases; those that have changed meanwhile are passed over.
        15 ExtendLeases {
            /// Chunk and version of each.
            leases: Vec<(ChunkHandle, ChunkVersion)>,
            /// Their new end; never shortens one.
            expires_at: UnixMs,
        }
        /// Takes a chunkserver into the cluster, or notes its new address.
        16 RegisterServer {
            /// Identity of its data directories: the same one gets the same id.
            uuid: Uuid,
            /// "host:port".
            address: String,
            /// Its rack; may be empty.
            rack: String,
        }
        /// Gives a joining master its id, or notes its new address.
        17 RegisterMaster {
            /// Identity of its directory: the same one gets the same id.
            uuid: Uuid,
            /// "host:port".
            address: String,
            /// Whether it joins as a shadow.
            shadow: bool,
        }
        /// Makes a copy of a file or a small tree that shares all chunks (GFS §3.4; docs/decisions/0013); a larger one is
        /// refused and begun with 21.
        18 Snapshot {
            /// Of what.
            source: FilePath,
            /// To where; the name must be free.
            target: FilePath,
        }
        /// Draws a handle for a copy that is going to be made: until then nothing has it.
        19 ReserveChunk {}
        /// Gives a file a copy of its own of a chunk that it shares. The replicas of the copy are there already;
        /// nobody may mutate them before a later grant has raised the version of the old chunk.
        20 CopyChunk {
            /// The file.
            file: EntryId,
            /// The chunk's place in it.
            index: ChunkIndex,
            /// The shared chunk that stands there: compare-and-set.
            old: ChunkHandle,
            /// Its version, of which the copies were made: compare-and-set.
            version: ChunkVersion,
            /// The reserved handle of the copy.
            copy: ChunkHandle,
            /// Who has copied: some of the confirmed members of the old chunk.
            members: Vec<ServerId>,
        }
        /// Begins to build the snapshot that a request asks for and that is too large for one command
        /// (docs/decisions/0014). From here on the names below the source stand still.
        21 BeginSnapshot {
            /// Of what.
            source: FilePath,
            /// To where; the name must be free, now and in the end.
            target: FilePath,
            /// The request, which gets its answer in the last step.
            request: RequestId,
        }
        /// Copies some more names and chunks; in the end shows the copy under its name.
        22 BuildSnapshot {
            /// The copy, which names the build.
            root: EntryId,
            /// Most names and chunks to copy.
            limit: u32,
        }
        /// Gives a build up.
        23 AbandonSnapshot {
            /// The copy, which names the build.
            root: EntryId,
            /// The chunk that can't be settled; 0 if it is for want of room.
            handle: ChunkHandle,
        }
        /// An operator's decision on a chunk of which every current replica is partial (docs/decisions/0020): prepares a
        /// grant to one of the confirmed members alone, whose content counts although it may have lost something.
        24 AcceptReplica {
            /// The chunk.
            handle: ChunkHandle,
            /// The version at which the operator has seen it: compare-and-set.
            expected_version: ChunkVersion,
            /// The member.
            server: ServerId,
        }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.request {
            Some(request) => write!(f, "{} ({request})", self.command),
            None => self.command.fmt(f),
        }
    }
}

impl Command {
    /// Whether it makes the state larger because a client wants it: refused while the masters' disks are nearly full
    /// (decision 0025). What makes room is not, nor what keeps the data that there is readable and writable.
    pub(crate) fn grows(&self) -> bool {
        match self {
            Self::Mkdir { .. }
            | Self::Create { .. }
            | Self::AddChunk { .. }
            | Self::Snapshot { .. }
            | Self::BeginSnapshot { .. }
            | Self::BuildSnapshot { .. } => true,
            Self::Bootstrap { .. }
            | Self::OpenSession { .. }
            | Self::RenewSession { .. }
            | Self::ExpireSessions { .. }
            | Self::Delete { .. }
            | Self::Rename { .. }
            | Self::Undelete { .. }
            | Self::Expedite { .. }
            | Self::CollectTrash { .. }
            | Self::PrepareGrant { .. }
            | Self::ConfirmGrant { .. }
            | Self::ExtendLeases { .. }
            | Self::RegisterServer { .. }
            | Self::RegisterMaster { .. }
            | Self::ReserveChunk { .. }
            | Self::CopyChunk { .. }
            | Self::AbandonSnapshot { .. }
            | Self::AcceptReplica { .. } => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrap { cluster, .. } => write!(f, "bootstrap {cluster}"),
            Self::OpenSession { .. } => f.write_str("open session"),
            Self::RenewSession { client } => write!(f, "renew {client}"),
            Self::ExpireSessions { limit } => write!(f, "expire up to {limit} sessions"),
            Self::Mkdir { path, parents } => write!(f, "mkdir{} {path}", if *parents { " -p" } else { "" }),
            Self::Create { path, replication } => write!(f, "create {path} *{replication}"),
            Self::Delete { path, recursive } => {
                write!(f, "delete{} {path}", if *recursive { " -r" } else { "" })
            }
            Self::Rename { source, target, replace } => {
                write!(f, "rename{} {source} {target}", if *replace { " -f" } else { "" })
            }
            Self::Undelete { entry, target } => write!(f, "undelete {entry} {target}"),
            Self::Expedite { entry } => write!(f, "expedite {entry}"),
            Self::CollectTrash { limit } => write!(f, "collect trash, {limit} steps"),
            Self::AddChunk { file, expected_count, members, primary } => {
                write!(f, "add chunk {expected_count} to {file} on {members:?}, primary {primary}")
            }
            Self::PrepareGrant { handle, expected_version, members, base, primary, writer, fresh } => {
                let kind = match (fresh, writer) {
                    (true, _) => "a fresh grant",
                    (false, true) => "a grant",
                    (false, false) => "a revocation",
                };
                write!(
                    f,
                    "prepare {kind} of {handle} after {expected_version} to {members:?}, \
                     base {base:?}, primary {primary}"
                )
            }
            Self::ConfirmGrant { handle, version, .. } => write!(f, "confirm {handle} {version}"),
            Self::ExtendLeases { leases, expires_at } => {
                write!(f, "extend {} leases until {expires_at}", leases.len())
            }
            Self::RegisterServer { address, .. } => write!(f, "register chunkserver {address}"),
            Self::RegisterMaster { address, shadow, .. } => {
                write!(f, "register {} {address}", if *shadow { "shadow" } else { "master" })
            }
            Self::Snapshot { source, target } => write!(f, "snapshot {source} {target}"),
            Self::ReserveChunk {} => f.write_str("reserve a handle"),
            Self::BeginSnapshot { source, target, request } => {
                write!(f, "begin snapshot {source} {target} for {request}")
            }
            Self::BuildSnapshot { root, limit } => write!(f, "build snapshot {root}, {limit} rows"),
            Self::AbandonSnapshot { root, handle } => write!(f, "abandon snapshot {root} for {handle}"),
            Self::AcceptReplica { handle, expected_version, server } => {
                write!(f, "accept what {server} holds of {handle} after {expected_version}")
            }
            Self::CopyChunk { file, index, old, version, copy, members } => {
                write!(f, "chunk {index} of {file} is {copy} on {members:?}, a copy of {old} {version}")
            }
        }
    }
}
