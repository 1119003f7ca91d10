//! The formats: the same bytes for ever, and nothing else is taken for them.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use gfs_proto::size::BLOCK_BYTES;
use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn change() -> Change {
    Change {
        handle: ChunkHandle::from_raw(1),
        generation: 2,
        serial: Serial::from_raw(3),
        commit_mark: Some(Serial::from_raw(2)),
        in_file: true,
        promised: false,
        sealed: true,
        offset: 4,
        length: 5,
        chunk_length: 9,
        first_block: 0,
        crcs: vec![0xdead_beef],
        request: Some(RequestId { client: ClientId::from_raw(6), sequence: 7 }),
        first_unacked: 5,
    }
}

#[test]
fn records_and_tables_have_these_bytes() {
    let mut part = Vec::new();
    let head = PartHead { life: 1, sequence: 2, durable: 1, length: 3, part: 0, last: true };
    put_part(&mut part, head, [b"a", b"bc"]);
    let header = TableHeader {
        number: 1,
        life: 2,
        log_from: 3,
        generation: 4,
        entries: 5,
        full: true,
        clean: false,
        boot_id: "b".into(),
    };
    let mut entry = Vec::new();
    let meta = Meta { version: ChunkVersion::from_raw(8), partial: true, ..Meta::default() };
    TableEntry { handle: ChunkHandle::from_raw(1), as_of: 9, meta: Some(meta) }.encode(&mut entry);
    let lines = [
        hex(&Record::Change(change()).encode()),
        hex(&Record::Delete { handle: ChunkHandle::from_raw(1) }.encode()),
        hex(&part),
        hex(&header.encode()[..72]),
        hex(&entry),
    ];
    expect_test::expect![[r#"
        0901000000000000000200000000000000030000000000000003000000000000000d0400000005000000090000000000000006000000000000000700000000000000050000000000000001000000efbeadde
        060100000000000000
        474c523144217ba201000000000000000200000000000000010000000000000003000000000001006162630000000000
        4746535441424c4502000000b12d552a0100000000000000020000000000000003000000000000000400000000000000050000000000000001000000010000006200000000000000
        4a000000987accec0100000000000000090000000000000002080000000000000000000000000000000000000000000000000000000000000001000000000000000000000000000000000000000000000000"#]].assert_eq(&lines.join("\n"));
}

/// What [`hex`] wrote.
fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn what_format_1_wrote_is_read_and_knows_of_nothing_that_was_given_up() {
    let old = unhex(
        "0301000000000000000200000000000000030000000000000003000000000000000d0400000005000000090000000000000006000000000000\
         00070000000000000001000000efbeadde",
    );
    let expected = Change { first_unacked: 0, ..change() };
    assert_eq!(Record::decode(&mut &old[..]), Some(Record::Change(expected)));
    let old = unhex(
        "460000002de0d7710100000000000000090000000000000001080000000000000000000000000000000000000000000000000000000000000001\
         0000000000000000000000000000000000000000",
    );
    let meta = Meta { version: ChunkVersion::from_raw(8), partial: true, ..Meta::default() };
    let expected = TableEntry { handle: ChunkHandle::from_raw(1), as_of: 9, meta: Some(meta.clone()) };
    assert_eq!(TableEntry::decode(&mut &old[..]), Some(expected));
    // The same content as a record of the log.
    let full = [&[1][..], &old[8..16], &old[25..]].concat();
    let expected = Record::Full { handle: ChunkHandle::from_raw(1), meta };
    assert_eq!(Record::decode(&mut &full[..]), Some(expected));
}

prop_compose! {
    fn contents()(length in 0u32..300_000, serial in 0..=COUNT_MAX, sealed in any::<bool>(),
        crcs in prop::collection::vec(any::<u32>(), 5), requests in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()), 0..4),
        first_kept in prop::collection::vec((any::<u64>(), any::<u64>()), 0..4),
    ) -> Content {
        let blocks = length.div_ceil(BLOCK_BYTES) as usize;
        let outcomes = requests.into_iter().map(|(client, sequence, offset, length)| {
            (RequestId { client: ClientId::from_raw(client), sequence }, Outcome { offset, length })
        });
        let first_kept = first_kept.into_iter().map(|(client, first)| (ClientId::from_raw(client), first));
        let requests = Requests::new(outcomes, first_kept);
        Content { length, block_crcs: crcs[..blocks].to_vec(), requests, sealed, serial: Serial::from_raw(serial) }
    }
}
prop_compose! {
    fn metas()(numbers in any::<[u64; 3]>(), mark in prop::option::of(0..u64::MAX), flags in any::<[bool; 3]>(), content in contents()) -> Meta {
        Meta {
            version: ChunkVersion::from_raw(numbers[0]),
            adopted: ChunkVersion::from_raw(numbers[1]),
            generation: numbers[2] >> 1,
            commit_mark: mark.map(Serial::from_raw),
            partial: flags[0],
            corrupt: flags[1],
            promised: flags[2],
            content,
        }
    }
}
fn records() -> impl Strategy<Value = Record> {
    let handle = any::<u64>().prop_map(ChunkHandle::from_raw);
    prop_oneof![
        (handle.clone(), metas()).prop_map(|(handle, meta)| Record::Full { handle, meta }),
        (handle.clone(), any::<u64>()).prop_map(|(handle, version)| Record::Version {
            handle,
            version: ChunkVersion::from_raw(version)
        }),
        (handle.clone(), any::<[u32; 4]>(), any::<bool>()).prop_map(|(handle, numbers, in_file)| {
            let [offset, length, chunk_length, first_block] = numbers;
            let request = change().request.filter(|_| !in_file);
            let first_unacked = if in_file { 0 } else { change().first_unacked };
            Record::Change(Change {
                handle,
                offset,
                length,
                chunk_length,
                first_block,
                in_file,
                request,
                first_unacked,
                ..change()
            })
        }),
        (handle.clone(), any::<u64>(), any::<bool>()).prop_map(|(handle, through, promised)| {
            Record::Synced { handle, through: Serial::from_raw(through), promised }
        }),
        handle.prop_map(|handle| Record::Delete { handle }),
        prop::collection::vec(any::<u64>().prop_map(ClientId::from_raw), 0..5)
            .prop_map(|clients| Record::Forget { clients }),
    ]
}

proptest! {
    #[test]
    fn a_record_round_trips(record in records()) {
        let bytes = record.encode();
        let mut rest = &bytes[..];
        prop_assert_eq!(Record::decode(&mut rest), Some(record));
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_table_entry_round_trips_and_a_flipped_bit_is_found(meta in prop::option::of(metas()), as_of in any::<u64>(), flip in any::<prop::sample::Index>()) {
        let entry = TableEntry { handle: ChunkHandle::from_raw(1), as_of, meta };
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        prop_assert_eq!(TableEntry::decode(&mut &bytes[..]), Some(entry));
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(TableEntry::decode(&mut &bytes[..]), None);
    }

    #[test]
    fn a_part_round_trips_and_a_flipped_bit_is_found(data in prop::collection::vec(any::<u8>(), 0..100), flip in any::<prop::sample::Index>()) {
        let head = PartHead { life: 5, sequence: 6, durable: 5, length: data.len() as u32, part: 1, last: false };
        let mut bytes = Vec::new();
        put_part(&mut bytes, head, [&data, &[]]);
        prop_assert_eq!(parse_part(&bytes), Some(head));
        let bit = flip.index((HEAD_BYTES + data.len()) * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(parse_part(&bytes), None);
    }

    #[test]
    fn garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _any = Record::decode(&mut &bytes[..]);
        prop_assert_eq!(TableEntry::decode(&mut &bytes[..]), None);
        prop_assert_eq!(parse_part(&bytes), None);
        prop_assert_eq!(TableHeader::decode(&bytes), Err(None));
    }
}

#[test]
fn a_count_that_no_log_reaches_is_damage() {
    let mut meta = Meta { generation: COUNT_MAX, ..Meta::default() };
    let handle = ChunkHandle::from_raw(1);
    let decoded =
        |meta: &Meta| Record::decode(&mut &Record::Full { handle, meta: meta.clone() }.encode()[..]);
    assert!(decoded(&meta).is_some());
    meta.content.serial = Serial::from_raw(COUNT_MAX + 1);
    assert_eq!(decoded(&meta), None);
    let far = Change { generation: u64::MAX, ..change() };
    assert_eq!(Record::decode(&mut &Record::Change(far).encode()[..]), None);
    for (sequence, good) in [(COUNT_MAX, true), (u64::MAX, false)] {
        let mut part = Vec::new();
        put_part(
            &mut part,
            PartHead { life: 1, sequence, durable: 0, length: 0, part: 0, last: true },
            [&[], &[]],
        );
        assert_eq!(parse_part(&part).is_some(), good);
        assert_eq!(parse_part_of(2, &part), None);
    }
}
