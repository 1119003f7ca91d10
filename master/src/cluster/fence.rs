//! Fences: which replicas a server may serve, and until when it may go on after it may not (protocol.md, Fence).

use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::id::{ChunkVersion, ServerId, Term};
use gfs_proto::time::{Moment, VALIDITY};
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::state::Chunk;

/// How long the leader waits after its last answer, on its own clock.
// Guard slow_clock: a tenth more, for a clock that runs slower than ours.
pub(crate) const FENCE: Duration = VALIDITY.saturating_add(Duration::from_millis(300));

/// One term of leadership of this master.
#[derive(Clone, Debug)]
pub(crate) struct Reign {
    /// The term.
    pub(crate) term: Term,
    /// When it began, or later: never earlier.
    pub(crate) started: Moment,
    /// Cancelled when it is over.
    pub(crate) over: CancellationToken,
}

/// Whether an answer validates a replica at `version` on `server`.
pub(super) fn validates(chunk: &Chunk, server: ServerId, version: ChunkVersion) -> bool {
    // Guard server_fence_only: each chunk by itself, and only for a confirmed member at that version.
    chunk.confirmed != ChunkVersion::NONE
        && chunk.members.contains(&server)
        // Mutant stale_replica_served: whatever version a member holds.
        && (version >= chunk.confirmed || fault::mutant("stale_replica_served"))
        // Guard validate_ignores_pending: a server that the pending grant leaves out is on its way out.
        // Mutant validate_ignores_pending: it is a member until the confirm.
        && (chunk.pending.as_ref().is_none_or(|pending| pending.members.contains(&server))
            || fault::mutant("validate_ignores_pending"))
}

/// The moment from which a server surely serves nothing of a chunk that a pending grant leaves it out of.
/// `prepared` is when this master began to deny it the chunk.
pub(crate) fn fence_end(server: Option<&Server>, reign: &Reign, prepared: Moment) -> Moment {
    // Only an answer before the denial can have validated the chunk.
    // Guard no_term_wait / no_term_start: earlier leaders answered too, up to the start of our own term.
    let answered = match server.and_then(|server| server.answered) {
        Some((term, at)) if term == reign.term => at,
        // Mutant no_term_start: what an earlier leader answered is forgotten.
        Some(_) | None if fault::mutant("no_term_start") => return Moment::default(),
        Some(_) | None => reign.started,
    };
    // Guard fence_before_prepare: the wait is for what was answered up to the prepare, not for any other time.
    answered.min(prepared).max(reign.started).plus(FENCE)
}

#[cfg(test)]
mod tests {
    use gfs_proto::id::{ChunkHandle, EntryId, Epoch};

    use super::*;
    use crate::cluster::Registration;
    use crate::state::Pending;

    fn at(millis: u64) -> Moment {
        Moment::from_start(Duration::from_millis(millis))
    }
    fn ids(raw: &[u64]) -> Vec<ServerId> {
        raw.iter().copied().map(ServerId::from_raw).collect()
    }

    /// When the fence of a server ends that was answered (term, ms) last, for a leader of term 7 since 10 s.
    fn check(answered: Option<(u64, u64)>, prepared: u64) -> u64 {
        let registration =
            Registration { address: String::new(), rack: String::new(), epoch: Epoch::from_raw(1) };
        let mut server = Server::new(registration, at(0));
        server.answered = answered.map(|(term, ms)| (Term::from_raw(term), at(ms)));
        let reign = Reign { term: Term::from_raw(7), started: at(10_000), over: CancellationToken::new() };
        let end = fence_end(Some(&server), &reign, at(prepared));
        u64::try_from(end.since(at(0)).as_millis()).unwrap()
    }

    #[test]
    fn the_fence_runs_from_the_last_answer_that_can_have_validated() {
        assert_eq!(check(Some((7, 20_000)), 20_100), 23_300, "answered before the prepare");
        assert_eq!(check(Some((7, 20_500)), 20_100), 23_400, "later answers deny the chunk");
        assert_eq!(check(Some((7, 12_000)), 50_000), 15_300, "long silent: it has run out");
    }

    #[test]
    fn a_server_whose_clock_is_a_tenth_slower_serves_nothing_when_its_fence_has_run_out() {
        // Guard slow_clock. It serves for three seconds of its own.
        let (answered, its_three_seconds) = (20_000, VALIDITY * 11 / 10);
        let out = answered + u64::try_from(its_three_seconds.as_millis()).unwrap();
        assert!(check(Some((7, answered)), 20_100) >= out);
        assert!(check(Some((7, answered)), answered) >= out);
    }

    #[test]
    fn a_new_leader_counts_from_the_start_of_its_own_term() {
        // Guards no_term_wait and no_term_start: what an earlier leader answered is not known.
        assert_eq!(check(None, 10_100), 13_300);
        assert_eq!(check(Some((5, 2_000)), 10_100), 13_300);
        assert_eq!(check(Some((7, 10_050)), 9_000), 13_300, "prepared by an earlier leader");
    }

    #[test]
    fn only_a_confirmed_member_that_the_pending_grant_keeps_is_validated() {
        let mut chunk = Chunk {
            handle: ChunkHandle::from_raw(1),
            file: EntryId::from_raw(2),
            goal: 3,
            references: 1,
            version: ChunkVersion::from_raw(5),
            confirmed: ChunkVersion::from_raw(5),
            members: ids(&[1, 2, 3]),
            pending: None,
            lease: None,
        };
        let validated = |chunk: &Chunk, server: u64, version: u64| {
            validates(chunk, ServerId::from_raw(server), ChunkVersion::from_raw(version))
        };
        assert!(validated(&chunk, 1, 5) && validated(&chunk, 1, 6));
        assert!(!validated(&chunk, 1, 4), "stale");
        assert!(!validated(&chunk, 4, 9), "current_by_version: a joiner of an unconfirmed grant");
        chunk.version = ChunkVersion::from_raw(6);
        chunk.pending = Some(Pending {
            version: ChunkVersion::from_raw(6),
            members: ids(&[1, 2, 4]),
            base: ids(&[1, 2]),
            primary: ServerId::from_raw(1),
            writer: true,
            fresh: false,
        });
        assert!(validated(&chunk, 1, 5) && !validated(&chunk, 3, 5), "validate_ignores_pending");
        assert!(!validated(&chunk, 4, 6), "not confirmed yet");
        chunk.confirmed = ChunkVersion::NONE;
        assert!(!validated(&chunk, 1, 5), "never confirmed");
    }
}
