//! Files that come, are copied, go, and are wanted back, with a trash that is emptied after a moment: what is deleted for
//! good is garbage at once, often while a copy still has its chunks, or somebody asks for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use gfs_client::Client;
use gfs_proto::Error;
use rand::Rng;
use rand::seq::IteratorRandom;

use super::{LAST_PATIENCE, Minimum, PATIENCE, Scene, Workload, patiently};
use crate::check::trash::{Call, Reply, TRASH, check};
use crate::outcome::Outcome;

const ROOT: &str = "/trash";
/// Files of a client at one time, and deleted ones that it remembers.
const FILES_MAX: usize = 6;
const DELETED_MAX: usize = 12;

pub(super) const WORKLOAD: Workload = Workload {
    name: "trash",
    minimum: Minimum { all_per_second: 3, quiet_per_second: 3 },
    prepare: |scene| prepare(scene).boxed_local(),
    client: |scene, number| -> BoxFuture<'static, Result<()>> { client(scene, number).boxed() },
    finish: |scene| finish(scene).boxed_local(),
    check,
    tune: |shape| shape.trash = TRASH,
    writes_chunks: true,
};

async fn prepare(scene: Arc<Scene>) -> Result<()> {
    scene.connect(LAST_PATIENCE).await?.mkdir_all(ROOT).await?;
    Ok(())
}

async fn client(scene: Arc<Scene>, number: u64) -> Result<()> {
    let mut dice = scene.dice(number);
    let client = scene.connect(PATIENCE).await?;
    let mut process = scene.recorder.process();
    let mut next = 0;
    // Paths that are certainly there.
    let mut live: BTreeMap<u64, ()> = BTreeMap::new();
    // Those that were deleted, the last ones last.
    let mut gone: VecDeque<u64> = VecDeque::new();
    let path = |file: u64| format!("{ROOT}/{number}-{file}");
    while scene.goes_on_after(process.performed()) {
        next += 1;
        let one = live.keys().copied().choose(&mut dice);
        let choice = dice.random_range(0..12);
        // Some at once, some past their date.
        let wanted = gone.iter().copied().choose(&mut dice).filter(|_| choice >= 10);
        let (call, made, left) = match (wanted, one) {
            (Some(file), _) => (Call::Undelete { path: path(file) }, Some(file), None),
            (None, Some(file)) if live.len() >= FILES_MAX || choice < 3 => {
                (Call::Remove { path: path(file) }, None, Some(file))
            }
            (None, Some(file)) if choice < 5 => {
                (Call::Copy { source: path(file), target: path(next) }, Some(next), None)
            }
            (None, Some(file)) if choice < 7 => (Call::Read { path: path(file) }, None, None),
            (None, _) => (Call::Put { path: path(next), tag: number * 1_000_000 + next }, Some(next), None),
        };
        let outcome = process.perform(call.clone(), perform(&client, call.clone()).boxed()).await?;
        if let Some(file) = left {
            live.remove(&file);
            gone.push_back(file);
            if gone.len() > DELETED_MAX {
                gone.pop_front();
            }
        }
        if let Call::Undelete { .. } = call {
            gone.retain(|file| Some(*file) != made);
        }
        if let (Some(file), Outcome::Ok { .. }) = (made, outcome) {
            live.insert(file, ());
        }
    }
    Ok(())
}

async fn perform(client: &Client, call: Call) -> Outcome<Reply> {
    let done = |result: gfs_client::Result<()>| Outcome::of_mutation(result.map(|()| Reply::Done));
    match call {
        Call::Put { path, tag } => done(put(client, &path, tag).await),
        Call::Copy { source, target } => done(client.snapshot(&source, &target).await.map(drop)),
        Call::Remove { path } => done(client.delete(&path).await),
        Call::Undelete { path } => done(client.undelete(&path).await.map(drop)),
        // That nobody answers is no proof that it is gone.
        Call::Read { path } => Outcome::of_mutation(read(client, &path).await.map(Reply::Tag)),
        Call::Names => Outcome::Ok { value: Reply::Names(vec![]) },
    }
}

async fn put(client: &Client, path: &str, tag: u64) -> gfs_client::Result<()> {
    let file = client.create(path, 0).await?;
    // Not a failure of the whole any more: the file is there.
    let written = file.append(tag.to_string().into()).await;
    written.map(drop).map_err(|error| Error::unavailable(error.to_string()))
}

async fn read(client: &Client, path: &str) -> gfs_client::Result<Option<u64>> {
    let bytes = client.open(path).await?.read_at(0, 64).await?;
    Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()))
}

/// Reads every file that anybody has named.
async fn finish(scene: Arc<Scene>) -> Result<()> {
    use futures::TryStreamExt;
    let client = scene.connect(LAST_PATIENCE).await?;
    let mut process = scene.recorder.process();
    let look = async {
        let entries: gfs_client::Result<Vec<_>> =
            patiently(async || client.list(ROOT).try_collect().await).await;
        let names =
            entries.map(|all| all.into_iter().map(|entry| format!("{ROOT}/{}", entry.name)).collect());
        Outcome::of_mutation(names.map(Reply::Names))
    };
    let Outcome::Ok { value: Reply::Names(names) } = process.perform(Call::Names, look).await? else {
        return Ok(());
    };
    for path in names {
        let look = async {
            Outcome::of_mutation(patiently(async || read(&client, &path).await).await.map(Reply::Tag))
        };
        process.perform(Call::Read { path: path.clone() }, look).await?;
    }
    Ok(())
}
