//! `gfs-jepsen`: runs clients against a real cluster under faults, and judges what they were told.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use gfs_jepsen::{FAULTS, Plan, Subject, Verdict, WORKLOADS, check_file, measure, run};

#[derive(Parser)]
#[command(about = "Runs clients against a real gfs cluster under faults, and judges what they were told.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One workload under some faults.
    Run {
        /// append, cells, namespace.
        #[arg(long)]
        workload: String,
        /// Kinds of faults, separated by commas, or none.
        #[arg(long, value_delimiter = ',', default_value = "none")]
        nemesis: Vec<String>,
        /// How long the clients work: 30s, 500ms.
        #[arg(long, default_value = "30s", value_parser = parse_time)]
        time: Duration,
        /// Seed of all choices; drawn if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Number of clients.
        #[arg(long, default_value_t = 8)]
        clients: u64,
        /// Keep the directory of a good run too.
        #[arg(long)]
        keep: bool,
    },
    /// Every workload under no fault, under each, and under all.
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
    /// Measures how long users wait after the loss of a server.
    Measure {
        /// Whom to kill.
        subject: Whom,
        /// How often.
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Whom {
    /// The master that leads; until the next namespace operation.
    Leader,
    /// The primary of a chunk; until the next append.
    Primary,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        other => Err(format!("no unit of time: {other:?}")),
    }
}

/// The faults of a mix.
fn split(mix: &str) -> Vec<String> {
    mix.split('+').filter(|name| *name != "none").map(str::to_owned).collect()
}

/// A seed that differs from run to run.
fn draw() -> u64 {
    rand::random_range(0..1_000_000)
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let good = match Arguments::parse().command {
        Command::Run { workload, nemesis, time, seed, clients, keep } => {
            let nemesis = nemesis.into_iter().filter(|name| name != "none").collect();
            let seed = seed.unwrap_or_else(draw);
            let plan = Plan { workload, nemesis, time_ms: u64::try_from(time.as_millis())?, seed, clients };
            run_one(&plan, keep).await?
        }
        Command::Matrix { time, nemesis, seed } => {
            run_matrix(time, &nemesis, seed.unwrap_or_else(draw)).await?
        }
        Command::Check { file, workload } => {
            let verdict = check_file(&file, workload.as_deref())?;
            tell(&serde_json::to_string_pretty(&verdict)?)?;
            verdict.is_good()
        }
        Command::Measure { subject, rounds } => {
            let subject = match subject {
                Whom::Leader => Subject::Leader,
                Whom::Primary => Subject::Primary,
            };
            tell(&measure(subject, rounds).await?.to_string())?;
            true
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_one(plan: &Plan, keep: bool) -> Result<bool> {
    let started = Instant::now();
    let (directory, verdict) = run(plan).await.with_context(|| plan.command())?;
    let nemesis = if plan.nemesis.is_empty() { "none".into() } else { plan.nemesis.join(",") };
    let taken = started.elapsed().as_secs();
    tell(&format!("{:<10} {nemesis:<40} seed {:<7} {verdict}; {taken} s", plan.workload, plan.seed))?;
    if verdict.is_good() && !keep {
        std::fs::remove_dir_all(&directory)?;
    } else {
        explain(&verdict)?;
        tell(&format!("  kept: {}\n  again: {}", directory.display(), plan.command()))?;
    }
    Ok(verdict.is_good())
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

async fn run_matrix(time: Duration, nemesis: &[String], seed: u64) -> Result<bool> {
    let all: Vec<String> = FAULTS.iter().map(|fault| fault.name.to_owned()).collect();
    let mixes: Vec<Vec<String>> = if nemesis.is_empty() {
        std::iter::once(vec![])
            .chain(all.iter().map(|name| vec![name.clone()]))
            .chain([all.clone()])
            .collect()
    } else {
        nemesis.iter().map(|mix| split(mix)).collect()
    };
    let (mut passed, mut failed) = (0, 0);
    for workload in WORKLOADS {
        for (index, mix) in (0_u64..).zip(&mixes) {
            let plan = Plan {
                workload: workload.name.into(),
                nemesis: mix.clone(),
                time_ms: u64::try_from(time.as_millis())?,
                seed: seed + index,
                clients: 8,
            };
            // A run that breaks off is a failed cell, not the end of the matrix.
            match run_one(&plan, false).await {
                Ok(true) => passed += 1,
                Ok(false) => failed += 1,
                Err(error) => {
                    failed += 1;
                    tell(&format!("{:<10} broke off: {error:#}", workload.name))?;
                }
            }
        }
    }
    tell(&format!("{passed} passed, {failed} failed"))?;
    Ok(failed == 0)
}

fn tell(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
