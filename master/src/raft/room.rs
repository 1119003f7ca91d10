//! Room on the masters' disks (decision 0025).
//!
//! A master whose disk is full has to stop, and all masters hold the same: their disks fill up at nearly the same time. So
//! each keeps a headroom and tells the leader how much it has beyond it, with every question for the read index, and the
//! leader refuses what makes the state grow as long as fewer voters than a majority have any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::MasterId;
use gfs_proto::time::{Clock, Moment};
use gfs_proto::work::Workers;
use gfs_proto::{Error, Result, fault};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::clock::Voters;

/// How often the own disk is looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// For how long it counts what a master said of its disk. Questions may wait for seconds.
const WORD_AGE_MAX: Duration = Duration::from_secs(10);
/// Masters whose disks are remembered; voters always are.
const WORDS_MAX: usize = 64;
/// A small disk keeps this part of itself free, not the whole headroom.
const HEADROOM_PART: u64 = 10;

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
        let mut words = self.words.lock();
        if words.len() >= WORDS_MAX && !words.contains_key(&master) {
            let voters = (self.voters)().unwrap_or_default();
            words.retain(|other, _| *other == self.id || voters.contains(other));
            if words.len() >= WORDS_MAX && master != self.id && !voters.contains(&master) {
                return;
            }
        }
        words.insert(master, word);
    }

    /// Bytes beyond the headroom on a master's disk, if it has said so lately.
    pub(super) fn free_bytes(&self, master: MasterId) -> Option<u64> {
        let word = *self.words.lock().get(&master)?;
        let young = self.clock.moment().since(word.at) <= WORD_AGE_MAX;
        // This master's disk is looked at all the time; one that takes longer to tell has not changed for the better.
        (young || master == self.id).then_some(word.free_bytes)
    }

    /// On the leader: whether the state may grow.
    ///
    /// # Errors
    /// [`Error::MastersFull`] if a voter is at its headroom and no majority is known to have room.
    pub(super) fn check(&self) -> Result<()> {
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

/// Looks at the own disk until `stop`, and tells people when it gets to its headroom and when it leaves it.
pub(super) async fn watch(
    room: Arc<Room>,
    (directory, headroom_bytes): (PathBuf, Option<u64>),
    workers: Workers,
    stop: CancellationToken,
) {
    let mut interval = tokio::time::interval(LOOK_PERIOD);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_full = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        let free_bytes = match look(&directory, headroom_bytes, &workers).await {
            Ok(free_bytes) => free_bytes,
            Err(error) => {
                tracing::warn!(%error, "how much room there is on this master's disk can't be told");
                continue;
            }
        };
        room.heard(room.id, free_bytes);
        let is_full = free_bytes == 0;
        if is_full && !was_full {
            let directory = directory.display();
            tracing::warn!(%directory, "this master's disk is nearly full: give it room, or the cluster can't grow");
        }
        if was_full && !is_full {
            tracing::info!("this master's disk has room again");
        }
        was_full = is_full;
    }
}

/// Bytes that the state may still take on the disk of this directory.
async fn look(directory: &Path, headroom_bytes: Option<u64>, workers: &Workers) -> Result<u64> {
    if fault::try_reach("raft::room::look").await.is_err() {
        return Ok(0);
    }
    let Some(headroom_bytes) = headroom_bytes else { return Ok(u64::MAX) };
    let directory = directory.to_owned();
    let look = move || rustix::fs::statvfs(&directory);
    let disk = workers.run(look).await?.map_err(Error::unavailable)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let headroom_bytes = headroom_bytes.min(bytes(disk.f_blocks) / HEADROOM_PART);
    Ok(bytes(disk.f_bavail).saturating_sub(headroom_bytes))
}
