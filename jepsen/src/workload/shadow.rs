//! Lookups that may be old, at shadows and at masters that don't lead, while the namespace changes (promise P8).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_proto::leader::Master;
use gfs_proto::{Environment, Error, net, pb};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::speaker::{self, Speaker, make_root};
use super::{Minimum, Scene, Workload, namespace};
use crate::check::shadow::check;
use crate::check::tree::{Call, Reply, Stale};
use crate::outcome::Outcome;

/// Everything is below here.
const ROOT: &str = "/shadow";
/// How old an answer may be, in ms: less and more than what a shadow is behind.
const BOUNDS_MS: &[u64] = &[20, 100, 500, 2000];
/// How long one server may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_PERCENT: u32 = 60;

pub(super) const WORKLOAD: Workload = Workload {
    name: "shadow",
    minimum: Minimum { all_per_second: 20, quiet_per_second: 10 },
    prepare: |scene| async move { make_root(&scene, ROOT).await }.boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(scene, number).boxed() },
    finish: |scene| namespace::finish(scene, ROOT).boxed_local(),
    check,
    tune: |shape| shape.shadows = 2,
    writes_chunks: false,
};

async fn client(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let environment = Environment::real();
    let mut speaker = Speaker::open(&scene, &mut dice, ROOT).await?;
    let looking: Vec<Master> = scene
        .shadows
        .iter()
        .chain(&scene.masters)
        .map(|address| Ok(Master::new(net::channel(environment.net.clone(), address, LOOK_TIMEOUT)?)))
        .collect::<Result<_>>()?;
    let mut process = scene.recorder.process();
    let mut entered = None;
    // The newest index that this session has been told.
    let mut seen = 0;
    while scene.goes_on_after(process.performed()) {
        let tree = namespace::tree(&scene, number);
        // Mostly the shadows, which come first.
        let which = if dice.random_range(0..4) > 0 { scene.shadows.len().max(1) } else { looking.len() };
        let asked = dice.random_range(0..which);
        let shadow = u32::try_from(asked).ok().filter(|_| asked < scene.shadows.len());
        let call = if entered.replace(tree) == Some(tree) {
            draw(&mut dice, tree, seen, shadow)
        } else {
            Call::Mkdir { path: format!("/t{tree}") }
        };
        let (request, first) = (speaker.next_request(), dice.random_range(0..scene.masters.len()));
        let outcome = if call.stale().is_some() {
            process.perform(call.clone(), look(looking.get(asked).cloned(), &call, request)).await?
        } else {
            process.perform(call.clone(), speaker.decide(first, &call, request)).await?
        };
        if let Outcome::Ok { value } = outcome {
            seen = seen.max(value.rev);
        }
    }
    Ok(())
}

/// Asks one server, and nobody else if it does not answer.
async fn look(master: Option<Master>, call: &Call, request: pb::RequestId) -> Outcome<Reply> {
    let answer = match master {
        Some(master) => tokio::time::timeout(LOOK_TIMEOUT, speaker::ask(master, call.clone(), request, ROOT))
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("no answer"))),
        None => Err(Error::unavailable("there is no server to ask")),
    };
    Outcome::of_mutation(answer)
}

fn draw(dice: &mut StdRng, tree: u64, seen: u64, shadow: Option<u32>) -> Call {
    let call = namespace::draw(dice, tree);
    if dice.random_range(0..100) >= LOOK_PERCENT {
        return call;
    }
    let bound_ms = BOUNDS_MS.choose(dice).copied().unwrap_or(100);
    // With and without the session's floor.
    let stale = Some(Stale { bound_ms, floor: if dice.random() { seen } else { 0 }, shadow });
    // A tree itself is listed, not the directory of all trees: others are at work there.
    let path = call.paths().0.to_owned();
    let list = namespace::parent_of(&path);
    let list = if list.is_empty() { path.clone() } else { list };
    if dice.random() { Call::Stat { path, stale } } else { Call::List { path: list, stale } }
}
