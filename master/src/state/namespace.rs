//! Files and directories: a lookup table of (directory, name) to entry (GFS §4.1).
//!
//! Differs from GFS §4.1: no path locks here, for commands are applied one by one; the leader's locks only
//! order operations of several commands. Directories have ids, so that moving one costs the same whatever is
//! below it (docs/decisions/0007). For the same reason nobody looks how deep a moved tree is: what comes to lie
//! deeper than a path can say is there, but can't be named until it is moved up again.

use gfs_proto::id::EntryId;
use gfs_proto::path::FilePath;
use gfs_proto::size::REPLICATION_MAX;

use crate::state::build;
use crate::state::change::Change;
use crate::state::format::{Entry, EntryKind, Place};
use crate::state::read;
use crate::state::reply::{Applied, Limit, Rejected};
use crate::state::trash;

/// A path that has a name, with the entries on the way to it.
pub(crate) struct Spot<'a> {
    /// From the root to the directory that holds, or would hold, the name.
    way: Vec<Entry>,
    /// That directory.
    pub(crate) parent: EntryId,
    /// The last name of the path.
    pub(crate) name: &'a str,
    /// What has the name now.
    pub(crate) entry: Option<Entry>,
}

impl<'a> Spot<'a> {
    /// Finds the spot of a path, whose directory must be there.
    pub(crate) fn find(change: &Change<'_>, path: &'a FilePath) -> Result<Self, Rejected> {
        let (parent_path, name) = path.split().ok_or(Rejected::Root {})?;
        let way = read::resolve(change.view(), &parent_path)?;
        let parent = way.last().ok_or(Rejected::Damaged {})?;
        if parent.is_file() {
            return Err(Rejected::NotADirectory { path: parent_path });
        }
        let parent = parent.id;
        let entry = match read::child(change.view(), parent, name)? {
            Some(id) => Some(read::entry(change.view(), id).map_err(|_| Rejected::Damaged {})?),
            None => None,
        };
        Ok(Self { way, parent, name, entry })
    }

    /// Finds the spot of a path whose name must be free.
    pub(crate) fn find_free(change: &Change<'_>, path: &'a FilePath) -> Result<Self, Rejected> {
        // The root has no name, but it is there.
        if path.is_root() {
            return Err(Rejected::AlreadyExists { path: path.clone() });
        }
        let spot = Self::find(change, path)?;
        match spot.entry {
            Some(_) => Err(Rejected::AlreadyExists { path: path.clone() }),
            None => Ok(spot),
        }
    }
}

/// Makes the root directory.
pub(crate) fn make_root(change: &mut Change<'_>) {
    let now = change.now();
    change.put_entry(&Entry {
        id: EntryId::ROOT,
        kind: EntryKind::Directory {},
        place: Place::Root {},
        created_at: now,
        modified_at: now,
        replication: 0,
        chunk_count: 0,
    });
}

/// Makes a directory.
pub(crate) fn mkdir(change: &mut Change<'_>, path: &FilePath, parents: bool) -> Result<Applied, Rejected> {
    if parents {
        return mkdir_all(change, path);
    }
    let spot = Spot::find_free(change, path)?;
    let entry = make(change, spot.parent, spot.name, EntryKind::Directory {}, 0)?;
    Ok(Applied::Entry { entry })
}

/// Makes a directory and the missing ones above it; those that are there are success.
fn mkdir_all(change: &mut Change<'_>, path: &FilePath) -> Result<Applied, Rejected> {
    let mut at = read::stat(change.view(), &FilePath::root())?;
    let mut so_far = FilePath::root();
    for name in path.names() {
        so_far = so_far.join(name).map_err(|_| Rejected::Damaged {})?;
        at = match read::child(change.view(), at.id, name)? {
            None => make(change, at.id, name, EntryKind::Directory {}, 0)?,
            Some(id) => read::entry(change.view(), id).map_err(|_| Rejected::Damaged {})?,
        };
        if at.is_file() && so_far == *path {
            return Err(Rejected::AlreadyExists { path: so_far });
        }
        if at.is_file() {
            return Err(Rejected::NotADirectory { path: so_far });
        }
    }
    Ok(Applied::Entry { entry: at })
}

/// Makes an empty file.
pub(crate) fn create(
    change: &mut Change<'_>,
    path: &FilePath,
    replication: u32,
) -> Result<Applied, Rejected> {
    if replication > REPLICATION_MAX {
        let (size, limit) = (replication.into(), REPLICATION_MAX.into());
        return Err(Rejected::TooLarge { what: Limit::Replication {}, size, limit });
    }
    let replication = if replication == 0 { read::settings(change.view())?.replication } else { replication };
    let spot = Spot::find_free(change, path)?;
    let entry = make(change, spot.parent, spot.name, EntryKind::File {}, replication)?;
    Ok(Applied::Entry { entry })
}

/// Makes an entry under a free name. Its id is new, so nothing that still speaks of a deleted entry of this
/// name can mean it (traps T17).
fn make(
    change: &mut Change<'_>,
    parent: EntryId,
    name: &str,
    kind: EntryKind,
    replication: u32,
) -> Result<Entry, Rejected> {
    build::check_names(change.view(), parent)?;
    let id = change.draw_entry(&kind)?;
    let now = change.now();
    let place = Place::In { parent, name: name.to_owned() };
    let mut entry = Entry { id, kind, place, created_at: now, modified_at: now, replication, chunk_count: 0 };
    change.put_in(&mut entry, parent, name);
    Ok(entry)
}

/// Moves an entry into the trash, with all that is below it.
pub(crate) fn delete(change: &mut Change<'_>, path: &FilePath, recursive: bool) -> Result<Applied, Rejected> {
    let spot = Spot::find(change, path)?;
    let entry = spot.entry.ok_or_else(|| Rejected::NotFound { path: path.clone() })?;
    if !recursive && !entry.is_file() && !read::is_empty(change.view(), entry.id) {
        return Err(Rejected::NotEmpty { path: path.clone() });
    }
    build::check_names(change.view(), spot.parent)?;
    trash::bury(change, entry, path)
}

/// Moves an entry to another directory or name, with all that is below it.
pub(crate) fn rename(
    change: &mut Change<'_>,
    source: &FilePath,
    target: &FilePath,
    replace: bool,
) -> Result<Applied, Rejected> {
    let from = Spot::find(change, source)?;
    let mut entry = from.entry.ok_or_else(|| Rejected::NotFound { path: source.clone() })?;
    let to = Spot::find(change, target)?;
    // Whoever moves a directory below itself cuts it off from the root for ever (traps T45).
    if to.way.iter().any(|above| above.id == entry.id) {
        return Err(Rejected::IntoItself { source: source.clone(), target: target.clone() });
    }
    if to.entry.as_ref().is_some_and(|old| old.id == entry.id) {
        return Ok(Applied::Done {});
    }
    build::check_names(change.view(), from.parent)?;
    build::check_names(change.view(), to.parent)?;
    let replaced = match to.entry {
        Some(_) if !replace => return Err(Rejected::AlreadyExists { path: target.clone() }),
        Some(old) => make_way(change, old, &entry, target)?,
        None => Applied::Done {},
    };
    change.take_out(&entry);
    change.put_in(&mut entry, to.parent, to.name);
    Ok(replaced)
}

/// Makes the target of a rename free: a file for a file, an empty directory for a directory. Tells what went.
fn make_way(
    change: &mut Change<'_>,
    old: Entry,
    new: &Entry,
    target: &FilePath,
) -> Result<Applied, Rejected> {
    match (old.is_file(), new.is_file()) {
        (true, false) => return Err(Rejected::NotADirectory { path: target.clone() }),
        (false, true) => return Err(Rejected::IsADirectory { path: target.clone() }),
        (false, false) if !read::is_empty(change.view(), old.id) => {
            return Err(Rejected::NotEmpty { path: target.clone() });
        }
        (true, true) | (false, false) => {}
    }
    trash::bury(change, old, target)
}
