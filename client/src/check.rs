//! How the replicas of chunks are, and what an operator decides about those that wait for it (docs/decisions/0020).

use gfs_proto::id::{ChunkHandle, ChunkVersion, EntryId, ServerId};
use gfs_proto::leader::Master;
use gfs_proto::{Error, Result, pb};

use crate::client::Client;

/// Chunks of one page: more than most files have.
const PAGE_CHUNKS: u32 = 1024;

impl Client {
    /// A page of the chunks of a file from `first` on: those that are not as they should be.
    ///
    /// # Errors
    /// What the master says.
    pub async fn check_chunks(&self, file: EntryId, first: u32) -> Result<pb::CheckChunksReply> {
        let request = pb::CheckChunksRequest { file: file.raw(), first, count: PAGE_CHUNKS };
        let ask = move |mut master: Master| async move { master.check_chunks(request).await };
        let reply = self.core.lookup(self.core.patience(), ask).await?;
        self.core.seen(reply.rev);
        Ok(reply)
    }

    /// One chunk, with what each of its servers says that it holds.
    ///
    /// # Errors
    /// What the master says.
    pub async fn inspect_chunk(&self, handle: ChunkHandle) -> Result<pb::CheckedChunk> {
        let request = pb::InspectChunkRequest { handle: handle.raw() };
        let ask = move |mut master: Master| async move { master.inspect_chunk(request).await };
        let reply = self.core.lookup(self.core.patience(), ask).await?;
        self.core.seen(reply.rev);
        reply.chunk.ok_or_else(|| Error::internal("a master's answer lacks the chunk"))
    }

    /// Makes what `server` holds the content of a chunk of which no replica is known to be whole: what it has lost is lost
    /// for good, and what others had beyond it too. `version` is the one at which the caller has seen the chunk, so that
    /// nobody decides about something else. `given_up` are members that don't answer and will not come back. Returns the
    /// version of the grant by which it counts.
    ///
    /// # Errors
    /// [`Error::BadArgument`] with the reason if there is nothing to decide; or what the master says.
    pub async fn accept_replica(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        server: ServerId,
        given_up: &[ServerId],
    ) -> Result<ChunkVersion> {
        let given_up: Vec<u64> = given_up.iter().map(|server| server.raw()).collect();
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let message = pb::AcceptReplicaRequest {
                    request: Some(request),
                    handle: handle.raw(),
                    version: version.raw(),
                    server: server.raw(),
                    given_up: given_up.clone(),
                };
                async move { master.accept_replica(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Ok(ChunkVersion::from_raw(reply.version))
    }
}
