//! How long users wait when a server is lost (design P10), and how long chunks are short of replicas.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gfs_client::{Chunk, Client, File, Options};
use gfs_proto::pb::ClusterStatusReply;
use gfs_proto::size::CHUNK_BYTES_DEFAULT;
use gfs_tests::{Cluster, Shape};
use tokio::task::JoinSet;

use crate::hosts::Site;
use crate::runner::wait_until_whole;

/// Chunkservers of the cluster, and replicas of a chunk.
const CHUNKSERVERS: usize = 4;
const GOAL: u64 = 3;
/// The size of a chunk that clusters have by default.
const CHUNK_BYTES: u64 = CHUNK_BYTES_DEFAULT as u64;
/// What is written at a time to fill chunks.
const PIECE_BYTES: usize = 8 << 20;
/// What is left of a large chunk for what is appended meanwhile.
const APPENDED_BYTES: u64 = 16 << 20;
/// How many others append to a large chunk, and how long one rests that was refused.
const OTHERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);
/// How long until the masters speak of a server's absence.
const NOTICE_PATIENCE: Duration = Duration::from_secs(30);
/// How long new replicas may take.
const REPAIR_PATIENCE: Duration = Duration::from_secs(1200);

/// Whom the measurement takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The leader of the masters; until a client's next namespace operation is done.
    Leader,
    /// The primary of a chunk; until a client's next append to it is done.
    Primary {
        /// Bytes that the chunk holds by then. With any, the chunk is as large as chunks are by default, and others
        /// append to it meanwhile, so that its members are not equally far when the primary is lost.
        holds: u64,
    },
    /// A chunkserver that holds about so many bytes of chunks; until others have a replica of each of them instead.
    Chunkserver {
        /// At least one chunk's worth is written.
        holds: u64,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Primary { holds: 0 } => f.write_str("primary"),
            Self::Primary { holds } => write!(f, "primary of a chunk of {} MiB in use", holds >> 20),
            Self::Chunkserver { holds } => write!(f, "chunkserver with about {} MiB", holds >> 20),
        }
    }
}

/// How the subject is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// SIGKILL.
    Kill,
    /// SIGSTOP: its connections stay, and are silent.
    Pause,
    /// Off the network: nothing arrives, not even a refusal.
    Cut,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    subject: Subject,
    loss: Loss,
    /// One per kill, the shortest first.
    waits: Vec<Duration>,
}

impl Measured {
    fn add(&mut self, wait: Duration) {
        let at = self.waits.partition_point(|other| *other <= wait);
        self.waits.insert(at, wait);
    }

    /// The longest wait.
    pub fn longest(&self) -> Duration {
        self.waits.last().copied().unwrap_or_default()
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |percent| percentile_ms(&self.waits, percent);
        let (subject, rounds) = (self.subject, self.waits.len());
        write!(
            f,
            "{subject} lost {rounds} times by {:?}: p50 {} ms, p90 {} ms, p99 {} ms, longest {} ms",
            self.loss,
            at(50),
            at(90),
            at(99),
            self.longest().as_millis()
        )
    }
}

/// The time that so many of a hundred don't exceed, of times in ascending order, in milliseconds; 0 if there are none.
fn percentile_ms(times: &[Duration], percent: usize) -> u128 {
    let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(index).map_or(0, Duration::as_millis)
}

/// The middle one and the longest of some times, in milliseconds; 0 if there are none.
pub(crate) fn middle_and_longest(times: &[Duration]) -> (u128, u128) {
    let mut times = times.to_vec();
    times.sort_unstable();
    (percentile_ms(&times, 50), percentile_ms(&times, 100))
}

/// Takes the subject away so many times and measures the wait of a client each time; `tell` hears of each, and of what it came
/// to before an error.
///
/// # Errors
/// The cluster does not come up, or an operation fails; a cut without hosts of their own; a primary's chunk that would hold
/// more than fits beside what is appended meanwhile.
pub async fn measure(
    (subject, loss): (Subject, Loss),
    rounds: u32,
    site: &Site,
    mut tell: impl FnMut(&str) -> Result<()>,
) -> Result<Measured> {
    if let Subject::Primary { holds } = subject {
        let most = CHUNK_BYTES - APPENDED_BYTES;
        ensure!(
            holds <= most,
            "a chunk can hold {} MiB beside what is appended meanwhile, not {}",
            most >> 20,
            holds >> 20
        );
    }
    let mut shape = Shape { masters: 3, chunkservers: CHUNKSERVERS, ..Shape::default() };
    if !matches!(subject, Subject::Leader | Subject::Primary { holds: 0 }) {
        shape.chunk_bytes = CHUNK_BYTES;
    }
    let mut cluster = Cluster::start_on(shape, site.hosts()).await?;
    // What a loss makes servers log is no matter here.
    cluster.judge_elsewhere();
    // Clients live on their own host: the control host sees what they can't.
    let masters = cluster.masters();
    let user = site.clients().spawn(async move {
        let client = Client::connect(&masters, Options::default()).await?;
        let file = client.create("/measured", 0).await?;
        anyhow::Ok(User { client, file: Arc::new(file) })
    });
    let mut user = user.await??;
    let mut others = JoinSet::new();
    match subject {
        Subject::Chunkserver { holds } => {
            let chunks = (holds * CHUNKSERVERS as u64).div_ceil(GOAL * CHUNK_BYTES).max(1);
            user.fill(chunks * CHUNK_BYTES, site).await?;
        }
        Subject::Primary { holds } if holds > 0 => {
            user.fill(holds, site).await?;
            for _ in 0..OTHERS {
                user.keep_appending(&mut others, site);
            }
        }
        Subject::Leader | Subject::Primary { .. } => {}
    }
    let mut measured = Measured { subject, loss, waits: Vec::new() };
    for round in 0..rounds {
        match one_round(&mut cluster, (subject, loss), (round, &mut user), site).await {
            Ok(wait) => {
                tell(&format!("round {round}: {} ms", wait.as_millis()))?;
                measured.add(wait);
            }
            Err(error) => {
                tell(&format!("before it broke off: {measured}"))?;
                return Err(error.context(format!("round {round}")));
            }
        }
    }
    others.shutdown().await;
    wait_until_whole(&mut cluster).await?;
    let ends = cluster.take_ends()?;
    ensure!(ends.is_empty(), "servers have ended by themselves: {ends:?}");
    Ok(measured)
}

/// The wait of one round. The cluster is up again when it is over.
async fn one_round(
    cluster: &mut Cluster,
    (subject, loss): (Subject, Loss),
    (round, user): (u32, &mut User),
    site: &Site,
) -> Result<Duration> {
    if subject == (Subject::Primary { holds: 0 }) {
        // Replicas that the last round has cost its chunk come back only after a while.
        user.begin_file(round, site).await?;
    }
    user.append(site).await?;
    let victim = match subject {
        Subject::Leader => cluster.leader().await?,
        Subject::Primary { .. } => {
            let chunks = user.chunks(site).await?;
            let chunk = chunks.last().context("the file has no chunk")?;
            let primary = chunk.replicas.iter().find(|replica| Some(replica.id) == chunk.primary);
            cluster.name_at(&primary.context("nobody is primary")?.address).context("no such server")?
        }
        Subject::Chunkserver { .. } => fullest(cluster, &user.chunks(site).await?)?,
    };
    take_away(cluster, &victim, loss, site)?;
    let lost = Instant::now();
    match subject {
        Subject::Leader => user.mkdir(round, site).await?,
        Subject::Primary { .. } => user.append(site).await?,
        Subject::Chunkserver { .. } => wait_until_replaced(cluster).await?,
    }
    let wait = lost.elapsed();
    bring_back(cluster, &victim, loss, site)?;
    match subject {
        Subject::Leader | Subject::Primary { holds: 0 } => cluster.wait_until_up().await?,
        // The same chunks are needed again.
        Subject::Primary { .. } | Subject::Chunkserver { .. } => wait_until_whole(cluster).await?,
    }
    Ok(wait)
}

/// Who waits. All it does happens on the host of the clients, or its connections would not be theirs.
struct User {
    client: Client,
    file: Arc<File>,
}

impl User {
    async fn append(&self, site: &Site) -> Result<()> {
        let file = self.file.clone();
        site.clients().spawn(async move { file.append("a record".into()).await }).await??;
        Ok(())
    }

    /// Goes on with a new file.
    async fn begin_file(&mut self, round: u32, site: &Site) -> Result<()> {
        let client = self.client.clone();
        let create = async move { client.create(&format!("/measured-{round}"), 0).await };
        self.file = Arc::new(site.clients().spawn(create).await??);
        Ok(())
    }

    /// One more client appends, without rest, until it is aborted.
    fn keep_appending(&self, others: &mut JoinSet<()>, site: &Site) {
        let file = self.file.clone();
        let appending = async move {
            loop {
                // What fails while a server is away is tried again.
                if file.append("another record".into()).await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        others.spawn_on(appending, &site.clients());
    }

    /// Writes so much, in whole pieces, from the start of the file.
    async fn fill(&self, bytes: u64, site: &Site) -> Result<()> {
        let file = self.file.clone();
        let pieces = bytes / PIECE_BYTES as u64;
        let write = async move {
            let piece = Bytes::from(vec![0xA5; PIECE_BYTES]);
            for number in 0..pieces {
                file.write_at(number * PIECE_BYTES as u64, piece.clone()).await?;
            }
            anyhow::Ok(())
        };
        site.clients().spawn(write).await?
    }

    async fn chunks(&self, site: &Site) -> Result<Vec<Chunk>> {
        let file = self.file.clone();
        Ok(site.clients().spawn(async move { file.chunks().await }).await??)
    }

    async fn mkdir(&self, round: u32, site: &Site) -> Result<()> {
        let client = self.client.clone();
        site.clients().spawn(async move { client.mkdir(&format!("/{round}")).await }).await??;
        Ok(())
    }
}

/// The chunkserver that has the most replicas of these chunks.
fn fullest(cluster: &Cluster, chunks: &[Chunk]) -> Result<String> {
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for replica in chunks.iter().flat_map(|chunk| &chunk.replicas) {
        *held.entry(&replica.address).or_default() += 1;
    }
    let (address, _) = held.into_iter().max_by_key(|(_, count)| *count).context("no replica")?;
    cluster.name_at(address).context("no such server")
}

/// Waits until the masters miss replicas, and then until they miss none.
async fn wait_until_replaced(cluster: &Cluster) -> Result<()> {
    let missed = |status: &ClusterStatusReply| status.counted && status.chunks_below_goal > 0;
    cluster.wait_for_status("replicas are missed", NOTICE_PATIENCE, missed).await?;
    let replaced = |status: &ClusterStatusReply| status.counted && status.chunks_below_goal == 0;
    cluster.wait_for_status("other servers have the replicas", REPAIR_PATIENCE, replaced).await?;
    Ok(())
}

fn take_away(cluster: &mut Cluster, victim: &str, loss: Loss, site: &Site) -> Result<()> {
    match loss {
        Loss::Kill => cluster.kill(victim),
        Loss::Pause => cluster.pause(victim),
        Loss::Cut => site.network().context("a cut needs hosts of their own")?.isolate(victim),
    }
}

fn bring_back(cluster: &mut Cluster, victim: &str, loss: Loss, site: &Site) -> Result<()> {
    match loss {
        Loss::Kill => cluster.restart(victim),
        Loss::Pause => cluster.resume(victim),
        Loss::Cut => {
            site.network().context("a cut needs hosts of their own")?.clear();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_in_the_order_of_its_length() {
        let mut measured = Measured { subject: Subject::Leader, loss: Loss::Kill, waits: Vec::new() };
        assert_eq!(measured.longest(), Duration::ZERO);
        for wait_ms in [30, 10, 20, 10] {
            measured.add(Duration::from_millis(wait_ms));
        }
        let told = measured.to_string();
        assert!(
            told.contains("lost 4 times by Kill: p50 10 ms, p90 30 ms, p99 30 ms, longest 30 ms"),
            "{told}"
        );
    }
}
