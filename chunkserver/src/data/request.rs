//! What a frame asks for: its head and metadata in our own words, or refused.

use std::time::Duration;

use gfs_proto::frame::{Frame, Head, Kind};
use gfs_proto::id::{DataId, RequestId, Serial};
use gfs_proto::size::PAYLOAD_BYTES_MAX;
use gfs_proto::{Error, Result, pb};

#[cfg(any(test, fuzzing))]
use super::push::Push;
use super::{ApplyRequest, ReadRequest, WriteRequest};

/// How long a request waits if it does not say.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(10);

fn patience(head: &Head) -> Duration {
    match head.deadline_ms {
        0 => PATIENCE_DEFAULT,
        deadline_ms => Duration::from_millis(deadline_ms.into()),
    }
}

fn data_id(bytes: &[u8]) -> Result<Option<DataId>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    DataId::from_slice(bytes).map(Some).ok_or_else(|| Error::bad_argument("no data id"))
}

fn durability(raw: i32) -> Result<pb::Durability> {
    pb::Durability::try_from(raw).map_err(|_| Error::bad_argument("an unknown durability"))
}

/// What a client's mutation asks for, and which pushed bytes it names.
pub(super) fn write_request(frame: &Frame) -> Result<(WriteRequest, Option<DataId>)> {
    let Head { kind, handle, version, offset, .. } = frame.head;
    let meta: pb::WriteMeta = frame.meta()?;
    let data = data_id(&meta.data_id)?;
    let request = meta.request.ok_or_else(|| Error::bad_argument("no request id"))?;
    let kind = match meta.length {
        _ if kind == Kind::Append => pb::MutationKind::Append,
        0 => pb::MutationKind::Sync,
        _ => pb::MutationKind::Write,
    };
    let request = WriteRequest {
        handle,
        version,
        kind,
        offset,
        length: meta.length,
        request: request.into(),
        first_unacked: request.first_unacked,
        durability: durability(meta.durability)?,
        data,
        patience: patience(&frame.head),
    };
    Ok((request, data))
}

/// What a primary orders, and which pushed bytes it names.
pub(super) fn apply_request(frame: &Frame) -> Result<(ApplyRequest, Option<DataId>)> {
    let Head { handle, version, offset, .. } = frame.head;
    let meta: pb::ApplyMeta = frame.meta()?;
    let data = data_id(&meta.data_id)?;
    let kind = match pb::MutationKind::try_from(meta.kind) {
        Ok(pb::MutationKind::Unspecified) | Err(_) => {
            return Err(Error::bad_argument("an unknown kind of mutation"));
        }
        Ok(kind) => kind,
    };
    let request = ApplyRequest {
        handle,
        version,
        serial: Serial::from_raw(meta.serial),
        committed: Serial::from_raw(meta.committed_serial),
        kind,
        offset,
        length: meta.length,
        request: meta.request.map(RequestId::from),
        first_unacked: meta.request.map_or(0, |request| request.first_unacked),
        durability: durability(meta.durability)?,
        data,
        patience: patience(&frame.head),
    };
    Ok((request, data))
}

/// What a read or a fetch asks for; all that is fetched is verified.
pub(super) fn read_request(frame: &Frame) -> Result<ReadRequest> {
    let Head { kind, handle, version, offset, length, .. } = frame.head;
    if length > PAYLOAD_BYTES_MAX || offset.checked_add(length).is_none() {
        let (size, limit) = (length.into(), PAYLOAD_BYTES_MAX.into());
        return Err(Error::TooLarge { what: "a read".into(), size, limit });
    }
    let verify = frame.meta::<pb::ReadMeta>()?.verify || kind == Kind::Fetch;
    Ok(ReadRequest { handle, version, offset, length, verify, patience: patience(&frame.head) })
}

/// Whose outcome is asked for.
pub(super) fn outcome_request(frame: &Frame) -> Result<RequestId> {
    let meta: pb::WriteMeta = frame.meta()?;
    let request = meta.request.ok_or_else(|| Error::bad_argument("no request id"))?;
    Ok(request.into())
}

/// Whether bytes come with it, or were pushed before.
pub(super) fn carries_bytes(kind: pb::MutationKind) -> bool {
    matches!(kind, pb::MutationKind::Write | pb::MutationKind::Append)
}

/// Reads the metadata of a frame as whatever it may be: for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_parse(frame: &Frame) {
    let _write = write_request(frame);
    let _apply = apply_request(frame);
    let _push = Push::parse(frame).map(drop);
    let _hello = frame.meta::<pb::HelloMeta>();
    let _outcome = outcome_request(frame);
    if let Ok(read) = read_request(frame) {
        assert!(read.length <= PAYLOAD_BYTES_MAX && read.offset.checked_add(read.length).is_some());
        assert!(read.verify || frame.head.kind != Kind::Fetch, "what a member takes over unverified");
    }
}
