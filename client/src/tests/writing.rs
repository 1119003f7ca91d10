//! Writes and appends: lost replies, new primaries, seals, power cuts.

use std::time::Duration;

use bytes::Bytes;
use gfs_proto::id::ChunkHandle;
use gfs_proto::{Error, Retry};

use super::{UNIT, pattern, put, start};
use crate::fake::{CHUNK_BYTES, Fake, Verdict};
use crate::options::{Durability, Options};

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
    // A write that was given up is gone on with where it stopped.
    fake.judge(|_, _| Verdict::Go);
    let taken = usize::try_from(writer.position()).unwrap();
    writer.write(&pattern(8 * UNIT)[taken..]).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), 8 * UNIT as u64);
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(8 * UNIT));
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
    assert!(!fake.with(|cluster| cluster.calls("find_lease")).is_empty(), "a new lease was asked for");
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
async fn a_writer_that_took_nothing_says_nothing_about_the_length() {
    let (_fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, pattern(100).into()).await.unwrap();
    assert_eq!(file.writer(1_000_000).finish().await.unwrap(), 1_000_000);
    assert_eq!(file.read_at(0, 200).await.unwrap(), pattern(100));
}

#[tokio::test(start_paused = true)]
async fn a_flush_after_one_that_failed_says_again_what_is_wrong() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    fake.judge(|call, _| match call.contains(" write ") {
        true => Verdict::Refuse(Error::bad_argument("no")),
        false => Verdict::Go,
    });
    let mut writer = file.writer(0);
    writer.write(b"abc").await.unwrap();
    for _ in 0..3 {
        assert_eq!(writer.flush().await, Err(Error::bad_argument("no")));
    }
    assert_eq!(writer.finish().await, Err(Error::bad_argument("no")));
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
async fn data_of_an_expired_session_is_written_under_the_next_one() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.append(Bytes::from_static(b"a")).await.unwrap();
    fake.with(|cluster| cluster.expired.insert(1));
    // A renewal finds it out.
    tokio::time::sleep(Duration::from_secs(200)).await;
    file.append(Bytes::from_static(b"b")).await.unwrap();
    let clients: Vec<u64> =
        fake.with(|cluster| cluster.chunks[&1].requests.keys().map(|id| id.client.raw()).collect());
    assert_eq!(clients, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_mutation_is_not_sent_again_once_its_session_may_have_ended() {
    let fake = Fake::start();
    let client = fake.client(Options { patience: Duration::from_secs(3600), ..Options::default() }).await;
    let file = client.create("/a", 0).await.unwrap();
    let started = tokio::time::Instant::now();
    let last = std::sync::Arc::new(parking_lot::Mutex::new(started));
    let seen = last.clone();
    // Cut off from everything, and the first attempt may have got through.
    fake.judge(move |call, _| {
        if call.contains(" append ") {
            *seen.lock() = tokio::time::Instant::now();
            return Verdict::LoseReply;
        }
        if call.contains("renew") { Verdict::Refuse(Error::unavailable("cut off")) } else { Verdict::Go }
    });
    let error = file.append(Bytes::from_static(b"a")).await.unwrap_err();
    assert!(matches!(error, Error::SessionExpired { .. }), "{error}");
    assert!(*last.lock() - started < Duration::from_secs(600), "sent after the end of the session");
    assert!(started.elapsed() >= Duration::from_secs(599), "given up too early");
}

#[tokio::test(start_paused = true)]
async fn a_mutation_is_given_up_when_its_answer_is_here_and_those_of_a_stream_with_their_promise() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    for at in 0..3 {
        file.write_at(at, Bytes::from_static(b"a")).await.unwrap();
    }
    assert_eq!(fake.with(|cluster| cluster.data_requests.clone()), [(1, 1), (2, 2), (3, 3)]);
    // A lost answer: the repeat gives up nothing of itself, and what is written meanwhile nothing of it.
    fake.once(" write ", Verdict::LoseReply);
    let (first, second) =
        tokio::join!(file.write_at(0, Bytes::from_static(b"b")), file.write_at(1, Bytes::from_static(b"c")));
    first.and(second).unwrap();
    let sent = fake.with(|cluster| std::mem::take(&mut cluster.data_requests));
    assert!(sent[3..].iter().all(|(_, first)| *first <= 5), "{sent:?}");
    assert!(sent[3..].iter().any(|(_, first)| *first == 4), "{sent:?}");
    // The units of a stream may have to be asked for again until the last of them promises them all.
    let mut writer = file.writer(0);
    writer.write(&pattern(2 * UNIT)).await.unwrap();
    writer.flush().await.unwrap();
    writer.write(b"x").await.unwrap();
    writer.finish().await.unwrap();
    let sent = fake.with(|cluster| std::mem::take(&mut cluster.data_requests));
    assert_eq!(sent, [(6, 6), (7, 6), (8, 6), (9, 9)]);
}

#[tokio::test(start_paused = true)]
async fn an_error_after_an_attempt_that_may_have_got_through_is_no_proof_that_it_did_not() {
    let handle = ChunkHandle::from_raw(1);
    let version = gfs_proto::id::ChunkVersion::from_raw(1);
    let server = gfs_proto::id::ServerId::from_raw(2);
    let refusal = Error::bad_argument("no");
    for (first, settled) in [
        (Error::unavailable("x"), false),
        (Error::MemberFailed { handle, server }, false),
        (Error::NotPrimary { handle, version }, false),
        (Error::NoSuchChunk { handle }, false),
        (Error::Busy { what: "queue".into() }, true),
    ] {
        let (fake, client) = start().await;
        let file = client.create("/a", 0).await.unwrap();
        let mut answers = vec![refusal.clone(), first.clone()];
        fake.judge(move |call, _| match call.contains(" write ") {
            true => answers.pop().map_or(Verdict::Go, Verdict::Refuse),
            false => Verdict::Go,
        });
        let told = file.write_at(0, Bytes::from_static(b"a")).await.unwrap_err();
        match settled {
            true => assert_eq!(told, refusal, "after {first}"),
            false => assert!(matches!(told, Error::DeadlineExceeded { .. }), "after {first}: {told}"),
        }
    }
    // One that broke inside says so of itself.
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    fake.once(" write ", Verdict::Refuse(Error::internal("broke")));
    let told = file.write_at(0, Bytes::from_static(b"a")).await.unwrap_err();
    assert!(matches!(told, Error::DeadlineExceeded { .. }), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_running_lease_is_written_under_while_nobody_leads() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"a")).await.unwrap();
    // No master says anything any more.
    fake.judge(|call, _| if call.starts_with('m') { Verdict::Silence } else { Verdict::Go });
    let asked = fake.with(|cluster| cluster.calls("m1 ").len() + cluster.calls("m2 ").len());
    for at in 1..20 {
        file.write_at(at, Bytes::from_static(b"b")).await.unwrap();
    }
    assert_eq!(file.append(Bytes::from_static(b"c")).await.unwrap(), 20);
    let mut writer = file.writer(21);
    writer.write(b"dd").await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls("m1 ").len() + cluster.calls("m2 ").len()), asked);
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"abbbbbbbbbbbbbbbbbbbcdd");
}

#[tokio::test(start_paused = true)]
async fn a_slow_or_dead_member_is_a_retry_for_the_client_and_an_error_only_when_its_patience_ends() {
    let fake = Fake::start();
    let client = fake.client(Options { patience: Duration::from_secs(20), ..Options::default() }).await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"a")).await.unwrap();
    let server = gfs_proto::id::ServerId::from_raw(2);
    let handle = ChunkHandle::from_raw(1);
    let mut slow = 3;
    fake.judge(move |call, _| match call.contains(" write ") && slow > 0 {
        true => {
            slow -= 1;
            [Verdict::Silence, Verdict::Refuse(Error::MemberFailed { handle, server }), Verdict::LoseReply]
                [slow]
                .clone()
        }
        false => Verdict::Go,
    });
    file.write_at(1, Bytes::from_static(b"b")).await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"ab");
    // For ever: then the client is told, when its patience is over and not before.
    fake.judge(move |call, _| match call.contains(" write ") {
        true => Verdict::Refuse(Error::MemberFailed { handle, server }),
        false => Verdict::Go,
    });
    let began = tokio::time::Instant::now();
    let told = file.write_at(2, Bytes::from_static(b"c")).await.unwrap_err();
    assert!(matches!(told, Error::DeadlineExceeded { .. }), "{told}");
    assert!((18..=22).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_write_past_the_largest_file_is_refused_before_anybody_is_asked() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let limit = client.chunk_bytes().file_bytes_max();
    for offset in [limit, limit - 1] {
        let told = file.write_at(offset, Bytes::from_static(b"ab")).await.unwrap_err();
        let expected = Error::TooLarge { what: "file".into(), size: limit, limit };
        assert_eq!(told, expected, "at {offset}");
    }
    assert!(
        fake.with(|cluster| cluster.calls("add_chunk").is_empty() && cluster.calls(" write ").is_empty())
    );
}

#[tokio::test(start_paused = true)]
async fn of_many_appenders_at_the_end_of_a_chunk_one_asks_the_master() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.append(Bytes::from(vec![0; UNIT])).await.unwrap();
    fake.with(|cluster| cluster.log.clear());
    // Three more fit into the first chunk, four into each after it.
    let appends = (1..32).map(|byte| file.append(Bytes::from(vec![byte; UNIT])));
    let offsets = futures::future::try_join_all(appends).await.unwrap();
    let distinct: std::collections::BTreeSet<u64> = offsets.iter().copied().collect();
    assert_eq!(distinct.len(), 31);
    let (chunks, asked) = fake.with(|cluster| {
        let count = |what: &str| cluster.calls(what).len();
        (cluster.chunks.len(), count(" locate") + count("add_chunk") + count("find_lease"))
    });
    assert_eq!(chunks, 8);
    assert!(asked <= 3 * chunks, "{asked} questions for {chunks} chunks");
}

#[tokio::test(start_paused = true)]
async fn that_a_record_never_came_to_a_sealed_chunk_is_not_believed_after_the_end_of_its_session() {
    let fake = Fake::start();
    let client = fake.client(Options { patience: Duration::from_secs(3600), ..Options::default() }).await;
    let file = client.create("/a", 0).await.unwrap();
    let handle = ChunkHandle::from_raw(1);
    // The answer comes only when the chunk may have forgotten the ids of the session.
    let answers_at = tokio::time::Instant::now() + Duration::from_secs(900);
    fake.judge(move |call, cluster| {
        if call.contains(" append ") {
            return Verdict::Refuse(Error::Sealed { handle });
        }
        if call.contains(" outcome ") && tokio::time::Instant::now() < answers_at {
            return Verdict::Refuse(Error::unavailable("cut off"));
        }
        cluster.chunks.values_mut().for_each(|chunk| chunk.sealed = true);
        if call.contains("renew") { Verdict::Refuse(Error::unavailable("cut off")) } else { Verdict::Go }
    });
    let error = file.append(Bytes::from_static(b"a")).await.unwrap_err();
    assert!(matches!(error, Error::SessionExpired { .. }), "{error}");
    assert!(tokio::time::Instant::now() < answers_at, "it has waited for an answer that proves nothing");
}
