//! Chunkservers that obey, each as its mood is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::BoxFuture;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::{Error, Result, pb};
use parking_lot::Mutex;

use crate::leader::seams::{Orders, Target};

/// How a chunkserver behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::leader) enum Mood {
    /// Does what it is told.
    Well,
    /// Refuses connections, and sends no heartbeats.
    Dead,
    /// Answers no order, but sends heartbeats.
    Deaf,
    /// Says that its content may have lost bytes.
    Partial,
    /// The same, and has dropped what it had, as one that joins.
    Emptied,
    /// Acknowledges exclusions of another epoch.
    Forgetful,
    /// Never ends a reconciliation or a copy, unless woken.
    Slow,
    /// Does not store the version that it is told, and answers with the one before.
    Behind,
    /// Refuses to lead the reconciliation under way, as after a restart; then does what it is told.
    Restarted,
    /// Reaches no other chunkserver.
    CutOff,
}

/// The chunkservers, and what they were told.
#[derive(Default)]
pub(in crate::leader) struct Servers {
    moods: Mutex<BTreeMap<u64, Mood>>,
    /// Servers that say in their heartbeats that they have no room.
    pub(super) full: Mutex<BTreeSet<u64>>,
    trace: Mutex<Vec<String>>,
    /// Versions stored in this life of the server: chunk, version, server.
    stored: Mutex<BTreeSet<(u64, u64, u64)>>,
    /// Versions that came with an operator's decision: chunk, version, server.
    accepted: Mutex<BTreeSet<(u64, u64, u64)>>,
    /// Chunks and versions whose primary has restarted since it stored them.
    lost_role: Mutex<BTreeSet<(u64, u64)>>,
    /// Who failed, by the chunk and the version whose primary says so.
    failed: Mutex<BTreeMap<(u64, u64), ServerId>>,
    woken: tokio::sync::Notify,
}

impl Servers {
    pub(in crate::leader) fn set(&self, server: u64, mood: Mood) {
        self.moods.lock().insert(server, mood);
    }
    /// Leaves a server without room from its next heartbeat on.
    pub(in crate::leader) fn fill(&self, server: u64) {
        self.full.lock().insert(server);
    }
    /// Lets a slow reconciliation go on.
    pub(in crate::leader) fn wake(&self) {
        self.woken.notify_waiters();
    }
    /// Ends every role of a server, as its restart does.
    pub(in crate::leader) fn restart(&self, server: u64) {
        self.stored.lock().retain(|(_, _, holder)| *holder != server);
    }
    /// Lets the primary of a version find that a member has failed, itself perhaps.
    pub(in crate::leader) fn fail_member(&self, handle: ChunkHandle, version: u64, failed: u64) {
        self.failed.lock().insert((handle.raw(), version), ServerId::from_raw(failed));
    }
    /// What was ordered since the last call.
    pub(in crate::leader) fn trace(&self) -> String {
        std::mem::take(&mut *self.trace.lock()).join("\n")
    }
    pub(super) fn mood(&self, server: ServerId) -> Mood {
        self.moods.lock().get(&server.raw()).copied().unwrap_or(Mood::Well)
    }
    fn told(&self, line: String) {
        self.trace.lock().push(line);
    }
    async fn reach(&self, target: &Target) -> Result<Mood> {
        let mood = self.mood(target.server);
        if mood == Mood::Dead {
            return Err(Error::unavailable("connection refused"));
        }
        if mood == Mood::Deaf {
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(Error::unavailable("no answer"));
        }
        Ok(mood)
    }
    /// What a primary says that reaches no other member: with a single one nobody can tell who is cut off.
    fn cut_off(&self, primary: ServerId, handle: u64, version: u64) -> Result<()> {
        let stored = self.stored.lock();
        let others = stored.iter().filter(|(chunk, at, _)| (*chunk, *at) == (handle, version));
        let others: Vec<u64> =
            others.map(|(_, _, server)| *server).filter(|raw| *raw != primary.raw()).collect();
        let handle = ChunkHandle::from_raw(handle);
        match others[..] {
            [] => Ok(()),
            [other] => Err(Error::MemberFailed { handle, server: ServerId::from_raw(other) }),
            _ => Err(Error::CutOff { handle }),
        }
    }
}

fn not_primary(handle: u64, version: u64) -> Error {
    let (handle, version) = (ChunkHandle::from_raw(handle), ChunkVersion::from_raw(version));
    Error::NotPrimary { handle, version }
}

impl Orders for Servers {
    fn store_version(
        &self,
        target: Target,
        request: pb::StoreVersionRequest,
    ) -> BoxFuture<'_, Result<pb::StoreVersionReply>> {
        Box::pin(async move {
            let mood = self.reach(&target).await?;
            let is_base = request.base.contains(&target.server.raw());
            let kind = if request.fresh {
                "fresh"
            } else if is_base {
                "base"
            } else {
                "joins"
            };
            let kind = if request.accepted { "accepted" } else { kind };
            let use_ = if request.writer { "" } else { ", no writer" };
            self.told(format!("{}: store v{} {kind}{use_}", target.server, request.version));
            self.stored.lock().insert((request.handle, request.version, target.server.raw()));
            if request.accepted {
                self.accepted.lock().insert((request.handle, request.version, target.server.raw()));
            }
            let lost = mood == Mood::Partial || mood == Mood::Emptied;
            let partial = lost || (!is_base && !request.fresh);
            let version = if mood == Mood::Behind { request.version - 1 } else { request.version };
            Ok(pb::StoreVersionReply { version, partial, epoch: 1 })
        })
    }
    fn reconcile(&self, target: Target, request: pb::ReconcileRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mood = self.reach(&target).await?;
            if mood == Mood::Slow {
                self.told(format!("{}: reconcile v{}, for ever", target.server, request.version));
                self.woken.notified().await;
            } else if mood == Mood::CutOff {
                self.cut_off(target.server, request.handle, request.version)?;
            }
            if self.mood(target.server) == Mood::Restarted {
                self.lost_role.lock().insert((request.handle, request.version));
                self.set(target.server.raw(), Mood::Well);
            }
            let which = (request.handle, request.version, target.server.raw());
            if self.mood(target.server) == Mood::Partial {
                if !self.accepted.lock().contains(&which) {
                    return Err(not_primary(request.handle, request.version));
                }
                // It has adopted what it had.
                self.set(target.server.raw(), Mood::Well);
            }
            if self.lost_role.lock().contains(&(request.handle, request.version)) {
                return Err(not_primary(request.handle, request.version));
            }
            let verified = if request.verify { ", verified" } else { "" };
            self.told(format!("{}: reconcile v{}{verified}", target.server, request.version));
            Ok(())
        })
    }
    fn activate(&self, target: Target, request: pb::ActivateRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.reach(&target).await? == Mood::CutOff {
                self.cut_off(target.server, request.handle, request.version)?;
            }
            if !self.stored.lock().contains(&(request.handle, request.version, target.server.raw())) {
                return Err(not_primary(request.handle, request.version));
            }
            if let Some(server) = self.failed.lock().get(&(request.handle, request.version)).copied() {
                let handle = ChunkHandle::from_raw(request.handle);
                return Err(Error::MemberFailed { handle, server });
            }
            self.told(format!("{}: activate v{}", target.server, request.version));
            Ok(())
        })
    }
    fn exclude(
        &self,
        target: Target,
        request: pb::ExcludeRequest,
    ) -> BoxFuture<'_, Result<pb::ExcludeReply>> {
        Box::pin(async move {
            let epoch = if self.reach(&target).await? == Mood::Forgetful { 99 } else { 1 };
            self.told(format!("{}: v{} leaves it out", target.server, request.version));
            Ok(pb::ExcludeReply { epoch })
        })
    }
    fn copy_replica(&self, target: Target, request: pb::CopyReplicaRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.reach(&target).await? == Mood::Slow {
                self.woken.notified().await;
            }
            let pb::CopyReplicaRequest { handle, version, copy, copy_version, .. } = request;
            self.told(format!("{}: copy c{handle} v{version} to c{copy} v{copy_version}", target.server));
            Ok(())
        })
    }
    fn delete(&self, target: Target, request: pb::DeleteReplicaRequest) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            self.reach(&target).await?;
            self.told(format!(
                "{}: delete c{} up to v{}",
                target.server, request.handle, request.version_max
            ));
            Ok(true)
        })
    }
    fn inspect(
        &self,
        target: Target,
        request: pb::InspectReplicaRequest,
    ) -> BoxFuture<'_, Result<pb::InspectReplicaReply>> {
        Box::pin(async move {
            let mood = self.reach(&target).await?;
            let of_it = |(handle, _, server): &&(u64, u64, u64)| {
                *handle == request.handle && *server == target.server.raw()
            };
            let version = self.stored.lock().iter().filter(of_it).map(|(_, version, _)| *version).max();
            let adopted = if mood == Mood::Emptied { 0 } else { version.unwrap_or_default() };
            Ok(pb::InspectReplicaReply {
                present: version.is_some(),
                version: version.unwrap_or_default(),
                adopted,
                length: 10 * u32::try_from(target.server.raw()).unwrap(),
                partial: mood == Mood::Partial || mood == Mood::Emptied,
                ..Default::default()
            })
        })
    }
    fn probe(&self, target: Target, _request: pb::ProbeRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.reach(&target).await.map(drop) })
    }
}
