//! `make demo`: a cluster stores a real tree, loses its leader and a chunkserver on the way, and gives it back.
#![allow(clippy::print_stdout, reason = "telling what happens is what a demo does")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gfs_tests::{Stage, Tree, gfs_binary, write_noise};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

/// Everything of the demo lies here, below the working directory, and is removed at the end.
const DIRECTORY: &str = "gfs-demo";
/// Room for the tree with three replicas, its copy, and the servers' own files.
const FREE_BYTES_MIN: u64 = 10 << 30;
/// A file of several chunks.
const LARGE_FILE_BYTES: u64 = 320 << 20;
/// First ports that are tried for the servers.
const PORTS: [u16; 8] = [17000, 17100, 17200, 17300, 17400, 17500, 17600, 17700];
const SERVERS: u16 = 8;
const START_PATIENCE: Duration = Duration::from_secs(150);
const TRANSFER_PATIENCE: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    match demo(Path::new(DIRECTORY)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(directory: &Path) -> Result<()> {
    remove(directory)?;
    std::fs::create_dir_all(directory)?;
    check_room(directory)?;
    let (source, copy) = (directory.join("source"), directory.join("copy"));
    println!("staging a tree of this machine's own files ..");
    let stage = Stage::of_this_machine(&source)?;
    write_noise(&source.join("several-chunks"), LARGE_FILE_BYTES, 1)?;
    println!("  {} files, {} MiB, and one of {} MiB", stage.files, stage.bytes >> 20, LARGE_FILE_BYTES >> 20);

    println!("starting 3 masters, 1 shadow, 4 chunkservers ..");
    let cluster = DevCluster::start(&directory.join("cluster"))?;
    let half_files = stage.files.div_ceil(2);

    println!("gfs put -r {} /demo", source.display());
    let put = cluster.transfer(
        &["put", "-r", path(&source)?, "/demo"],
        |cluster| Ok(cluster.status()?.files >= half_files),
        |cluster| {
            let leader = cluster.status()?.leader;
            cluster.kill_at(&leader, "leader")
        },
    )?;
    println!("gfs get -r /demo {}", copy.display());
    let get = cluster.transfer(
        &["get", "-r", "/demo", path(&copy)?],
        |_| Ok(count_files(&copy) >= half_files),
        |cluster| {
            let victim = cluster.file.processes.iter().find(|process| process.role == "chunkserver");
            let victim = victim.context("no chunkserver in cluster.json")?.addr.clone();
            cluster.kill_at(&victim, "chunkserver")
        },
    )?;

    println!("comparing checksums ..");
    let (stored, fetched) = (Tree::read(&source)?, Tree::read(&copy)?);
    let differences = stored.differences(&fetched);
    ensure!(differences.is_empty(), "the copy differs:\n{}", differences.join("\n"));
    cluster.stop()?;
    remove(directory)?;
    summary(&stored, &put, &get);
    Ok(())
}

fn summary(tree: &Tree, put: &Tally, get: &Tally) {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let speed = |tally: &Tally| tally.bytes as f64 / 1e6 / tally.seconds;
    println!();
    println!("files   {:>8}   every one back, byte for byte", tree.files.len());
    println!("bytes   {:>8} MiB, three replicas of each", tree.bytes() >> 20);
    println!(
        "in      {:>8.1} MB/s, longest stall {} ms (the leader was killed)",
        speed(put),
        put.longest_stall_ms
    );
    println!(
        "out     {:>8.1} MB/s, longest stall {} ms (a chunkserver was killed)",
        speed(get),
        get.longest_stall_ms
    );
}

/// What `gfs put --json` and `gfs get --json` print.
#[derive(Deserialize, Debug)]
struct Tally {
    bytes: u64,
    seconds: f64,
    longest_stall_ms: u64,
}

/// The part of `gfs cluster status --json` that is needed here.
#[derive(Deserialize, Debug)]
struct Status {
    leader: String,
    files: u64,
}

/// `DIR/cluster.json` of `gfs dev`.
#[derive(Deserialize, Debug)]
struct ClusterFile {
    masters: Vec<String>,
    processes: Vec<ProcessEntry>,
}

#[derive(Deserialize, Debug)]
struct ProcessEntry {
    role: String,
    name: String,
    pid: i32,
    addr: String,
}

/// A `gfs dev` process; ended when this value goes.
struct DevCluster {
    child: Child,
    file: ClusterFile,
}

impl DevCluster {
    fn start(directory: &Path) -> Result<Self> {
        let port = PORTS.into_iter().find(|port| ports_are_free(*port)).context("no ports are free")?;
        let mut child = Command::new(gfs_binary()?)
            .args(["dev", "--dir", path(directory)?, "--port", &port.to_string()])
            .env("GFS_PARENT_PID", std::process::id().to_string())
            .env_remove("RUST_LOG")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        match wait_for_file(&mut child, &directory.join("cluster.json")) {
            Ok(file) => Ok(Self { child, file }),
            Err(error) => {
                end(&mut child)?;
                Err(error)
            }
        }
    }

    fn gfs(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(gfs_binary()?);
        command.args(arguments).arg("--json").env("GFS_MASTERS", self.file.masters.join(","));
        Ok(command)
    }

    fn status(&self) -> Result<Status> {
        let output = self.gfs(&["cluster", "status"])?.output()?;
        ensure!(output.status.success(), "cluster status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs a transfer; when it is half through, hurts the cluster.
    fn transfer(
        &self,
        arguments: &[&str],
        half_through: impl Fn(&Self) -> Result<bool>,
        hurt: impl Fn(&Self) -> Result<()>,
    ) -> Result<Tally> {
        let started = Instant::now();
        let mut command = self.gfs(arguments)?;
        let mut child = command.args(["--timeout", "60s"]).stdout(Stdio::piped()).spawn()?;
        let mut hurt_done = false;
        while child.try_wait()?.is_none() {
            if !hurt_done && half_through(self)? {
                hurt(self)?;
                hurt_done = true;
            }
            if started.elapsed() > TRANSFER_PATIENCE {
                child.kill()?;
                bail!("gfs {} goes on for {TRANSFER_PATIENCE:?}", arguments.join(" "));
            }
            std::thread::sleep(POLL);
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "gfs {} failed", arguments.join(" "));
        ensure!(
            hurt_done,
            "gfs {} ended before anything was killed: the tree is too small",
            arguments.join(" ")
        );
        serde_json::from_slice(&output.stdout).context("its summary can't be read")
    }

    fn kill_at(&self, address: &str, what: &str) -> Result<()> {
        let process = self.file.processes.iter().find(|process| process.addr == address);
        let process = process.with_context(|| format!("no process at {address}"))?;
        let pid = Pid::from_raw(process.pid).context("no process id")?;
        kill_process(pid, Signal::KILL)?;
        println!("  kill -9 {} ({}, the {what})", process.pid, process.name);
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        end(&mut self.child)
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        if let Err(error) = end(&mut self.child) {
            eprintln!("demo: the cluster can't be stopped: {error:#}");
        }
    }
}

/// Asks a process to end, and waits for it.
fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        let pid = Pid::from_raw(child.id().cast_signed()).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        child.wait()?;
    }
    Ok(())
}

fn wait_for_file(child: &mut Child, path: &Path) -> Result<ClusterFile> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("gfs dev ended: {status}");
        }
        match std::fs::read(path) {
            Ok(bytes) => return Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(started.elapsed() < START_PATIENCE, "the cluster is not up after {START_PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}

fn ports_are_free(first: u16) -> bool {
    (first..first + SERVERS).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
}

fn check_room(directory: &Path) -> Result<()> {
    let disk = rustix::fs::statvfs(directory)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    ensure!(
        free >= FREE_BYTES_MIN,
        "{} GiB are free here, the demo needs {}",
        free >> 30,
        FREE_BYTES_MIN >> 30
    );
    Ok(())
}

/// Files below a directory, without those still being written.
fn count_files(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count_files(&entry.path()),
        Ok(_) => u64::from(!entry.file_name().to_string_lossy().starts_with(".gfs-get")),
        Err(_) => 0,
    };
    entries.flatten().map(count).sum()
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", PathBuf::from(path).display()))
}
