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
    ("alone_unverified", &[Check::Tests("master", "leader::tests::attempts")]),
    ("answer_without_quorum", &[Check::Tests("master", "service::tests::a_leader_without")]),
    (
        "append_acked_at_once",
        &[Check::Tests("master", "raft::tests::crash::an_append_and_a_vote_are_answered_after_a_sync")],
    ),
    ("append_off_by_one", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("checkpoint_without_replies", &[Check::Tests("master", "raft::tests::crash::a_checkpoint_brings")]),
    ("confirm_not_cas", &[Check::Tests("master", "state::tests")]),
    (
        "copy_not_verified",
        &[Check::Tests("chunkserver", "store::tests::life::a_joiner_is_partial_until_it_has_adopted_once")],
    ),
    ("copy_without_bump", &[Check::Tests("master", "state::tests::snapshot")]),
    ("current_by_version", &[Check::Tests("master", "cluster::tests")]),
    (
        "damaged_record_yielded",
        &[Check::Tests("client", "tests::records::damage_and_repeats_are_passed_over")],
    ),
    (
        "delete_any_version",
        &[Check::Tests(
            "chunkserver",
            "tests::stories::a_deleted_replica_is_gone_and_reported_so_but_not_one_that_was_granted_anew",
        )],
    ),
    ("dirty_read", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("exclusion_forgotten", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("file_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("floor_ignored", &[Check::Tests("master", "service::tests::a_leader_without")]),
    (
        "frame_not_verified",
        &[Check::Tests("proto", "link::tests::a_damaged_answer_is_an_error_of_its_call_alone")],
    ),
    ("from_receipt", &[Check::Tests("chunkserver", "tests::stories::validity_ends")]),
    ("gap_applied", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("given_up_repeated", &[Check::Tests("chunkserver", "store::requests::tests")]),
    ("ids_not_content", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("joiner_counted_as_base", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("late_answer_validates", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("log_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("names_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    (
        "next_without_asking",
        &[Check::Tests(
            "client",
            "tests::writing::a_record_whose_reply_was_lost_before_the_seal_is_found_in_the_old_chunk",
        )],
    ),
    ("no_epoch", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("no_fence_wait", &[Check::Tests("master", "leader::tests")]),
    ("no_term_start", &[Check::Tests("master", "cluster::fence::tests")]),
    ("old_version_applied", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("orphans_kept", &[Check::Tests("master", "plan::sweep::tests")]),
    ("own_content_kept", &[Check::Tests("chunkserver", "replica::tests::order")]),
    ("padding_yielded", &[Check::Tests("client", "record::tests")]),
    ("partial_base", &[Check::Tests("master", "leader::tests")]),
    (
        "partial_forgotten",
        &[Check::Tests("chunkserver", "store::tests::life::a_joiner_is_partial_until_it_has_adopted_once")],
    ),
    ("power_cut_ignored", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("read_not_verified", &[Check::Tests("chunkserver", "store::tests::damage")]),
    ("reads_unasked", &[Check::Tests("master", "service::tests::a_leader_without")]),
    ("references_ignored", &[Check::Tests("master", "state::tests::snapshot")]),
    (
        "rename_in_two_entries",
        &[
            Check::Tests("master", "service::tests::alone::a_rename_is_one_entry"),
            Check::Cell("bank", "none", 8),
        ],
    ),
    ("repeat_not_recognized", &[Check::Tests("master", "state::tests::random")]),
    (
        "repeat_under_new_id",
        &[Check::Tests(
            "client",
            "tests::writing::a_record_whose_reply_was_lost_before_the_seal_is_found_in_the_old_chunk",
        )],
    ),
    ("restart_is_clean", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    (
        "retry_acked_at_once",
        &[Check::Tests(
            "chunkserver",
            "tests::stories::a_member_dies_another_joins_and_all_hold_the_same_with_each_record_once",
        )],
    ),
    ("seal_told_early", &[Check::Tests("chunkserver", "tests::stories::no_client_is_sent")]),
    ("shadow_past_bound", &[Check::Tests("master", "service::tests::a_leader_without")]),
    ("single_commit", &[Check::Tests("master", "state::tests::a_grant_takes_two_commits leader::tests")]),
    ("snapshot_uncounted", &[Check::Tests("master", "state::tests::snapshot")]),
    (
        "snapshot_under_lease",
        &[Check::Tests(
            "master",
            "leader::tests::snapshot::a_snapshot_revokes_first_and_gives_out_no_lease_meanwhile",
        )],
    ),
    ("stale_location_served", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("stale_replica_served", &[Check::Tests("master", "cluster::fence::tests")]),
    ("sweep_before_report", &[Check::Tests("master", "cluster::tests")]),
    ("sweep_last_copies", &[Check::Tests("master", "plan::sweep::tests")]),
    ("sweep_unknown", &[Check::Tests("master", "plan::sweep::tests")]),
    ("table_not_synced", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("undelete_collected", &[Check::Tests("master", "state::tests")]),
    ("unfenced_primary_reads", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    (
        "unknown_told_failed",
        &[Check::Tests(
            "client",
            "tests::writing::a_failure_after_an_unanswered_attempt_is_not_called_a_failure",
        )],
    ),
    ("validate_ignores_pending", &[Check::Tests("master", "cluster::tests")]),
    ("validity_not_checked", &[Check::Tests("chunkserver", "replica::tests::reading")]),
    ("version_not_durable", &[Check::Tests("chunkserver", "store::tests::crash")]),
    ("version_reuse", &[Check::Tests("master", "state::tests")]),
    (
        "vote_not_durable",
        &[Check::Tests("master", "raft::tests::crash::an_append_and_a_vote_are_answered_after_a_sync")],
    ),
    (
        "wal_not_synced",
        &[Check::Tests("master", "raft::tests::crash::an_append_and_a_vote_are_answered_after_a_sync")],
    ),
    ("wall_clock_fence", &[Check::Tests("chunkserver", "tests::stories::validity_ends")]),
];
