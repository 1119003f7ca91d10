//! A tree of this machine's own files, as links: real sizes and contents without a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// How many files the tree has at least, unless `GFS_DEMO_FILES` says otherwise.
const FILES_DEFAULT: u64 = 3_000;
/// How many MiB it has at least, unless `GFS_DEMO_MIB` says otherwise.
const MIB_DEFAULT: u64 = 1_024;
/// From this size on a file is large.
const LARGE_BYTES: u64 = 1 << 20;

/// A staged tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stage {
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Stage {
    /// Stages the Rust toolchain, the sources of the crates, and what this build has made, until there are
    /// thousands of files and a GiB.
    ///
    /// # Errors
    /// A directory can't be read or written, or this machine has too little.
    pub fn of_this_machine(target: &Path) -> Result<Self> {
        let files_min = number("GFS_DEMO_FILES", FILES_DEFAULT)?;
        let bytes_min = number("GFS_DEMO_MIB", MIB_DEFAULT)? << 20;
        let mut stage = Self::default();
        let toolchain = toolchain()?;
        // First many files as they come, then large ones until it is a GiB.
        let many = |stage: &Self| stage.files >= files_min;
        stage.add(&crates(), &target.join("crates"), 0, &many)?;
        stage.add(&toolchain.join("share"), &target.join("toolchain-share"), 0, &many)?;
        let large = |stage: &Self| stage.bytes >= bytes_min;
        for (name, source) in [
            ("toolchain-lib", toolchain.join("lib")),
            ("toolchain-bin", toolchain.join("bin")),
            ("usr-lib", PathBuf::from("/usr/lib")),
            ("usr-bin", PathBuf::from("/usr/bin")),
        ] {
            stage.add(&source, &target.join(name), LARGE_BYTES, &large)?;
        }
        ensure!(
            many(&stage) && large(&stage),
            "this machine has only {} files of {} bytes to store",
            stage.files,
            stage.bytes
        );
        Ok(stage)
    }

    /// Links the files of at least `bytes_min` below `source` into `target` until there is enough.
    fn add(
        &mut self,
        source: &Path,
        target: &Path,
        bytes_min: u64,
        enough: &dyn Fn(&Self) -> bool,
    ) -> Result<()> {
        // What is missing or closed to this user is left out: the other sources make up for it.
        let Ok(entries) = std::fs::read_dir(source) else {
            return Ok(());
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if enough(self) {
                return Ok(());
            }
            let Some(name) = path.file_name().filter(|name| name.to_str().is_some()) else {
                continue;
            };
            let link = target.join(name);
            if path.is_dir() && !path.is_symlink() {
                self.add(&path, &link, bytes_min, enough)?;
                continue;
            }
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            if path.is_file() && bytes >= bytes_min && std::fs::File::open(&path).is_ok() {
                std::fs::create_dir_all(target)?;
                std::os::unix::fs::symlink(path.canonicalize()?, &link)
                    .with_context(|| link.display().to_string())?;
                self.files += 1;
                self.bytes += bytes;
            }
        }
        Ok(())
    }
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text:?} is no number")),
        Err(_) => Ok(default),
    }
}

fn toolchain() -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("rustc can't be run")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

fn crates() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.unwrap_or_default().join("registry/src")
}
