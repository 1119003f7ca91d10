//! A log without a thread, for a simulation: whoever needs the log to go on does the thread's work.

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Done, Log, Queue, Writer};
use crate::store::error::{Error, Result};

/// What a log without a thread calls.
pub(crate) struct Inline {
    /// Makes room at once; whether there may be some now.
    pub(crate) make_room: Box<dyn Fn() -> bool + Send + Sync>,
    /// Tells the disk's task that there is something to write, or somebody to call back.
    pub(crate) wake: Box<dyn Fn() + Send + Sync>,
}

/// The writer of a log without a thread: whoever needs the log to go on lets it write.
pub(super) struct Hand {
    /// Never held while anything but the log is locked.
    pub(super) writer: Mutex<Writer>,
    /// Whom the disk's task calls back: not the one who lets it write, because that one may hold any lock.
    pub(super) written: Mutex<Vec<(Done, Result<()>)>>,
    pub(super) inline: Inline,
}

impl Log {
    /// Without a thread: writes one batch of what is queued; whether there was any.
    pub(crate) fn write_some(&self) -> bool {
        let Some(hand) = &self.hand else { return false };
        let mut writer = hand.writer.lock();
        let Some(batch) = Writer::take(&mut self.shared.queue.lock()) else { return false };
        let result = writer.write_or_fail(&batch);
        let done = writer.account(batch, &result);
        drop(writer);
        hand.written.lock().extend(done.into_iter().map(|done| (done, result.clone())));
        (hand.inline.wake)();
        true
    }

    /// Without a thread: calls back whoever waited for what is written. With nothing locked.
    pub(crate) fn call_back(&self) {
        let Some(hand) = &self.hand else { return };
        let written = std::mem::take(&mut *hand.written.lock());
        written.into_iter().for_each(|(done, result)| done(result));
    }

    /// Waits for the log to go on: for its thread, or by doing the thread's work.
    pub(super) fn wait(&self, condition: &Condvar, queue: &mut MutexGuard<'_, Queue>) -> Result<()> {
        let Some(hand) = &self.hand else {
            condition.wait(queue);
            return Ok(());
        };
        let goes_on = MutexGuard::unlocked(queue, || self.write_some() || (hand.inline.make_room)());
        if goes_on { Ok(()) } else { Err(Error::Busy { what: "the log, which can't go on," }) }
    }
}
