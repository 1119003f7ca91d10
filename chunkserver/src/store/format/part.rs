//! Parts of log records: heads and checksums.

use bytes::{Buf, BufMut};

use super::{ALIGN, COUNT_MAX, HEAD_BYTES};

const LOG_MAGIC: [u8; 4] = *b"GLR1";

/// Head of one part of a log record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartHead {
    pub(crate) life: u64,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) length: u32,
    pub(crate) part: u16,
    pub(crate) last: bool,
}

/// Adds a part to a buffer; the payload comes in two pieces to save a copy.
pub(crate) fn put_part(out: &mut Vec<u8>, head: PartHead, payload: [&[u8]; 2]) {
    let start = out.len();
    out.put_slice(&LOG_MAGIC);
    out.put_u32_le(0);
    out.put_u64_le(head.life);
    out.put_u64_le(head.sequence);
    out.put_u64_le(head.durable);
    out.put_u32_le(head.length);
    out.put_u16_le(head.part);
    out.put_u16_le(u16::from(head.last));
    payload.iter().for_each(|piece| out.put_slice(piece));
    let crc = crc32fast::hash(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

/// The part of this life that starts here, if one does and its checksum matches.
pub(crate) fn parse_part_of(life: u64, bytes: &[u8]) -> Option<PartHead> {
    // Before the checksum, which may cover the whole rest of a segment.
    if bytes.get(8..16) == Some(&life.to_le_bytes()) { parse_part(bytes) } else { None }
}

/// The part that starts here, if one does and its checksum matches.
pub(crate) fn parse_part(bytes: &[u8]) -> Option<PartHead> {
    let mut head = bytes.get(..HEAD_BYTES)?;
    if !head.starts_with(&LOG_MAGIC) {
        return None;
    }
    head.advance(4);
    let crc = head.get_u32_le();
    let (life, sequence, durable) = (head.get_u64_le(), head.get_u64_le(), head.get_u64_le());
    let (length, part, last) = (head.get_u32_le(), head.get_u16_le(), head.get_u16_le());
    let end = HEAD_BYTES.checked_add(length as usize)?;
    if crc32fast::hash(bytes.get(8..end)?) != crc || sequence > COUNT_MAX {
        return None;
    }
    Some(PartHead { life, sequence, durable, length, part, last: last == 1 })
}

/// Bytes that a part takes in a segment.
pub(crate) fn part_bytes(payload: usize) -> usize {
    (HEAD_BYTES + payload).next_multiple_of(ALIGN)
}
