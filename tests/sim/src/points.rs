//! Fail points inside the simulation: which host passes one, what a crash or a pause there is, and which ones the seed arms.
//! Builds without the feature `faults` have none.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use gfs_proto::fault::{self, POINTS, Point, Simulated};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Handle, Id};

use crate::hosts::{Role, Server, Servers};
use crate::plan::Plan;

/// Number of the first host of clients; servers count from 1.
pub(crate) const CLIENTS: u64 = 1_000;
/// Fail points of a host that are armed at a time.
const ARMED_MAX: usize = 3;
/// Fail points that many hosts have armed from their first moment on.
const FOCUS: usize = 3;
/// The pass at which a fail point strikes.
const PASSES: [u64; 8] = [1, 1, 1, 2, 3, 10, 40, 150];
/// How often one strikes that does not end its server.
const TIMES: [u64; 5] = [1, 1, 1, 3, 10];

/// A host with a runtime of its own.
struct Host {
    runtime: Id,
    number: u64,
    server: Option<Rc<Server>>,
}

thread_local! {
    /// Every host that was started, by its newest runtime: all of them run on this thread.
    static HOSTS: RefCell<Vec<Host>> = const { RefCell::new(Vec::new()) };
}

/// Says that the runtime that runs at the moment is this host's.
pub(crate) fn begin(number: u64, server: Option<Rc<Server>>) {
    let runtime = Handle::current().id();
    HOSTS.with_borrow_mut(|hosts| {
        hosts.retain(|host| host.number != number);
        hosts.push(Host { runtime, number, server });
    });
}

/// Lets go of all hosts, while their directories are still there: a database that can't write when it is closed waits a second.
pub(crate) fn end() {
    drop(HOSTS.take());
}

/// Looks at the host that runs at the moment.
fn here<T>(look: impl FnOnce(&Host) -> T) -> Option<T> {
    let runtime = Handle::try_current().ok()?.id();
    HOSTS.with_borrow(|hosts| hosts.iter().find(|host| host.runtime == runtime).map(look))
}

fn number() -> u64 {
    here(|host| host.number).unwrap_or(0)
}

/// The server that runs at the moment.
fn server() -> Option<Rc<Server>> {
    here(|host| host.server.clone()).flatten()
}

fn crash(point: &'static str) {
    if let Some(server) = server() {
        server.die(point);
    }
}

/// A thread that stands still is, in here, a disk that does: the pieces of work that come next wait.
fn pause(time: Duration) {
    if let Some(server) = server() {
        let stall_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        server.knobs.stall_us.fetch_add(stall_us, Ordering::Relaxed);
    }
}

/// Stands behind the fail points of all hosts.
pub(crate) fn simulate() {
    fault::simulate(Simulated { host: number, crash, pause });
}

/// Draws fail points, and arms them.
pub(crate) struct Points {
    dice: StdRng,
}

impl Points {
    pub(crate) fn new(seed: u64) -> Self {
        Self { dice: StdRng::seed_from_u64(seed ^ 0xFA11) }
    }

    /// Whether there are some before the clients begin.
    pub(crate) fn are_early(&mut self) -> bool {
        self.dice.random_bool(0.25)
    }

    /// In half of the seeds, before any host begins: a few fail points, for their first pass on about every second
    /// host. What was armed where.
    ///
    /// What [`arm`](Self::arm) draws hardly ever strikes where a host comes only once in its life, or once in many runs.
    pub(crate) fn focus(&mut self, servers: &Servers, plan: &Plan) -> Result<Vec<String>> {
        if plan.points.is_none() || self.dice.random_bool(0.5) {
            return Ok(Vec::new());
        }
        let chosen: Vec<Point> = POINTS.choose_multiple(&mut self.dice, FOCUS).copied().collect();
        let clients = plan.client_hosts as u64;
        let servers = servers.all.values().map(|server| (server.number, Some(server.role)));
        let hosts: Vec<_> = servers.chain((0..clients).map(|client| (CLIENTS + client, None))).collect();
        let mut armed = Vec::new();
        for (number, role) in hosts {
            for point in chosen.iter().filter(|point| fits(point.name, role)) {
                if self.dice.random_bool(0.5) {
                    // Once: a cluster whose disks stand still again and again does not come up.
                    let line = format!("{}={}", point.name, self.action(*point, role, (1, 1)));
                    fault::arm_host(number, &line)?;
                    armed.push(format!("host {number}: {line}"));
                }
            }
        }
        Ok(armed)
    }

    /// Up to the next ones.
    pub(crate) fn pause(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(self.dice.random_range(0.25..1.75))
    }

    /// Arms some of one host: a server, or one of `clients` hosts of clients. What was armed where.
    pub(crate) fn arm(&mut self, servers: &[Rc<Server>], clients: u64) -> Result<String> {
        let server = servers.choose(&mut self.dice).filter(|_| clients == 0 || self.dice.random_bool(0.9));
        let (number, role) = match server {
            Some(server) => (server.number, Some(server.role)),
            None => (CLIENTS + self.dice.random_range(0..clients.max(1)), None),
        };
        let fitting: Vec<Point> = POINTS.iter().filter(|point| fits(point.name, role)).copied().collect();
        let count = self.dice.random_range(1..=ARMED_MAX);
        let chosen: Vec<Point> = fitting.choose_multiple(&mut self.dice, count).copied().collect();
        let lines: Vec<String> = chosen
            .iter()
            .map(|point| {
                let pass = PASSES.choose(&mut self.dice).copied().unwrap_or(1);
                let times = TIMES.choose(&mut self.dice).copied().unwrap_or(1);
                format!("{}={}", point.name, self.action(*point, role, (pass, times)))
            })
            .collect();
        let line = lines.join("; ");
        fault::arm_host(number, &line)?;
        Ok(format!("{}: {line}", server.map_or("a client", |server| &server.name)))
    }

    /// What happens at which pass, and how often.
    fn action(&mut self, point: Point, role: Option<Role>, (pass, times): (u64, u64)) -> String {
        let dice = &mut self.dice;
        match dice.random_range(0..3) {
            0 if role.is_some() => format!("crash@{pass}*1"),
            1 if point.fails => format!("error@{pass}*{times}"),
            _ => {
                let millis = match dice.random_range(0..10) {
                    0 => 3_000..20_000,
                    1..4 => 100..3_000,
                    _ => 1..100,
                };
                format!("sleep({})@{pass}*{times}", dice.random_range(millis))
            }
        }
    }
}

/// Whether servers of this role, or clients, can come to a fail point.
fn fits(point: &str, role: Option<Role>) -> bool {
    let is_master = matches!(role, Some(Role::Master | Role::Shadow));
    match point.split("::").next() {
        Some("raft" | "grant" | "leader" | "registry") => is_master,
        // Servers are the masters' clients too.
        Some("client") => {
            role.is_none() || matches!(point, "client::request_sent" | "client::reply_received")
        }
        _ => role == Some(Role::Chunkserver),
    }
}
