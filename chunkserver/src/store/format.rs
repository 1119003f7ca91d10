//! Bytes on the disk: log records, tables, and what both carry. All numbers are little endian.
//!
//! A log record's part (`HEAD_BYTES`, then the payload, padded to 8 bytes):
//! ```text
//!  0 magic "GLR1"   4 crc32 of all that follows, payload included
//!  8 life           which opening of the log wrote it
//! 16 sequence       of the record, counted up for ever
//! 24 durable        all records up to this one were durable when this one was written
//! 32 length         of the payload
//! 36 part           index of the part in its record, from 0
//! 38 last           1 if the record ends here
//! ```
//! Behind the last part of each write lies a head of zeros, unless the segment ends: the next write begins there. A log after
//! which anything else is found may have lost its last records, and they may have been durable.
//! A table (`table-NUMBER`): the header, then `entries` times `length u32, crc32 u32, body`.
//! ```text
//!  0 magic "GFSTABLE"   8 format   12 crc32 of the header, this field as 0
//! 16 number   24 life   32 log_from   40 generation   48 entries
//! 56 flags (1 full, 2 clean)   60 boot id length   64 boot id, padded with 0 to 128
//! ```

mod part;

use bytes::{Buf, BufMut};
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, RequestId, Serial};
use gfs_proto::size::{BLOCK_BYTES, CHUNK_BYTES_MAX};

use super::content::{Content, Outcome, REQUESTS_MAX};
use super::requests::Requests;

pub(crate) use part::{PartHead, parse_part, parse_part_of, part_bytes, put_part};

/// The format of a data directory; a higher one is refused. Format 1 had no `first_unacked` of changes and no `first kept` of
/// contents (records 1 and 3, table entries of kind 1): it is read, and what is written anew is of format 2.
pub(crate) const FORMAT: u32 = 2;
/// Bytes before the payload of a log record's part.
pub(crate) const HEAD_BYTES: usize = 40;
/// Log parts start at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Bytes of a table's header.
pub(crate) const TABLE_HEADER_BYTES: usize = 128;

/// Sequences, serials, generations and numbers of tables never get as far as this: a larger one is damage, and counting
/// on from a smaller one can't overflow.
pub(crate) const COUNT_MAX: u64 = u64::MAX >> 1;

const TABLE_MAGIC: [u8; 8] = *b"GFSTABLE";
const BOOT_ID_BYTES_MAX: usize = 64;

/// All that is known of a replica: what a table holds and the log changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) version: ChunkVersion,
    pub(crate) adopted: ChunkVersion,
    /// Names the chunk's file; a new one for each content that is not a change of the old.
    pub(crate) generation: u64,
    pub(crate) commit_mark: Option<Serial>,
    pub(crate) partial: bool,
    pub(crate) corrupt: bool,
    /// Somebody was promised content that a power cut may take.
    pub(crate) promised: bool,
    pub(crate) content: Content,
}

/// A mutation as the log has it; the data, unless `in_file`, follows the encoded record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Change {
    pub(crate) handle: ChunkHandle,
    pub(crate) generation: u64,
    pub(crate) serial: Serial,
    pub(crate) commit_mark: Option<Serial>,
    /// The data is in the chunk's file only: proven by a later [`Record::Synced`].
    pub(crate) in_file: bool,
    pub(crate) promised: bool,
    pub(crate) sealed: bool,
    /// Where the mutation lies, and how many bytes it has.
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// Bytes in the chunk afterwards.
    pub(crate) chunk_length: u32,
    /// Checksums of the blocks that change, from this one.
    pub(crate) first_block: u32,
    pub(crate) crcs: Vec<u32>,
    pub(crate) request: Option<RequestId>,
    /// With the request: its client has given up those below.
    pub(crate) first_unacked: u64,
}

/// One entry of the log. Numbers persisted: never reuse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// 8, formerly 1: the replica is this from now on.
    Full { handle: ChunkHandle, meta: Meta },
    /// 2: a base member stored a version.
    Version { handle: ChunkHandle, version: ChunkVersion },
    /// 9, formerly 3: a mutation was applied.
    Change(Change),
    /// 4: the file was synced with everything up to `through` in it.
    Synced { handle: ChunkHandle, through: Serial, promised: bool },
    /// 5: what is written lazily.
    Mark { handle: ChunkHandle, adopted: ChunkVersion, commit_mark: Option<Serial>, corrupt: bool },
    /// 6: the replica is gone.
    Delete { handle: ChunkHandle },
    /// 7: the sessions have expired.
    Forget { clients: Vec<ClientId> },
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::Full { handle, meta } => {
                out.put_u8(8);
                out.put_u64_le(handle.raw());
                put_meta(&mut out, meta);
            }
            Self::Version { handle, version } => {
                out.put_u8(2);
                out.put_u64_le(handle.raw());
                out.put_u64_le(version.raw());
            }
            Self::Change(change) => {
                out.put_u8(9);
                put_change(&mut out, change);
            }
            Self::Synced { handle, through, promised } => {
                out.put_u8(4);
                out.put_u64_le(handle.raw());
                out.put_u64_le(through.raw());
                out.put_u8(u8::from(*promised));
            }
            Self::Mark { handle, adopted, commit_mark, corrupt } => {
                out.put_u8(5);
                out.put_u64_le(handle.raw());
                out.put_u64_le(adopted.raw());
                out.put_u64_le(mark(*commit_mark));
                out.put_u8(u8::from(*corrupt));
            }
            Self::Delete { handle } => {
                out.put_u8(6);
                out.put_u64_le(handle.raw());
            }
            Self::Forget { clients } => {
                out.put_u8(7);
                put_count(&mut out, clients.len());
                clients.iter().for_each(|client| out.put_u64_le(client.raw()));
            }
        }
        out
    }

    /// Reads what [`Record::encode`] wrote; what is left of `bytes` is a change's data.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let handle = |from: &mut &[u8]| Some(ChunkHandle::from_raw(from.try_get_u64_le().ok()?));
        Some(match bytes.try_get_u8().ok()? {
            1 => Self::Full { handle: handle(bytes)?, meta: take_meta(bytes, Era::First)? },
            2 => Self::Version {
                handle: handle(bytes)?,
                version: ChunkVersion::from_raw(bytes.try_get_u64_le().ok()?),
            },
            3 => Self::Change(take_change(bytes, Era::First)?),
            4 => Self::Synced {
                handle: handle(bytes)?,
                through: Serial::from_raw(bytes.try_get_u64_le().ok()?),
                promised: take_flag(bytes)?,
            },
            5 => Self::Mark {
                handle: handle(bytes)?,
                adopted: ChunkVersion::from_raw(bytes.try_get_u64_le().ok()?),
                commit_mark: take_mark(bytes.try_get_u64_le().ok()?),
                corrupt: take_flag(bytes)?,
            },
            6 => Self::Delete { handle: handle(bytes)? },
            7 => {
                let count = take_count(bytes, 8)?;
                let clients = (0..count).map(|_| ClientId::from_raw(bytes.get_u64_le())).collect();
                Self::Forget { clients }
            }
            8 => Self::Full { handle: handle(bytes)?, meta: take_meta(bytes, Era::Now)? },
            9 => Self::Change(take_change(bytes, Era::Now)?),
            _ => return None,
        })
    }
}

/// Which format a part was written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Era {
    /// 1: nothing is known of requests that were given up.
    First,
    Now,
}

fn put_change(out: &mut Vec<u8>, change: &Change) {
    out.put_u64_le(change.handle.raw());
    out.put_u64_le(change.generation);
    out.put_u64_le(change.serial.raw());
    out.put_u64_le(mark(change.commit_mark));
    out.put_u8(flags([change.in_file, change.promised, change.sealed, change.request.is_some()]));
    for number in [change.offset, change.length, change.chunk_length, change.first_block] {
        out.put_u32_le(number);
    }
    if let Some(request) = change.request {
        out.put_u64_le(request.client.raw());
        out.put_u64_le(request.sequence);
        out.put_u64_le(change.first_unacked);
    }
    put_crcs(out, &change.crcs);
}

fn take_change(bytes: &mut &[u8], era: Era) -> Option<Change> {
    if bytes.remaining() < 4 * 8 + 1 + 4 * 4 {
        return None;
    }
    let mut change = Change {
        handle: ChunkHandle::from_raw(bytes.get_u64_le()),
        generation: bytes.get_u64_le(),
        serial: Serial::from_raw(bytes.get_u64_le()),
        commit_mark: take_mark(bytes.get_u64_le()),
        ..Change::default()
    };
    let [in_file, promised, sealed, has_request] = take_flags(bytes)?;
    (change.in_file, change.promised, change.sealed) = (in_file, promised, sealed);
    change.offset = bytes.get_u32_le();
    change.length = bytes.get_u32_le();
    change.chunk_length = bytes.get_u32_le();
    change.first_block = bytes.get_u32_le();
    if has_request {
        change.request = Some(take_request(bytes)?);
        if era == Era::Now {
            change.first_unacked = bytes.try_get_u64_le().ok()?;
        }
    }
    change.crcs = take_crcs(bytes)?;
    (change.generation.max(change.serial.raw()) <= COUNT_MAX).then_some(change)
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    let content = &meta.content;
    for number in [meta.version.raw(), meta.adopted.raw(), meta.generation, mark(meta.commit_mark)] {
        out.put_u64_le(number);
    }
    out.put_u8(flags([meta.partial, meta.corrupt, meta.promised, content.sealed]));
    out.put_u32_le(content.length);
    out.put_u64_le(content.serial.raw());
    put_crcs(out, &content.block_crcs);
    put_count(out, content.requests.outcomes().len());
    for (request, outcome) in content.requests.outcomes() {
        out.put_u64_le(request.client.raw());
        out.put_u64_le(request.sequence);
        out.put_u32_le(outcome.offset);
        out.put_u32_le(outcome.length);
    }
    put_count(out, content.requests.first_kept().len());
    for (client, sequence) in content.requests.first_kept() {
        out.put_u64_le(client.raw());
        out.put_u64_le(sequence);
    }
}

fn take_meta(bytes: &mut &[u8], era: Era) -> Option<Meta> {
    if bytes.remaining() < 4 * 8 + 1 + 4 + 8 {
        return None;
    }
    let version = ChunkVersion::from_raw(bytes.get_u64_le());
    let adopted = ChunkVersion::from_raw(bytes.get_u64_le());
    let generation = bytes.get_u64_le();
    let commit_mark = take_mark(bytes.get_u64_le());
    let [partial, corrupt, promised, sealed] = take_flags(bytes)?;
    let length = bytes.get_u32_le();
    let serial = Serial::from_raw(bytes.get_u64_le());
    let block_crcs = take_crcs(bytes)?;
    if generation.max(serial.raw()) > COUNT_MAX || block_crcs.len() != length.div_ceil(BLOCK_BYTES) as usize {
        return None;
    }
    let requests = take_requests(bytes, era)?;
    let content = Content { length, block_crcs, requests, sealed, serial };
    Some(Meta { version, adopted, generation, commit_mark, partial, corrupt, promised, content })
}

fn take_requests(bytes: &mut &[u8], era: Era) -> Option<Requests> {
    let count = take_count(bytes, 24)?;
    let mut outcomes = Vec::with_capacity(count);
    for _ in 0..count {
        let request = take_request(bytes)?;
        outcomes.push((request, Outcome { offset: bytes.get_u32_le(), length: bytes.get_u32_le() }));
    }
    let count = if era == Era::Now { take_count(bytes, 16)? } else { 0 };
    let mut first_kept = Vec::with_capacity(count);
    for _ in 0..count {
        first_kept.push((ClientId::from_raw(bytes.get_u64_le()), bytes.get_u64_le()));
    }
    let requests = Requests::new(outcomes, first_kept);
    (requests.len() <= REQUESTS_MAX).then_some(requests)
}

/// A commit mark as a number: 0 is none.
fn mark(serial: Option<Serial>) -> u64 {
    serial.map_or(0, |serial| serial.raw().saturating_add(1))
}
fn take_mark(raw: u64) -> Option<Serial> {
    raw.checked_sub(1).map(Serial::from_raw)
}
fn take_request(bytes: &mut &[u8]) -> Option<RequestId> {
    let client = ClientId::from_raw(bytes.try_get_u64_le().ok()?);
    Some(RequestId { client, sequence: bytes.try_get_u64_le().ok()? })
}
fn put_crcs(out: &mut Vec<u8>, crcs: &[u32]) {
    put_count(out, crcs.len());
    crcs.iter().for_each(|crc| out.put_u32_le(*crc));
}
fn take_crcs(bytes: &mut &[u8]) -> Option<Vec<u32>> {
    let count = take_count(bytes, 4)?;
    if count > (CHUNK_BYTES_MAX / BLOCK_BYTES) as usize {
        return None;
    }
    Some((0..count).map(|_| bytes.get_u32_le()).collect())
}
fn put_count(out: &mut Vec<u8>, count: usize) {
    // Every list of ours is bounded far below this.
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}
/// A count of things of this size that are surely there.
fn take_count(bytes: &mut &[u8], each: usize) -> Option<usize> {
    let count = bytes.try_get_u32_le().ok()? as usize;
    (count.checked_mul(each)? <= bytes.remaining()).then_some(count)
}
fn flags(bits: [bool; 4]) -> u8 {
    bits.iter().enumerate().map(|(i, bit)| u8::from(*bit) << i).sum()
}
fn take_flags(bytes: &mut &[u8]) -> Option<[bool; 4]> {
    let raw = bytes.try_get_u8().ok()?;
    (raw < 16).then(|| [0, 1, 2, 3].map(|i| raw >> i & 1 == 1))
}
fn take_flag(bytes: &mut &[u8]) -> Option<bool> {
    match bytes.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Header of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableHeader {
    /// Counts the tables of a disk.
    pub(crate) number: u64,
    /// The log's records that count carry this.
    pub(crate) life: u64,
    /// The first sequence that the tables do not cover.
    pub(crate) log_from: u64,
    /// The next unused generation.
    pub(crate) generation: u64,
    pub(crate) entries: u64,
    /// Has all chunks; else those that changed since the table before it.
    pub(crate) full: bool,
    /// The store was closed in order: the log holds nothing.
    pub(crate) clean: bool,
    pub(crate) boot_id: String,
}

impl TableHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TABLE_HEADER_BYTES);
        let boot_id = &self.boot_id.as_bytes()[..self.boot_id.len().min(BOOT_ID_BYTES_MAX)];
        out.put_slice(&TABLE_MAGIC);
        out.put_u32_le(FORMAT);
        out.put_u32_le(0);
        for number in [self.number, self.life, self.log_from, self.generation, self.entries] {
            out.put_u64_le(number);
        }
        out.put_u32_le(u32::from(self.full) | u32::from(self.clean) << 1);
        put_count(&mut out, boot_id.len());
        out.put_slice(boot_id);
        out.resize(TABLE_HEADER_BYTES, 0);
        let crc = crc32fast::hash(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header. An error is the format that was found, if that is the trouble.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Option<u32>> {
        let mut header: [u8; TABLE_HEADER_BYTES] =
            bytes.get(..TABLE_HEADER_BYTES).and_then(|bytes| bytes.try_into().ok()).ok_or(None)?;
        let crc = (&header[12..16]).get_u32_le();
        header[12..16].fill(0);
        if crc32fast::hash(&header) != crc || !header.starts_with(&TABLE_MAGIC) {
            return Err(None);
        }
        let mut rest = &header[8..];
        let format = rest.get_u32_le();
        if format > FORMAT {
            return Err(Some(format));
        }
        rest.advance(4);
        let [number, life, log_from, generation, entries] = [(); 5].map(|()| rest.get_u64_le());
        if number.max(log_from).max(generation) > COUNT_MAX {
            return Err(None);
        }
        let flags = rest.get_u32_le();
        let boot_id_length = rest.get_u32_le() as usize;
        let boot_id = rest.get(..boot_id_length).ok_or(None)?;
        let boot_id = String::from_utf8(boot_id.to_vec()).map_err(|_| None)?;
        let (full, clean) = (flags & 1 != 0, flags & 2 != 0);
        Ok(Self { number, life, log_from, generation, entries, full, clean, boot_id })
    }
}

/// One entry of a table: a chunk as of a sequence of the log, or that it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableEntry {
    pub(crate) handle: ChunkHandle,
    /// Records up to here are in it.
    pub(crate) as_of: u64,
    pub(crate) meta: Option<Meta>,
}

impl TableEntry {
    /// Adds the entry, with its length and checksum, to a buffer.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u64_le(0);
        out.put_u64_le(self.handle.raw());
        out.put_u64_le(self.as_of);
        // Persisted: 0 gone, 1 a chunk as of format 1, 2 a chunk.
        out.put_u8(if self.meta.is_some() { 2 } else { 0 });
        if let Some(meta) = &self.meta {
            put_meta(out, meta);
        }
        let body = &out[start + 8..];
        let (length, crc) = (u32::try_from(body.len()).unwrap_or(u32::MAX), crc32fast::hash(body));
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Takes an entry from the front, if its checksum matches.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let length = bytes.try_get_u32_le().ok()? as usize;
        let crc = bytes.try_get_u32_le().ok()?;
        let mut body = bytes.get(..length)?;
        if crc32fast::hash(body) != crc {
            return None;
        }
        bytes.advance(length);
        let handle = ChunkHandle::from_raw(body.try_get_u64_le().ok()?);
        let as_of = body.try_get_u64_le().ok()?;
        let meta = match body.try_get_u8().ok()? {
            0 => None,
            1 => Some(take_meta(&mut body, Era::First)?),
            2 => Some(take_meta(&mut body, Era::Now)?),
            _ => return None,
        };
        body.is_empty().then_some(Self { handle, as_of, meta })
    }
}

#[cfg(test)]
mod tests;
