//! One flipped bit in what a master has on its disk: it refuses to open or to read, or nothing has changed. It never goes on with
//! another vote, another log or another state.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gfs_proto::work::Workers;
use openraft::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::type_config::TypeConfigExt;

use crate::raft::log::LogStore;
use crate::raft::store::StateStore;
use crate::raft::types::{Entry, LogId, LogLeader, Operation, TypeConfig, Vote};
use crate::state::{Overlay, Table, View};

/// Spots that are tried in each file.
const SPOTS: u64 = 12;
const ROWS: u64 = 300;

fn id(index: u64) -> LogId {
    LogId::new(LogLeader::new(3), index)
}

fn entry(index: u64) -> Entry {
    Entry {
        log_id: id(index),
        payload: EntryPayload::Normal(Operation(format!("{index}").repeat(70).into())),
    }
}

async fn write_log(dir: &Path) {
    for from in [0, 40] {
        // Opening it again brings the first half into a table.
        let mut log = LogStore::open(dir, "flip", &Workers::Threads).unwrap();
        log.save_vote(&Vote::new_committed(3 + from, 1)).await.unwrap();
        log.blocking_append((from..from + 40).map(entry)).await.unwrap();
    }
}

/// Whether the log could be read; what was read is what was written.
async fn read_log(dir: &Path) -> bool {
    let Ok(mut log) = LogStore::open(dir, "flip", &Workers::Threads) else { return false };
    let Ok(state) = log.get_log_state().await else { return false };
    let mut reader = log.get_log_reader().await;
    let (Ok(vote), Ok(entries)) = (reader.read_vote().await, reader.try_get_log_entries(0..80).await) else {
        return false;
    };
    assert_eq!(vote, Some(Vote::new_committed(43, 1)), "another vote");
    assert_eq!(state.last_log_id, Some(id(79)), "another end");
    assert!(entries.iter().eq((0..80).map(entry).collect::<Vec<_>>().iter()), "other entries");
    true
}

fn row(number: u64) -> (Vec<u8>, Vec<u8>) {
    (number.to_be_bytes().to_vec(), format!("{number}").repeat(40).into_bytes())
}

fn write_state(dir: &Path) {
    let store = StateStore::open(dir, 1 << 20, &Workers::Threads).unwrap();
    let view = store.view();
    let mut overlay = Overlay::new(&view);
    for (key, value) in (0..ROWS).map(row) {
        overlay.put(Table::ALL[0], key, value);
    }
    let writes = overlay.into_writes();
    store.write(&writes, id(9), None).unwrap();
    store.build_checkpoint().unwrap();
}

fn read_state(dir: &Path) -> bool {
    let Ok(store) = StateStore::open(dir, 1 << 20, &Workers::Threads) else { return false };
    let (view, applied) = (store.view(), store.applied().0);
    let found: Vec<_> = (0..ROWS).map(|number| view.get(Table::ALL[0], &row(number).0)).collect();
    // What could not be read has poisoned the store: nothing that was read since is believed.
    if view.check().is_err() {
        return false;
    }
    assert_eq!(applied, Some(id(9)), "another position");
    for (number, value) in (0..ROWS).zip(found) {
        assert_eq!(value.as_deref(), Some(&row(number).1[..]), "another row {number}");
    }
    true
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// Flips bits all over the files of a directory; how many were found, and how many were tried.
fn sweep(dir: &Path, reads: impl Fn(&Path) -> bool) -> (u64, u64) {
    assert!(reads(&copied(dir).0), "without damage it is read");
    let (mut found, mut tried) = (0, 0);
    for file in files_below(dir) {
        let length = fs::metadata(&file).unwrap().len();
        for spot in 0..SPOTS.min(length) {
            let (copy, _keep) = copied(dir);
            let path = copy.join(file.strip_prefix(dir).unwrap());
            let mut bytes = fs::read(&path).unwrap();
            // Spread over the file, the last byte included.
            let at = usize::try_from((length - 1) * (spot + 1) / SPOTS.min(length)).unwrap();
            bytes[at] ^= 1 << (spot % 8);
            fs::write(&path, bytes).unwrap();
            tried += 1;
            found += u64::from(!reads(&copy));
        }
    }
    (found, tried)
}

fn copied(dir: &Path) -> (PathBuf, Arc<tempfile::TempDir>) {
    let temporary = tempfile::tempdir().unwrap();
    let target = temporary.path().join("copy");
    copy(dir, &target);
    (target, Arc::new(temporary))
}

#[test]
fn a_bit_that_flips_in_the_operation_log_is_found_or_changes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("log");
    TypeConfig::run({
        let dir = dir.clone();
        async move { write_log(&dir).await }
    });
    let (found, tried) = sweep(&dir, |copy| {
        let copy = copy.to_owned();
        TypeConfig::run(async move { read_log(&copy).await })
    });
    assert!(found > tried / 4, "only {found} of {tried} were found: are checksums checked at all?");
}

#[test]
fn a_bit_that_flips_in_the_state_is_found_or_changes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("state");
    write_state(&dir);
    let (found, tried) = sweep(&dir, read_state);
    assert!(found > tried / 8, "only {found} of {tried} were found: are checksums checked at all?");
}
