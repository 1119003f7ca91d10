//! Keys and values of every table, in one place. Numbers in keys are big endian, so that they sort.
//!
//! ```text
//! table       key                                   value
//! system      01                                    Settings
//!             02                                    clock: UnixMs
//!             03                                    Counters
//!             04                                    Build: the snapshot of a large tree that is being made
//!             10 server(8)                          Server
//!             11 master(8)                          Master
//!             20 uuid(16)                           id of the server with this identity
//!             21 uuid(16)                           id of the master with this identity
//!             22 nonce(16)                          id of the session opened with it
//!             23 expires_at(8) client(8)            nothing: sessions by their end
//!             24 handle(8)                          nothing: chunks with a pending grant
//!             25 handle(8)                          Origin: copies whose old chunk may still have its version
//!             26 handle(8)                          Accepted: chunks whose pending grant an operator has decided
//! entry       id(8)                                 Entry
//! name        directory(8) name                     id of the entry
//! file_chunk  file(8) index(4)                      handle
//! chunk       handle(8)                             Chunk
//! session     client(8)                             Session
//!             client(8) sequence(8)                 StoredReply
//! trash       collect_at(8) id(8)                   Trashed
//! ```
//! Values are records of `codec.rs`; "nothing" is an empty value. All of it is persisted and compared
//! between masters: golden bytes are in `tests/golden.rs`.

use std::fmt;

use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, MasterId, RequestId, ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;

use crate::state::codec::{record, tagged};
use crate::state::reply::Reply;

record! {
    /// What was settled when the cluster was made.
    pub struct Settings {
        /// The cluster's id.
        cluster: ClusterId,
        /// Size of every chunk.
        chunk_bytes: ChunkBytes,
        /// Replicas of a file that does not say how many.
        replication: u32,
        /// How long a deleted file can be restored, in milliseconds.
        trash_ms: u64,
        /// How long an idle session lives, in milliseconds.
        session_ms: u64,
        /// When the cluster was made.
        created_at: UnixMs,
    }
}

record! {
    /// The ids to give next, and how many of everything there are.
    pub struct Counters {
        /// The next file or directory gets this id.
        next_entry: EntryId,
        /// The next chunk gets this handle: whatever is below and not in the state is garbage.
        next_chunk: ChunkHandle,
        /// The next chunkserver gets this id.
        next_server: ServerId,
        /// Files, also those in the trash.
        files: u64,
        /// Directories, also those in the trash and the root.
        directories: u64,
        /// Chunks.
        chunks: u64,
        /// Open sessions.
        sessions: u64,
    }
}

record! {
    /// A file or directory.
    pub struct Entry {
        /// Its id; never reused.
        id: EntryId,
        /// Which of the two.
        kind: EntryKind,
        /// Where it is.
        place: Place,
        /// When it was made.
        created_at: UnixMs,
        /// When a chunk was added last; for a directory when it was made. Deliberately not when a name was
        /// added or removed: creates in one directory do not touch a common row (GFS §4.1).
        modified_at: UnixMs,
        /// Wanted replicas of each chunk; 0 for a directory.
        replication: u32,
        /// Number of chunks; 0 for a directory.
        chunk_count: u32,
    }
}

tagged! {
    /// File or directory.
    pub enum EntryKind {
        /// A file.
        1 File {}
        /// A directory.
        2 Directory {}
    }
}

tagged! {
    /// Where an entry is.
    pub enum Place {
        /// The root directory is nowhere.
        1 Root {}
        /// In a directory, which may itself be in the trash.
        2 In {
            /// The directory.
            parent: EntryId,
            /// The name there.
            name: String,
        }
        /// In the trash; what was below a deleted directory stays in that directory.
        3 Trash {
            /// Until when it can be restored.
            collect_at: UnixMs,
        }
    }
}

record! {
    /// A deleted entry, as the list of the trash shows it.
    pub struct Trashed {
        /// Its id: the hidden name, which no other entry ever has (traps T18).
        entry: EntryId,
        /// The path from which it was deleted; empty for a part of a tree under collection.
        path: String,
        /// When it was deleted.
        deleted_at: UnixMs,
        /// Until when it can be restored.
        collect_at: UnixMs,
    }
}

record! {
    /// A chunk.
    pub struct Chunk {
        /// Its handle; never reused.
        handle: ChunkHandle,
        /// The file that it was made for.
        file: EntryId,
        /// Wanted replicas.
        goal: u32,
        /// How many files have it (GFS §3.4).
        references: u32,
        /// Version of the last prepared grant; never reused.
        version: ChunkVersion,
        /// Version of the last confirmed grant.
        confirmed: ChunkVersion,
        /// Members of the confirmed grant: only they can be current. In the order the leader gave.
        members: Vec<ServerId>,
        /// The grant under way, if the last prepared one is not confirmed.
        pending: Option<Pending>,
        /// Who may order mutations under the confirmed version.
        lease: Option<Lease>,
    }
}

record! {
    /// Where a copy comes from, as long as the old chunk has to get a new version (GFS §3.4; traps T15). Counts
    /// as a reference to the old chunk, so that this is not forgotten with it.
    pub struct Origin {
        /// The old chunk.
        handle: ChunkHandle,
        /// Its version at the time: readers that know no newer one must find that it is over.
        version: ChunkVersion,
    }
}

record! {
    /// A prepared grant, between its two commits; its version is the chunk's.
    pub struct Pending {
        /// The version.
        version: ChunkVersion,
        /// All members.
        members: Vec<ServerId>,
        /// The current ones among them; all, if fresh.
        base: Vec<ServerId>,
        /// Who reconciles, and then orders mutations.
        primary: ServerId,
        /// Whether there will be mutations.
        writer: bool,
        /// Whether all members start from nothing.
        fresh: bool,
    }
}

record! {
    /// An operator's decision: the base of the pending grant, which is this server alone, counts as whole although it may
    /// have lost something (docs/decisions/0020). Ends with the grant.
    pub struct Accepted {
        /// The version of the grant; of no other.
        version: ChunkVersion,
        /// The server.
        server: ServerId,
    }
}

record! {
    /// The right to order mutations (GFS §3.1).
    pub struct Lease {
        /// Who has it.
        primary: ServerId,
        /// When it ends unless it is extended, on the clock of the leader that granted it.
        expires_at: UnixMs,
    }
}

record! {
    /// A snapshot of a large tree that is being built; there is one at most (docs/decisions/0014).
    pub struct Build {
        /// The copy of the source, in the trash until everything is copied.
        root: EntryId,
        /// What is copied: the names below it stand still.
        source: EntryId,
        /// Where it must be to the end.
        source_path: FilePath,
        /// Where the copy goes.
        target: FilePath,
        /// Who gets the answer.
        request: RequestId,
        /// When it began.
        began_at: UnixMs,
        /// The directory, or file of many chunks, that is being copied.
        original: EntryId,
        /// Its copy; how far a file has come, its count of chunks says.
        copy: EntryId,
        /// The name in the directory that was copied last; empty before the first.
        after: String,
        /// Names and chunks copied so far.
        rows: u64,
    }
}

record! {
    /// A chunkserver.
    pub struct Server {
        /// Its id; never reused.
        server: ServerId,
        /// Identity of its data directories.
        uuid: Uuid,
        /// "host:port".
        address: String,
        /// Its rack; may be empty.
        rack: String,
    }
}

record! {
    /// A master or shadow that was given an id; who takes part is raft's to say.
    pub struct Master {
        /// Its id; never reused.
        master: MasterId,
        /// Identity of its directory.
        uuid: Uuid,
        /// "host:port".
        address: String,
        /// Whether it joined as a shadow.
        shadow: bool,
    }
}

record! {
    /// A client session.
    pub struct Session {
        /// Its id.
        client: ClientId,
        /// The nonce that it was opened with.
        nonce: [u8; 16],
        /// When it ends unless it is used.
        expires_at: UnixMs,
        /// No reply is kept below this sequence.
        first_unacked: u64,
    }
}

record! {
    /// The answer to a request, kept until the client has it.
    pub struct StoredReply {
        /// Tag of the command.
        command: u8,
        /// The answer.
        reply: Reply,
    }
}

impl Entry {
    /// Whether this is a file.
    pub fn is_file(&self) -> bool {
        self.kind == EntryKind::File {}
    }
    /// The name in its directory; empty for the root and in the trash.
    pub fn name(&self) -> &str {
        match &self.place {
            Place::In { name, .. } => name,
            Place::Root {} | Place::Trash { .. } => "",
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            EntryKind::File {} => {
                write!(f, "file {} *{} {} chunks", self.id, self.replication, self.chunk_count)
            }
            EntryKind::Directory {} => write!(f, "directory {}", self.id),
        }
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, version, confirmed, members, .. } = self;
        write!(f, "{handle} {version} confirmed {confirmed} on {members:?}")?;
        if let Some(Pending { members, base, primary, writer, fresh, .. }) = &self.pending {
            let kind = if *fresh { "fresh " } else { "" };
            let purpose = if *writer { "grant" } else { "revocation" };
            write!(f, ", pending {kind}{purpose} to {members:?} base {base:?} primary {primary}")?;
        }
        if let Some(Lease { primary, expires_at }) = &self.lease {
            write!(f, ", leased to {primary} until {expires_at}")?;
        }
        Ok(())
    }
}

/// Keys of the system table.
pub(crate) mod system {
    use super::{ChunkHandle, ClientId, MasterId, ServerId, UnixMs, Uuid, concat};

    /// Settings.
    pub(crate) const SETTINGS: [u8; 1] = [0x01];
    /// The clock.
    pub(crate) const CLOCK: [u8; 1] = [0x02];
    /// Counters.
    pub(crate) const COUNTERS: [u8; 1] = [0x03];
    /// The snapshot that is being built.
    pub(crate) const BUILD: [u8; 1] = [0x04];
    /// First byte of chunkservers; one more ends them.
    pub(crate) const SERVERS: u8 = 0x10;
    /// First byte of masters; one more ends them.
    pub(crate) const MASTERS: u8 = 0x11;
    /// First byte of sessions by their end.
    pub(crate) const SESSION_ENDS: u8 = 0x23;

    /// First byte of chunks with a pending grant; one more ends them.
    pub(crate) const PENDING: u8 = 0x24;

    /// First byte of copies with an origin; one more ends them.
    pub(crate) const ORIGINS: u8 = 0x25;

    /// First byte of chunks with an accepted replica; one more ends them.
    pub(crate) const ACCEPTED: u8 = 0x26;

    /// The accepted replica of a chunk.
    pub(crate) fn accepted(handle: ChunkHandle) -> Vec<u8> {
        concat(&[ACCEPTED], &handle.raw().to_be_bytes())
    }
    /// The origin of a copy.
    pub(crate) fn origin(copy: ChunkHandle) -> Vec<u8> {
        concat(&[ORIGINS], &copy.raw().to_be_bytes())
    }
    /// A chunkserver.
    pub(crate) fn server(server: ServerId) -> Vec<u8> {
        concat(&[SERVERS], &server.raw().to_be_bytes())
    }
    /// A master.
    pub(crate) fn master(master: MasterId) -> Vec<u8> {
        concat(&[MASTERS], &master.raw().to_be_bytes())
    }
    /// The chunkserver with an identity.
    pub(crate) fn server_uuid(uuid: Uuid) -> Vec<u8> {
        concat(&[0x20], &uuid.bytes())
    }
    /// The master with an identity.
    pub(crate) fn master_uuid(uuid: Uuid) -> Vec<u8> {
        concat(&[0x21], &uuid.bytes())
    }
    /// The session opened with a nonce.
    pub(crate) fn nonce(nonce: [u8; 16]) -> Vec<u8> {
        concat(&[0x22], &nonce)
    }
    /// A session by its end.
    pub(crate) fn session_end(expires_at: UnixMs, client: ClientId) -> Vec<u8> {
        concat(&concat(&[SESSION_ENDS], &expires_at.raw().to_be_bytes()), &client.raw().to_be_bytes())
    }
    /// The first key whose end is after `now`.
    pub(crate) fn session_ends_after(now: UnixMs) -> Vec<u8> {
        match now.raw().checked_add(1) {
            Some(next) => concat(&[SESSION_ENDS], &next.to_be_bytes()),
            None => vec![SESSION_ENDS + 1],
        }
    }
    /// When and which session ends, of a key that [`session_end`] made.
    pub(crate) fn session_of_end(key: &[u8]) -> Option<(UnixMs, ClientId)> {
        let (expires_at, client) = (key.get(1..9)?.try_into().ok()?, key.get(9..)?.try_into().ok()?);
        Some((
            UnixMs::from_raw(u64::from_be_bytes(expires_at)),
            ClientId::from_raw(u64::from_be_bytes(client)),
        ))
    }
    /// A chunk with a pending grant.
    pub(crate) fn pending(handle: ChunkHandle) -> Vec<u8> {
        concat(&[PENDING], &handle.raw().to_be_bytes())
    }
    /// The chunk of a key that [`pending`] made.
    pub(crate) fn chunk_of_pending(key: &[u8]) -> Option<ChunkHandle> {
        Some(ChunkHandle::from_raw(u64::from_be_bytes(key.get(1..)?.try_into().ok()?)))
    }
}

/// Key of an entry.
pub(crate) fn entry_key(id: EntryId) -> Vec<u8> {
    id.raw().to_be_bytes().to_vec()
}
/// Key of a name in a directory.
pub(crate) fn name_key(directory: EntryId, name: &str) -> Vec<u8> {
    concat(&directory.raw().to_be_bytes(), name.as_bytes())
}
/// The first key that is of no name in a directory, nor of one before it.
pub(crate) fn names_end(directory: EntryId) -> Vec<u8> {
    past(directory.raw())
}
/// The first possible key after that of a name.
pub(crate) fn after_name(directory: EntryId, name: &str) -> Vec<u8> {
    concat(&name_key(directory, name), &[0])
}
/// Key of a file's chunk.
pub(crate) fn file_chunk_key(file: EntryId, index: ChunkIndex) -> Vec<u8> {
    concat(&file.raw().to_be_bytes(), &index.raw().to_be_bytes())
}
/// The first key that is of no chunk of a file, nor of one before it.
pub(crate) fn file_chunks_end(file: EntryId) -> Vec<u8> {
    past(file.raw())
}
/// Key of a chunk.
pub(crate) fn chunk_key(handle: ChunkHandle) -> Vec<u8> {
    handle.raw().to_be_bytes().to_vec()
}
/// Key of a session.
pub(crate) fn session_key(client: ClientId) -> Vec<u8> {
    client.raw().to_be_bytes().to_vec()
}
/// Key of a stored reply.
pub(crate) fn reply_key(client: ClientId, sequence: u64) -> Vec<u8> {
    concat(&client.raw().to_be_bytes(), &sequence.to_be_bytes())
}
/// The first key that is of no reply of a session, nor of one before it.
pub(crate) fn replies_end(client: ClientId) -> Vec<u8> {
    past(client.raw())
}
/// Key of a deleted entry.
pub(crate) fn trash_key(collect_at: UnixMs, entry: EntryId) -> Vec<u8> {
    concat(&collect_at.raw().to_be_bytes(), &entry.raw().to_be_bytes())
}
/// The first key of the trash whose date is after `now`.
pub(crate) fn trash_after(now: UnixMs) -> Vec<u8> {
    past(now.raw())
}
/// A key past every key of the table.
pub const END: [u8; 17] = [0xff; 17];

fn concat(first: &[u8], second: &[u8]) -> Vec<u8> {
    [first, second].concat()
}

/// The first key that does not start with `number` or a smaller one.
fn past(number: u64) -> Vec<u8> {
    number.checked_add(1).map_or_else(|| END.to_vec(), |next| next.to_be_bytes().to_vec())
}
