//! Snapshots of large trees: built aside in bounded commands, then shown at once (docs/decisions/0014).
//!
//! From [`begin`] on the names below the source stand still: whatever would change them, or the chunks of a file there,
//! is refused and comes again. Mutations of chunks go on until the walk reaches them: it shares only what is settled.
//! So at the last step the copy is what the source is at that very point of the log, and that is the point the snapshot
//! stands for. The copy is built under the trash, where nobody sees it; one that is given up is collected from there.

use gfs_proto::id::{ChunkHandle, ChunkIndex, EntryId, RequestId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use crate::state::change::Change;
use crate::state::codec::decode;
use crate::state::command::Command;
use crate::state::format::{self, Build, Chunk, Entry, Place, Trashed};
use crate::state::namespace::Spot;
use crate::state::read;
use crate::state::reply::{Applied, Rejected};
use crate::state::snapshot::is_settled;
use crate::state::table::{Overlay, Table, View};

/// Most names and chunks of one step, so that no command holds up the log.
pub const BUILD_ROWS_MAX: u32 = 256;
/// Names looked at together: what lies behind a directory among them is read again.
const NAMES_BATCH: usize = 64;
/// A file with more chunks is copied like a directory, some of them in each step.
const INLINE_CHUNKS_MAX: u32 = 64;

/// Refuses to change the names in a directory that stands still.
pub(crate) fn check_names(view: &dyn View, directory: EntryId) -> Result<(), Rejected> {
    match read::build(view)? {
        Some(build) if is_within(view, directory, build.source)? => {
            Err(Rejected::Held { entry: build.source })
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses to change the chunks of a file that stands still: the same rule, for a file is within itself.
pub(crate) fn check_chunks(view: &dyn View, file: EntryId) -> Result<(), Rejected> {
    check_names(view, file)
}

/// Whether an entry is another one or below it.
fn is_within(view: &dyn View, entry: EntryId, above: EntryId) -> Result<bool, Rejected> {
    let mut at = entry;
    for _ in 0..read::CLIMB_MAX {
        if at == above {
            return Ok(true);
        }
        match read::entry(view, at).map_err(|_| Rejected::Damaged {})?.place {
            Place::In { parent, .. } => at = parent,
            Place::Root {} | Place::Trash { .. } => return Ok(false),
        }
    }
    // Too deep to tell.
    Ok(true)
}

/// Begins a build for a request, unless it is begun or answered already.
pub(crate) fn begin(
    change: &mut Change<'_>,
    source: &FilePath,
    target: &FilePath,
    request: RequestId,
) -> Result<Applied, Rejected> {
    // A leader's late repeat must not do again what was answered long ago.
    if !is_open(change.view(), request)? {
        return Err(Rejected::AlreadyAcknowledged { request });
    }
    if let Some(build) = read::build(change.view())? {
        let is_this = build.request == request;
        return if is_this { Ok(Applied::Done {}) } else { Err(Rejected::Held { entry: build.source }) };
    }
    let original = read::stat(change.view(), source)?;
    if target.is_within(source) && target != source && !original.is_file() {
        return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
    }
    Spot::find_free(change, target)?;
    let now = change.now();
    let root = change.draw_entry(&original.kind)?;
    // Never due, and without a path nothing that the list of the trash shows.
    let date = UnixMs::from_raw(u64::MAX);
    let trashed = Trashed { entry: root, path: String::new(), deleted_at: now, collect_at: date };
    let mut copy = Entry { id: root, created_at: now, chunk_count: 0, ..original.clone() };
    change.put_trashed(&mut copy, &trashed);
    change.put_build(&Build {
        root,
        source: original.id,
        source_path: source.clone(),
        target: target.clone(),
        request,
        began_at: now,
        original: original.id,
        copy: root,
        after: String::new(),
        rows: 0,
    });
    Ok(Applied::Done {})
}

/// Whether a request may still be answered, and was not.
fn is_open(view: &dyn View, request: RequestId) -> Result<bool, Rejected> {
    let session = read::session(view, request.client)?;
    let answered = read::stored_reply(view, request.client, request.sequence)?;
    Ok(request.sequence >= session.first_unacked && answered.is_none())
}

/// What a step came to.
enum Turn {
    /// There is more to do, after this many rows.
    Rows(u32),
    /// This chunk may still be written.
    Unsettled(ChunkHandle),
    /// Everything is copied.
    Complete,
}

/// One step of the build with this root, of at most `limit` rows; the last one shows the copy.
pub(crate) fn step(change: &mut Change<'_>, root: EntryId, limit: u32) -> Result<Applied, Rejected> {
    let mut build = running(change.view(), root)?;
    // Whoever deletes or moves the source, or what is above it, may; there is nothing of this name to copy then.
    if !is_in_place(change.view(), &build)? {
        let path = build.source_path.clone();
        return finish(change, build, Err(Rejected::NotFound { path }));
    }
    let limit = limit.clamp(1, BUILD_ROWS_MAX);
    let mut taken = 0;
    while taken < limit {
        match turn(change, &mut build, limit - taken, &mut |_, _| false)? {
            Turn::Rows(rows) => taken += rows,
            Turn::Unsettled(handle) => {
                build.rows += u64::from(taken);
                change.put_build(&build);
                return Ok(Applied::Built { rows: taken, more: true, unsettled: Some(handle) });
            }
            Turn::Complete => {
                return match Spot::find_free(change, &build.target.clone()) {
                    Ok(_) => show(change, build),
                    Err(Rejected::Damaged {}) => Err(Rejected::Damaged {}),
                    Err(rejected) => finish(change, build, Err(rejected)),
                };
            }
        }
    }
    build.rows += u64::from(taken);
    change.put_build(&build);
    Ok(Applied::Built { rows: taken, more: true, unsettled: None })
}

/// Gives a build up because a chunk of it can't be settled.
pub(crate) fn abandon(
    change: &mut Change<'_>,
    root: EntryId,
    handle: ChunkHandle,
) -> Result<Applied, Rejected> {
    let build = running(change.view(), root)?;
    finish(change, build, Err(Rejected::NotSettled { handle }))
}

fn running(view: &dyn View, root: EntryId) -> Result<Build, Rejected> {
    read::build(view)?.filter(|build| build.root == root).ok_or(Rejected::NoSuchEntry { entry: root })
}

fn is_in_place(view: &dyn View, build: &Build) -> Result<bool, Rejected> {
    match read::stat(view, &build.source_path) {
        Ok(entry) => Ok(entry.id == build.source),
        Err(Rejected::NotFound { .. } | Rejected::NotADirectory { .. }) => Ok(false),
        Err(rejected) => Err(rejected),
    }
}

/// Moves the finished copy to its name.
fn show(change: &mut Change<'_>, build: Build) -> Result<Applied, Rejected> {
    let target = build.target.clone();
    let spot = Spot::find_free(change, &target)?;
    let mut entry = read::entry(change.view(), build.root).map_err(|_| Rejected::Damaged {})?;
    change.take_out(&entry);
    change.put_in(&mut entry, spot.parent, spot.name);
    finish(change, build, Ok(Applied::Entry { entry }))
}

/// Ends a build and keeps the answer for the request, whenever it comes again. What was built in vain is collected.
fn finish(
    change: &mut Change<'_>,
    build: Build,
    answer: Result<Applied, Rejected>,
) -> Result<Applied, Rejected> {
    change.remove_build();
    if answer.is_err() {
        let mut entry = read::entry(change.view(), build.root).map_err(|_| Rejected::Damaged {})?;
        change.take_out(&entry);
        let (now, path) = (change.now(), String::new());
        let trashed = Trashed { entry: build.root, path, deleted_at: build.began_at, collect_at: now };
        change.put_trashed(&mut entry, &trashed);
    }
    // A client whose session is over, or who has given the request up, does not ask any more.
    if is_open(change.view(), build.request).unwrap_or(false) {
        let command = Command::Snapshot { source: build.source_path, target: build.target };
        change.put_reply(build.request, command.tag(), answer);
    }
    Ok(Applied::Built { rows: 0, more: false, unsettled: None })
}

/// Copies some rows where the walk stands. `settled` is asked about each chunk that may still be written.
fn turn(
    change: &mut Change<'_>,
    build: &mut Build,
    limit: u32,
    settled: &mut dyn FnMut(EntryId, ChunkHandle) -> bool,
) -> Result<Turn, Rejected> {
    let original = read::entry(change.view(), build.original).map_err(|_| Rejected::Damaged {})?;
    if original.is_file() {
        turn_chunks(change, build, &original, limit, settled)
    } else {
        turn_names(change, build, &original, limit, settled)
    }
}

fn turn_names(
    change: &mut Change<'_>,
    build: &mut Build,
    original: &Entry,
    limit: u32,
    settled: &mut dyn FnMut(EntryId, ChunkHandle) -> bool,
) -> Result<Turn, Rejected> {
    let batch = NAMES_BATCH.min(limit as usize);
    let from = match build.after.as_str() {
        "" => format::name_key(original.id, ""),
        name => format::after_name(original.id, name),
    };
    let names = change.view().scan(Table::Name, &from, &format::names_end(original.id), batch);
    let mut rows = 0;
    for (_, id) in &names {
        let id: EntryId = decode(id).map_err(|_| Rejected::Damaged {})?;
        let old = read::entry(change.view(), id).map_err(|_| Rejected::Damaged {})?;
        let is_small = old.is_file() && old.chunk_count <= INLINE_CHUNKS_MAX;
        let chunks = if is_small { chunks_of(change.view(), &old, 0, old.chunk_count)? } else { Vec::new() };
        if let Some(handle) = first_unsettled(change.view(), old.id, &chunks, settled)? {
            return Ok(if rows == 0 { Turn::Unsettled(handle) } else { Turn::Rows(rows) });
        }
        let id = change.draw_entry(&old.kind)?;
        let mut copy = Entry { id, created_at: build.began_at, chunk_count: 0, ..old.clone() };
        share(change, &mut copy, &chunks)?;
        change.put_in(&mut copy, build.copy, old.name());
        old.name().clone_into(&mut build.after);
        rows += 1 + copy.chunk_count;
        if !is_small {
            (build.original, build.copy, build.after) = (old.id, copy.id, String::new());
            return Ok(Turn::Rows(rows));
        }
        if rows >= limit {
            return Ok(Turn::Rows(rows));
        }
    }
    if names.len() < batch { climb(build, original, rows, change.view()) } else { Ok(Turn::Rows(rows)) }
}

fn turn_chunks(
    change: &mut Change<'_>,
    build: &mut Build,
    original: &Entry,
    limit: u32,
    settled: &mut dyn FnMut(EntryId, ChunkHandle) -> bool,
) -> Result<Turn, Rejected> {
    let mut copy = read::entry(change.view(), build.copy).map_err(|_| Rejected::Damaged {})?;
    let mut chunks = chunks_of(change.view(), original, copy.chunk_count, limit)?;
    if let Some(handle) = first_unsettled(change.view(), original.id, &chunks, settled)? {
        let at = chunks.iter().position(|chunk| chunk.handle == handle).unwrap_or(0);
        if at == 0 {
            return Ok(Turn::Unsettled(handle));
        }
        chunks.truncate(at);
    }
    let rows = u32::try_from(chunks.len()).map_err(|_| Rejected::Damaged {})?;
    share(change, &mut copy, &chunks)?;
    change.put_entry(&copy);
    if copy.chunk_count < original.chunk_count {
        return Ok(Turn::Rows(rows));
    }
    climb(build, original, rows, change.view())
}

/// Goes on behind this directory or file, in the one that it is in.
fn climb(build: &mut Build, original: &Entry, rows: u32, view: &dyn View) -> Result<Turn, Rejected> {
    if build.copy == build.root {
        return Ok(Turn::Complete);
    }
    let copy = read::entry(view, build.copy).map_err(|_| Rejected::Damaged {})?;
    let (Place::In { parent, name }, Place::In { parent: above, .. }) = (&original.place, &copy.place) else {
        return Err(Rejected::Damaged {});
    };
    (build.original, build.copy) = (*parent, *above);
    name.clone_into(&mut build.after);
    Ok(Turn::Rows(rows + 1))
}

fn chunks_of(view: &dyn View, file: &Entry, from: u32, count: u32) -> Result<Vec<Chunk>, Rejected> {
    let from = ChunkIndex::from_raw(from);
    let chunks = read::file_chunks(view, file.id, from, count as usize)?;
    Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
}

fn first_unsettled(
    view: &dyn View,
    file: EntryId,
    chunks: &[Chunk],
    settled: &mut dyn FnMut(EntryId, ChunkHandle) -> bool,
) -> Result<Option<ChunkHandle>, Rejected> {
    for chunk in chunks {
        // Guard snapshot_under_lease: a mutation under an old lease would change both sides (traps T14).
        if !is_settled(view, chunk)? && !settled(file, chunk.handle) {
            return Ok(Some(chunk.handle));
        }
    }
    Ok(None)
}

/// Gives these chunks to the copy, too, behind those that it has.
fn share(change: &mut Change<'_>, copy: &mut Entry, chunks: &[Chunk]) -> Result<(), Rejected> {
    for chunk in chunks {
        // Read again: the same chunk may come twice.
        let mut chunk = read::chunk(change.view(), chunk.handle).map_err(|_| Rejected::Damaged {})?;
        chunk.references = chunk.references.checked_add(1).ok_or(Rejected::Exhausted {})?;
        change.put_references(&chunk);
        change.put_file_chunk(copy.id, ChunkIndex::from_raw(copy.chunk_count), chunk.handle);
        copy.chunk_count += 1;
    }
    Ok(())
}

/// The files and chunks that the next step would find not settled, so that all of them can be revoked together.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn unsettled_ahead(view: &dyn View, build: &Build) -> Result<Vec<(EntryId, ChunkHandle)>, Rejected> {
    let mut found = Vec::new();
    if !is_in_place(view, build)? {
        return Ok(found);
    }
    let overlay = Overlay::new(view);
    let mut change = Change::new(&overlay, gfs_proto::id::LogIndex::default(), build.began_at);
    let (mut build, mut taken) = (build.clone(), 0);
    while taken < BUILD_ROWS_MAX {
        let left = BUILD_ROWS_MAX - taken;
        let note = &mut |file, handle| {
            found.push((file, handle));
            true
        };
        match turn(&mut change, &mut build, left, note)? {
            Turn::Rows(rows) => taken += rows,
            Turn::Unsettled(_) | Turn::Complete => break,
        }
    }
    Ok(found)
}
