//! Files in and out, as one user and as several.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use gfs_client::Error;
use gfs_tests::{Cluster, Shape, Tree, digest_of, digest_of_file, eventually, write_noise};

use crate::{json_lines, printed};

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_byte_for_byte() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
    Tree::make(&source, 48, 1 << 20, 1).unwrap();
    printed(&cluster.run_gfs(&["put", "-r", source.to_str().unwrap(), "/tree"]).unwrap());
    printed(&cluster.run_gfs(&["get", "-r", "/tree", copy.to_str().unwrap()]).unwrap());
    let (stored, fetched) = (Tree::read(&source).unwrap(), Tree::read(&copy).unwrap());
    assert_eq!(stored.differences(&fetched), Vec::<String>::new());
    assert_eq!(stored.files.len(), 48);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_in_and_out_carry_every_byte() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let local = cluster.directory().join("noise");
    write_noise(&local, 3_500_000, 2).unwrap();
    let stored =
        cluster.gfs(&["put", "-", "/piped"]).unwrap().stdin(std::fs::File::open(&local).unwrap()).output();
    printed(&stored.unwrap());
    for command in [&["get", "/piped", "-"][..], &["cat", "/piped"]] {
        let output = cluster.run_gfs(command).unwrap();
        assert!(output.status.success());
        assert_eq!(digest_of(&output.stdout[..]).unwrap(), digest_of_file(&local).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_appears_under_its_name_when_it_is_whole_and_not_before() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let mut put = cluster.gfs(&["put", "-", "/slow"]).unwrap().stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = put.stdin.take().unwrap();
    pipe.write_all(&vec![7; 3 << 20]).unwrap();
    // Something is being written: the hidden file has chunks.
    eventually("the put is under way", Duration::from_secs(30), async || {
        anyhow::ensure!(client.cluster_status().await?.chunks > 0, "no chunk yet");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!client.exists("/slow").await.unwrap());
    drop(pipe);
    assert!(put.wait().unwrap().success());
    assert_eq!(client.open("/slow").await.unwrap().len().await.unwrap(), 3 << 20);
    let names = json_lines(&cluster.run_gfs(&["--json", "ls", "/"]).unwrap());
    assert_eq!(names.len(), 1, "nothing hidden stays: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_clients_that_create_one_name_one_succeeds_and_the_others_are_told() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(cluster.client().await.unwrap());
    }
    for round in 0..10 {
        let path = format!("/contested-{round}");
        let attempts = clients.iter().map(|client| client.create(&path, 0));
        let outcomes = futures_join(attempts).await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let told =
            outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::AlreadyExists { .. }))).count();
        assert_eq!((won, told), (1, 3), "{outcomes:?}");
    }
}

/// Waits for all futures at once.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, outcome) in waiting.iter_mut().filter(|(_, outcome)| outcome.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *outcome = Some(value);
            }
        }
        let done = waiting.iter().all(|(_, outcome)| outcome.is_some());
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_several_appenders_land_whole_and_once() {
    let cluster = Cluster::start(Shape { chunk_bytes: 256 << 10, ..Shape::default() }).await.unwrap();
    cluster.client().await.unwrap().create("/log", 0).await.unwrap();
    let mut appenders = tokio::task::JoinSet::new();
    for appender in 0..3_u8 {
        let client = cluster.client().await.unwrap();
        appenders.spawn(async move {
            let file = client.open("/log").await.unwrap();
            let mut offsets = Vec::new();
            for number in 0..20_u8 {
                let record = vec![appender * 32 + number + 1; 20_000];
                offsets.push((file.append(record.clone().into()).await.unwrap(), record));
            }
            offsets
        });
    }
    let mut records: Vec<(u64, Vec<u8>)> = appenders.join_all().await.into_iter().flatten().collect();
    records.sort();
    let file = cluster.client().await.unwrap().open("/log").await.unwrap();
    for pair in records.windows(2) {
        assert!(pair[0].0 + 20_000 <= pair[1].0, "records overlap at {}", pair[1].0);
    }
    for (offset, record) in records {
        assert_eq!(file.read_at(offset, 20_000).await.unwrap(), record, "at {offset}");
    }
}
