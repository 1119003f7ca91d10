//! Data directories of chunkservers that are lost, or exchanged.

use anyhow::{Context, Result, ensure};
use gfs_tests::{Role, eventually};
use rand::Rng;
use rand::seq::IteratorRandom;

use super::{Ring, WHOLE_PATIENCE};

/// How long a server without its directory stays away.
const AWAY_MS: std::ops::Range<u64> = 0..3000;
/// How long clients work with exchanged directories.
const SWAPPED_MS: std::ops::Range<u64> = 500..4000;
/// What a server says whose directory was emptied, but not of its identity.
const REFUSAL: &str = "emptied: it has an identity and nothing else";

impl Ring<'_> {
    /// A chunkserver comes back with nothing: as a new server, and the cluster makes its replicas anew. If only its
    /// identity is left, it refuses to be that server without its chunks.
    pub(super) async fn lose_directory(&mut self) -> Result<()> {
        // What is lost with the directory must have its other copies.
        self.whole().await?;
        let name = self.any(Role::Chunkserver)?;
        self.unusable = Some(name.clone());
        let identity_stays = self.dice.random();
        let what = if identity_stays { "all but its identity" } else { "everything" };
        self.recorder.nemesis(&format!("kill -9 {name}, and {what} in its directory is lost"))?;
        self.cluster.kill(&name)?;
        self.cluster.empty_data(&name, identity_stays)?;
        self.struck();
        self.wait(AWAY_MS).await;
        if identity_stays {
            // Also if nobody is left to wait for its end: the run may be over before.
            self.cluster.restart_to_refuse(&name)?;
            let (code, log) = self.cluster.wait_for_end(&name).await?;
            ensure!(
                code.is_some_and(|code| code != 0) && log.contains(REFUSAL),
                "{name} started on an emptied directory: {code:?}: {log}"
            );
            self.recorder.nemesis(&format!("{name} has refused its emptied directory"))?;
            self.count("refusals", 1);
            self.cluster.empty_data(&name, false)?;
        }
        self.unusable = None;
        self.recorder.nemesis(&format!("start {name}"))?;
        let before = self.id_of(&name).await?;
        self.cluster.restart(&name)?;
        // The masters believe in the old one until they miss its heartbeats, or hear of the new one.
        eventually("what comes back without chunks is another server", WHOLE_PATIENCE, async || {
            let after = self.id_of(&name).await?;
            ensure!(before != after, "{name} was {before:?} and had chunks, is {after:?} and has none");
            Ok(())
        })
        .await?;
        self.whole().await?;
        self.recorder.nemesis(&format!("{name} is another server, and every chunk has its replicas"))
    }

    /// Two chunkservers come back with each other's directory, and each is what its directory says; then they get
    /// their own again.
    pub(super) async fn swap_directories(&mut self) -> Result<()> {
        let names = self.cluster.names(Role::Chunkserver).into_iter().choose_multiple(&mut self.dice, 2);
        let [one, other] = &names[..] else { return Ok(()) };
        for time in ["exchanged", "back"] {
            let before = (self.id_of(one).await?, self.id_of(other).await?);
            self.recorder.nemesis(&format!("kill -9 {one} and {other}; their directories are {time}"))?;
            self.cluster.kill(one)?;
            self.cluster.kill(other)?;
            self.cluster.swap_data(one, other)?;
            self.struck();
            self.cluster.restart(one)?;
            self.cluster.restart(other)?;
            self.cluster.wait_until_up().await?;
            eventually("each is what its directory says", WHOLE_PATIENCE, async || {
                let after = (self.id_of(other).await?, self.id_of(one).await?);
                ensure!(before == after, "{one} and {other} were {before:?} and are {after:?}");
                Ok(())
            })
            .await?;
            self.recorder.nemesis(&format!("{one} and {other} are what their directories say"))?;
            self.wait(SWAPPED_MS).await;
        }
        Ok(())
    }

    /// The id of the server that is alive at a server's address, or was last.
    async fn id_of(&self, name: &str) -> Result<Option<u64>> {
        let address = self.cluster.address_of(name).with_context(|| format!("no server {name}"))?;
        let status = self.cluster.status().await?;
        let here = status.servers.iter().filter(|server| server.address == address);
        Ok(here.min_by_key(|server| (!server.alive, server.last_heartbeat_ms)).map(|server| server.id))
    }

    /// Empties a directory that nobody can be started on.
    pub(super) fn empty_unusable(&mut self) -> Result<()> {
        let Some(name) = self.unusable.take() else { return Ok(()) };
        // Also if it has ended by itself.
        self.cluster.kill(&name)?;
        self.cluster.empty_data(&name, false)
    }
}
