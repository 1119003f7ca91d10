//! A client that speaks to the masters itself, because the log index of each reply is needed, and that repeats
//! requests of unknown outcome under their ids until a master tells.

use std::time::Duration;

use anyhow::{Context, Result};
use gfs_proto::leader::{Master, MasterChannel};
use gfs_proto::{Environment, Error, pb};
use rand::Rng;
use rand::rngs::StdRng;

use super::{LAST_PATIENCE, PATIENCE, Scene};
use crate::check::tree::{Call, Entry, Reply};
use crate::outcome::Outcome;

/// Page of a listing: more than there are names.
const LIST_LIMIT: u32 = 1000;
/// How often a request is repeated whose outcome is not told: together less than clients may take to end.
const REPEATS_MAX: usize = 4;

/// One client, and its session.
pub(super) struct Speaker {
    /// Each begins at another master, and follows hints from there.
    channels: Vec<MasterChannel>,
    /// Of the session; the next one has the next.
    nonce: u128,
    client: u64,
    sequence: u64,
    /// The directory that is the root of all paths of the history.
    root: &'static str,
}

impl Speaker {
    pub(super) async fn open(scene: &Scene, dice: &mut StdRng, root: &'static str) -> Result<Self> {
        Self::open_with(&scene.environment, scene, dice, root).await
    }

    /// The same over a given network.
    pub(super) async fn open_with(
        environment: &Environment,
        scene: &Scene,
        dice: &mut StdRng,
        root: &'static str,
    ) -> Result<Self> {
        let channels = (0..scene.masters.len())
            .map(|first| {
                let mut order = scene.masters.clone();
                order.rotate_left(first);
                MasterChannel::new(environment, &order)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let nonce = u128::from_be_bytes(dice.random());
        let mut speaker = Self { channels, nonce, client: 0, sequence: 0, root };
        speaker.open_session(LAST_PATIENCE).await?;
        Ok(speaker)
    }

    async fn open_session(&mut self, patience: Duration) -> Result<()> {
        let nonce = bytes::Bytes::copy_from_slice(&self.nonce.to_be_bytes());
        let channel = self.channels.first().context("there is no master")?;
        let opened = channel
            .call(patience, |mut master: Master| {
                let request = pb::OpenSessionRequest { nonce: nonce.clone() };
                async move { Ok(master.open_session(request).await?.into_inner()) }
            })
            .await?;
        self.client = opened.client;
        Ok(())
    }

    /// The id of a new request.
    pub(super) fn next_request(&mut self) -> pb::RequestId {
        self.sequence += 1;
        pb::RequestId { client: self.client, sequence: self.sequence, first_unacked: self.sequence }
    }

    /// Asks once, beginning at a master.
    pub(super) async fn ask(
        &self,
        first: usize,
        call: &Call,
        request: pb::RequestId,
        patience: Duration,
    ) -> Result<Reply, Error> {
        let channel = &self.channels[first % self.channels.len()];
        channel.call(patience, |master: Master| ask(master, call.clone(), request, self.root)).await
    }

    /// One operation from its first request to the last repeat: the masters apply it once. After the faults there is an
    /// answer for everything, unless the session has ended meanwhile: what comes next has a new one.
    pub(super) async fn decide(
        &mut self,
        first: usize,
        call: &Call,
        request: pb::RequestId,
    ) -> Outcome<Reply> {
        let mut answer = self.ask(first, call, request, PATIENCE).await;
        let mut repeats = 0;
        while matches!(answer, Err(Error::DeadlineExceeded { .. })) && repeats < REPEATS_MAX {
            repeats += 1;
            answer = self.ask(first + repeats, call, request, PATIENCE).await;
        }
        if matches!(answer, Err(Error::SessionExpired { .. })) {
            self.nonce = self.nonce.wrapping_add(1);
            // If none can be opened yet, the next request finds the old one ended again.
            self.open_session(PATIENCE).await.ok();
        }
        // Also for lookups: what no master decided says nothing.
        Outcome::of_mutation(answer)
    }
}

/// Makes the directory of a workload.
pub(super) async fn make_root(scene: &Scene, root: &str) -> Result<()> {
    scene.connect(LAST_PATIENCE).await?.mkdir_all(root).await?;
    Ok(())
}

/// Asks one master; nobody else, if it does not know.
pub(super) async fn ask(
    mut master: Master,
    call: Call,
    request: pb::RequestId,
    root: &str,
) -> Result<Reply, Error> {
    let request = Some(request);
    let below = |path: String| if path == "/" { root.to_owned() } else { format!("{root}{path}") };
    let one = |reply: pb::EntryReply| Reply {
        rev: reply.rev,
        entries: reply.entry.into_iter().map(entry).collect(),
    };
    let none = |reply: pb::RevReply| Reply { rev: reply.rev, entries: vec![] };
    let freshness =
        call.stale().map(|stale| pb::Freshness { max_staleness_ms: stale.bound_ms, min_rev: stale.floor });
    Ok(match call {
        Call::Mkdir { path } => {
            let request = pb::MkdirRequest { request, path: below(path), parents: false };
            one(master.mkdir(request).await?.into_inner())
        }
        Call::Create { path } => {
            let request = pb::CreateRequest { request, path: below(path), replication: 0 };
            one(master.create(request).await?.into_inner())
        }
        Call::Delete { path, recursive } => {
            let request = pb::DeleteRequest { request, path: below(path), recursive };
            none(master.delete(request).await?.into_inner())
        }
        Call::Rename { source, target, replace } => {
            let (source, target) = (below(source), below(target));
            none(master.rename(pb::RenameRequest { request, source, target, replace }).await?.into_inner())
        }
        Call::Snapshot { source, target } => {
            let (source, target) = (below(source), below(target));
            one(master.snapshot(pb::SnapshotRequest { request, source, target }).await?.into_inner())
        }
        Call::Undelete { id, target, .. } => {
            let request = pb::UndeleteRequest { request, id, target: below(target) };
            one(master.undelete(request).await?.into_inner())
        }
        Call::Stat { path, .. } => {
            let request = pb::StatRequest { path: below(path), freshness, id: 0 };
            one(master.stat(request).await?.into_inner())
        }
        Call::List { path, .. } => {
            let request =
                pb::ListRequest { path: below(path), after: String::new(), limit: LIST_LIMIT, freshness };
            let reply = master.list(request).await?.into_inner();
            Reply { rev: reply.rev, entries: reply.entries.into_iter().map(entry).collect() }
        }
    })
}

fn entry(entry: pb::Entry) -> Entry {
    Entry { id: entry.id, directory: entry.kind() == pb::EntryKind::Directory, name: entry.name }
}
