//! Deleted entries: hidden under their id until a date, then collected in bounded steps (GFS §4.4).
//!
//! The id is the hidden name, so two deletions never clash (traps T18). A deleted directory keeps all that is
//! below it as it was; deleted files keep their chunks.

use std::collections::BTreeMap;
use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::id::{ChunkIndex, EntryId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use crate::state::build;
use crate::state::change::Change;
use crate::state::codec::{DecodeError, decode};
use crate::state::format::{self, Entry, Place, Trashed};
use crate::state::namespace::Spot;
use crate::state::read;
use crate::state::reply::{Applied, Rejected};
use crate::state::snapshot;
use crate::state::table::{Row, Table};

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

/// What is past its date, by its key in the trash: the order in which it is collected.
type Due = BTreeMap<Vec<u8>, Trashed>;

/// Removes what is past its date, at most `limit` rows' worth.
pub(crate) fn collect(change: &mut Change<'_>, limit: u32) -> Result<Applied, Rejected> {
    let limit = limit.clamp(1, STEPS_MAX);
    // Read once, because each removal makes a later scan longer. Every entry takes a step at least, so one more than there
    // are steps is enough: what was not read comes after all that is taken, and whether more is due is known.
    let mut due = first_due(change, limit as usize + 1)?;
    let mut left = limit;
    while left > 0 {
        let Some((key, trashed)) = due.pop_first() else { break };
        let entry = read::entry(change.view(), trashed.entry).map_err(|_| Rejected::Damaged {})?;
        let taken = if entry.is_file() {
            collect_file(change, entry, left)?
        } else {
            let (taken, parts) = collect_directory(change, &entry, &trashed, left)?;
            due.extend(parts);
            taken
        };
        // The steps have come to their end before the entry has.
        if change.view().get(Table::Trash, &key).is_some() {
            due.insert(key, trashed);
        }
        left = left.saturating_sub(taken);
    }
    Ok(Applied::Collected { steps: limit - left, more: !due.is_empty() })
}

/// The entries with the earliest dates, as far as those have passed.
fn first_due(change: &Change<'_>, limit: usize) -> Result<Due, Rejected> {
    let rows = change.view().scan(Table::Trash, &[], &format::trash_after(change.now()), limit);
    let entry = |(key, row): Row| decode(&row).map(|trashed| (key, trashed));
    rows.into_iter().map(entry).collect::<Result<Due, DecodeError>>().map_err(|_| Rejected::Damaged {})
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
/// removes the directory. Returns the steps taken, at least one, and the pieces.
fn collect_directory(
    change: &mut Change<'_>,
    directory: &Entry,
    trashed: &Trashed,
    limit: u32,
) -> Result<(u32, Due), Rejected> {
    let (from, until) = (format::name_key(directory.id, ""), format::names_end(directory.id));
    let names = change.view().scan(Table::Name, &from, &until, limit as usize);
    let mut parts = Due::new();
    for (_, id) in &names {
        let id: EntryId = decode(id).map_err(|_| Rejected::Damaged {})?;
        let mut entry = read::entry(change.view(), id).map_err(|_| Rejected::Damaged {})?;
        change.take_out(&entry);
        let part = Trashed { entry: id, path: String::new(), ..trashed.clone() };
        change.put_trashed(&mut entry, &part);
        parts.insert(format::trash_key(part.collect_at, id), part);
    }
    let moved = u32::try_from(names.len()).unwrap_or(limit);
    if moved < limit {
        change.take_out(directory);
        change.remove_entry(directory)?;
        return Ok((moved + 1, parts));
    }
    Ok((moved, parts))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use gfs_proto::id::LogIndex;

    use super::*;
    use crate::state::tests::World;
    use crate::state::{Command, Memory, Proposal, View, apply};

    /// Counts the rows that are read.
    struct Counting<'a> {
        base: &'a Memory,
        rows: Cell<usize>,
    }

    impl View for Counting<'_> {
        fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
            self.rows.set(self.rows.get() + 1);
            self.base.get(table, key)
        }
        fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row> {
            let rows = self.base.scan(table, from, until, limit);
            self.rows.set(self.rows.get() + rows.len());
            rows
        }
    }

    /// Collects as the claim says it: before each step the first that is due is looked for anew.
    fn collect_one_by_one(change: &mut Change<'_>, limit: u32) -> Result<Applied, Rejected> {
        let mut left = limit;
        while left > 0 {
            let Some((_, trashed)) = first_due(change, 1)?.pop_first() else { break };
            let entry = read::entry(change.view(), trashed.entry)?;
            let taken = if entry.is_file() {
                collect_file(change, entry, left)?
            } else {
                collect_directory(change, &entry, &trashed, left)?.0
            };
            left = left.saturating_sub(taken);
        }
        let more = !first_due(change, 1)?.is_empty();
        Ok(Applied::Collected { steps: limit - left, more })
    }

    #[test]
    fn to_collect_a_thousand_files_takes_no_more_than_three_reads_for_each() {
        let mut memory = World::with_servers().memory;
        let propose = |memory: &mut Memory, number: u64, command: Command| {
            let proposal = Proposal::internal(UnixMs::from_raw(0), command);
            let outcome = apply(memory, LogIndex::from_raw(number), &proposal);
            assert!(outcome.reply.is_ok(), "{proposal}");
            memory.write(outcome.writes);
        };
        for number in 0..1000 {
            let path = FilePath::parse(&format!("/f{number}")).unwrap();
            let create = Command::Create { path: path.clone(), replication: 0 };
            propose(&mut memory, 10 + 2 * number, create);
            propose(&mut memory, 11 + 2 * number, Command::Delete { path, recursive: false });
        }
        let view = Counting { base: &memory, rows: Cell::new(0) };
        let proposal = Proposal::internal(UnixMs::from_raw(1_000_000), Command::CollectTrash { limit: 1000 });
        let outcome = apply(&view, LogIndex::from_raw(9999), &proposal);
        assert_eq!(outcome.reply, Ok(Applied::Collected { steps: 1000, more: false }));
        assert!(view.rows.get() <= 3000, "{} rows", view.rows.get());
    }

    #[test]
    fn what_is_collected_at_once_is_what_would_be_collected_one_by_one() {
        let mut world = World::with_servers();
        for line in [
            // In the trash its key is before that of the younger tree that it is part of.
            "create /old",
            "mkdir -p /t/a/b",
            "mv /old /t/old",
            "create /t/f",
            "create /t/a/g",
            "add e6 0 s1 s1",
            "add e6 1 s1 s1",
            "add e7 0 s2 s2",
            "create /x",
            "add e8 0 s1 s1",
            "rm -r /t",
            "rm /x",
            "now 500",
            "create /y",
            "create /z",
            "rm /y",
            "rm /z",
            "expedite e10",
            "now 900",
            "create /late",
            "rm /late",
        ] {
            let told = world.line(line);
            assert!(!told.contains("rejected"), "{line}: {told}");
        }
        let change = || Change::new(&world.memory, LogIndex::from_raw(99), UnixMs::from_raw(1500));
        for limit in 1..=20 {
            let (mut at_once, mut one_by_one) = (change(), change());
            let collected = collect(&mut at_once, limit);
            assert_eq!(collected, collect_one_by_one(&mut one_by_one, limit), "limit {limit}");
            assert_eq!(at_once.into_parts(), one_by_one.into_parts(), "limit {limit}");
            assert_eq!(collected, Ok(Applied::Collected { steps: limit.min(18), more: limit < 18 }));
        }
    }
}
