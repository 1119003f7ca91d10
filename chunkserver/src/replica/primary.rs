//! The active primary of a chunk: order, acknowledgements, commit (GFS §3.1).

use std::collections::{BTreeMap, BTreeSet};

use gfs_proto::id::{ChunkHandle, ChunkVersion, RequestId, Serial, ServerId};
use gfs_proto::size::ChunkBytes;
use gfs_proto::{Error, fault};

use super::Grant;

/// Most entries about requests that a chunk takes: appends seal it there, as if it were full. A client that has its answers
/// leaves two entries (decision 0018), so this is for very many clients, or one that gives nothing up.
pub(crate) const REQUESTS_MAX: usize = 60_000;
/// Most mutations of one chunk that are in flight.
pub(crate) const OPEN_MAX: usize = 1024;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// Bytes at this offset.
    Write(u32),
    /// Bytes wherever they fit.
    Append,
    /// No bytes: everything before it becomes durable.
    Sync,
}

/// What is ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Bytes at an offset that the client chose.
    Write,
    /// Bytes at an offset that the primary chose.
    Append,
    /// No more appends.
    Seal,
    /// No bytes: everything before it becomes durable.
    Sync,
}

/// A mutation with its place in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Order {
    /// Its place.
    pub(crate) serial: Serial,
    /// What it is.
    pub(crate) kind: Kind,
    /// First byte.
    pub(crate) offset: u32,
    /// Number of bytes.
    pub(crate) length: u32,
    /// The client's name for it; `None` for a seal.
    pub(crate) request: Option<RequestId>,
}

/// What the store has of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recorded {
    /// First byte of its mutation, if it was applied.
    pub(crate) at: Option<u32>,
    /// Its client has said that it will not ask for it again.
    pub(crate) given_up: bool,
    /// Entries about requests in the chunk.
    pub(crate) kept: usize,
}

/// What became of a request that is in the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    /// First byte.
    pub(crate) offset: u32,
    /// The mutation's serial if it may not be committed yet; zero for what was there at activation.
    pub(crate) serial: Serial,
}

/// What the primary decides about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// It is in the chunk: answer this once it is committed.
    Known(Outcome),
    /// It is new: apply and forward this, answer once it is committed.
    Ordered(Order),
    /// It does not fit and nobody sealed the chunk yet: order this, and once it is committed send the client on.
    Seal(Order),
    /// It goes to the next chunk, once this seal is committed.
    Sealed(Serial),
}

/// A request as a client made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// Its name.
    pub(crate) id: RequestId,
    /// What is wished.
    pub(crate) wish: Wish,
    /// Number of bytes.
    pub(crate) length: u32,
}

/// The primary's side of a grant.
#[derive(Debug)]
pub(crate) struct Primary {
    writer: bool,
    chunk_bytes: ChunkBytes,
    members: BTreeSet<ServerId>,
    /// Requests ordered at this version and not yet committed; the rest is in the store.
    requests: BTreeMap<RequestId, Outcome>,
    /// For each mutation in flight the members that have not acknowledged it.
    missing: BTreeMap<Serial, BTreeSet<ServerId>>,
    committed: Serial,
    sealed: Option<Serial>,
    us: ServerId,
    /// Who failed, in the order in which it was noticed. At most the members.
    failed: Vec<Failed>,
    /// Whether the verdict was given out.
    judged: bool,
}

/// A member that failed a mutation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// Which.
    pub(crate) server: ServerId,
    /// Whether it gave no answer: then it may be this primary that can't be reached.
    pub(crate) silent: bool,
}

impl Primary {
    pub(super) fn new(us: ServerId, grant: &Grant, sealed: bool) -> Self {
        Self {
            writer: grant.writer,
            chunk_bytes: grant.chunk_bytes,
            members: grant.members.iter().map(|member| member.server).collect(),
            requests: BTreeMap::new(),
            missing: BTreeMap::new(),
            committed: Serial::default(),
            sealed: sealed.then(Serial::default),
            us,
            failed: Vec::new(),
            judged: false,
        }
    }

    /// Everything up to here is on all members.
    pub(crate) fn committed(&self) -> Serial {
        self.committed
    }

    /// Why nothing is ordered or acknowledged any more, once that can be said: which member failed, or that this primary
    /// reaches none. `None` also while a member has failed and the others have yet to answer; that ends, since each
    /// answers or fails.
    pub(crate) fn verdict(&self, handle: ChunkHandle) -> Option<Error> {
        let first = self.failed.first()?;
        if self.failed.iter().any(|failed| failed.server == self.us) {
            return Some(Error::MemberFailed { handle, server: self.us });
        }
        // Guard one_accused: who can't be reached by this server alone is not the one that failed. With a single other
        // member nobody can tell.
        let mut others = self.members.iter().filter(|member| **member != self.us);
        let silent = |member: &ServerId| self.failed.iter().any(|it| it.server == *member && it.silent);
        // Of what was open at the first failure, and nothing is ordered after it: an answer from before a cut proves nothing.
        let answered = |member: &&ServerId| self.missing.values().all(|missing| !missing.contains(*member));
        let spoke = self.failed.iter().any(|failed| !failed.silent)
            || others.clone().any(|member| !silent(member) && answered(&member));
        if self.members.len() <= 2 || spoke {
            return Some(Error::MemberFailed { handle, server: first.server });
        }
        others.all(silent).then_some(Error::CutOff { handle })
    }

    /// The verdict, the first time that there is one.
    pub(super) fn judge(&mut self, handle: ChunkHandle) -> Option<Error> {
        if self.judged {
            return None;
        }
        let verdict = self.verdict(handle);
        self.judged = verdict.is_some();
        verdict
    }

    /// Whether, and from which serial on, the chunk takes no more appends.
    pub(crate) fn sealed(&self) -> Option<Serial> {
        self.sealed
    }

    /// What is known of a request.
    ///
    /// # Errors
    /// [`Error::BadArgument`] if its client has given it up.
    pub(crate) fn outcome(&self, id: RequestId, recorded: Recorded) -> Result<Option<Outcome>, Error> {
        // Guard given_up_repeated: a late copy of a request that its client has given up is not a new one, and nothing can
        // be said about it.
        if recorded.given_up {
            return Err(Error::bad_argument(format!("request {id} was given up by its client")));
        }
        // Guard ids_not_content: the store's ids came with the content, whichever primary ordered them.
        let known = recorded.at.map(|offset| Outcome { offset, serial: Serial::default() });
        Ok(self.requests.get(&id).copied().or(known))
    }

    pub(super) fn decide(
        &self,
        at: (ChunkHandle, ChunkVersion),
        request: Request,
        recorded: Recorded,
        end: super::Position,
    ) -> Result<Decision, Error> {
        let Request { id, wish, length } = request;
        // A sync is harmless to repeat, and has nothing to remember.
        if wish != Wish::Sync
            && let Some(outcome) = self.outcome(id, recorded)?
        {
            return Ok(Decision::Known(outcome));
        }
        if !self.writer {
            return Err(Error::NotPrimary { handle: at.0, version: at.1 });
        }
        if !self.failed.is_empty() {
            let undecided =
                || Error::Busy { what: format!("the primary of {}, with members that failed,", at.0) };
            return Err(self.verdict(at.0).unwrap_or_else(undecided));
        }
        if self.missing.len() >= OPEN_MAX {
            return Err(Error::Busy { what: format!("the primary's queue for {}", at.0) });
        }
        let serial = end.serial.next();
        let order = |kind, offset, request| Order { serial, kind, offset, length, request };
        // Mutant append_off_by_one: one byte too many fits.
        let end_max = u64::from(self.chunk_bytes.raw()) + u64::from(fault::mutant("append_off_by_one"));
        let fits = |offset: u32| u64::from(offset) + u64::from(length) <= end_max;
        let room = recorded.kept < REQUESTS_MAX;
        let record_max = self.chunk_bytes.record_bytes_max();
        match wish {
            Wish::Sync => Ok(Decision::Ordered(Order { length: 0, ..order(Kind::Sync, end.length, None) })),
            Wish::Write(offset) if !fits(offset) => {
                Err(Error::bad_argument("the write ends behind the end of the chunk"))
            }
            // A sealed chunk still takes writes at an offset: the seal ends appends, whose clients went on to the
            // next chunk; a write has no other place to go.
            Wish::Write(offset) if room => Ok(Decision::Ordered(order(Kind::Write, offset, Some(id)))),
            Wish::Write(_) => Err(Error::Busy { what: format!("the request table of {}", at.0) }),
            Wish::Append if length > record_max => {
                Err(Error::TooLarge { what: "record".into(), size: length.into(), limit: record_max.into() })
            }
            Wish::Append => match self.sealed {
                Some(seal) => Ok(Decision::Sealed(seal)),
                None if room && fits(end.length) => {
                    Ok(Decision::Ordered(order(Kind::Append, end.length, Some(id))))
                }
                None => Ok(Decision::Seal(Order { length: 0, ..order(Kind::Seal, end.length, None) })),
            },
        }
    }

    pub(super) fn ordered(&mut self, order: &Order) {
        if let Some(id) = order.request {
            self.requests.insert(id, Outcome { offset: order.offset, serial: order.serial });
        }
        if order.kind == Kind::Seal {
            self.sealed = Some(order.serial);
        }
        self.missing.insert(order.serial, self.members.clone());
    }

    /// Takes the acknowledgement of one member, this server included; the new committed serial if it moved.
    pub(super) fn acknowledged(&mut self, serial: Serial, server: ServerId) -> Option<Serial> {
        if let Some(missing) = self.missing.get_mut(&serial) {
            missing.remove(&server);
        }
        // Committed is what *all* members have, in order; after a failure nothing more is.
        if !self.failed.is_empty() {
            return None;
        }
        let before = self.committed;
        // Guard ack_early: a mutation is committed when no member's acknowledgement is missing, not one earlier.
        // Mutant ack_early: the primary's own word is enough.
        let enough = |missing: &BTreeSet<ServerId>| {
            missing.is_empty() || (missing.len() < self.members.len() && fault::mutant("ack_early"))
        };
        while let Some(first) = self.missing.first_entry().filter(|first| enough(first.get())) {
            self.committed = *first.key();
            first.remove();
        }
        let committed = self.committed;
        self.requests.retain(|_, outcome| outcome.serial > committed);
        (committed > before).then_some(committed)
    }

    /// Stops all acknowledgements.
    pub(super) fn fail(&mut self, failed: Failed) {
        if self.failed.iter().all(|known| known.server != failed.server) {
            self.failed.push(failed);
        }
    }
}
