//! The grant driver: takes one chunk through a grant, message by message as the protocol says (GFS §3.1, §4.5;
//! docs/decisions/0008). One driver per chunk at a time; all who wait for the chunk share its outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ClusterId, ServerId};
use gfs_proto::time::{Clock, Moment};
use gfs_proto::{Error, Result, fault, pb};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::seams::{Log, Orders, Soft};
use super::snapshot::Copies;
use crate::cluster::Reign;
use crate::plan::grant::{Reach, Situation, choose};
use crate::plan::repair;
use crate::state::{Applied, Chunk, Command, Pending, Rejected, read};

/// Length of a lease (GFS §3.1).
pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// Most grants under way at one time.
const FLIGHTS_MAX: usize = 4096;
/// Most prepares of one driver: each failing member costs one.
const ATTEMPTS_MAX: usize = 8;
/// Pause before the second prepare of one driver; later ones wait longer.
const PAUSE: Duration = Duration::from_millis(20);
/// Most grants without a writer that are remembered.
const SETTLED_MAX: usize = 10_000;

/// What a grant is wanted for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wish {
    /// Whether there will be mutations.
    pub(crate) writer: bool,
    /// How many members are wanted.
    pub(crate) reach: Reach,
    /// Servers that are not to be members.
    pub(crate) avoid: BTreeSet<ServerId>,
}

impl Wish {
    /// To write, with those who have the content.
    pub(crate) fn write() -> Self {
        Self { writer: true, reach: Reach::Survivors, avoid: BTreeSet::new() }
    }
    /// The same without some servers.
    pub(crate) fn without(mut self, avoid: BTreeSet<ServerId>) -> Self {
        self.avoid = avoid;
        self
    }
}

pub(super) type Outcome = Option<Result<()>>;

/// Drives grants.
pub(crate) struct Granter {
    pub(super) log: Arc<dyn Log>,
    pub(super) orders: Arc<dyn Orders>,
    pub(super) soft: Arc<Soft>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cluster: ClusterId,
    /// Grants under way, by chunk: whoever comes later waits for the same one. Never held across an await.
    flights: Mutex<BTreeMap<ChunkHandle, watch::Receiver<Outcome>>>,
    /// Grants without a writer that settled a chunk for reading, and their primaries: not to be repeated as
    /// long as these live. Never held across an await.
    settled: Mutex<BTreeMap<ChunkHandle, (ChunkVersion, ServerId)>>,
    /// Who is getting a copy, by the chunk of the grant; never held across an await.
    joiners: Mutex<BTreeMap<ChunkHandle, Vec<ServerId>>>,
    /// Copies on write under way.
    pub(crate) copies: Copies,
    tasks: TaskTracker,
}

/// Why a grant did not come through.
#[derive(Debug)]
pub(super) enum Setback {
    /// These members failed: prepare anew without them.
    Members(Vec<(ServerId, Error)>),
    /// This primary has accused all others, who are well: prepare anew without it, and with them.
    CutOff(ServerId, Error),
    /// The chunk has moved on: look again.
    Overtaken(Error),
    /// The primary restarted after it had stored the version: as a member it is as good as before, but only a
    /// new version makes it a primary.
    Restarted(Error),
    /// Nothing more can be done by this driver.
    End(Error),
}

/// What the earlier attempts of one driver have taught it.
#[derive(Default)]
struct Past {
    /// Who is not to be a member.
    avoid: BTreeSet<ServerId>,
    /// A pending grant that is not to be resumed.
    spent: Option<ChunkVersion>,
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::End(error)
    }
}
impl From<Rejected> for Setback {
    fn from(rejected: Rejected) -> Self {
        Self::End(rejected.into())
    }
}

impl Granter {
    /// A driver over these seams.
    pub(crate) fn new(
        log: Arc<dyn Log>,
        orders: Arc<dyn Orders>,
        soft: Arc<Soft>,
        clock: Arc<dyn Clock>,
        cluster: ClusterId,
    ) -> Arc<Self> {
        let (flights, settled, joiners) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (copies, tasks) = (Copies::default(), TaskTracker::new());
        Arc::new(Self { log, orders, soft, clock, cluster, flights, settled, joiners, copies, tasks })
    }

    /// How many grants are under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.lock().len()
    }
    /// Whether a grant of this chunk is under way.
    pub(crate) fn is_in_flight(&self, handle: ChunkHandle) -> bool {
        self.flights.lock().contains_key(&handle)
    }

    /// Starts a grant, or joins the one that is under way, and waits for its outcome. The caller looks at the
    /// chunk afterwards: a grant that was joined may have had another purpose.
    ///
    /// # Errors
    /// Why there is no grant. [`Error::NotLeader`] if the reign ends.
    ///
    /// # Cancel safety
    /// The grant goes on without the caller.
    pub(crate) async fn grant(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        wish: Wish,
    ) -> Result<()> {
        let mut outcome = self.start(reign, handle, wish)?;
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().unwrap_or(Err(Error::NotLeader { leader: None }))
    }

    /// Starts a grant if none is under way.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many are.
    pub(crate) fn start(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        wish: Wish,
    ) -> Result<watch::Receiver<Outcome>> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&handle) {
            return Ok(flight.clone());
        }
        if flights.len() >= FLIGHTS_MAX {
            return Err(Error::Busy { what: "the list of grants under way".into() });
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(handle, receiver.clone());
        let (granter, reign) = (self.clone(), reign.clone());
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                biased;
                // A deposed leader's orders would be refused; its successor takes the grant up, this master itself perhaps.
                () = reign.over.cancelled() => Err(Error::NotLeader { leader: None }),
                outcome = granter.drive(&reign, handle, &wish) => outcome,
            };
            if let Err(error) = &outcome {
                tracing::debug!(%handle, %error, "no grant");
            }
            granter.joiners.lock().remove(&handle);
            granter.flights.lock().remove(&handle);
            sender.send_replace(Some(outcome));
        });
        Ok(receiver)
    }

    /// Runs something that belongs to the grants beside them.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Waits until every driver has ended.
    pub(crate) async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn drive(self: &Arc<Self>, reign: &Reign, handle: ChunkHandle, wish: &Wish) -> Result<()> {
        self.end_origin(reign, handle, wish.writer).await?;
        let mut past = Past { avoid: wish.avoid.clone(), spent: None };
        let mut last = Error::NoReplica { handle };
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(PAUSE * u32::try_from(attempt).unwrap_or(u32::MAX)).await;
            let chunk = read::chunk(&*self.log.view(), handle)?;
            let pending = chunk.pending.as_ref().map(|pending| pending.version);
            let setback = match self.attempt(reign, chunk, wish, &past).await {
                Ok(()) => return Ok(()),
                Err(setback) => setback,
            };
            match setback {
                Setback::Members(failed) => {
                    for (server, error) in failed {
                        tracing::debug!(%handle, %server, %error, "member failed in a grant");
                        past.avoid.insert(server);
                        last = error;
                    }
                }
                Setback::CutOff(primary, error) => (past.avoid, last) = (BTreeSet::from([primary]), error),
                Setback::Restarted(error) => (past.spent, last) = (pending, error),
                Setback::Overtaken(error) => last = error,
                Setback::End(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn attempt(&self, reign: &Reign, chunk: Chunk, wish: &Wish, past: &Past) -> Result<(), Setback> {
        let handle = chunk.handle;
        let avoid = &past.avoid;
        if !self.can_resume(&chunk, wish, past) {
            match self.prepare(&chunk, wish, avoid).await {
                // Too few servers to write; what the survivors hold is settled all the same, so that it can be read.
                Err(Setback::End(error @ Error::NotEnoughServers { .. }))
                    if chunk.confirmed != ChunkVersion::NONE =>
                {
                    if self.is_settled(reign, &chunk).await {
                        return Err(Setback::End(error));
                    }
                    let settle = Wish { writer: false, ..wish.clone() };
                    self.prepare(&chunk, &settle, avoid).await?;
                    self.carry_out(reign, handle).await?;
                    return Err(Setback::End(error));
                }
                prepared => prepared?,
            }
        }
        self.carry_out(reign, handle).await
    }

    /// Whether the pending grant, if there is one, will do. A new leader finds it in the log and goes on with it.
    fn can_resume(&self, chunk: &Chunk, wish: &Wish, past: &Past) -> bool {
        chunk.pending.as_ref().is_some_and(|pending| {
            let usable = |cluster: &crate::cluster::Cluster, now| {
                let mut members = pending.members.iter();
                members.all(|server| !past.avoid.contains(server) && cluster.is_alive(*server, now))
            };
            let is_new = past.spent != Some(pending.version);
            is_new
                && (pending.writer || !wish.writer)
                && self.soft.with(|cluster, _, now| usable(cluster, now))
        })
    }

    /// Whether an active primary is there that can tell readers what is committed.
    async fn is_settled(&self, reign: &Reign, chunk: &Chunk) -> bool {
        let settled = self.settled.lock().get(&chunk.handle).copied();
        let by_revocation =
            settled.filter(|(version, _)| *version == chunk.version).map(|(_, primary)| primary);
        let Some(primary) = chunk.lease.as_ref().map(|lease| lease.primary).or(by_revocation) else {
            return false;
        };
        let which = (chunk.handle, chunk.confirmed);
        chunk.pending.is_none() && self.order_activation(reign, which, primary).await.is_ok()
    }

    /// Step 1: chooses the members and commits them under a new version.
    async fn prepare(&self, chunk: &Chunk, wish: &Wish, avoid: &BTreeSet<ServerId>) -> Result<(), Setback> {
        let fresh = chunk.confirmed == ChunkVersion::NONE;
        let choice = self.soft.with(|cluster, view, now| {
            let mut current = cluster.current(chunk, avoid, now);
            let mut candidates = cluster.candidates(read::settings(view)?.chunk_bytes.raw(), avoid, now);
            if wish.reach == Reach::Goal {
                candidates.retain(|candidate| self.clone_places(candidate.server) > 0);
                // Whose disk has failed may have lost this replica and be well otherwise: no write may ever find that out.
                current.retain(|(server, _)| cluster.may_hold(*server, chunk.handle));
            }
            let primary = chunk.lease.as_ref().map(|lease| lease.primary);
            let choice = choose(&Situation {
                handle: chunk.handle,
                goal: chunk.goal,
                fresh,
                pending: chunk.pending.is_some(),
                current: &current,
                candidates: &candidates,
                alive: cluster.alive(now),
                primary,
                writer: wish.writer,
                reach: wish.reach,
            })?;
            let new: Vec<ServerId> =
                choice.members.iter().filter(|server| !choice.base.contains(server)).copied().collect();
            cluster.placed(&new);
            if !fresh {
                self.joiners.lock().insert(chunk.handle, new);
            }
            Ok::<_, Error>(choice)
        })?;
        let command = Command::PrepareGrant {
            handle: chunk.handle,
            // Guard version_reuse: the state gives this version + 1, once.
            expected_version: chunk.version,
            members: choice.members,
            base: choice.base,
            primary: choice.primary,
            writer: wish.writer,
            fresh,
        };
        fault::try_reach("grant::before_prepare").await?;
        match self.log.propose(command).await? {
            Ok(applied) => {
                fault::try_reach("grant::prepared").await?;
                tracing::debug!(handle = %chunk.handle, %applied, "grant prepared");
                Ok(())
            }
            Err(rejected @ Rejected::VersionMismatch { .. }) => Err(Setback::Overtaken(rejected.into())),
            Err(rejected) => Err(Setback::End(rejected.into())),
        }
    }

    /// How many more copies a server may be getting now.
    pub(super) fn clone_places(&self, server: ServerId) -> usize {
        let taken = self.joiners.lock().values().filter(|joiners| joiners.contains(&server)).count();
        repair::CLONES_PER_SERVER_MAX.saturating_sub(taken)
    }

    /// Steps 2 to 6 of the pending grant.
    async fn carry_out(&self, reign: &Reign, handle: ChunkHandle) -> Result<(), Setback> {
        // From here on no answer of ours validates the chunk for those who are left out: it is examined after
        // the prepare was applied, under the lock that answers take.
        let (chunk, denied_since) = self.soft.with(|cluster, view, now| {
            let chunk = read::chunk(view, handle)?;
            cluster.examine(handle, Some(&chunk), now);
            Ok::<_, Error>((chunk, now))
        })?;
        let Some(pending) = chunk.pending.clone() else {
            return Err(Setback::Overtaken(Error::NoReplica { handle }));
        };
        self.store_everywhere(reign, &chunk, &pending).await?;
        fault::try_reach("grant::stored").await?;
        if !pending.fresh {
            let fences = async {
                self.fence_out(reign, &chunk, &pending, denied_since).await;
                Ok(())
            };
            futures::try_join!(self.reconcile(reign, &chunk, &pending), fences)?;
            fault::try_reach("grant::reconciled").await?;
        }
        self.confirm(handle, &pending, denied_since).await?;
        self.activate(reign, &chunk, &pending).await
    }

    /// Step 2. A joiner drops what it holds, so it hears of the version only when every base member has stored it
    /// and said that it is whole (trap T21): else the last good copy might be the one that is dropped.
    async fn store_everywhere(&self, reign: &Reign, chunk: &Chunk, pending: &Pending) -> Result<(), Setback> {
        let is_base = |server: &ServerId| pending.fresh || pending.base.contains(server);
        let (base, joiners): (Vec<ServerId>, Vec<ServerId>) =
            pending.members.iter().partition(|at| is_base(at));
        self.store_at(reign, chunk, pending, &base).await?;
        self.store_at(reign, chunk, pending, &joiners).await
    }

    /// Step 2 at some members, at once.
    async fn store_at(
        &self,
        reign: &Reign,
        chunk: &Chunk,
        pending: &Pending,
        servers: &[ServerId],
    ) -> Result<(), Setback> {
        let members: Vec<pb::Replica> = pending.members.iter().map(|server| self.replica(*server)).collect();
        let chunk_bytes = read::settings(&*self.log.view())?.chunk_bytes.raw();
        // An operator's decision is about this version and this server, and about nothing else.
        let accepted = read::accepted(&*self.log.view(), chunk.handle)?;
        let accepted = accepted.filter(|it| it.version == pending.version).map(|it| it.server);
        let replies = futures::future::join_all(servers.iter().map(|server| {
            let request = pb::StoreVersionRequest {
                head: Some(self.head(reign, *server)),
                handle: chunk.handle.raw(),
                version: pending.version.raw(),
                members: members.clone(),
                base: pending.base.iter().map(|server| server.raw()).collect(),
                primary: pending.primary.raw(),
                writer: pending.writer,
                fresh: pending.fresh,
                chunk_bytes,
                accepted: accepted == Some(*server),
            };
            self.orders.store_version(self.soft.target(*server), request)
        }))
        .await;
        let mut failed = Vec::new();
        for (server, reply) in servers.iter().zip(replies) {
            match reply {
                Ok(reply) if reply.version > pending.version.raw() => {
                    return Err(Setback::Overtaken(Error::NoReplica { handle: chunk.handle }));
                }
                // Guard partial_forgotten: a base member that says it may have lost bytes is no base.
                // Mutant partial_base: it is asked and not heard.
                Ok(reply)
                    if reply.partial
                        && accepted != Some(*server)
                        && !fault::mutant("partial_base")
                        && !pending.fresh
                        && pending.base.contains(server) =>
                {
                    failed.push((*server, Error::NotValidated { handle: chunk.handle, damaged: false }));
                }
                // Guard version_not_durable: only a member that has stored the version counts.
                Ok(reply) if reply.version == pending.version.raw() => {}
                Ok(_) => failed.push((*server, Error::internal("a version was not stored"))),
                Err(error) => failed.push((*server, self.blamed(*server, error)?)),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Setback::Members(failed)) }
    }

    /// Steps 3 and 4, at the primary: answers when every member has adopted.
    async fn reconcile(&self, reign: &Reign, chunk: &Chunk, pending: &Pending) -> Result<(), Setback> {
        // Guard alone_unverified: the others lose their part with the confirm, so whoever is left alone must be found whole
        // before it (docs/decisions/0021).
        let alone = pending.base.len() == 1 && chunk.members.len() > 1;
        let request = pb::ReconcileRequest {
            head: Some(self.head(reign, pending.primary)),
            handle: chunk.handle.raw(),
            version: pending.version.raw(),
            // Mutant alone_unverified: whoever says that it is whole is believed.
            verify: alone && !fault::mutant("alone_unverified"),
        };
        let answer = tokio::select! {
            answer = self.orders.reconcile(self.soft.target(pending.primary), request) => answer,
            () = self.silence_of(pending.primary) => Err(Error::unavailable("the primary fell silent")),
        };
        match answer {
            Ok(()) => Ok(()),
            // Guard late_activation: a restart ended its role, and this version gives it no other.
            Err(error @ Error::NotPrimary { .. }) => Err(Setback::Restarted(error)),
            Err(error) => Err(self.setback(reign, chunk, pending, error).await),
        }
    }

    /// Step 5.
    async fn confirm(&self, handle: ChunkHandle, pending: &Pending, since: Moment) -> Result<(), Setback> {
        fault::try_reach("grant::before_confirm").await?;
        let lease_expires_at = self.clock.wall().plus(LEASE);
        // Guard confirm_not_cas: the state refuses it unless this version is still the pending one.
        let command = Command::ConfirmGrant { handle, version: pending.version, lease_expires_at };
        match self.log.propose(command).await? {
            Ok(Applied::Confirmed { version }) if version == pending.version => {}
            Ok(applied) => return Err(Setback::End(Error::internal(applied))),
            Err(rejected @ Rejected::VersionMismatch { .. }) => {
                return Err(Setback::Overtaken(rejected.into()));
            }
            Err(rejected) => return Err(Setback::End(rejected.into())),
        }
        fault::try_reach("grant::confirmed").await?;
        self.soft.with(|cluster, view, now| {
            cluster.adopted(handle, pending.version, &pending.members, since);
            cluster.examine_in(handle, view, now);
        });
        tracing::debug!(%handle, version = %pending.version, members = ?pending.members, "grant confirmed");
        Ok(())
    }

    /// Step 6: only after the confirm is committed (guard late_activation is the primary's).
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else it says, it is no primary")]
    async fn activate(&self, reign: &Reign, chunk: &Chunk, pending: &Pending) -> Result<(), Setback> {
        let (handle, primary) = (chunk.handle, pending.primary);
        if let Err(error) = self.order_activation(reign, (handle, pending.version), primary).await {
            return Err(match error {
                // It restarted meanwhile: as a member it is as good as before.
                Error::NotPrimary { .. } => Setback::Overtaken(error),
                _ => self.setback(reign, chunk, pending, error).await,
            });
        }
        fault::try_reach("grant::activated").await?;
        if !pending.writer {
            let mut settled = self.settled.lock();
            if settled.len() >= SETTLED_MAX {
                settled.clear();
            }
            settled.insert(handle, (pending.version, primary));
        }
        Ok(())
    }
}
