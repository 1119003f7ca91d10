//! Servers that join and leave while clients are at work, as far as that can be asked of a cluster: masters and shadows
//! join, chunkservers join and leave for good. Taking a master out, and handing the lead over, can't be asked for yet.

use anyhow::{Result, ensure};
use gfs_tests::Role;
use rand::seq::IndexedRandom;

use super::Ring;

/// Most servers of a role that joins only: each is one more process on this machine. Some clusters begin with two shadows.
const MASTERS_MAX: usize = 5;
const SHADOWS_MAX: usize = 3;

impl Ring<'_> {
    /// A server joins; it takes part when this is over.
    pub(super) async fn join(&mut self, role: Role) -> Result<()> {
        let most = if role == Role::Master { MASTERS_MAX } else { SHADOWS_MAX };
        if role != Role::Chunkserver && self.cluster.names(role).len() >= most {
            return self.recorder.nemesis("nobody joins: there are as many as there may be");
        }
        let name = self.cluster.join(role)?;
        self.recorder.nemesis(&format!("{name} joins"))?;
        // Of a replacement this is not yet half.
        if role != Role::Chunkserver {
            self.struck();
        }
        self.cluster.wait_until_up().await?;
        self.count("joins", 1);
        self.recorder.nemesis(&format!("{name} takes part"))
    }

    /// A chunkserver joins, and another one, not the one whose disk rots, leaves without a word and for good.
    pub(super) async fn replace(&mut self) -> Result<()> {
        self.join(Role::Chunkserver).await?;
        // What it leaves must have its other copies.
        self.whole().await?;
        let names = self.cluster.names(Role::Chunkserver);
        ensure!(names.len() > 1, "there is no other chunkserver");
        let Some(name) = names[1..].choose(&mut self.dice).cloned() else { return Ok(()) };
        self.recorder.nemesis(&format!("{name} leaves for good"))?;
        self.cluster.retire(&name)?;
        self.count("leaves", 1);
        self.struck();
        self.whole().await
    }
}
