//! What a server notes down for its heartbeats, and when it forgets that.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gfs_proto::id::{ChunkHandle, ChunkVersion, Serial, ServerId};
use gfs_proto::random::SystemRandom;
use gfs_proto::{Environment, pb};

use super::{CHUNK_BYTES, CLUSTER, Cluster};
use crate::report::Change;
use crate::server::Chunkserver;
use crate::store::files::memory::MemoryFiles;
use crate::store::{Durability, Mutation, MutationKind, Options, Store};

const US: ServerId = ServerId::from_raw(1);
const OTHER: ServerId = ServerId::from_raw(2);

/// A server that has registered, on disks with these directories.
pub(crate) fn server_on(directories: &[&str]) -> (MemoryFiles, Arc<Chunkserver>) {
    let files = MemoryFiles::new(1 << 30);
    let options = Options { segment_bytes: 1 << 20, headroom_bytes: 1 << 20, ..Options::default() };
    let directories: Vec<PathBuf> = directories.iter().map(PathBuf::from).collect();
    let store = Store::open(&directories, options, Arc::new(files.clone()), &SystemRandom).unwrap();
    let server = Chunkserver::new(store, Environment::real());
    server.registered(CLUSTER, US).unwrap();
    (files, server)
}

/// Makes the server the primary of a fresh chunk.
fn lead(server: &Chunkserver, handle: u64) {
    let member = |id: ServerId| pb::Replica { server: id.raw(), address: "s:1".into(), rack: String::new() };
    let request = pb::StoreVersionRequest {
        head: Cluster::head(1),
        handle,
        version: 1,
        members: vec![member(US), member(OTHER)],
        base: Vec::new(),
        primary: 1,
        writer: true,
        fresh: true,
        accepted: false,
        chunk_bytes: CHUNK_BYTES,
    };
    server.store_version(request).unwrap();
    server.activate(&pb::ActivateRequest { head: Cluster::head(1), handle, version: 1 }).unwrap();
}

/// The other member fails.
fn fail(server: &Chunkserver, handle: u64) {
    server.member_failed(ChunkHandle::from_raw(handle), ChunkVersion::from_raw(1), OTHER);
}

/// The chunks whose failures a heartbeat names.
fn told(server: &Chunkserver, sequence: u64) -> BTreeSet<u64> {
    let epoch = server.fence.lock().epoch();
    let heartbeat = server.heartbeat(epoch, sequence, 0).unwrap();
    heartbeat.failures.iter().map(|failure| failure.handle).collect()
}

#[test]
fn failures_of_chunks_that_go_on_without_this_server_do_not_stand_before_those_of_others() {
    let (_files, server) = server_on(&["/data"]);
    for handle in 1..=1024 {
        lead(&server, handle);
        fail(&server, handle);
        let (head, version) = (Cluster::head(1), 2);
        if handle % 2 == 0 {
            server.exclude(&pb::ExcludeRequest { head, handle, version }).unwrap();
        } else {
            let delete = pb::DeleteReplicaRequest { head, handle, version_max: version };
            assert!(server.delete_replica(&delete).unwrap());
        }
    }
    lead(&server, 2000);
    fail(&server, 2000);
    assert_eq!(told(&server, 1), BTreeSet::from([2000]));
    // One that got lost in another way, as with its disk.
    fail(&server, 3);
    server.tidy();
    assert_eq!(told(&server, 2), BTreeSet::from([2000]));
}

#[test]
fn more_failures_than_a_heartbeat_takes_are_all_told_in_the_next_ones() {
    let (_files, server) = server_on(&["/data"]);
    let all: BTreeSet<u64> = (1..=1500).collect();
    all.iter().for_each(|handle| fail(&server, *handle));
    for sequence in 1..=5 {
        let (one, next) = (told(&server, sequence), told(&server, sequence + 1));
        assert!(one.len() == 1024 && next.len() == 1024);
        assert_eq!(&one | &next, all, "heartbeats {sequence} and the next");
    }
}

#[test]
fn a_disk_that_first_can_not_say_its_room_and_then_fails_costs_its_chunks() {
    let (files, server) = server_on(&["/a", "/b"]);
    lead(&server, 1);
    let handle = ChunkHandle::from_raw(1);
    files.fail_space(true);
    server.tidy();
    assert!(server.chunk(handle).is_ok(), "it is still served");
    // An idle server finds out at its next sync.
    files.fail_syncs(true);
    let sync = Mutation {
        version: ChunkVersion::from_raw(1),
        serial: Serial::from_raw(1),
        kind: MutationKind::Sync,
        data: Bytes::new(),
        request: None,
        first_unacked: 0,
        durability: Durability::Synced,
    };
    server.store.apply(handle, &sync).unwrap().wait().unwrap_err();
    let before = server.journal.lock().last();
    server.tidy();
    assert!(server.chunk(handle).is_err());
    let (changes, _) = server.journal.lock().since(before, 10).unwrap();
    assert_eq!(changes, [(handle, Change::Removed)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_a_quiet_chunk_learns_what_is_committed_and_serves_it_after_a_restart_without_its_primary()
 {
    let mut cluster = Cluster::start(2).await;
    cluster.grant(1, &[1, 2], &[]).await.unwrap();
    let mutation = cluster.mutation(1);
    cluster.append(1, &mutation, b"kept").await.unwrap();
    // Nothing more comes that would tell it.
    tokio::time::sleep(5 * crate::TIDY_PERIOD).await;
    let member = &mut cluster.servers[1];
    member.stop.cancel();
    member.task.take().unwrap().await.unwrap().unwrap();
    cluster.kill(0).await;
    cluster.restart(1).await;
    assert_eq!(&cluster.read(2, 1).await[..], b"kept");
}
