//! Fail points and mutants that work: only in builds with the feature `faults`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Count, MUTANTS, POINTS, Simulated};
use crate::{Error, Result};

/// How often a file is looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// Longest pause: a longer one is a typing error.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// What a fail point does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Crash,
    Error,
    Sleep(Duration),
}

/// A fail point that was told to do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Armed {
    action: Action,
    /// Passes before it strikes.
    spare: u64,
    /// How often it still strikes.
    left: u64,
}

/// The host that stands for the whole process: in all processes but a simulation, the only one.
const PROCESS: u64 = 0;

#[derive(Default)]
struct Registry {
    /// By point and host.
    armed: BTreeMap<(&'static str, u64), Armed>,
    /// Of all hosts together.
    counts: BTreeMap<&'static str, Count>,
    simulated: Option<Simulated>,
    /// Where the counts go.
    told: Option<PathBuf>,
}

/// One for the process: a simulation runs one seed in one process. Held for moments only.
static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { armed: BTreeMap::new(), counts: BTreeMap::new(), simulated: None, told: None });

/// The seeded bug of this process.
static MUTANT: LazyLock<Option<String>> = LazyLock::new(|| {
    let name = std::env::var("GFS_MUTANT").ok().filter(|name| !name.is_empty())?;
    if !MUTANTS.contains(&name.as_str()) {
        // A check that ran without its mutant would prove nothing.
        tracing::error!(name, "no such mutant");
        std::process::exit(2);
    }
    Some(name)
});

/// Constants that were made smaller.
static TUNED: LazyLock<BTreeMap<String, u64>> = LazyLock::new(|| {
    let text = std::env::var("GFS_TUNED").unwrap_or_default();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.filter_map(|(name, value)| Some((name.trim().to_owned(), value.trim().parse().ok()?))).collect()
});

/// Counts a pass, and tells what is to be done.
fn pass(point: &'static str) -> Option<Action> {
    let mut registry = REGISTRY.lock();
    let Registry { armed, counts, simulated, .. } = &mut *registry;
    let count = counts.entry(point).or_default();
    count.passed += 1;
    if armed.is_empty() {
        return None;
    }
    let host = simulated.map_or(PROCESS, |simulated| (simulated.host)());
    let armed = armed.get_mut(&(point, host))?;
    if armed.spare > 0 {
        armed.spare -= 1;
        return None;
    }
    armed.left = armed.left.checked_sub(1)?;
    count.struck += 1;
    Some(armed.action)
}

/// Ends the process as a kill would, or does what stands for it.
fn crash(point: &'static str) {
    tracing::warn!(point, "fail point: crash");
    let simulated = REGISTRY.lock().simulated;
    if let Some(simulated) = simulated {
        return (simulated.crash)(point);
    }
    tell();
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    tracing::error!(?killed, "not killed");
    // Nobody goes on behind this point.
    loop {
        std::thread::park();
    }
}

/// Lets a thread stand still.
fn pause(time: Duration) {
    let simulated = REGISTRY.lock().simulated;
    match simulated {
        Some(simulated) => (simulated.pause)(time),
        None => std::thread::sleep(time),
    }
}

/// Passes a fail point of a thread that can't fail.
pub fn at(point: &'static str) {
    match pass(point) {
        None | Some(Action::Error) => {}
        Some(Action::Crash) => crash(point),
        Some(Action::Sleep(time)) => pause(time),
    }
}

/// Passes a fail point of a thread.
///
/// # Errors
/// If it was told to fail.
pub fn try_at(point: &'static str) -> io::Result<()> {
    let failed = || Err(io::Error::other(format!("fail point {point}")));
    match pass(point) {
        None => Ok(()),
        Some(Action::Crash) => {
            crash(point);
            failed()
        }
        Some(Action::Error) => {
            // Who fails at its start ends before the counts are written down in their time.
            tell();
            failed()
        }
        Some(Action::Sleep(time)) => {
            pause(time);
            Ok(())
        }
    }
}

/// Passes a fail point of a task that can't fail.
pub async fn reach(point: &'static str) {
    match pass(point) {
        None | Some(Action::Error) => {}
        Some(Action::Crash) => {
            crash(point);
            std::future::pending().await
        }
        Some(Action::Sleep(time)) => tokio::time::sleep(time).await,
    }
}

/// Passes a fail point of a task.
///
/// # Errors
/// [`Error::Unavailable`] if it was told to fail.
pub async fn try_reach(point: &'static str) -> Result<()> {
    match pass(point) {
        None => Ok(()),
        Some(Action::Error) => {
            tell();
            Err(Error::unavailable(format!("fail point {point}")))
        }
        Some(Action::Crash) => {
            crash(point);
            std::future::pending().await
        }
        Some(Action::Sleep(time)) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
    }
}

/// Whether this seeded bug is switched on.
pub fn mutant(name: &'static str) -> bool {
    MUTANT.as_deref() == Some(name)
}

/// A constant, or the value that `GFS_TUNED` gives it.
pub fn tuned(name: &'static str, value: u64) -> u64 {
    TUNED.get(name).copied().unwrap_or(value)
}

/// Takes the settings of the environment, and follows the files that it names. Once, at the start of a process.
///
/// # Errors
/// [`Error::BadArgument`] if they make no sense.
pub fn start() -> Result<()> {
    LazyLock::force(&MUTANT);
    if let Some(path) = std::env::var_os("GFS_CLOCK_FILE") {
        super::clock::start(Path::new(&path))?;
    }
    arm(&std::env::var("GFS_FAILPOINTS").unwrap_or_default())?;
    let Some(path) = std::env::var_os("GFS_FAILPOINTS_FILE").map(PathBuf::from) else { return Ok(()) };
    let mut told = path.clone().into_os_string();
    told.push(format!(".{}", std::process::id()));
    REGISTRY.lock().told = Some(told.into());
    follow_file("fail-points", POLL, &path, arm)?;
    std::thread::Builder::new()
        .name("fail-points-told".into())
        .spawn(move || {
            loop {
                std::thread::sleep(POLL);
                tell();
            }
        })
        .map(drop)
        .map_err(Error::internal)
}

/// Has `take` take what stands in a file, now and whenever it has changed; what it refuses later is told in the log, and
/// what was before stays. The thread that does so ends with the process.
pub(super) fn follow_file(
    thread: &'static str,
    every: Duration,
    path: &Path,
    take: impl Fn(&str) -> Result<()> + Send + 'static,
) -> Result<()> {
    let path = path.to_owned();
    let read = move || std::fs::read_to_string(&path).ok();
    let mut known = read().unwrap_or_default();
    if !known.is_empty() {
        take(&known)?;
    }
    let follow = move || {
        loop {
            std::thread::sleep(every);
            let Some(text) = read().filter(|text| *text != known) else { continue };
            if let Err(error) = take(&text) {
                tracing::error!(%error, thread, "not understood");
            }
            known = text;
        }
    };
    std::thread::Builder::new().name(thread.into()).spawn(follow).map(drop).map_err(Error::internal)
}

/// Writes the counts down, in one step.
fn tell() {
    let Some(path) = REGISTRY.lock().told.clone() else { return };
    let lines: String = counts()
        .into_iter()
        .map(|(point, Count { passed, struck })| format!("{point} {passed} {struck}\n"))
        .collect();
    let aside = path.with_extension("new");
    if std::fs::write(&aside, lines).and_then(|()| std::fs::rename(&aside, &path)).is_err() {
        tracing::trace!("the counts of the fail points were not written");
    }
}

/// Tells fail points what to do: those that the text does not name do nothing any more.
///
/// # Errors
/// [`Error::BadArgument`] with what is wrong; then nothing has changed.
pub fn arm(text: &str) -> Result<()> {
    let armed = parse(text)?;
    REGISTRY.lock().armed = armed.into_iter().map(|(point, armed)| ((point, PROCESS), armed)).collect();
    Ok(())
}

/// Tells fail points of one host of a simulation what to do; what others were told, and this host's other points, stays.
///
/// # Errors
/// [`Error::BadArgument`] with what is wrong; then nothing has changed.
pub fn arm_host(host: u64, text: &str) -> Result<()> {
    let armed = parse(text)?;
    REGISTRY.lock().armed.extend(armed.into_iter().map(|(point, armed)| ((point, host), armed)));
    Ok(())
}

fn parse(text: &str) -> Result<BTreeMap<&'static str, Armed>> {
    let mut armed = BTreeMap::new();
    for part in text.split([';', '\n']).map(str::trim).filter(|part| !part.is_empty()) {
        let bad = || Error::bad_argument(format!("fail point {part:?}"));
        let (name, what) = part.split_once('=').ok_or_else(bad)?;
        let point = POINTS.iter().find(|point| point.name == name.trim()).ok_or_else(bad)?;
        armed.insert(point.name, parse_action(what.trim()).ok_or_else(bad)?);
    }
    Ok(armed)
}

/// `action@N*N`.
fn parse_action(text: &str) -> Option<Armed> {
    let (text, left) = match text.split_once('*') {
        Some((rest, count)) => (rest, count.parse().ok()?),
        None => (text, u64::MAX),
    };
    let (text, spare) = match text.split_once('@') {
        Some((rest, count)) => (rest, count.parse::<u64>().ok()?.checked_sub(1)?),
        None => (text, 0),
    };
    let action = match text {
        "crash" => Action::Crash,
        "error" => Action::Error,
        other => {
            let millis = other.strip_prefix("sleep(")?.strip_suffix(')')?.parse().ok()?;
            Action::Sleep(Duration::from_millis(millis)).filter_long()?
        }
    };
    Some(Armed { action, spare, left })
}

impl Action {
    fn filter_long(self) -> Option<Self> {
        match self {
            Self::Sleep(time) if time > SLEEP_MAX => None,
            Self::Sleep(_) | Self::Crash | Self::Error => Some(self),
        }
    }
}

/// Disarms all fail points and forgets their counts.
pub fn clear() {
    let mut registry = REGISTRY.lock();
    (registry.armed, registry.counts) = (BTreeMap::new(), BTreeMap::new());
}

/// How often each fail point was passed; those that never were are not in it.
pub fn counts() -> BTreeMap<&'static str, Count> {
    REGISTRY.lock().counts.clone()
}

/// Says that this process simulates many hosts, each with fail points of its own ([`arm_host`]).
pub fn simulate(simulated: Simulated) {
    REGISTRY.lock().simulated = Some(simulated);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn armed(action: Action, spare: u64, left: u64) -> Option<Armed> {
        Some(Armed { action, spare, left })
    }

    #[test]
    fn actions_are_parsed_or_refused() {
        assert_eq!(parse_action("crash"), armed(Action::Crash, 0, u64::MAX));
        assert_eq!(parse_action("error@3*2"), armed(Action::Error, 2, 2));
        let pause = Action::Sleep(Duration::from_millis(300));
        assert_eq!(parse_action("sleep(300)*1"), armed(pause, 0, 1));
        for bad in ["", "crush", "sleep", "sleep(x)", "sleep(60001)", "crash@0", "crash*", "error@"] {
            assert_eq!(parse_action(bad), None, "{bad:?}");
        }
        assert!(parse("no::such::point=crash").is_err());
        assert_eq!(parse("store::log::before_sync=crash;\n grant::prepared=error*1 ;").unwrap().len(), 2);
    }

    /// Held by a test that arms: there is one registry.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test(start_paused = true)]
    async fn a_point_strikes_when_it_is_told_to_and_counts() {
        let _turn = TURN.lock().await;
        let point = "client::request_sent";
        arm("client::request_sent=error@2*1").unwrap();
        let mut failed = Vec::new();
        for _ in 0..4 {
            failed.push(try_reach(point).await.is_err());
        }
        assert_eq!(failed, [false, true, false, false]);
        assert_eq!(counts()[point], Count { passed: 4, struck: 1 });
        arm("client::request_sent=sleep(500)").unwrap();
        let before = tokio::time::Instant::now();
        reach(point).await;
        assert_eq!(before.elapsed().as_millis(), 500);
        clear();
        assert!(try_reach(point).await.is_ok());
        assert_eq!(counts()[point].passed, 1);
    }

    /// The host that the next test runs on.
    static HOST: AtomicU64 = AtomicU64::new(PROCESS);
    static PAUSED_MS: AtomicU64 = AtomicU64::new(0);
    static CRASHED: Mutex<Vec<(u64, &str)>> = Mutex::new(Vec::new());

    #[test]
    fn each_host_of_a_simulation_has_fail_points_of_its_own() {
        let _turn = TURN.blocking_lock();
        let point = "store::log::before_sync";
        let as_host = |host| {
            HOST.store(host, Ordering::Relaxed);
            try_at(point).is_err()
        };
        simulate(Simulated {
            host: || HOST.load(Ordering::Relaxed),
            crash: |point| CRASHED.lock().push((HOST.load(Ordering::Relaxed), point)),
            pause: |time| {
                PAUSED_MS.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
            },
        });
        arm_host(7, "store::log::before_sync=error@2*1").unwrap();
        arm_host(8, "store::log::before_sync=crash*1").unwrap();
        // Beside what host 7 was told.
        arm_host(7, "store::file::synced=sleep(30000)*1").unwrap();
        assert!(arm_host(7, "store::file::synced=nonsense").is_err());
        assert_eq!([7, 9, 8, 7, 7, 8].map(as_host), [false, false, true, true, false, false]);
        assert_eq!(*CRASHED.lock(), [(8, point)]);
        for host in [8, 7, 7] {
            HOST.store(host, Ordering::Relaxed);
            at("store::file::synced");
        }
        assert_eq!(PAUSED_MS.load(Ordering::Relaxed), 30_000);
        clear();
        REGISTRY.lock().simulated = None;
    }
}
