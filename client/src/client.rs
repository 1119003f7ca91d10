//! The client: connects, and asks the masters.

use std::sync::Arc;

use futures::stream::BoxStream;
use gfs_proto::size::ChunkBytes;
use gfs_proto::{Environment, Error, Result};

use crate::entry::{Chunk, Entry};
use crate::file::File;
use crate::options::Options;
use crate::{ClusterStatusReply, LeaderReply, ServerStatus};

/// What all parts of a client share.
#[derive(Debug)]
pub(crate) struct Core {}

/// A connection to a cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    core: Arc<Core>,
}

fn unbuilt() -> Error {
    Error::unavailable("not built yet")
}

impl Client {
    /// Connects through any of `masters` (`host:port` each) and opens a session.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for bad addresses or options, [`Error::DeadlineExceeded`] if no leader answers in time.
    pub async fn connect(masters: &[String], options: Options) -> Result<Self> {
        Self::connect_with(&Environment::real(), masters, options).await
    }

    /// The same over a given network, clock and randomness.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(
        _environment: &Environment,
        _masters: &[String],
        _options: Options,
    ) -> Result<Self> {
        Err(unbuilt())
    }

    /// The chunk size of the cluster.
    pub fn chunk_bytes(&self) -> ChunkBytes {
        ChunkBytes::DEFAULT
    }

    /// Makes a directory in an existing one.
    ///
    /// # Errors
    /// What the master says.
    pub async fn mkdir(&self, _path: &str) -> Result<Entry> {
        Err(unbuilt())
    }
    /// Makes a directory and its missing parents; one that exists is success.
    ///
    /// # Errors
    /// What the master says.
    pub async fn mkdir_all(&self, _path: &str) -> Result<Entry> {
        Err(unbuilt())
    }
    /// Makes an empty file with a replication goal (0 = the cluster's default).
    ///
    /// # Errors
    /// What the master says.
    pub async fn create(&self, path: &str, _replication: u32) -> Result<File> {
        Ok(File::new(self.core.clone(), gfs_proto::id::EntryId::ROOT, path.to_owned()))
    }
    /// Deletes a file or an empty directory; it stays in the trash until its date.
    ///
    /// # Errors
    /// What the master says.
    pub async fn delete(&self, _path: &str) -> Result<()> {
        Err(unbuilt())
    }
    /// Deletes a file or a whole directory tree at once; it stays in the trash until its date.
    ///
    /// # Errors
    /// What the master says.
    pub async fn delete_tree(&self, _path: &str) -> Result<()> {
        Err(unbuilt())
    }
    /// Renames a file or directory; the new name must be free.
    ///
    /// # Errors
    /// What the master says.
    pub async fn rename(&self, _source: &str, _target: &str) -> Result<()> {
        Err(unbuilt())
    }
    /// Renames a file; a file that has the new name goes to the trash in the same step.
    ///
    /// # Errors
    /// What the master says.
    pub async fn replace(&self, _source: &str, _target: &str) -> Result<()> {
        Err(unbuilt())
    }
    /// What a path names.
    ///
    /// # Errors
    /// What the master says.
    pub async fn stat(&self, _path: &str) -> Result<Entry> {
        Err(unbuilt())
    }
    /// Whether a path names anything.
    ///
    /// # Errors
    /// What the master says, other than that.
    pub async fn exists(&self, _path: &str) -> Result<bool> {
        Err(unbuilt())
    }
    /// The entries of a directory in the order of their names, asked for page by page.
    pub fn list(&self, _path: &str) -> BoxStream<'static, Result<Entry>> {
        Box::pin(futures::stream::once(async { Err(unbuilt()) }))
    }
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::IsADirectory`], or what the master says.
    pub async fn open(&self, _path: &str) -> Result<File> {
        Err(unbuilt())
    }
    /// The file of a listed entry, without asking the master.
    ///
    /// # Errors
    /// [`Error::IsADirectory`].
    pub fn file(&self, _entry: &Entry) -> Result<File> {
        Err(unbuilt())
    }
    /// The chunks of a file and where their replicas are.
    ///
    /// # Errors
    /// What the master says.
    pub async fn chunks(&self, path: &str) -> Result<Vec<Chunk>> {
        self.open(path).await?.chunks().await
    }
    /// The chunkservers with their disks.
    ///
    /// # Errors
    /// What the master says.
    pub async fn disk_free(&self) -> Result<Vec<ServerStatus>> {
        Err(unbuilt())
    }
    /// The state of the cluster, as the leader measures it.
    ///
    /// # Errors
    /// What the master says.
    pub async fn cluster_status(&self) -> Result<ClusterStatusReply> {
        Err(unbuilt())
    }
    /// Who leads, as any master knows it, and all masters.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none knows.
    pub async fn leader(&self) -> Result<LeaderReply> {
        Err(unbuilt())
    }
}
