//! Whatever the bytes, nothing panics.

use gfs_proto::id::LogIndex;
use gfs_proto::time::UnixMs;
use proptest::prelude::*;

use super::golden;
use super::script::{self, World};
use crate::state::codec::DecodeError;
use crate::state::{Command, Memory, Overlay, Proposal, Reply, Table, View, apply, invariant};

/// A state with something in every table.
fn populated() -> World {
    let mut world = World::with_servers();
    for line in [
        "open 1",
        "mkdir -p /a/b",
        "create /a/f #6:1",
        "create /a/g #6:2",
        "add e4 0 s1,s2,s3 s1",
        "add e4 1 s1,s2,s3 s1",
        "confirm c1 v1 @60",
        "rm /a/g #6:3",
        "mkdir /gone",
        "create /gone/h",
        "rm -r /gone",
    ] {
        let told = world.line(line);
        assert!(!told.contains("rejected"), "{line}: {told}");
    }
    world
}

#[test]
fn a_later_format_is_told_apart_from_garbage() {
    assert_eq!(Proposal::decode(&[2, 0]), Err(DecodeError::UnknownFormat(2)));
    assert_eq!(Proposal::decode(&[]), Err(DecodeError::Malformed));
    assert_eq!(Reply::decode(&[1, 0, 7]), Err(DecodeError::Malformed));
}

/// Found by fuzzing.
#[test]
fn a_command_that_ends_its_own_session_or_request_leaves_no_answer_behind() {
    let mut memory = Memory::default();
    let commands = golden::commands();
    let client = gfs_proto::id::ClientId::from_raw(2);
    let request = gfs_proto::id::RequestId { client, sequence: 1 };
    let gone = Proposal {
        request: Some(request),
        ..Proposal::internal(UnixMs::from_raw(u64::MAX), commands[3].clone())
    };
    let opened = Proposal::internal(UnixMs::from_raw(u64::MAX), commands[1].clone());
    let made = Proposal::internal(UnixMs::from_raw(1), commands[0].clone());
    let renewed = Proposal { first_unacked: 9, command: Command::RenewSession { client }, ..gone.clone() };
    for (index, proposal) in (1..).zip([
        made,
        opened,
        renewed,
        Proposal { request: Some(gfs_proto::id::RequestId { client, sequence: 9 }), ..gone },
    ]) {
        let outcome = apply(&memory, LogIndex::from_raw(index), &proposal);
        memory.write(outcome.writes);
        assert_eq!(invariant::check(&memory), Ok(()), "{proposal}");
    }
}

/// Found by fuzzing.
#[test]
fn what_is_deleted_at_the_end_of_time_is_not_taken_for_a_snapshot_under_way() {
    let mut memory = Memory::default();
    let commands = golden::commands();
    let mkdir = Command::Mkdir { path: script::path("/a"), parents: false };
    for (index, command) in (1..).zip([commands[0].clone(), mkdir, commands[6].clone()]) {
        let proposal = Proposal::internal(UnixMs::from_raw(u64::MAX), command);
        let outcome = apply(&memory, LogIndex::from_raw(index), &proposal);
        assert!(outcome.reply.is_ok(), "{proposal}");
        memory.write(outcome.writes);
        assert_eq!(invariant::check(&memory), Ok(()), "{proposal}");
    }
}

fn commands_harm_nothing(view: &dyn View) {
    for command in golden::commands() {
        let proposal = Proposal::internal(UnixMs::from_raw(1 << 40), command);
        let outcome = apply(view, LogIndex::from_raw(99), &proposal);
        assert!(!outcome.is_damaged() || outcome.writes.is_empty());
    }
}

/// Each row, and each key, in turn is garbage, and each command comes: it may be refused, but must not panic.
#[test]
fn damaged_rows_never_panic() {
    let world = populated();
    for table in Table::ALL {
        for (key, value) in world.memory.scan(table, &[], &[0xff; 20], usize::MAX) {
            for garbage in
                [vec![], vec![1], vec![1, 0xff, 0xff], vec![9; 40], value[..value.len() / 2].to_vec()]
            {
                let mut overlay = Overlay::new(&world.memory);
                overlay.put(table, key.clone(), garbage);
                commands_harm_nothing(&overlay);
            }
            for garbage in [&key[..key.len() - 1], &key[..key.len() / 2], &[&key[..], &[7]].concat()] {
                let mut overlay = Overlay::new(&world.memory);
                overlay.put(table, garbage.to_vec(), value.clone());
                commands_harm_nothing(&overlay);
            }
        }
    }
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<Vec<u8>> = golden::commands()
        .into_iter()
        .map(|command| Proposal::internal(UnixMs::from_raw(5), command).encode())
        .collect();
    (proptest::sample::select(samples), proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4))
        .prop_map(|(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(script::config(2000))]

    #[test]
    fn garbage_never_panics_and_what_decodes_is_applied_without_harm(
        bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..60), mutated()],
    ) {
        thread_local!(static WORLD: Memory = populated().memory);
        if let Ok(proposal) = Proposal::decode(&bytes) {
            prop_assert_eq!(&proposal.encode(), &bytes);
            let mut memory = WORLD.with(Memory::clone);
            let outcome = apply(&memory, LogIndex::from_raw(99), &proposal);
            prop_assert!(!outcome.is_damaged());
            memory.write(outcome.writes);
            prop_assert_eq!(invariant::check(&memory), Ok(()));
        }
        if let Ok(reply) = Reply::decode(&bytes) {
            prop_assert_eq!(reply.encode(), bytes);
        }
    }
}
