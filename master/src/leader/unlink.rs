//! Before a file goes away: nobody writes it any more (GFS §3.1, §4.4; docs/decisions/0015; traps T14, T17).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId};
use gfs_proto::{Error, Result};

use super::grant::{Granter, LEASE};
use super::snapshot::{Hold, REVOKE_PATIENCE};
use crate::cluster::Reign;
use crate::state::{Chunk, Rejected, read};

/// A lease whose end is not longer ago than this may still be used by a client whose clock runs slow.
const LEASE_GRACE: Duration = Duration::from_secs(5);
/// Most files whose servers are waited for; when there are more, the wait begins anew.
const WAITED_MAX: usize = 10_000;
/// Chunks of a file that are looked at together.
const CHUNKS_PAGE: usize = 1000;

impl Granter {
    /// Ends every lease under which a file could be written, and gives out no other as long as the caller keeps what it
    /// gets. Costs nothing but a look at the state if nobody has written the file lately. A directory has nothing to end.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a request may; it goes on then, and is found done later. Servers
    /// that can't be reached are waited for until every lease that was told has surely ended.
    pub(crate) async fn end_leases(self: &Arc<Self>, reign: &Reign, file: EntryId) -> Result<Hold> {
        let hold = self.hold(BTreeSet::from([file]));
        let ending = self.revoke_all(reign, self.in_use(file)?);
        let ended = match tokio::time::timeout(REVOKE_PATIENCE, ending).await {
            Ok(Ok(())) => None,
            // A chunk that was never confirmed has no lease that anybody was told.
            Ok(Err(_)) | Err(_) => self.in_use(file)?.into_iter().find(|handle| self.was_confirmed(*handle)),
        };
        let Some(handle) = ended else {
            self.copies.waited.lock().remove(&file);
            return Ok(hold);
        };
        if self.has_waited(file) { Ok(hold) } else { Err(Error::GrantPending { handle }) }
    }

    fn was_confirmed(&self, handle: ChunkHandle) -> bool {
        read::chunk(&*self.log.view(), handle).is_ok_and(|chunk| chunk.confirmed != ChunkVersion::NONE)
    }

    /// Whether the first attempt at this file is so long ago that a lease from before it has ended.
    fn has_waited(&self, file: EntryId) -> bool {
        let now = self.clock.moment();
        let mut waited = self.copies.waited.lock();
        if waited.len() >= WAITED_MAX {
            waited.clear();
        }
        now.since(*waited.entry(file).or_insert(now)) >= LEASE + LEASE_GRACE
    }

    /// The chunks of a file that somebody may be writing, or come to write. A grant that was prepared and not confirmed
    /// says nothing of the one before it, of which its primary may not have heard.
    fn in_use(&self, file: EntryId) -> Result<BTreeSet<ChunkHandle>> {
        self.chunks_that(file, |chunk| {
            chunk.pending.is_some() || self.is_leased(chunk) || self.is_in_flight(chunk.handle)
        })
    }

    /// Whether the lease of a chunk may still be used.
    fn is_leased(&self, chunk: &Chunk) -> bool {
        let wall = self.clock.wall();
        chunk.lease.as_ref().is_some_and(|lease| !lease.expires_at.plus(LEASE_GRACE).since(wall).is_zero())
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
