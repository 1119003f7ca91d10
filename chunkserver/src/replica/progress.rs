//! What a replica knows to be committed of what it holds, and which bytes are not (P3).

use std::collections::VecDeque;

use gfs_proto::id::Serial;

/// A position in the order of a chunk's mutations, and the chunk there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    /// Mutations of this version up to here.
    pub(crate) serial: Serial,
    /// Bytes.
    pub(crate) length: u32,
    /// Whether it takes no more appends.
    pub(crate) sealed: bool,
}

/// A mutation that has been applied here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Applied {
    /// First byte it touched.
    pub(crate) offset: u32,
    /// Number of bytes.
    pub(crate) length: u32,
    /// The chunk after it.
    pub(crate) after: Position,
}

/// How far the content is known to be committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// The position before the first open mutation.
    settled: Position,
    /// Whether `settled` is known to be committed.
    known: bool,
    /// Applied after `settled`, in order, without gaps.
    open: VecDeque<Applied>,
}

impl Progress {
    /// Content at a position; `known` if all of it is known to be committed.
    pub(crate) fn at(position: Position, known: bool) -> Self {
        Self { settled: position, known, open: VecDeque::new() }
    }

    /// The last position applied.
    pub(crate) fn applied_position(&self) -> Position {
        self.open.back().map_or(self.settled, |last| last.after)
    }

    /// The last position known to be committed, if any is.
    pub(crate) fn committed(&self) -> Option<Position> {
        self.known.then_some(self.settled)
    }

    /// Whether all that is held is known to be committed.
    pub(crate) fn clean(&self) -> bool {
        self.known && self.open.is_empty()
    }

    /// Adds a mutation that follows the last one.
    pub(crate) fn apply(&mut self, applied: Applied) {
        self.open.push_back(applied);
    }

    /// Learns that everything up to a serial is committed.
    pub(crate) fn learn(&mut self, committed: Serial) {
        // A position below `settled` says nothing about what lies between. Committed is what every member has
        // applied: a replica that has less has lost something, and knows nothing (guard restart_is_clean).
        if committed < self.settled.serial || committed > self.applied_position().serial {
            return;
        }
        self.known = true;
        while let Some(first) = self.open.front().filter(|first| first.after.serial <= committed) {
            self.settled = first.after;
            self.open.pop_front();
        }
    }

    /// The last open mutation that changed bytes of a range which readers may already have seen otherwise.
    pub(crate) fn touched(&self, offset: u32, length: u32) -> Option<Serial> {
        let end = (u64::from(offset) + u64::from(length)).min(self.settled.length.into());
        let overlaps = |open: &&Applied| {
            u64::from(open.offset) < end
                && u64::from(offset) < u64::from(open.offset) + u64::from(open.length)
        };
        self.open.iter().rev().find(overlaps).map(|open| open.after.serial)
    }

    /// Whether a range lies within the committed bytes and nothing open touches it: then it is the same before and
    /// after whatever is in flight. Never true of an empty range: it asks for the length, which what is open changes.
    pub(crate) fn untouched(&self, offset: u32, length: u32) -> bool {
        self.known
            && length > 0
            && u64::from(offset) + u64::from(length) <= self.settled.length.into()
            && self.touched(offset, length).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_not_told_from_what_is_settled_while_something_is_open() {
        let position = |serial, length| Position { serial: Serial::from_raw(serial), length, sealed: false };
        let mut progress = Progress::at(position(1, 100), true);
        progress.apply(Applied { offset: 100, length: 50, after: position(2, 150) });
        assert!(progress.untouched(0, 100));
        assert!(!progress.untouched(0, 0), "the open append may be committed already");
    }

    #[test]
    fn who_holds_less_than_what_is_committed_has_lost_something_and_knows_nothing() {
        let position = |serial, length| Position { serial: Serial::from_raw(serial), length, sealed: false };
        // Restarted with two mutations, without knowing whether they are committed.
        let mut progress = Progress::at(position(2, 100), false);
        progress.learn(Serial::from_raw(3));
        assert_eq!(progress.committed(), None, "the third is committed, and is not here");
        // Nor does an older word say anything about what lies in between.
        progress.learn(Serial::from_raw(1));
        assert_eq!(progress.committed(), None);
        progress.learn(Serial::from_raw(2));
        assert_eq!(progress.committed(), Some(position(2, 100)));
        progress.apply(Applied { offset: 100, length: 50, after: position(3, 150) });
        progress.learn(Serial::from_raw(4));
        assert_eq!(progress.committed(), Some(position(2, 100)));
        progress.learn(Serial::from_raw(3));
        assert!(progress.clean());
    }
}
