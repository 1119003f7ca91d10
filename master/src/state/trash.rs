//! Deleted entries: hidden under their id until a date, then collected in bounded steps (GFS §4.4).
//!
//! The id is the hidden name, so two deletions never clash (traps T18). A deleted directory keeps all that is
//! below it as it was; deleted files keep their chunks.

use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::id::{ChunkIndex, EntryId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use crate::state::build;
use crate::state::change::Change;
use crate::state::codec::decode;
use crate::state::format::{self, Entry, Place, Trashed};
use crate::state::namespace::Spot;
use crate::state::read;
use crate::state::reply::{Applied, Rejected};
use crate::state::snapshot;
use crate::state::table::Table;

/// Most steps of one command, so that no command holds up the log.
const STEPS_MAX: u32 = 4096;

/// Moves an entry from its directory into the trash.
pub(crate) fn bury(change: &mut Change<'_>, mut entry: Entry, path: &FilePath) -> Result<Applied, Rejected> {
    let trash_ms = read::settings(change.view())?.trash_ms;
    let deleted_at = change.now();
    // The very end of time is the date of what is hidden while it is being built.
    let last = UnixMs::from_raw(u64::MAX - 1);
    let collect_at = deleted_at.plus(Duration::from_millis(trash_ms)).min(last);
    change.take_out(&entry);
    let trashed = Trashed { entry: entry.id, path: path.to_string(), deleted_at, collect_at };
    change.put_trashed(&mut entry, &trashed);
    Ok(Applied::Deleted { entry: entry.id, collect_at })
}

/// The entry and its row, if it is in the trash by itself.
fn find(change: &Change<'_>, id: EntryId) -> Result<(Entry, Trashed), Rejected> {
    let entry = match read::entry(change.view(), id) {
        Err(Rejected::NoSuchEntry { entry }) => return Err(Rejected::NotInTrash { entry }),
        found => found?,
    };
    let Place::Trash { collect_at } = entry.place else {
        return Err(Rejected::NotInTrash { entry: id });
    };
    let trashed = read::row(change.view(), Table::Trash, &format::trash_key(collect_at, id))?;
    let trashed: Trashed = trashed.ok_or(Rejected::Damaged {})?;
    // Nobody deleted it: part of a tree under collection, or a snapshot that is being built.
    if trashed.path.is_empty() {
        return Err(Rejected::NotInTrash { entry: id });
    }
    Ok((entry, trashed))
}

/// Takes an entry out of the trash. Past its date it may be half collected, so then it is gone.
pub(crate) fn undelete(change: &mut Change<'_>, id: EntryId, target: &FilePath) -> Result<Applied, Rejected> {
    let (mut entry, trashed) = find(change, id)?;
    // Mutant undelete_collected: what may be half collected comes back.
    if trashed.collect_at <= change.now() && !fault::mutant("undelete_collected") {
        return Err(Rejected::NotInTrash { entry: id });
    }
    let spot = Spot::find_free(change, target)?;
    build::check_names(change.view(), spot.parent)?;
    change.take_out(&entry);
    change.put_in(&mut entry, spot.parent, spot.name);
    Ok(Applied::Entry { entry })
}

/// Lets an entry be collected at once.
pub(crate) fn expedite(change: &mut Change<'_>, id: EntryId) -> Result<Applied, Rejected> {
    let (mut entry, mut trashed) = find(change, id)?;
    change.take_out(&entry);
    trashed.collect_at = trashed.collect_at.min(change.now());
    change.put_trashed(&mut entry, &trashed);
    Ok(Applied::Deleted { entry: id, collect_at: trashed.collect_at })
}

/// Removes what is past its date, at most `limit` rows' worth.
pub(crate) fn collect(change: &mut Change<'_>, limit: u32) -> Result<Applied, Rejected> {
    let limit = limit.clamp(1, STEPS_MAX);
    let mut left = limit;
    while left > 0 {
        let Some(trashed) = first_due(change)? else { break };
        let entry = read::entry(change.view(), trashed.entry).map_err(|_| Rejected::Damaged {})?;
        let taken = if entry.is_file() {
            collect_file(change, entry, left)?
        } else {
            collect_directory(change, &entry, &trashed, left)?
        };
        left = left.saturating_sub(taken);
    }
    let more = first_due(change)?.is_some();
    Ok(Applied::Collected { steps: limit - left, more })
}

/// The entry with the earliest date, if that has passed.
fn first_due(change: &Change<'_>) -> Result<Option<Trashed>, Rejected> {
    let due = change.view().scan(Table::Trash, &[], &format::trash_after(change.now()), 1);
    due.first().map(|(_, row)| decode(row).map_err(|_| Rejected::Damaged {})).transpose()
}

/// Removes chunks from the end of a file, then the file. Returns the steps taken, at least one.
fn collect_file(change: &mut Change<'_>, mut file: Entry, limit: u32) -> Result<u32, Rejected> {
    let keep = file.chunk_count.saturating_sub(limit);
    let dropped = file.chunk_count - keep;
    for index in (keep..file.chunk_count).map(ChunkIndex::from_raw) {
        let handle = read::file_chunk(change.view(), file.id, index)?;
        change.remove_file_chunk(file.id, index);
        snapshot::drop_reference(change, handle)?;
    }
    if dropped < limit {
        change.take_out(&file);
        change.remove_entry(&file)?;
        return Ok(dropped + 1);
    }
    file.chunk_count = keep;
    change.put_entry(&file);
    Ok(dropped)
}

/// Moves what is in a directory into the trash piece by piece, each piece as due as the directory, then
/// removes the directory. Returns the steps taken, at least one.
fn collect_directory(
    change: &mut Change<'_>,
    directory: &Entry,
    trashed: &Trashed,
    limit: u32,
) -> Result<u32, Rejected> {
    let (from, until) = (format::name_key(directory.id, ""), format::names_end(directory.id));
    let names = change.view().scan(Table::Name, &from, &until, limit as usize);
    for (_, id) in &names {
        let id: EntryId = decode(id).map_err(|_| Rejected::Damaged {})?;
        let mut entry = read::entry(change.view(), id).map_err(|_| Rejected::Damaged {})?;
        change.take_out(&entry);
        let part = Trashed { entry: id, path: String::new(), ..trashed.clone() };
        change.put_trashed(&mut entry, &part);
    }
    let moved = u32::try_from(names.len()).unwrap_or(limit);
    if moved < limit {
        change.take_out(directory);
        change.remove_entry(directory)?;
        return Ok(moved + 1);
    }
    Ok(moved)
}
