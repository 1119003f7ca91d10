//! The state machine under openraft: decodes, lets `state::apply` decide, writes, answers. Nothing else.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use gfs_proto::fault;
use gfs_proto::id::LogIndex;
use gfs_proto::net::blocking;
use gfs_proto::work::Workers;
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::{broadcast, watch};

use super::Touched;
use super::store::{CheckpointHandle, Direct, StateStore};
use super::types::{LogId, Operation, Reply, SnapshotMeta, StoredMembership, TypeConfig};
use crate::state::{self, Overlay, Proposal};

/// Most entries of one batch: one write, and one step of read-your-writes in memory.
const BATCH_ENTRIES_MAX: usize = 256;
/// Entries whose touched chunks a slow reader may be behind before it is told of a gap.
const TOUCHED_MAX: usize = 8192;

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, CheckpointHandle>;
type Item = (super::types::Entry, Option<ApplyResponder<TypeConfig>>);

/// What the machine tells the rest of the master.
#[derive(Clone, Debug)]
pub(crate) struct Feeds {
    /// Index of the last entry applied.
    pub(crate) applied: watch::Sender<LogIndex>,
    /// What entries changed.
    pub(crate) touched: broadcast::Sender<Touched>,
    /// Nothing is applied as long as a test keeps its only permit.
    #[cfg(test)]
    pub(crate) turn: Arc<tokio::sync::Semaphore>,
}

impl Feeds {
    /// Feeds that begin after this entry.
    pub(crate) fn new(applied: Option<LogId>) -> Self {
        Self {
            applied: watch::channel(index_of(applied)).0,
            touched: broadcast::channel(TOUCHED_MAX).0,
            #[cfg(test)]
            turn: Arc::new(tokio::sync::Semaphore::new(1)),
        }
    }
    fn tell(&self, touched: Touched) {
        // An error means that nobody listens.
        if self.touched.send(touched).is_err() {
            tracing::trace!("nobody listens to the touched chunks");
        }
    }
}

fn index_of(id: Option<LogId>) -> LogIndex {
    LogIndex::from_raw(id.map_or(0, |id| id.index))
}

/// The machine. Clones share the store; openraft owns the one that applies.
#[derive(Clone)]
pub(crate) struct Machine {
    store: Arc<StateStore>,
    feeds: Feeds,
    workers: Workers,
}

impl Machine {
    /// A machine on this state.
    pub(crate) fn new(store: Arc<StateStore>, feeds: Feeds, workers: Workers) -> Self {
        Self { store, feeds, workers }
    }

    /// Applies a batch, answers when it is written. The quorum has the entries: no sync.
    fn apply_batch(&self, items: Vec<Item>) -> io::Result<()> {
        let Some(last) = items.last().map(|(entry, _)| entry.log_id) else { return Ok(()) };
        let _guard = self.store.poison.guard();
        let live = self.store.live();
        let base = Direct { live: &live, poison: &self.store.poison };
        let mut overlay = Overlay::new(&base);
        let mut membership = None;
        let mut answers = Vec::with_capacity(items.len());
        let mut touched = Vec::new();
        for (entry, responder) in items {
            let reply = match entry.payload {
                EntryPayload::Blank => Reply::default(),
                EntryPayload::Membership(new) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), new));
                    Reply::default()
                }
                EntryPayload::Normal(operation) => {
                    let index = LogIndex::from_raw(entry.log_id.index);
                    let outcome = self.apply_one(&mut overlay, index, &operation)?;
                    if !outcome.touched.is_empty() {
                        touched.push(Touched::Chunks(index, outcome.touched.clone()));
                    }
                    Reply { state: Some(outcome.into_reply()) }
                }
            };
            answers.push((responder, reply));
        }
        let writes = overlay.into_writes();
        self.store.write(&writes, last, membership)?;
        touched.into_iter().for_each(|touched| self.feeds.tell(touched));
        self.feeds.applied.send_replace(index_of(Some(last)));
        fault::at("raft::apply::before_answer");
        for (responder, reply) in answers {
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    fn apply_one(
        &self,
        overlay: &mut Overlay<'_>,
        index: LogIndex,
        operation: &Operation,
    ) -> io::Result<state::Outcome> {
        // A later version wrote it, or it is damaged: to skip it would make this master differ from the others.
        let proposal = Proposal::decode(&operation.0)
            .map_err(|error| self.store.poison.set(format!("entry {index}: {error}")))?;
        let mut outcome = state::apply(overlay, index, &proposal);
        if outcome.is_damaged() {
            return Err(self.store.poison.set(format!("entry {index} ({proposal}): the state is damaged")));
        }
        overlay.absorb(std::mem::take(&mut outcome.writes));
        Ok(outcome)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = CheckpointHandle;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.store.poison.check()?;
        Ok(self.store.applied())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            let items = batch.into_iter().collect::<io::Result<Vec<Item>>>()?;
            #[cfg(test)]
            let _turn = self.feeds.turn.acquire().await.map_err(io::Error::other)?;
            blocking(|| self.apply_batch(items))?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        (force || !self.store.is_building()).then(|| Builder(self.store.clone(), self.workers.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.store.clone(), self.workers.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: CheckpointHandle,
    ) -> Result<(), io::Error> {
        let (store, wanted) = (self.store.clone(), meta.clone());
        let install = move || store.install(&wanted, &snapshot);
        self.workers.run(install).await.map_err(io::Error::other)??;
        let index = index_of(meta.last_log_id);
        self.feeds.tell(Touched::Everything(index));
        self.feeds.applied.send_replace(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.store.checkpoint().map(snapshot))
    }
}

fn snapshot(handle: CheckpointHandle) -> Snapshot {
    Snapshot { meta: handle.meta().clone(), snapshot: handle }
}

/// Builds checkpoints beside the machine.
pub(crate) struct Builder(Arc<StateStore>, Workers);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = CheckpointHandle;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let store = self.0.clone();
        let handle = self.1.run(move || store.build_checkpoint()).await.map_err(io::Error::other)??;
        tracing::info!(checkpoint = ?handle, "checkpoint built");
        Ok(snapshot(handle))
    }
}
