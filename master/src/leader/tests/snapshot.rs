//! What a snapshot and the first write after it order, and in which order.

use gfs_proto::id::ChunkIndex;
use gfs_proto::path::FilePath;

use super::*;
use crate::state::{Applied, Rejected, read};

fn path(text: &str) -> FilePath {
    FilePath::parse(text).unwrap()
}
fn snapshot(stage: &Stage, target: &str) -> Result<Applied, Rejected> {
    stage.propose(Command::Snapshot { source: path("/f"), target: path(target) })
}
const FIRST: ChunkIndex = ChunkIndex::from_raw(0);

/// A file whose only chunk is shared with "/s".
async fn shared(stage: &Stage) -> ChunkHandle {
    let handle = stage.leased_chunk().await;
    assert_eq!(snapshot(stage, "/s"), Err(Rejected::Unsettled { handle }));
    let hold = stage.granter.still(&stage.reign, &path("/f")).await.unwrap();
    snapshot(stage, "/s").unwrap();
    drop(hold);
    handle
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_revokes_first_and_gives_out_no_lease_meanwhile() {
    // Guard snapshot_under_lease.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    assert_eq!(snapshot(&stage, "/s"), Err(Rejected::Unsettled { handle }));
    let hold = stage.granter.still(&stage.reign, &path("/f")).await.unwrap();
    check(
        &stage,
        &expect![[r#"
        s1: store v2 base, no writer
        s2: store v2 base, no writer
        s3: store v2 base, no writer
        s1: reconcile v2
        s1: activate v2"#]],
    );
    let spot = (stage.file, FIRST);
    let refused = stage.granter.find_lease_of(&stage.reign, spot, handle, None).await;
    assert_eq!(refused, Err(Error::GrantPending { handle }));
    drop(hold);
    snapshot(&stage, "/s").unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_first_write_copies_on_the_holders_then_ends_the_old_version_then_leases_the_copy() {
    // Guards copy_without_bump, bump_before_map.
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    stage.servers.trace();
    let spot = (stage.file, FIRST);
    let find = || stage.granter.find_lease_of(&stage.reign, spot, old, None);
    let (one, two) = tokio::join!(find(), find());
    let leased = one.unwrap();
    assert_eq!(Ok(&leased), two.as_ref(), "both share one copy");
    assert_ne!(leased.handle, old);
    check(
        &stage,
        &expect![[r#"
        s1: copy c1 v2 to c2 v1
        s2: copy c1 v2 to c2 v1
        s3: copy c1 v2 to c2 v1
        s1: store v3 base, no writer
        s2: store v3 base, no writer
        s3: store v3 base, no writer
        s1: reconcile v3
        s1: activate v3
        s1: store v2 base
        s2: store v2 base
        s3: store v2 base
        s1: reconcile v2
        s1: activate v2"#]],
    );
    assert_eq!(stage.chunk(old).references, 1);
    assert_eq!(read::origin(&*stage.view(), leased.handle), Ok(None));
    // The other side has the old chunk to itself now.
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    assert_eq!(duties.garbage().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_can_not_copy_is_no_member_and_a_copy_under_way_is_no_garbage() {
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    stage.servers.set(3, Mood::Deaf);
    let spot = (stage.file, FIRST);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let first = stage.granter.find_lease_of(&stage.reign, spot, old, None).await;
    assert_eq!(first, Err(Error::GrantPending { handle: old }));
    // Traps T16: the state has no such chunk yet, although its handle is given.
    let copy = ChunkHandle::from_raw(old.raw() + 1);
    let held = Held { version: ChunkVersion::from_raw(1), partial: false, corrupt: false };
    stage.reports(1, copy, held, 2);
    assert_eq!(duties.garbage().unwrap(), []);
    let finding = async {
        loop {
            match stage.granter.find_lease_of(&stage.reign, spot, old, None).await {
                Err(Error::GrantPending { .. }) => {}
                other => break other,
            }
        }
    };
    let (leased, _) = stage.during(finding).await;
    let leased = leased.unwrap();
    assert_eq!(leased.members, [server(1), server(2)]);
    assert_ne!(leased.handle, old);
}

#[tokio::test(start_paused = true)]
async fn what_a_leader_left_between_the_copy_and_the_new_version_its_successor_ends() {
    // Guard copy_without_bump: the copy is mapped, the old chunk has its old version, and nobody drives anything.
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    let Ok(Applied::Reserved { handle: copy }) = stage.propose(Command::ReserveChunk {}) else {
        panic!("no handle")
    };
    let (file, version) = (stage.file, ChunkVersion::from_raw(2));
    let members = vec![server(1), server(2), server(3)];
    stage.propose(Command::CopyChunk { file, index: FIRST, old, version, copy, members }).unwrap();
    stage.servers.trace();
    let leased = stage.granter.find_lease_of(&stage.reign, (file, FIRST), copy, None).await.unwrap();
    assert_eq!(leased.handle, copy);
    check(
        &stage,
        &expect![[r#"
        s1: store v3 base, no writer
        s2: store v3 base, no writer
        s3: store v3 base, no writer
        s1: reconcile v3
        s1: activate v3
        s1: store v2 base
        s2: store v2 base
        s3: store v2 base
        s1: reconcile v2
        s1: activate v2"#]],
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_on_two_disks_is_not_copied_to_one() {
    // Decision 0009: with one holder left that can copy, the write waits; nothing is mapped.
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    stage.servers.set(2, Mood::Dead);
    stage.servers.set(3, Mood::Dead);
    let spot = (stage.file, FIRST);
    let refused = stage.granter.find_lease_of(&stage.reign, spot, old, None).await;
    assert_eq!(refused, Err(Error::NoReplica { handle: old }));
    assert_eq!(read::file_chunks(&*stage.view(), stage.file, FIRST, 1).unwrap()[0].1.handle, old);
}

#[tokio::test(start_paused = true)]
async fn who_names_the_chunk_from_before_a_copy_gets_the_copy() {
    // Found by the simulation (seed 22): the answer to a repeated AddChunk is the one kept from before the copy. Its chunk is
    // the snapshot's alone by then, so a lease on it lost the write to the file and changed the snapshot.
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    let spot = (stage.file, FIRST);
    let find = || async {
        loop {
            match stage.granter.find_lease_of(&stage.reign, spot, old, None).await {
                Err(Error::GrantPending { .. }) => {}
                other => break other.unwrap().handle,
            }
        }
    };
    let (copy, _) = stage.during(find()).await;
    assert_ne!(copy, old);
    let (again, _) = stage.during(find()).await;
    assert_eq!(again, copy);
}

#[tokio::test(start_paused = true)]
async fn whose_copy_is_overtaken_by_that_of_the_other_side_is_to_ask_again() {
    let stage = Stage::new(4);
    let old = shared(&stage).await;
    let other = read::stat(&*stage.view(), &path("/s")).unwrap().id;
    let find = |file| stage.granter.find_lease_of(&stage.reign, (file, FIRST), old, None);
    let patient = |file| async move {
        loop {
            match find(file).await {
                Err(Error::GrantPending { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                other => break other.unwrap().handle,
            }
        }
    };
    // The copy for the other side is under way when that for this one has raised the version of what both copy.
    stage.servers.set(3, Mood::Slow);
    let overtakes = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        stage.servers.set(3, Mood::Well);
        let own = patient(stage.file).await;
        assert_ne!(own, old);
        stage.servers.wake();
        own
    };
    let ((one, two), _) = stage.during(async { tokio::join!(overtakes, patient(other)) }).await;
    assert_ne!(one, two);
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_lease_while_a_snapshot_and_a_copy_came_gets_none_on_what_is_the_snapshots() {
    // Guard leased_behind_a_copy.
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let spot = (stage.file, FIRST);
    // A revocation is under way, and a writer waits for it that came before the file was held still.
    stage.servers.set(1, Mood::Slow);
    let revocation = Wish { writer: false, ..Wish::write() };
    let mut revoked = stage.granter.start(&stage.reign, handle, revocation).unwrap();
    while !stage.servers.trace().contains("for ever") {
        tokio::task::yield_now().await;
    }
    let mut waits = std::pin::pin!(stage.granter.find_lease_of(&stage.reign, spot, handle, None));
    assert!(futures::poll!(&mut waits).is_pending());
    stage.servers.set(1, Mood::Well);
    stage.servers.wake();
    revoked.wait_for(Option::is_some).await.unwrap();
    snapshot(&stage, "/s").unwrap();
    let other = stage.granter.find_lease_of(&stage.reign, spot, handle, None).await.unwrap();
    assert_ne!(other.handle, handle);
    let late = waits.await.map(|leased| leased.handle);
    assert!(late.is_err() || late == Ok(other.handle), "{late:?}");
}
