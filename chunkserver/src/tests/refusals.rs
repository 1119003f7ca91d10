//! What is refused, what fails half way, what comes late.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use gfs_proto::frame::Payload;
use gfs_proto::id::{ChunkHandle, ChunkVersion, DataId, RequestId, ServerId};
use gfs_proto::link::{Mutation, Source};
use gfs_proto::net::{Connection, Listener, Net, TcpNet};
use gfs_proto::{Environment, Error, Result, pb};
use parking_lot::Mutex;

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

/// What server 1 says when it is asked whether it is the active primary of version 1.
async fn is_active(cluster: &Cluster) -> Result<()> {
    let request = pb::ActivateRequest { head: Cluster::head(1), handle: CHUNK.raw(), version: 1 };
    cluster.control(1).await.activate(request).await.map(drop).map_err(Error::from)
}

/// The network of this machine, but for the addresses that nobody reaches, or where nobody answers.
#[derive(Default)]
struct Cut(Mutex<Vec<String>>, Mutex<Option<String>>);

impl Net for Cut {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        if self.0.lock().iter().any(|cut| cut == address) {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        if self.1.lock().as_deref() == Some(address) {
            return Box::pin(std::future::pending());
        }
        TcpNet.connect(address)
    }
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        TcpNet.listen(address)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_reaches_one_member_accuses_the_other_and_one_that_reaches_none_itself() {
    let one = Err(Error::MemberFailed { handle: CHUNK, server: ServerId::from_raw(2) });
    for (cut, expected) in [(1..=1, one), (1..=2, Err(Error::CutOff { handle: CHUNK }))] {
        let net = Arc::new(Cut::default());
        let environment = Environment { net: net.clone(), ..Environment::real() };
        let mut cluster = Cluster::start_in(environment, 3).await;
        cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();
        *net.0.lock() = cut.map(|i| cluster.servers[i].peer.address.clone()).collect();
        let mutation = cluster.mutation(1);
        assert_eq!(cluster.append(1, &mutation, b"kept").await.map(drop), expected);
        assert_eq!(is_active(&cluster).await, expected);
        let accused = if matches!(expected, Err(Error::CutOff { .. })) { 1 } else { 2 };
        let master = cluster.master.clone();
        until("it is told", || !master.0.lock().failures.is_empty()).await;
        assert!(master.0.lock().failures.iter().all(|failure| failure.server == accused));
        // The next grant finds the same, when nothing has been written in between, too.
        assert_eq!(cluster.grant(2, &[1, 2, 3], &[1, 2, 3]).await.map(drop), expected);
        net.0.lock().clear();
        cluster.grant(3, &[2, 3], &[2, 3]).await.unwrap();
        cluster.append(2, &under(3, &mutation), b"kept").await.unwrap();
        assert_eq!(&cluster.read(3, 3).await[..], b"kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adoption_that_waits_for_its_source_keeps_nobody_from_adopting_a_newer_version() {
    let net = Arc::new(Cut::default());
    let environment = Environment { net: net.clone(), ..Environment::real() };
    let mut cluster = Cluster::start_in(environment, 3).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"kept").await.unwrap();
    // The one that joins waits for the bytes.
    *net.1.lock() = Some(cluster.peer(1).address.clone());
    let store = |server, version, primary| pb::StoreVersionRequest {
        head: Cluster::head(server),
        handle: CHUNK.raw(),
        version,
        members: vec![cluster.peer(1).into(), cluster.peer(2).into(), cluster.peer(3).into()],
        base: vec![1, 2],
        primary,
        writer: true,
        fresh: false,
        accepted: false,
        chunk_bytes: CHUNK_BYTES,
    };
    let mut joins = cluster.control(3).await;
    joins.store_version(store(3, 2, 1)).await.unwrap();
    let (cluster_id, handle) = (CLUSTER.to_string(), CHUNK.raw());
    let collect = pb::CollectRequest { cluster: cluster_id, server: 2, handle, version: 1 };
    let content = cluster.control(2).await.collect(collect).await.unwrap().into_inner().content;
    let adopt = |version, primary: u64| pb::AdoptRequest {
        cluster: CLUSTER.to_string(),
        server: 3,
        handle: CHUNK.raw(),
        version,
        content: content.clone(),
        primary: Some(cluster.peer(primary).into()),
        ..Default::default()
    };
    let (waits, first) = (joins.clone(), adopt(2, 1));
    let waiting = tokio::spawn(async move { waits.clone().adopt(first).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    cluster.control(2).await.store_version(store(2, 3, 2)).await.unwrap();
    joins.store_version(store(3, 3, 2)).await.unwrap();
    joins.adopt(adopt(3, 2)).await.unwrap();
    // The old one changes nothing when it ends.
    *net.1.lock() = None;
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_disk_is_full_says_that_it_has_failed_when_it_is_asked_whether_it_is_active() {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
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

/// Promise P2 is about every member, not about one of them: whoever is left after a disaster has all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_member_can_not_sync_is_not_acknowledged_whichever_it_is() {
    // What goes into the log of a chunkserver, and what goes straight into its file.
    for bytes in [100, 200_000] {
        for failing in 1..=3 {
            let mut cluster = Cluster::start(3).await;
            cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();
            let before = cluster.mutation(1);
            cluster.write(1, &before, 0, Bytes::from_static(b"before")).await.unwrap();
            cluster.servers[failing - 1].files.fail_syncs(true);
            let mutation = cluster.mutation(1);
            let written = cluster.write(1, &mutation, 0, Bytes::from(vec![9; bytes])).await;
            assert!(written.is_err(), "s{failing}, {bytes} bytes: {written:?}");
        }
    }
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
