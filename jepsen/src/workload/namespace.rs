//! Namespace operations through any master, in small trees that clients leave for new ones after a while: what
//! happened in a tree is then few enough operations to be judged by search too.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::{Result, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_proto::Environment;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};

use super::speaker::{Speaker, make_root};
use super::{LAST_PATIENCE, Minimum, Scene, Workload, demand};
use crate::check::namespace::check;
use crate::check::tree::{Call, Reply};
use crate::outcome::Outcome;
use crate::recorder::Process;

/// Everything is below here.
const ROOT: &str = "/namespace";
/// Few names, so that clients meet.
const NAMES: &[&str] = &["a", "b", "c", "d"];
/// Trees in use at one time, and operations until all go on to new ones.
const TREES: u64 = 2;
const ROUND_OPERATIONS: u64 = 1600;

/// Share of the operations that want back what was deleted, and how much of that a client remembers.
const UNDELETE_PERCENT: u32 = 8;
const DELETED_MAX: usize = 8;

/// Whose dice those are that are thrown when the faults are over.
const LAST_CLIENT: u64 = u64::MAX - 1;

pub(super) const WORKLOAD: Workload = Workload {
    name: "namespace",
    minimum: Minimum { all_per_second: 20, quiet_per_second: 50 },
    prepare: |scene| async move { make_root(&scene, ROOT).await }.boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> {
        let environment = scene.environment.clone();
        client(scene, number, ROOT, environment).boxed()
    },
    finish: |scene| finish(scene, ROOT).boxed_local(),
    check,
    writes_chunks: false,
    ..Workload::PLAIN
};

pub(super) async fn client(
    scene: Arc<Scene>,
    number: u64,
    root: &'static str,
    environment: Environment,
) -> Result<()> {
    let mut dice = scene.dice(number);
    let mut speaker = Speaker::open_with(&environment, &scene, &mut dice, root).await?;
    let mut process = scene.recorder.process();
    let (mut entered, mut deleted) = (None, Deleted::default());
    while scene.goes_on_after(process.performed()) {
        let tree = tree(&scene, number);
        // The first operation in a tree makes it; of several clients, one succeeds.
        let call = if entered.replace(tree) == Some(tree) {
            let expires = scene.trash_expires;
            deleted.draw(&mut dice, tree, expires).unwrap_or_else(|| draw(&mut dice, tree))
        } else {
            deleted = Deleted::default();
            Call::Mkdir { path: format!("/t{tree}") }
        };
        let (request, first) = (speaker.next_request(), dice.random_range(0..scene.masters.len()));
        let outcome = process.perform(call.clone(), speaker.decide(first, &call, request)).await?;
        if let Outcome::Ok { value } = &outcome {
            deleted.learn(&call, value);
        }
    }
    Ok(())
}

/// What a client may want to have back: where it has seen what, and what it has deleted.
#[derive(Default)]
struct Deleted {
    seen: BTreeMap<String, u64>,
    deleted: VecDeque<(u64, String)>,
}

impl Deleted {
    fn learn(&mut self, call: &Call, reply: &Reply) {
        let (path, target) = call.paths();
        match call {
            Call::Mkdir { .. } | Call::Create { .. } | Call::Stat { .. } | Call::Undelete { .. } => {
                let path = target.unwrap_or(path).to_owned();
                self.seen.extend(reply.entries.first().map(|entry| (path, entry.id)));
            }
            Call::Delete { .. } => {
                self.deleted.extend(self.seen.remove(path).map(|id| (id, path.to_owned())));
                if self.deleted.len() > DELETED_MAX {
                    self.deleted.pop_front();
                }
            }
            Call::Rename { .. } | Call::Snapshot { .. } | Call::List { .. } => {}
        }
    }

    /// Now and then, to have something back: where it was, or elsewhere. Somebody else may have moved it since.
    fn draw(&self, dice: &mut StdRng, tree: u64, expires: bool) -> Option<Call> {
        let wanted = dice.random_range(0..100) < UNDELETE_PERCENT;
        let (id, source) = self.deleted.iter().choose(dice).filter(|_| wanted)?.clone();
        let target = if dice.random() { source.clone() } else { path(dice, tree) };
        Some(Call::Undelete { id, source, target, expires })
    }
}

/// The tree that a client works in now.
pub(super) fn tree(scene: &Scene, number: u64) -> u64 {
    scene.tick() / ROUND_OPERATIONS * TREES + number % TREES
}

/// A path of one to three names in a tree.
fn path(dice: &mut StdRng, tree: u64) -> String {
    let depth = dice.random_range(1..=3);
    let names = (0..depth).map(|_| format!("/{}", NAMES.choose(dice).copied().unwrap_or("a")));
    format!("/t{tree}{}", names.collect::<String>())
}

pub(super) fn draw(dice: &mut StdRng, tree: u64) -> Call {
    let here = path(dice, tree);
    match dice.random_range(0..100) {
        0..20 => Call::Mkdir { path: here },
        20..40 => Call::Create { path: here },
        40..55 => Call::Delete { path: here, recursive: dice.random_range(0..3) == 0 },
        55..70 => {
            Call::Rename { source: here, target: path(dice, tree), replace: dice.random_range(0..2) == 0 }
        }
        70..85 => Call::Stat { path: here, stale: None },
        _ => Call::List { path: parent_of(&here), stale: None },
    }
}

pub(super) fn parent_of(path: &str) -> String {
    path.rsplit_once('/').map_or(path, |(parent, _)| parent).to_owned()
}

/// Makes, moves and deletes something, then reads every tree once more, through each master.
pub(super) async fn finish(scene: Arc<Scene>, root: &'static str) -> Result<()> {
    let changed = change(&scene, root).await;
    let trees = (scene.ticks() / ROUND_OPERATIONS + 1) * TREES;
    read_trees(&scene, root, (0..trees).map(|tree| format!("/t{tree}")).collect()).await?;
    changed
}

/// Masters that answer lookups may still take no change.
async fn change(scene: &Scene, root: &'static str) -> Result<()> {
    let mut dice = scene.dice(LAST_CLIENT);
    let mut speaker = Speaker::open(scene, &mut dice, root).await?;
    let mut process = scene.recorder.process();
    let mut changed = Ok(());
    // Once more if the session has ended meanwhile, where they are short.
    for top in ["/last", "/very-last"] {
        changed = change_below(&mut speaker, &mut process, top).await?;
        if changed.is_ok() {
            break;
        }
    }
    changed
}

async fn change_below(speaker: &mut Speaker, process: &mut Process<'_>, top: &str) -> Result<Result<()>> {
    let (here, there) = (format!("{top}/here"), format!("{top}/there"));
    let calls = [
        Call::Mkdir { path: top.to_owned() },
        Call::Create { path: here.clone() },
        Call::Rename { source: here, target: there.clone(), replace: false },
        Call::Delete { path: there, recursive: false },
    ];
    for (first, call) in calls.into_iter().enumerate() {
        let request = speaker.next_request();
        let outcome = process.perform(call.clone(), speaker.decide(first, &call, request)).await?;
        let changed = demand(&outcome, &format!("the last change of names, {call:?},"));
        if changed.is_err() {
            return Ok(changed);
        }
    }
    Ok(Ok(()))
}

/// Lists some directories and all that is below them, through each master.
pub(super) async fn read_trees(scene: &Scene, root: &'static str, trees: Vec<String>) -> Result<()> {
    let mut dice = scene.dice(u64::MAX);
    let mut speaker = Speaker::open(scene, &mut dice, root).await?;
    let mut process = scene.recorder.process();
    for first in 0..scene.masters.len() {
        let mut directories = trees.clone();
        while let Some(path) = directories.pop() {
            let call = Call::List { path: path.clone(), stale: None };
            let request = speaker.next_request();
            let look = async {
                Outcome::<Reply>::of_mutation(speaker.ask(first, &call, request, LAST_PATIENCE).await)
            };
            match process.perform(call.clone(), look).await? {
                Outcome::Ok { value } => {
                    let below = value.entries.iter().filter(|entry| entry.directory);
                    directories.extend(below.map(|entry| format!("{path}/{}", entry.name)));
                }
                // The checker judges whether it may be away.
                Outcome::Fail { .. } => {}
                Outcome::Info { reason } => {
                    bail!("{path} could not be listed after the faults: {reason}")
                }
            }
        }
    }
    Ok(())
}
