//! A naive model of the state: everything in maps, files by their full paths.

mod build;
mod snapshot;

pub(super) use build::ModelBuild;
use std::collections::BTreeMap;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, ClientId, EntryId, ServerId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use super::script::{SESSION_MS, TRASH_MS};
use crate::state::reply::GrantRule;
use crate::state::{Applied, Command, Entry, EntryKind, Place, Proposal, Rejected};

type Answer = Result<Applied, Rejected>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) entry: Entry,
    pub(super) chunks: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ModelChunk {
    pub(super) version: u64,
    pub(super) confirmed: u64,
    pub(super) members: Vec<u64>,
    /// Members, primary, writer.
    pub(super) pending: Option<(Vec<u64>, u64, bool)>,
    pub(super) lease: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub(super) struct ModelSession {
    nonce: u8,
    expires_at: u64,
    first_unacked: u64,
    replies: BTreeMap<u64, (u8, u64, Answer)>,
}

/// Everything by its full path; whatever moves is renamed one by one.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) now: u64,
    pub(super) index: u64,
    pub(super) tree: BTreeMap<String, Node>,
    /// Date, id, and the tree below, its root at "".
    pub(super) trash: BTreeMap<(u64, u64), BTreeMap<String, Node>>,
    pub(super) chunks: BTreeMap<u64, ModelChunk>,
    /// Copy to old chunk and its version.
    pub(super) origins: BTreeMap<u64, (u64, u64)>,
    pub(super) next_chunk: u64,
    /// The snapshot of a large tree that is being built.
    pub(super) build: Option<ModelBuild>,
    /// Chunks of copies that nobody sees: being built, or given up and not yet collected.
    pub(super) staged: Vec<u64>,
    /// The next command gets this answer.
    pub(super) forced: Option<Rejected>,
    pub(super) sessions: BTreeMap<u64, ModelSession>,
    /// Every session ever opened, in order.
    pub(super) opened: Vec<u64>,
    pub(super) next_entry: u64,
}

impl Model {
    pub(super) fn new() -> Self {
        Self { index: 5, next_entry: 2, next_chunk: 1, ..Self::default() }
    }

    /// Carries a proposal out: the index it was decided at, and the answer.
    pub(super) fn propose(&mut self, proposal: &Proposal) -> (u64, Answer) {
        self.index += 1;
        let now = self.now.max(proposal.now.raw());
        let Some(request) = proposal.request else {
            self.now = now;
            return (self.index, self.attempt(proposal));
        };
        let tag = proposal.command.tag();
        let session = match self.sessions.get_mut(&request.client.raw()) {
            None => return (self.index, Err(Rejected::SessionExpired { client: request.client })),
            Some(session) if request.sequence < session.first_unacked => {
                return (self.index, Err(Rejected::AlreadyAcknowledged { request }));
            }
            Some(session) => session,
        };
        if let Some((stored, index, answer)) = session.replies.get(&request.sequence) {
            if *stored != tag {
                return (self.index, Err(Rejected::RequestReused { request }));
            }
            self.now = now;
            return (*index, answer.clone());
        }
        let first = proposal.first_unacked.min(request.sequence).max(session.first_unacked);
        session.first_unacked = first;
        session.replies.retain(|sequence, _| *sequence >= first);
        self.now = now;
        self.touch(request.client.raw());
        let answer = self.attempt(proposal);
        if let Some(session) = self.sessions.get_mut(&request.client.raw())
            && !answer.as_ref().is_err_and(Rejected::is_undecided)
        {
            session.replies.insert(request.sequence, (tag, self.index, answer.clone()));
        }
        (self.index, answer)
    }

    fn touch(&mut self, client: u64) {
        let wanted = self.now + SESSION_MS;
        if let Some(session) = self.sessions.get_mut(&client)
            && wanted.saturating_sub(session.expires_at) > SESSION_MS / 4
        {
            session.expires_at = wanted;
        }
    }

    /// A command that is refused leaves everything as it was.
    fn attempt(&mut self, proposal: &Proposal) -> Answer {
        if let Some(rejected) = self.forced.take() {
            return Err(rejected);
        }
        let mut next = self.clone();
        let answer = next.run(proposal);
        if answer.is_ok() {
            *self = next;
        }
        answer
    }

    fn run(&mut self, proposal: &Proposal) -> Answer {
        let command = &proposal.command;
        match command {
            Command::Mkdir { path, parents } => self.mkdir(path, *parents),
            Command::Create { path, replication } => {
                let count = if *replication == 0 { 3 } else { *replication };
                self.free(path)?;
                Ok(self.make(path, EntryKind::File {}, count))
            }
            Command::Delete { path, recursive } => {
                let node = self.find(path)?;
                if !recursive && !node.entry.is_file() && !self.below(path).is_empty() {
                    return Err(Rejected::NotEmpty { path: path.clone() });
                }
                Ok(self.bury(path))
            }
            Command::Rename { source, target, replace } => self.rename(source, target, *replace),
            Command::Undelete { entry, target } => self.undelete(*entry, target),
            Command::Expedite { entry } => self.expedite(*entry),
            Command::AddChunk { file, expected_count, members, primary } => {
                self.add_chunk(*file, *expected_count, members, *primary)
            }
            Command::PrepareGrant { .. } => self.prepare(command),
            &Command::AcceptReplica { handle, expected_version, server } => {
                self.accept(handle, expected_version, server)
            }
            Command::ConfirmGrant { handle, version, lease_expires_at } => {
                let chunk = self.chunk(*handle, *version)?;
                if let Some((members, primary, writer)) = chunk.pending.take() {
                    chunk.members = members;
                    chunk.confirmed = chunk.version;
                    chunk.lease = writer.then_some((primary, lease_expires_at.raw()));
                }
                Ok(Applied::Confirmed { version: *version })
            }
            Command::ExtendLeases { leases, expires_at } => {
                let mut extended = leases.clone();
                extended.retain(|(handle, version)| {
                    let chunk = self.chunk(*handle, *version).ok();
                    let lease = chunk.and_then(|chunk| chunk.lease.as_mut());
                    lease.map(|lease| lease.1 = lease.1.max(expires_at.raw())).is_some()
                });
                Ok(Applied::Extended { leases: extended })
            }
            Command::OpenSession { nonce } => Ok(self.open(nonce[0])),
            Command::RenewSession { client } => self.renew(*client, proposal.first_unacked),
            Command::ExpireSessions { limit } => Ok(self.expire(*limit)),
            Command::Snapshot { source, target } => self.snapshot(source, target),
            Command::ReserveChunk {} => {
                self.next_chunk += 1;
                Ok(Applied::Reserved { handle: ChunkHandle::from_raw(self.next_chunk - 1) })
            }
            Command::CopyChunk { .. } => self.copy(command),
            Command::Bootstrap { .. }
            | Command::CollectTrash { .. }
            | Command::BeginSnapshot { .. }
            | Command::BuildSnapshot { .. }
            | Command::AbandonSnapshot { .. }
            | Command::RegisterServer { .. }
            | Command::RegisterMaster { .. } => panic!("the model has no {command}"),
        }
    }

    fn expedite(&mut self, entry: EntryId) -> Answer {
        let key = self.trashed(entry)?;
        let tree = self.trash.remove(&key).unwrap();
        let date = key.0.min(self.now);
        self.trash.insert((date, key.1), tree);
        Ok(Applied::Deleted { entry, collect_at: UnixMs::from_raw(date) })
    }

    fn accept(&mut self, handle: ChunkHandle, expected_version: ChunkVersion, primary: ServerId) -> Answer {
        let (members, base) = (vec![primary], vec![primary]);
        let (writer, fresh) = (false, false);
        self.prepare(&Command::PrepareGrant {
            handle,
            expected_version,
            members,
            base,
            primary,
            writer,
            fresh,
        })
    }

    fn renew(&mut self, client: ClientId, first_unacked: u64) -> Answer {
        let rejected = Rejected::SessionExpired { client };
        let session = self.sessions.get_mut(&client.raw()).ok_or(rejected)?;
        session.first_unacked = session.first_unacked.max(first_unacked);
        let first = session.first_unacked;
        session.replies.retain(|sequence, _| *sequence >= first);
        self.touch(client.raw());
        let expires_at = UnixMs::from_raw(self.sessions[&client.raw()].expires_at);
        Ok(Applied::SessionRenewed { expires_at })
    }

    fn expire(&mut self, limit: u32) -> Applied {
        let ends = |(client, session): (&u64, &ModelSession)| (session.expires_at, *client);
        let mut due: Vec<_> = self.sessions.iter().map(ends).filter(|end| end.0 <= self.now).collect();
        due.sort_unstable();
        let taken: Vec<_> = due.iter().take(limit as usize).map(|end| end.1).collect();
        self.sessions.retain(|client, _| !taken.contains(client));
        let count = u32::try_from(taken.len()).unwrap();
        Applied::SessionsExpired { count, more: taken.len() < due.len() }
    }

    // ---- names ----

    /// The directory of a path is there.
    fn parents(&self, path: &FilePath) -> Result<(), Rejected> {
        let (parent, _) = path.split().ok_or(Rejected::Root {})?;
        let mut so_far = FilePath::root();
        for name in parent.names() {
            so_far = so_far.join(name).unwrap();
            match self.tree.get(so_far.as_str()) {
                None => return Err(Rejected::NotFound { path: so_far }),
                Some(node) if node.entry.is_file() => return Err(Rejected::NotADirectory { path: so_far }),
                Some(_) => {}
            }
        }
        Ok(())
    }
    fn find(&self, path: &FilePath) -> Result<Node, Rejected> {
        self.parents(path)?;
        let node = self.tree.get(path.as_str()).cloned();
        node.ok_or_else(|| Rejected::NotFound { path: path.clone() })
    }
    fn free(&self, path: &FilePath) -> Result<(), Rejected> {
        if path.is_root() {
            return Err(Rejected::AlreadyExists { path: path.clone() });
        }
        match self.find(path) {
            Ok(_) => Err(Rejected::AlreadyExists { path: path.clone() }),
            Err(Rejected::NotFound { path: missing }) if missing == *path => Ok(()),
            Err(rejected) => Err(rejected),
        }
    }
    fn below(&self, path: &FilePath) -> Vec<String> {
        let prefix = format!("{path}/");
        self.tree.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    }
    fn place(&self, path: &FilePath) -> Place {
        let (parent, name) = path.split().unwrap();
        let parent = self.tree.get(parent.as_str()).map_or(EntryId::ROOT, |node| node.entry.id);
        Place::In { parent, name: name.to_owned() }
    }
    fn make(&mut self, path: &FilePath, kind: EntryKind, replication: u32) -> Applied {
        let now = UnixMs::from_raw(self.now);
        let entry = Entry {
            id: EntryId::from_raw(self.next_entry),
            kind,
            place: self.place(path),
            created_at: now,
            modified_at: now,
            replication,
            chunk_count: 0,
        };
        self.next_entry += 1;
        self.tree.insert(path.to_string(), Node { entry: entry.clone(), chunks: Vec::new() });
        Applied::Entry { entry }
    }
    fn mkdir(&mut self, path: &FilePath, parents: bool) -> Answer {
        if !parents {
            self.free(path)?;
            return Ok(self.make(path, EntryKind::Directory {}, 0));
        }
        let mut so_far = FilePath::root();
        for name in path.names() {
            so_far = so_far.join(name).unwrap();
            match self.tree.get(so_far.as_str()) {
                None => drop(self.make(&so_far, EntryKind::Directory {}, 0)),
                Some(node) if !node.entry.is_file() => {}
                Some(_) if so_far == *path => return Err(Rejected::AlreadyExists { path: so_far }),
                Some(_) => return Err(Rejected::NotADirectory { path: so_far }),
            }
        }
        let root = Entry {
            id: EntryId::ROOT,
            kind: EntryKind::Directory {},
            place: Place::Root {},
            created_at: UnixMs::default(),
            modified_at: UnixMs::default(),
            replication: 0,
            chunk_count: 0,
        };
        Ok(Applied::Entry { entry: self.tree.get(path.as_str()).map_or(root, |node| node.entry.clone()) })
    }
    /// Takes a tree out, its root at "".
    fn take(&mut self, path: &FilePath) -> BTreeMap<String, Node> {
        let mut keys = self.below(path);
        keys.push(path.to_string());
        let cut = path.as_str().len();
        keys.iter().map(|key| (key[cut..].to_owned(), self.tree.remove(key).unwrap())).collect()
    }
    fn graft(&mut self, path: &FilePath, mut tree: BTreeMap<String, Node>) {
        tree.get_mut("").unwrap().entry.place = self.place(path);
        self.tree.extend(tree.into_iter().map(|(below, node)| (format!("{path}{below}"), node)));
    }
    fn bury(&mut self, path: &FilePath) -> Applied {
        let mut tree = self.take(path);
        let date = self.now + TRASH_MS;
        let root = &mut tree.get_mut("").unwrap().entry;
        root.place = Place::Trash { collect_at: UnixMs::from_raw(date) };
        let id = root.id;
        self.trash.insert((date, id.raw()), tree);
        Applied::Deleted { entry: id, collect_at: UnixMs::from_raw(date) }
    }
    fn rename(&mut self, source: &FilePath, target: &FilePath, replace: bool) -> Answer {
        let from = self.find(source)?;
        let to = match self.find(target) {
            Err(Rejected::NotFound { path }) if path == *target => None,
            found => Some(found?),
        };
        if source != target && target.is_within(source) {
            return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
        }
        if source == target {
            return Ok(Applied::Done {});
        }
        let mut replaced = Applied::Done {};
        if let Some(to) = to {
            let path = target.clone();
            match (from.entry.is_file(), to.entry.is_file()) {
                _ if !replace => return Err(Rejected::AlreadyExists { path }),
                (false, true) => return Err(Rejected::NotADirectory { path }),
                (true, false) => return Err(Rejected::IsADirectory { path }),
                (false, false) if !self.below(target).is_empty() => {
                    return Err(Rejected::NotEmpty { path });
                }
                _ => replaced = self.bury(target),
            }
        }
        let tree = self.take(source);
        self.graft(target, tree);
        Ok(replaced)
    }

    // ---- trash ----

    fn trashed(&self, id: EntryId) -> Result<(u64, u64), Rejected> {
        let key = self.trash.keys().find(|key| key.1 == id.raw()).copied();
        key.ok_or(Rejected::NotInTrash { entry: id })
    }
    fn undelete(&mut self, id: EntryId, target: &FilePath) -> Answer {
        let key = self.trashed(id)?;
        if key.0 <= self.now {
            return Err(Rejected::NotInTrash { entry: id });
        }
        self.free(target)?;
        let tree = self.trash.remove(&key).unwrap();
        self.graft(target, tree);
        Ok(Applied::Entry { entry: self.tree[target.as_str()].entry.clone() })
    }
    pub(super) fn collect(&mut self, now: u64) {
        self.now = self.now.max(now);
        let now = self.now;
        self.trash.retain(|(date, _), _| *date > now);
        self.drop_unused();
    }

    // ---- chunks ----

    fn add_chunk(&mut self, file: EntryId, expected: u32, members: &[ServerId], primary: ServerId) -> Answer {
        let gone = Rejected::NoSuchEntry { entry: file };
        let is_hidden_file = |node: &Node| node.entry.id == file && node.entry.is_file();
        if file == EntryId::ROOT || self.any(|node| node.entry.id == file && !node.entry.is_file()) {
            return Err(Rejected::NotAFile { entry: file });
        }
        let now = UnixMs::from_raw(self.now);
        let Some(node) = self.tree.values_mut().find(|node| is_hidden_file(node)) else { return Err(gone) };
        let found = u32::try_from(node.chunks.len()).unwrap();
        let index = ChunkIndex::from_raw(expected);
        if expected > found {
            return Err(Rejected::BadChunkCount { expected, found });
        }
        if expected < found {
            let handle = ChunkHandle::from_raw(node.chunks[expected as usize]);
            return Ok(Applied::ChunkAdded { index, handle, added: false });
        }
        known(members)?;
        if !members.contains(&primary) {
            return Err(Rejected::BadGrant { rule: GrantRule::Primary {} });
        }
        node.chunks.push(self.next_chunk);
        node.entry.chunk_count += 1;
        node.entry.modified_at = now;
        let pending = Some((raw(members), primary.raw(), true));
        self.chunks.insert(self.next_chunk, ModelChunk { version: 1, pending, ..ModelChunk::default() });
        self.next_chunk += 1;
        Ok(Applied::ChunkAdded { index, handle: ChunkHandle::from_raw(self.next_chunk - 1), added: true })
    }
    fn any(&self, is: impl Fn(&Node) -> bool) -> bool {
        self.tree.values().chain(self.trash.values().flat_map(BTreeMap::values)).any(is)
    }
    fn chunk(&mut self, handle: ChunkHandle, asked: ChunkVersion) -> Result<&mut ModelChunk, Rejected> {
        let chunk = self.chunks.get_mut(&handle.raw()).ok_or(Rejected::NoSuchChunk { handle })?;
        let here = ChunkVersion::from_raw(chunk.version);
        if asked == here { Ok(chunk) } else { Err(Rejected::VersionMismatch { handle, asked, here }) }
    }
    fn prepare(&mut self, command: &Command) -> Answer {
        let Command::PrepareGrant { handle, expected_version, members, base, primary, writer, fresh } =
            command
        else {
            panic!("not a prepare")
        };
        let broken = |rule| Err(Rejected::BadGrant { rule });
        let chunk = self.chunk(*handle, *expected_version)?;
        known(members)?;
        if *fresh == (chunk.confirmed > 0) {
            return broken(GrantRule::Fresh {});
        }
        let base = raw(if *fresh { members } else { base });
        let members = raw(members);
        if base.is_empty() || has_twice(&base) || base.iter().any(|server| !members.contains(server)) {
            return broken(GrantRule::Base {});
        }
        if !fresh && base.iter().any(|server| !chunk.members.contains(server)) {
            return broken(GrantRule::BaseConfirmed {});
        }
        let number = handle.raw();
        if *writer && self.references(number) > 1 {
            return Err(Rejected::Shared { handle: *handle });
        }
        if let Some((old, version)) = self.origins.get(&number).copied() {
            if self.chunks[&old].confirmed > version {
                self.origins.remove(&number);
                self.drop_unused();
            } else if *writer {
                return Err(Rejected::Unsettled { handle: *handle });
            }
        }
        if !base.contains(&primary.raw()) {
            return broken(GrantRule::Primary {});
        }
        let chunk = self.chunks.get_mut(&number).unwrap();
        chunk.version += 1;
        chunk.pending = Some((members, primary.raw(), *writer));
        chunk.lease = None;
        Ok(Applied::Prepared { version: ChunkVersion::from_raw(chunk.version) })
    }

    fn open(&mut self, nonce: u8) -> Applied {
        let found = self.sessions.iter().find(|(_, session)| session.nonce == nonce);
        if let Some((client, session)) = found {
            let (client, expires_at) = (*client, session.expires_at);
            return Applied::SessionOpened {
                client: ClientId::from_raw(client),
                expires_at: UnixMs::from_raw(expires_at),
            };
        }
        let (client, expires_at) = (self.index, self.now + SESSION_MS);
        let session = ModelSession { nonce, expires_at, first_unacked: 1, replies: BTreeMap::new() };
        self.sessions.insert(client, session);
        self.opened.push(client);
        Applied::SessionOpened {
            client: ClientId::from_raw(client),
            expires_at: UnixMs::from_raw(expires_at),
        }
    }
}

pub(super) fn raw(servers: &[ServerId]) -> Vec<u64> {
    servers.iter().map(|server| server.raw()).collect()
}
fn has_twice(servers: &[u64]) -> bool {
    servers.iter().enumerate().any(|(i, server)| servers[..i].contains(server))
}
fn known(members: &[ServerId]) -> Result<(), Rejected> {
    let members = raw(members);
    if members.is_empty() || has_twice(&members) || members.iter().any(|server| !(1..=4).contains(server)) {
        return Err(Rejected::BadGrant { rule: GrantRule::Members {} });
    }
    Ok(())
}
