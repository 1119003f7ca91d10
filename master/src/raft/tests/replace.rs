//! Masters that come back in another way than they went: with an empty directory, or under another address.

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_starts_under_another_address_is_found_there_and_counts() {
    let mut group = group().await;
    let leads = leader(&group).await;
    let moved = group.remove((leads + 1) % 3).kill().await;
    let (id, before) = (moved.id, moved.address);
    let anew = start_at(moved.dir, "127.0.0.1:0", moved.origin).await;
    assert!(anew.id() == id && anew.address != before);
    let known = || {
        let members = group[0].node.membership();
        members.iter().any(|member| member.id == id && member.voter && member.address == anew.address)
    };
    until("the others know where it is", known).await;
    let leads = leader(&group).await;
    let last = make(&group, "before").await;
    anew.applies(last).await;
    // Without the third one its vote is needed.
    let third = group.remove(1 - leads).kill().await;
    group.push(anew);
    make(&group, "after").await;
    drop(third);
}
