//! How a large snapshot comes to its end.

use gfs_proto::id::{ChunkIndex, ClientId, EntryId, MasterId, RequestId};
use gfs_proto::path::FilePath;

use super::*;
use crate::leader::build::STUCK_MAX;
use crate::state::{Applied, Build, read};

fn path(text: &str) -> FilePath {
    FilePath::parse(text).unwrap()
}
fn duties(stage: &Stage) -> Duties {
    Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone())
}
fn build(stage: &Stage) -> Option<Build> {
    read::build(&*stage.view()).unwrap()
}
fn root_of(stage: &Stage, at: &str) -> Option<EntryId> {
    read::stat(&*stage.view(), &path(at)).ok().map(|entry| entry.id)
}

/// Begins the snapshot of "/f" at "/s".
fn begin(stage: &Stage) -> RequestId {
    let opened = stage.propose(Command::OpenSession { nonce: [1; 16] });
    let Ok(Applied::SessionOpened { client, .. }) = opened else { panic!("{opened:?}") };
    let request = RequestId { client: ClientId::from_raw(client.raw()), sequence: 1 };
    let command = Command::BeginSnapshot { source: path("/f"), target: path("/s"), request };
    stage.propose(command).unwrap();
    request
}

#[tokio::test(start_paused = true)]
async fn a_build_revokes_what_it_is_about_to_share_and_comes_to_its_end() {
    // Guard snapshot_under_lease.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    begin(&stage);
    duties(&stage).tick_build(&stage.reign).await.unwrap();
    check(
        &stage,
        &expect![[r#"
        s1: store v2 base, no writer
        s2: store v2 base, no writer
        s3: store v2 base, no writer
        s1: reconcile v2
        s1: activate v2"#]],
    );
    assert_eq!((build(&stage), stage.chunk(handle).references), (None, 2));
    assert!(root_of(&stage, "/s").is_some());
    // Nothing to do: nothing is done.
    duties(&stage).tick_build(&stage.reign).await.unwrap();
    check(&stage, &expect![""]);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_goes_on_with_the_build_that_it_finds() {
    let mut stage = Stage::new(4);
    stage.leased_chunk().await;
    begin(&stage);
    stage.servers.set(1, Mood::Slow);
    let first = duties(&stage);
    let cut_off = tokio::time::timeout(Duration::from_secs(1), first.tick_build(&stage.reign)).await;
    assert!(cut_off.is_err() && build(&stage).is_some());
    stage.servers.set(1, Mood::Well);
    stage.fail_over(4);
    stage.during(duties(&stage).tick_build(&stage.reign)).await.0.unwrap();
    assert_eq!(build(&stage), None);
    assert!(root_of(&stage, "/s").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_build_is_given_up_when_a_chunk_can_not_be_revoked_for_long_and_leaves_nothing() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    begin(&stage);
    (1..=3).for_each(|server| stage.servers.set(server, Mood::Dead));
    let duties = duties(&stage);
    let begun = stage.now();
    while build(&stage).is_some() {
        // That it does not work says the next tick.
        drop(stage.during(duties.tick_build(&stage.reign)).await);
        stage.pass(Duration::from_secs(1)).await;
        assert!(stage.now().since(begun) < STUCK_MAX * 2, "for ever");
    }
    assert!(stage.now().since(begun) >= STUCK_MAX);
    assert_eq!((root_of(&stage, "/s"), stage.chunk(handle).references), (None, 1));
    duties.tick_expiry().await.unwrap();
    let counters = read::counters(&*stage.view()).unwrap();
    assert_eq!((counters.files, counters.chunks), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_stood_still_in_an_earlier_reign_is_not_given_up_for_that() {
    let stage = Stage::new(4);
    stage.leased_chunk().await;
    begin(&stage);
    (1..=3).for_each(|server| stage.servers.set(server, Mood::Dead));
    let duties = duties(&stage);
    drop(stage.during(duties.tick_build(&stage.reign)).await);
    // Others lead, and bring it forward.
    stage.pass(STUCK_MAX * 2).await;
    duties.begin();
    drop(stage.during(duties.tick_build(&stage.reign)).await);
    assert!(build(&stage).is_some());
}

#[tokio::test(start_paused = true)]
async fn while_the_masters_have_no_room_a_build_revokes_nothing_and_is_given_up_after_a_while() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.servers.trace();
    begin(&stage);
    stage.log.full.lock().push(MasterId::from_raw(1));
    let duties = duties(&stage);
    let begun = stage.now();
    while build(&stage).is_some() {
        duties.tick_build(&stage.reign).await.unwrap();
        stage.pass(Duration::from_secs(1)).await;
        assert!(stage.now().since(begun) < STUCK_MAX * 2, "for ever");
    }
    assert!(stage.now().since(begun) >= STUCK_MAX);
    check(&stage, &expect![""]);
    assert_eq!((root_of(&stage, "/s"), stage.chunk(handle).references), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn while_it_is_built_nobody_copies_what_is_shared_already() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let hold = stage.granter.still(&stage.reign, &path("/f")).await.unwrap();
    stage.propose(Command::Snapshot { source: path("/f"), target: path("/old") }).unwrap();
    drop(hold);
    stage.servers.trace();
    begin(&stage);
    let spot = (stage.file, ChunkIndex::from_raw(0));
    let refused = stage.granter.find_lease_of(&stage.reign, spot, handle, None).await.unwrap_err();
    assert_eq!(refused.retry(), gfs_proto::Retry::Later, "{refused}");
    check(&stage, &expect![""]);
    duties(&stage).tick_build(&stage.reign).await.unwrap();
    let leased = stage.granter.find_lease_of(&stage.reign, spot, handle, None).await.unwrap();
    assert_ne!(leased.handle, handle);
}
