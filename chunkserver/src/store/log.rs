//! The log of one disk: records of all chunks, made durable together (group commit: drain the queue, one write, one
//! fdatasync). It lives in segments of fixed size that are filled with zeros once and then used again, so that a sync
//! never has to write anything but the records.
//!
//! Room is promised before a record is made ([`Log::reserve`]), so a thread that holds a chunk's lock never waits for
//! room, and a checkpoint (which frees segments) never waits for itself. Nor does the keeper, who makes it, wait for room
//! ([`Log::try_reserve`]).

mod hand;
mod then;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use gfs_proto::fault;
use gfs_proto::net::blocking;
use parking_lot::{Condvar, Mutex};

use super::error::{Error, Result};
use super::format::{ALIGN, HEAD_BYTES, PartHead, part_bytes, put_part};
use super::segment::Segment;
use hand::Hand;

pub(crate) use hand::Inline;
pub(crate) use then::{Done, Failure, Firmness, Then};

/// Most bytes that wait for the log thread.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes that one write takes from the queue.
const BATCH_BYTES: usize = 4 << 20;

struct Entry {
    sequence: u64,
    head: Vec<u8>,
    data: Bytes,
    firmness: Firmness,
    done: Option<Done>,
    cost: u64,
}

struct Queue {
    entries: VecDeque<Entry>,
    next_sequence: u64,
    /// Promised to reservers and entries, not yet written.
    promised_bytes: u64,
    current: Arc<Segment>,
    /// Bytes left in the current segment.
    current_left: u64,
    free: VecDeque<Arc<Segment>>,
    /// Full segments, oldest first, each with its last sequence.
    full: VecDeque<(Arc<Segment>, u64)>,
    written: u64,
    durable: u64,
    stop: bool,
    /// Why space is short: a checkpoint could not be written.
    no_space: Option<Error>,
}

struct Shared {
    segment_bytes: u64,
    life: u64,
    failure: Failure,
    /// Held for moments only, never while anything else is locked or the disk is waited for.
    queue: Mutex<Queue>,
    work: Condvar,
    room: Condvar,
    progress: Condvar,
}

/// Room in the log; what is not used goes back when it is dropped.
pub(crate) struct Permit<'a> {
    shared: &'a Shared,
    left: u64,
}

/// The log of one disk, with its thread or [`Hand`].
pub(crate) struct Log {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    hand: Option<Hand>,
    /// Wakes who makes room.
    want_room: Box<dyn Fn() + Send + Sync>,
    /// More than this never fits: a checkpoint frees all segments but the current one.
    cost_max: u64,
}

/// What a new log starts with.
pub(crate) struct Start {
    pub(crate) life: u64,
    pub(crate) next_sequence: u64,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) segment_bytes: u32,
    pub(crate) segments_max: u32,
    pub(crate) failure: Failure,
    pub(crate) want_room: Box<dyn Fn() + Send + Sync>,
    /// Without it there is a thread.
    pub(crate) inline: Option<Inline>,
}

/// Bytes that a record may take at most, whatever borders it crosses.
fn cost_of(bytes: usize, segment_bytes: u64) -> u64 {
    let borders = 2 + bytes as u64 / segment_bytes.saturating_sub(HEAD_BYTES as u64).max(1);
    bytes as u64 + borders * 2 * (HEAD_BYTES + ALIGN) as u64
}

impl Log {
    /// Starts the log's thread on empty segments, of which there is at least one.
    pub(crate) fn start(start: Start) -> Result<Self> {
        let segment_bytes = u64::from(start.segment_bytes);
        let mut free = VecDeque::from(start.segments);
        let current = free.pop_front().ok_or(Error::Closed)?;
        let queue = Queue {
            entries: VecDeque::new(),
            next_sequence: start.next_sequence,
            promised_bytes: 0,
            current,
            current_left: segment_bytes,
            free,
            full: VecDeque::new(),
            written: start.next_sequence - 1,
            durable: start.next_sequence - 1,
            stop: false,
            no_space: None,
        };
        let shared = Arc::new(Shared {
            segment_bytes,
            life: start.life,
            failure: start.failure,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            room: Condvar::new(),
            progress: Condvar::new(),
        });
        let cost_max = segment_bytes * u64::from(start.segments_max.max(2) - 1);
        let writer = Writer { shared: shared.clone(), inline: start.inline.is_some(), buffer: Vec::new() };
        let (thread, hand) = match start.inline {
            None => {
                let thread = std::thread::Builder::new()
                    .name("store-log".into())
                    .spawn(move || writer.run())
                    .map_err(|error| Error::DiskFailed { disk: "log".into(), cause: error.to_string() })?;
                (Some(thread), None)
            }
            Some(inline) => {
                let (writer, written) = (Mutex::new(writer), Mutex::default());
                (None, Some(Hand { writer, written, inline }))
            }
        };
        Ok(Self { shared, thread: Mutex::new(thread), hand, want_room: start.want_room, cost_max })
    }

    /// Waits for room for a record of so many bytes. Must not be called with a chunk locked.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Permit<'_>> {
        let cost = cost_of(bytes, self.shared.segment_bytes);
        if cost > self.cost_max {
            return Err(Error::Busy { what: "the log, which is too small for this," });
        }
        let mut queue = self.shared.queue.lock();
        if !self.take_room(&mut queue, cost)? {
            // Only now do other tasks have to leave this thread.
            blocking(|| {
                loop {
                    self.wait(&self.shared.room, &mut queue)?;
                    if self.take_room(&mut queue, cost)? {
                        return Ok::<_, Error>(());
                    }
                }
            })?;
        }
        Ok(Permit { shared: &self.shared, left: cost })
    }

    /// The same if there is room now: for the keeper, who would wait for the room that only it makes.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Option<Permit<'_>>> {
        let cost = cost_of(bytes, self.shared.segment_bytes);
        let mut queue = self.shared.queue.lock();
        self.shared.check(&queue)?;
        if queue.promised_bytes + cost > queue.room(self.shared.segment_bytes).min(QUEUE_BYTES_MAX) {
            return Ok(None);
        }
        queue.promised_bytes += cost;
        Ok(Some(Permit { shared: &self.shared, left: cost }))
    }

    /// Promises room if there is some; asks for it if not.
    fn take_room(&self, queue: &mut Queue, cost: u64) -> Result<bool> {
        self.shared.check(queue)?;
        if queue.promised_bytes > 0 && queue.promised_bytes + cost > QUEUE_BYTES_MAX {
            return Ok(false);
        }
        if queue.promised_bytes + cost <= queue.room(self.shared.segment_bytes) {
            queue.promised_bytes += cost;
            return Ok(true);
        }
        // As an error of the disk: that it is full may last, and others have room (T34).
        if let Some(error) = &queue.no_space {
            return Err(error.clone());
        }
        (self.want_room)();
        Ok(false)
    }

    /// Adds a record: its encoded head, and what it brings along. Never waits. Records get durable in this order.
    pub(crate) fn append(
        &self,
        permit: &mut Permit<'_>,
        head: Vec<u8>,
        Then { data, firmness, done }: Then,
    ) -> u64 {
        let cost = cost_of(head.len() + data.len(), self.shared.segment_bytes);
        let mut queue = self.shared.queue.lock();
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        if queue.stop {
            drop(queue);
            if let Some(done) = done {
                done(Err(Error::Closed));
            }
            return sequence;
        }
        // The caller's estimate should cover it; if not, the promise is made here, and the log thread
        // waits for the checkpoint in the worst case.
        let covered = cost.min(permit.left);
        permit.left -= covered;
        queue.promised_bytes += cost - covered;
        queue.entries.push_back(Entry { sequence, head, data, firmness, done, cost });
        drop(queue);
        match &self.hand {
            None => drop(self.shared.work.notify_one()),
            Some(hand) => (hand.inline.wake)(),
        }
        sequence
    }

    /// The sequence of the next record.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.shared.queue.lock().next_sequence
    }
    /// All records up to this one are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.shared.queue.lock().durable
    }
    /// Waits until a record that was appended as durable is so.
    pub(crate) fn wait_durable(&self, sequence: u64) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        while queue.durable < sequence {
            if let Some(error) = self.shared.failure.get() {
                return Err(error.clone());
            }
            if queue.stop {
                return Err(Error::Closed);
            }
            if self.hand.is_some() && queue.entries.is_empty() {
                return Err(Error::Busy { what: "a record that nobody appended" });
            }
            self.wait(&self.shared.progress, &mut queue)?;
        }
        Ok(())
    }

    /// Half of the room is used: time for a checkpoint.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let queue = self.shared.queue.lock();
        let segments = (queue.full.len() + queue.free.len() + 1) as u64;
        queue.room(self.shared.segment_bytes) * 2 < segments * self.shared.segment_bytes
    }
    /// How many segments there are.
    pub(crate) fn segments(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.full.len() + queue.free.len() + 1
    }
    /// Gives the log one more empty segment.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        let mut queue = self.shared.queue.lock();
        queue.free.push_back(segment);
        queue.no_space = None;
        drop(queue);
        self.shared.room.notify_all();
        self.shared.work.notify_all();
    }
    /// Records before `cut` are not needed any more: their segments may be written over.
    pub(crate) fn recycle(&self, cut: u64) {
        let mut queue = self.shared.queue.lock();
        while queue.full.front().is_some_and(|(_, last)| *last < cut) {
            if let Some((segment, _)) = queue.full.pop_front() {
                queue.free.push_back(segment);
            }
        }
        queue.no_space = None;
        drop(queue);
        self.shared.room.notify_all();
        self.shared.work.notify_all();
    }
    /// Tells waiters that there will be no room for now, and why.
    pub(crate) fn no_space(&self, error: Error) {
        self.shared.queue.lock().no_space = Some(error);
        self.shared.room.notify_all();
    }
    /// Wakes everybody who waits for a disk that has failed.
    pub(crate) fn wake(&self) {
        // With the lock, so that nobody is between looking at the failure and waiting.
        let _queue = self.shared.queue.lock();
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        self.shared.progress.notify_all();
    }

    /// Writes what is queued and ends the thread.
    pub(crate) fn stop(&self) {
        self.shared.queue.lock().stop = true;
        self.wake();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.shared.queue.lock().promised_bytes -= self.left;
            self.shared.room.notify_all();
        }
    }
}

impl Queue {
    /// Bytes that can be written before a segment has to be recycled.
    fn room(&self, segment_bytes: u64) -> u64 {
        self.current_left + self.free.len() as u64 * segment_bytes
    }
}

impl Shared {
    fn check(&self, queue: &Queue) -> Result<()> {
        match self.failure.get() {
            Some(error) => Err(error.clone()),
            None if queue.stop => Err(Error::Closed),
            None => Ok(()),
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// Must not wait: nobody else goes on meanwhile.
    inline: bool,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.next() {
            let result = self.write_or_fail(&batch);
            for done in self.account(batch, &result) {
                done(result.clone());
            }
        }
    }

    /// Waits for records and takes as many as one write should have; `None` when there will be no more.
    fn next(&self) -> Option<Vec<Entry>> {
        let mut queue = self.shared.queue.lock();
        while queue.entries.is_empty() {
            if queue.stop {
                return None;
            }
            self.shared.work.wait(&mut queue);
        }
        Self::take(&mut queue)
    }

    /// As many records as one write should have, if there are any.
    fn take(queue: &mut Queue) -> Option<Vec<Entry>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(entry) = queue.entries.pop_front()
        {
            bytes += entry.head.len() + entry.data.len();
            batch.push(entry);
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn write_or_fail(&mut self, batch: &[Entry]) -> Result<()> {
        let result = self.write(batch);
        if let Err(error) = &result {
            // A failed write or sync is the end of the disk: what the page cache says after it proves nothing.
            let _first = self.shared.failure.set(error.clone());
        }
        result
    }

    fn write(&mut self, batch: &[Entry]) -> Result<()> {
        let (mut segment, mut left, durable) = {
            let queue = self.shared.queue.lock();
            // Also when a chunk's file could not be synced: nothing on this disk is promised after that.
            if let Some(error) = self.shared.failure.get() {
                return Err(error.clone());
            }
            (queue.current.clone(), queue.current_left, queue.durable)
        };
        self.buffer.clear();
        for entry in batch {
            let (mut head, mut data) = (&entry.head[..], &entry.data[..]);
            let mut part = 0;
            loop {
                let buffered = self.buffer.len() as u64;
                if left < buffered + (HEAD_BYTES + ALIGN) as u64 {
                    self.flush(&segment, left)?;
                    segment = self.switch(&segment, entry.sequence, part > 0)?;
                    left = self.shared.segment_bytes;
                    continue;
                }
                let fits = usize::try_from(left - buffered).unwrap_or(usize::MAX) - HEAD_BYTES;
                let from_head = head.len().min(fits);
                let from_data = data.len().min(fits - from_head);
                let last = from_head == head.len() && from_data == data.len();
                let length = u32::try_from(from_head + from_data).unwrap_or(u32::MAX);
                let (life, sequence) = (self.shared.life, entry.sequence);
                let place = PartHead { life, sequence, durable, length, part, last };
                put_part(&mut self.buffer, place, [&head[..from_head], &data[..from_data]]);
                debug_assert!(
                    self.buffer.len() as u64 - buffered == part_bytes(from_head + from_data) as u64
                );
                (head, data) = (&head[from_head..], &data[from_data..]);
                part += 1;
                if last {
                    break;
                }
            }
        }
        // A head of zeros behind it, not the remains of an older record: then a damaged record is never taken for the end
        // (guard *end_assumed*, `Replay::scan`). The next write begins there.
        let end = self.buffer.len();
        let room = usize::try_from(left).unwrap_or(usize::MAX);
        self.buffer.resize((end + HEAD_BYTES).min(room), 0);
        self.flush(&segment, left)?;
        left -= end as u64;
        self.shared.queue.lock().current_left = left;
        if batch.iter().any(|entry| entry.firmness == Firmness::Durable) {
            segment.sync()?;
        }
        Ok(())
    }

    fn flush(&self, segment: &Segment, left: u64) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        segment.write(&self.buffer, self.shared.segment_bytes - left)
    }

    /// Goes to the next segment. The full one is synced first: a record is never durable before those before it.
    fn switch(&mut self, full: &Segment, next: u64, within: bool) -> Result<Arc<Segment>> {
        full.sync()?;
        self.buffer.clear();
        let mut queue = self.shared.queue.lock();
        let segment = loop {
            if let Some(segment) = queue.free.pop_front() {
                break segment;
            }
            if let Some(error) = self.shared.failure.get() {
                return Err(error.clone());
            }
            if self.inline {
                return Err(Error::Busy { what: "the log, which promised more than it has," });
            }
            self.shared.work.wait(&mut queue);
        };
        let full = std::mem::replace(&mut queue.current, segment.clone());
        queue.full.push_back((full, if within { next } else { next - 1 }));
        queue.current_left = self.shared.segment_bytes;
        Ok(segment)
    }

    /// Takes note of what became of a batch; those to call back.
    fn account(&self, batch: Vec<Entry>, result: &Result<()>) -> Vec<Done> {
        fault::at("store::log::before_answer");
        let synced = batch.iter().any(|entry| entry.firmness == Firmness::Durable);
        {
            let mut queue = self.shared.queue.lock();
            queue.promised_bytes -= batch.iter().map(|entry| entry.cost).sum::<u64>();
            if let (Ok(()), Some(last)) = (result, batch.last()) {
                queue.written = last.sequence;
                if synced {
                    queue.durable = last.sequence;
                }
            }
        }
        self.shared.room.notify_all();
        self.shared.progress.notify_all();
        batch.into_iter().filter_map(|entry| entry.done).collect()
    }
}
