//! What happens to replicas in good times.

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
