//! What a group does whose disks fill up (decision 0025).

use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;
use gfs_proto::{Error, Result};

use super::ask;
use super::group::{PATIENCE, Running, group, leader, make, mkdir};
use crate::raft::Node;
use crate::state::{Command, Proposal};

/// Asks the leader, as every master that does not lead does all the time: with a disk that is full.
async fn ask_with_a_full_disk(node: &Node) {
    node.room().heard(node.id(), 0);
    ask(node).await;
}

/// Whether the leader lets a directory be made.
async fn grows(leader: &Node, name: &str) -> Result<()> {
    leader.propose(mkdir(name)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_two_of_three_disks_are_full_nothing_grows_and_deletions_and_reads_go_on() {
    let mut group = group().await;
    make(&group, "there").await;
    let lead = leader(&group).await;
    group.swap(0, lead);
    let [first, second, third] = group.as_slice() else { panic!("three masters") };
    let node = |running: &Running| running.node.clone();
    let (first, second, third) = (node(first), node(second), node(third));

    ask_with_a_full_disk(&second).await;
    ask(&third).await;
    assert_eq!(grows(&first, "with-one-full").await, Ok(()));

    let refused = async {
        let mut number = 0;
        loop {
            // They look at their disks themselves every second.
            ask_with_a_full_disk(&second).await;
            ask_with_a_full_disk(&third).await;
            number += 1;
            if let Err(error) = grows(&first, &format!("with-two-full-{number}")).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, refused).await.expect("it is refused in time");
    let mut full = [second.id(), third.id()];
    full.sort_unstable();
    assert_eq!(error, Error::MastersFull { masters: full.to_vec() });
    ask(&second).await;
    let path = FilePath::parse("/there").unwrap();
    let deletion = Command::Delete { path, recursive: false };
    let (_, deleted) = first.propose(Proposal::internal(UnixMs::from_raw(1), deletion)).await.unwrap();
    assert!(deleted.is_ok(), "{deleted:?}");

    let again = async {
        while grows(&first, "when-there-is-room").await.is_err() {
            for follower in [&second, &third] {
                ask(follower).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("it goes on when there is room");
}
