//! How the grant driver speaks to chunkservers, and what it makes of their silence.

use std::collections::BTreeSet;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::time::Moment;
use gfs_proto::{Error, Result, pb};

use super::grant::{Granter, Setback};
use super::seams::Target;
use crate::cluster::Reign;
use crate::state::{Chunk, Pending};

impl Granter {
    /// Tells a primary that it is one; also the probe of whether it still is.
    pub(super) async fn order_activation(
        &self,
        reign: &Reign,
        (handle, version): (ChunkHandle, ChunkVersion),
        primary: ServerId,
    ) -> Result<()> {
        let request = pb::ActivateRequest {
            head: Some(self.head(reign, primary)),
            handle: handle.raw(),
            version: version.raw(),
        };
        self.orders.activate(self.soft.target(primary), request).await
    }

    /// Judges the failure of an order: a server that does not answer gets nothing new for now.
    ///
    /// # Errors
    /// The server has seen a newer leader: this one is over.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other answer comes from a server that is there"
    )]
    pub(super) fn blamed(&self, server: ServerId, error: Error) -> Result<Error, Setback> {
        match error {
            Error::StaleTerm { .. } => Err(Setback::End(Error::NotLeader { leader: None })),
            error @ (Error::Unavailable { .. } | Error::WrongServer { .. } | Error::DiskFull { .. }) => {
                self.soft.with(|cluster, _, _| cluster.suspect(server));
                Ok(error)
            }
            error => Ok(error),
        }
    }

    /// What an error of a pending grant's primary means: the member that it names has failed, or it has itself.
    pub(super) async fn setback(
        &self,
        reign: &Reign,
        chunk: &Chunk,
        pending: &Pending,
        error: Error,
    ) -> Setback {
        let primary = pending.primary;
        if matches!(error, Error::CutOff { .. }) {
            let which = (&pending.members[..], &pending.base[..]);
            let failed = self.cut_off(reign, chunk.handle, which, primary).await;
            return Setback::Members(failed.into_iter().map(|server| (server, error.clone())).collect());
        }
        if let Error::MemberFailed { server, .. } = error
            && pending.members.contains(&server)
        {
            // The last of several that it has accused one after the other, as when one had answered before the cut.
            let last = pending.base.iter().all(|member| *member == primary || *member == server);
            if last && server != primary && chunk.members.len() > 2 {
                let which = (&chunk.members[..], &chunk.members[..]);
                if self.cut_off(reign, chunk.handle, which, primary).await == BTreeSet::from([primary]) {
                    return Setback::CutOff(primary, error);
                }
            }
            return Setback::Members(vec![(server, error)]);
        }
        match self.blamed(primary, error) {
            Ok(error) => Setback::Members(vec![(primary, error)]),
            Err(over) => over,
        }
    }

    /// Waits until a server has fallen silent.
    pub(super) async fn silence_of(&self, server: ServerId) {
        while self.soft.with(|cluster, _, now| cluster.is_alive(server, now)) {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// What heads an order to a server.
    pub(super) fn head(&self, reign: &Reign, server: ServerId) -> pb::OrderHead {
        pb::OrderHead { cluster: self.cluster.to_string(), term: reign.term.raw(), server: server.raw() }
    }

    /// A server as members and clients are told of it.
    pub(crate) fn replica(&self, server: ServerId) -> pb::Replica {
        let Target { address, .. } = self.soft.target(server);
        let rack = self.soft.with(|cluster, _, _| cluster.server(server).map(|known| known.rack.clone()));
        pb::Replica { server: server.raw(), address, rack: rack.unwrap_or_default() }
    }

    /// The time now.
    pub(super) fn now(&self) -> Moment {
        self.clock.moment()
    }
}
