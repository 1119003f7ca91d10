//! One chunkserver as this master knows it.

use std::collections::{BTreeMap, BTreeSet};

use gfs_proto::id::{ChunkHandle, ChunkVersion, Epoch, ServerId, Term};
use gfs_proto::time::Moment;
use gfs_proto::{fault, pb};

use super::SILENCE;
use crate::plan::placement::Candidate;
use crate::state::Chunk;

/// Most lost replicas that are remembered of one server, for grants that are under way.
const LOST_MAX: usize = 10_000;

/// What a server reported of one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    /// The version it has stored.
    pub(crate) version: ChunkVersion,
    /// It joined a grant and has not adopted yet, or may have lost bytes.
    pub(crate) partial: bool,
    /// A checksum did not match.
    pub(crate) corrupt: bool,
}

impl Held {
    /// Whether the replica is current: its server is a confirmed member, and it is whole.
    pub(crate) fn is_current(&self, chunk: &Chunk, server: ServerId) -> bool {
        // Guard current_by_version: a server that only joined an unconfirmed grant has a high version too.
        // Mutant current_by_version: a high version is proof enough.
        let member = chunk.members.contains(&server) || fault::mutant("current_by_version");
        member && self.version >= chunk.confirmed && !self.partial && !self.corrupt
    }
}

impl From<&pb::ReplicaReport> for Held {
    fn from(report: &pb::ReplicaReport) -> Self {
        let version = ChunkVersion::from_raw(report.version);
        Self { version, partial: report.partial, corrupt: report.corrupt }
    }
}

/// Room on a server's disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Space {
    /// All bytes.
    pub(crate) total_bytes: u64,
    /// Free bytes.
    pub(crate) free_bytes: u64,
    /// Bytes in chunks.
    pub(crate) used_bytes: u64,
}

/// What a server says of itself when it registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Registration {
    /// Where it is.
    pub(crate) address: String,
    /// In which rack.
    pub(crate) rack: String,
    /// New at every start and every lapse.
    pub(crate) epoch: Epoch,
}

/// One batch of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    /// The epoch in which it is sent.
    pub(crate) epoch: Epoch,
    /// Counts the batches of the epoch, from 1.
    pub(crate) sequence: u64,
    /// Whether it is part of a full report, and whether it is its first or last part.
    pub(crate) full: Option<Part>,
    /// Replicas that are there.
    pub(crate) replicas: Vec<(ChunkHandle, Held)>,
    /// Replicas that are gone.
    pub(crate) removed: Vec<ChunkHandle>,
}

/// Where in a full report a batch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// Nothing of this full report came before.
    pub(crate) first: bool,
    /// Nothing of this full report comes after.
    pub(crate) last: bool,
}

/// One chunkserver as this master knows it.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where it is.
    pub(crate) address: String,
    /// In which rack; servers without one share the empty name.
    pub(crate) rack: String,
    /// Its last registration here.
    pub(crate) epoch: Epoch,
    /// When its epoch began here.
    pub(super) registered: Moment,
    /// When its last message came.
    pub(crate) heard: Moment,
    /// When it was last answered by this master as leader, and of which term.
    pub(crate) answered: Option<(Term, Moment)>,
    /// An order failed since its last heartbeat.
    pub(crate) suspect: bool,
    /// Whether it was alive when that was last looked at.
    pub(super) was_alive: bool,
    /// Room on its disks.
    pub(crate) space: Space,
    /// Replicas placed there lately.
    pub(crate) recent: u64,
    /// What it holds, as reported.
    pub(crate) replicas: BTreeMap<ChunkHandle, Held>,
    /// Chunks that it said it has no more, and when: a grant that was under way must not bring them back.
    pub(super) lost: BTreeMap<ChunkHandle, Moment>,
    /// Chunks that it holds and may not serve; kept up to date as reports come and the state changes.
    pub(crate) denied: BTreeSet<ChunkHandle>,
    reports: Reports,
}

/// How far the reports of this epoch have come.
#[derive(Debug, Default)]
struct Reports {
    /// Sequence of the last batch taken.
    taken: u64,
    full: Full,
}

#[derive(Debug, Default)]
enum Full {
    #[default]
    None,
    /// Some batches are here; replicas not named by the end are gone.
    Running(BTreeSet<ChunkHandle>),
    Done,
}

impl Server {
    /// A server that has just registered for the first time.
    pub(super) fn new(registration: Registration, now: Moment) -> Self {
        Self {
            address: registration.address,
            rack: registration.rack,
            epoch: registration.epoch,
            registered: now,
            heard: now,
            answered: None,
            suspect: false,
            was_alive: true,
            space: Space::default(),
            recent: 0,
            replicas: BTreeMap::new(),
            lost: BTreeMap::new(),
            denied: BTreeSet::new(),
            reports: Reports::default(),
        }
    }

    /// Begins a new epoch. What was reported before stays until the full report of the new epoch is in, so
    /// that a restart does not look like the loss of a disk; `answered` stays, because fences count on.
    pub(super) fn register(&mut self, registration: Registration, now: Moment) {
        self.address = registration.address;
        self.rack = registration.rack;
        self.heard = now;
        self.suspect = false;
        if self.epoch != registration.epoch {
            self.epoch = registration.epoch;
            self.registered = now;
            self.reports = Reports::default();
        }
    }

    /// Whether it was heard of lately.
    pub(crate) fn is_alive(&self, now: Moment) -> bool {
        now.since(self.heard) < SILENCE
    }
    /// Whether a full report of its epoch is in (trap T22).
    pub(crate) fn has_full_report(&self) -> bool {
        matches!(self.reports.full, Full::Done)
    }
    /// Sequence of the last batch taken in its epoch.
    pub(crate) fn reports_taken(&self) -> u64 {
        self.reports.taken
    }

    /// Takes over a batch: the replicas that turn out to be gone, or `None` if a batch is missing (trap T26).
    pub(super) fn take(&mut self, report: &Report) -> Option<Vec<ChunkHandle>> {
        if report.epoch != self.epoch {
            return None;
        }
        // A repeat of a batch whose answer was lost.
        if report.sequence != 0 && report.sequence == self.reports.taken {
            return Some(Vec::new());
        }
        let restarts = report.full.is_some_and(|part| part.first) && report.sequence > self.reports.taken;
        if !restarts && Some(report.sequence) != self.reports.taken.checked_add(1) {
            return None;
        }
        let mut gone = report.removed.clone();
        match (&report.full, &mut self.reports.full) {
            (Some(Part { first: true, .. }), full) => *full = Full::Running(BTreeSet::new()),
            // A delta tells nothing before the full report, and a part without a beginning neither.
            (None, Full::None) | (Some(_), Full::None | Full::Done) => return None,
            (None, _) | (Some(_), Full::Running(_)) => {}
        }
        for (handle, held) in &report.replicas {
            self.replicas.insert(*handle, *held);
        }
        if let Full::Running(seen) = &mut self.reports.full {
            seen.extend(report.replicas.iter().map(|(handle, _)| *handle));
            for handle in &report.removed {
                seen.remove(handle);
            }
            if report.full.is_some_and(|part| part.last) {
                gone.extend(self.replicas.keys().filter(|handle| !seen.contains(handle)));
                self.reports.full = Full::Done;
            }
        }
        for handle in &gone {
            self.replicas.remove(handle);
            self.denied.remove(handle);
        }
        self.reports.taken = report.sequence;
        Some(gone)
    }

    /// Takes note of what a report said is gone.
    pub(super) fn note_lost(&mut self, gone: &[ChunkHandle], now: Moment) {
        if self.lost.len() + gone.len() > LOST_MAX {
            self.lost.clear();
        }
        self.lost.extend(gone.iter().take(LOST_MAX).map(|handle| (*handle, now)));
    }

    /// As placement sees it.
    pub(super) fn candidate(&self, server: ServerId) -> Candidate {
        Candidate {
            server,
            rack: self.rack.clone(),
            free_bytes: self.space.free_bytes,
            total_bytes: self.space.total_bytes,
            recent: self.recent,
        }
    }
}
