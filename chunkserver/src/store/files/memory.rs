//! Files in memory that can lose power: what was not synced is then lost or torn, sector by sector, as a seed decides.
//! For tests and simulation.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gfs_proto::random::Random;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{File, Files, Lock, Open, Space};
use node::{Change, Node};

/// A machine's files; clones are the same machine. Names are synced by directory, bytes by file, and neither brings the other
/// along.
#[derive(Clone)]
pub struct MemoryFiles {
    machine: Arc<Mutex<Machine>>,
}

#[derive(Clone)]
struct Machine {
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    names: BTreeMap<PathBuf, u64>,
    names_durable: BTreeMap<PathBuf, u64>,
    /// Changes of names since they were synced, in order.
    name_changes: Vec<(PathBuf, Option<u64>)>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    boot: u64,
    /// Files that were opened by an earlier process don't work any more.
    process: u64,
    capacity_bytes: u64,
    /// Most of it that may be used, which nobody is told.
    quota_bytes: u64,
    /// Changes until the process dies.
    fuel: Option<u64>,
    syncs_fail: bool,
    /// Which file's next sync fails, by a part of its path.
    sync_fails_once: Option<String>,
    space_fails: bool,
    /// Which file can't be opened the next time, by a part of its path, and why.
    refused: Option<(String, Errno)>,
    /// The same for reading.
    unreadable: Option<(String, Errno)>,
}

impl MemoryFiles {
    /// An empty machine with this much room.
    pub fn new(capacity_bytes: u64) -> Self {
        let machine = Machine {
            nodes: BTreeMap::new(),
            next_node: 1,
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            name_changes: Vec::new(),
            directories: BTreeSet::new(),
            locks: BTreeSet::new(),
            boot: 1,
            process: 1,
            capacity_bytes,
            quota_bytes: u64::MAX,
            fuel: None,
            syncs_fail: false,
            sync_fails_once: None,
            space_fails: false,
            refused: None,
            unreadable: None,
        };
        Self { machine: Arc::new(Mutex::new(machine)) }
    }

    /// Another machine, with the same files.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { machine: Arc::new(Mutex::new(self.machine.lock().clone())) }
    }

    /// Lets the process die at the change after so many more; everything fails from then on.
    pub fn die_after(&self, changes: u64) {
        self.machine.lock().fuel = Some(changes);
    }
    /// Whether the process has died.
    pub fn is_dead(&self) -> bool {
        self.machine.lock().fuel == Some(0)
    }
    /// Makes every sync fail, or work again.
    pub fn fail_syncs(&self, fail: bool) {
        self.machine.lock().syncs_fail = fail;
    }
    /// Makes the next sync of a file with this in its path fail, and only that, as kernels do: what was not on the disk can
    /// still be read, counts as written, and no later sync brings it there.
    pub fn fail_sync_once(&self, part: &str) {
        self.machine.lock().sync_fails_once = Some(part.to_owned());
    }
    /// Makes every question for room fail, or work again.
    pub fn fail_space(&self, fail: bool) {
        self.machine.lock().space_fails = fail;
    }
    /// Refuses once to open a file with this in its path.
    pub fn refuse_open(&self, part: &str, error: Errno) {
        self.machine.lock().refused = Some((part.to_owned(), error));
    }
    /// Refuses once to read a file with this in its path.
    pub fn refuse_read(&self, part: &str, error: Errno) {
        self.machine.lock().unreadable = Some((part.to_owned(), error));
    }
    /// Gives the machine another size.
    pub fn resize(&self, capacity_bytes: u64) {
        self.machine.lock().capacity_bytes = capacity_bytes;
    }
    /// Ends the process: the page cache stays.
    pub fn kill(&self) {
        self.machine.lock().end_process();
    }
    /// Cuts the power: unsynced changes are kept, lost or torn.
    pub fn cut_power(&self, random: &dyn Random) {
        let mut machine = self.machine.lock();
        machine.end_process();
        machine.boot += 1;
        let kept = usize::try_from(random.below(machine.name_changes.len() as u64 + 1)).unwrap_or(0);
        let changes = std::mem::take(&mut machine.name_changes);
        for (path, node) in changes.into_iter().take(kept) {
            set_name(&mut machine.names_durable, path, node);
        }
        machine.names = machine.names_durable.clone();
        machine.nodes.values_mut().for_each(|node| node.lose(random));
    }
    /// Flips one bit of a file, also on the disk.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut machine = self.machine.lock();
        let node = machine.names.get(path).copied();
        if let Some(node) = node.and_then(|node| machine.nodes.get_mut(&node)) {
            let (byte, mask) = (usize::try_from(bit / 8).unwrap_or(usize::MAX), 1 << (bit % 8));
            for bytes in [&mut node.now, &mut node.durable] {
                if let Some(byte) = bytes.get_mut(byte) {
                    *byte ^= mask;
                }
            }
        }
    }
    /// A file's bytes.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let machine = self.machine.lock();
        machine.names.get(path).and_then(|node| machine.nodes.get(node)).map(|node| node.now.clone())
    }
    /// All files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.machine.lock().names.keys().cloned().collect()
    }
    /// Copies a directory, as a person would: to files of other numbers.
    pub fn copy(&self, from: &Path, to: &Path) {
        let mut machine = self.machine.lock();
        let copied: Vec<(PathBuf, Vec<u8>)> = machine
            .names
            .iter()
            .filter_map(|(path, node)| {
                Some((to.join(path.strip_prefix(from).ok()?), machine.nodes.get(node)?.now.clone()))
            })
            .collect();
        for (path, bytes) in copied {
            let node = machine.create(&path);
            if let Some(node) = machine.nodes.get_mut(&node) {
                node.now = bytes;
            }
        }
        machine.directories.insert(to.to_owned());
        machine.directories.insert(to.join("chunks"));
    }
    /// Removes everything under a directory but the files with these names.
    pub fn empty(&self, directory: &Path, but: &[&str]) {
        let mut machine = self.machine.lock();
        let keep = |path: &Path| {
            !path.starts_with(directory)
                || path.file_name().is_some_and(|name| but.iter().any(|but| name == *but))
        };
        machine.names.retain(|path, _| keep(path));
        machine.names_durable.retain(|path, _| keep(path));
    }

    /// Lets no more than this much be used, as a quota does: there seems to be room.
    pub fn limit(&self, quota_bytes: u64) {
        self.machine.lock().quota_bytes = quota_bytes;
    }

    fn file(&self, node: u64, process: u64) -> Arc<dyn File> {
        Arc::new(MemoryFile { machine: self.machine.clone(), node, process })
    }
}

fn set_name(names: &mut BTreeMap<PathBuf, u64>, path: PathBuf, node: Option<u64>) {
    match node {
        Some(node) => names.insert(path, node),
        None => names.remove(&path),
    };
}

impl Machine {
    fn end_process(&mut self) {
        self.process += 1;
        self.locks.clear();
        self.fuel = None;
    }
    fn check(&self, process: u64) -> io::Result<()> {
        if process != self.process || self.fuel == Some(0) {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(())
    }
    /// Counts a change. `false` if the process dies in the middle of it.
    fn burn(&mut self, process: u64) -> io::Result<bool> {
        self.check(process)?;
        if let Some(fuel) = &mut self.fuel {
            *fuel -= 1;
            return Ok(*fuel > 0);
        }
        Ok(true)
    }
    fn rename(&mut self, path: &Path, node: Option<u64>) {
        set_name(&mut self.names, path.to_owned(), node);
        self.name_changes.push((path.to_owned(), node));
    }
    fn create(&mut self, path: &Path) -> u64 {
        let node = self.next_node;
        self.next_node += 1;
        self.nodes.insert(node, Node::default());
        self.rename(path, Some(node));
        node
    }
    /// Whether a file has this in its path.
    fn is(&self, node: u64, part: &str) -> bool {
        self.names.iter().any(|(path, other)| *other == node && path.to_string_lossy().contains(part))
    }
    fn used_bytes(&self) -> u64 {
        let used = |node| self.nodes.get(node).map_or(0, |node: &Node| node.now.len() as u64);
        self.names.values().map(used).sum()
    }
    fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes())
    }
    /// Bytes that may be added, and the error of adding more.
    fn room(&self) -> (u64, io::ErrorKind) {
        let (free, quota) = (self.free_bytes(), self.quota_bytes.saturating_sub(self.used_bytes()));
        if quota < free { (quota, io::ErrorKind::QuotaExceeded) } else { (free, io::ErrorKind::StorageFull) }
    }
}

impl Files for MemoryFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut machine = self.machine.lock();
        let process = machine.process;
        machine.check(process)?;
        if let Some((_, error)) =
            machine.refused.take_if(|(part, _)| path.to_string_lossy().contains(part.as_str()))
        {
            return Err(error.into());
        }
        let node = match machine.names.get(path).copied() {
            Some(node) => node,
            None if how == Open::Create => {
                machine.burn(process)?;
                machine.create(path)
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(machine);
        Ok(self.file(node, process))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut machine = self.machine.lock();
        let process = machine.process;
        machine.burn(process)?;
        let node = machine.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        machine.rename(to, Some(node));
        machine.rename(from, None);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.machine.lock();
        let process = machine.process;
        machine.burn(process)?;
        if !machine.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.rename(path, None);
        Ok(())
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let machine = self.machine.lock();
        machine.check(machine.process)?;
        let names = machine.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.machine.lock().directories.insert(directory.to_owned());
        Ok(())
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut machine = self.machine.lock();
        let process = machine.process;
        if !machine.burn(process)? {
            return Err(io::Error::other("the process died"));
        }
        if machine.syncs_fail {
            return Err(io::Error::other("injected"));
        }
        let changes = std::mem::take(&mut machine.name_changes);
        for (path, node) in changes {
            if path.parent() == Some(directory) {
                set_name(&mut machine.names_durable, path, node);
            } else {
                machine.name_changes.push((path, node));
            }
        }
        Ok(())
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut machine = self.machine.lock();
        if !machine.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        let process = machine.process;
        Ok(Some(Box::new(MemoryLock { machine: self.machine.clone(), path: path.to_owned(), process })))
    }
    fn space(&self, _directory: &Path) -> io::Result<Space> {
        let machine = self.machine.lock();
        if machine.space_fails {
            return Err(io::Error::other("injected"));
        }
        Ok(Space { total_bytes: machine.capacity_bytes, free_bytes: machine.free_bytes() })
    }
    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot-{}", self.machine.lock().boot))
    }
}

struct MemoryLock {
    machine: Arc<Mutex<Machine>>,
    path: PathBuf,
    process: u64,
}
impl Lock for MemoryLock {}
impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut machine = self.machine.lock();
        if machine.process == self.process {
            machine.locks.remove(&self.path);
        }
    }
}

struct MemoryFile {
    machine: Arc<Mutex<Machine>>,
    node: u64,
    process: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Node) -> T) -> io::Result<T> {
        let mut machine = self.machine.lock();
        machine.check(self.process)?;
        machine.nodes.get_mut(&self.node).map(act).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    /// A change, which may be cut short by death or want of room.
    fn change(&self, length: usize, act: impl FnOnce(&mut Node, usize)) -> io::Result<()> {
        let mut machine = self.machine.lock();
        let alive = machine.burn(self.process)?;
        let (free, full) = machine.room();
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        let node = machine.nodes.get_mut(&self.node).ok_or(io::ErrorKind::NotFound)?;
        let end = if alive { length } else { length / 2 };
        let room = node.now.len().saturating_add(free);
        act(node, end.min(room));
        if !alive {
            return Err(io::Error::other("the process died"));
        }
        if end > room { Err(full.into()) } else { Ok(()) }
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        {
            let mut machine = self.machine.lock();
            if let Some((part, error)) = machine.unreadable.take() {
                if machine.is(self.node, &part) {
                    return Err(error.into());
                }
                machine.unreadable = Some((part, error));
            }
        }
        self.with(|node| {
            let bytes = node.now.get(offset..).unwrap_or_default();
            let read = bytes.len().min(buffer.len());
            buffer[..read].copy_from_slice(&bytes[..read]);
            read
        })
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.change(offset + data.len(), |node, end| {
            let data = &data[..end.saturating_sub(offset).min(data.len())];
            if !data.is_empty() {
                Node::write(&mut node.now, offset, data);
                node.changes.push(Change::Write(offset, data.to_vec()));
            }
        })
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.change(0, |node, _| {
            node.now.resize(length, 0);
            node.changes.push(Change::Length(length));
        })
    }
    fn len(&self) -> io::Result<u64> {
        self.with(|node| node.now.len() as u64)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.machine.lock().syncs_fail {
            return Err(io::Error::other("injected"));
        }
        let mut machine = self.machine.lock();
        if !machine.burn(self.process)? {
            return Err(io::Error::other("the process died"));
        }
        if machine.sync_fails_once.as_ref().is_some_and(|part| machine.is(self.node, part)) {
            machine.sync_fails_once = None;
            if let Some(node) = machine.nodes.get_mut(&self.node) {
                node.changes.clear();
            }
            return Err(Errno::IO.into());
        }
        machine.nodes.get_mut(&self.node).map(Node::sync).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn start_writeback(&self, _offset: u64, _bytes: u64) {}
    fn number(&self) -> io::Result<u64> {
        Ok(self.node)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
