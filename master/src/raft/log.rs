//! The operation log on disk: one RocksDB, one writer thread, group commit (GFS §2.6.3).
//!
//! Everything that changes the log goes through one queue in the order in which openraft decided it, and
//! through one write-ahead log: a vote and an append that changed places could lose acknowledged entries.

mod read;
mod tail;
mod write;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use gfs_proto::fault;
use gfs_proto::work::Workers;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, IteratorMode, Options,
};
use tokio::sync::{mpsc, oneshot};

use super::codec::{self, EntryRow, LogIdRow, VoteRow};
use super::poison::Poison;
use super::store::set_nothing_aside;
use super::types::{Entry, LogId, TypeConfig, Vote};
use tail::Tail;
use write::Command;

pub(crate) use read::LogReader;
pub(crate) use tail::next_index;

/// Column family of the entries: index (8 bytes, big-endian) to entry.
const ENTRIES: &str = "log";
/// Column family of everything else.
const META: &str = "meta";
const KEY_VOTE: &[u8] = b"vote";
const KEY_PURGED: &[u8] = b"last_purged";
const KEY_COMMITTED: &[u8] = b"committed";
const KEY_OWNER: &[u8] = b"owner";
/// The file without which RocksDB takes a directory for an empty one.
const CURRENT: &str = "CURRENT";

/// Memory of one write buffer; three exist at most. Most entries are purged soon after they leave it.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Cache for blocks of old entries, which only lagging members need.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Commands that wait for the writer. Beyond this openraft waits.
const QUEUE_MAX: usize = 4096;

/// The log store.
#[derive(Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: Writer,
}

/// The writer thread, by its queue. Ends with the store, after everything queued is written: a database
/// that is still in use when the process exits aborts it.
#[derive(Debug)]
struct Writer {
    /// Taken when the store is dropped.
    queue: Option<mpsc::Sender<Command>>,
    /// `None` where a task writes: that one ends with the runtime.
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// What the writer thread, the readers and the store have in common.
pub(crate) struct Shared {
    db: DB,
    /// The truth about the log's extent, ahead of the disk. Short critical sections, no disk access inside
    /// but taking a RocksDB snapshot.
    tail: RwLock<Tail>,
    /// As on the disk: set after the sync.
    vote: Mutex<Option<Vote>>,
    /// Rides on the next batch: losing some only means applying later.
    committed: Mutex<Option<LogId>>,
    pub(crate) poison: Arc<Poison>,
    /// Count what the database does.
    #[cfg(test)]
    options: Options,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("log")
    }
}

/// What it means that there is no log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Absent {
    /// The first start is not over: it is made.
    IsMade,
    /// Votes and acknowledged entries are gone.
    IsLost,
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the log is lost")
}

fn options(absent: Absent) -> Options {
    let mut options = Options::default();
    options.create_if_missing(absent == Absent::IsMade);
    options.create_missing_column_families(absent == Absent::IsMade);
    // The default drops synced entries silently after a flipped bit; this one refuses to open.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_use_fsync(false);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(rocksdb::LogLevel::Warn);
    #[cfg(test)]
    options.enable_statistics();
    options
}

fn table_options() -> Options {
    let mut block = BlockBasedOptions::default();
    block.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    let mut options = Options::default();
    options.set_block_based_table_factory(&block);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// The error of a broken promise: the database has no column family that it was opened with.
fn cf<'a>(db: &'a DB, name: &str) -> io::Result<&'a rocksdb::ColumnFamily> {
    db.cf_handle(name).ok_or_else(|| codec::invalid("a column family is missing"))
}

impl LogStore {
    /// Opens or makes the log in `dir`, which belongs to `owner`: another one's log is refused. Written by a thread of
    /// its own, or by a task.
    ///
    /// # Errors
    /// What the disk says, or whose log it is.
    pub(crate) fn open(dir: &Path, owner: &str, workers: &Workers) -> io::Result<Self> {
        Self::open_as(Absent::IsMade, dir, owner, workers)
    }

    /// Opens the log of a member that has started: it is there, or it is lost, and never made anew.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is lost; what the disk says, or whose log it is.
    pub(crate) fn reopen(dir: &Path, owner: &str, workers: &Workers) -> io::Result<Self> {
        // Looked for before RocksDB leaves files of its own in what may be the place of a volume that is not mounted.
        if !dir.join(CURRENT).try_exists()? {
            return Err(lost());
        }
        Self::open_as(Absent::IsLost, dir, owner, workers)
    }

    fn open_as(absent: Absent, dir: &Path, owner: &str, workers: &Workers) -> io::Result<Self> {
        let families = [ENTRIES, META].map(|name| ColumnFamilyDescriptor::new(name, table_options()));
        let mut options = options(absent);
        set_nothing_aside(&mut options, workers);
        let db = DB::open_cf_descriptors(&options, dir, families).map_err(io::Error::other)?;
        check_owner(&db, owner, absent)?;
        let (vote, committed, tail) = load(&db)?;
        let shared = Arc::new(Shared {
            db,
            tail: RwLock::new(tail),
            vote: Mutex::new(vote),
            committed: Mutex::new(committed),
            poison: Arc::new(Poison::new()),
            #[cfg(test)]
            options,
        });
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let writes = shared.clone();
        let thread = match workers {
            Workers::Threads => {
                let writer = std::thread::Builder::new().name("log-writer".into());
                Some(writer.spawn(move || write::run(&writes, commands))?)
            }
            Workers::Inline(pace) => {
                tokio::spawn(write::run_inline(writes, commands, pace.clone()));
                None
            }
        };
        Ok(Self { shared, writer: Writer { queue: Some(queue), thread } })
    }

    /// How often the database has synced its write-ahead log.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.shared.options.get_ticker_count(rocksdb::statistics::Ticker::WalFileSynced)
    }

    /// What outlives the store while readers do.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    async fn send(&self, command: Command) -> io::Result<()> {
        let sent = match &self.writer.queue {
            Some(queue) => queue.send(command).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(self.shared.poison.set("the log's writer is gone")) }
    }
}

impl Shared {
    /// The last entry.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.tail.read().last()
    }
}

fn check_owner(db: &DB, owner: &str, absent: Absent) -> io::Result<()> {
    let meta = cf(db, META)?;
    match db.get_cf(meta, KEY_OWNER).map_err(io::Error::other)? {
        Some(found) if found == owner.as_bytes() => Ok(()),
        Some(found) => {
            let found = String::from_utf8_lossy(&found).into_owned();
            Err(codec::invalid(&format!("the log belongs to {found}, not to {owner}")))
        }
        // The owner was written before the first vote, so this is a new database in the place of the log.
        None if absent == Absent::IsLost => Err(lost()),
        None => {
            let mut sync = rocksdb::WriteOptions::default();
            sync.set_sync(true);
            db.put_cf_opt(meta, KEY_OWNER, owner, &sync).map_err(io::Error::other)
        }
    }
}

fn load(db: &DB) -> io::Result<(Option<Vote>, Option<LogId>, Tail)> {
    let meta = cf(db, META)?;
    let row = |key| db.get_cf(meta, key).map_err(io::Error::other);
    let id = |key| match row(key)? {
        None => Ok(None),
        Some(bytes) => codec::from_disk::<LogIdRow>(bytes).map(|row| Some(row.into())),
    };
    let vote = match row(KEY_VOTE)? {
        None => None,
        Some(bytes) => Some(codec::from_disk::<VoteRow>(bytes)?.into()),
    };
    let purged: Option<LogId> = id(KEY_PURGED)?;
    let mut last = purged;
    if let Some(row) = db.iterator_cf(cf(db, ENTRIES)?, IteratorMode::End).next() {
        let (_, bytes) = row.map_err(io::Error::other)?;
        let entry: Entry = codec::from_disk::<EntryRow>(bytes.into_vec())?.into_entry()?;
        last = last.max(Some(entry.log_id));
    }
    // openraft starts only if the entry is there. An end of an older term is not what was committed.
    let committed: Option<LogId> = id(KEY_COMMITTED)?;
    let committed = match (committed, last) {
        (Some(noted), Some(end)) if noted > end && noted.leader_id != end.leader_id => purged,
        _ => committed.min(last),
    };
    Ok((vote, committed, Tail::new(purged, last)))
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.shared.poison.check()?;
        let tail = self.shared.tail.read();
        Ok(LogState { last_purged_log_id: tail.purged(), last_log_id: tail.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(self.shared.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.shared.poison.check()?;
        fault::try_at("raft::log::before_vote")?;
        let (done, durable) = oneshot::channel();
        self.send(Command::Vote { vote: *vote, done }).await?;
        let saved = durable.await.map_err(|_| self.shared.poison.set("the log's writer is gone"))?;
        saved.and_then(|()| fault::try_at("raft::log::vote_saved"))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        *self.shared.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(*self.shared.committed.lock())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.shared.poison.check()?;
        fault::try_at("raft::log::before_append")?;
        let entries: Vec<Entry> = entries.into_iter().collect();
        let rows = entries
            .iter()
            .map(|entry| (entry.log_id.index, codec::to_disk(&EntryRow::from(entry))))
            .collect();
        let generation = self.shared.tail.write().append(entries)?;
        self.send(Command::Append { rows, generation, callback }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.shared.poison.check()?;
        fault::try_at("raft::log::before_truncate")?;
        let Some((from, until)) = self.shared.tail.write().truncate_after(last) else { return Ok(()) };
        self.send(Command::Delete { from, until }).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.shared.poison.check()?;
        fault::try_at("raft::log::before_purge")?;
        let Some(from) = self.shared.tail.write().purge(id) else { return Ok(()) };
        self.send(Command::Purge { from, id }).await
    }
}
