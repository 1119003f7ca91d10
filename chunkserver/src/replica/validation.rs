//! The fence: when this server may serve reads, chunk by chunk, by its own monotonic clock (docs/protocol.md, Fence).

use std::collections::BTreeSet;

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion, Epoch, Term};
use gfs_proto::time::{Moment, VALIDITY};

/// Counts what has been noted for reports: a chunk noted at one number is in every report up to it or a later one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Generation(pub(crate) u64);

/// What a leader said to one heartbeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// Whether it is a leader that confirmed its leadership for this heartbeat.
    pub(crate) leader: bool,
    /// Its term.
    pub(crate) term: Term,
    /// The epoch that the heartbeat carried, and the answer repeats.
    pub(crate) epoch: Epoch,
    /// When the heartbeat was sent.
    pub(crate) sent: Moment,
    /// Chunks noted up to here had been reported to it.
    pub(crate) reported: Generation,
    /// Chunks among them that it does not validate.
    pub(crate) denied: BTreeSet<ChunkHandle>,
}

/// What one chunk remembers about its own validation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    /// When it was first noted for reports: an answer that does not cover it says nothing about it.
    pub(crate) born: Generation,
    /// Answers to heartbeats sent up to this moment are void for this chunk.
    pub(crate) void_until: Option<Moment>,
    /// The newest pending version that left this server out.
    pub(crate) excluded: ChunkVersion,
}

/// What the whole server remembers.
#[derive(Debug)]
pub(crate) struct Fence {
    epoch: Epoch,
    /// Highest term of an order or of a leader's answer.
    term: Term,
    /// The answer to the newest heartbeat that got one, as long as it is good.
    answer: Option<Answer>,
}

impl Fence {
    /// No validation: a restart ends them all.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self { epoch, term: Term::default(), answer: None }
    }

    /// This life of the server, for leaders to tell answers apart.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Highest term seen.
    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// Takes note of the term of an order; false if a newer leader has been seen.
    pub(crate) fn obey(&mut self, term: Term) -> bool {
        // Orders of a deposed leader are refused: only the highest term counts (T22).
        let newest = term >= self.term;
        self.term = self.term.max(term);
        newest
    }

    /// Takes an answer to a heartbeat; false if it is void.
    pub(crate) fn answered(&mut self, answer: Answer, now: Moment) -> bool {
        // Guard answer_without_quorum: only a leader that confirmed its leadership after the heartbeat came
        // says `leader`; everybody else's answer means nothing, nor does that of a deposed leader.
        if !answer.leader || answer.term < self.term {
            return false;
        }
        // Guard no_epoch: an answer to an earlier life, or from before a lapse, is void.
        // Mutant no_epoch: an answer to an earlier life is as good as any.
        if answer.epoch != self.epoch && !fault::mutant("no_epoch") {
            return false;
        }
        self.term = answer.term;
        // A validation that has run out ends the epoch: what is on its way in it is void, too.
        if self.answer.as_ref().is_some_and(|known| now >= known.sent.plus(VALIDITY)) {
            return false;
        }
        // Guard late_answer_validates: an answer to an older heartbeat than the newest one answered is void.
        // Mutant late_answer_validates: the last answer to come counts.
        let late = self.answer.as_ref().is_some_and(|known| known.sent >= answer.sent);
        if late && !fault::mutant("late_answer_validates") {
            return false;
        }
        // Guard from_receipt: validity counts from the sending, so a late answer may be worth nothing.
        if now >= answer.sent.plus(VALIDITY) {
            return false;
        }
        self.answer = Some(answer);
        true
    }

    /// Ends every validation if the last one has run out, and then begins a new epoch: true if so.
    pub(crate) fn lapse(&mut self, now: Moment, next: Epoch) -> bool {
        let lapsed = self.answer.as_ref().is_some_and(|answer| now >= answer.sent.plus(VALIDITY));
        if lapsed {
            self.answer = None;
            self.epoch = Epoch::from_raw(next.raw().max(self.epoch.raw() + 1));
        }
        lapsed
    }

    /// Whether a chunk, held at `version`, may serve reads at this moment.
    pub(crate) fn validates(
        &self,
        now: Moment,
        handle: ChunkHandle,
        standing: &Standing,
        version: ChunkVersion,
    ) -> bool {
        let Some(answer) = &self.answer else { return false };
        // Guard no_term_start and no_fence_wait, this server's part: after 3 s without an answer it serves nothing.
        // Mutant validity_not_checked: a server that was paused goes on where it stopped.
        (now < answer.sent.plus(VALIDITY) || fault::mutant("validity_not_checked"))
            // Guard server_fence_only: the answer must have covered this chunk and not denied it.
            && standing.born <= answer.reported
            && !answer.denied.contains(&handle)
            // Guard exclusion_forgotten: what was on its way when the exclusion came does not validate again ..
            && standing.void_until.is_none_or(|void| answer.sent > void)
            // .. and nothing does, before a later grant takes this server in.
            // Mutant exclusion_forgotten: the next answer validates again.
            && (version > standing.excluded || fault::mutant("exclusion_forgotten"))
    }
}
