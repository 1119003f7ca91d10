//! What the client tells about files, directories and chunks.

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::time::UnixMs;
use gfs_proto::{Error, Result, pb};

/// File or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// A file or directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Never reused, unlike its path.
    pub id: EntryId,
    /// What it is.
    pub kind: EntryKind,
    /// Name within its directory; empty for the root.
    pub name: String,
    /// When it was made.
    pub created: UnixMs,
    /// When its metadata last changed.
    pub modified: UnixMs,
    /// Replication goal of a file's chunks; 0 for a directory.
    pub replication: u32,
    /// Chunks of a file; its length is [`crate::File::len`]'s to tell.
    pub chunk_count: u32,
}

impl Entry {
    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        self.kind == EntryKind::File
    }
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == EntryKind::Directory
    }

    /// Reads a master's answer.
    pub(crate) fn parse(entry: Option<pb::Entry>) -> Result<Self> {
        let entry = entry.ok_or_else(|| Error::internal("a master's answer lacks the entry"))?;
        let kind = match entry.kind() {
            pb::EntryKind::File => EntryKind::File,
            pb::EntryKind::Directory => EntryKind::Directory,
            pb::EntryKind::Unspecified => return Err(Error::internal("an entry of unknown kind")),
        };
        Ok(Self {
            id: EntryId::from_raw(entry.id),
            kind,
            name: entry.name,
            created: UnixMs::from_raw(entry.created_ms),
            modified: UnixMs::from_raw(entry.modified_ms),
            replication: entry.replication,
            chunk_count: entry.chunk_count,
        })
    }
}

/// A chunkserver that holds a replica.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Control and data address, `host:port`.
    pub address: String,
    /// Its rack, or empty.
    pub rack: String,
}

impl From<pb::Replica> for Server {
    fn from(replica: pb::Replica) -> Self {
        Self { id: ServerId::from_raw(replica.server), address: replica.address, rack: replica.rack }
    }
}
impl From<Server> for pb::Replica {
    fn from(server: Server) -> Self {
        Self { server: server.id.raw(), address: server.address, rack: server.rack }
    }
}

/// A chunk of a file and where its replicas are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Its position in the file.
    pub index: ChunkIndex,
    /// Its name for ever.
    pub handle: ChunkHandle,
    /// The confirmed version.
    pub version: ChunkVersion,
    /// The confirmed members that are alive.
    pub replicas: Vec<Server>,
    /// How many replicas there should be.
    pub goal: u32,
    /// The holder of the lease.
    pub primary: Option<ServerId>,
}

impl From<pb::ChunkLocation> for Chunk {
    fn from(chunk: pb::ChunkLocation) -> Self {
        Self {
            index: ChunkIndex::from_raw(chunk.index),
            handle: ChunkHandle::from_raw(chunk.handle),
            version: ChunkVersion::from_raw(chunk.version),
            replicas: chunk.replicas.into_iter().map(Server::from).collect(),
            goal: chunk.goal,
            primary: (chunk.primary != 0).then(|| ServerId::from_raw(chunk.primary)),
        }
    }
}
