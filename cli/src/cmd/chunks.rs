//! `gfs chunks`

use anyhow::Result;
use gfs_client::{Chunk, Comparison, ReplicaSums, Server};
use serde_json::{Value, json};

use crate::args::Chunks;
use crate::cmd::{Session, trimmed};
use crate::exit::{self, SomeFailed};

/// Blocks that are named in a line of text; JSON has all.
const BLOCKS_SHOWN: usize = 16;

/// Shows the chunks of a file.
pub(crate) async fn run(session: &Session, args: &Chunks) -> Result<()> {
    let path = trimmed(&args.path);
    if args.verify {
        return verify(session, path).await;
    }
    for chunk in session.client.chunks(path).await? {
        session.print(&as_json(&chunk), || as_text(&chunk))?;
    }
    Ok(())
}

/// Compares the replicas of each chunk.
async fn verify(session: &Session, path: &str) -> Result<()> {
    let file = session.client.open(path).await?;
    let chunks = file.chunks().await?;
    let (mut corrupt, mut incomplete) = (0, 0);
    for chunk in &chunks {
        let compared = file.compare_replicas(chunk.index).await?;
        corrupt += u64::from(compared.is_corrupt());
        incomplete += u64::from(!compared.is_complete());
        session.print(&comparison_as_json(&compared), || comparison_as_text(&compared))?;
    }
    let all = chunks.len() as u64;
    match (corrupt, incomplete) {
        (0, 0) => Ok(()),
        (0, failed) => Err(SomeFailed { failed, all, given_up: false, code: exit::UNAVAILABLE }.into()),
        (failed, _) => Err(SomeFailed { failed, all, given_up: false, code: exit::CORRUPTION }.into()),
    }
}

fn comparison_as_json(compared: &Comparison) -> Value {
    let replicas = compared.replicas.iter().map(|replica| {
        json!({"server": replica.server.id.raw(), "address": replica.server.address,
               "length": replica.length, "sealed": replica.sealed,
               "error": replica.error.as_ref().map(ToString::to_string)})
    });
    json!({
        "index": compared.chunk.index.raw(),
        "handle": compared.chunk.handle.raw(),
        "version": compared.chunk.version.raw(),
        "goal": compared.chunk.goal,
        "verdict": verdict(compared),
        "differing_blocks": compared.differing_blocks(),
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

fn verdict(compared: &Comparison) -> &'static str {
    match (compared.is_corrupt(), compared.is_complete()) {
        (true, _) => "corrupt",
        (false, false) => "incomplete",
        (false, true) => "alike",
    }
}

fn comparison_as_text(compared: &Comparison) -> String {
    let replica = |replica: &ReplicaSums| {
        let error = replica.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        format!("{} {} bytes{error}", replica.server.id, replica.length)
    };
    let replicas: Vec<String> = compared.replicas.iter().map(replica).collect();
    let differing: Vec<String> =
        compared.differing_blocks().iter().take(BLOCKS_SHOWN).map(ToString::to_string).collect();
    let blocks = if differing.is_empty() {
        String::new()
    } else {
        format!("; blocks that differ: {}", differing.join(" "))
    };
    let Chunk { index, handle, version, .. } = compared.chunk;
    format!("{index} {handle} {version}  {}: {}{blocks}", verdict(compared), replicas.join(", "))
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
