//! Links over sockets and over wires in memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, join_all};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::*;
use crate::frame::{self, Frame, Head, Kind, Payload};
use crate::id::{ChunkHandle, ChunkVersion, DataId};
use crate::net::{Connection, Listener, Net, Stream};

impl Stream for DuplexStream {}

/// A network in memory whose other side a test plays; without sockets, paused time is exact.
struct Wires {
    accepted: mpsc::UnboundedSender<Connection>,
    buffer_bytes: usize,
    attempts: AtomicUsize,
}
impl Net for Wires {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            self.attempts.fetch_add(1, Ordering::Relaxed);
            if address == "nowhere" {
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(self.buffer_bytes);
            self.accepted.send(Connection::new(Box::new(theirs), None)).unwrap();
            Ok(Connection::new(Box::new(ours), None))
        })
    }
    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        unreachable!("only connects")
    }
}

struct Test {
    links: Links,
    net: Arc<Wires>,
    accepted: mpsc::UnboundedReceiver<Connection>,
}
fn test_with(buffer_bytes: usize) -> Test {
    let (sender, accepted) = mpsc::unbounded_channel();
    let net = Arc::new(Wires { accepted: sender, buffer_bytes, attempts: AtomicUsize::new(0) });
    let environment = Environment { net: net.clone(), ..Environment::real() };
    Test { links: Links::new(&environment), net, accepted }
}
fn test() -> Test {
    test_with(64 * 1024)
}
impl Test {
    /// The next connection, greeted as server 7 of cluster 1.
    async fn accept(&mut self) -> Connection {
        let mut connection = self.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        connection
    }
}

fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 16])
}
fn seven() -> Peer {
    Peer { server: ServerId::from_raw(7), address: "somewhere".into() }
}
async fn greet(connection: &mut Connection, from: u64) {
    let hello = frame::read_frame(connection).await.unwrap().unwrap();
    assert_eq!(hello.head.kind, Kind::Hello);
    let meta = pb::HelloMeta { cluster: cluster(1).to_string(), server: 0, from };
    let answer = Frame::new(Head::new(Kind::Hello, hello.head.request), &meta);
    frame::write_frame(connection, &answer, &[]).await.unwrap();
}
async fn take(connection: &mut Connection) -> (Frame, Bytes) {
    let frame = frame::read_frame(connection).await.unwrap().unwrap();
    let payload = frame::read_payload(connection, &frame).await.unwrap().unwrap();
    (frame, payload)
}
async fn done(connection: &mut Connection, frame: &Frame) {
    let mut head = Head::new(Kind::Done, frame.head.request);
    head.offset = frame.head.offset;
    frame::write_frame(connection, &Frame::new(head, &()), &[]).await.unwrap();
}
/// A small question that is told apart by its offset.
fn question(offset: u32) -> Frame {
    let mut head =
        Head::new(Kind::Committed, 0).of_chunk(ChunkHandle::from_raw(5), ChunkVersion::from_raw(1));
    head.offset = offset;
    Frame::new(head, &())
}
fn pushed(length: usize) -> (Frame, Vec<Bytes>) {
    let payload = Bytes::from(vec![3; length]);
    (Frame::with_payload(Head::new(Kind::Push, 0), &(), &payload), vec![payload])
}

#[tokio::test(start_paused = true)]
async fn answers_out_of_order_reach_their_callers() {
    let mut test = test();
    let peer = seven();
    let calls = join_all((0..10).map(|i| test.links.call(&peer, question(i), Vec::new())));
    let serve = async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        let mut frames = Vec::new();
        for _ in 0..10 {
            frames.push(take(&mut connection).await.0);
        }
        for frame in frames.iter().rev() {
            done(&mut connection, frame).await;
        }
    };
    let (answers, ()) = tokio::join!(calls, serve);
    for (i, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap().0.head.offset as usize, i);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_in_the_middle_of_its_frame_leaves_the_connection_usable() {
    let mut test = test();
    let (frame, payload) = pushed(1 << 20);
    // The pipe holds 64 KiB: the frame is stuck halfway when its call is given up.
    let (links, peer) = (test.links.clone(), seven());
    let stuck = tokio::spawn(async move { links.call(&peer, frame, payload).await });
    let mut connection = test.accept().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    stuck.abort();

    let peer = seven();
    let (frame, payload) = pushed(100);
    let call = test.links.call(&peer, frame, payload);
    let serve = async {
        assert_eq!(take(&mut connection).await.1.len(), 1 << 20);
        let (frame, payload) = take(&mut connection).await;
        assert_eq!(payload.len(), 100);
        done(&mut connection, &frame).await;
    };
    tokio::join!(call, serve).0.unwrap();
    assert_eq!(test.net.attempts.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn another_cluster_or_server_is_a_typed_error() {
    let mut test = test();
    test.links.set_identity(cluster(2), None);
    let peer = seven();
    let (answer, ()) = tokio::join!(test.links.call(&peer, question(0), Vec::new()), async {
        greet(&mut test.accepted.recv().await.unwrap(), 7).await;
    });
    assert!(matches!(answer, Err(Error::WrongCluster { .. })), "{answer:?}");

    test.links.set_identity(cluster(1), None);
    let (answer, ()) = tokio::join!(test.links.call(&peer, question(0), Vec::new()), async {
        greet(&mut test.accepted.recv().await.unwrap(), 8).await;
    });
    assert_eq!(answer.unwrap_err(), Error::WrongServer { ours: 8, theirs: 7 });

    // The same when the server itself refuses.
    let refusal = Error::WrongServer { ours: 9, theirs: 7 };
    let (answer, ()) = tokio::join!(test.links.call(&peer, question(0), Vec::new()), async {
        let mut connection = test.accepted.recv().await.unwrap();
        frame::read_frame(&mut connection).await.unwrap();
        frame::write_frame(&mut connection, &Frame::failed(0, &refusal), &[]).await.unwrap();
    });
    assert_eq!(answer.unwrap_err(), refusal);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_its_deadline_and_is_connected_anew() {
    let mut test = test();
    let peer = seven();
    let started = tokio::time::Instant::now();
    let mut frame = question(0);
    frame.head.deadline_ms = 4_000;
    let (answer, connection) = tokio::join!(test.links.call(&peer, frame, Vec::new()), async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        connection
    });
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    assert_eq!(started.elapsed(), Duration::from_secs(4));

    let (answer, ()) = tokio::join!(test.links.call(&peer, question(1), Vec::new()), async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        let (frame, _) = take(&mut connection).await;
        done(&mut connection, &frame).await;
    });
    answer.unwrap();
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_greets_costs_two_seconds() {
    let test = test();
    let started = tokio::time::Instant::now();
    let answer = test.links.call(&seven(), question(0), Vec::new()).await;
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    assert_eq!(started.elapsed(), GREETING_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_than_the_bound_are_on_the_way() {
    let mut test = test_with(1 << 20);
    let calls_max = connection::CALLS_MAX;
    let (links, peer) = (test.links.clone(), seven());
    let calls =
        tokio::spawn(
            async move { join_all((0..300).map(|i| links.call(&peer, question(i), Vec::new()))).await },
        );
    let mut connection = test.accept().await;
    let mut frames = Vec::new();
    for _ in 0..calls_max {
        frames.push(take(&mut connection).await.0);
    }
    let more = tokio::time::timeout(Duration::from_secs(1), connection.sniff()).await;
    assert!(more.is_err(), "more than the bound");
    for frame in &frames {
        done(&mut connection, frame).await;
    }
    for _ in calls_max..300 {
        let (frame, _) = take(&mut connection).await;
        done(&mut connection, &frame).await;
    }
    assert!(calls.await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_within_the_deadline_has_sent_nothing() {
    let mut test = test_with(1 << 20);
    let (links, peer) = (test.links.clone(), seven());
    let calls = tokio::spawn(async move {
        join_all((0..300).map(|i| {
            let mut frame = question(i);
            frame.head.deadline_ms = 1_000;
            links.call(&peer, frame, Vec::new())
        }))
        .await
    });
    let connection = test.accept().await;
    let answers = calls.await.unwrap();
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Error::Busy { .. }))).count();
    assert_eq!(busy, 300 - connection::CALLS_MAX);
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_answer_is_an_error_of_its_call_alone() {
    let mut test = test();
    let range = Range {
        handle: ChunkHandle::from_raw(5),
        version: ChunkVersion::from_raw(1),
        offset: 65_000,
        length: 1_000,
    };
    let (links, peer) = (test.links.clone(), seven());
    let read = async {
        let damaged = links.read(&peer, &range, false, CALL_TIMEOUT).await;
        assert_eq!(damaged.unwrap_err(), Error::Corrupt { handle: range.handle, block: 1 });
        links.read(&peer, &range, true, CALL_TIMEOUT).await.unwrap()
    };
    let serve = async {
        let mut connection = test.accept().await;
        for damage in [1, 0] {
            let (question, _) = take(&mut connection).await;
            assert_eq!(question.meta::<pb::ReadMeta>().unwrap().verify, damage == 0);
            let mut payload = vec![9; 1_000];
            let mut head = Head { kind: Kind::Data, ..question.head };
            head.offset = range.offset;
            let meta = pb::ReadReplyMeta { committed_length: 66_000, sealed: true };
            let answer = Frame::with_payload(head, &meta, &payload);
            payload[999] ^= damage;
            frame::write_frame(&mut connection, &answer, &payload).await.unwrap();
        }
    };
    let (reply, ()) = tokio::join!(read, serve);
    assert_eq!(reply.bytes, vec![9; 1_000]);
    assert!(reply.sealed && reply.committed_length == 66_000);
    assert_eq!(test.net.attempts.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_connection_fails_its_calls_and_is_replaced() {
    let mut test = test();
    let peer = seven();
    for _ in 0..2 {
        let calls = join_all((0..3).map(|i| test.links.call(&peer, question(i), Vec::new())));
        let (answers, ()) = tokio::join!(calls, async {
            let mut connection = test.accepted.recv().await.unwrap();
            greet(&mut connection, 7).await;
            take(&mut connection).await;
        });
        assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Unavailable { .. }))), "{answers:?}");
    }
    assert_eq!(test.net.attempts.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_share_an_attempt_to_connect_and_its_failure() {
    let test = test();
    let peer = Peer { server: ServerId::from_raw(7), address: "nowhere".into() };
    let started = tokio::time::Instant::now();
    let answers = join_all((0..20).map(|i| test.links.call(&peer, question(i), Vec::new()))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Unavailable { .. }))), "{answers:?}");
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn large_frames_have_at_most_four_connections_and_small_ones_their_own() {
    let mut test = test();
    let (links, peer) = (test.links.clone(), seven());
    let large = tokio::spawn(async move {
        join_all((0..20).map(|_| {
            let (frame, payload) = pushed(100_000);
            links.call(&peer, frame, payload)
        }))
        .await
    });
    let mut connections = Vec::new();
    for _ in 0..BULK_LINKS_MAX {
        connections.push(test.accept().await);
    }
    let (links, peer) = (test.links.clone(), seven());
    let small = tokio::spawn(async move { links.call(&peer, question(0), Vec::new()).await });
    let mut connection = test.accept().await;
    let (frame, _) = take(&mut connection).await;
    done(&mut connection, &frame).await;
    small.await.unwrap().unwrap();

    let answering = join_all(connections.iter_mut().map(|connection| async {
        while let Ok(Some(frame)) = frame::read_frame(connection).await {
            frame::read_payload(connection, &frame).await.unwrap().unwrap();
            done(connection, &frame).await;
        }
    }));
    tokio::select! {
        answers = large => assert!(answers.unwrap().iter().all(Result::is_ok)),
        _ = answering => panic!("connections closed"),
    }
    assert_eq!(test.net.attempts.load(Ordering::Relaxed), BULK_LINKS_MAX + 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut test = test();
    let peer = seven();
    let mut frame = question(0);
    frame.head.deadline_ms = 200_000;
    let (answer, mut connection) = tokio::join!(test.links.call(&peer, frame, Vec::new()), async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        let (frame, _) = take(&mut connection).await;
        tokio::time::sleep(2 * IDLE_CLOSE).await;
        done(&mut connection, &frame).await;
        connection
    });
    answer.unwrap();
    let started = tokio::time::Instant::now();
    assert!(frame::read_frame(&mut connection).await.unwrap().is_none());
    assert!(started.elapsed() <= IDLE_CLOSE);
}

#[tokio::test(start_paused = true)]
async fn forwarded_pieces_come_back_as_one_and_a_forward_that_breaks_off_does_not_verify() {
    let mut test = test();
    let peer = seven();
    let (frame, payload) = pushed(600_000);
    let forward = async {
        let mut buffer = BytesMut::from(&payload[0][..]);
        let start = buffer.as_ptr();
        let mut forward = test.links.forward(&peer, frame.clone()).await.unwrap();
        for length in [262_144, 262_144, 75_712] {
            forward.send(buffer.split_to(length)).await.unwrap();
        }
        let (bytes, answer) = forward.finish().await.unwrap();
        assert_eq!(answer.head.kind, Kind::Done);
        assert_eq!(bytes, payload[0]);
        assert_eq!(bytes.as_ptr(), start, "copied");

        // The second one ends after its first piece; the connection goes on.
        let mut forward = test.links.forward(&peer, frame.clone()).await.unwrap();
        forward.send(BytesMut::from(&payload[0][..262_144])).await.unwrap();
        assert!(matches!(forward.finish().await, Err(Error::Unavailable { .. })));
        let (frame, payload) = pushed(10);
        test.links.call(&peer, frame, payload).await.unwrap();
    };
    let serve = async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        let (frame, _) = take(&mut connection).await;
        done(&mut connection, &frame).await;
        let frame = frame::read_frame(&mut connection).await.unwrap().unwrap();
        assert_eq!(frame::read_payload(&mut connection, &frame).await.unwrap(), Err(4));
        let (frame, _) = take(&mut connection).await;
        done(&mut connection, &frame).await;
    };
    tokio::join!(forward, serve);
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_named_in_the_push_without_its_first_server() {
    let mut test = test();
    let chain: Vec<Peer> = [7, 8, 9]
        .map(|server| Peer { server: ServerId::from_raw(server), address: format!("host{server}") })
        .to_vec();
    let payload = Payload::new(100, Bytes::from_static(b"abc"));
    let data = DataId::from_bytes([5; 16]);
    let push = test.links.push(&chain, ChunkHandle::from_raw(1), data, &payload, CALL_TIMEOUT);
    let serve = async {
        let mut connection = test.accepted.recv().await.unwrap();
        greet(&mut connection, 7).await;
        let (frame, bytes) = take(&mut connection).await;
        let meta: pb::PushMeta = frame.meta().unwrap();
        let servers: Vec<u64> = meta.chain.iter().map(|replica| replica.server).collect();
        assert_eq!((servers, &meta.data_id[..], &bytes[..]), (vec![8, 9], &[5; 16][..], &b"abc"[..]));
        done(&mut connection, &frame).await;
    };
    tokio::join!(push, serve).0.unwrap();
}
