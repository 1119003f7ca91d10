//! A tree of this machine's own files, as links: real sizes and contents without a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// How many files the tree has at least, unless `GFS_DEMO_FILES` says otherwise.
const FILES_DEFAULT: u64 = 3_000;
/// How many MiB it has at least, unless `GFS_DEMO_MIB` says otherwise.
const MIB_DEFAULT: u64 = 1_024;

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
        // The large ones first, then the many, then whatever there is.
        let large = |stage: &Self| stage.bytes >= bytes_min;
        let many = |stage: &Self| stage.files >= files_min;
        stage.add(&toolchain.join("lib"), &target.join("toolchain/lib"), &large)?;
        stage.add(&toolchain.join("bin"), &target.join("toolchain/bin"), &large)?;
        stage.add(&crates(), &target.join("crates"), &many)?;
        let both = |stage: &Self| large(stage) && many(stage);
        stage.add(&toolchain.join("share"), &target.join("toolchain/share"), &both)?;
        stage.add(Path::new("/usr/lib"), &target.join("usr-lib"), &both)?;
        ensure!(
            both(&stage),
            "this machine has only {} files of {} bytes to store",
            stage.files,
            stage.bytes
        );
        Ok(stage)
    }

    /// Links the files below `source` into `target` until there is enough.
    fn add(&mut self, source: &Path, target: &Path, enough: &dyn Fn(&Self) -> bool) -> Result<()> {
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
                self.add(&path, &link, enough)?;
            } else if path.is_file() && std::fs::File::open(&path).is_ok() {
                std::fs::create_dir_all(target)?;
                std::os::unix::fs::symlink(path.canonicalize()?, &link)
                    .with_context(|| link.display().to_string())?;
                self.files += 1;
                self.bytes += path.metadata()?.len();
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
