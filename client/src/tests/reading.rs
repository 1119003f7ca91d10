//! Reads: replicas that are damaged, old, short, silent or gone.

use std::time::Duration;

use bytes::Bytes;
use gfs_proto::Error;
use gfs_proto::id::{ChunkHandle, ServerId};

use tokio::io::AsyncReadExt;

use super::{UNIT, pattern, put, start};
use crate::fake::{CHUNK_BYTES, Fake, FakeChunk, Verdict};
use crate::options::Options;

#[tokio::test(start_paused = true)]
async fn a_corrupt_answer_is_asked_for_again_verified_and_then_elsewhere() {
    let (fake, client) = start().await;
    put(&client, "/a", &pattern(100_000)).await.unwrap();
    let file = client.open("/a").await.unwrap();
    file.len().await.unwrap();
    // One replica's disk is damaged: it finds out when it looks itself.
    let mut bad = None;
    fake.judge(move |call, _| {
        let server = call[..2].to_owned();
        if !call.contains("read") || *bad.get_or_insert_with(|| server.clone()) != server {
            return Verdict::Go;
        }
        match call.contains("verified") {
            true => Verdict::Refuse(Error::Corrupt { handle: ChunkHandle::from_raw(1), block: 1 }),
            false => Verdict::Corrupt,
        }
    });
    fake.with(|cluster| cluster.log.clear());
    assert!(file.read_at(0, 100_000).await.unwrap() == pattern(100_000));
    let reads = fake.with(|cluster| cluster.calls("read"));
    assert_eq!(reads.len(), 3, "{reads:?}");
    assert_eq!(format!("{} verified", reads[0]), reads[1]);
    assert_ne!(reads[0][..2], reads[2][..2]);
}

#[tokio::test(start_paused = true)]
async fn damage_on_the_wire_costs_one_more_question() {
    let (fake, client) = start().await;
    put(&client, "/a", &pattern(1000)).await.unwrap();
    let file = client.open("/a").await.unwrap();
    fake.once("0+1000", Verdict::Corrupt);
    assert!(file.read_at(0, 1000).await.unwrap() == pattern(1000));
}

#[tokio::test(start_paused = true)]
async fn a_reader_with_an_old_location_looks_it_up_again_and_reads_on() {
    let (fake, client) = start().await;
    put(&client, "/a", &pattern(1000)).await.unwrap();
    let file = client.open("/a").await.unwrap();
    file.len().await.unwrap();
    fake.with(|cluster| cluster.regrant(1));
    assert!(file.read_at(0, 1000).await.unwrap() == pattern(1000));
}

#[tokio::test(start_paused = true)]
async fn dead_and_silent_servers_do_not_stop_a_reader() {
    let (fake, client) = start().await;
    let bytes = pattern(6 * UNIT);
    put(&client, "/a", &bytes).await.unwrap();
    fake.judge(|call, cluster| {
        if call.starts_with("s1 read") {
            cluster.dead.insert(1);
        }
        if call.starts_with("s2 read") { Verdict::Silence } else { Verdict::Go }
    });
    let mut back = Vec::new();
    client.get("/a", &mut back, |_| {}).await.unwrap();
    assert!(back == bytes);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_less_than_was_acknowledged_is_not_believed() {
    let (fake, client) = start().await;
    put(&client, "/a", &pattern(1000)).await.unwrap();
    let file = client.open("/a").await.unwrap();
    file.len().await.unwrap();
    // All replicas are short for a while.
    fake.with(|cluster| cluster.chunks.get_mut(&1).unwrap().bytes.truncate(500));
    let mut reads = 0;
    fake.judge(move |call, cluster| {
        reads += usize::from(call.contains("read"));
        if reads == 7 {
            cluster.chunks.get_mut(&1).unwrap().bytes = pattern(1000);
        }
        Verdict::Go
    });
    assert!(file.read_at(0, 1000).await.unwrap() == pattern(1000));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wrote_before_the_last_chunk_reads_as_zeros() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(3, Bytes::from_static(b"abc")).await.unwrap();
    let far = u64::from(CHUNK_BYTES) * 2 + 7;
    file.write_at(far, Bytes::from_static(b"xyz")).await.unwrap();
    assert_eq!(file.len().await.unwrap(), far + 3);
    let all = client.open("/a").await.unwrap().read_at(0, far + 100).await.unwrap();
    let mut expected = vec![0; 2 * CHUNK_BYTES as usize + 7];
    expected[3..6].copy_from_slice(b"abc");
    expected.extend_from_slice(b"xyz");
    assert!(all == expected);
    // Also by a read that ends before the next chunk begins.
    let part = client.open("/a").await.unwrap().read_at(2, 100).await.unwrap();
    assert!(part == expected[2..102]);
}

#[tokio::test(start_paused = true)]
async fn the_padding_of_a_sealed_chunk_is_read_as_zeros_wherever_the_read_ends() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let record = Bytes::from(pattern(CHUNK_BYTES as usize / 4 - 1));
    let mut offsets = Vec::new();
    for _ in 0..5 {
        offsets.push(file.append(record.clone()).await.unwrap());
    }
    assert_eq!(offsets[4], u64::from(CHUNK_BYTES), "the fifth is in the next chunk");
    let end = offsets[3] + record.len() as u64;
    let reader = client.open("/a").await.unwrap();
    assert_eq!(reader.read_at(end - 2, 4).await.unwrap(), [&record[record.len() - 2..], &[0; 2]].concat());
    assert_eq!(reader.read_at(end, 3).await.unwrap(), &[0; 3][..]);
}

#[tokio::test(start_paused = true)]
async fn trailing_empty_chunks_are_not_part_of_a_file() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"abc")).await.unwrap();
    fake.with(|cluster| {
        for version in [0, 1] {
            let id = cluster.names["/a"];
            let handle = cluster.chunks.len() as u64 + 1;
            let chunk = FakeChunk { version, members: vec![1, 2, 3], ..Default::default() };
            cluster.chunks.insert(handle, chunk);
            cluster.files.get_mut(&id).unwrap().push(handle);
        }
    });
    assert_eq!(client.open("/a").await.unwrap().len().await.unwrap(), 3);
    assert_eq!(file.read_at(0, 100).await.unwrap(), "abc");
}

#[tokio::test(start_paused = true)]
async fn one_replica_can_be_read_by_name() {
    let (_fake, client) = start().await;
    put(&client, "/a", &pattern(100)).await.unwrap();
    let file = client.open("/a").await.unwrap();
    for chunk in file.chunks().await.unwrap() {
        for replica in chunk.replicas {
            assert!(file.read_from(replica.id, 10, 1000).await.unwrap() == pattern(100)[10..]);
        }
    }
    assert!(matches!(file.read_from(ServerId::from_raw(99), 0, 1).await, Err(Error::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_where_it_was_after_an_error() {
    let fake = Fake::start();
    let client = fake.client(Options { patience: Duration::from_secs(3), ..Options::default() }).await;
    let bytes = pattern(3 * UNIT);
    put(&client, "/a", &bytes).await.unwrap();
    let refused = format!(" {UNIT}+{UNIT}");
    let refuse = |fake: &Fake| {
        let refused = refused.clone();
        fake.judge(move |call, _| match call.contains(" read ") && call.contains(&refused) {
            true => Verdict::Refuse(Error::unavailable("away")),
            false => Verdict::Go,
        });
    };
    let file = client.open("/a").await.unwrap();
    refuse(&fake);
    let mut reader = file.reader(0).await.unwrap();
    assert!(reader.next().await.unwrap().unwrap() == bytes[..UNIT]);
    for _ in 0..2 {
        let told = reader.next().await.unwrap_err();
        assert!(matches!(told, Error::DeadlineExceeded { .. }), "{told}");
        assert_eq!(reader.position(), UNIT as u64);
    }
    fake.judge(|_, _| Verdict::Go);
    let mut back = Vec::new();
    while let Some(more) = reader.next().await.unwrap() {
        back.extend_from_slice(&more);
    }
    assert!(back == bytes[UNIT..]);

    refuse(&fake);
    let (mut reader, mut back) = (file.reader(0).await.unwrap(), Vec::new());
    reader.read_to_end(&mut back).await.unwrap_err();
    fake.judge(|_, _| Verdict::Go);
    reader.read_to_end(&mut back).await.unwrap();
    assert!(back == bytes, "{} of {}", back.len(), bytes.len());
}

#[tokio::test(start_paused = true)]
async fn a_lookup_from_before_a_chunk_was_ever_granted_does_not_make_zeros_of_what_was_acknowledged() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.append(Bytes::from_static(b"abc")).await.unwrap();
    let mut refusals = 3;
    let mut lookups = 0;
    fake.judge(move |call, cluster| {
        if call.contains(" read ") && refusals > 0 {
            refusals -= 1;
            return Verdict::Refuse(Error::NotValidated { handle: ChunkHandle::from_raw(1), damaged: false });
        }
        if call.contains("locate") {
            lookups += 1;
            // The first two are answered by a master that lags.
            cluster.chunks.get_mut(&1).unwrap().version = u64::from(lookups > 3);
        }
        Verdict::Go
    });
    assert_eq!(file.read_at(0, 3).await.unwrap(), "abc");
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_asked_for_only_when_no_replica_may_serve_a_read_for_a_while() {
    let (fake, client) = start().await;
    put(&client, "/a", b"abc").await.unwrap();
    let file = client.open("/a").await.unwrap();
    // For so long a heartbeat is late; then something is wrong.
    for (late, asks) in [(Duration::from_millis(400), false), (Duration::from_secs(2), true)] {
        let until = tokio::time::Instant::now() + late;
        fake.judge(move |call, _| match call.contains(" read ") && tokio::time::Instant::now() < until {
            true => Verdict::Refuse(Error::NotValidated { handle: ChunkHandle::from_raw(1), damaged: false }),
            false => Verdict::Go,
        });
        fake.with(|cluster| cluster.log.clear());
        assert_eq!(file.read_at(0, 3).await.unwrap(), "abc");
        assert_eq!(!fake.with(|cluster| cluster.calls("find_lease")).is_empty(), asks, "{late:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_falls_silent_while_the_others_refuse_costs_no_more_than_at_any_other_time() {
    let (fake, client) = start().await;
    put(&client, "/a", b"abc").await.unwrap();
    let file = client.open("/a").await.unwrap();
    file.len().await.unwrap();
    let handle = ChunkHandle::from_raw(1);
    let begun = tokio::time::Instant::now();
    fake.judge(move |call, _| match begun.elapsed() {
        _ if !call.contains(" read ") => Verdict::Go,
        elapsed if elapsed > Duration::from_millis(700) && call.starts_with("s1") => Verdict::Silence,
        elapsed if elapsed < Duration::from_secs(1) => {
            Verdict::Refuse(Error::NotValidated { handle, damaged: false })
        }
        _ => Verdict::Go,
    });
    assert_eq!(file.read_at(0, 3).await.unwrap(), "abc");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_read_of_what_is_damaged_everywhere_says_so_when_its_patience_is_over() {
    let (fake, client) = start().await;
    put(&client, "/a", b"abc").await.unwrap();
    let file = client.open("/a").await.unwrap();
    file.len().await.unwrap();
    let handle = ChunkHandle::from_raw(1);
    // Who meets the damage tells the block; who is asked later knows only that it is there.
    let damaged = move |first: &mut bool| match std::mem::take(first) {
        true => Verdict::Refuse(Error::Corrupt { handle, block: 0 }),
        false => Verdict::Refuse(Error::NotValidated { handle, damaged: true }),
    };
    let mut first = true;
    fake.judge(move |call, _| if call.contains(" read ") { damaged(&mut first) } else { Verdict::Go });
    let told = file.read_at(0, 3).await.unwrap_err();
    assert!(told.is_damage(), "{told}");

    // Those that say nothing may have it.
    fake.judge(move |call, _| match call.contains(" read ") {
        true if call.starts_with("s1") => damaged(&mut true),
        true => Verdict::Refuse(Error::unavailable("no answer")),
        false => Verdict::Go,
    });
    let told = file.read_at(0, 3).await.unwrap_err();
    assert!(matches!(told, Error::DeadlineExceeded { .. }), "{told}");

    // And until the patience is over a replica may be made good.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    fake.judge(move |call, _| match call.contains(" read ") && tokio::time::Instant::now() < until {
        true => damaged(&mut true),
        false => Verdict::Go,
    });
    assert_eq!(file.read_at(0, 3).await.unwrap(), "abc");
}
