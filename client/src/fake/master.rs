//! A master: a namespace of files, grants at once, stored replies.

use futures::StreamExt;
use gfs_proto::leader::{CLUSTER_KEY, REV_KEY};
use gfs_proto::net::Net;
use gfs_proto::pb::master_server::{Master, MasterServer};
use gfs_proto::{Error, pb};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{CHUNK_BYTES, Cluster, Fake, Verdict, cluster_of, replica};

pub(super) async fn serve(fake: Fake, id: u64) {
    let listener = fake.net.listen(&format!("m{id}:1")).await.unwrap();
    let incoming = futures::stream::unfold(listener, |mut listener| async move {
        let accepted = listener.accept().await;
        Some((accepted, listener))
    });
    let door = fake.clone();
    let check = move |request: Request<()>| {
        let meant = request.metadata().get(CLUSTER_KEY).map(|value| value.to_str().unwrap().to_owned());
        let (ours, looks) = door.with(|cluster| (cluster_of(cluster, id), !cluster.answers_everybody));
        let ours = ours.to_string();
        match meant.filter(|_| looks) {
            Some(theirs) if theirs != ours => Err(Error::WrongCluster { ours, theirs }.into()),
            Some(_) | None => Ok(request),
        }
    };
    let service = MasterServer::with_interceptor(FakeMaster { fake, id }, check);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming.boxed())
        .await
        .unwrap();
}

struct FakeMaster {
    fake: Fake,
    id: u64,
}

impl FakeMaster {
    /// Carries a call out, as far as its verdict lets it.
    async fn call<T>(
        &self,
        name: &str,
        answer: impl FnOnce(&mut Cluster) -> Result<T, Error>,
    ) -> Result<Response<T>, Status> {
        let verdict = self.fake.verdict(&format!("m{} {name}", self.id));
        if let Verdict::Refuse(error) = verdict {
            return Err(error.into());
        }
        let (leader, foreign) =
            self.fake.with(|cluster| (cluster.leader, cluster.foreign.contains(&self.id)));
        if leader != self.id && !foreign {
            return Err(Error::NotLeader { leader: Some(format!("m{leader}:1")) }.into());
        }
        if verdict == Verdict::Silence {
            futures::future::pending::<()>().await;
        }
        let answer = self.fake.with(answer);
        if verdict == Verdict::LoseReply {
            return Err(Status::unavailable("the connection broke"));
        }
        answer.map(Response::new).map_err(|error| {
            let mut status = Status::from(error);
            status.metadata_mut().insert(REV_KEY, self.fake.with(|cluster| cluster.rev).into());
            status
        })
    }

    /// Carries a mutation out once for each request id.
    async fn change<T: Message + Default>(
        &self,
        name: &str,
        request: Option<pb::RequestId>,
        change: impl FnOnce(&mut Cluster) -> Result<T, Error>,
    ) -> Result<Response<T>, Status> {
        let request = request.unwrap();
        let key = (request.client, request.sequence);
        let name = format!("{name} {}:{}", request.client, request.sequence);
        self.call(&name, |cluster| {
            cluster.first_unacked = request.first_unacked;
            if cluster.expired.contains(&request.client) {
                return Err(Error::SessionExpired {
                    client: gfs_proto::id::ClientId::from_raw(request.client),
                });
            }
            if !cluster.replies.contains_key(&key) {
                let reply = change(cluster).map(|reply| reply.encode_to_vec().into());
                cluster.replies.insert(key, reply);
            }
            cluster.replies[&key].clone().map(|reply| T::decode(reply).unwrap())
        })
        .await
    }
}

fn not_found(what: &str) -> Error {
    Error::NotFound { what: what.to_owned() }
}

fn entry(cluster: &Cluster, id: u64, name: &str) -> Option<pb::Entry> {
    Some(pb::Entry {
        id,
        kind: pb::EntryKind::File.into(),
        replication: 3,
        chunk_count: u32::try_from(cluster.files[&id].len()).unwrap(),
        name: name.rsplit('/').next().unwrap().to_owned(),
        ..Default::default()
    })
}

#[tonic::async_trait]
impl Master for FakeMaster {
    async fn leader(&self, _: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderReply>, Status> {
        let verdict = self.fake.verdict(&format!("m{} leader", self.id));
        if let Verdict::Refuse(error) = verdict {
            return Err(error.into());
        }
        let (leader, members, cluster) = self.fake.with(|cluster| {
            (cluster.leader, cluster.masters.clone(), cluster_of(cluster, self.id).to_string())
        });
        let member = |id: u64| pb::MasterMember { address: format!("m{id}:1"), ..Default::default() };
        let members = members.into_iter().map(member).collect();
        let leader = format!("m{leader}:1");
        Ok(Response::new(pb::LeaderReply { cluster, leader, members, ..Default::default() }))
    }
    async fn open_session(
        &self,
        request: Request<pb::OpenSessionRequest>,
    ) -> Result<Response<pb::OpenSessionReply>, Status> {
        self.call("open_session", |cluster| {
            let next = cluster.nonces.len() as u64 + 1;
            let client = *cluster.nonces.entry(request.into_inner().nonce).or_insert(next);
            Ok(pb::OpenSessionReply {
                client,
                expires_in_ms: cluster.session_ms,
                cluster: cluster_of(cluster, self.id).to_string(),
                chunk_bytes: CHUNK_BYTES,
                rev: cluster.next_rev(),
            })
        })
        .await
    }
    async fn renew_session(
        &self,
        request: Request<pb::RenewSessionRequest>,
    ) -> Result<Response<pb::RenewSessionReply>, Status> {
        let pb::RenewSessionRequest { client, first_unacked } = request.into_inner();
        self.call("renew_session", |cluster| {
            if cluster.expired.contains(&client) {
                return Err(Error::SessionExpired { client: gfs_proto::id::ClientId::from_raw(client) });
            }
            cluster.first_unacked = first_unacked;
            Ok(pb::RenewSessionReply { expires_in_ms: cluster.session_ms, rev: cluster.next_rev() })
        })
        .await
    }
    async fn mkdir(&self, request: Request<pb::MkdirRequest>) -> Result<Response<pb::EntryReply>, Status> {
        let request = request.into_inner();
        self.change("mkdir", request.request, |_| Err(not_found("mkdir"))).await
    }
    async fn create(&self, request: Request<pb::CreateRequest>) -> Result<Response<pb::EntryReply>, Status> {
        let pb::CreateRequest { request, path, .. } = request.into_inner();
        self.change("create", request, |cluster| {
            if cluster.names.contains_key(&path) {
                return Err(Error::AlreadyExists { path });
            }
            let id = cluster.files.len() as u64 + 10;
            cluster.files.insert(id, Vec::new());
            cluster.names.insert(path.clone(), id);
            Ok(pb::EntryReply { entry: entry(cluster, id, &path), rev: cluster.next_rev() })
        })
        .await
    }
    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::RevReply>, Status> {
        let pb::DeleteRequest { request, path, .. } = request.into_inner();
        self.change("delete", request, |cluster| {
            let id = cluster.names.remove(&path).ok_or_else(|| not_found(&path))?;
            cluster.trash.push((id, path));
            Ok(pb::RevReply { rev: cluster.next_rev() })
        })
        .await
    }
    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<pb::EntryReply>, Status> {
        Err(Status::unimplemented("no snapshots here"))
    }
    async fn rename(&self, request: Request<pb::RenameRequest>) -> Result<Response<pb::RevReply>, Status> {
        let pb::RenameRequest { request, source, target, replace } = request.into_inner();
        self.change("rename", request, |cluster| {
            if cluster.names.contains_key(&target) && !replace {
                return Err(Error::AlreadyExists { path: target });
            }
            let id = cluster.names.remove(&source).ok_or_else(|| not_found(&source))?;
            cluster.names.insert(target, id);
            Ok(pb::RevReply { rev: cluster.next_rev() })
        })
        .await
    }
    async fn stat(&self, request: Request<pb::StatRequest>) -> Result<Response<pb::EntryReply>, Status> {
        let request = request.into_inner();
        let floor = request.freshness.unwrap_or_default().min_rev;
        self.call("stat", |cluster| {
            cluster.floors.push(floor);
            let id = *cluster.names.get(&request.path).ok_or_else(|| not_found(&request.path))?;
            Ok(pb::EntryReply { entry: entry(cluster, id, &request.path), rev: cluster.next_rev() })
        })
        .await
    }
    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        let request = request.into_inner();
        self.call("list", |cluster| {
            let after = format!("/{}", request.after);
            let mut names: Vec<_> = cluster.names.iter().filter(|(name, _)| **name > after).collect();
            let more = names.len() > 2;
            names.truncate(2);
            let entries = names.into_iter().filter_map(|(name, id)| entry(cluster, *id, name)).collect();
            Ok(pb::ListReply { entries, more, rev: 0 })
        })
        .await
    }
    async fn list_trash(
        &self,
        request: Request<pb::ListTrashRequest>,
    ) -> Result<Response<pb::ListTrashReply>, Status> {
        let request = request.into_inner();
        self.call("list_trash", |cluster| {
            // Pages of two, whether they are wanted or not.
            let from = request.after.map_or(0, |after| usize::try_from(after.collect_ms).unwrap() + 1);
            let page = (0..).zip(&cluster.trash).skip(from).take(2);
            let wanted = page.filter(|(_, (_, path))| path.starts_with(&request.path));
            let entries = wanted.map(|(date, (id, path))| pb::TrashEntry {
                entry: entry(cluster, *id, ""),
                path: path.clone(),
                deleted_ms: date,
                collect_ms: date,
            });
            let end = from + 1;
            let next = (end + 1 < cluster.trash.len())
                .then(|| pb::TrashCursor { collect_ms: u64::try_from(end).unwrap(), id: 0 });
            Ok(pb::ListTrashReply { entries: entries.collect(), next, rev: 0 })
        })
        .await
    }
    async fn undelete(
        &self,
        request: Request<pb::UndeleteRequest>,
    ) -> Result<Response<pb::EntryReply>, Status> {
        let pb::UndeleteRequest { request, id, target } = request.into_inner();
        self.change("undelete", request, |cluster| {
            if cluster.names.contains_key(&target) {
                return Err(Error::AlreadyExists { path: target });
            }
            let at = cluster.trash.iter().position(|(found, _)| *found == id);
            cluster.trash.remove(at.ok_or_else(|| not_found("in the trash"))?);
            cluster.names.insert(target.clone(), id);
            Ok(pb::EntryReply { entry: entry(cluster, id, &target), rev: cluster.next_rev() })
        })
        .await
    }
    async fn expedite(
        &self,
        request: Request<pb::ExpediteRequest>,
    ) -> Result<Response<pb::RevReply>, Status> {
        let pb::ExpediteRequest { request, id } = request.into_inner();
        self.change("expedite", request, |cluster| {
            let at = cluster.trash.iter().position(|(found, _)| *found == id);
            cluster.trash.remove(at.ok_or_else(|| not_found("in the trash"))?);
            Ok(pb::RevReply { rev: cluster.next_rev() })
        })
        .await
    }
    async fn add_chunk(
        &self,
        request: Request<pb::AddChunkRequest>,
    ) -> Result<Response<pb::AddChunkReply>, Status> {
        let pb::AddChunkRequest { request, file, expected_count } = request.into_inner();
        self.change(&format!("add_chunk {expected_count}"), request, |cluster| {
            let count = cluster.files.get(&file).ok_or_else(|| not_found("file"))?.len();
            if count == expected_count as usize {
                let handle = cluster.new_chunk();
                cluster.files.get_mut(&file).unwrap().push(handle);
            }
            let handle = cluster.files[&file][expected_count as usize];
            let rev = cluster.next_rev();
            Ok(pb::AddChunkReply { index: expected_count, lease: Some(cluster.lease(handle)), rev })
        })
        .await
    }
    async fn find_lease(
        &self,
        request: Request<pb::FindLeaseRequest>,
    ) -> Result<Response<pb::FindLeaseReply>, Status> {
        let request = request.into_inner();
        let name = format!("find_lease v{} s{}", request.failed_version, request.failed_server);
        self.call(&name, |cluster| {
            let file = cluster.files.get(&request.file).ok_or_else(|| not_found("file"))?;
            let handle = *file.get(request.index as usize).ok_or_else(|| not_found("chunk"))?;
            // Who is accused and there is well.
            let accused = request.failed_server;
            let is_well = accused != 0 && !cluster.dead.contains(&accused);
            if cluster.chunks[&handle].version == request.failed_version && !is_well {
                cluster.regrant(handle);
            }
            Ok(pb::FindLeaseReply { lease: Some(cluster.lease(handle)), rev: cluster.next_rev() })
        })
        .await
    }
    async fn locate(&self, request: Request<pb::LocateRequest>) -> Result<Response<pb::LocateReply>, Status> {
        let request = request.into_inner();
        self.call("locate", |cluster| {
            let handles = cluster.files.get(&request.file).ok_or_else(|| not_found("file"))?;
            let chunks = handles.iter().enumerate().skip(request.first as usize).take(request.count as usize);
            let chunks = chunks.map(|(index, handle)| pb::ChunkLocation {
                index: u32::try_from(index).unwrap(),
                handle: *handle,
                version: cluster.chunks[handle].version,
                replicas: cluster.chunks[handle]
                    .members
                    .iter()
                    .filter(|server| !cluster.dead.contains(server))
                    .map(|server| replica(*server))
                    .collect(),
                goal: 3,
                primary: 0,
            });
            let chunks = chunks.collect();
            let chunk_count = u32::try_from(handles.len()).unwrap();
            Ok(pb::LocateReply { chunks, chunk_count, rev: cluster.next_rev() })
        })
        .await
    }
    async fn check_chunks(
        &self,
        request: Request<pb::CheckChunksRequest>,
    ) -> Result<Response<pb::CheckChunksReply>, Status> {
        let request = request.into_inner();
        self.call("check_chunks", |cluster| {
            let count = cluster.files.get(&request.file).ok_or_else(|| not_found("file"))?.len();
            let chunk_count = u32::try_from(count).unwrap();
            let checked = chunk_count.saturating_sub(request.first).min(request.count);
            let (counted, rev) = (true, cluster.next_rev());
            Ok(pb::CheckChunksReply { checked, chunk_count, counted, rev, ..Default::default() })
        })
        .await
    }
    async fn inspect_chunk(
        &self,
        request: Request<pb::InspectChunkRequest>,
    ) -> Result<Response<pb::InspectChunkReply>, Status> {
        let handle = request.into_inner().handle;
        self.call("inspect_chunk", |cluster| {
            let found = cluster.chunks.get(&handle).ok_or_else(|| not_found("chunk"))?;
            let chunk = Some(pb::CheckedChunk { handle, version: found.version, ..Default::default() });
            Ok(pb::InspectChunkReply { chunk, rev: cluster.next_rev() })
        })
        .await
    }
    async fn accept_replica(
        &self,
        request: Request<pb::AcceptReplicaRequest>,
    ) -> Result<Response<pb::AcceptReplicaReply>, Status> {
        let pb::AcceptReplicaRequest { request, handle, version, server, .. } = request.into_inner();
        self.change("accept_replica", request, |cluster| {
            let rev = cluster.next_rev();
            let chunk = cluster.chunks.get_mut(&handle).ok_or_else(|| not_found("chunk"))?;
            if chunk.version != version {
                return Err(Error::bad_argument("another version"));
            }
            chunk.version += 1;
            chunk.members = vec![server];
            Ok(pb::AcceptReplicaReply { version: chunk.version, rev })
        })
        .await
    }
    async fn cluster_status(
        &self,
        _: Request<pb::ClusterStatusRequest>,
    ) -> Result<Response<pb::ClusterStatusReply>, Status> {
        self.call("cluster_status", |_| Ok(pb::ClusterStatusReply::default())).await
    }
    async fn disk_free(
        &self,
        _: Request<pb::DiskFreeRequest>,
    ) -> Result<Response<pb::DiskFreeReply>, Status> {
        self.call("disk_free", |_| Ok(pb::DiskFreeReply::default())).await
    }
}
