//! The connections of the data plane: greeting, reading of frames, and handing them to the [`Handler`].
//!
//! What a peer can make this server hold is bounded: connections, requests of a connection, bytes of payloads that are
//! being worked on, bytes of answers that are waiting to be sent, and the buffer for pushed data. At a bound the
//! server stops reading from that connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::{self, Frame, Head, Kind, Payload};
use gfs_proto::id::DataId;
use gfs_proto::link::{GREETING_TIMEOUT, IDLE_CLOSE, Links};
use gfs_proto::net::{Connection, ReadHalf};
use gfs_proto::size::{BLOCK_BYTES, PAYLOAD_BYTES_MAX};
use gfs_proto::{Environment, Error, Result, fault, pb};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::push::{self, Push};
use super::request::{apply_request, carries_bytes, outcome_request, read_request, write_request};
use super::send::{self, Answer};
use super::{Buffer, Handler, ReadRequest};

/// Most connections; a client has up to five.
const CONNECTIONS_MAX: usize = 2048;
/// Requests of one connection that are worked on at once.
const REQUESTS_MAX: usize = 256;
/// Answers of one connection that are ready to be sent.
const ANSWERS_MAX: usize = REQUESTS_MAX;
/// Payloads that came with clients' requests and are being worked on. Apart from those of primaries: a client's write
/// here waits for other servers, which must never wait for it.
const CLIENT_PAYLOAD_BYTES: usize = 64 << 20;
/// Payloads that came with primaries' orders.
const MEMBER_PAYLOAD_BYTES: usize = 64 << 20;
/// Bytes read into memory for answers, all connections of clients together; as many for chunkservers, which never wait for
/// clients that take their time.
const ANSWER_BYTES: usize = 64 << 20;
/// The same for one connection, so that a few slow readers do not hold all of it.
const CONNECTION_ANSWER_BYTES: usize = PAYLOAD_BYTES_MAX as usize;
/// Bytes are counted in pages, so that a budget fits a semaphore.
const PAGE_BYTES: usize = 4096;
/// A connection that asks nothing for this long is closed; the peer's links close long before.
const IDLE_MAX: Duration = Duration::from_secs(5 * IDLE_CLOSE.as_secs());
/// How long a peer may take for a payload, or a piece of one, that it has announced.
pub(super) const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes read ahead: several small requests at once, little of a large one, which would be copied twice.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Settings of the data plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Bytes of pushed data that are kept.
    pub buffer_bytes: usize,
}

/// The data plane of one chunkserver.
pub struct Data<H> {
    handler: Arc<H>,
    links: Links,
    buffer: Arc<Buffer>,
    connections: Arc<Semaphore>,
    client_payloads: Arc<Semaphore>,
    member_payloads: Arc<Semaphore>,
    client_answers: Arc<Semaphore>,
    member_answers: Arc<Semaphore>,
}

impl<H> std::fmt::Debug for Data<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Data({:?})", self.buffer)
    }
}

/// What the requests of one connection share.
struct Peer {
    /// Whether it is a chunkserver.
    is_member: bool,
    answers: mpsc::Sender<Answer>,
    answer_bytes: Arc<Semaphore>,
}

impl<H: Handler> Data<H> {
    /// The data plane of this handler; `links` are the ones by which data is forwarded.
    pub fn new(environment: &Environment, handler: Arc<H>, links: Links, settings: Settings) -> Arc<Self> {
        let bytes = |bytes: usize| Arc::new(Semaphore::new(bytes / PAGE_BYTES));
        Arc::new(Self {
            handler,
            links,
            buffer: Buffer::new(environment.clock.clone(), settings.buffer_bytes),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            client_payloads: bytes(CLIENT_PAYLOAD_BYTES),
            member_payloads: bytes(MEMBER_PAYLOAD_BYTES),
            client_answers: bytes(ANSWER_BYTES),
            member_answers: bytes(ANSWER_BYTES),
        })
    }

    /// The buffer for pushed data; its owner calls [`Buffer::drop_aged`] now and then.
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Serves one connection, whose first bytes were [`frame::MAGIC`], until it ends or `stop`.
    pub async fn serve(self: Arc<Self>, mut connection: Connection, stop: CancellationToken) {
        let peer = connection.peer();
        let Ok(_one_of_many) = self.connections.try_acquire() else {
            tracing::warn!(?peer, "too many data connections");
            return;
        };
        let greeting = tokio::time::timeout(GREETING_TIMEOUT, self.greet(&mut connection)).await;
        let is_member = match greeting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some(hello)) => hello.from != 0,
            Ok(None) => return,
            Err(error) => {
                tracing::info!(?peer, %error, "no greeting on a data connection");
                return;
            }
        };
        let (reader, writer) = connection.split();
        let (answers, ready) = mpsc::channel(ANSWERS_MAX);
        let answer_bytes = Arc::new(Semaphore::new(CONNECTION_ANSWER_BYTES / PAGE_BYTES));
        let shared = Arc::new(Peer { is_member, answers, answer_bytes });
        let end = tokio::select! {
            end = self.receive(reader, &shared) => end,
            end = send::send(&*self.handler, writer, ready) => end,
            () = stop.cancelled() => Ok(()),
        };
        match end {
            // Not a frame: somebody else's protocol, or damage on the way. This server goes on.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(?peer, %error, "data connection closed");
            }
            Err(error) => tracing::debug!(?peer, %error, "data connection ended"),
            Ok(()) => {}
        }
    }

    /// Reads the peer's greeting and answers it; `None` if it was refused.
    async fn greet(&self, connection: &mut Connection) -> io::Result<Option<pb::HelloMeta>> {
        let Some(frame) = frame::read_frame(connection).await? else {
            return Ok(None);
        };
        let (answer, hello) = match self.judge_greeting(&frame) {
            Ok((answer, hello)) => (answer, Some(hello)),
            Err(error) => {
                tracing::debug!(peer = ?connection.peer(), %error, "data connection refused");
                (Frame::failed(frame.head.request, &error), None)
            }
        };
        frame::write_frame(connection, &answer, &[]).await?;
        connection.flush().await?;
        Ok(hello)
    }

    fn judge_greeting(&self, frame: &Frame) -> Result<(Frame, pb::HelloMeta)> {
        if frame.head.kind != Kind::Hello || frame.head.length != 0 {
            return Err(Error::bad_argument("a connection begins with a greeting"));
        }
        let hello: pb::HelloMeta = frame.meta()?;
        let (cluster, server) = self.handler.identity()?;
        let cluster = cluster.to_string();
        // A client may not know yet; a chunkserver does.
        let knows = !hello.cluster.is_empty() || hello.from != 0;
        if knows && hello.cluster != cluster {
            return Err(Error::WrongCluster { ours: cluster, theirs: hello.cluster });
        }
        if hello.server != 0 && hello.server != server.raw() {
            return Err(Error::WrongServer { ours: server.raw(), theirs: hello.server });
        }
        let answer = pb::HelloMeta { cluster, server: hello.server, from: server.raw() };
        Ok((Frame::new(Head::new(Kind::Hello, frame.head.request), &answer), hello))
    }

    /// Reads frames and has them worked on, each by a task of its own.
    async fn receive(self: &Arc<Self>, reader: ReadHalf, peer: &Arc<Peer>) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
        let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            let frame = tokio::time::timeout(IDLE_MAX, frame::read_frame(&mut reader))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            let Some(frame) = frame else { return Ok(()) };
            match frame.head.kind {
                Kind::Push => self.push(frame, &mut reader, peer, slot).await?,
                Kind::Write | Kind::Append | Kind::Apply => {
                    self.mutation(frame, &mut reader, peer, slot).await?;
                }
                Kind::Read | Kind::Fetch | Kind::Committed | Kind::Outcome => {
                    push::drain(&mut reader, frame.head.payload_length()).await?;
                    let (data, peer) = (self.clone(), peer.clone());
                    tokio::spawn(async move {
                        let answer = data.question(&frame, &peer).await.holding([slot]);
                        peer.answer(answer).await;
                    });
                }
                Kind::Hello
                | Kind::Done
                | Kind::Wrote
                | Kind::Applied
                | Kind::Data
                | Kind::CommittedIs
                | Kind::OutcomeIs
                | Kind::Failed => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that asks nothing"));
                }
            }
        }
    }

    /// A read or a question about a chunk.
    async fn question(&self, frame: &Frame, peer: &Peer) -> Answer {
        let Head { kind, request, handle, version, .. } = frame.head;
        let answer = if matches!(kind, Kind::Read | Kind::Fetch) {
            self.read(frame, peer).await
        } else if kind == Kind::Committed {
            let committed = self.handler.committed(handle, version).await;
            committed.map(|meta| Answer::new(Kind::CommittedIs, request, &meta))
        } else {
            self.outcome(frame).await.map(|meta| Answer::new(Kind::OutcomeIs, request, &meta))
        };
        answer.unwrap_or_else(|error| Answer::failed(request, &error))
    }

    async fn outcome(&self, frame: &Frame) -> Result<pb::OutcomeReplyMeta> {
        self.handler.outcome(frame.head.handle, frame.head.version, outcome_request(frame)?).await
    }

    async fn read(&self, frame: &Frame, peer: &Peer) -> Result<Answer> {
        let mut request = read_request(frame)?;
        let ReadRequest { length, verify, patience, .. } = request;
        // The most that will be in memory: everything, or the ragged edges. Taken before it is read.
        let bytes = if verify { length } else { length.min(2 * BLOCK_BYTES) };
        let mut held = self.room_for_answer(peer, bytes, patience).await?;
        let mut plan = if frame.head.kind == Kind::Fetch {
            Some(self.handler.fetch(request.clone()).await?)
        } else {
            self.handler.read(request.clone()).await?
        };
        if plan.is_none() {
            // Given back first: who waits for room holds none.
            drop(held);
            held = self.room_for_answer(peer, length, patience).await?;
            request.verify = true;
            plan = self.handler.read(request.clone()).await?;
        }
        let plan = plan.ok_or_else(|| Error::internal("a read that has room for all of it was not made"))?;
        fault::try_reach("data::before_read_answer").await?;
        Ok(Answer::data(frame.head.request, &request, plan).holding(held))
    }

    async fn room_for_answer(
        &self,
        peer: &Peer,
        bytes: u32,
        patience: Duration,
    ) -> Result<[OwnedSemaphorePermit; 2]> {
        let bytes = bytes as usize;
        let room = async {
            // First its own, so that who waits for itself holds nothing of what all share.
            let own = room(&peer.answer_bytes, bytes).await?;
            let all = if peer.is_member { &self.member_answers } else { &self.client_answers };
            Ok([own, room(all, bytes).await?])
        };
        let in_time = tokio::time::timeout(patience, room).await;
        in_time.unwrap_or_else(|_| Err(Error::Busy { what: "memory for answers".into() }))
    }

    /// Takes in the payload of a mutation, then lets the handler work on it.
    async fn mutation(
        self: &Arc<Self>,
        frame: Frame,
        reader: &mut BufReader<ReadHalf>,
        peer: &Arc<Peer>,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let request = frame.head.request;
        let budget = if peer.is_member { &self.member_payloads } else { &self.client_payloads };
        let room = room(budget, frame.head.length as usize).await.map_err(io::Error::other)?;
        let payload = tokio::time::timeout(PAYLOAD_TIMEOUT, frame::read_payload(reader, &frame))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let payload = match payload {
            Ok(payload) => payload,
            Err(block) => {
                let error = Error::Corrupt { handle: frame.head.handle, block };
                peer.answer(Answer::failed(request, &error).holding([slot])).await;
                return Ok(());
            }
        };
        let in_order = frame.head.kind == Kind::Apply;
        let (data, for_task) = (self.clone(), peer.clone());
        let mut work = Box::pin(async move {
            let answer = data.mutate(frame, payload).await;
            // Given back before the answer is sent: it is not held any more.
            drop(room);
            let answer = answer.unwrap_or_else(|error| Answer::failed(request, &error));
            for_task.answer(answer.holding([slot])).await;
        });
        // Begun here, so that the handler sees a primary's orders in the order in which they came.
        if in_order && futures::poll!(&mut work).is_ready() {
            return Ok(());
        }
        tokio::spawn(work);
        Ok(())
    }

    async fn mutate(&self, frame: Frame, payload: Bytes) -> Result<Answer> {
        let Head { kind, request: id, offset, .. } = frame.head;
        if kind == Kind::Apply {
            let (request, data) = apply_request(&frame)?;
            // A seal's length says how much it pads: no bytes come with it.
            let length = if carries_bytes(request.kind) { request.length } else { 0 };
            let payload = self.payload(data, offset, (payload, frame.crcs), length);
            let meta = pb::ApplyReplyMeta { serial: request.serial.raw() };
            self.handler.apply(request, payload).await?;
            self.forget(data);
            return Ok(Answer::new(Kind::Applied, id, &meta));
        }
        let (request, data) = write_request(&frame)?;
        let payload = self.payload(data, offset, (payload, frame.crcs), request.length);
        let meta = self.handler.mutate(request, payload).await?;
        self.forget(data);
        Ok(Answer::new(Kind::Wrote, id, &meta))
    }

    /// The bytes of a mutation: those that came along, or those pushed before.
    fn payload(
        &self,
        data: Option<DataId>,
        offset: u32,
        (bytes, crcs): (Bytes, Vec<u32>),
        length: u32,
    ) -> Result<Payload> {
        let payload = match data {
            Some(data) => self.buffer.find(data)?,
            None => Payload { offset, bytes, crcs },
        };
        if payload.length() == length {
            Ok(payload)
        } else {
            Err(Error::bad_argument(format!("{length} bytes were announced, here are {}", payload.length())))
        }
    }

    fn forget(&self, data: Option<DataId>) {
        if let Some(data) = data {
            self.buffer.remove(data);
        }
    }

    /// Receives pushed data here, because it comes on this connection; the rest of the chain is waited for apart.
    async fn push(
        self: &Arc<Self>,
        frame: Frame,
        reader: &mut BufReader<ReadHalf>,
        peer: &Arc<Peer>,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let request = frame.head.request;
        let length = frame.head.length;
        let accepted = Push::parse(&frame).and_then(|push| {
            let reservation = self.buffer.reserve(length as usize)?;
            Ok((push, reservation))
        });
        let received = match accepted {
            Ok((push, reservation)) => push.receive(&self.links, reservation, reader).await?,
            Err(error) => {
                push::drain(reader, length).await?;
                Err(error)
            }
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                peer.answer(Answer::failed(request, &error).holding([slot])).await;
                return Ok(());
            }
        };
        let peer = peer.clone();
        tokio::spawn(async move {
            let answer = match received.settle().await {
                Ok(()) => Answer::new(Kind::Done, request, &()),
                Err(error) => Answer::failed(request, &error),
            };
            peer.answer(answer.holding([slot])).await;
        });
        Ok(())
    }
}

impl Peer {
    /// Hands an answer to the writer; nobody wants it if the connection has ended.
    async fn answer(&self, answer: Answer) {
        self.answers.send(answer).await.ok();
    }
}

/// Waits for room in a budget; more than all of it counts as all of it.
async fn room(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
    budget.clone().acquire_many_owned(pages).await.map_err(Error::internal)
}
