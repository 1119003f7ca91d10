//! Every current replica is partial, and an operator decides which one counts (docs/decisions/0020).

use super::*;

/// A chunk on servers 1, 2 and 3 that have all lost their power and have told so.
async fn waiting_chunk(stage: &Stage) -> ChunkHandle {
    let handle = stage.leased_chunk().await;
    for raw in 1..=3 {
        stage.servers.set(raw, Mood::Partial);
        let held = Held { version: ChunkVersion::from_raw(1), partial: true, corrupt: false };
        stage.reports(raw, handle, held, 2);
    }
    handle
}

async fn may_accept(stage: &Stage, handle: ChunkHandle, from: u64, given_up: &[u64]) -> Result<(), String> {
    let given_up = given_up.iter().copied().map(server).collect();
    let chunk = stage.chunk(handle);
    let may = stage.granter.may_accept(&stage.reign, &chunk, server(from), &given_up).await;
    may.map_err(|error| error.to_string())
}

fn accept(stage: &Stage, handle: ChunkHandle, version: u64, from: u64) -> Result<ChunkVersion, String> {
    let expected_version = ChunkVersion::from_raw(version);
    let command = Command::AcceptReplica { handle, expected_version, server: server(from) };
    match stage.propose(command) {
        Ok(Applied::Prepared { version }) => Ok(version),
        other => Err(format!("{other:?}")),
    }
}

async fn carry_out(stage: &Stage, handle: ChunkHandle, version: ChunkVersion) -> Result<(), Error> {
    stage.granter.carry_out_decision(&stage.reign, handle, version).await
}

#[tokio::test(start_paused = true)]
async fn the_accepted_replica_is_the_only_member_and_the_others_are_made_from_it_when_it_is_whole() {
    let stage = Stage::new(4);
    let handle = waiting_chunk(&stage).await;
    // Nothing happens by itself: guard power_cut_ignored.
    let error = stage.granter.grant(&stage.reign, handle, Wish::write()).await.unwrap_err();
    assert_eq!(error, Error::NoReplica { handle });
    stage.servers.trace();
    may_accept(&stage, handle, 2, &[]).await.unwrap();
    let version = accept(&stage, handle, 1, 2).unwrap();
    let (done, _) = stage.during(carry_out(&stage, handle, version)).await;
    done.unwrap();
    // Those who are left out keep what they have: nobody joins before the accepted one is whole.
    check(
        &stage,
        &expect![[r#"
            s2: store v2 accepted, no writer
            s2: reconcile v2, verified
            s1: v2 leaves it out
            s3: v2 leaves it out
            s2: activate v2"#]],
    );
    expect!["c1 v2 confirmed v2 on [s2]"].assert_eq(&show(&stage, handle));
    // From here on it is a chunk with one replica, like any other.
    let goal = Wish { reach: Reach::Goal, ..Wish::write() };
    stage.granter.grant(&stage.reign, handle, goal).await.unwrap();
    assert!(stage.servers.trace().contains("s2: store v3 base"));
    assert_eq!(stage.chunk(handle).members.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_refused_if_there_is_nothing_to_decide_or_nobody_knows() {
    let stage = Stage::new(4);
    let handle = waiting_chunk(&stage).await;
    for (from, given_up, part) in [
        (4, vec![], "s4 never had all of c1"),
        (2, vec![4], "s4 is none of the other replicas"),
        (2, vec![2], "s2 is none of the other replicas"),
    ] {
        let refused = may_accept(&stage, handle, from, &given_up).await.unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
    // One is whole after all, whatever it reported before.
    stage.servers.set(3, Mood::Well);
    let refused = may_accept(&stage, handle, 2, &[]).await.unwrap_err();
    assert!(refused.contains("s3 has a whole replica of c1"), "{refused}");
    assert!(may_accept(&stage, handle, 2, &[3]).await.is_err(), "it answers, so it is not given up");
    // One does not answer: it may be whole.
    stage.servers.set(3, Mood::Dead);
    let refused = may_accept(&stage, handle, 2, &[]).await.unwrap_err();
    assert!(refused.contains("s3 may have a whole replica of c1"), "{refused}");
    may_accept(&stage, handle, 2, &[3]).await.unwrap();
    // What joined a grant and dropped its content holds nothing that was acknowledged.
    stage.servers.set(2, Mood::Emptied);
    let refused = may_accept(&stage, handle, 2, &[3]).await.unwrap_err();
    assert!(refused.contains("what s2 has can't be accepted"), "{refused}");
    // A chunk that nobody wrote has nothing to decide about, and no decision gets past the state.
    let fresh = stage.add_chunk(1);
    assert!(may_accept(&stage, fresh, 1, &[]).await.unwrap_err().contains("was never written"));
    assert!(accept(&stage, fresh, 1, 1).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_decision_about_another_version_does_nothing_and_a_repeat_neither() {
    let stage = Stage::new(4);
    let handle = waiting_chunk(&stage).await;
    assert!(accept(&stage, handle, 7, 2).unwrap_err().contains("VersionMismatch"));
    let version = accept(&stage, handle, 1, 2).unwrap();
    let (done, _) = stage.during(carry_out(&stage, handle, version)).await;
    done.unwrap();
    let before = show(&stage, handle);
    assert!(accept(&stage, handle, 1, 3).unwrap_err().contains("VersionMismatch"), "too late");
    carry_out(&stage, handle, version).await.unwrap();
    assert_eq!(show(&stage, handle), before);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_carries_a_decision_out_and_a_later_grant_does_not_stand_on_it() {
    let mut stage = Stage::new(4);
    let handle = waiting_chunk(&stage).await;
    let version = accept(&stage, handle, 1, 2).unwrap();
    stage.fail_over(4);
    let (done, _) = stage.during(carry_out(&stage, handle, version)).await;
    done.unwrap();
    expect!["c1 v2 confirmed v2 on [s2]"].assert_eq(&show(&stage, handle));
    // The power goes again: guard partial_forgotten, for the old decision is over.
    stage.servers.set(2, Mood::Partial);
    let error = stage.granter.grant(&stage.reign, handle, Wish::write()).await.unwrap_err();
    assert!(matches!(error, Error::NoReplica { .. } | Error::NotValidated { .. }), "{error}");
    assert!(stage.chunk(handle).confirmed == version);
}

#[tokio::test(start_paused = true)]
async fn a_decision_whose_server_restarts_meanwhile_is_void_and_can_be_made_again() {
    let stage = Stage::new(4);
    let handle = waiting_chunk(&stage).await;
    let version = accept(&stage, handle, 1, 2).unwrap();
    stage.servers.set(2, Mood::Restarted);
    let (failed, _) = stage.during(carry_out(&stage, handle, version)).await;
    assert_eq!(failed, Err(Error::NoReplica { handle }));
    stage.servers.set(2, Mood::Partial);
    may_accept(&stage, handle, 2, &[]).await.unwrap();
    let again = accept(&stage, handle, version.raw(), 2).unwrap();
    let (done, _) = stage.during(carry_out(&stage, handle, again)).await;
    done.unwrap();
    expect!["c1 v3 confirmed v3 on [s2]"].assert_eq(&show(&stage, handle));
}
