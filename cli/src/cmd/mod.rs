//! The commands, one file each, and what they share: connecting and printing.

mod append;
mod cat;
mod chunks;
mod cluster;
mod dev;
mod df;
mod fsck;
mod get;
mod ls;
mod mkdir;
mod mv;
mod put;
mod rm;
mod server;
mod snapshot;
mod stat;
mod transfer;
mod trash;

use std::io::Write;

use anyhow::Result;
use gfs_client::{Client, Durability, Options, TransferError};
use serde::Serialize;

use crate::args::{self, Cli, ClientSettings, Command, TopSettings};
use crate::config;

/// Runs the command of a command line.
pub(crate) async fn run(cli: Cli) -> Result<()> {
    let top = cli.settings;
    match cli.command {
        Command::Dev(args) => dev::run(args::Dev { json: args.json || top.json, ..args }).await,
        Command::Master(args) => server::master(&top, args).await,
        Command::Chunkserver(args) => server::chunkserver(&top, args).await,
        Command::Ls(args) => ls::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Mkdir(args) => mkdir::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Put(args) => {
            put::run(&Session::with(&top, &args.settings, args.durability).await?, &args).await
        }
        Command::Get(args) => get::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Cat(args) => cat::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Append(args) => {
            append::run(&Session::with(&top, &args.settings, args.durability).await?, &args).await
        }
        Command::Stat(args) => stat::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Snapshot(args) => snapshot::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Mv(args) => mv::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Rm(args) => rm::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Undelete(args) => trash::undelete(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Trash(args::Trash::List(args)) => {
            trash::list(&Session::of(&top, &args.settings).await?, &args).await
        }
        Command::Trash(args::Trash::Empty(args)) => {
            trash::empty(&Session::of(&top, &args.settings).await?, &args).await
        }
        Command::Chunks(args) => chunks::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Fsck(args) => fsck::run(&Session::of(&top, &args.settings).await?, &args).await,
        Command::Df(args) => df::run(&Session::of(&top, &args.settings).await?).await,
        Command::Cluster(args::Cluster::Status(args)) => {
            cluster::status(&Session::of(&top, &args.settings).await?).await
        }
    }
}

/// A user command's connection, and how it prints.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) json: bool,
}

impl Session {
    async fn of(top: &TopSettings, own: &ClientSettings) -> Result<Self> {
        Self::with(top, own, args::Durability::Synced).await
    }

    async fn with(top: &TopSettings, own: &ClientSettings, durability: args::Durability) -> Result<Self> {
        let settings = config::Client::settle(top, own)?;
        let durability = match durability {
            args::Durability::Synced => Durability::Synced,
            args::Durability::Replicated => Durability::Replicated,
        };
        let options = Options { patience: settings.timeout, durability, ..Options::default() };
        let client = Client::connect(&settings.masters, options).await?;
        Ok(Self { client, json: settings.json })
    }

    /// Prints one thing: as a line of JSON, or as `text` writes it.
    pub(crate) fn print(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            return print_json(value);
        }
        let text = text();
        if !text.is_empty() {
            print_line(&text)?;
        }
        Ok(())
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(&serde_json::to_string(value)?)
}

/// Prints a line; unlike `println!`, a closed pipe is an error and no panic.
pub(crate) fn print_line(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

/// A name or path as people see it: whoever gave it must not forge lines of the output, or command the terminal. JSON has it
/// as it is.
pub(crate) fn visible(text: &str) -> String {
    let show =
        |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    text.chars().map(show).collect()
}

/// The error of either side, as the exit codes know it.
pub(crate) fn transfer_error(error: TransferError) -> anyhow::Error {
    match error {
        TransferError::Local(error) => error.into(),
        TransferError::Gfs(error) => error.into(),
    }
}

/// A path as people write it: one slash at the end is taken off.
pub(crate) fn trimmed(path: &str) -> &str {
    match path.strip_suffix('/') {
        Some("") | None => path,
        Some(rest) => rest,
    }
}

/// The path of `name` in `directory`.
pub(crate) fn join(directory: &str, name: &str) -> String {
    if directory == "/" { format!("/{name}") } else { format!("{directory}/{name}") }
}

/// The last name of a path; empty for the root.
pub(crate) fn last_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_on_one_line_and_commands_no_terminal() {
        assert_eq!(visible("/a b/\u{fc}"), "/a b/\u{fc}");
        assert_eq!(visible("/a\n/b\t\u{1b}[2J\u{7f}\u{9b}"), r"/a\n/b\t\u{1b}[2J\u{7f}\u{9b}");
    }
}
