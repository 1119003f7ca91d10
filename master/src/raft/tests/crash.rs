//! A process that dies at any step of a write loses nothing that it acknowledged.
//!
//! The parent runs this test binary again as a child that writes until its fail point aborts it, and tells
//! on its standard output what was acknowledged. Then the parent opens the stores.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use gfs_proto::work::Workers;
use openraft::EntryPayload;
use openraft::storage::{
    RaftLogReader, RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::type_config::TypeConfigExt;

use crate::raft::fail::Point;
use crate::raft::log::LogStore;
use crate::raft::machine::{Feeds, Machine};
use crate::raft::store::StateStore;
use crate::raft::types::{Entry, LogId, LogLeader, Operation, TypeConfig, Vote};
use crate::state::{Memory, Overlay, Table, View};

const DIR: &str = "GFS_RAFT_CRASH_DIR";
/// The signal of `abort`.
const ABORTED: i32 = 6;
const WRITER: &str = "raft::tests::crash::writer_child";
const INSTALLER: &str = "raft::tests::crash::installer_child";

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LogLeader::new(term), index)
}

fn entry(term: u64, index: u64) -> Entry {
    let content = format!("{term}/{index}").repeat(100);
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Operation(content.into())) }
}

fn open_log(dir: &Path) -> LogStore {
    LogStore::open(&dir.join("log"), "crash", &Workers::Threads).unwrap()
}

fn machine(dir: &Path, name: &str) -> Machine {
    Machine::new(
        Arc::new(StateStore::open(&dir.join(name), 1 << 20, &Workers::Threads).unwrap()),
        Feeds::new(None),
        Workers::Threads,
    )
}

/// Appends, votes, truncates and purges for ever; a line for each acknowledged step.
async fn write_for_ever(dir: &Path) {
    use std::io::Write;
    let mut log = open_log(dir);
    let mut out = std::io::stdout();
    // The test runner has left its own line open.
    writeln!(out).unwrap();
    let mut next = 0;
    for term in 1.. {
        log.save_vote(&Vote::new_committed(term, 1)).await.unwrap();
        writeln!(out, "vote {term}").unwrap();
        for _ in 0..3 {
            log.blocking_append([entry(term, next), entry(term, next + 1)]).await.unwrap();
            next += 2;
            writeln!(out, "entries {next}").unwrap();
        }
        // The next leader's entries replace the last one; of a truncation alone nothing is promised.
        next -= 1;
        writeln!(out, "entries {next}").unwrap();
        log.truncate_after(Some(id(term, next - 1))).await.unwrap();
        if term % 4 == 0 {
            log.purge(id(term, next - 1)).await.unwrap();
        }
    }
}

#[test]
fn writer_child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    TypeConfig::run(async move { write_for_ever(Path::new(&dir)).await });
}

/// Runs a child until it dies at its fail point; what it said until then.
fn run_child(test: &str, dir: &Path, point: Point, count: u64) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env("GFS_RAFT_FAIL_POINT", format!("{point:?}:{count}"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(ABORTED), "the child should die at {point:?}: {error}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

async fn check_log(dir: &Path, said: &[String]) {
    let mut log = open_log(dir);
    let mut reader = log.get_log_reader().await;
    let (mut vote, mut promised) = (0, 0);
    for line in said {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["vote", term] => vote = term.parse().unwrap(),
            ["entries", count] => promised = count.parse().unwrap(),
            _ => {}
        }
    }
    let found = reader.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
    assert!(found >= vote, "the vote of term {vote} is lost, found {found}");
    let state = log.get_log_state().await.unwrap();
    let has = state.last_log_id.map_or(0, |id| id.index + 1);
    assert!(has >= promised, "{promised} entries were acknowledged, {has} are there");
    let first = state.last_purged_log_id.map_or(0, |id| id.index + 1);
    let entries = reader.try_get_log_entries(first..has).await.unwrap();
    assert_eq!(entries.len() as u64, has - first, "a hole");
    for found in entries {
        assert_eq!(found, entry(found.log_id.leader_id.term, found.log_id.index));
    }
    // And it goes on.
    log.blocking_append([entry(1_000, has)]).await.unwrap();
}

#[test]
fn a_writer_that_dies_at_any_step_loses_nothing_acknowledged() {
    for point in [Point::LogBeforeWrite, Point::LogBeforeSync, Point::LogBeforeCallback] {
        for count in [1, 2, 5, 14, 23] {
            let dir = tempfile::tempdir().unwrap();
            let said = run_child(WRITER, dir.path(), point, count);
            assert!(count < 3 || said.iter().any(|line| line.starts_with("entries")), "{said:?}");
            TypeConfig::run(async { check_log(dir.path(), &said).await });
        }
    }
}

/// A kill can't tell: the page cache survives the process, not the power cut.
#[test]
fn an_append_and_a_vote_are_answered_after_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = open_log(dir.path());
        for index in 0..3 {
            let before = log.syncs();
            log.blocking_append([entry(1, index)]).await.unwrap();
            assert!(log.syncs() > before, "entry {index} was acknowledged without a sync");
            let before = log.syncs();
            log.save_vote(&Vote::new_committed(index + 1, 1)).await.unwrap();
            assert!(log.syncs() > before, "vote {index} was acknowledged without a sync");
        }
    });
}

fn blank(index: u64) -> Entry {
    Entry { log_id: id(1, index), payload: EntryPayload::Blank }
}

async fn apply(machine: &mut Machine, indexes: std::ops::Range<u64>) {
    let items = indexes.map(|index| Ok((blank(index), None)));
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

/// Applies blank entries to the state in `dir` beyond what it has; the last index.
pub(super) async fn apply_beyond(dir: &Path, count: u64, terms_later: u64) -> u64 {
    let store = StateStore::open(dir, 1 << 20, &Workers::Threads).unwrap();
    let last = store.applied().0.unwrap();
    let term = last.leader_id.term + terms_later;
    let items: Vec<_> = (last.index + 1..=last.index + count)
        .map(|index| Ok((Entry { log_id: id(term, index), payload: EntryPayload::Blank }, None)))
        .collect();
    Machine::new(Arc::new(store), Feeds::new(None), Workers::Threads)
        .apply(futures::stream::iter(items))
        .await
        .unwrap();
    last.index + count
}

#[test]
fn installer_child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    TypeConfig::run(async move {
        let dir = Path::new(&dir);
        let mut leader = machine(dir, "leader");
        apply(&mut leader, 0..20).await;
        let snapshot = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let mut follower = machine(dir, "follower");
        apply(&mut follower, 0..5).await;
        follower.get_snapshot_builder().await.build_snapshot().await.unwrap();
        follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    });
}

#[test]
fn a_checkpoint_is_built_and_installed_in_one_step_or_not_at_all() {
    for (point, count, wanted) in [
        (Point::CheckpointBeforeRename, 2, (Some(4), None)),
        (Point::InstallBeforePointer, 1, (Some(4), Some(4))),
        (Point::InstallAfterPointer, 1, (Some(19), Some(4))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        run_child(INSTALLER, dir.path(), point, count);
        TypeConfig::run(async {
            let mut follower = machine(dir.path(), "follower");
            let (applied, _) = follower.applied_state().await.unwrap();
            let snapshot = follower.get_current_snapshot().await.unwrap();
            let found = (
                applied.map(|id| id.index),
                snapshot.and_then(|found| found.meta.last_log_id.map(|id| id.index)),
            );
            assert_eq!(found, wanted, "{point:?}");
            // And it goes on, with nothing unfinished left on the disk.
            apply(&mut follower, wanted.0.unwrap() + 1..30).await;
            let names = std::fs::read_dir(dir.path().join("follower")).unwrap();
            let left = names.filter(|name| {
                let name = name.as_ref().unwrap().file_name().into_string().unwrap();
                name.starts_with("building") || name.starts_with("receive")
            });
            assert_eq!(left.count(), 0);
        });
    }
}

#[test]
fn a_checkpoint_brings_every_table_along() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| StateStore::open(&dir.path().join(name), 1 << 20, &Workers::Threads).unwrap();
    let (leader, follower) = (open("leader"), open("follower"));
    let memory = Memory::default();
    let mut overlay = Overlay::new(&memory);
    for table in Table::ALL {
        overlay.put(table, vec![7], table.name().into());
    }
    leader.write(&overlay.into_writes(), id(1, 1), None).unwrap();
    let checkpoint = leader.build_checkpoint().unwrap();
    follower.install(checkpoint.meta(), &checkpoint).unwrap();
    for table in Table::ALL {
        let found = follower.view().get(table, &[7]);
        assert_eq!(found.as_deref(), Some(table.name().as_bytes()), "{table:?}");
    }
}

/// Number of SST files in the last of so many checkpoints, with an entry before each.
fn sst_files_of_last(workers: &Workers, checkpoints: u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let store = Arc::new(StateStore::open(dir.path(), 1 << 20, workers).unwrap());
        let mut machine = Machine::new(store.clone(), Feeds::new(None), workers.clone());
        for index in 0..checkpoints {
            apply(&mut machine, index..index + 1).await;
            store.build_checkpoint().unwrap();
        }
        let checkpoint = store.checkpoint().unwrap();
        checkpoint.files().iter().filter(|file| file.name.ends_with(".sst")).count()
    })
}

#[test]
fn in_a_simulation_no_thread_decides_which_files_a_checkpoint_has() {
    let inline = Workers::Inline(Arc::new(|| std::time::Duration::ZERO));
    assert_eq!(sst_files_of_last(&inline, 3), 1, "merged at each checkpoint");
    // On threads they are merged when there is time for it; three are too few to begin with.
    assert_eq!(sst_files_of_last(&Workers::Threads, 3), 3);
}

#[test]
fn no_more_is_noted_as_committed_after_a_crash_than_the_log_has() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = open_log(dir.path());
        log.blocking_append([entry(1, 0)]).await.unwrap();
        // The quorum has ten entries before the second of them is durable here.
        log.save_committed(Some(id(1, 9))).await.unwrap();
        log.blocking_append([entry(1, 1)]).await.unwrap();
        drop(log);
        let mut log = open_log(dir.path());
        assert_eq!(log.read_committed().await.unwrap(), Some(id(1, 1)));
    });
}

#[test]
fn an_end_of_an_older_term_is_not_taken_for_what_was_noted_as_committed() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = open_log(dir.path());
        log.blocking_append((0..10).map(|index| entry(1, index))).await.unwrap();
        log.save_committed(Some(id(2, 8))).await.unwrap();
        log.blocking_append([entry(1, 10)]).await.unwrap();
        drop(log);
        let mut log = open_log(dir.path());
        assert_eq!(log.read_committed().await.unwrap(), None);
    });
}

#[test]
fn a_purge_is_synced_because_files_are_removed_after_it() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = open_log(dir.path());
        log.blocking_append((0..10).map(|index| entry(1, index))).await.unwrap();
        let before = log.syncs();
        log.purge(id(1, 5)).await.unwrap();
        for _ in 0..1000 {
            if log.syncs() > before {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("a power cut may take the purge back, and not the removal of the files");
    });
}
