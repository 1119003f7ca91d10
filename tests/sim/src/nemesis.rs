//! Faults: what happens to the hosts, their network, clocks and disks, as the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use gfs_chunkserver::store::Store;
use gfs_chunkserver::store::files::Files;
use gfs_master::state::read;
use gfs_proto::fault;
use gfs_proto::id::ChunkHandle;
use gfs_proto::random::SeededRandom;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use crate::clients::Phase;
use crate::doors;
use crate::hosts::{DISK_BYTES, Role, Server, Servers};
use crate::plan::Plan;
use crate::points::Points;
use crate::trace::Trace;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// Messages between two groups are lost.
    Cut,
    /// Messages from one group to another are lost, not those back.
    OneWay,
    /// Two halves that only one host can talk to.
    Bridge,
    /// Messages between two groups wait, and come all at once.
    Hold,
    /// Messages between two groups are slow.
    Delay,
    /// Some servers' processes die.
    Kill,
    /// Some servers lose power.
    PowerCut,
    /// All servers lose power.
    Blackout,
    /// Clocks run at rates of their own and jump.
    Clock,
    /// A chunkserver's disks are full.
    DiskFull,
    /// A chunkserver's disks fail to sync.
    DiskError,
    /// A bit of a chunk flips, always on the same server.
    BitRot,
    /// A server's disks are slow.
    SlowDisk,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::Cut,
        Self::OneWay,
        Self::Bridge,
        Self::Hold,
        Self::Delay,
        Self::Kill,
        Self::PowerCut,
        Self::Blackout,
        Self::Clock,
        Self::DiskFull,
        Self::DiskError,
        Self::BitRot,
        Self::SlowDisk,
    ];
}

/// What is to be done later.
enum Later {
    MendNetwork,
    Restart(Rc<Server>),
    MendDisk(Rc<Server>),
    QuickDisk(Rc<Server>),
}

pub(crate) struct Nemesis {
    dice: StdRng,
    random: SeededRandom,
    plan: Rc<Plan>,
    servers: Servers,
    /// Servers and clients.
    hosts: Vec<String>,
    trace: Trace,
    next: Duration,
    later: Vec<(Duration, Later)>,
    network_is_ill: bool,
    /// Messages may have been lost since it was mended.
    lossy: bool,
    down: BTreeSet<String>,
    ill_disk: Option<String>,
    /// Faults so far.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Servers that ended by themselves, and why.
    pub(crate) exits: Vec<(Role, String)>,
    points: Points,
    /// When the next fail points are armed.
    next_points: Option<Duration>,
}

impl Nemesis {
    pub(crate) fn new(plan: &Rc<Plan>, servers: &Servers, clients: &[String], trace: &Trace) -> Self {
        let hosts = servers.all.keys().chain(clients).cloned().collect();
        let mut points = Points::new(plan.seed);
        let early = plan.points.is_some() && points.are_early();
        Self {
            dice: StdRng::seed_from_u64(plan.seed ^ 0xBAD),
            random: SeededRandom::new(plan.seed ^ 0x0D15_C0FF),
            plan: plan.clone(),
            servers: servers.clone(),
            hosts,
            trace: trace.clone(),
            next: Duration::ZERO,
            later: Vec::new(),
            network_is_ill: false,
            lossy: false,
            down: BTreeSet::new(),
            ill_disk: None,
            counts: BTreeMap::new(),
            exits: Vec::new(),
            points,
            next_points: early.then_some(Duration::ZERO),
        }
    }

    fn say(&self, sim: &Sim<'_>, what: &str) {
        self.trace.note(&format!("{:.3} nemesis: {what}", sim.elapsed().as_secs_f64()));
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.dice.random_range(range))
    }

    /// Before any host begins.
    pub(crate) fn begin(&mut self, sim: &Sim<'_>) -> Result<()> {
        for armed in self.points.focus(&self.servers, &self.plan)? {
            self.say(sim, &format!("arms {armed}"));
        }
        Ok(())
    }

    /// What is due at this moment; new faults only while the clients work.
    pub(crate) fn act(&mut self, sim: &mut Sim<'_>, phase: Phase) -> Result<()> {
        let now = sim.elapsed();
        let raging = phase == Phase::Rage;
        self.bury(sim)?;
        let (due, rest) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
        self.later = rest;
        for (_, later) in due {
            self.mend(sim, later)?;
        }
        self.bring_back(sim)?;
        if raging && now >= self.next && !self.plan.faults.is_empty() {
            if self.next > Duration::ZERO {
                self.strike(sim)?;
            }
            let mean = u64::try_from(self.plan.pause.as_millis()).unwrap_or(1000);
            self.next = now + self.millis(mean / 4..mean * 2);
        }
        if phase <= Phase::Rage
            && let Some(mean) = self.plan.points
        {
            self.arm_points(sim, raging, mean)?;
        }
        Ok(())
    }

    /// Arms fail points if it is time; before the clients work only those of servers, once.
    fn arm_points(&mut self, sim: &Sim<'_>, raging: bool, mean: Duration) -> Result<()> {
        let now = sim.elapsed();
        if raging && self.next_points.is_none() {
            self.next_points = Some(now + self.points.pause(mean));
        }
        if self.next_points.is_none_or(|next| now < next) {
            return Ok(());
        }
        self.next_points = raging.then(|| now + self.points.pause(mean));
        let clients = if raging { self.plan.client_hosts as u64 } else { 0 };
        let up = self.up();
        let armed = self.points.arm(&up, clients)?;
        self.say(sim, &format!("arms {armed}"));
        Ok(())
    }

    /// Servers that died at a fail point are dead, for a while; some of them lost power there.
    fn bury(&mut self, sim: &mut Sim<'_>) -> Result<()> {
        while let Some(server) = self.servers.find(|server| server.died.borrow().is_some()) {
            let Some(died) = server.died.take() else { continue };
            let point = died?;
            let power_cut = self.dice.random_bool(0.5);
            let lasts = self.down_time();
            self.say(sim, &format!("{} died at {point} for {lasts:?}", server.name));
            *self.counts.entry("FailPoint".to_owned()).or_default() += 1;
            self.crash(sim, &server, power_cut)?;
            self.later.push((sim.elapsed() + lasts, Later::Restart(server)));
        }
        Ok(())
    }

    /// How long a server stays dead.
    fn down_time(&mut self) -> Duration {
        if self.dice.random_bool(0.3) { self.millis(2000..15_000) } else { self.millis(10..2000) }
    }

    /// A disk that failed by a fail point gets mended by a restart, as one that failed by itself.
    pub(crate) fn look_at_disks(&mut self, sim: &Sim<'_>) {
        if self.plan.points.is_none() {
            return;
        }
        for server in self.up() {
            let failed = |store: &Store| store.disks().iter().any(|disk| disk.failure.is_some());
            let waits = |later: &(Duration, Later)| matches!(&later.1, Later::MendDisk(other) if Rc::ptr_eq(other, &server));
            if server.store.borrow().as_ref().is_some_and(failed) && !self.later.iter().any(waits) {
                let lasts = self.down_time();
                self.say(sim, &format!("a disk of {} failed, for {lasts:?}", server.name));
                self.later.push((sim.elapsed() + lasts, Later::MendDisk(server)));
            }
        }
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) -> Result<()> {
        self.say(sim, "heal");
        if self.plan.points.is_some() {
            fault::arm("")?;
            self.look_at_disks(sim);
        }
        for (_, later) in std::mem::take(&mut self.later) {
            self.mend(sim, later)?;
        }
        self.mend(sim, Later::MendNetwork)
    }

    /// Servers that ended by themselves are started again, as a supervisor would.
    fn bring_back(&mut self, sim: &mut Sim<'_>) -> Result<()> {
        while let Some(server) = self.servers.find(|server| server.ended.borrow().is_some()) {
            let Some(ended) = server.ended.take() else { continue };
            let why = format!("{} ended by itself: {ended:?}", server.name);
            self.say(sim, &why);
            self.exits.push((server.role, why));
            self.crash(sim, &server, false)?;
            let at = sim.elapsed() + Duration::from_millis(500);
            self.later.push((at, Later::Restart(server)));
        }
        Ok(())
    }

    fn mend(&mut self, sim: &mut Sim<'_>, later: Later) -> Result<()> {
        match later {
            Later::MendNetwork => {
                self.say(sim, "mend network");
                for (index, a) in self.hosts.iter().enumerate() {
                    for b in &self.hosts[index + 1..] {
                        if self.lossy {
                            doors::reset_between(sim.lookup(a.as_str()), sim.lookup(b.as_str()));
                        }
                        sim.release(a.as_str(), b.as_str());
                        sim.repair(a.as_str(), b.as_str());
                        sim.repair_oneway(a.as_str(), b.as_str());
                        sim.repair_oneway(b.as_str(), a.as_str());
                        sim.set_link_max_message_latency(a.as_str(), b.as_str(), self.plan.latency.1);
                    }
                }
                (self.network_is_ill, self.lossy) = (false, false);
            }
            Later::Restart(server) => {
                self.say(sim, &format!("restart {}", server.name));
                self.down.remove(&server.name);
                sim.bounce(server.name.as_str());
            }
            Later::MendDisk(server) => {
                self.say(sim, &format!("mend disk of {}", server.name));
                server.files.resize(DISK_BYTES);
                server.files.fail_syncs(false);
                self.ill_disk = self.ill_disk.take().filter(|name| *name != server.name);
                if self.down.insert(server.name.clone()) {
                    // A disk that failed once is trusted again by a new process only.
                    self.crash(sim, &server, true)?;
                    self.mend(sim, Later::Restart(server))?;
                }
            }
            Later::QuickDisk(server) => server.knobs.slow.store(1, Ordering::Relaxed),
        }
        Ok(())
    }

    fn crash(&mut self, sim: &mut Sim<'_>, server: &Rc<Server>, power_cut: bool) -> Result<()> {
        self.down.insert(server.name.clone());
        server.crash(sim, power_cut, &self.random)
    }

    fn strike(&mut self, sim: &mut Sim<'_>) -> Result<()> {
        let faults: Vec<Fault> = self.plan.faults.iter().copied().collect();
        let Some(fault) = faults.choose(&mut self.dice).copied() else { return Ok(()) };
        let done = match fault {
            Fault::Kill | Fault::PowerCut => self.strike_some(sim, fault)?,
            Fault::Blackout => self.black_out(sim)?,
            Fault::Clock => self.strike_clock(sim),
            Fault::DiskFull | Fault::DiskError | Fault::BitRot | Fault::SlowDisk => {
                self.strike_disk(sim, fault)
            }
            Fault::Cut | Fault::OneWay | Fault::Bridge | Fault::Hold | Fault::Delay => {
                !self.network_is_ill && self.strike_network(sim, fault)
            }
        };
        if done {
            *self.counts.entry(format!("{fault:?}")).or_default() += 1;
        }
        Ok(())
    }

    /// Two groups of hosts, and perhaps one between them.
    fn groups(&mut self) -> (Vec<String>, Vec<String>) {
        let leader = self.servers.leader();
        let mut hosts = self.hosts.clone();
        hosts.shuffle(&mut self.dice);
        let is = |prefix: &'static str| move |host: &String| host.starts_with(prefix);
        match self.dice.random_range(0..8) {
            0 if leader.is_some() => hosts.into_iter().partition(|host| Some(host) == leader.as_ref()),
            1 => hosts.into_iter().partition(is("master")),
            2 => hosts.into_iter().filter(|host| !host.starts_with("client")).partition(is("master")),
            3 => hosts.into_iter().filter(|host| !host.starts_with("master")).partition(is("client")),
            4 => {
                let mut servers: Vec<_> = hosts.into_iter().filter(is("chunkserver")).collect();
                let rest = servers.split_off(1);
                (servers, rest)
            }
            // Clients still reach the one, and only its own clock keeps it from stale answers (guards no_fence_wait, slow_clock).
            5 => {
                let one = hosts.iter().position(is("chunkserver")).map(|at| hosts.swap_remove(at));
                (
                    one.into_iter().collect(),
                    hosts.into_iter().filter(|host| !host.starts_with("client")).collect(),
                )
            }
            6 => {
                let half = hosts.split_off(hosts.len() / 2);
                (hosts, half)
            }
            _ => {
                let rest = hosts.split_off(1);
                (hosts, rest)
            }
        }
    }

    fn strike_network(&mut self, sim: &mut Sim<'_>, fault: Fault) -> bool {
        let (mut left, mut right) = self.groups();
        if fault == Fault::OneWay && self.dice.random_bool(0.5) {
            std::mem::swap(&mut left, &mut right);
        }
        if fault == Fault::Bridge {
            let larger = if left.len() > right.len() { &mut left } else { &mut right };
            larger.pop();
        }
        let latency = self.millis(50..1500);
        for a in &left {
            for b in &right {
                #[expect(clippy::wildcard_enum_match_arm, reason = "what neither waits nor is slow is lost")]
                match fault {
                    Fault::OneWay => sim.partition_oneway(a.as_str(), b.as_str()),
                    Fault::Hold => sim.hold(a.as_str(), b.as_str()),
                    Fault::Delay => sim.set_link_max_message_latency(a.as_str(), b.as_str(), latency),
                    _ => sim.partition(a.as_str(), b.as_str()),
                }
            }
        }
        self.network_is_ill = true;
        self.lossy = matches!(fault, Fault::Cut | Fault::OneWay | Fault::Bridge);
        let lasts = if self.dice.random_range(0..3) == 0 {
            self.millis(3000..12_000)
        } else {
            self.millis(100..3000)
        };
        self.later.push((sim.elapsed() + lasts, Later::MendNetwork));
        self.say(sim, &format!("{fault:?} for {lasts:?}: {left:?} | {right:?}"));
        true
    }

    fn up(&self) -> Vec<Rc<Server>> {
        let mut up: Vec<_> =
            self.servers.all.values().filter(|server| !self.down.contains(&server.name)).cloned().collect();
        up.sort_by(|a, b| a.name.cmp(&b.name));
        up
    }

    fn strike_some(&mut self, sim: &mut Sim<'_>, fault: Fault) -> Result<bool> {
        let mut up = self.up();
        up.shuffle(&mut self.dice);
        let leader = self.servers.leader();
        if self.dice.random_range(0..4) == 0 {
            up.sort_by_key(|server| Some(&server.name) != leader.as_ref());
        }
        let count = [1, 1, 1, 2, 3].choose(&mut self.dice).copied().unwrap_or(1);
        for server in up.into_iter().take(count) {
            let lasts = self.down_time();
            self.say(sim, &format!("{fault:?} {} for {lasts:?}", server.name));
            self.crash(sim, &server, fault == Fault::PowerCut)?;
            self.later.push((sim.elapsed() + lasts, Later::Restart(server)));
        }
        Ok(true)
    }

    fn black_out(&mut self, sim: &mut Sim<'_>) -> Result<bool> {
        self.say(sim, "blackout");
        for server in self.up() {
            self.crash(sim, &server, true)?;
            let lasts = self.millis(10..3000);
            self.later.push((sim.elapsed() + lasts, Later::Restart(server)));
        }
        Ok(true)
    }

    fn strike_clock(&mut self, sim: &mut Sim<'_>) -> bool {
        let liar = self.plan.liar.as_ref().filter(|_| self.dice.random_bool(0.5));
        let servers = self.servers.all.values().filter(|server| liar.is_none_or(|liar| server.name == *liar));
        let Some(server) = servers.choose(&mut self.dice) else { return false };
        let sizes = if liar.is_some() { self.plan.lie_ms() } else { 0..=self.plan.jump_ms_max() };
        let jump = self.dice.random_range(sizes) * if self.dice.random_bool(0.5) { 1 } else { -1 };
        server.knobs.wall_ms.store(jump, Ordering::Relaxed);
        self.say(sim, &format!("wall clock of {} is {jump} ms off", server.name));
        true
    }

    fn strike_disk(&mut self, sim: &mut Sim<'_>, fault: Fault) -> bool {
        let chunkservers: Vec<_> =
            self.up().into_iter().filter(|server| server.role == Role::Chunkserver).collect();
        let lasts = self.millis(500..8000);
        let until = sim.elapsed() + lasts;
        if fault == Fault::SlowDisk {
            let up = self.up();
            let Some(server) = up.choose(&mut self.dice).cloned() else { return false };
            let times = self.dice.random_range(5..200);
            server.knobs.slow.store(times, Ordering::Relaxed);
            self.say(sim, &format!("disks of {} are {times} times slower for {lasts:?}", server.name));
            self.later.push((until, Later::QuickDisk(server)));
            return true;
        }
        if fault == Fault::BitRot {
            return self.flip(sim);
        }
        let Some(server) = chunkservers.choose(&mut self.dice).cloned() else { return false };
        if self.ill_disk.is_some() {
            return false;
        }
        if fault == Fault::DiskFull {
            let Ok(space) = server.files.space(Path::new("/disk-1")) else { return false };
            let used = space.total_bytes - space.free_bytes;
            server.files.resize(used + self.dice.random_range(0..20 << 20));
        } else {
            server.files.fail_syncs(true);
        }
        self.say(sim, &format!("{fault:?} of {} for {lasts:?}", server.name));
        self.ill_disk = Some(server.name.clone());
        self.later.push((until, Later::MendDisk(server)));
        true
    }

    /// Whether the masters count on more than one server for the chunk in this file: of the only copy nothing is promised.
    fn has_others(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let handle = name.split('-').next().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let Some(handle) = handle.map(ChunkHandle::from_raw) else { return false };
        let nodes = self.servers.of(Role::Master).filter_map(|server| server.node.borrow().clone());
        let Some(view) = nodes.map(|node| node.view()).max_by_key(|view| view.applied()) else {
            return false;
        };
        read::chunk(&view, handle).is_ok_and(|chunk| {
            chunk.members.len() > 1 && chunk.pending.is_none_or(|pending| pending.base.len() > 1)
        })
    }

    /// Flips a bit of a chunk on the last chunkserver: never of the last good copy.
    fn flip(&mut self, sim: &Sim<'_>) -> bool {
        let Some(server) = self.servers.of(Role::Chunkserver).last().cloned() else { return false };
        let mut paths = server.files.paths();
        paths.retain(|path| {
            path.components().any(|part| part.as_os_str() == "chunks") && self.has_others(path)
        });
        let Some(path) = paths.choose(&mut self.dice) else { return false };
        let bits = server.files.bytes(path).map_or(0, |bytes| bytes.len() as u64 * 8);
        if bits == 0 {
            return false;
        }
        let bit = self.dice.random_range(0..bits);
        server.files.flip(path, bit);
        self.say(sim, &format!("bit {bit} of {} on {} flips", path.display(), server.name));
        true
    }
}
