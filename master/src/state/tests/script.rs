//! Scripts: one command a line in, its outcome out; the invariants are checked after every line.

use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, LogIndex, RequestId, ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

use crate::state::{
    Command, Memory, Outcome, Proposal, Rejected, Reply, Table, View, apply, invariant, read,
};

/// How long the trash of a test keeps, in milliseconds.
pub(super) const TRASH_MS: u64 = 1000;
/// How long a session of a test lives, in milliseconds.
pub(super) const SESSION_MS: u64 = 400;

/// Random tests that are the same in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` make others.
pub(in crate::state) fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let (seed, is_wider) =
        (std::env::var_os("PROPTEST_RNG_SEED"), std::env::var_os("PROPTEST_CASES").is_some());
    ProptestConfig {
        cases: if is_wider { default.cases } else { cases },
        rng_seed: if seed.is_some() { default.rng_seed } else { RngSeed::Fixed(1) },
        failure_persistence: None,
        ..default
    }
}

/// A state that commands are applied to one by one.
#[derive(Clone)]
pub(in crate::state) struct World {
    pub(in crate::state) memory: Memory,
    pub(super) index: u64,
    pub(super) now: u64,
    /// The last build that was begun.
    pub(super) last_build: Option<Proposal>,
}

impl World {
    /// An empty state.
    pub(super) fn empty() -> Self {
        Self { memory: Memory::default(), index: 0, now: 0, last_build: None }
    }
    /// A cluster with chunkservers s1 to s4, at log index 5.
    pub(in crate::state) fn with_servers() -> Self {
        let mut world = Self::empty();
        for line in ["bootstrap", "server 1", "server 2", "server 3", "server 4"] {
            world.line(line);
        }
        world
    }

    /// Applies a proposal as the next entry of the log, and checks what is true of every command.
    pub(super) fn apply(&mut self, proposal: &Proposal) -> Outcome {
        self.index += 1;
        let decoded = Proposal::decode(&proposal.encode());
        assert_eq!(decoded.as_ref(), Ok(proposal), "the encoding lost something");
        let outcome = apply(&self.memory, LogIndex::from_raw(self.index), proposal);
        if outcome.reply.is_err() {
            let is_harmless = |(table, key): (Table, &[u8])| {
                table == Table::Session || (table == Table::System && matches!(key, [0x02] | [0x23, ..]))
            };
            assert!(
                outcome.writes.iter().all(|(table, key, _)| is_harmless((table, key))),
                "{proposal} was refused, but changes {:02x?}",
                outcome.writes
            );
            assert!(outcome.touched.is_empty());
        }
        self.memory.write(outcome.writes.clone());
        if let Err(broken) = invariant::check(&self.memory) {
            panic!("after {proposal}: {broken}");
        }
        let reply = outcome.clone().into_reply();
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply), "the encoding lost something");
        outcome
    }

    /// Runs one line, and tells the outcome.
    pub(in crate::state) fn line(&mut self, line: &str) -> String {
        let (line, request) = match line.split_once('#') {
            Some((line, request)) => (line.trim(), Some(request)),
            None => (line, None),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(answer) = self.lookup(&words) {
            return answer.unwrap_or_else(|rejected| format!("rejected: {rejected}"));
        }
        let mut proposal = Proposal::internal(UnixMs::from_raw(self.now), command(&words));
        if let ["renew", _, first_unacked] = *words {
            proposal.first_unacked = first_unacked.parse().unwrap();
        }
        if let Some(request) = request {
            let numbers: Vec<u64> = request.split([':', '/']).map(number).collect();
            proposal.request =
                Some(RequestId { client: ClientId::from_raw(numbers[0]), sequence: numbers[1] });
            proposal.first_unacked = numbers.get(2).copied().unwrap_or(0);
        }
        let outcome = self.apply(&proposal);
        let index = self.index;
        let reply = outcome.into_reply();
        let repeat = match reply.decided_at.raw() {
            at if at == index => String::new(),
            at => format!(" (decided at {at})"),
        };
        format!("{reply}{repeat}")
    }

    fn lookup(&mut self, words: &[&str]) -> Option<Result<String, Rejected>> {
        let view: &dyn View = &self.memory;
        Some(match words {
            ["now", now] => {
                self.now = number(now);
                Ok(String::new())
            }
            ["stat", at] => read::stat(view, &path(at)).map(|entry| entry.to_string()),
            ["ls", at] => list(view, at, "", usize::MAX),
            ["ls", at, after, limit] => list(view, at, after, limit.parse().unwrap()),
            ["path", id] => {
                read::path_of(view, entry(id)).map(|path| path.unwrap_or_else(|| "in the trash".to_owned()))
            }
            ["chunk", handle] => read::chunk(view, chunk(handle)).map(|chunk| chunk.to_string()),
            ["chunks", file] => {
                read::file_chunks(view, entry(file), ChunkIndex::default(), 100).map(|chunks| {
                    let one = |(_, chunk): &(_, crate::state::Chunk)| {
                        format!("{} x{}", chunk.handle, chunk.references)
                    };
                    chunks.iter().map(one).collect::<Vec<_>>().join(", ")
                })
            }
            ["trash"] => read::trash(view, None, usize::MAX).map(|page| {
                let items = page.items.iter();
                items.map(|row| format!("{} {} until {}; ", row.entry, row.path, row.collect_at)).collect()
            }),
            ["counters"] => read::counters(view).map(|counters| {
                let crate::state::Counters { files, directories, chunks, sessions, .. } = counters;
                format!("{files} files, {directories} directories, {chunks} chunks, {sessions} sessions")
            }),
            ["accepted", handle] => read::accepted(view, chunk(handle)).map(|found| {
                found.map_or("none".to_owned(), |found| format!("{} at {}", found.server, found.version))
            }),
            ["pending"] => read::pending_grants(view, ChunkHandle::default(), usize::MAX)
                .map(|page| format!("{:?}", page.items)),
            _ => return None,
        })
    }
}

fn list(view: &dyn View, at: &str, after: &str, limit: usize) -> Result<String, Rejected> {
    let page = read::list(view, &path(at), after, limit)?;
    let names: Vec<_> = page.items.iter().map(|entry| format!("{}={}", entry.name(), entry.id)).collect();
    Ok(names.join(" ") + if page.more { " .." } else { "" })
}

pub(super) fn number(text: &str) -> u64 {
    text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}
pub(super) fn path(text: &str) -> FilePath {
    FilePath::parse(text).unwrap()
}
fn entry(text: &str) -> EntryId {
    EntryId::from_raw(number(text))
}
fn chunk(text: &str) -> ChunkHandle {
    ChunkHandle::from_raw(number(text))
}
fn version(text: &str) -> ChunkVersion {
    ChunkVersion::from_raw(number(text))
}
fn server(text: &str) -> ServerId {
    ServerId::from_raw(number(text))
}
fn servers(text: &str) -> Vec<ServerId> {
    text.split(',').filter(|server| *server != "-").map(server).collect()
}
fn time(text: &str) -> UnixMs {
    UnixMs::from_raw(number(text))
}

pub(super) fn bootstrap(cluster: u8) -> Command {
    Command::Bootstrap {
        cluster: ClusterId::from_bytes([cluster; 16]),
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash_ms: TRASH_MS,
        session_ms: SESSION_MS,
        master: gfs_proto::id::MasterId::from_raw(1),
        uuid: Uuid::from_bytes([0xee; 16]),
        address: "m:1".to_owned(),
    }
}

fn command(words: &[&str]) -> Command {
    match *words {
        ["bootstrap"] => bootstrap(0xaa),
        ["bootstrap", cluster] => bootstrap(cluster.parse().unwrap()),
        ["open", nonce] => Command::OpenSession { nonce: [nonce.parse().unwrap(); 16] },
        ["renew", client] | ["renew", client, _] => {
            Command::RenewSession { client: ClientId::from_raw(number(client)) }
        }
        ["expire", limit] => Command::ExpireSessions { limit: limit.parse().unwrap() },
        ["mkdir", at] => Command::Mkdir { path: path(at), parents: false },
        ["mkdir", "-p", at] => Command::Mkdir { path: path(at), parents: true },
        ["create", at] => Command::Create { path: path(at), replication: 0 },
        ["create", at, replication] => {
            Command::Create { path: path(at), replication: replication.parse().unwrap() }
        }
        ["rm", at] => Command::Delete { path: path(at), recursive: false },
        ["rm", "-r", at] => Command::Delete { path: path(at), recursive: true },
        ["mv", source, target] => {
            Command::Rename { source: path(source), target: path(target), replace: false }
        }
        ["mv", "-f", source, target] => {
            Command::Rename { source: path(source), target: path(target), replace: true }
        }
        ["undelete", id, target] => Command::Undelete { entry: entry(id), target: path(target) },
        ["expedite", id] => Command::Expedite { entry: entry(id) },
        ["collect", limit] => Command::CollectTrash { limit: limit.parse().unwrap() },
        ["server", id] => register_server(id.parse().unwrap(), id),
        ["server", id, address] => register_server(id.parse().unwrap(), address),
        ["master", id, address] => Command::RegisterMaster {
            uuid: Uuid::from_bytes([id.parse().unwrap(); 16]),
            address: address.to_owned(),
            shadow: false,
        },
        ["add", file, count, members, primary] => Command::AddChunk {
            file: entry(file),
            expected_count: count.parse().unwrap(),
            members: servers(members),
            primary: server(primary),
        },
        [verb @ ("grant" | "revoke" | "fresh"), handle, expected, members, base, primary] => {
            Command::PrepareGrant {
                handle: chunk(handle),
                expected_version: version(expected),
                members: servers(members),
                base: servers(base),
                primary: server(primary),
                writer: verb != "revoke",
                fresh: verb == "fresh",
            }
        }
        ["accept", handle, expected, at] => Command::AcceptReplica {
            handle: chunk(handle),
            expected_version: version(expected),
            server: server(at),
        },
        ["confirm", handle, of, until] => Command::ConfirmGrant {
            handle: chunk(handle),
            version: version(of),
            lease_expires_at: time(until),
        },
        ["extend", leases, until] => Command::ExtendLeases {
            leases: leases
                .split(',')
                .map(|lease| lease.split_once('v').map(|(c, v)| (chunk(c), version(v))).unwrap())
                .collect(),
            expires_at: time(until),
        },
        _ => snapshot_command(words),
    }
}

fn snapshot_command(words: &[&str]) -> Command {
    match *words {
        ["snapshot", source, target] => Command::Snapshot { source: path(source), target: path(target) },
        ["begin", source, target, request] => {
            let numbers: Vec<u64> = request.split(':').map(number).collect();
            let request = RequestId { client: ClientId::from_raw(numbers[0]), sequence: numbers[1] };
            Command::BeginSnapshot { source: path(source), target: path(target), request }
        }
        ["build", root, limit] => Command::BuildSnapshot { root: entry(root), limit: limit.parse().unwrap() },
        ["abandon", root, handle] => Command::AbandonSnapshot { root: entry(root), handle: chunk(handle) },
        ["reserve"] => Command::ReserveChunk {},
        ["copy", file, index, old, of, copy, members] => Command::CopyChunk {
            file: entry(file),
            index: ChunkIndex::from_raw(index.parse().unwrap()),
            old: chunk(old),
            version: version(of),
            copy: chunk(copy),
            members: servers(members),
        },
        _ => panic!("what is {words:?}?"),
    }
}

fn register_server(id: u8, address: &str) -> Command {
    let address = format!("{address}:1");
    Command::RegisterServer { uuid: Uuid::from_bytes([id; 16]), address, rack: String::new() }
}
