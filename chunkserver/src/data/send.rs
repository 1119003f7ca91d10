//! The writing side of a connection: one writer sends the answers, in the order in which they are ready.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gfs_proto::frame::{Frame, Head, Kind};
use gfs_proto::id::ChunkHandle;
use gfs_proto::net::{WriteHalf, blocking};
use gfs_proto::{Error, pb};
use rustix::fs::Advice;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{FileRange, Handler, Part, ReadPlan, ReadRequest};

/// A peer that takes nothing for this long is given up: it holds memory.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Answers up to this size are gathered into one write.
const GATHER_BYTES: usize = 64 * 1024;
/// One piece of a large answer on its way; each has [`STALL_MAX`].
const PIECE_BYTES: usize = 1 << 20;
/// How far ahead of a sequential reader the disk is asked to read: the kernel's own 128 KiB are not enough.
const AHEAD_BYTES: u64 = 8 << 20;
/// Chunks whose reading position a connection remembers.
const STREAMS_MAX: usize = 64;

/// An answer, and what is held until it is sent.
pub(super) struct Answer {
    frame: Frame,
    parts: Vec<Part>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Answer {
    /// An answer of metadata alone.
    pub(super) fn new(kind: Kind, request: u64, meta: &impl prost::Message) -> Self {
        Self { frame: Frame::new(Head::new(kind, request), meta), parts: Vec::new(), held: Vec::new() }
    }
    pub(super) fn failed(request: u64, error: &Error) -> Self {
        Self { frame: Frame::failed(request, error), parts: Vec::new(), held: Vec::new() }
    }
    /// The answer to a read.
    pub(super) fn data(request: u64, read: &ReadRequest, plan: ReadPlan) -> Self {
        let length = plan.length();
        if length > read.length {
            let error = Error::internal("more was read than was asked for");
            return Self::failed(request, &error);
        }
        let meta = pb::ReadReplyMeta { committed_length: plan.committed_length, sealed: plan.sealed };
        let mut head = Head::new(Kind::Data, request).of_chunk(read.handle, read.version);
        head.offset = read.offset;
        head.length = length;
        let mut frame = Frame::new(head, &meta);
        frame.crcs = plan.parts.iter().flat_map(Part::crcs).copied().collect();
        Self { frame, parts: plan.parts, held: Vec::new() }
    }
    /// Keeps these until the answer is sent.
    pub(super) fn holding(mut self, permits: impl IntoIterator<Item = OwnedSemaphorePermit>) -> Self {
        self.held.extend(permits);
        self
    }
}

/// Sends answers until there are no more, or the peer takes no more.
pub(super) async fn send<H: Handler>(
    handler: &H,
    writer: WriteHalf,
    mut answers: mpsc::Receiver<Answer>,
) -> io::Result<()> {
    let mut sender =
        Sender { writer, gathered: BytesMut::with_capacity(GATHER_BYTES), ahead: BTreeMap::new() };
    while let Some(first) = answers.recv().await {
        let mut next = Some(first);
        while let Some(answer) = next {
            sender.send(handler, answer).await?;
            next = if sender.gathered.len() < GATHER_BYTES { answers.try_recv().ok() } else { None };
        }
        sender.flush().await?;
    }
    Ok(())
}

struct Sender {
    writer: WriteHalf,
    gathered: BytesMut,
    /// Where sequential readers are, chunk by chunk.
    ahead: BTreeMap<ChunkHandle, Ahead>,
}

#[derive(Clone, Copy)]
struct Ahead {
    /// End of the furthest read.
    end: u64,
    /// The disk has been asked to read up to here.
    asked: u64,
}

impl Sender {
    async fn send<H: Handler>(&mut self, handler: &H, answer: Answer) -> io::Result<()> {
        let Answer { frame, parts, held } = answer;
        self.gathered.extend_from_slice(&frame.encode()?);
        for part in parts {
            match part {
                Part::Bytes(bytes, _) => self.send_bytes(&bytes).await?,
                Part::File(range) => {
                    self.flush().await?;
                    let sent = self.send_file(frame.head.handle, &range).await;
                    if let Err(error) = &sent
                        && is_of_the_file(error)
                    {
                        // Part of a frame is out: only ending the connection tells the peer.
                        tracing::warn!(handle = %frame.head.handle, %error, "chunk file can't be sent");
                        handler.suspect(frame.head.handle);
                    }
                    sent?;
                }
            }
        }
        drop(held);
        Ok(())
    }

    async fn send_bytes(&mut self, bytes: &Bytes) -> io::Result<()> {
        if self.gathered.len() + bytes.len() <= GATHER_BYTES {
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush().await?;
        for piece in bytes.chunks(PIECE_BYTES) {
            in_time(self.writer.write_all(piece)).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            in_time(self.writer.write_all(&self.gathered)).await?;
            self.gathered.clear();
        }
        Ok(())
    }

    async fn send_file(&mut self, handle: ChunkHandle, range: &FileRange) -> io::Result<()> {
        let end = range.offset + u64::from(range.length);
        if let Some(descriptor) = range.file.descriptor() {
            self.read_ahead(handle, descriptor, range.offset, end);
        }
        let mut at = range.offset;
        while at < end {
            let piece = (PIECE_BYTES as u64).min(end - at);
            match range.file.descriptor() {
                Some(descriptor) => in_time(self.writer.send_file(descriptor, at, piece)).await?,
                None => {
                    let mut buffer = BytesMut::zeroed(usize::try_from(piece).unwrap_or_default());
                    if blocking(|| range.file.read_at(&mut buffer, at))? < buffer.len() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    in_time(self.writer.write_all(&buffer)).await?;
                }
            }
            at += piece;
        }
        Ok(())
    }

    /// Asks the disk for what is read now and, if this goes on from an earlier read, for what will be read next;
    /// for each byte once, because asking costs time even if the byte is in the cache.
    fn read_ahead(&mut self, handle: ChunkHandle, file: BorrowedFd<'_>, offset: u64, end: u64) {
        let near = |ahead: &&mut Ahead| {
            // Requests of one reader overtake each other a little.
            offset <= ahead.end + AHEAD_BYTES / 2 && offset + AHEAD_BYTES / 2 >= ahead.end
        };
        let (from, to) = match self.ahead.get_mut(&handle).filter(near) {
            Some(ahead) => {
                ahead.end = ahead.end.max(end);
                if ahead.asked >= ahead.end + AHEAD_BYTES / 2 {
                    return;
                }
                let from = ahead.asked.max(offset);
                ahead.asked = ahead.end + AHEAD_BYTES;
                (from, ahead.asked)
            }
            None => {
                if self.ahead.len() >= STREAMS_MAX {
                    self.ahead.clear();
                }
                self.ahead.insert(handle, Ahead { end, asked: end });
                (offset, end)
            }
        };
        // A hint: without it the read is slower.
        let length = std::num::NonZeroU64::new(to.saturating_sub(from));
        if let Err(error) = rustix::fs::fadvise(file, from, length, Advice::WillNeed) {
            tracing::trace!(%error, "no read-ahead");
        }
    }
}

async fn in_time<T>(write: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL_MAX, write).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Whether sending failed for the file's sake, not the connection's.
fn is_of_the_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
