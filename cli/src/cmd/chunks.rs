//! `gfs chunks`

use anyhow::Result;
use gfs_client::{Chunk, Server};
use serde_json::{Value, json};

use crate::args::Chunks;
use crate::cmd::{Session, trimmed};

/// Shows the chunks of a file.
pub(crate) async fn run(session: &Session, args: &Chunks) -> Result<()> {
    for chunk in session.client.chunks(trimmed(&args.path)).await? {
        session.print(&as_json(&chunk), || as_text(&chunk))?;
    }
    Ok(())
}

fn as_json(chunk: &Chunk) -> Value {
    let replicas = chunk.replicas.iter().map(|server| {
        json!({"server": server.id.raw(), "address": server.address, "rack": server.rack,
               "primary": Some(server.id) == chunk.primary})
    });
    json!({
        "index": chunk.index.raw(),
        "handle": chunk.handle.raw(),
        "version": chunk.version.raw(),
        "goal": chunk.goal,
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

fn as_text(chunk: &Chunk) -> String {
    let name = |server: &Server| {
        let star = if Some(server.id) == chunk.primary { "*" } else { "" };
        format!("{}@{}{star}", server.id, server.address)
    };
    let replicas: Vec<String> = chunk.replicas.iter().map(name).collect();
    let (here, goal) = (chunk.replicas.len(), chunk.goal as usize);
    let below = if here < goal { format!("  ({here} of {goal} replicas)") } else { String::new() };
    format!("{} {} {}  {}{below}", chunk.index, chunk.handle, chunk.version, replicas.join(" "))
}
