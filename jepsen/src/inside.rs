//! Faults inside the servers: those built with the feature `faults` (decision 0016) look again and again for what is
//! wrong with them in files, which lie here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use anyhow::Result;
use gfs_tests::{Hosts, name_of_this_process, remove_leftovers};

/// Names of the directories in which they lie.
const PREFIX: &str = "gfs-faults-";

/// How wrong a server's clock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Skew {
    /// How far its wall clock is off.
    pub(crate) wall_ms: i64,
    /// How much faster than real time both its clocks run, in parts per million.
    pub(crate) rate_ppm: i64,
}

/// The files of one cluster. They go when this is dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    directory: tempfile::TempDir,
    /// Clocks that are wrong.
    skews: BTreeMap<String, Skew>,
}

/// Starts servers that look for their faults in files.
#[derive(Debug)]
struct Told {
    hosts: Arc<dyn Hosts>,
    directory: PathBuf,
    tuned: &'static str,
}

impl Hosts for Told {
    fn address(&self, name: &str) -> Result<String> {
        self.hosts.address(name)
    }
    fn spawn(&self, name: &str, command: &mut Command) -> Result<Child> {
        command
            .env("GFS_FAILPOINTS_FILE", self.directory.join(name))
            .env("GFS_CLOCK_FILE", clock_file(&self.directory, name))
            .env("GFS_TUNED", self.tuned);
        self.hosts.spawn(name, command)
    }
}

fn clock_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.clock"))
}

impl Inside {
    pub(crate) fn new() -> Result<Self> {
        remove_leftovers(&std::env::temp_dir(), PREFIX)?;
        let directory = tempfile::Builder::new().prefix(&name_of_this_process(PREFIX)).tempdir()?;
        Ok(Self { directory, skews: BTreeMap::new() })
    }

    /// Where the files lie; servers write down beside them how often their fail points were passed.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// These hosts, on which servers look for their faults, and have these constants tuned.
    pub(crate) fn hosts(&self, hosts: Arc<dyn Hosts>, tuned: &'static str) -> Arc<dyn Hosts> {
        Arc::new(Told { hosts, directory: self.directory().to_owned(), tuned })
    }

    /// Tells a server what its fail points do; nothing: none does anything.
    pub(crate) fn arm(&self, name: &str, text: &str) -> Result<()> {
        write(&self.directory().join(name), text)
    }

    /// How wrong a server's clock is.
    pub(crate) fn skew(&self, name: &str) -> Skew {
        self.skews.get(name).copied().unwrap_or_default()
    }

    /// Sets a server's clock wrong, or right again.
    pub(crate) fn set_clock(&mut self, name: &str, skew: Skew) -> Result<()> {
        self.skews.insert(name.to_owned(), skew);
        let Skew { wall_ms, rate_ppm } = skew;
        write(&clock_file(self.directory(), name), &format!("wall_ms={wall_ms} rate_ppm={rate_ppm}"))
    }
}

/// In one step: a server that reads half a line would complain.
fn write(path: &Path, text: &str) -> Result<()> {
    let aside = path.with_extension("aside");
    std::fs::write(&aside, text)?;
    Ok(std::fs::rename(aside, path)?)
}
