//! Servers that die, freeze and come back.

use anyhow::Result;
use gfs_tests::{Cluster, Role};
use rand::Rng;
use rand::seq::SliceRandom;

use super::Ring;

/// How long a killed server stays away: shorter and longer than it takes others to notice.
const AWAY_MS: std::ops::Range<u64> = 100..5000;
/// How long a server is paused: shorter and longer than a validation of a replica (3 s) and an election.
const PAUSE_MS: std::ops::Range<u64> = 300..7000;
/// How often a storm of restarts kills its server, and how long it lets it live.
const STORM_RESTARTS: usize = 5;
const UP_MS: std::ops::Range<u64> = 200..2000;
/// How long a starting server lives: it opens its databases and replays its logs.
const STARTING_MS: std::ops::Range<u64> = 5..300;

impl Ring<'_> {
    pub(super) async fn kill(&mut self, role: Role) -> Result<()> {
        let name = self.any(role)?;
        self.kill_named(&name).await
    }

    pub(super) async fn kill_leader(&mut self) -> Result<()> {
        let name = self.cluster.leader().await?;
        self.kill_named(&name).await
    }

    async fn kill_named(&mut self, name: &str) -> Result<()> {
        self.recorder.nemesis(&format!("kill -9 {name}"))?;
        self.cluster.kill(name)?;
        self.struck();
        self.wait(AWAY_MS).await;
        self.recorder.nemesis(&format!("start {name}"))?;
        self.cluster.restart(name)
    }

    pub(super) async fn pause(&mut self, role: Role) -> Result<()> {
        let name = self.any(role)?;
        self.pause_named(&name).await
    }

    pub(super) async fn pause_leader(&mut self) -> Result<()> {
        let name = self.cluster.leader().await?;
        self.pause_named(&name).await
    }

    async fn pause_named(&mut self, name: &str) -> Result<()> {
        self.recorder.nemesis(&format!("pause {name}"))?;
        self.cluster.pause(name)?;
        self.struck();
        self.wait(PAUSE_MS).await;
        self.recorder.nemesis(&format!("resume {name}"))?;
        self.cluster.resume(name)
    }

    /// Each server once, the next when the last takes part again: an upgrade in a hurry.
    pub(super) async fn restart_in_turn(&mut self) -> Result<()> {
        let mut names = [self.cluster.names(Role::Master), self.cluster.names(Role::Chunkserver)].concat();
        names.shuffle(&mut self.dice);
        for name in names {
            self.recorder.nemesis(&format!("rolling: kill -9 {name} and start"))?;
            self.cluster.kill(&name)?;
            self.struck();
            self.cluster.restart(&name)?;
            self.cluster.wait_until_up().await?;
        }
        Ok(())
    }

    /// One server that crashes again as soon as it is there.
    pub(super) async fn restart_again_and_again(&mut self) -> Result<()> {
        let name = self.any_server()?;
        for _ in 0..STORM_RESTARTS {
            self.recorder.nemesis(&format!("storm: kill -9 {name}"))?;
            self.cluster.kill(&name)?;
            self.struck();
            self.wait(0..200).await;
            self.recorder.nemesis(&format!("storm: start {name}"))?;
            self.cluster.restart(&name)?;
            self.wait(UP_MS).await;
        }
        Ok(())
    }

    /// One server that is killed before it has come up.
    pub(super) async fn kill_while_it_starts(&mut self) -> Result<()> {
        let name = self.any_server()?;
        self.recorder.nemesis(&format!("startup: kill -9 {name}"))?;
        self.cluster.kill(&name)?;
        for _ in 0..STORM_RESTARTS {
            self.recorder.nemesis(&format!("startup: start and kill -9 {name}"))?;
            self.cluster.restart(&name)?;
            self.wait(STARTING_MS).await;
            self.cluster.kill(&name)?;
            self.struck();
        }
        self.recorder.nemesis(&format!("startup: start {name}"))?;
        self.cluster.restart(&name)
    }

    /// A master or a chunkserver.
    pub(super) fn any_server(&mut self) -> Result<String> {
        let role = if self.dice.random() { Role::Master } else { Role::Chunkserver };
        self.any(role)
    }

    pub(super) async fn restart_everything(&mut self) -> Result<()> {
        self.recorder.nemesis("kill -9 everything")?;
        self.cluster.kill_all()?;
        self.struck();
        self.wait(0..1000).await;
        self.recorder.nemesis("start everything")?;
        self.cluster.restart_all()
    }
}

/// Every server runs.
pub(super) fn heal(cluster: &mut Cluster) -> Result<()> {
    for role in [Role::Master, Role::Chunkserver] {
        for name in cluster.names(role) {
            if cluster.process_id(&name).is_some() {
                cluster.resume(&name)?;
            }
        }
    }
    cluster.restart_all()
}
