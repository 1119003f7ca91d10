//! What is known of the replicas of one chunk, for `gfs fsck`.

use gfs_proto::id::{ChunkVersion, ServerId};
use gfs_proto::time::Moment;

use super::{Cluster, Server};
use crate::plan::health::{Health, Holding, judge};
use crate::state::Chunk;

/// One server's part in a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KnownReplica {
    /// The server.
    pub(crate) server: ServerId,
    /// Whether it is a confirmed member.
    pub(crate) member: bool,
    /// What is known of it.
    pub(crate) holding: Holding,
    /// The version that it reported, if it did.
    pub(crate) version: ChunkVersion,
}

impl Cluster {
    /// The confirmed members of a chunk, and whoever else has something of it, by id.
    pub(crate) fn replicas_of(&self, chunk: &Chunk, now: Moment) -> Vec<KnownReplica> {
        let holds = |server: &Server| server.replicas.contains_key(&chunk.handle);
        let others = self.servers.iter().filter(|(_, server)| holds(server)).map(|(id, _)| *id);
        let all: std::collections::BTreeSet<ServerId> = chunk.members.iter().copied().chain(others).collect();
        let known = |id: ServerId| {
            let server = self.servers.get(&id);
            let version =
                server.and_then(|server| server.replicas.get(&chunk.handle)).map(|held| held.version);
            KnownReplica {
                server: id,
                member: chunk.members.contains(&id),
                holding: holding(chunk, id, server.filter(|server| server.is_alive(now))),
                version: version.unwrap_or_default(),
            }
        };
        all.into_iter().map(known).collect()
    }
}

/// How a chunk is by what is known of its replicas. One that was never confirmed has no content to lose.
pub(crate) fn health(chunk: &Chunk, replicas: &[KnownReplica]) -> Health {
    if chunk.confirmed == ChunkVersion::NONE {
        return Health::Healthy;
    }
    let members: Vec<Holding> =
        replicas.iter().filter(|replica| replica.member).map(|replica| replica.holding).collect();
    judge(chunk.goal, &members)
}

/// What a server, if it is alive, has of a chunk.
fn holding(chunk: &Chunk, id: ServerId, server: Option<&Server>) -> Holding {
    let Some(server) = server else { return Holding::Away };
    // What it reported before it restarted says nothing: it may have lost its power in between.
    if !server.has_full_report() {
        return Holding::Unreported;
    }
    match server.replicas.get(&chunk.handle) {
        None => Holding::Missing,
        Some(held) if held.is_current(chunk, id) => Holding::Whole,
        Some(held) if held.corrupt => Holding::Corrupt,
        Some(held) if !chunk.members.contains(&id) || held.version < chunk.confirmed => Holding::Stale,
        Some(_) => Holding::Partial,
    }
}
