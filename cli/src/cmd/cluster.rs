//! `gfs cluster status`

use anyhow::Result;
use gfs_client::ClusterStatusReply;
use serde_json::{Value, json};

use crate::cmd::{Session, df};
use crate::units::show_bytes;

/// Shows who leads, who follows how far behind, who is alive, and what is short of replicas.
pub(crate) async fn status(session: &Session) -> Result<()> {
    let status = session.client.cluster_status().await?;
    session.print(&as_json(&status), || as_text(&status))
}

fn as_json(status: &ClusterStatusReply) -> Value {
    let masters = status.masters.iter().map(|master| {
        json!({"id": master.id, "address": master.address, "role": if master.voter { "master" } else { "shadow" },
               "leader": master.address == status.leader, "lag": master.lag, "free_bytes": master.free_bytes})
    });
    json!({
        "cluster": status.cluster,
        "leader": status.leader,
        "term": status.term,
        "rev": status.rev,
        "chunk_bytes": status.chunk_bytes,
        "masters": masters.collect::<Vec<_>>(),
        "chunkservers": status.servers.iter().map(df::as_json).collect::<Vec<_>>(),
        "files": status.files,
        "directories": status.directories,
        "chunks": status.chunks,
        // Nobody is to read a zero that was not counted.
        "chunks_below_goal": status.counted.then_some(status.chunks_below_goal),
        "chunks_without_replica": status.counted.then_some(status.chunks_without_replica),
    })
}

/// Measured, or not known yet (promise P9).
fn redundancy(status: &ClusterStatusReply) -> String {
    if !status.counted {
        return "their replicas are still being counted".to_owned();
    }
    let (below, without) = (status.chunks_below_goal, status.chunks_without_replica);
    format!("{below} below their goal, {without} without a live replica")
}

fn as_text(status: &ClusterStatusReply) -> String {
    let alive = status.servers.iter().filter(|server| server.alive).count();
    let mut lines = vec![
        format!("cluster {}, chunks of {}", status.cluster, show_bytes(status.chunk_bytes)),
        format!("leader {}, term {}, log index {}", status.leader, status.term, status.rev),
        format!(
            "{} files, {} directories, {} chunks: {}",
            status.files,
            status.directories,
            status.chunks,
            redundancy(status)
        ),
        "masters:".to_owned(),
    ];
    lines.extend(status.masters.iter().map(|master| {
        let role = match (master.address == status.leader, master.voter) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "shadow",
        };
        let lag = match master.lag {
            _ if role == "leader" => String::new(),
            Some(lag) => format!("{lag} entries behind"),
            None => "not heard from".to_owned(),
        };
        let free =
            master.free_bytes.map_or_else(String::new, |bytes| format!("{:>10} free", show_bytes(bytes)));
        format!("  m{:<5} {:<22} {role:<9} {lag:<20} {free}", master.id, master.address).trim_end().to_owned()
    }));
    lines.push(format!("chunkservers: {alive} of {} alive", status.servers.len()));
    lines.extend(status.servers.iter().map(|server| {
        let state = match df::silent_ms(server) {
            _ if server.alive => "alive".to_owned(),
            Some(silent_ms) => format!("silent for {} s", silent_ms / 1000),
            None => "not heard from".to_owned(),
        };
        format!(
            "  s{:<5} {:<22} {state:<15} {:>7} chunks  {:>10} free",
            server.id,
            server.address,
            server.chunks,
            show_bytes(server.free_bytes)
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use gfs_client::ServerStatus;

    use super::*;

    #[test]
    fn of_a_server_that_the_leader_has_not_heard_since_its_start_no_time_is_told() {
        let server = |last_heartbeat_ms| ServerStatus { id: 1, last_heartbeat_ms, ..Default::default() };
        let status =
            ClusterStatusReply { servers: vec![server(u64::MAX), server(7000)], ..Default::default() };
        let text = as_text(&status);
        assert!(text.contains(" not heard from ") && text.contains(" silent for 7 s "), "{text}");
        let told = as_json(&status);
        let silent = |at: usize| told["chunkservers"][at]["last_heartbeat_ms"].clone();
        assert_eq!((silent(0), silent(1)), (Value::Null, 7000.into()));
    }
}
