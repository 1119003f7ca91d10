//! Everything acknowledged is there after every process was killed at once.

use std::time::Duration;

use gfs_tests::{Cluster, Role, Shape, eventually};

/// Writers of the story.
const WRITERS: u8 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_of_everything_all_that_was_acknowledged_is_there() {
    let shape = Shape { masters: 3, shadows: 1, chunk_bytes: 256 << 10, ..Shape::default() };
    let mut cluster = Cluster::start(shape).await.unwrap();
    let (told, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = cluster.client().await.unwrap();
        let told = told.clone();
        writers.spawn(async move {
            for number in 0_u32.. {
                let path = format!("/w{writer}-{}", number / 8);
                let Ok(file) = (match number % 8 {
                    0 => client.create(&path, 0).await,
                    _ => client.open(&path).await,
                }) else {
                    return;
                };
                let record = format!("{writer}:{number};").repeat(1000);
                let Ok(offset) = file.append(record.clone().into()).await else {
                    return;
                };
                if told.send((path, offset, record)).is_err() {
                    return;
                }
            }
        });
    }
    let mut records = Vec::new();
    while records.len() < 60 {
        records.push(acknowledged.recv().await.unwrap());
    }
    cluster.kill_all().unwrap();
    writers.abort_all();
    drop(told);
    while let Some(record) = acknowledged.recv().await {
        records.push(record);
    }
    cluster.restart_all().unwrap();
    cluster.wait_until_up().await.unwrap();
    let client = cluster.client().await.unwrap();
    for (path, offset, record) in records {
        let file = client.open(&path).await.unwrap();
        let read = file.read_at(offset, record.len() as u64).await.unwrap();
        assert!(read == record.as_bytes(), "{path} at {offset}");
        // And writing goes on.
        if offset == 0 {
            file.append("after".into()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_restart_one_after_the_other_are_not_missed() {
    let mut cluster = Cluster::start(Shape { masters: 3, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let file = client.create("/rolling", 0).await.unwrap();
    let mut expected = Vec::new();
    for role in [Role::Chunkserver, Role::Master] {
        for name in cluster.names(role) {
            cluster.kill(&name).unwrap();
            cluster.restart(&name).unwrap();
            cluster.wait_until_up().await.unwrap();
            let record = format!("after {name}\n");
            let offset = file.append(record.clone().into()).await.unwrap();
            expected.push((offset, record));
        }
    }
    for (offset, record) in expected {
        let read = file.read_at(offset, record.len() as u64).await.unwrap();
        assert_eq!(read, record.as_bytes());
    }
    eventually("all chunks have all replicas", Duration::from_secs(60), async || {
        let status = client.cluster_status().await?;
        anyhow::ensure!(status.counted && status.chunks_below_goal == 0, "{status:?}");
        Ok(())
    })
    .await
    .unwrap();
}
