//! Reading: the nearest replica first, every byte verified, the next replica on any error (GFS §2.4).

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use gfs_proto::id::{ChunkIndex, ChunkVersion};
use gfs_proto::link::Range;
use gfs_proto::size::ChunkBytes;
use gfs_proto::{Error, Result, Retry};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::task::AbortOnDropHandle;

use crate::cache::Location;
use crate::client::Core;
use crate::entry::Server;
use crate::lease::Opened;

/// Bytes asked of a replica at once: whole units, at unit borders, so that the server need not touch the bytes.
pub(crate) const UNIT_BYTES: u32 = 1 << 20;
/// How long one replica may take to answer at first; twice as long after each round in which one took all of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long all replicas must have said that they may not serve a read before a grant is asked for. Mostly a heartbeat is late;
/// and a grant is a writer's, which of a chunk that a snapshot shares makes a copy on every holder.
const PRIMARY_AFTER: Duration = Duration::from_millis(500);
/// How long a reader waits for a grant before it asks the replicas again: one may serve the read meanwhile.
const PRIMARY_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) index: ChunkIndex,
    pub(crate) within: u32,
    pub(crate) length: u32,
}

/// Splits a range of a file at unit and chunk borders.
pub(crate) fn pieces(size: ChunkBytes, range: std::ops::Range<u64>) -> impl Iterator<Item = Piece> + Send {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (index, within) = size.locate(gfs_proto::size::ByteOffset::from_raw(at))?;
        let border = (within / UNIT_BYTES + 1).saturating_mul(UNIT_BYTES).min(size.raw());
        let length = border - within;
        let length = u32::try_from(range.end - at).map_or(length, |rest| length.min(rest));
        at += u64::from(length);
        Some(Piece { index, within, length })
    })
}

/// The exact length of a file: the end of the last chunk with bytes in it.
pub(crate) async fn length(core: &Core, file: &Opened) -> Result<u64> {
    let guess = file.chunks_seen.load(Ordering::Relaxed).saturating_sub(1);
    let mut located = core.locate(file, ChunkIndex::from_raw(guess), core.patience()).await?;
    let mut index = located.chunk_count;
    while index > 0 {
        index -= 1;
        let index = ChunkIndex::from_raw(index);
        if !located.chunks.iter().any(|chunk| chunk.index == index) {
            located = core.locate(file, index, core.patience()).await?;
        }
        let nothing = Piece { index, within: 0, length: 0 };
        let committed = ask(core, file, nothing, 0).await?.committed_length;
        if committed > 0 {
            let length = core.chunk_bytes.start_of(index).raw() + u64::from(committed);
            file.see_length(length);
            return Ok(length);
        }
    }
    Ok(0)
}

/// Reads a range that lies within the file's known length.
pub(crate) async fn collect(
    core: &Arc<Core>,
    file: &Arc<Opened>,
    range: std::ops::Range<u64>,
) -> Result<Bytes> {
    let mut units = units(core, file, range.clone());
    let Some(first) = units.next().await.transpose()? else { return Ok(Bytes::new()) };
    let length = usize::try_from(range.end - range.start).map_err(Error::internal)?;
    if first.len() == length {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(length);
    all.extend_from_slice(&first);
    while let Some(unit) = units.next().await {
        all.extend_from_slice(&unit?);
    }
    Ok(all.freeze())
}

/// The units of a range in order, several of them in flight.
fn units(
    core: &Arc<Core>,
    file: &Arc<Opened>,
    range: std::ops::Range<u64>,
) -> BoxStream<'static, Result<Bytes>> {
    let (core, file) = (core.clone(), file.clone());
    let window = core.options.window;
    stream::iter(pieces(core.chunk_bytes, range))
        .map(move |piece| {
            let (core, file) = (core.clone(), file.clone());
            // A task of its own, so that it goes on while the reader is busy elsewhere; ends with the stream.
            AbortOnDropHandle::new(tokio::spawn(async move { read_known(&core, &file, piece).await }))
        })
        .buffered(window)
        .map(|joined| joined.unwrap_or_else(|error| Err(Error::internal(error))))
        .boxed()
}

/// Reads a piece that lies within the known length of its file.
async fn read_known(core: &Core, file: &Opened, piece: Piece) -> Result<Bytes> {
    let start = core.chunk_bytes.start_of(piece.index).raw();
    // In the chunk where the file ends these bytes are there; in one before it, what nobody wrote is zeros, also at the
    // chunk's end (traps T13, T39): where the range ends says nothing about that.
    let ends_here =
        file.length_seen.load(Ordering::Relaxed) <= start.saturating_add(core.chunk_bytes.raw().into());
    let known = if ends_here { piece.within + piece.length } else { 0 };
    let bytes = ask(core, file, piece, known).await?.bytes;
    if bytes.len() == piece.length as usize {
        return Ok(bytes);
    }
    let mut whole = BytesMut::from(bytes);
    whole.resize(piece.length as usize, 0);
    Ok(whole.freeze())
}

/// What a replica has of a piece.
struct Answer {
    /// All committed bytes of the piece.
    bytes: Bytes,
    committed_length: u32,
}

/// Asks replica after replica until one answers well, looking the chunk up again after each round.
/// `known` bytes of the chunk are known to be acknowledged: a replica that has fewer is wrong.
async fn ask(core: &Core, file: &Opened, piece: Piece, known: u32) -> Result<Answer> {
    let mut backoff = core.backoff();
    let began = core.now();
    let mut timeout = ANSWER_TIMEOUT;
    let mut round = 0;
    // What the last round came to, if all replicas are damaged. Until the patience ends another one may become good.
    let mut damage = None;
    loop {
        let located = locate(core, file, piece.index, backoff.remaining()).await;
        let location = located.map_err(|error| in_the_end(error, damage.take()))?;
        let is_new = location.version == ChunkVersion::NONE;
        if is_new && known == 0 {
            // No grant was ever confirmed: nothing in it was ever acknowledged.
            return Ok(Answer { bytes: Bytes::new(), committed_length: 0 });
        }
        let mut last = Error::NoReplica { handle: location.handle };
        let mut hopeless = !location.replicas.is_empty() && !is_new;
        // If something is known to be acknowledged the answer is from before that.
        let asked = if is_new { &[][..] } else { &location.replicas };
        let mut all_damaged = !asked.is_empty();
        // Who refuses at once needs no more time: it would only be lost with one that falls silent.
        let mut was_slow = false;
        for replica in core.nearest(location.handle, asked) {
            let (patience, asked_at) = (timeout.min(backoff.remaining()), core.now());
            match ask_replica(core, &replica, &location, (piece, known, patience)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(handle = %location.handle, server = %replica.id, %error, "replica failed");
                    if matches!(error, Error::Unavailable { .. }) {
                        core.cache.avoid(replica.id, core.now());
                    }
                    was_slow |= core.now().since(asked_at) >= patience;
                    // An address that was given to a server of another cluster tells nothing of the chunk.
                    let is_elsewhere = matches!(error, Error::WrongCluster { .. });
                    all_damaged &= error.is_damage();
                    hopeless &= error.retry() == Retry::Never && !is_elsewhere;
                    last = error;
                }
            }
        }
        core.cache.drop_location(file.id, piece.index, &location);
        if hopeless && round > 0 {
            return Err(last);
        }
        if all_damaged {
            damage = Some(last.clone());
        } else if !backoff.remaining().is_zero() {
            // A round that the patience cut short tells nothing new.
            damage = None;
        }
        // The first look at the master is at once: the location may just have been old.
        if round > 0 {
            if matches!(last, Error::NotValidated { .. }) && core.now().since(began) >= PRIMARY_AFTER {
                ask_for_primary(core, file, (piece.index, &location), backoff.remaining()).await;
            }
            backoff.pause(&last).await.map_err(|error| in_the_end(error, damage.take()))?;
        }
        round += 1;
        if was_slow {
            timeout = timeout.saturating_mul(2).min(core.patience());
        }
    }
}

/// The error of a read whose patience is over: that all replicas are damaged, if they are, says more than how long it was tried.
fn in_the_end(error: Error, damage: Option<Error>) -> Error {
    damage.filter(|_| matches!(error, Error::DeadlineExceeded { .. })).unwrap_or(error)
}

/// A replica that holds more than it knows to be committed has to ask the primary. If that one is dead, or has
/// restarted, only a new grant can tell: the master is told what fails, looks, and makes one.
async fn ask_for_primary(
    core: &Core,
    file: &Opened,
    (index, location): (ChunkIndex, &Location),
    patience: Duration,
) {
    let failed = (location.handle, location.version, None);
    if let Err(error) = core.find_lease(file, index, Some(failed), patience.min(PRIMARY_PATIENCE)).await {
        tracing::debug!(file = %file.id, %index, %error, "no primary to tell what is committed");
    }
}

/// Where a chunk is: from the cache, else from the master.
async fn locate(core: &Core, file: &Opened, index: ChunkIndex, patience: Duration) -> Result<Arc<Location>> {
    if let Some(location) = core.cache.location(file.id, index, core.now()) {
        return Ok(location);
    }
    let located = core.locate(file, index, patience).await?;
    located
        .chunks
        .iter()
        .find(|chunk| chunk.index == index)
        .map(|chunk| Arc::new(Location::from(chunk)))
        .ok_or_else(|| Error::NotFound { what: format!("chunk {index} of file {}", file.id) })
}

/// One replica's answer, asked for once more with verification on the server if the checksums do not match.
async fn ask_replica(
    core: &Core,
    replica: &Server,
    location: &Location,
    (piece, known, patience): (Piece, u32, Duration),
) -> Result<Answer> {
    let peer = replica.peer();
    let range = Range {
        handle: location.handle,
        version: location.version,
        offset: piece.within,
        length: piece.length,
    };
    let mut reply = core.links.read(&peer, &range, false, patience).await;
    if matches!(reply, Err(Error::Corrupt { .. })) {
        // Damage on the wire, on the disk, or a write in between: the holder's own look decides (trap T49).
        reply = core.links.read(&peer, &range, true, patience).await;
    }
    let reply = reply?;
    let there = reply.committed_length.saturating_sub(piece.within).min(piece.length);
    if reply.committed_length < known || reply.bytes.len() < there as usize {
        return Err(Error::unavailable(format!(
            "{} of {} gave {} bytes at {}, its committed length is {}",
            location.handle,
            replica.id,
            reply.bytes.len(),
            piece.within,
            reply.committed_length,
        )));
    }
    Ok(Answer { bytes: reply.bytes, committed_length: reply.committed_length })
}

/// Streams a file in order, reading ahead within a bound.
pub struct Reader {
    core: Arc<Core>,
    file: Arc<Opened>,
    units: BoxStream<'static, Result<Bytes>>,
    /// What [`AsyncRead`] has not taken yet.
    rest: Bytes,
    position: u64,
    end: u64,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} of {})", self.position, self.end)
    }
}

impl Reader {
    pub(crate) fn new(core: &Arc<Core>, file: &Arc<Opened>, offset: u64, end: u64) -> Self {
        let position = offset.min(end);
        let units = units(core, file, position..end);
        Self { core: core.clone(), file: file.clone(), units, rest: Bytes::new(), position, end }
    }

    /// Begins again where the caller is: behind an error there must be no gap.
    fn restart(&mut self) {
        self.units = units(&self.core, &self.file, self.position..self.end);
    }

    /// The next bytes, at most 1 MiB; `None` at the end.
    ///
    /// # Errors
    /// What the master or the replicas say. A later call goes on at the same place.
    ///
    /// # Cancel safety
    /// Cancel safe: no bytes are lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let bytes = if self.rest.is_empty() {
            match self.units.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    self.restart();
                    return Err(error);
                }
                None => return Ok(None),
            }
        } else {
            std::mem::take(&mut self.rest)
        };
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// The offset in the file of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }
    /// Where the stream will end: the file's length when the reader was made.
    pub fn end(&self) -> u64 {
        self.end
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.units.poll_next_unpin(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => {
                    self.restart();
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        self.position += count as u64;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_at_unit_and_chunk_borders() {
        let size = ChunkBytes::parse(5 << 18).unwrap(); // a unit and a quarter
        let split = |range| {
            pieces(size, range)
                .map(|piece| (piece.index.raw(), piece.within, piece.length))
                .collect::<Vec<_>>()
        };
        assert_eq!(split(0..0), []);
        assert_eq!(split(7..8), [(0, 7, 1)]);
        let (unit, chunk) = (UNIT_BYTES, size.raw());
        assert_eq!(
            split(10..u64::from(2 * chunk + 1)),
            [(0, 10, unit - 10), (0, unit, chunk - unit), (1, 0, unit), (1, unit, chunk - unit), (2, 0, 1)]
        );
    }

    #[test]
    fn a_range_past_the_largest_file_ends_there() {
        let size = ChunkBytes::DEFAULT;
        assert_eq!(pieces(size, u64::MAX - 1..u64::MAX).count(), 0);
        assert_eq!(pieces(size, size.file_bytes_max() - 1..u64::MAX).count(), 1);
    }
}
