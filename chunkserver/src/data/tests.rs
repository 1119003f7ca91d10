//! The data plane over sockets and pipes, with a handler in memory.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::{self, Frame, Head, Kind};
use gfs_proto::link::{self, CALL_TIMEOUT, Links, Mutation, Peer, Range};
use gfs_proto::net::{Connection, Stream};
use gfs_proto::random::{Random, SeededRandom};
use gfs_proto::size::BLOCK_BYTES;
use gfs_proto::{Environment, Error};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_util::sync::CancellationToken;

mod garbage;

use super::*;
use crate::store::files::{File, Files, Open, RealFiles};

const CHUNK: ChunkHandle = ChunkHandle::from_raw(5);
const VERSION: ChunkVersion = ChunkVersion::from_raw(2);
const CONTENT_BYTES: usize = 3_000_001;

/// A replica of one chunk that obeys and remembers.
struct Fake {
    server: u64,
    content: Vec<u8>,
    file: Arc<dyn File>,
    /// Whether the file alone has its content.
    lends: bool,
    reads: AtomicUsize,
    questions: AtomicUsize,
    applied: Mutex<Vec<u64>>,
    mutated: Mutex<Vec<(WriteRequest, Result<Payload>)>>,
    _directory: tempfile::TempDir,
}

fn fake(server: u64) -> Arc<Fake> {
    fake_that(server, true)
}

fn fake_that(server: u64, lends: bool) -> Arc<Fake> {
    let random = SeededRandom::new(1);
    let content: Vec<u8> = (0..CONTENT_BYTES.div_ceil(8))
        .flat_map(|_| random.bits64().to_le_bytes())
        .take(CONTENT_BYTES)
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chunk");
    std::fs::File::create(&path).unwrap().write_all_at(&content, 0).unwrap();
    let file = RealFiles.open(&path, Open::Existing).unwrap();
    let (reads, questions) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (applied, mutated) = (Mutex::default(), Mutex::default());
    Arc::new(Fake { server, content, file, lends, reads, questions, applied, mutated, _directory: directory })
}

impl read::Source for Fake {
    fn bytes(&self, offset: u32, length: u32) -> Result<(Bytes, Vec<u32>)> {
        let bytes = &self.content[offset as usize..][..length as usize];
        Ok((Bytes::copy_from_slice(bytes), frame::payload_crcs(offset, bytes)))
    }
    fn file_range(&self, offset: u32, length: u32) -> Result<Option<FileRange>> {
        assert!(offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES) && length > 0);
        let (_, crcs) = self.bytes(offset, length)?;
        let range = FileRange { file: self.file.clone(), offset: offset.into(), length, crcs };
        Ok(self.lends.then_some(range))
    }
}

impl Handler for Fake {
    fn identity(&self) -> Result<(ClusterId, ServerId)> {
        Ok((ClusterId::from_bytes([1; 16]), ServerId::from_raw(self.server)))
    }
    async fn mutate(&self, request: WriteRequest, payload: Result<Payload>) -> Result<pb::WriteReplyMeta> {
        self.mutated.lock().push((request.clone(), payload.clone()));
        Ok(pb::WriteReplyMeta { offset: request.offset, committed_length: payload?.length() })
    }
    async fn apply(&self, request: ApplyRequest, _: Result<Payload>) -> Result<()> {
        self.applied.lock().push(request.serial.raw());
        tokio::task::yield_now().await;
        Ok(())
    }
    async fn read(&self, request: ReadRequest) -> Result<Option<ReadPlan>> {
        if request.handle != CHUNK {
            return Err(Error::NoSuchChunk { handle: request.handle });
        }
        let length = request.length.min(CONTENT_BYTES as u32 - request.offset.min(CONTENT_BYTES as u32));
        let parts = read::parts(self, request.offset, length, request.verify)?;
        self.reads.fetch_add(usize::from(parts.is_some()), Ordering::Relaxed);
        Ok(parts.map(|parts| ReadPlan { committed_length: CONTENT_BYTES as u32, sealed: false, parts }))
    }
    async fn fetch(&self, request: ReadRequest) -> Result<ReadPlan> {
        self.read(request).await?.ok_or_else(|| Error::internal("a fetch is verified"))
    }
    async fn committed(&self, _: ChunkHandle, _: ChunkVersion) -> Result<pb::CommittedReplyMeta> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }
    async fn outcome(
        &self,
        _: ChunkHandle,
        _: ChunkVersion,
        request: RequestId,
    ) -> Result<pb::OutcomeReplyMeta> {
        Ok(pb::OutcomeReplyMeta { offset: u32::try_from(request.sequence).ok(), sealed: true })
    }
    fn suspect(&self, _: ChunkHandle) {}
}

struct Server {
    handler: Arc<Fake>,
    data: Arc<Data<Fake>>,
    peer: Peer,
    stop: CancellationToken,
}
impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn data(handler: &Arc<Fake>) -> Arc<Data<Fake>> {
    let environment = Environment::real();
    let links = Links::new(&environment);
    links.set_identity(ClusterId::from_bytes([1; 16]), Some(ServerId::from_raw(handler.server)));
    Data::new(&environment, handler.clone(), links, Settings { buffer_bytes: 8 << 20 })
}

/// A server on a port of its own.
async fn server(number: u64) -> Server {
    let handler = fake(number);
    let data = data(&handler);
    let mut listener = Environment::real().net.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let stop = CancellationToken::new();
    let (serving, stopped) = (data.clone(), stop.clone());
    tokio::spawn(async move {
        while let Some(Ok(connection)) = stopped.run_until_cancelled(listener.accept()).await {
            tokio::spawn(serving.clone().serve(connection, stopped.clone()));
        }
    });
    Server { handler, data, peer: Peer { server: ServerId::from_raw(number), address }, stop }
}

/// A server that is not there: its port refuses.
async fn missing(number: u64) -> Peer {
    let listener = Environment::real().net.listen("127.0.0.1:0").await.unwrap();
    Peer { server: ServerId::from_raw(number), address: listener.local_address().unwrap().to_string() }
}

fn client() -> Links {
    let links = Links::new(&Environment::real());
    links.set_identity(ClusterId::from_bytes([1; 16]), None);
    links
}

fn some_data(number: u8) -> (DataId, Payload) {
    let bytes = (0..1_000_003u32).map(|i| (i / 7) as u8 ^ number).collect::<Vec<u8>>();
    (DataId::from_bytes([number; 16]), Payload::new(70_000, bytes.into()))
}

async fn push(links: &Links, chain: &[&Peer], number: u8) -> Result<()> {
    let chain: Vec<Peer> = chain.iter().map(|peer| (*peer).clone()).collect();
    let (data, payload) = some_data(number);
    links.push(&chain, CHUNK, data, &payload, CALL_TIMEOUT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_is_in_the_buffer_of_every_server_of_the_chain() {
    let servers = [server(1).await, server(2).await, server(3).await];
    let chain = [&servers[0].peer, &servers[1].peer, &servers[2].peer];
    let links = client();
    let pushes = (1..=4).map(|number| push(&links, &chain, number));
    for pushed in futures::future::join_all(pushes).await {
        pushed.unwrap();
    }
    for server in &servers {
        for number in 1..=4 {
            let (data, payload) = some_data(number);
            assert!(server.data.buffer().find(data).unwrap() == payload);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_with_a_broken_link_names_the_server_behind_it() {
    let (first, second, third) = (server(1).await, server(2).await, server(3).await);
    let gone = missing(4).await;
    let links = client();
    let failed = Err(Error::MemberFailed { handle: CHUNK, server: gone.server });
    assert_eq!(push(&links, &[&first.peer, &gone, &third.peer], 1).await, failed);
    assert_eq!(push(&links, &[&first.peer, &second.peer, &gone], 1).await, failed);
    // Who answers for another server is as good as gone.
    let moved = Peer { server: ServerId::from_raw(9), address: third.peer.address.clone() };
    let failed = Err(Error::MemberFailed { handle: CHUNK, server: moved.server });
    assert_eq!(push(&links, &[&first.peer, &moved], 1).await, failed);

    for server in [&first, &second, &third] {
        assert_eq!(server.data.buffer().bytes(), 0, "{}", server.peer);
    }
    push(&links, &[&first.peer, &second.peer, &third.peer], 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_payload_is_found_at_the_first_server_and_goes_no_further() {
    let (first, second) = (server(1).await, server(2).await);
    let links = client();
    let (data, mut payload) = some_data(1);
    payload.crcs[9] ^= 1;
    let chain = [first.peer.clone(), second.peer.clone()];
    let pushed = links.push(&chain, CHUNK, data, &payload, CALL_TIMEOUT).await;
    assert_eq!(pushed, Err(Error::Corrupt { handle: CHUNK, block: 10 }));
    push(&links, &[&first.peer, &second.peer], 2).await.unwrap();
    for server in [&first, &second] {
        assert_eq!(server.data.buffer().find(data), Err(Error::DataUnknown { data }));
    }
    // The same for bytes that come with the request itself.
    let mutation = mutation(1);
    let written =
        links.write(&first.peer, &mutation, 70_000, &link::Source::Inline(payload), CALL_TIMEOUT).await;
    assert_eq!(written, Err(Error::Corrupt { handle: CHUNK, block: 10 }));
    assert!(first.handler.mutated.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_buffer_refuses_and_the_connection_goes_on() {
    let (first, second) = (server(1).await, server(2).await);
    let links = client();
    for number in 1..=8 {
        push(&links, &[&second.peer], number).await.unwrap();
    }
    let busy = push(&links, &[&first.peer, &second.peer], 9).await;
    assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
    second.data.buffer().remove(some_data(3).0);
    push(&links, &[&first.peer, &second.peer], 9).await.unwrap();
}

fn mutation(sequence: u64) -> Mutation {
    let request = RequestId { client: gfs_proto::id::ClientId::from_raw(8), sequence };
    let durability = pb::Durability::Replicated;
    Mutation { handle: CHUNK, version: VERSION, request, first_unacked: 0, durability }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushed_data_is_used_once_and_a_repeat_of_the_request_still_reaches_the_handler() {
    let server = server(1).await;
    let links = client();
    push(&links, &[&server.peer], 1).await.unwrap();
    let (data, payload) = some_data(1);
    let source = link::Source::Pushed(data, payload.length());
    let first = links.write(&server.peer, &mutation(1), 70_000, &source, CALL_TIMEOUT).await.unwrap();
    assert_eq!((first.offset, first.committed_length), (70_000, payload.length()));
    assert_eq!(server.data.buffer().bytes(), 0);
    let second = links.write(&server.peer, &mutation(1), 70_000, &source, CALL_TIMEOUT).await;
    assert_eq!(second, Err(Error::DataUnknown { data }));
    links.sync(&server.peer, &mutation(2), CALL_TIMEOUT).await.unwrap();

    let mutated = server.handler.mutated.lock();
    let kinds: Vec<_> = mutated.iter().map(|(request, payload)| (request.kind, payload.is_ok())).collect();
    let write = pb::MutationKind::Write;
    assert_eq!(kinds, [(write, true), (write, false), (pb::MutationKind::Sync, true)]);
    assert_eq!(mutated[0].0.data, Some(data));
    assert_eq!(mutated[0].0.request, mutation(1).request);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_from_the_file_equals_a_verified_read() {
    let server = server(1).await;
    let links = client();
    let random = SeededRandom::new(7);
    let block = u64::from(BLOCK_BYTES);
    let mut ranges = vec![(0, CONTENT_BYTES as u64), (0, 0), (block, block), (block - 1, 2), (0, block * 3)];
    for _ in 0..40 {
        let offset = random.below(CONTENT_BYTES as u64);
        ranges.push((offset, random.below(1_000_000)));
        ranges.push((offset / block * block, random.below(10) * block));
    }
    for (offset, length) in ranges {
        let range = Range {
            handle: CHUNK,
            version: VERSION,
            offset: u32::try_from(offset).unwrap(),
            length: u32::try_from(length).unwrap(),
        };
        let sent = links.read(&server.peer, &range, false, CALL_TIMEOUT).await.unwrap();
        let verified = links.read(&server.peer, &range, true, CALL_TIMEOUT).await.unwrap();
        let fetched = links.fetch(&server.peer, &range, CALL_TIMEOUT).await.unwrap();
        assert!(sent == verified && verified == fetched, "{range:?}");
        let end = (offset + length).min(CONTENT_BYTES as u64) as usize;
        assert!(sent.bytes == server.handler.content[offset as usize..end], "{range:?}");
        assert_eq!(sent.committed_length as usize, CONTENT_BYTES);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_file_is_found_by_the_reader() {
    let server = server(1).await;
    server.handler.file.write_at(&[!server.handler.content[200_000]], 200_000).unwrap();
    let range = Range { handle: CHUNK, version: VERSION, offset: 10, length: 300_000 };
    let read = client().read(&server.peer, &range, false, CALL_TIMEOUT).await;
    assert_eq!(read, Err(Error::Corrupt { handle: CHUNK, block: 3 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_handler_arrive_typed_and_strangers_are_refused() {
    let server = server(1).await;
    let links = client();
    let unknown = ChunkHandle::from_raw(99);
    let range = Range { handle: unknown, version: VERSION, offset: 0, length: 10 };
    let read = links.read(&server.peer, &range, false, CALL_TIMEOUT).await;
    assert_eq!(read, Err(Error::NoSuchChunk { handle: unknown }));
    let large = Range { length: u32::MAX, ..range };
    let read = links.read(&server.peer, &large, false, CALL_TIMEOUT).await;
    assert!(matches!(read, Err(Error::TooLarge { .. })), "{read:?}");
    let outcome = links.outcome(&server.peer, CHUNK, VERSION, mutation(77).request, CALL_TIMEOUT).await;
    assert_eq!(outcome.unwrap().offset, Some(77));

    let meant = Peer { server: ServerId::from_raw(2), ..server.peer.clone() };
    let read = links.read(&meant, &range, false, CALL_TIMEOUT).await;
    assert_eq!(read, Err(Error::WrongServer { ours: 1, theirs: 2 }));
    let stranger = Links::new(&Environment::real());
    stranger.set_identity(ClusterId::from_bytes([2; 16]), None);
    let read = stranger.read(&server.peer, &range, false, CALL_TIMEOUT).await;
    assert!(matches!(read, Err(Error::WrongCluster { .. })), "{read:?}");
    // Who does not know the cluster yet may come in.
    let newcomer = Links::new(&Environment::real());
    assert!(newcomer.outcome(&server.peer, CHUNK, VERSION, mutation(1).request, CALL_TIMEOUT).await.is_ok());
}

/// One side of a pipe as a connection, so that a test needs no socket and paused time is exact.
struct Pipe(DuplexStream);
impl AsyncRead for Pipe {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}
impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
impl Stream for Pipe {}

/// A greeted connection to `data`, and the end of the task that serves it.
async fn piped(data: &Arc<Data<Fake>>, from: u64) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
    let connection = Connection::new(Box::new(Pipe(theirs)), None);
    let serving = tokio::spawn(data.clone().serve(connection, CancellationToken::new()));
    let cluster = ClusterId::from_bytes([1; 16]).to_string();
    let hello = Frame::new(Head::new(Kind::Hello, 0), &pb::HelloMeta { cluster, server: 1, from });
    frame::write_frame(&mut ours, &hello, &[]).await.unwrap();
    assert_eq!(frame::read_frame(&mut ours).await.unwrap().unwrap().head.kind, Kind::Hello);
    (ours, serving)
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_pins_a_bounded_amount_and_is_given_up() {
    // Everything is to be verified, or the file alone does not have it.
    for verify in [true, false] {
        let handler = fake_that(1, verify);
        let data = data(&handler);
        let (mut connection, serving) = piped(&data, 0).await;
        for request in 0..200 {
            let mut head = Head::new(Kind::Read, request).of_chunk(CHUNK, VERSION);
            head.length = 1 << 20;
            head.deadline_ms = 60_000;
            let frame = Frame::new(head, &pb::ReadMeta { verify });
            frame::write_frame(&mut connection, &frame, &[]).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(handler.reads.load(Ordering::Relaxed), 16, "16 MiB in answers of 1 MiB");
        tokio::time::timeout(Duration::from_secs(11), serving).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_take_nothing_keep_no_member_from_its_copy() {
    let handler = fake(1);
    let data = data(&handler);
    let read = |kind, request| {
        let mut head = Head::new(kind, request).of_chunk(CHUNK, VERSION);
        (head.length, head.deadline_ms) = (1 << 20, 60_000);
        Frame::new(head, &pb::ReadMeta { verify: true })
    };
    let mut slow = Vec::new();
    for _ in 0..5 {
        let (mut connection, _) = piped(&data, 0).await;
        for request in 0..16 {
            frame::write_frame(&mut connection, &read(Kind::Read, request), &[]).await.unwrap();
        }
        slow.push(connection);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(handler.reads.load(Ordering::Relaxed), 64, "all of the memory for clients");
    let (mut member, _) = piped(&data, 2).await;
    frame::write_frame(&mut member, &read(Kind::Fetch, 1), &[]).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), frame::read_frame(&mut member)).await;
    assert_eq!(answer.unwrap().unwrap().unwrap().head.kind, Kind::Data);
}

#[tokio::test(start_paused = true)]
async fn requests_of_one_connection_are_bounded() {
    let handler = fake(1);
    let data = data(&handler);
    let (mut connection, _serving) = piped(&data, 0).await;
    for request in 0..500 {
        let frame = Frame::new(Head::new(Kind::Committed, request).of_chunk(CHUNK, VERSION), &());
        frame::write_frame(&mut connection, &frame, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(handler.questions.load(Ordering::Relaxed), 256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_a_primary_begin_in_the_order_in_which_they_came() {
    let handler = fake(1);
    let data = data(&handler);
    let (mut connection, _serving) = piped(&data, 2).await;
    for serial in 1..=200 {
        let meta = pb::ApplyMeta { serial, kind: pb::MutationKind::Sync.into(), ..Default::default() };
        let frame = Frame::new(Head::new(Kind::Apply, serial).of_chunk(CHUNK, VERSION), &meta);
        frame::write_frame(&mut connection, &frame, &[]).await.unwrap();
    }
    for _ in 1..=200 {
        let answer = frame::read_frame(&mut connection).await.unwrap().unwrap();
        assert_eq!(answer.meta::<pb::ApplyReplyMeta>().unwrap().serial, answer.head.request);
    }
    assert!(handler.applied.lock().iter().copied().eq(1..=200));
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_stops_in_the_middle_of_a_payload_is_given_up() {
    let handler = fake(1);
    let data = data(&handler);
    let (mut connection, serving) = piped(&data, 0).await;
    let (id, payload) = some_data(1);
    let meta = pb::PushMeta { data_id: id.bytes().to_vec().into(), chain: Vec::new() };
    let mut head = Head::new(Kind::Push, 1).of_chunk(CHUNK, VERSION);
    head.offset = payload.offset;
    let frame = Frame::with_payload(head, &meta, &payload.bytes);
    connection.write_all(&frame.encode().unwrap()).await.unwrap();
    connection.write_all(&payload.bytes[..500_000]).await.unwrap();
    assert_eq!(data.buffer().bytes(), payload.bytes.len());
    tokio::time::timeout(Duration::from_secs(21), serving).await.unwrap().unwrap();
    assert_eq!(data.buffer().bytes(), 0);
}
