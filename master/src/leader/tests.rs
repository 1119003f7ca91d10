//! One claim per test: what the grant driver orders, in which order, and when it waits.

mod attempts;
mod build;
mod counting;
mod cut_off;
mod decision;
mod exclusion;
mod expiry;
mod reign;
mod repair;
mod snapshot;
mod sweep;
mod unlink;

use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::{Expect, expect};
use gfs_proto::Error;
use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};

use super::duties::Duties;
use super::grant::Wish;
use super::lease::Hint;
use super::testing::{Mood, Stage};
use crate::cluster::Held;
use crate::plan::grant::Reach;
use crate::state::{Applied, Command};

fn server(raw: u64) -> ServerId {
    ServerId::from_raw(raw)
}
fn without(raw: &[u64]) -> Wish {
    Wish::write().without(raw.iter().copied().map(server).collect())
}
fn check(stage: &Stage, expected: &Expect) {
    expected.assert_eq(&stage.servers.trace());
}
fn show(stage: &Stage, handle: ChunkHandle) -> String {
    let mut chunk = stage.chunk(handle);
    // The end of a lease is wall time.
    if let Some(lease) = &mut chunk.lease {
        lease.expires_at = gfs_proto::time::UnixMs::default();
    }
    chunk.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_fresh_grant_is_stored_everywhere_then_confirmed_then_active() {
    let stage = Stage::new(4);
    let handle = stage.add_chunk(0);
    let leased = stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    assert_eq!((leased.primary, leased.members), (server(1), vec![server(1), server(2), server(3)]));
    check(
        &stage,
        &expect![[r#"
        s1: store v1 fresh
        s2: store v1 fresh
        s3: store v1 fresh
        s1: activate v1"#]],
    );
    // The next caller gets the same lease, and no server hears of it.
    let again = stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    assert_eq!(again.version, leased.version);
    check(&stage, &expect![""]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_fails_in_store_is_replaced_under_a_new_version() {
    let stage = Stage::new(4);
    stage.servers.set(3, Mood::Dead);
    let handle = stage.add_chunk(0);
    stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    expect!["c1 v2 confirmed v2 on [s1, s2, s4], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_chunk_share_one_grant() {
    let stage = Stage::new(4);
    let handle = stage.add_chunk(0);
    let find = || stage.granter.find_lease(&stage.reign, handle, None);
    let (one, two, three) = tokio::join!(find(), find(), find());
    assert_eq!(one.unwrap().version, two.unwrap().version);
    assert_eq!(three.unwrap().version, ChunkVersion::from_raw(1));
}

#[tokio::test(start_paused = true)]
async fn a_regrant_reconciles_and_the_one_left_out_is_told_before_the_confirm() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
    check(
        &stage,
        &expect![[r#"
        s1: store v2 base
        s2: store v2 base
        s1: reconcile v2
        s3: v2 leaves it out
        s1: activate v2"#]],
    );
    expect!["c1 v2 confirmed v2 on [s1, s2], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_member_left_out_that_does_not_answer_is_waited_out() {
    // Guard no_fence_wait: an answer at the very moment of the prepare may have validated the chunk.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.pass(Duration::from_secs(20)).await;
    stage.servers.set(3, Mood::Dead);
    let granting = stage.granter.grant(&stage.reign, handle, without(&[3]));
    let (granted, took) = stage.during(granting).await;
    granted.unwrap();
    assert!((Duration::from_millis(3200)..Duration::from_millis(3400)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_after_the_prepare_do_not_prolong_the_wait() {
    // They deny the chunk, so the fence runs from the prepare although the server goes on being answered.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.pass(Duration::from_secs(20)).await;
    stage.servers.set(3, Mood::Deaf);
    let (granted, took) = stage.during(stage.granter.grant(&stage.reign, handle, without(&[3]))).await;
    granted.unwrap();
    assert!((Duration::from_millis(3200)..Duration::from_millis(3500)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_another_epoch_does_not_count() {
    // Guard exclusion_forgotten.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(3, Mood::Forgetful);
    let (granted, took) = stage.during(stage.granter.grant(&stage.reign, handle, without(&[3]))).await;
    granted.unwrap();
    assert!(took >= Duration::from_secs(3), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_silent_for_long_is_not_waited_for() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(3, Mood::Dead);
    stage.pass(Duration::from_secs(4)).await;
    let (granted, took) = stage.during(stage.granter.grant(&stage.reign, handle, Wish::write())).await;
    granted.unwrap();
    assert!(took < Duration::from_millis(100), "{took:?}");
    expect!["c1 v2 confirmed v2 on [s1, s2], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_resumes_the_pending_grant_and_counts_the_fence_from_its_own_term() {
    let mut stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.pass(Duration::from_secs(20)).await;
    stage.servers.set(1, Mood::Slow);
    let waiting = stage.granter.start(&stage.reign, handle, without(&[3])).unwrap();
    stage.pass(Duration::from_millis(200)).await;
    assert_eq!(stage.chunk(handle).version, ChunkVersion::from_raw(2));
    // The prepare is old, and nothing is known of what the earlier leader answered: guards no_term_wait and
    // no_term_start.
    stage.pass(Duration::from_secs(10)).await;
    stage.servers.set(1, Mood::Well);
    stage.servers.set(3, Mood::Dead);
    stage.fail_over(4);
    drop(waiting);
    stage.servers.trace();
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let begun = stage.now();
    duties.tick_care(&stage.reign).unwrap();
    while stage.chunk(handle).pending.is_some() {
        stage.pass(Duration::from_millis(50)).await;
    }
    let took = stage.now().since(begun);
    assert!((Duration::from_millis(3200)..Duration::from_millis(3500)).contains(&took), "{took:?}");
    expect!["c1 v2 confirmed v2 on [s1, s2], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_stops_its_drivers() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::Slow);
    let mut outcome = stage.granter.start(&stage.reign, handle, without(&[3])).unwrap();
    stage.pass(Duration::from_millis(200)).await;
    stage.reign.over.cancel();
    let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(outcome, Some(Err(Error::NotLeader { leader: None })));
    assert!(stage.chunk(handle).pending.is_some(), "the next leader finds it");
}

#[tokio::test(start_paused = true)]
async fn a_base_member_that_may_have_lost_bytes_is_no_base() {
    // Guard partial_forgotten.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(2, Mood::Partial);
    let wish = Wish::write();
    stage.granter.grant(&stage.reign, handle, wish).await.unwrap();
    expect!["c1 v3 confirmed v3 on [s1, s3], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn with_too_few_servers_a_write_says_so_and_what_is_there_is_settled_for_reading_once() {
    let stage = Stage::new(3);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::Dead);
    stage.pass(Duration::from_secs(4)).await;
    for _ in 0..2 {
        let error = stage.granter.grant(&stage.reign, handle, Wish::write()).await.unwrap_err();
        assert_eq!(error.to_string(), "3 replicas wanted, 2 chunkservers alive");
    }
    // One grant, not two.
    expect!["c1 v2 confirmed v2 on [s2, s3]"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_hint_makes_the_leader_look_and_a_healthy_lease_stays() {
    // Trap T2: the client's word alone changes nothing.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let version = ChunkVersion::from_raw(1);
    for accused in [None, Some(server(1)), Some(server(2))] {
        let hint = Some(Hint { version, server: accused });
        let leased = stage.granter.find_lease(&stage.reign, handle, hint).await.unwrap();
        assert_eq!(leased.version, version);
    }
    stage.servers.set(2, Mood::Dead);
    let hint = Some(Hint { version, server: Some(server(2)) });
    let error = stage.granter.find_lease(&stage.reign, handle, hint).await.unwrap_err();
    assert_eq!(error, Error::GrantPending { handle }, "the caller is told to come back");
    stage.pass(Duration::from_secs(3)).await;
    let leased = stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    assert_eq!(leased.members, [server(1), server(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_restarted_is_replaced_by_a_new_grant_with_all_members() {
    // Guard primary_survives_restart: it says itself that it is no primary any more.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.restart(1);
    let hint = Some(Hint { version: ChunkVersion::from_raw(1), server: Some(server(1)) });
    let leased = stage.granter.find_lease(&stage.reign, handle, hint).await.unwrap();
    assert_eq!((leased.version.raw(), leased.members.len()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_is_extended_if_its_primary_is_still_active() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.clock.set_wall_ahead(Duration::from_secs(100));
    let leased = stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    assert_eq!(leased.version, ChunkVersion::from_raw(1));
    assert!(leased.remaining > Duration::from_secs(50));
    // And anew if it is not.
    stage.servers.restart(1);
    stage.clock.set_wall_ahead(Duration::from_secs(200));
    let leased = stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
    assert_eq!(leased.version, ChunkVersion::from_raw(2));
}

#[tokio::test(start_paused = true)]
async fn the_members_that_a_primary_reports_are_left_out() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let which = (handle, ChunkVersion::from_raw(1));
    let granter = &stage.granter;
    granter.look_into(&stage.reign, server(4), which, BTreeSet::from([server(3)])).await.unwrap();
    assert_eq!(stage.chunk(handle).version.raw(), 1, "not a member's word");
    granter.look_into(&stage.reign, server(1), which, BTreeSet::from([server(3)])).await.unwrap();
    expect!["c1 v2 confirmed v2 on [s1, s2], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_has_failed_itself_is_left_out_whoever_says_so() {
    let (version, itself) = (ChunkVersion::from_raw(1), BTreeSet::from([server(1)]));
    let replaced = "c1 v2 confirmed v2 on [s2, s3], leased to ";
    // It says so itself, or a member that gets no answer of it.
    for reporter in [1, 2] {
        let stage = Stage::new(4);
        let handle = stage.leased_chunk().await;
        stage.servers.fail_member(handle, 1, 1);
        let which = (handle, version);
        stage.granter.look_into(&stage.reign, server(reporter), which, itself.clone()).await.unwrap();
        assert!(show(&stage, handle).starts_with(replaced), "{}", show(&stage, handle));
    }
    // A client whose write failed, and one that comes when the lease has run out.
    for (hint, ahead) in [(Some(Hint { version, server: Some(server(1)) }), 0), (None, 100)] {
        let stage = Stage::new(4);
        let handle = stage.leased_chunk().await;
        stage.servers.fail_member(handle, 1, 1);
        stage.clock.set_wall_ahead(Duration::from_secs(ahead));
        let leased = stage.granter.find_lease(&stage.reign, handle, hint).await.unwrap();
        assert_ne!(leased.primary, server(1));
        assert!(show(&stage, handle).starts_with(replaced), "{}", show(&stage, handle));
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_has_failed_itself_and_is_the_only_one_left_begins_anew_at_the_next_version() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, without(&[2, 3])).await.unwrap();
    let members = stage.chunk(handle).members;
    assert!(members.contains(&server(1)) && members.len() == 2, "{members:?}");
    let joined = members.iter().find(|member| **member != server(1)).unwrap().raw();
    // The copy is lost, and what is there fails.
    stage.servers.set(joined, Mood::Dead);
    stage.pass(Duration::from_secs(20)).await;
    stage.servers.fail_member(handle, 2, 1);
    let which = (handle, ChunkVersion::from_raw(2));
    let itself = BTreeSet::from([server(1)]);
    stage.granter.look_into(&stage.reign, server(1), which, itself).await.unwrap();
    let chunk = stage.chunk(handle);
    assert!(chunk.confirmed.raw() == 3 && chunk.members.contains(&server(1)), "{chunk}");
}

#[tokio::test(start_paused = true)]
async fn repair_clones_by_a_grant_that_the_copy_joins_and_only_then_is_the_stale_replica_garbage() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let whole = Held { version: ChunkVersion::from_raw(1), partial: false, corrupt: false };
    (1..=3).for_each(|raw| stage.reports(raw, handle, whole, 2));
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
    // Guard T21: two good copies elsewhere are not the goal of three.
    assert_eq!(duties.garbage().unwrap(), []);
    stage.servers.trace();
    let wish = Wish { writer: true, reach: Reach::Goal, avoid: BTreeSet::from([server(3)]) };
    stage.granter.grant(&stage.reign, handle, wish).await.unwrap();
    check(
        &stage,
        &expect![[r#"
        s1: store v3 base
        s2: store v3 base
        s4: store v3 joins
        s1: reconcile v3
        s1: activate v3"#]],
    );
    assert_eq!(duties.garbage().unwrap(), [(server(3), handle, ChunkVersion::from_raw(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_is_repaired_after_the_grace_and_not_before() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    stage.servers.set(3, Mood::Dead);
    for _ in 0..30 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_repair(&stage.reign).unwrap();
    }
    assert_eq!(stage.chunk(handle).version.raw(), 1, "7.5 s: silent, but it may come back");
    for _ in 0..40 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_repair(&stage.reign).unwrap();
    }
    expect!["c1 v2 confirmed v2 on [s1, s2, s4], leased to s1 until 0"].assert_eq(&show(&stage, handle));
    assert!(stage.soft.with(|cluster, _, _| cluster.weak().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_leased_chunk_whose_primary_fell_silent_is_granted_anew_without_being_asked() {
    let stage = Stage::new(4);
    stage.pass(Duration::from_secs(10)).await;
    let handle = stage.leased_chunk().await;
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    stage.servers.set(1, Mood::Dead);
    for _ in 0..20 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_care(&stage.reign).unwrap();
    }
    assert_eq!(stage.chunk(handle).members, [server(2), server(3)]);
}

#[tokio::test(start_paused = true)]
async fn leases_in_use_are_extended_together_and_never_while_a_new_grant_is_pending() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let before = stage.chunk(handle).lease.unwrap().expires_at;
    stage.clock.set_wall_ahead(Duration::from_secs(30));
    duties.extend(handle, ChunkVersion::from_raw(1));
    duties.tick_leases(&stage.reign).await.unwrap();
    assert!(stage.chunk(handle).lease.unwrap().expires_at > before);
    // Guard T43.
    let chunk = stage.chunk(handle);
    stage
        .propose(Command::PrepareGrant {
            handle,
            expected_version: chunk.version,
            members: chunk.members.clone(),
            base: chunk.members.clone(),
            primary: server(1),
            writer: false,
            fresh: false,
        })
        .unwrap();
    let view = stage.view();
    assert_eq!(stage.granter.lease_use(&*view, server(1), (handle, ChunkVersion::from_raw(1))), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_can_not_ask_its_primary_gets_a_new_one_and_a_false_alarm_changes_nothing() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let look = async |version, accused: u64| {
        let which = (handle, ChunkVersion::from_raw(version));
        let accused = BTreeSet::from([server(accused)]);
        stage.granter.look_into(&stage.reign, server(2), which, accused).await.unwrap();
        stage.chunk(handle).version.raw()
    };
    assert_eq!(look(1, 1).await, 1, "the primary is active");
    (1..=3).for_each(|raw| stage.servers.restart(raw));
    assert_eq!(look(1, 1).await, 2, "all have restarted");
    expect!["c1 v2 confirmed v2 on [s1, s2, s3], leased to s1 until 0"].assert_eq(&show(&stage, handle));
    stage.clock.set_wall_ahead(Duration::from_secs(100));
    (1..=3).for_each(|raw| stage.servers.restart(raw));
    assert_eq!(look(2, 1).await, 3);
    expect!["c1 v3 confirmed v3 on [s1, s2, s3]"].assert_eq(&show(&stage, handle));
    assert_eq!(look(3, 1).await, 3, "settled without a writer: its primary is active");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_restarted_is_told_its_primary_by_a_new_grant_although_that_one_is_active() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.restart(2);
    let which = (handle, ChunkVersion::from_raw(1));
    stage.granter.look_into(&stage.reign, server(2), which, BTreeSet::from([server(2)])).await.unwrap();
    expect!["c1 v2 confirmed v2 on [s1, s2, s3], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_everything_nobody_is_missing_before_they_had_the_time_to_come() {
    // Trap T46.
    let mut stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    // Only one server has come back so far.
    stage.fail_over(1);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    for _ in 0..20 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_care(&stage.reign).unwrap();
        duties.tick_repair(&stage.reign).unwrap();
    }
    assert_eq!(stage.chunk(handle).version.raw(), 1);
}
