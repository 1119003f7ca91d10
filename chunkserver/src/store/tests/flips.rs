//! One flipped bit anywhere in what the store writes: every file, byte for byte where files are small. It is found, or
//! harmless; wrong bytes are never returned, and what may lack something does not claim to be complete.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

/// A flip of a log's empty space or of a chunk is tried at every so-manieth byte.
const SPARSE: usize = 2_039;
const CHUNKS: u64 = 2;

/// All that a replica is, bytes included.
#[derive(Clone, PartialEq, Debug)]
struct Image {
    state: ReplicaState,
    content: Content,
    bytes: Result<Bytes>,
}

fn image(store: &Store, chunk: u64) -> Option<Image> {
    let state = store.state(handle(chunk)).ok()?;
    let content = store.content(handle(chunk)).unwrap();
    Some(Image { state, content, bytes: whole(store, handle(chunk)) })
}

/// How the process ended.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// Everything is in the log.
    Killed,
    /// A table has the older half, the log the newer.
    KilledLater,
    /// Everything is in a table.
    Closed,
}

/// A machine with two chunks, and what each replica has been, the newest last.
fn machine(end: End) -> (MemoryFiles, BTreeMap<u64, Vec<Image>>) {
    let (memory, files) = memory();
    let mut store = open_in(&files, 1).unwrap();
    let mut known: BTreeMap<u64, Vec<Image>> = BTreeMap::new();
    let mut note = |store: &Store| {
        for chunk in 1..=CHUNKS {
            known.entry(chunk).or_default().extend(image(store, chunk));
        }
    };
    for chunk in 1..=CHUNKS {
        store.create(handle(chunk), version(1)).unwrap();
    }
    note(&store);
    for serial in 1..=6 {
        if serial == 4 && end == End::KilledLater {
            store.close().unwrap();
            drop(store);
            store = open_in(&files, 2).unwrap();
            note(&store);
        }
        for chunk in 1..=CHUNKS {
            // Small and large, appended and written over, with ids: each way to the disk.
            let mutation = match serial {
                2 => append(serial, pattern(70_000, chunk)),
                5 => write(serial, 30, pattern(90, 7 + chunk)),
                _ => append(serial, pattern(40 + chunk as usize, serial)),
            };
            let mutation = Mutation { request: request(10 * chunk + serial), ..mutation };
            store.apply(handle(chunk), &mutation).unwrap().wait().unwrap();
            // What readers are told at once, until the mutation after it.
            store.set_commit_mark(handle(chunk), version(1), Serial::from_raw(serial)).unwrap();
        }
        note(&store);
    }
    if end == End::Closed {
        store.close().unwrap();
    }
    memory.die_after(0);
    drop(store);
    memory.kill();
    (memory, known)
}

/// Bytes of a file that are tried.
fn bytes_of(memory: &MemoryFiles, path: &Path) -> Vec<usize> {
    let bytes = memory.bytes(path).unwrap();
    let dense = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let chunk = path.starts_with("/disk/chunks");
    // The data of a logged mutation is under the checksum of its record like the rest of it.
    let every = if chunk { SPARSE } else { 1 + dense / 800 };
    (0..dense).step_by(every).chain((dense..bytes.len()).step_by(SPARSE * 8)).collect()
}

/// What the store makes of a machine in which one bit is wrong.
fn judge(end: End, memory: &MemoryFiles, path: &Path, known: &BTreeMap<u64, Vec<Image>>) {
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    let store = match open_in(&files, 9) {
        Ok(store) => store,
        // Found: the disk is not used at all, and its chunks are missed.
        Err(Error::DiskFailed { .. } | Error::NewerFormat { .. } | Error::WrongDirectory { .. }) => return,
        Err(error) => panic!("{end:?} {path:?}: {error}"),
    };
    for (chunk, known) in known {
        let Some(now) = image(&store, *chunk) else { panic!("{end:?} {path:?}: c{chunk} is gone") };
        let newest = known.last().unwrap();
        if now.content == newest.content {
            assert_eq!(now.state.version, newest.state.version, "{end:?} {path:?}");
            match &now.bytes {
                Ok(bytes) => assert_eq!(Ok(bytes), newest.bytes.as_ref(), "{end:?} {path:?}: wrong bytes"),
                Err(Error::Corrupt { .. }) => {
                    assert!(store.state(handle(*chunk)).unwrap().corrupt, "{end:?} {path:?}: not told");
                    assert!(!store.verify(handle(*chunk)).unwrap().is_empty());
                }
                Err(error) => panic!("{end:?} {path:?}: {error}"),
            }
            continue;
        }
        // The end of a log looks as if its last records had never been finished. Then it was so once, and nothing of it
        // may be taken for committed until the primary has been asked.
        let log = path.to_string_lossy().contains("log-");
        assert!(log && end != End::Closed, "{end:?} {path:?}: {now:?}");
        assert!(
            known.iter().any(|one| one.content == now.content && one.bytes == now.bytes),
            "{end:?} {path:?}"
        );
        assert_eq!(now.state.commit_mark, None, "{end:?} {path:?}: it claims to be complete");
    }
}

fn sweep(end: End) {
    let (memory, known) = machine(end);
    judge(end, &memory.duplicate(), Path::new("nowhere"), &known);
    let random = SeededRandom::new(5);
    for path in memory.paths() {
        for byte in bytes_of(&memory, &path) {
            let copy = memory.duplicate();
            copy.flip(&path, byte as u64 * 8 + random.below(8));
            judge(end, &copy, &path, &known);
        }
    }
}

#[test]
fn a_bit_that_flips_after_a_kill_is_found_wherever_it_is() {
    sweep(End::Killed);
}
#[test]
fn a_bit_that_flips_after_a_kill_is_found_in_tables_and_log() {
    sweep(End::KilledLater);
}
#[test]
fn a_bit_that_flips_after_an_orderly_end_is_found_wherever_it_is() {
    sweep(End::Closed);
}

#[test]
fn a_bit_that_flips_in_a_running_store_is_found_by_reads_and_by_the_scrubber() {
    let (memory, known) = machine(End::KilledLater);
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    let store = open_in(&files, 3).unwrap();
    for path in memory.paths().into_iter().filter(|path| path.starts_with("/disk/chunks")) {
        let (chunk, newest) = known
            .iter()
            .map(|(chunk, known)| (*chunk, known.last().unwrap()))
            .find(|(chunk, _)| path.to_string_lossy().contains(&format!("{chunk:016x}-")))
            .unwrap();
        let length = newest.content.length as usize;
        for byte in (0..length).step_by(SPARSE).chain([length - 1]) {
            memory.flip(&path, byte as u64 * 8 + 5);
            let block = byte as u32 / BLOCK_BYTES;
            assert_eq!(whole(&store, handle(chunk)), Err(Error::Corrupt { handle: handle(chunk), block }));
            assert!(store.state(handle(chunk)).unwrap().corrupt);
            let mut found = Vec::new();
            for _ in 0..2 * CHUNKS {
                found.extend(store.scrub(1 << 20).unwrap().corrupt);
            }
            assert!(found.contains(&(handle(chunk), block)), "byte {byte}: {found:?}");
            memory.flip(&path, byte as u64 * 8 + 5);
            assert_eq!(whole(&store, handle(chunk)), newest.bytes);
        }
    }
}

#[test]
fn metadata_that_rots_under_a_running_store_changes_nothing_that_it_does() {
    let (memory, known) = machine(End::KilledLater);
    let random = SeededRandom::new(6);
    let metadata = |path: &PathBuf| !path.starts_with("/disk/chunks") && !path.ends_with("identity");
    for path in memory.paths().into_iter().filter(metadata) {
        for byte in bytes_of(&memory, &path).into_iter().step_by(40) {
            let copy = memory.duplicate();
            let files: Arc<dyn Files> = Arc::new(copy.clone());
            let store = open_in(&files, 4).unwrap();
            copy.flip(&path, byte as u64 * 8 + random.below(8));
            store.apply(handle(1), &append(7, pattern(50, 99))).unwrap().wait().unwrap();
            store.close().unwrap();
            drop(store);
            copy.kill();
            let store = open_in(&files, 5).unwrap();
            let (bytes, before) = (whole(&store, handle(1)).unwrap(), known[&1].last().unwrap());
            assert_eq!(bytes[..bytes.len() - 50], before.bytes.clone().unwrap()[..], "{path:?} {byte}");
            assert_eq!(bytes[bytes.len() - 50..], pattern(50, 99)[..]);
        }
    }
}

/// After a power cut nobody knows whether the mark speaks of what was lost.
#[test]
fn a_commit_mark_is_void_after_a_power_cut_and_holds_after_a_kill() {
    for powered in [true, false] {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(1), version(1)).unwrap();
        store.apply(handle(1), &append(1, pattern(50, 1))).unwrap().wait().unwrap();
        store.set_commit_mark(handle(1), version(1), Serial::from_raw(1)).unwrap();
        // The mark rides along with the record of the next mutation.
        store.apply(handle(1), &append(2, pattern(50, 2))).unwrap().wait().unwrap();
        memory.die_after(0);
        drop(store);
        if powered {
            memory.kill()
        } else {
            memory.cut_power(&SeededRandom::new(1))
        }
        let state = open_in(&files, 2).unwrap().state(handle(1)).unwrap();
        assert_eq!((state.serial, state.partial), (Serial::from_raw(2), false));
        assert_eq!(state.commit_mark, powered.then(|| Serial::from_raw(1)));
    }
}
