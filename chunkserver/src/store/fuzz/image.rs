//! Disks as a store leaves them, with all that they ever held; and checksums made right after damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ClientId, RequestId, Serial};
use gfs_proto::random::{Random, SeededRandom};
use gfs_proto::size::{CHUNK_BYTES_MIN, ChunkBytes};

use crate::store::files::Files;
use crate::store::files::memory::MemoryFiles;
use crate::store::format::{ALIGN, HEAD_BYTES, TABLE_HEADER_BYTES, part_bytes};
use crate::store::{Durability, Mutation, MutationKind, Options, Result, Store};

/// Bytes of a log segment.
pub(super) const SEGMENT_BYTES: u32 = 64 * 1024;

/// A disk at one moment.
pub(super) struct Image {
    /// The files by their names in the directory.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// What each chunk has held, from the empty chunk on.
    pub(super) history: BTreeMap<u64, Vec<Vec<u8>>>,
    /// The run of the operating system that it was written in.
    pub(super) boot_id: String,
}

/// All disks, made once.
pub(super) fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let made = [(1, 8, false), (2, 8, true), (3, 40, false), (4, 90, false), (5, 60, true)];
        made.iter().filter_map(|(seed, steps, closed)| make(*seed, *steps, *closed).ok()).collect()
    })
}

fn make(seed: u64, steps: u64, closed: bool) -> Result<Image> {
    let memory = MemoryFiles::new(16 << 20);
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    let options = Options {
        chunk_bytes_max: ChunkBytes::try_from(CHUNK_BYTES_MIN).unwrap_or(ChunkBytes::DEFAULT),
        segment_bytes: SEGMENT_BYTES,
        segments: 3,
        headroom_bytes: 0,
        open_files: 8,
        add_directories: false,
        workers: gfs_proto::work::Workers::Threads,
    };
    let random = SeededRandom::new(seed);
    let store = Store::open(&[PathBuf::from("/disk")], options, files.clone(), &random)?;
    let mut history = BTreeMap::new();
    for step in 0..steps {
        change(&store, &random, step, &mut history)?;
    }
    if closed {
        store.close()?;
    } else {
        memory.die_after(0);
    }
    drop(store);
    memory.kill();
    let name = |path: PathBuf| Some(path.strip_prefix("/disk").ok()?.to_string_lossy().into_owned());
    let files =
        memory.paths().into_iter().filter_map(|path| Some((name(path.clone())?, memory.bytes(&path)?)));
    let boot_id = Files::boot_id(&memory).unwrap_or_default();
    Ok(Image { files: files.collect(), history, boot_id })
}

/// Changes one of four chunks, and notes what it holds then.
fn change(
    store: &Store,
    random: &SeededRandom,
    step: u64,
    history: &mut BTreeMap<u64, Vec<Vec<u8>>>,
) -> Result<()> {
    let number = 1 + random.below(4);
    let (handle, version) = (ChunkHandle::from_raw(number), ChunkVersion::from_raw(1));
    let states = history.entry(number).or_default();
    let Ok(here) = store.state(handle) else {
        store.create(handle, version)?;
        states.push(Vec::new());
        return Ok(());
    };
    if random.below(30) == 0 {
        return store.delete(handle, version).map(drop);
    }
    let length =
        usize::try_from(1 + random.below(if step.is_multiple_of(7) { 60_000 } else { 3_000 })).unwrap_or(1);
    let data = Bytes::from_iter((0..length).map(|_| random.bits64().to_le_bytes()[0]));
    let mut now = states.last().cloned().unwrap_or_default();
    now.truncate(here.length as usize);
    let end = now.len() + data.len();
    let fits = end <= CHUNK_BYTES_MIN as usize;
    let kind = match random.below(4) {
        0 if !now.is_empty() && fits => {
            let offset = usize::try_from(random.below(now.len() as u64)).unwrap_or(0);
            now.resize(now.len().max(offset + data.len()), 0);
            now[offset..offset + data.len()].copy_from_slice(&data);
            MutationKind::Write { offset: u32::try_from(offset).unwrap_or(0) }
        }
        _ if fits && !here.sealed => {
            now.extend_from_slice(&data);
            MutationKind::Append
        }
        _ => MutationKind::Sync,
    };
    let durability = [Durability::Synced, Durability::Synced, Durability::Replicated, Durability::Deferred];
    let mutation = Mutation {
        version,
        serial: Serial::from_raw(here.serial.raw() + 1),
        kind,
        data: if kind == MutationKind::Sync { Bytes::new() } else { data },
        request: Some(RequestId { client: ClientId::from_raw(random.below(3)), sequence: step }),
        first_unacked: step.saturating_sub(random.below(8)),
        durability: durability[usize::try_from(random.below(4)).unwrap_or(0)],
    };
    states.push(now);
    store.apply(handle, &mutation)?.wait()?;
    if random.below(4) == 0 {
        store.set_commit_mark(handle, version, mutation.serial)?;
    }
    Ok(())
}

/// The file with all checksums made right: what lies under them is then looked at.
pub(super) fn repaired(name: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    let name =
        Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name.starts_with("log-") {
        repair_parts(&mut bytes);
    } else if name.starts_with("table-") && bytes.len() >= TABLE_HEADER_BYTES {
        bytes[12..16].fill(0);
        let crc = crc32fast::hash(&bytes[..TABLE_HEADER_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        repair_entries(&mut bytes[TABLE_HEADER_BYTES..]);
    }
    bytes
}

fn repair_parts(bytes: &mut [u8]) {
    let mut at = 0;
    while at + HEAD_BYTES <= bytes.len() {
        let length = u32_at(bytes, at + 32) as usize;
        let end = at + HEAD_BYTES + length;
        if bytes[at..].starts_with(b"GLR1") && end <= bytes.len() {
            let crc = crc32fast::hash(&bytes[at + 8..end]);
            bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
            at += part_bytes(length);
        } else {
            at += ALIGN;
        }
    }
}

fn repair_entries(bytes: &mut [u8]) {
    let mut at = 0;
    while at + 8 <= bytes.len() {
        let end = at + 8 + u32_at(bytes, at) as usize;
        let Some(body) = bytes.get(at + 8..end) else { return };
        let crc = crc32fast::hash(body);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes)
}
