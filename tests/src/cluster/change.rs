//! Servers that come and leave for good, and data directories that are lost or exchanged.

use std::fs;
use std::io;

use anyhow::{Context, Result, ensure};

use super::{Cluster, Role};

/// Tells a chunkserver whose directory it is.
const IDENTITY: &str = "identity";

impl Cluster {
    /// Starts one more server, which asks those that are there to be taken; returns its name.
    ///
    /// # Errors
    /// No address, no disk, or it can't be started.
    pub fn join(&mut self, role: Role) -> Result<String> {
        let known = self.servers.keys().chain(self.retired.keys());
        let numbers =
            known.filter_map(|name| name.strip_prefix(role.prefix())?.strip_prefix('-')?.parse().ok());
        let index: usize = numbers.max().unwrap_or(0);
        let (name, masters) = (role.name(index), self.masters());
        let address = self.hosts.address(&name)?;
        match role {
            Role::Master | Role::Shadow => self.add_master(role, index, address, &masters)?,
            Role::Chunkserver => self.add_chunkserver(name.clone(), address, &masters)?,
        }
        self.restart(&name)?;
        Ok(name)
    }

    /// Kills a server that shall never come back.
    ///
    /// # Errors
    /// There is no such server.
    pub fn retire(&mut self, name: &str) -> Result<()> {
        self.kill(name)?;
        let server = self.servers.remove(name).with_context(|| format!("no server {name}"))?;
        self.retired.insert(name.to_owned(), server);
        Ok(())
    }

    /// Takes everything out of the data directory of a server that does not run, or everything but the file that tells
    /// whose it is.
    ///
    /// # Errors
    /// It runs, or the disk says no.
    pub fn empty_data(&mut self, name: &str, identity_stays: bool) -> Result<()> {
        ensure!(self.process_id(name).is_none(), "{name} runs");
        let directory = self.data_of(name);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if identity_stays && entry.file_name() == IDENTITY {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Gives each of two servers that do not run the other's data directory, with its disk if it has one of its own.
    ///
    /// # Errors
    /// One runs, or the machine says no.
    pub fn swap_data(&mut self, one: &str, other: &str) -> Result<()> {
        for name in [one, other] {
            ensure!(self.process_id(name).is_none(), "{name} runs");
        }
        if let Some(disks) = &mut self.disks {
            return disks.swap(one, other);
        }
        let (first, second, aside) = (self.data_of(one), self.data_of(other), self.directory().join("aside"));
        fs::rename(&first, &aside)?;
        fs::rename(&second, &first)?;
        Ok(fs::rename(&aside, &second)?)
    }
}
