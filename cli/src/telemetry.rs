//! Logs: to the standard error, filtered by `RUST_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How much is logged when `RUST_LOG` says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verbosity {
    /// A server: what changed its state.
    Server,
    /// A user command: only what the user should know beside the outcome.
    Command,
}

/// Starts logging. Called once, before anything can log.
///
/// # Errors
/// A `RUST_LOG` that can't be read.
pub(crate) fn start(verbosity: Verbosity) -> anyhow::Result<()> {
    let default = match verbosity {
        // openraft tells each of its steps, and each heartbeat that a dead peer does not answer.
        Verbosity::Server => "info,openraft=error",
        Verbosity::Command => "warn",
    };
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let text = if wanted.trim().is_empty() { default } else { wanted.as_str() };
    let filter = EnvFilter::try_new(text)
        .map_err(|error| crate::exit::usage(format!("RUST_LOG={text:?} can't be read: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true)
        // A reader of the log that goes away must not take the server with it: to complain of it would panic.
        .log_internal_errors(false)
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging: {error}"))
}
