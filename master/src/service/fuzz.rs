//! Fuzz target of the handlers' parsing: whatever a message says becomes a command that the state can take, or a refusal.

use bytes::Bytes;
use gfs_fuzz::Dice;
use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, EntryId, LogIndex, RequestId, ServerId,
};
use gfs_proto::path::{FilePath, Name};
use gfs_proto::time::UnixMs;
use gfs_proto::{Result, pb};
use prost::Message;

use super::convert;
use crate::cluster::Report;
use crate::state::{Command, Memory, Proposal, apply, invariant, read};

/// A batch of a report in our own words.
///
/// # Errors
/// It is too large.
pub(crate) fn report(request: &pb::ReportRequest) -> Result<Report> {
    convert::report(request)
}

/// Requests as clients and chunkservers send them.
pub(crate) fn messages(data: &[u8]) {
    let mut dice = Dice::new(data);
    let kind = dice.below(12);
    let first_unacked = dice.number();
    let bytes = Bytes::copy_from_slice(dice.rest());
    let memory = cluster();
    let Some((request, command)) = command(kind, bytes.clone(), &memory) else {
        others(bytes);
        return;
    };
    let proposal =
        Proposal { request, first_unacked, ..Proposal::internal(UnixMs::from_raw(1 << 40), command) };
    assert_eq!(Proposal::decode(&proposal.encode()).as_ref(), Ok(&proposal));
    let outcome = apply(&memory, LogIndex::from_raw(9), &proposal);
    let mut after = memory;
    after.write(outcome.writes);
    assert_eq!(invariant::check(&after), Ok(()), "after {proposal}");
}

/// A cluster with a directory.
fn cluster() -> Memory {
    let mut memory = Memory::default();
    let commands = [
        Command::Bootstrap {
            cluster: gfs_proto::id::ClusterId::from_bytes([1; 16]),
            chunk_bytes: gfs_proto::size::ChunkBytes::DEFAULT,
            replication: 3,
            trash_ms: 1000,
            session_ms: 1000,
            master: gfs_proto::id::MasterId::from_raw(1),
            uuid: gfs_proto::id::Uuid::from_bytes([1; 16]),
            address: String::new(),
        },
        Command::Mkdir {
            path: FilePath::root().join("a").unwrap_or_else(|_| FilePath::root()),
            parents: false,
        },
    ];
    for (index, command) in (1..).zip(commands) {
        let proposal = Proposal::internal(UnixMs::from_raw(1), command);
        memory.write(apply(&memory, LogIndex::from_raw(index), &proposal).writes);
    }
    memory
}

/// The command that a client's request asks for.
fn command(kind: u64, bytes: Bytes, view: &Memory) -> Option<(Option<RequestId>, Command)> {
    let (request, command) = match kind {
        0 => {
            let request = pb::MkdirRequest::decode(bytes).ok()?;
            let path = convert::path(&request.path).ok()?;
            (request.request, Command::Mkdir { path, parents: request.parents })
        }
        1 => {
            let request = pb::CreateRequest::decode(bytes).ok()?;
            let path = convert::path(&request.path).ok()?;
            (request.request, Command::Create { path, replication: request.replication })
        }
        2 => {
            let request = pb::DeleteRequest::decode(bytes).ok()?;
            let path = convert::path(&request.path).ok()?;
            (request.request, Command::Delete { path, recursive: request.recursive })
        }
        3 => {
            let request = pb::RenameRequest::decode(bytes).ok()?;
            let (source, target) =
                (convert::path(&request.source).ok()?, convert::path(&request.target).ok()?);
            (request.request, Command::Rename { source, target, replace: request.replace })
        }
        4 => {
            let request = pb::SnapshotRequest::decode(bytes).ok()?;
            let (source, target) =
                (convert::path(&request.source).ok()?, convert::path(&request.target).ok()?);
            (request.request, Command::Snapshot { source, target })
        }
        5 => {
            let request = pb::AddChunkRequest::decode(bytes).ok()?;
            let (file, expected_count) = (EntryId::from_raw(request.file), request.expected_count);
            (
                request.request,
                Command::AddChunk { file, expected_count, members: Vec::new(), primary: Default::default() },
            )
        }
        6 => {
            let request = pb::ListRequest::decode(bytes).ok()?;
            let path = convert::path(&request.path).ok()?;
            if !request.after.is_empty() {
                Name::parse(&request.after).ok()?;
            }
            let page = read::list(view, &path, &request.after, request.limit as usize);
            assert!(page.is_ok_and(|page| page.items.len() <= request.limit as usize) || !path.is_root());
            return None;
        }
        _ => return trash_command(kind, bytes, view),
    };
    Some((request.map(RequestId::from), command))
}

/// The command about the trash or a chunk without a whole replica that a request asks for.
fn trash_command(kind: u64, bytes: Bytes, view: &Memory) -> Option<(Option<RequestId>, Command)> {
    let (request, command) = match kind {
        7 => {
            let request = pb::UndeleteRequest::decode(bytes).ok()?;
            let target = convert::path(&request.target).ok()?;
            (request.request, Command::Undelete { entry: EntryId::from_raw(request.id), target })
        }
        8 => {
            let request = pb::ExpediteRequest::decode(bytes).ok()?;
            (request.request, Command::Expedite { entry: EntryId::from_raw(request.id) })
        }
        9 => {
            let request = pb::ListTrashRequest::decode(bytes).ok()?;
            let below = convert::path(&request.path).ok()?;
            let after = request.after.map(|at| (UnixMs::from_raw(at.collect_ms), EntryId::from_raw(at.id)));
            let page = read::restorable(view, UnixMs::from_raw(1), &below, after, request.limit as usize);
            assert!(page.is_ok_and(|page| page.items.len() <= (request.limit as usize).max(1)));
            return None;
        }
        10 => {
            let request = pb::AcceptReplicaRequest::decode(bytes).ok()?;
            let (handle, expected_version) =
                (ChunkHandle::from_raw(request.handle), ChunkVersion::from_raw(request.version));
            let server = ServerId::from_raw(request.server);
            (request.request, Command::AcceptReplica { handle, expected_version, server })
        }
        _ => return None,
    };
    Some((request.map(RequestId::from), command))
}

/// What is no command.
fn others(bytes: Bytes) {
    if let Ok(request) = pb::ReportRequest::decode(bytes.clone())
        && let Ok(report) = convert::report(&request)
    {
        assert_eq!(
            (report.replicas.len(), report.removed.len()),
            (request.replicas.len(), request.removed.len())
        );
    }
    if let Ok(request) = pb::RegisterRequest::decode(bytes.clone())
        && let Ok(uuid) = convert::registration(&request)
    {
        let (address, rack) = (request.address, request.rack);
        let command = Command::RegisterServer { uuid, address, rack };
        apply(&cluster(), LogIndex::from_raw(9), &Proposal::internal(UnixMs::from_raw(2), command));
    }
    looks(&bytes);
    if let Ok(request) = pb::HeartbeatRequest::decode(bytes) {
        let space = convert::space(&request);
        assert_eq!(space.free_bytes, request.free_bytes);
    }
}

/// What only looks at the state: it finds something or says what is wrong with the question.
fn looks(bytes: &Bytes) {
    let view = cluster();
    if let Ok(request) = pb::StatRequest::decode(bytes.clone())
        && let Ok(path) = convert::path(&request.path)
    {
        let _found = read::stat(&view, &path).is_ok();
    }
    if let Ok(request) = pb::LocateRequest::decode(bytes.clone()) {
        let (file, from) = (EntryId::from_raw(request.file), ChunkIndex::from_raw(request.first));
        assert!(read::file_chunks(&view, file, from, 10).is_err(), "there is no file");
    }
    if let Ok(request) = pb::ExpiredClientsRequest::decode(bytes.clone()) {
        let is_open = |client: &u64| read::session(&view, ClientId::from_raw(*client)).is_ok();
        assert!(!request.clients.iter().any(is_open), "there is no session");
    }
}
