//! Nobody writes a file that is deleted (traps T17).

use gfs_proto::id::{ChunkIndex, EntryId};
use gfs_proto::path::FilePath;
use gfs_proto::time::Moment;

use super::*;
use crate::leader::unlink::{TOLD_MAX, Told};
use crate::state::Rejected;

const FIRST: ChunkIndex = ChunkIndex::from_raw(0);

fn delete(stage: &Stage) {
    let path = FilePath::parse("/f").unwrap();
    stage.propose(Command::Delete { path, recursive: false }).unwrap();
}
fn gone(file: EntryId) -> Error {
    Rejected::NoSuchEntry { entry: file }.into()
}

#[tokio::test(start_paused = true)]
async fn before_a_file_goes_its_leases_are_revoked_and_none_is_given_out() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let hold = stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    check(
        &stage,
        &expect![[r#"
        s1: store v2 base, no writer
        s2: store v2 base, no writer
        s3: store v2 base, no writer
        s1: reconcile v2
        s1: activate v2"#]],
    );
    let find = || stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None);
    assert_eq!(find().await, Err(Error::GrantPending { handle }));
    delete(&stage);
    drop(hold);
    assert_eq!(find().await, Err(gone(stage.file)));
    check(&stage, &expect![""]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_nobody_has_written_lately_costs_nothing_to_delete() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None).await.unwrap();
    stage.pass(Duration::from_secs(66)).await;
    stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    check(&stage, &expect![""]);
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_ends_no_lease_that_was_told() {
    let mut stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    // Long after the reign began, so that only what this leader has told counts.
    stage.pass(Duration::from_secs(70)).await;
    stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None).await.unwrap();
    stage.clock.set_wall_ahead(Duration::from_secs(120));
    stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    assert_eq!(stage.chunk(handle).lease, None, "it is revoked, whether the file is deleted or replaced");
    // What another leader has told its successor does not know.
    stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None).await.unwrap();
    stage.fail_over(4);
    stage.clock.set_wall_ahead(Duration::from_secs(240));
    assert!(stage.chunk(handle).lease.is_some());
    stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    assert_eq!(stage.chunk(handle).lease, None);
}

#[test]
fn when_too_many_leases_were_told_any_other_may_have_been_too() {
    let mut told = Told::default();
    let at = |seconds| Moment::from_start(Duration::from_secs(seconds));
    let chunk = ChunkHandle::from_raw;
    (0..TOLD_MAX as u64).for_each(|raw| told.note(chunk(raw), at(10)));
    assert_eq!((told.last(chunk(1)), told.last(chunk(u64::MAX))), (at(10), at(0)));
    // What is over is forgotten, and room is made.
    told.note(chunk(u64::MAX), at(100));
    assert_eq!((told.last(chunk(1)), told.last(chunk(u64::MAX))), (at(0), at(100)));
    (0..TOLD_MAX as u64).for_each(|raw| told.note(chunk(raw), at(110)));
    assert_eq!(told.last(chunk(1 << 40)), at(110), "nothing is over");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_being_granted_when_the_file_went_is_told_to_nobody() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, Wish { writer: false, ..Wish::write() }).await.unwrap();
    let finding = stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None);
    // Polled when the grant is under way.
    let deleting = async { delete(&stage) };
    let (found, ()) = tokio::join!(finding, deleting);
    assert_eq!(found, Err(gone(stage.file)));
    assert!(stage.chunk(handle).lease.is_some(), "it was granted");
    // Whoever deleted it looks once more before it answers.
    stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    assert!(stage.chunk(handle).lease.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grant_under_way_is_waited_for_and_then_revoked() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    stage.granter.grant(&stage.reign, handle, Wish { writer: false, ..Wish::write() }).await.unwrap();
    // The state says nothing of it yet.
    let grant = stage.granter.start(&stage.reign, handle, Wish::write()).unwrap();
    let hold = stage.granter.end_leases(&stage.reign, stage.file).await.unwrap();
    assert_eq!(*grant.borrow(), Some(Ok(())));
    assert_eq!(stage.chunk(handle).lease, None);
    drop(hold);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_revoked_waits_for_the_end_of_the_lease() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    (1..=3).for_each(|server| stage.servers.set(server, Mood::Dead));
    let (ended, _) = stage.during(stage.granter.end_leases(&stage.reign, stage.file)).await;
    assert_eq!(ended.err(), Some(Error::GrantPending { handle }));
    let begun = stage.now();
    while stage.during(stage.granter.end_leases(&stage.reign, stage.file)).await.0.is_err() {
        stage.pass(Duration::from_secs(1)).await;
        assert!(stage.now().since(begun) < Duration::from_secs(90), "for ever");
    }
    assert!(stage.now().since(begun) > Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_was_given_up_long_ago_has_waited_for_no_lease_of_today() {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let all = |mood| (1..=3).for_each(|server| stage.servers.set(server, mood));
    let end = async || stage.during(stage.granter.end_leases(&stage.reign, stage.file)).await.0.err();
    all(Mood::Deaf);
    assert_eq!(end().await, Some(Error::GrantPending { handle }));
    // They can be reached again, and somebody writes on.
    all(Mood::Well);
    stage.pass(Duration::from_secs(120)).await;
    stage.granter.find_lease_of(&stage.reign, (stage.file, FIRST), handle, None).await.unwrap();
    let told = stage.now();
    all(Mood::Deaf);
    while end().await.is_some() {
        stage.pass(Duration::from_secs(1)).await;
        assert!(stage.now().since(told) < Duration::from_secs(90), "for ever");
    }
    assert!(stage.now().since(told) >= Duration::from_secs(65));
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_first_grant_never_came_about_can_be_deleted() {
    let stage = Stage::new(4);
    (1..=4).for_each(|server| stage.servers.set(server, Mood::Dead));
    stage.add_chunk(0);
    let deadline = stage.now().plus(Duration::from_secs(30));
    loop {
        let (ended, _) = stage.during(stage.granter.end_leases(&stage.reign, stage.file)).await;
        if ended.is_ok() {
            break;
        }
        assert!(stage.now() < deadline, "it is never let go");
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_deleted_tree_leases_end_by_themselves() {
    // Neither extended nor granted anew, by whatever happens to the servers (docs/decisions/0015).
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let end = |stage: &Stage| stage.chunk(handle).lease.map(|lease| lease.expires_at);
    let before = end(&stage);
    stage.clock.set_wall_ahead(Duration::from_secs(10));
    duties.extend(handle, ChunkVersion::from_raw(1));
    duties.tick_leases(&stage.reign).await.unwrap();
    let extended = end(&stage);
    assert!(extended > before);
    delete(&stage);
    stage.clock.set_wall_ahead(Duration::from_secs(20));
    duties.extend(handle, ChunkVersion::from_raw(1));
    duties.tick_leases(&stage.reign).await.unwrap();
    assert_eq!(end(&stage), extended);
    stage.granter.settle(&stage.reign, handle, BTreeSet::from([server(3)])).await.unwrap();
    assert_eq!(end(&stage), None);
}
