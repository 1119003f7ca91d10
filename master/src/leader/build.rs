//! Snapshots of large trees, driven to their end (docs/decisions/0014): revokes what the next step would find leased, then
//! takes the step. All that must survive a leader is in the state, so a new one just goes on.

use std::time::Duration;

use gfs_proto::Result;
use gfs_proto::id::{ChunkHandle, EntryId};
use gfs_proto::time::Moment;

use super::duties::Duties;
use crate::cluster::Reign;
use crate::state::build::{BUILD_ROWS_MAX, unsettled_ahead};
use crate::state::{Applied, Build, Command, Rejected, read};

/// How long one tick builds before it lets the others of its kind have a look.
const TURN: Duration = Duration::from_secs(1);
/// How long a chunk may withstand its revocation, or the masters have no room, before the snapshot is given up: longer than a
/// lost server takes to be noticed, fenced out and replaced.
pub(super) const STUCK_MAX: Duration = Duration::from_secs(60);

/// The build that does not come forward, and since when.
pub(super) type Stuck = Option<(EntryId, Moment)>;

impl Duties {
    /// Brings the snapshot that is being built forward, if there is one.
    pub(super) async fn tick_build(&self, reign: &Reign) -> Result<()> {
        let begun = self.granter.clock.moment();
        while !reign.over.is_cancelled() && self.granter.clock.moment().since(begun) < TURN {
            let Some(build) = read::build(&*self.log.view())? else { return Ok(()) };
            if !self.build_on(reign, &build).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One step; whether there may be another.
    async fn build_on(&self, reign: &Reign, build: &Build) -> Result<bool> {
        if let Err(error) = self.log.may_grow() {
            // Nobody loses a lease for a step that would be refused.
            tracing::debug!(%error, "a snapshot waits for room");
            return self.wait_or_abandon(build, ChunkHandle::default()).await;
        }
        let ahead = unsettled_ahead(&*self.log.view(), build)?;
        let (files, chunks) = ahead.iter().copied().unzip();
        // Guard snapshot_under_lease: until the step is taken nobody gets a lease there.
        let hold = self.granter.hold(files);
        if let Err((handle, error)) = self.granter.revoke_all(reign, chunks).await {
            tracing::debug!(%handle, %error, "a snapshot waits for a chunk");
            drop(hold);
            return self.wait_or_abandon(build, handle).await;
        }
        let command = Command::BuildSnapshot { root: build.root, limit: BUILD_ROWS_MAX };
        let applied = match self.log.propose(command).await? {
            Ok(applied) => applied,
            // It has ended meanwhile.
            Err(Rejected::NoSuchEntry { .. }) => return Ok(false),
            Err(rejected) => return Err(rejected.into()),
        };
        *self.stuck.lock() = None;
        if applied == (Applied::Built { rows: 0, more: false, unsettled: None }) {
            tracing::info!(source = %build.source_path, target = %build.target, rows = build.rows, "snapshot built");
        }
        Ok(true)
    }

    async fn wait_or_abandon(&self, build: &Build, handle: ChunkHandle) -> Result<bool> {
        let now = self.granter.clock.moment();
        let since = {
            let mut stuck = self.stuck.lock();
            match *stuck {
                Some((root, since)) if root == build.root => since,
                Some(_) | None => {
                    *stuck = Some((build.root, now));
                    now
                }
            }
        };
        if now.since(since) >= STUCK_MAX {
            tracing::info!(source = %build.source_path, %handle, "snapshot given up: a chunk can't be revoked, or (0) there is no room");
            self.log.propose(Command::AbandonSnapshot { root: build.root, handle }).await??;
        }
        Ok(false)
    }
}
