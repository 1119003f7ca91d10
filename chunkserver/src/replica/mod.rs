//! One chunk's replica: what it holds, the role it plays, what it may do and tell (docs/protocol.md).
//!
//! Pure: knows no disk, network, clock or dice. The shell (`crate::chunk`) asks here first, does what the answer
//! says, and reports back, all under the chunk's lock. A guard that protocol.md names is named where it stands.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod grant;
mod primary;
mod progress;
mod validation;

#[cfg(test)]
mod tests;

use gfs_proto::id::{ChunkHandle, ChunkVersion, RequestId, Serial, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::time::Moment;
use gfs_proto::{Error, fault};

pub(crate) use grant::{Candidate, Grant, Held, Step, Store, longest};
pub(crate) use primary::{Decision, Failed, Kind, Order, Outcome, Primary, Recorded, Request, Wish};
pub(crate) use progress::{Applied, Position, Progress};
pub(crate) use validation::{Answer, Fence, Generation, Standing};

/// Most mutations that a member takes ahead of their turn, or applies before it hears that some are committed.
const AHEAD_MAX: u64 = 2 * primary::OPEN_MAX as u64;

/// The part that this replica plays in the grant of its version.
#[derive(Debug)]
enum Role {
    /// A member, or nothing: also after a restart.
    None,
    /// The named primary of a prepared grant; gets the members' content.
    Collecting,
    /// Every member holds the agreed content; waits for the confirm.
    Reconciled,
    /// Orders mutations, knows the committed position.
    Active(Primary),
}

/// What a member does with an ordered mutation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// It is next.
    Now,
    /// It was applied before: answer when it is durable.
    Repeated,
    /// This serial has to be applied first.
    After(Serial),
}

/// Whether a read may be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Readable {
    /// Up to this committed position.
    Yes(Position),
    /// Not before the active primary has said what is committed.
    Ask(Peer),
    /// Not before this serial is committed: it changes bytes of the range.
    Wait(Serial),
}

/// A reader's question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Query {
    /// The version that the reader knows.
    pub(crate) version: ChunkVersion,
    /// First byte.
    pub(crate) offset: u32,
    /// Number of bytes.
    pub(crate) length: u32,
    /// Whether the primary's answer of this moment has been learnt.
    pub(crate) asked: bool,
}

/// One chunk's replica on this server.
#[derive(Debug)]
pub(crate) struct Replica {
    us: ServerId,
    handle: ChunkHandle,
    held: Held,
    role: Role,
    /// The grant of `held.version`, if it was heard in this life.
    grant: Option<Grant>,
    progress: Progress,
    standing: Standing,
    /// The oldest version under which readers may know this chunk.
    readable_from: ChunkVersion,
}

impl Replica {
    /// What a disk holds after a restart; `clean` if its commit mark covers all of it.
    pub(crate) fn restored(
        us: ServerId,
        handle: ChunkHandle,
        held: Held,
        clean: bool,
        standing: Standing,
    ) -> Self {
        Self {
            us,
            handle,
            held,
            // Guard primary_survives_restart: a restarted primary is no primary.
            role: Role::None,
            grant: None,
            // Guard restart_is_clean: what lies beyond the commit mark is not known to be committed.
            // Mutant restart_is_clean: all that survived counts as committed.
            progress: Progress::at(held.end, clean || fault::mutant("restart_is_clean")),
            standing,
            readable_from: held.version,
        }
    }

    /// What the disk holds.
    pub(crate) fn held(&self) -> Held {
        Held { end: self.progress.applied_position(), ..self.held }
    }

    /// The grant of the version held, if it was heard in this life.
    pub(crate) fn grant(&self) -> Option<&Grant> {
        self.grant.as_ref()
    }

    /// How much is known to be committed.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The active primary's side, if this is one.
    pub(crate) fn primary(&self) -> Option<&Primary> {
        match &self.role {
            Role::Active(primary) => Some(primary),
            Role::None | Role::Collecting | Role::Reconciled => None,
        }
    }

    fn mismatch(&self, asked: ChunkVersion) -> Error {
        Error::VersionMismatch { handle: self.handle, asked, here: self.held.version }
    }

    fn not_primary(&self, version: ChunkVersion) -> Error {
        Error::NotPrimary { handle: self.handle, version }
    }

    fn not_validated(&self) -> Error {
        Error::NotValidated { handle: self.handle, damaged: self.held.corrupt }
    }

    // ---- grants ----

    /// Step 2, before the disk is touched: how this server takes part, given what it holds (if anything).
    pub(crate) fn store(
        us: ServerId,
        handle: ChunkHandle,
        held: Option<ChunkVersion>,
        grant: &Grant,
    ) -> Result<Store, Error> {
        if grant.members.iter().all(|member| member.server != us) || grant.primary().is_none() {
            return Err(Error::bad_argument(format!("{handle}: no member of the grant")));
        }
        match held {
            // Guard version_reuse, this server's part: versions only go forwards (T50).
            Some(here) if here > grant.version => {
                Err(Error::VersionMismatch { handle, asked: grant.version, here })
            }
            Some(here) if here == grant.version => Ok(Store::Known),
            Some(_) | None if grant.fresh => Ok(Store::Fresh),
            Some(_) if grant.base.contains(&us) => Ok(Store::Base),
            // It was thought to be current and has nothing.
            None if grant.base.contains(&us) => Err(Error::NoSuchChunk { handle }),
            // Guard partial_forgotten: a joiner drops what it held and is partial until it has adopted.
            Some(_) | None => Ok(Store::Joiner),
        }
    }

    /// Step 2, after the version is durable: `held` is what the disk holds now.
    pub(crate) fn stored(&mut self, grant: Grant, how: Store, held: Held, now: Moment) {
        debug_assert!(held.version == grant.version);
        let counts = grant.trusts(self.us, &held);
        // Any role it had ends with the old version; a joiner also loses its validation.
        self.role = match how {
            _ if grant.primary != self.us || !counts => Role::None,
            // Nobody has anything to collect: who has not stored the version applies nothing either.
            Store::Fresh => Role::Reconciled,
            Store::Known | Store::Base | Store::Joiner => Role::Collecting,
        };
        match how {
            Store::Fresh => self.progress = Progress::at(held.end, true),
            Store::Joiner => self.progress = Progress::at(held.end, false),
            Store::Known | Store::Base => {}
        }
        if matches!(how, Store::Joiner | Store::Fresh) {
            self.standing.void_until = Some(now);
        }
        // A chunk is the same chunk under its next version, so readers who know an older one may stay; except
        // after a revocation, which may have given the file another chunk (guard copy_without_bump; T15).
        if !grant.writer || matches!(how, Store::Joiner | Store::Fresh) {
            self.readable_from = grant.version;
        }
        self.held = held;
        self.grant = Some(grant);
    }

    /// Step 3, at the primary.
    pub(crate) fn reconcile(&self, version: ChunkVersion) -> Result<Step<Grant>, Error> {
        if version != self.held.version {
            return Err(self.mismatch(version));
        }
        match (&self.role, &self.grant) {
            (Role::Reconciled | Role::Active(_), _) => Ok(Step::Done),
            (Role::Collecting, Some(grant)) => Ok(Step::Go(grant.clone())),
            (Role::Collecting | Role::None, _) => Err(self.not_primary(version)),
        }
    }

    /// Step 3, at a member: whether its content may be collected. It is frozen from here on, because
    /// mutations of older versions are refused.
    pub(crate) fn collect(&self, version: ChunkVersion) -> Result<Held, Error> {
        if version != self.held.version {
            return Err(self.mismatch(version));
        }
        Ok(self.held())
    }

    /// Step 4: whether a member takes the agreed content.
    pub(crate) fn adopt(&self, version: ChunkVersion) -> Result<Step<()>, Error> {
        if version != self.held.version {
            return Err(self.mismatch(version));
        }
        // Guard adopt_twice: once per version; a late duplicate would wipe out what came after.
        // Mutant adopt_twice: a late duplicate is adopted again.
        let done = self.held.adopted == version && !fault::mutant("adopt_twice");
        Ok(if done { Step::Done } else { Step::Go(()) })
    }

    /// Step 4, after the content is durable; `same` if it is byte for byte what was held before.
    pub(crate) fn adopted(&mut self, held: Held, same: bool) {
        debug_assert!(held.adopted == held.version && !held.partial);
        // Guard committed_before_confirm: agreed content is not committed before the primary is active. What was
        // all known to be committed and has not changed still is.
        let known = same && self.progress.clean();
        self.held = held;
        self.progress = Progress::at(held.end, known);
    }

    /// Step 4, at the primary: every member has adopted.
    pub(crate) fn reconciled(&mut self, version: ChunkVersion) -> Result<(), Error> {
        match self.role {
            Role::Collecting if self.held.version == version && self.held.adopted == version => {
                self.role = Role::Reconciled;
                Ok(())
            }
            Role::Reconciled | Role::Active(_) if self.held.version == version => Ok(()),
            Role::None | Role::Collecting | Role::Reconciled | Role::Active(_) => {
                Err(self.not_primary(version))
            }
        }
    }

    /// Step 6: the confirm is committed, so everything held is. The same again asks whether it is still active.
    pub(crate) fn activate(&mut self, version: ChunkVersion) -> Result<(), Error> {
        if version != self.held.version {
            return Err(self.mismatch(version));
        }
        match (&self.role, &self.grant) {
            // It is, and yet nothing is ordered at this version any more: a new one is needed, without whom it names.
            (Role::Active(primary), _) => primary.verdict(self.handle).map_or(Ok(()), Err),
            (Role::Reconciled, Some(grant)) => {
                self.role = Role::Active(Primary::new(self.us, grant, self.held().end.sealed));
                self.progress.learn(self.progress.applied_position().serial);
                Ok(())
            }
            // Guard late_activation: only who reconciled this version in this life becomes active.
            (Role::None | Role::Collecting | Role::Reconciled, _) => Err(self.not_primary(version)),
        }
    }

    /// A pending grant leaves this server out: it stops serving the chunk, and is no primary any more.
    pub(crate) fn exclude(&mut self, version: ChunkVersion, now: Moment) -> Result<(), Error> {
        if version <= self.held.version {
            return Err(self.mismatch(version));
        }
        self.standing.void_until = Some(now);
        self.standing.excluded = self.standing.excluded.max(version);
        self.role = Role::None;
        Ok(())
    }

    /// A checksum did not match: the replica serves nothing until it is replaced.
    pub(crate) fn mark_corrupt(&mut self) {
        self.held.corrupt = true;
    }

    // ---- mutations, at the primary ----

    /// Decides about a client's request; changes nothing.
    pub(crate) fn decide(
        &self,
        version: ChunkVersion,
        request: Request,
        recorded: Recorded,
    ) -> Result<Decision, Error> {
        let primary = self.primary().filter(|_| version == self.held.version);
        let primary = primary.ok_or_else(|| self.not_primary(version))?;
        primary.decide((self.handle, version), request, recorded, self.progress.applied_position())
    }

    /// The order has been applied here.
    pub(crate) fn ordered(&mut self, order: &Order) {
        let after = after(self.progress.applied_position(), order);
        if let Role::Active(primary) = &mut self.role {
            primary.ordered(order);
            self.progress.apply(Applied { offset: order.offset, length: order.length, after });
        }
    }

    /// A member, or this server itself, has a mutation as its durability wants it. The new committed serial if it moved.
    pub(crate) fn acknowledged(
        &mut self,
        version: ChunkVersion,
        serial: Serial,
        server: ServerId,
    ) -> Option<Serial> {
        match &mut self.role {
            Role::Active(primary) if self.held.version == version => {
                let committed = primary.acknowledged(serial, server)?;
                self.progress.learn(committed);
                Some(committed)
            }
            Role::None | Role::Collecting | Role::Reconciled | Role::Active(_) => None,
        }
    }

    /// A member, or this server itself, failed a mutation: nothing more is ordered or acknowledged at this version.
    pub(crate) fn failed(&mut self, version: ChunkVersion, failed: Failed) {
        match &mut self.role {
            Role::Active(primary) if self.held.version == version => primary.fail(failed),
            Role::None | Role::Collecting | Role::Reconciled | Role::Active(_) => {}
        }
    }

    /// What comes of the failures at this version, as soon as it can be said, and once (see [`Primary::verdict`]).
    pub(crate) fn judge(&mut self, version: ChunkVersion) -> Option<Error> {
        match &mut self.role {
            Role::Active(primary) if self.held.version == version => primary.judge(self.handle),
            Role::None | Role::Collecting | Role::Reconciled | Role::Active(_) => None,
        }
    }

    // ---- mutations, at a member ----

    /// Decides about an ordered mutation.
    pub(crate) fn turn(&self, version: ChunkVersion, serial: Serial) -> Result<Turn, Error> {
        // Guard old_version_applied: only of the very version that is stored here, and adopted.
        // Mutant old_version_applied: a member takes orders of any version.
        let theirs = version == self.held.version || fault::mutant("old_version_applied");
        if !theirs || self.held.adopted != self.held.version {
            return Err(self.mismatch(version));
        }
        if self.held.corrupt || self.held.partial || self.primary().is_some() {
            return Err(self.not_validated());
        }
        let last = self.progress.applied_position().serial;
        // Guard gap_applied: strictly at the next position; what overtook others waits (T41).
        if serial <= last {
            Ok(Turn::Repeated)
        // Mutant gap_applied: what overtook others is applied at once.
        } else if serial == last.next() || fault::mutant("gap_applied") {
            Ok(Turn::Now)
        } else if serial.raw() - last.raw() <= AHEAD_MAX {
            Ok(Turn::After(Serial::from_raw(serial.raw() - 1)))
        } else {
            Err(Error::Busy { what: format!("the queue for {}", self.handle) })
        }
    }

    /// The mutation whose turn it was has been applied here.
    pub(crate) fn applied(&mut self, order: &Order) {
        let after = after(self.progress.applied_position(), order);
        self.progress.apply(Applied { offset: order.offset, length: order.length, after });
    }

    /// The active primary of a version said that everything up to a serial is committed.
    pub(crate) fn learn(&mut self, version: ChunkVersion, committed: Serial) {
        if version == self.held.version && self.held.adopted == version {
            self.progress.learn(committed);
        }
    }

    // ---- reading ----

    /// Whether it may serve reads at this moment at all.
    pub(crate) fn validated(&self, fence: &Fence, now: Moment) -> Result<(), Error> {
        let whole = !self.held.partial && !self.held.corrupt;
        if whole && fence.validates(now, self.handle, &self.standing, self.held.version) {
            Ok(())
        } else {
            Err(self.not_validated())
        }
    }

    /// Decides about a read at this moment; the bytes must be taken under the same lock.
    pub(crate) fn read(&self, query: Query, fence: &Fence, now: Moment) -> Result<Readable, Error> {
        // Mutant stale_location_served: whatever version a reader knows, also from before a copy on write.
        let known = query.version >= self.readable_from || fault::mutant("stale_location_served");
        if !known || query.version > self.held.version {
            return Err(self.mismatch(query.version));
        }
        // Guard unfenced_primary_reads: the primary, too, serves only while it is validated.
        // Mutant unfenced_primary_reads: the primary believes that it needs no validation.
        let active = self.primary().is_some();
        if !(active && fault::mutant("unfenced_primary_reads")) {
            self.validated(fence, now)?;
        }
        // Mutant dirty_read: what is applied here counts as committed.
        if fault::mutant("dirty_read") {
            return Ok(Readable::Yes(self.progress.applied_position()));
        }
        let progress = &self.progress;
        let settled = progress.committed();
        // Guard dirty_read: with anything in flight that the range may depend on, the primary knows what is committed.
        let current = active || query.asked || progress.clean();
        match settled {
            Some(position) if !current && progress.untouched(query.offset, query.length) => {
                Ok(Readable::Yes(position))
            }
            Some(position) if current => match progress.touched(query.offset, query.length) {
                Some(serial) => Ok(Readable::Wait(serial)),
                None => Ok(Readable::Yes(position)),
            },
            Some(_) | None => match self.grant.as_ref().and_then(Grant::primary) {
                Some(primary) if primary.server != self.us && !query.asked => {
                    Ok(Readable::Ask(primary.clone()))
                }
                Some(_) | None => Err(self.not_validated()),
            },
        }
    }

    /// What the active primary tells another replica of its version.
    pub(crate) fn committed(
        &self,
        version: ChunkVersion,
        fence: &Fence,
        now: Moment,
    ) -> Result<Position, Error> {
        if self.primary().is_none() || version != self.held.version {
            return Err(self.not_primary(version));
        }
        // Guard unfenced_primary_reads: whoever asks shows the answer to a reader.
        self.validated(fence, now)?;
        self.progress.committed().ok_or_else(|| self.not_primary(version))
    }

    /// What became of a request: where it is, or `None` and whether the chunk is sealed. Only the active primary knows.
    pub(crate) fn outcome(
        &self,
        version: ChunkVersion,
        id: RequestId,
        recorded: Recorded,
    ) -> Result<(Option<Outcome>, Option<Serial>), Error> {
        let primary = self.primary().filter(|_| version == self.held.version);
        let primary = primary.ok_or_else(|| self.not_primary(version))?;
        Ok((primary.outcome(id, recorded)?, primary.sealed()))
    }
}

/// The chunk after an order.
fn after(before: Position, order: &Order) -> Position {
    Position {
        serial: order.serial,
        length: before.length.max(order.offset.saturating_add(order.length)),
        sealed: before.sealed || order.kind == Kind::Seal,
    }
}
