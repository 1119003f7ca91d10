//! A network of our own: hosts that are network namespaces, and the switch between them.
//!
//! A host's device is a tun device (IP packets, no Ethernet): without ARP nobody notices a cut cable but by the
//! silence on it, as it is between real hosts that know each other.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gfs_tests::Hosts;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::CONTROL;
use super::namespace::Namespace;
use super::packet;
use super::switch::{Fate, Switch, Weather};

/// Hosts have the addresses 10.77.0.1 and up: they exist nowhere but between the namespaces.
const SUBNET: [u8; 3] = [10, 77, 0];
/// Most hosts.
const HOSTS_MAX: usize = 64;
/// Name of the device in each namespace.
const DEVICE: &str = "net0";
/// Ports of servers; each start of a cluster takes new ones.
const PORTS: std::ops::Range<u16> = 7000..20_000;
/// Largest packet.
const MTU: u16 = 1500;
/// Packets taken from a host before the next one has its turn.
const TURN: usize = 64;
/// How often the switch looks for new hosts and for its end.
const IDLE: Duration = Duration::from_millis(20);

/// Hosts and the switch between them. The switch stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    shared: Arc<Shared>,
    /// Behind a lock because hosts are made as they are asked for.
    hosts: Mutex<BTreeMap<String, Host>>,
    next_port: AtomicU16,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Host {
    number: usize,
    namespace: Namespace,
}

/// What the thread of the switch shares with those who change the weather.
struct Shared {
    started: Instant,
    /// One per host, by its number. Behind a lock because hosts are added.
    devices: Mutex<Vec<Arc<SyncDevice>>>,
    /// Behind a lock because the weather changes.
    switch: Mutex<Switch>,
    stop: AtomicBool,
}
impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "switch of {} hosts", self.devices.lock().len())
    }
}

impl Network {
    /// A network without hosts.
    pub(crate) fn start() -> Result<Self> {
        let installed = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(installed.is_ok(), "the command `ip` is missing: install iproute2");
        let shared = Arc::new(Shared {
            started: Instant::now(),
            devices: Mutex::default(),
            switch: Mutex::new(Switch::new(1)),
            stop: AtomicBool::new(false),
        });
        let carrier = shared.clone();
        let thread = std::thread::Builder::new().name("switch".into()).spawn(move || carrier.carry())?;
        Ok(Self { shared, hosts: Mutex::default(), next_port: AtomicU16::new(0), thread: Some(thread) })
    }

    /// Moves this thread to a host, for good.
    pub(crate) fn enter(&self, host: &str) -> Result<()> {
        self.with(host, |host| host.namespace.enter())
    }

    /// What happens from now on to packets from one host to another.
    pub(crate) fn set(&self, from: &str, to: &str, weather: Weather) -> Result<()> {
        let (from, to) = (self.number(from)?, self.number(to)?);
        self.shared.switch.lock().set(from, to, weather);
        Ok(())
    }

    /// Cuts a host off all others but the control host, which watches.
    pub(crate) fn isolate(&self, host: &str) -> Result<()> {
        let others: Vec<String> = self.hosts.lock().keys().cloned().collect();
        for other in others.iter().filter(|other| *other != host && *other != CONTROL) {
            let cut = Weather { cut: true, ..Weather::default() };
            self.set(host, other, cut)?;
            self.set(other, host, cut)?;
        }
        Ok(())
    }

    /// Good weather everywhere.
    pub(crate) fn clear(&self) {
        self.shared.switch.lock().clear();
    }

    fn number(&self, host: &str) -> Result<usize> {
        self.with(host, |host| Ok(host.number))
    }

    /// Does something with a host, which is made if there is none of that name.
    fn with<T>(&self, name: &str, action: impl FnOnce(&Host) -> Result<T>) -> Result<T> {
        let mut hosts = self.hosts.lock();
        if !hosts.contains_key(name) {
            let host = self.add(hosts.len()).with_context(|| format!("host {name}"))?;
            hosts.insert(name.to_owned(), host);
        }
        action(hosts.get(name).context("no such host")?)
    }

    fn add(&self, number: usize) -> Result<Host> {
        ensure!(number < HOSTS_MAX, "too many hosts");
        let namespace = Namespace::create()?;
        let device = namespace.visit(|| {
            let device = DeviceBuilder::new().name(DEVICE).layer(Layer::L3).enable(false);
            let device = device.build_sync().context("/dev/net/tun is needed")?;
            device.set_nonblocking(true)?;
            configure(address_of(number)?)?;
            Ok(device)
        })?;
        self.shared.devices.lock().push(Arc::new(device));
        Ok(Host { number, namespace })
    }
}

impl Hosts for Network {
    fn address(&self, name: &str) -> Result<String> {
        let step = self.next_port.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + step % (PORTS.end - PORTS.start);
        Ok(format!("{}:{port}", address_of(self.number(name)?)?))
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Result<Child> {
        let start = || command.spawn().with_context(|| format!("{name} can't be started"));
        self.with(name, |host| host.namespace.visit(start))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told on stderr.
            thread.join().ok();
        }
    }
}

/// The address of a host.
fn address_of(number: usize) -> Result<Ipv4Addr> {
    let [a, b, c] = SUBNET;
    Ok([a, b, c, u8::try_from(number + 1)?].into())
}

/// The number of the host with this address.
fn number_of(address: Ipv4Addr) -> Option<usize> {
    let [a, b, c, last] = address.octets();
    usize::from(last).checked_sub(1).filter(|_| [a, b, c] == SUBNET)
}

/// Gives the devices of the namespace that this thread is in their addresses.
fn configure(address: Ipv4Addr) -> Result<()> {
    let orders = format!(
        "link set lo up\n\
         link set {DEVICE} mtu {MTU} txqueuelen 4000\n\
         addr add {address}/24 dev {DEVICE}\n\
         link set {DEVICE} up\n"
    );
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("the command `ip` is missing: install iproute2")?;
    child.stdin.take().context("no stdin")?.write_all(orders.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

impl Shared {
    /// Carries packets until it is told to stop.
    fn carry(&self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        while !self.stop.load(Ordering::Relaxed) {
            let devices = self.devices.lock().clone();
            for from in self.wait(&devices) {
                self.forward(&devices, from, &mut buffer);
            }
            self.deliver_due(&devices);
        }
    }

    /// Waits until a host has sent something or a packet is due; numbers of the hosts that have.
    fn wait(&self, devices: &[Arc<SyncDevice>]) -> Vec<usize> {
        let due = self.switch.lock().next_due();
        let patience = due.map_or(IDLE, |due| due.saturating_sub(self.started.elapsed()).min(IDLE));
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        let mut polls: Vec<_> =
            devices.iter().map(|device| PollFd::new(device.as_ref(), PollFlags::IN)).collect();
        // An interruption is as good as a timeout.
        if poll(&mut polls, Some(&timeout)).is_err() {
            return Vec::new();
        }
        let ready = polls.iter().enumerate().filter(|(_, poll)| !poll.revents().is_empty());
        ready.map(|(number, _)| number).collect()
    }

    fn forward(&self, devices: &[Arc<SyncDevice>], from: usize, buffer: &mut [u8]) {
        let Some(device) = devices.get(from) else { return };
        for _ in 0..TURN {
            let Ok(length) = device.recv(buffer) else { return };
            let packet = &mut buffer[..length];
            let Some(to) = packet::destination(packet).and_then(number_of) else { continue };
            let fate = self.switch.lock().take((from, to), packet, self.started.elapsed());
            if let Fate::Deliver(to) = fate {
                deliver(devices, to, packet);
            }
        }
    }

    fn deliver_due(&self, devices: &[Arc<SyncDevice>]) {
        for _ in 0..TURN {
            let due = self.switch.lock().due(self.started.elapsed());
            let Some((to, packet)) = due else { return };
            deliver(devices, to, &packet);
        }
    }
}

/// A packet that its host can't take is lost, as it would be on a cable.
fn deliver(devices: &[Arc<SyncDevice>], to: usize, packet: &[u8]) {
    if let Some(device) = devices.get(to) {
        device.send(packet).ok();
    }
}
