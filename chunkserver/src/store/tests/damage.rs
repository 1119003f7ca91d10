//! Damage, full and failing disks, directories that must not be used.

use rustix::io::Errno;

use super::files::Open;
use super::format::{PartHead, put_part};
use super::*;

/// A store with one chunk of these bytes, all durable, and its process killed.
fn killed(bytes: &[Bytes]) -> (MemoryFiles, Arc<dyn Files>) {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    for (serial, bytes) in (1..).zip(bytes) {
        store.apply(handle(1), &append(serial, bytes.clone())).unwrap().wait().unwrap();
    }
    memory.die_after(0);
    drop(store);
    memory.kill();
    (memory, files)
}

/// The one chunk of a store that is open, and its file.
fn alive(length: usize) -> (MemoryFiles, Store, Bytes) {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    let bytes = pattern(length, 1);
    store.apply(handle(1), &append(1, bytes.clone())).unwrap().wait().unwrap();
    (memory, store, bytes)
}

/// Bytes that the files have together.
fn used(memory: &MemoryFiles) -> u64 {
    memory.paths().iter().map(|path| memory.bytes(path).unwrap().len() as u64).sum()
}

#[test]
fn a_flipped_bit_in_a_chunk_is_found_and_never_returned() {
    let (memory, store, bytes) = alive(150_000);
    let path = chunk_path(&memory);
    for byte in [0, 1, 65_535, 65_536, 131_071, 131_072, 149_999] {
        memory.flip(&path, byte * 8 + 3);
        let block = byte as u32 / BLOCK_BYTES;
        assert_eq!(whole(&store, handle(1)), Err(Error::Corrupt { handle: handle(1), block }));
        assert_eq!(
            store.read(handle(1), byte as u32, 1).unwrap_err(),
            Error::Corrupt { handle: handle(1), block }
        );
        assert_eq!(store.verify(handle(1)).unwrap(), [block]);
        assert_eq!(store.scrub(1 << 20).unwrap().corrupt, [(handle(1), block)]);
        assert!(store.state(handle(1)).unwrap().corrupt);
        memory.flip(&path, byte * 8 + 3);
        assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    }
}

#[test]
fn a_flipped_bit_in_metadata_is_found_or_harmless() {
    let pieces: Vec<Bytes> = (0..6).map(|i| pattern(9_000 + i, i as u64)).collect();
    let all = pieces.concat();
    let before = all.len() - pieces[5].len();
    let random = SeededRandom::new(3);
    for round in 0..120u64 {
        let (memory, files) = killed(&pieces);
        if round % 2 == 0 {
            open_in(&files, 2).unwrap().close().unwrap();
            memory.kill();
        }
        let paths: Vec<_> =
            memory.paths().into_iter().filter(|path| !path.starts_with("/disk/chunks")).collect();
        let path = &paths[random.below(paths.len() as u64) as usize];
        let bits = memory.bytes(path).unwrap().len().min(80_000) as u64 * 8;
        memory.flip(path, random.below(bits.max(1)));
        match open_in(&files, 4) {
            // The last batch of the log may look torn: nothing was written after it that says otherwise.
            Ok(store) => {
                let found = whole(&store, handle(1)).unwrap();
                assert!(found == all || (round % 2 == 1 && found == all[..before]), "{path:?}");
            }
            Err(Error::DiskFailed { .. } | Error::NewerFormat { .. } | Error::WrongDirectory { .. }) => {}
            Err(error) => panic!("{path:?}: {error}"),
        }
    }
}

/// Bytes full of records of a log, as a client may write them: whole ones, at every alignment.
fn forged_records(length: usize) -> Bytes {
    let head = PartHead { life: 77, sequence: u64::MAX - 1, durable: 0, length: 0, part: 0, last: true };
    let mut forged = Vec::new();
    put_part(&mut forged, head, [&[], &[]]);
    forged.push(0);
    forged.iter().copied().cycle().take(length).collect()
}

#[test]
fn data_that_looks_like_records_of_a_log_is_not_taken_for_them() {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    let mut expected = Vec::new();
    store.create(handle(1), version(1)).unwrap();
    // Overwrites, so that the log carries all of the data: often enough that segments are written again, and of other
    // lengths, so that what they held before shows behind what was written last.
    for serial in 1..=60 {
        let data = forged_records(40_000 + 617 * serial as usize);
        expected.resize(expected.len().max(data.len()), 0);
        expected[..data.len()].copy_from_slice(&data);
        store.apply(handle(1), &write(serial, 0, data)).unwrap().wait().unwrap();
    }
    memory.die_after(0);
    drop(store);
    memory.kill();
    let store = open_in(&files, 2).unwrap();
    assert_eq!(whole(&store, handle(1)).unwrap(), expected);
    // And it counts on from where it was.
    store.apply(handle(1), &append(61, pattern(9, 1))).unwrap().wait().unwrap();
    store.close().unwrap();
}

#[test]
fn a_chunk_that_can_not_be_opened_or_read_costs_itself_and_not_the_disk() {
    let other = pattern(9_000, 9);
    // With a change that only the log has, with one that only the file has; opened, read.
    for (synced, read) in [(true, false), (false, false), (false, true)] {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(2), version(1)).unwrap();
        store.apply(handle(2), &append(1, other.clone())).unwrap().wait().unwrap();
        store.close().unwrap();
        drop(store);
        let store = open_in(&files, 2).unwrap();
        store.create(handle(1), version(1)).unwrap();
        let durability = if synced { Durability::Synced } else { Durability::Replicated };
        let bytes = pattern(1000, 1);
        let first = Mutation { durability, ..append(1, bytes) };
        store.apply(handle(1), &first).unwrap().wait().unwrap();
        memory.die_after(0);
        drop(store);
        memory.kill();
        let file = "/disk/chunks/0000000000000001-";
        if read {
            memory.refuse_read(file, Errno::IO)
        } else {
            memory.refuse_open(file, Errno::IO)
        }
        let store = open_in(&files, 3).unwrap();
        assert!(store.state(handle(1)).unwrap().corrupt, "{synced} {read}");
        assert_eq!(store.state(handle(1)).unwrap().partial, !synced);
        assert_eq!(whole(&store, handle(2)).unwrap(), other);
        assert_eq!(store.disks()[0].failure, None);
        assert!(memory.paths().iter().any(|path| path.to_string_lossy().contains(file)));
    }
}

#[test]
fn a_recovery_that_can_open_no_more_files_takes_no_chunk_for_damaged() {
    let (memory, files) = killed(&[pattern(1000, 1)]);
    memory.refuse_open("/disk/chunks", Errno::MFILE);
    open_in(&files, 2).map(drop).unwrap_err();
    memory.kill();
    assert!(!open_in(&files, 3).unwrap().state(handle(1)).unwrap().corrupt);
}

#[test]
fn an_append_does_not_bless_a_damaged_block() {
    let (memory, store, _) = alive(70_000);
    memory.flip(&chunk_path(&memory), 69_000 * 8);
    store.apply(handle(1), &append(2, pattern(100, 2))).unwrap().wait().unwrap();
    assert_eq!(whole(&store, handle(1)), Err(Error::Corrupt { handle: handle(1), block: 1 }));
}

#[test]
fn an_overwrite_of_part_of_a_damaged_block_is_refused_and_of_all_of_it_heals() {
    let (memory, store, _) = alive(4 * 65_536);
    for (byte, offset, length) in [(10, 100, 65_536), (3 * 65_536, 2 * 65_536 + 5, 65_536)] {
        memory.flip(&chunk_path(&memory), byte * 8);
        let refused = store.apply(handle(1), &write(2, offset, pattern(length, 5))).unwrap_err();
        assert_eq!(refused, Error::Corrupt { handle: handle(1), block: byte as u32 / BLOCK_BYTES });
        memory.flip(&chunk_path(&memory), byte * 8);
    }
    memory.flip(&chunk_path(&memory), 70_000 * 8);
    store.apply(handle(1), &write(2, 65_536, pattern(65_536, 6))).unwrap().wait().unwrap();
    assert_eq!(store.read(handle(1), 65_536, 65_536).unwrap().data, pattern(65_536, 6));
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let (memory, store, bytes) = alive(1000);
    let used: u64 = memory.paths().iter().map(|path| memory.bytes(path).unwrap().len() as u64).sum();
    memory.resize(used + 5_000);
    let full = |result: Result<Ticket>| matches!(result, Err(Error::DiskFull { .. }));
    assert!(full(store.apply(handle(1), &append(2, pattern(6_000, 2)))));
    assert!(full(store.apply(handle(1), &write(2, 900, pattern(6_000, 2)))));
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    // What is there can still be changed, and the next serial is still the next one.
    store.apply(handle(1), &write(2, 0, pattern(500, 3))).unwrap().wait().unwrap();
    store.apply(handle(1), &append(3, pattern(4_000, 4))).unwrap().wait().unwrap();
    memory.resize(1 << 30);
    store.apply(handle(1), &append(4, pattern(60_000, 5))).unwrap().wait().unwrap();
    assert_eq!(store.verify(handle(1)).unwrap(), [0u32; 0]);
}

#[test]
fn a_log_that_can_not_be_shortened_on_a_full_disk_says_that_the_disk_is_full() {
    let (memory, store, bytes) = alive(70_000);
    let used: u64 = memory.paths().iter().map(|path| memory.bytes(path).unwrap().len() as u64).sum();
    memory.resize(used);
    // Overwrites take no room but in the log.
    let overwrite = |serial| store.apply(handle(1), &write(serial, 0, bytes.slice(..60_000)));
    let refused = (2..100).find_map(|serial| overwrite(serial).and_then(Ticket::wait).err());
    assert_eq!(refused, Some(Error::DiskFull { disk: "/disk".into() }));
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
}

#[test]
fn a_log_of_one_segment_that_can_get_no_second_one_says_that_the_disk_is_full() {
    let (memory, store, bytes) = alive(70_000);
    // Room for tables, and for no segment.
    memory.resize(used(&memory) + 100_000);
    let (tell, told) = std::sync::mpsc::channel();
    let writer = store.clone();
    std::thread::spawn(move || {
        let overwrite = |serial| {
            let again = write(serial, 0, bytes.slice(..60_000));
            writer.apply(handle(1), &again).and_then(Ticket::wait).map(drop)
        };
        let refused = (2..100).map(|serial| (serial, overwrite(serial))).find(|(_, result)| result.is_err());
        tell.send(refused.map(|(serial, result)| (serial, result.unwrap_err()))).unwrap_or_default();
    });
    let refused = told.recv_timeout(std::time::Duration::from_secs(60)).expect("it waits for ever");
    let (serial, error) = refused.expect("nothing was refused");
    assert_eq!(error, Error::DiskFull { disk: "/disk".into() });
    memory.resize(1 << 30);
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let again = || store.apply(handle(1), &write(serial, 0, pattern(60_000, 2))).and_then(Ticket::wait);
    while let Err(error) = again() {
        assert!(matches!(error, Error::DiskFull { .. }) && std::time::Instant::now() < patience, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(store.verify(handle(1)).unwrap(), [0u32; 0]);
}

#[test]
fn a_used_up_quota_refuses_as_a_full_disk_does_and_stops_nothing() {
    let (memory, store, bytes) = alive(1000);
    let used: u64 = memory.paths().iter().map(|path| memory.bytes(path).unwrap().len() as u64).sum();
    memory.limit(used + 2_000);
    let full = Error::DiskFull { disk: "/disk".into() };
    assert_eq!(store.apply(handle(1), &append(2, pattern(6_000, 2))).unwrap_err(), full);
    assert_eq!(memory.bytes(&chunk_path(&memory)).unwrap(), bytes, "what was written of it is cut off");
    assert_eq!(store.disks()[0].failure, None);
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    memory.limit(u64::MAX);
    store.apply(handle(1), &append(2, pattern(6_000, 2))).unwrap().wait().unwrap();
    assert_eq!(store.verify(handle(1)).unwrap(), [0u32; 0]);
}

#[test]
fn an_overwrite_that_adds_more_than_there_is_room_for_is_refused_before_it_is_promised() {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    let bytes = pattern(1000, 1);
    store.apply(handle(1), &append(1, bytes.clone())).unwrap().wait().unwrap();
    // A quota, which nobody is told of before.
    memory.limit(used(&memory) + 2_000);
    let full = Error::DiskFull { disk: "/disk".into() };
    let refused = store.apply(handle(1), &write(2, 900, pattern(6_000, 2))).and_then(Ticket::wait);
    assert_eq!(refused.map(drop), Err(full));
    assert_eq!(memory.bytes(&chunk_path(&memory)).unwrap(), bytes, "what was written of it is cut off");
    let small = pattern(1_000, 3);
    store.apply(handle(1), &write(2, 900, small.clone())).unwrap().wait().unwrap();
    let changed = [&bytes[..900], &small[..]].concat();
    assert_eq!(whole(&store, handle(1)).unwrap(), changed);
    assert_eq!(store.disks()[0].failure, None);
    memory.die_after(0);
    drop(store);
    memory.kill();
    let store = open_in(&files, 2).unwrap();
    assert_eq!(whole(&store, handle(1)).unwrap(), changed);
    assert_eq!(store.verify(handle(1)).unwrap(), [0u32; 0]);
}

#[test]
fn a_process_that_can_open_no_more_files_refuses_for_now_and_neither_stops_a_disk_nor_finds_damage() {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    for chunk in (1..=4).map(handle) {
        store.create(chunk, version(1)).unwrap();
        store.apply(chunk, &append(1, pattern(1000, 1))).unwrap().wait().unwrap();
    }
    // The others take the place of its file among those that are kept open.
    let chunk = handle(1);
    let refuse = |error| {
        (2..=4).for_each(|other| drop(whole(&store, handle(other)).unwrap()));
        memory.refuse_open("/disk/chunks", error);
    };
    let busy = || Error::Busy { what: error::OPEN_FILES };
    let sync = |serial| mutation(serial, MutationKind::Sync, Bytes::new());
    let mut expected = pattern(1000, 1).to_vec();
    for (serial, error) in [(2, Errno::MFILE), (6, Errno::NFILE)] {
        refuse(error);
        assert_eq!(whole(&store, chunk).unwrap_err(), busy());
        assert_eq!(whole(&store, chunk).unwrap(), expected);
        refuse(error);
        assert_eq!(store.verify(chunk).unwrap_err(), busy());
        refuse(error);
        assert_eq!(store.apply(chunk, &write(serial, 10, pattern(10, 2))).unwrap_err(), busy());
        refuse(error);
        let next = append(serial, pattern(100, serial));
        assert_eq!(store.apply(chunk, &next).unwrap_err(), busy());
        store.apply(chunk, &next).unwrap().wait().unwrap();
        let deferred = append(serial + 1, pattern(100, serial));
        let deferred = Mutation { durability: Durability::Deferred, ..deferred };
        store.apply(chunk, &deferred).unwrap().wait().unwrap();
        refuse(error);
        assert_eq!(store.apply(chunk, &sync(serial + 2)).unwrap().wait().unwrap_err(), busy());
        store.apply(chunk, &sync(serial + 3)).unwrap().wait().unwrap();
        expected.extend([pattern(100, serial), pattern(100, serial)].concat());
        assert_eq!(whole(&store, chunk).unwrap(), expected);
    }
    refuse(Errno::MFILE);
    assert_eq!(store.scrub(1 << 20).unwrap_err(), busy());
    assert_eq!(store.scrub(1 << 20).unwrap().corrupt, []);
    assert_eq!(store.disks()[0].failure, None);
    assert!(store.list().iter().all(|state| !state.corrupt));
}

#[test]
fn an_adoption_that_can_make_no_file_is_refused_for_now_and_stops_nothing() {
    let (memory, store, bytes) = alive(100_000);
    store.store_version(handle(1), version(2), Membership::Base).unwrap();
    let content = store.content(handle(1)).unwrap();
    let adopt = || store.adopt((handle(1), version(2)), (content.clone(), Origin::Unknown));
    let full = || Error::DiskFull { disk: "/disk".into() };
    let busy = Error::Busy { what: error::OPEN_FILES };
    // No inode, no quota, no descriptor.
    for (error, expected) in [(Errno::NOSPC, full()), (Errno::DQUOT, full()), (Errno::MFILE, busy)] {
        memory.refuse_open("/disk/chunks", error);
        assert_eq!(adopt().map(drop), Err(expected));
    }
    let mut adoption = adopt().unwrap();
    adoption.write(0, &bytes).unwrap();
    adoption.commit().unwrap();
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    assert_eq!(store.disks()[0].failure, None);
}

#[test]
fn adoptions_at_the_same_time_leave_the_headroom() {
    let (memory, files) = memory();
    let headroom_bytes = 300_000;
    let options = Options { headroom_bytes, ..options() };
    let store = Store::open(&[directory()], options, files.clone(), &SeededRandom::new(1)).unwrap();
    let bytes = pattern(100_000, 1);
    let block_crcs = bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect();
    let content = Content { length: 100_000, block_crcs, ..Content::default() };
    let join = |chunk| {
        store.store_version(handle(chunk), version(1), Membership::Joiner).unwrap();
        store.adopt((handle(chunk), version(1)), (content.clone(), Origin::Unknown)).unwrap()
    };
    memory.resize(used(&memory) + 420_000);
    let (mut first, mut second) = (join(1), join(2));
    first.write(0, &bytes).unwrap();
    assert_eq!(second.write(0, &bytes), Err(Error::DiskFull { disk: "/disk".into() }));
    let free = files.space(&directory()).unwrap().free_bytes;
    assert!(free >= headroom_bytes, "{free}");
    drop(second);
    first.commit().unwrap();
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
}

#[test]
fn a_failed_sync_stops_the_disk_for_good() {
    let (memory, store, _) = alive(1000);
    memory.fail_syncs(true);
    let ticket = store.apply(handle(1), &append(2, pattern(100, 2))).unwrap();
    assert!(matches!(ticket.wait(), Err(Error::DiskFailed { .. })));
    memory.fail_syncs(false);
    assert!(matches!(store.apply(handle(1), &append(3, pattern(9, 2))), Err(Error::DiskFailed { .. })));
    assert!(matches!(store.state(handle(1)), Err(Error::DiskFailed { .. })));
    assert!(store.create(handle(2), version(1)).is_err());
    assert!(store.list().is_empty());
    assert!(store.disks()[0].failure.is_some());
}

#[test]
fn a_failed_disk_costs_its_chunks_only() {
    let (memory, files) = memory();
    let directories = ["/a", "/b"].map(PathBuf::from);
    let open = || Store::open(&directories, options(), files.clone(), &SeededRandom::new(1));
    let store = open().unwrap();
    store.create(handle(1), version(1)).unwrap();
    store.close().unwrap();
    drop(store);
    let table =
        memory.paths().into_iter().find(|path| path.to_string_lossy().starts_with("/b/table")).unwrap();
    memory.flip(&table, 77);
    let store = open().unwrap();
    assert_eq!(store.disks().iter().filter(|disk| disk.failure.is_some()).count(), 1);
    assert!(store.create(handle(1), version(2)).is_ok());
    store.close().unwrap();
    memory.flip(&table, 77);
    // Its old replica is back beside the new one, and goes.
    drop(store);
    let store = open().unwrap();
    assert_eq!(store.list().iter().map(|state| state.version).collect::<Vec<_>>(), [version(2)]);
}

#[test]
fn request_ids_are_forgotten_on_the_disks_that_are_left_when_one_has_failed() {
    let (memory, files) = memory();
    let directories = ["/a", "/b"].map(PathBuf::from);
    let store = Store::open(&directories, options(), files, &SeededRandom::new(1)).unwrap();
    // One chunk on each: the disk with the second fails, and takes no other one then.
    let client = ClientId::from_raw;
    let add = |chunk: u64| {
        store.create(handle(chunk), version(1)).unwrap();
        let id = RequestId { client: client(chunk), sequence: 1 };
        let mutation = Mutation { request: Some(id), ..append(1, pattern(10, chunk)) };
        store.apply(handle(chunk), &mutation).unwrap().wait().unwrap();
    };
    add(1);
    memory.fail_syncs(true);
    store.apply(handle(1), &append(2, pattern(10, 2))).unwrap().wait().unwrap_err();
    memory.fail_syncs(false);
    assert_eq!(store.failed_disks(), 1);
    add(2);
    assert_eq!(store.clients(ClientId::default(), 10), BTreeSet::from([client(2)]));
    let changed = store.forget_requests(&[client(1), client(2)]).unwrap();
    assert_eq!(changed, BTreeSet::from([handle(2)]));
    assert!(store.clients(ClientId::default(), 10).is_empty());
}

#[test]
fn a_first_start_that_is_cut_off_anywhere_can_be_repeated() {
    let directories = ["/a", "/b"].map(PathBuf::from);
    for changes in 0.. {
        let (memory, files) = memory();
        let open = |seed| Store::open(&directories, options(), files.clone(), &SeededRandom::new(seed));
        memory.die_after(changes);
        drop(open(1));
        let cut_off = memory.is_dead();
        memory.cut_power(&SeededRandom::new(changes));
        let store = open(2).unwrap_or_else(|error| panic!("after {changes} changes: {error}"));
        assert!(store.disks().iter().all(|disk| disk.failure.is_none()), "after {changes} changes");
        if !cut_off {
            assert!(changes > 10, "{changes}");
            break;
        }
    }
}

#[test]
fn a_new_server_does_not_begin_without_one_of_its_directories() {
    let temporary = tempfile::tempdir().unwrap();
    let directories = ["a", "b"].map(|name| temporary.path().join(name));
    let open = || Store::open(&directories, options(), Arc::new(RealFiles), &SeededRandom::new(1));
    std::fs::write(&directories[1], "in the way").unwrap();
    let failed = open().map(drop).unwrap_err();
    assert!(matches!(failed, Error::DiskFailed { .. }), "{failed}");
    std::fs::remove_file(&directories[1]).unwrap();
    assert!(open().unwrap().disks().iter().all(|disk| disk.failure.is_none()));
}

#[test]
fn directories_that_must_not_be_used_are_refused_with_the_reason() {
    let (memory, files) = memory();
    let random = SeededRandom::new(9);
    let open = |names: &[&str], options| {
        let directories: Vec<_> = names.iter().map(PathBuf::from).collect();
        Store::open(&directories, options, files.clone(), &random)
    };
    let store = open(&["/disk"], options()).unwrap();
    let uuid = store.identity().uuid;
    let (cluster, server) = (ClusterId::from_bytes([3; 16]), ServerId::from_raw(4));
    store.set_identity(cluster, server).unwrap();
    assert!(matches!(open(&["/disk"], options()), Err(Error::Locked { .. })));
    store.close().unwrap();
    assert!(store.set_identity(cluster, ServerId::from_raw(5)).is_err());

    let reason = |result: Result<Store>| match result {
        Err(Error::WrongDirectory { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    memory.copy(&directory(), &PathBuf::from("/copy"));
    assert!(reason(open(&["/copy"], options())).starts_with("this is a copy"));
    assert!(reason(open(&["/disk", "/new"], options())).starts_with("empty, beside"));
    let both = open(&["/disk", "/new"], Options { add_directories: true, ..options() }).unwrap();
    assert_eq!(both.identity(), Identity { uuid, registered: Some((cluster, server)) });
    both.close().unwrap();
    let other = open(&["/other"], options()).unwrap();
    other.close().unwrap();
    assert!(reason(open(&["/disk", "/other"], options())).starts_with("it belongs to another"));
    memory.empty(&PathBuf::from("/new"), &["identity"]);
    assert!(reason(open(&["/disk", "/new"], options())).starts_with("emptied"));
    memory.empty(&PathBuf::from("/new"), &[]);
    assert!(reason(open(&["/disk", "/new"], options())).starts_with("empty, beside"));

    let identity = files.open(&PathBuf::from("/disk/identity"), Open::Existing).unwrap();
    identity.write_at(b"gfs-chunkserver 9", 0).unwrap();
    assert!(matches!(open(&["/disk"], options()), Err(Error::NewerFormat { found: 9, .. })));
}

#[test]
fn a_registration_that_was_cut_off_between_two_directories_is_completed() {
    let directories = ["/a", "/b"].map(PathBuf::from);
    let registered = (ClusterId::from_bytes([3; 16]), ServerId::from_raw(4));
    let (first, second) = ("/a/identity.new", "/b/identity.new");
    // Which save fails, which directory is away meanwhile: afterwards one of the two does not know of the registration.
    for (refused, again) in [(first, true), (first, false), (second, false)] {
        let (memory, files) = memory();
        let open = || Store::open(&directories, options(), files.clone(), &SeededRandom::new(1));
        let store = open().unwrap();
        memory.refuse_open(refused, Errno::IO);
        store.set_identity(registered.0, registered.1).unwrap_err();
        if again {
            store.set_identity(registered.0, registered.1).unwrap();
        }
        store.close().unwrap();
        drop(store);
        let store = open().unwrap();
        let known = (refused != first || again).then_some(registered);
        assert_eq!(store.identity().registered, known, "{refused}");
        store.set_identity(registered.0, registered.1).unwrap();
        store.close().unwrap();
        drop(store);
        for directory in &directories {
            let identity = IdentityFile::load(&*files, directory).unwrap().unwrap();
            assert_eq!(identity.registered(), Some(registered), "{}", directory.display());
        }
    }
}

#[test]
fn a_directory_that_missed_the_registration_learns_it_from_the_other_and_another_servers_does_not() {
    let (_memory, files) = memory();
    let open = |names: &[&str], seed| {
        let directories: Vec<_> = names.iter().map(PathBuf::from).collect();
        Store::open(&directories, options(), files.clone(), &SeededRandom::new(seed))
    };
    open(&["/a", "/b"], 1).unwrap().close().unwrap();
    // The first disk can't be read when the server registers.
    let registered = (ClusterId::from_bytes([3; 16]), ServerId::from_raw(4));
    let second = open(&["/b"], 2).unwrap();
    second.set_identity(registered.0, registered.1).unwrap();
    second.close().unwrap();
    let both = open(&["/a", "/b"], 3).unwrap();
    assert_eq!(both.identity().registered, Some(registered));
    both.close().unwrap();
    let first = open(&["/a"], 4).unwrap();
    assert_eq!(first.identity().registered, Some(registered));
    first.close().unwrap();

    open(&["/other"], 5).unwrap().close().unwrap();
    for names in [["/a", "/other"], ["/other", "/a"]] {
        let refused = open(&names, 6).map(drop).unwrap_err();
        assert!(matches!(refused, Error::WrongDirectory { .. }), "{refused}");
    }
}

#[test]
fn two_processes_can_not_have_one_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let directories = [temporary.path().to_owned()];
    let open = || Store::open(&directories, options(), Arc::new(RealFiles), &SeededRandom::new(1));
    let first = open().unwrap();
    assert!(matches!(open(), Err(Error::Locked { .. })));
    drop(first);
    drop(open().unwrap());
}

#[test]
fn a_recovery_removes_what_nobody_needs_before_it_needs_room() {
    let mut short = 0;
    for seed in 0..8 {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(1), version(1)).unwrap();
        let bytes = pattern(50_000, 1);
        store.apply(handle(1), &append(1, bytes.clone())).unwrap().wait().unwrap();
        memory.die_after(0);
        drop(store);
        // Only the log has all of it.
        memory.cut_power(&SeededRandom::new(seed));
        let before = used(&memory);
        let unused = files.open(&directory().join("chunks/0000000000000009-9"), Open::Create).unwrap();
        unused.write_at(&pattern(100_000, 2), 0).unwrap();
        memory.resize(used(&memory) + 2_000);
        let store = open_in(&files, 2).unwrap_or_else(|error| panic!("{seed}: {error}"));
        assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
        short += u32::from(used(&memory) > before + 2_000);
    }
    assert!(short > 0, "the power cuts have taken nothing from the file");
}

#[test]
fn what_found_no_room_leaves_nothing_behind_that_takes_it() {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    for serial in 1..=200 {
        if serial == 20 {
            // The log wants a third segment, then a checkpoint, for which there is room only once the former is gone.
            let space = files.space(&directory()).unwrap();
            memory.resize(space.total_bytes - space.free_bytes + 100_000);
        }
        let ticket = store.apply(handle(1), &write(serial, 0, pattern(20_000, serial)));
        ticket.unwrap_or_else(|error| panic!("mutation {serial}: {error}")).wait().unwrap();
    }
    let paths = memory.paths();
    assert!(!paths.iter().any(|path| path.ends_with("table.new")), "{paths:?}");
    let segments = paths.iter().filter(|path| path.to_string_lossy().contains("/log-"));
    for segment in segments {
        assert_eq!(memory.bytes(segment).unwrap().len(), 256 * 1024, "{}", segment.display());
    }
}

#[test]
fn a_recovery_that_a_power_cut_ends_has_done_nothing_that_the_log_does_not_remember() {
    let (old, new) = (pattern(100_000, 1), pattern(70_000, 2));
    let changed = [&new[..], &old[new.len()..]].concat();
    for (first, second) in (1..=8).flat_map(|first| (1..=24).map(move |second| (first, second))) {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(1), version(1)).unwrap();
        store.apply(handle(1), &append(1, old.clone())).unwrap().wait().unwrap();
        store.close().unwrap();
        drop(store);
        memory.kill();
        let store = open_in(&files, 2).unwrap();
        // The process is killed, perhaps before the record is on the disk.
        memory.die_after(first);
        drop(store.apply(handle(1), &write(2, 0, new.clone())).map(Ticket::wait));
        drop(store);
        memory.kill();
        // The next one reads what the page cache has, and the power fails before it is done.
        memory.die_after(second);
        drop(open_in(&files, 3));
        memory.cut_power(&SeededRandom::new(second));
        let now = whole(&open_in(&files, 4).unwrap(), handle(1));
        let whole = now.as_ref().is_ok_and(|now| *now == old || now[..] == changed[..]);
        assert!(whole, "{first}, {second}: {:?}", now.map(|bytes| bytes.len()));
    }
}
