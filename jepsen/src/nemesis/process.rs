//! Servers that die, freeze and come back.

use anyhow::Result;
use gfs_tests::{Cluster, Role};

use super::Ring;

/// How long a killed server stays away: shorter and longer than it takes others to notice.
const AWAY_MS: std::ops::Range<u64> = 100..5000;
/// How long a server is paused: shorter and longer than a validation of a replica (3 s) and an election.
const PAUSE_MS: std::ops::Range<u64> = 300..7000;

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
        self.wait(PAUSE_MS).await;
        self.recorder.nemesis(&format!("resume {name}"))?;
        self.cluster.resume(name)
    }

    pub(super) async fn restart_everything(&mut self) -> Result<()> {
        self.recorder.nemesis("kill -9 everything")?;
        self.cluster.kill_all()?;
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
