//! The stories.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkVersion, ClientId, ClusterId, DataId, RequestId, ServerId};
use gfs_proto::link::{Mutation, Source};
use gfs_proto::net::{Net, TcpNet};
use gfs_proto::time::{SystemClock, VALIDITY};
use gfs_proto::{Environment, Error, Result, pb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{CHUNK, CHUNK_BYTES, Cluster, DEADLINE, PATIENCE, SetBack, under, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_dies_another_joins_and_all_hold_the_same_with_each_record_once() {
    let mut cluster = Cluster::start(4).await;
    cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();

    let first = cluster.mutation(1);
    let big = Bytes::from((0..150_000u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>());
    assert_eq!(cluster.write(1, &first, 10, big.clone()).await.unwrap(), 150_010);
    let second = cluster.mutation(1);
    let reply = cluster.append(1, &second, b"record").await.unwrap();
    assert_eq!((reply.offset, reply.committed_length), (150_010, 150_016));
    // A retry has the same outcome, and leaves nothing behind.
    assert_eq!(cluster.append(1, &second, b"record").await.unwrap(), reply);
    for server in 1..=3 {
        let bytes = cluster.read(server, 1).await;
        assert_eq!((bytes.len(), &bytes[..10], &bytes[10..150_010]), (150_016, &[0; 10][..], &big[..]));
        assert_eq!(&bytes[150_010..], b"record");
    }
    let master = cluster.master.clone();
    until("the use of the lease is told", || master.0.lock().uses.iter().any(|used| used.handle == 42)).await;

    // One member dies in the middle: nothing is acknowledged, and the leader hears who failed.
    cluster.kill(2).await;
    let third = cluster.mutation(1);
    let error = cluster.append(1, &third, b"lost?").await.unwrap_err();
    assert_eq!(error, Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(3) });
    until("the failure is told", || master.0.lock().failures.iter().any(|failure| failure.server == 3)).await;
    assert!(cluster.append(1, &third, b"lost?").await.is_err());

    // A grant with a joiner and another primary: the retry finds the first try, or is the first.
    cluster.grant(2, &[2, 1, 4], &[1, 2]).await.unwrap();
    let (second, third) = (under(2, &second), under(2, &third));
    let reply = cluster.append(2, &third, b"lost?").await.unwrap();
    assert_eq!((reply.offset, reply.committed_length), (150_016, 150_021));
    assert_eq!(cluster.append(2, &second, b"record").await.unwrap().offset, 150_010);
    let expected = cluster.read(2, 2).await;
    assert_eq!(&expected[150_010..], b"recordlost?");
    for server in [1, 4] {
        assert_eq!(cluster.read(server, 2).await, expected, "s{server}");
    }
    // The old primary's version is gone.
    assert!(matches!(cluster.append(1, &third, b"lost?").await, Err(Error::NotPrimary { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_appends_at_once_lie_in_one_order_everywhere_until_the_chunk_is_sealed() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutations: Vec<_> = (0..100).map(|_| cluster.mutation(1)).collect();
    let appends = mutations.iter().map(|mutation| cluster.append(1, mutation, &[7; 4096]));
    let results = futures::future::join_all(appends).await;
    let mut offsets: Vec<_> =
        results.iter().filter_map(|result| Some(result.as_ref().ok()?.offset)).collect();
    offsets.sort_unstable();
    // 64 of them fit.
    assert_eq!(offsets, (0..64).map(|i| i * 4096).collect::<Vec<_>>());
    let sealed = results.iter().filter(|result| **result == Err(Error::Sealed { handle: CHUNK })).count();
    assert_eq!(sealed, 36, "{results:?}");
    let lost = mutations[results.iter().position(Result::is_err).unwrap()].request;
    let version = ChunkVersion::from_raw(1);
    let outcome = cluster.links.outcome(cluster.peer(1), CHUNK, version, lost, PATIENCE).await.unwrap();
    assert_eq!((outcome.offset, outcome.sealed), (None, true));
    assert_eq!(cluster.read(1, 1).await, cluster.read(2, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_is_sent_to_the_next_chunk_by_a_seal_that_is_not_on_all_members() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let first = cluster.mutation(1);
    cluster.write(1, &first, 0, Bytes::from(vec![1; CHUNK_BYTES as usize - 4])).await.unwrap();
    cluster.kill(1).await;
    let failed = Err(Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(2) });
    // One of them has the chunk sealed, the others find the seal while it is on its way: none is told of it.
    let late: Vec<_> = (0..8).map(|_| cluster.mutation(1)).collect();
    let told = late.iter().map(|mutation| cluster.append(1, mutation, b"too long"));
    assert!(futures::future::join_all(told).await.iter().all(|told| *told == failed));
    let (second, third) = (late[0].clone(), cluster.mutation(1));
    assert_eq!(cluster.append(1, &third, b"too long").await, failed);
    let version = ChunkVersion::from_raw(1);
    let outcome = cluster.links.outcome(cluster.peer(1), CHUNK, version, second.request, PATIENCE).await;
    assert_eq!(outcome.map(|_| ()), failed.map(|_| ()));
    // The survivor's content has the seal: now it is committed.
    cluster.grant(2, &[1], &[1]).await.unwrap();
    let sealed = Err(Error::Sealed { handle: CHUNK });
    assert_eq!(cluster.append(1, &under(2, &second), b"too long").await, sealed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_has_no_role_but_its_data_and_its_word_and_serves_when_validated() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"kept").await.unwrap();
    cluster.kill(0).await;
    cluster.restart(0).await;
    let again = cluster.mutation(1);
    let master = cluster.master.clone();
    until("it registers again", || master.0.lock().epochs.len() == 3).await;
    assert!(matches!(cluster.append(1, &again, b"more").await, Err(Error::NotPrimary { .. })));
    // What it holds beyond its commit mark it can't vouch for, and it knows no primary to ask: it says so.
    let doubted = |failure: &pb::MemberFailure| failure.version == 1 && failure.server == 1;
    let master = cluster.master.clone();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !master.0.lock().failures.iter().any(doubted) {
        assert!(tokio::time::Instant::now() < deadline, "the doubt is told");
        assert!(cluster.read_once(1, 1).await.is_err());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Neither a late activation nor a repeated store makes it primary again.
    let request = pb::ActivateRequest { head: Cluster::head(1), handle: CHUNK.raw(), version: 1 };
    assert!(cluster.control(1).await.activate(request).await.is_err());
    cluster.grant(2, &[1, 2], &[1, 2]).await.unwrap();
    assert_eq!(cluster.append(1, &under(2, &again), b"more").await.unwrap().offset, 4);
    assert_eq!(cluster.append(1, &under(2, &mutation), b"kept").await.unwrap().offset, 0);
    assert_eq!(&cluster.read(2, 2).await[..], b"keptmore");
    assert_eq!(&cluster.read(1, 2).await[..], b"keptmore");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_missed_something_takes_the_longest_content_of_the_others() {
    let mut cluster = Cluster::start(3).await;
    cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();
    let first = cluster.mutation(1);
    cluster.append(1, &first, b"all ").await.unwrap();
    cluster.kill(2).await;
    let second = cluster.mutation(1);
    assert!(cluster.append(1, &second, b"some").await.is_err());
    cluster.restart(2).await;
    let master = cluster.master.clone();
    until("it registers again", || master.0.lock().epochs.len() == 4).await;
    let reply = cluster.grant(2, &[3, 1], &[3, 1]).await.unwrap();
    assert_eq!(reply.length, 8);
    // The retry finds that it had come that far, and everybody shows it.
    assert_eq!(cluster.append(3, &under(2, &second), b"some").await.unwrap().offset, 4);
    for server in [1, 3] {
        assert_eq!(&cluster.read(server, 2).await[..], b"all some");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_writes_of_many_pushed_before_leave_all_replicas_the_same() {
    let mut cluster = Cluster::start(3).await;
    cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();
    let writes: Vec<_> = (0..40u8).map(|i| (i, cluster.mutation(1))).collect();
    let chain: Vec<_> = (1..=3).map(|server| cluster.peer(server).clone()).collect();
    let (cluster, chain) = (&cluster, &chain);
    let writes = writes.into_iter().map(|(i, mutation)| async move {
        let offset = u32::from(i) % 7 * 10_000;
        let payload = Payload::new(offset, Bytes::from(vec![i; 50_000]));
        let data = DataId::from_bytes([i; 16]);
        cluster.links.push(chain, CHUNK, data, &payload, PATIENCE).await.unwrap();
        let durability = if i % 2 == 0 { pb::Durability::Deferred } else { pb::Durability::Synced };
        let mutation = Mutation { durability, ..mutation };
        let source = Source::Pushed(data, payload.length());
        cluster.links.write(cluster.peer(1), &mutation, offset, &source, PATIENCE).await.unwrap()
    });
    futures::future::join_all(writes).await;
    let version = ChunkVersion::from_raw(1);
    let request = RequestId { client: ClientId::from_raw(1), sequence: 1000 };
    let sync =
        Mutation { handle: CHUNK, version, request, first_unacked: 0, durability: pb::Durability::Synced };
    let reply = cluster.links.sync(cluster.peer(1), &sync, PATIENCE).await.unwrap();
    assert_eq!(reply.committed_length, 110_000);
    let expected = cluster.read(1, 1).await;
    assert_eq!(expected.len(), 110_000);
    for server in [2, 3] {
        assert!(cluster.read(server, 1).await == expected, "s{server} differs");
    }
}

impl Cluster {
    /// A bit flips on a server, so far into the file that begins with nines.
    fn rot(&self, server: usize, at_byte: u64) {
        let files = &self.servers[server - 1].files;
        let holds = |path: &&PathBuf| files.bytes(path).is_some_and(|bytes| bytes.starts_with(&[9; 1000]));
        files.flip(files.paths().iter().find(holds).unwrap(), 8 * at_byte);
    }

    async fn until_damage_is_told(&self) {
        let corrupt = |report: &pb::ReportRequest| report.replicas.iter().any(|replica| replica.corrupt);
        until("told", || self.master.0.lock().reports.iter().any(corrupt)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_never_returned_and_reported() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let first = cluster.mutation(1);
    let data = Bytes::from(vec![9; 200_000]);
    cluster.write(1, &first, 0, data.clone()).await.unwrap();
    assert_eq!(cluster.read(2, 1).await, data);
    cluster.rot(2, 70_000);
    let error = cluster.read_once(2, 1).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. } | Error::NotValidated { .. }), "{error}");
    cluster.until_damage_is_told().await;
    // Who asks later, or after the scrubber, hears of the damage as well.
    assert_eq!(cluster.read_once(2, 1).await, Err(Error::NotValidated { handle: CHUNK, damaged: true }));
    // A grant that the damaged one joins makes it whole again.
    cluster.grant(2, &[1, 2], &[1]).await.unwrap();
    assert_eq!(cluster.read(2, 2).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_left_alone_and_is_damaged_says_so_while_the_others_still_have_it() {
    // Guard alone_unverified (docs/decisions/0021). Nobody has read the block since it rotted.
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let first = cluster.mutation(1);
    let data = Bytes::from(vec![9; 200_000]);
    cluster.write(1, &first, 0, data.clone()).await.unwrap();
    // A leader that comes later asks again.
    cluster.grant(2, &[1], &[1]).await.unwrap();
    cluster.rot(1, 170_000);
    let failed = Err(Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(1) });
    assert_eq!(cluster.grant(2, &[1], &[1]).await, failed);
    cluster.until_damage_is_told().await;
    // The leader turns to whom it would have done without.
    cluster.grant(3, &[2], &[2]).await.unwrap();
    assert_eq!(cluster.read(2, 3).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_denies_or_excludes_is_not_served_and_silence_ends_everything() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"data").await.unwrap();
    cluster.read(2, 1).await;
    let request = pb::ExcludeRequest { head: Cluster::head(2), handle: CHUNK.raw(), version: 2 };
    let epoch = cluster.control(2).await.exclude(request).await.unwrap().into_inner().epoch;
    assert_eq!(Some(&epoch), cluster.master.0.lock().epochs.last());
    let refused = Err(Error::NotValidated { handle: CHUNK, damaged: false });
    assert_eq!(cluster.read_once(2, 1).await, refused);
    cluster.read(1, 1).await;
    cluster.master.0.lock().denied = vec![CHUNK.raw()];
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while cluster.read_once(1, 1).await != refused {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.master.0.lock().denied.clear();
    cluster.read(1, 1).await;
    cluster.master.0.lock().silent = true;
    while cluster.read_once(1, 1).await != refused {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.master.0.lock().silent = false;
    cluster.read(1, 1).await;
    assert!(cluster.master.0.lock().epochs.len() > 2, "a lapse begins a new epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validity_ends_three_seconds_after_the_last_answered_heartbeat_was_sent_whatever_the_time_of_day() {
    let clock = Arc::new(SetBack { real: SystemClock::new(), back_ms: AtomicU64::new(0) });
    let environment = Environment { clock: clock.clone(), ..Environment::real() };
    let mut cluster = Cluster::start_in(environment, 1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"data").await.unwrap();
    cluster.read(1, 1).await;
    let master = cluster.master.clone();
    master.0.lock().travel = Duration::from_millis(700);
    let before = master.0.lock().answered;
    until("an answer is on its way", || master.0.lock().answered > before + 1).await;
    // Whatever the server has sent later than now is answered by nobody.
    master.0.lock().silent = true;
    let end = tokio::time::Instant::now() + VALIDITY;
    clock.back_ms.store(3_600_000, Ordering::Relaxed);
    tokio::time::sleep_until(end).await;
    assert_eq!(cluster.read_once(1, 1).await, Err(Error::NotValidated { handle: CHUNK, damaged: false }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_obeyed_only_for_this_server_and_from_the_newest_leader() {
    let cluster = Cluster::start(1).await;
    let head = Cluster::head(1).unwrap();
    let mut control = cluster.control(1).await;
    let mut probe = async |head: pb::OrderHead| -> Result<()> {
        let request = pb::ProbeRequest { head: Some(head) };
        control.probe(request).await.map(drop).map_err(Error::from)
    };
    probe(head.clone()).await.unwrap();
    let theirs = ClusterId::from_bytes([8; 16]).to_string();
    let other = probe(pb::OrderHead { cluster: theirs, ..head.clone() }).await;
    assert!(matches!(other, Err(Error::WrongCluster { .. })));
    let other = probe(pb::OrderHead { server: 2, ..head.clone() }).await;
    assert!(matches!(other, Err(Error::WrongServer { .. })));
    probe(pb::OrderHead { term: 9, ..head.clone() }).await.unwrap();
    assert!(matches!(probe(head).await, Err(Error::StaleTerm { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_replica_is_gone_and_reported_so_but_not_one_that_was_granted_anew() {
    let cluster = Cluster::start(1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    cluster.grant(2, &[1], &[1]).await.unwrap();
    let mut control = cluster.control(1).await;
    let order =
        |version_max| pb::DeleteReplicaRequest { head: Cluster::head(1), handle: CHUNK.raw(), version_max };
    assert!(!control.delete_replica(order(1)).await.unwrap().into_inner().deleted);
    assert!(control.delete_replica(order(2)).await.unwrap().into_inner().deleted);
    assert!(!control.delete_replica(order(2)).await.unwrap().into_inner().deleted);
    assert_eq!(cluster.read_once(1, 2).await, Err(Error::NoSuchChunk { handle: CHUNK }));
    let master = cluster.master.clone();
    until("told", || master.0.lock().reports.iter().any(|report| report.removed == [CHUNK.raw()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_is_refused_and_the_server_lives() {
    let cluster = Cluster::start(1).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * garbage", b"GFSDgarbage", b"\0\0\0\0", b"x"] {
        let mut connection = TcpNet.connect(&cluster.peer(1).address).await.unwrap();
        connection.write_all(garbage).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Whatever it says, it closes.
        drop(tokio::time::timeout(DEADLINE, connection.read_to_end(&mut answer)).await.unwrap());
    }
    let probe = pb::ProbeRequest { head: Cluster::head(1) };
    cluster.control(1).await.probe(probe).await.unwrap();
}

/// What a member keeps of a chunk's requests, as its primary would collect it.
pub(super) async fn request_ids(cluster: &Cluster, server: u64, version: u64) -> Vec<(u64, u64)> {
    let request =
        pb::CollectRequest { cluster: super::CLUSTER.to_string(), server, handle: CHUNK.raw(), version };
    let content = cluster.control(server).await.collect(request).await.unwrap().into_inner().content.unwrap();
    content.requests.iter().filter_map(|one| one.request).map(|id| (id.client, id.sequence)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_an_expired_session_are_forgotten_and_members_that_differ_in_them_agree_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.0.lock().keep_ms = 1000;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let old = cluster.mutation(1);
    let other_client = |mutation: &Mutation, client| Mutation {
        request: RequestId { client: ClientId::from_raw(client), ..mutation.request },
        ..mutation.clone()
    };
    let open = other_client(&old, 2);
    cluster.append(1, &old, b"old").await.unwrap();
    cluster.append(1, &open, b"open").await.unwrap();

    // The session of client 1 ends: what it did can still be told for a while, new requests of it are refused.
    cluster.master.0.lock().expired.push(1);
    let late = cluster.mutation(1);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut taken = 0;
    let refused = loop {
        let request =
            Mutation { request: RequestId { sequence: 1000 + taken, ..late.request }, ..late.clone() };
        match cluster.append(1, &request, b"late").await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(tokio::time::Instant::now() < deadline, "never refused");
        tokio::time::sleep(PAUSE).await;
    };
    assert_eq!(refused, Error::SessionExpired { client: ClientId::from_raw(1) });
    let version = ChunkVersion::from_raw(1);
    let outcome = cluster.links.outcome(cluster.peer(1), CHUNK, version, late.request, PATIENCE).await;
    assert_eq!(outcome, Err(refused));

    // Then its ids go, at each member in its own time; the other client's stay.
    for server in [1, 2] {
        while request_ids(&cluster, server, 1).await != [(2, open.request.sequence)] {
            assert!(tokio::time::Instant::now() < deadline, "s{server} never forgot");
            tokio::time::sleep(PAUSE).await;
        }
    }
    assert_eq!(cluster.append(1, &open, b"open").await.unwrap().offset, 3, "a repeat finds its outcome");

    // One member has forgotten what the other has not: they reconcile, and write on.
    let third = other_client(&cluster.mutation(1), 3);
    cluster.append(1, &third, b"third").await.unwrap();
    cluster.kill(1).await;
    {
        let mut said = cluster.master.0.lock();
        said.keep_ms = 0;
        said.expired.push(3);
    }
    while request_ids(&cluster, 1, 1).await != [(2, open.request.sequence)] {
        assert!(tokio::time::Instant::now() < deadline, "never forgot the third");
        tokio::time::sleep(PAUSE).await;
    }
    cluster.master.0.lock().keep_ms = 3_600_000;
    cluster.restart(1).await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let grant = loop {
        match cluster.grant(2, &[2, 1, 3], &[1, 2]).await {
            Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            other => break other,
        }
    };
    grant.unwrap();
    let next = other_client(&cluster.mutation(2), 2);
    cluster.append(2, &next, b"next").await.unwrap();
    let expected = cluster.read(2, 2).await;
    assert!(expected.ends_with(b"thirdnext"));
    for server in [1, 3] {
        assert_eq!(cluster.read(server, 2).await, expected, "s{server}");
    }
}

const PAUSE: Duration = Duration::from_millis(20);
