//! One chunk under its lock: the pure replica, and who waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use gfs_proto::id::{ChunkHandle, ChunkVersion, Serial};
use gfs_proto::net::blocking;
use gfs_proto::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};

use crate::replica::{Held, Position, Replica};
use crate::store::{ReplicaState, Ticket};

/// Who holds a chunk's lock is mostly done before this, so that waiting for it costs less than leaving the thread.
const LOCK_PATIENCE: Duration = Duration::from_micros(100);

/// What the running reconciliation of a version has come to: `None` while it runs.
pub(crate) type Reconciling = watch::Receiver<Option<Result<Position>>>;

/// One chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Its name.
    pub(crate) handle: ChunkHandle,
    /// One lock per chunk: what is asked of the replica, done on the disk and told to the replica is one step.
    /// Held over short disk calls, never across an await.
    state: Mutex<State>,
}

/// What is behind the lock.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The replica, as long as there is one.
    pub(crate) replica: Option<Replica>,
    /// Mutations whose turn comes after a serial.
    pub(crate) turns: Waiters,
    /// Requests that are answered once a serial is committed.
    pub(crate) commits: Waiters,
    /// Mutations applied here that may not be durable yet, for repeats.
    tickets: VecDeque<(Serial, Shared<Ticket>)>,
    /// The last reconciliation that was begun here.
    pub(crate) reconciling: Option<(ChunkVersion, Reconciling)>,
    /// The newest version whose content is on its way in.
    pub(crate) adopting: Option<ChunkVersion>,
    /// This value is no longer in the table of chunks.
    gone: bool,
}

impl Chunk {
    pub(crate) fn new(handle: ChunkHandle, replica: Option<Replica>) -> Arc<Self> {
        let state = State { replica, ..State::default() };
        Arc::new(Self { handle, state: Mutex::new(state) })
    }

    /// Calls with the state; the disk may be used. Other tasks leave this thread if it has to wait.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        blocking(|| call(&mut self.state.lock()))
    }

    /// The same for a step that does not wait: one that only looks or notes something down, or a mutation, for which the
    /// store itself leaves the thread where it has to wait. Moving all other tasks off this thread, as [`Chunk::with`]
    /// does, costs more than a small mutation (measured: two fifths of the processor time of small appends).
    pub(crate) fn quick<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        let mut state: MutexGuard<'_, State> = match self.state.try_lock_for(LOCK_PATIENCE) {
            Some(state) => state,
            None => blocking(|| self.state.lock()),
        };
        call(&mut state)
    }
}

impl State {
    /// The replica.
    ///
    /// # Errors
    /// [`Error::NoSuchChunk`].
    pub(crate) fn replica(&mut self, handle: ChunkHandle) -> Result<&mut Replica> {
        self.replica.as_mut().ok_or(Error::NoSuchChunk { handle })
    }

    /// Ends everything that waits under the present version or role: who waits looks again.
    pub(crate) fn changed(&mut self) {
        self.turns.clear();
        self.commits.clear();
        self.tickets.clear();
    }

    /// Remembers a ticket for repeats.
    pub(crate) fn keep(&mut self, serial: Serial, ticket: Ticket) -> Shared<Ticket> {
        while self.tickets.front().is_some_and(|(_, ticket)| ticket.peek().is_some_and(Result::is_ok)) {
            self.tickets.pop_front();
        }
        let ticket = ticket.shared();
        self.tickets.push_back((serial, ticket.clone()));
        ticket
    }

    /// The ticket of a mutation that was applied before; `None` if it is long durable.
    pub(crate) fn ticket(&self, serial: Serial) -> Option<Shared<Ticket>> {
        self.tickets.iter().find(|(known, _)| *known == serial).map(|(_, ticket)| ticket.clone())
    }

    /// Takes the replica away, and this value out of use.
    pub(crate) fn end(&mut self) {
        self.replica = None;
        self.gone = true;
        self.changed();
    }

    /// Whether this value is out of use: look the chunk up again.
    pub(crate) fn gone(&self) -> bool {
        self.gone
    }
}

/// Tasks that wait for a serial. Who is woken, or whose wait was ended, looks again at the state.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: BTreeMap<Serial, Vec<oneshot::Sender<()>>>,
}

impl Waiters {
    /// Is done when the serial is reached, or everything has changed.
    pub(crate) fn wait(&mut self, serial: Serial) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let waiting = self.waiting.entry(serial).or_default();
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        receiver
    }

    /// Everything up to this serial is reached.
    pub(crate) fn wake(&mut self, upto: Serial) {
        while let Some(first) = self.waiting.first_entry().filter(|first| *first.key() <= upto) {
            for sender in first.remove() {
                // Who is gone needs no waking.
                sender.send(()).unwrap_or_default();
            }
        }
    }

    fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// What the store says of a replica, in the words of the pure part.
pub(crate) fn held(state: &ReplicaState) -> Held {
    Held {
        version: state.version,
        adopted: state.adopted,
        end: Position { serial: state.serial, length: state.length, sealed: state.sealed },
        partial: state.partial,
        corrupt: state.corrupt,
    }
}
