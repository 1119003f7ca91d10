//! The store, tried as a whole on files that can crash.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, RequestId, Serial};
use gfs_proto::size::{BLOCK_BYTES, ChunkBytes};

use super::files::memory::MemoryFiles;
use super::files::{Files, RealFiles};
use super::*;
use gfs_proto::random::SeededRandom;

mod copy;
mod crash;
mod damage;
mod flips;
mod inline;
mod life;
mod sync;

/// A small store, so that segments are recycled often.
fn options() -> Options {
    Options {
        chunk_bytes_max: ChunkBytes::parse(512 * 1024).unwrap(),
        segment_bytes: 256 * 1024,
        segments: 4,
        headroom_bytes: 0,
        open_files: 3,
        add_directories: false,
        workers: Workers::Threads,
    }
}
fn directory() -> PathBuf {
    PathBuf::from("/disk")
}
fn open_in(files: &Arc<dyn Files>, seed: u64) -> Result<Store> {
    Store::open(&[directory()], options(), files.clone(), &SeededRandom::new(seed))
}
fn memory() -> (MemoryFiles, Arc<dyn Files>) {
    let memory = MemoryFiles::new(1 << 30);
    (memory.clone(), Arc::new(memory))
}
fn handle(raw: u64) -> ChunkHandle {
    ChunkHandle::from_raw(raw)
}
fn version(raw: u64) -> ChunkVersion {
    ChunkVersion::from_raw(raw)
}
fn request(sequence: u64) -> Option<RequestId> {
    Some(RequestId { client: ClientId::from_raw(7), sequence })
}
/// Bytes that look like nothing else.
fn pattern(length: usize, seed: u64) -> Bytes {
    let random = SeededRandom::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.bits64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
fn mutation(serial: u64, kind: MutationKind, data: Bytes) -> Mutation {
    Mutation {
        version: version(1),
        serial: Serial::from_raw(serial),
        kind,
        data,
        request: None,
        first_unacked: 0,
        durability: Durability::Synced,
    }
}
fn append(serial: u64, data: Bytes) -> Mutation {
    mutation(serial, MutationKind::Append, data)
}
fn write(serial: u64, offset: u32, data: Bytes) -> Mutation {
    mutation(serial, MutationKind::Write { offset }, data)
}
fn whole(store: &Store, chunk: ChunkHandle) -> Result<Bytes> {
    let length = store.state(chunk)?.length;
    store.read(chunk, 0, length).map(|read| read.data)
}
/// The one chunk file in the machine.
fn chunk_path(memory: &MemoryFiles) -> PathBuf {
    memory.paths().into_iter().find(|path| path.starts_with("/disk/chunks")).unwrap()
}
