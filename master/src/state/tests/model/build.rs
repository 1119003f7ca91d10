//! The snapshot of a large tree in the naive model: nothing happens before the last step, and then all at once.

use std::collections::BTreeMap;

use gfs_proto::id::{EntryId, RequestId};
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;

use super::{Answer, Model};
use crate::state::{Applied, Rejected};

/// What is being built.
#[derive(Clone, Debug)]
pub(in super::super) struct ModelBuild {
    pub(in super::super) root: EntryId,
    pub(in super::super) source: EntryId,
    pub(in super::super) source_path: FilePath,
    pub(in super::super) target: FilePath,
    pub(in super::super) request: RequestId,
    pub(in super::super) began_at: u64,
    /// What was below the source when it began: path, id, and for a file its chunks.
    pub(in super::super) still: Still,
}

/// A tree by its paths below its root.
pub(in super::super) type Still = BTreeMap<String, (EntryId, Vec<u64>)>;

impl Model {
    /// What is below an entry that has a path.
    pub(in super::super) fn tree_of(&self, id: EntryId) -> Option<Still> {
        let path = self.tree.iter().find(|(_, node)| node.entry.id == id).map(|(path, _)| path.clone())?;
        let below = |key: &String| key.strip_prefix(&path).map(str::to_owned);
        let inside = |rest: &String| rest.is_empty() || rest.starts_with('/');
        let nodes = self.tree.iter().filter_map(|(key, node)| Some((below(key).filter(inside)?, node)));
        Some(nodes.map(|(rest, node)| (rest, (node.entry.id, node.chunks.clone()))).collect())
    }
    /// Whether somebody sees this entry, if only in the trash.
    pub(in super::super) fn knows(&self, entry: EntryId) -> bool {
        entry == EntryId::ROOT || self.any(|node| node.entry.id == entry)
    }
    /// Why nothing is begun, if that is so.
    pub(in super::super) fn may_begin(&self, source: &FilePath, target: &FilePath) -> Result<(), Rejected> {
        let is_file = !source.is_root() && self.find(source)?.entry.is_file();
        if !is_file && source != target && target.is_within(source) {
            return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
        }
        self.free(target)
    }
    /// What the last step answers, when everything is copied.
    pub(in super::super) fn end(&mut self, build: &ModelBuild, id_of: impl Fn(&str) -> EntryId) -> Answer {
        let missing = Rejected::NotFound { path: build.source_path.clone() };
        if self.find(&build.source_path).map(|node| node.entry.id) != Ok(build.source) {
            return Err(missing);
        }
        self.free(&build.target)?;
        let (source, target) = (build.source_path.as_str(), &build.target);
        for rest in build.still.keys() {
            let mut node = self.tree[&format!("{source}{rest}")].clone();
            let copy = FilePath::parse(&format!("{target}{rest}")).unwrap();
            node.entry.id = id_of(copy.as_str());
            node.entry.created_at = UnixMs::from_raw(build.began_at);
            node.entry.place = self.place(&copy);
            self.tree.insert(copy.to_string(), node);
        }
        Ok(Applied::Entry { entry: self.tree[target.as_str()].entry.clone() })
    }
    /// Whether a request has no answer yet and may still get one.
    pub(in super::super) fn is_open(&self, request: RequestId) -> bool {
        self.sessions.get(&request.client.raw()).is_some_and(|session| {
            request.sequence >= session.first_unacked && !session.replies.contains_key(&request.sequence)
        })
    }
    /// Keeps an answer for a request that is still open.
    pub(in super::super) fn answer(&mut self, request: RequestId, tag: u8, answer: Answer) {
        if self.is_open(request)
            && let Some(session) = self.sessions.get_mut(&request.client.raw())
        {
            session.replies.insert(request.sequence, (tag, self.index, answer));
        }
    }
}
