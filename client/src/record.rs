//! Self-validating records in a file of appends (GFS §2.7.2).
//!
//! ```text
//! offset  0 magic u32 "GFSR"     4 payload length u32
//!         8 producer u64        16 sequence u64
//!        24 payload crc u32     28 head crc u32 over bytes 0..28
//! then   payload
//! ```
//! Little endian; the checksums are CRC-32 (IEEE). A reader yields each record once: it passes over padding
//! (zeros) and damage, and over a record whose id it has yielded already. Record append stores an id once, so that a repeat can only
//! come from a producer that appended the same record anew.

mod reader;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use gfs_proto::fault;

pub use reader::RecordReader;

/// First four bytes of a record.
const MAGIC: [u8; 4] = *b"GFSR";
/// Bytes before the payload.
pub const HEAD_BYTES: usize = 32;
/// Largest payload: what fits a quarter of the largest chunk, and a data frame, along with its head.
pub const PAYLOAD_BYTES_MAX: usize = gfs_proto::size::PAYLOAD_BYTES_MAX as usize - HEAD_BYTES;
/// How many ids of yielded records a reader remembers.
const SEEN_MAX: usize = 65_536;

/// Names a record: who made it, and the how-manieth of that producer it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RecordId {
    /// Chosen at random by each producer.
    pub producer: u64,
    /// Counts the producer's records.
    pub sequence: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.producer, self.sequence)
    }
}

/// One record as read from a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Byte position of the record's head in the file.
    pub position: u64,
    /// Position right after the record: where a reader resumes.
    pub next: u64,
    /// Its id.
    pub id: RecordId,
    /// What the producer wrote.
    pub payload: Bytes,
}

/// The bytes to append for a record; `None` if the payload is over [`PAYLOAD_BYTES_MAX`].
pub fn encode(id: RecordId, payload: &[u8]) -> Option<Bytes> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= PAYLOAD_BYTES_MAX)?;
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(length);
    bytes.put_u64_le(id.producer);
    bytes.put_u64_le(id.sequence);
    bytes.put_u32_le(crc32fast::hash(payload));
    bytes.put_u32_le(crc32fast::hash(&bytes));
    bytes.put_slice(payload);
    Some(bytes.freeze())
}

/// A proven head.
struct Head {
    length: usize,
    id: RecordId,
    payload_crc: u32,
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let head: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
    // Mutant padding_yielded: zeros look like a record of nothing.
    if fault::mutant("padding_yielded") && *head == [0; HEAD_BYTES] {
        return Some(Head { length: 0, id: RecordId::default(), payload_crc: 0 });
    }
    let (proven, crc) = head.split_at(HEAD_BYTES - 4);
    if head[..4] != MAGIC || crc32fast::hash(proven).to_le_bytes() != *crc {
        return None;
    }
    let u32_at = |at: usize| head[at..].first_chunk().map(|raw| u32::from_le_bytes(*raw));
    let u64_at = |at: usize| head[at..].first_chunk().map(|raw| u64::from_le_bytes(*raw));
    let length = u32_at(4)? as usize;
    let id = RecordId { producer: u64_at(8)?, sequence: u64_at(16)? };
    (length <= PAYLOAD_BYTES_MAX).then_some(Head { length, id, payload_crc: u32_at(24)? })
}

/// Finds the records in the bytes of a file, which are fed to it in order. Does no I/O.
#[derive(Debug)]
pub struct Scanner {
    /// File position of the first byte of `buffer`.
    position: u64,
    buffer: BytesMut,
    skipped_bytes: u64,
    seen: BTreeSet<RecordId>,
    /// The same ids, the oldest first.
    seen_order: VecDeque<RecordId>,
}

impl Scanner {
    /// A scanner of the bytes from `position` on: 0, or [`Record::next`] of the last record read.
    pub fn new(position: u64) -> Self {
        Self {
            position,
            buffer: BytesMut::new(),
            skipped_bytes: 0,
            seen: BTreeSet::new(),
            seen_order: VecDeque::new(),
        }
    }

    /// Where the bytes go on that are to be fed next.
    pub fn wanted_position(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    /// Everything before it has been yielded or passed over: where a new scanner may go on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes passed over so far that were neither record nor padding.
    pub fn damaged_bytes(&self) -> u64 {
        self.skipped_bytes
    }

    /// Takes the bytes at [`Scanner::wanted_position`].
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record that is whole in what was fed; `None`: feed more. At the end of the file what is left
    /// without a record is no record (yet).
    pub fn next_record(&mut self) -> Option<Record> {
        loop {
            if self.buffer.len() < HEAD_BYTES {
                return None;
            }
            let Some(head) = parse_head(&self.buffer) else {
                self.pass_over_to_next_magic();
                continue;
            };
            let size = HEAD_BYTES + head.length;
            if self.buffer.len() < size {
                return None;
            }
            let position = self.position;
            self.position += size as u64;
            let mut record = self.buffer.split_to(size).freeze();
            let payload = record.split_off(HEAD_BYTES);
            // Mutant damaged_record_yielded: a true head is proof enough.
            if crc32fast::hash(&payload) != head.payload_crc && !fault::mutant("damaged_record_yielded") {
                // The head is proven, so the length is true: what the payload looks like inside is not asked.
                self.skipped_bytes += size as u64;
                continue;
            }
            if self.remember(head.id) {
                return Some(Record { position, next: self.position, id: head.id, payload });
            }
        }
    }

    /// Drops at least one byte, and all that can't be the start of a record.
    fn pass_over_to_next_magic(&mut self) {
        let rest = &self.buffer[1..];
        let found = rest.windows(MAGIC.len()).position(|window| window == MAGIC);
        // A magic may be cut in two by the end of the buffer.
        let keep = MAGIC.len() - 1;
        let count = 1 + found.unwrap_or(rest.len().saturating_sub(keep));
        let dropped = self.buffer.split_to(count);
        self.skipped_bytes += dropped.iter().filter(|byte| **byte != 0).count() as u64;
        self.position += count as u64;
    }

    /// Whether the id is new.
    fn remember(&mut self, id: RecordId) -> bool {
        if !self.seen.insert(id) {
            return false;
        }
        self.seen_order.push_back(id);
        if self.seen_order.len() > SEEN_MAX
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(sequence: u64) -> RecordId {
        RecordId { producer: 7, sequence }
    }
    fn scan(bytes: &[u8], piece: usize) -> Vec<(u64, Bytes)> {
        let mut scanner = Scanner::new(0);
        let mut records = Vec::new();
        for piece in bytes.chunks(piece) {
            scanner.feed(piece);
            records.extend(std::iter::from_fn(|| scanner.next_record()).map(|r| (r.id.sequence, r.payload)));
        }
        records
    }

    #[test]
    fn a_record_has_these_bytes() {
        let bytes = encode(RecordId { producer: 1, sequence: 2 }, b"ab").unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["4746535202000000010000000000000002000000000000006d48839efa91c4f86162"]
            .assert_eq(&hex);
    }

    #[test]
    fn a_record_that_was_appended_twice_is_yielded_once() {
        let record = encode(id(1), b"x").unwrap();
        assert_eq!(scan(&[&record[..], &record].concat(), 7).len(), 1);
    }

    #[test]
    fn a_record_inside_the_payload_of_a_damaged_one_is_not_yielded() {
        let inner = encode(id(2), b"inner").unwrap();
        let mut bytes = encode(id(1), &[&inner[..], b"tail"].concat()).unwrap().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes.extend(encode(id(3), b"after").unwrap());
        assert_eq!(scan(&bytes, 1), [(3, Bytes::from_static(b"after"))]);
    }

    #[test]
    fn a_reader_resumes_where_it_stopped() {
        let bytes = [encode(id(1), b"one").unwrap(), encode(id(2), b"two").unwrap()].concat();
        let mut scanner = Scanner::new(0);
        scanner.feed(&bytes);
        let first = scanner.next_record().unwrap();
        let mut resumed = Scanner::new(first.next);
        assert_eq!(resumed.wanted_position(), first.next);
        resumed.feed(&bytes[usize::try_from(first.next).unwrap()..]);
        assert_eq!(resumed.next_record().unwrap().id, id(2));
        assert_eq!(resumed.damaged_bytes(), 0);
    }

    proptest! {
        #[test]
        fn every_record_is_found_among_padding_and_damage(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            gaps in prop::collection::vec(0usize..100, 20), junk in any::<u8>(), piece in 1usize..500,
        ) {
            let mut bytes = Vec::new();
            for (sequence, payload) in payloads.iter().enumerate() {
                // Junk without the magic's first byte can't be taken for a head.
                bytes.extend(std::iter::repeat_n(if junk == MAGIC[0] { 0 } else { junk }, gaps[sequence]));
                bytes.extend(encode(id(sequence as u64), payload).unwrap());
            }
            let found = scan(&bytes, piece);
            prop_assert_eq!(found.len(), payloads.len());
            for ((sequence, payload), expected) in found.iter().zip(&payloads) {
                prop_assert_eq!(&payload[..], &expected[..], "record {}", sequence);
            }
        }

        #[test]
        fn garbage_yields_nothing_and_is_held_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut scanner = Scanner::new(0);
            scanner.feed(&bytes);
            prop_assert_eq!(scanner.next_record(), None);
            prop_assert!(scanner.buffer.len() < HEAD_BYTES);
        }
    }
}
