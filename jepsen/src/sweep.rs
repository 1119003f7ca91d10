//! The sweep over all fail points: each is told to crash, to fail and to stand still, in turn, while clients append, write
//! and rename; afterwards everything is judged as after any other fault.
//!
//! Some cells share a cluster, one after the other: starting and judging one costs more than a cell.

mod churn;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gfs_proto::Environment;
use gfs_proto::fault::{self, BUILT, Count, POINTS, Point};
use tokio::task::JoinSet;

use crate::runner::wait_until_whole;
use crate::verdict::Verdict;
use crate::workload::{Load, Scene, WORKLOADS, Workload};
use stage::Stage;

/// What a fail point is told, in this order.
pub const ACTIONS: [&str; 3] = ["crash", "error", "sleep"];
/// The clients of a cell.
const LOADS: [&str; 3] = ["append", "cells", "namespace"];
const CLIENTS_EACH: u64 = 3;
/// How long one server has the fault alone before all of its kind get it.
const ALONE: Duration = Duration::from_millis(1200);
/// How long a fail point may take to be passed at all.
const PATIENCE: Duration = Duration::from_millis(6000);
/// How long a fault that does not end its process goes on once it has struck.
const GOES_ON: Duration = Duration::from_millis(600);
/// How long the cluster is left alone between two cells.
const QUIET: Duration = Duration::from_millis(700);
/// Times in a row that a fail point may not be passed before no more strikes of it are waited for.
const MISSES_MAX: u32 = 5;
/// Pause of a client after each operation: a fail point needs somebody who passes it, not a machine without rest.
const THINK: Duration = Duration::from_millis(25);
/// How often the counts are read.
const LOOK: Duration = Duration::from_millis(20);
/// How long clients may take to end.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(60);

/// What a sweep is to do.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Parts of the names of fail points; all if empty.
    pub points: Vec<String>,
    /// Some of [`ACTIONS`].
    pub actions: Vec<String>,
    /// Cells that share a cluster.
    pub batch: usize,
    /// Strikes after which a cell is done.
    pub strikes: u64,
    /// Seed of what the clients choose.
    pub seed: u64,
}

/// One fail point with one action.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its name.
    pub point: &'static str,
    /// What it was told.
    pub action: String,
    /// How often it was passed and struck while it was told so.
    pub count: Count,
    /// What came of the cluster that it ran on: nothing if all is good.
    pub findings: Vec<String>,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.findings.is_empty() { "Good" } else { "BAD" };
        let Count { passed, struck } = self.count;
        write!(f, "{:<34} {:<6} passed {passed:>6}  struck {struck:>6}  {verdict}", self.point, self.action)
    }
}

impl Sweep {
    /// The cells, those of one action together.
    fn cells(&self) -> Result<Vec<Cell>> {
        let wanted = |point: &&Point| {
            self.points.is_empty() || self.points.iter().any(|part| point.name.contains(part.as_str()))
        };
        let mut cells = Vec::new();
        for action in &self.actions {
            ensure!(ACTIONS.contains(&action.as_str()), "no action {action:?}");
            let points = POINTS.iter().filter(wanted).filter(|point| {
                // A client is this very process.
                (action != "error" || point.fails)
                    && (action != "crash" || !point.name.starts_with("client::"))
            });
            cells.extend(points.map(|point| Cell {
                point: point.name,
                action: action.clone(),
                count: Count::default(),
                findings: Vec::new(),
            }));
        }
        ensure!(!cells.is_empty(), "no fail point has such a name");
        Ok(cells)
    }
}

/// Goes through all cells; each is told when its cluster has been judged.
///
/// # Errors
/// The machinery fails.
pub async fn sweep(plan: &Sweep, mut tell: impl FnMut(&Cell) -> Result<()>) -> Result<Vec<Cell>> {
    ensure!(BUILT, "this program is without faults: cargo run -p gfs-jepsen --features faults -- faults");
    let mut done = Vec::new();
    let cells = plan.cells()?;
    for (number, batch) in (0..).zip(cells.chunks(plan.batch.max(1))) {
        let mut batch = batch.to_vec();
        let (directory, findings) = run_batch(&mut batch, plan, plan.seed + number).await?;
        if findings.is_empty() {
            std::fs::remove_dir_all(&directory)?;
        }
        for mut cell in batch {
            cell.findings = findings.clone();
            tell(&cell)?;
            done.push(cell);
        }
    }
    Ok(done)
}

/// One cluster, its clients, and some cells one after the other; the directory, and what the judges found.
async fn run_batch(cells: &mut [Cell], plan: &Sweep, seed: u64) -> Result<(PathBuf, Vec<String>)> {
    let mut stage = Stage::start().await?;
    let directory = stage.directory();
    let mut scenes = Vec::new();
    for name in LOADS {
        let workload = WORKLOADS.iter().find(|workload| workload.name == name).context("no such workload")?;
        let history = directory.join(format!("{name}.jsonl"));
        // The stage keeps the trash short, so that what empties it comes to its fail points.
        let load = Load { seed, think: THINK, trash_expires: true };
        let scene = Scene::over(Environment::real(), stage.cluster.masters(), &history, load)?;
        (workload.prepare)(scene.clone()).await?;
        scenes.push((workload, scene));
    }
    let mut clients = JoinSet::new();
    for (workload, scene) in &scenes {
        for number in 0..CLIENTS_EACH {
            clients.spawn((workload.client)(scene.clone(), number));
        }
    }
    let churn = tokio::spawn(churn::churn(stage.cluster.masters()));
    let mut outcome = Ok(());
    for cell in &mut *cells {
        outcome = run_cell(cell, plan.strikes, &mut stage, &scenes)
            .await
            .with_context(|| format!("{} {}", cell.point, cell.action));
        if outcome.is_err() {
            break;
        }
    }
    churn.abort();
    let ended = end(&mut stage, &scenes, clients).await;
    let mut findings = judge(&directory, &scenes)?;
    findings.extend(
        [outcome, ended].into_iter().filter_map(|result| Some(format!("broke off: {:#}", result.err()?))),
    );
    findings
        .extend(stage.cluster.unexpected_errors().into_iter().filter(|line| line.contains("panicked at")));
    Ok((directory, findings))
}

/// Round after round, until the fail point has struck often enough, or nothing leads to it.
async fn run_cell(
    cell: &mut Cell,
    strikes: u64,
    stage: &mut Stage,
    scenes: &[(&Workload, Arc<Scene>)],
) -> Result<()> {
    let (mut rounds, mut misses) = (0, 0);
    while rounds == 0 || (cell.count.struck < strikes && misses < MISSES_MAX && rounds < 2 * strikes) {
        let before = cell.count.struck;
        run_round(cell, rounds, stage, scenes).await?;
        misses = if cell.count.struck > before { 0 } else { misses + 1 };
        rounds += 1;
    }
    Ok(())
}

/// Arms a fail point until it has struck, then disarms it and brings back who died of it.
async fn run_round(
    cell: &mut Cell,
    round: u64,
    stage: &mut Stage,
    scenes: &[(&Workload, Arc<Scene>)],
) -> Result<()> {
    let line = match cell.action.as_str() {
        // Long first, then often.
        "sleep" => format!("{}=sleep({})*20", cell.point, if round == 0 { 700 } else { 100 }),
        "error" => format!("{}=error*40", cell.point),
        _ => format!("{}=crash*1", cell.point),
    };
    for (_, scene) in scenes {
        scene.recorder.nemesis(&line)?;
    }
    let before = stage.count(cell.point);
    let started = Instant::now();
    let victim = stage.victim(cell.point).await?;
    stage.arm(&line, Some(&victim))?;
    let mut away = stage.provoke(cell.point, &victim, &line).await?;
    let (mut alone, mut struck_at) = (true, None);
    while started.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
        if let Some((name, _)) = away.take_if(|(_, absence)| started.elapsed() > *absence) {
            stage.bring_back(&name)?;
        }
        let struck = stage.count(cell.point).struck > before.struck;
        if struck && struck_at.is_none() {
            struck_at = Some(Instant::now());
        }
        if struck_at.is_some_and(|at| cell.action == "crash" || at.elapsed() > GOES_ON) {
            break;
        }
        if alone && !struck && started.elapsed() > ALONE {
            stage.arm(&line, None)?;
            alone = false;
        }
    }
    if let Some((name, _)) = away {
        stage.bring_back(&name)?;
    }
    stage.disarm()?;
    tokio::time::sleep(LOOK * 3).await;
    let after = stage.count(cell.point);
    cell.count.passed += after.passed.saturating_sub(before.passed);
    cell.count.struck += after.struck.saturating_sub(before.struck);
    if cell.action == "error" {
        stage.bury(cell.point)?;
    }
    stage.revive()?;
    tokio::time::sleep(QUIET).await;
    Ok(())
}

/// Heals everything and has the workloads take their last look.
async fn end(
    stage: &mut Stage,
    scenes: &[(&Workload, Arc<Scene>)],
    mut clients: JoinSet<Result<()>>,
) -> Result<()> {
    stage.disarm()?;
    fault::clear();
    for (_, scene) in scenes {
        scene.stop()?;
    }
    stage.revive()?;
    let ended = tokio::time::timeout(CLIENTS_PATIENCE, async {
        while let Some(client) = clients.join_next().await {
            client??;
        }
        anyhow::Ok(())
    });
    ended.await.context("a client does not end")??;
    // Who had a failure may have ended only now.
    stage.revive()?;
    wait_until_whole(&mut stage.cluster).await?;
    for (workload, scene) in scenes {
        (workload.finish)(scene.clone()).await?;
    }
    Ok(())
}

/// What the judges of the workloads say that is not good.
fn judge(directory: &std::path::Path, scenes: &[(&Workload, Arc<Scene>)]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (workload, scene) in scenes {
        scene.recorder.finish()?;
        let text = std::fs::read_to_string(directory.join(format!("{}.jsonl", workload.name)))?;
        let verdict: Verdict = (workload.check)(&text)?;
        if verdict.ok == 0 {
            findings.push(format!("{}: nothing was acknowledged", workload.name));
        }
        let bad = verdict.findings.iter().map(|what| ("finding", what));
        let bad = bad.chain(verdict.doubts.iter().map(|what| ("doubt", what)));
        findings.extend(bad.map(|(kind, what)| format!("{}: {kind}: {what}", workload.name)));
    }
    if !findings.is_empty() {
        findings.push(format!("kept: {}", directory.display()));
    }
    Ok(findings)
}
