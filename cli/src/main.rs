//! The gfs command: every server role and every user command. The only place where all crates meet.
#![allow(clippy::print_stdout, reason = "printing is what a command does")]

mod args;
mod cmd;
mod config;
mod exit;
#[cfg(test)]
mod fuzz;
mod limits;
mod parent;
mod telemetry;
mod units;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::telemetry::Verbosity;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let server = matches!(cli.command, Command::Master(_) | Command::Chunkserver(_) | Command::Dev(_));
    let verbosity = if server { Verbosity::Server } else { Verbosity::Command };
    match run(cli, verbosity) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => exit::report(&error, verbosity),
    }
}

fn run(cli: Cli, verbosity: Verbosity) -> Result<()> {
    telemetry::start(verbosity)?;
    gfs_proto::fault::start()?;
    if verbosity == Verbosity::Server {
        parent::follow()?;
        limits::raise_open_files();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(cmd::run(cli));
    // A blocked read of the standard input must not keep the process.
    runtime.shutdown_background();
    outcome
}
