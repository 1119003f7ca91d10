//! The calls that clients and chunkservers make over links, with typed arguments and answers.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::frame::{Frame, Head, Kind, Payload};
use crate::id::{ChunkHandle, ChunkVersion, DataId, RequestId};
use crate::link::{Links, Peer};
use crate::pb;

/// A piece of a chunk at one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The chunk.
    pub handle: ChunkHandle,
    /// Its version as the caller knows it.
    pub version: ChunkVersion,
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

/// What a replica answered to a read. Every checksum has been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadReply {
    /// The committed bytes from the offset on: fewer than wanted where the chunk ends.
    pub bytes: Bytes,
    /// The committed length of the chunk at that moment.
    pub committed_length: u32,
    /// Whether the chunk takes no more appends.
    pub sealed: bool,
}

/// A mutation as a client sends it to the primary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mutation {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The version of the lease.
    pub version: ChunkVersion,
    /// Names the mutation: the same at every repeat.
    pub request: RequestId,
    /// The client asks for no request of its below this one any more.
    pub first_unacked: u64,
    /// What the acknowledgement promises.
    pub durability: pb::Durability,
}

/// Where the bytes of a mutation are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// In the request itself.
    Inline(Payload),
    /// Pushed before under this id; so many bytes.
    Pushed(DataId, u32),
}

impl Links {
    /// Pushes data into the buffers of a chain of servers: to the first, which forwards it to the next (GFS §3.2).
    /// Returns when all of them hold it.
    ///
    /// # Errors
    /// [`Error::MemberFailed`] with the server of the chain that failed, if it is not the first; else as [`Links::call`].
    #[expect(clippy::too_many_arguments, reason = "each names a part of the question")]
    pub async fn push(
        &self,
        chain: &[Peer],
        handle: ChunkHandle,
        data: DataId,
        payload: &Payload,
        patience: Duration,
    ) -> Result<()> {
        let [first, rest @ ..] = chain else {
            return Err(Error::bad_argument("a chain of no servers"));
        };
        let meta = pb::PushMeta {
            data_id: data.bytes().to_vec().into(),
            chain: rest.iter().map(pb::Replica::from).collect(),
        };
        let mut head = patient(Head::new(Kind::Push, 0), patience).of_chunk(handle, ChunkVersion::NONE);
        head.offset = payload.offset;
        self.call(first, framed(head, &meta, payload), vec![payload.bytes.clone()]).await.map(drop)
    }

    /// Asks the primary to write at `offset` of the chunk.
    ///
    /// # Errors
    /// As [`Links::call`].
    #[expect(clippy::too_many_arguments, reason = "each names a part of the question")]
    pub async fn write(
        &self,
        primary: &Peer,
        mutation: &Mutation,
        offset: u32,
        source: &Source,
        patience: Duration,
    ) -> Result<pb::WriteReplyMeta> {
        self.mutate(primary, Kind::Write, mutation, (offset, source, patience)).await
    }

    /// Asks the primary to append a record where it fits.
    ///
    /// # Errors
    /// As [`Links::call`].
    pub async fn append(
        &self,
        primary: &Peer,
        mutation: &Mutation,
        source: &Source,
        patience: Duration,
    ) -> Result<pb::WriteReplyMeta> {
        self.mutate(primary, Kind::Append, mutation, (0, source, patience)).await
    }

    /// Asks the primary to make everything before this durable on all members: a write of no bytes.
    ///
    /// # Errors
    /// As [`Links::call`].
    pub async fn sync(
        &self,
        primary: &Peer,
        mutation: &Mutation,
        patience: Duration,
    ) -> Result<pb::WriteReplyMeta> {
        let nothing = Source::Inline(Payload::default());
        self.mutate(primary, Kind::Write, mutation, (0, &nothing, patience)).await
    }

    async fn mutate(
        &self,
        primary: &Peer,
        kind: Kind,
        mutation: &Mutation,
        (offset, source, patience): (u32, &Source, Duration),
    ) -> Result<pb::WriteReplyMeta> {
        let mut head = patient(Head::new(kind, 0), patience).of_chunk(mutation.handle, mutation.version);
        head.offset = offset;
        let mut meta = pb::WriteMeta {
            request: Some(pb::RequestId { first_unacked: mutation.first_unacked, ..mutation.request.into() }),
            durability: mutation.durability.into(),
            ..Default::default()
        };
        let (frame, _) = match source {
            Source::Inline(payload) => {
                meta.length = payload.length();
                head.length = payload.length();
                let frame = Frame { crcs: payload.crcs_at(offset), ..Frame::new(head, &meta) };
                self.call(primary, frame, vec![payload.bytes.clone()]).await?
            }
            Source::Pushed(data, length) => {
                meta.length = *length;
                meta.data_id = data.bytes().to_vec().into();
                self.call(primary, Frame::new(head, &meta), Vec::new()).await?
            }
        };
        answer(&frame, Kind::Wrote)
    }

    /// Reads from a replica. With `verify` the server reads and checks every byte itself instead of sending the file as
    /// it is: asked for once after [`Error::Corrupt`], since a write in between looks the same as damage.
    ///
    /// # Errors
    /// As [`Links::call`]; [`Error::Corrupt`] also if the server found the damage.
    pub async fn read(
        &self,
        replica: &Peer,
        range: &Range,
        verify: bool,
        patience: Duration,
    ) -> Result<ReadReply> {
        self.ask_bytes(replica, Kind::Read, range, (verify, patience)).await
    }

    /// Fetches bytes of the primary's plan, to adopt them.
    ///
    /// # Errors
    /// As [`Links::call`].
    pub async fn fetch(&self, primary: &Peer, range: &Range, patience: Duration) -> Result<ReadReply> {
        self.ask_bytes(primary, Kind::Fetch, range, (true, patience)).await
    }

    async fn ask_bytes(
        &self,
        replica: &Peer,
        kind: Kind,
        range: &Range,
        (verify, patience): (bool, Duration),
    ) -> Result<ReadReply> {
        let mut head = patient(Head::new(kind, 0), patience).of_chunk(range.handle, range.version);
        head.offset = range.offset;
        head.length = range.length;
        let (frame, bytes) =
            self.call(replica, Frame::new(head, &pb::ReadMeta { verify }), Vec::new()).await?;
        if frame.head.offset != range.offset || frame.head.length > range.length {
            return Err(Error::internal("a read was answered with other bytes than were asked for"));
        }
        let meta: pb::ReadReplyMeta = answer(&frame, Kind::Data)?;
        Ok(ReadReply { bytes, committed_length: meta.committed_length, sealed: meta.sealed })
    }

    /// Asks the primary what is committed.
    ///
    /// # Errors
    /// As [`Links::call`].
    pub async fn committed(
        &self,
        primary: &Peer,
        handle: ChunkHandle,
        version: ChunkVersion,
        patience: Duration,
    ) -> Result<pb::CommittedReplyMeta> {
        let head = patient(Head::new(Kind::Committed, 0), patience).of_chunk(handle, version);
        let (frame, _) = self.call(primary, Frame::new(head, &()), Vec::new()).await?;
        answer(&frame, Kind::CommittedIs)
    }

    /// Asks a replica what became of a request.
    ///
    /// # Errors
    /// As [`Links::call`].
    #[expect(clippy::too_many_arguments, reason = "each names a part of the question")]
    pub async fn outcome(
        &self,
        replica: &Peer,
        handle: ChunkHandle,
        version: ChunkVersion,
        request: RequestId,
        patience: Duration,
    ) -> Result<pb::OutcomeReplyMeta> {
        let head = patient(Head::new(Kind::Outcome, 0), patience).of_chunk(handle, version);
        let meta = pb::WriteMeta { request: Some(request.into()), ..Default::default() };
        let (frame, _) = self.call(replica, Frame::new(head, &meta), Vec::new()).await?;
        answer(&frame, Kind::OutcomeIs)
    }

    /// Sends an ordered mutation from the primary to a member. `meta.data_id` empty: the payload goes along.
    ///
    /// # Errors
    /// As [`Links::call`].
    #[expect(clippy::too_many_arguments, reason = "each names a part of the question")]
    pub async fn apply(
        &self,
        member: &Peer,
        mut head: Head,
        meta: &pb::ApplyMeta,
        payload: Option<&Payload>,
        patience: Duration,
    ) -> Result<pb::ApplyReplyMeta> {
        head = patient(head, patience);
        let (frame, _) = match payload.filter(|_| meta.data_id.is_empty()) {
            Some(payload) => {
                head.length = payload.length();
                let frame = Frame { crcs: payload.crcs_at(head.offset), ..Frame::new(head, meta) };
                self.call(member, frame, vec![payload.bytes.clone()]).await?
            }
            None => self.call(member, Frame::new(head, meta), Vec::new()).await?,
        };
        answer(&frame, Kind::Applied)
    }
}

fn patient(mut head: Head, patience: Duration) -> Head {
    head.deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1);
    head
}

fn framed(mut head: Head, meta: &impl prost::Message, payload: &Payload) -> Frame {
    head.length = payload.length();
    Frame { crcs: payload.crcs.clone(), ..Frame::new(head, meta) }
}

/// The metadata of an answer of the expected kind.
fn answer<M: prost::Message + Default>(frame: &Frame, kind: Kind) -> Result<M> {
    if frame.head.kind == kind {
        frame.meta()
    } else {
        Err(Error::internal(format!("a {kind:?} was expected, a {:?} came", frame.head.kind)))
    }
}
