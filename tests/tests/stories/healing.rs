//! Lost replicas are made again, and garbage goes away.

use std::time::Duration;

use gfs_client::PutOptions;
use gfs_tests::{Cluster, Shape, digest_of, eventually};

/// A silent server is given some seconds, then its chunks are cloned.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_dead_server_are_made_again_elsewhere() {
    let mut cluster = Cluster::start(Shape { chunkservers: 4, ..Shape::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let bytes: Vec<u8> = (0..5_u32 << 18).flat_map(u32::to_le_bytes).collect();
    client.put(&bytes[..], "/healed", PutOptions::default(), |_| {}).await.unwrap();
    let victim_address = client.chunks("/healed").await.unwrap()[0].replicas[0].address.clone();
    let victim = cluster.name_at(&victim_address).unwrap();
    cluster.kill(&victim).unwrap();
    eventually("every chunk has three live replicas again", PATIENCE, async || {
        for chunk in client.chunks("/healed").await? {
            let live = chunk.replicas.iter().filter(|server| server.address != victim_address).count();
            anyhow::ensure!(live >= 3, "{chunk:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
    // Each of the new replicas is the file: with all but one of the first ones gone it still reads whole.
    let read = client.open("/healed").await.unwrap().read_at(0, bytes.len() as u64).await.unwrap();
    assert_eq!(digest_of(&read[..]).unwrap(), digest_of(&bytes[..]).unwrap());
    // The count is of what the servers have reported, which comes a little later.
    let whole = |status: &gfs_client::ClusterStatusReply| {
        status.counted && status.chunks_below_goal == 0 && status.chunks_without_replica == 0
    };
    cluster.wait_for_status("nothing is below its goal", PATIENCE, whole).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_deleted_file_leave_the_disks_once_its_date_has_passed() {
    let shape = Shape { trash: Duration::from_secs(1), ..Shape::default() };
    let cluster = Cluster::start(shape).await.unwrap();
    let client = cluster.client().await.unwrap();
    client.put(&vec![1; 3 << 20][..], "/gone", PutOptions::default(), |_| {}).await.unwrap();
    client.put(&b"kept"[..], "/kept", PutOptions::default(), |_| {}).await.unwrap();
    client.delete("/gone").await.unwrap();
    eventually("only the kept chunk's replicas are left", PATIENCE, async || {
        let status = client.cluster_status().await?;
        let replicas: u64 = status.servers.iter().map(|server| server.chunks).sum();
        anyhow::ensure!(status.chunks == 1 && replicas == 3, "{status:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(client.open("/kept").await.unwrap().read_at(0, 10).await.unwrap(), "kept");
}
