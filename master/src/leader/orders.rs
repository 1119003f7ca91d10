//! Orders over gRPC.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use gfs_proto::id::ServerId;
use gfs_proto::net::{self, Net};
use gfs_proto::pb::chunkserver_client::ChunkserverClient;
use gfs_proto::size::MESSAGE_BYTES_MAX;
use gfs_proto::{Error, Result, pb};
use parking_lot::Mutex;
use tonic::transport::Channel;

use super::seams::{Orders, Target};

/// How long an order may take that at most syncs a file.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long members may take to adopt a whole chunk, over slow disks. A primary that falls silent is noticed
/// long before.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends orders over gRPC; one connection per server, made at the first order.
pub(crate) struct GrpcOrders {
    net: Arc<dyn Net>,
    /// The connections by server, with the address that each goes to; never held across an await.
    clients: Mutex<BTreeMap<ServerId, (String, ChunkserverClient<Channel>)>>,
}

impl GrpcOrders {
    /// No connection is made yet.
    pub(crate) fn new(net: Arc<dyn Net>) -> Self {
        Self { net, clients: Mutex::default() }
    }

    fn client(&self, target: &Target) -> Result<ChunkserverClient<Channel>> {
        let mut clients = self.clients.lock();
        if let Some((address, client)) = clients.get(&target.server)
            && *address == target.address
        {
            return Ok(client.clone());
        }
        let channel = net::channel(self.net.clone(), &target.address, RECONCILE_TIMEOUT)?;
        let client = ChunkserverClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        clients.insert(target.server, (target.address.clone(), client.clone()));
        Ok(client)
    }

    async fn call<T>(
        &self,
        target: Target,
        timeout: Duration,
        call: impl AsyncFnOnce(ChunkserverClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        let client = self.client(&target)?;
        match tokio::time::timeout(timeout, call(client)).await {
            Ok(reply) => Ok(reply.map_err(Error::from)?.into_inner()),
            Err(_) => {
                Err(Error::unavailable(format!("{} at {} did not answer", target.server, target.address)))
            }
        }
    }
}

impl Orders for GrpcOrders {
    fn store_version(
        &self,
        target: Target,
        request: pb::StoreVersionRequest,
    ) -> BoxFuture<'_, Result<pb::StoreVersionReply>> {
        Box::pin(self.call(target, ORDER_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
            client.store_version(request).await
        }))
    }
    fn reconcile(&self, target: Target, request: pb::ReconcileRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.call(target, RECONCILE_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
                client.reconcile(request).await
            })
            .await
            .map(drop)
        })
    }
    fn activate(&self, target: Target, request: pb::ActivateRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.call(target, ORDER_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
                client.activate(request).await
            })
            .await
            .map(drop)
        })
    }
    fn exclude(
        &self,
        target: Target,
        request: pb::ExcludeRequest,
    ) -> BoxFuture<'_, Result<pb::ExcludeReply>> {
        Box::pin(self.call(target, ORDER_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
            client.exclude(request).await
        }))
    }
    fn copy_replica(&self, target: Target, request: pb::CopyReplicaRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.call(target, RECONCILE_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
                client.copy_replica(request).await
            })
            .await
            .map(drop)
        })
    }
    fn delete(&self, target: Target, request: pb::DeleteReplicaRequest) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            self.call(target, ORDER_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
                client.delete_replica(request).await
            })
            .await
            .map(|reply| reply.deleted)
        })
    }
    fn inspect(
        &self,
        target: Target,
        request: pb::InspectReplicaRequest,
    ) -> BoxFuture<'_, Result<pb::InspectReplicaReply>> {
        Box::pin(self.call(target, PROBE_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
            client.inspect_replica(request).await
        }))
    }
    fn probe(&self, target: Target, request: pb::ProbeRequest) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.call(target, PROBE_TIMEOUT, async move |mut client: ChunkserverClient<Channel>| {
                client.probe(request).await
            })
            .await
            .map(drop)
        })
    }
}
