//! Files in and out, as one user and as several.

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use gfs_client::{Client, Error};
use gfs_tests::{Cluster, Shape, Tree, digest_of, digest_of_file, eventually, write_noise};
use rustix::process::Signal;

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
async fn what_is_not_stored_to_its_end_is_no_part_of_a_fetched_tree() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    client.mkdir("/tree").await.unwrap();
    client.create("/tree/whole", 1).await.unwrap();
    client.create("/tree/.gfs-put-0123456789abcdef", 1).await.unwrap();
    let copy = cluster.directory().join("copy");
    let got = cluster.run_gfs(&["--json", "get", "-r", "/tree", copy.to_str().unwrap()]).unwrap();
    let tally = &json_lines(&got)[0];
    assert_eq!((tally["files"].as_u64(), tally["skipped"].as_u64()), (Some(1), Some(1)), "{tally}");
    assert!(crate::complaint(&got).contains(".gfs-put-0123456789abcdef"), "{}", crate::complaint(&got));
    assert_eq!(std::fs::read_dir(&copy).unwrap().count(), 1);
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

/// A put of "/slow" that has stored 3 MiB and waits for more from its pipe.
async fn put_under_way(cluster: &Cluster, client: &Client) -> (Child, ChildStdin) {
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
    (put, pipe)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_appears_under_its_name_when_it_is_whole_and_not_before() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let (mut put, pipe) = put_under_way(&cluster, &client).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_interrupted_leaves_nothing_behind() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let send = |child: &Child, signal: Signal| {
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    };
    let signals = [Signal::INT, Signal::TERM, Signal::HUP];
    for signal in signals.into_iter().filter(|signal| *signal != Signal::HUP || !ignores_hangup()) {
        let (mut put, _pipe) = put_under_way(&cluster, &client).await;
        send(&put, signal);
        assert_eq!(put.wait().unwrap().code(), Some(130), "{signal:?}");
        assert_eq!(printed(&cluster.run_gfs(&["ls", "/"]).unwrap()), "");
        assert_eq!(printed(&cluster.run_gfs(&["trash", "list"]).unwrap()), "");
    }

    // A pipe that nobody empties keeps a get under way; what is being fetched beside it is not whole.
    let (tree, copy) = (cluster.directory().join("tree"), cluster.directory().join("copy"));
    Tree::make(&tree, 4, 1 << 20, 3).unwrap();
    printed(&cluster.run_gfs(&["put", "-r", tree.to_str().unwrap(), "/tree"]).unwrap());
    client.create("/tree/last", 0).await.unwrap().write_at(0, vec![1; 1 << 20].into()).await.unwrap();
    let there = copy.join("tree");
    std::fs::create_dir_all(&there).unwrap();
    make_pipe(&there.join("last"));
    let pipe = std::fs::File::options().read(true).write(true).open(there.join("last")).unwrap();
    let arguments = ["get", "-r", "/tree", copy.to_str().unwrap()];
    let mut get = cluster.gfs(&arguments).unwrap().spawn().unwrap();
    eventually("something came", Duration::from_secs(30), async || {
        anyhow::ensure!(rustix::io::ioctl_fionread(&pipe)? > 0, "nothing yet");
        Ok(())
    })
    .await
    .unwrap();
    send(&get, Signal::INT);
    assert_eq!(get.wait().unwrap().code(), Some(130));
    for entry in std::fs::read_dir(there).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with(".gfs-get"), "{name}");
    }
}

/// Under `nohup` what is started here goes on when the terminal ends.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 == 1
}

fn make_pipe(path: &std::path::Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

/// A file that takes nothing, as the standard error on a full disk.
fn full() -> std::fs::File {
    std::fs::File::options().write(true).open("/dev/full").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_tree_all_that_can_be_stored_is_and_the_rest_is_told_and_counted() {
    use std::os::unix::ffi::OsStrExt;
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let tree = cluster.directory().join("tree");
    std::fs::create_dir_all(tree.join("below")).unwrap();
    std::os::unix::net::UnixListener::bind(tree.join("a-socket")).unwrap();
    std::os::unix::fs::symlink("below", tree.join("b-link")).unwrap();
    std::fs::write(tree.join("c-file"), "c").unwrap();
    std::fs::write(tree.join("below/file"), "below").unwrap();
    let tree = tree.to_str().unwrap();
    // That nobody can be told of the socket ends nothing.
    let stored = cluster.gfs(&["--json", "put", "-r", tree, "/t"]).unwrap().stderr(full()).output().unwrap();
    let tally = &json_lines(&stored)[0];
    assert_eq!((tally["files"].as_u64(), tally["skipped"].as_u64()), (Some(2), Some(2)), "{tally}");
    assert_eq!(printed(&cluster.run_gfs(&["cat", "/t/c-file", "/t/below/file"]).unwrap()), "cbelow");
    // A name that can't be stored is a failure.
    std::fs::write(std::path::Path::new(tree).join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();
    let partly = cluster.run_gfs(&["--json", "put", "-r", tree, "/u"]).unwrap();
    let tally: serde_json::Value = serde_json::from_slice(&partly.stdout).unwrap();
    assert_eq!((tally["files"].as_u64(), tally["failed"].as_u64()), (Some(2), Some(1)), "{tally}");
    assert_eq!(partly.status.code(), Some(1), "{}", crate::complaint(&partly));
    assert!(crate::complaint(&partly).contains("no UTF-8"), "{}", crate::complaint(&partly));
    assert_eq!(printed(&cluster.run_gfs(&["cat", "/u/c-file"]).unwrap()), "c");
    // Nor does it change how a command ends.
    let missing = cluster.gfs(&["ls", "/nothing"]).unwrap().stderr(full()).output().unwrap();
    assert_eq!(missing.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_written_into_and_a_link_stays_one() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let local = cluster.directory().join("local");
    std::fs::write(&local, "hello").unwrap();
    printed(&cluster.run_gfs(&["put", local.to_str().unwrap(), "/f"]).unwrap());
    let pipe = cluster.directory().join("pipe");
    make_pipe(&pipe);
    let reading = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap())
    };
    printed(&cluster.run_gfs(&["get", "/f", pipe.to_str().unwrap()]).unwrap());
    assert_eq!(reading.join().unwrap(), "hello");
    let (target, link) = (cluster.directory().join("target"), cluster.directory().join("link"));
    std::fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(cluster.run_gfs(&["get", "/f", link.to_str().unwrap()]).unwrap().status.code(), Some(4));
    printed(&cluster.run_gfs(&["get", "-f", "/f", link.to_str().unwrap()]).unwrap());
    assert!(link.is_symlink());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "hello");
    let hidden = std::fs::read_dir(cluster.directory()).unwrap();
    assert!(
        hidden.into_iter().all(|entry| !entry.unwrap().file_name().to_string_lossy().contains("gfs-get"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_length_nobody_can_tell_does_not_end_a_listing() {
    let mut cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    client.create("/a", 1).await.unwrap().append("x".into()).await.unwrap();
    client.create("/b", 1).await.unwrap();
    cluster.kill("chunkserver-1").unwrap();
    let listed = cluster.run_gfs(&["ls", "-l", "/", "--timeout", "2s"]).unwrap();
    assert_eq!(listed.status.code(), Some(5), "{}", crate::complaint(&listed));
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains(" b\n"), "{text}");
    assert!(crate::complaint(&listed).contains("/a"), "{}", crate::complaint(&listed));
}
