//! `gfs-fuzz`: runs the targets under libFuzzer, each for a bounded time, and minimises their corpora.
//!
//! ```text
//! gfs-fuzz run [--seconds N] [TARGET..]   one line for each target; ends with 1 if one crashed
//! gfs-fuzz minimise [TARGET..]            the smallest corpus that reaches what the found and the kept one reach
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to people")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use gfs_fuzz::corpus_directory;

/// Seconds for each target if nobody says otherwise.
const SECONDS_DEFAULT: u64 = 20;
/// Longest input, in bytes: all that decoders treat differently fits.
const INPUT_BYTES_MAX: u32 = 4096;
/// Longest that one input may take, in seconds: an input that takes longer is a crash.
const INPUT_SECONDS_MAX: u32 = 20;
/// Memory of one target, in MiB.
const MEMORY_MIB_MAX: u32 = 2048;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(crashes) => {
            eprintln!("{crashes} targets crashed: the inputs are in fuzz/libfuzzer/artifacts");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("gfs-fuzz: {error}");
            ExitCode::from(2)
        }
    }
}

/// Does what the arguments say; returns how many targets crashed.
fn run(arguments: &[String]) -> io::Result<usize> {
    let usage = || io::Error::other("run [--seconds N] [TARGET..] | minimise [TARGET..]");
    let (verb, mut rest) = arguments.split_first().ok_or_else(usage)?;
    if !["run", "minimise"].contains(&verb.as_str()) {
        return Err(usage());
    }
    let mut seconds = SECONDS_DEFAULT;
    if let [flag, value, after @ ..] = rest
        && flag == "--seconds"
    {
        seconds = value.parse().map_err(|_| usage())?;
        rest = after;
    }
    let all = targets()?;
    if let Some(unknown) = rest.iter().find(|name| !all.contains(name)) {
        return Err(io::Error::other(format!("no target {unknown:?}; there are {}", all.join(", "))));
    }
    build(rest)?;
    let mut crashes = 0;
    for target in all.iter().filter(|target| rest.is_empty() || rest.contains(target)) {
        if verb == "run" {
            crashes += usize::from(!fuzz(target, seconds)?);
        } else {
            minimise(target)?;
        }
    }
    Ok(crashes)
}

fn harness() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer")
}

/// The targets that are built for libFuzzer.
fn targets() -> io::Result<Vec<String>> {
    let files = std::fs::read_dir(harness().join("fuzz_targets"))?;
    let name = |path: PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut targets: Vec<String> = files.filter_map(|file| name(file.ok()?.path())).collect();
    targets.sort();
    Ok(targets)
}

/// Builds the targets named, or all, with coverage.
fn build(named: &[String]) -> io::Result<()> {
    if named.is_empty() {
        return build_with(None);
    }
    named.iter().try_for_each(|target| build_with(Some(target)))
}

/// One `cargo fuzz build`. Without a sanitizer: there is no unsafe code of ours that one could watch.
fn build_with(target: Option<&String>) -> io::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["fuzz", "build", "--fuzz-dir", "libfuzzer", "--sanitizer", "none"]).args(target);
    // The build of the product has RocksDB already: it is linked as it is, and not built again with coverage.
    if std::env::var_os("ROCKSDB_LIB_DIR").is_none()
        && let Some(directory) = rocksdb()
    {
        cargo.env("ROCKSDB_LIB_DIR", directory).env("ROCKSDB_STATIC", "1");
    }
    if cargo.status()?.success() {
        return Ok(());
    }
    Err(io::Error::other(
        "the targets can't be built; cargo-fuzz comes by `cargo install cargo-fuzz --locked`",
    ))
}

/// Where the product's build has put RocksDB.
fn rocksdb() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let builds = std::fs::read_dir(program.parent()?.join("build")).ok()?;
    builds
        .filter_map(|build| Some(build.ok()?.path().join("out")))
        .find(|out| out.join("librocksdb.a").exists())
}

/// A target under libFuzzer with these arguments: whether it ended well, and what it wrote. That is in the target's
/// `log` while it runs.
fn libfuzzer(target: &str, arguments: &[String], directories: &[&Path]) -> io::Result<(bool, String)> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let program = harness().join("target").join(triple).join("release").join(target);
    let artifacts = harness().join("artifacts").join(target);
    for directory in directories.iter().copied().chain([artifacts.as_path()]) {
        std::fs::create_dir_all(directory)?;
    }
    let limits = [
        format!("-artifact_prefix={}/", artifacts.display()),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
    ];
    let log = artifacts.join("log");
    let mut command = Command::new(program);
    command.args(limits).args(arguments).args(directories).stdout(Stdio::null()).stderr(File::create(&log)?);
    let status = command.status()?;
    Ok((status.success(), String::from_utf8_lossy(&std::fs::read(&log)?).into_owned()))
}

/// Runs one target and prints its line; false if it crashed.
fn fuzz(target: &str, seconds: u64) -> io::Result<bool> {
    let (found, kept) = (harness().join("found").join(target), corpus_directory(target));
    let before = count(&found);
    eprintln!("{target}: {seconds} s; fuzz/libfuzzer/artifacts/{target}/log shows how it goes");
    let arguments = [format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()];
    let (well, text) = libfuzzer(target, &arguments, &[&found, &kept])?;
    let stat = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("stat::{name}:")));
        line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let (executions, rate) = (stat("number_of_executed_units"), stat("average_exec_per_sec"));
    let (new, crashed) = (count(&found).saturating_sub(before), usize::from(!well));
    println!(
        "{target:<16} {executions:>12} executions {rate:>9}/s {new:>6} new in the corpus {crashed:>3} crashes"
    );
    Ok(well)
}

fn count(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Replaces the kept corpus by the smallest one that reaches as much as it and what was found.
fn minimise(target: &str) -> io::Result<()> {
    let (found, kept) = (harness().join("found").join(target), corpus_directory(target));
    let merged = harness().join("merged").join(target);
    if merged.exists() {
        std::fs::remove_dir_all(&merged)?;
    }
    // One input for each edge is enough; how often each is taken would keep ten times as many.
    let arguments = ["-merge=1", "-use_counters=0"].map(str::to_owned);
    let (well, _) = libfuzzer(target, &arguments, &[&merged, &kept, &found])?;
    if !well || count(&merged) == 0 {
        return Err(io::Error::other(format!("{target}: no merge")));
    }
    println!(
        "{target:<16} {:>6} kept, {:>6} found, {:>6} merged",
        count(&kept),
        count(&found),
        count(&merged)
    );
    std::fs::remove_dir_all(&kept)?;
    std::fs::rename(&merged, &kept)?;
    std::fs::remove_dir_all(&found)
}
