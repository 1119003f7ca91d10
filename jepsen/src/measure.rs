//! How long users wait when a server is lost (design P10).

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gfs_client::{Client, Options};
use gfs_tests::{Cluster, Shape};

/// Whom the measurement kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The leader of the masters; until a client's next namespace operation is done.
    Leader,
    /// The primary of a chunk; until a client's next append to it is done.
    Primary,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    subject: Subject,
    /// One per kill, the shortest first.
    waits: Vec<Duration>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |percent: usize| {
            let index = (self.waits.len() * percent).div_ceil(100).saturating_sub(1);
            self.waits.get(index).map_or(0, Duration::as_millis)
        };
        let (subject, rounds) = (self.subject, self.waits.len());
        write!(
            f,
            "{subject:?} killed {rounds} times: p50 {} ms, p90 {} ms, p99 {} ms",
            at(50),
            at(90),
            at(99)
        )
    }
}

/// Kills the subject so many times and measures the wait of a client each time.
///
/// # Errors
/// The cluster does not come up, or an operation fails.
pub async fn measure(subject: Subject, rounds: u32) -> Result<Measured> {
    let shape = Shape { masters: 3, chunkservers: 4, ..Shape::default() };
    let mut cluster = Cluster::start(shape).await?;
    let client = Client::connect(&cluster.masters(), Options::default()).await?;
    let file = client.create("/measured", 0).await?;
    let mut waits = Vec::new();
    for round in 0..rounds {
        file.append("warm".into()).await?;
        let victim = match subject {
            Subject::Leader => cluster.leader().await?,
            Subject::Primary => {
                let chunks = file.chunks().await?;
                let chunk = chunks.last().context("the file has no chunk")?;
                let primary = chunk.replicas.iter().find(|replica| Some(replica.id) == chunk.primary);
                cluster.name_at(&primary.context("nobody is primary")?.address).context("no such server")?
            }
        };
        cluster.kill(&victim)?;
        let killed = Instant::now();
        match subject {
            Subject::Leader => drop(client.mkdir(&format!("/{round}")).await?),
            Subject::Primary => drop(file.append("first".into()).await?),
        }
        waits.push(killed.elapsed());
        cluster.restart(&victim)?;
        cluster.wait_until_up().await?;
        let patience = Duration::from_secs(60);
        cluster.wait_for_status("all replicas", patience, |status| status.chunks_below_goal == 0).await?;
    }
    waits.sort_unstable();
    // What a kill makes servers log is no matter here.
    cluster.expect_error("");
    Ok(Measured { subject, waits })
}
