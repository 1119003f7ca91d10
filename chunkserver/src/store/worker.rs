//! The threads that work for a disk: some sync chunk files and bring logged bytes into them, one keeps the log short.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::work::{Pace, Workers};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::chunk::Chunk;
use super::disk::{Disk, SMALL_RECORD_BYTES};
use super::error::{Error, Result};
use super::format::Record;
use super::log::{Firmness, Then};
use super::segment::{Segment, segment_path};
use super::table;
use super::ticket::Completion;

/// Files that are synced at a time: a disk is not quicker with more.
const SYNC_THREADS: usize = 4;
/// How long a commit mark may wait for company.
const LAZY_PERIOD: Duration = Duration::from_secs(1);

enum Job {
    /// Syncs the file for those who wait. At most one per chunk is queued (`State::sync_queued`).
    Sync(Arc<Chunk>),
    /// Brings bytes into the file. At most one per logged overwrite, of which the log bounds the number.
    Settle(Arc<Chunk>),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    room_wanted: bool,
    jobs_end: bool,
    keeper_ends: bool,
}

/// What the threads of a disk have to do. Its lock is held for moments only; anybody may take it.
#[derive(Default)]
pub(crate) struct Work {
    queue: Mutex<Queue>,
    jobs: Condvar,
    keeper: Condvar,
    /// Wakes the disk's task, where there are no threads.
    task: Notify,
    /// Set where there are no threads.
    inline: OnceLock<Weak<Disk>>,
}

impl Work {
    pub(crate) fn sync(&self, chunk: Arc<Chunk>) {
        self.push(Job::Sync(chunk));
    }
    pub(crate) fn settle(&self, chunk: Arc<Chunk>) {
        // Cleared before the worker looks: an overlay that comes later is not missed.
        if !chunk.settle_queued.swap(true, Ordering::SeqCst) {
            self.push(Job::Settle(chunk));
        }
    }
    pub(crate) fn want_room(&self) {
        self.queue.lock().room_wanted = true;
        self.keeper.notify_one();
        self.task.notify_one();
    }
    /// Ends the threads that sync when what is queued is done.
    pub(crate) fn end_jobs(&self) {
        self.queue.lock().jobs_end = true;
        self.jobs.notify_all();
    }
    /// Ends the keeper; not before the others, who may wait for the room that it makes.
    pub(crate) fn end_keeper(&self) {
        self.queue.lock().keeper_ends = true;
        self.keeper.notify_all();
    }

    /// Wakes the disk's task.
    pub(crate) fn wake(&self) {
        self.task.notify_one();
    }
    /// Makes room at once, for one who must not wait; whether it could.
    pub(crate) fn make_room_now(&self) -> bool {
        let disk = self.inline.get().and_then(Weak::upgrade);
        disk.is_some_and(|disk| disk.check().is_ok() && make_room(&disk).is_ok())
    }

    fn push(&self, job: Job) {
        self.queue.lock().jobs.push_back(job);
        self.jobs.notify_one();
        self.task.notify_one();
    }
    /// The next job; `None` when all is done and there will be no more.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.jobs_end {
                return None;
            }
            self.jobs.wait(&mut queue);
        }
    }
    /// Waits for a wish for room, or a period; `None` when it is over, otherwise whether room is wanted.
    fn next_keeping(&self) -> Option<bool> {
        let mut queue = self.queue.lock();
        if !queue.keeper_ends && !queue.room_wanted {
            let _timed_out = self.keeper.wait_for(&mut queue, LAZY_PERIOD);
        }
        (!queue.keeper_ends).then(|| std::mem::take(&mut queue.room_wanted))
    }
}

/// The threads of a disk, or the tasks that do the same.
pub(crate) enum Threads {
    Running { keeper: JoinHandle<()>, syncing: Vec<JoinHandle<()>> },
    Tasks,
}

impl Threads {
    /// Lets them finish what is queued, and ends them.
    pub(crate) fn end(self, disk: &Arc<Disk>) {
        match self {
            Self::Running { .. } => self.leave(disk),
            Self::Tasks => while do_some(disk) {},
        }
    }

    /// Ends them as a crash would, as far as threads can be left.
    pub(crate) fn leave(self, disk: &Arc<Disk>) {
        let Self::Running { keeper, syncing } = self else { return };
        disk.work.end_jobs();
        let mut good = true;
        for thread in syncing {
            good &= thread.join().is_ok();
        }
        disk.work.end_keeper();
        if !(good & keeper.join().is_ok()) {
            tracing::error!("a thread of the store panicked");
        }
    }
}

/// Starts the threads of a disk, or its tasks.
pub(crate) fn start(disk: &Arc<Disk>) -> std::io::Result<Threads> {
    if let Workers::Inline(pace) = &disk.options.workers {
        let _first = disk.work.inline.set(Arc::downgrade(disk));
        tokio::spawn(tend(Arc::downgrade(disk), disk.work.clone(), pace.clone()));
        tokio::spawn(keep_softly(Arc::downgrade(disk)));
        return Ok(Threads::Tasks);
    }
    let spawn = |name: &str, run: fn(&Arc<Disk>)| {
        let disk = disk.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&disk))
    };
    let keeper = spawn("store-keeper", keep)?;
    let syncing = (0..SYNC_THREADS).map(|_| spawn("store-sync", work)).collect::<Result<_, _>>()?;
    Ok(Threads::Running { keeper, syncing })
}

/// The threads' work as a task: what is queued is done a disk's time later.
async fn tend(disk: Weak<Disk>, work: Arc<Work>, pace: Pace) {
    loop {
        work.task.notified().await;
        tokio::time::sleep(pace()).await;
        let Some(disk) = disk.upgrade() else { return };
        if do_some(&disk) {
            work.wake();
        }
    }
}

/// The keeper as a task.
async fn keep_softly(disk: Weak<Disk>) {
    loop {
        tokio::time::sleep(LAZY_PERIOD).await;
        let Some(disk) = disk.upgrade() else { return };
        if disk.check().is_ok() {
            keep_once(&disk, false);
        }
    }
}

/// One batch of the log, the jobs that are queued, room if it is wanted; whether there was anything to do.
fn do_some(disk: &Arc<Disk>) -> bool {
    let wrote = disk.log.write_some();
    disk.log.call_back();
    let (jobs, room_wanted) = {
        let mut queue = disk.work.queue.lock();
        (std::mem::take(&mut queue.jobs), std::mem::take(&mut queue.room_wanted))
    };
    let worked = !jobs.is_empty();
    jobs.into_iter().for_each(|job| do_job(disk, job));
    if room_wanted && disk.check().is_ok() {
        keep_once(disk, true);
    }
    wrote || worked
}

fn work(disk: &Arc<Disk>) {
    while let Some(job) = disk.work.next() {
        do_job(disk, job);
    }
}

fn do_job(disk: &Arc<Disk>, job: Job) {
    match job {
        Job::Sync(chunk) => sync_for_waiters(disk, &chunk),
        Job::Settle(chunk) => {
            chunk.settle_queued.store(false, Ordering::SeqCst);
            if let Err(error) = disk.settle(&chunk, &mut chunk.state.lock()) {
                tracing::debug!(handle = %chunk.handle, %error, "not settled");
            }
        }
    }
}

/// Syncs a chunk's file once for all that wait for it, then tells the log, then them.
fn sync_for_waiters(disk: &Arc<Disk>, chunk: &Arc<Chunk>) {
    if let Err(error) = try_sync(disk, chunk) {
        let waiters = {
            let mut state = chunk.state.lock();
            state.sync_queued = false;
            std::mem::take(&mut state.sync_waiters)
        };
        finish(waiters, &Err(error));
    }
}

fn try_sync(disk: &Arc<Disk>, chunk: &Arc<Chunk>) -> Result<()> {
    // Before the chunk is locked: who holds a chunk never waits for room.
    let mut permit = disk.log.reserve(SMALL_RECORD_BYTES)?;
    let mut state = chunk.state.lock();
    let waiters = std::mem::take(&mut state.sync_waiters);
    let (adopted, through) = (state.meta.adopted, state.meta.content.serial);
    let mut state = match disk.sync_file(chunk, state) {
        Ok(state) => state,
        Err(error) => {
            // Told by the caller, when nothing is queued any more: who comes after that is another attempt.
            chunk.state.lock().sync_waiters.extend(waiters);
            return Err(error);
        }
    };
    if state.removed || state.meta.adopted != adopted {
        // What they wait for has been replaced as a whole meanwhile.
        finish(waiters, &Err(Error::AdoptionOvertaken { handle: chunk.handle }));
    } else {
        let all = state.meta.content.serial == through;
        let promised = state.meta.promised && !all;
        state.meta.synced(promised);
        state.unsynced &= !all;
        let record = Record::Synced { handle: chunk.handle, through, promised };
        let then = Then::finish(Firmness::Durable, Box::new(move |result| finish(waiters, &result)));
        disk.record((chunk, &mut state), &mut permit, &record, then);
    }
    if state.sync_waiters.is_empty() {
        state.sync_queued = false;
    } else {
        disk.work.sync(chunk.clone());
    }
    Ok(())
}

fn finish(waiters: Vec<Completion>, result: &Result<()>) {
    waiters.iter().for_each(|waiter| waiter.finish(result.clone()));
}

/// Keeps the log short, and writes what is written lazily.
fn keep(disk: &Arc<Disk>) {
    while let Some(room_wanted) = disk.work.next_keeping() {
        if disk.check().is_err() {
            continue;
        }
        keep_once(disk, room_wanted);
    }
}

fn keep_once(disk: &Arc<Disk>, room_wanted: bool) {
    if (room_wanted || disk.log.wants_checkpoint())
        && let Err(error) = make_room(disk)
    {
        tracing::warn!(disk = %disk.directory.display(), %error, "no room in the log");
    }
    write_marks(disk);
}

/// Makes a segment while there may be more, then frees some by a checkpoint.
fn make_room(disk: &Arc<Disk>) -> Result<()> {
    let count = disk.log.segments();
    let mut refused = None;
    if count < disk.options.segments as usize {
        let path = segment_path(&disk.directory, count);
        match Segment::create(&*disk.files, path, disk.options.segment_bytes) {
            Ok(segment) => {
                disk.log.add_segment(Arc::new(segment));
                return Ok(());
            }
            Err(error) => refused = Some(error),
        }
    }
    fault::at("store::room::before_checkpoint");
    table::checkpoint(disk, table::Closing::No)?;
    match refused {
        // It has freed nothing: it never frees the one that is written.
        Some(error) if count == 1 => {
            let error = disk.fail_unless_full("making a segment of the log", &error);
            disk.log.no_space(error.clone());
            Err(error)
        }
        Some(_) | None => Ok(()),
    }
}

/// Writes the marks for which the log has room. The others wait for the next time, before which room is made.
fn write_marks(disk: &Arc<Disk>) {
    let mut lazy = std::mem::take(&mut *disk.lazy.lock());
    while let Some((handle, chunk)) = lazy.pop_first() {
        // Must not wait: others may have filled the log while a chunk's lock was waited for, and nobody else makes room.
        let Ok(Some(mut permit)) = disk.log.try_reserve(SMALL_RECORD_BYTES) else {
            lazy.insert(handle, chunk);
            break;
        };
        let mut state = chunk.state.lock();
        if state.removed {
            continue;
        }
        fault::at("store::marks::before_record");
        let record = Record::Mark {
            handle: chunk.handle,
            adopted: state.meta.adopted,
            commit_mark: state.meta.commit_mark,
            corrupt: state.meta.corrupt,
        };
        disk.record((&chunk, &mut state), &mut permit, &record, Then::lazily());
    }
    let mut now = disk.lazy.lock();
    for (handle, chunk) in lazy {
        now.entry(handle).or_insert(chunk);
    }
}
