//! The faults. One is a function that breaks something, waits and mends it, and one line in [`FAULTS`].
//!
//! A family of faults is a file beside this one: more functions of [`Ring`].

mod disk;
mod net;
mod process;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use gfs_tests::{Cluster, Role};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::hosts::Network;
use crate::recorder::Recorder;

/// A kind of fault.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it can't do without.
    pub needs: Needs,
    strike: Strike,
}

type Strike = for<'a> fn(&'a mut Ring<'_>) -> LocalBoxFuture<'a, Result<()>>;

const fn fault(name: &'static str, strike: Strike) -> Fault {
    Fault { name, needs: Needs::Nothing, strike }
}

const fn network_fault(name: &'static str, strike: Strike) -> Fault {
    Fault { name, needs: Needs::Network, strike }
}

const fn disk_fault(name: &'static str, strike: Strike) -> Fault {
    Fault { name, needs: Needs::Disks, strike }
}

/// What a kind of fault can't do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing that is not always there.
    Nothing,
    /// Hosts of their own.
    Network,
    /// Disks of their own.
    Disks,
}

/// Every fault.
pub const FAULTS: &[Fault] = &[
    fault("kill", |ring| ring.kill(Role::Chunkserver).boxed_local()),
    fault("pause", |ring| ring.pause(Role::Chunkserver).boxed_local()),
    fault("leader", |ring| ring.kill_leader().boxed_local()),
    fault("leader-pause", |ring| ring.pause_leader().boxed_local()),
    fault("master", |ring| ring.kill(Role::Master).boxed_local()),
    fault("restart", |ring| ring.restart_everything().boxed_local()),
    fault("rolling", |ring| ring.restart_in_turn().boxed_local()),
    fault("storm", |ring| ring.restart_again_and_again().boxed_local()),
    fault("startup", |ring| ring.kill_while_it_starts().boxed_local()),
    disk_fault("power", |ring| ring.cut_power().boxed_local()),
    disk_fault("power-one", |ring| ring.cut_power_of_one().boxed_local()),
    disk_fault("disk-dead", |ring| ring.kill_disk().boxed_local()),
    disk_fault("disk-full", |ring| ring.fill_disk().boxed_local()),
    fault("bit-rot", |ring| ring.rot().boxed_local()),
    network_fault("cut", |ring| ring.cut(Role::Chunkserver).boxed_local()),
    network_fault("cut-leader", |ring| ring.cut_leader().boxed_local()),
    network_fault("cut-master", |ring| ring.cut(Role::Master).boxed_local()),
    network_fault("halves", |ring| ring.cut_in_two(true).boxed_local()),
    network_fault("minority", |ring| ring.cut_in_two(false).boxed_local()),
    network_fault("bridge", |ring| ring.cut_to_a_bridge().boxed_local()),
    network_fault("ring", |ring| ring.cut_to_a_ring().boxed_local()),
    network_fault("deaf", |ring| ring.cut_one_way(false).boxed_local()),
    network_fault("mute", |ring| ring.cut_one_way(true).boxed_local()),
    network_fault("cut-clients", |ring| ring.cut_clients().boxed_local()),
    network_fault("cut-data", |ring| ring.cut_data().boxed_local()),
    network_fault("cut-heartbeats", |ring| ring.cut_heartbeats().boxed_local()),
    network_fault("flap", |ring| ring.flap().boxed_local()),
    network_fault("delay", |ring| ring.delay().boxed_local()),
    network_fault("loss", |ring| ring.lose().boxed_local()),
    network_fault("reorder", |ring| ring.reorder().boxed_local()),
    network_fault("duplicate", |ring| ring.duplicate().boxed_local()),
    network_fault("corrupt", |ring| ring.corrupt().boxed_local()),
    network_fault("forge", |ring| ring.forge().boxed_local()),
    network_fault("slow", |ring| ring.slow().boxed_local()),
];

/// Time between two faults.
const QUIET_MS: std::ops::Range<u64> = 500..4000;

/// Where the faults strike.
pub(crate) struct Ring<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) recorder: &'a Recorder,
    /// The network between the servers, if it is ours.
    pub(crate) network: Option<Arc<Network>>,
    pub(crate) dice: StdRng,
}

impl Ring<'_> {
    /// Strikes one fault after the other; what it leaves broken when it is dropped is for [`Ring::heal`] to mend.
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

    fn network(&self) -> Result<Arc<Network>> {
        self.network.clone().context("it needs hosts of their own")
    }

    fn any(&mut self, role: Role) -> Result<String> {
        self.cluster.names(role).choose(&mut self.dice).cloned().context("there is no such server")
    }

    /// Mends whatever a fault has left: one line a family, processes last.
    pub(crate) fn heal(&mut self) -> Result<()> {
        self.recorder.nemesis("heal")?;
        if let Some(network) = &self.network {
            network.clear();
        }
        disk::heal(self.cluster)?;
        process::heal(self.cluster)
    }
}
