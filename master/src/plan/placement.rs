//! Where new replicas go (GFS §4.2): over machines and racks, on servers with below-average disk use, and
//! not too many recent creations on one server.

use gfs_proto::id::ServerId;

use super::mix;

/// Step of disk use, in percent, within which two servers count as equally full.
const FILL_STEP_PERCENT: u64 = 5;
/// How many steps of disk use a server with twice the average of recent creations is behind.
const RECENT_WEIGHT: u64 = 8;
/// Keeps a few creations from weighing much while there are hardly any.
const RECENT_FLOOR: u64 = 4;
/// Chunks for which a server must have room to get a new one.
const ROOM_CHUNKS: u64 = 2;

/// A live server that may take a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    /// The server.
    pub(crate) server: ServerId,
    /// Where it stands; servers without a rack share one.
    pub(crate) rack: String,
    /// Bytes that are free.
    pub(crate) free_bytes: u64,
    /// Bytes of its disks.
    pub(crate) total_bytes: u64,
    /// Replicas that were placed there lately.
    pub(crate) recent: u64,
}

impl Candidate {
    /// Whether it has room for a new chunk.
    pub(crate) fn has_room(&self, chunk_bytes: u32) -> bool {
        self.free_bytes >= ROOM_CHUNKS * u64::from(chunk_bytes)
    }

    fn cost(&self, recent_total: u64, count: u64) -> u64 {
        let used = self.total_bytes.saturating_sub(self.free_bytes);
        let fill = used.saturating_mul(100 / FILL_STEP_PERCENT).checked_div(self.total_bytes).unwrap_or(0);
        // In units of the average: recent / (total / count).
        let recent = (self.recent * RECENT_WEIGHT * count)
            .checked_div(recent_total + RECENT_FLOOR * count)
            .unwrap_or(0);
        fill + recent
    }
}

/// Picks up to `count` of `candidates` for a chunk that has replicas in the racks `taken` already: first racks
/// that hold the fewest replicas, then the least cost, then a hash of `salt`.
pub(crate) fn pick(candidates: &[Candidate], taken: &[&str], count: usize, salt: u64) -> Vec<ServerId> {
    let recent_total = candidates.iter().map(|candidate| candidate.recent).sum();
    let mut racks: Vec<&str> = taken.to_vec();
    let mut picked: Vec<ServerId> = Vec::new();
    while picked.len() < count {
        let best = candidates.iter().filter(|candidate| !picked.contains(&candidate.server)).min_by_key(
            |candidate| {
                let in_rack = racks.iter().filter(|rack| **rack == candidate.rack).count();
                let cost = candidate.cost(recent_total, candidates.len() as u64);
                (in_rack, cost, mix(salt, candidate.server.raw()))
            },
        );
        let Some(best) = best else { break };
        racks.push(&best.rack);
        picked.push(best.server);
    }
    picked
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn candidate(server: u64, rack: &str, free_percent: u64, recent: u64) -> Candidate {
        let rack = rack.to_owned();
        let server = ServerId::from_raw(server);
        Candidate { server, rack, free_bytes: free_percent * 1000, total_bytes: 100_000, recent }
    }
    fn raw(picked: &[ServerId]) -> Vec<u64> {
        picked.iter().map(|server| server.raw()).collect()
    }

    #[test]
    fn replicas_spread_over_racks_before_anything_else() {
        let all = [
            candidate(1, "a", 90, 0),
            candidate(2, "a", 90, 0),
            candidate(3, "b", 10, 50),
            candidate(4, "b", 5, 90),
        ];
        let picked = pick(&all, &[], 3, 7);
        assert!(picked.contains(&ServerId::from_raw(3)), "{picked:?}");
        // A chunk that is in rack a already gets its next replica in b.
        assert_eq!(raw(&pick(&all, &["a"], 1, 7)), [3]);
    }

    #[test]
    fn emptier_servers_and_those_without_recent_creations_come_first() {
        let all = [candidate(1, "", 20, 0), candidate(2, "", 80, 0), candidate(3, "", 80, 30)];
        for salt in 0..20 {
            assert_eq!(raw(&pick(&all, &[], 1, salt)), [2]);
        }
    }

    #[test]
    fn equal_servers_share_the_load_and_the_same_salt_gives_the_same_choice() {
        let all: Vec<Candidate> = (1..=4).map(|server| candidate(server, "", 50, 0)).collect();
        let mut count: BTreeMap<ServerId, u32> = BTreeMap::new();
        for salt in 0..400 {
            for server in pick(&all, &[], 3, salt) {
                *count.entry(server).or_default() += 1;
            }
        }
        assert!(count.values().all(|times| (250..350).contains(times)), "{count:?}");
        assert_eq!(pick(&all, &[], 3, 9), pick(&all, &[], 3, 9));
    }

    #[test]
    fn fewer_candidates_than_wanted_are_all_picked_once() {
        let all = [candidate(1, "", 50, 0), candidate(2, "", 50, 0)];
        assert_eq!(pick(&all, &[], 3, 1).len(), 2);
        assert!(pick(&[], &[], 3, 1).is_empty());
        assert!(!candidate(1, "", 1, 0).has_room(64 << 20));
    }
}
