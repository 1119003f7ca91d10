//! What happens to replicas in good times.

use std::time::Duration;

use super::format::Record;
use super::log::Then;
use super::*;

#[test]
fn what_is_written_is_read_and_survives_a_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let directories = [temporary.path().to_owned()];
    let open = || Store::open(&directories, options(), Arc::new(RealFiles), &SeededRandom::new(1)).unwrap();
    let store = open();
    let chunk = handle(5);
    store.create(chunk, version(1)).unwrap();
    let (small, large) = (pattern(1000, 1), pattern(200_000, 2));
    let first = store.apply(chunk, &append(1, small.clone())).unwrap();
    let second = store.apply(chunk, &append(2, large.clone())).unwrap();
    let third = store.apply(chunk, &write(3, 500, pattern(100, 3))).unwrap();
    assert_eq!((first.offset(), second.offset(), third.offset(), third.length()), (0, 1000, 500, 201_000));
    let mut expected = [&small[..], &large[..]].concat();
    expected[500..600].copy_from_slice(&pattern(100, 3));
    assert_eq!(whole(&store, chunk).unwrap(), expected);
    for ticket in [first, second, third] {
        ticket.wait().unwrap();
    }
    let content = store.content(chunk).unwrap();
    assert_eq!(
        content.block_crcs,
        expected.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect::<Vec<_>>()
    );
    drop(store);

    let store = open();
    assert_eq!(whole(&store, chunk).unwrap(), expected);
    assert_eq!(store.content(chunk).unwrap(), content);
    let range = store.file_range(chunk, BLOCK_BYTES, 2 * BLOCK_BYTES).unwrap();
    assert_eq!(range.crcs, content.block_crcs[1..3]);
    assert!(range.file.descriptor().is_some());
    store.close().unwrap();
    drop(store);
    assert_eq!(open().content(chunk).unwrap(), content);
}

/// A store in memory with one chunk at version 1.
fn one() -> (MemoryFiles, Store) {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    (memory, store)
}

#[test]
fn the_log_is_used_again_and_again() {
    let (memory, store) = one();
    let mut serial = 0;
    // Ten times what the log holds, with overwrites that cross its segments.
    for round in 0..40 {
        let mut tickets = Vec::new();
        for piece in 0..4 {
            serial += 1;
            tickets.push(
                store.apply(handle(1), &write(serial, piece * 60_000, pattern(65_000, serial))).unwrap(),
            );
        }
        tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
        let last = store.read(handle(1), 180_000, 65_000).unwrap();
        assert_eq!(last.data, pattern(65_000, serial), "round {round}");
    }
    let logs = memory.paths().into_iter().filter(|path| path.to_string_lossy().contains("/log-")).count();
    assert!(logs <= 4, "{logs} segments");
}

#[test]
fn mutations_are_applied_in_order_once_and_only_at_their_version() {
    let (_memory, store) = one();
    let chunk = handle(1);
    let gap = store.apply(chunk, &append(2, pattern(10, 1))).unwrap_err();
    let (asked, expected) = (Serial::from_raw(2), Serial::from_raw(1));
    assert_eq!(gap, Error::Gap { handle: chunk, asked, expected });
    let first = Mutation { request: request(5), ..append(1, pattern(10, 1)) };
    store.apply(chunk, &first).unwrap().wait().unwrap();
    assert!(matches!(store.apply(chunk, &first), Err(Error::Gap { .. })));
    let again = Mutation { serial: Serial::from_raw(2), ..first };
    assert!(matches!(store.apply(chunk, &again), Err(Error::DuplicateRequest { offset: 0, length: 10, .. })));
    let known = Recall::Known(Outcome { offset: 0, length: 10 });
    assert_eq!(store.recall(chunk, request(5).unwrap()).unwrap(), (known, 1));
    store.forget_requests(&[ClientId::from_raw(7)]).unwrap();
    assert_eq!(store.recall(chunk, request(5).unwrap()).unwrap(), (Recall::New, 0));
    store.apply(chunk, &mutation(2, MutationKind::Seal, Bytes::new())).unwrap().wait().unwrap();
    assert_eq!(store.apply(chunk, &append(3, pattern(1, 1))).unwrap_err(), Error::Sealed { handle: chunk });

    store.store_version(chunk, version(2), Membership::Base).unwrap();
    assert!(matches!(store.apply(chunk, &append(3, pattern(1, 1))), Err(Error::VersionMismatch { .. })));
    let newer = Mutation { version: version(2), ..append(3, pattern(1, 1)) };
    assert!(matches!(store.apply(chunk, &newer), Err(Error::NotAdopted { .. })));
    assert!(matches!(
        store.store_version(chunk, version(1), Membership::Joiner),
        Err(Error::VersionMismatch { .. })
    ));
}

#[test]
fn a_hole_reads_as_zeros_under_checksums() {
    let (_memory, store) = one();
    store.apply(handle(1), &write(1, 200_000, pattern(10, 1))).unwrap().wait().unwrap();
    let expected = [&[0; 200_000][..], &pattern(10, 1)].concat();
    assert_eq!(whole(&store, handle(1)).unwrap(), expected);
    let crcs = store.content(handle(1)).unwrap().block_crcs;
    assert_eq!(crcs, expected.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect::<Vec<_>>());
}

#[test]
fn a_joiner_is_partial_until_it_has_adopted_once() {
    let (_memory, store) = one();
    let chunk = handle(1);
    store.apply(chunk, &append(1, pattern(100_000, 1))).unwrap().wait().unwrap();
    let content = store.content(chunk).unwrap();
    let joined = store.store_version(chunk, version(2), Membership::Joiner).unwrap();
    assert!(joined.partial && joined.length == 0 && joined.adopted == ChunkVersion::NONE);
    let mut adoption = store.adopt((chunk, version(2)), (content.clone(), Origin::Unknown)).unwrap();
    assert_eq!(adoption.missing(), vec![0..100_000]);
    assert!(matches!(adoption.write(0, &pattern(65_536, 9)), Err(Error::Corrupt { block: 0, .. })));
    adoption.write(65_536, &pattern(100_000, 1)[65_536..]).unwrap();
    adoption.write(0, &pattern(100_000, 1)[..65_536]).unwrap();
    assert!(store.state(chunk).unwrap().partial);
    let adopted = adoption.commit().unwrap();
    assert!(!adopted.partial && adopted.adopted == version(2) && adopted.serial == Serial::default());
    assert_eq!(adopted.commit_mark, None);
    assert_eq!(whole(&store, chunk).unwrap(), pattern(100_000, 1));
    assert!(matches!(
        store.adopt((chunk, version(2)), (content, Origin::Unknown)),
        Err(Error::AlreadyAdopted { .. })
    ));
}

#[test]
fn agreed_content_is_not_known_to_be_committed_whatever_was_before() {
    let (_memory, store) = one();
    let chunk = handle(1);
    store.apply(chunk, &append(1, pattern(1000, 1))).unwrap().wait().unwrap();
    store.set_commit_mark(chunk, version(1), Serial::from_raw(1)).unwrap();
    assert_eq!(store.state(chunk).unwrap().commit_mark, Some(Serial::from_raw(1)));
    let content = store.content(chunk).unwrap();
    store.store_version(chunk, version(2), Membership::Base).unwrap();
    let adopted =
        store.adopt((chunk, version(2)), (content, Origin::Adopted(version(1)))).unwrap().commit().unwrap();
    assert_eq!((adopted.adopted, adopted.commit_mark), (version(2), None));
}

#[test]
fn what_checksums_cannot_tell_apart_is_told_apart_by_its_history() {
    // Simulation, seed 8403: CRC-32 is linear, so records that end with a CRC-32 of their own leave the same checksum behind.
    let record = |seed: u8| -> Bytes {
        let body = pattern(508, seed.into());
        [&body[..], &crc32fast::hash(&body).to_le_bytes()].concat().into()
    };
    let (_memory, store) = one();
    let chunk = handle(1);
    store.apply(chunk, &write(1, 0, record(1))).unwrap().wait().unwrap();
    let content = Content { serial: Serial::from_raw(2), ..store.content(chunk).unwrap() };
    assert_ne!(record(1), record(2));
    assert_eq!(content.block_crcs, [crc32fast::hash(&record(2))], "a collision, for every two such records");
    store.store_version(chunk, version(2), Membership::Base).unwrap();
    // Of the same version and as many mutations: nothing to do. Of one more, or of nobody knows which version: all of it.
    let here = Content { serial: Serial::from_raw(1), ..content.clone() };
    assert_eq!(
        store.adopt((chunk, version(2)), (here.clone(), Origin::Adopted(version(1)))).unwrap().missing(),
        []
    );
    assert_eq!(store.adopt((chunk, version(2)), (here, Origin::Unknown)).unwrap().missing(), vec![0..512]);
    let mut adoption = store.adopt((chunk, version(2)), (content, Origin::Adopted(version(1)))).unwrap();
    assert_eq!(adoption.missing(), vec![0..512]);
    adoption.write(0, &record(2)).unwrap();
    adoption.commit().unwrap();
    assert_eq!(whole(&store, chunk).unwrap(), record(2));
}

#[test]
fn a_newer_grant_overtakes_an_adoption() {
    let (_memory, store) = one();
    let chunk = handle(1);
    let content = |bytes: &Bytes| Content {
        length: bytes.len() as u32,
        block_crcs: bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect(),
        ..Content::default()
    };
    let (old, new) = (pattern(1000, 1), pattern(2000, 2));
    store.store_version(chunk, version(2), Membership::Base).unwrap();
    let mut slow = store.adopt((chunk, version(2)), (content(&old), Origin::Unknown)).unwrap();
    store.store_version(chunk, version(3), Membership::Base).unwrap();
    let mut quick = store.adopt((chunk, version(3)), (content(&new), Origin::Unknown)).unwrap();
    quick.write(0, &new).unwrap();
    assert!(matches!(slow.write(0, &old), Err(Error::AdoptionOvertaken { .. })));
    quick.commit().unwrap();
    drop(slow);
    assert_eq!(whole(&store, chunk).unwrap(), new);
}

#[test]
fn a_promise_from_the_page_cache_makes_a_replica_partial_after_a_power_cut_only() {
    for (powered, seed) in [(true, 0)].into_iter().chain((0..12).map(|seed| (false, seed))) {
        let (memory, files) = memory();
        let store = open_in(&files, 1).unwrap();
        store.create(handle(1), version(1)).unwrap();
        let promised = Mutation { durability: Durability::Replicated, ..append(1, pattern(50_000, 1)) };
        store.apply(handle(1), &promised).unwrap().wait().unwrap();
        memory.die_after(0);
        drop(store);
        if powered {
            memory.kill();
        } else {
            memory.cut_power(&SeededRandom::new(seed));
        }
        let store = open_in(&files, 2).unwrap();
        let state = store.state(handle(1)).unwrap();
        assert_eq!(state.partial, !powered);
        assert!(!powered || state.length == 50_000);
    }
}

#[test]
fn a_ticket_calls_back_and_can_be_awaited() {
    let (_memory, store) = one();
    let (sender, receiver) = std::sync::mpsc::channel();
    let ticket = store.apply(handle(1), &append(1, pattern(10, 1))).unwrap();
    ticket.on_durable(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
    let ticket = store.apply(handle(1), &append(2, pattern(100_000, 1))).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ticket).unwrap();
    store.close().unwrap();
    assert!(store.apply(handle(1), &append(3, pattern(1, 1))).is_err());
}

#[test]
fn the_keeper_never_waits_for_room_that_only_it_makes_and_forgets_no_mark() {
    let (_memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    // More marks than the rest of a log that has no room for another record.
    let chunks: Vec<_> = (1..=100).map(handle).collect();
    for chunk in &chunks {
        store.create(*chunk, version(1)).unwrap();
    }
    let found: Vec<_> = chunks.iter().map(|chunk| store.find(*chunk).unwrap().1).collect();
    found.iter().for_each(|chunk| chunk.state.lock().meta.corrupt = true);
    let disk = store.inner.disks[0].clone();
    let held = found[0].state.lock();
    disk.lazy.lock().extend(chunks.iter().copied().zip(found.iter().cloned()));
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    let soon = || {
        assert!(std::time::Instant::now() < patience, "the keeper does nothing");
        std::thread::sleep(Duration::from_millis(5));
    };
    while !disk.lazy.lock().is_empty() {
        soon();
    }
    // The keeper waits for the first chunk's lock. Meanwhile others fill the log.
    while let Some(mut permit) = disk.log.try_reserve(disk::SMALL_RECORD_BYTES).unwrap() {
        let nothing = Record::Forget { clients: Vec::new() }.encode();
        let durably = Then { firmness: log::Firmness::Durable, ..Then::lazily() };
        let sequence = disk.log.append(&mut permit, nothing, durably);
        drop(permit);
        disk.log.wait_durable(sequence).unwrap();
    }
    drop(held);
    // On a thread of its own, which keeps the store: nobody waits for its threads should they hang.
    let (done, ended) = std::sync::mpsc::channel();
    let writer = store.clone();
    let writing = std::thread::spawn(move || {
        done.send(writer.apply(handle(2), &append(1, pattern(1000, 1))).and_then(Ticket::wait)).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(20)).expect("a mutation that never ends").unwrap();
    writing.join().unwrap();
    while !disk.lazy.lock().is_empty() {
        soon();
    }
    drop((store, disk));
    let store = open_in(&files, 2).unwrap();
    assert!(store.list().iter().all(|state| state.corrupt), "{:?}", store.list());
}

#[test]
fn a_mutation_that_waits_for_room_in_the_log_leaves_its_thread_to_others() {
    let (_memory, store) = one();
    let disk = store.inner.disks[0].clone();
    // Nearly all the room that the log will ever have.
    let taken: Vec<_> = [600, 300, 100].map(|kib| disk.log.reserve(kib * 1000).unwrap()).into();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (began, has_begun) = std::sync::mpsc::channel();
    let writer = store.clone();
    let waiting = runtime.spawn(async move {
        began.send(()).unwrap();
        writer.apply(handle(1), &append(1, pattern(60_000, 1))).map(drop)
    });
    has_begun.recv().unwrap();
    let (other, others) = std::sync::mpsc::channel();
    runtime.spawn(async move { other.send(()).unwrap() });
    let ran = others.recv_timeout(Duration::from_secs(20));
    let finished = waiting.is_finished();
    drop(taken);
    runtime.block_on(waiting).unwrap().unwrap();
    assert!(ran.is_ok(), "the only thread was held");
    assert!(!finished, "there was room after all: the test shows nothing");
}

#[test]
fn what_is_being_sent_stays_what_it_was_when_it_is_overwritten() {
    let (memory, store) = one();
    let chunk = handle(1);
    let block = BLOCK_BYTES as usize;
    let pieces: Vec<_> = (0..5).map(|seed| pattern(block, seed)).collect();
    for (serial, piece) in (1..).zip(&pieces[..3]) {
        store.apply(chunk, &append(serial, piece.clone())).unwrap().wait().unwrap();
    }
    let path = chunk_path(&memory);
    let lent = store.file_range(chunk, 0, 2 * BLOCK_BYTES).unwrap();
    let sent = || {
        let mut bytes = vec![0; 2 * block];
        lent.file.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    // What is not being sent needs no copy, and ends the lending all the same.
    store.apply(chunk, &write(4, 2 * BLOCK_BYTES, pieces[3].clone())).unwrap().wait().unwrap();
    assert!(matches!(store.file_range(chunk, 0, BLOCK_BYTES), Err(Error::NotFromFile { .. })));
    for serial in 5..8 {
        let offset = (serial - 5) as u32 * BLOCK_BYTES / 2;
        store.apply(chunk, &write(serial, offset, pieces[4].clone())).unwrap().wait().unwrap();
    }
    let now = whole(&store, chunk).unwrap();
    assert_eq!(now[..block / 2], pieces[4][..block / 2]);
    // All of it is in the file then.
    store.close().unwrap();
    assert!(sent() == [&pieces[0][..], &pieces[1][..]].concat(), "other bytes are sent");
    assert!(memory.paths().contains(&path), "the name stays");
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    memory.cut_power(&SeededRandom::new(1));
    let store = open_in(&files, 2).unwrap();
    assert_eq!(whole(&store, chunk).unwrap(), now);
}

#[test]
fn a_file_that_is_being_sent_is_copied_although_a_block_can_not_be_read_and_not_without_room() {
    let (memory, store) = one();
    let chunk = handle(1);
    for serial in 1..=3 {
        store.apply(chunk, &append(serial, pattern(BLOCK_BYTES as usize, serial))).unwrap().wait().unwrap();
    }
    let _lent = store.file_range(chunk, 0, 2 * BLOCK_BYTES).unwrap();
    let space = memory.space(&directory()).unwrap();
    memory.resize(space.total_bytes - space.free_bytes + 100_000);
    // Promised by the log, in which it stays until there is room.
    let data = pattern(1000, 9);
    store.apply(chunk, &write(4, 0, data.clone())).unwrap().wait().unwrap();
    assert_eq!(store.read(chunk, 0, 1000).unwrap().data, data);
    assert!(store.disks()[0].failure.is_none());
    memory.resize(1 << 30);
    store.apply(chunk, &write(5, 500, data.clone())).unwrap().wait().unwrap();
    let now = whole(&store, chunk).unwrap();
    store.close().unwrap();
    drop(store);
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    memory.cut_power(&SeededRandom::new(1));
    assert_eq!(whole(&open_in(&files, 2).unwrap(), chunk).unwrap(), now);
}

#[test]
fn forgetting_a_session_does_not_bring_a_removed_replica_back_in_place_of_its_successor() {
    let (memory, store) = one();
    let with_id = |serial| Mutation { request: request(5), ..append(serial, pattern(10, serial)) };
    store.create(handle(2), version(1)).unwrap();
    store.apply(handle(2), &with_id(1)).unwrap().wait().unwrap();
    let disk = store.inner.disks[0].clone();
    let (first, expired) = (disk.chunk(handle(1)).unwrap(), [ClientId::from_raw(7)]);
    std::thread::scope(|threads| {
        // It has seen all chunks, and waits for the first of them.
        let held = first.state.lock();
        let forgetting = threads.spawn(|| store.forget_requests(&expired));
        std::thread::sleep(Duration::from_millis(200));
        store.delete(handle(2), version(1)).unwrap();
        store.create(handle(2), version(2)).unwrap();
        drop(held);
        forgetting.join().unwrap().unwrap();
    });
    table::checkpoint(&disk, table::Closing::No).unwrap();
    drop(disk);
    memory.die_after(0);
    drop(store);
    memory.kill();
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    assert_eq!(open_in(&files, 2).unwrap().state(handle(2)).unwrap().version, version(2));
}

#[test]
fn what_is_in_a_chunk_can_be_read_again_however_many_requests_it_knows() {
    let (memory, store) = one();
    let id = |client, sequence| RequestId { client: ClientId::from_raw(client), sequence };
    let filled = |count: u64| {
        let outcomes = (0..count).map(|client| (id(client, 1), Outcome { offset: 0, length: 1 }));
        Requests::new(outcomes, [])
    };
    let append = |serial, sequence| Mutation {
        request: Some(id(0, sequence)),
        first_unacked: sequence - 1,
        ..append(serial, pattern(10, serial))
    };
    let disk = store.inner.disks[0].clone();
    let chunk = disk.chunk(handle(1)).unwrap();
    chunk.state.lock().meta.content.requests = filled(REQUESTS_MAX as u64 - 1);
    assert!(matches!(store.apply(handle(1), &append(1, 2)), Err(Error::Busy { .. })));
    chunk.state.lock().meta.content.requests = filled(REQUESTS_MAX as u64 - 2);
    store.apply(handle(1), &append(1, 2)).unwrap().wait().unwrap();
    drop((chunk, disk));
    store.close().unwrap();
    drop(store);
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    assert_eq!(open_in(&files, 2).unwrap().state(handle(1)).unwrap().length, 10);
}

#[test]
fn of_two_replicas_at_the_same_version_that_which_was_written_stays() {
    let (memory, files) = memory();
    let directories = ["/a", "/b"].map(PathBuf::from);
    let open = |seed| Store::open(&directories, options(), files.clone(), &SeededRandom::new(seed)).unwrap();
    let store = open(1);
    store.create(handle(1), version(1)).unwrap();
    let first = store.inner.disks.iter().position(|disk| disk.chunk(handle(1)).is_some()).unwrap();
    // Its disk fails, and the same order comes once more.
    store.inner.disks[first].fail("testing", &std::io::Error::other("failed"));
    store.create(handle(1), version(1)).unwrap();
    store.apply(handle(1), &append(1, pattern(10, 1))).unwrap().wait().unwrap();
    memory.die_after(0);
    drop(store);
    memory.kill();
    let again: Arc<dyn Files> = Arc::new(memory.duplicate());
    assert_eq!(open(2).state(handle(1)).unwrap().length, 10);
    // Whichever comes first.
    let turned = [directories[1].clone(), directories[0].clone()];
    let store = Store::open(&turned, options(), again, &SeededRandom::new(3)).unwrap();
    assert_eq!(store.state(handle(1)).unwrap().length, 10);
}

#[test]
fn the_scrubber_takes_its_time_also_with_many_small_chunks() {
    let (_memory, store) = one();
    for raw in 2..=100 {
        store.create(handle(raw), version(1)).unwrap();
    }
    let scrubbed = store.scrub(10 * u64::from(BLOCK_BYTES)).unwrap();
    assert!((1..=10).contains(&scrubbed.chunks), "{scrubbed:?}");
}

#[test]
fn a_disk_that_is_full_of_chunks_has_room_for_its_tables() {
    let (memory, files) = memory();
    let store = open_in(&files, 1).unwrap();
    for raw in 1..=2000 {
        store.create(handle(raw), version(1)).unwrap();
    }
    let disk = store.inner.disks[0].clone();
    // All segments that there may be: they take from the configured headroom, which is nothing here.
    for _ in 0..1000 {
        if disk.log.segments() == options().segments as usize {
            break;
        }
        disk.work.want_room();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(disk.log.segments(), options().segments as usize);
    table::checkpoint(&disk, table::Closing::No).unwrap();
    let space = files.space(&directory()).unwrap();
    memory.resize(space.total_bytes - space.free_bytes + 700_000);
    let full = (1..=2000).find_map(|raw| store.apply(handle(raw), &append(1, pattern(4000, raw))).err());
    assert!(matches!(full, Some(Error::DiskFull { .. })), "{full:?}");
    assert!(store.delete(handle(1), version(1)).unwrap(), "room can be made");
    memory.die_after(0);
    drop((store, disk));
    memory.kill();
    let store = open_in(&files, 2).unwrap();
    store.close().unwrap();
}
