//! What copies of replicas keep, and what is not copied.

use super::*;

fn source(files: &Arc<dyn Files>) -> (Store, Bytes) {
    let store = open_in(files, 1).unwrap();
    store.create(handle(1), version(1)).unwrap();
    let bytes = pattern(200_000, 1);
    let mutation = Mutation { request: request(3), ..append(1, bytes.clone()) };
    store.apply(handle(1), &mutation).unwrap().wait().unwrap();
    (store, bytes)
}

#[test]
fn a_copy_has_the_bytes_the_checksums_and_the_requests_also_after_a_crash_and_then_goes_its_own_way() {
    let (memory, files) = memory();
    let (store, bytes) = source(&files);
    let copied = store.copy((handle(1), version(1)), (handle(2), version(1))).unwrap();
    assert_eq!((copied.adopted, copied.length, copied.partial), (version(1), 200_000, false));
    let again = store.copy((handle(1), version(1)), (handle(2), version(1))).unwrap();
    assert_eq!(again, copied, "the same again is harmless");
    memory.die_after(0);
    drop(store);
    memory.cut_power(&SeededRandom::new(7));

    let store = open_in(&files, 1).unwrap();
    assert_eq!(whole(&store, handle(2)).unwrap(), bytes);
    let (old, new) = (store.content(handle(1)).unwrap(), store.content(handle(2)).unwrap());
    assert_eq!((old.block_crcs, old.requests), (new.block_crcs, new.requests));
    let next = pattern(10, 2);
    store.apply(handle(2), &append(1, next.clone())).unwrap().wait().unwrap();
    assert_eq!(whole(&store, handle(1)).unwrap(), bytes);
    assert_eq!(whole(&store, handle(2)).unwrap(), [&bytes[..], &next[..]].concat());
}

#[test]
fn only_a_good_replica_of_the_wanted_version_is_copied() {
    let (memory, files) = memory();
    let (store, _) = source(&files);
    let copy = |of| store.copy((handle(1), version(of)), (handle(2), version(1)));
    assert!(matches!(copy(2), Err(Error::VersionMismatch { .. })));
    // One that has only heard of a newer version may lack what was acknowledged under it.
    store.create(handle(3), version(1)).unwrap();
    store.store_version(handle(3), version(2), Membership::Base).unwrap();
    let early = store.copy((handle(3), version(2)), (handle(4), version(1)));
    assert!(matches!(early, Err(Error::NotAdopted { .. })), "{early:?}");
    // Traps T20: damage is found before it is copied.
    memory.flip(&chunk_path(&memory), 70_000 * 8);
    let refused = copy(1);
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    assert_ne!(store.state(handle(2)).map(|state| state.adopted), Ok(version(1)));
}
