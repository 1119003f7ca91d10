//! Snapshots in the naive model: references are counted whenever they are wanted.

use std::collections::BTreeMap;

use gfs_proto::id::{ChunkHandle, ChunkVersion, EntryId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use super::{Answer, Model, ModelChunk, Node, has_twice, known, raw};
use crate::state::reply::GrantRule;
use crate::state::{Applied, Command, Rejected};

impl Model {
    /// How many files and copies have a chunk.
    pub(in super::super) fn references(&self, chunk: u64) -> usize {
        let nodes = self.tree.values().chain(self.trash.values().flat_map(BTreeMap::values));
        let files = nodes.flat_map(|node| &node.chunks).filter(|one| **one == chunk).count();
        let staged = self.staged.iter().filter(|one| **one == chunk).count();
        files + staged + self.origins.values().filter(|(old, _)| *old == chunk).count()
    }
    /// Chunks that nobody has are gone, and what was known of them.
    pub(super) fn drop_unused(&mut self) {
        loop {
            let used = |chunk: &u64| self.references(*chunk) > 0;
            let unused: Vec<u64> = self.chunks.keys().copied().filter(|chunk| !used(chunk)).collect();
            if unused.is_empty() {
                return;
            }
            for chunk in unused {
                self.chunks.remove(&chunk);
                self.origins.remove(&chunk);
            }
        }
    }
    fn settled(&self, number: u64) -> Result<(), Rejected> {
        let chunk = &self.chunks[&number];
        let is_settled =
            chunk.lease.is_none() && chunk.pending.is_none() && !self.origins.contains_key(&number);
        if is_settled { Ok(()) } else { Err(Rejected::Unsettled { handle: ChunkHandle::from_raw(number) }) }
    }

    pub(super) fn snapshot(&mut self, source: &FilePath, target: &FilePath) -> Answer {
        let is_file = !source.is_root() && self.find(source)?.entry.is_file();
        if !is_file && source != target && target.is_within(source) {
            return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
        }
        self.free(target)?;
        let mut paths = vec![source.to_string()];
        let mut at = 0;
        while at < paths.len() {
            let prefix = format!("{}/", paths[at]);
            let is_child = |key: &&String| key.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/'));
            let children: Vec<String> = self.tree.keys().filter(is_child).cloned().collect();
            paths.extend(children);
            at += 1;
        }
        for path in &paths {
            for chunk in &self.tree[path].chunks {
                self.settled(*chunk)?;
            }
        }
        for path in &paths {
            let mut node: Node = self.tree[path].clone();
            node.entry.id = EntryId::from_raw(self.next_entry);
            self.next_entry += 1;
            node.entry.created_at = UnixMs::from_raw(self.now);
            let copy = FilePath::parse(&format!("{target}{}", &path[source.as_str().len()..])).unwrap();
            node.entry.place = self.place(&copy);
            self.tree.insert(copy.to_string(), node);
        }
        Ok(Applied::Entry { entry: self.tree[target.as_str()].entry.clone() })
    }

    pub(super) fn copy(&mut self, command: &Command) -> Answer {
        let Command::CopyChunk { file, index, old, version, copy, members } = command else {
            panic!("not a copy")
        };
        let gone = Rejected::NoSuchEntry { entry: *file };
        if *file == EntryId::ROOT || self.any(|node| node.entry.id == *file && !node.entry.is_file()) {
            return Err(Rejected::NotAFile { entry: *file });
        }
        let node = self.tree.iter().find(|(_, node)| node.entry.id == *file);
        let (path, node) = node.map(|(path, node)| (path.clone(), node.clone())).ok_or(gone)?;
        let found = u32::try_from(node.chunks.len()).unwrap();
        let Some(stands) = node.chunks.get(index.raw() as usize) else {
            return Err(Rejected::BadChunkCount { expected: index.raw(), found });
        };
        if *stands != old.raw() {
            return Err(Rejected::NoSuchChunk { handle: *old });
        }
        let shared = self.chunk(*old, *version)?.clone();
        self.settled(old.raw())?;
        let is_new = copy.raw() < self.next_chunk && !self.chunks.contains_key(&copy.raw());
        if self.references(old.raw()) < 2 || !is_new {
            return Err(Rejected::BadGrant { rule: GrantRule::Copy {} });
        }
        known(members)?;
        let members = raw(members);
        assert!(!has_twice(&members), "known() has looked");
        if members.iter().any(|server| !shared.members.contains(server)) {
            return Err(Rejected::BadGrant { rule: GrantRule::BaseConfirmed {} });
        }
        let made = ModelChunk { version: 1, confirmed: 1, members, ..ModelChunk::default() };
        self.chunks.insert(copy.raw(), made);
        self.origins.insert(copy.raw(), (old.raw(), ChunkVersion::raw(*version)));
        self.tree.get_mut(&path).unwrap().chunks[index.raw() as usize] = copy.raw();
        Ok(Applied::Done {})
    }
}
