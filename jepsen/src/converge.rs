//! The end of every run: a cluster that is left alone becomes whole and stays one (durability and convergence).
//!
//! Every chunk that a file has is on as many servers as it should be, the same bytes on each; the servers hold no
//! replica beside those; every master and shadow has the same state at the same index of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use gfs_client::{Client, Comparison, Options};
use gfs_proto::id::ChunkIndex;
use gfs_proto::pb::peer_client::PeerClient;
use gfs_proto::{Environment, net, pb};
use gfs_tests::{Cluster, Role, eventually};

use crate::nemesis::{Corruption, Fate};
use crate::verdict::Verdict;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a master may take for a hash.
const HASH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the masters' states are compared.
const COMPARISONS: usize = 2;

/// Waits for the cluster to be whole; complains of what is not within the time, and of damage that nobody has noticed.
/// With a short `trash` it must be empty by then.
///
/// # Errors
/// The cluster does not answer.
pub(crate) async fn check(
    cluster: &Cluster,
    (corruptions, trash): (&[Corruption], Duration),
    verdict: &mut Verdict,
) -> Result<()> {
    let started = Instant::now();
    if empties(trash, &verdict.counts) {
        let emptied = eventually("the trash is emptied", PATIENCE, async || {
            let chunks = cluster.status().await?.chunks;
            let wanted = goals(cluster).await?;
            let deleted = deleted(chunks, wanted.chunks)?;
            ensure!(deleted == 0, "{deleted} of {chunks} chunks are no file's");
            Ok(())
        });
        if let Err(error) = emptied.await {
            verdict.finding(format!("kept: {error:#}"));
        }
    }
    match compare_chunks(cluster, verdict).await {
        Ok(sound) => count_corruptions(corruptions, &sound, verdict)?,
        Err(error) => verdict.finding(format!("not whole: {error:#}")),
    }
    let holding = eventually("the servers hold what they should and nothing else", PATIENCE, async || {
        let status = cluster.status().await?;
        let wanted = goals(cluster).await?;
        // What one held that is gone for good nobody holds any more.
        let here = status.servers.iter().filter(|server| server.alive);
        let held: u64 = here.map(|server| server.chunks).sum();
        ensure!(wanted.complete, "some files were deleted meanwhile");
        wanted.compare(status.chunks, held)
    });
    if let Err(error) = holding.await {
        verdict.finding(format!("leaked or lost: {error:#}"));
    }
    for _ in 0..COMPARISONS {
        if let Err(error) = compare_states(cluster).await {
            verdict.finding(format!("masters differ: {error:#}"));
        }
    }
    verdict.note(format!("whole, without leaks, masters alike after {} ms", started.elapsed().as_millis()));
    Ok(())
}

/// Whether what was deleted is gone before anybody's patience ends. Where clocks were wrong its date may be minutes away.
fn empties(trash: Duration, counts: &BTreeMap<String, u64>) -> bool {
    let wrong_clocks = ["clock-jumps", "clock-rates"].iter().any(|what| counts.contains_key(*what));
    trash < PATIENCE / 2 && !wrong_clocks
}

/// Chunks that no file has, of so many.
fn deleted(chunks: u64, wanted: u64) -> Result<u64> {
    chunks
        .checked_sub(wanted)
        .with_context(|| format!("files have {wanted} chunks, the masters count {chunks}"))
}

/// What the files of the namespace want.
#[derive(Default)]
struct Goals {
    chunks: u64,
    replicas: u64,
    goal_max: u64,
    complete: bool,
}

impl Goals {
    /// Whether the servers hold as many replicas as they should, of so many chunks.
    fn compare(&self, chunks: u64, held: u64) -> Result<()> {
        // What is in the trash has replicas too, which no file names.
        ensure!(held >= self.replicas, "{held} replicas are held, {} are wanted", self.replicas);
        let most = self.replicas + deleted(chunks, self.chunks)? * self.goal_max;
        ensure!(held <= most, "{held} replicas are held, at most {most} are wanted: some are leaked");
        Ok(())
    }
}

async fn goals(cluster: &Cluster) -> Result<Goals> {
    let client = client(cluster).await?;
    let mut goals = Goals { complete: true, goal_max: 1, ..Goals::default() };
    // A chunk that a snapshot shares is one chunk.
    let mut seen = BTreeSet::new();
    for file in files(&client).await? {
        for chunk in file.chunks().await? {
            if seen.insert(chunk.handle) {
                goals.chunks += 1;
                goals.replicas += u64::from(chunk.goal);
                goals.goal_max = goals.goal_max.max(chunk.goal.into());
            }
        }
    }
    Ok(goals)
}

async fn client(cluster: &Cluster) -> Result<Client> {
    let options = Options { patience: Duration::from_secs(20), ..Options::default() };
    Ok(Client::connect(&cluster.masters(), options).await?)
}

/// Every file.
async fn files(client: &Client) -> Result<Vec<gfs_client::File>> {
    let (mut files, mut directories) = (Vec::new(), vec!["/".to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries: Vec<_> = client.list(&directory).try_collect().await?;
        for entry in entries {
            if entry.is_directory() {
                directories.push(format!("{}/{}", directory.trim_end_matches('/'), entry.name));
            } else {
                files.push(client.file(&entry)?);
            }
        }
    }
    Ok(files)
}

/// Has every replica of every chunk of every file read, so that damage is noticed, until none shows any.
///
/// # Errors
/// The cluster does not answer, or some damage stays.
pub(crate) async fn read_everything(cluster: &Cluster) -> Result<()> {
    eventually("no replica is damaged", PATIENCE, async || {
        let client = client(cluster).await?;
        let mut damaged = Vec::new();
        for file in files(&client).await? {
            for index in 0..file.chunks().await?.len() {
                let index = ChunkIndex::from_raw(u32::try_from(index)?);
                if file.compare_replicas(index).await?.is_corrupt() {
                    damaged.push(format!("chunk {index} of {}", file.path()));
                }
            }
        }
        ensure!(damaged.is_empty(), "{damaged:?}");
        Ok(())
    })
    .await
}

/// What became of damage, when the chunks in `sound` were seen to be whole and the same everywhere.
fn count_corruptions(corruptions: &[Corruption], sound: &BTreeSet<u64>, verdict: &mut Verdict) -> Result<()> {
    for corruption in corruptions {
        let is_sound = sound.contains(&corruption.handle());
        verdict.count("corruptions.put", 1);
        match corruption.fate()? {
            Fate::Found => {
                verdict.count("corruptions.found", 1);
                let then = if is_sound { "corruptions.repaired" } else { "corruptions.deleted" };
                verdict.count(then, 1);
            }
            Fate::Gone => verdict.count("corruptions.gone", 1),
            Fate::Hidden if is_sound => verdict.finding(format!("damage that nobody noticed: {corruption}")),
            // Its file was deleted: nobody reads it any more.
            Fate::Hidden => verdict.count("corruptions.gone", 1),
        }
    }
    if !corruptions.is_empty() {
        let count = |what: &str| verdict.counts.get(&format!("corruptions.{what}")).copied().unwrap_or(0);
        verdict.note(format!(
            "corruptions: {} put in, {} found, {} of them repaired and {} deleted with their file, {} gone before anybody looked",
            count("put"),
            count("found"),
            count("repaired"),
            count("deleted"),
            count("gone")
        ));
    }
    Ok(())
}

/// All replicas of all chunks of all files hold the same; the chunks that do.
async fn compare_chunks(cluster: &Cluster, verdict: &mut Verdict) -> Result<BTreeSet<u64>> {
    let client = client(cluster).await?;
    let mut sound = BTreeSet::new();
    let mut compared_count = 0;
    for file in files(&client).await? {
        for index in 0..file.chunks().await?.len() {
            let index = ChunkIndex::from_raw(u32::try_from(index)?);
            let compared = eventually("all replicas answer", PATIENCE, async || {
                let compared = file.compare_replicas(index).await?;
                all_there(&compared)?;
                Ok(compared)
            });
            let compared = compared.await.with_context(|| format!("chunk {index} of {}", file.path()))?;
            judge_chunk(file.path(), &compared, &mut sound, verdict);
            compared_count += 1;
        }
    }
    verdict.note(format!("{compared_count} chunks compared on all their servers"));
    Ok(sound)
}

/// As many replicas as there should be can be read. Damage is told at once: it does not get better by waiting.
fn all_there(compared: &Comparison) -> Result<()> {
    let (there, goal) = (compared.replicas.len(), compared.chunk.goal);
    ensure!(compared.is_corrupt() || there >= goal as usize, "{there} of {goal} replicas");
    ensure!(compared.is_corrupt() || compared.is_complete(), "not all can be read: {compared:?}");
    Ok(())
}

/// A chunk is the same on all its servers, and is sound then, or not.
fn judge_chunk(path: &str, compared: &Comparison, sound: &mut BTreeSet<u64>, verdict: &mut Verdict) {
    if compared.is_corrupt() {
        verdict.finding(format!("replicas differ: chunk {} of {path}: {compared:?}", compared.chunk.index));
    } else {
        sound.insert(compared.chunk.handle.raw());
    }
}

/// Every master and shadow has the same rows at one index of the log.
async fn compare_states(cluster: &Cluster) -> Result<()> {
    let environment = Environment::real();
    let cluster_id = cluster.status().await?.cluster;
    let names = [cluster.names(Role::Master), cluster.names(Role::Shadow)].concat();
    let mut peers = Vec::new();
    for name in &names {
        let address = cluster.address_of(name).context("a master without an address")?;
        peers.push(PeerClient::new(net::channel(environment.net.clone(), &address, HASH_TIMEOUT)?));
    }
    // The log goes on by itself: until all were asked at the same index.
    let hashes = eventually("the masters are at the same index", PATIENCE, async || {
        let asked = peers.iter().cloned().map(|mut peer| {
            let cluster = cluster_id.clone();
            async move { peer.state_hash(pb::StateHashRequest { cluster }).await }
        });
        let answers = futures::future::try_join_all(asked).await?;
        let hashes: Vec<pb::StateHashReply> = answers.into_iter().map(tonic::Response::into_inner).collect();
        ensure!(at_one_index(&hashes), "{hashes:?}");
        Ok(hashes)
    });
    compare_hashes(&names, &hashes.await?)
}

fn at_one_index(hashes: &[pb::StateHashReply]) -> bool {
    hashes.windows(2).all(|pair| pair[0].applied == pair[1].applied)
}

/// At one index all have the same.
fn compare_hashes(names: &[String], hashes: &[pb::StateHashReply]) -> Result<()> {
    ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{names:?} have {hashes:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_client::{Chunk, ReplicaSums, Server};
    use gfs_proto::Error;
    use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
    use gfs_tests::Shape;

    /// A chunk that should have two replicas; of each that is there its checksums, or why it can't be read.
    fn compared(replicas: &[std::result::Result<&[u32], Error>]) -> Comparison {
        let server = |id| Server { id: ServerId::from_raw(id), address: String::new(), rack: String::new() };
        let replicas: Vec<_> = (1..)
            .zip(replicas)
            .map(|(id, sums)| ReplicaSums {
                server: server(id),
                length: 100,
                sealed: false,
                blocks: sums.as_ref().map(|blocks| blocks.to_vec()).unwrap_or_default(),
                error: sums.as_ref().err().cloned(),
            })
            .collect();
        let chunk = Chunk {
            index: ChunkIndex::from_raw(0),
            handle: ChunkHandle::from_raw(7),
            version: ChunkVersion::from_raw(1),
            replicas: replicas.iter().map(|replica| replica.server.clone()).collect(),
            goal: 2,
            primary: None,
        };
        Comparison { chunk, replicas }
    }

    #[test]
    fn a_chunk_is_whole_when_all_its_replicas_can_be_read() {
        all_there(&compared(&[Ok(&[1]), Ok(&[1])])).unwrap();
        let silent = || Error::unavailable("silent");
        for bad in [&[Ok(&[1][..])][..], &[Ok(&[1]), Err(silent())], &[]] {
            assert!(all_there(&compared(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_chunk_that_is_not_the_same_everywhere_is_found_at_once_and_not_sound() {
        for (blocks, findings) in [(&[1][..], 0), (&[2], 1), (&[1, 1], 1)] {
            let compared = compared(&[Ok(&[1]), Ok(blocks)]);
            let (mut sound, mut verdict) = (BTreeSet::new(), Verdict::new());
            all_there(&compared).unwrap();
            judge_chunk("/f", &compared, &mut sound, &mut verdict);
            assert_eq!((verdict.findings.len(), sound.len()), (findings, 1 - findings), "{blocks:?}");
            assert!(verdict.findings.iter().all(|finding| finding.starts_with("replicas differ: chunk ")));
        }
    }

    #[test]
    fn the_servers_hold_what_is_wanted_and_what_the_trash_may_have() {
        let wanted = Goals { chunks: 4, replicas: 10, goal_max: 3, complete: true };
        for (chunks, held) in [(4, 10), (5, 10), (5, 13)] {
            wanted.compare(chunks, held).unwrap();
        }
        for (chunks, held, says) in
            [(4, 9, "10 are wanted"), (4, 11, "leaked"), (5, 14, "leaked"), (3, 10, "files have 4")]
        {
            let error = wanted.compare(chunks, held).unwrap_err().to_string();
            assert!(error.contains(says), "{chunks} chunks, {held} held: {error}");
        }
    }

    #[test]
    fn masters_at_one_index_have_one_state() {
        let hash = |applied, rows, crc| pb::StateHashReply { applied, rows, crc };
        assert!(
            at_one_index(&[hash(5, 2, 9), hash(5, 2, 8)]) && !at_one_index(&[hash(5, 2, 9), hash(6, 2, 9)])
        );
        let names = ["one".to_owned(), "two".to_owned(), "three".to_owned()];
        compare_hashes(&names, &[hash(5, 2, 9), hash(5, 2, 9), hash(5, 2, 9)]).unwrap();
        for other in [hash(5, 3, 9), hash(5, 2, 8)] {
            assert!(compare_hashes(&names, &[hash(5, 2, 9), hash(5, 2, 9), other]).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_short_trash_has_to_be_emptied_where_clocks_are_right() {
        let none = BTreeMap::new();
        assert!(empties(crate::check::trash::TRASH, &none));
        assert!(!empties(Shape::default().trash, &none), "days are not waited for");
        let jumped = BTreeMap::from([("clock-jumps".to_owned(), 1)]);
        assert!(!empties(crate::check::trash::TRASH, &jumped));
    }

    #[test]
    fn more_chunks_of_files_than_there_are_is_a_complaint_and_no_panic() {
        assert_eq!(deleted(5, 3).unwrap(), 2);
        assert!(deleted(3, 5).unwrap_err().to_string().contains("files have 5"));
    }
}
