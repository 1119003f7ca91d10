//! The arguments of commands that look after chunks.

use clap::Args;

use super::ClientSettings;

/// `gfs chunks`
#[derive(Args, Debug)]
pub(crate) struct Chunks {
    /// The file
    pub(crate) path: String,
    /// Read all live replicas of each chunk and compare them block by block; exits with 6 if one is damaged or they
    /// differ, with 5 if one could not be read
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

const FSCK_HELP: &str = "\
Asks the leader what the replicas of every chunk are, and names the chunks that are not as they should be, \
with what each replica holds. Reads no data: `gfs chunks --verify` does. What is in the trash is not looked \
at.

Exits with 0 if every chunk has its replicas; with 5 if some are below their goal or away, which heals by \
itself or when their servers come back; with 6 if a replica is damaged, or a chunk is lost or waits for a \
decision.

A chunk waits if every current replica may have lost data in a power cut that hit all of them (durability \
`replicated`). Nobody reads it before somebody has decided which replica is to be its content; what that one \
has lost is then lost for good. The chunk is named with its version, so that nobody decides about something \
else.

Examples:
  gfs fsck /docs
  gfs fsck --accept c5@v8 --from s2";

/// `gfs fsck`
#[derive(Args, Debug)]
#[command(after_help = FSCK_HELP)]
pub(crate) struct Fsck {
    /// The tree or file to look at
    #[arg(default_value = "/", conflicts_with = "accept")]
    pub(crate) path: String,
    /// Decide about a chunk that waits: its handle and the version that fsck has shown
    #[arg(long, value_name = "HANDLE@VERSION", value_parser = parse_chunk, requires = "from")]
    pub(crate) accept: Option<(u64, u64)>,
    /// The server whose replica is to be the chunk's content, although it may have lost something
    #[arg(long, value_name = "SERVER", value_parser = parse_server, requires = "accept")]
    pub(crate) from: Option<u64>,
    /// Servers that had a replica, don't answer, and will not come back
    #[arg(long, value_name = "SERVER,..", value_delimiter = ',', value_parser = parse_server, requires = "accept")]
    pub(crate) given_up: Vec<u64>,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// Reads `c5@v8`.
fn parse_chunk(text: &str) -> Result<(u64, u64), String> {
    let parse = || {
        let (handle, version) = text.split_once('@')?;
        Some((handle.strip_prefix('c')?.parse().ok()?, version.strip_prefix('v')?.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{text:?} is no chunk: write c5@v8, as `gfs fsck` shows it"))
}

/// Reads `s2`.
fn parse_server(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('s').unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is no server: write s2 or 2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_servers_are_read_as_they_are_printed() {
        assert_eq!(parse_chunk("c5@v8"), Ok((5, 8)));
        for bad in ["c5", "5@8", "c5@8", "c@v1", "s5@v8", "c5@v8x", "c5@v8@v9"] {
            assert!(parse_chunk(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_server("s2"), parse_server("2")), (Ok(2), Ok(2)));
        assert!(parse_server("c2").is_err());
    }
}
