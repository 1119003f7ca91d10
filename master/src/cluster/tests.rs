//! One claim per test: what follows from reports, heartbeats and the state together.

use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkVersion, EntryId, Epoch, ServerId, Term};
use gfs_proto::time::Moment;

use super::{Cluster, DENIED_MAX, Held, Part, Registration, Report, SILENCE, SWEPT_LATE, Space, Unanswered};
use crate::state::{Chunk, Memory, Pending};

const EPOCH: u64 = 1;

fn at(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}
fn ids(raw: &[u64]) -> Vec<ServerId> {
    raw.iter().copied().map(ServerId::from_raw).collect()
}
fn handle(raw: u64) -> ChunkHandle {
    ChunkHandle::from_raw(raw)
}
fn held(version: u64) -> Held {
    Held { version: ChunkVersion::from_raw(version), partial: false, corrupt: false }
}

/// Chunk 7, confirmed at version 5 on servers 1, 2 and 3.
fn chunk() -> Chunk {
    Chunk {
        handle: handle(7),
        file: EntryId::from_raw(2),
        goal: 3,
        references: 1,
        version: ChunkVersion::from_raw(5),
        confirmed: ChunkVersion::from_raw(5),
        members: ids(&[1, 2, 3]),
        pending: None,
        lease: None,
    }
}
fn pending(members: &[u64]) -> Chunk {
    let members = ids(members);
    let base = members.iter().copied().filter(|server| server.raw() <= 3).collect::<Vec<_>>();
    let version = ChunkVersion::from_raw(6);
    let primary = base[0];
    let pending = Pending { version, members, base, primary, writer: true, fresh: false };
    Chunk { version, pending: Some(pending), ..chunk() }
}

fn report(sequence: u64, full: Option<(bool, bool)>, replicas: &[(u64, Held)], removed: &[u64]) -> Report {
    Report {
        epoch: Epoch::from_raw(EPOCH),
        sequence,
        full: full.map(|(first, last)| Part { first, last }),
        replicas: replicas.iter().map(|(raw, held)| (handle(*raw), *held)).collect(),
        removed: removed.iter().copied().map(handle).collect(),
    }
}

/// Servers 1 to 3 with a full report of chunk 7 at version 5.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for server in ids(&[1, 2, 3]) {
        register(&mut cluster, server.raw(), EPOCH);
        assert!(cluster.report(
            server,
            &report(1, Some((true, true)), &[(7, held(5))], &[]),
            &Memory::default(),
            at(0)
        ));
    }
    cluster.examine(handle(7), Some(&chunk()), at(0));
    cluster
}
fn register(cluster: &mut Cluster, server: u64, epoch: u64) {
    let epoch = Epoch::from_raw(epoch);
    let registration = Registration { address: format!("s:{server}"), rack: String::new(), epoch };
    cluster.register(ServerId::from_raw(server), registration, at(0));
}
fn denied(cluster: &mut Cluster, server: u64) -> Option<Vec<u64>> {
    let reign = (Term::from_raw(1), at(10));
    cluster.answer(ServerId::from_raw(server), Epoch::from_raw(EPOCH), 1, reign).ok()
}

#[test]
fn an_answer_denies_what_the_server_is_no_confirmed_member_of() {
    let mut cluster = cluster();
    assert_eq!(denied(&mut cluster, 1), Some(vec![]));
    // Guard validate_ignores_pending: from the prepare on the one left out is denied.
    cluster.examine(handle(7), Some(&pending(&[1, 2, 4])), at(0));
    assert_eq!(denied(&mut cluster, 1), Some(vec![]));
    assert_eq!(denied(&mut cluster, 3), Some(vec![7]));
    // Gone from the state: denied to all.
    cluster.examine(handle(7), None, at(0));
    assert_eq!(denied(&mut cluster, 1), Some(vec![7]));
}

#[test]
fn an_exclusion_is_named_in_every_answer_until_the_confirm() {
    // Guard named_once: an answer may be lost, and a server may restart.
    let mut cluster = cluster();
    cluster.examine(handle(7), Some(&pending(&[1, 2, 4])), at(0));
    for _ in 0..3 {
        assert_eq!(denied(&mut cluster, 3), Some(vec![7]));
    }
    // A grant that takes it in again overtakes the first.
    let version = ChunkVersion::from_raw(6);
    let confirmed = Chunk { version, confirmed: version, ..chunk() };
    assert!(cluster.report(
        ServerId::from_raw(3),
        &report(2, None, &[(7, held(6))], &[]),
        &Memory::default(),
        at(0)
    ));
    cluster.examine(handle(7), Some(&confirmed), at(0));
    assert_eq!(denied(&mut cluster, 3), Some(vec![]));
}

#[test]
fn a_replica_that_the_state_does_not_know_is_denied_from_its_report_on() {
    let mut cluster = cluster();
    let delta = report(2, None, &[(9, held(1))], &[]);
    assert!(cluster.report(ServerId::from_raw(1), &delta, &Memory::default(), at(0)));
    assert_eq!(denied(&mut cluster, 1), Some(vec![9]));
    let gone = report(3, None, &[], &[9]);
    assert!(cluster.report(ServerId::from_raw(1), &gone, &Memory::default(), at(0)));
    assert_eq!(denied(&mut cluster, 1), Some(vec![]));
}

#[test]
fn a_stale_or_partial_or_corrupt_replica_is_not_current() {
    let whole = held(5);
    assert!(whole.is_current(&chunk(), ServerId::from_raw(1)));
    assert!(!held(4).is_current(&chunk(), ServerId::from_raw(1)));
    assert!(!Held { partial: true, ..whole }.is_current(&chunk(), ServerId::from_raw(1)));
    assert!(!Held { corrupt: true, ..whole }.is_current(&chunk(), ServerId::from_raw(1)));
    // Guard current_by_version.
    assert!(!held(9).is_current(&chunk(), ServerId::from_raw(4)));
}

#[test]
fn an_answer_is_for_the_epoch_that_asked_and_for_reports_that_came() {
    // Guard no_epoch.
    let mut cluster = cluster();
    let server = ServerId::from_raw(1);
    let reign = (Term::from_raw(1), at(10));
    let missing = Err(Unanswered::ReportsMissing);
    assert_eq!(cluster.answer(server, Epoch::from_raw(2), 1, reign), missing);
    assert_eq!(cluster.answer(server, Epoch::from_raw(EPOCH), 2, reign), missing, "a batch is missing here");
    assert_eq!(cluster.server(server).unwrap().answered, None);
    assert!(cluster.answer(server, Epoch::from_raw(EPOCH), 1, reign).is_ok());
    assert_eq!(cluster.server(server).unwrap().answered, Some(reign));
}

#[test]
fn who_holds_more_garbage_than_can_be_named_is_not_answered_and_need_not_report_it_again() {
    let mut cluster = cluster();
    let server = ServerId::from_raw(1);
    let ask = |cluster: &mut Cluster| {
        cluster.answer(server, Epoch::from_raw(EPOCH), 1, (Term::from_raw(1), at(10)))
    };
    let deny = |cluster: &mut Cluster, count: usize| {
        let denied = &mut cluster.servers.get_mut(&server).unwrap().denied;
        *denied = (0..count as u64).map(ChunkHandle::from_raw).collect();
    };
    deny(&mut cluster, SWEPT_LATE);
    assert!(!cluster.is_swept_late(at(0)));
    deny(&mut cluster, SWEPT_LATE + 1);
    assert!(cluster.is_swept_late(at(0)) && ask(&mut cluster).is_ok());
    assert!(!cluster.is_swept_late(at(0).plus(SILENCE * 2)), "who is gone holds up nobody");
    deny(&mut cluster, DENIED_MAX + 1);
    assert_eq!(ask(&mut cluster), Err(Unanswered::DeniesTooMany));
}

#[test]
fn an_answer_to_a_deletion_that_comes_late_forgets_no_replica_of_a_later_grant() {
    let mut cluster = cluster();
    let server = ServerId::from_raw(3);
    let version = ChunkVersion::from_raw;
    // While the answer was under way it joined again.
    cluster.adopted(handle(7), version(7), &[server], at(0));
    cluster.deleted(server, handle(7), version(5));
    let later = Chunk { version: version(8), ..pending(&[1, 2, 4]) };
    cluster.examine(handle(7), Some(&later), at(0));
    assert_eq!(denied(&mut cluster, 3), Some(vec![7]), "it is left out and has to hear of it");
    cluster.deleted(server, handle(7), version(7));
    assert_eq!(denied(&mut cluster, 3), Some(vec![]));
}

#[test]
fn a_missing_batch_asks_for_a_full_report_and_a_repeated_one_does_not() {
    // Trap T26.
    let mut cluster = cluster();
    let server = ServerId::from_raw(1);
    let view = Memory::default();
    assert!(!cluster.report(server, &report(3, None, &[], &[]), &view, at(0)));
    assert!(cluster.report(server, &report(1, Some((true, true)), &[], &[]), &view, at(0)), "a repeat");
    assert!(cluster.server(server).unwrap().replicas.contains_key(&handle(7)));
    // The full report begins anew at any later sequence.
    assert!(cluster.report(server, &report(5, Some((true, false)), &[(8, held(1))], &[]), &view, at(0)));
    assert!(!cluster.server(server).unwrap().has_full_report());
    assert!(cluster.report(server, &report(6, Some((false, true)), &[], &[]), &view, at(0)));
    let server = cluster.server(server).unwrap();
    assert!(server.has_full_report());
    assert_eq!(
        server.replicas.keys().copied().collect::<Vec<_>>(),
        [handle(8)],
        "what it does not name is gone"
    );
}

#[test]
fn a_new_epoch_begins_without_reports_and_keeps_what_was_known_meanwhile() {
    let mut cluster = cluster();
    register(&mut cluster, 1, 2);
    let server = ServerId::from_raw(1);
    assert!(!cluster.server(server).unwrap().has_full_report());
    assert!(cluster.server(server).unwrap().replicas.contains_key(&handle(7)));
    // A delta of the new epoch means nothing before its full report.
    let delta = Report { epoch: Epoch::from_raw(2), ..report(1, None, &[(9, held(1))], &[]) };
    assert!(!cluster.report(server, &delta, &Memory::default(), at(0)));
    assert!(
        !cluster.heartbeat(server, Epoch::from_raw(EPOCH), Space::default(), at(0)),
        "the old epoch is over"
    );
}

#[test]
fn weakness_is_measured_from_what_live_servers_reported() {
    // Promise P9.
    let mut cluster = cluster();
    assert!(cluster.weak().is_empty());
    for server in ids(&[1, 2]) {
        cluster.heartbeat(server, Epoch::from_raw(EPOCH), Space::default(), at(2500));
    }
    cluster.examine(handle(7), Some(&chunk()), at(3500));
    let weakness = cluster.weak()[&handle(7)];
    assert_eq!((weakness.live, weakness.goal, weakness.since), (2, 3, at(3500)));
    cluster.examine(handle(7), Some(&chunk()), at(4500));
    assert_eq!(cluster.weak()[&handle(7)].since, at(3500), "since it began");
    cluster.heartbeat(ServerId::from_raw(3), Epoch::from_raw(EPOCH), Space::default(), at(4600));
    cluster.examine(handle(7), Some(&chunk()), at(4700));
    assert!(cluster.weak().is_empty());
}

#[test]
fn a_pause_of_this_process_makes_nobody_silent() {
    // Trap T46.
    let mut cluster = cluster();
    cluster.tick(&Memory::default(), at(250));
    cluster.tick(&Memory::default(), at(60_000));
    assert!(cluster.is_alive(ServerId::from_raw(1), at(60_000)));
    for millis in (60_250..64_000).step_by(250) {
        cluster.tick(&Memory::default(), at(millis));
    }
    assert!(!cluster.is_alive(ServerId::from_raw(1), at(64_000)));
}

#[test]
fn a_member_that_has_not_reported_the_chunk_is_asked_and_one_that_is_known_to_be_bad_is_not() {
    let mut cluster = cluster();
    register(&mut cluster, 4, EPOCH);
    let moved = Chunk { members: ids(&[1, 2, 4]), ..chunk() };
    let avoid = ids(&[1]).into_iter().collect();
    let current = |cluster: &Cluster| -> Vec<u64> {
        cluster.current(&moved, &avoid, at(0)).into_iter().map(|(server, _)| server.raw()).collect()
    };
    assert_eq!(current(&cluster), [2, 4]);
    let corrupt = Held { corrupt: true, ..held(5) };
    assert!(cluster.report(
        ServerId::from_raw(2),
        &report(2, None, &[(7, corrupt)], &[]),
        &Memory::default(),
        at(0)
    ));
    assert_eq!(current(&cluster), [4]);
}

#[test]
fn only_reported_live_replicas_on_others_count_before_a_deletion() {
    use crate::plan::sweep::Standing;
    let mut cluster = cluster();
    register(&mut cluster, 4, EPOCH);
    let outsider = ServerId::from_raw(4);
    let good = |cluster: &Cluster, now| match cluster.standing(outsider, Some(&chunk()), now) {
        Standing::Outsider { good_elsewhere, .. } => good_elsewhere,
        other @ (Standing::Unknown | Standing::Member) => panic!("{other:?}"),
    };
    assert_eq!(good(&cluster, at(0)), 3);
    // Trap T22: a server that registered anew counts only after its full report.
    register(&mut cluster, 1, 2);
    assert_eq!(good(&cluster, at(0)), 2);
    assert_eq!(good(&cluster, at(4000)), 0, "silent ones do not count");
    assert_eq!(cluster.standing(outsider, Some(&pending(&[1, 4])), at(0)), Standing::Member);
    assert_eq!(cluster.standing(outsider, None, at(0)), Standing::Unknown);
}

#[test]
fn what_was_lost_while_a_grant_was_under_way_its_confirm_does_not_bring_back() {
    let mut cluster = cluster();
    let (begun, version) = (at(100), ChunkVersion::from_raw(6));
    let lost = report(2, None, &[], &[7]);
    assert!(cluster.report(ServerId::from_raw(3), &lost, &Memory::default(), at(150)));
    cluster.adopted(handle(7), version, &ids(&[1, 2, 3]), begun);
    let confirmed = Chunk { version, confirmed: version, ..chunk() };
    cluster.examine(handle(7), Some(&confirmed), at(200));
    assert_eq!(cluster.weak().get(&handle(7)).map(|weakness| weakness.live), Some(2));
    // A grant that began after the loss gave it a new replica, which is not reported yet.
    cluster.adopted(handle(7), version, &ids(&[3]), at(160));
    cluster.examine(handle(7), Some(&confirmed), at(200));
    assert!(cluster.weak().is_empty());
}

/// How many replicas of chunk 7 count after a grant of version 6 that began at 100, if server 3 reported so in the middle of it.
fn live_after(held: Held, anew: bool) -> u32 {
    let mut cluster = cluster();
    let (server, version) = (ServerId::from_raw(3), ChunkVersion::from_raw(6));
    let (epoch, first) = if anew { (2, Some((true, true))) } else { (EPOCH, None) };
    if anew {
        let (address, epoch) = ("s:3".to_owned(), Epoch::from_raw(epoch));
        cluster.register(server, Registration { address, rack: String::new(), epoch }, at(150));
    }
    let said = Report { epoch: Epoch::from_raw(epoch), ..report(2, first, &[(7, held)], &[]) };
    assert!(cluster.report(server, &said, &Memory::default(), at(160)));
    cluster.adopted(handle(7), version, &ids(&[1, 2, 3]), at(100));
    let confirmed = Chunk { version, confirmed: version, ..chunk() };
    cluster.examine(handle(7), Some(&confirmed), at(200));
    cluster.weak().get(&handle(7)).map_or(3, |weakness| weakness.live)
}

#[test]
fn what_a_member_said_in_the_middle_of_a_grant_is_over_with_its_confirm() {
    // Else it is given the same replica again, for which it drops what it holds (`gfs-jepsen measure chunkserver`).
    assert_eq!(live_after(Held { partial: true, ..held(6) }, false), 3);
    assert_eq!(live_after(Held { corrupt: true, ..held(5) }, false), 3, "it has been replaced");
}

#[test]
fn what_a_member_said_after_its_adoption_its_confirm_does_not_take_back() {
    assert_eq!(live_after(Held { partial: true, ..held(6) }, true), 2, "it has lost power since");
    assert_eq!(live_after(Held { corrupt: true, ..held(6) }, false), 2, "its copy is damaged already");
}

#[test]
fn a_server_that_has_counted_to_the_end_is_asked_for_a_full_report() {
    let mut cluster = cluster();
    let view = Memory::default();
    let id = ids(&[1])[0];
    assert!(cluster.report(id, &report(u64::MAX, Some((true, true)), &[], &[]), &view, at(0)));
    assert!(!cluster.report(id, &report(1, None, &[], &[]), &view, at(0)));
}
