//! What a live server has lost comes back.

use super::*;

/// Lets servers that are well tell that one replica is gone, as after the loss of a disk, and repair go on for a while.
async fn after_the_loss_on(lost: &[u64]) -> (u64, Vec<u64>) {
    let stage = Stage::new(4);
    let handle = stage.leased_chunk().await;
    let whole = Held { version: ChunkVersion::from_raw(1), partial: false, corrupt: false };
    (1..=3).for_each(|raw| stage.reports(raw, handle, whole, 2));
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    // Nobody writes it any more, so no write finds it out.
    stage.pass(Duration::from_secs(70)).await;
    lost.iter().for_each(|raw| stage.reports_all(*raw, Vec::new(), vec![handle], 3));
    for _ in 0..80 {
        stage.pass(Duration::from_millis(250)).await;
        stage.soft.with(|cluster, view, now| cluster.tick(view, now));
        duties.tick_repair(&stage.reign).unwrap();
    }
    assert!(stage.chunk(handle).pending.is_none());
    let chunk = stage.chunk(handle);
    (chunk.confirmed.raw(), chunk.members.iter().map(|member| member.raw()).collect())
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_a_live_server_has_lost_is_copied_to_another_one() {
    assert_eq!(after_the_loss_on(&[3]).await, (2, vec![1, 2, 4]));
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_a_replica_and_is_well_may_take_it_again() {
    let (version, members) = after_the_loss_on(&[2, 3]).await;
    assert!(version == 2 && members.len() == 3 && members.contains(&1), "v{version} {members:?}");
}
