//! The client: connects, and asks the masters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use gfs_proto::id::ClusterId;
use gfs_proto::leader::{Master, MasterChannel};
use gfs_proto::link::Links;
use gfs_proto::path::FilePath;
use gfs_proto::retry::Backoff;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::Moment;
use gfs_proto::{Environment, Error, Result, pb};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cache::Cache;
use crate::entry::{Chunk, Entry};
use crate::file::File;
use crate::options::Options;
use crate::session::Sessions;
use crate::{ClusterStatusReply, LeaderReply, ServerStatus};

/// What all parts of a client share.
pub(crate) struct Core {
    pub(crate) environment: Environment,
    pub(crate) masters: MasterChannel,
    pub(crate) links: Links,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) cache: Cache,
    pub(crate) options: Options,
    pub(crate) chunk_bytes: ChunkBytes,
    /// Spreads this client's choices among equal servers.
    pub(crate) seed: u64,
    cluster: ClusterId,
    /// Names the records of this client (`record.rs`).
    pub(crate) producer: u64,
    pub(crate) records: AtomicU64,
    /// Ends the background work with the last clone.
    _stop: DropGuard,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn now(&self) -> Moment {
        self.environment.clock.moment()
    }
    pub(crate) fn patience(&self) -> Duration {
        self.options.patience
    }
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.environment, self.options.patience)
    }

    /// How fresh every lookup must be: as the options say, and never behind what this client has seen.
    pub(crate) fn freshness(&self) -> Option<pb::Freshness> {
        let max_staleness_ms = u64::try_from(self.options.max_staleness.as_millis()).unwrap_or(u64::MAX);
        Some(pb::Freshness { max_staleness_ms, min_rev: self.sessions.floor() })
    }
    /// Takes note of the log index of a reply.
    pub(crate) fn seen(&self, rev: u64) {
        self.sessions.seen(rev);
    }

    /// Asks something that changes nothing and carries [`Core::freshness`]: the leader, or anybody who is fresh enough.
    pub(crate) async fn fresh_lookup<T, F>(
        &self,
        patience: Duration,
        call: impl Fn(Master) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    {
        if self.options.max_staleness.is_zero() {
            return self.lookup(patience, call).await;
        }
        self.masters
            .ask_any(patience, |master: Master| {
                let answer = call(master);
                // Boxed here, so that what is asked makes no caller's future larger.
                Box::pin(async move { self.sessions.heard(answer.await) })
            })
            .await
    }

    /// Asks the leader something that changes nothing.
    pub(crate) async fn lookup<T, F>(
        &self,
        patience: Duration,
        call: impl Fn(Master) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    {
        self.masters
            .call(patience, |master: Master| {
                let answer = call(master);
                // Boxed here, so that what is asked makes no caller's future larger.
                Box::pin(async move { self.sessions.heard(answer.await) })
            })
            .await
    }
}

/// A connection to a cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) core: Arc<Core>,
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
        environment: &Environment,
        masters: &[String],
        options: Options,
    ) -> Result<Self> {
        let options = options.checked()?;
        let masters = MasterChannel::new(environment, masters)?;
        let (sessions, opened) = Sessions::open(environment, &masters, options.patience).await?;
        let links = Links::new(environment);
        links.set_identity(opened.cluster, None);

        let stop = CancellationToken::new();
        let background = {
            let (sessions, masters, stop) = (sessions.clone(), masters.clone(), stop.clone());
            async move {
                // To survive the loss of the masters that were given, know the others.
                tokio::select! {
                    () = stop.cancelled() => return,
                    found = masters.discover() => if let Err(error) = found {
                        tracing::debug!(%error, "the other masters stay unknown");
                    }
                }
                sessions.keep_alive(opened.life, stop).await;
            }
        };
        tokio::spawn(background);
        let core = Core {
            environment: environment.clone(),
            masters,
            links,
            sessions,
            cache: Cache::new(),
            options,
            chunk_bytes: opened.chunk_bytes,
            seed: environment.random.bits64(),
            cluster: opened.cluster,
            producer: environment.random.bits64(),
            records: AtomicU64::new(1),
            _stop: stop.drop_guard(),
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.core.cluster
    }
    /// The chunk size of the cluster.
    pub fn chunk_bytes(&self) -> ChunkBytes {
        self.core.chunk_bytes
    }

    /// Makes a directory in an existing one.
    ///
    /// # Errors
    /// What the master says.
    pub async fn mkdir(&self, path: &str) -> Result<Entry> {
        self.make_directory(path, false).await
    }
    /// Makes a directory and its missing parents; one that exists is success.
    ///
    /// # Errors
    /// What the master says.
    pub async fn mkdir_all(&self, path: &str) -> Result<Entry> {
        self.make_directory(path, true).await
    }
    async fn make_directory(&self, path: &str, parents: bool) -> Result<Entry> {
        let path = parsed(path)?;
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let message = pb::MkdirRequest { request: Some(request), path: path.to_string(), parents };
                async move { master.mkdir(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Entry::parse(reply.entry)
    }

    /// Makes an empty file with a replication goal (0 = the cluster's default).
    ///
    /// # Errors
    /// What the master says.
    pub async fn create(&self, path: &str, replication: u32) -> Result<File> {
        let path = parsed(path)?;
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let message =
                    pb::CreateRequest { request: Some(request), path: path.to_string(), replication };
                async move { master.create(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        File::new(&self.core, &Entry::parse(reply.entry)?, path.as_str())
    }

    /// Deletes a file or an empty directory; it stays in the trash until its date.
    ///
    /// # Errors
    /// What the master says.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.remove(path, false, self.core.patience()).await
    }
    /// Deletes a file or a whole directory tree at once; it stays in the trash until its date.
    ///
    /// # Errors
    /// What the master says.
    pub async fn delete_tree(&self, path: &str) -> Result<()> {
        self.remove(path, true, self.core.patience()).await
    }
    pub(crate) async fn remove(&self, path: &str, recursive: bool, patience: Duration) -> Result<()> {
        let path = parsed(path)?;
        let reply = self
            .core
            .sessions
            .change(patience, |mut master, request| {
                let message = pb::DeleteRequest { request: Some(request), path: path.to_string(), recursive };
                async move { master.delete(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Ok(())
    }

    /// Makes a copy of a file or a tree: both share all chunks until one of them is written (GFS §3.4). Takes a moment; of
    /// a tree with many entries longer, and then changes of names in it wait until it is done.
    /// What was acknowledged before is in it, what is begun later is not; the new name must be free.
    ///
    /// # Errors
    /// What the master says. If the patience ends before a large snapshot is built, it is made all the same.
    pub async fn snapshot(&self, source: &str, target: &str) -> Result<Entry> {
        let (source, target) = (parsed(source)?, parsed(target)?);
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let (source, target) = (source.to_string(), target.to_string());
                let message = pb::SnapshotRequest { request: Some(request), source, target };
                async move { master.snapshot(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Entry::parse(reply.entry)
    }

    /// Renames a file or directory; the new name must be free.
    ///
    /// # Errors
    /// What the master says.
    pub async fn rename(&self, source: &str, target: &str) -> Result<()> {
        self.move_entry(source, target, false).await
    }
    /// Renames a file; a file that has the new name goes to the trash in the same step.
    ///
    /// # Errors
    /// What the master says.
    pub async fn replace(&self, source: &str, target: &str) -> Result<()> {
        self.move_entry(source, target, true).await
    }
    pub(crate) async fn move_entry(&self, source: &str, target: &str, replace: bool) -> Result<()> {
        let (source, target) = (parsed(source)?, parsed(target)?);
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let message = pb::RenameRequest {
                    request: Some(request),
                    source: source.to_string(),
                    target: target.to_string(),
                    replace,
                };
                async move { master.rename(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Ok(())
    }

    /// What a path names.
    ///
    /// # Errors
    /// What the master says.
    pub async fn stat(&self, path: &str) -> Result<Entry> {
        let path = parsed(path)?.to_string();
        let request = pb::StatRequest { path, freshness: self.core.freshness(), id: 0 };
        let reply = self
            .core
            .fresh_lookup(self.core.patience(), |mut master| {
                let request = request.clone();
                async move { master.stat(request).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Entry::parse(reply.entry)
    }
    /// Whether a path names anything.
    ///
    /// # Errors
    /// What the master says, other than that.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The entries of a directory in the order of their names, asked for page by page.
    pub fn list(&self, path: &str) -> BoxStream<'static, Result<Entry>> {
        self.paged(
            path,
            String::new(),
            |client, path, after| async move { client.list_page(&path, &after).await },
        )
    }
    async fn list_page(&self, path: &FilePath, after: &str) -> Result<(Vec<Entry>, Option<String>)> {
        let request = pb::ListRequest {
            path: path.to_string(),
            after: after.to_owned(),
            limit: 0,
            freshness: self.core.freshness(),
        };
        let reply = self
            .core
            .fresh_lookup(self.core.patience(), |mut master| {
                let request = request.clone();
                async move { master.list(request).await }
            })
            .await?;
        self.core.seen(reply.rev);
        let entries = reply.entries.into_iter().map(|entry| Entry::parse(Some(entry)));
        let entries: Vec<Entry> = entries.collect::<Result<_>>()?;
        // A page that ends where it began, or before, would be asked for again for ever.
        let next = entries.last().filter(|last| reply.more && last.name.as_str() > after);
        let next = next.map(|last| last.name.clone());
        Ok((entries, next))
    }

    /// What is listed under a path, asked for page by page: `page` is told where one begins, and tells where the next one
    /// does if there is one.
    pub(crate) fn paged<T, P, F>(
        &self,
        path: &str,
        begin: P,
        page: impl Fn(Self, FilePath, P) -> F + Send + 'static,
    ) -> BoxStream<'static, Result<T>>
    where
        T: Send + 'static,
        P: Send + 'static,
        F: Future<Output = Result<(Vec<T>, Option<P>)>> + Send + 'static,
    {
        let path = match parsed(path) {
            Ok(path) => path,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let client = self.clone();
        stream::try_unfold(Some(begin), move |position| {
            let asked = position.map(|at| page(client.clone(), path.clone(), at));
            async {
                let Some(asked) = asked else { return Ok::<_, Error>(None) };
                let (items, next) = asked.await?;
                Ok(Some((stream::iter(items.into_iter().map(Ok)), next)))
            }
        })
        .try_flatten()
        .boxed()
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::IsADirectory`], or what the master says.
    pub async fn open(&self, path: &str) -> Result<File> {
        let entry = self.stat(path).await?;
        File::new(&self.core, &entry, path)
    }
    /// The file of a listed entry, without asking the master.
    ///
    /// # Errors
    /// [`Error::IsADirectory`].
    pub fn file(&self, entry: &Entry) -> Result<File> {
        File::new(&self.core, entry, &entry.name)
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
        let ask = |mut master: Master| async move { master.disk_free(pb::DiskFreeRequest {}).await };
        let reply = self.core.lookup(self.core.patience(), ask).await?;
        self.core.seen(reply.rev);
        Ok(reply.servers)
    }
    /// The state of the cluster, as the leader measures it.
    ///
    /// # Errors
    /// What the master says.
    pub async fn cluster_status(&self) -> Result<ClusterStatusReply> {
        let ask =
            |mut master: Master| async move { master.cluster_status(pb::ClusterStatusRequest {}).await };
        let reply = self.core.lookup(self.core.patience(), ask).await?;
        self.core.seen(reply.rev);
        Ok(reply)
    }
    /// Who leads, as any master knows it, and all masters.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none knows.
    pub async fn leader(&self) -> Result<LeaderReply> {
        self.core.masters.discover().await
    }
}

/// A path as the user gave it, checked at the door.
pub(crate) fn parsed(path: &str) -> Result<FilePath> {
    FilePath::parse(path).map_err(|reason| Error::bad_path(path, reason))
}
