//! Snapshot and copy on write, as far as they take more than one command (GFS §3.4; docs/decisions/0013): revoking what is
//! leased, copying what is shared. What must not happen in between is refused by the state itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId};
use gfs_proto::path::FilePath;
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result, fault, pb};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::grant::{Granter, Outcome, Wish};
use super::unlink::Told;
use crate::cluster::Reign;
use crate::state::reply::GrantRule;
use crate::state::snapshot::{covered, is_settled};
use crate::state::{Applied, Chunk, Command, Rejected, build, read};

/// Most revocations of one snapshot under way at one time.
const REVOCATIONS_MAX: usize = 64;
/// Most grants that the revocation of one chunk waits for: others may be under way already.
const ROUNDS_MAX: usize = 4;
/// How long one request revokes before its caller is told to come back.
pub(super) const REVOKE_PATIENCE: Duration = Duration::from_millis(1500);
/// Most copies under way at one time: each reads and writes a chunk on every holder.
const COPIES_MAX: usize = 64;
/// Most handles that are kept from the sweep because nobody knows what became of their copies.
const RESERVED_MAX: usize = 10_000;

type Spot = (EntryId, ChunkIndex);

/// Copies on write under way, and files that are held still for a snapshot. Never locked across an await.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// By the place in the file: whoever comes later waits for the same copy.
    flights: Mutex<BTreeMap<Spot, watch::Receiver<Outcome>>>,
    /// Handles whose replicas are not garbage although the state has no such chunk (traps T16).
    reserved: Mutex<BTreeSet<ChunkHandle>>,
    /// Files whose leases are being revoked, and by how many requests.
    held: Mutex<BTreeMap<EntryId, usize>>,
    /// Files that are to be deleted and whose servers can't be reached, and since when.
    pub(super) waited: Mutex<BTreeMap<EntryId, Moment>>,
    /// When clients were told of leases.
    pub(super) told: Mutex<Told>,
}

impl Copies {
    /// Whether a copy under this handle may be under way.
    pub(super) fn is_reserved(&self, handle: ChunkHandle) -> bool {
        self.reserved.lock().contains(&handle)
    }
    /// A new reign begins: what an earlier one proposed is in the state before this one sweeps, or never will be.
    pub(super) fn begin(&self) {
        self.reserved.lock().clear();
        // An earlier reign may have told leases that this one knows nothing of.
        self.waited.lock().clear();
    }
    /// Whether nobody is to get a lease on a chunk of this file now.
    pub(crate) fn is_held(&self, file: EntryId) -> bool {
        self.held.lock().contains_key(&file)
    }
}

/// Files held still; let go when dropped, so a request that ends blocks nobody.
pub(crate) struct Hold {
    granter: Arc<Granter>,
    files: BTreeSet<EntryId>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.granter.copies.held.lock();
        for file in &self.files {
            if let Some(count) = held.get_mut(file) {
                *count -= 1;
                if *count == 0 {
                    held.remove(file);
                }
            }
        }
    }
}

impl Granter {
    /// Gives out no new leases on these files while the hold lives.
    pub(super) fn hold(self: &Arc<Self>, files: BTreeSet<EntryId>) -> Hold {
        let mut held = self.copies.held.lock();
        for file in &files {
            *held.entry(*file).or_default() += 1;
        }
        drop(held);
        Hold { granter: self.clone(), files }
    }

    /// Revokes every lease that a snapshot of this path covers, and finishes what is pending there. The files are held
    /// still as long as the caller keeps what it gets.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a request may; it goes on then, and is found done later.
    /// [`Error::TooLarge`] if the source is too large; what a grant may say.
    pub(crate) async fn still(self: &Arc<Self>, reign: &Reign, source: &FilePath) -> Result<Hold> {
        let (files, chunks) = {
            let view = self.log.view();
            let covered = covered(&*view, read::stat(&*view, source)?)?;
            let mut unsettled = BTreeSet::new();
            for (_, chunk) in &covered.chunks {
                if !is_settled(&*view, chunk)? {
                    unsettled.insert(chunk.handle);
                }
            }
            let files = covered.entries.iter().filter(|entry| entry.is_file()).map(|entry| entry.id);
            (files.collect(), unsettled)
        };
        let hold = self.hold(files);
        let first = chunks.first().copied().unwrap_or_default();
        match tokio::time::timeout(REVOKE_PATIENCE, self.revoke_all(reign, chunks)).await {
            Ok(revoked) => revoked.map(|()| hold).map_err(|(_, error)| error),
            Err(_) => Err(Error::GrantPending { handle: first }),
        }
    }

    /// Ends the leases of these chunks; or tells one for which it did not work, when all have been tried.
    pub(super) async fn revoke_all(
        self: &Arc<Self>,
        reign: &Reign,
        chunks: BTreeSet<ChunkHandle>,
    ) -> Result<(), (ChunkHandle, Error)> {
        let revoke =
            |handle| async move { self.revoke(reign, handle).await.map_err(|error| (handle, error)) };
        let outcomes: Vec<_> =
            futures::stream::iter(chunks).map(revoke).buffer_unordered(REVOCATIONS_MAX).collect().await;
        outcomes.into_iter().collect()
    }

    /// Ends the lease of a chunk by a grant without a writer, confirmed (guard *snapshot_under_lease*), also one that an
    /// earlier leader gave.
    async fn revoke(self: &Arc<Self>, reign: &Reign, handle: ChunkHandle) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let settled = {
                let view = self.log.view();
                is_settled(&*view, &read::chunk(&*view, handle)?)?
            };
            // A grant under way may be about to be prepared: it is waited for.
            if settled && !self.is_in_flight(handle) {
                return Ok(());
            }
            self.grant(reign, handle, Wish { writer: false, ..Wish::write() }).await?;
        }
        Err(Error::GrantPending { handle })
    }

    /// The chunk at a place of a file that only this file has: the one that stands there, or a copy of it.
    ///
    /// # Errors
    /// Why there is no copy; [`Error::Busy`] if too many are under way.
    ///
    /// # Cancel safety
    /// The copy goes on without the caller.
    pub(super) async fn own_chunk(
        self: &Arc<Self>,
        reign: &Reign,
        spot: Spot,
        handle: ChunkHandle,
    ) -> Result<ChunkHandle> {
        // What stands there now, not what the caller was told: the answer to a repeated request is the one that was kept
        // from before a copy, and its chunk is a snapshot's alone since then.
        let standing = self.chunk_at(spot)?;
        if standing.references < 2 {
            return Ok(standing.handle);
        }
        // Nobody copies what the state would not take.
        build::check_chunks(&*self.log.view(), spot.0)?;
        let mut outcome = self.start_copy(reign, spot)?;
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().unwrap_or(Err(Error::NotLeader { leader: None }))?;
        let chunk = self.chunk_at(spot)?;
        // Shared again by another snapshot, at this moment.
        if chunk.references < 2 { Ok(chunk.handle) } else { Err(Error::GrantPending { handle }) }
    }

    pub(super) fn chunk_at(&self, (file, index): Spot) -> Result<Chunk> {
        let chunks = read::file_chunks(&*self.log.view(), file, index, 1)?;
        let missing = || Error::NotFound { what: format!("chunk {index} of file {file}") };
        chunks.into_iter().next().map(|(_, chunk)| chunk).ok_or_else(missing)
    }

    fn start_copy(self: &Arc<Self>, reign: &Reign, spot: Spot) -> Result<watch::Receiver<Outcome>> {
        let mut flights = self.copies.flights.lock();
        if let Some(flight) = flights.get(&spot) {
            return Ok(flight.clone());
        }
        if flights.len() >= COPIES_MAX || self.copies.reserved.lock().len() >= RESERVED_MAX {
            return Err(Error::Busy { what: "the list of copies under way".into() });
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(spot, receiver.clone());
        let (granter, reign) = (self.clone(), reign.clone());
        self.spawn(async move {
            let outcome = tokio::select! {
                // The handle that it has reserved is reserved no more when the next reign begins.
                biased;
                () = reign.over.cancelled() => Err(Error::NotLeader { leader: None }),
                outcome = granter.copy(&reign, spot) => outcome,
            };
            if let Err(error) = &outcome {
                tracing::debug!(file = %spot.0, index = %spot.1, %error, "no copy");
            }
            granter.copies.flights.lock().remove(&spot);
            sender.send_replace(Some(outcome));
        });
        Ok(receiver)
    }

    /// Copies a shared chunk on each of its holders and puts the copy in its place.
    async fn copy(self: &Arc<Self>, reign: &Reign, spot: Spot) -> Result<()> {
        let mut shared = self.chunk_at(spot)?;
        if shared.references < 2 {
            return Ok(());
        }
        // A repair under way, or another copy whose origin it is.
        self.revoke(reign, shared.handle).await?;
        shared = read::chunk(&*self.log.view(), shared.handle)?;
        let reserved = self.log.propose(Command::ReserveChunk {}).await??;
        let Applied::Reserved { handle: copy } = reserved else { return Err(Error::internal(reserved)) };
        // Before any server hears of it: what the sweep sees from now on is no garbage.
        self.copies.reserved.lock().insert(copy);
        fault::try_reach("leader::copy_reserved").await?;
        let proposed = self.copy_to(reign, spot, &shared, copy).await;
        // Without an answer nobody knows whether the state will have it: then it stays.
        if !matches!(proposed, Err(Error::Unavailable { .. })) {
            self.copies.reserved.lock().remove(&copy);
        }
        proposed?;
        tracing::debug!(old = %shared.handle, %copy, file = %spot.0, index = %spot.1, "copied before a write");
        Ok(())
    }

    async fn copy_to(
        &self,
        reign: &Reign,
        (file, index): Spot,
        shared: &Chunk,
        copy: ChunkHandle,
    ) -> Result<()> {
        let first = ChunkVersion::NONE.next();
        // Traps T16: only confirmed members that are whole; each checks version and checksums itself.
        let (holders, since) =
            self.soft.with(|cluster, _, now| (cluster.current(shared, &BTreeSet::new(), now), now));
        let copied = futures::future::join_all(holders.iter().map(|(server, _)| {
            let request = pb::CopyReplicaRequest {
                head: Some(self.head(reign, *server)),
                handle: shared.handle.raw(),
                version: shared.version.raw(),
                copy: copy.raw(),
                copy_version: first.raw(),
            };
            self.orders.copy_replica(self.soft.target(*server), request)
        }))
        .await;
        let mut members = Vec::new();
        for ((server, _), outcome) in holders.iter().zip(copied) {
            match outcome {
                Ok(()) => members.push(*server),
                Err(Error::StaleTerm { .. }) => return Err(Error::NotLeader { leader: None }),
                Err(error) => tracing::debug!(%server, %copy, %error, "not copied here"),
            }
        }
        // What is on more than one disk must not come to be on one (decision 0009).
        if members.len() < shared.members.len().min(2) {
            return Err(Error::NoReplica { handle: shared.handle });
        }
        let (old, version) = (shared.handle, shared.version);
        fault::try_reach("leader::copied").await?;
        let command = Command::CopyChunk { file, index, old, version, copy, members: members.clone() };
        match self.log.propose(command).await? {
            // It was decided, so the handle need not be kept. The chunk has changed under the copy: asked again, it is copied
            // as it is now, or need not be any more.
            Err(
                Rejected::Held { .. }
                | Rejected::VersionMismatch { .. }
                | Rejected::NoSuchChunk { .. }
                | Rejected::BadGrant { rule: GrantRule::Copy {} | GrantRule::BaseConfirmed {} },
            ) => return Err(Error::GrantPending { handle: old }),
            decided => decided.map(drop)?,
        }
        self.soft.with(|cluster, view, now| {
            cluster.adopted(copy, first, &members, since);
            cluster.examine_in(copy, view, now);
        });
        Ok(())
    }

    /// Raises the version of the chunk that this one was copied from, so that readers with an old location fail before
    /// they could miss a mutation (guards *copy_without_bump*, *bump_before_map*; traps T15).
    ///
    /// # Errors
    /// Why it is not raised, if there is to be a writer; the state refuses that.
    pub(super) async fn end_origin(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        writer: bool,
    ) -> Result<()> {
        let bump = {
            let view = self.log.view();
            let origin = read::origin(&*view, handle)?;
            let old =
                origin.map(|origin| Ok::<_, Error>((read::chunk(&*view, origin.handle)?, origin.version)));
            old.transpose()?.filter(|(old, version)| old.confirmed <= *version).map(|(old, _)| old.handle)
        };
        let Some(old) = bump else { return Ok(()) };
        match self.grant(reign, old, Wish { writer: false, ..Wish::write() }).await {
            Err(error) if writer => Err(error),
            Err(_) | Ok(()) => Ok(()),
        }
    }
}
