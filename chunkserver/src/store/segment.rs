//! Segments of a log, and finding the records that count in them after a crash.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gfs_proto::fault;

use super::error::{Error, Result};
use super::files::{File, Files, Open};
use super::format::{ALIGN, HEAD_BYTES, PartHead, parse_part, parse_part_of, part_bytes};

/// Bytes that a new segment is filled with at a time.
const FILL_BYTES: usize = 1 << 20;
/// Bytes that a replay reads ahead.
const WINDOW_BYTES: u64 = 1 << 20;

/// One file of the log: its length never changes once it is there.
pub(crate) struct Segment {
    path: PathBuf,
    file: Arc<dyn File>,
}

impl Segment {
    /// Makes a segment full of zeros, durably.
    pub(crate) fn create(files: &dyn Files, path: PathBuf, bytes: u32) -> io::Result<Self> {
        fault::try_at("store::segment::before_create")?;
        let file = files.open(&path, Open::Create)?;
        if let Err(error) = Self::fill(files, &path, &*file, bytes) {
            // It may hold the last room there was. Should that not be possible: it is too short to count.
            files.remove(&path).unwrap_or_default();
            return Err(error);
        }
        Ok(Self { path, file })
    }

    fn fill(files: &dyn Files, path: &Path, file: &dyn File, bytes: u32) -> io::Result<()> {
        let zeros = vec![0; FILL_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < u64::from(bytes) {
            let piece = zeros.len().min(usize::try_from(u64::from(bytes) - at).unwrap_or(usize::MAX));
            file.write_at(&zeros[..piece], at)?;
            at += piece as u64;
        }
        file.sync_all()?;
        if let Some(directory) = path.parent() {
            files.sync_directory(directory)?;
        }
        Ok(())
    }
    /// Opens a segment, which was not finished if it is too short; returns its length, too.
    pub(crate) fn open(files: &dyn Files, path: PathBuf) -> io::Result<(Self, u64)> {
        let file = files.open(&path, Open::Existing)?;
        let bytes = file.len()?;
        Ok((Self { path, file }, bytes))
    }
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        fault::try_at("store::log::before_write")
            .and_then(|()| self.file.write_at(bytes, offset))
            .map_err(|error| Error::failed(&self.path, "writing the log", &error))
    }
    /// Writes what can be read of a range, as it is.
    fn write_again(&self, start: u64, end: u64) -> Result<()> {
        let mut window = vec![0; usize::try_from(WINDOW_BYTES.min(end - start)).unwrap_or(0)];
        let mut at = start;
        while at < end {
            let piece = window.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = self
                .file
                .read_at(&mut window[..piece], at)
                .map_err(|error| Error::failed(&self.path, "reading the log", &error))?;
            if read == 0 {
                break;
            }
            self.write(&window[..read], at)?;
            at += read as u64;
        }
        Ok(())
    }
    pub(crate) fn sync(&self) -> Result<()> {
        // Mutant log_not_synced: acknowledged before it is on the disk.
        if fault::mutant("log_not_synced") {
            return Ok(());
        }
        fault::try_at("store::log::before_sync")
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Error::failed(&self.path, "syncing the log", &error))
    }
}

/// Where a part lies.
#[derive(Clone, Copy)]
struct Place {
    sequence: u64,
    part: u16,
    last: bool,
    segment: u32,
    offset: u64,
    length: u32,
}

/// The records of one life of a log from one sequence on, in order, without a gap.
pub(crate) struct Replay {
    segments: Vec<Arc<Segment>>,
    places: Vec<Place>,
    next: usize,
    /// Sequence after anything that was seen of this life, also of what is not part of the log.
    pub(crate) beyond: u64,
    /// Where the log ends there is nothing. Else a record may have been there that was durable, or was never finished.
    pub(crate) ends_clean: bool,
    window: Vec<u8>,
    window_at: (u32, u64),
}

/// The log is damaged before its end: a record that was durable is not there.
#[derive(Debug)]
pub(crate) struct BadMiddle;

impl Replay {
    /// Looks through the segments for what was written in this `life` from sequence `from` on.
    ///
    /// Every part carries its checksum, so what is found is whole. The records up to the first one that is not there
    /// are the log. Is there one after the gap that was written when the missing one was durable already, then
    /// the log is damaged, and not merely torn at its end (T32).
    pub(crate) fn scan(
        segments: Vec<Arc<Segment>>,
        life: u64,
        from: u64,
    ) -> io::Result<Result<Self, BadMiddle>> {
        let mut places = Vec::new();
        let (mut beyond, mut durable) = (from, 0);
        // The end of the newest record that is not needed any more: the log goes on there.
        let mut before = (0, (0, 0));
        for (index, segment) in (0u32..).zip(&segments) {
            let bytes = read_all(&*segment.file)?;
            parts(&bytes, life, |offset, head| {
                beyond = beyond.max(head.sequence + 1);
                if head.sequence < from && head.last && head.sequence >= before.0 {
                    before = (head.sequence, (index, offset + part_bytes(head.length as usize) as u64));
                }
                if head.sequence >= from {
                    durable = durable.max(head.durable);
                    let PartHead { sequence, part, last, length, .. } = head;
                    places.push(Place { sequence, part, last, segment: index, offset, length });
                }
            });
        }
        places.sort_unstable_by_key(|place| (place.sequence, place.part));
        let (mut expected, mut whole) = ((from, 0_u32), 0);
        for (index, place) in places.iter().enumerate() {
            let part = u32::from(place.part);
            if (place.sequence, part) != expected {
                break;
            }
            expected = if place.last { (place.sequence + 1, 0) } else { (place.sequence, part + 1) };
            if place.last {
                whole = index + 1;
            }
        }
        let end = places[..whole].last().map_or(from, |place| place.sequence + 1);
        if durable >= end {
            return Ok(Err(BadMiddle));
        }
        places.truncate(whole);
        let last = places.last();
        let last = last.map(|place| (place.segment, place.offset + part_bytes(place.length as usize) as u64));
        let ends_clean = ends_clean(&segments, last.unwrap_or(before.1))?;
        Ok(Ok(Self { segments, places, next: 0, beyond, ends_clean, window: Vec::new(), window_at: (0, 0) }))
    }

    /// Brings what counts to the disk. It is written again, since after a sync that failed its pages pass for written, and
    /// the next sync does nothing (T32). Where it was on the disk it stays the same, however this ends.
    pub(crate) fn make_durable(&self) -> Result<()> {
        for (index, segment) in (0u32..).zip(&self.segments) {
            let here = || self.places.iter().filter(|place| place.segment == index);
            let ends = here().map(|place| place.offset + part_bytes(place.length as usize) as u64);
            if let (Some(start), Some(end)) = (here().map(|place| place.offset).min(), ends.max()) {
                // With the head of zeros behind it.
                segment.write_again(start, end + HEAD_BYTES as u64)?;
            }
            segment.sync()?;
        }
        Ok(())
    }

    /// Starts again.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// The next record, with its sequence.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut record = Vec::new();
        while let Some(place) = self.places.get(self.next).copied() {
            self.next += 1;
            self.read(place, &mut record)?;
            if place.last {
                return Ok(Some((place.sequence, record)));
            }
        }
        Ok(None)
    }

    fn read(&mut self, place: Place, record: &mut Vec<u8>) -> io::Result<()> {
        let (segment, start) = self.window_at;
        let from = place.offset + HEAD_BYTES as u64;
        let end = from + u64::from(place.length);
        if segment != place.segment || from < start || end > start + self.window.len() as u64 {
            let bytes = WINDOW_BYTES.max(u64::from(place.length));
            self.window.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            let read = self.segments[place.segment as usize].file.read_at(&mut self.window, from)?;
            self.window.truncate(read);
            self.window_at = (place.segment, from);
        }
        let at = usize::try_from(from - self.window_at.1).unwrap_or(usize::MAX);
        let piece = self.window.get(at..at + place.length as usize);
        record.extend_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Whether no record of a log begins where the one before it ends: there, or in another segment if this one is full.
fn ends_clean(segments: &[Arc<Segment>], (index, end): (u32, u64)) -> io::Result<bool> {
    let nothing = |segment: &Segment, at: u64| -> io::Result<bool> {
        let bytes = read_all(&*segment.file)?;
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        // A whole record there is an older one: of another life, or that is not needed any more.
        Ok(rest.iter().take(HEAD_BYTES).all(|byte| *byte == 0) || parse_part(rest).is_some())
    };
    let Some(segment) = segments.get(index as usize) else { return Ok(true) };
    if end + (HEAD_BYTES + ALIGN) as u64 <= segment.file.len()? {
        return nothing(segment, end);
    }
    let others = segments.iter().zip(0..).filter(|(_, other)| *other != index);
    others.map(|(segment, _)| nothing(segment, 0)).try_fold(true, |all, one| Ok(all && one?))
}

/// Calls `found` for every part of a life in a segment. Whatever else is there may be data of clients that looks like a
/// part: they can't know the life, so that nothing of it is believed, nor even summed.
fn parts(bytes: &[u8], life: u64, mut found: impl FnMut(u64, PartHead)) {
    let mut at = 0;
    while at + HEAD_BYTES <= bytes.len() {
        if let Some(head) = parse_part_of(life, &bytes[at..]) {
            found(at as u64, head);
            at += part_bytes(head.length as usize);
        } else {
            at += ALIGN;
        }
    }
}

fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Name of the segment with this index.
pub(crate) fn segment_name(index: usize) -> String {
    format!("log-{index:02}")
}
/// Path of the segment with this index.
pub(crate) fn segment_path(directory: &Path, index: usize) -> PathBuf {
    directory.join(segment_name(index))
}
