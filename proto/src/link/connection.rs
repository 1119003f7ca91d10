//! One connection to a peer: a writer that owns whole frames, a reader that hands out answers by request id.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::frame::{self, Frame, Head, Kind};
use crate::id::{ClusterId, ServerId};
use crate::link::forward::Pieces;
use crate::link::{IDLE_CLOSE, Identity, Peer};
use crate::net::{Connection, ReadHalf};
use crate::{Environment, pb};

/// Calls in flight on one connection; more wait their turn.
pub(super) const CALLS_MAX: usize = 256;
/// A connection that has been silent this long while a call ran into its deadline is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Frames up to this size are gathered into one write.
const GATHER_BYTES: usize = 64 * 1024;
/// Bytes read ahead: several small answers at once, little of a large one, which would be copied twice.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// An open connection.
pub(super) struct Link {
    queue: mpsc::Sender<Outgoing>,
    slots: Arc<Semaphore>,
    next_request: AtomicU64,
    shared: Arc<Shared>,
}

struct Shared {
    environment: Environment,
    peer: Peer,
    /// Behind a lock because callers, reader and writer meet here; never held across an await.
    waiting: Mutex<Waiting>,
    /// Milliseconds, by the clock, when the peer last sent a frame.
    heard_ms: AtomicU64,
    /// Ends the connection.
    stop: CancellationToken,
}

#[derive(Default)]
struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Result<(Frame, Bytes)>>>,
    closed: bool,
}

/// A frame on its way out. Owned by the queue, so that a caller that goes away leaves no half frame behind.
struct Outgoing {
    request: u64,
    head: Bytes,
    length: u32,
    body: Body,
    /// Held until the frame is written and its call is over.
    _slot: Arc<OwnedSemaphorePermit>,
}

/// The payload of a frame on its way out.
pub(super) enum Body {
    Whole(Vec<Bytes>),
    Pieces(Pieces),
}

/// Why a frame was not sent.
pub(super) enum Unsent {
    /// The connection has closed meanwhile: take another.
    Closed,
    /// The frame can't be sent at all.
    Refused(Error),
}

/// A call whose frame is in the queue. Dropping it forgets the answer.
pub(super) struct Call {
    shared: Arc<Shared>,
    request: u64,
    sent_ms: u64,
    answer: oneshot::Receiver<Result<(Frame, Bytes)>>,
    _slot: Arc<OwnedSemaphorePermit>,
}

impl Link {
    /// Connects and exchanges greetings.
    pub(super) async fn connect(
        environment: &Environment,
        peer: &Peer,
        identity: Option<Identity>,
    ) -> Result<Arc<Self>> {
        let failed = |error: io::Error| Error::unavailable(format!("{peer}: {error}"));
        let mut connection = environment.net.connect(&peer.address).await.map_err(failed)?;
        let ours = identity.map(|identity| identity.cluster);
        let hello = pb::HelloMeta {
            cluster: ours.map(|cluster| cluster.to_string()).unwrap_or_default(),
            server: peer.server.raw(),
            from: identity.and_then(|identity| identity.from).map_or(0, ServerId::raw),
        };
        let hello = Frame::new(Head::new(Kind::Hello, 0), &hello);
        frame::write_frame(&mut connection, &hello, &[]).await.map_err(failed)?;
        let answer = frame::read_frame(&mut connection).await.map_err(failed)?;
        let answer = answer.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?.into_result()?;
        check_greeting(&answer, peer, ours)?;
        Ok(Self::start(environment, peer, connection))
    }

    fn start(environment: &Environment, peer: &Peer, connection: Connection) -> Arc<Self> {
        // As many places as slots: who has a slot has a place.
        let (queue, outgoing) = mpsc::channel(CALLS_MAX);
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let shared = Arc::new(Shared {
            environment: environment.clone(),
            peer: peer.clone(),
            waiting: Mutex::default(),
            heard_ms: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        tokio::spawn(shared.clone().run(connection, outgoing));
        Arc::new(Self { queue, slots, next_request: AtomicU64::new(1), shared })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.stop.is_cancelled() || self.shared.waiting.lock().closed
    }

    /// Calls in flight.
    pub(super) fn calls(&self) -> usize {
        CALLS_MAX.saturating_sub(self.slots.available_permits())
    }

    /// Puts a frame into the queue as soon as there is a place.
    pub(super) async fn send(&self, frame: &Frame, body: Body) -> Result<Call, Unsent> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| Unsent::Closed)?;
        let slot = Arc::new(slot);
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let mut frame = frame.clone();
        frame.head.request = request;
        let head = frame.encode().map_err(|error| Unsent::Refused(Error::bad_argument(error)))?;
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.lock();
            if waiting.closed {
                return Err(Unsent::Closed);
            }
            waiting.calls.insert(request, sender);
        }
        let sent_ms = self.shared.now_ms();
        let call = Call { shared: self.shared.clone(), request, sent_ms, answer, _slot: slot.clone() };
        let length = frame.head.payload_length();
        let outgoing = Outgoing { request, head, length, body, _slot: slot };
        self.queue.try_send(outgoing).map_err(|_| Unsent::Closed)?;
        Ok(call)
    }
}

fn check_greeting(answer: &Frame, peer: &Peer, ours: Option<ClusterId>) -> Result<()> {
    if answer.head.kind != Kind::Hello {
        return Err(Error::unavailable(format!("{peer} does not greet")));
    }
    let theirs: pb::HelloMeta = answer.meta()?;
    if let Some(ours) = ours
        && ours.to_string() != theirs.cluster
    {
        return Err(Error::WrongCluster { ours: theirs.cluster, theirs: ours.to_string() });
    }
    if peer.server.raw() != 0 && theirs.from != peer.server.raw() {
        return Err(Error::WrongServer { ours: theirs.from, theirs: peer.server.raw() });
    }
    Ok(())
}

impl Call {
    /// Waits for the answer.
    pub(super) async fn answer(mut self, patience: Duration) -> Result<(Frame, Bytes)> {
        match tokio::time::timeout(patience, &mut self.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.shared.lost()),
            Err(_) => {
                self.shared.judge_silence(self.sent_ms);
                let waited_ms = patience.as_millis();
                Err(Error::unavailable(format!("{}: no answer within {waited_ms} ms", self.shared.peer)))
            }
        }
    }
}
impl Drop for Call {
    fn drop(&mut self) {
        self.shared.waiting.lock().calls.remove(&self.request);
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        let since = self.environment.clock.moment().since(crate::time::Moment::default());
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn lost(&self) -> Error {
        Error::unavailable(format!("the connection to {} is lost", self.peer))
    }

    /// A call ran into its deadline: if the peer has sent nothing for long, the connection is given up with
    /// everything that stands in its queue.
    fn judge_silence(&self, sent_ms: u64) {
        let last = self.heard_ms.load(Ordering::Relaxed).max(sent_ms);
        if u128::from(self.now_ms().saturating_sub(last)) >= SILENCE_MAX.as_millis() {
            tracing::debug!(peer = %self.peer, "silent, connection given up");
            self.stop.cancel();
        }
    }

    /// Reads and writes until the connection ends; then every waiting call fails.
    async fn run(self: Arc<Self>, connection: Connection, queue: mpsc::Receiver<Outgoing>) {
        let (reader, mut writer) = connection.split();
        let end = tokio::select! {
            end = self.read(reader) => end,
            end = self.write(&mut writer, queue) => end,
            () = self.stop.cancelled() => Err(io::ErrorKind::TimedOut.into()),
        };
        if let Err(error) = end {
            tracing::debug!(peer = %self.peer, %error, "link failed");
        }
        let calls = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.calls)
        };
        for sender in calls.into_values() {
            sender.send(Err(self.lost())).ok();
        }
    }

    async fn read(&self, reader: ReadHalf) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, reader);
        while let Some(frame) = frame::read_frame(&mut reader).await? {
            self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
            let payload = frame::read_payload(&mut reader, &frame).await?;
            let Some(call) = self.waiting.lock().calls.remove(&frame.head.request) else {
                continue;
            };
            let handle = frame.head.handle;
            let answer = payload
                .map_err(|block| Error::Corrupt { handle, block })
                .and_then(|payload| Ok((frame.into_result()?, payload)));
            // The caller may have gone in this moment.
            call.send(answer).ok();
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        mut queue: mpsc::Receiver<Outgoing>,
    ) -> io::Result<()> {
        let mut gathered = BytesMut::with_capacity(GATHER_BYTES);
        loop {
            let Some(first) = self.next(&mut queue).await else { return Ok(()) };
            let mut next = Some(first);
            while let Some(outgoing) = next {
                self.write_one(writer, &mut gathered, outgoing).await?;
                next = if gathered.len() < GATHER_BYTES { queue.try_recv().ok() } else { None };
            }
            writer.write_all(&gathered).await?;
            gathered.clear();
        }
    }

    /// The next frame; `None` when the link is no longer wanted, or idle, and closed now.
    async fn next(&self, queue: &mut mpsc::Receiver<Outgoing>) -> Option<Outgoing> {
        loop {
            if let Ok(next) = tokio::time::timeout(IDLE_CLOSE, queue.recv()).await {
                return next;
            }
            let mut waiting = self.waiting.lock();
            if waiting.calls.is_empty() {
                // Under the lock: a caller who comes now is told to take another link before it has sent anything.
                waiting.closed = true;
                return None;
            }
        }
    }

    /// Adds one frame to what is gathered, or writes all of it if the frame is large.
    async fn write_one(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        gathered: &mut BytesMut,
        outgoing: Outgoing,
    ) -> io::Result<()> {
        if !self.waiting.lock().calls.contains_key(&outgoing.request) {
            // The caller has gone, and nothing of the frame is written yet.
            return Ok(());
        }
        gathered.extend_from_slice(&outgoing.head);
        match outgoing.body {
            Body::Whole(payload) if gathered.len() + outgoing.length as usize <= GATHER_BYTES => {
                payload.iter().for_each(|bytes| gathered.extend_from_slice(bytes));
            }
            Body::Whole(payload) => {
                writer.write_all(gathered).await?;
                gathered.clear();
                for bytes in payload {
                    writer.write_all(&bytes).await?;
                }
            }
            Body::Pieces(pieces) => {
                writer.write_all(gathered).await?;
                gathered.clear();
                if !pieces.write(writer, outgoing.length as usize).await? {
                    self.broken_off(outgoing.request);
                }
            }
        }
        Ok(())
    }

    /// The pieces of a forwarded frame ended too early: its call fails, the connection lives.
    fn broken_off(&self, request: u64) {
        if let Some(call) = self.waiting.lock().calls.remove(&request) {
            call.send(Err(Error::unavailable("the data to be forwarded broke off"))).ok();
        }
    }
}
