//! `gfs df`

use anyhow::Result;
use gfs_client::ServerStatus;
use serde_json::{Value, json};

use crate::cmd::{Session, print_line};
use crate::units::show_bytes;

/// Shows the space of every chunkserver.
pub(crate) async fn run(session: &Session) -> Result<()> {
    let servers = session.client.disk_free().await?;
    if !session.json {
        print_line(&format!(
            "{:<6} {:<22} {:<8} {:<6} {:>8} {:>10} {:>10} {:>10}",
            "server", "address", "rack", "alive", "chunks", "used", "free", "size"
        ))?;
    }
    for server in &servers {
        session.print(&as_json(server), || as_text(server))?;
    }
    if !session.json {
        let alive = || servers.iter().filter(|server| server.alive);
        let free: u64 = alive().map(|server| server.free_bytes).sum();
        let used: u64 = alive().map(|server| server.used_bytes).sum();
        print_line(&format!(
            "{} of {} alive; {} used, {} free (copies counted)",
            alive().count(),
            servers.len(),
            show_bytes(used),
            show_bytes(free)
        ))?;
    }
    Ok(())
}

/// How long a chunkserver has been silent; `None` if the leader has not heard it since its own start.
pub(crate) fn silent_ms(server: &ServerStatus) -> Option<u64> {
    (server.last_heartbeat_ms != u64::MAX).then_some(server.last_heartbeat_ms)
}

/// A chunkserver as JSON; also part of `cluster status`.
pub(crate) fn as_json(server: &ServerStatus) -> Value {
    json!({
        "server": server.id,
        "address": server.address,
        "rack": server.rack,
        "alive": server.alive,
        "last_heartbeat_ms": silent_ms(server),
        "chunks": server.chunks,
        "used_bytes": server.used_bytes,
        "free_bytes": server.free_bytes,
        "total_bytes": server.total_bytes,
    })
}

fn as_text(server: &ServerStatus) -> String {
    format!(
        "{:<6} {:<22} {:<8} {:<6} {:>8} {:>10} {:>10} {:>10}",
        format!("s{}", server.id),
        server.address,
        if server.rack.is_empty() { "-" } else { &server.rack },
        if server.alive { "yes" } else { "no" },
        server.chunks,
        show_bytes(server.used_bytes),
        show_bytes(server.free_bytes),
        show_bytes(server.total_bytes),
    )
}
