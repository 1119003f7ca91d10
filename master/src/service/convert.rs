//! Between protobuf messages and our own values: the only file here that knows both.

use gfs_proto::id::{ChunkHandle, Epoch, Uuid};
use gfs_proto::path::FilePath;
use gfs_proto::{Error, Result, pb};

use crate::cluster::{Held, Part, Report, Space};
use crate::leader::Leased;
use crate::leader::grant::Granter;
use crate::state::read::Restorable;
use crate::state::{Applied, Entry};

/// Longest address or rack name.
const TEXT_BYTES_MAX: usize = 256;
/// Most replicas in one batch of a report.
const REPORT_MAX: usize = 200_000;

/// Parses a path from outside.
pub(super) fn path(text: &str) -> Result<FilePath> {
    FilePath::parse(text).map_err(|reason| Error::bad_path(text, reason))
}

/// An entry as clients see it.
pub(super) fn entry(entry: &Entry) -> pb::Entry {
    let kind = if entry.is_file() { pb::EntryKind::File } else { pb::EntryKind::Directory };
    pb::Entry {
        id: entry.id.raw(),
        kind: kind.into(),
        created_ms: entry.created_at.raw(),
        modified_ms: entry.modified_at.raw(),
        replication: entry.replication,
        chunk_count: entry.chunk_count,
        name: entry.name().to_owned(),
    }
}

/// A page of what can be restored.
pub(super) fn trash(page: &Restorable, rev: u64) -> pb::ListTrashReply {
    let entries = page.items.iter().map(|(trashed, found)| pb::TrashEntry {
        entry: Some(entry(found)),
        path: trashed.path.clone(),
        deleted_ms: trashed.deleted_at.raw(),
        collect_ms: trashed.collect_at.raw(),
    });
    let next = page.next.map(|(date, id)| pb::TrashCursor { collect_ms: date.raw(), id: id.raw() });
    pb::ListTrashReply { entries: entries.collect(), next, rev }
}

/// The answer to a command that makes an entry.
#[expect(clippy::wildcard_enum_match_arm, reason = "one answer fits one question")]
pub(super) fn entry_reply((rev, applied): (u64, Applied)) -> Result<pb::EntryReply> {
    match applied {
        Applied::Entry { entry: made } => Ok(pb::EntryReply { entry: Some(entry(&made)), rev }),
        other => Err(unexpected(&other)),
    }
}

/// The state answered a question that was not asked.
pub(super) fn unexpected(applied: &Applied) -> Error {
    Error::internal(format!("unexpected answer: {applied}"))
}

/// A lease as clients see it: the primary first.
pub(super) fn lease(granter: &Granter, leased: &Leased) -> pb::Lease {
    pb::Lease {
        handle: leased.handle.raw(),
        version: leased.version.raw(),
        primary: leased.primary.raw(),
        replicas: leased.members.iter().map(|server| granter.replica(*server)).collect(),
        remaining_ms: u64::try_from(leased.remaining.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A batch of a report.
pub(super) fn report(request: &pb::ReportRequest) -> Result<Report> {
    let size = request.replicas.len().max(request.removed.len());
    if size > REPORT_MAX {
        let (size, limit) = (size as u64, REPORT_MAX as u64);
        return Err(Error::TooLarge { what: "the report".into(), size, limit });
    }
    let held = |replica: &pb::ReplicaReport| (ChunkHandle::from_raw(replica.handle), Held::from(replica));
    Ok(Report {
        epoch: Epoch::from_raw(request.epoch),
        sequence: request.sequence,
        full: request.full.then_some(Part { first: request.first, last: request.last }),
        replicas: request.replicas.iter().map(held).collect(),
        removed: request.removed.iter().copied().map(ChunkHandle::from_raw).collect(),
    })
}

/// Which directory a chunkserver registers, if what it says of itself is not too long.
///
/// # Errors
/// [`Error::BadArgument`].
pub(super) fn registration(request: &pb::RegisterRequest) -> Result<Uuid> {
    let uuid = Uuid::from_slice(&request.uuid).ok_or_else(|| Error::bad_argument("no identity"))?;
    if request.address.len() > TEXT_BYTES_MAX || request.rack.len() > TEXT_BYTES_MAX {
        return Err(Error::bad_argument("address or rack too long"));
    }
    Ok(uuid)
}

/// Room on a server's disks.
pub(super) fn space(request: &pb::HeartbeatRequest) -> Space {
    Space { total_bytes: request.total_bytes, free_bytes: request.free_bytes, used_bytes: request.used_bytes }
}
