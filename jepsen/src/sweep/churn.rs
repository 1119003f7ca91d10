//! What the workloads do not do, so that more fail points are passed: large and replicated writes, overwrites, snapshots
//! and the copies that follow them, deletion and garbage. Nobody judges it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use gfs_client::{Client, Durability, Options};

/// How long one call may take before the next round.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rest between two rounds.
const PAUSE: Duration = Duration::from_millis(150);
/// Bytes of a write that is pushed along the chain.
const LARGE: usize = 200 << 10;

/// Goes round until it is aborted.
pub(super) async fn churn(masters: Vec<String>) {
    for number in 0_u64.. {
        let durability = if number % 2 == 0 { Durability::Synced } else { Durability::Replicated };
        // Whatever fails is tried again with another name.
        round(&masters, number, durability).await.ok();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn round(masters: &[String], number: u64, durability: Durability) -> Result<()> {
    let options = Options { patience: PATIENCE, durability, ..Options::default() };
    let client = Client::connect(masters, options).await?;
    let (path, copy) = (format!("/churn-{number}"), format!("/churn-{number}-copy"));
    let file = client.create(&path, 0).await?;
    file.write_at(0, Bytes::from(vec![1; LARGE])).await?;
    file.write_at(1000, Bytes::from(vec![2; 5000])).await?;
    file.write_at(LARGE as u64, Bytes::from(vec![3; LARGE])).await?;
    file.flush().await?;
    file.read_at(500, 100_000).await?;
    client.snapshot(&path, &copy).await?;
    file.write_at(2000, Bytes::from(vec![4; 3000])).await?;
    client.delete(&copy).await?;
    Ok(client.delete(&path).await?)
}
