//! A promise that is given later: waited for by a thread, by a future, or by a callback.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

use super::error::Result;

type Callback = Box<dyn FnOnce(Result<()>) + Send>;

/// The durability of a mutation that is applied already. Dropping it does not undo anything.
#[derive(Debug)]
#[must_use = "the mutation is not durable yet"]
pub struct Ticket {
    offset: u32,
    length: u32,
    completion: Completion,
}

impl Ticket {
    pub(crate) fn new(offset: u32, length: u32, completion: Completion) -> Self {
        Self { offset, length, completion }
    }

    /// Where the mutation lies in the chunk.
    pub fn offset(&self) -> u32 {
        self.offset
    }
    /// Bytes in the chunk after the mutation.
    pub fn length(&self) -> u32 {
        self.length
    }
    /// Blocks until the promise holds.
    ///
    /// # Errors
    /// The disk failed, or could not be synced for now: whether the mutation is durable is unknown.
    pub fn wait(self) -> Result<()> {
        self.completion.wait()
    }
    /// Calls back when the promise holds or can't be given any more; at once if that is known. The callback
    /// runs on a thread of the store: it must not block and must not call the store.
    pub fn on_durable(self, callback: Callback) {
        self.completion.on_done(callback);
    }
}

impl Future for Ticket {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.completion.inner.state.lock();
        match &mut *state {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Waiting(waiting) => {
                waiting.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[derive(Default)]
struct Waiting {
    callbacks: Vec<Callback>,
    waker: Option<Waker>,
}
enum State {
    Waiting(Waiting),
    Done(Result<()>),
}
struct Inner {
    /// Small and never held while a callback runs.
    state: Mutex<State>,
    done: Condvar,
}

/// The giving end of a ticket; shared, done once.
#[derive(Clone)]
pub(crate) struct Completion {
    inner: Arc<Inner>,
}

impl Completion {
    pub(crate) fn new() -> Self {
        let state = Mutex::new(State::Waiting(Waiting::default()));
        Self { inner: Arc::new(Inner { state, done: Condvar::new() }) }
    }

    pub(crate) fn finish(&self, result: Result<()>) {
        let before = {
            let mut state = self.inner.state.lock();
            if matches!(*state, State::Done(_)) {
                return;
            }
            std::mem::replace(&mut *state, State::Done(result.clone()))
        };
        self.inner.done.notify_all();
        if let State::Waiting(waiting) = before {
            for callback in waiting.callbacks {
                callback(result.clone());
            }
            if let Some(waker) = waiting.waker {
                waker.wake();
            }
        }
    }

    pub(crate) fn wait(&self) -> Result<()> {
        let mut state = self.inner.state.lock();
        loop {
            if let State::Done(result) = &*state {
                return result.clone();
            }
            self.inner.done.wait(&mut state);
        }
    }

    pub(crate) fn on_done(&self, callback: Callback) {
        let mut state = self.inner.state.lock();
        match &mut *state {
            State::Waiting(waiting) => waiting.callbacks.push(callback),
            State::Done(result) => {
                let result = result.clone();
                drop(state);
                callback(result);
            }
        }
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.inner.state.lock() {
            State::Waiting(_) => f.write_str("Waiting"),
            State::Done(result) => write!(f, "Done({result:?})"),
        }
    }
}
