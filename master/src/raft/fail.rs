//! Fail points at every boundary of persisting: a test names one, and the process dies there.

use gfs_proto::fault;

/// Where a process may die.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Point {
    /// The log's batch is built, nothing is written.
    LogBeforeWrite,
    /// The log's batch is with the kernel, not on the disk.
    LogBeforeSync,
    /// The log's batch is on the disk, nobody knows.
    LogBeforeCallback,
    /// A checkpoint is complete under its temporary name.
    CheckpointBeforeRename,
    /// The new state is complete, the pointer names the old one.
    InstallBeforePointer,
    /// The pointer names the new state, the log is still as before.
    InstallAfterPointer,
}

impl Point {
    /// Its name among all fail points.
    fn name(self) -> &'static str {
        match self {
            Self::LogBeforeWrite => "raft::log::before_write",
            Self::LogBeforeSync => "raft::log::before_sync",
            Self::LogBeforeCallback => "raft::log::before_callback",
            Self::CheckpointBeforeRename => "raft::checkpoint::before_rename",
            Self::InstallBeforePointer => "raft::install::before_pointer",
            Self::InstallAfterPointer => "raft::install::after_pointer",
        }
    }
}

/// Dies here if a test asks for it; in a build with faults it may fail or stand still as well.
///
/// # Errors
/// If it was told to fail.
pub(crate) fn point(point: Point) -> std::io::Result<()> {
    #[cfg(test)]
    die(point);
    fault::try_at(point.name())
}

/// Dies here if `GFS_RAFT_FAIL_POINT` is `Point:n` and this is the n-th time.
#[cfg(test)]
fn die(point: Point) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ASKED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let asked = std::env::var("GFS_RAFT_FAIL_POINT").ok()?;
        let (name, count) = asked.split_once(':')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);
    if let Some((name, count)) = &*ASKED
        && *name == format!("{point:?}")
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        std::process::abort();
    }
}
