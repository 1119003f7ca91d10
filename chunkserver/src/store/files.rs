//! The files seam: the store's only door to a disk. One side is real, the other one lives in memory and can
//! lose power ([`memory`]).

pub mod memory;

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FlockOperation};

/// How to open a file; always for reading and writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// It must be there.
    Existing,
    /// It is made if it is not there.
    Create,
}

/// Room on a filesystem, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What this process may still take.
    pub free_bytes: u64,
}

/// A held lock; dropping it lets go.
pub trait Lock: Send + Sync {}

/// Directories and files. Changes of names are durable after [`Files::sync_directory`] only.
///
/// # Errors
/// Everywhere: what the operating system says.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Files: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Gives a file another name, replacing what has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file's name away; who has it open keeps it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory, and those above it, if it is not there.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// Locks a file, made if needed, against everybody else; `None` if somebody has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
    /// Room where this directory lies.
    fn space(&self, directory: &Path) -> io::Result<Space>;
    /// Names this run of the operating system: as long as it is the same, the page cache has survived.
    fn boot_id(&self) -> io::Result<String>;
}

/// An empty file for what is renamed when it is whole. What has its name is not emptied but removed: a power cut in the middle
/// of a rename may have left both names to the file that counts.
pub(super) fn create_anew(files: &dyn Files, path: &Path) -> io::Result<Arc<dyn File>> {
    match files.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    files.open(path, Open::Create)
}

/// An open file.
///
/// # Errors
/// Everywhere: what the operating system says.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait File: Send + Sync {
    /// Reads until the buffer is full or the file ends; returns how much.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of it.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Makes the bytes durable, and the length as far as reading them needs it.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes bytes, length and attributes durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Starts writing a range to the disk, without waiting. A hint.
    fn start_writeback(&self, offset: u64, bytes: u64);
    /// The file's number in its filesystem: a copy has another one.
    fn number(&self) -> io::Result<u64>;
    /// The descriptor, for `sendfile`; `None` if this file is not the system's.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let create = how == Open::Create;
        let file = fs::OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(RealLock { _file: file }))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
    fn space(&self, directory: &Path) -> io::Result<Space> {
        let space = rustix::fs::statvfs(directory)?;
        Ok(Space {
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }
    fn boot_id(&self) -> io::Result<String> {
        Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }
}

/// The lock lasts as long as the file is open.
struct RealLock {
    _file: fs::File,
}
impl Lock for RealLock {}

struct RealFile(fs::File);

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn start_writeback(&self, offset: u64, bytes: u64) {
        // DONTNEED on dirty pages starts writing them and can't drop them before they are clean: what
        // sync_file_range(WRITE) does, without unsafe. The pages stay for readers, unless the disk has
        // been quicker than this call. A hint, so its failure means nothing.
        let result = rustix::fs::fadvise(&self.0, offset, NonZeroU64::new(bytes), Advice::DontNeed);
        if let Err(error) = result {
            tracing::debug!(%error, "no early writeback");
        }
    }
    fn number(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.ino())
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
