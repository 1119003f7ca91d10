//! Many seeds, one process each, and what they come to together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::{Report, uptime_ms};
use crate::tell;

/// Seeds between two lines.
const LINE_SEEDS: u64 = 10;
/// Pause between two looks at the processes.
const LOOK: Duration = Duration::from_millis(10);
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
    simulated_ms: u64,
    /// Real time of the runs, one after the other.
    real_ms: u64,
    acknowledged: u64,
    unknown: u64,
    snapshots: u64,
    probes: u64,
    faults: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.simulated_ms += report.simulated_ms;
        self.real_ms += report.real_ms;
        self.acknowledged += report.acknowledged;
        self.unknown += report.unknown;
        self.snapshots += report.snapshots;
        self.probes += report.probes;
        for (fault, count) in &report.faults {
            *self.faults.entry(fault.clone()).or_default() += count;
        }
        if !report.good {
            self.failed.push(report.seed);
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
}

/// Runs every seed; whether all were good.
pub(crate) fn sweep(
    seeds: Range<u64>,
    time: Duration,
    jobs: usize,
    real_time: Option<Duration>,
) -> Result<bool> {
    let started = uptime_ms();
    let limit_ms = real_time.map_or(u64::MAX, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    let mut waiting = seeds;
    let mut running: Vec<(u64, Child)> = Vec::new();
    let mut sum = Sum::default();
    loop {
        while running.len() < jobs
            && uptime_ms() - started < limit_ms
            && let Some(seed) = waiting.next()
        {
            running.push((seed, start(seed, time)?));
        }
        let Some(ended) = first_ended(&mut running)? else { break };
        let (seed, child) = running.swap_remove(ended);
        let report = report_of(seed, child)?;
        sum.add(&report);
        if !report.good {
            tell_failure(&report, time)?;
        }
        if sum.seeds % LINE_SEEDS == 0 {
            tell(&sum.line())?;
        }
    }
    tell(&format!("all: {}; {} s", sum.line(), (uptime_ms() - started) / 1000))?;
    for (fault, count) in &sum.faults {
        tell(&format!("  {fault:<10} {count}"))?;
    }
    if !sum.failed.is_empty() {
        tell(&format!("failed seeds: {:?}", sum.failed))?;
    }
    Ok(sum.failed.is_empty())
}

fn start(seed: u64, time: Duration) -> Result<Child> {
    let time = format!("{}ms", time.as_millis());
    Command::new(std::env::current_exe()?)
        .args(["run", "--json", "--seed", &seed.to_string(), "--time", &time])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("no process can be started")
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
    tell(&format!(
        "seed {seed} FAILED: cargo run -p gfs-sim -- run --seed {seed} --time {}ms",
        time.as_millis()
    ))?;
    let told = [("finding", &report.findings), ("doubt", &report.doubts), ("note", &report.notes)];
    for (kind, lines) in told {
        for line in lines.iter().take(FINDINGS_MAX) {
            tell(&format!("  {kind}: {line}"))?;
        }
    }
    Ok(())
}
