//! Fuzz targets of this crate (`fuzz/src/lib.rs` says how they are run).

mod script;

use std::time::Duration;

use gfs_fuzz::{Dice, Target};
use gfs_proto::id::{ChunkHandle, ChunkVersion, Epoch, LogIndex, ServerId, Term};
use gfs_proto::time::Moment;
use gfs_proto::{Error, pb};

use crate::cluster::{Cluster, Registration, Space};
use crate::identity;
use crate::plan;
use crate::raft::fuzz as raft;
use crate::service::fuzz as service;
use crate::state::codec::{self, Field};
use crate::state::format::{StoredReply, system};
use crate::state::{
    Chunk, Counters, Entry, Master, Memory, Origin, Proposal, Reply, Server, Session, Settings, Trashed,
    View, apply as apply_one, invariant, read,
};

/// Most commands of one script.
const COMMANDS_MAX: usize = 60;
/// Bytes that states in memory and the lists for their invariants may take.
const STATE_BYTES_HELD: usize = 8 << 20;

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    Target::new("state_codec", state_codec),
    Target::new("apply", apply).holding(STATE_BYTES_HELD),
    Target::new("raft_codec", raft::codec),
    Target::new("checkpoint", raft::checkpoint),
    Target::new("messages", service::messages).holding(STATE_BYTES_HELD),
    Target::new("soft_state", soft_state).holding(STATE_BYTES_HELD),
];

/// Commands, replies, rows, keys and a master's identity: refused, or the very bytes that this version writes for them; other
/// formats are told apart.
pub fn state_codec(data: &[u8]) {
    fn one<T: Field>(data: &[u8]) {
        match codec::decode::<T>(data) {
            Ok(record) => assert_eq!(codec::encode(&record), data, "a record has two encodings"),
            Err(codec::DecodeError::UnknownFormat(format)) => assert_eq!(Some(&format), data.first()),
            Err(codec::DecodeError::Malformed) => {}
        }
    }
    one::<Proposal>(data);
    one::<Reply>(data);
    one::<Settings>(data);
    one::<Counters>(data);
    one::<Entry>(data);
    one::<Trashed>(data);
    one::<Chunk>(data);
    one::<Origin>(data);
    one::<Server>(data);
    one::<Master>(data);
    one::<Session>(data);
    one::<StoredReply>(data);
    keys(data);
    identity::fuzz_parse(data);
    if let Ok(proposal) = Proposal::decode(data) {
        assert!(!proposal.to_string().is_empty());
    }
    if let Ok(Reply { result: Err(rejected), .. }) = Reply::decode(data) {
        assert!(!Error::from(rejected).to_string().is_empty());
    }
}

/// Keys that something is read from: none, or what they were made of.
fn keys(data: &[u8]) {
    if let Some((ends, client)) = system::session_of_end(data) {
        assert_eq!(system::session_end(ends, client)[1..], data[1..]);
    }
    if let Some(handle) = system::chunk_of_pending(data) {
        assert_eq!(system::pending(handle)[1..], data[1..]);
    }
}

/// Any list of commands: nothing panics, every invariant holds after each, a refused one changes nothing but clock and
/// session, and the same list gives the same state byte for byte.
pub fn apply(data: &[u8]) {
    let mut dice = Dice::new(data);
    let (mut first, mut second) = (Memory::default(), Memory::default());
    let mut script = script::Script::new(&mut dice);
    for index in 1..=COMMANDS_MAX as u64 {
        let Some(proposal) = script.next(&mut dice, &first) else { break };
        assert_eq!(
            Proposal::decode(&proposal.encode()).as_ref(),
            Ok(&proposal),
            "the encoding lost something"
        );
        let index = LogIndex::from_raw(index);
        let outcome = apply_one(&first, index, &proposal);
        let again = apply_one(&second, index, &proposal);
        assert_eq!(outcome, again, "two masters disagree");
        assert!(!outcome.is_damaged());
        first.write(outcome.writes.clone());
        second.write(again.writes);
        let reply = outcome.into_reply();
        assert_eq!(Reply::decode(&reply.encode()).as_ref(), Ok(&reply));
        assert_eq!(invariant::check(&first), Ok(()), "after {proposal}");
    }
    assert!(first == second, "two masters differ");
}

/// What chunkservers say of themselves: a master that hears anything keeps its wits.
pub fn soft_state(data: &[u8]) {
    let mut dice = Dice::new(data);
    let mut memory = Memory::default();
    let mut script = script::Script::new(&mut dice);
    for index in 1..=8 {
        let Some(proposal) = script.next(&mut dice, &memory) else { break };
        let writes = apply_one(&memory, LogIndex::from_raw(index), &proposal).writes;
        memory.write(writes);
    }
    let mut cluster = Cluster::default();
    let mut now = Moment::default();
    while !dice.is_empty() {
        now = now.plus(Duration::from_millis(dice.number()));
        said(&mut dice, &mut cluster, &memory, now);
        decided(&mut dice, &cluster, now);
    }
}

/// One message of a server, or what the master does in between.
fn said(dice: &mut Dice<'_>, cluster: &mut Cluster, view: &dyn View, now: Moment) {
    let server = ServerId::from_raw(1 + dice.below(3));
    let epoch = Epoch::from_raw(dice.below(2));
    let chunk =
        |dice: &mut Dice<'_>| (ChunkHandle::from_raw(dice.below(6)), ChunkVersion::from_raw(dice.number()));
    match dice.below(8) {
        0 | 1 => {
            let (address, rack) = (String::new(), format!("r{}", dice.below(3)));
            cluster.register(server, Registration { address, rack, epoch }, now);
        }
        2 | 3 => {
            let near = cluster.server(server).map_or(0, |known| known.reports_taken());
            let request = pb::ReportRequest {
                epoch: epoch.raw(),
                sequence: if dice.below(4) > 0 { near.wrapping_add(dice.below(3)) } else { dice.number() },
                full: dice.coin(),
                first: dice.coin(),
                last: dice.coin(),
                replicas: (0..dice.below(4)).map(|_| replica(dice)).collect(),
                removed: (0..dice.below(3)).map(|_| dice.below(6)).collect(),
                ..pb::ReportRequest::default()
            };
            if let Ok(report) = service::report(&request) {
                cluster.report(server, &report, view, now);
            }
        }
        4 => {
            let [total_bytes, free_bytes, used_bytes] = [(); 3].map(|()| dice.number());
            cluster.heartbeat(server, epoch, Space { total_bytes, free_bytes, used_bytes }, now);
        }
        5 => drop(cluster.answer(server, epoch, dice.number(), (Term::from_raw(dice.number()), now))),
        6 => {
            let (handle, version) = chunk(dice);
            match dice.below(4) {
                0 => cluster.adopted(handle, version, &[server], now),
                1 => cluster.deleted(server, handle, ChunkVersion::from_raw(dice.number())),
                2 => cluster.suspect(server),
                _ => cluster.start_over(view, now),
            }
        }
        _ => {
            cluster.tick(view, now);
            cluster.is_counted(view, now);
        }
    }
}

fn replica(dice: &mut Dice<'_>) -> pb::ReplicaReport {
    pb::ReplicaReport {
        handle: dice.below(6),
        version: dice.number(),
        adopted: dice.number(),
        length: dice.small_number(),
        partial: dice.coin(),
        sealed: dice.coin(),
        corrupt: dice.coin(),
    }
}

/// What follows from the soft state.
fn decided(dice: &mut Dice<'_>, cluster: &Cluster, now: Moment) {
    let candidates = cluster.candidates(dice.small_number(), &Default::default(), now);
    let count = dice.index(5);
    let mut picked = plan::placement::pick(&candidates, &["r1"], count, dice.raw());
    assert!(picked.len() <= count);
    picked.sort_unstable();
    picked.dedup();
    assert!(picked.iter().all(|server| candidates.iter().any(|candidate| candidate.server == *server)));
    let slots = dice.index(4);
    assert!(plan::repair::choose(cluster.weak_for_repair(now), slots).len() <= slots);
    for server in cluster.servers().keys() {
        let _standing = cluster.standing(*server, None, now);
    }
    assert!(cluster.alive(now) <= cluster.servers().len());
    assert!(cluster.weak().values().all(|weak| weak.live < weak.goal));
}

/// Whether a state holds a cluster.
fn is_made(view: &dyn View) -> bool {
    read::settings(view).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_holds_for_its_corpus_and_random_inputs() {
        TARGETS.iter().for_each(gfs_fuzz::check);
    }
}
