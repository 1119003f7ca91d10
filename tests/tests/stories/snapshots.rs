//! Snapshots: made in a moment, and then both sides go their own way (GFS §3.4).

use gfs_tests::{Cluster, Shape, Tree};

use crate::{complaint, printed};

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_snapshot_go_their_own_way() {
    let cluster = Cluster::start(Shape::default()).await.unwrap();
    let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
    Tree::make(&source, 12, 1 << 20, 1).unwrap();
    printed(&cluster.run_gfs(&["put", "-r", source.to_str().unwrap(), "/tree"]).unwrap());
    let client = cluster.client().await.unwrap();
    // An open writer, with a lease and a cached location, that goes on after the snapshot.
    let log = client.create("/tree/log", 0).await.unwrap();
    log.append((&b"one"[..]).into()).await.unwrap();
    // A reader of another client that has looked the chunk up, and goes on with what it knows.
    let reader = cluster.client().await.unwrap();
    let cached = reader.open("/tree/log").await.unwrap();
    assert_eq!(cached.read_at(0, 3).await.unwrap(), &b"one"[..]);

    let answer = printed(&cluster.run_gfs(&["--json", "snapshot", "/tree", "/snap"]).unwrap());
    assert!(answer.contains("/snap"), "{answer}");
    let refused = cluster.run_gfs(&["snapshot", "/tree", "/tree/below"]).unwrap();
    assert!(!refused.status.success() && complaint(&refused).contains("inside"), "{refused:?}");
    let chunks = client.cluster_status().await.unwrap().chunks;

    // The shared last chunk takes appends on both sides, and an overwrite that the other side must not see.
    let other = client.open("/snap/log").await.unwrap();
    log.append((&b"two"[..]).into()).await.unwrap();
    other.append((&b"three"[..]).into()).await.unwrap();
    log.write_at(0, (&b"O"[..]).into()).await.unwrap();
    assert_eq!(cached.read_at(0, 6).await.unwrap(), &b"Onetwo"[..], "an old location shows no past (T15)");
    let text = async |path: &str| {
        let file = client.open(path).await.unwrap();
        let length = file.len().await.unwrap();
        String::from_utf8(file.read_at(0, length).await.unwrap().to_vec()).unwrap()
    };
    assert_eq!(text("/tree/log").await, "Onetwo");
    assert_eq!(text("/snap/log").await, "onethree");
    assert!(client.cluster_status().await.unwrap().chunks <= chunks + 2, "only what was written is copied");

    // A snapshot of the snapshot; then the originals go, and it still reads.
    client.snapshot("/snap", "/third").await.unwrap();
    other.append((&b"four"[..]).into()).await.unwrap();
    assert_eq!(
        (text("/third/log").await, text("/snap/log").await),
        ("onethree".into(), "onethreefour".into())
    );
    for path in ["/tree", "/snap"] {
        printed(&cluster.run_gfs(&["rm", "-r", path]).unwrap());
    }
    printed(&cluster.run_gfs(&["rm", "/third/log"]).unwrap());
    printed(&cluster.run_gfs(&["get", "-r", "/third", copy.to_str().unwrap()]).unwrap());
    let (stored, fetched) = (Tree::read(&source).unwrap(), Tree::read(&copy).unwrap());
    assert_eq!(stored.differences(&fetched), Vec::<String>::new());
}
