//! `gfs dev`: a whole cluster on this machine, one child process per server.

mod children;
mod plan;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gfs_proto::leader::MasterChannel;
use gfs_proto::{Environment, Error, pb};
use serde::Serialize;

use self::children::{Children, Death};
use self::plan::{Plan, Role, Server};
use crate::args;
use crate::cmd::{print_json, print_line};

/// How long all servers may take until they are up: a slow machine still formats its disks.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How often the state of the start is looked at.
const START_POLL: Duration = Duration::from_millis(100);
/// A server that dies is started again after this, with `--restart`.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

const CLUSTER_FILE: &str = "cluster.json";

/// Contents of `DIR/cluster.json`.
#[derive(Serialize, Debug)]
struct ClusterFile {
    /// Addresses of the masters, without the shadows.
    masters: Vec<String>,
    processes: Vec<ProcessEntry>,
}

#[derive(Serialize, Debug)]
struct ProcessEntry {
    role: Role,
    name: String,
    pid: u32,
    addr: String,
}

/// Runs a cluster until it is told to stop.
pub(crate) async fn run(flags: args::Dev) -> Result<()> {
    std::fs::create_dir_all(&flags.dir)
        .with_context(|| format!("--dir {} can't be made", flags.dir.display()))?;
    let plan = Plan::settle(&flags, &flags.dir)?;
    let servers = plan.servers(&flags.dir);
    check_ports(&servers)?;
    plan.save(&flags.dir)?;
    remove_if_there(&flags.dir.join(CLUSTER_FILE))?;

    let mut stop = StopSignal::listen()?;
    let mut children = Children::start(&flags.dir, servers)?;
    let outcome = tokio::select! {
        outcome = supervise(&flags, &plan, &mut children) => outcome,
        () = stop.received() => Ok(()),
    };
    tracing::info!("stopping {} processes", children.running());
    remove_if_there(&flags.dir.join(CLUSTER_FILE))?;
    children.stop().await;
    outcome
}

/// Waits until the cluster is up, tells so, then watches its processes.
async fn supervise(flags: &args::Dev, plan: &Plan, children: &mut Children) -> Result<()> {
    wait_until_up(flags, plan, children).await?;
    write_cluster_file(&flags.dir, plan, children)?;
    // Whoever started it may have gone: the cluster stays.
    if let Err(error) = announce(flags, plan, children) {
        tracing::debug!(%error, "nobody reads the announcement");
    }
    loop {
        let death = children.next_death().await;
        if !flags.restart {
            tracing::warn!("{death}; it stays dead (--restart would start it again)");
            continue;
        }
        tracing::warn!("{death}; starting it again");
        tokio::time::sleep(RESTART_PAUSE).await;
        children.start_again(&flags.dir, &death.name)?;
        write_cluster_file(&flags.dir, plan, children)?;
    }
}

/// A port in use is told before anything starts, instead of in one log of nine.
fn check_ports(servers: &[Server]) -> Result<()> {
    for server in servers {
        TcpListener::bind(&server.address).map(drop).with_context(|| {
            format!(
                "{} of {} can't be used: choose another --port, or stop what runs there",
                server.address, server.name
            )
        })?;
    }
    Ok(())
}

async fn wait_until_up(flags: &args::Dev, plan: &Plan, children: &mut Children) -> Result<()> {
    let masters = MasterChannel::new(&Environment::real(), &plan.master_addresses())?;
    let waited = tokio::time::timeout(START_PATIENCE, async {
        loop {
            tokio::select! {
                death = children.next_death() => return Err(died_at_start(&flags.dir, &death)),
                () = tokio::time::sleep(START_POLL) => {}
            }
            let status = masters
                .call(Duration::from_secs(1), async |mut master| {
                    Ok(master
                        .cluster_status(pb::ClusterStatusRequest {})
                        .await
                        .map_err(Error::from)?
                        .into_inner())
                })
                .await;
            match status.map(|status| missing(plan, &status)) {
                Ok(None) => return Ok(()),
                Ok(Some(missing)) => tracing::debug!(%missing, "not up yet"),
                Err(error) => tracing::debug!(%error, "not up yet"),
            }
        }
    });
    let logs = flags.dir.join("logs");
    match waited.await {
        Ok(outcome) => outcome,
        Err(_) => bail!("the cluster is not up after {START_PATIENCE:?}; see {}", logs.display()),
    }
}

/// What the cluster still lacks.
fn missing(plan: &Plan, status: &pb::ClusterStatusReply) -> Option<String> {
    let heard = |voter| {
        let of_kind = status.masters.iter().filter(|master| master.voter == voter);
        of_kind.filter(|master| master.lag.is_some() || master.address == status.leader).count()
    };
    let alive = status.servers.iter().filter(|server| server.alive).count();
    [
        ("masters", heard(true), plan.masters),
        ("shadows", heard(false), plan.shadows),
        ("chunkservers", alive, plan.chunkservers),
    ]
    .into_iter()
    .find(|(_, here, wanted)| *here < usize::from(*wanted))
    .map(|(what, here, wanted)| format!("{here} of {wanted} {what}"))
}

fn died_at_start(dir: &Path, death: &Death) -> anyhow::Error {
    let log = children::log_path(dir, &death.name);
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    let tail: String = lines.into_iter().rev().map(|line| format!("\n  {line}")).collect();
    anyhow::anyhow!("{death} while the cluster was starting; the end of {}:{tail}", log.display())
}

fn write_cluster_file(dir: &Path, plan: &Plan, children: &Children) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(&cluster_file(plan, children))?;
    plan::write_atomically(&dir.join(CLUSTER_FILE), &bytes)
}

fn cluster_file(plan: &Plan, children: &Children) -> ClusterFile {
    let processes = children.all().map(|(server, pid)| ProcessEntry {
        role: server.role,
        name: server.name.clone(),
        pid,
        addr: server.address.clone(),
    });
    ClusterFile { masters: plan.master_addresses(), processes: processes.collect() }
}

fn announce(flags: &args::Dev, plan: &Plan, children: &Children) -> Result<()> {
    if flags.json {
        return print_json(&cluster_file(plan, children));
    }
    print_line(&format!(
        "A cluster of {}, {} and {} is up in {}. In another terminal:",
        counted(plan.masters, "master"),
        counted(plan.shadows, "shadow"),
        counted(plan.chunkservers, "chunkserver"),
        flags.dir.display()
    ))?;
    print_line(&format!("  export GFS_MASTERS={}", plan.master_addresses().join(",")))?;
    print_line("  gfs cluster status")?;
    print_line("Ctrl-C stops it; the same command brings it back with its data.")
}

fn counted(count: u16, what: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {what}{ending}")
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Ctrl-C, or a polite request to end.
pub(crate) struct StopSignal {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignal {
    /// From now on these signals do not end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }
    /// Until one of them comes.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
