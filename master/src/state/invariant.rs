//! What is true of the state after every command. Reads all of it: for tests, simulation and `fsck`.

use std::collections::{BTreeMap, BTreeSet};

use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, EntryId, MasterId, ServerId};
use gfs_proto::size::REPLICATION_MAX;
use gfs_proto::time::UnixMs;

use crate::state::codec::{Field, decode};
use crate::state::format::{
    self, Accepted, Chunk, Counters, Entry, Master, Origin, Place, Server, Session, StoredReply, Trashed,
    system,
};
use crate::state::read;
use crate::state::reply::Rejected;
use crate::state::session::WINDOW_REQUESTS;
use crate::state::table::{Row, Table, View};

/// Checks the whole state.
///
/// # Errors
/// The first promise found broken, in words.
pub fn check(view: &dyn View) -> Result<(), String> {
    if read::settings(view) == Err(Rejected::NotBootstrapped {}) {
        let rows: usize = Table::ALL.iter().map(|table| scan(view, *table).len()).sum();
        return ensure(rows <= 1, || "rows before there is a cluster".to_owned());
    }
    let counters = read::counters(view).map_err(|error| error.to_string())?;
    let entries = by_id::<Entry>(view, Table::Entry)?;
    check_places(view, &entries)?;
    check_reachable(&entries)?;
    check_entry_counts(&entries, &counters)?;
    let mut references = check_file_chunks(view, &entries)?;
    check_origins(view, &mut references)?;
    check_build(view, &entries)?;
    check_chunks(view, &references, &counters)?;
    check_accepted(view)?;
    check_sessions(view, &counters)?;
    check_members(view, &counters)
}

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

fn scan(view: &dyn View, table: Table) -> Vec<Row> {
    view.scan(table, &[], &format::END, usize::MAX)
}

fn value<T: Field>(row: &Row) -> Result<T, String> {
    decode(&row.1).map_err(|error| format!("{:02x?}: {error}", row.0))
}

/// All rows of a table whose key is a number.
fn by_id<T: Field>(view: &dyn View, table: Table) -> Result<BTreeMap<u64, T>, String> {
    let number =
        |key: &[u8]| key.try_into().map(u64::from_be_bytes).map_err(|_| format!("bad key {key:02x?}"));
    scan(view, table).iter().map(|row| Ok((number(&row.0)?, value(row)?))).collect()
}

/// Each entry is at exactly the place that it says, and names and trash hold nothing else.
fn check_places(view: &dyn View, entries: &BTreeMap<u64, Entry>) -> Result<(), String> {
    let mut names = BTreeMap::new();
    for row in &scan(view, Table::Name) {
        names.insert(row.0.clone(), value::<EntryId>(row)?);
    }
    let mut trash = BTreeMap::new();
    for row in &scan(view, Table::Trash) {
        let trashed: Trashed = value(row)?;
        let key = format::trash_key(trashed.collect_at, trashed.entry);
        ensure(key == row.0, || format!("{} is in the trash under another key", trashed.entry))?;
        trash.insert(row.0.clone(), trashed.entry);
    }
    for (id, entry) in entries {
        ensure(entry.id.raw() == *id, || format!("{entry} is under {id}"))?;
        let found = match &entry.place {
            Place::Root {} => (entry.id == EntryId::ROOT && !entry.is_file()).then_some(entry.id),
            Place::In { parent, name } => {
                let is_directory = entries.get(&parent.raw()).is_some_and(|parent| !parent.is_file());
                names.remove(&format::name_key(*parent, name)).filter(|_| is_directory)
            }
            Place::Trash { collect_at } => trash.remove(&format::trash_key(*collect_at, entry.id)),
        };
        ensure(found == Some(entry.id), || format!("{entry} is not at its place, but {found:?}"))?;
    }
    ensure(names.is_empty(), || format!("names without an entry: {names:?}"))?;
    ensure(trash.is_empty(), || format!("trash without an entry: {trash:?}"))
}

/// Nobody is cut off from the root and the trash.
fn check_reachable(entries: &BTreeMap<u64, Entry>) -> Result<(), String> {
    let mut children: BTreeMap<EntryId, Vec<EntryId>> = BTreeMap::new();
    let mut found = Vec::new();
    for entry in entries.values() {
        match &entry.place {
            Place::In { parent, .. } => children.entry(*parent).or_default().push(entry.id),
            Place::Root {} | Place::Trash { .. } => found.push(entry.id),
        }
    }
    ensure(entries.contains_key(&EntryId::ROOT.raw()), || "no root".to_owned())?;
    let mut count = 0;
    while let Some(id) = found.pop() {
        count += 1;
        found.extend(children.remove(&id).unwrap_or_default());
    }
    ensure(count == entries.len(), || format!("{} entries out of reach: {children:?}", entries.len() - count))
}

fn check_entry_counts(entries: &BTreeMap<u64, Entry>, counters: &Counters) -> Result<(), String> {
    let files = entries.values().filter(|entry| entry.is_file()).count() as u64;
    let directories = entries.len() as u64 - files;
    ensure((files, directories) == (counters.files, counters.directories), || {
        format!("{files} files and {directories} directories, but {counters:?}")
    })?;
    ensure(entries.keys().all(|id| *id < counters.next_entry.raw()), || {
        "an entry id is not drawn yet".to_owned()
    })
}

/// Each file has its chunks at 0 to its count. Returns how many files have each chunk.
fn check_file_chunks(
    view: &dyn View,
    entries: &BTreeMap<u64, Entry>,
) -> Result<BTreeMap<ChunkHandle, u32>, String> {
    let mut rows = BTreeMap::new();
    let mut references = BTreeMap::new();
    for row in &scan(view, Table::FileChunk) {
        let handle: ChunkHandle = value(row)?;
        rows.insert(row.0.clone(), handle);
        *references.entry(handle).or_insert(0) += 1;
    }
    for entry in entries.values() {
        ensure(entry.is_file() || (entry.chunk_count, entry.replication) == (0, 0), || {
            format!("{entry} has chunks or replicas")
        })?;
        ensure(!entry.is_file() || (1..=REPLICATION_MAX).contains(&entry.replication), || {
            format!("{entry} wants {} replicas", entry.replication)
        })?;
        for index in 0..entry.chunk_count {
            let key = format::file_chunk_key(entry.id, gfs_proto::id::ChunkIndex::from_raw(index));
            ensure(rows.remove(&key).is_some(), || format!("{entry} has no chunk {index}"))?;
        }
    }
    ensure(rows.is_empty(), || format!("chunks past the end of a file: {rows:?}"))?;
    Ok(references)
}

/// A snapshot that is being built is out of sight, stands where it says, and nothing else is hidden like it.
fn check_build(view: &dyn View, entries: &BTreeMap<u64, Entry>) -> Result<(), String> {
    let build = read::build(view).map_err(|error| error.to_string())?;
    let never = UnixMs::from_raw(u64::MAX);
    let hidden = |entry: &&Entry| entry.place == Place::Trash { collect_at: never };
    let hidden: Vec<EntryId> = entries.values().filter(hidden).map(|entry| entry.id).collect();
    ensure(hidden == build.iter().map(|build| build.root).collect::<Vec<_>>(), || {
        format!("hidden for ever: {hidden:?}, but the snapshot is {build:?}")
    })?;
    let Some(build) = build else { return Ok(()) };
    let mut at = build.copy;
    while at != build.root {
        let above = entries.get(&at.raw()).map(|entry| &entry.place);
        let Some(Place::In { parent, .. }) = above else {
            return Err(format!("{build:?} copies to somewhere else"));
        };
        at = *parent;
    }
    Ok(())
}

/// A copy's origin is there, and counts as one who has it.
fn check_origins(view: &dyn View, references: &mut BTreeMap<ChunkHandle, u32>) -> Result<(), String> {
    for row in &view.scan(Table::System, &[system::ORIGINS], &[system::ORIGINS + 1], usize::MAX) {
        let origin: Origin = value(row)?;
        let copy = row.0.get(1..).and_then(|copy| copy.try_into().ok()).map(u64::from_be_bytes);
        let copy = read::chunk(view, ChunkHandle::from_raw(copy.unwrap_or_default()));
        let old = read::chunk(view, origin.handle);
        let (Ok(copy), Ok(old)) = (copy, old) else {
            return Err(format!("{:02x?}: {origin:?}: not there", row.0));
        };
        ensure(old.version >= origin.version, || format!("{origin:?} is of the future"))?;
        ensure(copy.lease.is_none(), || format!("{copy} is written before its origin is over"))?;
        *references.entry(old.handle).or_insert(0) += 1;
    }
    Ok(())
}

fn check_chunks(
    view: &dyn View,
    references: &BTreeMap<ChunkHandle, u32>,
    counters: &Counters,
) -> Result<(), String> {
    let chunks = by_id::<Chunk>(view, Table::Chunk)?;
    ensure(chunks.len() as u64 == counters.chunks, || format!("{} chunks, but {counters:?}", chunks.len()))?;
    ensure(chunks.keys().all(|handle| *handle < counters.next_chunk.raw()), || {
        "a handle is not drawn yet".to_owned()
    })?;
    let mut pending = BTreeSet::new();
    for (handle, chunk) in &chunks {
        ensure(chunk.handle.raw() == *handle, || format!("{chunk} is under {handle}"))?;
        let counted = references.get(&chunk.handle).copied().unwrap_or(0);
        ensure(chunk.references == counted && counted > 0, || format!("{chunk} has {counted} references"))?;
        let writer = chunk.lease.is_some() || chunk.pending.as_ref().is_some_and(|grant| grant.writer);
        // Guard snapshot_under_lease.
        ensure(!writer || counted == 1, || format!("{chunk} is shared and can be written"))?;
        check_grant(view, chunk).map_err(|broken| format!("{chunk}: {broken}"))?;
        if chunk.pending.is_some() {
            pending.insert(system::pending(chunk.handle));
        }
    }
    for handle in references.keys() {
        ensure(chunks.contains_key(&handle.raw()), || format!("a file has {handle}, which is not there"))?;
    }
    let listed = view.scan(Table::System, &[system::PENDING], &[system::PENDING + 1], usize::MAX);
    let listed: BTreeSet<_> = listed.into_iter().map(|(key, _)| key).collect();
    ensure(listed == pending, || format!("pending grants {pending:?}, but the list says {listed:?}"))
}

/// A decision is about the pending grant, which is to the accepted member alone.
fn check_accepted(view: &dyn View) -> Result<(), String> {
    for row in &view.scan(Table::System, &[system::ACCEPTED], &[system::ACCEPTED + 1], usize::MAX) {
        let accepted: Accepted = value(row)?;
        let handle = row.0.get(1..).and_then(|handle| handle.try_into().ok()).map(u64::from_be_bytes);
        let chunk = read::chunk(view, ChunkHandle::from_raw(handle.unwrap_or_default()));
        let pending = chunk.ok().and_then(|chunk| chunk.pending);
        let fits = pending.is_some_and(|pending| {
            let alone = pending.members == [accepted.server] && pending.base == pending.members;
            pending.version == accepted.version && alone && !pending.writer && !pending.fresh
        });
        ensure(fits, || format!("{accepted:?} is about no pending grant of {handle:?}"))?;
    }
    Ok(())
}

/// The rules of versions, members, grants and leases.
fn check_grant(view: &dyn View, chunk: &Chunk) -> Result<(), String> {
    let is_set = |servers: &[ServerId]| {
        let distinct: BTreeSet<_> = servers.iter().collect();
        distinct.len() == servers.len() && servers.len() <= REPLICATION_MAX as usize
    };
    let is_known = |server: &ServerId| read::server(view, *server).is_ok_and(|found| found.is_some());
    let never = chunk.confirmed == ChunkVersion::NONE;
    ensure(chunk.confirmed <= chunk.version && chunk.version > ChunkVersion::NONE, || "bad version".into())?;
    ensure(chunk.pending.is_some() == (chunk.version != chunk.confirmed), || "pending or not?".into())?;
    ensure(chunk.members.is_empty() == never, || "members are those of the confirmed grant".into())?;
    ensure(is_set(&chunk.members) && chunk.members.iter().all(is_known), || "bad members".into())?;
    if let Some(grant) = &chunk.pending {
        let within = |some: &[ServerId], all: &[ServerId]| some.iter().all(|server| all.contains(server));
        ensure(grant.version == chunk.version, || "the pending grant has another version".into())?;
        ensure(grant.fresh == never, || "fresh or not?".into())?;
        ensure(is_set(&grant.members) && grant.members.iter().all(is_known), || {
            "bad pending members".into()
        })?;
        ensure(is_set(&grant.base) && within(&grant.base, &grant.members), || "bad base".into())?;
        ensure(never || within(&grant.base, &chunk.members), || "a base that is not confirmed".into())?;
        ensure(grant.base.contains(&grant.primary), || "a primary that is not of the base".into())?;
        ensure(chunk.lease.is_none(), || "a lease beside a pending grant".into())?;
    }
    let leased = chunk.lease.as_ref().is_none_or(|lease| chunk.members.contains(&lease.primary));
    ensure(leased, || "a lease of no member".into())
}

/// Sessions, their ends, nonces and replies belong together.
fn check_sessions(view: &dyn View, counters: &Counters) -> Result<(), String> {
    let mut sessions: BTreeMap<ClientId, Session> = BTreeMap::new();
    let mut replies: BTreeMap<ClientId, u32> = BTreeMap::new();
    for row in &scan(view, Table::Session) {
        if row.0.len() == 8 {
            let session: Session = value(row)?;
            ensure(row.0 == format::session_key(session.client), || format!("{session:?}: bad key"))?;
            sessions.insert(session.client, session);
            continue;
        }
        let _: StoredReply = value(row)?;
        let owner = sessions.values().next_back().filter(|owner| {
            let first = format::reply_key(owner.client, owner.first_unacked);
            (first..format::replies_end(owner.client)).contains(&row.0)
        });
        let owner = owner.ok_or_else(|| format!("a reply of no session: {:02x?}", row.0))?;
        *replies.entry(owner.client).or_default() += 1;
    }
    ensure(replies.values().all(|count| *count <= WINDOW_REQUESTS), || "too many replies".to_owned())?;
    ensure(sessions.len() as u64 == counters.sessions, || format!("{counters:?}: wrong sessions"))?;
    let ends = view.scan(Table::System, &[system::SESSION_ENDS], &[system::SESSION_ENDS + 1], usize::MAX);
    let ends: BTreeSet<_> = ends.into_iter().map(|(key, _)| key).collect();
    let wanted = sessions.values().map(|session| system::session_end(session.expires_at, session.client));
    ensure(ends == wanted.collect(), || "the list of ends is not that of the sessions".to_owned())?;
    for session in sessions.values() {
        let found = read::row(view, Table::System, &system::nonce(session.nonce));
        ensure(found == Ok(Some(session.client)), || format!("{session:?} has lost its nonce"))?;
    }
    Ok(())
}

/// Every server and master is found by its identity, and only by it.
fn check_members(view: &dyn View, counters: &Counters) -> Result<(), String> {
    let servers: Vec<Server> = read::servers(view).map_err(|error| error.to_string())?;
    for server in &servers {
        ensure(server.server < counters.next_server, || format!("{server:?} is not drawn yet"))?;
        let found = read::row::<ServerId>(view, Table::System, &system::server_uuid(server.uuid));
        ensure(found == Ok(Some(server.server)), || format!("{server:?} has lost its identity"))?;
    }
    let masters: Vec<Master> = read::masters(view).map_err(|error| error.to_string())?;
    for master in &masters {
        let found = read::row::<MasterId>(view, Table::System, &system::master_uuid(master.uuid));
        ensure(found == Ok(Some(master.master)), || format!("{master:?} has lost its identity"))?;
    }
    let identities = view.scan(Table::System, &[0x20], &[0x22], usize::MAX).len();
    ensure(identities == servers.len() + masters.len(), || "identities of nobody".to_owned())
}
