//! Where the servers of a cluster live: all on this host, or each on one of its own.

use std::fmt::Debug;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

/// Ports below those from which the system takes the local ports of connections.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// Ports of one test process: their ranges differ, so that tests can run side by side.
const PORTS_PER_PROCESS: u16 = 100;

/// Gives each server of a cluster its host.
pub trait Hosts: Debug + Send + Sync {
    /// A free `host:port` for the server of this name; the host is the same for the same name.
    ///
    /// # Errors
    /// There is no more room, or the host can't be made.
    fn address(&self, name: &str) -> Result<String>;

    /// Starts a command on the host of the server of this name, as a child of this thread.
    ///
    /// # Errors
    /// It can't be started.
    fn spawn(&self, name: &str, command: &mut Command) -> Result<Child>;
}

/// Every server on this host, on a port of its own.
#[derive(Debug)]
pub struct Loopback;

impl Hosts for Loopback {
    fn address(&self, _name: &str) -> Result<String> {
        free_address()
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| format!("{name} can't be started"))
    }
}

/// An address of the loopback that nobody uses now.
fn free_address() -> Result<String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ranges = u32::from((PORTS.end - PORTS.start) / PORTS_PER_PROCESS);
    let range = u16::try_from(std::process::id() % ranges)?;
    for _ in 0..PORTS.len() {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset =
            (u32::from(range) * u32::from(PORTS_PER_PROCESS) + u32::from(step)) % u32::try_from(PORTS.len())?;
        let address = format!("127.0.0.1:{}", u32::from(PORTS.start) + offset);
        if TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free")
}
