//! Who is out before a grant is confirmed, and who comes in.

use gfs_proto::time::VALIDITY;

use super::*;

#[tokio::test(start_paused = true)]
async fn the_fence_of_one_left_out_is_counted_from_when_the_prepare_was_in_the_log() {
    // Guard fence_before_prepare: as long as the prepare is under way the server is answered, and not denied the chunk.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.log.set_delay(Duration::from_secs(2));
    stage.servers.set(3, Mood::Deaf);
    let grant = stage.granter.start(&stage.reign, handle, without(&[3])).unwrap();
    while stage.chunk(handle).pending.is_none() {
        stage.pass(Duration::from_millis(100)).await;
    }
    let prepared = stage.now();
    stage.log.set_delay(Duration::ZERO);
    while grant.borrow().is_none() {
        stage.pass(Duration::from_millis(100)).await;
    }
    assert_eq!(*grant.borrow(), Some(Ok(())));
    // The prepare was in the log at most one step before it was seen.
    let waited = stage.now().since(prepared) + Duration::from_millis(100);
    assert!(waited >= VALIDITY * 11 / 10, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_to_be_the_primary_before_the_confirm_is_in_the_log() {
    // Guards committed_before_confirm and late_activation, the leader's part: from then on the primary shows all it holds.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::Slow);
    let grant = stage.granter.start(&stage.reign, handle, Wish::write()).unwrap();
    stage.pass(Duration::from_millis(200)).await;
    stage.log.set_delay(Duration::from_secs(2));
    stage.servers.set(1, Mood::Well);
    stage.servers.wake();
    stage.pass(Duration::from_secs(1)).await;
    let told = stage.servers.trace();
    assert!(told.contains("s1: reconcile v2") && !told.contains("activate"), "{told}");
    assert!(stage.chunk(handle).pending.is_some(), "the confirm is under way");
    stage.pass(Duration::from_secs(2)).await;
    assert_eq!(*grant.borrow(), Some(Ok(())));
    check(&stage, &expect!["s1: activate v2"]);
}

#[tokio::test(start_paused = true)]
async fn an_exclusion_that_was_not_acknowledged_is_asked_for_again() {
    // Guard named_once.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(3, Mood::Dead);
    let grant = stage.granter.start(&stage.reign, handle, without(&[3])).unwrap();
    stage.pass(Duration::from_secs(1)).await;
    assert_eq!(*grant.borrow(), None, "nobody knows yet that it is out");
    stage.servers.set(3, Mood::Well);
    stage.pass(Duration::from_millis(300)).await;
    assert_eq!(*grant.borrow(), Some(Ok(())), "it is, long before its fence runs out");
    assert!(stage.servers.trace().contains("s3: v2 leaves it out"));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_answers_with_a_lower_version_is_left_out() {
    // Guard version_not_durable: who has not stored the version takes part in no grant.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(2, Mood::Behind);
    stage.granter.grant(&stage.reign, handle, Wish::write()).await.unwrap();
    expect!["c1 v3 confirmed v3 on [s1, s3], leased to s1 until 0"].assert_eq(&show(&stage, handle));
    // Nor does a joiner.
    stage.servers.set(4, Mood::Behind);
    let wish = Wish { writer: true, reach: Reach::Goal, avoid: BTreeSet::from([server(2)]) };
    let error = stage.granter.grant(&stage.reign, handle, wish).await;
    assert!(!stage.chunk(handle).members.contains(&server(4)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_no_member_before_the_grant_that_it_joins_is_confirmed() {
    // Guard clone_without_grant, by the way that repair takes.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
    let tick = || stage.soft.with(|cluster, view, now| cluster.tick(view, now));
    let live = || stage.soft.with(|cluster, _, _| cluster.weak().get(&handle).map(|weak| weak.live));
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    stage.servers.set(3, Mood::Dead);
    stage.servers.set(1, Mood::Slow);
    stage.servers.trace();
    for _ in 0..80 {
        stage.pass(Duration::from_millis(250)).await;
        tick();
        duties.tick_repair(&stage.reign).unwrap();
    }
    check(
        &stage,
        &expect![[r#"
        s1: store v3 base
        s2: store v3 base
        s4: store v3 joins
        s1: reconcile v3, for ever"#]],
    );
    // It has stored the version, adopted and said so: it is no member for all that.
    let whole = Held { version: ChunkVersion::from_raw(3), partial: false, corrupt: false };
    stage.reports(4, handle, whole, 2);
    assert_eq!((stage.chunk(handle).members, live()), (vec![server(1), server(2)], Some(2)));
    stage.servers.set(1, Mood::Well);
    stage.servers.wake();
    stage.pass(Duration::from_millis(250)).await;
    assert_eq!(stage.chunk(handle).members, [server(1), server(2), server(4)]);
    check(
        &stage,
        &expect![[r#"
        s1: reconcile v3
        s1: activate v3"#]],
    );
}
