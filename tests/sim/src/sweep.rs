//! Many seeds, one process each, and what they come to together.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
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
/// How much real time a run may take: so much, and so many times its simulated time. The slowest took a tenth of it.
const REAL_TIME_MAX: Duration = Duration::from_secs(600);
const REAL_TIMES_MAX: u32 = 30;
/// Findings of a seed that are printed.
const FINDINGS_MAX: usize = 5;

/// Parses `0..100`.
pub(crate) fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("seeds are given as 0..100")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let seeds = number(first)?..number(end)?;
    if seeds.is_empty() { Err("no seed lies between them".to_owned()) } else { Ok(seeds) }
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
    Ok(sum.failed.is_empty() && sum.seeds > 0)
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
        Some(path) => Some(File::options().create(true).append(true).open(path)?),
        None => None,
    };
    let mut waiting = seeds;
    let mut running: Vec<Running> = Vec::new();
    let mut sum = Sum::default();
    // Seeds that run for the second time, and the trace of the first.
    let mut hashes: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        while running.len() < how.jobs
            && uptime_ms() - started < limit_ms
            && let Some(seed) = waiting.next()
        {
            running.push(Running::start(seed, how)?);
        }
        let Some((ended, status)) = first_ended(&mut running, limit_of(how.time))? else { break };
        let run = running.swap_remove(ended);
        let seed = run.seed;
        let mut report = run.report(status)?;
        report.commit.clone_from(&commit);
        if how.twice && report.good {
            match hashes.remove(&seed) {
                None => {
                    hashes.insert(seed, report.hash);
                    running.push(Running::start(seed, how)?);
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
    // No seed at all proves nothing.
    Ok(sum.failed.is_empty() && sum.seeds > 0)
}

/// What this was built from, as far as git knows.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let told = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.ok().filter(|told| !told.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// A process that runs a seed.
struct Running {
    seed: u64,
    child: Child,
    /// What it prints. Files, because a pipe that nobody empties holds up who writes into it.
    output: File,
    errors: File,
    started_ms: u64,
}

impl Running {
    fn start(seed: u64, how: &Sweep) -> Result<Self> {
        let time = format!("{}ms", how.time.as_millis());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "--json", "--seed", &seed.to_string(), "--time", &time]);
        if how.twice {
            command.args(["--trace", COMPARED]);
        }
        Self::spawn(seed, &mut command)
    }

    fn spawn(seed: u64, command: &mut Command) -> Result<Self> {
        let (output, errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.stdout(output.try_clone()?).stderr(errors.try_clone()?).stdin(Stdio::null());
        let child = command.spawn().context("no process can be started")?;
        Ok(Self { seed, child, output, errors, started_ms: uptime_ms() })
    }

    /// What has become of the seed. No report is good whose process says otherwise.
    fn report(mut self, ended: Ended) -> Result<Report> {
        let (output, errors) = (read(&mut self.output)?, read(&mut self.errors)?);
        let mut report: Report = serde_json::from_slice(&output).unwrap_or_else(|_| Report {
            findings: vec![format!("the process ended without a report: {ended}")],
            ..Report::default()
        });
        report.seed = self.seed;
        let well = matches!(ended, Ended::ByItself(status) if status.success());
        if report.good && !well {
            report.good = false;
            report.findings.push(format!("the process did not end well: {ended}"));
        }
        if !report.good {
            report.notes.insert(0, String::from_utf8_lossy(&errors).trim().to_owned());
        }
        Ok(report)
    }
}

/// All that was written into a file.
fn read(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How the process of a seed has ended.
#[derive(Clone, Copy)]
enum Ended {
    ByItself(ExitStatus),
    /// It was killed because it did not.
    TooLate {
        seconds: u64,
    },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByItself(status) => write!(f, "{status}"),
            Self::TooLate { seconds } => write!(f, "it was killed after {seconds} s of real time"),
        }
    }
}

/// How long a run may take.
fn limit_of(time: Duration) -> Duration {
    REAL_TIME_MAX.saturating_add(time.saturating_mul(REAL_TIMES_MAX))
}

/// Index of one that has ended, or was killed because it takes longer than it may; `None` if none runs.
fn first_ended(running: &mut [Running], limit: Duration) -> Result<Option<(usize, Ended)>> {
    if running.is_empty() {
        return Ok(None);
    }
    loop {
        for (index, run) in running.iter_mut().enumerate() {
            if let Some(status) = run.child.try_wait()? {
                return Ok(Some((index, Ended::ByItself(status))));
            }
            let taken = Duration::from_millis(uptime_ms().saturating_sub(run.started_ms));
            if taken > limit {
                run.child.kill()?;
                run.child.wait()?;
                return Ok(Some((index, Ended::TooLate { seconds: taken.as_secs() })));
            }
        }
        std::thread::sleep(LOOK);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A "run" that is a shell with this script, and what is made of it.
    fn report_of(script: &str, limit: Duration) -> Report {
        let mut running = vec![Running::spawn(7, Command::new("sh").args(["-c", script])).unwrap()];
        let (index, ended) = first_ended(&mut running, limit).unwrap().unwrap();
        running.swap_remove(index).report(ended).unwrap()
    }

    #[test]
    fn a_report_is_read_whatever_its_size_and_is_good_only_if_its_process_ended_well() {
        let patience = Duration::from_secs(60);
        let report = Report { good: true, notes: vec!["n".repeat(1000); 300], ..Report::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_string(&report).unwrap()).unwrap();
        let print = format!("cat {path}; cat {path} >&2", path = file.path().display());
        let good = report_of(&print, patience);
        assert!(good.good && good.seed == 7 && good.notes.len() == 300);
        let bad = report_of(&format!("{print}; exit 3"), patience);
        assert!(!bad.good && bad.findings[0].contains("did not end well"), "{:?}", bad.findings);
        let none = report_of("echo oh >&2; exit 1", patience);
        assert!(!none.good && none.findings[0].contains("without a report"), "{:?}", none.findings);
        assert_eq!(none.notes, ["oh"]);
    }

    #[test]
    fn a_run_that_does_not_end_is_ended_and_has_failed() {
        let report = report_of("exec sleep 600", Duration::from_millis(200));
        assert!(!report.good && report.findings[0].contains("was killed after"), "{:?}", report.findings);
    }

    #[test]
    fn there_is_a_seed_in_what_is_asked_for() {
        assert_eq!(parse_seeds("0..2").unwrap(), 0..2);
        for none in ["40..0", "3..3", "3", "a..b"] {
            assert!(parse_seeds(none).is_err(), "{none}");
        }
    }
}
