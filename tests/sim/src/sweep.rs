//! Many seeds, one process each, and what they come to together.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use gfs_proto::fault::{POINTS, Point};

use crate::plan;
use crate::run::{Report, uptime_ms};
use crate::tell;

/// Seeds between two lines.
const LINE_SEEDS: u64 = 10;
/// Pause between two looks at the processes.
const LOOK: Duration = Duration::from_millis(10);
/// What is traced where two runs are compared: not every message, which would be gigabytes.
const COMPARED: &str = "info,openraft=warn,gfs_master=debug,gfs_chunkserver=debug,gfs_client=debug";
/// Findings of a seed that are printed.
const FINDINGS_MAX: usize = 5;

/// Parses `0..100`.
pub(crate) fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("seeds are given as 0..100")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(first)?..number(end)?)
}

/// What many runs come to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: Vec<u64>,
    /// Lowest and highest seed of each commit, and how many.
    commits: BTreeMap<String, (u64, u64, u64)>,
    simulated_ms: u64,
    /// Real time of the runs, one after the other.
    real_ms: u64,
    acknowledged: u64,
    unknown: u64,
    snapshots: u64,
    probes: u64,
    faults: BTreeMap<String, u64>,
    /// Passes and strikes of each fail point.
    points: BTreeMap<String, (u64, u64)>,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        let seed = report.seed;
        let seeds = self.commits.entry(report.commit.clone()).or_insert((seed, seed, 0));
        *seeds = (seeds.0.min(seed), seeds.1.max(seed), seeds.2 + 1);
        self.simulated_ms += report.simulated_ms;
        self.real_ms += report.real_ms;
        self.acknowledged += report.acknowledged;
        self.unknown += report.unknown;
        self.snapshots += report.snapshots;
        self.probes += report.probes;
        for (fault, count) in &report.faults {
            *self.faults.entry(fault.clone()).or_default() += count;
        }
        for (point, (passed, struck)) in &report.points {
            let sum = self.points.entry(point.clone()).or_default();
            *sum = (sum.0 + passed, sum.1 + struck);
        }
        if !report.good {
            self.failed.push(seed);
        }
    }

    fn line(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let (hours, speed) =
            (self.simulated_ms as f64 / 3.6e6, self.simulated_ms as f64 / self.real_ms.max(1) as f64);
        format!(
            "{} seeds, {hours:.2} simulated hours at {speed:.0}x: {} acknowledged, {} unknown, {} snapshots, {} probes, {} faults, {} failed",
            self.seeds,
            self.acknowledged,
            self.unknown,
            self.snapshots,
            self.probes,
            self.faults.values().sum::<u64>(),
            self.failed.len()
        )
    }

    /// Everything but the line.
    fn tell(&self) -> Result<()> {
        for (commit, (first, last, count)) in &self.commits {
            tell(&format!("  commit {commit}: {count} seeds of {first} to {last}"))?;
        }
        for (fault, count) in &self.faults {
            tell(&format!("  {fault:<10} {count}"))?;
        }
        if !self.points.is_empty() {
            let of = |point: &Point| self.points.get(point.name).copied().unwrap_or_default();
            let names = |which: fn((u64, u64)) -> bool| -> Vec<&'static str> {
                POINTS.iter().filter(|point| which(of(point))).map(|point| point.name).collect()
            };
            let (never, unstruck) = (names(|sum| sum.0 == 0), names(|sum| sum.0 > 0 && sum.1 == 0));
            let struck = POINTS.len() - never.len() - unstruck.len();
            tell(&format!("  fail points: {struck} of {} struck", POINTS.len()))?;
            tell(&format!("  passed and never struck: {unstruck:?}"))?;
            tell(&format!("  never passed: {never:?}"))?;
        }
        if !self.failed.is_empty() {
            tell(&format!("failed seeds: {:?}", self.failed))?;
        }
        Ok(())
    }
}

/// Adds up what sweeps have recorded; whether all seeds were good.
pub(crate) fn add_up(records: &[PathBuf]) -> Result<bool> {
    let mut sum = Sum::default();
    for path in records {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for line in text.lines() {
            sum.add(&serde_json::from_str(line).with_context(|| path.display().to_string())?);
        }
    }
    tell(&format!("all: {}", sum.line()))?;
    sum.tell()?;
    Ok(sum.failed.is_empty())
}

/// How a sweep goes.
pub(crate) struct Sweep {
    pub(crate) time: Duration,
    /// Processes at a time.
    pub(crate) jobs: usize,
    /// No further seed begins after so much real time.
    pub(crate) real_time: Option<Duration>,
    /// Each seed runs once more, and must give the same trace.
    pub(crate) twice: bool,
    /// Gets the report of each seed, one a line.
    pub(crate) record: Option<PathBuf>,
}

/// Runs every seed; whether all were good.
pub(crate) fn sweep(seeds: Range<u64>, how: &Sweep) -> Result<bool> {
    let started = uptime_ms();
    let limit_ms =
        how.real_time.map_or(u64::MAX, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    let commit = commit();
    let mut record = match &how.record {
        Some(path) => Some(std::fs::File::options().create(true).append(true).open(path)?),
        None => None,
    };
    let mut waiting = seeds;
    let mut running: Vec<(u64, Child)> = Vec::new();
    let mut sum = Sum::default();
    // Seeds that run for the second time, and the trace of the first.
    let mut hashes: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        while running.len() < how.jobs
            && uptime_ms() - started < limit_ms
            && let Some(seed) = waiting.next()
        {
            running.push((seed, start(seed, how)?));
        }
        let Some(ended) = first_ended(&mut running)? else { break };
        let (seed, child) = running.swap_remove(ended);
        let mut report = report_of(seed, child)?;
        report.commit.clone_from(&commit);
        if how.twice && report.good {
            match hashes.remove(&seed) {
                None => {
                    hashes.insert(seed, report.hash);
                    running.push((seed, start(seed, how)?));
                    continue;
                }
                Some(hash) if hash != report.hash => {
                    report.good = false;
                    report.findings.push(format!("another trace the second time: {hash}, {}", report.hash));
                }
                Some(_) => {}
            }
        }
        sum.add(&report);
        if let Some(record) = &mut record {
            writeln!(record, "{}", serde_json::to_string(&report)?)?;
        }
        if !report.good {
            tell_failure(&report, how.time)?;
        }
        if sum.seeds % LINE_SEEDS == 0 {
            tell(&sum.line())?;
        }
    }
    tell(&format!("all: {}; {} s", sum.line(), (uptime_ms() - started) / 1000))?;
    sum.tell()?;
    Ok(sum.failed.is_empty())
}

/// What this was built from, as far as git knows.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let told = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.ok().filter(|told| !told.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

fn start(seed: u64, how: &Sweep) -> Result<Child> {
    let time = format!("{}ms", how.time.as_millis());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--json", "--seed", &seed.to_string(), "--time", &time]);
    if how.twice {
        command.args(["--trace", COMPARED]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("no process can be started")
}

/// Index of one that has ended; `None` if none runs.
fn first_ended(running: &mut [(u64, Child)]) -> Result<Option<usize>> {
    if running.is_empty() {
        return Ok(None);
    }
    loop {
        for (index, (_, child)) in running.iter_mut().enumerate() {
            if child.try_wait()?.is_some() {
                return Ok(Some(index));
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn report_of(seed: u64, child: Child) -> Result<Report> {
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let mut report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| Report {
        findings: vec![format!("the process ended without a report: {}", output.status)],
        ..Report::default()
    });
    report.seed = seed;
    if !report.good {
        report.notes.insert(0, errors);
    }
    Ok(report)
}

fn tell_failure(report: &Report, time: Duration) -> Result<()> {
    let seed = report.seed;
    tell(&format!("seed {seed} FAILED: {}", plan::command(seed, time)))?;
    let told = [("finding", &report.findings), ("doubt", &report.doubts), ("note", &report.notes)];
    for (kind, lines) in told {
        for line in lines.iter().take(FINDINGS_MAX) {
            tell(&format!("  {kind}: {line}"))?;
        }
    }
    Ok(())
}
