//! One run: a cluster, clients, faults, a last look, a verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use gfs_tests::{Cluster, End, Role, Shape};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::check::{WRITES, lease};
use crate::converge;
use crate::hosts::Site;
use crate::inside::Inside;
use crate::nemesis::{Deeds, FAULTS, Fault, Needs, Ring, STRUCK};
use crate::power::DISK_BYTES;
use crate::recorder::Recorder;
use crate::report::report;
use crate::timeline;
use crate::verdict::Verdict;
use crate::workload::{Scene, WORKLOADS, Workload};

/// How long the cluster may take to be whole again after the last fault.
const HEALING_PATIENCE: Duration = Duration::from_secs(60);
/// How long clients may take to end after the time is over: longer than their patience.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than planned a run may take whose faults have not struck yet: some wait until the cluster is whole.
const STRIKE_PATIENCE: Duration = Duration::from_secs(20);
/// How long clients go on when the first fault strikes that late: somebody has to meet it.
const LATE_STRIKE_TIME: Duration = Duration::from_secs(2);

/// What servers log: as usual, and the trace of the leases.
const LOG: &str = "info,openraft=error,gfs::lease=trace";

/// What a run judges and its history does not tell.
const NOT_IN_A_HISTORY: &str = "not judged, a history does not tell it: leases, convergence, servers that ended, damage that \
    nobody noticed, whether faults struck";

/// What a run is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the workload.
    pub workload: String,
    /// Names of the faults; none for a quiet run.
    pub nemesis: Vec<String>,
    /// How long the clients work, in milliseconds.
    pub time_ms: u64,
    /// Seed of all choices; the timing of the processes is not drawn from it.
    pub seed: u64,
    /// Number of clients.
    pub clients: u64,
    /// Operations of each client, if it shall end with them and not only with the time.
    #[serde(default)]
    pub operations: Option<u64>,
}

impl Plan {
    fn workload(&self) -> Result<&'static Workload> {
        find_workload(&self.workload)
    }

    /// The faults that can be had there, and the others.
    fn faults(&self, site: &Site) -> Result<(Vec<&'static Fault>, Vec<&'static Fault>)> {
        let workload = self.workload()?;
        let find = |name: &String| {
            let known = || FAULTS.iter().map(|fault| fault.name).collect::<Vec<_>>().join(", ");
            FAULTS
                .iter()
                .find(|fault| fault.name == name)
                .with_context(|| format!("no fault {name:?}; there are {}", known()))
        };
        let asked: Vec<_> =
            self.nemesis.iter().filter(|name| *name != "none").map(find).collect::<Result<_>>()?;
        let (possible, impossible): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|fault| site.has(fault.needs) && workload.can_suffer(fault.needs));
        if possible.is_empty() && !impossible.is_empty() {
            bail!("nothing of this can be done here: {}", left_out(&impossible).join("; "));
        }
        Ok((possible, impossible))
    }

    /// Names of the faults that can be had there, and of the others.
    ///
    /// # Errors
    /// There is no such fault, or none of them can be had.
    pub fn fault_names(&self, site: &Site) -> Result<(Vec<&'static str>, Vec<&'static str>)> {
        let (possible, impossible) = self.faults(site)?;
        let names = |faults: Vec<&'static Fault>| faults.into_iter().map(|fault| fault.name).collect();
        Ok((names(possible), names(impossible)))
    }

    /// With fewer acknowledged operations the run proves nothing.
    fn load_min(&self, workload: &Workload) -> u64 {
        match self.operations {
            // Few may have an unknown outcome.
            Some(operations) => operations.saturating_mul(self.clients).saturating_mul(9) / 10,
            None => workload.minimum.all_per_second.saturating_mul(self.time_ms) / 1000,
        }
    }

    /// Whether enough was done for the run to prove something.
    fn check_load(&self, workload: &Workload, history: &str, verdict: &mut Verdict) -> Result<()> {
        let needed = self.load_min(workload);
        if verdict.ok < needed {
            verdict.doubt(format!("too little load: {} acknowledged, {needed} needed", verdict.ok));
        }
        if self.operations.is_none() {
            timeline::check_load(history, workload.minimum, verdict)?;
        }
        Ok(())
    }

    /// The line that does the same again.
    pub fn command(&self) -> String {
        let nemesis = if self.nemesis.is_empty() { "none".to_owned() } else { self.nemesis.join(",") };
        let operations =
            self.operations.map(|operations| format!(" --operations {operations}")).unwrap_or_default();
        format!(
            "cargo run -p gfs-jepsen -- run --workload {} --nemesis {nemesis} --time {}ms --clients {}{operations} --seed {}",
            self.workload, self.time_ms, self.clients, self.seed
        )
    }
}

/// Which faults are left out, for want of what.
fn left_out(faults: &[&Fault]) -> Vec<String> {
    let without = |needs: Needs| {
        let names: Vec<_> =
            faults.iter().filter(|fault| fault.needs == needs).map(|fault| fault.name).collect();
        (!names.is_empty()).then(|| format!("{} without {}", names.join(", "), needs.missing()))
    };
    Needs::ALL.into_iter().filter_map(without).collect()
}

fn find_workload(name: &str) -> Result<&'static Workload> {
    let known = || WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
    WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .with_context(|| format!("no workload {name:?}; there are {}", known()))
}

/// Judges a history that was written before, by its workload and by the load that the `plan.json` beside it wants; the plan names
/// the workload if none is given. Servers, logs and replicas are gone: the verdict notes what that leaves out.
///
/// # Errors
/// The file is no history.
pub fn check_file(file: &Path, workload: Option<&str>) -> Result<Verdict> {
    let plan = file.with_file_name("plan.json");
    let planned: Result<Plan> =
        std::fs::read_to_string(&plan).with_context(|| format!("{} can't be read", plan.display())).and_then(
            |text| serde_json::from_str(&text).with_context(|| format!("{} is no plan", plan.display())),
        );
    let (workload, planned) = match (workload, planned) {
        // Another workload's plan says nothing of the load of this one.
        (Some(name), planned) => {
            (find_workload(name)?, planned.ok().filter(|planned| planned.workload == name))
        }
        (None, planned) => {
            let planned = planned.context("--workload is not given")?;
            (planned.workload()?, Some(planned))
        }
    };
    // The last line may be torn, also within a letter.
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let mut verdict = (workload.check)(&text)?;
    match planned {
        Some(planned) => planned.check_load(workload, &text, &mut verdict)?,
        None => verdict.note("not judged: whether the load was enough, without its plan.json beside it"),
    }
    verdict.note(NOT_IN_A_HISTORY);
    Ok(verdict)
}

/// Does what the plan says, in a directory that stays; returns it and the verdict.
///
/// # Errors
/// The plan makes no sense, or the machinery fails: nothing is said about the system then.
pub async fn run(plan: &Plan, site: &Site) -> Result<(PathBuf, Verdict)> {
    let (workload, (faults, impossible)) = (plan.workload()?, plan.faults(site)?);
    let disks = faults.iter().any(|fault| fault.needs == Needs::Disks);
    let disk_bytes = disks.then_some(DISK_BYTES);
    let mut shape = Shape { masters: 3, chunkservers: 4, log: Some(LOG), disk_bytes, ..Shape::default() };
    (workload.tune)(&mut shape);
    let inside = site.has(Needs::Inside).then(Inside::new).transpose()?;
    let hosts = inside.as_ref().map_or_else(|| site.hosts(), |inside| inside.hosts(site.hosts(), ""));
    let mut cluster = Cluster::start_on(shape, hosts).await?;
    // What goes wrong in it is for the verdict.
    cluster.judge_elsewhere();
    let directory = cluster.keep();
    std::fs::write(directory.join("plan.json"), serde_json::to_string_pretty(plan)?)?;
    let history = directory.join("history.jsonl");
    let shadows = cluster.names(Role::Shadow).iter().filter_map(|name| cluster.address_of(name)).collect();
    let scene = Scene::new(cluster.masters(), Recorder::create(&history)?, plan.seed);
    let scene = Arc::new(Scene { shadows, operations: plan.operations, ..scene });
    (workload.prepare)(scene.clone()).await?;
    let dice = StdRng::seed_from_u64(plan.seed);
    let mut ring = Ring {
        cluster: &mut cluster,
        recorder: &scene.recorder,
        network: site.network(),
        inside,
        dice,
        deeds: Deeds::default(),
        corruptions: Vec::new(),
        unusable: None,
    };
    let mut outcome = drive(plan, &faults, site, &scene, &mut ring).await;
    let mut end = Verdict::new();
    let Ring { deeds, corruptions, inside: _inside, .. } = ring;
    if !deeds.idle().is_empty() {
        end.note(format!("faults that began and did not strike: {}", deeds.idle().join(", ")));
    }
    end.counts = deeds.counts;
    if outcome.is_ok() {
        outcome = converge::check(&cluster, (&corruptions, shape.trash), &mut end).await;
    }
    scene.recorder.finish()?;
    let text = std::fs::read_to_string(&history)?;
    let mut verdict = (workload.check)(&text)?;
    let wrote = verdict.counts.get(WRITES).is_some_and(|writes| *writes > 0);
    check_leases(&cluster, wrote, &mut end)?;
    verdict.absorb("end", end);
    if let Err(error) = outcome {
        verdict.doubt(format!("the run broke off: {error:#}"));
    }
    plan.check_load(workload, &text, &mut verdict)?;
    doubt_without_strike(&faults, &mut verdict);
    left_out(&impossible).into_iter().for_each(|what| verdict.note(format!("left out: {what}")));
    judge_servers(&mut cluster, &mut verdict)?;
    std::fs::write(directory.join("verdict.json"), serde_json::to_string_pretty(&verdict)?)?;
    report(&directory)?;
    Ok((directory, verdict))
}

/// What the servers have logged that is not good, and those that have ended by themselves.
fn judge_servers(cluster: &mut Cluster, verdict: &mut Verdict) -> Result<()> {
    for line in cluster.unexpected_errors() {
        if line.contains("panicked at") {
            verdict.finding(format!("panic: {line}"));
        } else {
            verdict.note(format!("logged: {line}"));
        }
    }
    cluster.take_ends()?.iter().for_each(|end| judge_end(end, verdict));
    Ok(())
}

/// No fault makes a server end that the cluster does not know to have a reason.
fn judge_end(end: &End, verdict: &mut Verdict) {
    if end.from_outside {
        verdict.doubt(format!("killed by somebody else, for want of memory perhaps: {}", end.what));
    } else {
        verdict.finding(format!("ended: {}", end.what));
    }
}

/// Who was primary when, as the chunkservers have traced it.
fn check_leases(cluster: &Cluster, wrote: bool, verdict: &mut Verdict) -> Result<()> {
    let mut logs = Vec::new();
    // Of those too that have left for good.
    for log in std::fs::read_dir(cluster.directory().join("logs"))? {
        let log = log?.path();
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("chunkserver") {
            let text = std::fs::read(&log).with_context(|| log.display().to_string())?;
            // A kill may tear a line.
            logs.push((name, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    lease::check(logs.iter().map(|(name, text)| (name.as_str(), text.as_str())), wrote, verdict);
    Ok(())
}

async fn drive(
    plan: &Plan,
    faults: &[&Fault],
    site: &Site,
    scene: &Arc<Scene>,
    ring: &mut Ring<'_>,
) -> Result<()> {
    let workload = plan.workload()?;
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        clients.spawn_on((workload.client)(scene.clone(), number), &site.clients());
    }
    let struck = ring.deeds.struck.clone();
    // A fault that is under way at the end is left to the healing.
    let raged = tokio::select! {
        raged = ring.rage(faults) => raged,
        ended = all_end(&mut clients) => ended,
        () = time_is_over(Duration::from_millis(plan.time_ms), &struck, !faults.is_empty()) => Ok(()),
    };
    scene.stop.store(true, Ordering::Relaxed);
    ring.heal()?;
    raged?;
    tokio::time::timeout(CLIENTS_PATIENCE, all_end(&mut clients))
        .await
        .context("a client does not end")??;
    let started = Instant::now();
    wait_until_whole(ring.cluster).await?;
    if !ring.corruptions.is_empty() {
        converge::read_everything(ring.cluster).await?;
        wait_until_whole(ring.cluster).await?;
    }
    scene.recorder.nemesis(&format!("whole again after {} ms", started.elapsed().as_millis()))?;
    (workload.finish)(scene.clone()).await
}

/// Waits for the end of the time, and a little longer for the first strike if there is to be one.
async fn time_is_over(time: Duration, struck: &Notify, shall_strike: bool) {
    tokio::time::sleep(time).await;
    if !shall_strike || struck.notified().now_or_never().is_some() {
        return;
    }
    if tokio::time::timeout(STRIKE_PATIENCE, struck.notified()).await.is_ok() {
        tokio::time::sleep(LATE_STRIKE_TIME).await;
    }
}

/// A run under faults of which none has struck is a quiet one, and says nothing of them.
fn doubt_without_strike(faults: &[&Fault], verdict: &mut Verdict) {
    if faults.is_empty() || verdict.counts.keys().any(|what| what.starts_with(STRUCK)) {
        return;
    }
    let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
    verdict.doubt(format!("none of the faults struck: {}; give it more time", names.join(", ")));
}

/// Waits for all clients; stops at the first that fails.
async fn all_end(clients: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

/// Every server takes part, and every chunk has all its replicas.
pub(crate) async fn wait_until_whole(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_until_up().await?;
    let status = cluster
        .wait_for_status("every chunk has its replicas", HEALING_PATIENCE, |status| {
            status.counted && status.chunks_below_goal == 0
        })
        .await?;
    if status.chunks_without_replica > 0 {
        bail!("{} chunks have no replica", status.chunks_without_replica);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Validity;

    #[test]
    fn a_server_that_ended_by_itself_is_a_finding_and_one_that_the_machine_killed_a_doubt() {
        for (from_outside, validity) in [(false, Validity::Bad), (true, Validity::Unknown)] {
            let mut verdict = Verdict::new();
            judge_end(&End { what: "chunkserver-3".into(), from_outside }, &mut verdict);
            assert_eq!(verdict.validity, validity);
        }
    }

    #[test]
    fn faults_of_which_none_struck_are_doubted() {
        let judge = |faults: &[&Fault], what: &str| {
            let mut verdict = Verdict::new();
            verdict.count(what, 1);
            doubt_without_strike(faults, &mut verdict);
            verdict.validity
        };
        let mix: Vec<&Fault> = FAULTS.iter().take(2).collect();
        assert_eq!(judge(&mix, "faults.pause"), Validity::Good, "one is enough");
        assert_eq!(judge(&mix, "idle.kill"), Validity::Unknown);
        assert_eq!(judge(&[], "writes"), Validity::Good, "none was to strike");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_goes_on_until_a_fault_has_struck_but_not_for_ever() {
        let time = Duration::from_secs(7);
        let ended_after = async |strike_after: Option<u64>, shall_strike| {
            let (struck, started) = (Notify::new(), tokio::time::Instant::now());
            let strike = async {
                if let Some(after) = strike_after {
                    tokio::time::sleep(Duration::from_secs(after)).await;
                    struck.notify_one();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = strike => {}
                () = time_is_over(time, &struck, shall_strike) => {}
            }
            started.elapsed().as_secs()
        };
        assert_eq!(ended_after(Some(3), true).await, 7);
        assert_eq!(ended_after(Some(10), true).await, 12, "clients are to meet it");
        assert_eq!(ended_after(None, true).await, 27);
        assert_eq!(ended_after(None, false).await, 7);
    }

    #[test]
    fn a_history_that_is_judged_again_needs_the_load_of_its_plan() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("history.jsonl");
        let ok = |process: u64, call: &str, value: &str| {
            format!(
                r#"{{"event":"call","process":{process},"at_ns":{process},"call":{call}}}
{{"event":"return","process":{process},"at_ns":{process},"outcome":{{"type":"ok","value":{value}}}}}
"#
            )
        };
        let entry = r#"{"rev":1,"entries":[{"name":"a","id":1,"directory":true}]}"#;
        std::fs::write(&file, ok(1, r#"{"mkdir":{"path":"/a"}}"#, entry)).unwrap();
        assert!(check_file(&file, None).is_err(), "nobody has named the workload");
        let without = check_file(&file, Some("namespace")).unwrap();
        assert!(
            without.is_good() && without.notes.iter().any(|note| note.contains("plan.json")),
            "{without:?}"
        );
        let plan = |time_ms| Plan {
            workload: "namespace".into(),
            nemesis: vec!["kill".into()],
            time_ms,
            seed: 1,
            clients: 8,
            operations: None,
        };
        for (time_ms, validity) in [(50, Validity::Good), (7000, Validity::Unknown)] {
            let text = serde_json::to_string(&plan(time_ms)).unwrap();
            std::fs::write(file.with_file_name("plan.json"), text).unwrap();
            let verdict = check_file(&file, None).unwrap();
            assert_eq!(verdict.validity, validity, "{verdict:?}");
            assert!(verdict.notes.iter().any(|note| note == NOT_IN_A_HISTORY));
        }
    }

    #[test]
    fn a_workload_without_chunks_leaves_out_what_damages_them() {
        let (site, _) = Site::open(crate::hosts::Placement::Loopback).unwrap();
        let plan = |workload: &str, nemesis: &[&str]| Plan {
            workload: workload.into(),
            nemesis: nemesis.iter().map(|name| (*name).to_owned()).collect(),
            time_ms: 1,
            seed: 1,
            clients: 1,
            operations: None,
        };
        let mixed = plan("namespace", &["kill", "bit-rot"]).fault_names(&site).unwrap();
        assert_eq!(mixed, (vec!["kill"], vec!["bit-rot"]));
        assert!(plan("bank", &["bit-rot"]).fault_names(&site).is_err());
        assert!(plan("append", &["bit-rot"]).fault_names(&site).is_ok());
    }

    #[test]
    fn what_is_left_out_is_told_with_what_it_wants() {
        let wanting = |fault: &&Fault| matches!(fault.needs, Needs::Network | Needs::Inside);
        let faults: Vec<&Fault> = FAULTS.iter().filter(wanting).collect();
        let told = left_out(&faults);
        assert_eq!(told.len(), 2, "{told:?}");
        let inside = told.iter().find(|what| what.contains("clock-jump")).unwrap();
        assert!(
            inside.contains("disk-slow") && inside.contains("GFS_BIN") && !inside.contains("halves"),
            "{inside}"
        );
        assert!(left_out(&[]).is_empty());
    }
}
