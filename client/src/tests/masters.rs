//! Which master a client believes what, and how long it waits for them.

use tokio::time::Instant;

use super::*;

/// The next calls that begin so find nobody.
fn away_for_a_while(fake: &Fake, calls: &'static str) {
    let mut left = 4;
    fake.judge(move |call, _| match call.starts_with(calls) && left > 0 {
        true => {
            left -= 1;
            Verdict::Refuse(Error::unavailable("gone for a while"))
        }
        false => Verdict::Go,
    });
}

#[tokio::test(start_paused = true)]
async fn a_master_whose_address_was_given_to_another_cluster_is_asked_for_nothing() {
    let (fake, client) = start().await;
    client.create("/a", 0).await.unwrap();
    // Its number of a session is known there too, and means somebody else.
    fake.with(|cluster| cluster.foreign = [2].into());
    fake.with(|cluster| cluster.log.clear());
    away_for_a_while(&fake, "m1 ");
    client.create("/b", 0).await.unwrap();
    fake.with(|cluster| cluster.expired.insert(1));
    client.create("/c", 0).await.unwrap();
    client.leader().await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.calls("m2 ")), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_session_of_another_cluster_is_not_taken_from_a_master_that_answers_everybody() {
    let (fake, client) = start().await;
    fake.with(|cluster| (cluster.foreign, cluster.answers_everybody) = ([2].into(), true));
    fake.with(|cluster| cluster.expired.insert(1));
    away_for_a_while(&fake, "m1 open_session");
    client.create("/a", 0).await.unwrap();
    let created = fake.with(|cluster| cluster.calls("create"));
    assert!(created.iter().all(|call| call.starts_with("m1 ")), "{created:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_told_to_be_missing_or_taken_no_older_state_tells_otherwise() {
    let fake = Fake::start();
    let options = Options { max_staleness: Duration::from_secs(1), ..Options::default() };
    let client = fake.client(options).await;
    client.create("/a", 0).await.unwrap();
    let floor = |rev: u64| {
        fake.with(|cluster| cluster.rev = rev);
    };
    floor(100);
    assert!(matches!(client.stat("/b").await, Err(Error::NotFound { .. })));
    floor(90);
    client.stat("/a").await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.floors.last().copied()), Some(100));
    floor(200);
    assert!(matches!(client.create("/a", 0).await, Err(Error::AlreadyExists { .. })));
    client.stat("/a").await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.floors.last().copied()), Some(200));
}

#[tokio::test(start_paused = true)]
async fn an_error_may_name_the_longest_path() {
    let (_fake, client) = start().await;
    for letter in ["\u{436}", "\u{1}"] {
        let name = format!("/{}", letter.repeat(200 / letter.len()));
        let path = name.repeat(4000 / name.len());
        let began = Instant::now();
        assert_eq!(client.stat(&path).await, Err(Error::NotFound { what: path }));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_there_are_places_for_give_up_together() {
    let (fake, client) = start().await;
    fake.judge(|_, _| Verdict::Refuse(Error::unavailable("cut off")));
    creations_give_up_together(&client, 600).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_that_are_over_at_once_are_not_opened_without_end() {
    let (fake, client) = start().await;
    let file = client.create("/a", 0).await.unwrap();
    fake.with(|cluster| cluster.session_ms = 0);
    tokio::time::sleep(Duration::from_secs(700)).await;
    let told = file.write_at(0, bytes::Bytes::from_static(b"a")).await.unwrap_err();
    assert!(matches!(&told, Error::DeadlineExceeded { last, .. } if last.contains("over at once")), "{told}");
    let opened = fake.with(|cluster| cluster.nonces.len());
    assert!(opened < 8, "{opened} sessions");
}
