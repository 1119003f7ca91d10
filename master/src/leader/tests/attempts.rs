//! What a driver learns from its failures, and in which order members are told.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_primary_that_restarts_in_a_pending_grant_stays_a_member_and_gets_a_new_version() {
    // Guard late_activation. The servers have stored version 2, restart, and version 2 makes nobody a primary any more.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::Slow);
    let grant = stage.granter.start(&stage.reign, handle, Wish::write()).unwrap();
    stage.pass(Duration::from_millis(200)).await;
    stage.servers.trace();
    stage.servers.set(1, Mood::Restarted);
    stage.servers.wake();
    let deadline = stage.now().plus(Duration::from_secs(10));
    while grant.borrow().is_none() {
        stage.pass(Duration::from_millis(50)).await;
        assert!(stage.now() < deadline, "the same pending grant is tried for ever");
    }
    assert_eq!(*grant.borrow(), Some(Ok(())));
    expect!["c1 v3 confirmed v3 on [s1, s2, s3], leased to s1 until 0"].assert_eq(&show(&stage, handle));
}

#[tokio::test(start_paused = true)]
async fn a_joiner_hears_of_a_grant_only_when_the_base_has_stored_it_whole() {
    // Trap T21: it drops what it holds, which may be the last good copy.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
    stage.servers.trace();
    stage.servers.set(1, Mood::Partial);
    stage.servers.set(2, Mood::Partial);
    let wish = Wish { writer: true, reach: Reach::Goal, avoid: BTreeSet::new() };
    let granting = stage.granter.grant(&stage.reign, handle, wish);
    let outcome = tokio::time::timeout(Duration::from_secs(20), stage.during(granting)).await;
    assert!(!matches!(outcome, Ok((Ok(()), _))), "nobody is whole");
    let told = stage.servers.trace();
    assert!(told.contains("s1: store") && !told.contains("joins"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn pending_grants_without_hope_do_not_keep_the_others_from_their_turn() {
    let stage = Stage::new(4);
    // More than one tick looks at, on servers that are away; and one behind them that can be granted.
    (1..=4).for_each(|server| stage.servers.set(server, Mood::Deaf));
    let handles: Vec<ChunkHandle> = (0..70).map(|index| stage.add_chunk(index)).collect();
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    duties.tick_care(&stage.reign).unwrap();
    let is_looked_at = |at: usize| stage.granter.is_in_flight(handles[at]);
    assert!(is_looked_at(0) && is_looked_at(63) && !is_looked_at(64));
    // The first ones end in failure, and are not begun again before the last ones were.
    stage.reign.over.cancel();
    while stage.granter.in_flight() > 0 {
        stage.pass(Duration::from_millis(100)).await;
    }
    let reign =
        crate::cluster::Reign { over: tokio_util::sync::CancellationToken::new(), ..stage.reign.clone() };
    duties.tick_care(&reign).unwrap();
    assert!(is_looked_at(64) && is_looked_at(69) && !is_looked_at(0));
}

#[tokio::test(start_paused = true)]
async fn who_is_left_alone_of_several_has_to_verify_what_it_holds_before_the_others_are_done_without() {
    // Guard alone_unverified; docs/decisions/0021.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let verified = async |wish: Wish| {
        stage.servers.trace();
        stage.during(stage.granter.grant(&stage.reign, handle, wish)).await.0.unwrap();
        let told = stage.servers.trace();
        assert!(told.contains("reconcile"), "{told}");
        told.contains("verified")
    };
    assert!(!verified(without(&[3])).await, "two are left: one makes up for the other");
    assert!(verified(without(&[2, 3])).await);
    // Nobody is lost by these any more.
    assert!(!verified(without(&[2, 3])).await, "it was alone before");
    assert!(!verified(Wish { reach: Reach::Goal, ..Wish::write() }).await, "a copy reads all of it anyway");
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_no_server_has_room_to_join_changes_nothing() {
    // Server 4 is getting as many copies as it may; server 3 is no help.
    let stage = Stage::new(4);
    let mut handles = Vec::new();
    for index in 0..3 {
        let handle = stage.add_chunk(index);
        stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
        stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
        handles.push(handle);
    }
    stage.servers.set(1, Mood::Slow);
    let wish = Wish { writer: true, reach: Reach::Goal, avoid: BTreeSet::from([server(3)]) };
    let copying: Vec<_> = handles[..2]
        .iter()
        .map(|handle| stage.granter.start(&stage.reign, *handle, wish.clone()).unwrap())
        .collect();
    stage.pass(Duration::from_millis(500)).await;
    assert!(copying.iter().all(|grant| grant.borrow().is_none()));
    let before = stage.chunk(handles[2]);
    let error = stage.granter.grant(&stage.reign, handles[2], wish).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert_eq!(stage.chunk(handles[2]), before);
}

/// A chunk on each of these sets of servers, confirmed; then server 3 dies, and repair has a minute.
async fn repaired_without_3(stage: &Stage, places: &[[u64; 3]]) -> Vec<ChunkHandle> {
    let mut handles = Vec::new();
    for (index, servers) in (0..).zip(places) {
        let handle = stage.add_chunk_on(index, *servers);
        stage.granter.find_lease(&stage.reign, handle, None).await.unwrap();
        handles.push(handle);
    }
    stage.servers.set(3, Mood::Dead);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    for _ in 0..240 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_repair(&stage.reign).unwrap();
    }
    handles
}

#[tokio::test(start_paused = true)]
async fn chunks_that_no_server_with_room_could_join_do_not_keep_the_others_from_being_repaired() {
    // Guard unrepairable_first. As many as there are slots could go to server 4 only, which is full.
    let stage = Stage::new(4);
    stage.servers.fill(4);
    let places = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 3, 4]];
    let handles = repaired_without_3(&stage, &places).await;
    assert_eq!(stage.chunk(handles[4]).members, [server(1), server(2), server(4)]);
    // And no version was spent on the others.
    assert!(handles[..4].iter().all(|handle| stage.chunk(*handle).version.raw() == 1));
}

#[tokio::test(start_paused = true)]
async fn chunks_whose_repair_comes_to_nothing_do_not_keep_the_others_from_being_repaired() {
    // Guard unrepairable_first. Server 4 has room and can't store anything; 5 is full.
    let stage = Stage::new(5);
    stage.servers.fill(5);
    stage.servers.set(4, Mood::Behind);
    let places = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 3, 5]];
    let handles = repaired_without_3(&stage, &places).await;
    assert_eq!(stage.chunk(handles[4]).members, [server(1), server(2), server(5)]);
    for handle in &handles[..4] {
        let chunk = stage.chunk(*handle);
        assert_eq!(chunk.members, [server(1), server(2)]);
        assert!(chunk.version.raw() < 30, "it spins: {}", chunk.version);
    }
}
