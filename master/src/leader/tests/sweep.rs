//! What nobody needs any more goes, and nothing else, and nobody waits for who does not answer.

use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use super::*;
use crate::leader::duties::DELETIONS_MAX;
use crate::state::read;

const VERSION: ChunkVersion = ChunkVersion::from_raw(1);

/// Lets a server report so many chunks that the state once had.
fn reports_orphans(stage: &Stage, raw: u64, handles: &[ChunkHandle]) {
    let held = Held { version: VERSION, partial: false, corrupt: false };
    stage.reports_all(raw, handles.iter().map(|handle| (*handle, held)).collect(), Vec::new(), 2);
}

fn reserve(stage: &Stage, count: usize) -> Vec<ChunkHandle> {
    let reserve = |_| match stage.propose(Command::ReserveChunk {}) {
        Ok(Applied::Reserved { handle }) => handle,
        other => panic!("{other:?}"),
    };
    (0..count).map(reserve).collect()
}

fn garbage_of(stage: &Stage, raw: u64) -> usize {
    stage.soft.with(|cluster, _, _| cluster.server(server(raw)).unwrap().denied.len())
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_orders_does_not_keep_the_garbage_of_the_others() {
    let stage = Stage::new(3);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let orphans = reserve(&stage, DELETIONS_MAX + 10);
    (1..=3).for_each(|raw| reports_orphans(&stage, raw, &orphans));
    // Its heartbeats come.
    stage.servers.set(1, Mood::Deaf);
    let begun = stage.now();
    for left in [10, 0] {
        duties.delete_all(&stage.reign, &duties.garbage().unwrap()).await.unwrap();
        assert_eq!([1, 2, 3].map(|raw| garbage_of(&stage, raw)), [DELETIONS_MAX + 10, left, left]);
    }
    assert!(stage.now().since(begun) <= Duration::from_secs(4), "one order to the first at each step");
    stage.soft.with(|cluster, _, _| cluster.suspect(server(1)));
    assert_eq!(duties.garbage().unwrap(), [], "until it is heard of again");
}

#[tokio::test(start_paused = true)]
async fn deleted_files_are_collected_as_fast_as_the_sweep_keeps_up() {
    let stage = Stage::new(3);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    let files = 1200;
    for number in 0..files {
        let path = FilePath::parse(&format!("/f{number}")).unwrap();
        stage.propose(Command::Create { path: path.clone(), replication: 0 }).unwrap();
        stage.propose(Command::Delete { path, recursive: false }).unwrap();
    }
    let left = || read::counters(&*stage.view()).unwrap().files - 1;
    assert_eq!(left(), files);
    stage.log.set_now(UnixMs::from_raw(10_000));
    // Far more than one command takes, while a server has too much to delete already.
    let late: Vec<ChunkHandle> = (1..=100_001).map(ChunkHandle::from_raw).collect();
    reports_orphans(&stage, 1, &late);
    duties.tick_expiry().await.unwrap();
    assert_eq!(left(), files);
    stage.soft.with(|cluster, _, _| cluster.deleted(server(1), late[0], VERSION));
    duties.tick_expiry().await.unwrap();
    assert_eq!(left(), 0);
}
