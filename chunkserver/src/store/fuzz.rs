//! Fuzz targets of the store: its formats, and whole disks that were damaged (`fuzz/src/lib.rs` says how they are run).

mod image;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gfs_fuzz::Dice;
use gfs_proto::size::BLOCK_BYTES;

use super::block;
use super::disk::{chunk_directory, chunk_file_name};
use super::files::memory::MemoryFiles;
use super::files::{Files, Open};
use super::format::{PartHead, Record, TABLE_HEADER_BYTES, TableEntry, TableHeader, parse_part, put_part};
use super::identity::IdentityFile;
use super::recover::{Opening, Recovered};
use super::segment::{Replay, Segment, segment_path};
use image::{Image, images, repaired};

/// Bytes of the machine that a damaged disk is recovered on.
const DISK_BYTES: u64 = 4 << 20;
/// Bytes of a segment of the target `segment`.
const SEGMENT_BYTES: u32 = 16 * 1024;
/// The life whose records count in the target `segment`.
const LIFE: u64 = 7;

/// Records, tables and identities: what is read is written as the same, and nothing panics, whatever the checksum covers.
pub(crate) fn log_record(data: &[u8]) {
    if let Some(record) = Record::decode(&mut &data[..]) {
        assert_eq!(Record::decode(&mut &record.encode()[..]), Some(record));
    }
    let mut entry = Vec::with_capacity(8 + data.len());
    entry.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
    entry.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    entry.extend_from_slice(data);
    for bytes in [data, &entry] {
        if let Some(entry) = TableEntry::decode(&mut &bytes[..]) {
            let mut again = Vec::new();
            entry.encode(&mut again);
            assert_eq!(TableEntry::decode(&mut &again[..]), Some(entry));
        }
    }
    let mut header = data.to_vec();
    header.resize(TABLE_HEADER_BYTES, 0);
    for header in [header.clone(), repaired("table-1", header)] {
        if let Ok(header) = TableHeader::decode(&header) {
            assert_eq!(TableHeader::decode(&header.encode()), Ok(header));
        }
    }
    if let Some(head) = parse_part(data) {
        let payload = &data[super::format::HEAD_BYTES..][..head.length as usize];
        let mut again = Vec::new();
        put_part(&mut again, head, [payload, &[]]);
        assert_eq!(parse_part(&again), Some(head));
    }
    let place = Path::new("/disk");
    let titled = [format!("gfs-chunkserver 2 {:08x}\n", crc32fast::hash(data)).as_bytes(), data].concat();
    for bytes in [data, &titled] {
        // Whatever it says, it is an identity or an error that names the directory.
        assert!(
            IdentityFile::parse(place, bytes).is_ok_and(|_| true) || !bytes.is_empty() || data.is_empty()
        );
    }
}

/// Parts that were put into segments, by sequence and index: whether each is the last, and its payload.
type Put = BTreeMap<(u64, u16), Vec<(bool, Vec<u8>)>>;

/// The records that count, out of segments with records of other lives, copies and anything else in them.
pub(crate) fn segment(data: &[u8]) {
    let mut dice = Dice::new(data);
    let files = MemoryFiles::new(DISK_BYTES);
    let from = 1 + dice.below(4);
    let mut put = Put::new();
    let mut segments = Vec::new();
    for index in 0..=dice.index(2) {
        let mut bytes = Vec::new();
        while !dice.is_empty() && bytes.len() < SEGMENT_BYTES as usize / 2 && dice.below(12) > 0 {
            some_part(&mut dice, &mut bytes, &mut put);
        }
        bytes.resize(SEGMENT_BYTES as usize, 0);
        let path = segment_path(Path::new("/disk"), index);
        let Ok(segment) = Segment::create(&files, path, SEGMENT_BYTES) else { return };
        assert!(segment.write(&bytes, 0).is_ok());
        segments.push(Arc::new(segment));
    }
    let Ok(Ok(mut replay)) = Replay::scan(segments, LIFE, from) else { return };
    let mut expected = from;
    while let Ok(Some((sequence, record))) = replay.next() {
        assert_eq!(sequence, expected, "the records have a gap");
        expected += 1;
        let mut parts = put.range((sequence, 0)..=(sequence, u16::MAX)).map(|(_, parts)| parts);
        if parts.clone().all(|copies| copies.len() == 1) {
            let mut whole = Vec::new();
            let ended = parts.find(|copies| {
                whole.extend_from_slice(&copies[0].1);
                copies[0].0
            });
            assert!(ended.is_some() && record == whole, "a record that nobody wrote");
        }
    }
    assert!(replay.beyond >= expected);
}

/// Adds a part of a record to a segment, or other bytes.
fn some_part(dice: &mut Dice<'_>, bytes: &mut Vec<u8>, put: &mut Put) {
    let life = if dice.below(4) > 0 { LIFE } else { dice.number() };
    let sequence = if dice.below(8) > 0 { dice.below(8) } else { dice.number() };
    let part = if dice.below(8) > 0 { dice.below(3) } else { dice.number() };
    let durable = if dice.below(4) > 0 { 0 } else { dice.number() };
    let mut payload = dice.bytes(64).to_vec();
    match dice.below(8) {
        // Bytes of a client that look like a record: nobody but the log knows its life.
        0 => put_part(
            &mut payload,
            PartHead { life: dice.raw() | 1 << 63, sequence, durable, length: 0, part: 0, last: true },
            [&[], &[]],
        ),
        1 => {
            bytes.extend_from_slice(&payload);
            bytes.resize(bytes.len().next_multiple_of(super::format::ALIGN), 0);
            return;
        }
        _ => {}
    }
    let head = PartHead {
        life,
        sequence,
        durable,
        length: u32::try_from(payload.len()).unwrap_or(0),
        part: u16::try_from(part & 0xffff).unwrap_or(0),
        last: dice.coin(),
    };
    if life == LIFE {
        put.entry((sequence, head.part)).or_default().push((head.last, payload.clone()));
    }
    put_part(bytes, head, [&payload, &[]]);
}

/// Disks that were damaged: an error, or the data of a moment of their history, never anything else. With checksums
/// that are made right again everything may come out, but nothing panics.
pub(crate) fn disk(data: &[u8]) {
    let mut dice = Dice::new(data);
    let images = images();
    let image = &images[dice.index(images.len())];
    let repairs = dice.below(4) == 0;
    let mut files = image.files.clone();
    for _ in 0..=dice.below(3) {
        damage(&mut dice, &mut files);
    }
    if repairs {
        for (name, bytes) in &mut files {
            *bytes = repaired(name, std::mem::take(bytes));
        }
    }
    let machine = MemoryFiles::new(DISK_BYTES);
    for (name, bytes) in &files {
        let file = machine.open(&Path::new("/disk").join(name), Open::Create);
        assert!(file.is_ok_and(|file| file.write_at(bytes, 0).is_ok()));
    }
    let opening = Opening {
        files: &machine,
        directory: Path::new("/disk"),
        segment_bytes: image::SEGMENT_BYTES,
        boot_id: if dice.below(4) > 0 { image.boot_id.clone() } else { "another boot".into() },
        life: 99,
    };
    if let Ok(recovered) = opening.recover() {
        examine(image, &machine, &recovered, repairs);
        // What recovery has written is a disk again, that says the same.
        let again = Opening { life: 100, boot_id: image.boot_id.clone(), ..opening }.recover();
        assert!(repairs || again.is_ok_and(|again| again.chunks.len() == recovered.chunks.len()));
    }
}

fn damage(dice: &mut Dice<'_>, files: &mut BTreeMap<String, Vec<u8>>) {
    let names: Vec<String> = files.keys().cloned().collect();
    let name = &names[dice.index(names.len())];
    let other = files[&names[dice.index(names.len())]].clone();
    let Some(bytes) = files.get_mut(name) else { return };
    // Most of a segment and a chunk is of little interest: mostly near the beginning.
    let near = if dice.below(4) > 0 { bytes.len().min(4096) } else { bytes.len() };
    let at = usize::try_from(dice.raw() & 0xffff_ffff).unwrap_or(0).checked_rem(near).unwrap_or(0);
    let span = (1 + dice.index(200)).min(bytes.len() - at);
    match dice.below(8) {
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        2 => bytes.truncate(at),
        3 => bytes[at..at + span].fill(0),
        4 => {
            let new = dice.bytes(span);
            bytes[at..at + new.len()].copy_from_slice(new);
        }
        5 => {
            let from = dice.index(other.len() + 1) & !7;
            let piece = &other[from.min(other.len())..(from + span).min(other.len())];
            let end = at + piece.len().min(bytes.len() - at);
            bytes[at..end].copy_from_slice(&piece[..end - at]);
        }
        6 => *bytes = other,
        7 => {
            files.remove(name);
        }
        _ => bytes.extend_from_slice(dice.bytes(100)),
    }
}

/// What a reader would get of the recovered chunks.
fn examine(image: &Image, machine: &MemoryFiles, recovered: &Recovered, repaired: bool) {
    for (handle, chunk) in &recovered.chunks {
        let state = chunk.state.lock();
        let content = &state.meta.content;
        let blocks = content.length.div_ceil(BLOCK_BYTES);
        assert_eq!(
            content.block_crcs.len(),
            blocks as usize,
            "{handle}: checksums that do not fit the length"
        );
        assert!(state.meta.generation < recovered.generation, "{handle}: its generation is given again");
        if state.meta.partial || state.meta.corrupt || repaired {
            continue;
        }
        let path = chunk_directory(Path::new("/disk")).join(chunk_file_name(*handle, state.meta.generation));
        let bytes = machine.bytes(&path).unwrap_or_default();
        let verified = (0..blocks).zip(&content.block_crcs).all(|(index, crc)| {
            let start = block::start_of(index) as usize;
            let end = start + block::block_length(index, content.length) as usize;
            bytes.get(start..end).is_some_and(|bytes| crc32fast::hash(bytes) == *crc)
        });
        let bytes = &bytes[..bytes.len().min(content.length as usize)];
        let known = image.history.get(&handle.raw());
        assert!(
            !verified || known.is_some_and(|states| states.iter().any(|state| state == bytes)),
            "{handle}: {} bytes that it never had",
            bytes.len()
        );
    }
}
