//! A frame whose payload is sent on while it is still being received (GFS §3.2).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::link::connection::{Body, Call};
use crate::size::{BLOCK_BYTES, PAYLOAD_BYTES_MAX};

/// Pieces that may wait between the receiver and the sender.
const PIECES_WAITING_MAX: usize = 4;
/// Most pieces of one payload; more than any sender cuts it into.
const PIECES_MAX: usize = (PAYLOAD_BYTES_MAX / BLOCK_BYTES) as usize + 2;
/// How long the connection to the next server is kept waiting for a piece, and a piece for the connection.
/// Short, because others wait for the same connection.
const PIECE_TIMEOUT: Duration = Duration::from_secs(2);
/// Zeros that fill up a payload which broke off.
static FILL: [u8; 16 * 1024] = [0; 16 * 1024];

/// The writer's ends: pieces come in, and go back when they are written.
pub(super) struct Pieces {
    pieces: mpsc::Receiver<BytesMut>,
    written: mpsc::Sender<BytesMut>,
}

/// The receiver's ends.
pub(super) struct Ends {
    pieces: mpsc::Sender<BytesMut>,
    written: mpsc::Receiver<BytesMut>,
}

pub(super) fn channels() -> (Body, Ends) {
    let (pieces, pieces_out) = mpsc::channel(PIECES_WAITING_MAX);
    let (written_in, written) = mpsc::channel(PIECES_MAX);
    (Body::Pieces(Pieces { pieces: pieces_out, written: written_in }), Ends { pieces, written })
}

impl Pieces {
    /// Writes pieces until `length` bytes are written. If they end early or stall, fills the frame up, so that the
    /// connection can go on (the checksums tell the peer), and returns false.
    pub(super) async fn write(
        mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        length: usize,
    ) -> io::Result<bool> {
        let mut rest = length;
        while rest > 0 {
            let piece = match tokio::time::timeout(PIECE_TIMEOUT, self.pieces.recv()).await {
                Ok(Some(piece)) if piece.len() <= rest => piece,
                Ok(_) | Err(_) => break,
            };
            writer.write_all(&piece).await?;
            rest -= piece.len();
            // The receiver may have gone; then the pieces are dropped here.
            self.written.try_send(piece).ok();
        }
        let complete = rest == 0;
        while rest > 0 {
            let count = rest.min(FILL.len());
            writer.write_all(&FILL[..count]).await?;
            rest -= count;
        }
        Ok(complete)
    }
}

/// A frame on its way to the next server, piece by piece.
///
/// The pieces are lent: [`Forward::finish`] gives them back whole, without a copy, when they are written.
/// A `Forward` that is dropped early fails at the peer and leaves the connection usable.
pub struct Forward {
    call: Call,
    ends: Ends,
    patience: Duration,
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forward")
    }
}

impl Forward {
    pub(super) fn new(call: Call, ends: Ends, patience: Duration) -> Self {
        Self { call, ends, patience }
    }

    /// Sends the next piece.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the connection has failed or stalls; the forwarding is over then.
    pub async fn send(&mut self, piece: BytesMut) -> Result<()> {
        match tokio::time::timeout(PIECE_TIMEOUT, self.ends.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::unavailable("the next server's connection failed")),
            Err(_) => Err(Error::unavailable("the next server's connection stalls")),
        }
    }

    /// After the last piece: waits until all are written, puts them together again, and waits for the answer.
    ///
    /// # Errors
    /// As [`crate::link::Links::call`].
    pub async fn finish(self) -> Result<(Bytes, Frame)> {
        let Self { call, ends: Ends { pieces, mut written }, patience } = self;
        drop(pieces);
        let whole = async {
            let mut whole = BytesMut::new();
            while let Some(piece) = written.recv().await {
                // In the order in which they were cut from one buffer: put together without a copy.
                whole.unsplit(piece);
            }
            whole.freeze()
        };
        let (whole, (answer, _)) = tokio::try_join!(async { Ok(whole.await) }, call.answer(patience))?;
        Ok((whole, answer))
    }
}
