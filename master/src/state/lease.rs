//! Grants and leases: who may order the mutations of a chunk (GFS §3.1, §4.5).
//!
//! Differs from GFS: a grant takes two commits, prepare and confirm, with reconciliation and fencing between
//! them (protocol.md, Grant; docs/decisions/0008). Guards of that protocol are named where they are kept; those that need
//! soft state (no_fence_wait, fence_before_prepare) are the leader's.

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::size::REPLICATION_MAX;
use gfs_proto::time::UnixMs;

use crate::state::change::Change;
use crate::state::format::{Accepted, Chunk, Lease, Pending};
use crate::state::read;
use crate::state::reply::{Applied, GrantRule, Limit, Rejected};
use crate::state::snapshot;
use crate::state::table::View;

/// Most leases that one command extends.
pub const LEASES_PER_COMMAND_MAX: usize = 4096;

/// A grant as the leader asks for it.
pub(crate) struct Wish<'a> {
    pub(crate) handle: ChunkHandle,
    pub(crate) expected_version: ChunkVersion,
    pub(crate) members: &'a [ServerId],
    pub(crate) base: &'a [ServerId],
    pub(crate) primary: ServerId,
    pub(crate) writer: bool,
    pub(crate) fresh: bool,
}

/// First commit of a grant. A lease that runs ends here: its primary and members keep their role only until
/// they hear of the new version, and nothing can be acknowledged past the first member that has.
pub(crate) fn prepare(change: &mut Change<'_>, wish: &Wish<'_>) -> Result<Applied, Rejected> {
    let mut chunk = read::chunk(change.view(), wish.handle)?;
    // Two drivers of one chunk, or a leader that was deposed meanwhile: one of them is refused.
    expect_version(&chunk, wish.expected_version)?;
    check_members(change.view(), wish.members)?;
    let base = checked_base(&chunk, wish)?;
    // A chunk that several files have is copied before it is written (GFS §3.4).
    if wish.writer && chunk.references > 1 {
        return Err(Rejected::Shared { handle: wish.handle });
    }
    if !snapshot::let_go(change, wish.handle)? && wish.writer {
        return Err(Rejected::Unsettled { handle: wish.handle });
    }
    // Guard current_by_version: the one who leads the reconciliation has what was acknowledged.
    if !base.contains(&wish.primary) {
        return Err(Rejected::BadGrant { rule: GrantRule::Primary {} });
    }
    // Guard version_reuse: also a grant that is given up has used its version up.
    // Mutant version_reuse: the version of a grant that came to nothing is given again.
    let last = if fault::mutant("version_reuse") { chunk.confirmed } else { chunk.version };
    let version = last.raw().checked_add(1).map(ChunkVersion::from_raw);
    let version = version.ok_or(Rejected::Exhausted {})?;

    chunk.version = version;
    chunk.lease = None;
    // Mutant single_commit: who is to be a member is one already.
    if fault::mutant("single_commit") {
        chunk.members = wish.members.to_vec();
        chunk.confirmed = version;
    }
    // Guard single_commit: the confirmed members stay who they are until the confirm.
    chunk.pending = Some(Pending {
        version,
        members: wish.members.to_vec(),
        base,
        primary: wish.primary,
        writer: wish.writer,
        fresh: wish.fresh,
    });
    change.put_chunk(&chunk);
    // A decision was about the grant that it made, and about no later one.
    change.remove_accepted(wish.handle);
    Ok(Applied::Prepared { version })
}

/// First commit of a grant that stands on an operator's decision (docs/decisions/0020): its base is one confirmed member
/// that may have lost something. Nobody else takes part, so that nobody else drops what he holds before that is whole.
pub(crate) fn accept(
    change: &mut Change<'_>,
    handle: ChunkHandle,
    expected_version: ChunkVersion,
    server: ServerId,
) -> Result<Applied, Rejected> {
    let only = &[server];
    let (members, base, primary) = (only, only, server);
    // Guard current_by_version stays: only a confirmed member can be accepted. And what was never written has no content to
    // decide about: a grant that is not fresh is refused then.
    let wish = Wish { handle, expected_version, members, base, primary, writer: false, fresh: false };
    let prepared = prepare(change, &wish)?;
    if let Applied::Prepared { version } = prepared {
        change.put_accepted(handle, &Accepted { version, server });
    }
    Ok(prepared)
}

/// The base of a grant: who has what was acknowledged.
fn checked_base(chunk: &Chunk, wish: &Wish<'_>) -> Result<Vec<ServerId>, Rejected> {
    let broken = |rule| Err(Rejected::BadGrant { rule });
    // Nothing was ever acknowledged before the first confirm, so then, and only then, all start from nothing.
    if wish.fresh != (chunk.confirmed == ChunkVersion::NONE) {
        return broken(GrantRule::Fresh {});
    }
    if wish.fresh {
        return Ok(wish.members.to_vec());
    }
    if wish.base.is_empty() || !are_distinct(wish.base) {
        return broken(GrantRule::Base {});
    }
    if !wish.base.iter().all(|server| wish.members.contains(server)) {
        return broken(GrantRule::Base {});
    }
    // Guard current_by_version: a high version proves nothing, only a confirmed member can be current.
    if !wish.base.iter().all(|server| chunk.members.contains(server)) {
        return broken(GrantRule::BaseConfirmed {});
    }
    Ok(wish.base.to_vec())
}

/// Second commit of a grant.
pub(crate) fn confirm(
    change: &mut Change<'_>,
    handle: ChunkHandle,
    version: ChunkVersion,
    lease_expires_at: UnixMs,
) -> Result<Applied, Rejected> {
    let mut chunk = read::chunk(change.view(), handle)?;
    // Guard confirm_not_cas: a grant that was overtaken by another prepare is void, however far it got.
    // Mutant confirm_not_cas: whatever is pending is confirmed.
    if !fault::mutant("confirm_not_cas") {
        expect_version(&chunk, version)?;
    }
    let Some(pending) = chunk.pending.take() else {
        // Confirmed before: the leader did not hear the answer.
        return Ok(Applied::Confirmed { version });
    };
    chunk.confirmed = version;
    chunk.members = pending.members;
    chunk.lease = pending.writer.then_some(Lease { primary: pending.primary, expires_at: lease_expires_at });
    change.put_chunk(&chunk);
    change.remove_accepted(handle);
    Ok(Applied::Confirmed { version })
}

/// Extends the leases that still run. The clock is not asked: that a lease stands in the state means that no
/// other grant was prepared, which is all that safety needs.
pub(crate) fn extend(
    change: &mut Change<'_>,
    leases: &[(ChunkHandle, ChunkVersion)],
    expires_at: UnixMs,
) -> Result<Applied, Rejected> {
    if leases.len() > LEASES_PER_COMMAND_MAX {
        let (size, limit) = (leases.len() as u64, LEASES_PER_COMMAND_MAX as u64);
        return Err(Rejected::TooLarge { what: Limit::Leases {}, size, limit });
    }
    let mut extended = Vec::with_capacity(leases.len());
    for &(handle, version) in leases {
        let mut chunk = match read::chunk(change.view(), handle) {
            Err(Rejected::NoSuchChunk { .. }) => continue,
            found => found?,
        };
        let Some(lease) = chunk.lease.as_mut().filter(|_| chunk.version == version) else { continue };
        extended.push((handle, version));
        if lease.expires_at < expires_at {
            lease.expires_at = expires_at;
            change.put_chunk(&chunk);
        }
    }
    Ok(Applied::Extended { leases: extended })
}

/// Members are registered servers, each once, not more than a chunk may have.
pub(crate) fn check_members(view: &dyn View, members: &[ServerId]) -> Result<(), Rejected> {
    let broken = Err(Rejected::BadGrant { rule: GrantRule::Members {} });
    if members.is_empty() || members.len() > REPLICATION_MAX as usize || !are_distinct(members) {
        return broken;
    }
    for &server in members {
        if read::server(view, server)?.is_none() {
            return broken;
        }
    }
    Ok(())
}

fn expect_version(chunk: &Chunk, asked: ChunkVersion) -> Result<(), Rejected> {
    if chunk.version == asked {
        return Ok(());
    }
    Err(Rejected::VersionMismatch { handle: chunk.handle, asked, here: chunk.version })
}

fn are_distinct(servers: &[ServerId]) -> bool {
    (1..servers.len()).all(|i| !servers[..i].contains(&servers[i]))
}
