//! Keeping out those whom a grant leaves out: an acknowledged exclusion, or a fence that has surely run out.

use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ServerId};
use gfs_proto::time::Moment;
use gfs_proto::{fault, pb};

use super::grant::Granter;
use crate::cluster::{Reign, fence_end};
use crate::state::{Chunk, Pending};

/// Pause between two exclusions that were not acknowledged.
const PAUSE: Duration = Duration::from_millis(100);

impl Granter {
    /// Waits until every confirmed member that the pending grant leaves out is out. `denied_since` is when this
    /// leader began to deny them the chunk.
    // Guard no_fence_wait: without this wait a server that was left out goes on answering reads with old bytes.
    pub(super) async fn fence_out(
        &self,
        reign: &Reign,
        chunk: &Chunk,
        pending: &Pending,
        denied_since: Moment,
    ) {
        // Mutant no_fence_wait: nobody waits for those who are left out.
        if fault::mutant("no_fence_wait") {
            return;
        }
        let left_out = chunk.members.iter().filter(|server| !pending.members.contains(server));
        let waits =
            left_out.map(|server| self.fence_out_one(reign, (chunk.handle, pending), *server, denied_since));
        futures::future::join_all(waits).await;
    }

    async fn fence_out_one(
        &self,
        reign: &Reign,
        (handle, pending): (ChunkHandle, &Pending),
        server: ServerId,
        denied_since: Moment,
    ) {
        let end = self.soft.with(|cluster, _, _| fence_end(cluster.server(server), reign, denied_since));
        loop {
            let left = end.since(self.now());
            if left.is_zero() {
                tracing::debug!(%handle, %server, "fence has run out");
                return;
            }
            let request = pb::ExcludeRequest {
                head: Some(self.head(reign, server)),
                handle: handle.raw(),
                version: pending.version.raw(),
            };
            fault::reach("grant::before_exclude").await;
            // Guard named_once: asked again until it is acknowledged; the answers to heartbeats deny it as well.
            let exclusion = self.orders.exclude(self.soft.target(server), request);
            if let Ok(Ok(reply)) = tokio::time::timeout(left, exclusion).await
                && self.is_its_epoch(server, reply.epoch)
            {
                tracing::debug!(%handle, %server, "exclusion acknowledged");
                return;
            }
            tokio::time::sleep(PAUSE.min(end.since(self.now()))).await;
        }
    }

    /// Guard exclusion_forgotten: an acknowledgement counts in the epoch in which the server is now.
    fn is_its_epoch(&self, server: ServerId, epoch: u64) -> bool {
        self.soft.with(|cluster, _, _| cluster.server(server).is_some_and(|known| known.epoch.raw() == epoch))
    }
}
