//! What clients and administrators ask.

use std::collections::BTreeSet;
use std::time::Duration;

use gfs_proto::id::{ChunkIndex, ChunkVersion, ClientId, EntryId, ServerId};
use gfs_proto::path::{FilePath, Name};
use gfs_proto::time::UnixMs;
use gfs_proto::{Error, Result, fault, pb};
use tonic::{Request, Response, Status};

use super::{Service, convert};
use crate::leader::Hint;
use crate::plan;
use crate::raft::{Member, ReadView};
use crate::state::{Applied, Chunk, Command, read};

/// Entries of a page when the caller leaves it to us, and at most.
const PAGE_DEFAULT: u32 = 1000;
const PAGE_MAX: u32 = 10_000;
/// Most steps that a status takes to count the chunks of a new master.
const COUNT_STEPS_MAX: u32 = 256;
/// Most chunks that one lookup locates.
const LOCATE_MAX: u32 = 1024;

type Answer<T> = Result<Response<T>, Status>;

/// How many entries a page has of which a client wants so many; 0: it does not say.
fn page_limit(wanted: u32) -> usize {
    (if wanted == 0 { PAGE_DEFAULT } else { wanted.min(PAGE_MAX) }) as usize
}

#[tonic::async_trait]
impl pb::master_server::Master for Service {
    async fn leader(&self, _: Request<pb::LeaderRequest>) -> Answer<pb::LeaderReply> {
        let leadership = self.node.leadership().borrow().clone();
        let member = |member: Member| pb::MasterMember {
            id: member.id.raw(),
            address: member.address,
            voter: member.voter,
        };
        Ok(Response::new(pb::LeaderReply {
            cluster: self.node.cluster().to_string(),
            term: leadership.term.raw(),
            leader: leadership.leader.map(|(_, address)| address).unwrap_or_default(),
            members: self.node.membership().into_iter().map(member).collect(),
        }))
    }

    async fn open_session(&self, request: Request<pb::OpenSessionRequest>) -> Answer<pb::OpenSessionReply> {
        let _permit = self.admit()?;
        let nonce = request.into_inner().nonce.as_ref().try_into();
        let nonce = nonce.map_err(|_| Error::bad_argument("the nonce of a session has 16 bytes"))?;
        let (rev, applied) = self.propose(None, 0, Command::OpenSession { nonce }).await?;
        let Applied::SessionOpened { client, expires_at } = applied else {
            return Err(convert::unexpected(&applied).into());
        };
        let settings = read::settings(&self.node.view()).map_err(Error::from)?;
        Ok(Response::new(pb::OpenSessionReply {
            client: client.raw(),
            expires_in_ms: self.until(expires_at).min(settings.session_ms),
            cluster: self.node.cluster().to_string(),
            chunk_bytes: settings.chunk_bytes.raw(),
            rev,
        }))
    }

    async fn renew_session(
        &self,
        request: Request<pb::RenewSessionRequest>,
    ) -> Answer<pb::RenewSessionReply> {
        let _permit = self.admit()?;
        let request = request.into_inner();
        let command = Command::RenewSession { client: ClientId::from_raw(request.client) };
        match self.propose(None, request.first_unacked, command).await? {
            (rev, Applied::SessionRenewed { expires_at }) => {
                // Never more than a session's life, also when the clock of a former leader was ahead of ours: chunks
                // forget request ids by that (decision 0012).
                let life_ms = read::settings(&self.node.view()).map_err(Error::from)?.session_ms;
                let expires_in_ms = self.until(expires_at).min(life_ms);
                Ok(Response::new(pb::RenewSessionReply { expires_in_ms, rev }))
            }
            (_, other) => Err(convert::unexpected(&other).into()),
        }
    }

    async fn mkdir(&self, request: Request<pb::MkdirRequest>) -> Answer<pb::EntryReply> {
        let request = request.into_inner();
        let command = Command::Mkdir { path: convert::path(&request.path)?, parents: request.parents };
        let made = self.mutate(request.request, command).await?;
        Ok(Response::new(convert::entry_reply(made)?))
    }

    async fn create(&self, request: Request<pb::CreateRequest>) -> Answer<pb::EntryReply> {
        let request = request.into_inner();
        let (path, replication) = (convert::path(&request.path)?, request.replication);
        let made = self.mutate(request.request, Command::Create { path, replication }).await?;
        Ok(Response::new(convert::entry_reply(made)?))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<pb::RevReply> {
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        let command = Command::Delete { path: path.clone(), recursive: request.recursive };
        let rev = self.unlink(request.request, &path, command).await?;
        Ok(Response::new(pb::RevReply { rev }))
    }

    async fn rename(&self, request: Request<pb::RenameRequest>) -> Answer<pb::RevReply> {
        let request = request.into_inner();
        let (source, target) = (convert::path(&request.source)?, convert::path(&request.target)?);
        // Mutant rename_in_two_entries: out of the way first, then to the target; somebody may look in between.
        let source = if fault::mutant("rename_in_two_entries") { self.aside(source).await? } else { source };
        let command = Command::Rename { source, target: target.clone(), replace: request.replace };
        let rev = if request.replace {
            self.unlink(request.request, &target, command).await?
        } else {
            self.mutate(request.request, command).await?.0
        };
        Ok(Response::new(pb::RevReply { rev }))
    }

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Answer<pb::EntryReply> {
        let request = request.into_inner();
        let (source, target) = (convert::path(&request.source)?, convert::path(&request.target)?);
        let entry = self.make_snapshot(request.request, source, target).await?;
        Ok(Response::new(entry))
    }

    async fn stat(&self, request: Request<pb::StatRequest>) -> Answer<pb::EntryReply> {
        let request = request.into_inner();
        let (entry, rev) = if request.id == 0 {
            let path = convert::path(&request.path)?;
            self.look_up(request.freshness, |view| read::stat(view, &path)).await?
        } else {
            let id = EntryId::from_raw(request.id);
            self.look_up(request.freshness, |view| read::entry(view, id)).await?
        };
        Ok(Response::new(pb::EntryReply { entry: Some(convert::entry(&entry)), rev }))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListReply> {
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        if !request.after.is_empty() {
            Name::parse(&request.after).map_err(|reason| Error::bad_path(&request.after, reason))?;
        }
        let page = |view: &ReadView| read::list(view, &path, &request.after, page_limit(request.limit));
        let (page, rev) = self.look_up(request.freshness, page).await?;
        let entries = page.items.iter().map(convert::entry).collect();
        Ok(Response::new(pb::ListReply { entries, more: page.more, rev }))
    }

    async fn list_trash(&self, request: Request<pb::ListTrashRequest>) -> Answer<pb::ListTrashReply> {
        let request = request.into_inner();
        let below = if request.path.is_empty() { FilePath::root() } else { convert::path(&request.path)? };
        let after = request.after.map(|at| (UnixMs::from_raw(at.collect_ms), EntryId::from_raw(at.id)));
        let clock = &self.environment.clock;
        let page =
            |view: &ReadView| read::restorable(view, clock.wall(), &below, after, page_limit(request.limit));
        let (page, rev) = self.look_up(request.freshness, page).await?;
        Ok(Response::new(convert::trash(&page, rev)))
    }

    async fn undelete(&self, request: Request<pb::UndeleteRequest>) -> Answer<pb::EntryReply> {
        let request = request.into_inner();
        let (entry, target) = (EntryId::from_raw(request.id), convert::path(&request.target)?);
        let restored = self.mutate(request.request, Command::Undelete { entry, target }).await?;
        Ok(Response::new(convert::entry_reply(restored)?))
    }

    async fn expedite(&self, request: Request<pb::ExpediteRequest>) -> Answer<pb::RevReply> {
        let request = request.into_inner();
        let command = Command::Expedite { entry: EntryId::from_raw(request.id) };
        let (rev, _) = self.mutate(request.request, command).await?;
        Ok(Response::new(pb::RevReply { rev }))
    }

    async fn add_chunk(&self, request: Request<pb::AddChunkRequest>) -> Answer<pb::AddChunkReply> {
        let request = request.into_inner();
        let reign = self.leader.reign()?;
        let file = EntryId::from_raw(request.file);
        if self.leader.granter().copies.is_held(file) {
            return Err(Error::Busy { what: "the file".into() }.into());
        }
        // A leader that has only begun may not have applied the file's creation: only a state that is surely new enough may
        // say that there is no such file.
        let expected_count = request.expected_count;
        let wanted = ChunkIndex::from_raw(expected_count);
        let look = |view: &ReadView| {
            Ok((read::file_by_id(view, file)?, read::file_chunks(view, file, wanted, 1)?.into_iter().next()))
        };
        let ((entry, there), _) = self.look_up(None, look).await?;
        let (index, handle) = match there {
            // Nothing is added, so it needs no command: also while nothing may grow.
            Some((index, chunk)) => (index, chunk.handle),
            None => {
                let (members, primary) = self.place(entry.replication)?;
                let command = Command::AddChunk { file, expected_count, members, primary };
                let (_, applied) = self.mutate(request.request, command).await?;
                let Applied::ChunkAdded { index, handle, .. } = applied else {
                    return Err(convert::unexpected(&applied).into());
                };
                (index, handle)
            }
        };
        let leased = self.leader.granter().find_lease_of(&reign, (file, index), handle, None).await?;
        let lease = Some(convert::lease(self.leader.granter(), &leased));
        let rev = self.granted_by();
        Ok(Response::new(pb::AddChunkReply { index: index.raw(), lease, rev }))
    }

    async fn find_lease(&self, request: Request<pb::FindLeaseRequest>) -> Answer<pb::FindLeaseReply> {
        let request = request.into_inner();
        let reign = self.leader.reign()?;
        // Whoever writes says which file: a handle alone may be of a chunk that no file has any more.
        if request.file == 0 {
            return Err(Error::bad_argument("a lease is asked for by file and chunk index").into());
        }
        let spot = (EntryId::from_raw(request.file), ChunkIndex::from_raw(request.index));
        let handle = |view: &ReadView| {
            let chunks = read::file_chunks(view, spot.0, spot.1, 1)?;
            Ok(chunks.first().map(|(_, chunk)| chunk.handle))
        };
        let (handle, _) = self.look_up(None, handle).await?;
        let what = || format!("chunk {} of file {}", request.index, request.file);
        let handle = handle.ok_or_else(|| Error::NotFound { what: what() })?;
        let server = Some(ServerId::from_raw(request.failed_server)).filter(|server| server.raw() != 0);
        let version = ChunkVersion::from_raw(request.failed_version);
        let is_of_it = request.handle == 0 || request.handle == handle.raw();
        let hint = (version != ChunkVersion::NONE && is_of_it).then_some(Hint { version, server });
        let granter = self.leader.granter();
        let leased = granter.find_lease_of(&reign, spot, handle, hint).await?;
        let lease = Some(convert::lease(self.leader.granter(), &leased));
        Ok(Response::new(pb::FindLeaseReply { lease, rev: self.granted_by() }))
    }

    async fn locate(&self, request: Request<pb::LocateRequest>) -> Answer<pb::LocateReply> {
        let request = request.into_inner();
        let (file, first) = (EntryId::from_raw(request.file), ChunkIndex::from_raw(request.first));
        let count = request.count.clamp(1, LOCATE_MAX) as usize;
        let found = |view: &ReadView| {
            let chunk_count = read::file_by_id(view, file)?.chunk_count;
            Ok((chunk_count, read::file_chunks(view, file, first, count)?))
        };
        let ((chunk_count, chunks), rev) = self.look_up(request.freshness, found).await?;
        let chunks = chunks.iter().map(|(index, chunk)| self.location(*index, chunk)).collect();
        Ok(Response::new(pb::LocateReply { chunks, chunk_count, rev }))
    }

    async fn check_chunks(&self, request: Request<pb::CheckChunksRequest>) -> Answer<pb::CheckChunksReply> {
        Ok(Response::new(self.check(request.into_inner()).await?))
    }

    async fn inspect_chunk(
        &self,
        request: Request<pb::InspectChunkRequest>,
    ) -> Answer<pb::InspectChunkReply> {
        Ok(Response::new(self.inspect(request.into_inner()).await?))
    }

    async fn accept_replica(
        &self,
        request: Request<pb::AcceptReplicaRequest>,
    ) -> Answer<pb::AcceptReplicaReply> {
        Ok(Response::new(self.accept(request.into_inner()).await?))
    }

    async fn cluster_status(&self, _: Request<pb::ClusterStatusRequest>) -> Answer<pb::ClusterStatusReply> {
        self.leader.reign()?;
        let (counters, rev) = self.look_up(None, |view| read::counters(view)).await?;
        let leadership = self.node.leadership().borrow().clone();
        let settings = read::settings(&self.node.view()).map_err(Error::from)?;
        // Promise P9: counted from what the servers reported, never from what was configured.
        let mut counted = false;
        for _ in 0..COUNT_STEPS_MAX {
            counted = self.leader.soft().with(|cluster, view, now| cluster.is_counted(view, now));
            if counted {
                break;
            }
            tokio::task::yield_now().await;
        }
        let counted = counted && self.leader.soft().has_heard_everybody()?;
        let (below, without) = self.leader.soft().with(|cluster, _, _| {
            let without = cluster.weak().values().filter(|weakness| weakness.live == 0).count();
            (cluster.weak().len(), without)
        });
        Ok(Response::new(pb::ClusterStatusReply {
            cluster: self.node.cluster().to_string(),
            term: leadership.term.raw(),
            leader: leadership.leader.map(|(_, address)| address).unwrap_or_default(),
            masters: self.master_statuses(),
            servers: self.server_statuses()?,
            chunks: counters.chunks,
            chunks_below_goal: below as u64,
            chunks_without_replica: without as u64,
            files: counters.files,
            directories: counters.directories,
            rev,
            chunk_bytes: settings.chunk_bytes.raw().into(),
            counted,
        }))
    }

    async fn disk_free(&self, _: Request<pb::DiskFreeRequest>) -> Answer<pb::DiskFreeReply> {
        self.leader.reign()?;
        let ((), rev) = self.look_up(None, |_| Ok(())).await?;
        Ok(Response::new(pb::DiskFreeReply { servers: self.server_statuses()?, rev }))
    }
}

impl Service {
    /// Moves something beside itself: the first half of mutant rename_in_two_entries.
    async fn aside(&self, source: FilePath) -> Result<FilePath> {
        let target = convert::path(&format!("{source}.moving"))?;
        let command = Command::Rename { source, target: target.clone(), replace: false };
        self.propose(None, 0, command).await?;
        Ok(target)
    }
    /// A log index at which a lease that was just found is granted. Who writes by it must not be told by an older state that
    /// the chunk has never had one (promise P8).
    fn granted_by(&self) -> u64 {
        self.node.view().applied().raw()
    }
    /// Milliseconds from now to a date.
    fn until(&self, date: UnixMs) -> u64 {
        let left = date.since(self.environment.clock.wall());
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    /// Where the replicas of a new chunk go, the first of them as the primary.
    fn place(&self, goal: u32) -> Result<(Vec<ServerId>, ServerId)> {
        let salt = self.environment.random.bits64();
        self.leader.soft().with(|cluster, view, now| {
            let chunk_bytes = read::settings(view)?.chunk_bytes.raw();
            let candidates = cluster.candidates(chunk_bytes, &BTreeSet::new(), now);
            let members = plan::placement::pick(&candidates, &[], goal as usize, salt);
            match members.first().copied() {
                Some(primary) if members.len() == goal as usize => {
                    cluster.placed(&members);
                    Ok((members, primary))
                }
                Some(_) | None => {
                    let alive = u32::try_from(members.len()).unwrap_or(u32::MAX);
                    Err(Error::NotEnoughServers { wanted: goal, alive })
                }
            }
        })
    }

    /// Where a chunk can be read.
    fn location(&self, index: ChunkIndex, chunk: &Chunk) -> pb::ChunkLocation {
        let salt = self.environment.random.bits64();
        let mut alive: Vec<ServerId> = self.leader.soft().with(|cluster, _, now| {
            chunk.members.iter().copied().filter(|server| cluster.is_alive(*server, now)).collect()
        });
        // Until distances are known, readers spread over the replicas.
        alive.sort_by_key(|server| plan::mix(salt, server.raw()));
        let wall = self.environment.clock.wall();
        let running = chunk.lease.as_ref().filter(|lease| lease.expires_at > wall);
        pb::ChunkLocation {
            index: index.raw(),
            handle: chunk.handle.raw(),
            version: chunk.confirmed.raw(),
            replicas: alive.into_iter().map(|server| self.leader.granter().replica(server)).collect(),
            goal: chunk.goal,
            primary: running.map(|lease| lease.primary.raw()).unwrap_or_default(),
        }
    }

    fn master_statuses(&self) -> Vec<pb::MasterStatus> {
        let lags = self.node.lags();
        let (own, leads) = (self.node.id(), self.leader.reign().is_ok());
        let lag = |id| match lags.iter().find(|(member, _)| *member == id) {
            Some((_, lag)) => Some(*lag),
            None => (leads && id == own).then_some(0),
        };
        let status = |member: Member| pb::MasterStatus {
            id: member.id.raw(),
            lag: lag(member.id),
            free_bytes: self.node.free_bytes(member.id),
            address: member.address,
            voter: member.voter,
        };
        self.node.membership().into_iter().map(status).collect()
    }

    /// Every chunkserver of the cluster, with what is known of it here.
    fn server_statuses(&self) -> Result<Vec<pb::ServerStatus>> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.leader.soft().with(|cluster, view, now| {
            let status = |row: crate::state::Server| {
                let known = cluster.server(row.server);
                let space = known.map(|known| known.space).unwrap_or_default();
                pb::ServerStatus {
                    id: row.server.raw(),
                    address: known.map_or(row.address, |known| known.address.clone()),
                    rack: known.map_or(row.rack, |known| known.rack.clone()),
                    alive: known.is_some_and(|known| known.is_alive(now)),
                    last_heartbeat_ms: known.map_or(u64::MAX, |known| millis(now.since(known.heard))),
                    chunks: known.map_or(0, |known| known.replicas.len() as u64),
                    total_bytes: space.total_bytes,
                    free_bytes: space.free_bytes,
                    used_bytes: space.used_bytes,
                }
            };
            Ok(read::servers(view)?.into_iter().map(status).collect())
        })
    }
}
