//! What is asked about chunks, and decided.

use std::collections::BTreeSet;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_decision_whose_answer_is_lost_is_made_once_and_a_late_one_is_refused() {
    let (fake, client) = start().await;
    put(&client, "/a", b"x").await.unwrap();
    let file = client.open("/a").await.unwrap();
    let page = client.check_chunks(file.id(), 0).await.unwrap();
    assert_eq!((page.checked, page.chunk_count, page.counted), (1, 1, true));
    let (handle, server) = (ChunkHandle::from_raw(1), ServerId::from_raw(2));
    let seen = ChunkVersion::from_raw(client.inspect_chunk(handle).await.unwrap().version);
    fake.once("accept_replica", Verdict::LoseReply);
    let counts = client.accept_replica(handle, seen, server, &[]).await.unwrap();
    assert_eq!(counts, seen.next());
    let calls = fake.with(|cluster| cluster.calls("accept_replica"));
    // Whichever master was asked.
    let ids: BTreeSet<_> = calls.iter().filter_map(|call| call.split_once(' ')).map(|(_, id)| id).collect();
    assert!(calls.len() >= 2 && ids.len() == 1, "the same request id: {calls:?}");
    let late = client.accept_replica(handle, seen, server, &[]).await.unwrap_err();
    assert!(matches!(late, Error::BadArgument { .. }), "{late}");
}
