//! What the loss of a server, or of every answer, costs a client.

use bytes::Bytes;
use futures::future::join_all;
use gfs_proto::id::{ChunkHandle, ServerId};
use tokio::time::Instant;

use super::*;

/// Larger than what goes along in a request: it is pushed along a chain.
const PUSHED: usize = 200_000;

/// For each member of some chunks that is not the primary: strikes it, and writes.
async fn each_member_is_struck(strike: impl Fn(&Fake, u64), limit: Duration) {
    let (fake, client) = start().await;
    for (handle, place) in (1..=6).flat_map(|handle| [(handle, 1), (handle, 2)]) {
        let path = format!("/{handle}");
        let file = match client.open(&path).await {
            Ok(file) => file,
            Err(_) => client.create(&path, 0).await.unwrap(),
        };
        file.write_at(0, Bytes::from_static(b"x")).await.unwrap();
        let member = fake.with(|cluster| cluster.chunks[&handle].members[place]);
        strike(&fake, member);
        let began = Instant::now();
        file.write_at(0, pattern(PUSHED).into()).await.unwrap();
        assert!(began.elapsed() < limit, "{:?} without s{member}, chunk {handle}", began.elapsed());
        assert!(fake.with(|cluster| cluster.content(&path)) == pattern(PUSHED));
        fake.with(|cluster| cluster.dead.clear());
        // Nobody is avoided any more.
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whichever_member_dies_a_pushed_write_has_it_left_out() {
    // Also the first of the chain, of which the primary knows nothing: accusing the primary changes nothing.
    let strike = |fake: &Fake, member: u64| {
        fake.with(|cluster| cluster.dead.insert(member));
    };
    each_member_is_struck(strike, Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_only_this_client_can_not_reach_is_reached_through_the_others() {
    let strike = |fake: &Fake, member: u64| {
        let call = format!("s{member} push");
        fake.judge(move |made, _| if made.starts_with(&call) { Verdict::Silence } else { Verdict::Go });
    };
    each_member_is_struck(strike, Duration::from_secs(8)).await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_wait_for_the_same_lease_give_up_together() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    let handle = ChunkHandle::from_raw(1);
    fake.judge(move |call, _| match call.contains("add_chunk") || call.contains("find_lease") {
        true => Verdict::Refuse(Error::NoReplica { handle }),
        false => Verdict::Go,
    });
    let began = Instant::now();
    let told = join_all((0..10).map(|at| file.write_at(at, Bytes::from_static(b"a")))).await;
    for told in told {
        assert!(matches!(told, Err(Error::DeadlineExceeded { .. })), "{told:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(35), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn callers_who_wait_for_a_new_session_give_up_together() {
    let (fake, client) = start().await;
    fake.with(|cluster| cluster.expired.insert(1));
    fake.judge(|call, _| match call.contains("open_session") {
        true => Verdict::Refuse(Error::unavailable("cut off")),
        false => Verdict::Go,
    });
    creations_give_up_together(&client, 10).await;
}

#[tokio::test(start_paused = true)]
async fn masters_that_have_come_since_are_found_when_those_of_the_start_are_gone() {
    let (fake, client) = start().await;
    client.create("/a", 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    fake.with(|cluster| cluster.masters = vec![1, 2, 3]);
    tokio::time::sleep(Duration::from_secs(200)).await;
    fake.with(|cluster| cluster.leader = 3);
    fake.judge(|call, _| match call.starts_with("m1 ") || call.starts_with("m2 ") {
        true => Verdict::Refuse(Error::unavailable("gone")),
        false => Verdict::Go,
    });
    client.stat("/a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_master_that_broke_inside_has_not_said_that_nothing_happened() {
    let (fake, client) = start().await;
    fake.once("create", Verdict::Refuse(Error::internal("broke")));
    let told = client.create("/a", 0).await.unwrap_err();
    assert!(matches!(&told, Error::DeadlineExceeded { last, .. } if last.contains("broke")), "{told}");
}

#[tokio::test(start_paused = true)]
async fn two_members_that_can_not_reach_each_other_do_not_stop_a_large_write() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"x")).await.unwrap();
    // The master finds the accused well, and the primary reaches both.
    let accused = fake.with(|cluster| cluster.chunks[&1].members[2]);
    fake.judge(move |call, _| match call.contains(" push ") {
        true => {
            let (handle, server) = (ChunkHandle::from_raw(1), ServerId::from_raw(accused));
            Verdict::Refuse(Error::MemberFailed { handle, server })
        }
        false => Verdict::Go,
    });
    let began = Instant::now();
    file.write_at(0, pattern(PUSHED).into()).await.unwrap();
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(PUSHED));
    let mut writer = file.writer(0);
    writer.write(&pattern(3 * UNIT)).await.unwrap();
    writer.finish().await.unwrap();
    assert!(fake.with(|cluster| cluster.content("/a")) == pattern(3 * UNIT));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(fake.with(|cluster| cluster.calls(" push ").len()), 1, "it is not tried for each unit");
    // Other members, another chain.
    fake.judge(|_, _| Verdict::Go);
    fake.with(|cluster| cluster.regrant(1));
    file.write_at(0, pattern(PUSHED).into()).await.unwrap();
    file.write_at(0, pattern(PUSHED).into()).await.unwrap();
    assert!(fake.with(|cluster| cluster.calls(" push ").len()) > 1);
}
