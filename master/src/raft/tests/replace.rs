//! A master whose directory is lost comes back as another one.

use super::group::{PATIENCE, group, leader, make, start_at, until, voters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_comes_anew_at_its_address_votes_in_its_own_place_and_the_group_survives_the_next_failure()
 {
    let mut group = group().await;
    let leads = leader(&group).await;
    let lost = group.remove((leads + 1) % 3).kill().await;
    let old = lost.id;
    let joining = group[0].joining(false);
    let anew = start_at(tempfile::tempdir().unwrap(), &lost.address, joining).await;
    let new = anew.id();
    assert_ne!(new, old);
    let replaced = || {
        let members = group[0].node.membership();
        members.iter().any(|member| member.id == new && member.voter)
            && !members.iter().any(|member| member.id == old)
    };
    until("it votes in the place of its former self", replaced).await;
    assert_eq!(voters(&group[0].node), 3);
    // Two of three are enough again.
    let next = group.pop().unwrap().kill().await;
    group.push(anew);
    tokio::time::timeout(PATIENCE, make(&group, "after")).await.unwrap();
    drop(next);
}
