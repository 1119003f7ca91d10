//! The namespace as a value: what every operation does to it and answers. The checkers' own model, not the masters' code.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What is asked. Paths begin with a slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Call {
    Mkdir {
        path: String,
    },
    Create {
        path: String,
    },
    Delete {
        path: String,
        recursive: bool,
    },
    Rename {
        source: String,
        target: String,
        replace: bool,
    },
    Snapshot {
        source: String,
        target: String,
    },
    /// Takes what has this id out of the trash.
    Undelete {
        id: u64,
        /// Where the caller has seen it.
        source: String,
        target: String,
        /// Whether its time in the trash may be over, on the clock of some master: then it may be refused in any state.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        expires: bool,
    },
    Stat {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stale: Option<Stale>,
    },
    List {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stale: Option<Stale>,
    },
}

/// What a lookup allows that need not be the newest (promise P8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stale {
    /// How old the state may be.
    pub(crate) bound_ms: u64,
    /// The newest index that this session has seen.
    pub(crate) floor: u64,
    /// The number of the shadow that was asked, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shadow: Option<u32>,
}

impl Call {
    pub(crate) fn changes(&self) -> bool {
        !matches!(self, Self::Stat { .. } | Self::List { .. })
    }

    /// What is allowed of a lookup that need not be the newest.
    pub(crate) fn stale(&self) -> Option<Stale> {
        match self {
            Self::Stat { stale, .. } | Self::List { stale, .. } => *stale,
            Self::Mkdir { .. }
            | Self::Create { .. }
            | Self::Delete { .. }
            | Self::Rename { .. }
            | Self::Snapshot { .. }
            | Self::Undelete { .. } => None,
        }
    }

    /// The paths it names.
    pub(crate) fn paths(&self) -> (&str, Option<&str>) {
        match self {
            Self::Mkdir { path }
            | Self::Create { path }
            | Self::Delete { path, .. }
            | Self::Stat { path, .. }
            | Self::List { path, .. } => (path, None),
            Self::Rename { source, target, .. }
            | Self::Snapshot { source, target }
            | Self::Undelete { source, target, .. } => (source, Some(target)),
        }
    }
}

/// What is answered, and the index of the log at which it was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) rev: u64,
    /// The entry made or found, or those listed, by name.
    pub(crate) entries: Vec<Entry>,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) directory: bool,
}

/// The id of an entry that nobody has been told yet: any answer fits, and settles it.
const UNTOLD: u64 = 0;

/// Paths, each with its id and whether it is a directory.
type Paths = BTreeMap<String, (u64, bool)>;

/// Every path, and what was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tree(Paths, Trash);

/// What was deleted, by id: paths below it, itself as the empty one. What has an id that nobody was told can't be asked for
/// again. Shared, because it grows and seldom changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Trash(Arc<BTreeMap<u64, Paths>>);

impl Hash for Trash {
    /// The ids will do: states are compared in full.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        self.0.keys().for_each(|id| id.hash(state));
    }
}

/// An operation, or its answer, does not fit.
#[derive(Debug)]
pub(crate) struct Refused;

impl Tree {
    fn find(&self, path: &str) -> Result<(u64, bool), Refused> {
        if path == "/" { Ok((UNTOLD, true)) } else { self.0.get(path).copied().ok_or(Refused) }
    }

    fn parent(path: &str) -> &str {
        match path.rfind('/') {
            Some(0) | None => "/",
            Some(at) => &path[..at],
        }
    }

    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a String, &'a (u64, bool))> {
        let prefix = if path == "/" { path.to_owned() } else { format!("{path}/") };
        let end = prefix.clone();
        self.0.range(prefix..).take_while(move |(name, _)| name.starts_with(&end))
    }

    /// Names, ids and kinds of what lies directly in a directory.
    fn children<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, u64, bool)> {
        let start = if path == "/" { 1 } else { path.len() + 1 };
        self.below(path)
            .filter(move |(name, _)| !name[start..].contains('/'))
            .map(move |(name, (id, directory))| (&name[start..], *id, *directory))
    }

    /// Whether there is room for something at a path.
    fn can_add(&self, path: &str) -> Result<(), Refused> {
        let (_, is_directory) = self.find(Self::parent(path))?;
        if is_directory && !self.0.contains_key(path) { Ok(()) } else { Err(Refused) }
    }

    fn add(&mut self, path: &str, id: u64, directory: bool) -> Result<(), Refused> {
        self.can_add(path)?;
        self.0.insert(path.to_owned(), (id, directory));
        Ok(())
    }

    fn take(&mut self, path: &str) -> Vec<(String, (u64, bool))> {
        let mut paths: Vec<String> = self.below(path).map(|(name, _)| name.clone()).collect();
        paths.push(path.to_owned());
        paths.into_iter().filter_map(|path| self.0.remove_entry(&path)).collect()
    }

    fn can_rename(&self, source: &str, target: &str, replace: bool) -> Result<(), Refused> {
        let (_, source_directory) = self.find(source)?;
        let (_, parent_directory) = self.find(Self::parent(target))?;
        // As rename(2): to itself is nothing, below itself is refused.
        if source == target {
            return Ok(());
        }
        let inside = target.strip_prefix(source).is_some_and(|rest| rest.starts_with('/'));
        // A file makes way for a file, an empty directory for a directory.
        let in_the_way = self.0.get(target).is_some_and(|(_, target_directory)| {
            !replace || *target_directory != source_directory || self.below(target).next().is_some()
        });
        if !parent_directory || inside || in_the_way { Err(Refused) } else { Ok(()) }
    }

    fn rename(&mut self, source: &str, target: &str, replace: bool) -> Result<(), Refused> {
        self.can_rename(source, target, replace)?;
        if source == target {
            return Ok(());
        }
        if self.0.contains_key(target) {
            self.bury(target);
        }
        for (path, entry) in self.take(source) {
            self.0.insert(format!("{target}{}", &path[source.len()..]), entry);
        }
        Ok(())
    }

    /// The copy's root has the id that was told; what is below it has ids that only lookups tell.
    fn snapshot(&mut self, source: &str, target: &str, id: u64) -> Result<(), Refused> {
        let (_, directory) = self.find(source)?;
        let copies: Vec<_> = self
            .below(source)
            .map(|(path, (_, directory))| (format!("{target}{}", &path[source.len()..]), *directory))
            .collect();
        self.add(target, id, directory)?;
        self.0.extend(copies.into_iter().map(|(path, directory)| (path, (UNTOLD, directory))));
        Ok(())
    }

    fn can_delete(&self, path: &str, recursive: bool) -> Result<(), Refused> {
        let (_, directory) = self.find(path)?;
        let is_full = directory && !recursive && self.below(path).next().is_some();
        if path == "/" || is_full { Err(Refused) } else { Ok(()) }
    }

    fn delete(&mut self, path: &str, recursive: bool) -> Result<(), Refused> {
        self.can_delete(path, recursive)?;
        self.bury(path);
        Ok(())
    }

    /// Moves what is at a path, with all that is below, into the trash.
    fn bury(&mut self, path: &str) {
        let id = self.0.get(path).map_or(UNTOLD, |(id, _)| *id);
        let taken = self.take(path);
        if id != UNTOLD {
            let paths = taken.into_iter().map(|(name, entry)| (name[path.len()..].to_owned(), entry));
            Arc::make_mut(&mut self.1.0).insert(id, paths.collect());
        }
    }

    /// Whether what has this id in the trash is a directory.
    fn trashed(&self, id: u64) -> Result<bool, Refused> {
        let (_, directory) = *self.1.0.get(&id).and_then(|paths| paths.get("")).ok_or(Refused)?;
        Ok(directory)
    }

    fn undelete(&mut self, id: u64, target: &str, told: Option<&Entry>) -> Result<(), Refused> {
        let directory = self.trashed(id)?;
        if told.is_some_and(|told| told.id != id || told.directory != directory) {
            return Err(Refused);
        }
        self.add(target, id, directory)?;
        let paths = Arc::make_mut(&mut self.1.0).remove(&id).unwrap_or_default();
        self.0.extend(paths.into_iter().map(|(name, entry)| (format!("{target}{name}"), entry)));
        Ok(())
    }

    /// Whether anything that is there or was deleted has this id.
    fn has(&self, id: u64) -> bool {
        let mut all = self.0.values().chain(self.1.0.values().flat_map(BTreeMap::values));
        all.any(|(other, _)| *other == id)
    }

    /// Whether a lookup may answer this; the paths whose ids it tells for the first time, which are nobody else's.
    pub(crate) fn look(&self, call: &Call, reply: Option<&Reply>) -> Result<Vec<(String, u64)>, Refused> {
        let mut learnt = Vec::new();
        let mut fits = |path: String, told: &Entry, id: u64, directory: bool| {
            if id == UNTOLD && told.id != UNTOLD && path != "/" {
                learnt.push((path, told.id));
            }
            told.directory == directory && (told.id == id || id == UNTOLD)
        };
        let good = match call {
            Call::Stat { path, .. } => {
                let (id, directory) = self.find(path)?;
                let told = reply.and_then(|reply| reply.entries.first());
                told.is_none_or(|told| fits(path.clone(), told, id, directory))
            }
            Call::List { path, .. } => {
                let (_, directory) = self.find(path)?;
                let mut children = self.children(path);
                let here = path.trim_end_matches('/');
                let same = |reply: &Reply| {
                    reply.entries.iter().all(|told| {
                        children.next().is_some_and(|(name, id, directory)| {
                            name == told.name && fits(format!("{here}/{name}"), told, id, directory)
                        })
                    }) && children.next().is_none()
                };
                directory && reply.is_none_or(same)
            }
            Call::Mkdir { .. }
            | Call::Create { .. }
            | Call::Delete { .. }
            | Call::Rename { .. }
            | Call::Snapshot { .. }
            | Call::Undelete { .. } => false,
        };
        let ids: BTreeSet<u64> = learnt.iter().map(|(_, id)| *id).collect();
        let new = ids.len() == learnt.len() && !ids.iter().any(|id| self.has(*id));
        if good && new { Ok(learnt) } else { Err(Refused) }
    }

    /// Applies an operation; `reply` is `None` if nobody knows what it answered.
    pub(crate) fn apply(&mut self, call: &Call, reply: Option<&Reply>) -> Result<(), Refused> {
        let told = reply.and_then(|reply| reply.entries.first());
        let id = told.map_or(UNTOLD, |entry| entry.id);
        let made =
            |directory| told.is_none_or(|told| told.directory == directory).then_some(()).ok_or(Refused);
        match call {
            Call::Mkdir { path } => made(true).and_then(|()| self.add(path, id, true)),
            Call::Create { path } => made(false).and_then(|()| self.add(path, id, false)),
            Call::Delete { path, recursive } => self.delete(path, *recursive),
            Call::Rename { source, target, replace } => self.rename(source, target, *replace),
            Call::Snapshot { source, target } => self.snapshot(source, target, id),
            Call::Undelete { id, target, .. } => self.undelete(*id, target, told),
            Call::Stat { .. } | Call::List { .. } => {
                for (path, id) in self.look(call, reply)? {
                    if let Some(entry) = self.0.get_mut(&path) {
                        entry.0 = id;
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether an operation would be refused. Asked of every refusal in many states: nothing is copied for it.
    pub(crate) fn refuses(&self, call: &Call) -> bool {
        let possible = match call {
            Call::Undelete { expires: true, .. } => Err(Refused),
            Call::Mkdir { path } | Call::Create { path } => self.can_add(path),
            Call::Delete { path, recursive } => self.can_delete(path, *recursive),
            Call::Rename { source, target, replace } => self.can_rename(source, target, *replace),
            Call::Snapshot { source, target } => self.find(source).and_then(|_| self.can_add(target)),
            Call::Undelete { id, target, expires: false, .. } => {
                self.trashed(*id).and_then(|_| self.can_add(target))
            }
            Call::Stat { .. } | Call::List { .. } => self.look(call, None).map(drop),
        };
        possible.is_err()
    }
}

#[cfg(test)]
impl Tree {
    /// What a lookup finds.
    pub(crate) fn answer(&self, call: &Call) -> Option<Vec<Entry>> {
        self.look(call, None).ok()?;
        let path = call.paths().0;
        if matches!(call, Call::Stat { .. }) {
            let (id, directory) = self.find(path).ok()?;
            return Some(vec![Entry { name: String::new(), id, directory }]);
        }
        let children = self.children(path);
        Some(children.map(|(name, id, directory)| Entry { name: name.to_owned(), id, directory }).collect())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn path(dice: &mut StdRng) -> String {
        if dice.random_range(0..30) == 0 {
            return "/".to_owned();
        }
        let depth = dice.random_range(1..=3);
        (0..depth).map(|_| ["/a", "/b", "/ab"].choose(dice).copied().unwrap()).collect()
    }

    fn draw(dice: &mut StdRng) -> Call {
        let (path, target) = (path(dice), path(dice));
        match dice.random_range(0..8) {
            0..2 => Call::Mkdir { path },
            2 => Call::Create { path },
            3 => Call::Delete { path, recursive: dice.random() },
            4 | 5 => Call::Rename { source: path, target, replace: dice.random() },
            6 => Call::Snapshot { source: path, target },
            _ => Call::Undelete { id: dice.random_range(1..40), source: path, target, expires: false },
        }
    }

    #[test]
    fn what_would_be_refused_is_what_is() {
        let (mut dice, mut refused) = (StdRng::seed_from_u64(1), 0);
        for _ in 0..200 {
            let mut tree = Tree::default();
            for id in 1..100 {
                let call = draw(&mut dice);
                let directory = matches!(call, Call::Mkdir { .. });
                let would = tree.refuses(&call);
                let is = tree.clone().apply(&call, None).is_err();
                assert_eq!(would, is, "{call:?} in {tree:?}");
                refused += u32::from(is);
                // With the id that what is made has, so that it can come back.
                let reply = Reply { rev: 1, entries: vec![Entry { name: String::new(), id, directory }] };
                let told = matches!(call, Call::Mkdir { .. } | Call::Create { .. }).then_some(&reply);
                tree.apply(&call, told).ok();
            }
        }
        assert!((5_000..18_000).contains(&refused), "{refused} of 19800");
    }
}
