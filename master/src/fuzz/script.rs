//! Commands out of an input: any of them, some of them aimed at what the state has.

use gfs_fuzz::Dice;
use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, MasterId, RequestId, ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::{CHUNK_BYTES_MIN, ChunkBytes};
use gfs_proto::time::UnixMs;

use super::is_made;
use crate::state::{Chunk, Command, Proposal, View, read};

/// Most rows that are looked at to aim at one.
const AIMED_AT_MAX: usize = 32;

/// A list of commands in the making.
pub(super) struct Script {
    now: u64,
    made: bool,
}

impl Script {
    /// A cluster is made first, mostly.
    pub(super) fn new(dice: &mut Dice<'_>) -> Self {
        Self { now: dice.number(), made: dice.below(16) == 0 }
    }

    /// The next command; `None` at the end of the input.
    pub(super) fn next(&mut self, dice: &mut Dice<'_>, view: &dyn View) -> Option<Proposal> {
        if dice.is_empty() {
            return None;
        }
        self.now = match dice.below(8) {
            0 => self.now.saturating_add(dice.number()),
            1 => dice.number(),
            _ => self.now.saturating_add(dice.below(50)),
        };
        let now = UnixMs::from_raw(self.now);
        let command =
            if std::mem::replace(&mut self.made, true) { command(dice, view) } else { bootstrap(dice) };
        let mut proposal = Proposal::internal(now, command);
        if dice.below(3) == 0 {
            let client = ClientId::from_raw(1 + dice.below(8));
            proposal.request = Some(RequestId { client, sequence: dice.number() });
            proposal.first_unacked = dice.number();
        }
        Some(proposal)
    }
}

fn bootstrap(dice: &mut Dice<'_>) -> Command {
    Command::Bootstrap {
        cluster: ClusterId::from_bytes([dice.byte(); 16]),
        chunk_bytes: ChunkBytes::try_from(CHUNK_BYTES_MIN).unwrap_or(ChunkBytes::DEFAULT),
        replication: if dice.below(4) > 0 { 3 } else { dice.small_number() },
        trash_ms: dice.number(),
        session_ms: dice.number(),
        master: MasterId::from_raw(dice.number()),
        uuid: Uuid::from_bytes([dice.byte(); 16]),
        address: text(dice),
    }
}

fn command(dice: &mut Dice<'_>, view: &dyn View) -> Command {
    match dice.below(20) {
        0 => bootstrap(dice),
        1 => Command::OpenSession { nonce: [dice.byte() & 3; 16] },
        2 => Command::RenewSession { client: ClientId::from_raw(dice.below(9)) },
        3 => Command::ExpireSessions { limit: dice.small_number() },
        4 => Command::Mkdir { path: path(dice), parents: dice.coin() },
        5 => Command::Create { path: path(dice), replication: dice.small_number() & 31 },
        6 => Command::Delete { path: path(dice), recursive: dice.coin() },
        7 => Command::Rename { source: path(dice), target: path(dice), replace: dice.coin() },
        8 => Command::Undelete { entry: entry(dice), target: path(dice) },
        9 => Command::Expedite { entry: entry(dice) },
        10 => Command::CollectTrash { limit: dice.small_number() },
        11 => Command::RegisterServer {
            uuid: Uuid::from_bytes([dice.byte() & 3; 16]),
            address: text(dice),
            rack: text(dice),
        },
        12 => Command::RegisterMaster {
            uuid: Uuid::from_bytes([dice.byte() & 3; 16]),
            address: text(dice),
            shadow: dice.coin(),
        },
        13 => Command::Snapshot { source: path(dice), target: path(dice) },
        14 => Command::ReserveChunk {},
        _ => chunk_command(dice, view),
    }
}

fn chunk_command(dice: &mut Dice<'_>, view: &dyn View) -> Command {
    let file = aimed_file(dice, view);
    let chunk = aimed_chunk(dice, view);
    let handle = chunk.as_ref().map_or_else(|| ChunkHandle::from_raw(dice.number()), |chunk| chunk.handle);
    let version = match &chunk {
        Some(chunk) if dice.below(8) > 0 => chunk.version,
        _ => ChunkVersion::from_raw(dice.number()),
    };
    let members = servers(dice);
    match dice.below(6) {
        5 => {
            let member = chunk.as_ref().and_then(|chunk| chunk.members.get(dice.index(chunk.members.len())));
            let server = member.copied().filter(|_| dice.below(8) > 0);
            let server = server.unwrap_or_else(|| ServerId::from_raw(dice.below(6)));
            Command::AcceptReplica { handle, expected_version: version, server }
        }
        0 => {
            let count = read::file_by_id(view, file).map_or(0, |entry| entry.chunk_count);
            let expected_count = if dice.below(8) > 0 { count } else { dice.small_number() };
            let primary = members.first().copied().unwrap_or_default();
            Command::AddChunk { file, expected_count, members, primary }
        }
        1 => prepare(dice, chunk.as_ref(), (handle, version), members),
        2 => Command::ConfirmGrant { handle, version, lease_expires_at: UnixMs::from_raw(dice.number()) },
        3 => Command::ExtendLeases {
            leases: vec![(handle, version), (ChunkHandle::from_raw(dice.number()), version)],
            expires_at: UnixMs::from_raw(dice.number()),
        },
        _ => {
            let first = read::file_chunks(view, file, ChunkIndex::default(), 1)
                .ok()
                .and_then(|chunks| chunks.into_iter().next());
            let (old, old_version, holders) = match first {
                Some((_, chunk)) if dice.below(8) > 0 => (chunk.handle, chunk.version, chunk.members),
                _ => (handle, version, members),
            };
            let next = read::next_chunk_handle(view).unwrap_or_default().raw();
            let copy =
                ChunkHandle::from_raw(if dice.below(8) > 0 { next.wrapping_sub(1) } else { dice.number() });
            let index = ChunkIndex::from_raw(if dice.below(8) > 0 { 0 } else { dice.small_number() });
            Command::CopyChunk { file, index, old, version: old_version, copy, members: holders }
        }
    }
}

fn prepare(
    dice: &mut Dice<'_>,
    chunk: Option<&Chunk>,
    (handle, expected_version): (ChunkHandle, ChunkVersion),
    mut members: Vec<ServerId>,
) -> Command {
    let fresh = chunk.is_some_and(|chunk| chunk.confirmed == ChunkVersion::NONE) ^ (dice.below(16) == 0);
    let mut base = servers(dice);
    if let Some(chunk) = chunk
        && dice.below(4) > 0
    {
        base.clone_from(&chunk.members);
        members.extend(
            chunk
                .members
                .iter()
                .copied()
                .filter(|server| dice.coin() && !base.is_empty() && server.raw() < 9),
        );
        members.sort_unstable();
        members.dedup();
        base.retain(|server| members.contains(server));
    }
    let primary = base.first().or(members.first()).copied().unwrap_or_default();
    Command::PrepareGrant { handle, expected_version, members, base, primary, writer: dice.coin(), fresh }
}

fn text(dice: &mut Dice<'_>) -> String {
    String::from_utf8_lossy(dice.bytes(8)).into_owned()
}

fn path(dice: &mut Dice<'_>) -> FilePath {
    let names = ["a", "b", "c", "é"];
    (0..dice.below(4)).fold(FilePath::root(), |path, _| {
        path.join(names[dice.index(names.len())]).unwrap_or_else(|_| FilePath::root())
    })
}

fn entry(dice: &mut Dice<'_>) -> EntryId {
    EntryId::from_raw(if dice.below(16) > 0 { dice.below(16) } else { dice.number() })
}

fn servers(dice: &mut Dice<'_>) -> Vec<ServerId> {
    let mask = dice.byte();
    let mut servers: Vec<ServerId> =
        (0..5).filter(|bit| mask >> bit & 1 == 1).map(ServerId::from_raw).collect();
    if mask & 0xe0 == 0xe0 {
        servers.push(ServerId::from_raw(dice.number()));
    }
    servers
}

/// A file that there is, mostly.
fn aimed_file(dice: &mut Dice<'_>, view: &dyn View) -> EntryId {
    if !is_made(view) || dice.below(8) == 0 {
        return entry(dice);
    }
    let files: Vec<EntryId> = (1..AIMED_AT_MAX as u64)
        .map(EntryId::from_raw)
        .filter(|id| read::file_by_id(view, *id).is_ok())
        .collect();
    files.get(dice.index(files.len())).copied().unwrap_or_default()
}

/// A chunk that there is, mostly.
fn aimed_chunk(dice: &mut Dice<'_>, view: &dyn View) -> Option<Chunk> {
    if dice.below(8) == 0 {
        return None;
    }
    let page = read::chunks(view, ChunkHandle::default(), AIMED_AT_MAX).ok()?;
    page.items.get(dice.index(page.items.len())).cloned()
}
