//! The client's session at the masters: names its mutations, so that a repeat is harmless (trap T30).

mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use gfs_proto::id::{ClientId, ClusterId, RequestId};
use gfs_proto::leader::{Master, MasterChannel, refused_at};
use gfs_proto::retry::Backoff;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::Clock;
use gfs_proto::{Environment, Error, Result, pb};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use window::Window;

/// The session is renewed this many times within its life.
const RENEWALS_PER_LIFE: u32 = 4;
/// Bounds of the pause between two renewals.
const RENEWAL_MIN: Duration = Duration::from_secs(1);
const RENEWAL_MAX: Duration = Duration::from_secs(60);
/// How long one renewal is tried.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);
/// Most mutations of one client at the masters at a time: far fewer than the answers that a session keeps.
const CHANGES_MAX: usize = 256;
/// How often one operation opens a new session because the old one has expired.
const REOPEN_MAX: u32 = 3;

/// Gives out request ids, and keeps the session that they belong to alive.
#[derive(Debug)]
pub(crate) struct Sessions {
    environment: Environment,
    masters: MasterChannel,
    patience: Duration,
    /// Held for single steps only.
    window: Mutex<Window>,
    /// One opening at a time; held across the call to the master.
    opening: tokio::sync::Mutex<()>,
    /// Bounds the mutations at the masters.
    changes: Semaphore,
    /// The newest state of the log that any answer came from: no lookup may go behind it (trap T51).
    floor: AtomicU64,
}

/// What a master tells at the opening of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) cluster: ClusterId,
    pub(crate) chunk_bytes: ChunkBytes,
    pub(crate) life: Duration,
}

/// One request id in use; given back when dropped.
#[derive(Debug)]
struct Ticket {
    sessions: Arc<Sessions>,
    request: RequestId,
}

impl Ticket {
    /// The request id for one attempt, with what the masters may forget by now.
    fn attempt(&self) -> pb::RequestId {
        let first_unacked = self.sessions.window.lock().first_unacked_with(self.request);
        pb::RequestId { first_unacked, ..self.request.into() }
    }
}
impl Drop for Ticket {
    fn drop(&mut self) {
        self.sessions.window.lock().end(self.request);
    }
}

/// The name of a data mutation, for as long as it may be sent again or asked for: when it is dropped, chunks may forget it
/// (decision 0018).
#[derive(Debug)]
pub(crate) struct DataRequest {
    sessions: Arc<Sessions>,
    id: RequestId,
}

impl DataRequest {
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }
    /// What chunks may have forgotten when they take this mutation: all below.
    pub(crate) fn first_unacked(&self) -> u64 {
        self.sessions.window.lock().first_unacked_data(self.id)
    }
}
impl Drop for DataRequest {
    fn drop(&mut self) {
        self.sessions.window.lock().end_data(self.id);
    }
}

impl Sessions {
    /// Opens the first session.
    pub(crate) async fn open(
        environment: &Environment,
        masters: &MasterChannel,
        patience: Duration,
    ) -> Result<(Arc<Self>, Opened)> {
        let sessions = Self {
            environment: environment.clone(),
            masters: masters.clone(),
            patience,
            window: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            changes: Semaphore::new(CHANGES_MAX),
            floor: AtomicU64::new(0),
        };
        let opened = sessions.open_new(sessions.patience).await?;
        Ok((Arc::new(sessions), opened))
    }

    /// The log index that no lookup may go behind.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }
    /// Takes note of the log index of an answer.
    pub(crate) fn seen(&self, rev: u64) {
        self.floor.fetch_max(rev, Ordering::Relaxed);
    }
    /// A master's answer. That something is not there, or is already, has been seen as well as what is there.
    pub(crate) fn heard<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T> {
        answer.map(tonic::Response::into_inner).map_err(|status| {
            self.seen(refused_at(&status));
            Error::from(status)
        })
    }

    /// The name of a data mutation, which no other mutation ever has.
    ///
    /// Counted apart from the mutations at the masters, which never see these. Opens a new session unless the last one is
    /// surely open.
    ///
    /// # Errors
    /// No session could be opened, or each was over at once.
    pub(crate) async fn data_request(self: &Arc<Self>) -> Result<Arc<DataRequest>> {
        let mut deadline = Backoff::new(&self.environment, self.patience);
        let begin = || self.window.lock().begin_data(self.environment.clock.moment());
        let id = self.in_a_session(&mut deadline, begin).await?;
        Ok(Arc::new(DataRequest { sessions: self.clone(), id }))
    }

    /// What `begin` gives in a session; opens a new one as long as it gives nothing in the last.
    ///
    /// # Errors
    /// No session could be opened, or each was over at once.
    async fn in_a_session<T>(&self, deadline: &mut Backoff, begin: impl Fn() -> Option<T>) -> Result<T> {
        let mut opened = 0;
        loop {
            if let Some(begun) = begin() {
                return Ok(begun);
            }
            let turn = self.opening.lock();
            let _one_at_a_time = in_turn(&*self.environment.clock, turn, deadline.remaining()).await?;
            // Another call may have opened one while this one waited.
            if let Some(begun) = begin() {
                return Ok(begun);
            }
            if opened > 0 {
                // Each is a row at the masters: a few, and not in a hurry.
                let over = Error::unavailable("a new session was over at once");
                if opened > REOPEN_MAX {
                    return Err(deadline.gave_up(&over));
                }
                deadline.pause(&over).await?;
            }
            Box::pin(self.open_new(deadline.remaining())).await?;
            opened += 1;
        }
    }

    /// Has to be asked before each attempt of a data mutation: the last attempts of a session are made while it is
    /// surely open, so that chunks know when they may forget its ids (decision 0012).
    ///
    /// # Errors
    /// [`Error::SessionExpired`].
    pub(crate) fn check_open(&self, client: ClientId) -> Result<()> {
        let open = self.window.lock().surely_open(self.environment.clock.moment());
        if open == Some(client) { Ok(()) } else { Err(Error::SessionExpired { client }) }
    }

    /// A request id that no other mutation has; opens a new session if the last one has expired.
    async fn begin(self: &Arc<Self>, deadline: &mut Backoff) -> Result<Ticket> {
        let request = self.in_a_session(deadline, || self.window.lock().begin()).await?;
        Ok(Ticket { sessions: self.clone(), request })
    }

    /// A place among the mutations at the masters.
    async fn place(&self, patience: Duration) -> Result<SemaphorePermit<'_>> {
        let (place, _) = in_turn(&*self.environment.clock, self.changes.acquire(), patience).await?;
        place.map_err(Error::internal)
    }

    async fn open_new(&self, patience: Duration) -> Result<Opened> {
        let asked_at = self.environment.clock.moment();
        // The same nonce on every repeat: a lost reply does not leave a session behind.
        let nonce = bytes::Bytes::copy_from_slice(&self.environment.random.bits128());
        let (reply, cluster) = self
            .masters
            .call(patience, |mut master: Master| {
                let request = pb::OpenSessionRequest { nonce: nonce.clone() };
                async move {
                    let reply = master.open_session(request).await?.into_inner();
                    let cluster = ClusterId::from_hex(&reply.cluster)
                        .ok_or_else(|| Error::internal("the master's cluster id can't be read"))?;
                    // The number of a session means another one, or none, in another cluster.
                    self.masters.settle(cluster)?;
                    Ok((reply, cluster))
                }
            })
            .await?;
        let chunk_bytes = ChunkBytes::parse(reply.chunk_bytes.into()).map_err(Error::internal)?;
        let client = ClientId::from_raw(reply.client);
        let life = Duration::from_millis(reply.expires_in_ms);
        self.window.lock().open(client, asked_at.plus(life));
        tracing::debug!(client = reply.client, "session opened");
        Ok(Opened { cluster, chunk_bytes, life })
    }

    /// Makes one change at the master, exactly once, and waits no longer than its patience for everything that it takes.
    /// `call` gets the same request id at every repeat.
    ///
    /// A session that expired while nothing was sent is replaced without the caller's notice. If an attempt may
    /// have got through before, the error says so instead: repeating under a new id could do it twice.
    pub(crate) async fn change<T, F>(
        self: &Arc<Self>,
        patience: Duration,
        call: impl Fn(Master, pb::RequestId) -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    {
        let mut deadline = Backoff::new(&self.environment, patience);
        let mut reopened = 0;
        let _place = self.place(patience).await?;
        loop {
            let ticket = self.begin(&mut deadline).await?;
            let unsettled = AtomicU32::new(0);
            let outcome = self
                .masters
                .call(deadline.remaining(), |master: Master| {
                    let answer = call(master, ticket.attempt());
                    let unsettled = &unsettled;
                    // Boxed here, so that what is asked makes no caller's future larger.
                    Box::pin(async move {
                        unsettled.fetch_add(1, Ordering::Relaxed);
                        let answer = self.heard(answer.await);
                        if answer.as_ref().err().is_none_or(is_settled) {
                            unsettled.fetch_sub(1, Ordering::Relaxed);
                        }
                        answer
                    })
                })
                .await;
            match outcome {
                Err(Error::SessionExpired { client })
                    if unsettled.load(Ordering::Relaxed) == 0 && reopened < REOPEN_MAX =>
                {
                    self.window.lock().expire(client);
                    reopened += 1;
                }
                // One that broke inside, or said what this client can't read, may have done it.
                Err(error @ Error::Internal { .. }) => {
                    return Err(deadline.gave_up(&error));
                }
                other => return other,
            }
        }
    }

    /// Renews the session until `stop`.
    pub(crate) async fn keep_alive(self: Arc<Self>, life: Duration, stop: CancellationToken) {
        let pause = (life / RENEWALS_PER_LIFE).clamp(RENEWAL_MIN, RENEWAL_MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.renew_once() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                learnt = self.masters.refresh() => if let Err(error) = learnt {
                    tracing::debug!(%error, "no master tells which there are");
                }
            }
        }
    }

    async fn renew_once(&self) {
        let request = {
            let window = self.window.lock();
            let Some(client) = window.client else { return };
            pb::RenewSessionRequest { client: client.raw(), first_unacked: window.first_unacked() }
        };
        let asked_at = self.environment.clock.moment();
        let renewed = self
            .masters
            .call(RENEWAL_PATIENCE, |mut master: Master| async move {
                Ok(master.renew_session(request).await?.into_inner())
            })
            .await;
        match renewed {
            Ok(reply) => {
                let until = asked_at.plus(Duration::from_millis(reply.expires_in_ms));
                self.window.lock().renewed(ClientId::from_raw(request.client), until);
            }
            Err(Error::SessionExpired { client }) => {
                tracing::debug!(%client, "session expired");
                self.window.lock().expire(client);
            }
            // The next renewal tries again; the session lives for several of them.
            Err(error) => tracing::debug!(%error, "session not renewed"),
        }
    }
}

fn gave_up(waited: Duration, last: String) -> Error {
    Error::DeadlineExceeded { waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX), last }
}

/// Waits for a turn, not longer than its patience: the turn, and what is left of that. Whoever stands in line behind calls that
/// nobody answers gives up with them.
///
/// # Errors
/// [`Error::DeadlineExceeded`]: nothing was tried.
pub(crate) async fn in_turn<T>(
    clock: &dyn Clock,
    turn: impl Future<Output = T> + Send,
    patience: Duration,
) -> Result<(T, Duration)> {
    let began = clock.moment();
    let turn = tokio::time::timeout(patience, turn).await;
    let waited = clock.moment().since(began);
    let turn = turn.map_err(|_| gave_up(waited, "others who want the same wait for an answer".to_owned()))?;
    Ok((turn, patience.saturating_sub(waited)))
}

/// Whether this answer says that its attempt did nothing and never will. That a lease has to end first is also said when the
/// deletion is in the log.
fn is_settled(error: &Error) -> bool {
    !matches!(
        error,
        Error::Unavailable { .. }
            | Error::DeadlineExceeded { .. }
            | Error::Internal { .. }
            | Error::Busy { .. }
            | Error::GrantPending { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_said_no_settles_an_attempt() {
        assert!(is_settled(&Error::NotLeader { leader: None }));
        assert!(is_settled(&Error::NotFound { what: "/a".into() }));
        assert!(!is_settled(&Error::unavailable("the connection broke")));
        assert!(!is_settled(&Error::GrantPending { handle: gfs_proto::id::ChunkHandle::from_raw(1) }));
    }
}
