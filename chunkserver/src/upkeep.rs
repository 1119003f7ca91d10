//! What the server notes down as it goes, for its heartbeats and its disks, and the upkeep of these notes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use gfs_proto::id::{ChunkHandle, ChunkVersion, Epoch, Serial, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::net::blocking;
use gfs_proto::{Result, pb};

use crate::replica::Grant;
use crate::report::Change;
use crate::server::{Chunkserver, Failure, Use};

/// How long after a mutation a lease is still in use.
const USE_PERIOD: Duration = Duration::from_secs(2);
/// How long the leader is told that nobody could say what is committed.
const DOUBT_AGE: Duration = Duration::from_secs(2);
/// Most entries of one kind in a heartbeat; the rest follows in the next ones (`some_of`).
const ENTRIES_MAX: usize = 1024;
/// Most quiet chunks whose primaries are asked at a time what is committed, and how long each may take.
const ASKED_MAX: usize = 32;
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A chunk of which this server can't tell whether its last mutation is committed.
#[derive(Clone, Debug)]
pub(crate) struct Unknown {
    handle: ChunkHandle,
    version: ChunkVersion,
    primary: Peer,
}

impl Chunkserver {
    /// Heartbeats go out at once.
    pub(crate) fn hurry(&self) {
        self.urgent.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A chunk was mutated under a lease.
    pub(crate) fn used(&self, handle: ChunkHandle, version: ChunkVersion) {
        let at = self.now();
        self.uses.lock().insert(handle, Use { version, at });
    }

    /// A member failed: the leader is to hear of it at once.
    pub(crate) fn member_failed(&self, handle: ChunkHandle, version: ChunkVersion, server: ServerId) {
        tracing::info!(%handle, %version, %server, "member failed");
        self.failures.lock().insert(handle, Failure { version, server });
        self.hurry();
    }

    /// A reader could not be answered, because the primary (this server itself, if it knows none) does not say
    /// what is committed: the leader is to look, and to grant anew if no primary is active.
    pub(crate) fn doubts(&self, handle: ChunkHandle, version: ChunkVersion, primary: ServerId) {
        let asked_at = self.now();
        let mut doubts = self.doubts.lock();
        if doubts.len() < ENTRIES_MAX || doubts.contains_key(&handle) {
            doubts.insert(handle, (Failure { version, server: primary }, asked_at));
        }
        drop(doubts);
        self.hurry();
    }

    /// More of a chunk is known to be committed than its mark on the disk says.
    pub(crate) fn committed_more(&self, handle: ChunkHandle) {
        self.marks.lock().entry(handle).or_default();
    }

    /// Writes the commit marks of chunks that are quiet, so that a restart need not ask for them. Returns those where nothing
    /// came since the last time, and the last mutation is not known to be committed: only the next one would have told.
    pub(crate) fn write_marks(&self) -> Vec<Unknown> {
        let marks = std::mem::take(&mut *self.marks.lock());
        let mut unknown = Vec::new();
        for (handle, before) in marks {
            let Ok(chunk) = self.chunk(handle) else { continue };
            let open = chunk.with(|state| {
                let replica = state.replica.as_ref()?;
                let committed = replica.progress().committed()?;
                let version = replica.held().adopted;
                if !replica.progress().clean() {
                    let primary = replica.grant().and_then(Grant::primary);
                    return Some((replica.progress().applied_position().serial, primary.cloned(), version));
                }
                if let Err(error) = self.store.set_commit_mark(handle, version, committed.serial) {
                    tracing::debug!(%handle, %error, "no commit mark");
                }
                None
            });
            let Some((applied, primary, version)) = open else { continue };
            self.marks.lock().insert(handle, Some(applied));
            if before == Some(applied)
                && let Some(primary) = primary.filter(|primary| primary.server != self.us())
            {
                unknown.push(Unknown { handle, version, primary });
            }
        }
        unknown
    }

    /// Asks the primaries of some of these chunks how much is committed. Without that a chunk that nobody reads or writes any
    /// more would keep its place among those to be looked at, and could not be read after a restart before a new grant.
    pub(crate) async fn ask_what_is_committed(&self, unknown: Vec<Unknown>, round: u64) {
        let asked = some_of(unknown, ASKED_MAX, round).into_iter().map(|chunk| async move {
            let Unknown { handle, version, primary } = chunk;
            match self.links.committed(&primary, handle, version, ASK_TIMEOUT).await {
                Ok(answer) => self.learn(handle, version, Serial::from_raw(answer.serial)),
                Err(error) => tracing::debug!(%handle, %error, "what is committed is not known"),
            }
        });
        join_all(asked).await;
    }

    /// The primary of a version has said up to where everything is committed.
    pub(crate) fn learn(&self, handle: ChunkHandle, version: ChunkVersion, committed: Serial) {
        let Ok(chunk) = self.chunk(handle) else { return };
        chunk.quick(|state| {
            if let Some(replica) = &mut state.replica {
                replica.learn(version, committed);
                self.committed_more(handle);
            }
        });
    }

    /// Begins a new epoch if the last validation has run out.
    pub(crate) fn lapse(&self) {
        let next = Epoch::from_raw(self.environment.clock.wall().raw());
        let mut fence = self.fence.lock();
        if fence.lapse(self.now(), next) {
            tracing::info!(epoch = %fence.epoch(), "no leader has answered in time: serving nothing until one does");
        }
    }

    /// What the next heartbeat says.
    pub(crate) fn heartbeat(
        &self,
        epoch: Epoch,
        sequence: u64,
        reported: u64,
    ) -> Result<pb::HeartbeatRequest> {
        let (cluster, server) = self.identity()?;
        let disks = blocking(|| self.store.disks());
        let total_bytes = disks.iter().map(|disk| disk.total_bytes).sum();
        let free_bytes = disks.iter().map(|disk| disk.free_bytes).sum();
        let now = self.now();
        let in_use = |used: &Use| now.since(used.at) < USE_PERIOD;
        let extend = {
            let uses = self.uses.lock();
            let used = uses.iter().filter(|(_, used)| in_use(used));
            let used =
                used.map(|(handle, used)| pb::LeaseUse { handle: handle.raw(), version: used.version.raw() });
            some_of(used.collect(), ENTRIES_MAX, sequence)
        };
        let failures = {
            let (failures, doubts) = (self.failures.lock(), self.doubts.lock());
            let doubted = doubts.iter().map(|(handle, (doubt, _))| (handle, doubt));
            let failed = failures.iter().chain(doubted).map(|(handle, failure)| pb::MemberFailure {
                handle: handle.raw(),
                version: failure.version.raw(),
                server: failure.server.raw(),
            });
            some_of(failed.collect(), ENTRIES_MAX, sequence)
        };
        Ok(pb::HeartbeatRequest {
            cluster: cluster.to_string(),
            server: server.raw(),
            epoch: epoch.raw(),
            sequence,
            reported,
            total_bytes,
            free_bytes,
            used_bytes: total_bytes.saturating_sub(free_bytes),
            chunks: disks.iter().map(|disk| disk.chunks).sum(),
            extend,
            failures,
        })
    }

    /// What the reports say of these chunks, as they are now.
    pub(crate) fn describe(&self, changes: &[(ChunkHandle, Change)]) -> (Vec<pb::ReplicaReport>, Vec<u64>) {
        let mut replicas = Vec::with_capacity(changes.len());
        let mut removed = Vec::new();
        for (handle, _) in changes {
            let held = self
                .chunk(*handle)
                .ok()
                .and_then(|chunk| chunk.quick(|state| state.replica.as_ref().map(|replica| replica.held())));
            match held {
                Some(held) => replicas.push(pb::ReplicaReport {
                    handle: handle.raw(),
                    version: held.version.raw(),
                    adopted: held.adopted.raw(),
                    length: held.end.length,
                    partial: held.partial,
                    sealed: held.end.sealed,
                    corrupt: held.corrupt,
                }),
                None => removed.push(handle.raw()),
            }
        }
        (replicas, removed)
    }

    /// Forgets uses and failures that no heartbeat needs any more, and chunks of a disk that failed.
    pub(crate) fn tidy(&self) {
        let now = self.now();
        self.uses.lock().retain(|_, used| now.since(used.at) < 2 * USE_PERIOD);
        // A reader that still can't be answered asks again.
        self.doubts.lock().retain(|_, (_, asked_at)| now.since(*asked_at) < DOUBT_AGE);
        self.drop_settled();
        // Only of these the chunks are gone: a disk that can't say how much room it has may fail in earnest later.
        let failed = self.store.failed_disks();
        if self.failed_disks.swap(failed, Ordering::Relaxed) < failed {
            self.drop_lost();
        }
    }

    /// Forgets failures under versions that have ended here: others go on without this server, and nobody waits for the
    /// news. What was kept would be told for ever.
    fn drop_settled(&self) {
        // A chunk is locked before the failures, never after.
        let told: Vec<_> = self.failures.lock().iter().map(|(handle, failure)| (*handle, *failure)).collect();
        for (handle, failure) in told {
            let stands = self.chunk(handle).is_ok_and(|chunk| {
                chunk.quick(|state| {
                    let replica = state.replica.as_ref().filter(|replica| replica.primary().is_some());
                    replica.is_some_and(|replica| replica.held().version == failure.version)
                })
            });
            let mut failures = self.failures.lock();
            if !stands && failures.get(&handle) == Some(&failure) {
                failures.remove(&handle);
            }
        }
    }

    /// Forgets the chunks of a disk that failed: they cost the masters a copy each, not this server its life.
    fn drop_lost(&self) {
        let mut lost = 0;
        for chunk in self.chunks_after(None, usize::MAX) {
            let gone = self.with_chunk(chunk.handle, |state| {
                let gone = state.replica.is_some() && self.store.state(chunk.handle).is_err();
                if gone {
                    state.replica = None;
                    self.note(chunk.handle, Change::Removed);
                }
                Ok(gone)
            });
            lost += usize::from(gone == Ok(true));
        }
        tracing::warn!(lost, "chunks lost with a disk");
        self.hurry();
    }
}

/// Of many entries the `limit` whose turn it is in the heartbeat or round with this number, so that each is in one of the next.
fn some_of<T>(mut entries: Vec<T>, limit: usize, sequence: u64) -> Vec<T> {
    if entries.len() > limit {
        let start = sequence.wrapping_mul(limit as u64) % entries.len() as u64;
        entries.rotate_left(usize::try_from(start).unwrap_or_default());
        entries.truncate(limit);
    }
    entries
}
