//! The client's session at the masters: names its mutations, so that a repeat is harmless (trap T30).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gfs_proto::id::{ClientId, ClusterId, RequestId};
use gfs_proto::leader::{Master, MasterChannel};
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::{Clock, Moment};
use gfs_proto::{Environment, Error, Result, pb};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The session is renewed this many times within its life.
const RENEWALS_PER_LIFE: u32 = 4;
/// Bounds of the pause between two renewals.
const RENEWAL_MIN: Duration = Duration::from_secs(1);
const RENEWAL_MAX: Duration = Duration::from_secs(60);
/// How long one renewal is tried.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);
/// Most mutations of one client at the masters at a time: far fewer than the answers that a session keeps.
const CHANGES_MAX: usize = 256;
/// Marks the ids of data mutations: chunks keep those, and the masters never see them.
const DATA: u64 = 1 << 63;
/// How often one operation opens a new session because the old one has expired.
const REOPEN_MAX: u32 = 3;

/// The request ids of one session: which are given out, which are answered.
#[derive(Debug, Default)]
struct Window {
    /// `None` before the first session and after one has expired.
    client: Option<ClientId>,
    /// Until then the session is surely not forgotten, on our own clock: chunks forget the ids of its mutations some
    /// time after, and a repeat would be a mutation of its own (decision 0012).
    open_until: Moment,
    next: u64,
    outstanding: BTreeSet<u64>,
    /// The last data mutation, counted over all sessions, and those of this session that may still be sent or asked for.
    data_last: u64,
    data_outstanding: BTreeSet<u64>,
}

impl Window {
    fn open(&mut self, client: ClientId, open_until: Moment) {
        let data_last = self.data_last;
        *self = Self { client: Some(client), open_until, next: 1, data_last, ..Self::default() };
    }
    fn renewed(&mut self, client: ClientId, open_until: Moment) {
        if self.client == Some(client) {
            self.open_until = self.open_until.max(open_until);
        }
    }
    /// The session, if it is surely open.
    fn surely_open(&self, now: Moment) -> Option<ClientId> {
        self.client.filter(|_| now < self.open_until)
    }
    /// Names a data mutation, if the session is surely open.
    fn begin_data(&mut self, now: Moment) -> Option<RequestId> {
        let client = self.surely_open(now)?;
        self.data_last += 1;
        let sequence = DATA | self.data_last;
        self.data_outstanding.insert(sequence);
        Some(RequestId { client, sequence })
    }
    fn end_data(&mut self, request: RequestId) {
        if self.client == Some(request.client) {
            self.data_outstanding.remove(&request.sequence);
        }
    }
    /// This session's data mutations below this will be neither sent nor asked for again; 0 if the request is of another
    /// session, about which nothing is known any more.
    fn first_unacked_data(&self, request: RequestId) -> u64 {
        let first = self.data_outstanding.first().copied().unwrap_or(request.sequence);
        if self.client == Some(request.client) { first.min(request.sequence) } else { 0 }
    }
    fn begin(&mut self) -> Option<RequestId> {
        let client = self.client?;
        let sequence = self.next;
        self.next += 1;
        self.outstanding.insert(sequence);
        Some(RequestId { client, sequence })
    }
    fn end(&mut self, request: RequestId) {
        if self.client == Some(request.client) {
            self.outstanding.remove(&request.sequence);
        }
    }
    fn expire(&mut self, client: ClientId) {
        if self.client == Some(client) {
            self.client = None;
        }
    }
    /// Everything below it is answered for good.
    fn first_unacked(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }
}

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
        let first_unacked = self.sessions.window.lock().first_unacked();
        // Of another session after this one has expired: the limit keeps it harmless.
        pb::RequestId { first_unacked: first_unacked.min(self.request.sequence), ..self.request.into() }
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
        };
        let opened = sessions.open_new(sessions.patience).await?;
        Ok((Arc::new(sessions), opened))
    }

    /// The name of a data mutation, which no other mutation ever has.
    ///
    /// Counted apart from the mutations at the masters, which never see these. Opens a new session unless the last one is
    /// surely open.
    ///
    /// # Errors
    /// No session could be opened.
    pub(crate) async fn data_request(self: &Arc<Self>) -> Result<Arc<DataRequest>> {
        loop {
            let begin = || self.window.lock().begin_data(self.environment.clock.moment());
            if let Some(id) = begin() {
                return Ok(self.named(id));
            }
            let (_one_at_a_time, patience) = self.turn_to_open().await?;
            // Another call may have opened one while this one waited.
            if let Some(id) = begin() {
                return Ok(self.named(id));
            }
            self.open_new(patience).await?;
        }
    }

    fn named(self: &Arc<Self>, id: RequestId) -> Arc<DataRequest> {
        Arc::new(DataRequest { sessions: self.clone(), id })
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
    async fn begin(self: &Arc<Self>) -> Result<Ticket> {
        loop {
            if let Some(ticket) = self.try_begin() {
                return Ok(ticket);
            }
            let (_one_at_a_time, patience) = self.turn_to_open().await?;
            // Another call may have opened one while this one waited.
            if let Some(ticket) = self.try_begin() {
                return Ok(ticket);
            }
            self.open_new(patience).await?;
        }
    }

    fn try_begin(self: &Arc<Self>) -> Option<Ticket> {
        let request = self.window.lock().begin()?;
        Some(Ticket { sessions: self.clone(), request })
    }

    async fn turn_to_open(&self) -> Result<(tokio::sync::MutexGuard<'_, ()>, Duration)> {
        in_turn(&*self.environment.clock, &self.opening, self.patience).await
    }

    async fn open_new(&self, patience: Duration) -> Result<Opened> {
        let asked_at = self.environment.clock.moment();
        // The same nonce on every repeat: a lost reply does not leave a session behind.
        let nonce = bytes::Bytes::copy_from_slice(&self.environment.random.bits128());
        let reply = self
            .masters
            .call(patience, |mut master: Master| {
                let request = pb::OpenSessionRequest { nonce: nonce.clone() };
                async move { Ok(master.open_session(request).await?.into_inner()) }
            })
            .await?;
        let cluster = ClusterId::from_hex(&reply.cluster)
            .ok_or_else(|| Error::internal("the master's cluster id can't be read"))?;
        let chunk_bytes = ChunkBytes::parse(reply.chunk_bytes.into()).map_err(Error::internal)?;
        let client = ClientId::from_raw(reply.client);
        let life = Duration::from_millis(reply.expires_in_ms);
        self.window.lock().open(client, asked_at.plus(life));
        tracing::debug!(client = reply.client, "session opened");
        Ok(Opened { cluster, chunk_bytes, life })
    }

    /// Makes one change at the master, exactly once. `call` gets the same request id at every repeat.
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
        let (mut reopened, began) = (0, self.environment.clock.moment());
        let _place = self.changes.acquire().await.map_err(Error::internal)?;
        loop {
            let ticket = self.begin().await?;
            let unsettled = AtomicU32::new(0);
            let outcome = self
                .masters
                .call(patience, |master: Master| {
                    let answer = call(master, ticket.attempt());
                    let unsettled = &unsettled;
                    async move {
                        unsettled.fetch_add(1, Ordering::Relaxed);
                        let answer = answer.await.map(tonic::Response::into_inner).map_err(Error::from);
                        if answer.as_ref().err().is_none_or(is_settled) {
                            unsettled.fetch_sub(1, Ordering::Relaxed);
                        }
                        answer
                    }
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
                    let waited = self.environment.clock.moment().since(began);
                    return Err(gave_up(waited, error.to_string()));
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
pub(crate) async fn in_turn<'a>(
    clock: &dyn Clock,
    line: &'a tokio::sync::Mutex<()>,
    patience: Duration,
) -> Result<(tokio::sync::MutexGuard<'a, ()>, Duration)> {
    let began = clock.moment();
    let turn = tokio::time::timeout(patience, line.lock()).await;
    let waited = clock.moment().since(began);
    let turn = turn.map_err(|_| gave_up(waited, "others who want the same wait for an answer".to_owned()))?;
    Ok((turn, patience.saturating_sub(waited)))
}

/// Whether this answer says that its attempt did nothing and never will.
fn is_settled(error: &Error) -> bool {
    !matches!(
        error,
        Error::Unavailable { .. }
            | Error::DeadlineExceeded { .. }
            | Error::Internal { .. }
            | Error::Busy { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_session_is_surely_open_only_until_its_last_renewal_would_have_it_end() {
        let (old, new) = (ClientId::from_raw(1), ClientId::from_raw(2));
        let mut window = Window::default();
        assert_eq!(window.surely_open(at(0)), None);
        window.open(old, at(60));
        assert_eq!((window.surely_open(at(59)), window.surely_open(at(60))), (Some(old), None));
        window.renewed(old, at(90));
        // Answers may overtake each other.
        window.renewed(old, at(80));
        assert_eq!((window.surely_open(at(89)), window.surely_open(at(90))), (Some(old), None));
        window.open(new, at(100));
        window.renewed(old, at(500));
        assert_eq!(window.surely_open(at(100)), None, "a late answer is about another session");
    }

    #[test]
    fn what_is_below_the_first_unacked_is_answered_for_good() {
        let mut window = Window::default();
        assert!(window.begin().is_none(), "there is no session yet");
        window.open(ClientId::from_raw(9), at(60));
        let requests: Vec<_> = (0..4).map(|_| window.begin().unwrap()).collect();
        assert_eq!(requests[3], RequestId { client: ClientId::from_raw(9), sequence: 4 });
        assert_eq!(window.first_unacked(), 1);
        window.end(requests[1]);
        assert_eq!(window.first_unacked(), 1);
        window.end(requests[0]);
        assert_eq!(window.first_unacked(), 3);
        window.end(requests[2]);
        window.end(requests[3]);
        assert_eq!(window.first_unacked(), 5);
    }

    #[test]
    fn a_data_mutation_is_not_given_up_before_it_is_dropped_and_never_for_another_session() {
        let mut window = Window::default();
        assert_eq!(window.begin_data(at(0)), None, "there is no session yet");
        window.open(ClientId::from_raw(9), at(60));
        let [first, second, third] = [(); 3].map(|()| window.begin_data(at(1)).unwrap());
        assert_eq!([first, second, third].map(|id| id.sequence), [1, 2, 3].map(|number| DATA | number));
        assert_eq!(window.first_unacked_data(third), first.sequence);
        window.end_data(second);
        assert_eq!(window.first_unacked_data(third), first.sequence);
        window.end_data(first);
        assert_eq!(window.first_unacked_data(third), third.sequence);
        // A repeat of an older one gives up nothing that came after it, and itself least of all.
        assert_eq!(window.first_unacked_data(second), second.sequence);
        window.open(ClientId::from_raw(10), at(90));
        assert_eq!(window.first_unacked_data(third), 0, "this session knows nothing of the other");
        let fourth = window.begin_data(at(61)).unwrap();
        window.end_data(RequestId { client: ClientId::from_raw(9), ..fourth });
        assert_eq!((fourth.sequence, window.first_unacked_data(fourth)), (DATA | 4, DATA | 4));
        assert_eq!(window.begin_data(at(90)), None, "it may have expired");
    }

    #[test]
    fn a_request_of_an_old_session_does_not_touch_the_new_one() {
        let mut window = Window::default();
        window.open(ClientId::from_raw(1), at(60));
        let old = window.begin().unwrap();
        window.expire(ClientId::from_raw(1));
        assert!(window.begin().is_none());
        window.open(ClientId::from_raw(2), at(60));
        let new = window.begin().unwrap();
        window.end(old);
        assert_eq!((old.sequence, new.sequence, window.first_unacked()), (1, 1, 1));
        window.expire(ClientId::from_raw(1));
        assert!(window.begin().is_some());
    }

    #[test]
    fn only_a_server_that_said_no_settles_an_attempt() {
        assert!(is_settled(&Error::NotLeader { leader: None }));
        assert!(is_settled(&Error::NotFound { what: "/a".into() }));
        assert!(!is_settled(&Error::unavailable("the connection broke")));
    }
}
