//! Before a file goes away: nobody writes it any more (GFS §3.1, §4.4; docs/decisions/0015; traps T14, T17).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId};
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result};

use super::grant::{Granter, LEASE};
use super::snapshot::{Hold, REVOKE_PATIENCE};
use crate::cluster::Reign;
use crate::state::{Chunk, Rejected, read};

/// A lease whose end is not longer ago than this may still be used by a client whose clock runs slow.
const LEASE_GRACE: Duration = Duration::from_secs(5);
/// Most files whose servers are waited for; when there are more, the wait begins anew.
const WAITED_MAX: usize = 10_000;
/// Most chunks of which it is known when a lease on them was told.
pub(super) const TOLD_MAX: usize = 100_000;
/// Chunks of a file that are looked at together.
const CHUNKS_PAGE: usize = 1000;

/// When clients were last told of leases, by the monotonic clock: the wall clock may have jumped since, and a client counts
/// what is left of a lease from when it hears of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    each: BTreeMap<ChunkHandle, Moment>,
    /// Until then any lease may have been told.
    any: Moment,
}

impl Told {
    /// A lease on this chunk is about to be told.
    pub(super) fn note(&mut self, handle: ChunkHandle, now: Moment) {
        if self.each.len() >= TOLD_MAX {
            self.each.retain(|_, told| now.since(*told) < LEASE + LEASE_GRACE);
            // Not at every note.
            if self.each.len() > TOLD_MAX / 2 {
                self.each.clear();
                self.any = now;
            }
        }
        self.each.insert(handle, now);
    }

    /// When a lease on this chunk can have been told last.
    pub(super) fn last(&self, handle: ChunkHandle) -> Moment {
        self.each.get(&handle).copied().unwrap_or_default().max(self.any)
    }
}

impl Granter {
    /// Ends every lease under which a file could be written, and gives out no other as long as the caller keeps what it
    /// gets. Costs nothing but a look at the state if nobody has written the file lately. A directory has nothing to end.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a request may; it goes on then, and is found done later. Servers
    /// that can't be reached are waited for until every lease that was told has surely ended.
    pub(crate) async fn end_leases(self: &Arc<Self>, reign: &Reign, file: EntryId) -> Result<Hold> {
        let hold = self.hold(BTreeSet::from([file]));
        let ending = self.revoke_all(reign, self.in_use(reign, file)?);
        let left = match tokio::time::timeout(REVOKE_PATIENCE, ending).await {
            Ok(Ok(())) => BTreeSet::new(),
            Ok(Err(_)) | Err(_) => self.in_use(reign, file)?,
        };
        // A chunk that was never confirmed has no lease that anybody was told.
        let Some(handle) = left.iter().copied().find(|handle| self.was_confirmed(*handle)) else {
            self.copies.waited.lock().remove(&file);
            return Ok(hold);
        };
        if self.has_waited(file, &left) { Ok(hold) } else { Err(Error::GrantPending { handle }) }
    }

    fn was_confirmed(&self, handle: ChunkHandle) -> bool {
        read::chunk(&*self.log.view(), handle).is_ok_and(|chunk| chunk.confirmed != ChunkVersion::NONE)
    }

    /// Whether the first attempt at this file, and the last lease that was told on what is in use of it, is so long ago that
    /// every lease has ended. An attempt that was given up may have been long before a lease that is used now.
    fn has_waited(&self, file: EntryId, in_use: &BTreeSet<ChunkHandle>) -> bool {
        let now = self.clock.moment();
        let told = {
            let told = self.copies.told.lock();
            in_use.iter().map(|handle| told.last(*handle)).max().unwrap_or_default()
        };
        let mut waited = self.copies.waited.lock();
        if waited.len() >= WAITED_MAX {
            waited.clear();
        }
        let begun = *waited.entry(file).or_insert(now);
        now.since(begun.max(told)) >= LEASE + LEASE_GRACE
    }

    /// The chunks of a file that somebody may be writing, or come to write. A grant that was prepared and not confirmed
    /// says nothing of the one before it, of which its primary may not have heard.
    fn in_use(&self, reign: &Reign, file: EntryId) -> Result<BTreeSet<ChunkHandle>> {
        self.chunks_that(file, |chunk| {
            chunk.pending.is_some() || self.is_leased(reign, chunk) || self.is_in_flight(chunk.handle)
        })
    }

    /// Whether the lease of a chunk may still be used.
    fn is_leased(&self, reign: &Reign, chunk: &Chunk) -> bool {
        let Some(lease) = &chunk.lease else { return false };
        let has_ended = lease.expires_at.plus(LEASE_GRACE).since(self.clock.wall()).is_zero();
        // Guard T17: by the wall clock alone a step forward would end it while its client goes on. What earlier leaders told
        // is not known, up to the start of this reign.
        let told = self.copies.told.lock().last(chunk.handle).max(reign.started);
        !has_ended || self.now().since(told) < LEASE + LEASE_GRACE
    }

    fn chunks_that(&self, file: EntryId, is: impl Fn(&Chunk) -> bool) -> Result<BTreeSet<ChunkHandle>> {
        let view = self.log.view();
        let (mut found, mut from) = (BTreeSet::new(), 0);
        loop {
            let page = match read::file_chunks(&*view, file, ChunkIndex::from_raw(from), CHUNKS_PAGE) {
                Ok(page) => page,
                Err(Rejected::NotAFile { .. } | Rejected::NoSuchEntry { .. }) => return Ok(found),
                Err(rejected) => return Err(rejected.into()),
            };
            found.extend(page.iter().filter(|(_, chunk)| is(chunk)).map(|(_, chunk)| chunk.handle));
            match page.last() {
                Some((index, _)) if page.len() == CHUNKS_PAGE => from = index.raw() + 1,
                Some(_) | None => return Ok(found),
            }
        }
    }

    /// Refuses to tell a lease on a file that is deleted, or about to be, or held still for a snapshot. Asked last of all
    /// before a lease is told: whoever takes a file away finds every lease that was told before in the state.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it is held still, [`Error::NotFound`] if it is gone.
    pub(super) fn check_writable(&self, file: EntryId, handle: ChunkHandle) -> Result<()> {
        if self.copies.is_held(file) {
            return Err(Error::GrantPending { handle });
        }
        // Guard T17: nothing is acknowledged to a file that is deleted.
        if read::is_live(&*self.log.view(), file)? {
            return Ok(());
        }
        Err(Rejected::NoSuchEntry { entry: file }.into())
    }

    /// Whether a chunk may get a lease, or a longer one, without anybody asking for it by its file: not if that was
    /// deleted, alone or with a tree above it. A chunk that other files have, too, is asked for by them.
    pub(super) fn may_be_written(&self, chunk: &Chunk) -> bool {
        !matches!(read::path_of(&*self.log.view(), chunk.file), Ok(None))
    }
}
