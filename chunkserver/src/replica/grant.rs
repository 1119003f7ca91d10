//! A grant as its members see it: who takes part and how, and whose content counts (protocol.md, Grant).

use gfs_proto::fault;
use gfs_proto::id::{ChunkVersion, Serial, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::size::ChunkBytes;

use super::Position;

/// One prepared grant, as the leader told it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    /// The version it made.
    pub(crate) version: ChunkVersion,
    /// All members.
    pub(crate) members: Vec<Peer>,
    /// The current ones among them, whose content counts; the others join.
    pub(crate) base: Vec<ServerId>,
    /// Who orders the mutations.
    pub(crate) primary: ServerId,
    /// Whether there will be any; without a writer the grant is a revocation.
    pub(crate) writer: bool,
    /// Whether this is a new chunk: everybody starts from nothing.
    pub(crate) fresh: bool,
    /// An operator has decided that the primary's content counts, although it may have lost something.
    pub(crate) accepted: bool,
    /// Size of a chunk.
    pub(crate) chunk_bytes: ChunkBytes,
}

impl Grant {
    /// The primary and its address.
    pub(crate) fn primary(&self) -> Option<&Peer> {
        self.members.iter().find(|member| member.server == self.primary)
    }

    /// Whether what a server holds counts: it is whole, or this very grant was made for what it has. Damage never counts.
    pub(crate) fn trusts(&self, server: ServerId, held: &Held) -> bool {
        // Guard partial_forgotten, power_cut_ignored: the flag stays until it has adopted, and only a decision about this
        // version and this server passes over it (docs/decisions/0020).
        let decided = self.accepted && self.base == [server] && self.primary == server;
        (!held.partial || decided) && !held.corrupt
    }
}

/// What the disk holds of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    /// The last version stored.
    pub(crate) version: ChunkVersion,
    /// The version whose content was last adopted.
    pub(crate) adopted: ChunkVersion,
    /// Mutations applied since, and the chunk after them.
    pub(crate) end: Position,
    /// Joins and has not adopted, or may have lost something: serves nothing, is no base.
    pub(crate) partial: bool,
    /// A checksum did not match: as good as partial, until it is replaced.
    pub(crate) corrupt: bool,
}

/// How a server takes part in a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Store {
    /// It has stored this version before.
    Known,
    /// It makes an empty chunk, adopted at once.
    Fresh,
    /// It keeps what it has.
    Base,
    /// It drops what it has.
    Joiner,
}

/// Whether a step is still to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step<T> {
    /// Do it.
    Go(T),
    /// It has been done.
    Done,
}

/// What one base member holds, for the choice of the content that all adopt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    /// Whose it is.
    pub(crate) server: ServerId,
    /// What it holds.
    pub(crate) held: Held,
}

/// Step 3: whose content all members adopt: the longest of the whole base members, in mutations, not bytes: a
/// positioned write is a record too. Among equals, which are identical, the primary's own.
pub(crate) fn longest(grant: &Grant, candidates: &[Candidate]) -> Option<ServerId> {
    candidates
        .iter()
        // Mutant joiner_counted_as_base: whoever takes part has what was acknowledged.
        .filter(|candidate| grant.base.contains(&candidate.server) || fault::mutant("joiner_counted_as_base"))
        .filter(|candidate| grant.trusts(candidate.server, &candidate.held))
        // Guard truncate_to_commit: all that a base member holds counts, not what it knows to be committed.
        .max_by_key(|candidate| {
            let held = candidate.held;
            // Mutant own_content_kept: the primary's own content, however short.
            let serial = if fault::mutant("own_content_kept") { Serial::default() } else { held.end.serial };
            (held.adopted, serial, candidate.server == grant.primary)
        })
        .map(|candidate| candidate.server)
}
