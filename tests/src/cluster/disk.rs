//! What can happen to the disks of a cluster that has some ([`Shape::disk_bytes`](super::Shape::disk_bytes)).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use super::Cluster;
use crate::disks::Disks;

/// Takes room on a disk, beside the server's data.
const FILLER: &str = "filler";
/// Smallest piece of room that is taken: a block.
const PIECE_BYTES_MIN: u64 = 4096;
const NO_DISKS: &str = "the servers have no disks of their own";

/// Bytes that can be taken from a disk so that so many are left.
fn room(directory: &Path, left_bytes: u64) -> Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(left_bytes))
}

impl Cluster {
    /// Whether the servers have disks of their own.
    pub fn has_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// The directory of a server's disk, above its data.
    ///
    /// # Errors
    /// It has no disk of its own.
    pub fn disk_of(&self, name: &str) -> Result<PathBuf> {
        Ok(self.disks.as_ref().context(NO_DISKS)?.path(name))
    }

    /// Stops every server where it stands (SIGSTOP), so that none of them sees the end of its disk.
    ///
    /// # Errors
    /// One can't be stopped.
    pub fn freeze_all(&mut self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Cuts the power of all servers at once and gives it back: every process is gone, and what was not synced with it.
    /// The servers are to be started again.
    ///
    /// # Errors
    /// They have no disks of their own, or the machine says no.
    pub fn cut_power(&mut self) -> Result<()> {
        let names: Vec<String> = self.servers.keys().cloned().collect();
        names.iter().try_for_each(|name| self.kill_disk(name))?;
        self.kill_all()?;
        names.iter().try_for_each(|name| self.power_up(name))
    }

    /// Cuts the power of one server and gives it back. The server is to be started again.
    ///
    /// # Errors
    /// It has no disk of its own, or the machine says no.
    pub fn cut_power_of(&mut self, name: &str) -> Result<()> {
        self.kill_disk(name)?;
        self.kill(name)?;
        self.power_up(name)
    }

    /// Lets a server's disk die under it: every access fails. [`Cluster::cut_power_of`] brings it back.
    ///
    /// # Errors
    /// It has no disk of its own, or the machine says no.
    pub fn kill_disk(&mut self, name: &str) -> Result<()> {
        self.excuse(name)?;
        self.own_disks()?.shut_down(name)
    }

    /// Takes all room of a server's disk but so many bytes.
    ///
    /// # Errors
    /// It has no disk of its own, or the machine says no.
    pub fn fill_disk(&mut self, name: &str, left_bytes: u64) -> Result<()> {
        self.excuse(name)?;
        self.empty_disk(name)?;
        let directory = self.disk_of(name)?;
        let file = std::fs::File::create_new(directory.join(FILLER))?;
        let mut taken = 0;
        let mut piece = room(&directory, left_bytes)?;
        // The disk needs some room for itself, and the server goes on taking some.
        while piece >= PIECE_BYTES_MIN {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), taken, piece) {
                Ok(()) => taken += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error.into()),
            }
            piece = piece.min(room(&directory, left_bytes)?);
        }
        Ok(())
    }

    /// Gives back what [`Cluster::fill_disk`] took.
    ///
    /// # Errors
    /// It has no disk of its own, or the machine says no.
    pub fn empty_disk(&mut self, name: &str) -> Result<()> {
        match std::fs::remove_file(self.disk_of(name)?.join(FILLER)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Brings back disks that are dead, which kills their servers, and gives full ones room.
    ///
    /// # Errors
    /// The machine says no.
    pub fn mend_disks(&mut self) -> Result<()> {
        let Some(disks) = &self.disks else { return Ok(()) };
        let dead = disks.dead();
        dead.iter().try_for_each(|name| self.cut_power_of(name))?;
        let names: Vec<String> = self.servers.keys().cloned().collect();
        names.iter().try_for_each(|name| self.empty_disk(name))
    }

    fn power_up(&mut self, name: &str) -> Result<()> {
        let disks = self.own_disks()?;
        disks.boot(name)?;
        disks.remount(name)
    }

    fn own_disks(&mut self) -> Result<&mut Disks> {
        self.disks.as_mut().context(NO_DISKS)
    }
}
