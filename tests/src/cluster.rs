//! A cluster of real processes, on this host or each on one of its own, in a directory that goes away with it.

mod change;
mod disk;
mod ends;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gfs_client::{Client, ClusterStatusReply, Options};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::binary::gfs_binary;
use crate::disks::Disks;
use crate::hosts::{Hosts, Loopback};
use crate::process::Process;
use crate::wait::eventually;

/// How long a cluster may take to come up, or to find itself again after a server was lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster consists of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Masters with a vote.
    pub masters: usize,
    /// Shadow masters.
    pub shadows: usize,
    /// Chunkservers.
    pub chunkservers: usize,
    /// Size of a chunk in bytes.
    pub chunk_bytes: u64,
    /// How long deleted files stay.
    pub trash: Duration,
    /// Bytes of a disk of its own for each server, which can lose power ([`Disks`]); needs root. Else the servers'
    /// directories lie on this machine's disk.
    pub disk_bytes: Option<u64>,
    /// What the servers log, as `RUST_LOG` has it; nothing: as this process does.
    pub log: Option<&'static str>,
}

impl Default for Shape {
    /// One master and three chunkservers with small chunks: enough for stories that kill no master.
    fn default() -> Self {
        Self {
            masters: 1,
            shadows: 0,
            chunkservers: 3,
            chunk_bytes: 1 << 20,
            trash: Duration::from_secs(3 * 24 * 3600),
            disk_bytes: None,
            log: None,
        }
    }
}

/// What a server is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A master with a vote.
    Master,
    /// A shadow master.
    Shadow,
    /// A chunkserver.
    Chunkserver,
}

impl Role {
    fn prefix(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Shadow => "shadow",
            Self::Chunkserver => "chunkserver",
        }
    }

    fn name(self, index: usize) -> String {
        format!("{}-{}", self.prefix(), index + 1)
    }
}

/// A running cluster. Servers have the names `master-1`, `shadow-1`, `chunkserver-1` and so on.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory: processes end before their files go.
    servers: BTreeMap<String, Process>,
    /// Those that have left for good.
    retired: BTreeMap<String, Process>,
    disks: Option<Disks>,
    directory: Option<TempDir>,
    shape: Shape,
    hosts: Arc<dyn Hosts>,
    /// Parts of ERROR lines that a story means to see.
    expected_errors: Vec<&'static str>,
    /// Whether the end of the cluster is no matter of what went wrong in it.
    judged_elsewhere: bool,
    /// Whether servers may end by themselves.
    ends_expected: bool,
}

impl Cluster {
    /// Starts all servers on the loopback and waits until the cluster is up.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(shape: Shape) -> Result<Self> {
        Self::start_on(shape, Arc::new(Loopback)).await
    }

    /// Starts all servers, each on its host, and waits until the cluster is up. This thread must reach every host.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_on(shape: Shape, hosts: Arc<dyn Hosts>) -> Result<Self> {
        let mut cluster = Self::prepare_on(shape, hosts)?;
        if let Err(error) = cluster.come_up().await {
            // That is why: what is in the logs would hide it.
            cluster.judge_elsewhere();
            let kept = cluster.keep();
            return Err(error.context(format!("its files stay in {}", kept.display())));
        }
        Ok(cluster)
    }

    async fn come_up(&mut self) -> Result<()> {
        self.restart_all()?;
        self.wait_until_up().await
    }

    /// A cluster on the loopback of which no server runs yet.
    ///
    /// # Errors
    /// No directory or no free port.
    pub fn prepare(shape: Shape) -> Result<Self> {
        Self::prepare_on(shape, Arc::new(Loopback))
    }

    /// A cluster of which no server runs yet.
    ///
    /// # Errors
    /// No directory or no address.
    pub fn prepare_on(shape: Shape, hosts: Arc<dyn Hosts>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("gfs-test-").tempdir()?;
        std::fs::create_dir(directory.path().join("logs"))?;
        let disks = shape.disk_bytes.map(|_| Disks::new(directory.path())).transpose()?;
        let mut cluster = Self {
            servers: BTreeMap::new(),
            retired: BTreeMap::new(),
            disks,
            directory: Some(directory),
            shape,
            hosts: hosts.clone(),
            expected_errors: Vec::new(),
            judged_elsewhere: false,
            ends_expected: false,
        };
        let mut masters = Vec::new();
        for index in 0..shape.masters {
            masters.push(hosts.address(&Role::Master.name(index))?);
        }
        for (index, address) in masters.iter().enumerate() {
            cluster.add_master(Role::Master, index, address.clone(), &masters)?;
        }
        for index in 0..shape.shadows {
            let address = hosts.address(&Role::Shadow.name(index))?;
            cluster.add_master(Role::Shadow, index, address, &masters)?;
        }
        for index in 0..shape.chunkservers {
            let name = Role::Chunkserver.name(index);
            let address = hosts.address(&name)?;
            cluster.add_chunkserver(name, address, &masters)?;
        }
        Ok(cluster)
    }

    fn add_master(&mut self, role: Role, index: usize, address: String, masters: &[String]) -> Result<()> {
        let mut arguments: Vec<OsString> = if role == Role::Master && index == 0 {
            let (bytes, trash_ms) = (self.shape.chunk_bytes, self.shape.trash.as_millis());
            let trash = format!("{trash_ms}ms");
            vec![
                "--bootstrap".into(),
                "--chunk-size".into(),
                bytes.to_string().into(),
                "--trash".into(),
                trash.into(),
            ]
        } else {
            vec!["--join".into(), masters.join(",").into()]
        };
        if role == Role::Shadow {
            arguments.push("--shadow".into());
        }
        self.add(role.name(index), "master", address, arguments)
    }

    fn add_chunkserver(&mut self, name: String, address: String, masters: &[String]) -> Result<()> {
        self.add(name, "chunkserver", address, ["--masters".into(), masters.join(",").into()])
    }

    fn add(
        &mut self,
        name: String,
        command: &str,
        address: String,
        more: impl IntoIterator<Item = OsString>,
    ) -> Result<()> {
        if let (Some(disks), Some(bytes)) = (&mut self.disks, self.shape.disk_bytes) {
            disks.add(&name, bytes)?;
        }
        let mut arguments: Vec<OsString> = vec![command.into(), "--data".into(), self.data_of(&name).into()];
        arguments.extend(["--listen".into(), OsString::from(&address)]);
        arguments.extend(more);
        let log = self.directory().join("logs").join(format!("{name}.log"));
        let mut process = Process::new(&name, address, arguments, log, self.hosts.clone());
        if let Some(disks) = &self.disks {
            process.wrap(disks.wrapper(&name));
        }
        process.verbosity = self.shape.log;
        self.servers.insert(name, process);
        Ok(())
    }

    /// Where everything of this cluster lies.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().map_or(Path::new("."), TempDir::path)
    }
    /// Lets the directory stay when the cluster is gone; returns it.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(directory) = &mut self.directory {
            directory.disable_cleanup(true);
        }
        self.directory().to_owned()
    }
    /// The data directory of a server.
    pub fn data_of(&self, name: &str) -> PathBuf {
        match &self.disks {
            // Below the disk's own directory: without the disk there is nothing to begin in.
            Some(disks) if disks.has(name) => disks.path(name).join("data"),
            _ => self.directory().join(name),
        }
    }
    /// Names of the servers of a role.
    pub fn names(&self, role: Role) -> Vec<String> {
        self.servers.keys().filter(|name| name.starts_with(role.prefix())).cloned().collect()
    }
    /// Addresses of the masters, without the shadows.
    pub fn masters(&self) -> Vec<String> {
        self.names(Role::Master).iter().filter_map(|name| self.address_of(name)).collect()
    }
    /// The address of a server.
    pub fn address_of(&self, name: &str) -> Option<String> {
        self.servers.get(name).map(|server| server.address.clone())
    }
    /// The name of the server at an address.
    pub fn name_at(&self, address: &str) -> Option<String> {
        let mut servers = self.servers.iter();
        servers.find(|(_, server)| server.address == address).map(|(name, _)| name.clone())
    }
    /// The process id of a server, while it runs.
    pub fn process_id(&self, name: &str) -> Option<u32> {
        self.servers.get(name)?.id()
    }
    /// The end of a server's log.
    pub fn log_of(&self, name: &str) -> String {
        self.servers.get(name).map(Process::log_tail).unwrap_or_default()
    }

    /// Kills a server with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// There is no such server.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.server(name)?.kill()
    }
    /// Kills every server with SIGKILL.
    ///
    /// # Errors
    /// A process can't be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        // First all, then the waiting: none shall see much of the end of the others.
        self.signal_all(Signal::KILL)?;
        self.servers.values_mut().try_for_each(Process::kill)
    }
    /// Stops a server without its knowing (SIGSTOP): it is silent, its connections stay.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        self.server(name)?.signal(Signal::STOP)
    }
    /// Lets a paused server go on; one that has ended meanwhile stays so.
    ///
    /// # Errors
    /// There is no such server.
    pub fn resume(&mut self, name: &str) -> Result<()> {
        self.server(name)?.signal_if_it_runs(Signal::CONT).map(drop)
    }
    /// Starts a server that was killed, on its directory and port.
    ///
    /// # Errors
    /// It runs, or can't be started.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.server(name)?.start()
    }
    /// Starts every server that does not run.
    ///
    /// # Errors
    /// One can't be started.
    pub fn restart_all(&mut self) -> Result<()> {
        self.servers.values_mut().try_for_each(Process::look)?;
        self.servers.values_mut().filter(|server| server.id().is_none()).try_for_each(Process::start)
    }
    /// Waits until a server has ended by itself; returns its exit code and the end of its log.
    ///
    /// # Errors
    /// It goes on.
    pub async fn wait_for_end(&mut self, name: &str) -> Result<(Option<i32>, String)> {
        let server = self.server(name)?;
        let status =
            eventually("the server ends", PATIENCE, async || server.ended()?.context("it runs")).await?;
        Ok((status.code(), server.log_tail()))
    }

    /// Lets ERROR lines with this text in the logs pass: the story means to cause them.
    pub fn expect_error(&mut self, part: &'static str) {
        self.expected_errors.push(part);
    }

    /// Whoever holds the cluster asks for what went wrong in it: its end says nothing of that.
    pub fn judge_elsewhere(&mut self) {
        self.judged_elsewhere = true;
    }

    /// Sends a signal to every server that runs.
    fn signal_all(&mut self, signal: Signal) -> Result<()> {
        self.servers.values_mut().try_for_each(|server| server.signal_if_it_runs(signal).map(drop))
    }

    fn server(&mut self, name: &str) -> Result<&mut Process> {
        self.servers.get_mut(name).with_context(|| format!("no server {name}"))
    }

    /// A client with the default settings.
    ///
    /// # Errors
    /// No leader answers.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.masters(), Options::default()).await?)
    }

    /// The state of the cluster as its leader sees it.
    ///
    /// # Errors
    /// No leader answers soon.
    pub async fn status(&self) -> Result<ClusterStatusReply> {
        let options = Options { patience: Duration::from_secs(5), ..Options::default() };
        Ok(Client::connect(&self.masters(), options).await?.cluster_status().await?)
    }

    /// The name of the master that leads.
    ///
    /// # Errors
    /// None does within the patience.
    pub async fn leader(&self) -> Result<String> {
        eventually("a master leads", PATIENCE, async || {
            let status = self.status().await?;
            self.name_at(&status.leader).with_context(|| format!("no server at {:?}", status.leader))
        })
        .await
    }

    /// Waits until a leader is known and every running server takes part.
    ///
    /// # Errors
    /// A server ended, or it took too long; with the reason.
    pub async fn wait_until_up(&mut self) -> Result<()> {
        let masters = self.masters();
        let options = Options { patience: Duration::from_secs(5), ..Options::default() };
        eventually("the cluster is up", PATIENCE, async || {
            // Whoever has ended does not come up by being waited for.
            if let Err(ended) = self.check_runs() {
                return Ok(Err(ended));
            }
            let status = Client::connect(&masters, options.clone()).await?.cluster_status().await?;
            self.missing(&status).map(Ok)
        })
        .await?
    }

    /// Fails if a server has ended by itself without a reason, and was not started again.
    fn check_runs(&mut self) -> Result<()> {
        let check = if self.ends_expected { Process::look } else { Process::check_runs };
        self.servers.values_mut().try_for_each(check)
    }

    fn missing(&self, status: &ClusterStatusReply) -> Result<()> {
        let running = self.servers.iter().filter(|(_, server)| server.id().is_some());
        for (name, server) in running {
            let address = &server.address;
            let here = if name.starts_with(Role::Chunkserver.prefix()) {
                status.servers.iter().any(|server| server.alive && server.address == *address)
            } else {
                // A master that does not vote yet would not be missed, and can't replace one that is lost.
                let voter = name.starts_with(Role::Master.prefix());
                let mut masters = status.masters.iter();
                masters
                    .any(|master| master.address == *address && master.voter == voter && master.lag.is_some())
            };
            ensure!(here, "{name} does not take part yet: {status:?}");
        }
        Ok(())
    }

    /// Waits until a condition on the state of the cluster holds.
    ///
    /// # Errors
    /// It does not within `patience`.
    pub async fn wait_for_status(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&ClusterStatusReply) -> bool,
    ) -> Result<ClusterStatusReply> {
        eventually(what, patience, async || {
            let status = self.status().await?;
            if !holds(&status) {
                bail!("{status:?}");
            }
            Ok(status)
        })
        .await
    }

    /// A `gfs` user command for this cluster, to be completed and run.
    ///
    /// # Errors
    /// The program is missing.
    pub fn gfs(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(gfs_binary()?);
        command.env("GFS_MASTERS", self.masters().join(",")).env_remove("RUST_LOG").args(arguments);
        // For a story that starts a server in this way: it ends with the test.
        command.env("GFS_PARENT_PID", std::process::id().to_string());
        Ok(command)
    }

    /// Runs a `gfs` user command to its end.
    ///
    /// # Errors
    /// The program is missing.
    pub fn run_gfs(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.gfs(arguments)?.output()?)
    }

    /// Lines with this text in the logs of all servers.
    pub fn logged(&self, part: &str) -> Vec<String> {
        self.servers.values().flat_map(|server| server.lines_with(part)).collect()
    }

    /// ERROR lines and panics in the logs that no story expects.
    pub fn unexpected_errors(&self) -> Vec<String> {
        let expected = |line: &String| self.expected_errors.iter().any(|part| line.contains(part));
        let all = self.servers.values().chain(self.retired.values());
        all.flat_map(Process::errors).filter(|line| !expected(line)).collect()
    }
}

impl Drop for Cluster {
    /// A story that failed leaves its directory for a look; one that passed must have left no ERROR, and no server may have
    /// ended by itself.
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(directory) = self.directory.take() {
                eprintln!("the cluster's files stay in {}", directory.keep().display());
            }
            return;
        }
        if self.judged_elsewhere {
            return;
        }
        let ends = self.take_ends().unwrap_or_default();
        // The kernel kills a server with the thread that has started it.
        let ended: Vec<_> = ends.iter().filter(|end| !end.from_outside).collect();
        assert!(ended.is_empty(), "{ended:?}");
        let errors = self.unexpected_errors();
        assert!(errors.is_empty(), "unexpected errors in the logs:\n{}", errors.join("\n"));
    }
}
