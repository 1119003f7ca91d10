//! Chunk files that are open: the most recently used ones stay so, up to a bound.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::{File, Files, Open};

/// A bounded set of open files.
///
/// Closing a file that has unsynced bytes loses no error: the kernel tells a failed writeback to the next one who opens
/// and syncs the file, if nobody has been told.
pub(crate) struct OpenFiles {
    files: Arc<dyn Files>,
    limit: usize,
    /// Held while a file is opened, so that nobody opens it twice.
    open: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    by_path: BTreeMap<PathBuf, (Arc<dyn File>, u64)>,
    by_use: BTreeMap<u64, PathBuf>,
    uses: u64,
}

impl OpenFiles {
    pub(crate) fn new(files: Arc<dyn Files>, limit: usize) -> Self {
        Self { files, limit: limit.max(1), open: Mutex::new(Opened::default()) }
    }

    /// The file with this path, opened if it is not open.
    pub(crate) fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut open = self.open.lock();
        open.uses += 1;
        let now = open.uses;
        if let Some((file, used)) = open.by_path.get_mut(path) {
            let (file, before) = (file.clone(), std::mem::replace(used, now));
            open.by_use.remove(&before);
            open.by_use.insert(now, path.to_owned());
            return Ok(file);
        }
        let file = self.files.open(path, how)?;
        if open.by_path.len() >= self.limit
            && let Some((_, oldest)) = open.by_use.pop_first()
        {
            open.by_path.remove(&oldest);
        }
        open.by_path.insert(path.to_owned(), (file.clone(), now));
        open.by_use.insert(now, path.to_owned());
        Ok(file)
    }

    /// Takes a file's name away.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.open.lock().forget(path);
        self.files.remove(path)
    }

    /// Gives a file the name of another one. Who has that one open keeps it.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // Held, so that nobody opens a name before it has its new meaning.
        let mut open = self.open.lock();
        self.files.rename(from, to)?;
        open.forget(from);
        open.forget(to);
        Ok(())
    }
}

impl Opened {
    fn forget(&mut self, path: &Path) {
        if let Some((_, used)) = self.by_path.remove(path) {
            self.by_use.remove(&used);
        }
    }
}
