//! Disks that lose power, fill up, die and rot.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gfs_tests::{Cluster, Role};
use rand::Rng;
use rand::seq::IteratorRandom;

use super::Ring;

/// How long the power is away, or a disk dead or full: shorter and longer than it takes others to notice.
const AWAY_MS: std::ops::Range<u64> = 100..5000;
/// Time between two spots that rot, and how many there are.
const ROT_MS: std::ops::Range<u64> = 50..600;
const SPOTS: std::ops::Range<u32> = 1..12;
/// Bytes that become zeros at a time: a page.
const ZEROED_BYTES: u64 = 4096;

impl Ring<'_> {
    /// The power of every server goes at once.
    pub(super) async fn cut_power(&mut self) -> Result<()> {
        // Else the servers see the end of their disks before their own.
        if self.dice.random() {
            self.cluster.freeze_all()?;
        }
        self.recorder.nemesis("power cut of everything")?;
        self.cluster.cut_power()?;
        self.wait(0..1000).await;
        self.recorder.nemesis("start everything")?;
        self.cluster.restart_all()
    }

    /// The power of one server goes.
    pub(super) async fn cut_power_of_one(&mut self) -> Result<()> {
        let name = self.any_server()?;
        self.recorder.nemesis(&format!("power cut of {name}"))?;
        self.cluster.cut_power_of(&name)?;
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("start {name}"))?;
        self.cluster.restart(&name)
    }

    /// Every access to a disk fails, and its server goes on as it may.
    pub(super) async fn kill_disk(&mut self) -> Result<()> {
        let name = self.any_server()?;
        self.recorder.nemesis(&format!("disk of {name} is dead"))?;
        self.cluster.kill_disk(&name)?;
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
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("disk of {name} has room"))?;
        self.cluster.empty_disk(&name)
    }

    /// Bits flip, pages become zeros and ends are lost in chunk files of a running server. It is always the same one, so that
    /// there is a good copy of everything.
    pub(super) async fn rot(&mut self) -> Result<()> {
        let name =
            self.cluster.names(Role::Chunkserver).first().cloned().context("there is no such server")?;
        for _ in 0..self.dice.random_range(SPOTS) {
            let Some(path) = self.any_chunk_file(&name)? else { return Ok(()) };
            // It may be gone by now.
            if let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) {
                let done = self.spoil(&file)?;
                self.recorder.nemesis(&format!("{done} in {}", path.display()))?;
            }
            self.wait(ROT_MS).await;
        }
        Ok(())
    }

    fn spoil(&mut self, file: &File) -> Result<&'static str> {
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok("nothing");
        }
        let at = self.dice.random_range(0..length);
        match self.dice.random_range(0..4) {
            0 => {
                let zeros = usize::try_from(ZEROED_BYTES.min(length - at))?;
                file.write_all_at(&vec![0; zeros], at)?;
                Ok("zeros")
            }
            1 => {
                file.set_len(at)?;
                Ok("an end")
            }
            _ => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << self.dice.random_range(0..8);
                file.write_all_at(&byte, at)?;
                Ok("a flipped bit")
            }
        }
    }

    fn any_chunk_file(&mut self, server: &str) -> Result<Option<PathBuf>> {
        let files = fs::read_dir(self.cluster.data_of(server).join("chunks"))?;
        Ok(files.filter_map(|entry| Some(entry.ok()?.path())).choose(&mut self.dice))
    }
}

/// Disks have room and work; a server whose disk was dead is killed.
pub(super) fn heal(cluster: &mut Cluster) -> Result<()> {
    cluster.mend_disks()
}
