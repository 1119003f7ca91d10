//! What is explored: the scenarios, the seeded bugs (one per guard of the protocol) and the variants that must not matter.

macro_rules! flags {
    ($name:ident: $($item:ident = $bit:expr, $text:expr;)*) => {
        #[expect(non_upper_case_globals, reason = "flags bear the names that the reference gives the guards")]
        pub(crate) mod $name { $(pub(crate) const $item: u64 = 1 << $bit;)* pub(crate) const ALL: &[(&str, u64, &str)] = &[$((stringify!($item), $item, $text),)*]; }
    };
}
flags! { bug:
    ack_early = 0, "the primary counts a mutation as committed when all members but one applied it";
    no_fence_wait = 1, "confirm without waiting for the fence of a member left out";
    no_reconcile = 2, "members store the version but keep their own content";
    version_reuse = 3, "a new leader forgets an unconfirmed version and hands it out again";
    single_commit = 4, "the prepare alone makes the grant current";
    truncate_to_commit = 5, "reconcile cuts to what the new primary knows to be committed";
    dirty_read = 6, "a replica with mutations in flight answers without asking the primary";
    restart_is_clean = 7, "a restarted replica takes all it holds for committed";
    server_fence_only = 8, "a heartbeat answer makes the whole server serve again, with no check chunk by chunk";
    validate_ignores_pending = 9, "validation looks at the confirmed members only, not at a pending grant";
    late_answer_validates = 10, "a heartbeat answer older than the revocation validates the chunk again";
    current_by_version = 11, "any replica with version >= confirmed counts as current, also one that only joined an unconfirmed grant";
    primary_survives_restart = 12, "a restarted primary goes on under its lease";
    version_not_durable = 13, "a restart may bring back the version before the last one stored";
    adopt_twice = 14, "a late duplicate of the reconciled content is taken again";
    retry_acked_at_once = 15, "a retry that finds its id in the table is acknowledged before the mutation is committed";
    ids_not_content = 16, "the request ids do not travel with the content to the next primary";
    seal_told_early = 17, "clients are sent to the next chunk before the seal is on all members";
    next_without_asking = 18, "a client goes to the next chunk without asking the old one about its id";
    confirm_not_cas = 19, "a confirm is applied although a later grant was prepared";
    answer_without_quorum = 20, "a deposed leader answers heartbeats";
    no_term_wait = 21, "a new leader takes servers it never answered for fenced";
    old_version_applied = 22, "members apply forwards of an older version";
    gap_applied = 23, "a member applies a forward although it missed the one before";
    committed_before_confirm = 24, "the new primary answers from the reconciled content before the confirm";
    clone_without_grant = 25, "a clone is listed as a member without a new version";
    power_cut_ignored = 26, "a replica that lost unsynced records in a power cut serves and counts as whole (durability `replicated`)";
    snapshot_under_lease = 27, "a snapshot does not revoke the lease";
    copy_without_bump = 28, "copy on write does not raise the old chunk's version";
    bump_before_map = 29, "copy on write raises the version first and maps the file to the copy later";
    adopt_in_place = 30, "the copy into a joiner counts as done when it starts";
    late_activation = 31, "an activation message makes a server primary whatever happened since (restart included)";
    partial_forgotten = 35, "a joiner, or a replica that lost power, counts as whole as soon as it stored the version, before it has adopted";
    unfenced_primary_reads = 37, "an active primary serves reads though its fence ran out";
    fence_before_prepare = 36, "the fence is waited for before the prepare is in the log, not between prepare and confirm";
}
flags! { variant:
    shortest = 40, "reconcile picks the shortest base member instead of the longest (durability `synced` only)";
    own_content = 41, "reconcile takes the new primary's own content, longer or not (durability `synced` only)";
    ask_from_anywhere = 42, "a replica whose own fence ran out serves what a fresh primary of its version tells it is committed";
    ask_anyone = 43, "a fresh replica serves what a primary of its version tells it, be that one's fence run out or not";
    writes_only = 44, "no fence wait and no reads: what is written is safe with no clock at all";
}

#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub(crate) name: &'static str,
    /// Members at the start (the rest may join).
    pub(crate) members: u8,
    pub(crate) max_version: u8,
    pub(crate) requests: u32,
    pub(crate) seal: bool,
    pub(crate) snapshot: bool,
    pub(crate) deaths: u8,
    pub(crate) cuts: u8,
    /// Servers outside `members` may join.
    pub(crate) join: bool,
    /// A heartbeat answer arrives at once. Sound when late answers are void, as in the right protocol: a late arrival only
    /// makes a server serve later, and serving is a choice.
    pub(crate) prompt: bool,
    pub(crate) flags: u64,
}

pub(crate) const fn config(name: &'static str, members: u8, max_version: u8, requests: u32) -> Config {
    Config {
        name,
        members,
        max_version,
        requests,
        seal: false,
        snapshot: false,
        deaths: 0,
        cuts: 0,
        join: true,
        prompt: false,
        flags: 0,
    }
}

pub(crate) const SCENARIOS: &[Config] = &[
    Config { deaths: 1, ..config("joiner", 0b011, 3, 1) },
    Config { deaths: 1, ..config("three-members", 0b111, 3, 1) },
    Config { prompt: true, ..config("joiner-four", 0b011, 4, 1) },
    Config { prompt: true, ..config("four-versions", 0b111, 4, 1) },
    Config { prompt: true, ..config("two-requests", 0b111, 3, 2) },
    Config { seal: true, ..config("seal", 0b111, 2, 2) },
    Config { prompt: true, seal: true, ..config("seal-three", 0b111, 3, 1) },
    Config { cuts: 2, prompt: true, ..config("power", 0b111, 3, 1) },
    Config { snapshot: true, prompt: true, join: false, ..config("snapshot", 0b011, 4, 1) },
    Config { snapshot: true, prompt: true, ..config("snapshot-joiner", 0b011, 4, 1) },
];
