//! `gfs fsck`: how the replicas of chunks are, and what an operator decides about those that wait for it.

use std::collections::BTreeSet;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::{Error, Result, pb};

use super::Service;
use crate::cluster::{self, KnownReplica};
use crate::plan::health::{Health, Holding};
use crate::raft::ReadView;
use crate::state::{Applied, Chunk, Command, read};

/// Most chunks looked at by one call.
const CHECK_MAX: u32 = 1024;
/// Most members that a decision can give up.
const GIVEN_UP_MAX: usize = 64;

impl Service {
    /// The chunks of a file that are not as they should be.
    pub(super) async fn check(&self, request: pb::CheckChunksRequest) -> Result<pb::CheckChunksReply> {
        self.leader.reign()?;
        let (file, first) = (EntryId::from_raw(request.file), ChunkIndex::from_raw(request.first));
        let count = request.count.clamp(1, CHECK_MAX) as usize;
        let found = |view: &ReadView| {
            let chunk_count = read::file_by_id(view, file)?.chunk_count;
            Ok((chunk_count, read::file_chunks(view, file, first, count)?))
        };
        let ((chunk_count, chunks), rev) = self.look_up(None, found).await?;
        let counted = self.leader.soft().has_heard_everybody()?;
        let checked = |(index, chunk): &(ChunkIndex, Chunk)| {
            let (health, replicas) = self.known(chunk);
            let damaged =
                replicas.iter().any(|replica| replica.member && replica.holding == Holding::Corrupt);
            let is_fine = health == Health::Healthy && !damaged;
            (!is_fine).then(|| self.checked(*index, chunk, health, &replicas))
        };
        Ok(pb::CheckChunksReply {
            unhealthy: chunks.iter().filter_map(checked).collect(),
            checked: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
            chunk_count,
            counted,
            rev,
        })
    }

    /// One chunk, with what each of its servers says now.
    pub(super) async fn inspect(&self, request: pb::InspectChunkRequest) -> Result<pb::InspectChunkReply> {
        let reign = self.leader.reign()?;
        let handle = ChunkHandle::from_raw(request.handle);
        let (chunk, rev) = self.look_up(None, |view| read::chunk(view, handle)).await?;
        let (health, replicas) = self.known(&chunk);
        let servers: Vec<ServerId> = replicas.iter().map(|replica| replica.server).collect();
        let told = self.leader.granter().inspect(&reign, handle, &servers).await;
        let mut checked = self.checked(ChunkIndex::default(), &chunk, health, &replicas);
        for (replica, told) in checked.replicas.iter_mut().zip(told) {
            replica.inspected = told.ok();
        }
        Ok(pb::InspectChunkReply { chunk: Some(checked), rev })
    }

    /// Makes what one member holds the content of the chunk (docs/decisions/0020).
    pub(super) async fn accept(&self, request: pb::AcceptReplicaRequest) -> Result<pb::AcceptReplicaReply> {
        let reign = self.leader.reign()?;
        let handle = ChunkHandle::from_raw(request.handle);
        let (expected_version, server) =
            (ChunkVersion::from_raw(request.version), ServerId::from_raw(request.server));
        if request.given_up.len() > GIVEN_UP_MAX {
            return Err(Error::bad_argument("too many servers are given up"));
        }
        let given_up: BTreeSet<ServerId> = request.given_up.iter().copied().map(ServerId::from_raw).collect();
        let (chunk, _) = self.look_up(None, |view| read::chunk(view, handle)).await?;
        let granter = self.leader.granter();
        // At another version it is a repeat, which has its answer, or a decision about something that is no more.
        if chunk.version == expected_version {
            granter.may_accept(&reign, &chunk, server, &given_up).await?;
        }
        let command = Command::AcceptReplica { handle, expected_version, server };
        let (rev, version) = match self.mutate(request.request, command).await.map_err(Error::from) {
            Ok((rev, Applied::Prepared { version })) => (rev, version),
            Ok((_, other)) => return Err(super::convert::unexpected(&other)),
            Err(Error::VersionMismatch { here, .. }) => {
                return Err(Error::bad_argument(format!(
                    "{handle} is at {here}, not at {expected_version}: look at it again before you decide"
                )));
            }
            Err(error) => return Err(error),
        };
        tracing::warn!(
            %handle, %version, %server, ?given_up,
            "by an operator's decision a replica that may have lost data counts as whole"
        );
        granter.carry_out_decision(&reign, handle, version).await?;
        Ok(pb::AcceptReplicaReply { version: version.raw(), rev })
    }

    fn known(&self, chunk: &Chunk) -> (Health, Vec<KnownReplica>) {
        let replicas = self.leader.soft().with(|cluster, _, now| cluster.replicas_of(chunk, now));
        (cluster::health(chunk, &replicas), replicas)
    }

    fn checked(
        &self,
        index: ChunkIndex,
        chunk: &Chunk,
        health: Health,
        replicas: &[KnownReplica],
    ) -> pb::CheckedChunk {
        let replica = |known: &KnownReplica| pb::CheckedReplica {
            replica: Some(self.leader.granter().replica(known.server)),
            state: state(known.holding).into(),
            member: known.member,
            version: known.version.raw(),
            inspected: None,
        };
        let health = match health {
            Health::Healthy => pb::ChunkHealth::Healthy,
            Health::BelowGoal => pb::ChunkHealth::BelowGoal,
            Health::Away => pb::ChunkHealth::Away,
            Health::Waiting => pb::ChunkHealth::Waiting,
            Health::Lost => pb::ChunkHealth::Lost,
        };
        pb::CheckedChunk {
            index: index.raw(),
            handle: chunk.handle.raw(),
            version: chunk.version.raw(),
            confirmed: chunk.confirmed.raw(),
            goal: chunk.goal,
            health: health.into(),
            replicas: replicas.iter().map(replica).collect(),
        }
    }
}

fn state(holding: Holding) -> pb::ReplicaState {
    match holding {
        Holding::Whole => pb::ReplicaState::Whole,
        Holding::Partial => pb::ReplicaState::Partial,
        Holding::Stale => pb::ReplicaState::Stale,
        Holding::Corrupt => pb::ReplicaState::Corrupt,
        Holding::Missing => pb::ReplicaState::Missing,
        Holding::Away => pb::ReplicaState::Away,
        Holding::Unreported => pb::ReplicaState::Unreported,
    }
}
