//! Exit codes, and the next step that an error names. The codes are listed in `gfs --help` and README.md.

use std::io::Write;
use std::process::ExitCode;

use gfs_proto::{Error, Retry};

use crate::cmd::visible;
use crate::telemetry::Verbosity;

/// Done.
pub(crate) const OK: u8 = 0;
/// Another failure.
pub(crate) const OTHER: u8 = 1;
/// A flag, path or setting that can't work; clap exits with the same.
pub(crate) const USAGE: u8 = 2;
/// Not found.
pub(crate) const NOT_FOUND: u8 = 3;
/// Exists already.
pub(crate) const EXISTS: u8 = 4;
/// Unavailable, or the deadline passed.
pub(crate) const UNAVAILABLE: u8 = 5;
/// Corruption.
pub(crate) const CORRUPTION: u8 = 6;

/// Told to stop, by Ctrl-C or SIGTERM.
pub(crate) const INTERRUPTED: u8 = 130;

/// A mistake in how the command was called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A usage error with its text.
pub(crate) fn usage(text: impl std::fmt::Display) -> anyhow::Error {
    Usage(text.to_string()).into()
}

/// Several operations of one command failed; each was reported when it did.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} failed{}", if *given_up { ", the others were not tried: no master answers" } else { "" })]
pub(crate) struct SomeFailed {
    pub(crate) failed: u64,
    pub(crate) all: u64,
    /// Whether there were more, which were not tried.
    pub(crate) given_up: bool,
    /// The exit code of the first failure.
    pub(crate) code: u8,
}

/// A failure that says its own next step.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) step: String,
    pub(crate) code: u8,
}

/// The command was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// The code for what a command ended with.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return USAGE;
        }
        if cause.is::<Interrupted>() {
            return INTERRUPTED;
        }
        if let Some(some) = cause.downcast_ref::<SomeFailed>() {
            return some.code;
        }
        if let Some(failed) = cause.downcast_ref::<Failed>() {
            return failed.code;
        }
        if let Some(error) = cause.downcast_ref::<Error>() {
            return code_of_wire(error);
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return code_of_io(error);
        }
    }
    OTHER
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds have no code of their own")]
fn code_of_io(error: &std::io::Error) -> u8 {
    // An error of the file system may travel inside an I/O error, through a reader or writer.
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return code_of_wire(inner);
    }
    match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        std::io::ErrorKind::AlreadyExists => EXISTS,
        _ => OTHER,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what can't be repeated and has no code of its own is 1")]
fn code_of_wire(error: &Error) -> u8 {
    match error {
        Error::BadPath { .. } | Error::BadArgument { .. } | Error::TooLarge { .. } => USAGE,
        Error::NotFound { .. } => NOT_FOUND,
        Error::AlreadyExists { .. } => EXISTS,
        _ if error.is_damage() => CORRUPTION,
        Error::DeadlineExceeded { .. } => UNAVAILABLE,
        _ if error.retry() != Retry::Never => UNAVAILABLE,
        _ => OTHER,
    }
}

/// What to try next, where it is known.
pub(crate) fn next_step(error: &anyhow::Error) -> Option<&str> {
    let own = error.chain().find_map(|cause| cause.downcast_ref::<Failed>());
    own.map(|failed| failed.step.as_str()).or_else(|| known_step(error))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other errors say all there is")]
fn known_step(error: &anyhow::Error) -> Option<&'static str> {
    let error = error.chain().find_map(|cause| {
        let nested = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        cause.downcast_ref::<Error>().or_else(|| nested?.downcast_ref::<Error>())
    })?;
    Some(match error {
        Error::NotFound { .. } => "`gfs ls -R /` shows what is there",
        Error::AlreadyExists { .. } => "--force replaces a file that exists; `mkdir -p` accepts a directory",
        Error::IsADirectory { .. } => "`gfs ls PATH` shows what is in it; `gfs get -r` fetches all of it",
        Error::NotEnoughServers { .. } => {
            "start more chunkservers, or ask for fewer replicas with `put --replication`; `gfs df` lists the servers, \
             and `gfs trash empty` gives back the room of what was deleted"
        }
        Error::NoReplica { .. } => "start the servers that hold it; `gfs chunks PATH` and `gfs df` name them",
        Error::Unavailable { .. } | Error::DeadlineExceeded { .. } | Error::NotLeader { .. } => {
            "`gfs cluster status` tells who is alive; --timeout gives it more time; are the --masters right?"
        }
        Error::DiskFull { .. } => {
            "`gfs df` shows where there is room; `gfs trash empty` gives back that of what was deleted"
        }
        _ if error.is_damage() => "`gfs fsck` names what is damaged, and what each replica holds",
        _ => return None,
    })
}

/// A line for people on the standard error. If nobody can take it, as on a full disk, what the command does matters more.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stderr(), "{}", told(line)).ok();
}

/// What is in an error may come from a name: nothing in it commands the terminal, and none of its further lines looks like ours.
fn told(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n     ")
}

/// Says what went wrong on the standard error, and ends the process with its code.
pub(crate) fn report(error: &anyhow::Error, verbosity: Verbosity) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::from(OTHER);
    }
    say(&format!("gfs: {error:#}"));
    // The steps are a user's; a server's reader has its log.
    if verbosity == Verbosity::Command
        && let Some(step) = next_step(error)
    {
        say(&format!("     {step}"));
    }
    ExitCode::from(code_of(error))
}

/// Whoever read our output has gone, as `head` does: nothing to say.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use gfs_proto::id::ChunkHandle;

    use super::*;

    #[test]
    fn a_name_in_an_error_forges_no_line() {
        assert_eq!(told("gfs: /a\ngfs: all is well\u{1b}[1A"), "gfs: /a\n     gfs: all is well\\u{1b}[1A");
    }

    #[test]
    fn no_step_is_named_that_the_command_does_not_have() {
        let step = |error: Error| next_step(&error.into()).map(str::to_owned);
        assert_eq!(step(Error::TooLarge { what: "replication".into(), size: 99, limit: 16 }), None);
        let directory = step(Error::IsADirectory { path: "/d".into() }).unwrap();
        assert!(directory.starts_with("`gfs ls"), "{directory}");
        let full = step(Error::DiskFull { server: gfs_proto::id::ServerId::from_raw(1) }).unwrap();
        assert!(full.contains("gfs trash empty"), "{full}");
    }

    #[test]
    fn exit_codes_tell_the_kinds_of_failure_apart_also_through_context_and_io() {
        let corrupt = Error::Corrupt { handle: ChunkHandle::from_raw(1), block: 2 };
        let not_found = Error::NotFound { what: "/x".into() };
        for (error, code) in [
            (anyhow::Error::from(not_found.clone()), NOT_FOUND),
            (Error::AlreadyExists { path: "/x".into() }.into(), EXISTS),
            (Error::NotEnoughServers { wanted: 3, alive: 2 }.into(), UNAVAILABLE),
            (Error::DeadlineExceeded { waited_ms: 1, last: String::new() }.into(), UNAVAILABLE),
            (Error::NotLeader { leader: None }.into(), UNAVAILABLE),
            (std::io::Error::other(corrupt).into(), CORRUPTION),
            (Error::NotValidated { handle: ChunkHandle::from_raw(1), damaged: true }.into(), CORRUPTION),
            (Error::NotValidated { handle: ChunkHandle::from_raw(1), damaged: false }.into(), UNAVAILABLE),
            (usage("no"), USAGE),
            (Error::internal("x").into(), OTHER),
            (SomeFailed { failed: 1, all: 2, given_up: false, code: EXISTS }.into(), EXISTS),
        ] {
            assert_eq!(code_of(&error), code, "{error}");
        }
        let wrapped = Err::<(), _>(not_found).context("while reading").unwrap_err();
        assert_eq!(code_of(&wrapped), NOT_FOUND);
        assert!(next_step(&wrapped).is_some());
    }
}
