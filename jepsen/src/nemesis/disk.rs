//! Disks that lose power, fill up, die and are slow.

use anyhow::{Context, Result};
use gfs_tests::{Cluster, Role};
use rand::Rng;

use super::Ring;

/// How long the power is away, or a disk dead or full: shorter and longer than it takes others to notice.
const AWAY_MS: std::ops::Range<u64> = 100..5000;
/// How long a disk is slow, and how long it takes for one sync.
const SLOW_MS: std::ops::Range<u64> = 500..8000;
const SYNC_MS: std::ops::Range<u64> = 100..1000;
/// The fail points before the syncs of a server's disk.
const SYNCS: [&str; 5] = [
    "raft::log::before_sync",
    "store::log::before_sync",
    "store::file::before_sync",
    "store::names::before_sync",
    "store::table::before_sync",
];

impl Ring<'_> {
    /// The power of every server goes at once.
    pub(super) async fn cut_power(&mut self) -> Result<()> {
        // Else the servers see the end of their disks before their own.
        if self.dice.random() {
            self.cluster.freeze_all()?;
        }
        self.recorder.nemesis("power cut of everything")?;
        self.cluster.cut_power()?;
        self.struck();
        self.wait(0..1000).await;
        self.recorder.nemesis("start everything")?;
        self.cluster.restart_all()
    }

    /// The power of one server goes.
    pub(super) async fn cut_power_of_one(&mut self) -> Result<()> {
        let name = self.any_server()?;
        self.recorder.nemesis(&format!("power cut of {name}"))?;
        self.cluster.cut_power_of(&name)?;
        self.struck();
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("start {name}"))?;
        self.cluster.restart(&name)
    }

    /// Every access to a disk fails, and its server goes on as it may.
    pub(super) async fn kill_disk(&mut self) -> Result<()> {
        let name = self.any_server()?;
        self.recorder.nemesis(&format!("disk of {name} is dead"))?;
        self.cluster.kill_disk(&name)?;
        self.struck();
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("another start of {name}, on its disk as it was"))?;
        self.cluster.cut_power_of(&name)?;
        self.cluster.restart(&name)
    }

    /// A disk has no room left, not even for its server's own needs, or just too little for chunks.
    pub(super) async fn fill_disk(&mut self) -> Result<()> {
        let name = self.any(Role::Chunkserver)?;
        let left_bytes = if self.dice.random() { 0 } else { 256 << 20 };
        self.recorder.nemesis(&format!("disk of {name} is full but for {left_bytes} bytes"))?;
        self.cluster.fill_disk(&name, left_bytes)?;
        self.struck();
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("disk of {name} has room"))?;
        self.cluster.empty_disk(&name)
    }

    /// Every sync of a server's disk takes a while.
    pub(super) async fn slow_disk(&mut self) -> Result<()> {
        let name = self.any_server()?;
        let millis = self.dice.random_range(SYNC_MS);
        self.recorder.nemesis(&format!("each sync of {name} takes {millis} ms"))?;
        let points: String = SYNCS.iter().map(|point| format!("{point}=sleep({millis});")).collect();
        self.inside.as_ref().context(super::NO_INSIDE)?.arm(&name, &points)?;
        self.struck();
        self.wait(SLOW_MS).await;
        self.recorder.nemesis(&format!("syncs of {name} are quick"))?;
        self.inside.as_ref().context(super::NO_INSIDE)?.arm(&name, "")
    }

    /// No disk is slow.
    pub(super) fn quicken_disks(&self) -> Result<()> {
        let Some(inside) = &self.inside else { return Ok(()) };
        let names = [Role::Master, Role::Chunkserver].into_iter().flat_map(|role| self.cluster.names(role));
        names.collect::<Vec<_>>().iter().try_for_each(|name| inside.arm(name, ""))
    }
}

/// Disks have room and work; a server whose disk was dead is killed.
pub(super) fn heal(cluster: &mut Cluster) -> Result<()> {
    cluster.mend_disks()
}
