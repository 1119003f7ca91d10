//! Everything about one run, drawn from its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use gfs_proto::fault;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::hosts::Role;
use crate::nemesis::Fault;

/// How much slower or faster than real time a host's clock may run, in parts per million: two hosts together stay within
/// the tenth that the fence allows for (guard *slow_clock*).
const RATE_PPM_MAX: i64 = 40_000;

/// Between two snapshots, in most runs.
const SNAPSHOTS_PAUSE: Duration = Duration::from_millis(700);

/// How far the wall clock of a liar is off at most.
const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// The parameters of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// How long clients work while faults happen.
    pub(crate) time: Duration,
    pub(crate) masters: usize,
    /// The master whose wall clock may be off by up to a year: the others outvote it (decision 0023).
    pub(crate) liar: Option<String>,
    pub(crate) shadows: usize,
    pub(crate) chunkservers: usize,
    /// Directories of each chunkserver.
    pub(crate) disks: usize,
    pub(crate) chunk_bytes: u64,
    pub(crate) trash: Duration,
    /// How long the session of a client lives that has fallen silent.
    pub(crate) session: Duration,
    /// Hosts on which the clients run.
    pub(crate) client_hosts: usize,
    /// Clients of each workload.
    pub(crate) clients: u64,
    /// Pause of a client after each operation.
    pub(crate) think: Duration,
    /// Pause between two snapshots of what clients write.
    pub(crate) snapshots: Duration,
    /// Kinds of faults that may happen.
    pub(crate) faults: BTreeSet<Fault>,
    /// Mean pause between two faults.
    pub(crate) pause: Duration,
    /// Shortest and longest way of a message.
    pub(crate) latency: (Duration, Duration),
    /// The step of simulated time: what a host is sent arrives at the beginning of its next one.
    pub(crate) tick: Duration,
    /// Shortest and longest time of a disk for one batch.
    pub(crate) disk: (Duration, Duration),
    pub(crate) heartbeat: Duration,
    pub(crate) election: (Duration, Duration),
    pub(crate) checkpoint_every: u64,
    pub(crate) log_keep: u64,
    /// Segments of a chunkserver's log.
    pub(crate) segment_bytes: u32,
    pub(crate) segments: u32,
    pub(crate) buffer_bytes: u64,
    /// Mean pause between two fail points that are armed; none if none are, as in builds without them.
    pub(crate) points: Option<Duration>,
}

fn millis(dice: &mut StdRng, range: std::ops::RangeInclusive<u64>) -> Duration {
    Duration::from_millis(dice.random_range(range))
}

/// Most runs take coarse steps: each costs something even if nothing happens, and what makes runs differ is the order of
/// events, less than their distance. With dice of its own: the rest of the plan is the same.
fn tick(seed: u64) -> Duration {
    let choices = [1, 2, 4, 4];
    let dice = &mut StdRng::seed_from_u64(seed ^ 0x71C4);
    Duration::from_millis(choices.choose(dice).copied().unwrap_or(1))
}

/// Sessions mostly outlive a run; in the other seeds whoever is cut off for a while has none any more. With dice of its own
/// too.
fn session(seed: u64) -> Duration {
    let dice = &mut StdRng::seed_from_u64(seed ^ 0x5E55);
    if dice.random_bool(0.7) { gfs_master::SESSION_DEFAULT } else { millis(dice, 4_000..=20_000) }
}

/// After a snapshot every chunk has to be granted anew: only with long pauses do leases live until they are extended. With
/// dice of its own too.
fn snapshots(seed: u64) -> Duration {
    let dice = &mut StdRng::seed_from_u64(seed ^ 0x54A9);
    if dice.random_bool(0.6) { SNAPSHOTS_PAUSE } else { millis(dice, 5_000..=60_000) }
}

/// In half of the seeds with masters enough. With dice of its own too.
fn liar(seed: u64, masters: usize) -> Option<String> {
    let dice = &mut StdRng::seed_from_u64(seed ^ 0x11A6);
    (masters >= 3 && dice.random_bool(0.5)).then(|| format!("master-{}", dice.random_range(1..=masters)))
}

/// Segments smaller than this come in threes at least.
const SEGMENT_OF_TWO_BYTES_MIN: u32 = 128 << 10;
const SEGMENTS_SMALL_MIN: u32 = 3;

/// In a run so short, only a chunkserver's log that is much smaller than in earnest fills up and is written over. With dice
/// of its own too.
fn segment_bytes(seed: u64, drawn_mib: u64) -> u32 {
    let dice = &mut StdRng::seed_from_u64(seed ^ 0x5E69);
    let bytes = if dice.random_bool(0.5) { 64 << dice.random_range(10..=12) } else { drawn_mib << 20 };
    u32::try_from(bytes).unwrap_or(1 << 20)
}

/// A log of two of the smallest segments would take no append at all: what is in use is never room.
fn segments(seed: u64, drawn: u32) -> u32 {
    if segment_bytes(seed, 1) < SEGMENT_OF_TWO_BYTES_MIN { drawn.max(SEGMENTS_SMALL_MIN) } else { drawn }
}

/// The line that runs a seed.
pub(crate) fn command(seed: u64, time: Duration) -> String {
    let features = if fault::BUILT { " --features faults" } else { "" };
    format!("cargo run -p gfs-sim{features} -- run --seed {seed} --time {}ms --keep", time.as_millis())
}

impl Plan {
    /// The run of this seed.
    pub(crate) fn draw(seed: u64, time: Duration) -> Self {
        let mut dice = StdRng::seed_from_u64(seed ^ 0x51E0_0D1C_E5EE_D000);
        let dice = &mut dice;
        let pick = |dice: &mut StdRng, choices: &[u64]| choices.choose(dice).copied().unwrap_or(1);
        let heartbeat = millis(dice, 50..=150);
        let election_min = heartbeat * dice.random_range(3..=5);
        let checkpoint_every = pick(dice, &[50, 100, 300, 2_000]);
        let masters = usize::try_from(pick(dice, &[1, 3, 3, 3, 3, 5])).unwrap_or(3);
        Self {
            seed,
            time,
            masters,
            liar: liar(seed, masters),
            shadows: usize::from(dice.random_range(0..4) == 0),
            chunkservers: dice.random_range(4..=6),
            disks: dice.random_range(1..=2),
            chunk_bytes: pick(dice, &[1, 1, 1, 2]) << 20,
            trash: millis(dice, 5_000..=60_000),
            session: session(seed),
            client_hosts: dice.random_range(2..=3),
            clients: dice.random_range(2..=4),
            think: millis(dice, 20..=200),
            snapshots: snapshots(seed),
            faults: Fault::ALL.into_iter().filter(|_| dice.random_bool(0.5)).collect(),
            pause: millis(dice, 500..=4_000),
            latency: (millis(dice, 0..=1), millis(dice, 2..=20)),
            tick: tick(seed),
            disk: (Duration::from_micros(dice.random_range(50..=500)), millis(dice, 1..=10)),
            heartbeat,
            election: (election_min, election_min * 7 / 4),
            checkpoint_every,
            log_keep: checkpoint_every * dice.random_range(0..=3),
            segment_bytes: segment_bytes(seed, pick(dice, &[1, 2, 4])),
            segments: segments(seed, dice.random_range(2..=4)),
            buffer_bytes: pick(dice, &[4, 16, 128]) << 20,
            // Last: without them the same seed draws the same plan.
            points: (fault::BUILT && dice.random_bool(0.75)).then(|| millis(dice, 200..=2_000)),
        }
    }

    /// The line that does the same again.
    pub(crate) fn command(&self) -> String {
        command(self.seed, self.time)
    }

    /// Whether a server may end by itself in this run: fail points fail what any stands on, and a chunkserver can't start on a
    /// disk that is full or fails.
    pub(crate) fn may_end(&self, role: Role) -> bool {
        let ill = [Fault::DiskFull, Fault::DiskError].iter().any(|fault| self.faults.contains(fault));
        self.points.is_some() || (role == Role::Chunkserver && ill)
    }

    /// How far a wall clock jumps at most, in milliseconds: by half the life of a session clients would do nothing but begin anew.
    pub(crate) fn jump_ms_max(&self) -> i64 {
        i64::try_from((self.session * 2 / 5).as_millis()).unwrap_or(0)
    }

    /// How far the wall clock of a liar is off, in milliseconds: by more than all others, up to a year.
    pub(crate) fn lie_ms(&self) -> std::ops::RangeInclusive<i64> {
        self.jump_ms_max()..=YEAR_MS
    }

    /// How fast a host's clock runs, in parts per million beside real time.
    pub(crate) fn rate_ppm(&self, host: u64) -> i64 {
        if !self.faults.contains(&Fault::Clock) {
            return 0;
        }
        StdRng::seed_from_u64(self.seed ^ host.wrapping_mul(0xC10C_4A7E))
            .random_range(-RATE_PPM_MAX..=RATE_PPM_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_ends_by_itself_only_where_something_makes_it() {
        let quiet =
            Plan { faults: BTreeSet::from([Fault::Kill]), points: None, ..Plan::draw(1, Duration::ZERO) };
        let ill = Plan { faults: BTreeSet::from([Fault::DiskFull]), ..quiet.clone() };
        let armed = Plan { points: Some(Duration::from_secs(1)), ..quiet.clone() };
        for role in [Role::Master, Role::Shadow, Role::Chunkserver] {
            assert!(!quiet.may_end(role) && armed.may_end(role));
            assert_eq!(ill.may_end(role), role == Role::Chunkserver);
        }
    }
}
