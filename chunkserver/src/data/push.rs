//! Data on its way along a chain of servers: each forwards to the next while it receives (GFS §3.2).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gfs_proto::frame::{self, Frame, Head, Kind, Payload};
use gfs_proto::id::{ChunkHandle, DataId};
use gfs_proto::link::{CALL_TIMEOUT, Forward, Links, Peer};
use gfs_proto::size::{REPLICATION_MAX, block_pieces};
use gfs_proto::{Error, Result, fault, pb};
use tokio::io::AsyncRead;

use super::buffer::Reservation;
use super::server::PAYLOAD_TIMEOUT;

/// Received, checked and sent on at once; four blocks (measured).
const PIECE_BYTES: u32 = 256 * 1024;

/// A push that has been understood.
pub(super) struct Push {
    frame: Frame,
    data: DataId,
    chain: Vec<pb::Replica>,
}

/// A push whose payload is received; what remains is the chain.
pub(super) struct Received {
    push: Push,
    reservation: Reservation,
    held: Held,
}

/// The received bytes.
enum Held {
    /// This server is the last of the chain.
    Here(Bytes),
    /// Lent to the connection to the next server.
    Lent(Peer, Forward),
}

impl Push {
    pub(super) fn parse(frame: &Frame) -> Result<Self> {
        let meta: pb::PushMeta = frame.meta()?;
        let data = DataId::from_slice(&meta.data_id).ok_or_else(|| Error::bad_argument("no data id"))?;
        if meta.chain.len() >= REPLICATION_MAX as usize {
            return Err(Error::bad_argument("the chain is too long"));
        }
        if frame.head.length == 0 {
            return Err(Error::bad_argument("a push of no bytes"));
        }
        Ok(Self { frame: frame.clone(), data, chain: meta.chain })
    }

    fn handle(&self) -> ChunkHandle {
        self.frame.head.handle
    }

    /// Receives the payload, and sends it on meanwhile. The inner result says whether the push can still succeed;
    /// either way the whole payload has been read.
    pub(super) async fn receive(
        self,
        links: &Links,
        reservation: Reservation,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Result<Received>> {
        let mut next = match self.begin_forward(links).await {
            Ok(next) => next,
            Err(error) => {
                drain(reader, self.frame.head.length).await?;
                return Ok(Err(error));
            }
        };
        let length = self.frame.head.length;
        let mut buffer = BytesMut::with_capacity(length as usize);
        let mut failed = None;
        let mut crcs = self.frame.crcs.iter();
        let mut start = 0;
        for piece_length in block_pieces(self.frame.head.offset, length) {
            let begin = buffer.len();
            in_time(frame::read_to_end_of(reader, &mut buffer, piece_length as usize)).await?;
            if crcs.next() != Some(&crc32fast::hash(&buffer[begin..])) && failed.is_none() {
                let block = frame::block_of(self.frame.head.offset, start + begin).unwrap_or(u32::MAX);
                failed = Some(Error::Corrupt { handle: self.handle(), block });
                // Bad bytes end here: the next server gets a frame that does not verify, and nothing of it is kept.
                next = next.map(|(peer, _)| (peer, None));
            }
            let last = start + buffer.len() == length as usize;
            if let Some((peer, Some(forward))) = &mut next
                && (last || buffer.len() >= PIECE_BYTES as usize)
            {
                start += buffer.len();
                if let Err(error) = forward.send(buffer.split()).await {
                    failed = Some(self.member_failed(peer, error));
                    next = next.map(|(peer, _)| (peer, None));
                }
            } else if failed.is_some() {
                start += buffer.len();
                buffer.clear();
            }
        }
        if let Some(error) = failed {
            return Ok(Err(error));
        }
        let held = match next {
            Some((peer, Some(forward))) => Held::Lent(peer, forward),
            Some((_, None)) | None => Held::Here(buffer.freeze()),
        };
        Ok(Ok(Received { push: self, reservation, held }))
    }

    /// Starts the same frame to the next server of the chain, if there is one.
    async fn begin_forward(&self, links: &Links) -> Result<Option<(Peer, Option<Forward>)>> {
        let [next, rest @ ..] = self.chain.as_slice() else {
            return Ok(None);
        };
        let peer = Peer::from(next);
        let meta = pb::PushMeta { data_id: self.data.bytes().to_vec().into(), chain: rest.to_vec() };
        let deadline_ms = for_next(self.frame.head.deadline_ms);
        let head = Head { request: 0, deadline_ms, ..self.frame.head.clone() };
        let frame = Frame { crcs: self.frame.crcs.clone(), ..Frame::new(head, &meta) };
        fault::try_reach("data::before_push_forward").await?;
        match links.forward(&peer, frame).await {
            Ok(forward) => Ok(Some((peer, Some(forward)))),
            Err(error) => Err(self.member_failed(&peer, error)),
        }
    }

    /// What the client is told when the next server failed: which one it was.
    fn member_failed(&self, peer: &Peer, error: Error) -> Error {
        // Named already by a server further down, or nobody's fault.
        if matches!(error, Error::MemberFailed { .. } | Error::Busy { .. }) {
            return error;
        }
        tracing::debug!(handle = %self.handle(), server = %peer.server, %error, "push failed downstream");
        Error::MemberFailed { handle: self.handle(), server: peer.server }
    }
}

impl Received {
    /// Waits for the rest of the chain, then keeps the data.
    pub(super) async fn settle(self) -> Result<()> {
        let Self { push, reservation, held } = self;
        let bytes = match held {
            Held::Here(bytes) => bytes,
            Held::Lent(peer, forward) => match forward.finish().await {
                Ok((bytes, answer)) if answer.head.kind == Kind::Done => bytes,
                Ok(_) => return Err(push.member_failed(&peer, Error::internal("a strange answer"))),
                Err(error) => return Err(push.member_failed(&peer, error)),
            },
        };
        fault::try_reach("data::before_push_kept").await?;
        let Frame { head, crcs, .. } = push.frame;
        reservation.fill(push.data, Payload { offset: head.offset, bytes, crcs });
        Ok(())
    }
}

/// The deadline of the next server of a chain, in milliseconds: shorter, since it begins to count later. Whoever waits for this
/// one has to hear who is silent further down before it takes this one for silent.
fn for_next(deadline_ms: u32) -> u32 {
    let given = match deadline_ms {
        0 => u32::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        given => given,
    };
    (given - given / 4).max(1)
}

/// Reads and forgets.
pub(super) async fn drain(reader: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<()> {
    let mut rest = length as usize;
    let mut buffer = BytesMut::with_capacity(rest.min(PIECE_BYTES as usize));
    while rest > 0 {
        let count = rest.min(PIECE_BYTES as usize);
        buffer.clear();
        in_time(frame::read_to_end_of(reader, &mut buffer, count)).await?;
        rest -= count;
    }
    Ok(())
}

/// A sender that stops in the middle of a payload is given up.
async fn in_time<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let patience: Duration = PAYLOAD_TIMEOUT;
    tokio::time::timeout(patience, read).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_of_a_chain_gives_up_before_the_one_that_waits_for_it() {
        let mut deadline_ms = 5000;
        for _ in 0..REPLICATION_MAX {
            let next = for_next(deadline_ms);
            assert!(next > 0 && next < deadline_ms.max(2), "{next} after {deadline_ms}");
            deadline_ms = next;
        }
        assert_eq!([for_next(5000), for_next(1), for_next(0)], [3750, 1, 7500]);
    }
}
