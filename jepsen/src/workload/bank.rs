//! Tokens that are renamed within and between two directories, and audited: no list ever lacks one or has one twice.

use std::sync::Arc;

use anyhow::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use rand::Rng;
use rand::rngs::StdRng;

use super::namespace::read_trees;
use super::speaker::{Speaker, make_root};
use super::{Minimum, Scene, Workload};
use crate::check::bank::{SIDES, TOKENS, check};
use crate::check::tree::Call;
use crate::outcome::Outcome;

/// Everything is below here.
const ROOT: &str = "/bank";
/// Operations until all go on to a new bank, so that each is small enough to be searched.
const ROUND_OPERATIONS: u64 = 500;

pub(super) const WORKLOAD: Workload = Workload {
    name: "bank",
    minimum: Minimum { all_per_second: 20, quiet_per_second: 25 },
    prepare: |scene| async move { make_root(&scene, ROOT).await }.boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(scene, number).boxed() },
    finish: |scene| finish(scene).boxed_local(),
    check,
    writes_chunks: false,
    ..Workload::PLAIN
};

async fn client(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let mut speaker = Speaker::open(&scene, &mut dice, ROOT).await?;
    let mut process = scene.recorder.process();
    let (mut founded, mut audits) = (None, 0_u64);
    while scene.goes_on_after(process.performed()) {
        let bank = scene.tick() / ROUND_OPERATIONS;
        // The first client founds each bank; the others meet refusals until it is there.
        let founds = number == 0 && founded.replace(bank) != Some(bank);
        let mut calls = if founds { found(bank) } else { draw(&mut dice, bank) };
        let founding = if founds { calls.len() } else { 0 };
        if dice.random_range(0..12) == 0 {
            audits += 1;
            calls.extend(audit(bank, &format!("{number}-{audits}")));
        }
        for (index, call) in calls.into_iter().enumerate() {
            let outcome = loop {
                let (request, first) = (speaker.next_request(), dice.random_range(0..scene.masters.len()));
                let outcome = process.perform(call.clone(), speaker.decide(first, &call, request)).await?;
                // A token that may be missing must not be put into circulation: what is unknown is tried again.
                if index >= founding || !matches!(outcome, Outcome::Info { .. }) {
                    break outcome;
                }
                if !scene.goes_on() {
                    return Ok(());
                }
            };
            // An audit without its snapshot has nothing to list.
            if matches!(call, Call::Snapshot { .. }) && !matches!(outcome, Outcome::Ok { .. }) {
                break;
            }
        }
    }
    Ok(())
}

/// Makes a bank aside, and gives it its name when all tokens are in it.
fn found(bank: u64) -> Vec<Call> {
    let aside = format!("/b{bank}/aside");
    let mut calls = vec![Call::Mkdir { path: format!("/b{bank}") }, Call::Mkdir { path: aside.clone() }];
    calls.extend(SIDES.iter().map(|side| Call::Mkdir { path: format!("{aside}/{side}") }));
    calls.extend((0..TOKENS).map(|token| Call::Create { path: format!("{aside}/{}/{token}", SIDES[0]) }));
    calls.push(Call::Rename { source: aside, target: format!("/b{bank}/bank"), replace: false });
    calls
}

/// A token moves, or a side is listed.
fn draw(dice: &mut StdRng, bank: u64) -> Vec<Call> {
    let mut side = || SIDES[dice.random_range(0..SIDES.len())];
    let (from, to) = (side(), side());
    if from == to {
        return vec![Call::List { path: format!("/b{bank}/bank/{from}"), stale: None }];
    }
    let token = dice.random_range(0..TOKENS);
    let path = |side: &str| format!("/b{bank}/bank/{side}/{token}");
    vec![Call::Rename { source: path(from), target: path(to), replace: false }]
}

/// A snapshot of the bank, what is in it, and its end.
fn audit(bank: u64, name: &str) -> Vec<Call> {
    let target = format!("/b{bank}/audit-{name}");
    let mut calls = vec![Call::Snapshot { source: format!("/b{bank}/bank"), target: target.clone() }];
    calls.extend(SIDES.iter().map(|side| Call::List { path: format!("{target}/{side}"), stale: None }));
    calls.push(Call::Delete { path: target, recursive: true });
    calls
}

async fn finish(scene: Arc<Scene>) -> Result<()> {
    // All of them: the last one may not have been founded.
    let banks = 0..=scene.ticks() / ROUND_OPERATIONS;
    read_trees(&scene, ROOT, banks.map(|bank| format!("/b{bank}/bank")).collect()).await
}
