//! Record append: at an offset that the system chooses, whole, exactly once (GFS §3.3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkIndex, RequestId};
use gfs_proto::{Error, Result, fault};

use crate::cache::Lease;
use crate::file::File;
use crate::mutate::{Action, Tail, Unit};
use crate::options::Durability;
use crate::session::in_turn;

/// What became of a record at a sealed chunk.
enum Settled {
    /// It is there, at this offset.
    Here(u32),
    /// It is not and never will be.
    Never,
}

impl File {
    /// Appends one record, of at most a quarter of a chunk, as a whole and exactly once, at an offset that the
    /// system chooses and that is returned (GFS §3.3). Clients that append at the same time do not disturb
    /// each other; a file that is appended to is better not written at offsets.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a larger record, or what the master or the primary says.
    pub async fn append(&self, record: Bytes) -> Result<u64> {
        let limit = self.core.chunk_bytes.record_bytes_max();
        if record.len() > limit as usize {
            let size = record.len() as u64;
            return Err(Error::TooLarge { what: "record".into(), size, limit: limit.into() });
        }
        if record.is_empty() {
            return Err(Error::bad_argument("a record of no bytes"));
        }
        let length = u64::from(u32::try_from(record.len()).unwrap_or(u32::MAX));
        let payload = Payload::new(0, record);
        let durability = self.core.options.durability;
        let request = self.core.sessions.data_request().await?;
        let mut index = self.last_chunk().await?;
        loop {
            let mut tail = Tail::new(index);
            let unit = Unit::new(request.clone(), Action::Append, payload.clone(), durability.into());
            let sealed = match tail.commit(&self.core, &self.opened, unit).await {
                Ok(reply) => return Ok(self.appended(index, reply.offset, length)),
                Err(error @ Error::Sealed { .. }) => error,
                Err(error) => return Err(error),
            };
            // Guard next_without_asking: an earlier attempt may have put the record into this chunk.
            // Mutant next_without_asking: on to the next chunk.
            let asks = !fault::mutant("next_without_asking");
            let settled =
                if asks { self.settle(index, request.id(), &sealed).await? } else { Settled::Never };
            match settled {
                Settled::Here(offset) => return Ok(self.appended(index, offset, length)),
                Settled::Never => index = self.chunk_after(index).await?,
            }
        }
    }

    /// Takes note of a record, and returns its offset in the file.
    fn appended(&self, index: ChunkIndex, within: u32, length: u64) -> u64 {
        let offset = self.core.chunk_bytes.start_of(index).raw() + u64::from(within);
        self.opened.see_length(offset + length);
        if self.core.options.durability == Durability::Replicated {
            self.opened.unsynced.lock().wrote(index);
        }
        offset
    }

    /// Where a record goes first: into the last chunk that is known, else that the master knows.
    async fn last_chunk(&self) -> Result<ChunkIndex> {
        let seen = self.opened.chunks_seen.load(Ordering::Relaxed);
        let last = ChunkIndex::from_raw(seen.saturating_sub(1));
        if self.core.cache.lease(self.opened.id, last, self.core.now()).is_some() {
            // If it is not the last one any more it is sealed, and says so.
            return Ok(last);
        }
        let located = self.core.locate(&self.opened, last, self.core.patience()).await?;
        Ok(ChunkIndex::from_raw(located.chunk_count.saturating_sub(1)))
    }

    /// The chunk to try after a sealed one: the last of the file, or a new one.
    ///
    /// Of many appenders that meet at the end of a chunk one asks the master, and makes the next chunk if there is
    /// none; the others find it known when that is done.
    async fn chunk_after(&self, sealed: ChunkIndex) -> Result<ChunkIndex> {
        let next = sealed.next();
        if let Ok(_first) = self.opened.moving_on.try_lock() {
            return match self.known_after(next) {
                Some(known) => Ok(known),
                None => self.find_after(next).await,
            };
        }
        let first = self.opened.moving_on.lock();
        drop(in_turn(&*self.core.environment.clock, first, self.core.patience()).await?);
        // Who was first may have failed: then each asks for itself, and says what is wrong.
        match self.known_after(next) {
            Some(known) => Ok(known),
            None => self.find_after(next).await,
        }
    }

    /// The last chunk that is known, if that is this one or a later one. Should it be sealed, it says so.
    fn known_after(&self, next: ChunkIndex) -> Option<ChunkIndex> {
        let seen = self.opened.chunks_seen.load(Ordering::Relaxed);
        (seen > next.raw()).then(|| ChunkIndex::from_raw(seen - 1))
    }

    async fn find_after(&self, next: ChunkIndex) -> Result<ChunkIndex> {
        let located = self.core.locate(&self.opened, next, self.core.patience()).await?;
        let last = ChunkIndex::from_raw(located.chunk_count.saturating_sub(1)).max(next);
        self.core.lease(&self.opened, last, self.core.patience()).await?;
        Ok(last)
    }

    /// Asks the primary of a sealed chunk what became of a record.
    async fn settle(&self, index: ChunkIndex, request: RequestId, sealed: &Error) -> Result<Settled> {
        let mut backoff = self.core.backoff();
        let mut failed: Option<Arc<Lease>> = None;
        loop {
            // Chunks forget the ids of an expired session: an answer of "never" would prove nothing then.
            self.core.sessions.check_open(request.client)?;
            let patience = backoff.remaining();
            let lease = match &failed {
                None => self.core.lease(&self.opened, index, patience).await,
                Some(lease) => self.core.lease_after(&self.opened, lease, None, patience).await,
            };
            // What was sent before is unsettled as long as nobody answers this.
            let lease = lease.map_err(|error| backoff.gave_up(&error))?;
            let asked =
                self.core.links.outcome(&lease.primary, lease.handle, lease.version, request, patience);
            match asked.await {
                Ok(outcome) => match outcome.offset {
                    Some(offset) => return Ok(Settled::Here(offset)),
                    None if outcome.sealed => return Ok(Settled::Never),
                    None => backoff.pause(sealed).await?,
                },
                Err(error) => {
                    backoff.pause(&error).await?;
                    failed = Some(lease);
                }
            }
        }
    }
}
