//! Namespace operations through any master. Speaks to the masters itself, because the log index of each reply is
//! needed, and repeats requests of unknown outcome under their ids after the faults.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_proto::leader::{Master, MasterChannel};
use gfs_proto::{Environment, Error, pb};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{LAST_PATIENCE, PATIENCE, Scene, Workload};
use crate::check::namespace::{Call, Entry, Reply, check};
use crate::outcome::Outcome;

/// Everything is below here. Few names, so that clients meet.
const NAMES: &[&str] = &["a", "b", "c", "d"];
/// Page of a listing: more than there are names.
const LIST_LIMIT: u32 = 100;

pub(super) const WORKLOAD: Workload = Workload {
    name: "namespace",
    acknowledged_per_second_min: 20,
    prepare: |_| async { Ok(()) }.boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(scene, number).boxed() },
    finish: |scene| finish(scene).boxed_local(),
    check,
};

/// One client's session.
struct Speaker {
    /// Each begins at another master, and follows hints from there.
    channels: Vec<MasterChannel>,
    client: u64,
    sequence: u64,
}

impl Speaker {
    async fn open(scene: &Scene, dice: &mut StdRng) -> Result<Self> {
        let environment = Environment::real();
        let channels = (0..scene.masters.len())
            .map(|first| {
                let mut order = scene.masters.clone();
                order.rotate_left(first);
                MasterChannel::new(&environment, &order)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let nonce = bytes::Bytes::copy_from_slice(&dice.random::<[u8; 16]>());
        let channel = channels.first().context("there is no master")?;
        let opened = channel
            .call(LAST_PATIENCE, |mut master: Master| {
                let request = pb::OpenSessionRequest { nonce: nonce.clone() };
                async move { Ok(master.open_session(request).await?.into_inner()) }
            })
            .await?;
        Ok(Self { channels, client: opened.client, sequence: 0 })
    }

    fn next_request(&mut self) -> pb::RequestId {
        self.sequence += 1;
        pb::RequestId { client: self.client, sequence: self.sequence, first_unacked: self.sequence }
    }

    async fn ask(
        &self,
        channel: usize,
        call: &Call,
        request: pb::RequestId,
        patience: Duration,
    ) -> Result<Reply, Error> {
        let channel = &self.channels[channel % self.channels.len()];
        channel.call(patience, |master: Master| ask(master, call.clone(), request)).await
    }
}

async fn ask(mut master: Master, call: Call, request: pb::RequestId) -> Result<Reply, Error> {
    let request = Some(request);
    let one = |reply: pb::EntryReply| Reply {
        rev: reply.rev,
        entries: reply.entry.into_iter().map(entry).collect(),
    };
    let none = |reply: pb::RevReply| Reply { rev: reply.rev, entries: vec![] };
    Ok(match call {
        Call::Mkdir { path } => {
            one(master.mkdir(pb::MkdirRequest { request, path, parents: false }).await?.into_inner())
        }
        Call::Create { path } => {
            one(master.create(pb::CreateRequest { request, path, replication: 0 }).await?.into_inner())
        }
        Call::Delete { path, recursive } => {
            none(master.delete(pb::DeleteRequest { request, path, recursive }).await?.into_inner())
        }
        Call::Rename { source, target, replace } => {
            none(master.rename(pb::RenameRequest { request, source, target, replace }).await?.into_inner())
        }
        Call::Stat { path } => {
            one(master.stat(pb::StatRequest { path, freshness: None, id: 0 }).await?.into_inner())
        }
        Call::List { path } => {
            let request = pb::ListRequest { path, after: String::new(), limit: LIST_LIMIT, freshness: None };
            let reply = master.list(request).await?.into_inner();
            Reply { rev: reply.rev, entries: reply.entries.into_iter().map(entry).collect() }
        }
    })
}

fn entry(entry: pb::Entry) -> Entry {
    Entry { id: entry.id, directory: entry.kind() == pb::EntryKind::Directory, name: entry.name }
}

async fn client(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let mut speaker = Speaker::open(&scene, &mut dice).await?;
    let mut process = scene.recorder.process();
    while scene.goes_on() {
        let call = draw(&mut dice);
        let request = speaker.next_request();
        let channel = dice.random_range(0..speaker.channels.len());
        let operation = async {
            // One operation from its first request to the last repeat: the masters apply it once. After the
            // faults there is an answer for everything.
            let mut answer = speaker.ask(channel, &call, request, PATIENCE).await;
            let mut repeats = 0;
            while matches!(answer, Err(Error::DeadlineExceeded { .. })) && repeats < 3 {
                repeats += 1;
                answer = speaker.ask(channel + repeats, &call, request, PATIENCE).await;
            }
            // Also for lookups: what no master decided says nothing.
            Outcome::of_mutation(answer)
        };
        process.perform(call.clone(), operation).await?;
    }
    Ok(())
}

/// A path of one to three names.
fn path(dice: &mut StdRng) -> String {
    let depth = dice.random_range(1..=3);
    (0..depth).map(|_| format!("/{}", NAMES.choose(dice).copied().unwrap_or("a"))).collect()
}

fn draw(dice: &mut StdRng) -> Call {
    let path_here = path(dice);
    match dice.random_range(0..100) {
        0..20 => Call::Mkdir { path: path_here },
        20..40 => Call::Create { path: path_here },
        40..55 => Call::Delete { path: path_here, recursive: dice.random_range(0..3) == 0 },
        55..70 => {
            Call::Rename { source: path_here, target: path(dice), replace: dice.random_range(0..2) == 0 }
        }
        70..85 => Call::Stat { path: path_here },
        _ => Call::List { path: parent_of(&path_here) },
    }
}

fn parent_of(path: &str) -> String {
    path.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent }).to_owned()
}

/// Reads the whole tree once more, through each master.
async fn finish(scene: Arc<Scene>) -> Result<()> {
    let mut dice = scene.dice(u64::MAX);
    let mut speaker = Speaker::open(&scene, &mut dice).await?;
    let mut process = scene.recorder.process();
    for channel in 0..speaker.channels.len() {
        let mut directories = vec!["/".to_owned()];
        while let Some(path) = directories.pop() {
            let call = Call::List { path: path.clone() };
            let request = speaker.next_request();
            let look =
                async { Outcome::of_mutation(speaker.ask(channel, &call, request, LAST_PATIENCE).await) };
            if let Outcome::Ok { value } = process.perform(call.clone(), look).await? {
                let below = value.entries.iter().filter(|entry| entry.directory);
                directories
                    .extend(below.map(|entry| format!("{}/{}", path.trim_end_matches('/'), entry.name)));
            }
        }
    }
    Ok(())
}
