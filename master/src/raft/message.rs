//! The bodies of Raft's messages between masters (`raft.proto` has the envelope).

use std::io;

use gfs_proto::pb;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use super::codec::{EntryRow, FORMAT, LogIdRow, SnapshotMetaRow, VoteRow, invalid, required};
use super::types::{SnapshotMeta, TypeConfig, Vote};

/// The body of a message of a format that this version reads.
pub(crate) fn open<Body: Message + Default>(message: &pb::RaftMessage) -> io::Result<Body> {
    if message.format != u32::from(FORMAT) {
        return Err(invalid(&format!("format {} of a message is not known here", message.format)));
    }
    Body::decode(message.body.clone()).map_err(|error| invalid(&error.to_string()))
}

/// Entries, or none for a heartbeat.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendBody {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdRow>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<EntryRow>,
    #[prost(message, optional, tag = "4")]
    commit: Option<LogIdRow>,
}
impl From<&AppendEntriesRequest<TypeConfig>> for AppendBody {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            previous: request.prev_log_id.as_ref().map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            commit: request.leader_commit.as_ref().map(Into::into),
        }
    }
}
impl AppendBody {
    /// The request.
    pub(crate) fn into_request(self) -> io::Result<AppendEntriesRequest<TypeConfig>> {
        Ok(AppendEntriesRequest {
            vote: required(self.vote)?.into(),
            prev_log_id: self.previous.map(Into::into),
            entries: self.entries.into_iter().map(EntryRow::into_entry).collect::<io::Result<_>>()?,
            leader_commit: self.commit.map(Into::into),
        })
    }
}

/// Answer to [`AppendBody`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendReply {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    matching: Option<LogIdRow>,
    #[prost(message, optional, tag = "3")]
    vote: Option<VoteRow>,
}
const APPEND_SUCCESS: u32 = 1;
const APPEND_PARTIAL: u32 = 2;
const APPEND_CONFLICT: u32 = 3;
const APPEND_HIGHER_VOTE: u32 = 4;

impl From<AppendEntriesResponse<TypeConfig>> for AppendReply {
    fn from(response: AppendEntriesResponse<TypeConfig>) -> Self {
        let (kind, matching, vote) = match response {
            AppendEntriesResponse::Success => (APPEND_SUCCESS, None, None),
            AppendEntriesResponse::PartialSuccess(id) => (APPEND_PARTIAL, id, None),
            AppendEntriesResponse::Conflict => (APPEND_CONFLICT, None, None),
            AppendEntriesResponse::HigherVote(vote) => (APPEND_HIGHER_VOTE, None, Some(vote)),
        };
        Self { kind, matching: matching.as_ref().map(Into::into), vote: vote.as_ref().map(Into::into) }
    }
}
impl AppendReply {
    /// The response.
    pub(crate) fn into_response(self) -> io::Result<AppendEntriesResponse<TypeConfig>> {
        match self.kind {
            APPEND_SUCCESS => Ok(AppendEntriesResponse::Success),
            APPEND_PARTIAL => Ok(AppendEntriesResponse::PartialSuccess(self.matching.map(Into::into))),
            APPEND_CONFLICT => Ok(AppendEntriesResponse::Conflict),
            APPEND_HIGHER_VOTE => Ok(AppendEntriesResponse::HigherVote(required(self.vote)?.into())),
            kind => Err(invalid(&format!("answer of unknown kind {kind}"))),
        }
    }
}

/// Asks for a vote, or whether one would be given.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteBody {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdRow>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}
impl From<&VoteRequest<TypeConfig>> for VoteBody {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            last: request.last_log_id.as_ref().map(Into::into),
            transfer: request.leadership_transfer,
        }
    }
}
impl VoteBody {
    /// The request.
    pub(crate) fn into_request(self) -> io::Result<VoteRequest<TypeConfig>> {
        let mut request = VoteRequest::new(required(self.vote)?.into(), self.last.map(Into::into));
        request.leadership_transfer = self.transfer;
        Ok(request)
    }
}

/// Answer to [`VoteBody`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteReply {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRow>,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdRow>,
}
impl From<VoteResponse<TypeConfig>> for VoteReply {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some((&response.vote).into()),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(Into::into),
        }
    }
}
impl VoteReply {
    /// The response.
    pub(crate) fn into_response(self) -> io::Result<VoteResponse<TypeConfig>> {
        let vote: Vote = required(self.vote)?.into();
        Ok(VoteResponse::new(vote, self.last.map(Into::into), self.granted))
    }
}

/// Asks a voter to take over.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferBody {
    #[prost(message, optional, tag = "1")]
    from: Option<VoteRow>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdRow>,
}
impl From<&TransferLeaderRequest<TypeConfig>> for TransferBody {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: Some(request.from_leader().into()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(Into::into),
        }
    }
}
impl TransferBody {
    /// The request.
    pub(crate) fn into_request(self) -> io::Result<TransferLeaderRequest<TypeConfig>> {
        Ok(TransferLeaderRequest::new(required(self.from)?.into(), self.to, self.last.map(Into::into)))
    }
}

/// Answer to [`TransferBody`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferReply {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    expected_vote: Option<VoteRow>,
    #[prost(message, optional, tag = "3")]
    actual_vote: Option<VoteRow>,
    #[prost(message, optional, tag = "4")]
    expected: Option<LogIdRow>,
    #[prost(message, optional, tag = "5")]
    actual: Option<LogIdRow>,
}
const TRANSFER_ACCEPTED: u32 = 1;
const TRANSFER_VOTE_CHANGED: u32 = 2;
const TRANSFER_NOT_FLUSHED: u32 = 3;

impl From<TransferLeaderResponse<TypeConfig>> for TransferReply {
    fn from(response: TransferLeaderResponse<TypeConfig>) -> Self {
        match response {
            Ok(()) => Self { kind: TRANSFER_ACCEPTED, ..Self::default() },
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Self {
                kind: TRANSFER_VOTE_CHANGED,
                expected_vote: Some((&expected).into()),
                actual_vote: Some((&actual).into()),
                ..Self::default()
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self {
                kind: TRANSFER_NOT_FLUSHED,
                expected: expected.as_ref().map(Into::into),
                actual: actual.as_ref().map(Into::into),
                ..Self::default()
            },
        }
    }
}
impl TransferReply {
    /// The response.
    pub(crate) fn into_response(self) -> io::Result<TransferLeaderResponse<TypeConfig>> {
        match self.kind {
            TRANSFER_ACCEPTED => Ok(Ok(())),
            TRANSFER_VOTE_CHANGED => Ok(Err(TransferLeaderError::VoteChanged {
                expected: required(self.expected_vote)?.into(),
                actual: required(self.actual_vote)?.into(),
            })),
            TRANSFER_NOT_FLUSHED => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: self.expected.map(Into::into),
                actual: self.actual.map(Into::into),
            })),
            kind => Err(invalid(&format!("answer of unknown kind {kind}"))),
        }
    }
}

/// Announces a checkpoint.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotStart {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRow>,
    #[prost(message, optional, tag = "2")]
    meta: Option<SnapshotMetaRow>,
}
impl SnapshotStart {
    /// The announcement of this checkpoint.
    pub(crate) fn new(vote: &Vote, meta: &SnapshotMeta) -> Self {
        Self { vote: Some(vote.into()), meta: Some(meta.into()) }
    }
    /// The vote and what the checkpoint contains.
    pub(crate) fn into_parts(self) -> io::Result<(Vote, SnapshotMeta)> {
        Ok((required(self.vote)?.into(), required(self.meta)?.into_meta()?))
    }
}

/// Answer to a whole checkpoint.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotReply {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRow>,
}
impl From<SnapshotResponse<TypeConfig>> for SnapshotReply {
    fn from(response: SnapshotResponse<TypeConfig>) -> Self {
        Self { vote: Some((&response.vote).into()) }
    }
}
impl SnapshotReply {
    /// The response.
    pub(crate) fn into_response(self) -> io::Result<SnapshotResponse<TypeConfig>> {
        Ok(SnapshotResponse::new(required(self.vote)?.into()))
    }
}
