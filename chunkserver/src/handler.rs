//! What the data plane asks for, handed on to the part that does it.

use std::sync::Arc;

use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClusterId, RequestId, ServerId};
use gfs_proto::{Result, pb};

use crate::data::{ApplyRequest, Handler, ReadPlan, ReadRequest, WriteRequest};
use crate::server::Chunkserver;

/// The replicas as the data plane sees them.
#[derive(Debug)]
pub(crate) struct Replicas(pub(crate) Arc<Chunkserver>);

impl Handler for Replicas {
    fn identity(&self) -> Result<(ClusterId, ServerId)> {
        self.0.identity()
    }

    async fn mutate(&self, request: WriteRequest, payload: Result<Payload>) -> Result<pb::WriteReplyMeta> {
        self.0.mutate_chunk(request, payload).await
    }

    async fn apply(&self, request: ApplyRequest, payload: Result<Payload>) -> Result<()> {
        self.0.apply_ordered(request, payload).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Option<ReadPlan>> {
        self.0.read_chunk(&request).await
    }

    async fn fetch(&self, request: ReadRequest) -> Result<ReadPlan> {
        self.0.fetch_chunk(&request)
    }

    async fn committed(&self, handle: ChunkHandle, version: ChunkVersion) -> Result<pb::CommittedReplyMeta> {
        self.0.committed_of(handle, version)
    }

    async fn outcome(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        request: RequestId,
    ) -> Result<pb::OutcomeReplyMeta> {
        self.0.outcome_of(handle, version, request).await
    }

    fn suspect(&self, handle: ChunkHandle) {
        let server = self.0.clone();
        self.0.environment.workers.start(move || {
            if let Err(error) = server.verify(handle) {
                tracing::debug!(%handle, %error, "not verified");
            }
        });
    }
}
