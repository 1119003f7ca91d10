//! Room on the masters' disks (decision 0025).
//!
//! A master whose disk is full has to stop, and all masters hold the same: their disks fill up at nearly the same time. So
//! each keeps a headroom and tells the leader how much it has beyond it, with every question for the read index, and the
//! leader refuses what makes the state grow as long as fewer voters than a majority have any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gfs_proto::id::MasterId;
use gfs_proto::task::every;
use gfs_proto::time::{Clock, Moment};
use gfs_proto::work::Workers;
use gfs_proto::{Error, Result, fault};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::clock::{Voters, remember};

/// How often the own disk is looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// For how long it counts what a master said of its disk. Questions may wait for seconds.
const WORD_AGE_MAX: Duration = Duration::from_secs(10);
/// A small disk keeps this part of itself free, not the whole headroom.
const HEADROOM_PART: u64 = 10;
/// What a disk without a known end has.
const BOUNDLESS: u64 = u64::MAX;

/// What the masters said of their disks.
pub(super) struct Room {
    id: MasterId,
    clock: Arc<dyn Clock>,
    voters: Voters,
    /// Behind a lock for a few instructions only.
    words: Mutex<BTreeMap<MasterId, Word>>,
}

/// What a master said at a moment of this machine.
#[derive(Clone, Copy)]
struct Word {
    at: Moment,
    /// Bytes beyond the headroom.
    free_bytes: u64,
}

impl Room {
    /// Knows of no disk yet.
    pub(super) fn new(id: MasterId, clock: Arc<dyn Clock>, voters: Voters) -> Self {
        Self { id, clock, voters, words: Mutex::default() }
    }

    /// Another master, or this one, has so many bytes beyond the headroom.
    pub(super) fn heard(&self, master: MasterId, free_bytes: u64) {
        let word = Word { at: self.clock.moment(), free_bytes };
        remember(&mut self.words.lock(), (master, word), || (self.voters)().unwrap_or_default());
    }

    /// Bytes beyond the headroom on a master's disk, if it has said so lately.
    pub(super) fn free_bytes(&self, master: MasterId) -> Option<u64> {
        let word = *self.words.lock().get(&master)?;
        let young = self.clock.moment().since(word.at) <= WORD_AGE_MAX;
        // This master's disk is looked at all the time; one that takes longer to tell has not changed for the better.
        (young || master == self.id).then_some(word.free_bytes)
    }

    /// The same for people: `None` also of a disk without a known end.
    pub(super) fn known_free_bytes(&self, master: MasterId) -> Option<u64> {
        self.free_bytes(master).filter(|free_bytes| *free_bytes < BOUNDLESS)
    }

    /// On the leader: whether the state may grow.
    ///
    /// # Errors
    /// [`Error::MastersFull`] if a voter is at its headroom and no majority is known to have room.
    pub(super) fn check(&self) -> Result<()> {
        // The common case, before every command that is checked.
        if self.words.lock().values().all(|word| word.free_bytes > 0) {
            return Ok(());
        }
        let Some(voters) = (self.voters)() else { return Ok(()) };
        let free: Vec<_> = voters.iter().map(|voter| (*voter, self.free_bytes(*voter))).collect();
        let full: Vec<MasterId> =
            free.iter().filter(|(_, free_bytes)| *free_bytes == Some(0)).map(|(voter, _)| *voter).collect();
        // Who is silent may be gone: those with room have to be a majority without it.
        let with_room = free.iter().filter(|(_, free_bytes)| free_bytes.is_some_and(|free| free > 0)).count();
        if full.is_empty() || with_room > voters.len() / 2 {
            return Ok(());
        }
        Err(Error::MastersFull { masters: full })
    }
}

/// This master's disk.
pub(super) struct OwnDisk {
    pub(super) room: Arc<Room>,
    /// Where it keeps what: each may be a filesystem of its own.
    pub(super) directories: Vec<PathBuf>,
    pub(super) headroom_bytes: Option<u64>,
    pub(super) workers: Workers,
    /// As it was at the last look.
    pub(super) was_full: AtomicBool,
}

/// Looks at the own disk until `stop`, and tells people when it gets to its headroom and when it leaves it.
pub(super) async fn watch(disk: Arc<OwnDisk>, stop: CancellationToken) {
    let tick = move || {
        let disk = disk.clone();
        async move { disk.look_and_tell().await }
    };
    every("room", LOOK_PERIOD, stop, tick).await;
}

impl OwnDisk {
    async fn look_and_tell(&self) -> Result<()> {
        let looked = look(&self.directories, self.headroom_bytes, &self.workers).await;
        let free_bytes = looked.inspect_err(|error| {
            tracing::warn!(%error, "how much room there is on this master's disk can't be told");
        })?;
        self.room.heard(self.room.id, free_bytes);
        let is_full = free_bytes == 0;
        let was_full = self.was_full.swap(is_full, Ordering::Relaxed);
        if is_full && !was_full {
            let directories = &self.directories;
            tracing::warn!(
                ?directories,
                "this master's disk is nearly full: give it room, or the cluster can't grow"
            );
        }
        if was_full && !is_full {
            tracing::info!("this master's disk has room again");
        }
        Ok(())
    }
}

/// Bytes that the state may still take on the disk of these directories that has the least.
async fn look(directories: &[PathBuf], headroom_bytes: Option<u64>, workers: &Workers) -> Result<u64> {
    if fault::try_reach("raft::room::look").await.is_err() {
        return Ok(0);
    }
    let Some(headroom_bytes) = headroom_bytes else { return Ok(BOUNDLESS) };
    let directories = directories.to_owned();
    let look = move || -> Result<u64> {
        let room = |directory: &PathBuf| room_of(directory, headroom_bytes);
        directories.iter().map(room).try_fold(BOUNDLESS, |least, room| Ok(least.min(room?)))
    };
    workers.run(look).await?
}

/// The same of one directory.
///
/// # Errors
/// [`Error::Unavailable`] if its filesystem can't be asked.
pub(super) fn room_of(directory: &Path, headroom_bytes: u64) -> Result<u64> {
    let disk = rustix::fs::statvfs(directory).map_err(Error::unavailable)?;
    if disk.f_blocks == 0 {
        // A filesystem that does not say how large it is.
        return Ok(BOUNDLESS);
    }
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let headroom_bytes = headroom_bytes.min(bytes(disk.f_blocks) / HEADROOM_PART);
    Ok(bytes(disk.f_bavail).saturating_sub(headroom_bytes))
}

#[cfg(test)]
mod tests {
    use gfs_proto::Environment;
    use gfs_proto::time::ManualClock;

    use super::*;
    use crate::raft::clock::MASTERS_MAX;

    const FULL: Option<u64> = Some(0);
    const ROOM: Option<u64> = Some(1);

    fn id(master: u64) -> MasterId {
        MasterId::from_raw(master)
    }

    /// A master 1 of this many voters that leads.
    fn leader(voters: u64) -> (Arc<ManualClock>, Room) {
        let clock = Arc::new(ManualClock::default());
        let all: Vec<MasterId> = (1..=voters).map(id).collect();
        (clock.clone(), Room::new(id(1), clock, Box::new(move || Some(all.clone()))))
    }

    #[test]
    fn the_state_grows_as_long_as_most_voters_have_room_or_nobody_is_known_to_have_none() {
        let cases: [(&[Option<u64>], &[u64]); 11] = [
            (&[None], &[]),
            (&[FULL], &[1]),
            (&[ROOM, None, None], &[]),
            (&[ROOM, ROOM, ROOM], &[]),
            (&[ROOM, ROOM, FULL], &[]),
            (&[FULL, ROOM, ROOM], &[]),
            (&[ROOM, FULL, FULL], &[2, 3]),
            (&[FULL, FULL, ROOM], &[1, 2]),
            // The third may be gone: the group would stop with the second.
            (&[ROOM, FULL, None], &[2]),
            (&[ROOM, ROOM, ROOM, FULL, FULL], &[]),
            (&[ROOM, ROOM, FULL, FULL, None], &[3, 4]),
        ];
        for (told, full) in cases {
            let (_, room) = leader(told.len() as u64);
            for (master, free_bytes) in (1..).zip(told) {
                free_bytes.iter().for_each(|free_bytes| room.heard(id(master), *free_bytes));
            }
            let masters: Vec<MasterId> = full.iter().copied().map(id).collect();
            let expected = if full.is_empty() { Ok(()) } else { Err(Error::MastersFull { masters }) };
            assert_eq!(room.check(), expected, "{told:?}");
        }
    }

    #[test]
    fn what_was_said_long_ago_does_not_count_and_who_does_not_vote_or_lead_decides_nothing() {
        let (clock, room) = leader(3);
        for master in [2, 3] {
            room.heard(id(master), 0);
        }
        assert!(room.check().is_err());
        clock.advance(WORD_AGE_MAX + Duration::from_millis(1));
        assert_eq!(room.check(), Ok(()));
        assert_eq!(room.free_bytes(id(2)), None);
        room.heard(id(4), 0);
        room.heard(id(1), 7);
        assert_eq!(room.check(), Ok(()), "a shadow's disk");
        clock.advance(WORD_AGE_MAX * 2);
        assert_eq!(room.free_bytes(id(1)), Some(7), "our own disk has not told anything since");

        let follower = Room::new(id(1), clock, Box::new(|| None));
        follower.heard(id(1), 0);
        assert_eq!(follower.check(), Ok(()));
    }

    #[test]
    fn strangers_are_not_remembered_without_end_and_voters_always_are() {
        let (_, room) = leader(3);
        for stranger in 1_000..2_000 {
            room.heard(id(stranger), 5);
        }
        assert!(room.words.lock().len() <= MASTERS_MAX);
        for voter in 1..=3 {
            room.heard(id(voter), voter);
            assert_eq!(room.free_bytes(id(voter)), Some(voter));
            assert_eq!(room.known_free_bytes(id(voter)), Some(voter));
        }
        room.heard(id(1), BOUNDLESS);
        assert_eq!((room.free_bytes(id(1)), room.known_free_bytes(id(1))), (Some(BOUNDLESS), None));
        assert!(room.words.lock().len() <= MASTERS_MAX);
    }

    #[tokio::test]
    async fn a_headroom_is_kept_but_only_a_part_of_a_small_disk() {
        let directory = tempfile::tempdir().unwrap();
        let workers = Environment::real().workers;
        let free_bytes =
            async |headroom_bytes| look(&[directory.path().into()], headroom_bytes, &workers).await.unwrap();
        let disk = rustix::fs::statvfs(directory.path()).unwrap();
        let (all, part) = (free_bytes(Some(0)).await, disk.f_blocks * disk.f_frsize / HEADROOM_PART);
        assert!(all > 0, "this test needs some room");
        // Others use the disk meanwhile.
        let is_near = |one: u64, other: u64| one.abs_diff(other) <= 256 << 20;
        let most = all.saturating_sub(part);
        assert!(is_near(free_bytes(Some(u64::MAX)).await, most));
        assert!(is_near(free_bytes(Some(1 << 20)).await, all.saturating_sub(1 << 20)));
        assert_eq!(free_bytes(None).await, BOUNDLESS);
        let both = [directory.path().into(), "/nowhere".into()];
        assert!(look(&both, Some(0), &workers).await.is_err(), "each of them is looked at");
    }
}
