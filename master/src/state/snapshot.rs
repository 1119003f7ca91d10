//! Snapshots and copy on write: files that share chunks until one of them is written (GFS §3.4; docs/decisions/0013). Larger
//! trees than one command may touch: `build.rs`.
//!
//! The guards of the protocol (protocol.md, Snapshot) are kept here as refusals: a snapshot of what may still be
//! written, a grant to write what is shared, a grant to write a copy while its old chunk has its old version.

use std::collections::BTreeMap;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, RequestId, ServerId};
use gfs_proto::path::FilePath;

use crate::state::build;
use crate::state::change::Change;
use crate::state::codec::decode;
use crate::state::format::{self, Chunk, Entry, Origin, Place};
use crate::state::lease;
use crate::state::namespace::Spot;
use crate::state::read;
use crate::state::reply::{Applied, GrantRule, Limit, Rejected};
use crate::state::table::{Table, View};

/// Most files, directories and chunks of one snapshot, so that no command holds up the log.
pub const SNAPSHOT_ROWS_MAX: u64 = 512;

/// What a snapshot covers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Covered {
    /// Files and directories, each behind its directory; the source first.
    pub entries: Vec<Entry>,
    /// The chunks of each file, file by file in the order of the entries.
    pub chunks: Vec<(EntryId, Chunk)>,
}

/// Everything that a snapshot of an entry would cover.
///
/// # Errors
/// [`Rejected::TooLarge`] if it is more than one command may touch.
pub fn covered(view: &dyn View, source: Entry) -> Result<Covered, Rejected> {
    let mut covered = Covered { entries: vec![source], chunks: Vec::new() };
    let mut at = 0;
    while let Some(entry) = covered.entries.get(at).cloned() {
        at += 1;
        let size = covered.entries.len() as u64 + covered.chunks.len() as u64 + u64::from(entry.chunk_count);
        check_size(size)?;
        if entry.is_file() {
            let chunks =
                read::file_chunks(view, entry.id, ChunkIndex::default(), entry.chunk_count as usize)?;
            covered.chunks.extend(chunks.into_iter().map(|(_, chunk)| (entry.id, chunk)));
            continue;
        }
        let (from, until) = (format::name_key(entry.id, ""), format::names_end(entry.id));
        let names = view.scan(Table::Name, &from, &until, read::PAGE_ROWS_MAX);
        check_size(size + names.len() as u64)?;
        for (_, id) in names {
            let id: EntryId = decode(&id).map_err(|_| Rejected::Damaged {})?;
            covered.entries.push(read::entry(view, id).map_err(|_| Rejected::Damaged {})?);
        }
    }
    Ok(covered)
}

fn check_size(size: u64) -> Result<(), Rejected> {
    if size <= SNAPSHOT_ROWS_MAX {
        return Ok(());
    }
    Err(Rejected::TooLarge { what: Limit::Snapshot {}, size, limit: SNAPSHOT_ROWS_MAX })
}

/// Whether nobody may be writing a chunk, now or under an old promise.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn is_settled(view: &dyn View, chunk: &Chunk) -> Result<bool, Rejected> {
    Ok(chunk.lease.is_none() && chunk.pending.is_none() && read::origin(view, chunk.handle)?.is_none())
}

/// Makes a copy that shares all chunks, in one step.
pub(crate) fn snapshot(
    change: &mut Change<'_>,
    (source, target): (&FilePath, &FilePath),
    request: Option<RequestId>,
) -> Result<Applied, Rejected> {
    if let Some(build) = read::build(change.view())?.filter(|build| Some(build.request) == request) {
        return Err(Rejected::Held { entry: build.source });
    }
    let root = read::stat(change.view(), source)?;
    if target.is_within(source) && target != source && !root.is_file() {
        return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
    }
    let spot = Spot::find_free(change, target)?;
    build::check_names(change.view(), spot.parent)?;
    let covered = covered(change.view(), root)?;
    for (_, chunk) in &covered.chunks {
        // Guard snapshot_under_lease: a mutation under an old lease would change both sides (traps T14).
        // Mutant snapshot_under_lease: nobody waits for the revocation.
        if !is_settled(change.view(), chunk)? && !fault::mutant("snapshot_under_lease") {
            return Err(Rejected::Unsettled { handle: chunk.handle });
        }
    }
    let now = change.now();
    let mut copies: BTreeMap<EntryId, EntryId> = BTreeMap::new();
    let mut made: Vec<(EntryId, Entry)> = Vec::with_capacity(covered.entries.len());
    for old in &covered.entries {
        let (parent, name) = match &old.place {
            Place::In { parent, name } if !made.is_empty() => {
                // Each entry stands behind its directory.
                (copies.get(parent).copied().ok_or(Rejected::Damaged {})?, name.clone())
            }
            Place::In { .. } | Place::Root {} | Place::Trash { .. } => (spot.parent, spot.name.to_owned()),
        };
        let mut entry = Entry { id: change.draw_entry(&old.kind)?, created_at: now, ..old.clone() };
        change.put_in(&mut entry, parent, &name);
        copies.insert(old.id, entry.id);
        made.push((old.id, entry));
    }
    share(change, &covered, &made)?;
    let (_, entry) = made.into_iter().next().ok_or(Rejected::Damaged {})?;
    Ok(Applied::Entry { entry })
}

/// Gives the chunks of the old files to the new ones, too.
fn share(change: &mut Change<'_>, covered: &Covered, made: &[(EntryId, Entry)]) -> Result<(), Rejected> {
    let mut chunks = covered.chunks.iter().peekable();
    for (old, entry) in made.iter().filter(|(_, entry)| entry.is_file()) {
        for index in (0..entry.chunk_count).map(ChunkIndex::from_raw) {
            let next = chunks.next_if(|(file, _)| file == old);
            let (_, chunk) = next.ok_or(Rejected::Damaged {})?;
            // Read again: two files of the tree may share it already.
            let mut chunk = read::chunk(change.view(), chunk.handle).map_err(|_| Rejected::Damaged {})?;
            // Mutant snapshot_uncounted: two files have a chunk that counts one.
            let more = u32::from(!fault::mutant("snapshot_uncounted"));
            chunk.references = chunk.references.checked_add(more).ok_or(Rejected::Exhausted {})?;
            change.put_references(&chunk);
            change.put_file_chunk(entry.id, index, chunk.handle);
        }
    }
    Ok(())
}

/// A copy as the leader asks for it.
pub(crate) struct Copy<'a> {
    pub(crate) file: EntryId,
    pub(crate) index: ChunkIndex,
    pub(crate) old: ChunkHandle,
    pub(crate) version: ChunkVersion,
    pub(crate) copy: ChunkHandle,
    pub(crate) members: &'a [ServerId],
}

/// Puts a copy in the place of a shared chunk. Guard *bump_before_map*: the old chunk's version is raised by a grant
/// that comes after this.
pub(crate) fn copy(change: &mut Change<'_>, wish: &Copy<'_>) -> Result<Applied, Rejected> {
    let &Copy { file, index, old, version, copy, members } = wish;
    let entry = read::file_by_id(change.view(), file)?;
    if !read::is_live(change.view(), file)? {
        return Err(Rejected::NoSuchEntry { entry: file });
    }
    build::check_chunks(change.view(), file)?;
    let stands = if index.raw() < entry.chunk_count {
        read::file_chunk(change.view(), file, index)?
    } else {
        return Err(Rejected::BadChunkCount { expected: index.raw(), found: entry.chunk_count });
    };
    // Somebody else was faster: this copy is garbage.
    if stands != old {
        return Err(Rejected::NoSuchChunk { handle: old });
    }
    let shared = read::chunk(change.view(), old).map_err(|_| Rejected::Damaged {})?;
    if shared.version != version {
        return Err(Rejected::VersionMismatch { handle: old, asked: version, here: shared.version });
    }
    if !is_settled(change.view(), &shared)? {
        return Err(Rejected::Unsettled { handle: old });
    }
    let next = read::next_chunk_handle(change.view())?;
    let is_new = matches!(read::chunk(change.view(), copy), Err(Rejected::NoSuchChunk { .. }));
    if shared.references < 2 || copy >= next || !is_new {
        return Err(Rejected::BadGrant { rule: GrantRule::Copy {} });
    }
    lease::check_members(change.view(), members)?;
    // Only who has what was acknowledged can have copied it (traps T16).
    if !members.iter().all(|server| shared.members.contains(server)) {
        return Err(Rejected::BadGrant { rule: GrantRule::BaseConfirmed {} });
    }
    let first = ChunkVersion::NONE.next();
    change.count_chunk()?;
    change.put_chunk(&Chunk {
        handle: copy,
        file,
        goal: entry.replication,
        references: 1,
        version: first,
        confirmed: first,
        members: members.to_vec(),
        pending: None,
        lease: None,
    });
    // The file's reference to the old chunk becomes the copy's.
    change.put_origin(copy, &Origin { handle: old, version });
    change.put_file_chunk(file, index, copy);
    Ok(Applied::Done {})
}

/// Lets the origin of a copy go if its version is over; whether there is none (any more).
///
/// Guard *copy_without_bump*: until then readers with a cached location could still see the past in the old chunk.
pub(crate) fn let_go(change: &mut Change<'_>, copy: ChunkHandle) -> Result<bool, Rejected> {
    let Some(origin) = read::origin(change.view(), copy)? else { return Ok(true) };
    let old = read::chunk(change.view(), origin.handle).map_err(|_| Rejected::Damaged {})?;
    // Mutant copy_without_bump: the copy is written while readers still have the old location.
    if old.confirmed <= origin.version && !fault::mutant("copy_without_bump") {
        return Ok(false);
    }
    change.remove_origin(copy);
    drop_reference(change, origin.handle)?;
    Ok(true)
}

/// One file, or copy, less has a chunk; when nobody has it, it goes, and what it came from may go with it.
pub(crate) fn drop_reference(change: &mut Change<'_>, handle: ChunkHandle) -> Result<(), Rejected> {
    let mut next = Some(handle);
    // A copy is only copied when it has no origin any more, so this is two steps long at most.
    while let Some(handle) = next.take() {
        let mut chunk = read::chunk(change.view(), handle).map_err(|_| Rejected::Damaged {})?;
        chunk.references = chunk.references.checked_sub(1).ok_or(Rejected::Damaged {})?;
        // Mutant references_ignored: the garbage collector takes what another file still has.
        if chunk.references > 0 && !fault::mutant("references_ignored") {
            change.put_references(&chunk);
            continue;
        }
        if let Some(origin) = read::origin(change.view(), handle)? {
            change.remove_origin(handle);
            next = Some(origin.handle);
        }
        change.remove_chunk(handle)?;
    }
    Ok(())
}
