//! The state beside its naive model: random commands and repeats, the same answers and the same lookups.

use std::collections::BTreeMap;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, ClientId, EntryId, RequestId, ServerId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;
use proptest::prelude::*;

use super::building;
use super::model::{Model, raw};
use super::script::{self, World, path};
use crate::state::{Applied, Command, Proposal, View, read};

/// What the lookups say must be what the model says.
pub(super) fn compare(view: &dyn View, model: &Model) {
    let mut found = BTreeMap::new();
    let mut directories = vec![FilePath::root()];
    while let Some(directory) = directories.pop() {
        let page = read::list(view, &directory, "", 1000).unwrap();
        for entry in page.items {
            let path = directory.join(entry.name()).unwrap();
            assert_eq!(read::path_of(view, entry.id), Ok(Some(path.to_string())));
            if entry.is_file() {
                let chunks = read::file_chunks(view, entry.id, ChunkIndex::default(), 1000).unwrap();
                let handles: Vec<u64> = chunks.iter().map(|(_, chunk)| chunk.handle.raw()).collect();
                assert_eq!(handles, model.tree[path.as_str()].chunks);
            } else {
                directories.push(path.clone());
            }
            found.insert(path.to_string(), entry);
        }
    }
    let wanted = model.tree.iter().map(|(path, node)| (path.clone(), node.entry.clone()));
    assert_eq!(found, wanted.collect());
    let trash = read::trash(view, None, 1000).unwrap().items;
    // Parts under collection, and snapshots in the making, are of nobody's concern.
    let trash = trash.iter().filter(|row| !row.path.is_empty());
    let trash: Vec<_> = trash.map(|row| (row.collect_at.raw(), row.entry.raw())).collect();
    assert_eq!(trash, model.trash.keys().copied().collect::<Vec<_>>());
    let chunks = read::chunks(view, ChunkHandle::default(), 1000).unwrap().items;
    assert_eq!(chunks.len(), model.chunks.len());
    for chunk in chunks {
        let wanted = &model.chunks[&chunk.handle.raw()];
        assert_eq!((chunk.version.raw(), chunk.confirmed.raw()), (wanted.version, wanted.confirmed));
        assert_eq!(raw(&chunk.members), wanted.members);
        assert_eq!(chunk.lease.map(|lease| (lease.primary.raw(), lease.expires_at.raw())), wanted.lease);
        let pending = chunk.pending.map(|grant| (raw(&grant.members), grant.primary.raw(), grant.writer));
        assert_eq!(pending, wanted.pending);
        assert_eq!(chunk.references as usize, model.references(chunk.handle.raw()));
        let origin = read::origin(view, chunk.handle).unwrap();
        let wanted = model.origins.get(&chunk.handle.raw()).copied();
        assert_eq!(origin.map(|origin| (origin.handle.raw(), origin.version.raw())), wanted);
    }
}

fn some_path() -> impl Strategy<Value = FilePath> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 0..4)
        .prop_map(|names| path(&format!("/{}", names.join("/"))))
}
fn some_servers() -> impl Strategy<Value = Vec<ServerId>> {
    prop_oneof![
        8 => proptest::sample::subsequence(vec![1, 2, 3, 4], 1..4),
        1 => proptest::collection::vec(0..6_u64, 0..4),
    ]
    .prop_map(|servers| servers.into_iter().map(ServerId::from_raw).collect())
}
fn some_server() -> impl Strategy<Value = ServerId> {
    (1..5_u64).prop_map(ServerId::from_raw)
}
fn some_entry() -> impl Strategy<Value = EntryId> {
    (1..12_u64).prop_map(EntryId::from_raw)
}
fn some_chunk() -> impl Strategy<Value = (ChunkHandle, ChunkVersion)> {
    (1..4_u64, 1..5_u64).prop_map(|(c, v)| (ChunkHandle::from_raw(c), ChunkVersion::from_raw(v)))
}

fn name_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (some_path(), any::<bool>()).prop_map(|(path, parents)| Command::Mkdir { path, parents }),
        (some_path(), 0..3_u32).prop_map(|(path, replication)| Command::Create { path, replication }),
        (some_path(), any::<bool>()).prop_map(|(path, recursive)| Command::Delete { path, recursive }),
        (some_path(), some_path(), any::<bool>()).prop_map(|(source, target, replace)| Command::Rename {
            source,
            target,
            replace
        }),
        (some_entry(), some_path()).prop_map(|(entry, target)| Command::Undelete { entry, target }),
        some_entry().prop_map(|entry| Command::Expedite { entry }),
        (some_path(), some_path()).prop_map(|(source, target)| Command::Snapshot { source, target }),
    ]
}
fn chunk_command() -> impl Strategy<Value = Command> {
    let grant = (some_chunk(), some_servers(), some_servers(), some_server(), any::<bool>(), 0..4_u8);
    prop_oneof![
        (some_entry(), 0..3_u32, some_servers(), some_server()).prop_map(
            |(file, expected_count, members, primary)| Command::AddChunk {
                file,
                expected_count,
                members,
                primary
            }
        ),
        grant.prop_map(|((handle, expected_version), members, mut base, mut primary, writer, dice)| {
            let fresh = dice == 0;
            if dice > 1 {
                base.retain(|server| members.contains(server));
                primary = base.first().copied().unwrap_or(primary);
            }
            Command::PrepareGrant { handle, expected_version, members, base, primary, writer, fresh }
        }),
        (some_chunk(), some_server()).prop_map(|((handle, expected_version), server)| {
            Command::AcceptReplica { handle, expected_version, server }
        }),
        (some_chunk(), 0..1000_u64).prop_map(|((handle, version), until)| Command::ConfirmGrant {
            handle,
            version,
            lease_expires_at: UnixMs::from_raw(until)
        }),
        Just(Command::ReserveChunk {}),
        (some_entry(), some_chunk(), 1..9_u64, some_servers()).prop_map(
            |(file, (old, version), copy, members)| Command::CopyChunk {
                file,
                index: ChunkIndex::default(),
                old,
                version,
                copy: ChunkHandle::from_raw(copy),
                members
            }
        ),
        (proptest::collection::vec(some_chunk(), 0..3), 0..1000_u64).prop_map(|(leases, until)| {
            Command::ExtendLeases { leases, expires_at: UnixMs::from_raw(until) }
        }),
    ]
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A command, by a session of those opened so far or by none, after some time. An aimed one is made to
    /// fit what there is.
    Do {
        command: Command,
        by: Option<(usize, u64, u64)>,
        after_ms: u64,
        aim: Option<usize>,
    },
    /// The request `back` steps ago comes again.
    Repeat {
        back: usize,
    },
    Renew {
        session: usize,
        first_unacked: u64,
    },
    /// A snapshot is begun, and built as if it were large.
    Begin {
        source: FilePath,
        target: FilePath,
        by: (usize, u64),
    },
    Build {
        limit: u32,
    },
    /// Its chunk can't be settled.
    Abandon,
    /// Whoever began the last one asks what came of it.
    Ask,
    /// After some time, all trash that is due is collected in steps of this size.
    Collect {
        limit: u32,
        after_ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let session_command = prop_oneof![
        (0..3_u8).prop_map(|nonce| Command::OpenSession { nonce: [nonce; 16] }),
        (1..3_u32).prop_map(|limit| Command::ExpireSessions { limit }),
    ];
    let command = prop_oneof![5 => name_command(), 6 => chunk_command(), 1 => session_command];
    let by = proptest::option::of((0..3_usize, 0..12_u64, 0..8_u64));
    let after = prop_oneof![6 => 0..40_u64, 1 => 0..700_u64];
    prop_oneof![
        20 => (command, by, after, proptest::option::weighted(0.7, 0..100_usize))
            .prop_map(|(command, by, after_ms, aim)| Step::Do { command, by, after_ms, aim }),
        4 => (1..5_usize).prop_map(|back| Step::Repeat { back }),
        1 => (0..3_usize, 0..8_u64).prop_map(|(session, first_unacked)| Step::Renew { session, first_unacked }),
        1 => (1..5_u32, 0..1200_u64).prop_map(|(limit, after_ms)| Step::Collect { limit, after_ms }),
        2 => (some_path(), some_path(), (0..3_usize, 0..12_u64))
            .prop_map(|(source, target, by)| Step::Begin { source, target, by }),
        6 => (1..4_u32).prop_map(|limit| Step::Build { limit }),
        1 => Just(Step::Ask),
        1 => proptest::bool::weighted(0.3).prop_map(|gives_up| if gives_up { Step::Abandon } else { Step::Ask }),
    ]
}

fn collect(world: &mut World, model: &mut Model, limit: u32) {
    loop {
        let proposal = Proposal::internal(UnixMs::from_raw(world.now), Command::CollectTrash { limit });
        model.index += 1;
        match world.apply(&proposal).reply {
            Ok(Applied::Collected { more: true, steps }) => assert!(steps >= 1),
            Ok(Applied::Collected { more: false, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    building::refresh(world, model);
    model.collect(world.now);
    building::refresh(world, model);
}

/// Makes a command about chunks or trash fit the `at`-th of those that there are.
fn aimed(command: &mut Command, model: &Model, at: usize) {
    let chunk = model.chunks.iter().nth(at % model.chunks.len().max(1));
    match (command, chunk) {
        (Command::AddChunk { file, expected_count, .. }, _) => {
            let mut files = model.tree.values().filter(|node| node.entry.is_file());
            let count = files.clone().count();
            if let Some(node) = files.nth(at % count.max(1)) {
                (*file, *expected_count) = (node.entry.id, node.entry.chunk_count);
            }
        }
        (
            Command::PrepareGrant { handle, expected_version, members, base, primary, fresh, .. },
            Some((number, chunk)),
        ) => {
            *handle = ChunkHandle::from_raw(*number);
            *expected_version = ChunkVersion::from_raw(chunk.version);
            *fresh = chunk.confirmed == 0;
            if !at.is_multiple_of(4) {
                *base = members.clone();
                base.retain(|server| *fresh || chunk.members.contains(&server.raw()));
                *primary = base.first().copied().unwrap_or(*primary);
            }
        }
        (Command::CopyChunk { file, old, version, copy, members, .. }, Some(_)) => {
            let mut files = model.tree.values().filter(|node| !node.chunks.is_empty());
            let count = files.clone().count();
            if let Some(node) = files.nth(at % count.max(1)) {
                let chunk = &model.chunks[&node.chunks[0]];
                (*file, *old) = (node.entry.id, ChunkHandle::from_raw(node.chunks[0]));
                *version = ChunkVersion::from_raw(chunk.version);
                *copy = ChunkHandle::from_raw(model.next_chunk - 1);
                *members = chunk.members.iter().copied().map(ServerId::from_raw).collect();
            }
        }
        (Command::ConfirmGrant { handle, version, .. }, Some((number, chunk))) => {
            (*handle, *version) = (ChunkHandle::from_raw(*number), ChunkVersion::from_raw(chunk.version));
        }
        (Command::AcceptReplica { handle, expected_version, server }, Some((number, chunk))) => {
            (*handle, *expected_version) =
                (ChunkHandle::from_raw(*number), ChunkVersion::from_raw(chunk.version));
            if let Some(member) = chunk.members.get(at % chunk.members.len().max(1)) {
                *server = ServerId::from_raw(*member);
            }
        }
        (Command::ExtendLeases { leases, .. }, Some((number, chunk))) => {
            leases.push((ChunkHandle::from_raw(*number), ChunkVersion::from_raw(chunk.version)));
        }
        (Command::Undelete { entry, .. } | Command::Expedite { entry }, _) => {
            if let Some((_, id)) = model.trash.keys().nth(at % model.trash.len().max(1)) {
                *entry = EntryId::from_raw(*id);
            }
        }
        _ => {}
    }
}

fn play(steps: Vec<Step>) {
    let (mut world, mut model) = (World::with_servers(), Model::new());
    let mut sent: Vec<Proposal> = Vec::new();
    for step in steps {
        let (command, by) = match step {
            Step::Do { mut command, by, after_ms, aim } => {
                world.now += after_ms;
                aim.into_iter().for_each(|at| aimed(&mut command, &model, at));
                (command, by)
            }
            Step::Renew { session, first_unacked } => {
                let client = model.opened.get(session).copied().unwrap_or(77);
                let command = Command::RenewSession { client: ClientId::from_raw(client) };
                let proposal =
                    Proposal { first_unacked, ..Proposal::internal(UnixMs::from_raw(world.now), command) };
                check_one(&mut world, &mut model, &proposal);
                continue;
            }
            Step::Collect { limit, after_ms } => {
                world.now += after_ms;
                collect(&mut world, &mut model, limit);
                compare(&world.memory, &model);
                continue;
            }
            Step::Begin { source, target, by: (session, sequence) } => {
                if let Some(client) = model.opened.get(session) {
                    let client = ClientId::from_raw(*client);
                    building::begin(&mut world, &mut model, source, target, RequestId { client, sequence });
                }
                continue;
            }
            Step::Build { limit } => {
                building::step(&mut world, &mut model, limit);
                continue;
            }
            Step::Abandon => {
                building::abandon(&mut world, &mut model);
                continue;
            }
            Step::Ask => {
                if let Some(proposal) = building::question(&world) {
                    check_one(&mut world, &mut model, &proposal);
                }
                continue;
            }
            Step::Repeat { back } => {
                let Some(proposal) = sent.len().checked_sub(back).map(|at| sent[at].clone()) else {
                    continue;
                };
                check_one(&mut world, &mut model, &proposal);
                continue;
            }
        };
        let mut proposal = Proposal::internal(UnixMs::from_raw(world.now), command);
        if let Some((session, sequence, first_unacked)) = by
            && let Some(client) = model.opened.get(session)
        {
            proposal.request = Some(RequestId { client: ClientId::from_raw(*client), sequence });
            proposal.first_unacked = first_unacked;
        }
        check_one(&mut world, &mut model, &proposal);
        sent.push(proposal);
    }
}

fn check_one(world: &mut World, model: &mut Model, proposal: &Proposal) {
    let outcome = world.apply(proposal);
    building::hear(model, proposal, &outcome);
    let (index, answer) = model.propose(proposal);
    // A repeat is answered from memory, also if it was refused: nothing is left for the next command.
    model.forced = None;
    building::refresh(world, model);
    assert_eq!((outcome.decided_at.raw(), &outcome.reply), (index, &answer), "{proposal}");
    compare(&world.memory, model);
    building::check_still(model);
}

proptest! {
#![proptest_config(script::config(300))]

#[test]
fn the_state_does_what_a_naive_model_does(steps in proptest::collection::vec(step(), 1..120)) {
    play(steps);
}

}

proptest! {
    #![proptest_config(script::config(100))]

    #[test]
    fn a_large_tree_is_copied_as_it_is_at_the_last_step_whatever_is_done_meanwhile(
        steps in building::steps(step())
    ) {
        play(steps);
    }
}
