//! What other masters ask.

use gfs_proto::id::Uuid;
use gfs_proto::time::UnixMs;
use gfs_proto::{Error, pb};
use tonic::{Request, Response, Status};

use super::Service;
use crate::state::hash;

#[tonic::async_trait]
impl pb::peer_server::Peer for Service {
    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        let uuid = Uuid::from_slice(&request.uuid).ok_or_else(|| Error::bad_argument("no identity"))?;
        let id = self.node.join(uuid, &request.address, request.shadow).await?;
        Ok(Response::new(pb::JoinReply { id: id.raw(), cluster: self.node.cluster().to_string() }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        self.node.heard(&request);
        let confirmed = self.node.leader_read_index().await?;
        Ok(Response::new(pb::ReadIndexReply {
            term: confirmed.term.raw(),
            leader: confirmed.leader.raw(),
            index: confirmed.index.raw(),
            group_ms: self.node.group_time().map(UnixMs::raw),
        }))
    }

    async fn state_hash(
        &self,
        request: Request<pb::StateHashRequest>,
    ) -> Result<Response<pb::StateHashReply>, Status> {
        self.check_cluster(&request.into_inner().cluster)?;
        // One at a time: it reads everything.
        let _turn = self.hashing.try_acquire().map_err(|_| Error::Busy { what: "hashing".into() })?;
        let view = self.node.view();
        let hashed = tokio::task::spawn_blocking(move || {
            let (rows, crc) = hash::hash(&view);
            view.check().map(|()| pb::StateHashReply { applied: view.applied().raw(), rows, crc })
        });
        Ok(Response::new(hashed.await.map_err(Error::internal)??))
    }
}
