//! What bad input gets: a refusal with its reason, and a server that lives.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use gfs_client::{Client, Options};
use gfs_proto::pb;
use gfs_tests::{Cluster, Disks, Role, Shape, eventually};

/// Enough to notice that a disk is full, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for a chunkserver's log and headroom, too.
const MASTERS_DISK_BYTES: u64 = 2 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn bad_names_are_refused_with_the_reason_by_client_and_master() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let net = gfs_proto::Environment::real().net;
    let channel = gfs_proto::net::channel(net, &cluster.masters()[0], Duration::from_secs(5)).unwrap();
    let mut master = pb::master_client::MasterClient::new(channel);
    let long_name = format!("/{}", "x".repeat(256));
    let long_path = "/abcdefgh".repeat(500);
    let deep = "/a".repeat(257);
    for (path, reason) in [
        ("", "starts with '/'"),
        ("relative", "starts with '/'"),
        ("//", "empty"),
        ("/a//b", "empty"),
        ("/a/", "empty"),
        ("/.", "no names"),
        ("/a/..", "no names"),
        ("/a\0b", "NUL"),
        (long_name.as_str(), "255"),
        (long_path.as_str(), "4096"),
        (deep.as_str(), "256"),
    ] {
        let refused = client.mkdir_all(path).await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{path:?}: {refused}");
        let request = pb::MkdirRequest { request: None, path: path.to_owned(), parents: true };
        let refused = master.mkdir(request).await.unwrap_err();
        assert!(refused.message().contains(reason) || refused.message().contains("request"), "{refused:?}");
        let request = pb::StatRequest { path: path.to_owned(), freshness: None, id: 0 };
        let refused = master.stat(request).await.unwrap_err();
        assert!(refused.message().contains(reason), "{path:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_any_port_is_refused_and_the_server_lives() {
    let mut cluster = Cluster::start(Shape { shadows: 1, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let file = client.create("/before", 0).await.unwrap();
    file.append("x".into()).await.unwrap();
    let mut huge_frame = gfs_proto::frame::MAGIC.to_vec();
    huge_frame.extend_from_slice(&[0xff; 4096]);
    let garbage: [&[u8]; 6] = [
        b"",
        b"GE",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 100_000],
        &huge_frame,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for role in [Role::Master, Role::Shadow, Role::Chunkserver] {
        for name in cluster.names(role) {
            for bytes in garbage {
                throw(&cluster.address_of(&name).unwrap(), bytes);
            }
        }
    }
    cluster.wait_until_up().await.unwrap();
    assert_eq!(file.append("y".into()).await.unwrap(), 1);
    assert_eq!(file.read_at(0, 10).await.unwrap(), "xy");
}

/// Sends bytes and reads what comes until the other side closes, or for a moment.
fn throw(address: &str, bytes: &[u8]) {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // The other side may close at any byte: that is the refusal.
    if connection.write_all(bytes).is_ok() {
        let mut answer = [0; 1024];
        while matches!(connection.read(&mut answer), Ok(count) if count > 0) {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_directory_the_second_refuses_to_start() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let masters = cluster.masters().join(",");
    for (name, more) in [("master-1", ["--join", &masters]), ("chunkserver-1", ["--masters", &masters])] {
        let data = cluster.data_of(name);
        let command = if name.starts_with("master") { "master" } else { "chunkserver" };
        let mut arguments = vec![command, "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        arguments.extend(more);
        let output = cluster.run_gfs(&arguments).unwrap();
        let complaint = crate::complaint(&output);
        assert!(!output.status.success(), "{complaint}");
        assert!(complaint.contains(data.to_str().unwrap()), "it names the directory: {complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_refuses_to_start() {
    let mut ours = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let theirs = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    ours.kill("chunkserver-1").unwrap();
    let data = ours.data_of("chunkserver-1");
    let masters = theirs.masters().join(",");
    let arguments =
        ["chunkserver", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--masters", &masters];
    let output = ours.run_gfs(&arguments).unwrap();
    let complaint = crate::complaint(&output);
    assert!(!output.status.success(), "{complaint}");
    assert!(complaint.contains("cluster"), "{complaint}");
    // It is still good for its own cluster.
    ours.restart("chunkserver-1").unwrap();
    ours.wait_until_up().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_or_newer_directory_is_refused_and_says_why() {
    let mut cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    for (name, identity) in [("chunkserver-1", "identity"), ("master-1", "identity.json")] {
        cluster.kill(name).unwrap();
        let (data, aside) = (cluster.data_of(name), cluster.directory().join("aside"));
        let identity_file = data.join(identity);

        // From a newer version.
        let good = std::fs::read_to_string(&identity_file).unwrap();
        let newer = good.replacen("\"format\": 1", "\"format\": 99", 1);
        let newer = newer.replacen("gfs-chunkserver 2 ", "gfs-chunkserver 99 ", 1);
        assert_ne!(good, newer, "{good}");
        std::fs::write(&identity_file, newer).unwrap();
        assert!(refusal(&mut cluster, name).await.contains("99"));
        std::fs::write(&identity_file, good).unwrap();

        // Everything is gone but the identity.
        std::fs::create_dir(&aside).unwrap();
        let others = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
        let others: Vec<_> = others.filter(|path| !path.ends_with(identity)).collect();
        for path in &others {
            std::fs::rename(path, aside.join(path.file_name().unwrap())).unwrap();
        }
        assert!(refusal(&mut cluster, name).await.contains(data.to_str().unwrap()));

        // Untouched again, it goes on as if nothing had been.
        for path in others {
            if path.is_dir() {
                std::fs::remove_dir_all(&path).unwrap();
            }
            std::fs::rename(aside.join(path.file_name().unwrap()), path).unwrap();
        }
        std::fs::remove_dir(&aside).unwrap();
        cluster.restart(name).unwrap();
        cluster.wait_until_up().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_whose_log_alone_was_emptied_is_refused_and_says_what_to_do() {
    // As if a volume were not mounted: the directory is there, the identity and the state too.
    let mut cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    cluster.kill("master-1").unwrap();
    let (log, aside) = (cluster.data_of("master-1").join("log"), cluster.directory().join("aside"));
    std::fs::rename(&log, &aside).unwrap();
    std::fs::create_dir(&log).unwrap();
    // Also the second time: the first has put nothing there.
    for _ in 0..2 {
        let refused = refusal(&mut cluster, "master-1").await;
        assert!(refused.contains("its log was emptied") && refused.contains("new member"), "{refused}");
    }
    assert_eq!(std::fs::read_dir(&log).unwrap().count(), 0);
    std::fs::remove_dir(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    cluster.restart("master-1").unwrap();
    cluster.wait_until_up().await.unwrap();
}

/// Starts a server that must not start, and returns what it says.
async fn refusal(cluster: &mut Cluster, name: &str) -> String {
    cluster.restart(name).unwrap();
    let (code, log) = cluster.wait_for_end(name).await.unwrap();
    assert!(code.is_some_and(|code| code != 0), "{name} ended with {code:?}: {log}");
    log.lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_whose_disks_are_full_let_nothing_grow_and_go_on_when_there_is_room() {
    if let Some(obstacle) = Disks::obstacle() {
        eprintln!("skipped: {obstacle}");
        return;
    }
    let shape =
        Shape { masters: 3, chunkservers: 3, disk_bytes: Some(MASTERS_DISK_BYTES), ..Shape::default() };
    let mut cluster = Cluster::start(shape).await.unwrap();
    let options = Options { patience: Duration::from_secs(2), ..Options::default() };
    let client = Client::connect(&cluster.masters(), options).await.unwrap();
    let file = client.create("/log", 0).await.unwrap();
    file.append("before".into()).await.unwrap();
    client.create("/to-be-deleted", 0).await.unwrap();
    let masters = cluster.names(Role::Master);
    // A tenth is their headroom.
    for name in &masters {
        cluster.fill_disk(name, MASTERS_DISK_BYTES / 20).unwrap();
    }
    let mut number = 0;
    let mut refused = String::new();
    eventually("a new file is refused", PATIENCE, async || {
        number += 1;
        match client.create(&format!("/new-{number}"), 0).await {
            Ok(_) => anyhow::bail!("it was made"),
            Err(error) => refused = error.to_string(),
        }
        Ok(())
    })
    .await
    .unwrap();
    assert!(refused.contains("disks of masters"), "{refused}");
    let output = cluster.run_gfs(&["cluster", "status"]).unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(" 0 B free"), "{told}");

    // What is there can be read, written, renamed and deleted.
    assert_eq!(file.append(" and after".into()).await.unwrap(), 6);
    assert_eq!(file.read_at(0, 100).await.unwrap(), "before and after");
    client.delete("/to-be-deleted").await.unwrap();
    for name in &masters {
        cluster.empty_disk(name).unwrap();
    }
    eventually("a new file is made", PATIENCE, async || {
        client.create("/there-is-room", 0).await?;
        Ok(())
    })
    .await
    .unwrap();
    cluster.wait_until_up().await.unwrap();
}
