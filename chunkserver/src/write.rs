//! Mutations: the primary orders and forwards them, members apply them in that order (GFS §3.1 steps 4 to 7).

use std::time::Duration;

use bytes::Bytes;
use futures::future::{Shared, join, join_all};
use gfs_proto::frame::{Head, Kind as FrameKind, Payload};
use gfs_proto::id::{ChunkHandle, ChunkVersion, RequestId, Serial, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::{Error, Result, Retry, fault, pb};
use tokio::time::timeout;

use crate::chunk::{Chunk, State};
use crate::data::{ApplyRequest, WriteRequest};
use crate::replica::{Decision, Failed, Kind, Order, Outcome, Position, Recorded, Request, Turn, Wish};
use crate::server::Chunkserver;
use crate::store::{Durability, Mutation, MutationKind, Recall, Ticket};
use crate::trace;

/// How long a member may take for one mutation before it has failed.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long this server's own disk may take for one mutation before it has failed.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a forward is repeated after an answer that may be about the connection only, and after which pause.
const REPEATS_MAX: u32 = 2;
const REPEAT_PAUSE: Duration = Duration::from_millis(50);
/// Most acknowledgements that one request waits for before it looks whether it can still come true.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A mutation that this primary has ordered and applied here.
struct Sent {
    order: Order,
    version: ChunkVersion,
    ticket: Shared<Ticket>,
    others: Vec<Peer>,
    committed: Serial,
    payload: Payload,
}

/// What to do about a request once the lock is let go.
enum Next {
    Reply(Outcome),
    Send(Box<Sent>),
    Sealed(Serial),
}

impl Chunkserver {
    /// A client's mutation: answers when all members have it.
    pub(crate) async fn mutate_chunk(
        &self,
        request: WriteRequest,
        payload: Result<Payload>,
    ) -> Result<pb::WriteReplyMeta> {
        fault::try_reach("replica::mutation_received").await?;
        let chunk = self.chunk(request.handle)?;
        let next = chunk.quick(|state| self.order(&chunk, state, &request, payload))?;
        match next {
            Next::Reply(outcome) => {
                // Guard retry_acked_at_once: an id that is in the table is acknowledged when it is committed.
                // Mutant retry_acked_at_once: the id is known, so the client gets its answer.
                let at_once = fault::mutant("retry_acked_at_once");
                let serial = if at_once { Serial::default() } else { outcome.serial };
                let committed = self.when_committed(&chunk, request.version, serial).await?;
                Ok(reply(outcome.offset, committed))
            }
            Next::Send(sent) => {
                let committed = self.replicate(&chunk, &request, &sent).await?;
                trace::acknowledged(chunk.handle, sent.version, sent.order.serial);
                if sent.order.kind == Kind::Seal {
                    fault::reach("replica::sealed").await;
                    return Err(Error::Sealed { handle: request.handle });
                }
                fault::try_reach("replica::before_client_ack").await?;
                Ok(reply(sent.order.offset, committed))
            }
            Next::Sealed(seal) => {
                // Guard seal_told_early: the client goes on when the seal is committed. Its id is not in this
                // chunk (guard next_without_asking): that was looked up first.
                // Mutant seal_told_early: the next client goes on before all members have the seal.
                let seal = if fault::mutant("seal_told_early") { Serial::default() } else { seal };
                self.when_committed(&chunk, request.version, seal).await?;
                Err(Error::Sealed { handle: request.handle })
            }
        }
    }

    /// Decides about a request, and applies it here if it is new. The chunk's lock is held.
    fn order(
        &self,
        chunk: &Chunk,
        state: &mut State,
        asked: &WriteRequest,
        payload: Result<Payload>,
    ) -> Result<Next> {
        let request = wish(asked)?;
        let recorded = match request.wish {
            Wish::Sync => Recorded::default(),
            Wish::Write(_) | Wish::Append => self.recorded(chunk, request.id)?,
        };
        let replica = state.replica(chunk.handle)?;
        let decision = replica.decide(asked.version, request, recorded)?;
        if request.wish != Wish::Sync && !matches!(decision, Decision::Known(_)) {
            // It is not here, or not any more: that it is new can't be said.
            self.expired.lock().check(request.id.client)?;
        }
        let order = match decision {
            Decision::Known(outcome) => return Ok(Next::Reply(outcome)),
            Decision::Sealed(seal) => return Ok(Next::Sealed(seal)),
            Decision::Ordered(order) | Decision::Seal(order) => order,
        };
        let payload = if order.length == 0 { Payload::default() } else { payload? };
        if payload.length() != order.length {
            return Err(Error::bad_argument("the payload is not as long as the request says"));
        }
        let from = (asked.first_unacked, asked.durability());
        let mutation = mutation(asked.version, &order, payload.bytes.clone(), from);
        let ticket = match self.store.apply(chunk.handle, &mutation) {
            Ok(ticket) => ticket,
            Err(error) => {
                let error = self.wire(&error);
                self.own_failure(chunk, state, asked.version, &error);
                return Err(error);
            }
        };
        let replica = state.replica(chunk.handle)?;
        replica.ordered(&order);
        trace::applied(chunk.handle, asked.version, order.serial);
        let committed = replica.primary().map(|primary| primary.committed()).unwrap_or_default();
        let others = replica.grant().map(|grant| grant.members.clone()).unwrap_or_default();
        let ticket = state.keep(order.serial, ticket);
        self.used(chunk.handle, asked.version);
        Ok(Next::Send(Box::new(Sent {
            order,
            version: asked.version,
            ticket,
            others: others.into_iter().filter(|member| member.server != self.us()).collect(),
            committed,
            payload,
        })))
    }

    /// What the store has of a request.
    fn recorded(&self, chunk: &Chunk, request: RequestId) -> Result<Recorded> {
        let (recall, kept) = self.store.recall(chunk.handle, request).map_err(|error| self.wire(&error))?;
        let at = if let Recall::Known(outcome) = recall { Some(outcome.offset) } else { None };
        Ok(Recorded { at, given_up: recall == Recall::GivenUp, kept })
    }

    /// What it means that this primary could not apply a mutation itself: nothing if the request is at fault, else
    /// that a grant without it is wanted.
    fn own_failure(&self, chunk: &Chunk, state: &mut State, version: ChunkVersion, error: &Error) {
        if matches!(error.retry(), Retry::Never | Retry::NextChunk) || matches!(error, Error::Busy { .. }) {
            return;
        }
        if let Error::Corrupt { block, .. } = error {
            tracing::warn!(handle = %chunk.handle, block, "checksum mismatch before an overwrite");
            if let Some(replica) = &mut state.replica {
                replica.mark_corrupt();
            }
            self.note(chunk.handle, crate::report::Change::Changed);
        }
        self.fail(chunk, state, version, Failed { server: self.us(), silent: false });
    }

    /// A member failed: no more acknowledgements at this version, and the leader is told.
    fn fail(&self, chunk: &Chunk, state: &mut State, version: ChunkVersion, failed: Failed) {
        let Some(replica) = &mut state.replica else { return };
        replica.failed(version, failed);
        self.judge(chunk, state, version);
    }

    /// Tells who waits, and the leader, what comes of members that failed, once that can be said.
    fn judge(&self, chunk: &Chunk, state: &mut State, version: ChunkVersion) {
        let Some(verdict) = state.replica.as_mut().and_then(|replica| replica.judge(version)) else { return };
        state.changed();
        // Who accuses itself is asked why, and says whether it is cut off.
        let accused = if let Error::MemberFailed { server, .. } = verdict { server } else { self.us() };
        tracing::info!(%version, %verdict, "a new grant is wanted");
        self.member_failed(chunk.handle, version, accused);
    }

    /// Brings an ordered mutation to all members, and returns when it is committed.
    async fn replicate(&self, chunk: &Chunk, request: &WriteRequest, sent: &Sent) -> Result<Position> {
        let own = async {
            let durable = timeout(DISK_TIMEOUT, sent.ticket.clone()).await;
            let failed = Failed { server: self.us(), silent: false };
            self.answered(chunk, sent, self.us(), matches!(durable, Ok(Ok(()))).then_some(()).ok_or(failed));
        };
        let forwards = sent.others.iter().map(|member| async {
            let result = self.forward(member, request, sent).await;
            if let Err(error) = &result {
                tracing::debug!(handle = %chunk.handle, server = %member.server, %error, "forward failed");
            }
            let failed =
                |error| Failed { server: member.server, silent: matches!(error, Error::Unavailable { .. }) };
            self.answered(chunk, sent, member.server, result.map_err(failed));
        });
        // Ends early if it is known who failed: then no answer matters any more. Never because the client has
        // no more patience: the others' mutations stand behind this one.
        let all = join(own, join_all(forwards));
        let committed = self.when_committed(chunk, sent.version, sent.order.serial);
        tokio::pin!(all, committed);
        tokio::select! {
            biased;
            result = &mut committed => result,
            _ = &mut all => committed.await,
        }
    }

    /// Takes a member's answer to a mutation.
    fn answered(&self, chunk: &Chunk, sent: &Sent, server: ServerId, answer: Result<(), Failed>) {
        chunk.quick(|state| {
            if let Err(failed) = answer {
                self.fail(chunk, state, sent.version, failed);
                return;
            }
            let Some(replica) = &mut state.replica else { return };
            if let Some(committed) = replica.acknowledged(sent.version, sent.order.serial, server) {
                state.commits.wake(committed);
                self.committed_more(chunk.handle);
            }
            // That it answers may be what was missing to say who failed.
            self.judge(chunk, state, sent.version);
        });
    }

    /// Sends a mutation to one member until it answers or has failed.
    async fn forward(&self, member: &Peer, request: &WriteRequest, sent: &Sent) -> Result<()> {
        let order = &sent.order;
        let mut meta = pb::ApplyMeta {
            serial: order.serial.raw(),
            committed_serial: sent.committed.raw(),
            kind: kind_to_wire(order.kind).into(),
            request: order
                .request
                .map(|id| pb::RequestId { first_unacked: request.first_unacked, ..id.into() }),
            data_id: Vec::new().into(),
            durability: request.durability.into(),
            length: order.length,
        };
        if let Some(data) = request.data.filter(|_| order.length > 0) {
            meta.data_id = data.bytes().to_vec().into();
        }
        let mut head = Head::new(FrameKind::Apply, 0).of_chunk(request.handle, sent.version);
        head.offset = order.offset;
        let attempts = async {
            let mut repeats = 0;
            loop {
                fault::reach("replica::before_forward").await;
                let call =
                    self.links.apply(member, head.clone(), &meta, Some(&sent.payload), FORWARD_TIMEOUT);
                match call.await {
                    Ok(_) => return fault::try_reach("replica::forward_acked").await,
                    // Its buffer has thrown the data away (T42): it goes along this time.
                    Err(Error::DataUnknown { .. }) if !meta.data_id.is_empty() => {
                        meta.data_id = Vec::new().into();
                    }
                    // Slow, not dead: asked again as long as it may take.
                    Err(Error::Busy { .. }) => tokio::time::sleep(REPEAT_PAUSE).await,
                    // Harmless to repeat: the serial says what was done before.
                    Err(error) if error.retry() == Retry::Later && repeats < REPEATS_MAX => {
                        repeats += 1;
                        tokio::time::sleep(REPEAT_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        timeout(FORWARD_TIMEOUT, attempts)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("{} does not answer", member.address))))
    }

    /// Waits until this primary has committed a serial; the committed position then.
    pub(crate) async fn when_committed(
        &self,
        chunk: &Chunk,
        version: ChunkVersion,
        serial: Serial,
    ) -> Result<Position> {
        let handle = chunk.handle;
        loop {
            let waiting = chunk.quick(|state| {
                let replica = state.replica(handle)?;
                let here = replica.held().version;
                let primary = replica.primary().filter(|_| here == version);
                let primary = primary.ok_or(Error::NotPrimary { handle, version })?;
                if serial <= primary.committed() {
                    return Ok(Ok(replica.progress().committed().unwrap_or_default()));
                }
                if let Some(verdict) = primary.verdict(handle) {
                    return Err(verdict);
                }
                Ok(Err(state.commits.wait(serial)))
            })?;
            match waiting {
                Ok(position) => return Ok(position),
                // Woken, or everything has changed: either way, look again.
                Err(woken) => drop(timeout(WAIT_MAX, woken).await),
            }
        }
    }

    /// An ordered mutation of the primary: answers when it is as durable here as it wants to be.
    pub(crate) async fn apply_ordered(&self, request: ApplyRequest, payload: Result<Payload>) -> Result<()> {
        fault::try_reach("replica::apply_received").await?;
        let chunk = self.chunk(request.handle)?;
        let mut payload = Some(payload);
        let in_time = async {
            loop {
                let turn = chunk.quick(|state| self.take_turn(&chunk, state, &request, &mut payload))?;
                match turn {
                    Ok(ticket) => return Ok(ticket),
                    Err(woken) => drop(woken.await),
                }
            }
        };
        let waited = timeout(request.patience.min(FORWARD_TIMEOUT), in_time).await;
        let ticket: Option<Shared<Ticket>> = waited.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "{}: a mutation before {} is missing",
                chunk.handle, request.serial
            )))
        })?;
        if let Some(ticket) = ticket {
            ticket.await.map_err(|error| self.wire(&error))?;
        }
        fault::try_reach("replica::before_apply_ack").await
    }

    /// Applies a mutation if it is its turn, else says what to wait for. The chunk's lock is held.
    fn take_turn(
        &self,
        chunk: &Chunk,
        state: &mut State,
        request: &ApplyRequest,
        payload: &mut Option<Result<Payload>>,
    ) -> Result<Result<Option<Shared<Ticket>>, tokio::sync::oneshot::Receiver<()>>> {
        let replica = state.replica(chunk.handle)?;
        let turn = replica.turn(request.version, request.serial)?;
        replica.learn(request.version, request.committed);
        self.committed_more(chunk.handle);
        match turn {
            Turn::Repeated => return Ok(Ok(state.ticket(request.serial))),
            Turn::After(before) => return Ok(Err(state.turns.wait(before))),
            Turn::Now => {}
        }
        let order = order_from_wire(request)?;
        let payload = match payload.take() {
            Some(payload) if order.length > 0 => payload?,
            Some(_) | None => Payload::default(),
        };
        if payload.length() != order.length {
            return Err(Error::bad_argument("the payload is not as long as the order says"));
        }
        let from = (request.first_unacked, request.durability.into());
        let mutation = mutation(request.version, &order, payload.bytes, from);
        let ticket = self.store.apply(chunk.handle, &mutation).map_err(|error| self.wire(&error))?;
        if let Some(replica) = &mut state.replica {
            replica.applied(&order);
            trace::applied(chunk.handle, request.version, order.serial);
        }
        state.turns.wake(order.serial);
        if order.serial == Serial::from_raw(1) {
            // The version is confirmed: readers may come soon.
            self.hurry();
        }
        Ok(Ok(Some(state.keep(order.serial, ticket))))
    }

    /// What became of a client's request, as only the active primary knows.
    pub(crate) async fn outcome_of(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        request: RequestId,
    ) -> Result<pb::OutcomeReplyMeta> {
        let chunk = self.chunk(handle)?;
        let (outcome, seal) = chunk.quick(|state| {
            let recorded = self.recorded(&chunk, request)?;
            state.replica(handle)?.outcome(version, request, recorded)
        })?;
        if outcome.is_none() {
            // That it never happened can't be said of a request whose id may have been forgotten.
            self.expired.lock().check(request.client)?;
        }
        // Neither is told before it is committed (guards retry_acked_at_once, seal_told_early).
        let serial = outcome.map(|outcome| outcome.serial).or(seal).unwrap_or_default();
        self.when_committed(&chunk, version, serial).await?;
        fault::try_reach("replica::before_outcome").await?;
        Ok(pb::OutcomeReplyMeta { offset: outcome.map(|outcome| outcome.offset), sealed: seal.is_some() })
    }
}

fn reply(offset: u32, committed: Position) -> pb::WriteReplyMeta {
    pb::WriteReplyMeta { offset, committed_length: committed.length }
}

/// A client's request in the words of the pure part.
fn wish(request: &WriteRequest) -> Result<Request> {
    let wish = match request.kind {
        pb::MutationKind::Write => Wish::Write(request.offset),
        pb::MutationKind::Append => Wish::Append,
        pb::MutationKind::Sync => Wish::Sync,
        pb::MutationKind::Seal | pb::MutationKind::Unspecified => {
            return Err(Error::bad_argument("not a client's mutation"));
        }
    };
    if wish != Wish::Sync && request.length == 0 {
        return Err(Error::bad_argument("a mutation of no bytes"));
    }
    if wish != Wish::Sync && request.request == RequestId::default() {
        return Err(Error::bad_argument("a mutation without a request id"));
    }
    Ok(Request { id: request.request, wish, length: request.length })
}

impl WriteRequest {
    fn durability(&self) -> Durability {
        self.durability.into()
    }
}

fn mutation(
    version: ChunkVersion,
    order: &Order,
    data: Bytes,
    (first_unacked, durability): (u64, Durability),
) -> Mutation {
    Mutation {
        version,
        serial: order.serial,
        kind: match order.kind {
            Kind::Write => MutationKind::Write { offset: order.offset },
            Kind::Append => MutationKind::Append,
            Kind::Seal => MutationKind::Seal,
            Kind::Sync => MutationKind::Sync,
        },
        data,
        request: order.request,
        first_unacked,
        durability,
    }
}

fn kind_to_wire(kind: Kind) -> pb::MutationKind {
    match kind {
        Kind::Write => pb::MutationKind::Write,
        Kind::Append => pb::MutationKind::Append,
        Kind::Seal => pb::MutationKind::Seal,
        Kind::Sync => pb::MutationKind::Sync,
    }
}

fn order_from_wire(request: &ApplyRequest) -> Result<Order> {
    let kind = match request.kind {
        pb::MutationKind::Write => Kind::Write,
        pb::MutationKind::Append => Kind::Append,
        pb::MutationKind::Seal => Kind::Seal,
        pb::MutationKind::Sync => Kind::Sync,
        pb::MutationKind::Unspecified => return Err(Error::bad_argument("an order of no kind")),
    };
    Ok(Order {
        serial: request.serial,
        kind,
        offset: request.offset,
        length: request.length,
        request: request.request,
    })
}
