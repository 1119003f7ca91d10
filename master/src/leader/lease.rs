//! Leases as clients and primaries see them: finding one, doubting one, extending one (GFS §3.1).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::Error;
use gfs_proto::Result;
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::pb;

use super::grant::{Granter, LEASE, Wish};
use crate::cluster::Reign;
use crate::state::{Chunk, Command, View, read};

/// A lease with less time left is granted anew rather than handed out.
const LEASE_LEFT_MIN: Duration = Duration::from_secs(2);
/// How long a caller waits for a grant before it is told to come back: shorter than its own timeout.
pub(super) const GRANT_PATIENCE: Duration = Duration::from_millis(1500);
/// Most grants that one call waits for.
pub(super) const GRANTS_MAX: usize = 3;

/// What a caller says has failed it: a reason to look, never to act (trap T2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hint {
    /// The version under which it failed.
    pub(crate) version: ChunkVersion,
    /// The server that failed, if the caller can tell.
    pub(crate) server: Option<ServerId>,
}

/// A lease that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leased {
    /// The chunk.
    pub(crate) handle: ChunkHandle,
    /// Its version.
    pub(crate) version: ChunkVersion,
    /// Who orders mutations.
    pub(crate) primary: ServerId,
    /// Everybody who applies them, the primary first.
    pub(crate) members: Vec<ServerId>,
    /// What is left of it.
    pub(crate) remaining: Duration,
}

impl Granter {
    /// The lease of a chunk, whatever file has it: the running one if its primary is there, else a new one.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a caller waits; or why there can be none.
    #[cfg(test)]
    pub(crate) async fn find_lease(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        hint: Option<Hint>,
    ) -> Result<Leased> {
        match tokio::time::timeout(GRANT_PATIENCE, self.find_lease_slowly(reign, handle, hint)).await {
            Ok(leased) => leased,
            // The grant goes on; the caller finds it when it comes back.
            Err(_) => Err(Error::GrantPending { handle }),
        }
    }

    /// The lease of a file's chunk; if the chunk is shared, of a copy of its own (GFS §3.4).
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a caller waits, or while the file is held still;
    /// [`Error::NotFound`] if it is deleted; or why there can be none.
    pub(crate) async fn find_lease_of(
        self: &Arc<Self>,
        reign: &Reign,
        (file, index): (EntryId, ChunkIndex),
        handle: ChunkHandle,
        hint: Option<Hint>,
    ) -> Result<Leased> {
        self.check_writable(file, handle)?;
        let finding = async {
            let own = self.own_chunk(reign, (file, index), handle).await?;
            let hint = hint.filter(|_| own == handle);
            let leased = self.find_lease_slowly(reign, own, hint).await?;
            // Noted first: whoever takes the file away after the check finds it.
            self.copies.told.lock().note(own, self.now());
            self.check_writable(file, own)?;
            // Guard leased_behind_a_copy: a snapshot may have come while the grant was waited for, and another writer's copy
            // after it. Then this chunk is the snapshot's, and what is written to it nobody would find.
            let standing = self.chunk_at((file, index))?;
            if standing.handle != own || standing.references > 1 {
                return Err(Error::GrantPending { handle });
            }
            Ok(leased)
        };
        match tokio::time::timeout(GRANT_PATIENCE, finding).await {
            Ok(leased) => leased,
            // Copy and grant go on; the caller finds them when it comes back.
            Err(_) => Err(Error::GrantPending { handle }),
        }
    }

    async fn find_lease_slowly(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        hint: Option<Hint>,
    ) -> Result<Leased> {
        let mut avoid = BTreeSet::new();
        if let Some(hint) = hint
            && let Some(leased) = self.running_lease(handle)?
            && leased.version == hint.version
        {
            match self.failed_members(reign, &leased, hint.server).await {
                Some(failed) => avoid = failed,
                None => return Ok(leased),
            }
        } else if let Some(leased) = self.running_lease(handle)? {
            return Ok(leased);
        }
        if let Some(leased) = self.revive(reign, handle, &mut avoid).await? {
            return Ok(leased);
        }
        for _ in 0..GRANTS_MAX {
            self.grant(reign, handle, Wish::write().without(avoid.clone())).await?;
            if let Some(leased) = self.running_lease(handle)? {
                return Ok(leased);
            }
        }
        Err(Error::GrantPending { handle })
    }

    /// The lease that runs, if its primary is there.
    fn running_lease(&self, handle: ChunkHandle) -> Result<Option<Leased>> {
        let chunk = read::chunk(&*self.log.view(), handle)?;
        Ok(leased(&chunk, |expires_at| expires_at.since(self.clock.wall()))
            .filter(|leased| leased.remaining >= LEASE_LEFT_MIN && self.is_there(leased.primary)))
    }

    /// Extends a lease that ran out, if nobody asked for another and its primary is still active in the same
    /// life: cheaper than a new grant, and as safe, because no clock takes part in the safety of writes.
    /// If it names a member that failed, that one is to be avoided.
    async fn revive(
        &self,
        reign: &Reign,
        handle: ChunkHandle,
        avoid: &mut BTreeSet<ServerId>,
    ) -> Result<Option<Leased>> {
        let chunk = read::chunk(&*self.log.view(), handle)?;
        let run_out = leased(&chunk, |expires_at| expires_at.since(self.clock.wall()))
            .filter(|leased| leased.remaining < LEASE_LEFT_MIN && self.is_there(leased.primary));
        let Some(Leased { version, primary, .. }) = run_out else { return Ok(None) };
        if let Err(error) = self.order_activation(reign, (handle, version), primary).await {
            if matches!(error, Error::MemberFailed { .. } | Error::CutOff { .. }) {
                avoid.append(&mut self.failed_by(reign, handle, primary, error).await);
            }
            return Ok(None);
        }
        let expires_at = self.clock.wall().plus(LEASE);
        self.log.propose(Command::ExtendLeases { leases: vec![(handle, version)], expires_at }).await??;
        self.running_lease(handle)
    }

    fn is_there(&self, server: ServerId) -> bool {
        self.soft.with(|cluster, _, now| {
            cluster.server(server).is_some_and(|known| known.is_alive(now) && !known.suspect)
        })
    }

    /// Looks into a failure of a lease set: `None` if nothing is wrong with it, else whom to leave out (nobody,
    /// if the primary has merely restarted).
    async fn failed_members(
        &self,
        reign: &Reign,
        leased: &Leased,
        accused: Option<ServerId>,
    ) -> Option<BTreeSet<ServerId>> {
        if let Err(failed) = self.is_active(reign, (leased.handle, leased.version), leased.primary).await {
            return Some(failed);
        }
        let accused =
            accused.filter(|server| *server != leased.primary && leased.members.contains(server))?;
        if self.answers(reign, accused).await { None } else { Some(BTreeSet::from([accused])) }
    }

    /// Whether a server is the active primary of a version that goes on; else whom to leave out of the next grant: it,
    /// if it does not answer, the member that it says has failed, itself perhaps, or nobody, if it has merely restarted.
    async fn is_active(
        &self,
        reign: &Reign,
        which: (ChunkHandle, ChunkVersion),
        server: ServerId,
    ) -> Result<(), BTreeSet<ServerId>> {
        // To activate an active primary changes nothing; one that restarted, has ended its order, or is not there, says so.
        match self.order_activation(reign, which, server).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed_by(reign, which.0, server, error).await),
        }
    }

    /// Whom to leave out after what a server said, or did not, when it was asked whether it is an active primary.
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else it says, it has merely restarted")]
    async fn failed_by(
        &self,
        reign: &Reign,
        handle: ChunkHandle,
        server: ServerId,
        error: Error,
    ) -> BTreeSet<ServerId> {
        match error {
            Error::Unavailable { .. } | Error::WrongServer { .. } => BTreeSet::from([server]),
            Error::MemberFailed { server: failed, .. } => self.dispensable(handle, failed),
            Error::CutOff { .. } => {
                let chunk = read::chunk(&*self.log.view(), handle);
                let members = chunk.map(|chunk| chunk.members).unwrap_or_default();
                self.cut_off(reign, handle, (&members, &members), server).await
            }
            _ => BTreeSet::new(),
        }
    }

    /// Whom to leave out if a primary reaches none of several other members: those that do not answer here either, or have
    /// lost what they had as part of the base. If there is none it is the primary that is cut off, and what the others hold
    /// goes on without it, unless they were all to get it from there.
    pub(super) async fn cut_off(
        &self,
        reign: &Reign,
        handle: ChunkHandle,
        (members, base): (&[ServerId], &[ServerId]),
        primary: ServerId,
    ) -> BTreeSet<ServerId> {
        let others: Vec<ServerId> = members.iter().copied().filter(|server| *server != primary).collect();
        let held = self.inspect(reign, handle, &others).await;
        let is_good = |server: &ServerId, held: &Result<pb::InspectReplicaReply>| match held {
            Ok(held) => !base.contains(server) || (held.present && !held.partial && !held.corrupt),
            Err(_) => false,
        };
        let bad = others.iter().zip(&held).filter(|(server, held)| !is_good(server, held));
        let bad: BTreeSet<ServerId> = bad.map(|(server, _)| *server).collect();
        if !bad.is_empty() {
            bad
        // Guard one_accused: else the primary is left alone, out of reach for those that are to join it.
        } else if others.iter().any(|server| base.contains(server)) {
            BTreeSet::from([primary])
        } else {
            others.into_iter().collect()
        }
    }

    /// A member that its primary says has failed, to be left out; nobody if no other member has the content. Then a new
    /// version is all that can help it, as after a disk that was slow for a while.
    fn dispensable(&self, handle: ChunkHandle, failed: ServerId) -> BTreeSet<ServerId> {
        let failed = BTreeSet::from([failed]);
        let others = self.soft.with(|cluster, view, now| {
            read::chunk(view, handle).is_ok_and(|chunk| !cluster.current(&chunk, &failed, now).is_empty())
        });
        if others { failed } else { BTreeSet::new() }
    }

    async fn answers(&self, reign: &Reign, server: ServerId) -> bool {
        let request = pb::ProbeRequest { head: Some(self.head(reign, server)) };
        self.orders.probe(self.soft.target(server), request).await.is_ok()
    }

    /// A member of a lease set says that others failed it: a new grant without them, if it is so.
    ///
    /// # Errors
    /// Why there is no new grant.
    pub(crate) async fn look_into(
        self: &Arc<Self>,
        reign: &Reign,
        reporter: ServerId,
        (handle, version): (ChunkHandle, ChunkVersion),
        accused: BTreeSet<ServerId>,
    ) -> Result<()> {
        let chunk = read::chunk(&*self.log.view(), handle)?;
        if chunk.confirmed != version || chunk.pending.is_some() || !chunk.members.contains(&reporter) {
            return Ok(());
        }
        let primary = chunk.lease.as_ref().map(|lease| lease.primary);
        // A member that gets no answer of its primary, or does not know who that is, can't answer readers.
        let is_other = |server: &ServerId| chunk.members.contains(server) && *server != reporter;
        let doubted = primary.or_else(|| accused.iter().copied().find(is_other));
        if accused.contains(&reporter) && primary != Some(reporter) {
            // It has restarted and lost its role: nothing but a grant tells it its primary again, however active
            // that is. Else an idle chunk has a replica that counts and never serves.
            return self.settle(reign, handle, BTreeSet::new()).await;
        }
        if primary.is_none_or(|primary| accused.contains(&primary)) || accused.contains(&reporter) {
            let failed = match doubted {
                Some(server) => match self.is_active(reign, (handle, version), server).await {
                    Ok(()) => return Ok(()),
                    Err(failed) => failed,
                },
                None => BTreeSet::new(),
            };
            return self.settle(reign, handle, failed).await;
        }
        let avoid: BTreeSet<ServerId> =
            accused.into_iter().filter(|server| chunk.members.contains(server)).collect();
        if avoid.is_empty() {
            return Ok(());
        }
        self.grant(reign, handle, Wish::write().without(avoid)).await
    }

    /// A new grant of a chunk whose primary is gone: with a writer if its lease still runs, because then
    /// somebody is writing; else only so that reads can be answered.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        avoid: BTreeSet<ServerId>,
    ) -> Result<()> {
        let chunk = read::chunk(&*self.log.view(), handle)?;
        let wall = self.clock.wall();
        let writer = chunk.lease.as_ref().is_some_and(|lease| !lease.expires_at.since(wall).is_zero());
        let writer = writer && self.may_be_written(&chunk);
        self.grant(reign, handle, Wish { writer, ..Wish::write() }.without(avoid)).await
    }

    /// What is left of the lease that `primary` uses, and whether it is time to extend it; `None` if it has none
    /// (guard T43: nothing is extended while a new grant is pending).
    pub(crate) fn lease_use(
        &self,
        view: &dyn View,
        primary: ServerId,
        (handle, version): (ChunkHandle, ChunkVersion),
    ) -> Option<Duration> {
        let chunk = read::chunk(view, handle).ok()?;
        let wall = self.clock.wall();
        let leased = leased(&chunk, |expires_at| expires_at.since(wall))?;
        let is_its = leased.primary == primary && leased.version == version;
        (is_its && !leased.remaining.is_zero()).then_some(leased.remaining)
    }
}

/// The confirmed lease of a chunk, unless a new grant is pending.
fn leased(chunk: &Chunk, remaining: impl FnOnce(gfs_proto::time::UnixMs) -> Duration) -> Option<Leased> {
    let lease = chunk.lease.as_ref().filter(|_| chunk.pending.is_none())?;
    let mut members = chunk.members.clone();
    members.sort_by_key(|server| *server != lease.primary);
    Some(Leased {
        handle: chunk.handle,
        version: chunk.confirmed,
        primary: lease.primary,
        members,
        remaining: remaining(lease.expires_at).min(LEASE),
    })
}
