//! Snapshots of large trees beside the naive model: begun and built step by step between all other commands.

use gfs_proto::id::{EntryId, RequestId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;
use proptest::prelude::*;

use super::model::Model;
use super::random::{Step, compare};
use super::script::{World, path};
use crate::state::codec::decode;
use crate::state::{Applied, Command, Outcome, Proposal, Rejected, Table, View, format, read};

/// A tree with chunks, some of them settled, a session, and then anything, with more building than else.
pub(super) fn steps(any: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<Step>> {
    let build = || (1..4_u32).prop_map(|limit| Step::Build { limit });
    let anything = prop_oneof![3 => any, 1 => build()];
    let begin =
        (prop_oneof![Just("/a"), Just("/a/b"), Just("/a/f")], 1..9_u64).prop_map(|(source, sequence)| {
            Step::Begin { source: path(source), target: path("/s"), by: (0, sequence) }
        });
    (begin, proptest::collection::vec(anything, 1..60)).prop_map(|(begin, rest)| {
        let mut steps: Vec<Step> = vec![run(Command::OpenSession { nonce: [0; 16] })];
        let tree = ["/a", "/a/b", "/a/b/c", "/a/d"].map(path);
        steps.extend(tree.map(|path| run(Command::Mkdir { path, parents: false })));
        let files = ["/a/f", "/a/b/g", "/a/d/h", "/a/b/c/i"].map(path);
        steps.extend(files.map(|path| run(Command::Create { path, replication: 0 })));
        steps.extend((1..5).flat_map(settled_chunk));
        steps.push(begin);
        steps.extend(rest);
        steps
    })
}

fn run(command: Command) -> Step {
    Step::Do { command, by: None, after_ms: 0, aim: None }
}

/// A chunk of a file that is settled, but for the last one.
fn settled_chunk(number: u64) -> Vec<Step> {
    use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
    let (handle, members) = (ChunkHandle::from_raw(number), vec![ServerId::from_raw(1)]);
    let (file, primary) = (EntryId::from_raw(5 + number), ServerId::from_raw(1));
    let confirm = |version| Command::ConfirmGrant {
        handle,
        version: ChunkVersion::from_raw(version),
        lease_expires_at: UnixMs::from_raw(300),
    };
    let mut steps = vec![
        run(Command::AddChunk { file, expected_count: 0, members: members.clone(), primary }),
        run(confirm(1)),
    ];
    if number < 4 {
        let expected_version = ChunkVersion::from_raw(1);
        let base = members.clone();
        let (writer, fresh) = (false, false);
        steps.push(run(Command::PrepareGrant {
            handle,
            expected_version,
            members,
            base,
            primary,
            writer,
            fresh,
        }));
        steps.push(run(confirm(2)));
    }
    steps
}

/// Notes the chunks of copies that nobody sees.
pub(super) fn refresh(world: &World, model: &mut Model) {
    let hidden = |file: u64| !model.knows(EntryId::from_raw(file));
    let rows = world.memory.scan(Table::FileChunk, &[], &format::END, usize::MAX);
    let staged = rows.iter().filter(|(key, _)| hidden(u64::from_be_bytes(key[..8].try_into().unwrap())));
    let staged = staged.map(|(_, handle)| decode::<gfs_proto::id::ChunkHandle>(handle).unwrap().raw());
    model.staged = staged.collect();
}

/// Begins a build: the model looks whether it may, and remembers what stands still from here on.
pub(super) fn begin(
    world: &mut World,
    model: &mut Model,
    source: FilePath,
    target: FilePath,
    request: RequestId,
) {
    let command = Command::BeginSnapshot { source: source.clone(), target: target.clone(), request };
    let proposal = Proposal::internal(UnixMs::from_raw(world.now), command);
    world.last_build = Some(Proposal {
        request: Some(request),
        ..Proposal::internal(
            UnixMs::from_raw(world.now),
            Command::Snapshot { source: source.clone(), target: target.clone() },
        )
    });
    let reply = world.apply(&proposal).reply;
    tick(world, model);
    if !model.sessions.contains_key(&request.client.raw()) {
        assert_eq!(reply, Err(Rejected::SessionExpired { client: request.client }));
        return;
    }
    if !model.is_open(request) {
        assert_eq!(reply, Err(Rejected::AlreadyAcknowledged { request }));
        return;
    }
    if let Some(build) = &model.build {
        let same = build.request == request;
        let wanted = if same { Ok(Applied::Done {}) } else { Err(Rejected::Held { entry: build.source }) };
        assert_eq!(reply, wanted);
        return;
    }
    let allowed = model.may_begin(&source, &target).map(|()| Applied::Done {});
    assert_eq!(reply, allowed);
    if let (Ok(_), Ok(Some(build))) = (reply, read::build(&world.memory)) {
        let still = model.tree_of(build.source).unwrap();
        model.next_entry += 1;
        model.build = Some(super::model::ModelBuild {
            root: build.root,
            source: build.source,
            source_path: source,
            target,
            request,
            began_at: model.now,
            still,
        });
    }
    compare(&world.memory, model);
}

fn tick(world: &World, model: &mut Model) {
    model.index += 1;
    model.now = model.now.max(world.now);
}

/// One step of the build, or of none.
pub(super) fn step(world: &mut World, model: &mut Model, limit: u32) {
    let root = model.build.as_ref().map_or(EntryId::from_raw(77), |build| build.root);
    let command = Command::BuildSnapshot { root, limit };
    let reply = world.apply(&Proposal::internal(UnixMs::from_raw(world.now), command)).reply;
    tick(world, model);
    model.next_entry = read::counters(&world.memory).unwrap().next_entry.raw();
    let Some(build) = model.build.clone() else {
        assert_eq!(reply, Err(Rejected::NoSuchEntry { entry: root }));
        return;
    };
    match reply {
        Ok(Applied::Built { rows, more: true, unsettled }) => {
            assert!(rows > 0 || unsettled.is_some(), "no step forward");
            if let Some(handle) = unsettled {
                let chunk = &model.chunks[&handle.raw()];
                assert!(
                    chunk.lease.is_some()
                        || chunk.pending.is_some()
                        || model.origins.contains_key(&handle.raw())
                );
            }
            refresh(world, model);
        }
        Ok(Applied::Built { more: false, .. }) => {
            let id_of = |path: &str| read::stat(&world.memory, &super::script::path(path)).unwrap().id;
            let answer = model.end(&build, id_of);
            finish(world, model, &build, answer);
        }
        other => panic!("{other:?}"),
    }
    compare(&world.memory, model);
    check_still(model);
}

fn finish(
    world: &World,
    model: &mut Model,
    build: &super::model::ModelBuild,
    answer: Result<Applied, Rejected>,
) {
    let command = Command::Snapshot { source: build.source_path.clone(), target: build.target.clone() };
    model.answer(build.request, command.tag(), answer);
    model.build = None;
    refresh(world, model);
    assert_eq!(read::build(&world.memory), Ok(None));
}

/// The build is given up: nobody ever sees anything of it.
pub(super) fn abandon(world: &mut World, model: &mut Model) {
    let Some(build) = model.build.clone() else { return };
    let handle = gfs_proto::id::ChunkHandle::from_raw(1);
    let command = Command::AbandonSnapshot { root: build.root, handle };
    let reply = world.apply(&Proposal::internal(UnixMs::from_raw(world.now), command)).reply;
    assert_eq!(reply, Ok(Applied::Built { rows: 0, more: false, unsettled: None }));
    tick(world, model);
    finish(world, model, &build, Err(Rejected::NotSettled { handle }));
    compare(&world.memory, model);
}

/// The request that the last build was begun for.
pub(super) fn question(world: &World) -> Option<Proposal> {
    let now = UnixMs::from_raw(world.now);
    world.last_build.clone().map(|question| Proposal { now, ..question })
}

/// A refusal because something stands still has to be justified: otherwise the model, which refuses nothing, would have
/// changed that, or refused for a reason of its own.
pub(super) fn hear(model: &mut Model, proposal: &Proposal, outcome: &Outcome) {
    if let Err(Rejected::NotAFile { entry }) = outcome.reply
        && !model.knows(entry)
    {
        // A directory that nobody sees: the model has no such thing.
        model.forced = Some(Rejected::NotAFile { entry });
        return;
    }
    let Err(Rejected::Held { entry }) = outcome.reply else { return };
    let build = model.build.as_ref().expect("nothing is being built");
    assert_eq!(entry, build.source);
    let is_own =
        proposal.request == Some(build.request) && matches!(proposal.command, Command::Snapshot { .. });
    let mut other = model.clone();
    let (_, answer) = other.propose(proposal);
    let touched = other.tree_of(entry) != model.tree_of(entry);
    assert!(is_own || answer.is_err() || touched, "{proposal} was refused for nothing");
    model.forced = Some(Rejected::Held { entry });
}

/// What is below the source is as it was when the build began, unless the source is gone.
pub(super) fn check_still(model: &Model) {
    let Some(build) = &model.build else { return };
    if let Some(now) = model.tree_of(build.source) {
        assert_eq!(now, build.still);
    }
}
