//! Syncs that fail once: the kernel tells of what it could not write to one who asks, and then takes it for written.

use super::*;

/// So many chunks that a checkpoint syncs several at a time.
const CHUNKS: u64 = 64;

/// Chunks of which the log has every byte, and the files' syncs are still to come: the first one of the first chunk fails.
fn many() -> (MemoryFiles, Arc<dyn Files>, Store) {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    for chunk in 1..=CHUNKS {
        store.create(handle(chunk), version(1)).unwrap();
        store.apply(handle(chunk), &append(1, pattern(1000, chunk))).unwrap().wait().unwrap();
    }
    memory.fail_sync_once("/disk/chunks/0000000000000001-");
    (memory, files, store)
}

/// After a power cut everything that was acknowledged is there.
fn nothing_is_gone(memory: &MemoryFiles, files: &Arc<dyn Files>, store: Store) {
    memory.die_after(0);
    drop(store);
    memory.cut_power(&SeededRandom::new(1));
    let store = open_in(files, 2).unwrap();
    for chunk in 1..=CHUNKS {
        assert_eq!(whole(&store, handle(chunk)).unwrap(), pattern(1000, chunk), "{chunk}");
    }
}

#[test]
fn a_checkpoint_does_not_sync_again_what_could_not_be_synced() {
    let (memory, files, store) = many();
    let disk = &store.inner.disks[0];
    let failed = table::checkpoint(disk, table::Closing::No);
    assert!(matches!(failed, Err(Error::DiskFailed { .. })), "{failed:?}");
    nothing_is_gone(&memory, &files, store);
}

#[test]
fn a_store_is_not_closed_cleanly_when_a_file_could_not_be_synced() {
    let (memory, files, store) = many();
    let failed = store.close();
    assert!(matches!(failed, Err(Error::DiskFailed { .. })), "{failed:?}");
    nothing_is_gone(&memory, &files, store);
}

#[test]
fn who_syncs_a_file_while_another_sync_of_it_fails_is_told_so_too() {
    let (_memory, _files, store) = many();
    let disk = store.inner.disks[0].clone();
    let chunk = disk.chunk(handle(1)).unwrap();
    let sync = || disk.sync_file(&chunk, chunk.state.lock()).map(drop);
    let told = std::thread::scope(|threads| {
        let all: Vec<_> = (0..8).map(|_| threads.spawn(sync)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(told.iter().all(Result::is_err), "{told:?}");
}

/// A file that could not be synced, and a start in the same boot: what it claims has to outlive a power cut. False if the log
/// heard of the failure before it had the record, so that nothing is claimed.
fn claims_only_what_stays() -> bool {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    store.apply(handle(1), &append(1, pattern(1000, 1))).unwrap().wait().unwrap();
    memory.fail_sync_once("/disk/chunks");
    store.apply(handle(1), &append(2, pattern(100_000, 2))).unwrap().wait().unwrap_err();
    memory.die_after(0);
    drop(store);
    memory.kill();
    let claimed = open_in(&files, 2).unwrap().state(handle(1)).unwrap();
    memory.cut_power(&SeededRandom::new(3));
    let store = open_in(&files, 4).unwrap();
    let mut bytes = pattern(1000, 1).to_vec();
    if claimed.serial == Serial::from_raw(2) {
        bytes.extend_from_slice(&pattern(100_000, 2));
    }
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    let found = store.state(handle(1)).unwrap();
    assert_eq!((found.serial, found.length, found.corrupt), (claimed.serial, claimed.length, false));
    claimed.serial == Serial::from_raw(2)
}

#[test]
fn what_could_not_be_synced_is_written_again_before_a_recovery_of_the_same_boot_calls_it_proven() {
    assert!((0..100).any(|_| claims_only_what_stays()), "the page cache never has it");
}

#[test]
fn a_log_that_could_not_be_synced_is_written_again_before_a_recovery_acts_on_it() {
    let (old, new) = (pattern(100_000, 1), pattern(70_000, 2));
    let changed = [&new[..], &old[new.len()..]].concat();
    for changes in 1..=24 {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(1), version(1)).unwrap();
        store.apply(handle(1), &append(1, old.clone())).unwrap().wait().unwrap();
        store.close().unwrap();
        drop(store);
        let store = open_in(&files, 2).unwrap();
        memory.fail_sync_once("/disk/log-");
        store.apply(handle(1), &write(2, 0, new.clone())).unwrap().wait().unwrap_err();
        memory.die_after(0);
        drop(store);
        memory.kill();
        memory.die_after(changes);
        drop(open_in(&files, 3));
        memory.cut_power(&SeededRandom::new(changes));
        let now = whole(&open_in(&files, 4).unwrap(), handle(1));
        let whole = now.as_ref().is_ok_and(|now| *now == old || now[..] == changed[..]);
        assert!(whole, "{changes}: {:?}", now.map(|bytes| bytes.len()));
    }
}
