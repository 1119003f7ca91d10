//! The faults. One is a function that breaks something, waits and mends it, and one line in [`FAULTS`].
//!
//! A family of faults is a file beside this one: more functions of [`Ring`].

mod clock;
mod deeds;
mod directory;
mod disk;
mod member;
mod net;
mod process;
mod rot;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use gfs_tests::{Cluster, Disks, Role};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::hosts::Network;
use crate::inside::Inside;
use crate::recorder::Recorder;

pub(crate) use deeds::{Deeds, STRUCK};
pub(crate) use rot::{Corruption, Fate, chunk_file};

/// A kind of fault.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it can't do without.
    pub needs: Needs,
    /// It is worse than what is promised to be survived: shows that the checks see what comes of it. Strikes by its name only.
    pub beyond_promise: bool,
    strike: Strike,
}

type Strike = for<'a> fn(&'a mut Ring<'_>) -> LocalBoxFuture<'a, Result<()>>;

const fn needing(name: &'static str, needs: Needs, strike: Strike) -> Fault {
    Fault { name, needs, beyond_promise: false, strike }
}

const fn fault(name: &'static str, strike: Strike) -> Fault {
    needing(name, Needs::Nothing, strike)
}

const fn network_fault(name: &'static str, strike: Strike) -> Fault {
    needing(name, Needs::Network, strike)
}

const fn disk_fault(name: &'static str, strike: Strike) -> Fault {
    needing(name, Needs::Disks, strike)
}

const fn chunk_fault(name: &'static str, strike: Strike) -> Fault {
    needing(name, Needs::Chunks, strike)
}

const fn inside_fault(name: &'static str, strike: Strike) -> Fault {
    needing(name, Needs::Inside, strike)
}

const fn beyond_promise(fault: Fault) -> Fault {
    Fault { beyond_promise: true, ..fault }
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
    /// Servers built with the feature `faults`.
    Inside,
    /// A workload that writes to chunks: wherever it runs.
    Chunks,
}

impl Needs {
    /// Everything that a fault may need.
    pub(crate) const ALL: [Self; 5] = [Self::Nothing, Self::Network, Self::Disks, Self::Inside, Self::Chunks];

    /// What is missing where it is not there, and what to do about it.
    pub(crate) fn missing(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Network => "hosts of their own (root, apt-get install iproute2, /dev/net/tun)".into(),
            Self::Disks => Disks::obstacle().unwrap_or_else(|| "disks of their own".into()),
            Self::Inside => "servers built with faults (make faults builds them; GFS_BIN names them)".into(),
            Self::Chunks => "a workload that writes to chunks".into(),
        }
    }
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
    chunk_fault("bit-rot", |ring| ring.rot().boxed_local()),
    inside_fault("disk-slow", |ring| ring.slow_disk().boxed_local()),
    fault("disk-lost", |ring| ring.lose_directory().boxed_local()),
    fault("disk-swapped", |ring| ring.swap_directories().boxed_local()),
    inside_fault("clock-jump", |ring| ring.jump_clock().boxed_local()),
    inside_fault("clock-drift", |ring| ring.drift_clocks().boxed_local()),
    fault("join-master", |ring| ring.join(Role::Master).boxed_local()),
    fault("join-shadow", |ring| ring.join(Role::Shadow).boxed_local()),
    fault("replace", |ring| ring.replace().boxed_local()),
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
    network_fault("cut-servers", |ring| ring.cut_from_servers().boxed_local()),
    network_fault("flap", |ring| ring.flap().boxed_local()),
    network_fault("delay", |ring| ring.delay().boxed_local()),
    network_fault("loss", |ring| ring.lose().boxed_local()),
    network_fault("reorder", |ring| ring.reorder().boxed_local()),
    network_fault("duplicate", |ring| ring.duplicate().boxed_local()),
    network_fault("corrupt", |ring| ring.corrupt().boxed_local()),
    network_fault("forge", |ring| ring.forge().boxed_local()),
    network_fault("slow", |ring| ring.slow().boxed_local()),
    beyond_promise(inside_fault("clock-beyond", |ring| ring.slow_clocks().boxed_local())),
];

const NO_INSIDE: &str = "it needs servers built with faults";
/// How long the cluster may take to have every replica again when nothing is wrong with it.
const WHOLE_PATIENCE: Duration = Duration::from_secs(60);

/// Time between two faults.
const QUIET_MS: std::ops::Range<u64> = 500..4000;

/// Where the faults strike.
pub(crate) struct Ring<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) recorder: &'a Recorder,
    /// The network between the servers, if it is ours.
    pub(crate) network: Option<Arc<Network>>,
    /// What servers look for their faults in, if they have any in them.
    pub(crate) inside: Option<Inside>,
    pub(crate) dice: StdRng,
    pub(crate) deeds: Deeds,
    /// What has rotted.
    pub(crate) corruptions: Vec<Corruption>,
    /// A server whose directory can't be started on as it is.
    pub(crate) unusable: Option<String>,
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
            self.deeds.begin(fault.name);
            (fault.strike)(self).await.with_context(|| format!("fault {}", fault.name))?;
            self.rest()?;
            self.recorder.nemesis(&format!("end {}", fault.name))?;
        }
    }

    /// The fault at work has done what it is there for.
    fn struck(&mut self) {
        self.deeds.strike();
    }

    /// No fault is at work any more; one that had begun and did not strike is told.
    fn rest(&mut self) -> Result<()> {
        match self.deeds.end() {
            Some(idle) => self.recorder.nemesis(&format!("{idle} began and did not strike")),
            None => Ok(()),
        }
    }

    async fn wait(&mut self, range: std::ops::Range<u64>) {
        let time = Duration::from_millis(self.dice.random_range(range));
        tokio::time::sleep(time).await;
    }

    fn count(&mut self, what: &str, times: u64) {
        self.deeds.count(what, times);
    }

    /// Waits until every server takes part and every chunk has its replicas.
    async fn whole(&mut self) -> Result<()> {
        self.cluster.wait_until_up().await?;
        let whole = |status: &gfs_client::ClusterStatusReply| {
            status.counted && status.chunks_below_goal == 0 && status.chunks_without_replica == 0
        };
        self.cluster.wait_for_status("every chunk has its replicas", WHOLE_PATIENCE, whole).await.map(drop)
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
        self.rest()?;
        if let Some(network) = &self.network {
            network.clear();
        }
        self.set_clocks_right()?;
        self.quicken_disks()?;
        disk::heal(self.cluster)?;
        self.empty_unusable()?;
        process::heal(self.cluster)
    }
}
