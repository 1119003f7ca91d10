//! How `gfs fsck` prints a chunk.

use gfs_client::{CheckedChunk, CheckedReplica, ChunkHealth, ReplicaState};
use serde_json::{Value, json};

use crate::cmd::visible;

/// Where a chunk stands: a file and the place in it.
pub(super) struct Spot<'a> {
    pub(super) path: &'a str,
    pub(super) index: u32,
}

/// Whether a confirmed member is damaged.
pub(super) fn is_damaged(chunk: &CheckedChunk) -> bool {
    chunk.replicas.iter().any(|replica| replica.member && state(replica) == "corrupt")
}

/// What a replica is: its server's own word, if it was asked, else what the master knows.
fn state(replica: &CheckedReplica) -> &'static str {
    match (&replica.inspected, replica.state()) {
        (Some(here), _) if !here.present => "missing",
        (Some(here), _) if here.corrupt => "corrupt",
        (_, ReplicaState::Stale) => "stale",
        (Some(here), _) if here.partial => "partial",
        (Some(_), _) | (None, ReplicaState::Whole) => "whole",
        (None, ReplicaState::Partial) => "partial",
        (None, ReplicaState::Corrupt) => "corrupt",
        (None, ReplicaState::Missing) => "missing",
        (None, ReplicaState::Away) => "away",
        (None, ReplicaState::Unreported | ReplicaState::Unspecified) => "not known yet",
    }
}

fn health(chunk: &CheckedChunk) -> &'static str {
    match chunk.health() {
        ChunkHealth::Waiting => "waiting",
        ChunkHealth::Lost => "lost",
        ChunkHealth::Away => "away",
        ChunkHealth::BelowGoal => "below_goal",
        ChunkHealth::Healthy if is_damaged(chunk) => "damaged",
        ChunkHealth::Healthy => "healthy",
        ChunkHealth::Unspecified => "unknown",
    }
}

/// The replica that holds most of what was acknowledged, if there is one to decide for: its server.
pub(super) fn best(chunk: &CheckedChunk) -> Option<u64> {
    let fits = |replica: &&CheckedReplica| {
        let here = replica.inspected.as_ref();
        replica.member
            && here.is_some_and(|here| {
                here.present && here.partial && !here.corrupt && here.adopted >= chunk.confirmed
            })
    };
    let most = |replica: &&CheckedReplica| {
        let here = replica.inspected.as_ref();
        here.map(|here| (here.adopted, here.serial, here.length))
    };
    let best = chunk.replicas.iter().filter(fits).max_by_key(most)?;
    best.replica.as_ref().map(|replica| replica.server)
}

/// The command that decides for the best replica.
pub(super) fn decision(chunk: &CheckedChunk) -> Option<String> {
    let away: Vec<String> = chunk
        .replicas
        .iter()
        .filter(|replica| replica.member && replica.inspected.is_none())
        .filter_map(|replica| replica.replica.as_ref().map(|it| format!("s{}", it.server)))
        .collect();
    let given_up = if away.is_empty() { String::new() } else { format!(" --given-up {}", away.join(",")) };
    let best = best(chunk)?;
    Some(format!("gfs fsck --accept c{}@v{} --from s{best}{given_up}", chunk.handle, chunk.version))
}

pub(super) fn as_json(spot: &Spot<'_>, chunk: &CheckedChunk) -> Value {
    let replicas = chunk.replicas.iter().map(|replica| {
        let (here, at) = (replica.inspected.as_ref(), replica.replica.as_ref());
        json!({
            "server": at.map(|at| at.server),
            "address": at.map(|at| &at.address),
            "member": replica.member,
            "state": state(replica),
            "version": here.map_or(replica.version, |here| here.version),
            "adopted": here.map(|here| here.adopted),
            "length": here.map(|here| here.length),
            "mutations": here.map(|here| here.serial),
            "sealed": here.map(|here| here.sealed),
            "committed_length": here.and_then(|here| here.committed_length),
        })
    });
    json!({
        "path": spot.path,
        "index": spot.index,
        "handle": chunk.handle,
        "version": chunk.version,
        "confirmed": chunk.confirmed,
        "goal": chunk.goal,
        "health": health(chunk),
        "decision": is_to_decide(chunk).then(|| decision(chunk)).flatten(),
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

/// Whether somebody may have to decide: it waits, or would if nobody came back.
fn is_to_decide(chunk: &CheckedChunk) -> bool {
    matches!(chunk.health(), ChunkHealth::Waiting | ChunkHealth::Away)
}

pub(super) fn as_text(spot: &Spot<'_>, chunk: &CheckedChunk) -> String {
    let what = match chunk.health() {
        ChunkHealth::Waiting => {
            "waits for a decision: every current replica may have lost something".to_owned()
        }
        ChunkHealth::Lost => "lost: no replica is left that could be decided for".to_owned(),
        ChunkHealth::Away => "away: no whole replica answers, and one may come back".to_owned(),
        ChunkHealth::BelowGoal => {
            let whole = chunk.replicas.iter().filter(|replica| replica.member && state(replica) == "whole");
            format!("below its goal: {} of {} replicas", whole.count(), chunk.goal)
        }
        ChunkHealth::Healthy if is_damaged(chunk) => "a replica is damaged".to_owned(),
        ChunkHealth::Healthy | ChunkHealth::Unspecified => health(chunk).to_owned(),
    };
    let path = visible(spot.path);
    let mut lines = vec![format!("{path} #{} c{} v{}  {what}", spot.index, chunk.handle, chunk.version)];
    lines.extend(chunk.replicas.iter().map(replica_as_text));
    if let Some(command) = decision(chunk).filter(|_| is_to_decide(chunk)) {
        let when = if chunk.health() == ChunkHealth::Away { "if they never come back" } else { "to decide" };
        lines.push(format!("  {when}: {command}"));
    }
    lines.join("\n")
}

fn replica_as_text(replica: &CheckedReplica) -> String {
    let (server, address) = replica.replica.as_ref().map_or((0, ""), |at| (at.server, at.address.as_str()));
    let holds = match &replica.inspected {
        Some(here) if here.present => {
            let committed = match here.committed_length {
                Some(length) => format!("{length} of them surely committed"),
                None => "how many are committed is not known".to_owned(),
            };
            format!(
                "v{} (content of v{}), {} bytes after {} mutations, {committed}",
                here.version, here.adopted, here.length, here.serial
            )
        }
        Some(_) | None if replica.version == 0 => String::new(),
        Some(_) | None => format!("v{}", replica.version),
    };
    let outsider = if replica.member { "" } else { ", no member" };
    let name = format!("s{server}");
    format!("  {name:<5} {address:<22} {}{outsider}  {holds}", state(replica)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use gfs_client::InspectReplicaReply;

    use super::*;

    fn replica(server: u64, state: ReplicaState, inspected: Option<InspectReplicaReply>) -> CheckedReplica {
        let replica =
            Some(gfs_proto::pb::Replica { server, address: format!("h:{server}"), rack: String::new() });
        CheckedReplica { replica, state: state.into(), member: true, version: 8, inspected }
    }
    fn partial(adopted: u64, serial: u64, length: u32) -> Option<InspectReplicaReply> {
        let version = 8;
        Some(InspectReplicaReply {
            present: true,
            version,
            adopted,
            serial,
            length,
            partial: true,
            ..Default::default()
        })
    }
    fn chunk(health: ChunkHealth, replicas: Vec<CheckedReplica>) -> CheckedChunk {
        CheckedChunk {
            index: 0,
            handle: 5,
            version: 8,
            confirmed: 7,
            goal: 3,
            health: health.into(),
            replicas,
        }
    }

    #[test]
    fn the_replica_with_the_most_mutations_of_the_last_content_is_named() {
        let state = ReplicaState::Partial;
        let waiting = |replicas| chunk(ChunkHealth::Waiting, replicas);
        let all = vec![
            replica(1, state, partial(7, 3, 900)),
            replica(2, state, partial(7, 4, 800)),
            replica(3, state, partial(6, 9, 999)),
        ];
        assert_eq!(decision(&waiting(all.clone())).unwrap(), "gfs fsck --accept c5@v8 --from s2");
        let text = as_text(&Spot { path: "/f\n/g", index: 2 }, &waiting(all));
        assert!(text.starts_with(r"/f\n/g #2 c5 v8  waits for a decision"), "{text}");
        assert!(
            text.contains(
                "s3    h:3                    partial  v8 (content of v6), 999 bytes after 9 mutations"
            ),
            "{text}"
        );
        // Nothing that could be decided for: it dropped what it had, or is damaged, or does not answer.
        let damaged = partial(7, 9, 9).map(|held| InspectReplicaReply { corrupt: true, ..held });
        let none = vec![
            replica(1, state, partial(0, 0, 0)),
            replica(2, ReplicaState::Corrupt, damaged),
            replica(3, ReplicaState::Away, None),
        ];
        assert_eq!(decision(&waiting(none)), None);
    }

    #[test]
    fn who_does_not_answer_has_to_be_given_up_by_name() {
        let replicas = vec![
            replica(1, ReplicaState::Away, None),
            replica(2, ReplicaState::Partial, partial(7, 1, 10)),
            replica(3, ReplicaState::Away, None),
        ];
        let away = chunk(ChunkHealth::Away, replicas);
        let told = as_json(&Spot { path: "/f", index: 0 }, &away);
        assert_eq!(told["decision"], "gfs fsck --accept c5@v8 --from s2 --given-up s1,s3");
        assert_eq!((&told["health"], &told["replicas"][0]["state"]), (&"away".into(), &"away".into()));
    }
}
