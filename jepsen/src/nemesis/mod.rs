//! The faults. One is a function that breaks something, waits and mends it, and one line in [`FAULTS`].
//!
//! A family of faults is a file beside this one: more functions of [`Ring`].

mod process;

use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use gfs_tests::{Cluster, Role};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::recorder::Recorder;

/// A kind of fault.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    strike: for<'a> fn(&'a mut Ring<'_>) -> LocalBoxFuture<'a, Result<()>>,
}

/// Every fault.
pub const FAULTS: &[Fault] = &[
    Fault { name: "kill", strike: |ring| ring.kill(Role::Chunkserver).boxed_local() },
    Fault { name: "pause", strike: |ring| ring.pause(Role::Chunkserver).boxed_local() },
    Fault { name: "leader", strike: |ring| ring.kill_leader().boxed_local() },
    Fault { name: "leader-pause", strike: |ring| ring.pause_leader().boxed_local() },
    Fault { name: "master", strike: |ring| ring.kill(Role::Master).boxed_local() },
    Fault { name: "restart", strike: |ring| ring.restart_everything().boxed_local() },
];

/// Time between two faults.
const QUIET_MS: std::ops::Range<u64> = 500..4000;

/// Where the faults strike.
pub(crate) struct Ring<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) recorder: &'a Recorder,
    pub(crate) dice: StdRng,
}

impl Ring<'_> {
    /// Strikes one fault after the other; what it leaves broken when it is dropped is for [`heal`] to mend.
    pub(crate) async fn rage(&mut self, faults: &[&Fault]) -> Result<()> {
        loop {
            self.wait(QUIET_MS).await;
            let Some(fault) = faults.choose(&mut self.dice) else {
                return std::future::pending().await;
            };
            // The report and the load know by these lines when a fault was at work.
            self.recorder.nemesis(&format!("begin {}", fault.name))?;
            (fault.strike)(self).await.with_context(|| format!("fault {}", fault.name))?;
            self.recorder.nemesis(&format!("end {}", fault.name))?;
        }
    }

    async fn wait(&mut self, range: std::ops::Range<u64>) {
        let time = Duration::from_millis(self.dice.random_range(range));
        tokio::time::sleep(time).await;
    }

    fn any(&mut self, role: Role) -> Result<String> {
        self.cluster.names(role).choose(&mut self.dice).cloned().context("there is no such server")
    }
}

/// Mends whatever a fault has left: one line a family, processes last.
pub(crate) fn heal(cluster: &mut Cluster, recorder: &Recorder) -> Result<()> {
    recorder.nemesis("heal")?;
    process::heal(cluster)
}
