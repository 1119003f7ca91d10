//! One run: a cluster, clients, faults, a last look, a verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gfs_tests::{Cluster, End, Role, Shape};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::check::{WRITES, lease};
use crate::converge;
use crate::hosts::Site;
use crate::inside::Inside;
use crate::nemesis::{Deeds, FAULTS, Fault, Needs, Ring};
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

/// What servers log: as usual, and the trace of the leases.
const LOG: &str = "info,openraft=error,gfs::lease=trace";

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
            asked.into_iter().partition(|fault| site.has(fault.needs));
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

/// Judges a history that was written before; `plan.json` beside it names the workload if none is given.
///
/// # Errors
/// The file is no history.
pub fn check_file(file: &Path, workload: Option<&str>) -> Result<Verdict> {
    let workload = match workload {
        Some(name) => find_workload(name)?,
        None => {
            let plan = file.with_file_name("plan.json");
            let text = std::fs::read_to_string(&plan)
                .with_context(|| format!("--workload is not given and {} can't be read", plan.display()))?;
            serde_json::from_str::<Plan>(&text)?.workload()?
        }
    };
    // The last line may be torn, also within a letter.
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    (workload.check)(&String::from_utf8_lossy(&bytes))
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
    let needed = plan.load_min(workload);
    if verdict.ok < needed {
        verdict.doubt(format!("too little load: {} acknowledged, {needed} needed", verdict.ok));
    }
    left_out(&impossible).into_iter().for_each(|what| verdict.note(format!("left out: {what}")));
    if plan.operations.is_none() {
        timeline::check_load(&text, workload.minimum, &mut verdict)?;
    }
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
    // A fault that is under way at the end is left to the healing.
    let raged = tokio::select! {
        raged = ring.rage(faults) => raged,
        ended = all_end(&mut clients) => ended,
        () = tokio::time::sleep(Duration::from_millis(plan.time_ms)) => Ok(()),
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
