//! What waits for a decision after a power cut is named with what each replica holds, and a decision makes it readable
//! again: with that content, the same on every replica (docs/decisions/0020).

use std::time::Instant;

use anyhow::{Result, bail};
use gfs_client::{CheckedChunk, CheckedReplica, ChunkHealth, Client, Error, File};
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, ServerId};

use super::judge::{AGAIN, PATIENCE, patiently, replica};

/// What became of a chunk that could not be read.
pub(super) enum Decided {
    /// It had only not come back yet.
    Healed,
    /// It waited, and what one replica held is its content now.
    By,
    /// A broken promise, as a sentence.
    Broken(String),
}

/// Sees a chunk that could not be read through a decision.
pub(super) async fn decide(client: &Client, file: &File, path: &str, index: u32) -> Result<Decided> {
    let Some(chunk) = waiting(client, file, index).await? else { return Ok(Decided::Healed) };
    let name = format!("{path} #{index} c{} v{}", chunk.handle, chunk.version);
    let members = || chunk.replicas.iter().filter(|replica| replica.member);
    let silent = members().filter(|replica| replica.inspected.is_none()).count();
    if silent > 0 || members().count() == 0 {
        return Ok(Decided::Broken(format!(
            "silent: {name} waits, and {silent} replicas don't say what they hold"
        )));
    }
    let Some((server, length)) = members().filter_map(|replica| most(replica, &chunk)).max_by_key(|it| it.0)
    else {
        return Ok(Decided::Broken(format!(
            "stuck: {name} waits, and nothing could be decided for: {:?}",
            chunk.replicas
        )));
    };
    let server = ServerId::from_raw(server.2);
    let (handle, version) = (ChunkHandle::from_raw(chunk.handle), ChunkVersion::from_raw(chunk.version));
    let late = ChunkVersion::from_raw(chunk.version.wrapping_sub(1));
    if client.accept_replica(handle, late, server, &[]).await.is_ok() {
        return Ok(Decided::Broken(format!("blind: {name} takes a decision about {late}")));
    }
    if let Err(error) = client.accept_replica(handle, version, server, &[]).await {
        return Ok(Decided::Broken(format!("stuck: {name} does not take a decision for {server}: {error}")));
    }
    Ok(match check(file, index, length).await {
        Ok(()) => Decided::By,
        Err(error) => Decided::Broken(format!("undecided: {name} after a decision for {server}: {error}")),
    })
}

/// The chunk when it waits; `None` if it can be read.
async fn waiting(client: &Client, file: &File, index: u32) -> Result<Option<CheckedChunk>> {
    let until = Instant::now() + PATIENCE;
    let start = u64::from(index) * u64::from(file.chunk_bytes().raw());
    loop {
        let page = client.check_chunks(file.id(), index).await?;
        let known = page.unhealthy.into_iter().find(|chunk| chunk.index == index);
        if let Some(known) = known.filter(|chunk| page.counted && chunk.health() == ChunkHealth::Waiting) {
            return Ok(Some(client.inspect_chunk(ChunkHandle::from_raw(known.handle)).await?));
        }
        if file.read_at(start, 1).await.is_ok() {
            return Ok(None);
        }
        if Instant::now() > until {
            bail!("chunk {index} of a file can't be read, and does not wait for a decision");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// How much a replica holds of what was last acknowledged, to be compared, and its length.
fn most(replica: &CheckedReplica, chunk: &CheckedChunk) -> Option<((u64, u64, u64), u32)> {
    let here = replica.inspected.as_ref()?;
    let fits = here.present && here.partial && !here.corrupt && here.adopted >= chunk.confirmed;
    let server = replica.replica.as_ref()?.server;
    fits.then_some(((here.adopted, here.serial, server), here.length))
}

/// The chunk has all its replicas, which are the same and as long as was decided.
async fn check(file: &File, index: u32, length: u32) -> gfs_client::Result<()> {
    let start = u64::from(index) * u64::from(file.chunk_bytes().raw());
    patiently(PATIENCE, async || {
        let chunks = file.chunks().await?;
        let chunk = chunks.iter().find(|chunk| chunk.index == ChunkIndex::from_raw(index));
        let chunk = chunk.ok_or_else(|| Error::unavailable("it has gone"))?;
        if chunk.replicas.len() < chunk.goal as usize {
            return Err(Error::unavailable(format!("it has {} replicas", chunk.replicas.len())));
        }
        let mut first = None;
        for server in &chunk.replicas {
            let bytes = replica(file, start, server).await?;
            if bytes.len() != length as usize {
                return Err(Error::internal(format!(
                    "{} holds {} bytes, not {length}",
                    server.id,
                    bytes.len()
                )));
            }
            if *first.get_or_insert_with(|| bytes.clone()) != bytes {
                return Err(Error::internal(format!("{} holds something else", server.id)));
            }
        }
        Ok(())
    })
    .await
}
