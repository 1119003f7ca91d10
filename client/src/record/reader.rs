//! Records of a file, appended and read (GFS §2.7.2).

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use gfs_proto::{Error, Result};
use tokio::io::AsyncReadExt;

use super::{HEAD_BYTES, PAYLOAD_BYTES_MAX, Record, RecordId, Scanner, encode};
use crate::file::File;
use crate::read::Reader;

/// Bytes that are taken from the file at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Reads the records of a file in order: each id once, past padding and damage. Its memory is bounded by the largest record and
/// by what a [`Reader`] fetches ahead.
#[derive(Debug)]
pub struct RecordReader {
    file: File,
    scanner: Scanner,
    stream: Option<Reader>,
    buffer: BytesMut,
}

impl RecordReader {
    /// The next record; `None` at the end that the file has now. Later calls find what was appended since.
    ///
    /// # Errors
    /// What the master or the replicas say; a later call goes on at the same place.
    ///
    /// # Cancel safety
    /// Nothing is lost if the call is dropped.
    pub async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.scanner.next_record() {
                return Ok(Some(record));
            }
            if !self.feed().await? {
                return Ok(None);
            }
        }
    }

    /// Where a new reader goes on after the records that this one has yielded.
    pub fn position(&self) -> u64 {
        self.scanner.position()
    }

    /// Bytes passed over so far that were neither record nor padding.
    pub fn damaged_bytes(&self) -> u64 {
        self.scanner.damaged_bytes()
    }

    /// Takes the next piece of the file; false at its end.
    async fn feed(&mut self) -> Result<bool> {
        let wanted = self.scanner.wanted_position();
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.file.reader(wanted).await?),
        };
        self.buffer.reserve(PIECE_BYTES);
        match stream.read_buf(&mut self.buffer).await {
            // The end that the file had when the stream was opened: the next call looks again.
            Ok(0) => self.stream = None,
            Ok(_) => {
                self.scanner.feed(&self.buffer);
                self.buffer.clear();
                return Ok(true);
            }
            Err(error) => {
                self.stream = None;
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned();
                return Err(inner.unwrap_or_else(|| Error::internal(error)));
            }
        }
        Ok(false)
    }
}

impl File {
    /// Reads the records from `position` on: 0, or where an earlier reader stood ([`Record::next`]).
    pub fn record_reader(&self, position: u64) -> RecordReader {
        RecordReader {
            file: self.clone(),
            scanner: Scanner::new(position),
            stream: None,
            buffer: BytesMut::new(),
        }
    }

    /// Appends a payload as a record with an id of its own, and returns the id and the position in the file.
    ///
    /// # Errors
    /// As [`File::append_record_as`].
    pub async fn append_record(&self, payload: &[u8]) -> Result<(RecordId, u64)> {
        let sequence = self.core.records.fetch_add(1, Ordering::Relaxed);
        let id = RecordId { producer: self.core.producer, sequence };
        Ok((id, self.append_record_as(id, payload).await?))
    }

    /// Appends a payload as a record with this id, and returns its position in the file. If the outcome stays unknown the
    /// same id may be appended again: readers yield it once.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the record with its head is over a quarter of a chunk; as [`File::append`].
    pub async fn append_record_as(&self, id: RecordId, payload: &[u8]) -> Result<u64> {
        let quarter = self.core.chunk_bytes.record_bytes_max() as usize;
        let limit = quarter.saturating_sub(HEAD_BYTES).min(PAYLOAD_BYTES_MAX);
        let record: Option<Bytes> = encode(id, payload).filter(|_| payload.len() <= limit);
        let Some(record) = record else {
            let (size, limit) = (payload.len() as u64, limit as u64);
            return Err(Error::TooLarge { what: "the payload of the record".into(), size, limit });
        };
        self.append(record).await
    }
}
