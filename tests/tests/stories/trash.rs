//! The trash: what was deleted comes back until its date (promise P7), and room is given back after it.

use std::time::Duration;

use anyhow::ensure;
use gfs_tests::{Cluster, Shape, Tree, eventually};

use crate::{complaint, json_lines, printed};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_comes_back_where_it_was_or_elsewhere_as_it_was() {
    let mut cluster = Cluster::start(Shape { masters: 3, ..Shape::default() }).await.unwrap();
    let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
    Tree::make(&source, 12, 1 << 20, 1).unwrap();
    let local = cluster.directory().join("local");
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    printed(&run(&["mkdir", "/docs"]));
    printed(&run(&["put", "-r", source.to_str().unwrap(), "/docs/tree"]));
    // Three files of one name, one after the other.
    for text in ["one", "two", "three"] {
        std::fs::write(&local, text).unwrap();
        printed(&run(&["put", local.to_str().unwrap(), "/docs/file"]));
        printed(&run(&["rm", "/docs/file"]));
    }
    printed(&run(&["rm", "-r", "/docs"]));
    let listed = json_lines(&run(&["--json", "trash", "list"]));
    let paths: Vec<&str> = listed.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/docs/file", "/docs/file", "/docs/file", "/docs"]);
    assert!(listed.iter().all(|line| line["until_ms"].as_u64().unwrap()
        == line["deleted_ms"].as_u64().unwrap() + 3 * 24 * 3_600_000));
    let oldest = format!("e{}", listed[0]["id"]);
    assert_eq!(printed(&run(&["trash", "list", "/docs/file"])).lines().count(), 3);

    // Each thing that can be in the way says what to do.
    let cases: [(&[&str], i32, &str, &str); 4] = [
        (&["undelete", "/nothing"], 3, "/nothing: not in the trash", "gfs trash list"),
        (&["undelete", "/docs/tree/x"], 3, "/docs was deleted as a whole", "gfs undelete /docs"),
        (&["undelete", "/docs/file"], 3, "/docs: not found", "--to"),
        (&["undelete", "/docs", "--id", "e999"], 3, "not in the trash under the id e999", "gfs trash list"),
    ];
    for (arguments, code, what, step) in cases {
        let output = run(arguments);
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
        assert!(complaint.contains(what) && complaint.contains(step), "{arguments:?}: {complaint}");
    }

    // The whole tree, over a change of the leader.
    drop(listed);
    cluster.kill("master-1").unwrap();
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    printed(&run(&["undelete", "/docs/"]));
    printed(&run(&["get", "-r", "/docs/tree", copy.to_str().unwrap()]));
    let (stored, fetched) = (Tree::read(&source).unwrap(), Tree::read(&copy).unwrap());
    assert_eq!(stored.differences(&fetched), Vec::<String>::new());
    // The last one of a name, unless another is asked for; and it can be written.
    printed(&run(&["undelete", "/docs/file"]));
    assert_eq!(printed(&run(&["cat", "/docs/file"])), "three");
    let taken = run(&["undelete", "/docs/file"]);
    assert_eq!(taken.status.code(), Some(4));
    assert!(complaint(&taken).contains("--to"), "{}", complaint(&taken));
    printed(&run(&["undelete", "/docs/file", "--id", &oldest, "--to", "/oldest"]));
    assert_eq!(printed(&run(&["append", "/oldest", local.to_str().unwrap()])), "3\n");
    assert_eq!(printed(&run(&["cat", "/oldest"])), "onethree");
    // What is left goes for good when it is told to.
    assert_eq!(printed(&run(&["trash", "empty", "/docs"])), "1 deleted for good\n");
    assert_eq!(printed(&run(&["trash", "list"])), "");
    assert_eq!(run(&["undelete", "/docs/file"]).status.code(), Some(3));
    assert_eq!(printed(&run(&["cat", "/docs/file"])), "three");
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_date_nothing_comes_back_and_what_was_restored_before_stays() {
    let shape = Shape { trash: Duration::from_secs(4), ..Shape::default() };
    let cluster = Cluster::start(shape).await.unwrap();
    let local = cluster.directory().join("local");
    std::fs::write(&local, "content").unwrap();
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    for path in ["/stays", "/goes"] {
        printed(&run(&["put", local.to_str().unwrap(), path]));
        printed(&run(&["rm", path]));
    }
    printed(&run(&["undelete", "/stays"]));
    let client = cluster.client().await.unwrap();
    // The chunk of what goes is collected: then its replicas are deleted.
    eventually("the date comes", Duration::from_secs(60), async || {
        let status = client.cluster_status().await?;
        ensure!(status.chunks == 1, "{} chunks", status.chunks);
        let held: u64 = status.servers.iter().map(|server| server.chunks).sum();
        ensure!(held == 3, "{held} replicas");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(run(&["undelete", "/goes"]).status.code(), Some(3));
    assert_eq!(printed(&run(&["trash", "list"])), "");
    assert_eq!(printed(&run(&["cat", "/stays"])), "content");
    assert!(printed(&run(&["chunks", "--verify", "/stays"])).contains("alike"));
}
