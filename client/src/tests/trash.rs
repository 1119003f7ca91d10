//! What was deleted, and is wanted back.

use std::collections::BTreeSet;

use super::*;

async fn paths(client: &Client, below: &str) -> Vec<String> {
    client.trash(below).map_ok(|trashed| trashed.path).try_collect().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_trash_is_listed_over_all_pages_and_the_last_of_a_name_comes_back() {
    let (fake, client) = start().await;
    for (path, content) in [("/a", "one"), ("/b", "two"), ("/a", "three"), ("/c/x", "four"), ("/a", "five")] {
        put(&client, path, content.as_bytes()).await.unwrap();
        client.delete(path).await.unwrap();
    }
    assert_eq!(paths(&client, "/").await, ["/a", "/b", "/a", "/c/x", "/a"]);
    assert_eq!(paths(&client, "/c").await, ["/c/x"], "pages without anything are passed over");
    let first = client.trash("/a").try_next().await.unwrap().unwrap();
    let restored = client.undelete("/a").await.unwrap();
    assert_eq!(restored.name, "a");
    assert_eq!(fake.with(|cluster| cluster.content("/a")), b"five");
    // The name is taken now; an older one comes back elsewhere.
    assert!(matches!(client.undelete("/a").await, Err(Error::AlreadyExists { .. })));
    client.undelete_entry(first.entry.id, "/older").await.unwrap();
    assert_eq!(fake.with(|cluster| cluster.content("/older")), b"one");
    let missing = client.undelete("/never").await.unwrap_err();
    assert_eq!(missing.to_string(), "/never in the trash: not found");
    assert!(matches!(client.undelete("relative").await, Err(Error::BadPath { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_restores_once_and_deletes_again_once() {
    let (fake, client) = start().await;
    for path in ["/a", "/b"] {
        put(&client, path, b"x").await.unwrap();
        client.delete(path).await.unwrap();
    }
    fake.once("undelete", Verdict::LoseReply);
    client.undelete("/a").await.unwrap();
    let calls = fake.with(|cluster| cluster.calls("undelete"));
    // Whichever master was asked.
    let ids: BTreeSet<_> = calls.iter().filter_map(|call| call.split_once(' ')).map(|(_, id)| id).collect();
    assert!(calls.len() >= 2 && ids.len() == 1, "the same request id: {calls:?}");
    let left = client.trash("/").try_next().await.unwrap().unwrap();
    fake.once("expedite", Verdict::LoseReply);
    client.expedite(left.entry.id).await.unwrap();
    assert!(paths(&client, "/").await.is_empty());
}
