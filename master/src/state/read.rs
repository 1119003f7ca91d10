//! Lookups: what the state says at the point of the log that a view shows.

use gfs_proto::id::{ChunkHandle, ChunkIndex, ClientId, EntryId, MasterId, ServerId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use crate::state::codec::{Field, decode};
use crate::state::format::{
    self, Accepted, Build, Chunk, Counters, Entry, Master, Origin, Place, Server, Session, Settings,
    StoredReply, Trashed, system,
};
use crate::state::reply::Rejected;
use crate::state::table::{Row, Table, View};

/// Most rows that a lookup returns, whatever the caller asks for.
pub const PAGE_ROWS_MAX: usize = 10_000;
/// Most steps up from an entry to the root. Directories that were moved whole can lie deeper than a path can
/// say; past this depth an entry counts as out of reach.
pub(crate) const CLIMB_MAX: usize = 4096;

/// Part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    /// The items, in order.
    pub items: Vec<T>,
    /// Whether more follow.
    pub more: bool,
}

/// The row of a key; a row that can't be read is the end of this master.
pub(crate) fn row<T: Field>(view: &dyn View, table: Table, key: &[u8]) -> Result<Option<T>, Rejected> {
    view.get(table, key).map(|bytes| value(&bytes)).transpose()
}

fn value<T: Field>(bytes: &[u8]) -> Result<T, Rejected> {
    decode(bytes).map_err(|_| Rejected::Damaged {})
}

/// One page of a scan, each row through `item`.
fn page<T>(
    rows: impl FnOnce(usize) -> Vec<Row>,
    limit: usize,
    item: impl FnMut(&Row) -> Result<T, Rejected>,
) -> Result<Page<T>, Rejected> {
    let limit = limit.min(PAGE_ROWS_MAX);
    let rows = rows(limit + 1);
    let items = rows.iter().take(limit).map(item).collect::<Result<_, _>>()?;
    Ok(Page { items, more: rows.len() > limit })
}

/// What was settled when the cluster was made.
///
/// # Errors
/// There is no cluster yet.
pub fn settings(view: &dyn View) -> Result<Settings, Rejected> {
    row(view, Table::System, &system::SETTINGS)?.ok_or(Rejected::NotBootstrapped {})
}

/// The time that the log has come to; never goes back.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn clock(view: &dyn View) -> Result<UnixMs, Rejected> {
    Ok(row(view, Table::System, &system::CLOCK)?.unwrap_or_default())
}

/// The ids to give next, and how many of everything there are.
///
/// # Errors
/// There is no cluster yet.
pub fn counters(view: &dyn View) -> Result<Counters, Rejected> {
    row(view, Table::System, &system::COUNTERS)?.ok_or(Rejected::NotBootstrapped {})
}

/// The snapshot of a large tree that is being built, if there is one.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn build(view: &dyn View) -> Result<Option<Build>, Rejected> {
    row(view, Table::System, &system::BUILD)
}

/// The handle that the next chunk gets: one below it that is not in the state is garbage for ever.
///
/// # Errors
/// There is no cluster yet.
pub fn next_chunk_handle(view: &dyn View) -> Result<ChunkHandle, Rejected> {
    Ok(counters(view)?.next_chunk)
}

/// An entry by its id, also if it is in the trash.
///
/// # Errors
/// Nothing has this id.
pub fn entry(view: &dyn View, id: EntryId) -> Result<Entry, Rejected> {
    row(view, Table::Entry, &format::entry_key(id))?.ok_or(Rejected::NoSuchEntry { entry: id })
}

/// The id of a name in a directory.
pub(crate) fn child(view: &dyn View, directory: EntryId, name: &str) -> Result<Option<EntryId>, Rejected> {
    row(view, Table::Name, &format::name_key(directory, name))
}

/// Whether a directory has no entries.
pub(crate) fn is_empty(view: &dyn View, directory: EntryId) -> bool {
    let from = format::name_key(directory, "");
    view.scan(Table::Name, &from, &format::names_end(directory), 1).is_empty()
}

/// The entries on the way from the root to a path: the root first, the path's own last.
///
/// # Errors
/// A name on the way is missing, or is a file's and not the last.
pub fn resolve(view: &dyn View, path: &FilePath) -> Result<Vec<Entry>, Rejected> {
    let root = entry(view, EntryId::ROOT).map_err(|_| Rejected::NotBootstrapped {})?;
    let mut way = vec![root];
    let mut parent = EntryId::ROOT;
    let mut is_file = false;
    for (depth, name) in path.names().enumerate() {
        if is_file {
            return Err(Rejected::NotADirectory { path: first_names(path, depth) });
        }
        let Some(id) = child(view, parent, name)? else {
            return Err(Rejected::NotFound { path: first_names(path, depth + 1) });
        };
        let entry = entry(view, id).map_err(|_| Rejected::Damaged {})?;
        is_file = entry.is_file();
        parent = id;
        way.push(entry);
    }
    Ok(way)
}

/// The path of the first `depth` names of a path.
fn first_names(path: &FilePath, depth: usize) -> FilePath {
    let mut first = path.clone();
    for _ in depth..path.names().count() {
        first = first.split().map_or_else(FilePath::root, |(parent, _)| parent);
    }
    first
}

/// The entry of a path.
///
/// # Errors
/// As [`resolve`].
pub fn stat(view: &dyn View, path: &FilePath) -> Result<Entry, Rejected> {
    resolve(view, path)?.pop().ok_or(Rejected::Damaged {})
}

/// A file by its id, also if it is in the trash.
///
/// # Errors
/// Nothing has this id, or a directory has it.
pub fn file_by_id(view: &dyn View, id: EntryId) -> Result<Entry, Rejected> {
    let entry = entry(view, id)?;
    if entry.is_file() { Ok(entry) } else { Err(Rejected::NotAFile { entry: id }) }
}

/// The path of an entry; `None` if it is in the trash, or below something that is.
///
/// # Errors
/// Nothing has this id.
pub fn path_of(view: &dyn View, id: EntryId) -> Result<Option<String>, Rejected> {
    let mut names = Vec::new();
    let mut at = entry(view, id)?;
    for _ in 0..CLIMB_MAX {
        match at.place {
            Place::Root {} => {
                let path: String =
                    names.iter().rev().flat_map(|name: &String| ["/", name.as_str()]).collect();
                return Ok(Some(if path.is_empty() { "/".to_owned() } else { path }));
            }
            Place::Trash { .. } => return Ok(None),
            Place::In { parent, name } => {
                names.push(name);
                at = entry(view, parent).map_err(|_| Rejected::Damaged {})?;
            }
        }
    }
    Ok(None)
}

/// Whether an entry has a path: it is there, and neither it nor a directory above it is in the trash.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn is_live(view: &dyn View, id: EntryId) -> Result<bool, Rejected> {
    match path_of(view, id) {
        Ok(path) => Ok(path.is_some()),
        Err(Rejected::NoSuchEntry { .. }) => Ok(false),
        Err(damaged) => Err(damaged),
    }
}

/// The entries of a directory, by name, from the one after `after`.
///
/// # Errors
/// As [`resolve`]; or the path is a file's.
pub fn list(view: &dyn View, path: &FilePath, after: &str, limit: usize) -> Result<Page<Entry>, Rejected> {
    let directory = stat(view, path)?;
    if directory.is_file() {
        return Err(Rejected::NotADirectory { path: path.clone() });
    }
    let from = match after {
        "" => format::name_key(directory.id, ""),
        name => format::after_name(directory.id, name),
    };
    let until = format::names_end(directory.id);
    page(
        |limit| view.scan(Table::Name, &from, &until, limit),
        limit,
        |(_, id)| entry(view, value(id)?).map_err(|_| Rejected::Damaged {}),
    )
}

/// A chunk by its handle.
///
/// # Errors
/// No chunk has this handle.
pub fn chunk(view: &dyn View, handle: ChunkHandle) -> Result<Chunk, Rejected> {
    row(view, Table::Chunk, &format::chunk_key(handle))?.ok_or(Rejected::NoSuchChunk { handle })
}

/// The handle of a file's chunk.
pub(crate) fn file_chunk(view: &dyn View, file: EntryId, index: ChunkIndex) -> Result<ChunkHandle, Rejected> {
    row(view, Table::FileChunk, &format::file_chunk_key(file, index))?.ok_or(Rejected::Damaged {})
}

/// At most `count` chunks of a file, from `first` on, in order; the file may be in the trash.
///
/// # Errors
/// Nothing has this id, or a directory has it.
pub fn file_chunks(
    view: &dyn View,
    file: EntryId,
    first: ChunkIndex,
    count: usize,
) -> Result<Vec<(ChunkIndex, Chunk)>, Rejected> {
    let file = file_by_id(view, file)?;
    let from = format::file_chunk_key(file.id, first);
    let rows =
        view.scan(Table::FileChunk, &from, &format::file_chunks_end(file.id), count.min(PAGE_ROWS_MAX));
    let mut chunks = Vec::with_capacity(rows.len());
    for ((_, handle), index) in rows.iter().zip(first.raw()..) {
        let chunk = chunk(view, value(handle)?).map_err(|_| Rejected::Damaged {})?;
        chunks.push((ChunkIndex::from_raw(index), chunk));
    }
    Ok(chunks)
}

/// Where a copy comes from, if the old chunk's version still counts.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn origin(view: &dyn View, copy: ChunkHandle) -> Result<Option<Origin>, Rejected> {
    row(view, Table::System, &system::origin(copy))
}

/// The operator's decision that the pending grant of a chunk stands on, if it does.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn accepted(view: &dyn View, handle: ChunkHandle) -> Result<Option<Accepted>, Rejected> {
    row(view, Table::System, &system::accepted(handle))
}

/// At most `limit` chunks by handle, from `from` on.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn chunks(view: &dyn View, from: ChunkHandle, limit: usize) -> Result<Page<Chunk>, Rejected> {
    let from = format::chunk_key(from);
    page(|limit| view.scan(Table::Chunk, &from, &format::END, limit), limit, |(_, chunk)| value(chunk))
}

/// At most `limit` chunks with a pending grant, by handle, from `from` on: what a new leader takes up.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn pending_grants(
    view: &dyn View,
    from: ChunkHandle,
    limit: usize,
) -> Result<Page<ChunkHandle>, Rejected> {
    let from = system::pending(from);
    page(
        |limit| view.scan(Table::System, &from, &[system::PENDING + 1], limit),
        limit,
        |(key, _)| system::chunk_of_pending(key).ok_or(Rejected::Damaged {}),
    )
}

/// All chunkservers ever registered, by id.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn servers(view: &dyn View) -> Result<Vec<Server>, Rejected> {
    let rows = view.scan(Table::System, &[system::SERVERS], &[system::SERVERS + 1], usize::MAX);
    rows.iter().map(|(_, server)| value(server)).collect()
}

/// A chunkserver by its id.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn server(view: &dyn View, id: ServerId) -> Result<Option<Server>, Rejected> {
    row(view, Table::System, &system::server(id))
}

/// All masters and shadows that were ever given an id, by id.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn masters(view: &dyn View) -> Result<Vec<Master>, Rejected> {
    let rows = view.scan(Table::System, &[system::MASTERS], &[system::MASTERS + 1], usize::MAX);
    rows.iter().map(|(_, master)| value(master)).collect()
}

/// A master or shadow by its id.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn master(view: &dyn View, id: MasterId) -> Result<Option<Master>, Rejected> {
    row(view, Table::System, &system::master(id))
}

/// A client session.
///
/// # Errors
/// The session is not there (any more).
pub fn session(view: &dyn View, client: ClientId) -> Result<Session, Rejected> {
    row(view, Table::Session, &format::session_key(client))?.ok_or(Rejected::SessionExpired { client })
}

/// The stored answer to a request.
pub(crate) fn stored_reply(
    view: &dyn View,
    client: ClientId,
    sequence: u64,
) -> Result<Option<StoredReply>, Rejected> {
    row(view, Table::Session, &format::reply_key(client, sequence))
}

/// When the first session ends unless it is used: before that there is nothing to expire.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn next_session_end(view: &dyn View) -> Result<Option<UnixMs>, Rejected> {
    let rows = view.scan(Table::System, &[system::SESSION_ENDS], &[system::SESSION_ENDS + 1], 1);
    let Some((key, _)) = rows.first() else { return Ok(None) };
    system::session_of_end(key).map(|(ends_at, _)| Some(ends_at)).ok_or(Rejected::Damaged {})
}

/// What is in the trash, by the date until which it can be restored, from the one after `after`.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn trash(view: &dyn View, after: Option<&Trashed>, limit: usize) -> Result<Page<Trashed>, Rejected> {
    let mut from = Vec::new();
    if let Some(after) = after {
        from = format::trash_key(after.collect_at, after.entry);
        from.push(0);
    }
    page(|limit| view.scan(Table::Trash, &from, &format::END, limit), limit, |(_, row)| value(row))
}

/// What can still be restored, with the entries, in the order of their dates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restorable {
    /// The entries.
    pub items: Vec<(Trashed, Entry)>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<(UnixMs, EntryId)>,
}

/// What can still be restored at `now` and was deleted at a path or below it, behind a place in the list. Ends after
/// [`PAGE_ROWS_MAX`] rows at the latest, also if none of them was wanted.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn restorable(
    view: &dyn View,
    now: UnixMs,
    below: &FilePath,
    after: Option<(UnixMs, EntryId)>,
    limit: usize,
) -> Result<Restorable, Rejected> {
    let now = now.max(clock(view)?);
    let mut from = format::trash_after(now);
    if let Some((collect_at, id)) = after {
        let mut behind = format::trash_key(collect_at, id);
        behind.push(0);
        from = from.max(behind);
    }
    let rows = view.scan(Table::Trash, &from, &format::END, PAGE_ROWS_MAX);
    let is_full = rows.len() == PAGE_ROWS_MAX;
    let mut page = Restorable { items: Vec::new(), next: None };
    let mut last = None;
    for (_, row) in &rows {
        if page.items.len() >= limit.clamp(1, PAGE_ROWS_MAX) {
            page.next = last;
            return Ok(page);
        }
        let trashed: Trashed = value(row)?;
        last = Some((trashed.collect_at, trashed.entry));
        // Without a path: part of a tree under collection, or a snapshot that is being built.
        let Ok(path) = FilePath::parse(&trashed.path) else { continue };
        if path.is_within(below) {
            let entry = entry(view, trashed.entry).map_err(|_| Rejected::Damaged {})?;
            page.items.push((trashed, entry));
        }
    }
    page.next = last.filter(|_| is_full);
    Ok(page)
}

/// When the trash can be collected next: before that there is nothing to collect.
///
/// # Errors
/// Only [`Rejected::Damaged`].
pub fn next_trash_date(view: &dyn View) -> Result<Option<UnixMs>, Rejected> {
    Ok(trash(view, None, 1)?.items.first().map(|trashed| trashed.collect_at))
}
