//! Finds the `gfs` program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Names the program to be used instead of the one of this build.
const VARIABLE: &str = "GFS_BIN";

/// The `gfs` program: that of `GFS_BIN`, else the one beside this executable. Under cargo it is brought up to
/// date first, so that a story never runs yesterday's program.
///
/// # Errors
/// There is none, with the command that makes it.
pub fn gfs_binary() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || match std::env::var_os(VARIABLE) {
        Some(path) => Ok(path.into()),
        None => program("gfs").map_err(|error| format!("{error:#}")),
    };
    FOUND.get_or_init(find).clone().map_err(anyhow::Error::msg)
}

/// Whether the `gfs` program can be told to fail: only one built with the feature `faults` can.
///
/// # Errors
/// There is no program, or it can't be run.
pub fn gfs_has_faults() -> Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let program = gfs_binary()?;
    let said = Command::new(&program).arg("--version").output();
    let said = said.with_context(|| format!("{} can't be run", program.display()))?;
    let has = String::from_utf8_lossy(&said.stdout).contains("with faults");
    Ok(*KNOWN.get_or_init(|| has))
}

/// The program of a package that has its name, beside this executable. Under cargo it is brought up to date first.
///
/// # Errors
/// There is none, with the command that makes it.
pub fn program(name: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let folder = executable.parent().context("this executable lies nowhere")?;
    // Test executables lie in target/debug/deps, programs one up.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    if let (Some(cargo), Some(root)) = (std::env::var_os("CARGO"), workspace()) {
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "--package", name, "--manifest-path"])
            .arg(root.join("Cargo.toml"))
            .status();
        if !built.context("cargo can't be run")?.success() {
            bail!("`cargo build --package {name}` failed");
        }
    }
    let binary = folder.join(name);
    if !binary.is_file() {
        bail!("{} is missing: `cargo build --package {name}` makes it", binary.display());
    }
    Ok(binary)
}

fn workspace() -> Option<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)?;
    package.ancestors().find(|folder| is_workspace(folder)).map(Path::to_owned)
}

fn is_workspace(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"))
}
