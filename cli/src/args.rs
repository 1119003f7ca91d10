//! The command line: every flag, its help and its examples. Parsed by clap; meaning is given in `config.rs`.

mod check;
mod moving;
mod trash;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::units::{parse_bytes, parse_duration};

pub(crate) use check::{Chunks, Fsck};
pub(crate) use moving::{Mv, Snapshot};
pub(crate) use trash::{Trash, TrashEmpty, TrashList, Undelete};

/// A program that can be told to fail says so (decision 0016).
const VERSION: &str = if gfs_proto::fault::BUILT {
    concat!(env!("CARGO_PKG_VERSION"), " with faults: for tests, never for users")
} else {
    env!("CARGO_PKG_VERSION")
};

const ABOUT: &str = "A distributed file system in the shape of the GFS paper: one binary for every role.";

const AFTER_HELP: &str = "\
Examples:
  gfs dev                                        a whole cluster on this machine; Ctrl-C stops it
  export GFS_MASTERS=127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002
  gfs put -r ./photos /photos                    store a tree
  gfs ls -l /photos                              look at it
  gfs get -r /photos ./copy                      and get it back
  tar c . | gfs put - /backup.tar                store what comes down a pipe
  gfs cluster status                             who leads, who is alive

Exit codes:
  0  done
  1  another failure
  2  usage: a flag, path or setting that can't work
  3  not found
  4  exists already
  5  unavailable: no leader, no live replica, too few chunkservers, or the deadline passed
  6  corruption: bytes do not match their checksum on any replica; of fsck also: lost, or waits for a decision
  130  put or get was interrupted: what was half done is removed

Environment:
  GFS_MASTERS   addresses of masters, for every command that talks to a cluster
  GFS_CONFIG    a TOML file with the same settings as the flags (flags win)
  RUST_LOG      what to log on stderr, e.g. debug or gfs_client=trace";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(name = "gfs", version = VERSION, about = ABOUT, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: TopSettings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What may stand before the command; the same flags after the command win.
#[derive(Args, Debug, Default)]
pub(crate) struct TopSettings {
    /// Addresses of masters or shadows, host:port; any of them finds the leader
    #[arg(long, value_name = "ADDR,..", value_delimiter = ',', env = "GFS_MASTERS")]
    pub(crate) masters: Vec<String>,
    /// TOML file with settings: the same names as the flags
    #[arg(long, value_name = "FILE", env = "GFS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// How long to go on without progress, e.g. 30s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// The settings of every user command.
#[derive(Args, Debug, Default)]
pub(crate) struct ClientSettings {
    /// Addresses of masters or shadows, host:port; any of them finds the leader [env: GFS_MASTERS]
    #[arg(long, value_name = "ADDR,..", value_delimiter = ',')]
    pub(crate) masters: Vec<String>,
    /// TOML file with settings: the same names as the flags [env: GFS_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// How long to go on without progress [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Every command.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine, one process per server
    Dev(Dev),
    /// Run a master or a shadow master
    Master(Master),
    /// Run a chunkserver
    Chunkserver(Chunkserver),
    /// List a directory
    Ls(Ls),
    /// Make directories
    Mkdir(Mkdir),
    /// Store files or trees
    Put(Put),
    /// Fetch a file or tree
    Get(Get),
    /// Write files to the standard output
    Cat(Cat),
    /// Append one record to a file and print its offset
    Append(Append),
    /// Show what is known of files and directories
    Stat(Stat),
    /// Rename a file or directory
    Mv(Mv),
    /// Copy a file or a small tree in a moment, sharing its data until one side is written
    Snapshot(Snapshot),
    /// Remove files or trees (to the trash)
    Rm(Rm),
    /// Restore what was removed
    Undelete(Undelete),
    /// List or empty the trash
    #[command(subcommand)]
    Trash(Trash),
    /// Show the chunks of a file: handles, versions, replicas
    Chunks(Chunks),
    /// Check that every chunk has its replicas, and decide about those that wait for it
    Fsck(Fsck),
    /// Show the space of every chunkserver
    Df(Df),
    /// Show the state of the cluster
    #[command(subcommand)]
    Cluster(Cluster),
}

const DEV_HELP: &str = "\
Starting again on the same directory brings the data back, with the numbers and ports it was made with.
DIR/cluster.json names the masters and all processes; it is written once all of them are up.
DIR/logs/ has one log per process.

Example:
  gfs dev --dir ./gfs-dev --chunkservers 5 &
  gfs --masters 127.0.0.1:7000 cluster status";

/// A whole cluster on this machine.
#[derive(Args, Debug)]
#[command(after_help = DEV_HELP)]
pub(crate) struct Dev {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = "gfs-dev")]
    pub(crate) dir: PathBuf,
    /// Number of masters: 1, 3 or 5 [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) masters: Option<u16>,
    /// Number of shadow masters [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) shadows: Option<u16>,
    /// Number of chunkservers [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) chunkservers: Option<u16>,
    /// First port; the servers take this and the following ones [default: 7000]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Size of a chunk, for a new cluster [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) chunk_size: Option<u64>,
    /// Start a server again when it dies; without it a dead one stays dead
    #[arg(long)]
    pub(crate) restart: bool,
    /// Print the contents of cluster.json when all are up
    #[arg(long)]
    pub(crate) json: bool,
}

const MASTER_HELP: &str = "\
A group of three and a shadow:
  gfs master --data /srv/m1 --listen 10.0.0.1:7000 --bootstrap
  gfs master --data /srv/m2 --listen 10.0.0.2:7000 --join 10.0.0.1:7000
  gfs master --data /srv/m3 --listen 10.0.0.3:7000 --join 10.0.0.1:7000
  gfs master --data /srv/s1 --listen 10.0.0.4:7000 --join 10.0.0.1:7000 --shadow
The same commands start them again later: a directory that holds a master already goes on as that one. Once the
cluster is there start the first with --join, too: --bootstrap with an empty directory makes another cluster.";

/// A master or shadow.
#[derive(Args, Debug)]
#[command(after_help = MASTER_HELP)]
pub(crate) struct Master {
    /// Directory of this master; never shared, never copied
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address to listen on, as the others reach it
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Address that the others are told, if it is not the one to listen on
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Make a new cluster of which this is the first master
    #[arg(long, conflicts_with_all = ["join", "shadow"])]
    pub(crate) bootstrap: bool,
    /// Join the cluster of these masters
    #[arg(long, value_name = "ADDR,..", value_delimiter = ',')]
    pub(crate) join: Vec<String>,
    /// Join as a shadow: serves lookups, has no vote
    #[arg(long)]
    pub(crate) shadow: bool,
    /// Size of a chunk (with --bootstrap; fixed for ever) [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) chunk_size: Option<u64>,
    /// Replicas of a file that asks for none (with --bootstrap) [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) replication: Option<u32>,
    /// How long deleted files stay in the trash (with --bootstrap) [default: 3d]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) trash: Option<Duration>,
    /// TOML file with the same settings [env: GFS_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

const CHUNKSERVER_HELP: &str = "\
Example:
  gfs chunkserver --data /disk1/gfs,/disk2/gfs --listen 10.0.0.5:7100 \\
      --masters 10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000 --rack r1";

/// A chunkserver.
#[derive(Args, Debug, Default)]
#[command(after_help = CHUNKSERVER_HELP)]
pub(crate) struct Chunkserver {
    /// Directories for chunks, one per disk
    #[arg(long, value_name = "DIR,..", value_delimiter = ',')]
    pub(crate) data: Vec<PathBuf>,
    /// Address to listen on, as the others reach it
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Address that the others are told, if it is not the one to listen on
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Addresses of masters; the others are learnt from them [env: GFS_MASTERS]
    #[arg(long, value_name = "ADDR,..", value_delimiter = ',')]
    pub(crate) masters: Vec<String>,
    /// Rack of this server: replicas are spread over racks
    #[arg(long, value_name = "NAME")]
    pub(crate) rack: Option<String>,
    /// Memory for pushed data that waits for its mutation [default: 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) buffer: Option<u64>,
    /// TOML file with the same settings [env: GFS_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// When a write is acknowledged.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// Fsynced on every replica
    Synced,
    /// In the memory of every replica, as in the paper
    Replicated,
}

/// `gfs ls`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  gfs ls -lR /photos")]
pub(crate) struct Ls {
    /// What to list
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Kind, replicas, size, time and name
    #[arg(short)]
    pub(crate) long: bool,
    /// Also what lies below
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs mkdir`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  gfs mkdir -p /a/b/c")]
pub(crate) struct Mkdir {
    /// What to make
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    /// Also missing parents; an existing directory is success
    #[arg(short, long)]
    pub(crate) parents: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

const PUT_HELP: &str = "\
If REMOTE is a directory, LOCAL is stored in it under its own name; with several LOCALs it must be one.
A file appears under its name when it is whole, never before.
Links to files are followed. Links to directories, sockets and the like are left out and told; a name that is no UTF-8
fails.

Examples:
  gfs put report.pdf /docs/                  stored as /docs/report.pdf
  gfs put -r ./photos /photos                stored as /photos, or /photos/photos if that is a directory
  tar c . | gfs put - /backup.tar";

/// `gfs put`
#[derive(Args, Debug)]
#[command(after_help = PUT_HELP)]
pub(crate) struct Put {
    /// Files or directories of this machine, or - for the standard input; then where to
    #[arg(required = true, num_args = 2.., value_names = ["LOCAL", "REMOTE"])]
    pub(crate) paths: Vec<String>,
    /// Also directories with all that lies in them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Replace files that exist
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Replicas of the stored files [default: the cluster's]
    #[arg(long, value_name = "N")]
    pub(crate) replication: Option<u32>,
    /// When a file counts as stored
    #[arg(long, value_name = "WHEN", default_value = "synced")]
    pub(crate) durability: Durability,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// What put and get share.
#[derive(Args, Debug)]
pub(crate) struct Transfer {
    /// Files in flight at a time
    #[arg(short, long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,
    /// No progress bar
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

const GET_HELP: &str = "\
If LOCAL is a directory, REMOTE is written in it under its own name.

Examples:
  gfs get /docs/report.pdf .
  gfs get -r /photos ./copy
  gfs get /backup.tar - | tar t";

/// `gfs get`
#[derive(Args, Debug)]
#[command(after_help = GET_HELP)]
pub(crate) struct Get {
    /// What to fetch
    pub(crate) remote: String,
    /// Where to, or - for the standard output
    pub(crate) local: String,
    /// Also directories with all that lies in them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Replace files that exist
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

const CAT_HELP: &str = "\
Examples:
  gfs cat --records --json /log              payload, position and id of each record
  gfs cat --replica s2 /log                  the bytes as server s2 has them (`gfs chunks` names the servers)";

/// `gfs cat`
#[derive(Args, Debug)]
#[command(after_help = CAT_HELP)]
pub(crate) struct Cat {
    /// Files to write out, one after the other
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    /// The payloads of records that `append --records` or a program stored, each once, without padding and damage
    #[arg(long, conflicts_with = "replica")]
    pub(crate) records: bool,
    /// Position to begin at: 0, or the end of a record
    #[arg(long, value_name = "POSITION", default_value_t = 0, requires = "records")]
    pub(crate) from: u64,
    /// Read from this server's replicas only: its id or address
    #[arg(long, value_name = "SERVER")]
    pub(crate) replica: Option<String>,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

const APPEND_HELP: &str = "\
The record lands whole, at an offset that the system chooses (GFS §3.3). It may be as large as a quarter of a chunk.

Examples:
  echo 'a line' | gfs append /log
  gfs append /log record.bin
  seq 100 | gfs append --records /numbers    a record per line; `gfs cat --records` prints them";

/// How the input is cut into records.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Split {
    /// Each line is one
    Lines,
    /// All of it is one
    Whole,
}

/// `gfs append`
#[derive(Args, Debug)]
#[command(after_help = APPEND_HELP)]
pub(crate) struct Append {
    /// The file to append to; made if it is not there
    pub(crate) path: String,
    /// A local file with the record, or - for the standard input
    #[arg(default_value = "-")]
    pub(crate) record: String,
    /// Store with length, id and checksum, so that `cat --records` finds each record once: a record per line
    #[arg(long, value_name = "SPLIT", num_args = 0..=1, require_equals = true, default_missing_value = "lines")]
    pub(crate) records: Option<Split>,
    /// When the record counts as stored
    #[arg(long, value_name = "WHEN", default_value = "synced")]
    pub(crate) durability: Durability,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs stat`
#[derive(Args, Debug)]
pub(crate) struct Stat {
    /// What to show
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs rm`
#[derive(Args, Debug)]
pub(crate) struct Rm {
    /// What to remove
    #[arg(required = true)]
    pub(crate) paths: Vec<String>,
    /// Also directories with all that lies in them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Nothing there is success
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs df`
#[derive(Args, Debug)]
pub(crate) struct Df {
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

/// `gfs cluster ..`
#[derive(Subcommand, Debug)]
pub(crate) enum Cluster {
    /// Leader, term, members and their lag, chunkservers alive, chunks below their goal
    Status(ClusterStatus),
}

/// `gfs cluster status`
#[derive(Args, Debug)]
pub(crate) struct ClusterStatus {
    #[command(flatten)]
    pub(crate) settings: ClientSettings,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn masters_may_stand_before_or_after_the_command_and_mean_a_number_to_dev() {
        let cli = Cli::try_parse_from(["gfs", "--masters", "a:1,b:2", "ls", "-lR"]).unwrap();
        assert_eq!(cli.settings.masters, ["a:1", "b:2"]);
        let cli = Cli::try_parse_from(["gfs", "ls", "/x", "--masters", "c:3"]).unwrap();
        assert!(matches!(cli.command, Command::Ls(Ls { settings, .. }) if settings.masters == ["c:3"]));
        let cli = Cli::try_parse_from(["gfs", "dev", "--masters", "1"]).unwrap();
        assert!(matches!(cli.command, Command::Dev(Dev { masters: Some(1), .. })));
    }
}
