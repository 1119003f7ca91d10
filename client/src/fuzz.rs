//! Fuzz targets of this crate (`fuzz/src/lib.rs` says how they are run).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gfs_fuzz::{Dice, Target};
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::time::Moment;
use gfs_proto::{Error, pb};
use prost::Message;

use crate::cache::{Cache, Lease, Location};
use crate::entry::{Chunk, Entry, Server};
use crate::lease::{self, Step};
use crate::record::{HEAD_BYTES, Record, RecordId, Scanner, encode};
use crate::trash::Trashed;

/// All targets of this crate.
pub const TARGETS: &[Target] = &[Target::new("records", records), Target::new("replies", replies)];

/// The scanner of records: the same in any pieces, each record once and only as somebody wrote it, no byte uncounted.
pub fn records(data: &[u8]) {
    let mut dice = Dice::new(data);
    let piece = 1 + dice.index(128);
    let position = dice.below(1 << 40);
    let mut file = Vec::new();
    while !dice.is_empty() {
        some_bytes(&mut dice, &mut file);
    }
    let whole = scan(&file, position, usize::MAX);
    assert_eq!(whole, scan(&file, position, piece), "the borders of pieces change what is read");
    let mut end = position;
    for record in &whole {
        assert!(
            record.position >= end
                && record.next == record.position + (HEAD_BYTES + record.payload.len()) as u64
        );
        end = record.next;
        let at = usize::try_from(record.position - position).unwrap_or(usize::MAX);
        let bytes = &file[at..at + HEAD_BYTES + record.payload.len()];
        assert_eq!(encode(record.id, &record.payload).as_deref(), Some(bytes), "a record that nobody wrote");
    }
    let mut ids: Vec<RecordId> = whole.iter().map(|record| record.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), whole.len(), "a record is yielded twice");
    // A reader resumes behind any record, and misses nothing.
    if let Some(record) = whole.get(dice.index(whole.len())) {
        let from = usize::try_from(record.next - position).unwrap_or(usize::MAX);
        let resumed = scan(&file[from..], record.next, piece);
        let after: Vec<&Record> = whole.iter().filter(|other| other.position >= record.next).collect();
        assert!(after.iter().all(|other| resumed.contains(other)), "a resumed reader misses a record");
    }
}

/// All records.
fn scan(file: &[u8], position: u64, piece: usize) -> Vec<Record> {
    let mut scanner = Scanner::new(position);
    let mut found = Vec::new();
    for piece in file.chunks(piece.min(file.len().max(1))) {
        scanner.feed(piece);
        found.extend(std::iter::from_fn(|| scanner.next_record()));
    }
    assert_eq!(scanner.wanted_position(), position + file.len() as u64, "bytes are lost");
    assert!(scanner.position() >= end_of(&found, position) && scanner.damaged_bytes() <= file.len() as u64);
    found
}

/// Where the last record ends.
fn end_of(records: &[Record], position: u64) -> u64 {
    records.last().map_or(position, |record| record.next)
}

/// A record, a damaged one, one in another, padding, or anything.
fn some_bytes(dice: &mut Dice<'_>, file: &mut Vec<u8>) {
    let id = RecordId { producer: dice.below(2), sequence: dice.below(16) };
    let record = |payload: &[u8]| encode(id, payload).unwrap_or_default();
    match dice.below(8) {
        0 | 1 => file.extend_from_slice(&record(dice.bytes(40))),
        2 => {
            let mut damaged = record(dice.bytes(40)).to_vec();
            let at = dice.index(damaged.len());
            damaged[at] ^= 1 << dice.below(8);
            file.extend_from_slice(&damaged);
        }
        3 => file.extend_from_slice(&record(&record(dice.bytes(20)))),
        4 => {
            let record = record(dice.bytes(40));
            file.extend_from_slice(&record[..dice.index(record.len())]);
        }
        5 => file.extend_from_slice(&b"GFSRGFS"[..dice.index(8)]),
        6 => file.resize(file.len() + dice.index(64), 0),
        _ => file.extend_from_slice(dice.bytes(60)),
    }
}

/// What masters answer: taken, or refused without harm; the cache keeps nothing that it should not.
pub fn replies(data: &[u8]) {
    let mut dice = Dice::new(data);
    let cache = Cache::new();
    let mut now = Moment::default();
    while !dice.is_empty() {
        now = now.plus(Duration::from_millis(dice.number()));
        let file = EntryId::from_raw(dice.below(3));
        let index =
            ChunkIndex::from_raw(if dice.below(4) > 0 { dice.byte().into() } else { dice.small_number() });
        match dice.below(6) {
            0 => {
                let reply = pb::LocateReply::decode(dice.bytes(200)).unwrap_or_default();
                for chunk in reply.chunks.into_iter().map(Chunk::from) {
                    located(&cache, (file, chunk.index), &Location::from(&chunk), now);
                }
            }
            1 => located(&cache, (file, index), &location(&mut dice), now),
            2 => leased(&mut dice, &cache, (file, index), now),
            3 => {
                cache.purge(file);
                assert!(
                    cache.location(file, index, now).is_none() && cache.lease(file, index, now).is_none()
                );
            }
            4 => {
                let bytes = dice.bytes(200);
                entry(pb::EntryReply::decode(bytes).unwrap_or_default().entry);
                let listed = pb::ListReply::decode(bytes).unwrap_or_default();
                listed.entries.into_iter().for_each(|listed| entry(Some(listed)));
                for trashed in pb::ListTrashReply::decode(bytes).unwrap_or_default().entries {
                    entry(trashed.entry.clone());
                    assert_eq!(Trashed::parse(trashed.clone()).is_ok(), Entry::parse(trashed.entry).is_ok());
                }
            }
            _ => {
                let error = Error::from_wire(dice.bytes(100));
                let primary = ServerId::from_raw(1);
                let step = lease::step_after(&error, primary);
                assert!(step != Step::Fail || error.retry() == gfs_proto::Retry::Never);
            }
        }
    }
}

/// A file or a directory, or refused.
fn entry(told: Option<pb::Entry>) {
    if let Ok(parsed) = Entry::parse(told.clone()) {
        assert_eq!(Some(parsed.id.raw()), told.map(|told| told.id));
        assert!(parsed.is_file() != parsed.is_directory());
    }
}

fn server(dice: &mut Dice<'_>) -> Server {
    let address = String::from_utf8_lossy(dice.bytes(12)).into_owned();
    let rack = String::from_utf8_lossy(dice.bytes(3)).into_owned();
    Server { id: ServerId::from_raw(dice.below(5)), address, rack }
}

fn location(dice: &mut Dice<'_>) -> Location {
    Location {
        handle: ChunkHandle::from_raw(dice.number()),
        version: ChunkVersion::from_raw(dice.below(4)),
        replicas: (0..dice.below(4)).map(|_| server(dice)).collect(),
    }
}

/// A location is believed for its time, and until it is dropped; one without a version or replicas never.
fn located(cache: &Cache, (file, index): (EntryId, ChunkIndex), location: &Location, now: Moment) {
    cache.put_location(file, index, location.clone(), now);
    if location.version != ChunkVersion::NONE && !location.replicas.is_empty() {
        assert_eq!(cache.location(file, index, now).as_deref(), Some(location));
        cache.drop_location(file, index, location);
        assert!(cache.location(file, index, now).is_none());
        cache.put_location(file, index, location.clone(), now);
    }
}

/// A lease as a master may tell it.
fn leased(dice: &mut Dice<'_>, cache: &Cache, (file, index): (EntryId, ChunkIndex), now: Moment) {
    let message = pb::Lease {
        handle: dice.number(),
        version: dice.number(),
        primary: dice.below(5),
        replicas: (0..dice.below(4)).map(|_| server(dice).into()).collect(),
        remaining_ms: dice.number(),
    };
    let message = pb::Lease::decode(Bytes::from(message.encode_to_vec())).unwrap_or_default();
    let life = Duration::from_millis(message.remaining_ms);
    let primary = message.primary;
    let Ok(Some(lease)) = Lease::parse(index, message).map(|lease| lease.map(Arc::new)) else { return };
    assert!(primary != 0 && lease.primary.server.raw() == primary);
    assert!(lease.replicas.iter().any(|server| server.id.raw() == primary));
    cache.put_lease(file, &lease, now, life);
    assert_eq!(cache.lease(file, index, now).is_some(), !life.is_zero());
    let host = String::from_utf8_lossy(dice.bytes(8)).into_owned();
    let mut chain = lease::chain_by_distance(&host, lease.replicas.clone());
    chain.sort_unstable();
    let mut replicas = lease.replicas.clone();
    replicas.sort_unstable();
    assert_eq!(chain, replicas, "a chain loses a member, or has one twice");
    cache.avoid(ServerId::from_raw(dice.below(5)), now);
    cache.avoided_last(&mut chain, now);
    chain.sort_unstable();
    assert_eq!(chain, replicas);
    if dice.coin() {
        cache.drop_lease(file, &lease);
        assert!(cache.lease(file, index, now).is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_holds_for_its_corpus_and_random_inputs() {
        TARGETS.iter().for_each(gfs_fuzz::check);
    }
}
