//! What an operator's decision changes for a replica that may have lost something, and what it does not (docs/decisions/0020).

use super::*;

/// A replica that was whole at v4 and has lost its power; `corrupt` if it is damaged, too.
fn after_power_cut(corrupt: bool) -> Replica {
    let end = Position { serial: serial(3), length: 30, sealed: false };
    let held = Held { version: version(4), adopted: version(4), end, partial: true, corrupt };
    Replica::restored(server(1), CHUNK, held, false, Standing::default())
}

/// A grant of v5 to these, the first of them as the primary.
fn grant(members: &[u64], base: &[u64], accepted: bool) -> Grant {
    let peer = |id: &u64| Peer { server: server(*id), address: format!("host:{id}") };
    Grant {
        version: version(5),
        members: members.iter().map(peer).collect(),
        base: base.iter().copied().map(server).collect(),
        primary: server(members[0]),
        writer: false,
        fresh: false,
        accepted,
        chunk_bytes: ChunkBytes::DEFAULT,
    }
}

/// Stores a grant; whether the replica may then lead its reconciliation, and with whose content.
fn leads(mut replica: Replica, grant: Grant) -> Option<Option<ServerId>> {
    let held = Held { version: grant.version, ..replica.held() };
    let how = Replica::store(server(1), CHUNK, Some(version(4)), &grant).unwrap();
    replica.stored(grant, how, held, at(1));
    assert_eq!(replica.held().partial, held.partial, "the flag stays until it has adopted");
    match replica.reconcile(version(5)) {
        Ok(Step::Go(grant)) => Some(longest(&grant, &[Candidate { server: server(1), held }])),
        Ok(Step::Done) => panic!("it has reconciled nothing"),
        Err(_) => None,
    }
}

#[test]
fn a_replica_that_may_have_lost_something_leads_only_the_grant_of_a_decision_for_it() {
    // Guard partial_forgotten, power_cut_ignored: without a decision it is no base.
    assert_eq!(leads(after_power_cut(false), grant(&[1], &[1], false)), None);
    assert_eq!(leads(after_power_cut(false), grant(&[1, 2], &[1, 2], false)), None);
    assert_eq!(leads(after_power_cut(false), grant(&[1], &[1], true)), Some(Some(server(1))));
    // A decision is for one: of several base members nobody knows whose content was meant.
    assert_eq!(leads(after_power_cut(false), grant(&[1, 2], &[1, 2], true)), None);
    // And damage is no content.
    assert_eq!(leads(after_power_cut(true), grant(&[1], &[1], true)), None);
}

#[test]
fn what_another_says_of_itself_is_believed_in_no_decision() {
    let end = Position { serial: serial(9), length: 90, sealed: false };
    let held = Held { version: version(5), adopted: version(4), end, partial: true, corrupt: false };
    let other = Candidate { server: server(2), held };
    assert_eq!(longest(&grant(&[1, 2], &[1], true), &[other]), None);
}

#[test]
fn a_decision_is_over_with_its_version_and_with_a_restart() {
    let mut replica = after_power_cut(false);
    let held = Held { version: version(5), ..replica.held() };
    replica.stored(grant(&[1], &[1], true), Store::Base, held, at(1));
    // Before it has adopted it serves nobody and tells nobody that it is whole.
    assert!(replica.held().partial && replica.activate(version(5)).is_err());
    let later = Grant { version: version(6), ..grant(&[1], &[1], false) };
    replica.stored(later, Store::Base, Held { version: version(6), ..held }, at(2));
    assert!(replica.reconcile(version(6)).is_err());
    let restarted = Replica::restored(server(1), CHUNK, held, false, Standing::default());
    assert!(restarted.reconcile(version(5)).is_err(), "guard primary_survives_restart");
}
