//! Mutations of one chunk, in order: sends them to the primary until they are settled (GFS §3.1).
//!
//! Whatever fails on the way, the same request id is sent again, so that a mutation happens once; what became of
//! it is told when some primary has told us.

use std::sync::Arc;
use std::time::Duration;

use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, DataId};
use gfs_proto::link::{Mutation, Source};
use gfs_proto::retry::Backoff;
use gfs_proto::size::BLOCK_BYTES;
use gfs_proto::{Error, Result, fault, pb};

use crate::cache::Lease;
use crate::client::Core;
use crate::lease::{Opened, Step, step_after};
use crate::session::DataRequest;

/// Data up to this size goes along in the request, larger data is pushed along the chain before.
pub(crate) const INLINE_BYTES_MAX: u32 = BLOCK_BYTES;
/// How long a chain may take for one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the primary may take: a repeat of a slow attempt joins it, and a primary that is paused or cut off has to
/// be suspected early enough for writes to go on within 5 s.
const PRIMARY_TIMEOUT: Duration = Duration::from_secs(3);

/// What a mutation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Writes at this offset of the chunk.
    Write(u32),
    /// Appends a record.
    Append,
    /// Makes durable what is before it.
    Sync,
}

/// Data in the buffers of the members of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pushed {
    pub(crate) handle: ChunkHandle,
    pub(crate) version: ChunkVersion,
    pub(crate) data: DataId,
}

impl Pushed {
    /// Whether the members of this lease have it.
    fn fits(self, lease: &Lease) -> bool {
        (self.handle, self.version) == (lease.handle, lease.version)
    }
}

/// One mutation on its way.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) request: Arc<DataRequest>,
    pub(crate) action: Action,
    pub(crate) payload: Payload,
    pub(crate) durability: pb::Durability,
    pub(crate) pushed: Option<Pushed>,
    /// Acknowledged at some version.
    acknowledged: bool,
}

impl Unit {
    pub(crate) fn new(
        request: Arc<DataRequest>,
        action: Action,
        payload: Payload,
        durability: pb::Durability,
    ) -> Self {
        Self { request, action, payload, durability, pushed: None, acknowledged: false }
    }
    /// Whether its acknowledgement is the promise for everything before it too.
    fn is_promise(&self) -> bool {
        self.durability != pb::Durability::Deferred
    }
}

/// The mutations of a chunk that are not promised yet, in order.
///
/// An acknowledgement with deferred durability is worth something only as long as the version stays: a power cut
/// of all members may lose those bytes, and then there is a new version. So they are kept until a later mutation
/// gives the promise, and all sent again when the version changes.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) index: ChunkIndex,
    /// Of which chunk: copy on write gives the place another one, whose versions begin anew.
    handle: ChunkHandle,
    version: ChunkVersion,
    units: Vec<Unit>,
    /// So many of them are acknowledged at `version`.
    confirmed: usize,
}

impl Tail {
    pub(crate) fn new(index: ChunkIndex) -> Self {
        Self {
            index,
            handle: ChunkHandle::default(),
            version: ChunkVersion::NONE,
            units: Vec::new(),
            confirmed: 0,
        }
    }
    /// Whether nothing waits for a promise.
    pub(crate) fn is_settled(&self) -> bool {
        self.units.is_empty()
    }
    /// Bytes that wait for a promise.
    pub(crate) fn bytes(&self) -> u64 {
        self.units.iter().map(|unit| unit.payload.bytes.len() as u64).sum()
    }
    /// Adds a mutation and sends until it is acknowledged, and all before it at the same version.
    /// After the answer to a promise nothing is kept.
    ///
    /// # Errors
    /// [`Error::Sealed`] if the chunk takes no more: the unit is kept, its outcome is the caller's to settle.
    /// [`Error::DeadlineExceeded`] if nothing moved for the patience; else the error that no repeat can change.
    pub(crate) async fn commit(
        &mut self,
        core: &Core,
        file: &Opened,
        unit: Unit,
    ) -> Result<pb::WriteReplyMeta> {
        let promise = unit.is_promise();
        self.units.push(unit);
        let reply = self.settle(core, file).await?;
        if promise {
            self.units.clear();
            self.confirmed = 0;
        }
        Ok(reply)
    }

    async fn settle(&mut self, core: &Core, file: &Opened) -> Result<pb::WriteReplyMeta> {
        let mut backoff = core.backoff();
        let mut failures = 0;
        let mut unsettled = false;
        let mut lease = core.lease(file, self.index, backoff.remaining()).await?;
        loop {
            let confirmed = self.confirmed;
            let error = match self.send(core, file, &lease, &backoff).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            tracing::debug!(handle = %lease.handle, version = %lease.version, %error, "mutation failed");
            if self.confirmed > confirmed {
                (backoff, failures) = (core.backoff(), 0);
            }
            // Also what a new grant has overtaken may be in the content that all its members adopted.
            unsettled |= matches!(
                error,
                Error::Unavailable { .. }
                    | Error::MemberFailed { .. }
                    | Error::CutOff { .. }
                    | Error::NotPrimary { .. }
                    | Error::NoSuchChunk { .. }
                    | Error::Internal { .. }
            );
            // Mutant repeat_under_new_id: nobody can tell that it is the same mutation.
            if fault::mutant("repeat_under_new_id") {
                for unit in &mut self.units {
                    unit.request = core.sessions.data_request().await?;
                }
            }
            let step = step_after(&error, lease.primary.server);
            match step {
                Step::NextChunk => return Err(error),
                // Says itself that the outcome can't be told.
                Step::Fail if matches!(error, Error::SessionExpired { .. }) => return Err(error),
                // An earlier attempt may have got through: that it surely failed would be a lie.
                // Mutant unknown_told_failed: the last error speaks for all attempts.
                Step::Fail if unsettled && !fault::mutant("unknown_told_failed") => {
                    return Err(backoff.gave_up(&error));
                }
                Step::Fail => return Err(error),
                Step::PushAgain | Step::Wait | Step::NewLease(_) => {}
            }
            // The first repeat is at once: often only our knowledge was old.
            if failures > 0 || step == Step::Wait {
                backoff.pause(&error).await?;
            }
            failures += 1;
            if let Step::NewLease(server) = step {
                lease = match core.lease_after(file, &lease, server, backoff.remaining()).await {
                    Ok(lease) => lease,
                    Err(refused) if unsettled => return Err(backoff.gave_up(&refused)),
                    Err(refused) => return Err(refused),
                };
            } else if step == Step::PushAgain
                && let Some(unit) = self.units.get_mut(self.confirmed)
            {
                unit.pushed = None;
            }
        }
    }

    /// Sends what is not acknowledged at the version of this lease, in order.
    async fn send(
        &mut self,
        core: &Core,
        file: &Opened,
        lease: &Arc<Lease>,
        backoff: &Backoff,
    ) -> Result<pb::WriteReplyMeta> {
        if (self.handle, self.version) != (lease.handle, lease.version) {
            (self.handle, self.version) = (lease.handle, lease.version);
            self.confirmed = 0;
        }
        let mut reply = pb::WriteReplyMeta::default();
        while let Some(unit) = self.units.get_mut(self.confirmed) {
            let patience = ATTEMPT_TIMEOUT.min(backoff.remaining());
            reply = unit.send(core, (file, lease), patience).await?;
            self.confirmed += 1;
        }
        Ok(reply)
    }
}

impl Unit {
    /// One attempt at one primary.
    async fn send(
        &mut self,
        core: &Core,
        (file, lease): (&Opened, &Lease),
        patience: Duration,
    ) -> Result<pb::WriteReplyMeta> {
        let request = self.request.id();
        if self.action != Action::Sync {
            // Never sent, nor sent again, under an id that chunks may have forgotten: that could do it twice.
            core.sessions.check_open(request.client)?;
        }
        if self.acknowledged {
            // Sent again only for a new version: most likely its content has it.
            let outcome =
                core.links.outcome(&lease.primary, lease.handle, lease.version, request, patience).await?;
            if let Some(offset) = outcome.offset {
                return Ok(pb::WriteReplyMeta { offset, committed_length: 0 });
            }
        }
        let pushed = self.pushed.filter(|pushed| pushed.fits(lease));
        let is_small = self.payload.length() <= INLINE_BYTES_MAX;
        let source = if is_small || (pushed.is_none() && !file.has_chain(lease, core.now())) {
            Source::Inline(self.payload.clone())
        } else {
            let pushed = match pushed {
                Some(pushed) => pushed,
                None => *self.pushed.insert(push(core, (file, lease), &self.payload, patience).await?),
            };
            Source::Pushed(pushed.data, self.payload.length())
        };
        let Lease { handle, version, .. } = *lease;
        let (first_unacked, durability) = (self.request.first_unacked(), self.durability);
        let mutation = Mutation { handle, version, request, first_unacked, durability };
        let (links, primary) = (&core.links, &lease.primary);
        // Much data takes its time, whoever it is sent to.
        let is_much = !is_small && matches!(source, Source::Inline(_));
        let patience = if is_much { patience } else { PRIMARY_TIMEOUT.min(patience) };
        fault::try_reach("client::before_mutation").await?;
        let reply = match self.action {
            Action::Write(offset) => links.write(primary, &mutation, offset, &source, patience).await?,
            Action::Append => links.append(primary, &mutation, &source, patience).await?,
            Action::Sync => links.sync(primary, &mutation, patience).await?,
        };
        fault::try_reach("client::mutation_answered").await?;
        self.acknowledged = true;
        Ok(reply)
    }
}

/// Pushes data into the buffers of all members.
pub(crate) async fn push(
    core: &Core,
    (file, lease): (&Opened, &Lease),
    payload: &Payload,
    patience: Duration,
) -> Result<Pushed> {
    let data = DataId::from_bytes(core.environment.random.bits128());
    fault::try_reach("client::before_push").await?;
    let chain = core.chain(lease);
    match core.links.push(&chain, lease.handle, data, payload, patience).await {
        Ok(()) => Ok(Pushed { handle: lease.handle, version: lease.version, data }),
        Err(error) => {
            // A full buffer has room again later.
            if !matches!(error, Error::Busy { .. }) {
                file.chain_broke(lease, core.now());
            }
            Err(core.blamed(lease, &chain, error))
        }
    }
}

/// Pushes data before it is its turn to be written; what goes wrong is dealt with when it is.
pub(crate) async fn push_ahead(
    core: &Core,
    file: &Opened,
    index: ChunkIndex,
    payload: &Payload,
) -> Option<Pushed> {
    if payload.length() <= INLINE_BYTES_MAX {
        return None;
    }
    let pushed = async {
        let lease = core.lease(file, index, core.patience()).await?;
        if !file.has_chain(&lease, core.now()) {
            return Ok(None);
        }
        let patience = ATTEMPT_TIMEOUT.min(core.patience());
        push(core, (file, &lease), payload, patience).await.map(Some)
    };
    pushed.await.inspect_err(|error| tracing::debug!(%error, "push ahead failed")).ok().flatten()
}
