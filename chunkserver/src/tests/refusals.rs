//! What is refused, what fails half way, what comes late.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, DataId, RequestId, ServerId};
use gfs_proto::link::{Mutation, Source};
use gfs_proto::{Error, pb};

use super::stories::request_ids;
use super::{CHUNK, CHUNK_BYTES, CLUSTER, Cluster, DEADLINE, PATIENCE, under, until};
use crate::store::files::Files;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_a_damaged_source_leaves_nothing_and_one_that_a_crash_cut_off_is_made_whole() {
    let mut cluster = Cluster::start(1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    let data = Bytes::from(vec![9; 200_000]);
    cluster.write(1, &mutation, 0, data.clone()).await.unwrap();
    let copied = |copy| pb::CopyReplicaRequest {
        head: Cluster::head(1),
        handle: CHUNK.raw(),
        version: 1,
        copy,
        copy_version: 1,
    };
    let mut control = cluster.control(1).await;
    assert_eq!(control.copy_replica(copied(50)).await.unwrap().into_inner().length, 200_000);
    assert_eq!(control.copy_replica(copied(50)).await.unwrap().into_inner().length, 200_000);

    // A crash in the middle leaves a partial replica: the same order again makes it whole, also for the table of roles.
    let joiner = pb::StoreVersionRequest {
        head: Cluster::head(1),
        handle: 51,
        version: 1,
        members: vec![cluster.peer(1).into()],
        base: vec![7],
        primary: 1,
        writer: true,
        fresh: false,
        accepted: false,
        chunk_bytes: CHUNK_BYTES,
    };
    assert!(control.store_version(joiner).await.unwrap().into_inner().partial);
    assert_eq!(control.copy_replica(copied(51)).await.unwrap().into_inner().length, 200_000);
    let collect = |handle| pb::CollectRequest { cluster: CLUSTER.to_string(), server: 1, handle, version: 1 };
    let held = control.collect(collect(51)).await.unwrap().into_inner();
    assert_eq!((held.partial, held.adopted, held.content.unwrap().length), (false, 1, 200_000));

    let files = cluster.servers[0].files.clone();
    let source = files.paths().into_iter().find(|path| path.to_string_lossy().contains("000000000000002a"));
    files.flip(&source.unwrap(), 8 * 170_000);
    let refused = control.copy_replica(copied(52)).await.map(drop).map_err(Error::from);
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    let gone = control.collect(collect(52)).await.map(drop).map_err(Error::from);
    assert_eq!(gone, Err(Error::NoSuchChunk { handle: ChunkHandle::from_raw(52) }));
    // Nor does a restart bring anything of it back.
    let heard = cluster.master.0.lock().epochs.len();
    cluster.kill(0).await;
    cluster.restart(0).await;
    let master = cluster.master.clone();
    until("it registers again", || master.0.lock().epochs.len() > heard).await;
    let gone = cluster.control(1).await.collect(collect(52)).await.map(drop).map_err(Error::from);
    assert_eq!(gone, Err(Error::NoSuchChunk { handle: ChunkHandle::from_raw(52) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_reconciled_only_when_every_member_has_adopted() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    let data = Bytes::from(vec![9; 200_000]);
    cluster.write(1, &mutation, 0, data.clone()).await.unwrap();
    // The one that joins has stored the version, and no room for the content.
    let files = cluster.servers[1].files.clone();
    let space = files.space(&PathBuf::from("/data")).unwrap();
    files.resize(space.total_bytes - space.free_bytes + (1 << 20) + 100_000);
    assert_eq!(
        cluster.grant(2, &[1, 2], &[1]).await.map(drop),
        Err(Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(2) })
    );
    files.resize(1 << 30);
    cluster.grant(2, &[1, 2], &[1]).await.unwrap();
    assert_eq!(cluster.read(2, 2).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_disk_is_full_says_that_it_has_failed_when_it_is_asked_whether_it_is_active() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let is_active = async |cluster: &Cluster| {
        let request = pb::ActivateRequest { head: Cluster::head(1), handle: CHUNK.raw(), version: 1 };
        cluster.control(1).await.activate(request).await.map(drop).map_err(Error::from)
    };
    assert_eq!(is_active(&cluster).await, Ok(()));
    let files = cluster.servers[0].files.clone();
    let space = files.space(&PathBuf::from("/data")).unwrap();
    files.resize(space.total_bytes - space.free_bytes + (1 << 20) + 50_000);
    let mutation = cluster.mutation(1);
    let data = Bytes::from(vec![9; 200_000]);
    let us = ServerId::from_raw(1);
    assert_eq!(cluster.write(1, &mutation, 0, data.clone()).await, Err(Error::DiskFull { server: us }));
    assert_eq!(is_active(&cluster).await, Err(Error::MemberFailed { handle: CHUNK, server: us }));
    let master = cluster.master.clone();
    until("it accuses itself", || master.0.lock().failures.iter().any(|failure| failure.server == 1)).await;
    // The other goes on without it.
    cluster.grant(2, &[2], &[2]).await.unwrap();
    assert_eq!(cluster.write(2, &under(2, &mutation), 0, data).await, Ok(200_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_validates_from_the_sending_of_its_heartbeat_on() {
    let mut cluster = Cluster::start(1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"data").await.unwrap();
    cluster.read(1, 1).await;
    cluster.master.0.lock().hold = true;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut last_read = tokio::time::Instant::now();
    loop {
        let began = tokio::time::Instant::now();
        match cluster.read_once(1, 1).await {
            Ok(_) => last_read = began,
            Err(_) if cluster.master.0.lock().held_at.is_some() => break,
            Err(_) => {}
        }
        assert!(began < deadline, "it never stops");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let came = cluster.master.0.lock().held_at.unwrap();
    assert!(last_read < came + gfs_proto::time::VALIDITY, "{:?} after it came", last_read - came);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_request_gets_an_error_that_tells_the_client_what_to_do_and_changes_nothing() {
    let mut cluster = Cluster::start(1).await;
    cluster.grant(1, &[1], &[]).await.unwrap();
    cluster.grant(2, &[1], &[1]).await.unwrap();
    let peer = cluster.peer(1).clone();
    let inline = |bytes: usize| Source::Inline(Payload::new(0, Bytes::from(vec![1; bytes])));
    let first = cluster.mutation(2);
    cluster.append(1, &first, b"good").await.unwrap();
    let mutation = cluster.mutation(2);
    let append = async |mutation: &Mutation, source: &Source| {
        cluster.links.append(&peer, mutation, source, PATIENCE).await.map(|reply| reply.offset)
    };
    let write = async |offset: u32, source: &Source| {
        cluster.links.write(&peer, &mutation, offset, source, PATIENCE).await.map(|reply| reply.offset)
    };
    let limit = CHUNK_BYTES / 4;
    let large = append(&mutation, &inline(limit as usize + 1)).await;
    let (size, limit) = (u64::from(limit) + 1, u64::from(limit));
    assert_eq!(large, Err(Error::TooLarge { what: "record".into(), size, limit }));
    // Past the end of the chunk, also where the numbers overflow; past the end of a file the client refuses itself.
    for offset in [CHUNK_BYTES - 1, u32::MAX - 1] {
        let past = write(offset, &inline(2)).await;
        assert!(matches!(past, Err(Error::BadArgument { .. })), "{past:?}");
    }
    let unknown = DataId::from_bytes([3; 16]);
    assert_eq!(write(0, &Source::Pushed(unknown, 5)).await, Err(Error::DataUnknown { data: unknown }));
    // Versions that are too old or not there yet, for writers and readers.
    for version in [1, 3] {
        let other = append(&under(version, &mutation), &inline(5)).await;
        let version = ChunkVersion::from_raw(version);
        assert_eq!(other, Err(Error::NotPrimary { handle: CHUNK, version }));
        let outcome = cluster.links.outcome(&peer, CHUNK, version, first.request, PATIENCE).await;
        assert_eq!(outcome.map(drop), Err(Error::NotPrimary { handle: CHUNK, version }));
    }
    let (asked, here) = (ChunkVersion::from_raw(3), ChunkVersion::from_raw(2));
    let newer = cluster.read_once(1, 3).await;
    assert_eq!(newer, Err(Error::VersionMismatch { handle: CHUNK, asked, here }));
    let nameless = Mutation { request: RequestId::default(), ..mutation.clone() };
    assert!(matches!(append(&nameless, &inline(5)).await, Err(Error::BadArgument { .. })));
    assert!(matches!(append(&mutation, &inline(0)).await, Err(Error::BadArgument { .. })));
    let elsewhere = Mutation { handle: ChunkHandle::from_raw(99), ..mutation.clone() };
    let handle = elsewhere.handle;
    assert_eq!(append(&elsewhere, &inline(5)).await, Err(Error::NoSuchChunk { handle }));
    assert_eq!(&cluster.read(1, 2).await[..], b"good");
    assert_eq!(request_ids(&cluster, 1, 2).await, [(1, first.request.sequence)]);
}
