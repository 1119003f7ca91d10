//! The soft state (GFS §2.6.2): who is alive and who holds what, as the chunkservers report it. Every master
//! and shadow keeps it, so a new leader has it at once; nothing of it is in the log.

mod check;
mod fence;
mod server;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion, Epoch, ServerId, Term};
use gfs_proto::time::{Moment, UnixMs};

use crate::plan::placement::Candidate;
use crate::plan::repair;
use crate::plan::sweep::Standing;
use crate::state::{Chunk, View, read};

pub(crate) use check::{KnownReplica, health};
pub(crate) use fence::{Reign, fence_end};
pub(crate) use server::{Held, Part, Registration, Report, Server, Space};

/// A server without a heartbeat for this long is silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// A pause of our own process longer than this says nothing about the servers (trap T46).
const OWN_PAUSE: Duration = Duration::from_millis(1500);
/// Most chunks that one answer to a heartbeat may name: beyond it nothing is validated.
const DENIED_MAX: usize = 1 << 20;
/// A server with more replicas than this that it may not serve has enough to delete: no more is made garbage meanwhile.
const SWEPT_LATE: usize = 100_000;
/// How often the counts of recent placements are halved.
const RECENT_HALVING: Duration = Duration::from_secs(10);

/// What is known of the chunkservers, and what follows from it together with the replicated state.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    servers: BTreeMap<ServerId, Server>,
    /// Chunks with fewer live current replicas than their goal.
    weak: BTreeMap<ChunkHandle, Weakness>,
    /// Chunks to look at again, because a server came or went.
    recheck: BTreeSet<ChunkHandle>,
    /// Where the slow walk over all chunks goes on, and whether it has been round once.
    walk: ChunkHandle,
    walked: bool,
    ticked: Option<Moment>,
    halved: Moment,
}

/// How a chunk falls short of its goal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Weakness {
    /// Live current replicas.
    pub(crate) live: u32,
    /// Replicas wanted.
    pub(crate) goal: u32,
    /// Since when.
    pub(crate) since: Moment,
    /// End of its lease, if it has one: then somebody may be waiting.
    pub(crate) leased_until: Option<UnixMs>,
}

/// Why a heartbeat gets no answer of a leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unanswered {
    /// What the server has reported is not known here: it has to tell all of it.
    ReportsMissing,
    /// It holds more that it may not serve than an answer can name: the sweep has to come first, which counts on its reports.
    DeniesTooMany,
}

impl Cluster {
    /// The servers by id.
    pub(crate) fn servers(&self) -> &BTreeMap<ServerId, Server> {
        &self.servers
    }
    /// One server, if it has registered here.
    pub(crate) fn server(&self, server: ServerId) -> Option<&Server> {
        self.servers.get(&server)
    }
    /// Whether a server has been heard of lately.
    pub(crate) fn is_alive(&self, server: ServerId, now: Moment) -> bool {
        self.servers.get(&server).is_some_and(|server| server.is_alive(now))
    }
    /// How many servers are alive.
    pub(crate) fn alive(&self, now: Moment) -> usize {
        self.servers.values().filter(|server| server.is_alive(now) && !server.suspect).count()
    }
    /// The weak chunks.
    pub(crate) fn weak(&self) -> &BTreeMap<ChunkHandle, Weakness> {
        &self.weak
    }
    /// The weak chunks, as repair wants them.
    pub(crate) fn weak_for_repair(&self, now: Moment) -> impl Iterator<Item = repair::Weak> {
        self.weak.iter().map(move |(handle, weakness)| repair::Weak {
            handle: *handle,
            live: weakness.live,
            goal: weakness.goal,
            since: now.since(weakness.since),
            failures: 0,
        })
    }

    /// Whether one of these live servers could take one more replica of a chunk that has `live` current ones, as far as is
    /// known: it holds none yet that counts.
    pub(crate) fn can_be_joined(&self, handle: ChunkHandle, live: u32, servers: &[ServerId]) -> bool {
        let holds = |id: &ServerId| {
            self.servers.get(id).is_some_and(|server| {
                let held = server.replicas.get(&handle);
                held.is_some_and(|held| !held.partial && !held.corrupt) && !server.denied.contains(&handle)
            })
        };
        // Of more servers than replicas one has none; what the others hold need not be looked at for each weak chunk.
        u32::try_from(servers.len()).unwrap_or(u32::MAX) > live || !servers.iter().all(holds)
    }

    /// Takes note of a registration: a new epoch, from which nothing was reported yet.
    pub(crate) fn register(&mut self, id: ServerId, registration: Registration, now: Moment) {
        match self.servers.get_mut(&id) {
            Some(server) => server.register(registration, now),
            None => {
                self.servers.insert(id, Server::new(registration, now));
            }
        }
    }

    /// Takes over one batch of a report; false if the master has lost track and needs a full one.
    pub(crate) fn report(&mut self, id: ServerId, report: &Report, view: &dyn View, now: Moment) -> bool {
        let Some(server) = self.servers.get_mut(&id) else { return false };
        let Some(gone) = server.take(report) else { return false };
        server.note_lost(&gone, now);
        let changed: Vec<ChunkHandle> = report.replicas.iter().map(|(handle, _)| *handle).collect();
        // The state is read after the batch is in, under the same lock: a grant prepared meanwhile either is
        // in this view or finds the batch when it is examined.
        for handle in changed.into_iter().chain(gone) {
            self.examine_in(handle, view, now);
        }
        true
    }

    /// Takes note of a heartbeat; false if the server must register (again) first.
    pub(crate) fn heartbeat(&mut self, id: ServerId, epoch: Epoch, space: Space, now: Moment) -> bool {
        match self.servers.get_mut(&id) {
            Some(server) if server.epoch == epoch => {
                server.heard = now;
                server.suspect = false;
                server.space = space;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Answers a heartbeat as the leader of a term, now, with the reported chunks that the answer does not
    /// validate. To be called only after the leadership was confirmed for a round begun after the heartbeat
    /// came. The moment of the answer is remembered here, under the same lock: fences are counted from it.
    ///
    /// # Errors
    /// Why the answer would mean nothing.
    pub(crate) fn answer(
        &mut self,
        id: ServerId,
        epoch: Epoch,
        reported: u64,
        reign: (Term, Moment),
    ) -> Result<Vec<u64>, Unanswered> {
        let (term, now) = reign;
        let server = self.servers.get_mut(&id).ok_or(Unanswered::ReportsMissing)?;
        // Guard no_epoch: an answer counts only for the epoch that asked.
        if server.epoch != epoch || reported > server.reports_taken() {
            return Err(Unanswered::ReportsMissing);
        }
        if server.denied.len() > DENIED_MAX {
            return Err(Unanswered::DeniesTooMany);
        }
        server.answered = Some((term, now));
        Ok(server.denied.iter().map(|handle| handle.raw()).collect())
    }

    /// Whether a live server has so much to delete that nothing more should become garbage.
    pub(crate) fn is_swept_late(&self, now: Moment) -> bool {
        self.servers.values().any(|server| server.is_alive(now) && server.denied.len() > SWEPT_LATE)
    }

    /// Looks at one chunk again, in this state.
    pub(crate) fn examine_in(&mut self, handle: ChunkHandle, view: &dyn View, now: Moment) {
        self.examine(handle, lookup(view, handle).as_ref(), now);
    }

    /// Looks at one chunk again: who may serve it, whether it is weak, whether its grant is pending.
    /// `chunk` is what the state says now.
    pub(crate) fn examine(&mut self, handle: ChunkHandle, chunk: Option<&Chunk>, now: Moment) {
        let mut live = 0;
        for (id, server) in &mut self.servers {
            let Some(held) = server.replicas.get(&handle) else { continue };
            if chunk.is_some_and(|chunk| fence::validates(chunk, *id, held.version)) {
                server.denied.remove(&handle);
            } else {
                server.denied.insert(handle);
            }
            let current = chunk.is_some_and(|chunk| held.is_current(chunk, *id));
            live += u32::from(current && server.is_alive(now));
        }
        self.note_weak(handle, chunk, live, now);
    }

    fn note_weak(&mut self, handle: ChunkHandle, chunk: Option<&Chunk>, live: u32, now: Moment) {
        match chunk {
            // A chunk that was never confirmed has no content to lose.
            Some(chunk) if chunk.confirmed != ChunkVersion::NONE && live < chunk.goal => {
                let since = self.weak.get(&handle).map_or(now, |weakness| weakness.since);
                let leased_until = chunk.lease.as_ref().map(|lease| lease.expires_at);
                self.weak.insert(handle, Weakness { live, goal: chunk.goal, since, leased_until });
            }
            Some(_) | None => {
                self.weak.remove(&handle);
            }
        }
    }

    /// Confirmed members that are alive and whole as far as is known, and not in `avoid`. A member that has not
    /// reported the chunk counts: it tells when it stores the version.
    pub(crate) fn current(
        &self,
        chunk: &Chunk,
        avoid: &BTreeSet<ServerId>,
        now: Moment,
    ) -> Vec<(ServerId, String)> {
        let usable = |id: &&ServerId| {
            !avoid.contains(id)
                && self.servers.get(id).is_some_and(|server| {
                    server.is_alive(now)
                        && !server.suspect
                        && server.replicas.get(&chunk.handle).is_none_or(|held| held.is_current(chunk, **id))
                })
        };
        let rack = |id: &ServerId| self.servers.get(id).map(|server| server.rack.clone()).unwrap_or_default();
        chunk.members.iter().filter(usable).map(|id| (*id, rack(id))).collect()
    }

    /// Whether a server holds a replica of the chunk, as far as is known: one that has not told all yet may.
    pub(crate) fn may_hold(&self, id: ServerId, handle: ChunkHandle) -> bool {
        self.servers
            .get(&id)
            .is_some_and(|server| server.replicas.contains_key(&handle) || !server.has_full_report())
    }

    /// Live servers with room for a replica, other than those in `avoid`.
    pub(crate) fn candidates(
        &self,
        chunk_bytes: u32,
        avoid: &BTreeSet<ServerId>,
        now: Moment,
    ) -> Vec<Candidate> {
        self.servers
            .iter()
            .filter(|(id, server)| server.is_alive(now) && !server.suspect && !avoid.contains(id))
            .map(|(id, server)| server.candidate(*id))
            .filter(|candidate| candidate.has_room(chunk_bytes))
            .collect()
    }

    /// Counts new replicas, so that the next ones go elsewhere (GFS §4.2).
    pub(crate) fn placed(&mut self, members: &[ServerId]) {
        for id in members {
            if let Some(server) = self.servers.get_mut(id) {
                server.recent += 1;
            }
        }
    }

    /// An order to this server failed: nothing new goes there until its next heartbeat.
    pub(crate) fn suspect(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(&id) {
            server.suspect = true;
        }
    }

    /// A grant that began at `since` was confirmed: each member has stored and adopted its version, whatever it reported
    /// before. What it has lost after that it has not.
    ///
    /// A member that reported in the middle of the grant said that it was partial, which is over; to take it at its word
    /// would be to give it the same replica again, and it drops what it holds whenever it joins. Only what a server says in an
    /// epoch that began after the grant, as after a power cut, is newer than its adoption; and what it said about damage at this
    /// very version.
    pub(crate) fn adopted(
        &mut self,
        handle: ChunkHandle,
        version: ChunkVersion,
        members: &[ServerId],
        since: Moment,
    ) {
        for id in members {
            if let Some(server) = self.servers.get_mut(id) {
                if server.lost.get(&handle).is_some_and(|lost| *lost >= since) {
                    continue;
                }
                let held = server.replicas.entry(handle).or_default();
                if held.version < version {
                    *held = Held { version, ..Held::default() };
                } else if held.version == version && server.registered <= since {
                    held.partial = false;
                }
            }
        }
    }

    /// A replica of this version or an older one was deleted by our order. One that has come by a later grant, before the
    /// answer to the order did, is there.
    pub(crate) fn deleted(&mut self, id: ServerId, handle: ChunkHandle, version: ChunkVersion) {
        if let Some(server) = self.servers.get_mut(&id)
            && server.replicas.get(&handle).is_none_or(|held| held.version <= version)
        {
            server.replicas.remove(&handle);
            server.denied.remove(&handle);
        }
    }

    /// What the state says of a replica that its server may not serve.
    pub(crate) fn standing(&self, id: ServerId, chunk: Option<&Chunk>, now: Moment) -> Standing {
        let Some(chunk) = chunk else { return Standing::Unknown };
        let pending = chunk.pending.as_ref();
        if chunk.members.contains(&id) || pending.is_some_and(|pending| pending.members.contains(&id)) {
            return Standing::Member;
        }
        let is_good = |(other, server): &(&ServerId, &Server)| {
            // Trap T22: a server counts only after its full report.
            // Mutant sweep_before_report: what a server said before its restart still counts.
            server.is_alive(now)
                && (server.has_full_report() || fault::mutant("sweep_before_report"))
                && server.replicas.get(&chunk.handle).is_some_and(|held| held.is_current(chunk, **other))
        };
        let good = self.servers.iter().filter(is_good).count();
        Standing::Outsider {
            pending: pending.is_some(),
            confirmed: chunk.confirmed != ChunkVersion::NONE,
            good_elsewhere: u32::try_from(good).unwrap_or(u32::MAX),
            goal: chunk.goal,
        }
    }
}

/// A chunk, if the state has it. A state that can't be read denies everything; whoever acts on an absence
/// asks the state itself.
fn lookup(view: &dyn View, handle: ChunkHandle) -> Option<Chunk> {
    read::chunk(view, handle).ok()
}

#[cfg(test)]
mod tests;
