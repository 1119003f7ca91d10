//! Which chunks get new replicas first (GFS §4.3).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use gfs_proto::id::ChunkHandle;
use gfs_proto::time::Moment;

/// How long a chunk with at least two replicas stays below its goal before it is cloned: a restart of a
/// server is no reason to copy its disks (trap T46).
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Most clones at one time in the whole cluster.
pub(crate) const CLONES_MAX: usize = 4;
/// Most clones at one time that one server takes part in as the new member.
pub(crate) const CLONES_PER_SERVER_MAX: usize = 2;
/// How long a chunk rests after a repair that came to nothing; twice as long after each further one.
const REST_MIN: Duration = Duration::from_secs(1);
/// Longest rest: whatever was in the way may be over, and the last replica of a chunk should not wait long for that.
const REST_MAX: Duration = Duration::from_secs(16);
/// Most chunks whose failed repairs are remembered: more than can be tried within the longest rest.
const SETBACKS_MAX: usize = 4096;

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
    /// How many repairs in a row came to nothing.
    pub(crate) failures: u32,
}

/// Chunks whose repair came to nothing. Without a rest those that can't be repaired would take every slot for ever, and
/// nothing behind them would ever have its turn.
#[derive(Debug, Default)]
pub(crate) struct Setbacks(BTreeMap<ChunkHandle, Setback>);

#[derive(Debug)]
struct Setback {
    failures: u32,
    not_before: Moment,
}

impl Setbacks {
    /// Takes note of a repair that came to nothing.
    pub(crate) fn note(&mut self, handle: ChunkHandle, now: Moment) {
        let earlier = self.0.get(&handle).map_or(0, |setback| setback.failures);
        if self.0.len() >= SETBACKS_MAX {
            // Who is forgotten too early is only tried too early.
            self.0.clear();
        }
        let rest = REST_MIN.saturating_mul(1_u32.checked_shl(earlier).unwrap_or(u32::MAX)).min(REST_MAX);
        let setback = Setback { failures: earlier.saturating_add(1), not_before: now.plus(rest) };
        self.0.insert(handle, setback);
    }

    /// Forgets all chunks but those that are still weak.
    pub(crate) fn keep(&mut self, is_weak: impl Fn(ChunkHandle) -> bool) {
        self.0.retain(|handle, _| is_weak(*handle));
    }

    /// How many repairs of a chunk in a row came to nothing; `None` while it rests from the last one.
    pub(crate) fn failures(&self, handle: ChunkHandle, now: Moment) -> Option<u32> {
        match self.0.get(&handle) {
            Some(setback) => (setback.not_before <= now).then_some(setback.failures),
            None => Some(0),
        }
    }
}

/// The chunks to clone now, at most `slots`: the furthest from the goal first, the last replicas before
/// all others, then those that failed less often, then the longest waiting.
pub(crate) fn choose(weak: impl Iterator<Item = Weak>, slots: usize) -> Vec<ChunkHandle> {
    let mut due: Vec<Weak> = weak.filter(is_due).collect();
    let key = |chunk: &Weak| {
        let missing = chunk.goal.saturating_sub(chunk.live);
        (chunk.live, Reverse(missing), chunk.failures, Reverse(chunk.since), chunk.handle)
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
        let (handle, since) = (ChunkHandle::from_raw(handle), Duration::from_secs(seconds));
        Weak { handle, live, goal, since, failures: 0 }
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

    #[test]
    fn of_equals_those_that_failed_less_often_come_first() {
        let failed = |chunk, failures| Weak { failures, ..chunk };
        let chunks = [failed(weak(1, 2, 3, 60), 2), weak(2, 2, 3, 20), failed(weak(3, 1, 3, 20), 5)];
        assert_eq!(check(&chunks, 9), [3, 2, 1]);
    }

    #[test]
    fn who_fails_rests_longer_each_time_up_to_a_limit_and_is_forgotten_when_it_is_whole() {
        let (mut setbacks, handle) = (Setbacks::default(), ChunkHandle::from_raw(1));
        let mut now = Moment::default();
        for (earlier, rest) in [1, 2, 4, 8, 16, 16].into_iter().map(Duration::from_secs).enumerate() {
            assert_eq!(setbacks.failures(handle, now), Some(u32::try_from(earlier).unwrap()));
            setbacks.note(handle, now);
            assert_eq!(setbacks.failures(handle, now.plus(rest - Duration::from_millis(1))), None);
            now = now.plus(rest);
        }
        (0..100).for_each(|_| setbacks.note(handle, now));
        assert_eq!(setbacks.failures(handle, now.plus(REST_MAX)), Some(106));
        setbacks.keep(|_| true);
        assert_eq!(setbacks.failures(handle, now), None);
        setbacks.keep(|_| false);
        assert_eq!(setbacks.failures(handle, now), Some(0));
    }

    #[test]
    fn failed_repairs_are_remembered_up_to_a_limit() {
        let mut setbacks = Setbacks::default();
        (0..3 * SETBACKS_MAX as u64)
            .for_each(|handle| setbacks.note(ChunkHandle::from_raw(handle), Moment::default()));
        assert!((1..=SETBACKS_MAX).contains(&setbacks.0.len()));
    }
}
