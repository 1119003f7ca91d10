//! Which replicas are garbage (GFS §4.4, §4.5): never the last good copy of a live chunk (traps T21 to T25).

use gfs_proto::fault;
use gfs_proto::id::ChunkHandle;

/// What is known of a replica that a server reported and that no grant names it for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Suspect {
    /// The chunk.
    pub(crate) handle: ChunkHandle,
    /// What the committed state says of the chunk.
    pub(crate) chunk: Standing,
}

/// What the committed state says of a chunk, seen from one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// There is no such chunk.
    Unknown,
    /// The server is a confirmed member or a member of the pending grant.
    Member,
    /// The server is not a member.
    Outsider {
        /// Whether a grant is under way.
        pending: bool,
        /// Whether the chunk was ever confirmed.
        confirmed: bool,
        /// Confirmed current replicas on other servers that are alive and have reported.
        good_elsewhere: u32,
        /// Replicas wanted.
        goal: u32,
    },
}

/// Whether the replica is garbage, in the eyes of a leader that has applied its own term's first entry.
/// `next_handle` is the handle that the state gives next.
pub(crate) fn is_garbage(suspect: &Suspect, next_handle: ChunkHandle) -> bool {
    match suspect.chunk {
        Standing::Member => false,
        // Trap T23: a handle that this state has not given yet says that the state is behind, not that the
        // chunk is dead. Trap T24: handles are logged before a server hears of them, and never reused.
        // Mutant sweep_unknown: whatever this state does not know is garbage.
        // Mutant orphans_kept: a replica of a deleted chunk is taken back.
        Standing::Unknown => {
            (suspect.handle < next_handle || fault::mutant("sweep_unknown")) && !fault::mutant("orphans_kept")
        }
        // Trap T21: only when the goal is met by others. A grant under way may still need this one.
        Standing::Outsider { pending, confirmed, good_elsewhere, goal } => {
            // Mutant sweep_last_copies: one good copy elsewhere is enough.
            let enough = if fault::mutant("sweep_last_copies") { 1 } else { goal.max(1) };
            !pending && confirmed && good_elsewhere >= enough
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(handle: u64, chunk: Standing) -> bool {
        let suspect = Suspect { handle: ChunkHandle::from_raw(handle), chunk };
        is_garbage(&suspect, ChunkHandle::from_raw(100))
    }
    fn outsider(pending: bool, confirmed: bool, good_elsewhere: u32) -> Standing {
        Standing::Outsider { pending, confirmed, good_elsewhere, goal: 3 }
    }

    #[test]
    fn an_orphan_is_garbage_only_if_its_handle_was_given_by_this_state() {
        assert!(check(99, Standing::Unknown));
        assert!(!check(100, Standing::Unknown));
        assert!(!check(u64::MAX, Standing::Unknown));
    }

    #[test]
    fn a_stale_replica_goes_only_when_the_goal_is_met_by_others() {
        assert!(check(1, outsider(false, true, 3)));
        assert!(!check(1, outsider(false, true, 2)));
        assert!(!check(1, outsider(true, true, 3)), "a grant is under way");
        assert!(!check(1, outsider(false, false, 3)), "never confirmed: nobody is known to be good");
    }

    #[test]
    fn a_member_is_never_garbage() {
        assert!(!check(1, Standing::Member));
    }
}
