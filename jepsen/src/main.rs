//! `gfs-jepsen`: runs clients against a real cluster under faults, and judges what they were told.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use gfs_jepsen::{
    ACTIONS, Format, Ledger, Loss, Mixes, Placement, Plan, Promise, Site, Strikes, Subject, Sweep, Verdict,
    WORKLOADS, cells, check_file, export, measure, mixes, mutants, parse_time, power, report, rot, run,
    sweep, tally,
};
use tokio::runtime::Runtime;

/// How long the clients of a run work, and at most if their operations are counted.
const TIME: Duration = Duration::from_secs(30);
const COUNTED_TIME: Duration = Duration::from_secs(3600);

#[derive(Parser)]
#[command(about = "Runs clients against a real gfs cluster under faults, and judges what they were told.")]
struct Arguments {
    /// Where servers and clients live.
    #[arg(long, global = true, value_enum, default_value_t)]
    hosts: Placement,
    /// Adds a line for each run to this file: what `tally` adds up.
    #[arg(long, global = true)]
    ledger: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One workload under some faults.
    Run {
        #[arg(long, help = workload_help())]
        workload: String,
        /// Kinds of faults, separated by commas, or none.
        #[arg(long, value_delimiter = ',', default_value = "none")]
        nemesis: Vec<String>,
        /// How long the clients work, at most: 30s, 500ms. With --operations 1h if not given.
        #[arg(long, value_parser = parse_time)]
        time: Option<Duration>,
        /// How many operations each client does.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        operations: Option<u64>,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Number of clients.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
        clients: u64,
        /// Keep the directory of a good run too.
        #[arg(long)]
        keep: bool,
    },
    /// Every workload under no fault, under each, and under all that are promised to be survived.
    Matrix {
        /// How long the clients of each run work.
        #[arg(long, default_value = "8s", value_parser = parse_time)]
        time: Duration,
        /// Only these mixes of faults, each joined by +: one run each.
        #[arg(long, value_delimiter = ',')]
        nemesis: Vec<String>,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Judges a history.jsonl again.
    Check {
        /// The file.
        file: PathBuf,
        /// Its workload, if no plan.json lies beside it.
        #[arg(long)]
        workload: Option<String>,
    },
    /// Draws a run: report.html beside its history.
    Report {
        /// The directory of the run.
        directory: PathBuf,
    },
    /// Adds up what the runs in some ledgers come to.
    Tally {
        /// Files that runs were given with --ledger.
        #[arg(required = true)]
        ledgers: Vec<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Writes a history in the format of another checker, to the standard output.
    Export {
        /// A history.jsonl.
        file: PathBuf,
        /// The format.
        #[arg(long)]
        format: To,
        /// The cell to show, where only one can be; else the one that was written most.
        #[arg(long)]
        cell: Option<u64>,
    },
    /// Cuts the power of all servers at once, under load, again and again; needs root.
    Power {
        /// How often.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// What is promised: that an acknowledgement survives, or that a loss is told.
        #[arg(long, value_enum, default_value_t = Promised::Synced)]
        durability: Promised,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Damages replicas of chunks, up to all but one of each: all is found and made good, nothing of it is served.
    Rot {
        /// How many.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        corruptions: u64,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Lets every fail point strike, in servers built with faults (GFS_BIN).
    Faults {
        /// Parts of the names of fail points; all if not given.
        #[arg(long, value_delimiter = ',')]
        points: Vec<String>,
        /// Some of crash, error, sleep.
        #[arg(long, value_delimiter = ',', default_values_t = ACTIONS.map(String::from))]
        actions: Vec<String>,
        /// Cells that share a cluster.
        #[arg(long, default_value_t = 10)]
        batch: usize,
        /// Strikes of a cell; with many, let fewer cells share a cluster.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        strikes: u64,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Switches every seeded bug on and shows which check finds it.
    Mutants {
        /// Some mutants; all if not given.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Only checks that start no cluster.
        #[arg(long)]
        fast: bool,
    },
    /// Measures how long users wait after the loss of a server, or chunks for their replicas
    Measure {
        /// What is lost.
        subject: Whom,
        /// How it is lost.
        #[arg(long, value_enum, default_value_t = How::Kill)]
        by: How,
        /// Fails if one wait is longer.
        #[arg(long, value_parser = parse_time)]
        within: Option<Duration>,
        /// How often.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// MiB, about, of all chunks that a chunkserver holds [default: 1024], or of the primary's chunk (at most 48), to
        /// which others append then [default: 0, nobody]
        #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
        holds: Option<u64>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Whom {
    /// The master that leads; until the next namespace operation.
    Leader,
    /// The primary of a chunk; until the next append.
    Primary,
    /// A chunkserver; until others have a replica of everything that it held.
    Chunkserver,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    /// kill -9: its host says that nobody is there.
    Kill,
    /// SIGSTOP: its connections stay and are silent.
    Pause,
    /// It is cut off the network.
    Cut,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// history.edn.
    Jepsen,
    /// A register: one cell of the workload cells.
    Knossos,
    /// list-append of the workload append, rw-register of cells.
    Elle,
}

impl From<To> for Format {
    fn from(to: To) -> Self {
        match to {
            To::Jepsen => Self::Jepsen,
            To::Knossos => Self::Knossos,
            To::Elle => Self::Elle,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Promised {
    Synced,
    Replicated,
}

/// The names of all workloads.
fn workload_help() -> String {
    let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
    format!("One of {}", names.join(", "))
}

/// A seed that differs from run to run.
fn draw() -> u64 {
    rand::random_range(0..1_000_000)
}

/// What the clients log, if `RUST_LOG` asks for it; the servers' logs are files of their own.
fn log_clients() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

fn main() -> Result<ExitCode> {
    log_clients();
    let Arguments { hosts, ledger, command } = Arguments::parse();
    let ledger = ledger.map(Ledger::new);
    // Judging needs no hosts, and the power goes on the hosts of all servers at once; rot, and faults
    // in the servers themselves, are the same anywhere.
    let alone = matches!(
        command,
        Command::Check { .. }
            | Command::Report { .. }
            | Command::Tally { .. }
            | Command::Export { .. }
            | Command::Power { .. }
            | Command::Rot { .. }
            | Command::Faults { .. }
            | Command::Mutants { .. }
    );
    let placement = if alone { Placement::Loopback } else { hosts };
    let (site, why_not) = Site::open(placement)?;
    if let Some(why_not) = why_not {
        tell(&why_not)?;
    }
    // After the site: the threads of the runtime are to live where it has put this one.
    let good = Runtime::new()?.block_on(obey(command, &site, ledger.as_ref()))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn obey(command: Command, site: &Site, ledger: Option<&Ledger>) -> Result<bool> {
    match command {
        Command::Run { workload, nemesis, time, operations, seed, clients, keep } => {
            let nemesis = nemesis.into_iter().filter(|name| name != "none").collect();
            let seed = seed.unwrap_or_else(draw);
            let time = time.unwrap_or(if operations.is_some() { COUNTED_TIME } else { TIME });
            let time_ms = u64::try_from(time.as_millis())?;
            let plan = Plan { workload, nemesis, time_ms, seed, clients, operations };
            Ok(run_one(&plan, site, keep, ledger).await?.is_good())
        }
        Command::Matrix { time, nemesis, seed } => {
            let runs = Runs { time, seed: seed.unwrap_or_else(draw), site, ledger };
            run_matrix(&nemesis, &runs).await
        }
        Command::Check { file, workload } => {
            let verdict = check_file(&file, workload.as_deref())?;
            tell(&serde_json::to_string_pretty(&verdict)?)?;
            Ok(verdict.is_good())
        }
        Command::Report { directory } => {
            tell(&report(&directory)?.display().to_string())?;
            Ok(true)
        }
        Command::Tally { ledgers, json } => {
            let sum = tally(&ledgers)?;
            tell(&if json { serde_json::to_string_pretty(&sum)? } else { sum.to_string() })?;
            // Of no run at all nothing is good.
            Ok(sum.bad + sum.undecided == 0 && sum.good > 0)
        }
        Command::Export { file, format, cell } => {
            tell(export(&std::fs::read_to_string(file)?, format.into(), cell)?.trim_end())?;
            Ok(true)
        }
        Command::Power { rounds, durability, seed } => {
            let promise = match durability {
                Promised::Synced => Promise::Synced,
                Promised::Replicated => Promise::Replicated,
            };
            run_power(rounds, promise, seed.unwrap_or_else(draw)).await
        }
        Command::Rot { corruptions, seed } => run_rot(corruptions, seed.unwrap_or_else(draw)).await,
        Command::Measure { subject, by, within, rounds, holds } => {
            let subject = match subject {
                Whom::Leader => {
                    ensure!(
                        holds.is_none(),
                        "--holds is for a primary or a chunkserver: a leader holds no chunks"
                    );
                    Subject::Leader
                }
                Whom::Primary => Subject::Primary { holds: holds.unwrap_or(0) << 20 },
                Whom::Chunkserver => Subject::Chunkserver { holds: holds.unwrap_or(1024) << 20 },
            };
            let loss = match by {
                How::Kill => Loss::Kill,
                How::Pause => Loss::Pause,
                How::Cut => Loss::Cut,
            };
            let measured = measure((subject, loss), rounds, site, tell).await?;
            tell(&measured.to_string())?;
            Ok(within.is_none_or(|within| measured.longest() <= within))
        }
        Command::Faults { points, actions, batch, strikes, seed } => {
            run_sweep(&Sweep { points, actions, batch, strikes, seed: seed.unwrap_or_else(draw) }).await
        }
        Command::Mutants { only, fast } => run_mutants(&only, fast),
    }
}

async fn run_power(rounds: u32, promise: Promise, seed: u64) -> Result<bool> {
    if let Some(obstacle) = gfs_tests::Disks::obstacle() {
        tell(&format!("nothing was tried: {obstacle}"))?;
        // Nor has anything passed.
        return Ok(false);
    }
    let report = power(rounds, promise, seed, tell).await?;
    let note = format!("each disk is a file to be mounted with -o loop; seed {seed}");
    tell_rounds(&report.findings, report.kept.as_deref(), &note)
}

async fn run_rot(corruptions: u64, seed: u64) -> Result<bool> {
    let report = rot(corruptions, seed, tell).await?;
    tell_rounds(&report.findings, report.kept.as_deref(), &format!("seed {seed}"))
}

/// How a series of rounds has ended; whether it is good.
fn tell_rounds(findings: &[String], kept: Option<&Path>, note: &str) -> Result<bool> {
    for finding in findings.iter().take(20) {
        tell(&format!("  finding: {finding}"))?;
    }
    if let Some(kept) = kept {
        tell(&format!("  kept: {}; {note}", kept.display()))?;
    }
    Ok(findings.is_empty())
}

async fn run_one(plan: &Plan, site: &Site, keep: bool, ledger: Option<&Ledger>) -> Result<Verdict> {
    let started = Instant::now();
    let (directory, verdict) = run(plan, site).await.with_context(|| plan.command())?;
    ledger.map_or(Ok(()), |ledger| ledger.add(plan, &verdict))?;
    let (done, left_out) = plan.fault_names(site)?;
    let nemesis = if done.is_empty() { "none".into() } else { done.join(",") };
    let left_out =
        if left_out.is_empty() { String::new() } else { format!("; left out: {}", left_out.join(",")) };
    let taken = started.elapsed().as_secs();
    tell(&format!(
        "{:<10} {nemesis:<40} seed {:<7} {verdict}; {taken} s{left_out}",
        plan.workload, plan.seed
    ))?;
    if verdict.is_good() && !keep {
        std::fs::remove_dir_all(&directory)?;
    } else {
        explain(&verdict)?;
        tell(&format!("  kept: {}\n  again: {}", directory.display(), plan.command()))?;
    }
    Ok(verdict)
}

fn explain(verdict: &Verdict) -> Result<()> {
    for (kind, lines) in
        [("finding", &verdict.findings), ("doubt", &verdict.doubts), ("note", &verdict.notes)]
    {
        for line in lines.iter().take(10) {
            tell(&format!("  {kind}: {line}"))?;
        }
    }
    Ok(())
}

/// What the runs of a matrix have in common.
struct Runs<'a> {
    time: Duration,
    seed: u64,
    site: &'a Site,
    ledger: Option<&'a Ledger>,
}

async fn run_matrix(nemesis: &[String], runs: &Runs<'_>) -> Result<bool> {
    let Runs { time, seed, site, ledger } = *runs;
    let Mixes { runs: mixes, left_out } = mixes(nemesis, |needs| site.has(needs))?;
    for mix in &left_out {
        tell(&format!("left out, it can't be done here: {}", mix.join("+")))?;
    }
    let mut strikes = Strikes::of(&left_out);
    let (mut passed, mut failed) = (0, 0);
    for plan in cells(&mixes, u64::try_from(time.as_millis())?, seed) {
        strikes.expect(&plan.nemesis);
        // Some workloads have nothing that the only fault of a mix could strike.
        if let Err(why) = plan.fault_names(site) {
            tell(&format!("{:<10} left out: {why:#}", plan.workload))?;
            continue;
        }
        // A run that breaks off is a failed cell, not the end of the matrix.
        match run_one(&plan, site, false, ledger).await {
            Ok(verdict) => {
                strikes.add(&verdict);
                *if verdict.is_good() { &mut passed } else { &mut failed } += 1;
            }
            Err(error) => {
                failed += 1;
                tell(&format!("{:<10} broke off: {error:#}", plan.workload))?;
            }
        }
    }
    strikes.lines().iter().try_for_each(|line| tell(line))?;
    tell(&format!("{passed} passed, {failed} failed"))?;
    // A matrix without a run has shown nothing.
    Ok(failed == 0 && passed > 0)
}

async fn run_sweep(plan: &Sweep) -> Result<bool> {
    let cells = sweep(plan, |cell| {
        tell(&cell.to_string())?;
        cell.findings.iter().try_for_each(|finding| tell(&format!("  {finding}")))
    })
    .await?;
    let bad = cells.iter().filter(|cell| !cell.findings.is_empty()).count();
    let mut idle: Vec<&str> = cells.iter().map(|cell| cell.point).collect();
    idle.sort_unstable();
    idle.dedup();
    let all = idle.len();
    idle.retain(|point| cells.iter().filter(|cell| cell.point == *point).all(|cell| cell.count.struck == 0));
    let often = cells.iter().filter(|cell| cell.count.struck >= plan.strikes).count();
    tell(&format!(
        "{} cells, {bad} bad, {often} struck {} times or more; {} of {all} fail points struck",
        cells.len(),
        plan.strikes,
        all - idle.len()
    ))?;
    idle.iter().try_for_each(|point| tell(&format!("never struck: {point}")))?;
    Ok(bad == 0 && idle.is_empty())
}

fn run_mutants(only: &[String], fast: bool) -> Result<bool> {
    tell("| mutant | found by | seconds |\n|---|---|---|")?;
    let lines = mutants(only, fast, |line| tell(&line.to_string()))?;
    let alive = lines.iter().filter(|line| line.found.is_none()).count();
    tell(&format!("\n{} mutants, {alive} alive", lines.len()))?;
    Ok(alive == 0)
}

fn tell(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
