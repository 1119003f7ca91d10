//! The one writer of the log: takes everything that waits, writes it as one batch, syncs once, answers.

use std::io;
use std::sync::Arc;

use gfs_proto::fault;
use gfs_proto::work::Pace;
use openraft::storage::IOFlushed;
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use super::{ENTRIES, KEY_COMMITTED, KEY_PURGED, KEY_VOTE, META, Shared, cf};
use crate::raft::codec::{self, LogIdRow, VoteRow};
use crate::raft::fail::{self, Point};
use crate::raft::types::{LogId, TypeConfig, Vote};

/// Most commands of one batch.
const BATCH_COMMANDS_MAX: usize = 4096;
/// A batch of this size is written without waiting for more.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// What changes the log, in the order openraft decided it.
pub(crate) enum Command {
    /// Adds encoded entries by index; answers when they are durable.
    Append { rows: Vec<(u64, Vec<u8>)>, generation: u64, callback: IOFlushed<TypeConfig> },
    /// Removes `from..until`: needs no sync, whatever is synced later carries it along.
    Delete { from: u64, until: u64 },
    /// Removes `from..=id.index` for good, durably.
    Purge { from: u64, id: LogId },
    /// Sets the vote; answers when it is durable.
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
}

/// Who waits for a batch.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Vote(Vote, oneshot::Sender<io::Result<()>>),
}

#[derive(Default)]
struct Batch {
    writes: WriteBatch,
    commands: usize,
    waiters: Vec<Waiter>,
    /// What becomes readable on disk: generation and the index after it.
    written: Vec<(u64, u64)>,
    purged: Option<(u64, u64)>,
}

/// Writes until the store is dropped.
pub(crate) fn run(shared: &Shared, mut commands: mpsc::Receiver<Command>) {
    let _guard = shared.poison.guard();
    let mut committed = *shared.committed.lock();
    while let Some(command) = commands.blocking_recv() {
        write_waiting(shared, command, &mut commands, &mut committed);
    }
    let last = *shared.committed.lock();
    if last != committed && shared.poison.check().is_ok() {
        let written = Batch::default().write(shared, last, &mut committed);
        if let Err(error) = written {
            shared.poison.set(error);
        }
    }
}

/// The same as a task, each batch after the time that a disk may take. Ends with the store or the runtime.
pub(crate) async fn run_inline(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>, pace: Pace) {
    let mut committed = *shared.committed.lock();
    while let Some(command) = commands.recv().await {
        tokio::time::sleep(pace()).await;
        write_waiting(&shared, command, &mut commands, &mut committed);
    }
}

/// Writes one batch: this command and what waits behind it.
fn write_waiting(
    shared: &Shared,
    first: Command,
    commands: &mut mpsc::Receiver<Command>,
    committed: &mut Option<LogId>,
) {
    let mut batch = Batch::default();
    // Taken before what is waiting: the entries that it names came into the queue before it was noted, so they are in this
    // batch or in an earlier one.
    let now = *shared.committed.lock();
    let mut result = batch.add(shared, first);
    while result.is_ok()
        && !batch.is_full()
        && let Ok(command) = commands.try_recv()
    {
        result = batch.add(shared, command);
    }
    // Of a batch that was full something may still be waiting.
    let now = if batch.is_full() { *committed } else { now };
    let result = result
        .and_then(|()| shared.poison.check())
        .and_then(|()| batch.write(shared, now, committed))
        // Sticky: after a failed sync the disk may hold anything, and a later success proves nothing.
        .map_err(|error| shared.poison.set(error));
    batch.answer(shared, &result);
}

impl Batch {
    fn is_full(&self) -> bool {
        self.commands >= BATCH_COMMANDS_MAX || self.writes.size_in_bytes() >= BATCH_BYTES_MAX
    }

    fn add(&mut self, shared: &Shared, command: Command) -> io::Result<()> {
        self.commands += 1;
        let entries = cf(&shared.db, ENTRIES)?;
        let meta = cf(&shared.db, META)?;
        match command {
            Command::Append { rows, generation, callback } => {
                if let Some((last, _)) = rows.last() {
                    self.written.push((generation, last + 1));
                }
                for (index, row) in rows {
                    self.writes.put_cf(entries, index.to_be_bytes(), row);
                }
                // Mutant append_acked_at_once: counted before it is written here.
                if fault::mutant("append_acked_at_once") {
                    callback.io_completed(Ok(()));
                } else {
                    self.waiters.push(Waiter::Append(callback));
                }
            }
            Command::Delete { from, until } => {
                self.writes.delete_range_cf(entries, from.to_be_bytes(), until.to_be_bytes());
            }
            Command::Purge { from, id } => {
                self.writes.put_cf(meta, KEY_PURGED, codec::to_disk(&LogIdRow::from(&id)));
                self.writes.delete_range_cf(entries, from.to_be_bytes(), (id.index + 1).to_be_bytes());
                self.purged = Some((from, id.index));
            }
            Command::Vote { vote, done } => {
                self.writes.put_cf(meta, KEY_VOTE, codec::to_disk(&VoteRow::from(&vote)));
                // Mutant vote_not_durable: a crash takes the vote back.
                if fault::mutant("vote_not_durable") {
                    *shared.vote.lock() = Some(vote);
                    if done.send(Ok(())).is_err() {
                        return Ok(());
                    }
                } else {
                    self.waiters.push(Waiter::Vote(vote, done));
                }
            }
        }
        Ok(())
    }

    /// Writes the batch with what is committed by now, and syncs it if anybody waits for that, or files are removed after it:
    /// that is durable at once, and a power cut must not take back what says that their entries are gone.
    fn write(
        &mut self,
        shared: &Shared,
        now: Option<LogId>,
        committed: &mut Option<LogId>,
    ) -> io::Result<()> {
        if now != *committed
            && let Some(id) = &now
        {
            let row = codec::to_disk(&LogIdRow::from(id));
            self.writes.put_cf(cf(&shared.db, META)?, KEY_COMMITTED, row);
        }
        fail::point(Point::LogBeforeWrite)?;
        shared.db.write(std::mem::take(&mut self.writes)).map_err(io::Error::other)?;
        fail::point(Point::LogBeforeSync)?;
        // Mutant wal_not_synced: what the kernel has counts as durable.
        let syncs = !self.waiters.is_empty() || self.purged.is_some();
        if syncs && !fault::mutant("wal_not_synced") {
            shared.db.flush_wal(true).map_err(io::Error::other)?;
        }
        fail::point(Point::LogBeforeCallback)?;
        *committed = now;
        Ok(())
    }

    fn answer(self, shared: &Shared, result: &io::Result<()>) {
        let answer = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        if result.is_ok() {
            let mut tail = shared.tail.write();
            for (generation, next) in &self.written {
                tail.mark_written(*generation, *next);
            }
        }
        for waiter in self.waiters {
            match waiter {
                Waiter::Append(callback) => callback.io_completed(answer()),
                Waiter::Vote(vote, done) => {
                    if result.is_ok() {
                        *shared.vote.lock() = Some(vote);
                    }
                    if done.send(answer()).is_err() {
                        tracing::debug!("nobody waits for the vote any more");
                    }
                }
            }
        }
        if let (Ok(()), Some((from, until))) = (result, self.purged) {
            drop_files(shared, from, until);
        }
    }
}

/// Gives whole files of purged entries back at once; what stays goes with the next compaction.
fn drop_files(shared: &Shared, from: u64, until: u64) {
    let dropped = cf(&shared.db, ENTRIES).and_then(|entries| {
        shared
            .db
            .delete_file_in_range_cf(entries, from.to_be_bytes(), until.to_be_bytes())
            .map_err(io::Error::other)
    });
    if let Err(error) = dropped {
        tracing::debug!(%error, "purged entries stay on the disk for now");
    }
}
