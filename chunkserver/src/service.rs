//! The control service: thin handlers.

use std::sync::Arc;

use gfs_proto::pb;
use gfs_proto::pb::chunkserver_server::Chunkserver as Service;
use tonic::{Request, Response, Status};

use crate::server::Chunkserver;

/// The gRPC face of a chunkserver.
#[derive(Clone, Debug)]
pub(crate) struct Control(pub(crate) Arc<Chunkserver>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for Control {
    async fn store_version(&self, request: Request<pb::StoreVersionRequest>) -> Reply<pb::StoreVersionReply> {
        Ok(Response::new(self.0.store_version(request.into_inner())?))
    }

    async fn reconcile(&self, request: Request<pb::ReconcileRequest>) -> Reply<pb::ReconcileReply> {
        let end = self.0.reconcile(request.into_inner()).await?;
        Ok(Response::new(pb::ReconcileReply { length: end.length, sealed: end.sealed }))
    }

    async fn activate(&self, request: Request<pb::ActivateRequest>) -> Reply<pb::ActivateReply> {
        self.0.activate(&request.into_inner())?;
        Ok(Response::new(pb::ActivateReply {}))
    }

    async fn exclude(&self, request: Request<pb::ExcludeRequest>) -> Reply<pb::ExcludeReply> {
        Ok(Response::new(self.0.exclude(&request.into_inner())?))
    }

    async fn delete_replica(
        &self,
        request: Request<pb::DeleteReplicaRequest>,
    ) -> Reply<pb::DeleteReplicaReply> {
        let deleted = self.0.delete_replica(&request.into_inner())?;
        Ok(Response::new(pb::DeleteReplicaReply { deleted }))
    }

    async fn copy_replica(&self, request: Request<pb::CopyReplicaRequest>) -> Reply<pb::CopyReplicaReply> {
        let server = self.0.clone();
        let copy = move || server.copy_replica(&request.into_inner());
        let length = self.0.environment.workers.run(copy).await??;
        Ok(Response::new(pb::CopyReplicaReply { length }))
    }

    async fn inspect_replica(
        &self,
        request: Request<pb::InspectReplicaRequest>,
    ) -> Reply<pb::InspectReplicaReply> {
        Ok(Response::new(self.0.inspect(&request.into_inner())?))
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Reply<pb::ProbeReply> {
        self.0.ordered(request.into_inner().head)?;
        let epoch = self.0.fence.lock().epoch().raw();
        Ok(Response::new(pb::ProbeReply { epoch }))
    }

    async fn collect(&self, request: Request<pb::CollectRequest>) -> Reply<pb::CollectReply> {
        Ok(Response::new(self.0.collect(&request.into_inner())?))
    }

    async fn adopt(&self, request: Request<pb::AdoptRequest>) -> Reply<pb::AdoptReply> {
        self.0.adopt(request.into_inner()).await?;
        Ok(Response::new(pb::AdoptReply {}))
    }
}
