//! Where a run takes place: each server and the clients on hosts of their own, or all on the loopback.
//!
//! A host is a network namespace with one device, the end of a cable to a switch that is a thread of this process
//! ([`Network`]). Namespaces have no names in the file system: they go when the last process in them has ended,
//! whatever ended it, so that nothing can be left behind.

mod namespace;
mod network;
mod packet;
mod switch;

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use gfs_tests::{Disks, Hosts, Loopback, gfs_has_faults};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::nemesis::Needs;

pub(crate) use network::Network;
pub(crate) use switch::Weather;

/// The host of whoever watches the cluster and mends it: no fault touches its cables.
pub(crate) const CONTROL: &str = "control";
/// The host of all clients.
pub(crate) const CLIENTS: &str = "clients";

/// Where the servers and clients of a run are to live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// On hosts of their own if that is possible, or else on the loopback.
    #[default]
    Auto,
    /// All on the loopback of this host: no fault of the network.
    Loopback,
    /// On hosts of their own, or not at all.
    Namespaces,
}

/// The place of a run.
#[derive(Debug)]
pub struct Site {
    network: Option<Arc<Network>>,
    clients: Option<ClientHost>,
}

/// A runtime whose threads live on the host of the clients.
#[derive(Debug)]
struct ClientHost {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    /// Makes the place; with it, why it is not on hosts of its own although it might have been.
    ///
    /// This thread moves to the control host: what it starts afterwards, a runtime too, reaches every server there.
    ///
    /// # Errors
    /// Hosts of their own are asked for and impossible.
    pub fn open(placement: Placement) -> Result<(Self, Option<String>)> {
        let loopback = || Self { network: None, clients: None };
        if placement == Placement::Loopback {
            return Ok((loopback(), None));
        }
        match Self::on_hosts() {
            Ok(site) => Ok((site, None)),
            Err(error) if placement == Placement::Auto => {
                let why = format!(
                    "no hosts of their own, so everything is on the loopback and no fault of the network is tried: {error:#}"
                );
                Ok((loopback(), Some(why)))
            }
            Err(error) => Err(error.context("no hosts of their own")),
        }
    }

    fn on_hosts() -> Result<Self> {
        let network = Arc::new(Network::start()?);
        network.enter(CONTROL)?;
        let clients = ClientHost::start(network.clone())?;
        Ok(Self { network: Some(network), clients: Some(clients) })
    }

    /// Whether there is what a fault needs.
    pub fn has(&self, needs: Needs) -> bool {
        match needs {
            // Chunks are the workload's.
            Needs::Nothing | Needs::Chunks => true,
            Needs::Network => self.network.is_some(),
            Needs::Disks => Disks::obstacle().is_none(),
            // A program that is missing is complained of when it is to be started.
            Needs::Inside => gfs_has_faults().unwrap_or(false),
        }
    }

    /// The hosts of the servers.
    pub(crate) fn hosts(&self) -> Arc<dyn Hosts> {
        match &self.network {
            Some(network) => network.clone(),
            None => Arc::new(Loopback),
        }
    }

    /// The network between them, if it is ours.
    pub(crate) fn network(&self) -> Option<Arc<Network>> {
        self.network.clone()
    }

    /// Where the tasks of clients run.
    pub(crate) fn clients(&self) -> Handle {
        self.clients.as_ref().map_or_else(Handle::current, |clients| clients.handle.clone())
    }
}

impl ClientHost {
    fn start(network: Arc<Network>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("clients".into()).spawn(move || {
            // Threads are born on the host of their parent: all of this runtime will be on this one's.
            let runtime = network
                .enter(CLIENTS)
                .and_then(|()| Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?));
            match runtime {
                Ok(runtime) => {
                    ready.send(Ok(runtime.handle().clone())).ok();
                    // Ends also when the sender is dropped.
                    runtime.block_on(stopped).ok();
                    runtime.shutdown_background();
                }
                Err(error) => {
                    ready.send(Err(error)).ok();
                }
            }
        })?;
        let handle = started.recv().context("the thread of the clients has ended")??;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}
impl Drop for ClientHost {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told on stderr.
            thread.join().ok();
        }
    }
}
