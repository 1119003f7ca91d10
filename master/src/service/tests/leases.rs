//! Leases are asked for by file and index: what stands there now, whoever remembers another chunk.

use super::*;

/// A master with three chunkservers, a session, a file "/f" of two chunks: the file and the leases.
async fn written(stage: &Stage, yes: &Yes) -> (u64, u64, Vec<pb::Lease>) {
    let client = stage.session().await;
    for number in 1..=3 {
        let server = chunkserver(stage, number, yes.clone()).await;
        heartbeat(stage, server, 1).await;
    }
    let (registry, stop) = (RegistryClient::new(stage.channel()), stage.stop.clone());
    tokio::spawn(async move {
        while !stop.is_cancelled() {
            for server in 1..=3 {
                let (total_bytes, free_bytes) = (1 << 40, 1 << 39);
                let request = pb::HeartbeatRequest {
                    server,
                    epoch: 1,
                    reported: 1,
                    total_bytes,
                    free_bytes,
                    ..Default::default()
                };
                // One that is lost is followed by another.
                drop(registry.clone().heartbeat(request).await);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let mut master = MasterClient::new(stage.channel());
    let create = pb::CreateRequest { request: id(client, 1), path: "/f".into(), replication: 0 };
    let created = master.create(create).await.unwrap().into_inner();
    let (file, mut rev) = (created.entry.unwrap().id, created.rev);
    let mut leases = Vec::new();
    for index in 0..2 {
        let request = id(client, 2 + u64::from(index));
        let add = pb::AddChunkRequest { request, file, expected_count: index };
        let add = async |mut master: MasterClient<Channel>| master.add_chunk(add).await;
        let added = stage.patiently(add).await.unwrap();
        // Whoever has seen this answer is not told by an older state that the chunk was never granted.
        assert!(added.rev >= rev + 2, "{} is the index of the chunk, not that of its grant", added.rev);
        rev = added.rev;
        leases.push(added.lease.unwrap());
    }
    (client, file, leases)
}

async fn find(stage: &Stage, request: pb::FindLeaseRequest) -> Result<pb::Lease> {
    let find = async |mut master: MasterClient<Channel>| master.find_lease(request).await;
    Ok(stage.patiently(find).await?.lease.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_found_by_file_and_index_and_a_failure_of_another_chunk_is_no_reason_to_look() {
    let (stage, yes) = (Stage::new().await, Yes::default());
    let (_, file, leases) = written(&stage, &yes).await;
    for (index, lease) in (0..).zip(&leases) {
        let found = find(&stage, pb::FindLeaseRequest { file, index, ..Default::default() }).await.unwrap();
        assert_eq!((found.handle, found.version), (lease.handle, lease.version));
    }
    let nobody = pb::FindLeaseRequest { handle: leases[0].handle, ..Default::default() };
    assert!(matches!(find(&stage, nobody).await, Err(Error::BadArgument { .. })), "a handle alone");
    for request in [
        pb::FindLeaseRequest { file, index: 2, handle: leases[0].handle, ..Default::default() },
        pb::FindLeaseRequest { file: file + 1, handle: leases[0].handle, ..Default::default() },
    ] {
        let found = find(&stage, request).await;
        assert!(matches!(found, Err(Error::NotFound { .. })), "{request:?}: {found:?}");
    }
    // Somebody failed under version 1 of the second chunk, and asks for the first.
    let (failed_version, failed_server) = (leases[0].version, leases[0].primary);
    let hint = |handle| pb::FindLeaseRequest { file, index: 0, failed_version, failed_server, handle };
    yes.told.lock().clear();
    find(&stage, hint(leases[1].handle)).await.unwrap();
    assert_eq!(*yes.told.lock(), Vec::<String>::new(), "nobody is asked");
    find(&stage, hint(leases[0].handle)).await.unwrap();
    assert_eq!(*yes.told.lock(), ["activate v1"], "its primary is");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_with_the_handle_from_before_a_snapshot_or_a_deletion_gets_what_the_file_has() {
    let (stage, yes) = (Stage::new().await, Yes::default());
    let (client, file, leases) = written(&stage, &yes).await;
    let old = leases[0].handle;
    let request = pb::SnapshotRequest { request: id(client, 4), source: "/f".into(), target: "/s".into() };
    let snapshot = async |mut master: MasterClient<Channel>| master.snapshot(request.clone()).await;
    let copy = stage.patiently(snapshot).await.unwrap().entry.unwrap().id;
    let of = |file| pb::FindLeaseRequest { file, index: 0, handle: old, ..Default::default() };
    let own = find(&stage, of(file)).await.unwrap().handle;
    assert_ne!(own, old, "the old one is the snapshot's");
    assert_eq!(find(&stage, of(copy)).await.unwrap().handle, old);

    let request = pb::DeleteRequest { request: id(client, 5), path: "/s".into(), recursive: false };
    let delete = async |mut master: MasterClient<Channel>| master.delete(request.clone()).await;
    stage.patiently(delete).await.unwrap();
    let gone = find(&stage, of(copy)).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    assert_eq!(find(&stage, of(file)).await.unwrap().handle, own);
    stage.end().await;
}
