//! A snapshot of a tree with a million files, on the database of production: how long its commands hold up the log.
//!
//! `cargo test -p gfs-master --lib a_million_files -- --ignored --nocapture`; `GFS_FILES` makes it larger or smaller.

#![allow(clippy::print_stdout, reason = "a measurement tells what it measured")]

use std::time::{Duration, Instant};

use gfs_proto::id::{
    ChunkHandle, ChunkVersion, ClientId, ClusterId, EntryId, LogIndex, MasterId, RequestId, ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;
use gfs_proto::work::Workers;

use crate::raft::store::{Direct, StateStore};
use crate::raft::types::{LogId, LogLeader};
use crate::state::build::BUILD_ROWS_MAX;
use crate::state::{self, Applied, Command, Overlay, Proposal, Rejected, read};

/// No command may hold up the log for longer.
const APPLY_MAX: Duration = Duration::from_millis(50);
/// Files of one directory.
const DIRECTORY_FILES: u64 = 1000;
/// Commands applied together while the tree is made.
const BATCH: usize = 256;

struct Bench {
    store: StateStore,
    index: u64,
    /// The longest command by the clock: on a busy machine also what others did.
    clocked: Duration,
}

impl Bench {
    /// The answer, and the processor time that it took.
    fn apply(&mut self, command: Command) -> (Result<Applied, Rejected>, Duration) {
        let (begun, clock) = (cpu_time(), Instant::now());
        let reply = self.apply_all(vec![command]).pop().unwrap();
        self.clocked = self.clocked.max(clock.elapsed());
        (reply, cpu_time().saturating_sub(begun))
    }
    /// As the machine does it: one overlay, one write.
    fn apply_all(&mut self, commands: Vec<Command>) -> Vec<Result<Applied, Rejected>> {
        let live = self.store.live();
        let base = Direct { live: &live, poison: &self.store.poison };
        let mut overlay = Overlay::new(&base);
        let mut replies = Vec::new();
        for command in commands {
            self.index += 1;
            let proposal = Proposal::internal(UnixMs::from_raw(1000), command);
            let outcome = state::apply(&overlay, LogIndex::from_raw(self.index), &proposal);
            overlay.absorb(outcome.writes);
            replies.push(outcome.reply);
        }
        let last = LogId::new(LogLeader::new(1), self.index);
        self.store.write(&overlay.into_writes(), last, None).unwrap();
        replies
    }
}

fn path(text: &str) -> FilePath {
    FilePath::parse(text).unwrap()
}

/// A file with one chunk that nobody writes: the commands after its creation.
fn chunk_of(file: EntryId, handle: u64) -> Vec<Command> {
    let (handle, members) = (ChunkHandle::from_raw(handle), vec![ServerId::from_raw(1)]);
    let (primary, version) = (members[0], ChunkVersion::from_raw(1));
    let confirm = |version| Command::ConfirmGrant { handle, version, lease_expires_at: UnixMs::from_raw(1) };
    vec![
        Command::AddChunk { file, expected_count: 0, members: members.clone(), primary },
        confirm(version),
        Command::PrepareGrant {
            handle,
            expected_version: version,
            members: members.clone(),
            base: members,
            primary,
            writer: false,
            fresh: false,
        },
        confirm(ChunkVersion::from_raw(2)),
    ]
}

fn make_tree(bench: &mut Bench, files: u64) {
    let (mut handle, mut commands) = (0, Vec::new());
    for number in 0..files {
        if number % DIRECTORY_FILES == 0 {
            let at = path(&format!("/tree/d{}", number / DIRECTORY_FILES));
            bench.apply(Command::Mkdir { path: at, parents: true }).0.unwrap();
        }
        let at = path(&format!("/tree/d{}/file-{number}", number / DIRECTORY_FILES));
        commands.push(Command::Create { path: at, replication: 0 });
        if commands.len() == BATCH || number + 1 == files {
            let made = bench.apply_all(std::mem::take(&mut commands));
            let mut chunks = Vec::new();
            for reply in made {
                let Ok(Applied::Entry { entry }) = reply else { panic!("{reply:?}") };
                handle += 1;
                chunks.extend(chunk_of(entry.id, handle));
            }
            assert!(bench.apply_all(chunks).iter().all(Result::is_ok));
        }
    }
}

/// How long this thread has had a processor: on a busy machine the clock tells of the others.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// Most memory that this process has had, in KiB.
fn memory_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

#[test]
#[ignore = "takes minutes: cargo test -p gfs-master --lib a_million_files -- --ignored --nocapture"]
fn a_snapshot_of_a_million_files_never_holds_up_the_log() {
    let files = std::env::var("GFS_FILES").ok().and_then(|files| files.parse().ok()).unwrap_or(1_000_000);
    measure(files, true);
}

#[test]
fn a_snapshot_of_some_thousand_files_is_built_on_the_real_store() {
    // Without the clock: a busy machine says nothing of the code.
    measure(3000, false);
}

fn measure(files: u64, timed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let store = StateStore::open(&dir.path().join("state"), 256 << 20, &Workers::Threads).unwrap();
    let mut bench = Bench { store, index: 0, clocked: Duration::ZERO };
    let bootstrap = Command::Bootstrap {
        cluster: ClusterId::from_bytes([1; 16]),
        chunk_bytes: ChunkBytes::DEFAULT,
        replication: 3,
        trash_ms: 1000,
        session_ms: 1_000_000,
        master: MasterId::from_raw(1),
        uuid: Uuid::from_bytes([1; 16]),
        address: "m:1".to_owned(),
    };
    bench.apply(bootstrap).0.unwrap();
    let (address, rack) = ("s:1".to_owned(), String::new());
    bench.apply(Command::RegisterServer { uuid: Uuid::from_bytes([2; 16]), address, rack }).0.unwrap();
    let Ok(Applied::SessionOpened { client, .. }) = bench.apply(Command::OpenSession { nonce: [1; 16] }).0
    else {
        panic!("no session")
    };
    let begun = Instant::now();
    make_tree(&mut bench, files);
    println!("made {files} files in {:?}, memory peak {} KiB", begun.elapsed(), memory_peak_kib());

    let request = RequestId { client: ClientId::from_raw(client.raw()), sequence: 1 };
    let (source, target) = (path("/tree"), path("/snap"));
    let whole = bench.apply(Command::Snapshot { source: source.clone(), target: target.clone() });
    println!("refused as too large for one command in {:?}: {:?}", whole.1, whole.0);
    let mut longest = whole.1;
    bench.clocked = Duration::ZERO;
    let (begun, first) = (Instant::now(), bench.apply(Command::BeginSnapshot { source, target, request }));
    first.0.unwrap();
    longest = longest.max(first.1);
    let root = read::build(&bench.store.view()).unwrap().unwrap().root;
    let mut times = Vec::new();
    loop {
        let (reply, took) = bench.apply(Command::BuildSnapshot { root, limit: BUILD_ROWS_MAX });
        longest = longest.max(took);
        times.push(took);
        match reply {
            Ok(Applied::Built { more: true, unsettled: None, .. }) => {}
            Ok(Applied::Built { more: false, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    let total = begun.elapsed();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "built in {total:?}: {} commands, processor time median {:?}, p99 {:?}, longest {longest:?}",
        times.len(),
        at(50),
        at(99)
    );
    println!("by the clock longest {:?}; memory peak {} KiB", bench.clocked, memory_peak_kib());
    let counters = read::counters(&bench.store.view()).unwrap();
    assert_eq!((counters.files, counters.chunks), (files * 2, files));
    let at = path(&format!("/snap/d0/file-{}", files.min(DIRECTORY_FILES) - 1));
    assert_eq!(read::stat(&bench.store.view(), &at).unwrap().chunk_count, 1);
    if timed {
        assert!(longest <= APPLY_MAX, "{longest:?}");
    }
}
