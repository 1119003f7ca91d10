//! A chunkserver's data plane.

use bytes::Bytes;
use gfs_proto::frame::{self, Frame, Head, Kind};
use gfs_proto::id::{ChunkHandle, ChunkVersion, DataId, RequestId, ServerId};
use gfs_proto::net::{Connection, Net};
use gfs_proto::{Error, pb};

use super::{CHUNK_BYTES, Cluster, Fake, Verdict, cluster_id};

pub(super) async fn serve(fake: Fake, id: u64) {
    let mut listener = fake.net.listen(&format!("s{id}:1")).await.unwrap();
    while let Ok(connection) = listener.accept().await {
        tokio::spawn(converse(fake.clone(), id, connection));
    }
}

async fn converse(fake: Fake, id: u64, mut connection: Connection) {
    while let Ok(Some(question)) = frame::read_frame(&mut connection).await {
        let Ok(payload) = frame::read_payload(&mut connection, &question).await else { return };
        if fake.with(|cluster| cluster.dead.contains(&id)) {
            return;
        }
        if question.head.kind == Kind::Hello {
            let hello = pb::HelloMeta { cluster: cluster_id().to_string(), server: 0, from: id };
            let answer = Frame::new(Head::new(Kind::Hello, 0), &hello);
            frame::write_frame(&mut connection, &answer, &[]).await.unwrap();
            continue;
        }
        let head = &question.head;
        let name = format!("{:?}", head.kind).to_lowercase();
        let length = if head.kind == Kind::Read {
            head.length
        } else {
            question.meta::<pb::WriteMeta>().map_or(head.length, |meta| meta.length.max(head.length))
        };
        let verify = match question.meta::<pb::ReadMeta>() {
            Ok(meta) if head.kind == Kind::Read && meta.verify => " verified",
            _ => "",
        };
        let call = format!("s{id} {name} {} {}+{length}{verify}", head.handle, head.offset);
        let verdict = fake.verdict(&call);
        let request = head.request;
        let answer = match &verdict {
            Verdict::Refuse(error) => Err(error.clone()),
            Verdict::Silence => continue,
            Verdict::Go | Verdict::LoseReply | Verdict::Corrupt => {
                fake.with(|cluster| answer(cluster, id, &question, payload.unwrap()))
            }
        };
        if verdict == Verdict::LoseReply {
            return;
        }
        let (mut answer, mut payload) =
            answer.unwrap_or_else(|error| (Frame::failed(request, &error), Vec::new()));
        answer.head.request = request;
        if verdict == Verdict::Corrupt {
            *payload.last_mut().unwrap() ^= 1;
        }
        if frame::write_frame(&mut connection, &answer, &payload).await.is_err() {
            return;
        }
    }
}

type Answer = Result<(Frame, Vec<u8>), Error>;

#[expect(clippy::wildcard_enum_match_arm, reason = "a client asks nothing else")]
fn answer(cluster: &mut Cluster, id: u64, question: &Frame, payload: Bytes) -> Answer {
    if question.head.kind == Kind::Push {
        return push(cluster, id, question, payload);
    }
    let (handle, version) = (question.head.handle, question.head.version);
    let chunk = cluster.chunks.get(&handle.raw()).ok_or(Error::NoSuchChunk { handle })?;
    if !chunk.members.contains(&id) {
        return Err(Error::NoSuchChunk { handle });
    }
    if chunk.version != version.raw() {
        let here = ChunkVersion::from_raw(chunk.version);
        return Err(Error::VersionMismatch { handle, asked: version, here });
    }
    match question.head.kind {
        Kind::Read => read(cluster, question),
        Kind::Write | Kind::Append => mutate(cluster, id, question, payload),
        Kind::Outcome => outcome(cluster, question),
        other => Err(Error::bad_argument(format!("{other:?}"))),
    }
}

fn push(cluster: &mut Cluster, id: u64, question: &Frame, payload: Bytes) -> Answer {
    let meta: pb::PushMeta = question.meta()?;
    for server in std::iter::once(id).chain(meta.chain.iter().map(|replica| replica.server)) {
        if cluster.dead.contains(&server) {
            let handle = question.head.handle;
            return Err(Error::MemberFailed { handle, server: ServerId::from_raw(server) });
        }
        cluster.buffers.insert((server, meta.data_id.clone()), payload.clone());
    }
    let held = cluster.buffers.iter().filter(|((server, _), _)| *server == id);
    let held = held.map(|(_, bytes)| bytes.len()).sum();
    cluster.buffered_max = cluster.buffered_max.max(held);
    Ok((Frame::new(Head::new(Kind::Done, 0), &()), Vec::new()))
}

fn read(cluster: &Cluster, question: &Frame) -> Answer {
    let chunk = &cluster.chunks[&question.head.handle.raw()];
    let start = (question.head.offset as usize).min(chunk.bytes.len());
    let end = (start + question.head.length as usize).min(chunk.bytes.len());
    let meta = pb::ReadReplyMeta {
        committed_length: u32::try_from(chunk.bytes.len()).unwrap(),
        sealed: chunk.sealed,
    };
    let mut head = Head::new(Kind::Data, 0);
    head.offset = question.head.offset;
    let bytes = chunk.bytes[start..end].to_vec();
    Ok((Frame::with_payload(head, &meta, &bytes), bytes))
}

fn outcome(cluster: &Cluster, question: &Frame) -> Answer {
    let meta: pb::WriteMeta = question.meta()?;
    let chunk = &cluster.chunks[&question.head.handle.raw()];
    let offset = chunk.requests.get(&meta.request.unwrap().into()).copied();
    let meta = pb::OutcomeReplyMeta { offset, sealed: chunk.sealed };
    Ok((Frame::new(Head::new(Kind::OutcomeIs, 0), &meta), Vec::new()))
}

fn mutate(cluster: &mut Cluster, id: u64, question: &Frame, payload: Bytes) -> Answer {
    let meta: pb::WriteMeta = question.meta()?;
    let handle: ChunkHandle = question.head.handle;
    let request: RequestId = meta.request.unwrap().into();
    let numbers = meta.request.map(|id| (id.sequence & !(1 << 63), id.first_unacked & !(1 << 63))).unwrap();
    cluster.data_requests.push(numbers);
    let chunk = &cluster.chunks[&handle.raw()];
    let members = chunk.members.clone();
    if members[0] != id {
        return Err(Error::NotPrimary { handle, version: question.head.version });
    }
    let offset = match chunk.requests.get(&request) {
        Some(offset) => *offset,
        None => {
            if let Some(failed) = members.iter().find(|server| cluster.dead.contains(server)) {
                return Err(Error::MemberFailed { handle, server: ServerId::from_raw(*failed) });
            }
            let data = match meta.data_id.is_empty() {
                true => payload,
                false => take_pushed(cluster, &members, &meta.data_id)?,
            };
            let append = question.head.kind == Kind::Append;
            apply(cluster, (handle, request), (append, question.head.offset), &data)?
        }
    };
    let committed_length = u32::try_from(cluster.chunks[&handle.raw()].bytes.len()).unwrap();
    let meta = pb::WriteReplyMeta { offset, committed_length };
    Ok((Frame::new(Head::new(Kind::Wrote, 0), &meta), Vec::new()))
}

fn take_pushed(cluster: &mut Cluster, members: &[u64], data: &Bytes) -> Result<Bytes, Error> {
    let mut found = None;
    for server in members {
        let taken = cluster.buffers.remove(&(*server, data.clone()));
        found = Some(taken.ok_or(Error::DataUnknown { data: DataId::from_slice(data).unwrap() })?);
    }
    Ok(found.unwrap())
}

fn apply(
    cluster: &mut Cluster,
    (handle, request): (ChunkHandle, RequestId),
    (append, offset): (bool, u32),
    data: &[u8],
) -> Result<u32, Error> {
    let chunk = cluster.chunks.get_mut(&handle.raw()).unwrap();
    if chunk.sealed {
        return Err(Error::Sealed { handle });
    }
    let offset = if append { chunk.bytes.len() } else { offset as usize };
    if append && offset + data.len() > CHUNK_BYTES as usize {
        // Padding has no bytes: what lies between here and the chunk's end reads as zeros.
        chunk.sealed = true;
        return Err(Error::Sealed { handle });
    }
    if !data.is_empty() {
        let end = offset + data.len();
        chunk.bytes.resize(chunk.bytes.len().max(end), 0);
        chunk.bytes[offset..end].copy_from_slice(data);
    }
    let offset = u32::try_from(offset).unwrap();
    chunk.requests.insert(request, offset);
    Ok(offset)
}
