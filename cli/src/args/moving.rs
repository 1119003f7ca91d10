//! The arguments of commands that give entries another place or a copy.

use clap::Args;

use super::ClientSettings;

/// `gfs mv`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  gfs mv /photos /archive/photos-2024")]
pub(crate) struct Mv {
    /// What to rename
    pub(crate) source: String,
    /// Its new path; if that is a directory, it moves into it. With / at the end a file needs one
    pub(crate) target: String,
    /// Replace a file that exists (it goes to the trash in the same step)
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs snapshot`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  gfs snapshot /photos /photos-before-cleanup\n\n\
A tree of more than some hundred entries is built step by step: its names stand still until then (with --timeout to wait \
longer).")]
pub(crate) struct Snapshot {
    /// What to copy: a file or a tree
    pub(crate) source: String,
    /// The path of the copy; nothing may have it
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}
