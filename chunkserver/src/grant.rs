//! Orders of the leader about one chunk's grants (protocol.md, Grant 2 and 6), exclusions, deletion.

use std::collections::BTreeSet;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::size::ChunkBytes;
use gfs_proto::{Error, Result, fault, pb};
use parking_lot::Mutex;

use crate::chunk::{State, held};
use crate::replica::{Grant, Replica, Standing, Store as How};
use crate::report::Change;
use crate::server::Chunkserver;
use crate::store::Membership;
use crate::trace;

impl Chunkserver {
    /// Grant step 2: stores the version durably; any role of an older version ends.
    pub(crate) fn store_version(&self, request: pb::StoreVersionRequest) -> Result<pb::StoreVersionReply> {
        let us = self.ordered(request.head.clone())?;
        let handle = ChunkHandle::from_raw(request.handle);
        let grant = grant(&request)?;
        let version = grant.version;
        let partial = self.with_chunk(handle, |state| {
            let here = state.replica.as_ref().map(|replica| replica.held().version);
            let how = Replica::store(us, handle, here, &grant)?;
            let stored = match how {
                How::Known => return Ok(state.replica(handle)?.held().partial),
                How::Fresh => self.store.create(handle, version),
                How::Base => self.store.store_version(handle, version, Membership::Base),
                How::Joiner => self.store.store_version(handle, version, Membership::Joiner),
            };
            let stored = held(&stored.map_err(|error| self.wire(&error))?);
            let now = self.now();
            if state.replica.is_none() {
                // Nothing that was answered before now covers it.
                let born = self.journal.lock().note(handle, Change::Changed);
                let standing = Standing { born, void_until: Some(now), ..Standing::default() };
                state.replica = Some(Replica::restored(us, handle, stored, false, standing));
            }
            trace::stored(handle, &grant);
            state.replica(handle)?.stored(grant, how, stored, now);
            state.changed();
            self.note(handle, Change::Changed);
            Ok(stored.partial || stored.corrupt)
        })?;
        self.failures.lock().retain(|chunk, failure| *chunk != handle || failure.version >= version);
        fault::at("replica::version_stored");
        tracing::debug!(%handle, %version, partial, "version stored");
        let epoch = self.fence.lock().epoch().raw();
        Ok(pb::StoreVersionReply { version: version.raw(), partial, epoch })
    }

    /// Grant step 6: the confirm is committed. Also how a leader asks whether this is still an active primary: one that
    /// orders nothing any more names the member that failed, itself perhaps.
    pub(crate) fn activate(&self, request: &pb::ActivateRequest) -> Result<()> {
        self.ordered(request.head.clone())?;
        let handle = ChunkHandle::from_raw(request.handle);
        let version = ChunkVersion::from_raw(request.version);
        let chunk = self.chunk(handle)?;
        fault::at("replica::before_activate");
        chunk.quick(|state| {
            let replica = state.replica(handle)?;
            let is_new = replica.primary().is_none();
            replica.activate(version)?;
            if is_new {
                trace::primary(handle, version);
            }
            Ok::<(), Error>(())
        })?;
        self.committed_more(handle);
        // Readers may come soon, and it serves them once an answer covers the confirmed version.
        self.hurry();
        tracing::debug!(%handle, %version, "primary");
        Ok(())
    }

    /// A pending grant leaves this server out: it stops serving the chunk until a later grant takes it in.
    pub(crate) fn exclude(&self, request: &pb::ExcludeRequest) -> Result<pb::ExcludeReply> {
        self.ordered(request.head.clone())?;
        let handle = ChunkHandle::from_raw(request.handle);
        let version = ChunkVersion::from_raw(request.version);
        if let Ok(chunk) = self.chunk(handle) {
            chunk.with(|state| {
                if let Some(replica) = &mut state.replica {
                    replica.exclude(version, self.now())?;
                    state.changed();
                    // Nor does anybody have to hear any more who failed: the grant is on its way.
                    self.failures.lock().remove(&handle);
                }
                Ok::<_, Error>(())
            })?;
        }
        fault::at("replica::excluded");
        let epoch = self.fence.lock().epoch().raw();
        Ok(pb::ExcludeReply { epoch })
    }

    /// Copies a replica locally, for a file that is about to be written (GFS §3.4). The copy serves nobody before the
    /// leader answers for it as for any other replica. Blocks on the disk, in steps: no chunk is locked meanwhile.
    pub(crate) fn copy_replica(&self, request: &pb::CopyReplicaRequest) -> Result<u32> {
        let us = self.ordered(request.head.clone())?;
        let source = (ChunkHandle::from_raw(request.handle), ChunkVersion::from_raw(request.version));
        let (copy, version) =
            (ChunkHandle::from_raw(request.copy), ChunkVersion::from_raw(request.copy_version));
        let _only_one = Copying::begin(&self.copying, copy)?;
        if let Ok(chunk) = self.chunk(copy) {
            chunk.quick(|state| may_be_copied_to(state, copy, version))?;
        }
        let made = match self.store.copy(source, (copy, version)) {
            Ok(made) => held(&made),
            Err(error) => {
                self.drop_part_of_copy(copy, version);
                return Err(self.wire(&error));
            }
        };
        self.with_chunk(copy, |state| {
            // A grant may have come in the meantime; then the store has what it made of the copy.
            may_be_copied_to(state, copy, version)?;
            if state.replica.as_ref().is_none_or(|replica| replica.held().partial) {
                let born = self.journal.lock().note(copy, Change::Changed);
                let standing = Standing { born, void_until: Some(self.now()), ..Standing::default() };
                state.replica = Some(Replica::restored(us, copy, made, false, standing));
            }
            state.changed();
            Ok(())
        })?;
        tracing::debug!(handle = %source.0, %copy, length = made.end.length, "replica copied");
        Ok(made.end.length)
    }

    /// Removes what a copy that failed has left behind: nobody will ever ask for it (traps T16).
    fn drop_part_of_copy(&self, copy: ChunkHandle, version: ChunkVersion) {
        let removed = self.with_chunk(copy, |state| {
            let part = self.store.state(copy).map_err(|error| self.wire(&error))?;
            if part.version != version || !part.partial {
                return Ok(());
            }
            self.store.delete(copy, version).map_err(|error| self.wire(&error))?;
            if state.replica.is_some() {
                state.end();
                self.note(copy, Change::Removed);
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::debug!(%copy, %error, "nothing of a failed copy to remove");
        }
    }

    /// What is here of a chunk, as it is now.
    pub(crate) fn inspect(&self, request: &pb::InspectReplicaRequest) -> Result<pb::InspectReplicaReply> {
        self.ordered(request.head.clone())?;
        let Ok(chunk) = self.chunk(ChunkHandle::from_raw(request.handle)) else {
            return Ok(pb::InspectReplicaReply::default());
        };
        let inspected = chunk.with(|state| {
            let replica = state.replica.as_ref()?;
            let held = replica.held();
            Some(pb::InspectReplicaReply {
                present: true,
                version: held.version.raw(),
                adopted: held.adopted.raw(),
                length: held.end.length,
                serial: held.end.serial.raw(),
                sealed: held.end.sealed,
                partial: held.partial,
                corrupt: held.corrupt,
                committed_length: replica.progress().committed().map(|committed| committed.length),
            })
        });
        Ok(inspected.unwrap_or_default())
    }

    /// Removes a replica that the committed state calls garbage, unless it has been granted anew since.
    pub(crate) fn delete_replica(&self, request: &pb::DeleteReplicaRequest) -> Result<bool> {
        self.ordered(request.head.clone())?;
        let handle = ChunkHandle::from_raw(request.handle);
        let version_max = ChunkVersion::from_raw(request.version_max);
        if self.chunk(handle).is_err() {
            return Ok(false);
        }
        let deleted = self.with_chunk(handle, |state| {
            if state.replica.is_none() {
                return Ok(false);
            }
            let deleted = self.store.delete(handle, version_max).map_err(|error| self.wire(&error))?;
            if deleted {
                state.end();
                self.note(handle, Change::Removed);
                self.failures.lock().remove(&handle);
            }
            Ok(deleted)
        })?;
        if deleted {
            tracing::info!(%handle, %version_max, "replica deleted");
        }
        Ok(deleted)
    }
}

/// Refuses if the handle of a copy is in use at a newer version.
fn may_be_copied_to(state: &State, copy: ChunkHandle, version: ChunkVersion) -> Result<()> {
    match state.replica.as_ref().map(|replica| replica.held().version) {
        Some(here) if here > version => Err(Error::VersionMismatch { handle: copy, asked: version, here }),
        Some(_) | None => Ok(()),
    }
}

/// A copy that is being made; over when dropped.
struct Copying<'a> {
    all: &'a Mutex<BTreeSet<ChunkHandle>>,
    copy: ChunkHandle,
}

impl<'a> Copying<'a> {
    fn begin(all: &'a Mutex<BTreeSet<ChunkHandle>>, copy: ChunkHandle) -> Result<Self> {
        if all.lock().insert(copy) {
            Ok(Self { all, copy })
        } else {
            Err(Error::Busy { what: format!("the copy {copy}") })
        }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.copy);
    }
}

/// A grant in our own words.
pub(crate) fn grant(request: &pb::StoreVersionRequest) -> Result<Grant> {
    Ok(Grant {
        version: ChunkVersion::from_raw(request.version),
        members: request.members.iter().map(Into::into).collect(),
        base: request.base.iter().copied().map(ServerId::from_raw).collect(),
        primary: ServerId::from_raw(request.primary),
        writer: request.writer,
        fresh: request.fresh,
        accepted: request.accepted,
        chunk_bytes: ChunkBytes::parse(request.chunk_bytes.into()).map_err(Error::bad_argument)?,
    })
}
