//! The master: replicated namespace, leases, background work (GFS §2.4).
//!
//! Three states, three homes: *replicated* in [`state`], which only the log changes, through [`raft`]; *soft* in
//! `cluster`, which heartbeats and reports rebuild; *local* in the data directory, which `raft` keeps. `plan` says
//! what should be done, `leader` does it while this master leads, `service` answers.

mod cluster;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod identity;
mod leader;
mod plan;
pub mod raft;
mod service;
pub mod state;

#[cfg(test)]
mod tests;

use std::time::Duration;

use gfs_proto::net::Listener;
use gfs_proto::task::every;
use gfs_proto::{Environment, Error, Result, fault};
use tokio_util::sync::CancellationToken;

pub use config::{MasterConfig, SESSION_DEFAULT, Start, TRASH_DEFAULT};

use leader::Leader;
use raft::{BootstrapConfig, Node, NodeConfig, Origin};
use service::Service;

/// How often a master that does not lead asks how far the log is, so that it knows the age of its state.
const REFRESH_PERIOD: Duration = Duration::from_millis(200);

/// Most connections of one master, and the descriptors that are left whatever comes.
const CONNECTIONS_MAX: usize = 16 * 1024;
const DESCRIPTORS_KEPT: usize = 896;

/// Runs one master or shadow on `listener` until `stop`.
///
/// # Errors
/// Why it could not start, or what it died of.
pub async fn run(
    config: MasterConfig,
    environment: Environment,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<()> {
    config.check()?;
    let address = match &config.advertise {
        Some(address) => address.clone(),
        None => listener.local_address().map_err(Error::unavailable)?.to_string(),
    };
    let connections_max = connections_max();
    let node_config = NodeConfig { connections_max, ..NodeConfig::new(&config.data, address) };
    run_node((node_config, &origin(&config)), environment, listener, stop, |_| ()).await
}

/// As [`run`], for whoever chooses what is otherwise fixed (timers, how often a checkpoint is made) and wants to look
/// at the node while it runs: `started` is called with it once.
///
/// # Errors
/// As [`run`].
pub async fn run_node(
    (config, origin): (NodeConfig, &Origin),
    environment: Environment,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
    started: impl FnOnce(&Node),
) -> Result<()> {
    let connections_max = config.connections_max;
    let node = tokio::select! {
        node = Node::start(config, origin, &environment) => node?,
        () = stop.cancelled() => return Ok(()),
    };
    started(&node);
    tracing::info!(id = %node.id(), cluster = %node.cluster(), "master started");
    // From here on wall time is the group's.
    let environment = Environment { clock: node.clock(), ..environment };
    let ended = serve(&node, &environment, (listener, connections_max), &stop).await;
    node.shutdown().await;
    ended
}

/// As many connections as the process may have descriptors for, but for those that the stores and calls to others need: a node
/// whose store fails stops, and its clients would go on to the next one.
fn connections_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    // With very few there is room for some at least.
    limit.saturating_sub(DESCRIPTORS_KEPT).max(limit / 8).min(CONNECTIONS_MAX)
}

/// Serves and works until `stop`, or until the node can't go on.
async fn serve(
    node: &Node,
    environment: &Environment,
    (listener, connections_max): (Box<dyn Listener>, usize),
    stop: &CancellationToken,
) -> Result<()> {
    let leader = Leader::new(node.clone(), environment);
    let service = Service::new(node.clone(), leader.clone(), environment.clone());
    let ending = CancellationToken::new();
    let refreshed = service.clone();
    let refresh = move || {
        let service = refreshed.clone();
        async move { service.refresh().await }
    };
    let work = async {
        tokio::join!(leader.run(ending.clone()), every("refresh", REFRESH_PERIOD, ending.clone(), refresh));
    };
    let serving = async {
        let served = tokio::select! {
            served = service.serve((listener, connections_max), ending.clone()) => served,
            error = node.failed() => Err(error),
        };
        ending.cancel();
        served
    };
    // Guard served_until_handed_over: as long as it leads nobody else can, so it serves until another one does.
    let handing_over = async {
        tokio::select! {
            () = stop.cancelled() => {
                node.hand_over().await;
                ending.cancel();
            }
            () = ending.cancelled() => {}
        }
    };
    tokio::join!(serving, work, handing_over).0
}

fn origin(config: &MasterConfig) -> Origin {
    match &config.start {
        Start::Bootstrap => Origin::Bootstrap(BootstrapConfig {
            chunk_bytes: config.chunk_bytes,
            replication: config.replication,
            trash: config.trash,
            session: Duration::from_secs(fault::tuned("session_s", SESSION_DEFAULT.as_secs())),
        }),
        Start::Join(masters) => Origin::Join { masters: masters.clone(), shadow: config.shadow },
    }
}
