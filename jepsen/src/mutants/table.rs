//! Which checks are meant to find which mutant, the fastest first.

use std::fmt;

/// A check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Check {
    /// The tests of a crate whose names contain one of these words.
    Tests(&'static str, &'static str),
    /// A workload under a fault, for so many seconds.
    Cell(&'static str, &'static str, u64),
}

impl Check {
    /// Whether it starts a cluster.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::Cell(..))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tests(name, filters) => write!(f, "tests of {name} ({filters})"),
            Self::Cell(workload, nemesis, seconds) => {
                write!(f, "jepsen {workload} under {nemesis}, {seconds} s")
            }
        }
    }
}

/// Every mutant and its checks.
pub(super) const TABLE: &[(&str, &[Check])] = &[
    ("ack_early", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("adopt_twice", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("answer_without_quorum", &[Check::Tests("master", "service::tests")]),
    ("append_acked_at_once", &[Check::Tests("master", "raft::tests::crash")]),
    ("append_off_by_one", &[Check::Tests("chunkserver", "replica::tests::order")]),
    (
        "checkpoint_without_replies",
        &[Check::Tests("master", "raft::tests::group"), Check::Tests("master", "raft::")],
    ),
    ("confirm_not_cas", &[Check::Tests("master", "state::tests")]),
    (
        "copy_not_verified",
        &[
            Check::Tests("chunkserver", "store::tests::damage"),
            Check::Tests("chunkserver", "store::tests::life"),
            Check::Tests("chunkserver", "store::tests"),
        ],
    ),
    ("copy_without_bump", &[Check::Tests("master", "state::tests")]),
    ("current_by_version", &[Check::Tests("master", "cluster::"), Check::Tests("master", "leader::tests")]),
    ("damaged_record_yielded", &[Check::Tests("client", "record::tests")]),
    ("delete_any_version", &[Check::Tests("chunkserver", "store::tests::life")]),
    ("dirty_read", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("exclusion_forgotten", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("file_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("floor_ignored", &[Check::Tests("master", "service::tests")]),
    ("frame_not_verified", &[Check::Tests("proto", "frame")]),
    ("from_receipt", &[Check::Tests("chunkserver", "tests::")]),
    ("gap_applied", &[Check::Tests("chunkserver", "replica::tests::order")]),
    (
        "ids_not_content",
        &[Check::Tests("chunkserver", "store::tests::life"), Check::Tests("chunkserver", "tests::stories")],
    ),
    ("joiner_counted_as_base", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("late_answer_validates", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("log_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("names_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("next_without_asking", &[Check::Tests("client", "tests::")]),
    ("no_epoch", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("no_fence_wait", &[Check::Tests("master", "leader::tests")]),
    ("no_term_start", &[Check::Tests("master", "cluster::")]),
    ("old_version_applied", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("orphans_kept", &[Check::Tests("master", "plan::sweep")]),
    ("own_content_kept", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("padding_yielded", &[Check::Tests("client", "record::tests")]),
    ("partial_base", &[Check::Tests("master", "leader::tests")]),
    ("partial_forgotten", &[Check::Tests("chunkserver", "store::tests::life")]),
    ("power_cut_ignored", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("read_not_verified", &[Check::Tests("chunkserver", "store::tests::damage")]),
    ("reads_unasked", &[Check::Tests("master", "service::tests")]),
    ("references_ignored", &[Check::Tests("master", "state::tests")]),
    ("rename_in_two_entries", &[Check::Tests("master", "service::tests"), Check::Cell("bank", "none", 8)]),
    ("repeat_not_recognized", &[Check::Tests("master", "state::tests")]),
    ("repeat_under_new_id", &[Check::Tests("client", "tests::")]),
    ("restart_is_clean", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("retry_acked_at_once", &[Check::Tests("chunkserver", "tests::stories")]),
    ("seal_told_early", &[Check::Tests("chunkserver", "tests::stories")]),
    ("shadow_past_bound", &[Check::Tests("master", "service::tests")]),
    ("single_commit", &[Check::Tests("master", "state::tests")]),
    ("snapshot_uncounted", &[Check::Tests("master", "state::tests")]),
    ("snapshot_under_lease", &[Check::Tests("master", "state::tests")]),
    ("stale_location_served", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("stale_replica_served", &[Check::Tests("master", "cluster::")]),
    ("sweep_before_report", &[Check::Tests("master", "cluster::"), Check::Tests("master", "leader::tests")]),
    ("sweep_last_copies", &[Check::Tests("master", "plan::sweep")]),
    ("sweep_unknown", &[Check::Tests("master", "plan::sweep")]),
    ("table_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("undelete_collected", &[Check::Tests("master", "state::tests")]),
    ("unfenced_primary_reads", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("unknown_told_failed", &[Check::Tests("client", "tests::")]),
    ("validate_ignores_pending", &[Check::Tests("master", "cluster::")]),
    ("validity_not_checked", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    (
        "version_not_durable",
        &[
            Check::Tests("chunkserver", "store::tests::life"),
            Check::Tests("chunkserver", "store::tests::crash"),
        ],
    ),
    ("version_reuse", &[Check::Tests("master", "state::tests")]),
    ("vote_not_durable", &[Check::Tests("master", "raft::tests::crash")]),
    ("wal_not_synced", &[Check::Tests("master", "raft::tests::crash")]),
    ("wall_clock_fence", &[Check::Tests("chunkserver", "tests::")]),
];
