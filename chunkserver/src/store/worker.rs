//! The threads that work for a disk: some sync chunk files and bring logged bytes into them, one keeps the log short.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use gfs_proto::fault;
use parking_lot::{Condvar, Mutex};

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
}

impl Work {
    pub(crate) fn sync(&self, chunk: Arc<Chunk>) {
        self.push(Job::Sync(chunk));
    }
    pub(crate) fn settle(&self, chunk: Arc<Chunk>) {
        self.push(Job::Settle(chunk));
    }
    pub(crate) fn want_room(&self) {
        self.queue.lock().room_wanted = true;
        self.keeper.notify_one();
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

    fn push(&self, job: Job) {
        self.queue.lock().jobs.push_back(job);
        self.jobs.notify_one();
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

/// The threads of a disk.
pub(crate) struct Threads {
    keeper: JoinHandle<()>,
    syncing: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Lets them finish what is queued, and ends them.
    pub(crate) fn end(self, work: &Work) {
        work.end_jobs();
        let mut good = true;
        for thread in self.syncing {
            good &= thread.join().is_ok();
        }
        work.end_keeper();
        if !(good & self.keeper.join().is_ok()) {
            tracing::error!("a thread of the store panicked");
        }
    }
}

/// Starts the threads of a disk.
pub(crate) fn start(disk: &Arc<Disk>) -> std::io::Result<Threads> {
    let spawn = |name: &str, run: fn(&Arc<Disk>)| {
        let disk = disk.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&disk))
    };
    let keeper = spawn("store-keeper", keep)?;
    let syncing = (0..SYNC_THREADS).map(|_| spawn("store-sync", work)).collect::<Result<_, _>>()?;
    Ok(Threads { keeper, syncing })
}

fn work(disk: &Arc<Disk>) {
    while let Some(job) = disk.work.next() {
        match job {
            Job::Sync(chunk) => sync_for_waiters(disk, &chunk),
            Job::Settle(chunk) => {
                if let Err(error) = disk.settle(&chunk, &mut chunk.state.lock()) {
                    tracing::debug!(handle = %chunk.handle, %error, "not settled");
                }
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
            finish(waiters, &Err(error.clone()));
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
        if (room_wanted || disk.log.wants_checkpoint())
            && let Err(error) = make_room(disk)
        {
            tracing::warn!(disk = %disk.directory.display(), %error, "no room in the log");
        }
        write_marks(disk);
    }
}

/// Makes a segment while there may be more, then frees some by a checkpoint.
fn make_room(disk: &Arc<Disk>) -> Result<()> {
    let count = disk.log.segments();
    if count < disk.options.segments as usize {
        let path = segment_path(&disk.directory, count);
        if let Ok(segment) = Segment::create(&*disk.files, path, disk.options.segment_bytes) {
            disk.log.add_segment(Arc::new(segment));
            return Ok(());
        }
    }
    fault::at("store::room::before_checkpoint");
    table::checkpoint(disk, table::Closing::No)
}

fn write_marks(disk: &Arc<Disk>) {
    let lazy = std::mem::take(&mut *disk.lazy.lock());
    for chunk in lazy.into_values() {
        let Ok(mut permit) = disk.log.reserve(SMALL_RECORD_BYTES) else { return };
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
}
