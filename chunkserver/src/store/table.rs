//! Tables: what is known of the chunks of a disk, as of a position in its log, so that the log before it can be used again.
//!
//! A full table has all chunks, those after it only what changed since. Each is written aside, synced, and renamed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gfs_proto::fault;
use gfs_proto::id::ChunkHandle;
use gfs_proto::work::Workers;

use super::chunk::Chunk;
use super::disk::Disk;
use super::error::{Error, OPEN_FILES, Result};
use super::files::{File, Files, Open, create_anew};
use super::format::{Meta, TABLE_HEADER_BYTES, TableEntry, TableHeader};

/// Bytes of entries that are written at a time.
const WRITE_BYTES: usize = 1 << 20;
/// Tables of changes may be this long together before a full one is written, or as long as that, if it is longer.
const CHANGES_BYTES_MIN: u64 = 1 << 20;

const TEMPORARY: &str = "table.new";
/// Files that are synced at a time.
const SYNCS: usize = 8;

/// Which tables of a disk there are.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) number: u64,
    pub(crate) life: u64,
    pub(crate) boot_id: String,
    pub(crate) full_bytes: u64,
    pub(crate) changes_bytes: u64,
}

/// Whether the store is being closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// It goes on.
    No,
    /// The log will hold nothing after this.
    Yes,
}

/// What the tables of a disk say.
pub(crate) struct Loaded {
    pub(crate) header: TableHeader,
    /// Chunks, each with the sequence that it is as of.
    pub(crate) chunks: BTreeMap<ChunkHandle, (u64, Meta)>,
}

fn table_name(number: u64) -> String {
    format!("table-{number:012}")
}
fn table_number(name: &str) -> Option<u64> {
    name.strip_prefix("table-")?.parse().ok()
}

/// Writes one table.
pub(crate) struct TableWriter<'a> {
    files: &'a dyn Files,
    directory: &'a Path,
    file: Arc<dyn File>,
    buffer: Vec<u8>,
    at: u64,
    entries: u64,
}

impl<'a> TableWriter<'a> {
    pub(crate) fn create(files: &'a dyn Files, directory: &'a Path) -> io::Result<Self> {
        let path = directory.join(TEMPORARY);
        let file = create_anew(files, &path)?;
        Ok(Self { files, directory, file, buffer: Vec::new(), at: TABLE_HEADER_BYTES as u64, entries: 0 })
    }
    pub(crate) fn put(&mut self, entry: &TableEntry) -> io::Result<()> {
        entry.encode(&mut self.buffer);
        self.entries += 1;
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
    /// Makes the table count; returns its size. `entries` of the header is filled in.
    pub(crate) fn finish(mut self, header: TableHeader) -> io::Result<u64> {
        self.flush()?;
        let header = TableHeader { entries: self.entries, ..header };
        self.file.write_at(&header.encode(), 0)?;
        fault::try_at("store::table::before_sync")?;
        // Mutant table_not_synced: the new table has its name before it has its bytes.
        if !fault::mutant("table_not_synced") {
            self.file.sync_all()?;
        }
        fault::try_at("store::table::before_rename")?;
        let path = self.directory.join(table_name(header.number));
        self.files.rename(&self.directory.join(TEMPORARY), &path)?;
        fault::try_at("store::table::renamed")?;
        self.files.sync_directory(self.directory)?;
        if header.full {
            remove_before(self.files, self.directory, header.number)?;
        }
        Ok(self.at)
    }
}

fn remove_before(files: &dyn Files, directory: &Path, number: u64) -> io::Result<()> {
    for name in files.list(directory)? {
        if table_number(&name).is_some_and(|other| other < number) {
            files.remove(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Reads the newest full table and those after it. `None` if there is no table at all.
pub(crate) fn load(files: &dyn Files, directory: &Path) -> Result<Option<Loaded>> {
    let failed = |error: &io::Error| Error::failed(directory, "reading the tables", error);
    let mut numbers: Vec<u64> = files
        .list(directory)
        .map_err(|error| failed(&error))?
        .iter()
        .filter_map(|name| table_number(name))
        .collect();
    numbers.sort_unstable();
    // From the newest backwards to a full one; what lies before that was only not removed yet.
    let mut tables = Vec::new();
    for number in numbers.into_iter().rev() {
        let path = directory.join(table_name(number));
        let (header, bytes) = read(files, &path)?;
        let expected = tables.last().is_none_or(|(newer, _): &(TableHeader, _)| newer.number == number + 1);
        if header.number != number || !expected {
            return Err(damaged(&path));
        }
        let full = header.full;
        tables.push((header, bytes));
        if full {
            return collect(directory, tables).map(Some);
        }
    }
    if tables.is_empty() { Ok(None) } else { Err(damaged(&directory.join("the full table"))) }
}

fn read(files: &dyn Files, path: &Path) -> Result<(TableHeader, Vec<u8>)> {
    let failed = |error: &io::Error| Error::failed(path, "reading a table", error);
    let file = files.open(path, Open::Existing).map_err(|error| failed(&error))?;
    let length = file.len().map_err(|error| failed(&error))?;
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged(path))?];
    let read = file.read_at(&mut bytes, 0).map_err(|error| failed(&error))?;
    bytes.truncate(read);
    let header = TableHeader::decode(&bytes).map_err(|found| match found {
        Some(found) => {
            Error::NewerFormat { disk: path.display().to_string(), found, known: super::format::FORMAT }
        }
        None => damaged(path),
    })?;
    Ok((header, bytes))
}

/// Puts the tables together; they come newest first.
fn collect(directory: &Path, tables: Vec<(TableHeader, Vec<u8>)>) -> Result<Loaded> {
    let mut chunks = BTreeMap::new();
    let mut newest = None;
    for (header, bytes) in tables.into_iter().rev() {
        let mut rest = &bytes[TABLE_HEADER_BYTES..];
        for _ in 0..header.entries {
            let entry = TableEntry::decode(&mut rest)
                .ok_or_else(|| damaged(&directory.join(table_name(header.number))))?;
            match entry.meta {
                Some(meta) => chunks.insert(entry.handle, (entry.as_of, meta)),
                None => chunks.remove(&entry.handle),
            };
        }
        if !rest.is_empty() {
            return Err(damaged(&directory.join(table_name(header.number))));
        }
        newest = Some(header);
    }
    newest.map(|header| Loaded { header, chunks }).ok_or_else(|| damaged(directory))
}

fn damaged(path: &Path) -> Error {
    let disk = path.parent().map(PathBuf::from).unwrap_or_default().display().to_string();
    let what = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::Damaged { disk, what }
}

/// Writes a table of what has changed, or of everything, and frees the log before it.
///
/// Every chunk is taken at its own moment, with the sequence of its newest record: a replay skips what is in it already.
pub(crate) fn checkpoint(disk: &Arc<Disk>, closing: Closing) -> Result<()> {
    let mut tables = disk.tables.lock();
    disk.check()?;
    // In this order: a record before the cut has made its chunk dirty before (`Disk::record`).
    let cut = disk.log.next_sequence();
    let dirty = std::mem::take(&mut *disk.dirty.lock());
    let full = closing == Closing::Yes || tables.changes_bytes > tables.full_bytes.max(CHANGES_BYTES_MIN);
    let result = write_table(disk, &tables, &dirty, Checkpoint { cut, full, closing });
    if result.is_err() {
        // It may hold the last room there was; it may not be there at all.
        disk.files.remove(&disk.directory.join(TEMPORARY)).unwrap_or_default();
    }
    match result {
        Ok(bytes) => {
            tables.number += 1;
            if full {
                (tables.full_bytes, tables.changes_bytes) = (bytes, 0);
            } else {
                tables.changes_bytes += bytes;
            }
            disk.table_bytes.store(tables.full_bytes + tables.changes_bytes, Ordering::Relaxed);
            disk.log.recycle(cut);
            Ok(())
        }
        Err(error) => {
            let mut now = disk.dirty.lock();
            for (handle, chunk) in dirty {
                now.entry(handle).or_insert(chunk);
            }
            drop(now);
            if matches!(error, Error::DiskFull { .. } | Error::Busy { what: OPEN_FILES }) {
                disk.log.no_space(error.clone());
            }
            Err(error)
        }
    }
}

#[derive(Clone, Copy)]
struct Checkpoint {
    cut: u64,
    full: bool,
    closing: Closing,
}

fn write_table(
    disk: &Arc<Disk>,
    tables: &Tables,
    dirty: &BTreeMap<ChunkHandle, Arc<Chunk>>,
    how: Checkpoint,
) -> Result<u64> {
    let failed = |error: io::Error| disk.fail_unless_full("writing a table", &error);
    let mut writer = TableWriter::create(&*disk.files, &disk.directory).map_err(failed)?;
    let chunks: Vec<Arc<Chunk>> = if how.full {
        disk.chunks.read().values().cloned().collect()
    } else {
        dirty.values().cloned().collect()
    };
    sync_files(disk, &chunks);
    for chunk in chunks {
        let entry = entry_of(disk, &chunk)?;
        if entry.meta.is_some() || !how.full {
            writer.put(&entry).map_err(failed)?;
        }
    }
    let header = TableHeader {
        number: tables.number + 1,
        life: tables.life,
        log_from: how.cut,
        generation: disk.generation.load(Ordering::Relaxed),
        entries: 0,
        full: how.full,
        clean: how.closing == Closing::Yes,
        boot_id: tables.boot_id.clone(),
    };
    // A sync may have failed since an entry was written, in whatever thread: what the log has is not to be given away then.
    disk.check()?;
    writer.finish(header).map_err(failed)
}

/// Syncs the files of many chunks, several at a time: one after the other they could take longer than the rest of the log
/// lasts. What fails has stopped the disk: so no chunk is synced when its turn comes, and no table is finished.
fn sync_files(disk: &Disk, chunks: &[Arc<Chunk>]) {
    let part = chunks.len().div_ceil(SYNCS);
    if part < SYNCS || matches!(disk.options.workers, Workers::Inline(_)) {
        return;
    }
    std::thread::scope(|threads| {
        for part in chunks.chunks(part) {
            let sync = move || part.iter().for_each(|chunk| drop(disk.sync_file(chunk, chunk.state.lock())));
            let started = std::thread::Builder::new().name("gfs-sync".into()).spawn_scoped(threads, sync);
            if let Err(error) = started {
                tracing::debug!(%error, "files are synced one after the other");
            }
        }
    });
}

/// A chunk with all that its entry says proven by its file.
fn entry_of(disk: &Disk, chunk: &Chunk) -> Result<TableEntry> {
    let mut state = chunk.state.lock();
    if state.removed {
        return Ok(TableEntry { handle: chunk.handle, as_of: state.last_sequence, meta: None });
    }
    disk.settle_all(chunk, &mut state)?;
    let as_of = state.last_sequence;
    let mut meta = state.meta.clone();
    let mut state = disk.sync_file(chunk, state)?;
    if state.last_sequence == as_of {
        // All that was promised from the page cache is on the disk now. The next such promise is logged anew.
        state.meta.promised = false;
        meta.promised = false;
    }
    Ok(TableEntry { handle: chunk.handle, as_of, meta: Some(meta) })
}

#[cfg(test)]
mod tests {
    use gfs_proto::random::SeededRandom;

    use super::*;
    use crate::store::files::memory::MemoryFiles;

    /// Found by the simulation, seed 9787.
    #[test]
    fn a_table_whose_renaming_a_power_cut_has_torn_outlives_the_writing_of_the_next_one() {
        let directory = Path::new("/disk");
        let write = |files: &MemoryFiles, number: u64| {
            let header = TableHeader {
                number,
                life: 1,
                log_from: 1,
                generation: 1,
                entries: 0,
                full: true,
                clean: false,
                boot_id: "boot".into(),
            };
            TableWriter::create(files, directory)?.finish(header)
        };
        let newest = |files: &MemoryFiles| load(files, directory).unwrap().unwrap().header.number;
        let mut torn = 0;
        for (first, seed, second) in (1..16)
            .flat_map(|first| (0..8).flat_map(move |seed| (1..16).map(move |second| (first, seed, second))))
        {
            let files = MemoryFiles::new(1 << 20);
            files.create_directory(directory).unwrap();
            write(&files, 1).unwrap();
            files.die_after(first);
            write(&files, 2).unwrap_or_default();
            files.cut_power(&SeededRandom::new(seed));
            let before = newest(&files);
            let names = files.list(directory).unwrap();
            torn += u32::from(names.contains(&table_name(2)) && names.contains(&TEMPORARY.to_owned()));
            files.die_after(second);
            write(&files, before + 1).unwrap_or_default();
            files.kill();
            assert!(newest(&files) >= before, "{first} {seed} {second}");
        }
        assert!(torn > 0, "no power cut has left two names");
    }
}
