//! The replicated state on disk: one RocksDB without write-ahead log, whose log is the operation log.
//!
//! ```text
//! state/CURRENT                  name of the live directory; replaced by rename
//! state/live-7/                  the database
//! state/checkpoint-4711-6/       the newest checkpoint (checkpoint index, serial): pristine, never opened to write
//! state/building-8/ receive-9/   unfinished: removed at start
//! ```
//! A crash loses the newest writes; the entries since then are in the log and are applied again.

mod checkpoint;
mod view;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gfs_proto::fault;
use gfs_proto::work::Workers;
use parking_lot::{Mutex, RwLock};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Options, WriteBatch};

use super::codec::{self, LogIdRow, StoredMembershipRow};
use super::fail::{self, Point};
use super::poison::Poison;
use super::types::{LogId, SnapshotMeta, StoredMembership};
use crate::state::{Table, Writes};

pub(crate) use checkpoint::{CheckpointFile, CheckpointHandle, FILES_MAX, check_file_name, drop_unfinished};
#[cfg(any(test, fuzzing))]
pub(crate) use checkpoint::{open as open_checkpoint, sweep as sweep_checkpoints};
pub(crate) use view::Direct;
pub use view::ReadView;

/// Column family of what the machine itself keeps.
const RAFT: &str = "raft";
const KEY_APPLIED: &[u8] = b"applied";
const KEY_MEMBERSHIP: &[u8] = b"membership";
const CURRENT: &str = "CURRENT";

/// Memory of all write buffers together, and of one: when one is full, all are flushed in one piece.
const WRITE_BUFFERS_BYTES: usize = 64 << 20;
const WRITE_BUFFER_BYTES: usize = 32 << 20;

/// The write buffer of the trash, which is read from its front, where everything was removed: each look steps over what the disk and
/// the buffer still remember of that.
const TRASH_BUFFER_BYTES: usize = 8 << 20;
/// Tables that are read where much was removed: the dates of the trash and of sessions, and the names of a directory.
const STEPPED_OVER: [Table; 3] = [Table::Trash, Table::System, Table::Name];
/// From how many removals among so many rows on their files are merged at once.
const WINDOW_ROWS: usize = 4096;
const REMOVALS_MAX: usize = 2048;

/// Most of a log that a database keeps in a simulation, and what it sets aside for its list of files there.
const SIMULATED_WAL_BYTES: u64 = 1 << 20;
const SIMULATED_MANIFEST_BYTES: usize = 64 << 10;

/// The state's database, its checkpoints and what they have in common.
pub(crate) struct StateStore {
    dir: PathBuf,
    cache: Cache,
    workers: Workers,
    /// Swapped when a checkpoint is installed; the old one goes when its last reader does.
    live: RwLock<Arc<Live>>,
    /// As applied, ahead of the disk.
    applied: RwLock<(Option<LogId>, StoredMembership)>,
    checkpoint: Mutex<Option<CheckpointHandle>>,
    /// One checkpoint is built or installed at a time. Held over disk work, on blocking threads only.
    building: Mutex<()>,
    serial: AtomicU64,
    pub(crate) poison: Arc<Poison>,
}

/// When the database merges its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compaction {
    /// As it sees fit, on threads of its own.
    Automatic,
    /// When a checkpoint is built, at once: in a simulation the files of a checkpoint, which masters send each other, must not
    /// depend on how fast a thread was.
    AtCheckpoints,
}

impl Compaction {
    fn by(workers: &Workers) -> Self {
        match workers {
            Workers::Threads => Self::Automatic,
            Workers::Inline(_) => Self::AtCheckpoints,
        }
    }
}

/// One directory with an open database.
pub(crate) struct Live {
    pub(crate) db: DB,
    /// Dropped after the database: then a replaced directory can go.
    home: LiveDir,
}

struct LiveDir {
    path: PathBuf,
    replaced: AtomicBool,
}

impl Drop for LiveDir {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an old state stays on the disk until the next start");
        }
    }
}

/// The names of all column families.
fn families() -> impl Iterator<Item = &'static str> {
    Table::ALL.iter().map(|table| table.name()).chain([RAFT])
}

/// A simulation opens one small database after the other, in memory: nearly a fifth of its time went into zeroes that were set
/// aside for what never came. Changes nothing that a database holds.
pub(super) fn set_nothing_aside(options: &mut Options, workers: &Workers) {
    if matches!(workers, Workers::Inline(_)) {
        options.set_max_total_wal_size(SIMULATED_WAL_BYTES);
        options.set_manifest_preallocation_size(SIMULATED_MANIFEST_BYTES);
        options.set_max_file_opening_threads(1);
    }
}

fn options(workers: &Workers) -> Options {
    let mut options = Options::default();
    set_nothing_aside(&mut options, workers);
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // All tables of one entry reach the disk together or not at all.
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options.set_bytes_per_sync(1 << 20);
    options.set_max_background_jobs(2);
    options
}

fn table_options(cache: &Cache, compaction: Compaction) -> Options {
    let mut block = BlockBasedOptions::default();
    block.set_block_cache(cache);
    block.set_bloom_filter(10.0, false);
    // Counted in the cache, so that memory has one limit.
    block.set_cache_index_and_filter_blocks(true);
    block.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&block);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_disable_auto_compactions(compaction == Compaction::AtCheckpoints);
    options
}

fn family_options(name: &str, cache: &Cache, compaction: Compaction) -> Options {
    let mut options = table_options(cache, compaction);
    if name == Table::Trash.name() {
        options.set_write_buffer_size(TRASH_BUFFER_BYTES);
    }
    if STEPPED_OVER.map(Table::name).contains(&name) {
        options.add_compact_on_deletion_collector_factory(WINDOW_ROWS, REMOVALS_MAX, 0.0);
    }
    options
}

/// Opens the database of a live directory.
fn open_db(path: &Path, cache: &Cache, workers: &Workers) -> io::Result<DB> {
    let compaction = Compaction::by(workers);
    let family = |name| ColumnFamilyDescriptor::new(name, family_options(name, cache, compaction));
    let families = families().map(family);
    DB::open_cf_descriptors(&options(workers), path, families).map_err(io::Error::other)
}

fn cf<'a>(db: &'a DB, name: &str) -> io::Result<&'a rocksdb::ColumnFamily> {
    db.cf_handle(name).ok_or_else(|| codec::invalid("a column family is missing"))
}

/// What a database says it contains.
fn load_applied(db: &DB) -> io::Result<(Option<LogId>, StoredMembership)> {
    let raft = cf(db, RAFT)?;
    let row = |key| db.get_cf(raft, key).map_err(io::Error::other);
    let applied = match row(KEY_APPLIED)? {
        None => None,
        Some(bytes) => Some(codec::from_disk::<LogIdRow>(bytes)?.into()),
    };
    let membership = match row(KEY_MEMBERSHIP)? {
        None => StoredMembership::default(),
        Some(bytes) => codec::from_disk::<StoredMembershipRow>(bytes)?.into_stored()?,
    };
    Ok((applied, membership))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a small file in one step, durably.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

impl StateStore {
    /// Opens or makes the state in `dir`; removes what a crash left unfinished.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn open(dir: &Path, block_cache_bytes: usize, workers: &Workers) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let cache = Cache::new_lru_cache(block_cache_bytes);
        let current = match fs::read_to_string(dir.join(CURRENT)) {
            Ok(name) => Some(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Else a damaged pointer would begin an empty state, and the old one would be cleared away as unfinished.
        if let Some(name) = &current
            && !dir.join(name).join(CURRENT).is_file()
        {
            return Err(codec::invalid(&format!(
                "{} names a state that is not there: {name:?}",
                dir.display()
            )));
        }
        let (checkpoint, serial) = checkpoint::sweep(dir, current.as_deref())?;
        let name = current.unwrap_or_else(|| format!("live-{serial}"));
        let path = dir.join(&name);
        let db = open_db(&path, &cache, workers)?;
        replace_file(&dir.join(CURRENT), name.as_bytes())?;
        let applied = load_applied(&db)?;
        Ok(Self {
            dir: dir.to_owned(),
            cache,
            workers: workers.clone(),
            live: RwLock::new(Arc::new(Live {
                db,
                home: LiveDir { path, replaced: AtomicBool::new(false) },
            })),
            applied: RwLock::new(applied),
            checkpoint: Mutex::new(checkpoint),
            building: Mutex::new(()),
            serial: AtomicU64::new(serial + 1),
            poison: Arc::new(Poison::new()),
        })
    }

    /// The database as it is now.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.read().clone()
    }

    /// The state as it is now, for readers.
    pub(crate) fn view(&self) -> ReadView {
        ReadView::new(self.live(), self.poison.clone())
    }

    /// The last entry applied, and the membership.
    pub(crate) fn applied(&self) -> (Option<LogId>, StoredMembership) {
        self.applied.read().clone()
    }

    /// Whether a checkpoint is being built or installed.
    pub(crate) fn is_building(&self) -> bool {
        self.building.is_locked()
    }

    /// The newest checkpoint.
    pub(crate) fn checkpoint(&self) -> Option<CheckpointHandle> {
        self.checkpoint.lock().clone()
    }

    /// Makes the changes of some entries in one piece, up to `last`.
    pub(crate) fn write(
        &self,
        writes: &Writes,
        last: LogId,
        membership: Option<StoredMembership>,
    ) -> io::Result<()> {
        // What was read may be wrong after a failure, and so may be what follows from it.
        self.poison.check()?;
        let live = self.live();
        let mut batch = WriteBatch::default();
        for (table, key, value) in writes.iter() {
            let table = cf(&live.db, table.name())?;
            match value {
                Some(value) => batch.put_cf(table, key, value),
                None => batch.delete_cf(table, key),
            }
        }
        let raft = cf(&live.db, RAFT)?;
        batch.put_cf(raft, KEY_APPLIED, codec::to_disk(&LogIdRow::from(&last)));
        if let Some(membership) = &membership {
            batch.put_cf(raft, KEY_MEMBERSHIP, codec::to_disk(&StoredMembershipRow::from(membership)));
        }
        self.poison.watch_result(fault::try_at("raft::state::before_write"))?;
        self.poison.watch_result(live.db.write_without_wal(batch))?;
        fault::at("raft::state::written");
        let mut applied = self.applied.write();
        applied.0 = Some(last);
        if let Some(membership) = membership {
            applied.1 = membership;
        }
        Ok(())
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Builds a checkpoint of what is applied (GFS §2.6.3). Applying goes on meanwhile.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn build_checkpoint(&self) -> io::Result<CheckpointHandle> {
        let _building = self.building.lock();
        fault::try_at("raft::checkpoint::before_build")?;
        let path = self.dir.join(format!("building-{}", self.next_serial()));
        let live = self.live();
        if Compaction::by(&self.workers) == Compaction::AtCheckpoints {
            // It tells no error: then the checkpoint has more files.
            for name in families() {
                live.db.compact_range_cf(cf(&live.db, name)?, None::<&[u8]>, None::<&[u8]>);
            }
        }
        // Flushes first: the state on the disk is then at least as new as the checkpoint.
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&live.db).map_err(io::Error::other)?;
        checkpoint.create_checkpoint(&path).map_err(io::Error::other)?;
        let previous = self.checkpoint();
        let built = checkpoint::seal(&path, previous.as_ref())?;
        fail::point(Point::CheckpointBeforeRename)?;
        self.adopt(&path, &built)
    }

    /// Gives a sealed directory its name and makes it the current checkpoint.
    fn adopt(&self, path: &Path, meta: &SnapshotMeta) -> io::Result<CheckpointHandle> {
        let index = super::log::next_index(meta.last_log_id);
        let name = self.dir.join(format!("checkpoint-{index}-{}", self.next_serial()));
        fs::rename(path, &name)?;
        fault::try_at("raft::checkpoint::renamed")?;
        sync_dir(&self.dir)?;
        let handle = checkpoint::open(&name)?;
        if let Some(old) = self.checkpoint.lock().replace(handle.clone()) {
            // Goes when the last transfer of it ends.
            old.retire();
        }
        Ok(handle)
    }

    /// A directory for a checkpoint that comes from the leader.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn receive_dir(&self) -> io::Result<PathBuf> {
        let path = self.dir.join(format!("receive-{}", self.next_serial()));
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Replaces the state by a checkpoint, durably and in one step.
    ///
    /// # Errors
    /// What the disk says; then the state is as before.
    pub(crate) fn install(&self, meta: &SnapshotMeta, handle: &CheckpointHandle) -> io::Result<()> {
        let _building = self.building.lock();
        // RocksDB changes a directory that it opens, so the live one is another than the checkpoint.
        let name = format!("live-{}", self.next_serial());
        let path = self.dir.join(&name);
        fault::try_at("raft::install::before_copy")?;
        handle.copy_to(&path)?;
        let db = open_db(&path, &self.cache, &self.workers)?;
        // Mutant checkpoint_without_replies: a checkpoint brings no answers for repeated requests along.
        if fault::mutant("checkpoint_without_replies") {
            let sessions = cf(&db, Table::Session.name())?;
            db.delete_range_cf(sessions, &[][..], &[0xff; 32][..]).map_err(io::Error::other)?;
        }
        let applied = load_applied(&db)?;
        if applied.0 != meta.last_log_id || applied.1 != meta.last_membership {
            return Err(codec::invalid("a checkpoint contains something else than it says"));
        }
        let own = self.dir.join(format!("building-{}", self.next_serial()));
        handle.copy_to(&own)?;
        checkpoint::write_manifest(&own, handle.meta(), handle.files())?;
        sync_dir(&self.dir)?;
        fail::point(Point::InstallBeforePointer)?;
        replace_file(&self.dir.join(CURRENT), name.as_bytes())?;
        fail::point(Point::InstallAfterPointer)?;
        let home = LiveDir { path, replaced: AtomicBool::new(false) };
        let old = std::mem::replace(&mut *self.live.write(), Arc::new(Live { db, home }));
        *self.applied.write() = applied;
        old.home.replaced.store(true, Ordering::Release);
        self.adopt(&own, meta)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_at_the_front_of_a_table_is_not_stepped_over_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::open(&dir.path().join("state"), 1 << 20, &Workers::Threads).unwrap();
        let live = store.live();
        for table in STEPPED_OVER.map(Table::name) {
            let rows = cf(&live.db, table).unwrap();
            let keys = || (0..10_000_u64).map(u64::to_be_bytes);
            keys().for_each(|key| live.db.put_cf(rows, key, b"row").unwrap());
            live.db.flush_cf(rows).unwrap();
            keys().for_each(|key| live.db.delete_cf(rows, key).unwrap());
            live.db.flush_cf(rows).unwrap();
            live.db.wait_for_compact(&rocksdb::WaitForCompactOptions::default()).unwrap();
            let files = live.db.live_files().unwrap();
            let of_table = files.iter().filter(|file| file.column_family_name == table);
            assert_eq!(of_table.map(|file| file.num_deletions).sum::<u64>(), 0, "{table}");
        }
    }
}
