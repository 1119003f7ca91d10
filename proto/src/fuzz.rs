//! Fuzz targets of this crate (`fuzz/src/lib.rs` says how they are run).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use gfs_fuzz::{Dice, Target};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf};
use tonic::{Code, Status};

use crate::error::Error;
use crate::frame::{self, Frame, HEAD_BYTES, Head, Kind, META_BYTES_MAX};
use crate::id::{ChunkHandle, ChunkVersion, ClusterId, ServerId, Uuid};
use crate::link::{Links, Peer};
use crate::net::{Connection, Listener, Net, Stream};
use crate::path::{FilePath, NAME_BYTES_MAX, Name, PATH_BYTES_MAX, PATH_DEPTH_MAX};
use crate::size::{ByteOffset, ChunkBytes, PAYLOAD_BYTES_MAX, block_pieces};
use crate::{Environment, pb};

/// A stream of frames that an input describes has about so many bytes; the last frame may go beyond.
const STREAM_BYTES_MAX: usize = 1 << 20;
/// Bytes that reading a frame may hold: its payload's limit, the stream, and the pipe that it goes through, which
/// doubles as it fills up.
const FRAME_BYTES_HELD: usize = PAYLOAD_BYTES_MAX as usize + 5 * STREAM_BYTES_MAX;

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    Target::new("frame", frame).holding(FRAME_BYTES_HELD),
    Target::new("link", link).holding(FRAME_BYTES_HELD),
    Target::new("path", path),
    Target::new("error", error),
];

/// A frame and its payload, or why there is none.
type Read = Result<(Frame, Result<Bytes, u32>), io::ErrorKind>;

/// Data frames: the same whole or in pieces, no more memory than the limits, and what is read writes the same bytes.
pub fn frame(data: &[u8]) {
    let mut dice = Dice::new(data);
    let piece = 1 + dice.index(96);
    let stream = frames(&mut dice);
    let (whole, pieces) = (read_all(&stream, usize::MAX), read_all(&stream, piece));
    assert_eq!(whole, pieces, "the borders of pieces change what is read");
    let mut at = 0;
    for read in whole.into_iter().flatten() {
        let (frame, payload) = read;
        let written = frame.encode();
        assert!(written.is_ok(), "a frame that was read can't be written: {written:?}");
        let head = written.unwrap_or_default();
        // Reserved fields are not kept, and a payload that does not match its checksums is thrown away.
        if stream[at + 6..at + 8] == [0; 2] && stream[at + 52..at + 56] == [0; 4] {
            assert_eq!(head, stream[at..at + head.len()]);
        }
        at += head.len();
        if let Ok(payload) = payload {
            assert_eq!(payload, stream[at..at + payload.len()]);
            assert_eq!(frame::payload_crcs(frame.head.offset, &payload), frame.crcs);
        }
        at += frame.head.payload_length() as usize;
    }
}

/// The reader of a link: whatever the peer sends, every call comes to an end.
pub fn link(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return };
    let mut dice = Dice::new(data);
    let greets = dice.below(8) > 0;
    let mut stream = frames(&mut dice);
    if greets {
        let meta = pb::HelloMeta { cluster: String::new(), server: 0, from: 7 };
        let hello = Frame::new(Head::new(Kind::Hello, 0), &meta).encode().unwrap_or_default();
        stream.splice(..0, hello.iter().copied());
    }
    runtime.block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(stream.len() + (1 << 16));
        let net = Arc::new(OneWire(Mutex::new(Some(ours))));
        let links = Links::new(&Environment { net, ..Environment::real() });
        theirs.write_all(&stream).await.ok();
        let peer = Peer { server: ServerId::from_raw(7), address: "peer".into() };
        // The first two of a link have the requests 1 and 2.
        let calls = (0..2).map(|_| {
            let mut head = Head::new(Kind::Read, 0);
            (head.length, head.deadline_ms) = (16, 500);
            links.call(&peer, Frame::new(head, &pb::ReadMeta::default()), Vec::new())
        });
        let ended = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(calls)).await;
        for (frame, payload) in ended.iter().flatten().flatten() {
            assert!(frame.head.kind != Kind::Failed && payload.len() == frame.head.payload_length() as usize);
        }
        assert!(ended.is_ok(), "a call never ended");
    });
}

/// Paths, names, ids and sizes: what is accepted keeps every rule, and has one spelling.
pub fn path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(path) = FilePath::parse(&text) {
        assert_eq!(path.as_str(), text);
        assert!(text.len() <= PATH_BYTES_MAX && path.names().count() <= PATH_DEPTH_MAX);
        for name in path.names() {
            assert!(Name::parse(name).is_ok_and(|name| name.as_str().len() <= NAME_BYTES_MAX));
        }
        assert!(path.is_within(&FilePath::root()) && path.is_within(&path));
        match path.split() {
            Some((parent, name)) => {
                assert_eq!(parent.join(name).as_ref(), Ok(&path));
                assert!(path.is_within(&parent) && !parent.is_within(&path));
            }
            None => assert!(path.is_root()),
        }
    }
    if let Ok(name) = Name::parse(&text) {
        assert_eq!(FilePath::root().join(name.as_str()).map(|path| path.names().count()), Ok(1));
    }
    for (id, shown) in [
        Uuid::from_hex(&text).map(|id| (id.bytes(), id.to_string())),
        ClusterId::from_hex(&text).map(|id| (id.bytes(), id.to_string())),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(Uuid::from_hex(&shown).map(Uuid::bytes), Some(id));
    }
    let mut dice = Dice::new(data);
    if let Ok(size) = ChunkBytes::parse(dice.number())
        && let Some((index, within)) = size.locate(ByteOffset::from_raw(dice.number()))
    {
        assert!(within < size.raw() && size.start_of(index).raw() < size.file_bytes_max());
    }
    let (offset, length) = (dice.small_number(), dice.small_number() % PAYLOAD_BYTES_MAX);
    assert_eq!(block_pieces(offset, length).sum::<u32>(), length);
}

/// Errors of peers: any bytes are one, it survives the wire, and says what to do next.
pub fn error(data: &[u8]) {
    let error = Error::from_wire(data);
    assert_eq!(Error::from_wire(&error.to_wire()), error, "an error is lost on the wire");
    let status = Status::from(error.clone());
    assert_eq!(Error::from(status), error, "an error is lost in a status");
    let mut dice = Dice::new(data);
    let code = Code::from_i32(i32::from(dice.byte()) % 20);
    let text = String::from_utf8_lossy(data);
    let foreign = Error::from(Status::new(code, text.clone()));
    assert!(!foreign.to_string().is_empty() && foreign.to_wire().len() < 16 * 1024);
    let detailed = Error::from(Status::with_details(code, text, Bytes::copy_from_slice(dice.rest())));
    assert_eq!(Error::from_wire(&detailed.to_wire()), detailed);
    let frame = Frame::failed(1, &error);
    if frame.meta.len() <= META_BYTES_MAX as usize {
        assert_eq!(frame.into_result(), Err(error));
    }
}

/// A stream of frames and other bytes. Heads may say anything, under checksums that are right.
fn frames(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut stream = Vec::with_capacity(STREAM_BYTES_MAX + (STREAM_BYTES_MAX >> 3));
    while !dice.is_empty() && stream.len() < STREAM_BYTES_MAX {
        match dice.below(5) {
            0 => stream.extend_from_slice(dice.bytes(200)),
            1 => stream.extend_from_slice(&proven_head(dice)),
            _ => stream.extend_from_slice(&whole_frame(dice)),
        }
    }
    stream
}

/// A frame as a peer would write it, of any kind.
fn whole_frame(dice: &mut Dice<'_>) -> Vec<u8> {
    let kinds = [Kind::Hello, Kind::Push, Kind::Read, Kind::Done, Kind::Data, Kind::Wrote, Kind::Failed];
    let kind = kinds[dice.index(kinds.len())];
    let mut head = Head::new(kind, dice.below(4))
        .of_chunk(ChunkHandle::from_raw(dice.number()), ChunkVersion::from_raw(dice.number()));
    head.offset = dice.small_number();
    let mut payload = dice.bytes(64).to_vec();
    if dice.below(8) == 0 {
        payload.resize(70_000, dice.byte());
    }
    let meta = Bytes::copy_from_slice(dice.bytes(40));
    let mut frame = if head.payload_length() > 0 || !matches!(kind, Kind::Read) {
        Frame::with_payload(head, &(), &payload)
    } else {
        payload.clear();
        head.length = dice.small_number();
        Frame::new(head, &())
    };
    frame.meta = meta;
    let mut bytes = frame.encode().map(|head| head.to_vec()).unwrap_or_default();
    bytes.extend_from_slice(&payload);
    bytes
}

/// A head whose fields are what they are, under a right checksum; the body may follow, or not.
fn proven_head(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(&frame::MAGIC);
    head.extend_from_slice(&[
        if dice.below(8) == 0 { dice.byte() } else { frame::VERSION },
        dice.byte(),
        0,
        0,
    ]);
    for _ in 0..3 {
        head.extend_from_slice(&dice.number().to_le_bytes());
    }
    for _ in 0..6 {
        head.extend_from_slice(&dice.small_number().to_le_bytes());
    }
    head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
    let body = dice.bytes(200);
    head.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    head.extend_from_slice(body);
    head
}

/// Reads frames with their payloads until the stream ends or can't go on.
fn read_all(stream: &[u8], piece: usize) -> Vec<Read> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return Vec::new() };
    let mut reader = Pieces { rest: stream, piece };
    let mut found = Vec::new();
    runtime.block_on(async {
        loop {
            let read = match frame::read_frame(&mut reader).await {
                Ok(None) => return,
                Ok(Some(frame)) => frame::read_payload(&mut reader, &frame).await.map(|bytes| (frame, bytes)),
                Err(error) => Err(error),
            };
            let ended = read.is_err();
            found.push(read.map_err(|error| error.kind()));
            if ended {
                return;
            }
        }
    });
    found
}

/// A stream that gives at most so many bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.piece.min(self.rest.len()).min(buffer.remaining());
        let (now, later) = self.rest.split_at(count);
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

/// A network with one connection.
struct OneWire(Mutex<Option<DuplexStream>>);

struct Wire(DuplexStream);

impl Net for OneWire {
    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        let wire = self.0.lock().take().ok_or(io::ErrorKind::ConnectionRefused);
        Box::pin(async move { Ok(Connection::new(Box::new(Wire(wire?)), None)) })
    }
    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}
impl Stream for Wire {}
impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}
impl tokio::io::AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_holds_for_its_corpus_and_random_inputs() {
        TARGETS.iter().for_each(gfs_fuzz::check);
    }
}
