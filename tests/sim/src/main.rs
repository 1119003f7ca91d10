//! `gfs-sim`: the whole cluster, masters to clients, in one process under simulated time, with simulated network, clocks,
//! randomness and disks; everything that happens follows from one seed.

mod clients;
mod doors;
mod hosts;
mod nemesis;
mod plan;
mod points;
mod probe;
mod run;
mod sweep;
mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gfs_jepsen::parse_time;

use crate::plan::Plan;
use crate::sweep::Sweep;

#[derive(Parser)]
#[command(about = "Simulates a whole gfs cluster in one process, under a seed.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One seed.
    Run {
        /// From which everything is drawn.
        #[arg(long)]
        seed: u64,
        /// Simulated time in which clients work while faults happen: 30s, 500ms, 2m.
        #[arg(long, default_value = "60s", value_parser = parse_time)]
        time: Duration,
        /// Keep trace and histories of a good run too.
        #[arg(long)]
        keep: bool,
        /// What the trace holds, targets and levels: `trace` shows every message.
        #[arg(long, default_value = "info,openraft=warn")]
        trace: String,
        /// Print the report as one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Many seeds, each in a process of its own.
    Sweep {
        /// First seed and the one after the last: 0..100.
        #[arg(long, value_parser = sweep::parse_seeds)]
        seeds: std::ops::Range<u64>,
        /// Simulated time of each, as for run.
        #[arg(long, default_value = "60s", value_parser = parse_time)]
        time: Duration,
        /// Processes at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Begin no further seed after so much real time.
        #[arg(long, value_parser = parse_time)]
        real_time: Option<Duration>,
        /// Run each seed once more: another trace (of what servers and clients log at debug) the second time is a failure.
        #[arg(long)]
        twice: bool,
        /// Add the report of each seed to this file, one a line, for `sum`.
        #[arg(long)]
        record: Option<PathBuf>,
    },
    /// Adds up what several sweeps have recorded.
    Sum {
        /// Their files.
        #[arg(required = true)]
        records: Vec<PathBuf>,
    },
}

fn main() -> Result<ExitCode> {
    let command = Arguments::parse().command;
    run::remove_dead_data()?;
    let good = match command {
        Command::Run { seed, time, keep, trace, json } => {
            run_one(&Plan::draw(seed, time), keep, &trace, json)?
        }
        Command::Sweep { seeds, time, jobs, real_time, twice, record } => {
            sweep::sweep(seeds, &Sweep { time, jobs: jobs.max(1), real_time, twice, record })?
        }
        Command::Sum { records } => sweep::add_up(&records)?,
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(plan: &Plan, keep: bool, filter: &str, json: bool) -> Result<bool> {
    gfs_proto::fault::start()?;
    let directory: PathBuf =
        tempfile::Builder::new().prefix(&format!("gfs-sim-{}-", plan.seed)).tempdir()?.keep();
    let report = run::run(plan.clone(), directory.clone(), filter)?;
    if json {
        tell(&serde_json::to_string(&report)?)?;
    } else {
        tell(&serde_json::to_string_pretty(&report)?)?;
    }
    if report.good && !keep {
        std::fs::remove_dir_all(&directory)?;
    } else {
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(&report)?)?;
        writeln!(std::io::stderr(), "kept: {}\nagain: {}", directory.display(), plan.command())?;
    }
    Ok(report.good)
}

/// Prints a line.
fn tell(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
