//! Which chunks get new replicas first (GFS §4.3).

use std::time::Duration;

use gfs_proto::id::ChunkHandle;

/// How long a chunk with at least two replicas stays below its goal before it is cloned: a restart of a
/// server is no reason to copy its disks (trap T46).
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Most clones at one time in the whole cluster.
pub(crate) const CLONES_MAX: usize = 4;
/// Most clones at one time that one server takes part in as the new member.
pub(crate) const CLONES_PER_SERVER_MAX: usize = 2;

/// A chunk with fewer live current replicas than its goal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Weak {
    /// The chunk.
    pub(crate) handle: ChunkHandle,
    /// Live current replicas.
    pub(crate) live: u32,
    /// Replicas wanted.
    pub(crate) goal: u32,
    /// How long it has been so.
    pub(crate) since: Duration,
}

/// The chunks to clone now, at most `slots`: the furthest from the goal first, the last replicas before
/// all others, then the longest waiting.
pub(crate) fn choose(weak: impl Iterator<Item = Weak>, slots: usize) -> Vec<ChunkHandle> {
    let mut due: Vec<Weak> = weak.filter(is_due).collect();
    let key = |chunk: &Weak| {
        let missing = chunk.goal.saturating_sub(chunk.live);
        (chunk.live, std::cmp::Reverse(missing), std::cmp::Reverse(chunk.since), chunk.handle)
    };
    if due.len() > slots {
        if slots == 0 {
            return Vec::new();
        }
        due.select_nth_unstable_by_key(slots - 1, key);
        due.truncate(slots);
    }
    due.sort_unstable_by_key(key);
    due.into_iter().map(|chunk| chunk.handle).collect()
}

fn is_due(chunk: &Weak) -> bool {
    // Without a live replica there is nothing to copy: it waits for a server to come back.
    (1..chunk.goal).contains(&chunk.live) && (chunk.live == 1 || chunk.since >= GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weak(handle: u64, live: u32, goal: u32, seconds: u64) -> Weak {
        Weak { handle: ChunkHandle::from_raw(handle), live, goal, since: Duration::from_secs(seconds) }
    }
    fn check(chunks: &[Weak], slots: usize) -> Vec<u64> {
        choose(chunks.iter().copied(), slots).into_iter().map(ChunkHandle::raw).collect()
    }

    #[test]
    fn the_last_replica_comes_first_and_without_grace() {
        assert_eq!(check(&[weak(1, 2, 3, 20), weak(2, 1, 3, 0), weak(3, 1, 2, 99)], 9), [2, 3, 1]);
    }

    #[test]
    fn two_replicas_wait_out_the_grace() {
        assert_eq!(check(&[weak(1, 2, 3, 9), weak(2, 2, 3, 10)], 9), [2]);
    }

    #[test]
    fn nothing_is_cloned_from_nothing_and_the_slots_are_kept() {
        assert_eq!(check(&[weak(1, 0, 3, 99), weak(2, 2, 3, 50), weak(3, 2, 3, 60)], 1), [3]);
        assert_eq!(check(&[weak(2, 1, 3, 50)], 0), [0; 0]);
    }
}
