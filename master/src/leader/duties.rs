//! The leader's background work: each tick one bounded step, planned by `plan/`, carried out
//! through the log and the grant driver. What a tick leaves undone the next one finds again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::task::every;
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result, fault, pb};
use parking_lot::Mutex;

use super::build::Stuck;
use super::grant::{Granter, LEASE, Wish};
use super::seams::{Log, Orders};
use crate::cluster::Reign;
use crate::plan::grant::Reach;
use crate::plan::{repair, sweep};
use crate::raft::Node;
use crate::state::{Applied, Command, Rejected, read};

/// How often leases are extended and failures looked into.
const LEASES_PERIOD: Duration = Duration::from_millis(100);
/// Most leases extended by one command, and most that wait for it.
const EXTENSIONS_MAX: usize = 1024;
/// Most failures that wait to be looked into.
const FAILURES_MAX: usize = 1024;
/// How often forsaken chunks are taken care of, and how many grants that may have under way.
const CARE_PERIOD: Duration = Duration::from_millis(500);
const CARE_FLIGHTS_MAX: usize = 64;
/// How often repair and sweep make a step.
const REPAIR_PERIOD: Duration = Duration::from_millis(250);
const SWEEP_PERIOD: Duration = Duration::from_secs(1);
/// Most replicas of a server looked at, and deleted, in one step of the sweep: also a cap on what a mistake could do (trap
/// T23).
const SWEEP_BATCH: usize = 2000;
pub(super) const DELETIONS_MAX: usize = 256;
/// How often it is looked whether a snapshot is being built.
const BUILD_PERIOD: Duration = Duration::from_millis(50);
/// How often dates are looked at, and how much is removed by one command.
const EXPIRY_PERIOD: Duration = Duration::from_secs(1);
const EXPIRY_BATCH: u32 = 1000;
/// Most commands of one kind in one look. The state takes little by each, so that none holds up the log, while every client
/// opens a session and deletes files: with a single command they would end more slowly than they begin.
const EXPIRY_ROUNDS_MAX: usize = 32;

/// A lease that is used is extended when less is left of it (GFS §3.1).
pub(crate) fn extend_below() -> Duration {
    Duration::from_millis(fault::tuned("extend_below_ms", 40_000))
}

/// A replica that nobody needs.
type Garbage = (ServerId, ChunkHandle, ChunkVersion);

type Failures = BTreeMap<(ChunkHandle, ChunkVersion, ServerId), BTreeSet<ServerId>>;

/// The background work of a leader. Clones share what waits to be done.
#[derive(Clone)]
pub(crate) struct Duties {
    pub(super) log: Arc<dyn Log>,
    orders: Arc<dyn Orders>,
    pub(super) granter: Arc<Granter>,
    /// What heartbeats brought since the last tick; never held across an await.
    inbox: Arc<Mutex<Inbox>>,
    /// Where the sweep goes on; never held across an await.
    swept: Arc<Mutex<BTreeMap<ServerId, ChunkHandle>>>,
    /// What repair has under way, and what came to nothing; never held across an await.
    repairs: Arc<Mutex<Repairs>>,
    /// Where the care for grants goes on; never held across an await.
    cared: Arc<Mutex<Cared>>,
    /// The snapshot that does not come forward; never held across an await.
    pub(super) stuck: Arc<Mutex<Stuck>>,
}

#[derive(Default)]
struct Repairs {
    under_way: BTreeSet<ChunkHandle>,
    setbacks: repair::Setbacks,
}

#[derive(Default)]
struct Cared {
    /// Among those that are pending.
    pending: ChunkHandle,
    /// Among the weak ones, of which some are forsaken.
    weak: ChunkHandle,
}

#[derive(Default)]
struct Inbox {
    extensions: BTreeMap<ChunkHandle, ChunkVersion>,
    failures: Failures,
}

impl Duties {
    /// Nothing waits.
    pub(super) fn new(log: Arc<dyn Log>, orders: Arc<dyn Orders>, granter: Arc<Granter>) -> Self {
        let (inbox, swept, repairs) = (Arc::default(), Arc::default(), Arc::default());
        let (cared, stuck) = (Arc::default(), Arc::default());
        Self { log, orders, granter, inbox, swept, repairs, cared, stuck }
    }

    /// Asks for an extension of a lease that is used; one that does not fit is asked for again by the next
    /// heartbeat.
    pub(crate) fn extend(&self, handle: ChunkHandle, version: ChunkVersion) {
        let mut inbox = self.inbox.lock();
        if inbox.extensions.len() < EXTENSIONS_MAX {
            inbox.extensions.insert(handle, version);
        }
    }

    /// Takes note of members that failed; what does not fit is reported again.
    pub(crate) fn failed(
        &self,
        reporter: ServerId,
        (handle, version): (ChunkHandle, ChunkVersion),
        accused: ServerId,
    ) {
        let mut inbox = self.inbox.lock();
        if inbox.failures.len() < FAILURES_MAX {
            inbox.failures.entry((handle, version, reporter)).or_default().insert(accused);
        }
    }

    /// Works until the reign is over.
    pub(super) async fn run(self, node: Node, reign: Reign) {
        let over = &reign.over;
        self.begin();
        // Each tick owns what it needs: a future that borrows could not be spawned.
        let owned = || (self.clone(), reign.clone(), node.clone());
        macro_rules! ticking {
            ($name:literal, $period:expr, |$duties:ident, $reign:ident, $node:ident| $tick:expr) => {{
                let held = owned();
                every($name, $period, over.clone(), move || {
                    let ($duties, $reign, $node) = held.clone();
                    async move { $tick }
                })
            }};
        }
        tokio::join!(
            ticking!("leases", LEASES_PERIOD, |duties, reign, _node| duties.tick_leases(&reign).await),
            ticking!("care", CARE_PERIOD, |duties, reign, _node| duties.tick_care(&reign)),
            ticking!("repair", REPAIR_PERIOD, |duties, reign, _node| duties.tick_repair(&reign)),
            ticking!("sweep", SWEEP_PERIOD, |duties, reign, node| duties.tick_sweep(&node, &reign).await),
            ticking!("build", BUILD_PERIOD, |duties, reign, _node| duties.tick_build(&reign).await),
            ticking!("expiry", EXPIRY_PERIOD, |duties, _reign, _node| duties.tick_expiry().await),
        );
    }

    /// What an earlier reign has noted says nothing of this one: others have led in between.
    pub(super) fn begin(&self) {
        *self.inbox.lock() = Inbox::default();
        self.repairs.lock().setbacks = repair::Setbacks::default();
        *self.stuck.lock() = None;
    }

    /// Extends the leases that are used, in one command, and looks into failures.
    pub(super) async fn tick_leases(&self, reign: &Reign) -> Result<()> {
        let Inbox { extensions, failures } = std::mem::take(&mut *self.inbox.lock());
        for ((handle, version, reporter), accused) in failures {
            if self.granter.is_in_flight(handle) {
                continue;
            }
            let (granter, reign) = (self.granter.clone(), reign.clone());
            self.granter.spawn(async move {
                let looked = granter.look_into(&reign, reporter, (handle, version), accused).await;
                if let Err(error) = looked {
                    tracing::debug!(%handle, %error, "no new grant after a failure");
                }
            });
        }
        if extensions.is_empty() {
            return Ok(());
        }
        fault::try_reach("leader::before_extend").await?;
        let expires_at = self.granter.clock.wall().plus(LEASE);
        let leases = self.still_wanted(extensions)?;
        if leases.is_empty() {
            return Ok(());
        }
        self.log.propose(Command::ExtendLeases { leases, expires_at }).await?.map(drop).map_err(Error::from)
    }

    /// Leases of files that were not deleted: with a deleted tree they end by themselves (docs/decisions/0015).
    fn still_wanted(
        &self,
        extensions: BTreeMap<ChunkHandle, ChunkVersion>,
    ) -> Result<Vec<(ChunkHandle, ChunkVersion)>> {
        let mut leases = Vec::with_capacity(extensions.len());
        for (handle, version) in extensions {
            match read::chunk(&*self.log.view(), handle) {
                Ok(chunk) if self.granter.may_be_written(&chunk) => leases.push((handle, version)),
                Ok(_) | Err(Rejected::NoSuchChunk { .. }) => {}
                Err(damaged) => return Err(damaged.into()),
            }
        }
        Ok(leases)
    }

    /// Finds grants that nobody drives (their leader died, or whoever asked for them), and leased chunks whose
    /// primary fell silent.
    pub(super) fn tick_care(&self, reign: &Reign) -> Result<()> {
        let mut room = CARE_FLIGHTS_MAX.saturating_sub(self.granter.in_flight());
        let from = self.cared.lock().pending;
        let pending = read::pending_grants(&*self.log.view(), from, CARE_FLIGHTS_MAX)?;
        // Those at the front may be without hope for as long as a server is away: the others have their turn.
        let next = pending.items.last().filter(|_| pending.more).map(|last| last.raw() + 1);
        self.cared.lock().pending = ChunkHandle::from_raw(next.unwrap_or_default());
        for handle in pending.items {
            if self.granter.is_in_flight(handle) {
                continue;
            }
            if room == 0 {
                self.cared.lock().pending = handle;
                break;
            }
            let chunk = read::chunk(&*self.log.view(), handle)?;
            let writer = chunk.pending.as_ref().is_some_and(|pending| pending.writer);
            self.granter.start(reign, handle, Wish { writer, ..Wish::write() })?;
            room -= 1;
        }
        let forsaken = if self.granter.soft.is_settled() { self.forsaken(room) } else { Vec::new() };
        for handle in forsaken {
            if !self.granter.is_in_flight(handle) {
                let (granter, reign) = (self.granter.clone(), reign.clone());
                self.granter.spawn(async move {
                    if let Err(error) = granter.settle(&reign, handle, BTreeSet::new()).await {
                        tracing::debug!(%handle, %error, "a silent primary is not replaced yet");
                    }
                });
            }
        }
        Ok(())
    }

    /// Leased chunks whose primary is silent.
    fn forsaken(&self, limit: usize) -> Vec<ChunkHandle> {
        let wall = self.granter.clock.wall();
        let mut cared = self.cared.lock();
        self.granter.soft.with(|cluster, view, now| {
            let in_use = cluster.weak().range(cared.weak..).filter(|(_, weakness)| {
                weakness.live > 0
                    && weakness.leased_until.is_some_and(|expires_at| !expires_at.since(wall).is_zero())
            });
            let looked_at: Vec<ChunkHandle> = in_use.map(|(handle, _)| *handle).take(SWEEP_BATCH).collect();
            let last = looked_at.last().filter(|_| looked_at.len() == SWEEP_BATCH);
            let mut next = ChunkHandle::from_raw(last.map_or(0, |last| last.raw() + 1));
            let forsaken = |handle: &ChunkHandle| {
                let lease = read::chunk(view, *handle).ok().and_then(|chunk| chunk.lease);
                lease.is_some_and(|lease| !cluster.is_alive(lease.primary, now))
            };
            let mut forsaken: Vec<ChunkHandle> = looked_at.into_iter().filter(forsaken).collect();
            if let Some(left) = forsaken.get(limit) {
                next = *left;
            }
            forsaken.truncate(limit);
            cared.weak = next;
            forsaken
        })
    }

    /// Clones chunks that are below their goal (GFS §4.3).
    pub(super) fn tick_repair(&self, reign: &Reign) -> Result<()> {
        if !self.granter.soft.is_settled() {
            return Ok(());
        }
        for handle in self.due_repairs()? {
            let (duties, reign) = (self.clone(), reign.clone());
            self.granter.spawn(async move {
                let outcome = duties.clone_one(&reign, handle).await;
                let mut repairs = duties.repairs.lock();
                repairs.under_way.remove(&handle);
                if let Err(error) = outcome {
                    tracing::debug!(%handle, %error, "not repaired yet");
                    // What ended with the reign says nothing about the chunk.
                    if !reign.over.is_cancelled() {
                        repairs.setbacks.note(handle, duties.granter.clock.moment());
                    }
                }
            });
        }
        Ok(())
    }

    /// The chunks to clone now; they are under way from here on.
    fn due_repairs(&self) -> Result<Vec<ChunkHandle>> {
        let mut repairs = self.repairs.lock();
        let Repairs { under_way, setbacks } = &mut *repairs;
        let slots = repair::CLONES_MAX.saturating_sub(under_way.len());
        if slots == 0 {
            return Ok(Vec::new());
        }
        let due = self.granter.soft.with(|cluster, view, now| {
            setbacks.keep(|handle| cluster.weak().contains_key(&handle));
            let mut servers = Vec::new();
            let mut places = 0;
            let chunk_bytes = read::settings(view)?.chunk_bytes.raw();
            for candidate in cluster.candidates(chunk_bytes, &BTreeSet::new(), now) {
                let free = self.granter.clone_places(candidate.server);
                if free > 0 {
                    servers.push(candidate.server);
                    places += free;
                }
            }
            // Guard unrepairable_first: a chunk that no server could join now waits for a server, not for a slot; one whose
            // repair came to nothing rests, so that the others have their turn.
            let open = cluster.weak_for_repair(now).filter_map(|weak| {
                let failures = setbacks.failures(weak.handle, now)?;
                let is_open = !under_way.contains(&weak.handle)
                    && !self.granter.is_in_flight(weak.handle)
                    && cluster.can_be_joined(weak.handle, weak.live, &servers);
                is_open.then_some(repair::Weak { failures, ..weak })
            });
            Ok::<_, Error>(repair::choose(open, slots.min(places)))
        })?;
        under_way.extend(&due);
        Ok(due)
    }

    /// Guard clone_without_grant: a copy becomes a member in no other way than by a grant that it joins.
    async fn clone_one(&self, reign: &Reign, handle: ChunkHandle) -> Result<()> {
        let chunk = read::chunk(&*self.log.view(), handle)?;
        let wall = self.granter.clock.wall();
        // Who is writing goes on writing.
        let writer = chunk.lease.as_ref().is_some_and(|lease| !lease.expires_at.since(wall).is_zero());
        let writer = writer && self.granter.may_be_written(&chunk);
        let wish = Wish { writer, reach: Reach::Goal, avoid: BTreeSet::new() };
        self.granter.grant(reign, handle, wish).await?;
        // A grant goes on without a joiner that failed: then it was settled, not repaired.
        let chunk = read::chunk(&*self.log.view(), handle)?;
        if chunk.members.len() < usize::try_from(chunk.goal).unwrap_or(usize::MAX) {
            return Err(Error::Busy { what: "every server that could take a replica".into() });
        }
        tracing::info!(%handle, "chunk repaired");
        Ok(())
    }

    /// Deletes garbage: stale replicas and orphans (GFS §4.4, §4.5).
    pub(super) async fn tick_sweep(&self, node: &Node, reign: &Reign) -> Result<()> {
        // Trap T23: only a leader whose state contains everything up to its own term may call anything garbage.
        let index = node.leader_read_index().await?;
        if index.term != reign.term {
            return Ok(());
        }
        node.until_applied(index.index).await?;
        let garbage = self.garbage()?;
        node.view().check()?;
        self.delete_all(reign, &garbage).await
    }

    /// Deletes at all servers at once, and at each of them until it fails or the next step is due: none waits for another. What
    /// is of one server stands together.
    pub(super) async fn delete_all(&self, reign: &Reign, garbage: &[Garbage]) -> Result<()> {
        let begun = self.granter.clock.moment();
        let deleting = garbage.chunk_by(|one, other| one.0 == other.0).map(|garbage| async move {
            for (server, handle, version) in garbage.iter().copied() {
                let is_over = self.granter.clock.moment().since(begun) >= SWEEP_PERIOD;
                if is_over
                    || reign.over.is_cancelled()
                    || !self.delete(reign, server, handle, version).await?
                {
                    break;
                }
            }
            Ok(())
        });
        futures::future::try_join_all(deleting).await.map(drop)
    }

    /// Some garbage, from where the last step ended.
    pub(super) fn garbage(&self) -> Result<Vec<Garbage>> {
        let mut swept = self.swept.lock();
        self.granter.soft.with(|cluster, view, now| {
            let next_handle = read::next_chunk_handle(view)?;
            let mut garbage = Vec::new();
            for (id, server) in cluster.servers() {
                if !server.is_alive(now) || server.suspect || !server.has_full_report() {
                    continue;
                }
                let from = swept.remove(id).unwrap_or_default();
                let found_before = garbage.len();
                for (count, handle) in server.denied.range(from..).enumerate() {
                    if count >= SWEEP_BATCH || garbage.len() - found_before >= DELETIONS_MAX {
                        swept.insert(*id, *handle);
                        break;
                    }
                    let Some(held) = server.replicas.get(handle) else { continue };
                    let chunk = match read::chunk(view, *handle) {
                        Ok(chunk) => Some(chunk),
                        Err(Rejected::NoSuchChunk { .. }) => None,
                        // A state that can't be read calls nothing garbage.
                        Err(damaged) => return Err(damaged.into()),
                    };
                    let chunk = cluster.standing(*id, chunk.as_ref(), now);
                    let suspect = sweep::Suspect { handle: *handle, chunk };
                    // A copy that is being made is not in the state yet.
                    if sweep::is_garbage(&suspect, next_handle) && !self.granter.copies.is_reserved(*handle) {
                        garbage.push((*id, *handle, held.version));
                    }
                }
            }
            Ok(garbage)
        })
    }

    /// Whether the server takes orders.
    async fn delete(
        &self,
        reign: &Reign,
        server: ServerId,
        handle: ChunkHandle,
        version: ChunkVersion,
    ) -> Result<bool> {
        let request = pb::DeleteReplicaRequest {
            head: Some(self.granter.head(reign, server)),
            handle: handle.raw(),
            // A grant that it joins meanwhile gives it a higher version, which this order does not reach.
            version_max: version.raw(),
        };
        fault::try_reach("leader::before_delete").await?;
        match self.orders.delete(self.granter.soft.target(server), request).await {
            Ok(true) => {
                tracing::info!(%handle, %server, %version, "garbage deleted");
                self.granter.soft.with(|cluster, _, _| cluster.deleted(server, handle, version));
            }
            Ok(false) => {}
            Err(error @ Error::StaleTerm { .. }) => return Err(error),
            Err(error) => {
                tracing::debug!(%handle, %server, %error, "garbage stays");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets sessions and deleted files end whose date has passed.
    pub(super) async fn tick_expiry(&self) -> Result<()> {
        let now = self.granter.clock.wall();
        let due = |date: Option<gfs_proto::time::UnixMs>| date.is_some_and(|date| date <= now);
        let (sessions, trash) = {
            let view = self.log.view();
            (due(read::next_session_end(&*view)?), due(read::next_trash_date(&*view)?))
        };
        if sessions {
            self.expire_sessions().await?;
        }
        if trash {
            self.collect_trash().await?;
        }
        Ok(())
    }

    /// Ends sessions until none is due, or the next look is.
    async fn expire_sessions(&self) -> Result<()> {
        let begun = self.granter.clock.moment();
        for _ in 0..EXPIRY_ROUNDS_MAX {
            fault::try_reach("leader::before_expire").await?;
            let expired = self.log.propose(Command::ExpireSessions { limit: EXPIRY_BATCH }).await??;
            if !matches!(expired, Applied::SessionsExpired { more: true, .. }) || self.is_next_look(begun) {
                break;
            }
        }
        Ok(())
    }

    /// Collects trash until none is due, or the next look is, as long as the sweep keeps up: what is garbage is named in every
    /// answer to its servers until it is deleted.
    async fn collect_trash(&self) -> Result<()> {
        let begun = self.granter.clock.moment();
        let is_late = || self.granter.soft.with(|cluster, _, now| cluster.is_swept_late(now));
        for _ in 0..EXPIRY_ROUNDS_MAX {
            if is_late() {
                break;
            }
            fault::try_reach("leader::before_collect").await?;
            let collected = self.log.propose(Command::CollectTrash { limit: EXPIRY_BATCH }).await??;
            if !matches!(collected, Applied::Collected { more: true, .. }) || self.is_next_look(begun) {
                break;
            }
        }
        Ok(())
    }

    fn is_next_look(&self, begun: Moment) -> bool {
        self.granter.clock.moment().since(begun) >= EXPIRY_PERIOD
    }
}
