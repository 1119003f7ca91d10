//! All replicas of a chunk lose their power, and an operator decides which one counts (docs/decisions/0020).

use gfs_proto::id::ServerId;
use gfs_proto::random::SeededRandom;
use gfs_proto::{Error, pb};

use super::{CHUNK, CHUNK_BYTES, Cluster};

impl Cluster {
    /// The power of a server goes and comes back.
    async fn cut_power(&mut self, server: usize, seed: u64) {
        self.kill(server).await;
        self.servers[server].files.cut_power(&SeededRandom::new(seed));
        self.restart(server).await;
    }

    async fn inspect(&self, server: u64) -> pb::InspectReplicaReply {
        let request = pb::InspectReplicaRequest { head: Self::head(server), handle: CHUNK.raw() };
        self.control(server).await.inspect_replica(request).await.unwrap().into_inner()
    }

    /// Prepares and reconciles a grant to one server alone, as a leader does by a decision or without one.
    async fn decide(&self, server: u64, version: u64, accepted: bool) -> Result<pb::ReconcileReply, Error> {
        let request = pb::StoreVersionRequest {
            head: Self::head(server),
            handle: CHUNK.raw(),
            version,
            members: vec![self.peer(server).into()],
            base: vec![server],
            primary: server,
            writer: false,
            fresh: false,
            accepted,
            chunk_bytes: CHUNK_BYTES,
        };
        let stored = self.control(server).await.store_version(request).await?.into_inner();
        assert!(stored.partial, "it says what it is, whatever was decided");
        let (head, handle) = (Self::head(server), CHUNK.raw());
        let reconcile = pb::ReconcileRequest { head: head.clone(), handle, version, verify: true };
        let reply = self.control(server).await.reconcile(reconcile).await?.into_inner();
        let activate = pb::ActivateRequest { head, handle, version };
        self.control(server).await.activate(activate).await?;
        Ok(reply)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_cut_of_all_the_replica_that_is_decided_for_becomes_the_content_of_all() {
    let mut cluster = Cluster::start(3).await;
    let absent = pb::InspectReplicaReply::default();
    assert_eq!(cluster.inspect(1).await, absent, "nothing is here of a chunk that nobody has written");
    cluster.grant(1, &[1, 2, 3], &[]).await.unwrap();
    let synced = cluster.mutation(1);
    cluster.append(1, &synced, b"synced;").await.unwrap();
    for _ in 0..20 {
        let mut mutation = cluster.mutation(1);
        mutation.durability = pb::Durability::Replicated;
        cluster.append(1, &mutation, b"promised;").await.unwrap();
    }
    let before = cluster.inspect(2).await;
    assert_eq!((before.partial, before.length, before.serial), (false, 7 + 20 * 9, 21));
    for server in 0..3 {
        cluster.cut_power(server, 7 + server as u64).await;
    }
    let mut held = Vec::new();
    for server in 1..=3 {
        let here = cluster.inspect(server).await;
        assert!(here.present && here.partial && !here.corrupt, "{here:?}");
        assert_eq!((here.version, here.adopted, here.committed_length), (1, 1, None));
        // The beginning of what was promised, never less than what was synced.
        assert!(
            here.length >= 7 && here.length == 7 + (u32::try_from(here.serial).unwrap() - 1) * 9,
            "{here:?}"
        );
        held.push(here.length);
    }
    // Nobody serves it, and without a decision nobody comes to: guard power_cut_ignored.
    assert!(cluster.read_once(2, 1).await.is_err());
    let refused = cluster.decide(2, 2, false).await.unwrap_err();
    assert!(matches!(refused, Error::NotPrimary { .. }), "{refused}");
    assert!(cluster.inspect(2).await.partial);

    let decided = cluster.decide(2, 3, true).await.unwrap();
    assert_eq!(decided.length, held[1]);
    let whole = cluster.inspect(2).await;
    assert_eq!((whole.partial, whole.adopted, whole.length), (false, 3, held[1]));
    // The others get it by an ordinary grant that they join, and it can be written again.
    cluster.grant(4, &[2, 1, 3], &[2]).await.unwrap();
    let after = cluster.mutation(4);
    cluster.append(2, &after, b"after").await.unwrap();
    let content = cluster.read(2, 4).await;
    assert_eq!(content.len(), held[1] as usize + 5);
    assert!(content.starts_with(b"synced;") && content.ends_with(b"after"));
    for server in [1, 3] {
        assert_eq!(cluster.read(server, 4).await, content, "{}", ServerId::from_raw(server));
    }
}
