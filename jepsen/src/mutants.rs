//! Tests of the tests: every mutant (`gfs_proto::fault`, docs/mutants.md) is switched on, and the checks that are meant
//! to find it run until one does, the fastest first.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gfs_proto::fault::{BUILT, MUTANTS};

use table::{Check, TABLE};

/// The crates whose tests are run.
const CRATES: [&str; 4] = ["proto", "client", "chunkserver", "master"];
/// How long a check may take; one that hangs has noticed something.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a running check is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Seeds of the runs of a cell: the timing of processes is not drawn from them, so one may miss.
const SEEDS: [u64; 2] = [1, 2];

/// Programs with faults in them.
struct Build {
    root: PathBuf,
    /// The tests of each crate.
    tests: BTreeMap<&'static str, PathBuf>,
    /// `gfs`, under a name that the ordinary build does not take.
    gfs: PathBuf,
    output: PathBuf,
}

/// What a check came to.
struct Outcome {
    /// What it found, if anything.
    found: Option<String>,
    time: Duration,
}

/// One line of the result.
#[derive(Clone, Debug)]
pub struct Line {
    /// The mutant.
    pub mutant: &'static str,
    /// Which check found it, and what it said.
    pub found: Option<String>,
    /// Time of all checks up to that one.
    pub time: Duration,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found = self.found.as_deref().unwrap_or("**nobody**");
        write!(f, "| {} | {found} | {:.1} |", self.mutant, self.time.as_secs_f64())
    }
}

/// Runs the checks of these mutants, of all if none is named; `fast` leaves out what starts a cluster. A line is told
/// as soon as it is known.
///
/// # Errors
/// The programs can't be built, or a check fails without a mutant.
pub fn mutants(only: &[String], fast: bool, mut tell: impl FnMut(&Line) -> Result<()>) -> Result<Vec<Line>> {
    ensure!(BUILT, "this program is without faults: cargo run -p gfs-jepsen --features faults -- mutants");
    if let Some(unknown) = only.iter().find(|name| !MUTANTS.contains(&name.as_str())) {
        bail!("no mutant {unknown:?}");
    }
    let build = Build::make()?;
    let (mut lines, mut good) = (Vec::new(), BTreeSet::new());
    for (mutant, checks) in TABLE.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name))
    {
        let checks: Vec<&Check> = checks.iter().filter(|check| !fast || !check.is_slow()).collect();
        if checks.is_empty() {
            continue;
        }
        let line = judge(&build, mutant, &checks, &mut good)?;
        tell(&line)?;
        lines.push(line);
    }
    Ok(lines)
}

/// Runs the checks of one mutant until one finds it. `good` are those that are known to succeed without one.
fn judge(
    build: &Build,
    mutant: &'static str,
    checks: &[&Check],
    good: &mut BTreeSet<String>,
) -> Result<Line> {
    let mut time = Duration::ZERO;
    for check in checks {
        // What fails anyhow proves nothing. A cell without a mutant is what `matrix` runs.
        if !check.is_slow() && good.insert(check.to_string()) {
            let found = build.run(check, None)?.found;
            ensure!(found.is_none(), "{check} fails without a mutant: {found:?}");
        }
        let outcome = build.run(check, Some(mutant))?;
        time += outcome.time;
        if let Some(found) = outcome.found {
            return Ok(Line { mutant, found: Some(format!("{check}: {found}")), time });
        }
    }
    Ok(Line { mutant, found: None, time })
}

impl Build {
    /// Builds the tests and the program, both with faults, beside the ordinary ones in the same directory: only our own
    /// crates are compiled again.
    fn make() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?.to_owned();
        let made = cargo(&root, &["test", "--no-run", "--lib"])?;
        let mut tests = BTreeMap::new();
        for name in CRATES {
            let program = made.get(&format!("gfs_{name}")).with_context(|| format!("no tests of {name}"))?;
            tests.insert(name, program.clone());
        }
        let made = cargo(&root, &["build", "--bin", "gfs"])?;
        let folder = root.join("target/faults");
        std::fs::create_dir_all(&folder)?;
        let gfs = folder.join("gfs");
        std::fs::copy(made.get("gfs").context("no program gfs")?, &gfs)?;
        // The ordinary program gets its name back.
        let status = Command::new(cargo_program())
            .args(["build", "--quiet", "--workspace", "--bin", "gfs"])
            .current_dir(&root)
            .status()?;
        ensure!(status.success(), "gfs does not build");
        Ok(Self { root, tests, gfs, output: folder.join("output") })
    }

    /// Runs a check until it ends.
    fn run(&self, check: &Check, mutant: Option<&str>) -> Result<Outcome> {
        let started = Instant::now();
        let found = match check {
            Check::Tests(name, filters) => {
                let program = self.tests.get(name).with_context(|| format!("no tests of {name}"))?;
                let mut command = Command::new(program);
                command.args(filters.split(' ')).current_dir(self.root.join(name));
                self.end_of(command, mutant)?.and_then(|(good, text)| (!good).then(|| failed_test(&text)))
            }
            Check::Cell(workload, nemesis, seconds) => self.cells((workload, nemesis, *seconds), mutant)?,
        };
        Ok(Outcome { found, time: started.elapsed() })
    }

    /// Runs a cell with each seed until one has a finding. A run without a verdict found nothing.
    fn cells(
        &self,
        (workload, nemesis, seconds): (&str, &str, u64),
        mutant: Option<&str>,
    ) -> Result<Option<String>> {
        for seed in SEEDS {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([
                "run",
                "--workload",
                workload,
                "--nemesis",
                nemesis,
                "--time",
                &format!("{seconds}s"),
            ]);
            command.args(["--seed", &seed.to_string()]).env("GFS_BIN", &self.gfs);
            let (_, text) = self.end_of(command, mutant)?.unwrap_or_default();
            if let Some(finding) = text.lines().find_map(|line| line.trim().strip_prefix("finding: ")) {
                return Ok(Some(finding.chars().take(100).collect()));
            }
        }
        Ok(None)
    }

    /// Whether a command succeeded, and what it printed; one that hangs is killed and did not.
    fn end_of(&self, mut command: Command, mutant: Option<&str>) -> Result<Option<(bool, String)>> {
        let output = File::create(&self.output)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).env("RUST_BACKTRACE", "0");
        // What a property test finds here is no regression of ours.
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        command.env("GFS_MUTANT", mutant.unwrap_or_default());
        let mut child = command.spawn()?;
        let until = Instant::now() + CHECK_TIMEOUT;
        let mut good = false;
        loop {
            if let Some(status) = child.try_wait()? {
                good |= status.success();
                break;
            }
            if Instant::now() > until {
                child.kill()?;
                child.wait()?;
                break;
            }
            std::thread::sleep(LOOK);
        }
        Ok(Some((good, std::fs::read_to_string(&self.output)?)))
    }
}

fn failed_test(text: &str) -> String {
    let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    text.lines().find_map(failed).unwrap_or_else(|| "it ended early, or never".to_owned())
}

fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs cargo with faults; the executables that came of it, by the name of their crate. On the whole workspace, as the tests are
/// built: with `-p` cargo unites the features of fewer packages, and compiles many dependencies once more.
fn cargo(root: &Path, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let output = Command::new(cargo_program())
        .args(arguments)
        .args(["--workspace", "--features", "faults", "--message-format=json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the build with faults failed");
    let mut made = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let (name, program) = (&message["target"]["name"], &message["executable"]);
        if let (Some(name), Some(program)) = (name.as_str(), program.as_str()) {
            made.insert(name.replace('-', "_"), program.into());
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_checks_that_are_meant_to_find_it() {
        let named: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, MUTANTS, "each of proto/src/fault/list.rs once");
        assert!(TABLE.iter().all(|(_, checks)| !checks.is_empty()));
        assert!(MUTANTS.len() >= 25);
    }
}
