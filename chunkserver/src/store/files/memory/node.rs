//! The bytes of one file: as everybody reads them, and as they are on the disk.

use gfs_proto::random::Random;

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// A file without its name.
#[derive(Clone, Default)]
pub(super) struct Node {
    pub(super) now: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Since the last sync.
    pub(super) changes: Vec<Change>,
}

/// What a sync makes durable.
#[derive(Clone)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Node {
    pub(super) fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(data);
    }
    pub(super) fn sync(&mut self) {
        for change in self.changes.drain(..) {
            match change {
                Change::Write(offset, data) => Self::write(&mut self.durable, offset, &data),
                Change::Length(length) => self.durable.resize(length, 0),
            }
        }
    }
    /// Keeps of the changes since the last sync what chance keeps.
    pub(super) fn lose(&mut self, random: &dyn Random) {
        for change in std::mem::take(&mut self.changes) {
            let fate = random.below(4);
            match change {
                Change::Length(length) if fate < 2 => self.durable.resize(length, 0),
                Change::Length(_) => {}
                Change::Write(offset, data) if fate == 0 => Self::write(&mut self.durable, offset, &data),
                Change::Write(_, _) if fate == 1 => {}
                Change::Write(offset, data) => {
                    let mut at = 0;
                    while at < data.len() {
                        let end = ((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                        let end = end.min(data.len());
                        if random.below(2) == 0 {
                            Self::write(&mut self.durable, offset + at, &data[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.now = self.durable.clone();
    }
}
