//! Writing: data is pushed along a chain, then the primary orders it (GFS §3.1, §3.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use gfs_proto::frame::Payload;
use gfs_proto::id::ChunkIndex;
use gfs_proto::{Error, Result, pb};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::client::Core;
use crate::file::File;
use crate::lease::Opened;
use crate::mutate::{Action, Tail, Unit, push_ahead};
use crate::options::Durability;
use crate::read::UNIT_BYTES;

/// A stream's bytes are synced when so many wait for it: they are kept until then, see [`Tail`].
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// Writes a file in order, with several units in flight and bounded memory.
///
/// Units of 1 MiB are pushed to the replicas ahead of their turn, and ordered by the primary one after the
/// other: whoever reads meanwhile sees a prefix of the stream. With [`Durability::Synced`] the bytes are synced
/// in large steps and at [`Writer::flush`]; only then are they promised.
///
/// A writer that is dropped instead of finished leaves unknown how much of what it took was written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// Where the first byte went, or will go.
    begin: u64,
    /// Where the next byte goes that is taken.
    position: u64,
    /// Bytes that do not fill a unit yet.
    buffer: BytesMut,
    stream: Arc<Stream>,
    /// The turn after the last unit that was handed over.
    turn: oneshot::Receiver<Tail>,
    window: Arc<Semaphore>,
    /// Ends with the writer.
    tasks: JoinSet<()>,
}

/// What the units of one stream share.
#[derive(Debug)]
struct Stream {
    core: Arc<Core>,
    file: Arc<Opened>,
    /// The first error; no unit after it is written.
    failed: Mutex<Option<Error>>,
}

/// A unit that is handed over to a task.
struct Job {
    index: ChunkIndex,
    within: u32,
    /// Nothing: only makes durable what is before.
    data: Option<Bytes>,
    /// Whether its acknowledgement is to promise everything before it.
    promise: bool,
    /// Held until the unit is acknowledged.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Writer {
    pub(crate) fn new(file: &File, offset: u64) -> Self {
        let stream = Stream { core: file.core.clone(), file: file.opened.clone(), failed: Mutex::default() };
        Self {
            begin: offset,
            position: offset,
            buffer: BytesMut::new(),
            stream: Arc::new(stream),
            turn: first_turn(Tail::new(ChunkIndex::from_raw(0))),
            window: Arc::new(Semaphore::new(file.core.options.window)),
            tasks: JoinSet::new(),
            file: file.clone(),
        }
    }

    /// The offset in the file of the next byte that is taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes more bytes; waits while too many are in flight.
    ///
    /// # Errors
    /// The first error of any unit; the stream can't go on.
    ///
    /// # Cancel safety
    /// A part of the bytes may have been taken: [`Writer::position`] tells how many.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let room = self.room().await?;
            let (now, later) = data.split_at(data.len().min(room));
            self.buffer.put_slice(now);
            self.took(now.len()).await?;
            data = later;
        }
        Ok(())
    }

    /// Takes what one read of `source` gives; 0 at its end.
    pub(crate) async fn fill_from(
        &mut self,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<Result<usize>, std::io::Error> {
        let room = match self.room().await {
            Ok(room) => room,
            Err(error) => return Ok(Err(error)),
        };
        let count = source.read_buf(&mut (&mut self.buffer).limit(room)).await?;
        Ok(self.took(count).await.map(|()| count))
    }

    /// Bytes until the current unit is full; never 0.
    async fn room(&mut self) -> Result<usize> {
        // Full already if the future that was to hand it over has been dropped.
        self.hand_over_full().await?;
        let (_, within) = self.file.position(self.position)?;
        let chunk_bytes = self.stream.core.chunk_bytes.raw();
        let border = (within / UNIT_BYTES + 1).saturating_mul(UNIT_BYTES).min(chunk_bytes);
        let room = (border - within) as usize;
        if self.buffer.is_empty() {
            self.buffer.reserve(room);
        }
        Ok(room)
    }

    async fn took(&mut self, count: usize) -> Result<()> {
        self.position += count as u64;
        self.hand_over_full().await
    }

    async fn hand_over_full(&mut self) -> Result<()> {
        let within = self.position % u64::from(self.stream.core.chunk_bytes.raw());
        if self.buffer.is_empty() || !within.is_multiple_of(UNIT_BYTES.into()) {
            return Ok(());
        }
        // At the end of a chunk nothing of it may stay unpromised: the turn goes on to the next chunk.
        self.hand_over(within == 0).await
    }

    /// Hands the buffered bytes over to a task of their own.
    async fn hand_over(&mut self, promise: bool) -> Result<()> {
        self.check()?;
        let permit = self.window.clone().acquire_owned().await.map_err(Error::internal)?;
        let data = std::mem::take(&mut self.buffer).freeze();
        let (index, within) = self.file.position(self.position - data.len() as u64)?;
        self.start(Job { index, within, data: Some(data), promise, _permit: Some(permit) });
        Ok(())
    }

    /// Whether the stream can go on. If it can't, nobody has the turn any more.
    fn check(&self) -> Result<()> {
        self.stream.failed.lock().clone().map_or(Ok(()), Err)
    }

    fn start(&mut self, job: Job) {
        let (next, after) = oneshot::channel();
        let turn = std::mem::replace(&mut self.turn, after);
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(self.stream.clone().run(job, turn, next));
    }

    /// Waits until everything that was taken is acknowledged, with the client's durability.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn flush(&mut self) -> Result<()> {
        self.check()?;
        if self.buffer.is_empty() {
            let index = ChunkIndex::from_raw(0);
            self.start(Job { index, within: 0, data: None, promise: true, _permit: None });
        } else {
            self.hand_over(true).await?;
        }
        match (&mut self.turn).await {
            Ok(tail) => {
                self.turn = first_turn(tail);
                // Where nothing was written the file does not end.
                if self.position > self.begin {
                    self.file.opened.see_length(self.position);
                }
                Ok(())
            }
            Err(_) => {
                let mut failed = self.stream.failed.lock();
                Err(failed.get_or_insert_with(|| Error::internal("a writing task ended early")).clone())
            }
        }
    }

    /// Flushes, and returns the position after the last byte.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn finish(mut self) -> Result<u64> {
        self.flush().await?;
        Ok(self.position)
    }
}

/// A turn that has come already.
fn first_turn(tail: Tail) -> oneshot::Receiver<Tail> {
    let (sender, receiver) = oneshot::channel();
    // It can't fail: the receiver is right here.
    drop(sender.send(tail));
    receiver
}

impl Stream {
    /// Pushes a unit ahead, writes it when its turn comes, passes the turn on. After an error nobody has a turn.
    async fn run(self: Arc<Self>, job: Job, turn: oneshot::Receiver<Tail>, next: oneshot::Sender<Tail>) {
        let payload = job.data.clone().map(|data| Payload::new(job.within, data));
        let pushed = match &payload {
            Some(payload) => push_ahead(&self.core, &self.file, job.index, payload).await,
            None => None,
        };
        let Ok(mut tail) = turn.await else { return };
        let written = match payload {
            Some(payload) => self.write(&mut tail, &job, payload, pushed).await,
            None => self.sync(&mut tail).await,
        };
        match written {
            // Nobody waits for the turn when the writer is gone.
            Ok(()) => drop(next.send(tail)),
            Err(error) => *self.failed.lock() = Some(error),
        }
    }

    async fn write(
        &self,
        tail: &mut Tail,
        job: &Job,
        payload: Payload,
        pushed: Option<crate::mutate::Pushed>,
    ) -> Result<()> {
        if tail.index != job.index {
            debug_assert!(tail.is_settled(), "the last unit of a chunk promises everything before it");
            *tail = Tail::new(job.index);
        }
        let waiting = tail.bytes() + u64::from(payload.length());
        let durability = match self.core.options.durability {
            Durability::Replicated => pb::Durability::Replicated,
            Durability::Synced if job.promise || waiting >= UNSYNCED_BYTES_MAX => pb::Durability::Synced,
            Durability::Synced => pb::Durability::Deferred,
        };
        let end = job.within + payload.length();
        let request = self.core.sessions.data_request().await?;
        let mut unit = Unit::new(request, Action::Write(job.within), payload, durability);
        unit.pushed = pushed;
        tail.commit(&self.core, &self.file, unit).await?;
        if tail.is_settled() {
            self.file.see_length(self.core.chunk_bytes.start_of(job.index).raw() + u64::from(end));
        }
        if durability == pb::Durability::Replicated {
            self.file.unsynced.lock().wrote(job.index);
        }
        Ok(())
    }

    async fn sync(&self, tail: &mut Tail) -> Result<()> {
        if tail.is_settled() {
            return Ok(());
        }
        commit_sync(&self.core, &self.file, tail).await
    }
}

async fn commit_sync(core: &Core, file: &Opened, tail: &mut Tail) -> Result<()> {
    let request = core.sessions.data_request().await?;
    let unit = Unit::new(request, Action::Sync, Payload::default(), pb::Durability::Synced);
    tail.commit(core, file, unit).await.map(drop)
}

/// Writes at an offset, in as many units as it takes.
pub(crate) async fn write_at(file: &File, offset: u64, data: Bytes) -> Result<()> {
    let Some(end) = offset.checked_add(data.len() as u64).filter(|_| !data.is_empty()) else {
        return if data.is_empty() { Ok(()) } else { Err(Error::bad_argument("the offset is too large")) };
    };
    let (index, within) = file.position(offset)?;
    let room = file.core.chunk_bytes.raw() - within;
    if data.len() > room.min(UNIT_BYTES) as usize {
        file.position(end - 1)?;
        let mut writer = file.writer(offset);
        writer.write(&data).await?;
        return writer.finish().await.map(drop);
    }
    let durability = file.core.options.durability;
    let request = file.core.sessions.data_request().await?;
    let unit = Unit::new(request, Action::Write(within), Payload::new(within, data), durability.into());
    Tail::new(index).commit(&file.core, &file.opened, unit).await?;
    file.opened.see_length(end);
    if durability == Durability::Replicated {
        file.opened.unsynced.lock().wrote(index);
    }
    Ok(())
}

/// The chunks of a file that were written without being synced.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    writes: u64,
    /// The number of the last such write of each chunk.
    last: BTreeMap<ChunkIndex, u64>,
}

impl Unsynced {
    /// Takes note of an acknowledged write.
    pub(crate) fn wrote(&mut self, index: ChunkIndex) {
        self.writes += 1;
        self.last.insert(index, self.writes);
    }
    /// A sync that began after this write is acknowledged; a later write stays to be synced.
    fn synced(&mut self, index: ChunkIndex, write: u64) {
        if self.last.get(&index) == Some(&write) {
            self.last.remove(&index);
        }
    }
}

/// Syncs every chunk that was written without it before this call.
pub(crate) async fn sync_all(file: &File) -> Result<()> {
    let written: Vec<(ChunkIndex, u64)> =
        file.opened.unsynced.lock().last.iter().map(|(index, write)| (*index, *write)).collect();
    for (index, write) in written {
        commit_sync(&file.core, &file.opened, &mut Tail::new(index)).await?;
        file.opened.unsynced.lock().synced(index, write);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_settles_the_writes_before_it_and_not_those_that_came_meanwhile() {
        let index = ChunkIndex::from_raw;
        let mut unsynced = Unsynced::default();
        unsynced.wrote(index(0));
        unsynced.wrote(index(1));
        let seen = unsynced.last.clone();
        // While chunk 0 is being synced it is written again.
        unsynced.wrote(index(0));
        for (index, write) in seen {
            unsynced.synced(index, write);
        }
        assert_eq!(unsynced.last.keys().copied().collect::<Vec<_>>(), [index(0)]);
        let (again, write) = unsynced.last.first_key_value().map(|(index, write)| (*index, *write)).unwrap();
        unsynced.synced(again, write);
        assert!(unsynced.last.is_empty());
    }
}
