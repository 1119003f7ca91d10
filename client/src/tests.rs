//! The client against a cluster in memory: what it does when things go wrong. Time is virtual.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use gfs_proto::id::{ChunkHandle, ServerId};
use gfs_proto::{Error, Retry};
use tokio::io::AsyncReadExt;

use crate::client::Client;
use crate::fake::{CHUNK_BYTES, Fake, Verdict};
use crate::options::{Durability, Options};
use crate::transfer::{PutOptions, TransferError};

const UNIT: usize = 1 << 20;

async fn start() -> (Fake, Client) {
    let fake = Fake::start();
    let client = fake.client(Options::default()).await;
    (fake, client)
}

/// Bytes that differ at every position within a few chunks.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at % 251) as u8).collect()
}

async fn put(client: &Client, path: &str, bytes: &[u8]) -> Result<u64, TransferError> {
    client.put(bytes, path, PutOptions { replication: 0, replace: true }, |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn a_file_of_several_chunks_goes_in_and_out_whole() {
    let (fake, client) = start().await;
    let bytes = pattern(2 * CHUNK_BYTES as usize + 300_001);
    let mut heard = Vec::new();
    let options = PutOptions::default();
    client.put(&bytes[..], "/a", options, |count| heard.push(count)).await.unwrap();
    assert_eq!(heard.last(), Some(&(bytes.len() as u64)));
    assert!(heard.is_sorted());
    assert!(fake.with(|cluster| cluster.content("/a")) == bytes);
    assert_eq!(fake.with(|cluster| cluster.names.len()), 1, "the hidden name is gone");

    let file = client.open("/a").await.unwrap();
    assert_eq!(file.len().await.unwrap(), bytes.len() as u64);
    let mut back = Vec::new();
    assert_eq!(client.get("/a", &mut back, |_| {}).await.unwrap(), bytes.len() as u64);
    assert!(back == bytes);
    let mut streamed = Vec::new();
    file.reader(5).await.unwrap().read_to_end(&mut streamed).await.unwrap();
    assert!(streamed == bytes[5..]);
    let at = CHUNK_BYTES as usize - 10;
    assert_eq!(file.read_at(at as u64, 20).await.unwrap(), bytes[at..at + 20]);
    assert_eq!(file.read_at(bytes.len() as u64 - 1, 10).await.unwrap().len(), 1);
    assert!(file.read_at(u64::MAX - 1, 10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_is_a_file() {
    let (_fake, client) = start().await;
    put(&client, "/a", b"").await.unwrap();
    assert_eq!(client.get("/a", &mut Vec::new(), |_| {}).await.unwrap(), 0);
    assert!(client.stat("/a").await.unwrap().is_file());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_exists_is_replaced_only_when_asked() {
    let (fake, client) = start().await;
    put(&client, "/a", b"old").await.unwrap();
    let refused = client.put(&b"new"[..], "/a", PutOptions::default(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, TransferError::Gfs(Error::AlreadyExists { .. })));
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"old");
    put(&client, "/a", b"new").await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"new");
}

#[tokio::test(start_paused = true)]
async fn a_put_that_fails_leaves_nothing_under_any_name() {
    let (fake, client) = start().await;
    fake.judge(|call, _| match call.contains("write") {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    let failed = put(&client, "/a", b"x").await.unwrap_err();
    assert!(matches!(failed, TransferError::Gfs(Error::BadArgument { .. })), "{failed}");
    assert!(fake.with(|cluster| cluster.names.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_on_over_its_pages() {
    let (_fake, client) = start().await;
    for name in ["/e", "/a", "/c", "/b", "/d"] {
        client.create(name, 0).await.unwrap();
    }
    let names: Vec<_> = client.list("/").map_ok(|entry| entry.name).try_collect().await.unwrap();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let refused: Result<Vec<_>, _> = client.list("no/path").try_collect().await;
    assert!(matches!(refused, Err(Error::BadPath { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_in_the_middle_of_a_call_is_followed_under_the_same_request_id() {
    let (fake, client) = start().await;
    fake.judge(|call, cluster| {
        if call.starts_with("m1 create") {
            cluster.leader = 2;
        }
        Verdict::Go
    });
    client.create("/a", 0).await.unwrap();
    let calls = fake.with(|cluster| cluster.calls("create"));
    assert_eq!(calls, ["m1 create 1:1", "m2 create 1:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_falls_silent_is_left_for_the_next() {
    let (fake, client) = start().await;
    fake.judge(|call, cluster| match call.starts_with("m1 create") {
        true => {
            cluster.leader = 2;
            Verdict::Silence
        }
        false => Verdict::Go,
    });
    client.create("/a", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_of_a_create_is_found_again_and_not_taken_for_a_clash() {
    let (fake, client) = start().await;
    fake.once("create", Verdict::LoseReply);
    client.create("/a", 0).await.unwrap();
    let calls = fake.with(|cluster| cluster.calls("create"));
    assert_eq!(calls, ["m1 create 1:1", "m2 create 1:1", "m1 create 1:1"]);
    assert!(matches!(client.create("/a", 0).await, Err(Error::AlreadyExists { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_while_idle_is_replaced_without_notice() {
    let (fake, client) = start().await;
    fake.with(|cluster| cluster.expired.insert(1));
    client.create("/a", 0).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls("create")), ["m1 create 1:1", "m1 create 2:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expires_with_an_answer_outstanding_is_told() {
    let (fake, client) = start().await;
    let mut first = true;
    fake.judge(move |call, cluster| match call.contains("create") && std::mem::take(&mut first) {
        true => {
            cluster.expired.insert(1);
            Verdict::Refuse(Error::unavailable("no idea what became of it"))
        }
        false => Verdict::Go,
    });
    assert!(matches!(client.create("/a", 0).await, Err(Error::SessionExpired { .. })));
    client.create("/b", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_renews_its_session_and_says_what_it_has_seen() {
    let (fake, client) = start().await;
    client.create("/a", 0).await.unwrap();
    client.create("/b", 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!(fake.with(|cluster| cluster.first_unacked), 3);
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fake.with(|cluster| cluster.calls("renew").len());
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(fake.with(|cluster| cluster.calls("renew").len()), before, "renewed after its end");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_call_gives_up_after_the_patience_and_says_why() {
    let (fake, client) = start().await;
    fake.judge(|_, _| Verdict::Refuse(Error::NotEnoughServers { wanted: 3, alive: 2 }));
    let started = tokio::time::Instant::now();
    let error = client.create("/a", 0).await.unwrap_err();
    let waited = started.elapsed();
    assert!(
        matches!(&error, Error::DeadlineExceeded { last, .. } if last.contains("3 replicas wanted, 2")),
        "{error}"
    );
    assert!((Duration::from_secs(28)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
}

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
    let mut expected = vec![0; far as usize + 3];
    expected[3..6].copy_from_slice(b"abc");
    expected[far as usize..].copy_from_slice(b"xyz");
    assert!(all == expected);
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
            let chunk = crate::fake::FakeChunk { version, members: vec![1, 2, 3], ..Default::default() };
            cluster.chunks.insert(handle, chunk);
            cluster.files.get_mut(&id).unwrap().push(handle);
        }
    });
    assert_eq!(client.open("/a").await.unwrap().len().await.unwrap(), 3);
    assert_eq!(file.read_at(0, 100).await.unwrap(), "abc");
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_order_and_memory_in_bounds() {
    let (fake, client) = start().await;
    let bytes = pattern(3 * CHUNK_BYTES as usize);
    put(&client, "/a", &bytes).await.unwrap();
    assert!(fake.with(|cluster| cluster.content("/a")) == bytes);
    let writes = fake.with(|cluster| cluster.calls(" write "));
    let ends: Vec<&str> = writes.iter().map(|call| &call[3..]).collect();
    let mut expected = Vec::new();
    for chunk in 1..=3 {
        expected.extend((0..4).map(|unit| format!("write c{chunk} {}+{UNIT}", unit * UNIT)));
    }
    assert_eq!(ends, expected);
    assert!(fake.with(|cluster| cluster.buffered_max) <= 9 * UNIT);
}

#[tokio::test(start_paused = true)]
async fn pushes_run_ahead_of_the_turn_but_not_beyond_the_window() {
    let fake = Fake::start();
    let client = fake.client(Options { window: 3, ..Options::default() }).await;
    let file = client.create("/a", 0).await.unwrap();
    fake.judge(|call, _| if call.contains(" write ") { Verdict::Silence } else { Verdict::Go });
    let mut writer = file.writer(0);
    let stuck = tokio::time::timeout(Duration::from_secs(3), writer.write(&pattern(8 * UNIT))).await;
    assert!(stuck.is_err(), "the window is full");
    assert_eq!(fake.with(|cluster| cluster.calls(" push ").len()), 3);
    fake.judge(|_, _| Verdict::Go);
}

#[tokio::test(start_paused = true)]
async fn a_lost_write_reply_is_settled_by_a_repeat_and_written_once() {
    let (fake, client) = start().await;
    for what in [" write ", " push "] {
        let path = format!("/{}", what.trim());
        fake.once(what, Verdict::LoseReply);
        put(&client, &path, &pattern(2 * UNIT + 5)).await.unwrap();
        assert!(fake.with(|cluster| cluster.content(&path)) == pattern(2 * UNIT + 5));
    }
    let versions: Vec<_> = fake.with(|cluster| cluster.chunks.values().map(|chunk| chunk.version).collect());
    assert!(versions.iter().any(|version| *version > 1), "a new lease was asked for: {versions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_member_costs_a_new_lease_and_the_hint_names_it() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"a")).await.unwrap();
    fake.with(|cluster| cluster.dead.insert(2));
    file.write_at(1, Bytes::from_static(b"b")).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls("find_lease")), ["m1 find_lease v1 s2"]);
    fake.with(|cluster| {
        let primary = cluster.chunks[&1].members[0];
        cluster.dead = [primary].into();
    });
    file.write_at(2, Bytes::from_static(b"c")).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"abc");
}

#[tokio::test(start_paused = true)]
async fn evicted_data_is_pushed_again() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let mut evictions = 2;
    fake.judge(move |call, cluster| {
        if call.contains(" write ") && evictions > 0 {
            evictions -= 1;
            cluster.buffers.clear();
        }
        Verdict::Go
    });
    file.write_at(0, pattern(UNIT).into()).await.unwrap();
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(UNIT));
    assert_eq!(fake.with(|cluster| cluster.calls(" push ").len()), 3);
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_stream_that_a_power_cut_took_before_their_promise_are_sent_again() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let mut cut = true;
    fake.judge(move |call, cluster| {
        // Two units are acknowledged, deferred, when all servers lose them and come back with a new grant.
        if call.contains(&format!(" write c1 {}+", 2 * UNIT)) && std::mem::take(&mut cut) {
            let chunk = cluster.chunks.get_mut(&1).unwrap();
            chunk.bytes.truncate(UNIT);
            chunk.requests.retain(|_, at| (*at as usize) < UNIT);
            cluster.regrant(1);
        }
        Verdict::Go
    });
    let mut writer = file.writer(0);
    writer.write(&pattern(3 * UNIT + 9)).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), 3 * UNIT as u64 + 9);
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(3 * UNIT + 9));
}

#[tokio::test(start_paused = true)]
async fn a_flush_without_new_bytes_syncs_what_is_deferred_and_a_second_one_asks_nobody() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let mut writer = file.writer(0);
    writer.write(&pattern(2 * UNIT)).await.unwrap();
    writer.flush().await.unwrap();
    let calls = fake.with(|cluster| cluster.calls(" write "));
    assert_eq!(calls.len(), 3);
    assert!(calls[2].ends_with("0+0"), "{calls:?}");
    writer.flush().await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls(" write ").len()), 3);
    writer.write(b"x").await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), 2 * UNIT as u64 + 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_ends_a_stream_and_nothing_after_it_is_written() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    fake.judge(|call, _| match call.contains(&format!(" write c1 {UNIT}+")) {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    let mut writer = file.writer(0);
    let written = writer.write(&pattern(4 * UNIT)).await;
    let failed = match written {
        Ok(()) => writer.flush().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(failed, Error::BadArgument { .. }), "{failed}");
    assert!(matches!(writer.flush().await, Err(Error::BadArgument { .. })));
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(UNIT));
}

#[tokio::test(start_paused = true)]
async fn a_long_transfer_that_moves_outlasts_the_patience() {
    let fake = Fake::start();
    let client = fake.client(Options { patience: Duration::from_secs(10), ..Options::default() }).await;
    // Each unit needs a failed attempt with its timeout first: 60 s in all.
    let mut seen = std::collections::BTreeSet::new();
    fake.judge(move |call, _| match call.contains(" write ") && seen.insert(call[3..].to_owned()) {
        true => Verdict::Silence,
        false => Verdict::Go,
    });
    let started = tokio::time::Instant::now();
    put(&client, "/a", &pattern(12 * UNIT)).await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(30));
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(12 * UNIT));
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_an_unanswered_attempt_is_not_called_a_failure() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let mut attempts = 0;
    fake.judge(move |call, _| {
        attempts += usize::from(call.contains(" write "));
        match (call.contains(" write "), attempts) {
            (true, 1) => Verdict::LoseReply,
            (true, _) => Verdict::Refuse(Error::bad_argument("gone")),
            _ => Verdict::Go,
        }
    });
    let error = file.write_at(0, Bytes::from_static(b"a")).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test(start_paused = true)]
async fn records_fill_a_chunk_then_go_to_the_next() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let record = Bytes::from(pattern(UNIT - 1));
    let mut offsets = Vec::new();
    for _ in 0..6 {
        offsets.push(file.append(record.clone()).await.unwrap());
    }
    let chunk = u64::from(CHUNK_BYTES);
    let step = UNIT as u64 - 1;
    assert_eq!(offsets, [0, step, 2 * step, 3 * step, chunk, chunk + step]);
    for offset in offsets {
        assert!(file.read_at(offset, step).await.unwrap() == record);
    }
    assert!(fake.with(|cluster| cluster.chunks[&1].sealed));
    assert!(matches!(
        file.append(pattern(UNIT + 1).into()).await,
        Err(Error::TooLarge { limit, .. }) if limit == UNIT as u64
    ));
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_reply_was_lost_before_the_seal_is_found_in_the_old_chunk() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.append(Bytes::from_static(b"first")).await.unwrap();
    let mut first = true;
    fake.judge(move |call, _| match call.contains(" append ") && std::mem::take(&mut first) {
        true => Verdict::LoseReply,
        false => Verdict::Go,
    });
    assert_eq!(file.append(Bytes::from_static(b"second")).await.unwrap(), 5);
    // A seal between the lost reply and the repeat: a primary that says Sealed before it looks for the id.
    let mut calls = 0;
    fake.judge(move |call, cluster| {
        calls += usize::from(call.contains(" append "));
        match (call.contains(" append "), calls) {
            (true, 1) => Verdict::LoseReply,
            (true, 2) => {
                cluster.chunks.get_mut(&1).unwrap().sealed = true;
                Verdict::Refuse(Error::Sealed { handle: ChunkHandle::from_raw(1) })
            }
            _ => Verdict::Go,
        }
    });
    assert_eq!(file.append(Bytes::from_static(b"third")).await.unwrap(), 11);
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"firstsecondthird");
    assert_eq!(fake.with(|cluster| cluster.calls(" outcome ").len()), 1);
}

#[tokio::test(start_paused = true)]
async fn appenders_that_meet_at_the_end_of_a_chunk_share_the_next() {
    let (fake, client) = start().await;
    client.create("/a", 0).await.unwrap();
    let record = Bytes::from(pattern(700_000));
    let appends = (0..20).map(|_| {
        let (client, record) = (client.clone(), record.clone());
        async move { client.open("/a").await.unwrap().append(record).await.unwrap() }
    });
    let mut offsets = futures::future::join_all(appends).await;
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), 20);
    assert_eq!(fake.with(|cluster| cluster.chunks.len()), 4, "five records in each, no hole between");
    let file = client.open("/a").await.unwrap();
    for offset in offsets {
        assert!(file.read_at(offset, record.len() as u64).await.unwrap() == record);
    }
}

#[tokio::test(start_paused = true)]
async fn replicated_writes_are_synced_by_a_flush_of_the_file() {
    let fake = Fake::start();
    let options = Options { durability: Durability::Replicated, ..Options::default() };
    let client = fake.client(options).await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls(" write ").len()), 1);
    file.flush().await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls(" write ").len()), 2);
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
