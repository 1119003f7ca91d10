//! The ordered key-value view under the state: RocksDB in production, a `BTreeMap` in tests and simulation.

use std::collections::BTreeMap;
use std::collections::btree_map;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// The tables of the state (column families in RocksDB). Names are persisted: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// Settings, clock, counters, servers, masters and small indexes; the first byte of a key says which.
    System,
    /// Files and directories by id.
    Entry,
    /// The lookup table of the namespace (GFS §4.1): directory id and name to entry id.
    Name,
    /// The chunks of a file: file id and chunk index to handle.
    FileChunk,
    /// Chunks by handle.
    Chunk,
    /// Sessions by client id; behind each its stored replies by sequence.
    Session,
    /// Deleted entries by the date from which they may be collected.
    Trash,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 7] =
        [Self::System, Self::Entry, Self::Name, Self::FileChunk, Self::Chunk, Self::Session, Self::Trash];

    /// The persisted name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Entry => "entry",
            Self::Name => "name",
            Self::FileChunk => "file_chunk",
            Self::Chunk => "chunk",
            Self::Session => "session",
            Self::Trash => "trash",
        }
    }
}

/// Reads the state at one point of the log. Infallible: an implementation whose disk fails remembers it,
/// answers anything, and whoever owns it checks before an answer or a write leaves the process.
pub trait View {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>>;

    /// At most `limit` rows with `from <= key < until`, in order of their keys.
    fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row>;
}

/// The new value of a key, or `None` for a removal.
type Changed = Option<Vec<u8>>;

/// What a command changes, in order of table and key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Writes(BTreeMap<(Table, Vec<u8>), Changed>);

impl Writes {
    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], Option<&[u8]>)> {
        self.0.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_deref()))
    }
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many keys change.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A view with changes on top of another view, which stays as it is. Stackable.
pub struct Overlay<'a> {
    base: &'a dyn View,
    writes: Writes,
}

impl<'a> Overlay<'a> {
    /// Nothing changed yet.
    pub fn new(base: &'a dyn View) -> Self {
        Self { base, writes: Writes::default() }
    }
    /// Sets the value of a key.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.writes.0.insert((table, key), Some(value));
    }
    /// Removes a key.
    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.writes.0.insert((table, key), None);
    }
    /// Takes over the changes of an overlay that stood on this one.
    pub fn absorb(&mut self, writes: Writes) {
        self.writes.0.extend(writes.0);
    }
    /// The changes so far.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }
    /// The changes, for the view below.
    pub fn into_writes(self) -> Writes {
        self.writes
    }

    fn changes(
        &self,
        table: Table,
        from: &[u8],
        until: &[u8],
    ) -> Option<btree_map::Range<'_, (Table, Vec<u8>), Changed>> {
        // BTreeMap::range panics on a range that ends before it begins.
        (from < until).then(|| self.writes.0.range((table, from.to_vec())..(table, until.to_vec())))
    }
}

impl View for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        match self.writes.0.get(&(table, key.to_vec())) {
            Some(change) => change.clone(),
            None => self.base.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row> {
        let Some(changes) = self.changes(table, from, until) else { return Vec::new() };
        if limit == 0 {
            return Vec::new();
        }
        // A removal hides one row below at most, so this many rows below are enough.
        let removed = changes.clone().filter(|(_, change)| change.is_none()).count();
        let below = self.base.scan(table, from, until, limit.saturating_add(removed));
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = below.into_iter().collect();
        for ((_, key), change) in changes {
            match change {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        merged.into_iter().take(limit).collect()
    }
}

/// A state in memory, for tests and simulation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Memory {
    /// Makes the changes.
    pub fn write(&mut self, writes: Writes) {
        for (key, change) in writes.0 {
            match change {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }
}

impl View for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(&(table, key.to_vec())).cloned()
    }

    fn scan(&self, table: Table, from: &[u8], until: &[u8], limit: usize) -> Vec<Row> {
        if from >= until {
            return Vec::new();
        }
        let range = self.0.range((table, from.to_vec())..(table, until.to_vec()));
        range.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = (u8, Option<u8>)> {
        (0..12_u8, proptest::option::of(any::<u8>()))
    }

    fn changes(overlay: &mut Overlay<'_>, changes: &[(u8, Option<u8>)]) {
        for (key, value) in changes {
            match value {
                Some(value) => overlay.put(Table::Name, vec![*key], vec![*value]),
                None => overlay.remove(Table::Name, vec![*key]),
            }
        }
    }

    proptest! {
        #![proptest_config(crate::state::tests::config(200))]

        #[test]
        fn a_stack_of_overlays_reads_as_if_it_were_written(
            first in proptest::collection::vec(change(), 0..20),
            second in proptest::collection::vec(change(), 0..20),
            from in 0..13_u8, until in 0..13_u8, limit in 0..6_usize,
        ) {
            let mut memory = Memory::default();
            let mut lower = Overlay::new(&memory);
            changes(&mut lower, &first);
            let mut upper = Overlay::new(&lower);
            changes(&mut upper, &second);
            let seen = upper.scan(Table::Name, &[from], &[until], limit);
            let got: Vec<_> = (0..12).map(|key| upper.get(Table::Name, &[key])).collect();
            let writes = upper.into_writes();
            lower.absorb(writes);
            let writes = lower.into_writes();
            memory.write(writes);
            prop_assert_eq!(seen, memory.scan(Table::Name, &[from], &[until], limit));
            prop_assert_eq!(got, (0..12).map(|key| memory.get(Table::Name, &[key])).collect::<Vec<_>>());
        }
    }
}
