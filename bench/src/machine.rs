//! What the numbers were measured on, and the processor time that they cost.

use std::path::Path;
use std::time::Duration;

/// The processor time of several processes.
pub(crate) struct Processors {
    processes: Vec<u32>,
}

impl Processors {
    /// Of this process and these.
    pub(crate) fn of(mut processes: Vec<u32>) -> Self {
        processes.push(std::process::id());
        Self { processes }
    }

    /// What all of them have used since they started.
    pub(crate) fn used(&self) -> Duration {
        self.processes.iter().filter_map(|process| used(*process)).sum()
    }
}

/// User and system time of a process, from fields 14 and 15 of its `stat`.
fn used(process: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; field 3 follows it.
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Unit of the times in `stat`: a constant of Linux on every processor that we build for.
const TICKS_PER_SECOND: u64 = 100;

/// Processors, memory, kernel and filesystem in one line.
pub(crate) fn describe(directory: &Path) -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib >> 20);
    let system = rustix::system::uname();
    let kernel = system.release().to_string_lossy().into_owned();
    let disk = filesystem(directory).unwrap_or_else(|| "unknown filesystem".into());
    format!("{processors} x {model}, {memory} GiB, Linux {kernel}, {disk}; all servers on it")
}

/// The value behind `name :` in a file of the kernel.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Type and device of the filesystem with the longest mount point above `directory`.
fn filesystem(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
        directory.starts_with(point).then(|| (point.len(), format!("{kind} on {device}")))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, text)| text)
}
