//! Benchmarks of a real cluster on this machine, each beside the bare limit in the same run.
//!
//! All servers, the client and the limits share one machine and one disk; a round measures a limit and the cluster right after
//! each other, and the table shows medians over the rounds.

mod append;
mod limit;
mod machine;
mod measure;
mod metadata;
mod stream;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use gfs_client::{Client, Options};
use gfs_tests::{Cluster, Role, Shape};

use machine::Processors;
use measure::Rate;
use table::{Round, Table};

/// Rounds whose median is shown.
const ROUNDS: usize = 3;
/// Trash of the bench cluster: what a round wrote makes room for the next one soon.
const TRASH: Duration = Duration::from_secs(1);

/// Measures a cluster of three masters and three chunkservers that it starts, or a running one.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    /// What to measure; everything if nothing is named.
    #[arg(value_enum)]
    workloads: Vec<Workload>,
    /// Rounds; the median is shown.
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// Bytes of a stream in MiB, all streams together.
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Size of a chunk in MiB: small ones show what it costs that appenders go from chunk to chunk.
    #[arg(long, default_value_t = 64)]
    chunk_mib: u64,
    /// Seconds of each measurement of operations.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Masters of a running cluster, instead of starting one.
    #[arg(long, value_delimiter = ',')]
    masters: Vec<String>,
    /// Where the limits are measured, if the cluster is running already: a directory on the same disk.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Workload {
    /// Streams through a chain of three servers.
    Write,
    /// Streams back.
    Read,
    /// Record appends of 4 KiB, synced on three disks.
    Append,
    /// Creates of files.
    Mutation,
    /// Lookups of files.
    Lookup,
}

/// What a workload needs to know.
struct Bench {
    masters: Vec<String>,
    directory: PathBuf,
    stream_bytes: u64,
    duration: Duration,
    processors: Processors,
}

impl Bench {
    /// Measures throughput: `work` gives GB/s.
    async fn throughput(&self, limit: f64, work: impl Future<Output = Result<f64>>) -> Result<Round> {
        let before = self.processors.used();
        let ours = work.await?;
        let used = self.processors.used().saturating_sub(before).as_secs_f64();
        let cost = used / limit::gigabytes(self.stream_bytes, Duration::from_secs(1));
        Ok(Round { ours, limit, times_ms: None, cost })
    }
    /// Measures operations.
    async fn operations(&self, limit: f64, work: impl Future<Output = Result<Rate>>) -> Result<Round> {
        let before = self.processors.used();
        let rate = work.await?;
        let used = self.processors.used().saturating_sub(before).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a count of operations")]
        let cost = used * 1e6 / rate.count.max(1) as f64;
        Ok(Round { ours: rate.per_second, limit, times_ms: Some((rate.p50_ms, rate.p99_ms)), cost })
    }
    async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.masters, Options::default()).await?)
    }
    async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        futures::future::try_join_all((0..count).map(|_| self.client())).await
    }
}

/// Process ids of all servers.
fn processes(cluster: &Cluster) -> Vec<u32> {
    let names = [Role::Master, Role::Chunkserver].into_iter().flat_map(|role| cluster.names(role));
    names.filter_map(|name| cluster.process_id(&name)).collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cluster = if arguments.masters.is_empty() {
        let chunk_bytes = arguments.chunk_mib << 20;
        let shape = Shape { masters: 3, chunk_bytes, trash: TRASH, ..Shape::default() };
        Some(Cluster::start(shape).await?)
    } else {
        None
    };
    let bench = Bench {
        masters: cluster.as_ref().map_or_else(|| arguments.masters.clone(), Cluster::masters),
        directory: cluster.as_ref().map_or(arguments.directory.clone(), |cluster| cluster.directory().into()),
        stream_bytes: arguments.mib << 20,
        duration: Duration::from_secs_f64(arguments.seconds),
        processors: Processors::of(cluster.as_ref().map(processes).unwrap_or_default()),
    };
    let wanted = |workload| arguments.workloads.is_empty() || arguments.workloads.contains(&workload);
    let mut table = Table::default();
    bench.client().await?.mkdir_all("/bench").await?;
    for round in 1..=arguments.rounds.max(1) {
        writeln!(std::io::stderr(), "round {round} of {}", arguments.rounds.max(1))?;
        // Reading needs what writing has written.
        if wanted(Workload::Write) || wanted(Workload::Read) {
            for streams in [1, 4] {
                let shown = (wanted(Workload::Write), wanted(Workload::Read));
                stream::write_and_read(&bench, streams, &mut table, shown).await?;
            }
        }
        if wanted(Workload::Append) {
            for appenders in [1, 16, 64] {
                append::run(&bench, appenders, &mut table).await?;
            }
        }
        for clients in [1, 16, 64, 256] {
            let kinds = (wanted(Workload::Mutation), wanted(Workload::Lookup));
            metadata::run(&bench, clients, &mut table, kinds).await?;
        }
    }
    let machine = machine::describe(&bench.directory);
    let text = if arguments.json { table.json(&machine)? } else { table.text(&machine) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
