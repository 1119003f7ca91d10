//! The command line: what it prints, as text and as JSON, and how it exits.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use gfs_tests::{Cluster, Shape, eventually, gfs_binary};
use serde_json::Value;

use crate::{complaint, json_lines, printed};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_usage_not_found_exists_and_unavailable_apart() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    printed(&cluster.run_gfs(&["mkdir", "/a"]).unwrap());
    let missing = cluster.directory().join("missing");
    let missing = missing.to_str().unwrap();
    let version = "/proc/version";
    let cases: [(&[&str], i32, &str); 14] = [
        (&["no-such-command"], 2, "no-such-command"),
        (&["ls", "relative"], 2, "a path starts with '/'"),
        (&["mkdir", "/a/../b"], 2, "'.' and '..' are no names"),
        (&["stat", "/nothing"], 3, "/nothing: not found"),
        (&["cat", "/nothing"], 3, "not found"),
        (&["put", missing, "/x"], 3, "missing"),
        (&["put", version, "/no/such/directory"], 3, "not found"),
        (&["mkdir", "/a"], 4, "exists already"),
        (&["put", "-r", version, "/a", "--masters", "nonsense"], 2, "HOST:PORT"),
        (&["get", "/a", missing], 2, "-r"),
        (&["put", "/proc", "/p"], 2, "-r"),
        (&["put", version, version, "/a"], 2, "/a/version"),
        (&["ls", "--masters", "127.0.0.1:1", "--timeout", "300ms"], 5, "gfs cluster status"),
        (&["rm", "/nothing"], 3, "gfs ls"),
    ];
    for (arguments, code, part) in cases {
        let output = cluster.run_gfs(arguments).unwrap();
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
        assert!(complaint.contains(part), "{arguments:?}: {complaint}");
    }
    let lost = Command::new(gfs_binary().unwrap()).arg("ls").env_remove("GFS_MASTERS").output().unwrap();
    assert_eq!(lost.status.code(), Some(2));
    assert!(complaint(&lost).contains("GFS_MASTERS"), "{}", complaint(&lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_does_what_its_name_says() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let local = cluster.directory().join("local");
    std::fs::write(&local, "hello").unwrap();
    let local = local.to_str().unwrap();
    let run = |arguments: &[&str]| printed(&cluster.run_gfs(arguments).unwrap());
    assert_eq!(run(&["mkdir", "-p", "/a/b"]), "");
    assert_eq!(run(&["mkdir", "-p", "/a/b"]), "");
    run(&["put", local, "/a/b"]);
    assert_eq!(run(&["ls", "/a/b"]), "local\n");
    assert_eq!(run(&["ls", "-R", "/"]), "/a/\n/a/b/\n/a/b/local\n");
    assert_eq!(run(&["cat", "/a/b/local"]), "hello");
    assert_eq!(cluster.run_gfs(&["put", local, "/a/b"]).unwrap().status.code(), Some(4));
    run(&["put", "--force", local, "/a/b"]);
    assert_eq!(run(&["append", "/a/b/local", local]), "5\n");
    assert_eq!(run(&["cat", "/a/b/local"]), "hellohello");
    run(&["mv", "/a/b/local", "/a"]);
    run(&["mv", "/a/local", "/a/moved"]);
    // With a slash at the end a file is not meant to be replaced, nor a name to be taken.
    run(&["put", local, "/a/other"]);
    for target in ["/a/other/", "/a/nothing/"] {
        let refused = cluster.run_gfs(&["mv", "-f", "/a/moved", target]).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{target}: {}", complaint(&refused));
    }
    assert_eq!(run(&["cat", "/a/other"]), "hello");
    run(&["rm", "/a/other"]);
    run(&["mv", "/a/b", "/a/c/"]);
    run(&["mv", "/a/c/", "/a/b/"]);
    assert_eq!(run(&["ls", "/a"]), "b/\nmoved\n");
    let long = run(&["ls", "-l", "/a/moved"]);
    assert!(long.starts_with("-  3             10 ") && long.ends_with("/a/moved\n"), "{long}");
    assert!(run(&["stat", "/a/moved"]).contains("10 bytes"));
    assert!(run(&["chunks", "/a/moved"]).starts_with("#0 c"));
    assert!(run(&["df"]).contains("3 of 3 alive"));
    assert!(run(&["cluster", "status"]).contains("chunkservers: 3 of 3 alive"));
    assert_ne!(cluster.run_gfs(&["rm", "/a"]).unwrap().status.code(), Some(0));
    run(&["rm", "-r", "/a"]);
    assert_eq!(run(&["ls"]), "");
    run(&["rm", "-f", "/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_prints_prints_json_lines_as_well() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let local = cluster.directory().join("local");
    std::fs::write(&local, "hello").unwrap();
    let local = local.to_str().unwrap();
    let copy = cluster.directory().join("copy");
    let run =
        |arguments: &[&str]| -> Output { cluster.gfs(arguments).unwrap().arg("--json").output().unwrap() };
    let first = |arguments: &[&str]| -> Value { json_lines(&run(arguments)).remove(0) };
    assert_eq!(first(&["mkdir", "/a"])["path"], "/a");
    assert_eq!(first(&["put", local, "/a/f"])["bytes"], 5);
    assert_eq!(first(&["append", "/a/f", local])["offset"], 5);
    let entry = first(&["stat", "/a/f"]);
    assert_eq!((&entry["kind"], &entry["bytes"], &entry["chunks"]), (&"file".into(), &10.into(), &1.into()));
    assert_eq!(first(&["ls", "-l", "/a"])["path"], "/a/f");
    let chunk = first(&["chunks", "/a/f"]);
    assert_eq!(chunk["replicas"].as_array().unwrap().len(), 3);
    assert_eq!(first(&["get", "/a/f", copy.to_str().unwrap()])["files"], 1);
    assert_eq!(first(&["mv", "/a/f", "/a/g"])["target"], "/a/g");
    assert_eq!(first(&["rm", "/a/g"])["removed"], true);
    assert_eq!(json_lines(&run(&["df"])).len(), 3);
    let status = first(&["cluster", "status"]);
    assert_eq!(status["leader"].as_str(), cluster.address_of("master-1").as_deref());
    assert_eq!(
        (&status["chunkservers"][0]["alive"], &status["masters"][0]["leader"]),
        (&true.into(), &true.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_forges_no_line_of_the_output() {
    let cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let (path, shown) = ("/a\nforged\u{1b}[2J", r"a\nforged\u{1b}[2J");
    client.create(path, 1).await.unwrap();
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    assert_eq!(printed(&run(&["ls"])), format!("{shown}\n"));
    assert_eq!(json_lines(&run(&["--json", "ls"]))[0]["path"], path);
    let stat = printed(&run(&["stat", path]));
    assert!(stat.starts_with(&format!("/{shown}: file\n")), "{stat}");
    let missing = complaint(&run(&["stat", &format!("{path}-not")]));
    assert!(
        !missing.contains('\u{1b}') && missing.lines().all(|line| !line.starts_with("forged")),
        "{missing}"
    );
    client.delete(path).await.unwrap();
    let trash = printed(&run(&["trash", "list"]));
    assert!(trash.ends_with(&format!("  /{shown}\n")) && trash.lines().count() == 1, "{trash}");
}

#[test]
fn help_names_the_exit_codes_and_gives_examples() {
    let help = Command::new(gfs_binary().unwrap()).arg("--help").output().unwrap();
    let text = printed(&help);
    for part in ["Exit codes:", "  6  corruption", "Examples:", "GFS_MASTERS"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_log_nobody_reads_any_more_lives_and_can_be_stopped() {
    let mut cluster = Cluster::start(Shape { chunkservers: 1, ..Shape::default() }).await.unwrap();
    let before = cluster.address_of("chunkserver-1").unwrap();
    cluster.kill("chunkserver-1").unwrap();
    let (data, masters) = (cluster.data_of("chunkserver-1"), cluster.masters().join(","));
    let arguments =
        ["chunkserver", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--masters", &masters];
    let mut command = cluster.gfs(&arguments).unwrap();
    let mut server = command.env("RUST_LOG", "trace").stderr(Stdio::piped()).spawn().unwrap();
    drop(server.stderr.take());
    cluster
        .wait_for_status("it takes part", Duration::from_secs(60), |status| {
            // The killed one counts as alive for a while; this one listens elsewhere.
            status.servers.iter().any(|server| server.alive && server.address != before)
        })
        .await
        .unwrap();
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended =
        eventually("it stops", Duration::from_secs(30), async || server.try_wait()?.context("it runs"));
    assert!(ended.await.unwrap().success());
}
