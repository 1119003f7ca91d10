//! The chunks of files: handle to version, goal and references (GFS §2.3, §3.4).

use gfs_proto::id::{ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::size::CHUNKS_PER_FILE_MAX;

use crate::state::build;
use crate::state::change::Change;
use crate::state::format::{Chunk, Pending};
use crate::state::lease;
use crate::state::read;
use crate::state::reply::{Applied, GrantRule, Limit, Rejected};

/// Appends a chunk to a file, if nobody else has done so since the caller looked.
pub(crate) fn add(
    change: &mut Change<'_>,
    file: EntryId,
    expected_count: u32,
    members: &[ServerId],
    primary: ServerId,
) -> Result<Applied, Rejected> {
    let mut entry = read::file_by_id(change.view(), file)?;
    // A file in the trash takes no new data: an acknowledged append to it would be lost (traps T17).
    if !read::is_live(change.view(), file)? {
        return Err(Rejected::NoSuchEntry { entry: file });
    }
    let index = ChunkIndex::from_raw(expected_count);
    if expected_count < entry.chunk_count {
        let handle = read::file_chunk(change.view(), file, index)?;
        return Ok(Applied::ChunkAdded { index, handle, added: false });
    }
    if expected_count > entry.chunk_count {
        return Err(Rejected::BadChunkCount { expected: expected_count, found: entry.chunk_count });
    }
    build::check_chunks(change.view(), file)?;
    if entry.chunk_count >= CHUNKS_PER_FILE_MAX {
        let (size, limit) = (u64::from(entry.chunk_count) + 1, CHUNKS_PER_FILE_MAX.into());
        return Err(Rejected::TooLarge { what: Limit::Chunks {}, size, limit });
    }
    lease::check_members(change.view(), members)?;
    if !members.contains(&primary) {
        return Err(Rejected::BadGrant { rule: GrantRule::Primary {} });
    }

    let handle = change.draw_chunk()?;
    let version = ChunkVersion::NONE.next();
    let pending = Pending {
        version,
        members: members.to_vec(),
        base: members.to_vec(),
        primary,
        writer: true,
        fresh: true,
    };
    change.put_chunk(&Chunk {
        handle,
        file,
        goal: entry.replication,
        references: 1,
        version,
        confirmed: ChunkVersion::NONE,
        members: Vec::new(),
        pending: Some(pending),
        lease: None,
    });
    change.put_file_chunk(file, index, handle);
    entry.chunk_count += 1;
    entry.modified_at = change.now();
    change.put_entry(&entry);
    Ok(Applied::ChunkAdded { index, handle, added: true })
}
