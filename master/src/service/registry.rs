//! What chunkservers say to every master: who they are, what they hold, that they live (GFS §2.6.2).

use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, Epoch, ServerId};
use gfs_proto::{Error, Result, fault, pb};
use tonic::{Request, Response, Status};

use super::{Service, convert};
use crate::cluster::{Registration, Unanswered};
use crate::leader::extend_below;
use crate::raft::ReadView;
use crate::state::{Applied, Command, Rejected, read};

/// Most leases or failures that one heartbeat may name; the rest comes with the next.
const NAMED_MAX: usize = 1024;
/// Most clients that one question about expired sessions may name.
const CLIENTS_MAX: usize = 8192;
/// A request of a session that its client took for open may be under way for so long (decision 0012).
const REQUEST_TRAVEL_MAX: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl pb::registry_server::Registry for Service {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        let server = self.registered(&request).await?;
        fault::try_reach("registry::registered").await?;
        let epoch = Epoch::from_raw(request.epoch);
        let registration = Registration { address: request.address, rack: request.rack, epoch };
        self.leader.soft().with(|cluster, _, now| cluster.register(server, registration, now));
        let chunk_bytes = read::settings(&self.node.view()).map_err(Error::from)?.chunk_bytes.raw();
        Ok(Response::new(pb::RegisterReply {
            cluster: self.node.cluster().to_string(),
            server: server.raw(),
            term: self.term(),
            chunk_bytes,
            masters: self.master_addresses(),
        }))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::ReportReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        let report = convert::report(&request)?;
        let server = ServerId::from_raw(request.server);
        let taken = self.leader.soft().with(|cluster, view, now| cluster.report(server, &report, view, now));
        fault::try_reach("registry::before_report_reply").await?;
        Ok(Response::new(pb::ReportReply { term: self.term(), full_report_wanted: !taken }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        let (server, epoch) = (ServerId::from_raw(request.server), Epoch::from_raw(request.epoch));
        let space = convert::space(&request);
        fault::try_reach("registry::heartbeat_received").await?;
        let known = self.leader.soft().with(|cluster, _, now| cluster.heartbeat(server, epoch, space, now));
        let mut reply = pb::HeartbeatReply {
            term: self.term(),
            epoch: request.epoch,
            sequence: request.sequence,
            reported: request.reported,
            register_wanted: !known,
            masters: self.master_addresses(),
            ..pb::HeartbeatReply::default()
        };
        if known && let Err(error) = self.answer_as_leader(&request, &mut reply).await {
            tracing::trace!(%server, %error, "heartbeat not answered as leader");
        }
        fault::try_reach("registry::before_heartbeat_reply").await?;
        Ok(Response::new(reply))
    }

    async fn expired_clients(
        &self,
        request: Request<pb::ExpiredClientsRequest>,
    ) -> Result<Response<pb::ExpiredClientsReply>, Status> {
        let request = request.into_inner();
        self.check_cluster(&request.cluster)?;
        if request.clients.len() > CLIENTS_MAX {
            return Err(Error::bad_argument("too many clients at once").into());
        }
        // A read index begun after the question came: every session whose requests the server has seen was opened
        // before, so that one that is not in the table has ended.
        let lookup = |view: &ReadView| {
            let mut expired = Vec::new();
            for client in &request.clients {
                match read::session(view, ClientId::from_raw(*client)) {
                    Err(Rejected::SessionExpired { .. }) => expired.push(*client),
                    other => other.map(drop)?,
                }
            }
            Ok((expired, read::settings(view)?.session_ms))
        };
        let ((expired, session_ms), _) = self.look_up(None, lookup).await?;
        let keep = Duration::from_millis(session_ms) + REQUEST_TRAVEL_MAX;
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(pb::ExpiredClientsReply { expired, keep_ms }))
    }
}

impl Service {
    fn term(&self) -> u64 {
        self.node.leadership().borrow().term.raw()
    }

    /// The id of a server: the log's, which the leader writes when there is none.
    #[expect(clippy::wildcard_enum_match_arm, reason = "one answer fits one question")]
    async fn registered(&self, request: &pb::RegisterRequest) -> Result<ServerId> {
        let uuid = convert::registration(request)?;
        let claimed = ServerId::from_raw(request.server);
        let row = read::server(&self.node.view(), claimed)?;
        match &row {
            Some(row) if row.uuid != uuid => {
                return Err(Error::WrongServer { ours: 0, theirs: request.server });
            }
            Some(row) if row.address == request.address && row.rack == request.rack => return Ok(claimed),
            // Followers and shadows know a server once the log has brought it; its new address may come later.
            Some(_) if self.leader.reign().is_err() => return Ok(claimed),
            Some(_) | None => {}
        }
        self.leader.reign()?;
        let (address, rack) = (request.address.clone(), request.rack.clone());
        match self.propose(None, 0, Command::RegisterServer { uuid, address, rack }).await?.1 {
            Applied::ServerRegistered { server } if request.server == 0 || server == claimed => Ok(server),
            Applied::ServerRegistered { server } => {
                Err(Error::WrongServer { ours: server.raw(), theirs: request.server })
            }
            other => Err(convert::unexpected(&other)),
        }
    }

    /// Fills in what only a leader may say.
    async fn answer_as_leader(
        &self,
        request: &pb::HeartbeatRequest,
        reply: &mut pb::HeartbeatReply,
    ) -> Result<()> {
        let reign = self.leader.reign()?;
        let server = ServerId::from_raw(request.server);
        // Guard answer_without_quorum: a round begun after the heartbeat came confirms that we lead, and the
        // state is at least as new as that round.
        // Mutant answer_without_quorum: who led a moment ago leads.
        if !fault::mutant("answer_without_quorum") {
            let confirmed = self.node.leader_read_index().await?;
            if confirmed.term != reign.term {
                return Err(self.leader.not_leader());
            }
            self.node.until_applied(confirmed.index).await?;
        }
        let epoch = Epoch::from_raw(request.epoch);
        let denied = self
            .leader
            .soft()
            .with(|cluster, _, now| cluster.answer(server, epoch, request.reported, (reign.term, now)));
        // What was read for the denials must have been readable.
        self.node.view().check()?;
        let denied = match denied {
            Ok(denied) => denied,
            Err(Unanswered::ReportsMissing) => {
                reply.full_report_wanted = true;
                return Ok(());
            }
            Err(Unanswered::DeniesTooMany) => {
                tracing::warn!(%server, "too many replicas to delete: it serves nothing until there are fewer");
                return Ok(());
            }
        };
        self.note_uses(server, request, reply);
        reply.denied = denied;
        reply.term = reign.term.raw();
        reply.leader = true;
        Ok(())
    }

    fn note_uses(&self, server: ServerId, request: &pb::HeartbeatRequest, reply: &mut pb::HeartbeatReply) {
        let view = self.node.view();
        for lease in request.extend.iter().take(NAMED_MAX) {
            let which = (ChunkHandle::from_raw(lease.handle), ChunkVersion::from_raw(lease.version));
            let Some(remaining) = self.leader.granter().lease_use(&view, server, which) else { continue };
            if remaining < extend_below() {
                self.leader.duties().extend(which.0, which.1);
            }
            reply.extended.push(pb::LeaseExtension {
                handle: lease.handle,
                version: lease.version,
                remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            });
        }
        for failure in request.failures.iter().take(NAMED_MAX) {
            let which = (ChunkHandle::from_raw(failure.handle), ChunkVersion::from_raw(failure.version));
            self.leader.duties().failed(server, which, ServerId::from_raw(failure.server));
        }
    }
}
