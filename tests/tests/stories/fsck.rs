//! `gfs fsck`: what is not as it should be is named, and what waits for a decision gets one (docs/decisions/0020).

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use gfs_client::{Durability, Options};
use gfs_tests::{Cluster, Disks, Shape, eventually};
use serde_json::Value;

use crate::{complaint, printed};

/// Bytes of each server's disk: sparse, and more than the headroom that a chunkserver leaves free.
const DISK_BYTES: u64 = 3 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// What `gfs fsck --json` says: its exit code, the chunks, and the sum.
fn fsck(cluster: &Cluster) -> anyhow::Result<(i32, Vec<Value>, Value)> {
    let output = cluster.run_gfs(&["--json", "fsck"])?;
    let code = output.status.code().context("it was killed")?;
    let text = String::from_utf8(output.stdout.clone())?;
    let mut lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let sum = lines.pop().with_context(|| complaint(&output))?;
    Ok((code, lines, sum))
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_tells_what_is_whole_what_is_short_of_replicas_and_what_is_away() {
    let mut cluster = Cluster::start(Shape { chunkservers: 4, ..Shape::default() }).await.unwrap();
    let local = cluster.directory().join("local");
    std::fs::write(&local, vec![7; 3 << 20]).unwrap();
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    for path in ["/a", "/a/b"] {
        printed(&run(&["mkdir", path]));
    }
    for path in ["/a/one", "/a/b/two", "/a/b/three"] {
        printed(&run(&["put", local.to_str().unwrap(), path]));
    }
    let empty = cluster.directory().join("empty");
    std::fs::write(&empty, "").unwrap();
    printed(&run(&["put", empty.to_str().unwrap(), "/a/none"]));
    let (code, chunks, sum) = fsck(&cluster).unwrap();
    assert_eq!((code, chunks.len(), &sum["chunks"]), (0, 0, &9.into()), "{sum}");
    assert!(printed(&run(&["fsck", "/a/b"])).starts_with("2 files, 6 chunks: 0 wait"));
    assert!(printed(&run(&["fsck", "/a/one"])).starts_with("1 files, 3 chunks: 0 wait"));
    assert_eq!(run(&["fsck", "/nothing"]).status.code(), Some(3));
    let refuse = |server: u8| {
        let refused = run(&["fsck", "--accept", "c1@v1", "--from", &format!("s{server}")]);
        assert_eq!(refused.status.code(), Some(2));
        complaint(&refused)
    };
    let refused: Vec<String> = (1..=4).map(refuse).collect();
    let says = |what: &str| refused.iter().filter(|said| said.contains(what)).count();
    assert_eq!((says("whole replica"), says("never had all of c1")), (3, 1), "{refused:?}");

    // All but one are gone: what is left is named, and what is not, and who may have it.
    for name in ["chunkserver-2", "chunkserver-3", "chunkserver-4"] {
        cluster.kill(name).unwrap();
    }
    let told = eventually("they are missed", PATIENCE, async || {
        let (code, chunks, sum) = fsck(&cluster)?;
        ensure!(
            code == 5 && sum["below_goal"].as_u64() == Some(9 - sum["away"].as_u64().unwrap()),
            "{code}: {sum}"
        );
        Ok(chunks)
    });
    let chunks = told.await.unwrap();
    assert_eq!(chunks.len(), 9, "{chunks:?}");
    for chunk in &chunks {
        let state = |word: &str| {
            chunk["replicas"].as_array().unwrap().iter().filter(|replica| replica["state"] == word).count()
        };
        let here = usize::from(chunk["health"] == "below_goal");
        assert_eq!((state("whole"), state("away")), (here, 3 - here), "{chunk}");
    }
    let said = cluster.run_gfs(&["fsck"]).unwrap();
    assert!(complaint(&said).contains("gfs df"), "{}", complaint(&said));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_of_all_fsck_names_what_waits_and_the_decision_makes_it_readable_again() {
    if let Some(obstacle) = Disks::obstacle() {
        eprintln!("skipped: {obstacle}");
        return;
    }
    let mut cluster =
        Cluster::start(Shape { disk_bytes: Some(DISK_BYTES), ..Shape::default() }).await.unwrap();
    let options = Options { durability: Durability::Replicated, ..Options::default() };
    let client = gfs_client::Client::connect(&cluster.masters(), options).await.unwrap();
    let synced = cluster.client().await.unwrap();
    synced.create("/synced", 0).await.unwrap().append("safe".into()).await.unwrap();
    let file = client.create("/promised", 0).await.unwrap();
    synced.open("/promised").await.unwrap().append("one;".into()).await.unwrap();
    file.append("two;".into()).await.unwrap();
    // What one server has reaches its disk in time; of the others nobody knows.
    let disk = std::fs::File::open(cluster.disk_of("chunkserver-2").unwrap()).unwrap();
    rustix::fs::syncfs(disk.as_fd()).unwrap();
    let kept = format!("s{}", server_at(&synced, &cluster.address_of("chunkserver-2").unwrap()).await);
    drop((disk, client, synced));
    cluster.cut_power().unwrap();
    cluster.restart_all().unwrap();
    cluster.wait_until_up().await.unwrap();

    let waiting = eventually("the chunk waits", PATIENCE, async || {
        let (code, mut chunks, sum) = fsck(&cluster)?;
        ensure!(code == 6 && sum["waiting"] == 1 && chunks.len() == 1, "{code}: {sum} {chunks:?}");
        Ok(chunks.remove(0))
    });
    let waiting = waiting.await.unwrap();
    assert_eq!(
        (&waiting["path"], &waiting["index"], &waiting["health"]),
        (&"/promised".into(), &0.into(), &"waiting".into())
    );
    says_what_each_replica_holds(&waiting, &kept);
    // Nobody reads it; what was synced nobody had to decide about.
    let run = |arguments: &[&str]| cluster.run_gfs(arguments).unwrap();
    assert_eq!(run(&["cat", "/promised", "--timeout", "2s"]).status.code(), Some(5));
    assert_eq!(printed(&run(&["cat", "/synced"])), "safe");
    let (handle, version) = (waiting["handle"].as_u64().unwrap(), waiting["version"].as_u64().unwrap());
    let text = run(&["fsck"]);
    let shown = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        shown.contains("waits for a decision")
            && shown.contains(&format!("--accept c{handle}@v{version} --from s")),
        "{shown}"
    );
    assert!(complaint(&text).contains("--accept"), "{}", complaint(&text));

    let decide = |version: u64| run(&["fsck", "--accept", &format!("c{handle}@v{version}"), "--from", &kept]);
    let stale = decide(version - 1);
    assert_eq!(stale.status.code(), Some(2));
    assert!(complaint(&stale).contains("look at it again"), "{}", complaint(&stale));
    assert!(printed(&decide(version)).contains("is its content"));
    assert_eq!(printed(&run(&["cat", "/promised"])), "one;two;");
    let healed = eventually("the others are made from it", PATIENCE, async || {
        let (code, chunks, sum) = fsck(&cluster)?;
        ensure!(code == 0, "{code}: {sum} {chunks:?}");
        let verified = printed(&run(&["--json", "chunks", "--verify", "/promised"]));
        let chunk: Value = serde_json::from_str(verified.trim())?;
        ensure!(chunk["verdict"] == "alike" && chunk["replicas"].as_array().unwrap().len() == 3, "{chunk}");
        Ok(())
    });
    healed.await.unwrap();
    // A late repeat does nothing, and the file can be written.
    assert_eq!(decide(version).status.code(), Some(2));
    let local = cluster.directory().join("local");
    std::fs::write(&local, "three;").unwrap();
    assert_eq!(printed(&run(&["append", "/promised", local.to_str().unwrap()])), "8\n");
    assert_eq!(printed(&run(&["cat", "/promised"])), "one;two;three;");
}

/// The chunk has three partial replicas: the kept one with all that was promised, the others with that or less.
fn says_what_each_replica_holds(waiting: &Value, kept: &str) {
    let replicas = waiting["replicas"].as_array().unwrap();
    assert!(replicas.len() == 3 && replicas.iter().all(|replica| replica["state"] == "partial"), "{waiting}");
    for replica in replicas {
        let (length, is_kept) =
            (replica["length"].as_u64().unwrap(), format!("s{}", replica["server"]) == kept);
        assert!(length == 8 || (length == 4 && !is_kept), "{waiting}");
        assert!(replica["committed_length"].is_null(), "nobody knows: {waiting}");
    }
    assert!(replicas.iter().any(|replica| format!("s{}", replica["server"]) == kept), "{waiting}");
}

/// The id of the server at an address.
async fn server_at(client: &gfs_client::Client, address: &str) -> u64 {
    let servers = client.disk_free().await.unwrap();
    servers.iter().find(|server| server.address == address).unwrap().id
}
