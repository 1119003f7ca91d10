//! The cluster of a sweep: servers with fail points in them, told by a file each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use gfs_proto::fault::{self, Count};
use gfs_tests::{Cluster, Loopback, Role, Shape};
use rand::seq::IndexedRandom;

use crate::inside::Inside;

/// Constants that are smaller than in earnest: a short run comes to a checkpoint of the masters, to one that is sent to a
/// master that was away, to a full log of a chunkserver, to leases that are extended and sessions that end.
const TUNED: &str = "checkpoint_every=100,log_keep=30,segment_bytes=524288,extend_below_ms=59000,session_s=5";
/// How long a master is away that is to need a checkpoint.
const ABSENCE: Duration = Duration::from_millis(2500);
/// How long a chunkserver is silent that is to be left out: masters speak of its absence after 3 s.
const SILENCE: Duration = Duration::from_millis(3500);
/// How long until servers have read what they are told.
const TOLD: Duration = Duration::from_millis(100);
/// What a secondary is told that is to be behind: it waits until its primary is lost and missed, which takes 3 s.
const SLOW: &str = "replica::apply_received=sleep(4500)*20";
/// How long mutations pile up before it.
const PILED_UP: Duration = Duration::from_millis(400);
/// How long the leader takes commands that nobody follows.
const UNHEARD: Duration = Duration::from_millis(300);

/// What leads to a fail point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Provocation {
    /// The load.
    None,
    /// A chunkserver starts, perhaps with an emptied directory.
    Start { emptied: bool },
    /// A chunkserver is lost: those who are left get new grants, and a copy.
    Loss,
    /// The leader is lost for a moment.
    Election,
    /// A follower is away until it needs a checkpoint.
    Absence,
    /// A primary is lost while one secondary has not yet applied what the other has: it is behind at the next grant.
    Behind,
    /// A chunkserver is silent until others have grants without it, and goes on.
    Silence,
    /// The leader is lost while its log has entries that nobody else has, and comes back when there is another.
    Overwrite,
}

/// What leads to the fail points whose names begin like this; the first that fits.
const PROVOCATIONS: [(&str, Provocation); 27] = [
    ("store::identity", Provocation::Start { emptied: true }),
    ("store::segment", Provocation::Start { emptied: true }),
    ("store::recover", Provocation::Start { emptied: false }),
    ("store::table", Provocation::Start { emptied: false }),
    ("heartbeat::before_register", Provocation::Start { emptied: false }),
    ("heartbeat::registered", Provocation::Start { emptied: false }),
    ("registry::registered", Provocation::Start { emptied: false }),
    ("reconcile", Provocation::Loss),
    ("store::adopt::before_sync", Provocation::Behind),
    ("store::adopt", Provocation::Loss),
    ("store::version", Provocation::Loss),
    ("store::emptied", Provocation::Loss),
    ("grant::before_exclude", Provocation::Silence),
    ("grant", Provocation::Loss),
    ("replica::excluded", Provocation::Silence),
    ("replica::fetch", Provocation::Loss),
    ("replica::before_outcome", Provocation::Loss),
    ("replica::before_activate", Provocation::Loss),
    ("raft::log::before_vote", Provocation::Election),
    ("raft::log::vote_saved", Provocation::Election),
    ("raft::log::before_truncate", Provocation::Overwrite),
    ("raft::rpc::vote_received", Provocation::Election),
    ("raft::rpc::before_vote_reply", Provocation::Election),
    ("raft::install", Provocation::Absence),
    ("raft::transfer", Provocation::Absence),
    ("raft::checkpoint::renamed", Provocation::Absence),
    ("raft::rpc::before_install_reply", Provocation::Absence),
];

impl Provocation {
    fn of(point: &str) -> Self {
        let known = PROVOCATIONS.iter().find(|(start, _)| point.starts_with(start));
        known.map_or(Self::None, |(_, provocation)| *provocation)
    }
}

/// The cluster and its fail points.
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    /// The files by which servers are told, and in which they tell their counts.
    faults: Inside,
    kept: PathBuf,
}

impl Stage {
    pub(super) async fn start() -> Result<Self> {
        let faults = Inside::new()?;
        let hosts = faults.hosts(Arc::new(Loopback), TUNED);
        let trash = Duration::from_millis(500);
        let shape = Shape { masters: 3, chunkservers: 4, trash, ..Shape::default() };
        let mut cluster = Cluster::start_on(shape, hosts).await?;
        // Panics are told; errors and ends are the echo of the faults.
        cluster.judge_elsewhere();
        cluster.expect_ends();
        let kept = cluster.keep();
        Ok(Self { cluster, faults, kept })
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.kept.clone()
    }

    fn role(point: &str) -> Role {
        match point.split("::").next() {
            Some("raft" | "grant" | "leader" | "registry") => Role::Master,
            _ => Role::Chunkserver,
        }
    }

    /// The server that gets the fault first.
    pub(super) async fn victim(&self, point: &str) -> Result<String> {
        let role = Self::role(point);
        if Provocation::of(point) == (Provocation::Start { emptied: true }) {
            // Always the same one: masters may still count on what the last one had that was emptied.
            return self.cluster.names(role).pop().context("no server");
        }
        if role == Role::Chunkserver {
            return self.cluster.names(role).choose(&mut rand::rng()).cloned().context("no server");
        }
        let leader = self.cluster.leader().await?;
        let follows = [
            "raft::rpc",
            "raft::install",
            "raft::transfer::received",
            "raft::log::before_vote",
            "raft::log::vote_saved",
        ];
        if follows.iter().any(|part| point.starts_with(part)) {
            return self.cluster.names(role).into_iter().find(|name| *name != leader).context("no follower");
        }
        Ok(leader)
    }

    /// Tells one server, or all of the kind, or the clients of this process, what the fail point does.
    pub(super) fn arm(&self, line: &str, victim: Option<&str>) -> Result<()> {
        if line.starts_with("client::") {
            return Ok(fault::arm(line)?);
        }
        match victim {
            Some(name) => self.faults.arm(name, line),
            None => {
                self.cluster.names(Self::role(line)).iter().try_for_each(|name| self.faults.arm(name, line))
            }
        }
    }

    /// No server and no client has a fault any more.
    pub(super) fn disarm(&self) -> Result<()> {
        fault::arm("")?;
        self.names().iter().try_for_each(|name| self.faults.arm(name, ""))
    }

    fn names(&self) -> Vec<String> {
        [Role::Master, Role::Chunkserver].into_iter().flat_map(|role| self.cluster.names(role)).collect()
    }

    /// How often a fail point was passed and struck so far, in all servers that lived here, and in this process.
    pub(super) fn count(&self, point: &str) -> Count {
        let mut sum = fault::counts().get(point).copied().unwrap_or_default();
        for name in self.names() {
            let here = self.count_in(&name, point, |_| true);
            sum = Count { passed: sum.passed + here.passed, struck: sum.struck + here.struck };
        }
        sum
    }

    /// The same in one server, in those of its processes that are asked for.
    fn count_in(&self, name: &str, point: &str, wanted: impl Fn(u32) -> bool) -> Count {
        let mut sum = Count::default();
        let files = std::fs::read_dir(self.faults.directory()).into_iter().flatten().flatten();
        // One for each process that lived: `name.PID`.
        let is_count = |file: &str| {
            file.rsplit_once('.').is_some_and(|(server, id)| server == name && id.parse().is_ok_and(&wanted))
        };
        for file in files.filter(|file| file.file_name().to_str().is_some_and(is_count)) {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            for line in text.lines() {
                let mut words = line.split(' ');
                if words.next() == Some(point) {
                    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
                    sum.passed += number();
                    sum.struck += number();
                }
            }
        }
        sum
    }

    /// Does what makes servers pass a fail point that load alone does not lead to. A server that is to come back is
    /// returned, and after how long. `line` is what the victim was told.
    pub(super) async fn provoke(
        &mut self,
        point: &str,
        victim: &str,
        line: &str,
    ) -> Result<Option<(String, Duration)>> {
        match Provocation::of(point) {
            Provocation::None => Ok(None),
            Provocation::Start { emptied } => {
                let name = self.chunkserver(point, victim)?;
                self.cluster.kill(&name)?;
                if emptied {
                    std::fs::remove_dir_all(self.cluster.data_of(&name))?;
                }
                self.cluster.restart(&name)?;
                Ok(None)
            }
            Provocation::Loss => {
                let name = self.other(Role::Chunkserver, victim)?;
                self.cluster.kill(&name)?;
                Ok(None)
            }
            Provocation::Election => {
                let leader = self.cluster.leader().await?;
                self.cluster.kill(&leader)?;
                self.cluster.restart(&leader)?;
                Ok(None)
            }
            Provocation::Absence => {
                let leader = self.cluster.leader().await?;
                let name = self.other(Role::Master, &leader)?;
                self.cluster.kill(&name)?;
                Ok(Some((name, ABSENCE)))
            }
            Provocation::Behind => {
                self.arm(&format!("{line};{SLOW}"), Some(victim))?;
                tokio::time::sleep(PILED_UP).await;
                let name = self.other(Role::Chunkserver, victim)?;
                self.cluster.kill(&name)?;
                Ok(None)
            }
            Provocation::Silence => {
                let name = self.chunkserver(point, victim)?;
                // It has to know of the fault by then.
                tokio::time::sleep(TOLD).await;
                // It may have been struck already, by what was still on its way from before.
                Ok(self.cluster.pause(&name).is_ok().then_some((name, SILENCE)))
            }
            Provocation::Overwrite => {
                let followers: Vec<String> =
                    self.cluster.names(Role::Master).into_iter().filter(|name| name != victim).collect();
                // Not paused: what has arrived already would be read later.
                for name in &followers {
                    self.cluster.kill(name)?;
                }
                tokio::time::sleep(UNHEARD).await;
                self.cluster.kill(victim)?;
                for name in &followers {
                    self.cluster.restart(name)?;
                }
                // Before there is another it would lead again, with what it has.
                self.cluster.leader().await?;
                self.cluster.restart(victim)?;
                Ok(None)
            }
        }
    }

    /// Ends the absence of a server.
    pub(super) fn bring_back(&mut self, name: &str) -> Result<()> {
        match self.cluster.process_id(name) {
            Some(_) => self.cluster.resume(name),
            None => self.cluster.restart(name),
        }
    }

    /// The victim if it is a chunkserver, else any.
    fn chunkserver(&self, point: &str, victim: &str) -> Result<String> {
        if Self::role(point) == Role::Chunkserver {
            return Ok(victim.to_owned());
        }
        self.other(Role::Chunkserver, victim)
    }

    fn other(&self, role: Role, victim: &str) -> Result<String> {
        let others: Vec<String> =
            self.cluster.names(role).into_iter().filter(|name| name != victim).collect();
        others.choose(&mut rand::rng()).cloned().context("there is no other server")
    }

    /// Kills the chunkservers in which a fail point struck: a disk that failed is trusted again by a new process only.
    pub(super) fn bury(&mut self, point: &str) -> Result<()> {
        for name in self.cluster.names(Role::Chunkserver) {
            let lives = self.cluster.process_id(&name);
            if self.count_in(&name, point, |id| Some(id) == lives).struck > 0 {
                self.cluster.kill(&name)?;
            }
        }
        Ok(())
    }

    /// Starts every server that died.
    pub(super) fn revive(&mut self) -> Result<()> {
        let dead: BTreeSet<String> = self
            .names()
            .into_iter()
            .filter(|name| self.cluster.process_id(name).is_some_and(is_dead))
            .collect();
        for name in &dead {
            // Takes note of its end.
            self.cluster.kill(name)?;
        }
        self.cluster.restart_all()
    }
}

/// Whether a child has ended and nobody has taken note of it.
fn is_dead(id: u32) -> bool {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z') || rest.is_empty())
}
