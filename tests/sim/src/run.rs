//! One run, from its seed to its verdict. A process does one: what the standard library and tokio keep per process is then
//! the same for the same seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use gfs_jepsen::{Validity, name_of_this_process, remove_leftovers};
use gfs_proto::fault;
use mad_turmoil::time::SimClocksGuard;
use serde::{Deserialize, Serialize};
use turmoil::{Builder, Sim};

use crate::clients::{Phase, Stage, verdicts};
use crate::doors;
use crate::hosts::Servers;
use crate::nemesis::Nemesis;
use crate::plan::Plan;
use crate::points;
use crate::probe::Probe;
use crate::trace::{Trace, panics};

/// How often the states are looked at.
const PROBE_PERIOD: Duration = Duration::from_millis(500);
/// Simulated time of a run beside that in which clients work, at most.
const EXTRA_TIME_MAX: Duration = Duration::from_secs(900);
/// Simulated time after the judge is done, for the last entries to be applied.
const LAST_TIME: Duration = Duration::from_secs(2);
/// Messages that wait at a socket.
const TCP_CAPACITY: usize = 65_536;
/// Where the masters' databases lie, and names of the directories.
const MEMORY: &str = "/dev/shm";
const DATA: &str = "gfs-sim-";
/// Findings, doubts and notes of a report, each.
const LINES_MAX: usize = 100;
/// Stack of the thread that runs all hosts.
const STACK_BYTES: usize = 64 << 20;

/// What a run comes to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// What was built, as far as a sweep knows it.
    pub(crate) commit: String,
    /// Simulated time in which clients worked.
    pub(crate) time_ms: u64,
    pub(crate) good: bool,
    pub(crate) simulated_ms: u64,
    pub(crate) real_ms: u64,
    pub(crate) acknowledged: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) snapshots: u64,
    pub(crate) probes: u64,
    pub(crate) faults: BTreeMap<String, u64>,
    /// Passes and strikes of each fail point that was passed.
    pub(crate) points: BTreeMap<String, (u64, u64)>,
    /// Of the trace and the histories.
    pub(crate) hash: String,
    pub(crate) findings: Vec<String>,
    pub(crate) doubts: Vec<String>,
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Leaves off what nobody would read; how much it was is told.
    fn shorten(&mut self) {
        for lines in [&mut self.findings, &mut self.doubts, &mut self.notes] {
            let left_off = lines.len().saturating_sub(LINES_MAX);
            if left_off > 0 {
                lines.truncate(LINES_MAX);
                lines.push(format!("and {left_off} more are left off"));
            }
        }
    }
}

/// Runs the seed of a plan in `directory`, which keeps trace and histories.
pub(crate) fn run(plan: Plan, directory: PathBuf, filter: &str) -> Result<Report> {
    let trace = Trace::start(&directory.join("trace.log"), filter)?;
    let seeded = <rand_seeding::rngs::StdRng as rand_seeding::SeedableRng>::seed_from_u64(plan.seed);
    mad_turmoil::rand::set_rng(seeded);
    // A fresh thread: what this one keeps may have been seeded before.
    let runner = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let _clocks = SimClocksGuard::init();
        run_here(plan, &directory, &trace)
    })?;
    runner.join().unwrap_or_else(|_| {
        let findings = panics().into_iter().map(|panic| format!("panic: {panic}")).collect();
        Ok(Report { findings, ..Report::default() })
    })
}

struct Run<'a> {
    sim: Sim<'a>,
    plan: Rc<Plan>,
    servers: Servers,
    stage: Rc<Stage>,
    nemesis: Nemesis,
    probe: Probe,
}

fn run_here(plan: Plan, directory: &Path, trace: &Trace) -> Result<Report> {
    let started = uptime_ms();
    let plan = Rc::new(plan);
    trace.note(&format!("{plan:?}"));
    points::simulate();
    let data = data_directory(directory)?;
    let mut run = prepare(&plan, data.path(), directory, trace)?;
    let broken = run.go().err().map(|error| format!("the simulation ended: {error:#}"));
    let report = run.report(trace);
    drop(run);
    points::end();
    let mut report = report?;
    if let Some(broken) = broken {
        report.findings.push(broken);
    }
    report.good = report.findings.is_empty() && report.doubts.is_empty();
    report.real_ms = uptime_ms().saturating_sub(started);
    Ok(report)
}

/// Where the masters' databases lie: in memory if there is room for that. Its name is free at once: another try would take
/// from the randomness of the run.
fn data_directory(beside: &Path) -> Result<tempfile::TempDir> {
    let memory = Path::new(MEMORY);
    let parent = if memory.is_dir() { memory } else { beside };
    Ok(tempfile::Builder::new().prefix(&name_of_this_process(DATA)).tempdir_in(parent)?)
}

/// Frees the memory that runs hold whose process was killed.
pub(crate) fn remove_dead_data() -> Result<()> {
    let memory = Path::new(MEMORY);
    if memory.is_dir() { remove_leftovers(memory, DATA) } else { Ok(()) }
}

fn prepare<'a>(plan: &Rc<Plan>, data: &Path, directory: &Path, trace: &Trace) -> Result<Run<'a>> {
    let mut sim = Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(plan.tick)
        .epoch(UNIX_EPOCH)
        .simulation_duration(plan.time + EXTRA_TIME_MAX)
        .min_message_latency(plan.latency.0)
        .max_message_latency(plan.latency.1)
        .tcp_capacity(TCP_CAPACITY)
        .build();
    let servers = Servers::new(plan, data);
    for server in servers.all.values() {
        let (server, servers) = (server.clone(), servers.clone());
        sim.host(server.name.clone(), move || {
            let (server, servers) = (server.clone(), servers.clone());
            async move {
                server.run(servers).await;
                Ok(())
            }
        });
    }
    let masters = servers.masters();
    let client = doors::environment(plan.seed ^ 0xC11E, 0, plan.disk, &Default::default());
    let stage = Stage::new(&client, &masters, directory, plan)?;
    let hosts = plan.client_hosts as u64;
    let mut names = Vec::new();
    for host in 0..hosts {
        let (stage, clients) = (stage.clone(), plan.clients);
        let name = format!("client-{}", host + 1);
        names.push(name.clone());
        sim.client(name, async move {
            stage.client_host(host, hosts, clients).await;
            Ok(())
        });
    }
    let (copier, environment) = (stage.clone(), client.clone());
    names.push("client-snapshot".to_owned());
    sim.client("client-snapshot", async move {
        copier.snapshot_client(environment, masters).await;
        Ok(())
    });
    let (judge, watched) = (stage.clone(), servers.clone());
    sim.client("judge", async move {
        judge.judge(watched, client).await;
        Ok(())
    });
    let nemesis = Nemesis::new(plan, &servers, &names, trace);
    Ok(Run { sim, plan: plan.clone(), servers, stage, nemesis, probe: Probe::default() })
}

impl Run<'_> {
    fn go(&mut self) -> Result<()> {
        let mut raging_since = None;
        let mut next_probe = Duration::ZERO;
        let mut done_at = None;
        self.nemesis.begin(&self.sim)?;
        loop {
            self.sim.step().map_err(|error| anyhow::anyhow!("{error}"))?;
            let now = self.sim.elapsed();
            let phase = self.stage.phase.get();
            if phase == Phase::Rage {
                let since = *raging_since.get_or_insert(now);
                if now >= since + self.plan.time {
                    self.nemesis.heal(&mut self.sim)?;
                    self.stage.stop()?;
                }
            }
            self.nemesis.act(&mut self.sim, phase)?;
            self.probe.check_leaders(&self.servers);
            if now >= next_probe {
                next_probe = now + PROBE_PERIOD;
                self.probe.check_states(&self.servers, now);
                self.nemesis.look_at_disks(&self.sim);
            }
            if !panics().is_empty() || !self.probe.findings.is_empty() {
                return Ok(());
            }
            if phase == Phase::Done && now >= *done_at.get_or_insert(now) + LAST_TIME {
                self.probe.check_end(&self.servers, now);
                return Ok(());
            }
        }
    }

    fn report(&mut self, trace: &Trace) -> Result<Report> {
        let mut report = Report {
            seed: self.plan.seed,
            time_ms: u64::try_from(self.plan.time.as_millis())?,
            simulated_ms: u64::try_from(self.sim.elapsed().as_millis())?,
            snapshots: self.stage.snapshots_made.get(),
            probes: self.probe.checks,
            faults: self.nemesis.counts.clone(),
            points: fault::counts()
                .into_iter()
                .map(|(point, count)| (point.to_owned(), (count.passed, count.struck)))
                .collect(),
            findings: self.stage.findings.take(),
            doubts: self.stage.doubts.take(),
            notes: self.stage.notes.take(),
            ..Report::default()
        };
        report.findings.extend(panics().into_iter().map(|panic| format!("panic: {panic}")));
        report.findings.append(&mut self.probe.findings);
        for (role, why) in &self.nemesis.exits {
            let told = if self.plan.may_end(*role) { &mut report.notes } else { &mut report.findings };
            told.push(why.clone());
        }
        let ended = self.stage.phase.get() == Phase::Done;
        for (name, verdict) in verdicts(&self.stage).context("the histories can't be judged")? {
            report.acknowledged += verdict.ok;
            report.failed += verdict.failed;
            report.unknown += verdict.unknown;
            let hash = serde_json::to_string(&verdict)?;
            trace.note(&format!("{name}: {hash}"));
            report.findings.extend(verdict.findings.iter().map(|finding| format!("{name}: {finding}")));
            if ended || verdict.validity == Validity::Bad {
                report.doubts.extend(verdict.doubts.iter().map(|doubt| format!("{name}: {doubt}")));
            }
        }
        let least = self.plan.time.as_secs();
        if ended && report.acknowledged < least {
            let acknowledged = report.acknowledged;
            report.doubts.push(format!("too little load: {acknowledged} acknowledged, {least} needed"));
        }
        report.notes.extend(trace.errors().into_iter().take(20).map(|line| format!("logged: {line}")));
        report.shorten();
        report.hash = trace.hash();
        Ok(report)
    }
}

/// Real time: the process's own clocks show simulated time only.
pub(crate) fn uptime_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).map_or(0, |uptime| u64::try_from(uptime.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_report_is_shortened_and_says_so() {
        let doubts: Vec<String> = (0..LINES_MAX + 7).map(|number| number.to_string()).collect();
        let mut report = Report { doubts, ..Report::default() };
        report.shorten();
        assert_eq!(report.doubts.len(), LINES_MAX + 1);
        assert_eq!(report.doubts[LINES_MAX], "and 7 more are left off");
        assert!(report.findings.is_empty(), "a good one stays so");
    }
}
