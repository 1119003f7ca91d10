//! The frame of the data plane: framed TCP beside gRPC, on the same port (decision 0003).
//!
//! ```text
//! offset  0 magic u32 "GFSD"   4 version u8   5 kind u8    6 flags u16 (0)
//!         8 request u64       16 chunk handle u64         24 chunk version u64
//!        32 offset u32        36 payload length u32       40 meta length u32
//!        44 crc count u32     48 deadline ms u32          52 reserved u32 (0)
//!        56 head crc u32 over bytes 0..56                 60 meta crc u32
//! then   meta (protobuf), crc count x u32, payload
//! ```
//! Everything little endian. All lengths are known, and proven by the head's checksum, before anything
//! is trusted or allocated. The checksums are CRC-32 (IEEE) of the payload's pieces, split at the 64 KiB
//! borders of the chunk, as `size::block_pieces(offset, length)` gives them.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::Error;
use crate::fault;
use crate::id::{ChunkHandle, ChunkVersion};
use crate::size::{BLOCK_BYTES, PAYLOAD_BYTES_MAX, block_pieces};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"GFSD";
/// Version of the format.
pub const VERSION: u8 = 1;
/// Bytes of a head.
pub const HEAD_BYTES: usize = 64;
/// Most bytes of metadata.
pub const META_BYTES_MAX: u32 = 64 * 1024;
/// Most checksums: those of the largest payload at an unaligned offset.
pub const CRC_COUNT_MAX: u32 = PAYLOAD_BYTES_MAX / BLOCK_BYTES + 1;

/// What a frame is. On the wire: never reuse a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a connection, both ways (`HelloMeta`).
    Hello = 1,
    /// Data for the buffers of a chain of servers (`PushMeta`, payload); answered by `Done`.
    Push = 2,
    /// Client to primary: a mutation at `offset` (`WriteMeta`, payload or data id); answered by `Wrote`.
    Write = 3,
    /// Client to primary: a record append (`WriteMeta`); answered by `Wrote`.
    Append = 4,
    /// Primary to member: an ordered mutation (`ApplyMeta`); answered by `Applied`.
    Apply = 5,
    /// Client to replica: `length` bytes from `offset` (no payload in the question); answered by `Data`.
    Read = 6,
    /// Replica to primary: what is committed? Answered by `Committed`.
    Committed = 7,
    /// Adopting member to primary: the bytes of the plan at this version; answered by `Data`.
    Fetch = 8,
    /// Client to a replica: the outcome of a request id (`WriteMeta`); answered by `Outcome`.
    Outcome = 9,
    /// Answer without metadata.
    Done = 64,
    /// Answer to `Write` and `Append` (`WriteReplyMeta`).
    Wrote = 65,
    /// Answer to `Apply` (`ApplyReplyMeta`).
    Applied = 66,
    /// Answer to `Read` and `Fetch` (`ReadReplyMeta`, payload).
    Data = 67,
    /// Answer to `Committed` (`CommittedReplyMeta`).
    CommittedIs = 68,
    /// Answer to `Outcome` (`OutcomeReplyMeta`).
    OutcomeIs = 69,
    /// Any answer that failed: the metadata is [`Error::to_wire`].
    Failed = 127,
}

impl Kind {
    fn parse(raw: u8) -> Option<Self> {
        use Kind::{
            Append, Applied, Apply, Committed, CommittedIs, Data, Done, Failed, Fetch, Hello, Outcome,
            OutcomeIs, Push, Read, Write, Wrote,
        };
        let all = [
            Hello,
            Push,
            Write,
            Append,
            Apply,
            Read,
            Committed,
            Fetch,
            Outcome,
            Done,
            Wrote,
            Applied,
            Data,
            CommittedIs,
            OutcomeIs,
            Failed,
        ];
        all.into_iter().find(|kind| *kind as u8 == raw)
    }
}

/// The fixed part of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Chosen by the asker, repeated in the answer; answers may overtake each other.
    pub request: u64,
    /// The chunk, or 0.
    pub handle: ChunkHandle,
    /// Its version, or 0.
    pub version: ChunkVersion,
    /// Byte position in the chunk.
    pub offset: u32,
    /// Bytes: of the payload that follows; in `Read` and `Fetch` (which have none) the bytes wanted.
    pub length: u32,
    /// Milliseconds that the asker will wait; 0 = no limit given.
    pub deadline_ms: u32,
}

impl Head {
    /// A head of this kind with everything else 0.
    pub fn new(kind: Kind, request: u64) -> Self {
        Self {
            kind,
            request,
            handle: ChunkHandle::from_raw(0),
            version: ChunkVersion::NONE,
            offset: 0,
            length: 0,
            deadline_ms: 0,
        }
    }
    /// The same for a chunk at a version.
    pub fn of_chunk(mut self, handle: ChunkHandle, version: ChunkVersion) -> Self {
        self.handle = handle;
        self.version = version;
        self
    }
    /// Bytes of payload that follow the head.
    pub fn payload_length(&self) -> u32 {
        if matches!(self.kind, Kind::Read | Kind::Fetch) { 0 } else { self.length }
    }
}

/// A frame without its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The fixed part.
    pub head: Head,
    /// Protobuf message that belongs to the kind.
    pub meta: Bytes,
    /// Checksums of the payload's pieces.
    pub crcs: Vec<u32>,
}

impl Frame {
    /// A frame without payload.
    pub fn new(head: Head, meta: &impl Message) -> Self {
        Self { head, meta: meta.encode_to_vec().into(), crcs: Vec::new() }
    }
    /// A frame that announces this payload; computes its checksums.
    pub fn with_payload(mut head: Head, meta: &impl Message, payload: &[u8]) -> Self {
        head.length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let crcs = payload_crcs(head.offset, payload);
        Self { head, meta: meta.encode_to_vec().into(), crcs }
    }
    /// The answer that something failed.
    pub fn failed(request: u64, error: &Error) -> Self {
        Self { head: Head::new(Kind::Failed, request), meta: error.to_wire().into(), crcs: Vec::new() }
    }
    /// Reads the metadata.
    ///
    /// # Errors
    /// [`Error::BadArgument`] if it is no such message.
    pub fn meta<M: Message + Default>(&self) -> Result<M, Error> {
        M::decode(self.meta.clone()).map_err(|error| Error::bad_argument(format!("frame metadata: {error}")))
    }
    /// This frame, or the error that it carries.
    ///
    /// # Errors
    /// The error of a [`Kind::Failed`] frame.
    pub fn into_result(self) -> Result<Self, Error> {
        if self.head.kind == Kind::Failed { Err(Error::from_wire(&self.meta)) } else { Ok(self) }
    }

    /// The bytes before the payload.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if a part is over its limit.
    pub fn encode(&self) -> io::Result<Bytes> {
        let meta_length = limited(self.meta.len(), META_BYTES_MAX, "frame metadata")?;
        let crc_count = limited(self.crcs.len(), CRC_COUNT_MAX, "frame checksums")?;
        limited(self.head.payload_length() as usize, PAYLOAD_BYTES_MAX, "frame payload")?;
        let mut bytes = BytesMut::with_capacity(HEAD_BYTES + self.meta.len() + 4 * self.crcs.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.head.kind as u8, 0, 0]);
        bytes.extend_from_slice(&self.head.request.to_le_bytes());
        bytes.extend_from_slice(&self.head.handle.raw().to_le_bytes());
        bytes.extend_from_slice(&self.head.version.raw().to_le_bytes());
        for field in [self.head.offset, self.head.length, meta_length, crc_count, self.head.deadline_ms, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        // The checksums are proven along with the metadata: a flipped bit there must not blame the payload.
        let mut crcs = BytesMut::with_capacity(4 * self.crcs.len());
        for crc in &self.crcs {
            crcs.extend_from_slice(&crc.to_le_bytes());
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.meta);
        hasher.update(&crcs);
        bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
        bytes.extend_from_slice(&self.meta);
        bytes.extend_from_slice(&crcs);
        Ok(bytes.freeze())
    }
}

fn limited(length: usize, limit: u32, what: &str) -> io::Result<u32> {
    u32::try_from(length).ok().filter(|length| *length <= limit).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {length} is over {limit}"))
    })
}

/// Checksums of a payload that lies at `offset` of its chunk: one for each piece between block borders.
pub fn payload_crcs(offset: u32, payload: &[u8]) -> Vec<u32> {
    let mut rest = payload;
    block_pieces(offset, u32::try_from(payload.len()).unwrap_or(u32::MAX))
        .map(|piece| {
            let (piece, after) = rest.split_at(piece as usize);
            rest = after;
            crc32fast::hash(piece)
        })
        .collect()
}

/// Bytes for a chunk with the checksums of their pieces, computed once and carried along.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Payload {
    /// Where in the chunk the checksums' pieces are counted from.
    pub offset: u32,
    /// The bytes.
    pub bytes: Bytes,
    /// One checksum for each piece of `size::block_pieces(offset, length)`.
    pub crcs: Vec<u32>,
}

impl Payload {
    /// Computes the checksums of `bytes` as they would lie at `offset` of a chunk.
    pub fn new(offset: u32, bytes: Bytes) -> Self {
        let crcs = payload_crcs(offset, &bytes);
        Self { offset, bytes, crcs }
    }
    /// Number of bytes.
    pub fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }
    /// The checksums of the pieces if the bytes lie at `offset`: those that came along where the block borders
    /// fall in the same places, else computed anew.
    pub fn crcs_at(&self, offset: u32) -> Vec<u32> {
        if offset % BLOCK_BYTES == self.offset % BLOCK_BYTES {
            self.crcs.clone()
        } else {
            payload_crcs(offset, &self.bytes)
        }
    }
}

/// Writes a frame and its payload.
///
/// # Errors
/// What the connection says, and `InvalidInput` for a frame over the limits.
pub async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &Frame,
    payload: &[u8],
) -> io::Result<()> {
    debug_assert_eq!(frame.head.payload_length() as usize, payload.len());
    stream.write_all(&frame.encode()?).await?;
    stream.write_all(payload).await
}

/// Reads a frame up to its payload; `None` if the connection ended cleanly before it.
/// The payload (`frame.head.payload_length()` bytes) is the caller's to read.
///
/// # Errors
/// `InvalidData` for anything that is not a frame of this version within the limits; the connection can't go on.
///
/// # Cancel safety
/// Not cancel safe: bytes of a frame may be lost.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD_BYTES];
    let mut have = 0;
    while have < HEAD_BYTES {
        match stream.read(&mut head[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => have += count,
        }
    }
    let Parsed { head, meta_length, crc_count, meta_crc } = parse_head(&head)?;
    let mut body = vec![0; meta_length + 4 * crc_count];
    stream.read_exact(&mut body).await?;
    if crc32fast::hash(&body) != meta_crc {
        return Err(invalid("metadata checksum does not match"));
    }
    let mut meta = Bytes::from(body);
    let crcs = meta.split_off(meta_length);
    let crcs = crcs.chunks_exact(4).map(|crc| u32_at(crc, 0)).collect();
    Ok(Some(Frame { head, meta, crcs }))
}

/// A proven head.
struct Parsed {
    head: Head,
    meta_length: usize,
    crc_count: usize,
    meta_crc: u32,
}

fn parse_head(bytes: &[u8; HEAD_BYTES]) -> io::Result<Parsed> {
    if bytes[..4] != MAGIC {
        return Err(invalid("no frame starts here"));
    }
    if bytes[4] != VERSION {
        return Err(invalid(&format!("unknown frame version {}", bytes[4])));
    }
    if u32_at(bytes, 56) != crc32fast::hash(&bytes[..56]) {
        return Err(invalid("head checksum does not match"));
    }
    let kind = Kind::parse(bytes[5]).ok_or_else(|| invalid(&format!("unknown frame kind {}", bytes[5])))?;
    let head = Head {
        kind,
        request: u64_at(bytes, 8),
        handle: ChunkHandle::from_raw(u64_at(bytes, 16)),
        version: ChunkVersion::from_raw(u64_at(bytes, 24)),
        offset: u32_at(bytes, 32),
        length: u32_at(bytes, 36),
        deadline_ms: u32_at(bytes, 48),
    };
    let (meta_length, crc_count) = (u32_at(bytes, 40), u32_at(bytes, 44));
    let payload_length = head.payload_length();
    if meta_length > META_BYTES_MAX || crc_count > CRC_COUNT_MAX || payload_length > PAYLOAD_BYTES_MAX {
        return Err(invalid("a length is over its limit"));
    }
    if crc_count as usize != block_pieces(head.offset, payload_length).count() {
        return Err(invalid("the number of checksums does not fit the payload"));
    }
    Ok(Parsed {
        head,
        meta_length: meta_length as usize,
        crc_count: crc_count as usize,
        meta_crc: u32_at(bytes, 60),
    })
}

/// Reads a payload and checks it piece by piece, while it is in the cache. The inner error is the index of the
/// first block of the chunk that does not match its checksum; all bytes have then been read, so the connection can go on.
///
/// # Errors
/// What the connection says.
///
/// # Cancel safety
/// Not cancel safe: bytes of the payload may be lost.
pub async fn read_payload(
    stream: &mut (impl AsyncRead + Unpin),
    frame: &Frame,
) -> io::Result<Result<Bytes, u32>> {
    let length = frame.head.payload_length();
    let mut payload = BytesMut::with_capacity(length as usize);
    let mut damaged = None;
    for (piece, crc) in block_pieces(frame.head.offset, length).zip(&frame.crcs) {
        let start = payload.len();
        read_to_end_of(stream, &mut payload, piece as usize).await?;
        // Mutant frame_not_verified: what the network brings is believed.
        if crc32fast::hash(&payload[start..]) != *crc && !fault::mutant("frame_not_verified") {
            damaged = damaged.or(block_of(frame.head.offset, start));
        }
    }
    Ok(damaged.map_or(Ok(payload.freeze()), Err))
}

/// Reads exactly `length` more bytes to the end of `buffer`, into memory that need not be cleared first.
///
/// # Errors
/// What the connection says.
///
/// # Cancel safety
/// What has been read stays in `buffer`.
pub async fn read_to_end_of(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    length: usize,
) -> io::Result<()> {
    let end = buffer.len() + length;
    while buffer.len() < end {
        let rest = end - buffer.len();
        if stream.read_buf(&mut buffer.limit(rest)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Index in its chunk of the block in which byte `at` of a payload lies that starts at `offset`.
pub fn block_of(offset: u32, at: usize) -> Option<u32> {
    u32::try_from((offset as usize + at) / BLOCK_BYTES as usize).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}
fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;
    use proptest::prelude::*;

    fn sample(offset: u32, payload: &[u8]) -> Frame {
        let mut head =
            Head::new(Kind::Write, 9).of_chunk(ChunkHandle::from_raw(5), ChunkVersion::from_raw(6));
        head.offset = offset;
        Frame::with_payload(head, &pb::WriteMeta { length: 3, ..Default::default() }, payload)
    }
    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_frame_has_these_bytes() {
        let bytes = sample(65_535, b"ab").encode().unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["4746534401030000090000000000000005000000000000000600000000000000ffff00000200000002000000020000000000000000000000675273956f05fd59200343beb7e8f9efbe71"].assert_eq(&hex);
        assert_eq!(bytes.len(), HEAD_BYTES + 2 + 8);
    }

    proptest! {
        #[test]
        fn a_frame_round_trips_and_a_flipped_bit_is_found(
            offset in 0u32..1 << 20, payload in prop::collection::vec(any::<u8>(), 0..70_000), flip in any::<prop::sample::Index>(),
        ) {
            let frame = sample(offset, &payload);
            let mut wire = Vec::new();
            run(write_frame(&mut wire, &frame, &payload)).unwrap();
            let mut reader = &wire[..];
            prop_assert_eq!(run(read_frame(&mut reader)).unwrap().unwrap(), frame.clone());
            prop_assert_eq!(&run(read_payload(&mut reader, &frame)).unwrap().unwrap()[..], &payload[..]);

            let bit = flip.index(wire.len() * 8);
            wire[bit / 8] ^= 1 << (bit % 8);
            let mut reader = &wire[..];
            let found = match run(read_frame(&mut reader)) {
                Ok(Some(frame)) => run(read_payload(&mut reader, &frame)).map_or(true, |payload| payload.is_err()),
                Ok(None) | Err(_) => true,
            };
            prop_assert!(found, "bit {} was flipped unnoticed", bit);
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(run(read_frame(&mut &bytes[..])).is_err());
        }
    }
}
