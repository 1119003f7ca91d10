//! Primaries that reach nobody, while the leader reaches everybody.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_primary_that_is_cut_off_from_all_others_is_the_one_left_out() {
    let version = ChunkVersion::from_raw(1);
    // It says so itself, a client comes whose write failed, or the lease has run out.
    for reported in [Some(true), Some(false), None] {
        let stage = Stage::new(4);
        let handle = stage.leased_chunk().await;
        stage.servers.set(1, Mood::CutOff);
        if reported == Some(true) {
            let itself = BTreeSet::from([server(1)]);
            stage.granter.look_into(&stage.reign, server(1), (handle, version), itself).await.unwrap();
        } else {
            let hint = reported.map(|_| Hint { version, server: None });
            stage.clock.set_wall_ahead(Duration::from_secs(if hint.is_some() { 0 } else { 100 }));
            stage.granter.find_lease(&stage.reign, handle, hint).await.unwrap();
        }
        assert_eq!(stage.chunk(handle).members, [server(2), server(3)]);
    }
    // The cut comes when nobody writes: the next grant's primary finds it.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::CutOff);
    stage.granter.grant(&stage.reign, handle, Wish::write()).await.unwrap();
    assert_eq!(stage.chunk(handle).members, [server(2), server(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_reaches_nobody_stays_if_the_others_are_gone_or_have_nothing() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let members = [server(1), server(2), server(3)];
    let left_out =
        async |base| stage.granter.cut_off(&stage.reign, handle, (&members, base), server(1)).await;
    assert_eq!(left_out(&members).await, BTreeSet::from([server(1)]));
    assert_eq!(left_out(&members[..1]).await, BTreeSet::from([server(2), server(3)]));
    stage.servers.set(3, Mood::Partial);
    assert_eq!(left_out(&members).await, BTreeSet::from([server(3)]));
    assert_eq!(left_out(&members[..2]).await, BTreeSet::from([server(1)]));
    stage.servers.set(2, Mood::Dead);
    assert_eq!(left_out(&members[..2]).await, BTreeSet::from([server(2)]));
    // Nobody else has the content, and two were to join.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, without(&[2, 3])).await.unwrap();
    stage.servers.set(4, Mood::Dead);
    stage.pass(Duration::from_secs(20)).await;
    stage.servers.set(1, Mood::CutOff);
    let wish = Wish { reach: Reach::Goal, ..Wish::write() };
    // Too few to write; readers have it.
    stage.granter.grant(&stage.reign, handle, wish).await.unwrap_err();
    assert_eq!(stage.chunk(handle).members, [server(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_has_accused_all_others_one_after_the_other_is_the_one_left_out() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    // One of them had answered before the cut, so that only the other one was accused first.
    stage.servers.set(1, Mood::CutOff);
    stage.granter.grant(&stage.reign, handle, without(&[3])).await.unwrap();
    assert_eq!(stage.chunk(handle).members, [server(2), server(3)]);
    // With one of them gone it can't be told.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.set(1, Mood::CutOff);
    stage.servers.set(3, Mood::Dead);
    drop(stage.granter.grant(&stage.reign, handle, without(&[3])).await);
    assert_eq!(stage.chunk(handle).members, [server(1)]);
}
