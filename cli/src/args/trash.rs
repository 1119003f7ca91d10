//! The arguments of commands on what was deleted.

use clap::{Args, Subcommand};

use super::ClientSettings;

const UNDELETE_HELP: &str = "\
Of several that were deleted from PATH the last one is restored, unless --id names another; `gfs trash list PATH` lists them.
A directory comes back with all that was in it.

Examples:
  gfs undelete /docs/report.pdf
  gfs undelete /docs --to /docs-restored";

/// `gfs undelete`
#[derive(Args, Debug)]
#[command(after_help = UNDELETE_HELP)]
pub(crate) struct Undelete {
    /// From where it was deleted
    pub(crate) path: String,
    /// Where to restore it, if not where it was; nothing may have this path
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<String>,
    /// Which one, by its id
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<u64>,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs trash ..`
#[derive(Subcommand, Debug)]
pub(crate) enum Trash {
    /// List what was deleted and can still be restored, those first that go first
    List(TrashList),
    /// Delete what is in the trash for good, before its date
    Empty(TrashEmpty),
}

/// `gfs trash list`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  gfs trash list /docs")]
pub(crate) struct TrashList {
    /// Only what was deleted here or below
    #[arg(default_value = "/")]
    pub(crate) path: String,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs trash empty`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  gfs trash empty\n  gfs trash empty /docs/report.pdf --id e12")]
pub(crate) struct TrashEmpty {
    /// Only what was deleted here or below
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Only this one, by its id
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<u64>,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// Reads the id of an entry, as `gfs trash list` and `gfs stat` print it.
fn parse_id(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('e').unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is no id: write e12 or 12"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_printed() {
        assert_eq!((parse_id("e12"), parse_id("12")), (Ok(12), Ok(12)));
        assert!(parse_id("s12").is_err() && parse_id("e").is_err() && parse_id("-1").is_err());
    }
}
