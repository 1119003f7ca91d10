//! Reads: committed bytes of validated replicas only (P3, P6).

use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion};
use gfs_proto::link::Peer;
use gfs_proto::{Error, Result, fault, pb};

use crate::chunk::{Chunk, State};
use crate::data::ReadRequest;
use crate::data::read::{Part, ReadPlan, parts};
use crate::replica::{Query, Readable, Replica};
use crate::report::Change;
use crate::server::Chunkserver;

/// How long a replica waits for the primary's word on what is committed.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for a mutation that changes the range before looking again.
const COMMIT_PAUSE: Duration = Duration::from_millis(5);
/// How often to look again; more mutations of the range may come in between.
const LOOKS_MAX: u32 = 400;

/// What one look at a chunk gave.
enum Looked {
    /// `None` if there has to be room for it in memory.
    Plan(Option<ReadPlan>),
    Ask(Peer, ChunkVersion),
    Wait,
}

impl Chunkserver {
    /// A client's read; see [`crate::data::Handler::read`].
    pub(crate) async fn read_chunk(&self, request: &ReadRequest) -> Result<Option<ReadPlan>> {
        fault::try_reach("replica::read_received").await?;
        let chunk = self.chunk(request.handle)?;
        let end = self.now().plus(request.patience);
        // The version at which the primary was asked just now.
        let mut asked = None;
        for _ in 0..LOOKS_MAX {
            match chunk.with(|state| self.look(&chunk, state, request, asked.take()))? {
                Looked::Plan(plan) => {
                    fault::reach("replica::before_read_served").await;
                    return Ok(plan);
                }
                Looked::Ask(primary, version) => {
                    let answer = self.links.committed(&primary, chunk.handle, version, ASK_TIMEOUT).await;
                    let answer = answer.map_err(|error| {
                        tracing::debug!(handle = %chunk.handle, %error, "the primary does not say what is committed");
                        // One that is merely not validated yet is a primary all the same.
                        if !matches!(error, Error::NotValidated { .. }) {
                            self.doubts(chunk.handle, version, primary.server);
                        }
                        Error::NotValidated { handle: chunk.handle, damaged: false }
                    })?;
                    self.learn(chunk.handle, version, gfs_proto::id::Serial::from_raw(answer.serial));
                    asked = Some(version);
                }
                Looked::Wait => tokio::time::sleep(COMMIT_PAUSE).await,
            }
            if self.now() >= end {
                break;
            }
        }
        Err(Error::Busy { what: format!("the range of {} that is being written", chunk.handle) })
    }

    /// Decides about a read and takes its bytes in the same step. The chunk's lock is held.
    fn look(
        &self,
        chunk: &Chunk,
        state: &mut State,
        request: &ReadRequest,
        asked: Option<ChunkVersion>,
    ) -> Result<Looked> {
        let replica = state.replica(chunk.handle)?;
        let version = replica.held().version;
        let query = Query {
            version: request.version,
            offset: request.offset,
            length: request.length,
            asked: asked == Some(version),
        };
        let (readable, validated) = {
            let (fence, now) = (self.fence.lock(), self.now());
            (replica.read(query, &fence, now), replica.validated(&fence, now).is_ok())
        };
        let readable = readable.inspect_err(|error| {
            if let Error::NotValidated { .. } = error {
                // Perhaps only because no answer covers it yet, the chunk being new.
                self.hurry();
                // Or because it has restarted, and knows no primary that could say what is committed.
                if let (true, Ok((_, us))) = (validated, self.identity()) {
                    self.doubts(chunk.handle, version, us);
                }
            }
        })?;
        let position = match readable {
            Readable::Ask(primary) => return Ok(Looked::Ask(primary, version)),
            Readable::Wait(_) => return Ok(Looked::Wait),
            Readable::Yes(position) => position,
        };
        let length = position.length.saturating_sub(request.offset).min(request.length);
        let parts = self.take(replica, chunk.handle, (request.offset, length, request.verify))?;
        let plan = |parts| ReadPlan { committed_length: position.length, sealed: position.sealed, parts };
        Ok(Looked::Plan(parts.map(plan)))
    }

    /// Takes bytes from the store; damage ends the replica's service, and the masters hear of it.
    fn take(
        &self,
        replica: &mut Replica,
        handle: ChunkHandle,
        (offset, length, verify): (u32, u32, bool),
    ) -> Result<Option<Vec<Part>>> {
        let result = parts(&(&self.store, handle), offset, length, verify);
        if let Err(Error::Corrupt { block, .. }) = &result {
            tracing::warn!(%handle, block, "checksum mismatch");
            replica.mark_corrupt();
            self.note(handle, Change::Changed);
            self.hurry();
        }
        result
    }

    /// Bytes for an adoption: of the primary's plan, or of a base member whose content will be the plan.
    /// Both are frozen between the version's store and its activation.
    pub(crate) fn fetch_chunk(&self, request: &ReadRequest) -> Result<ReadPlan> {
        fault::at("replica::fetch");
        let chunk = self.chunk(request.handle)?;
        chunk.with(|state| {
            let replica = state.replica(chunk.handle)?;
            let held = replica.collect(request.version)?;
            if held.partial || held.corrupt || replica.primary().is_some() {
                return Err(Error::NotValidated { handle: chunk.handle, damaged: held.corrupt });
            }
            let length = held.end.length.saturating_sub(request.offset).min(request.length);
            let parts = self.take(replica, chunk.handle, (request.offset, length, true))?;
            let parts = parts.ok_or_else(|| Error::internal("all of it was to be read"))?;
            Ok(ReadPlan { committed_length: held.end.length, sealed: held.end.sealed, parts })
        })
    }

    /// What the active primary has committed.
    pub(crate) fn committed_of(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
    ) -> Result<pb::CommittedReplyMeta> {
        let chunk = self.chunk(handle)?;
        let position =
            chunk.quick(|state| state.replica(handle)?.committed(version, &self.fence.lock(), self.now()))?;
        Ok(pb::CommittedReplyMeta {
            serial: position.serial.raw(),
            length: position.length,
            sealed: position.sealed,
        })
    }
}
