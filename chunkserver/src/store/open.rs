//! Opening a store: which directories may be used together, and starting their disks.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use gfs_proto::id::Uuid;
use gfs_proto::random::Random;
use gfs_proto::work::Workers;
use parking_lot::{Mutex, RwLock};

use super::content::{DiskState, ReplicaState};
use super::disk::{Disk, chunk_directory};
use super::error::{Error, Result};
use super::files::{Files, Lock};
use super::identity::IdentityFile;
use super::log::{Inline, Log, Start};
use super::open_files::OpenFiles;
use super::recover::{Opening, Recovered};
use super::replica;
use super::table;
use super::worker::{self, Work};
use super::{Cursor, Inner, Options};

const LOCK_NAME: &str = "lock";
/// A record may take a quarter of a segment, and its part of a checkpoint must fit beside it.
const SEGMENT_BYTES_MIN: u32 = 64 * 1024;

/// A directory that this process has locked.
struct Directory {
    path: PathBuf,
    lock: Box<dyn Lock>,
    identity: Option<IdentityFile>,
}

/// Opens the directories of a store.
pub(crate) fn open(
    directories: &[PathBuf],
    options: Options,
    files: &Arc<dyn Files>,
    random: &dyn Random,
) -> Result<Inner> {
    let options = Options {
        segment_bytes: options.segment_bytes.max(SEGMENT_BYTES_MIN).next_multiple_of(4096),
        segments: options.segments.max(2),
        ..options
    };
    let (mut failed, mut locked) = (Vec::new(), Vec::new());
    for path in directories {
        match lock(&**files, path) {
            Ok(directory) => locked.push(directory),
            Err(error) => failed.push((path.clone(), error)),
        }
    }
    // A new server has all its directories or none: one that it began without would be a stranger to it later.
    let is_new = !locked.is_empty() && locked.iter().all(|directory| directory.identity.is_none());
    let lose = |path: PathBuf, error| if is_new { Err(error) } else { losing(&path, error) };
    let mut lost = failed.into_iter().map(|(path, error)| lose(path, error)).collect::<Result<Vec<_>>>()?;
    let identities = agree(&**files, &mut locked, options.add_directories, random)?;
    let boot_id =
        files.boot_id().map_err(|error| Error::failed(&PathBuf::new(), "asking for the boot id", &error))?;
    let open_files = options.open_files / directories.len().max(1);
    let mut all = Vec::new();
    for (directory, identity) in locked.into_iter().zip(identities) {
        let path = directory.path.clone();
        let life = random.bits64();
        let opening = Opening {
            files: &**files,
            directory: &path,
            segment_bytes: options.segment_bytes,
            boot_id: boot_id.clone(),
            life,
        };
        match opening.recover() {
            Ok(recovered) => all.push((directory, identity, recovered, life)),
            Err(error) => lost.push(lose(path, error)?),
        }
    }
    let (mut disks, mut threads, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for (directory, identity, recovered, life) in all {
        let path = directory.path.clone();
        // After the tables of all directories, so that one with an identity has tables (without them it was emptied), and
        // so that whatever a first start that is cut off leaves behind passes for new.
        let saved = if directory.identity.as_ref() == Some(&identity) {
            Ok(())
        } else {
            identity.save(&**files, &path)
        };
        let started =
            saved.and_then(|()| start(directory, options.clone(), files, (recovered, open_files, life)));
        match started {
            Ok((disk, working)) => {
                threads.push((disk.clone(), working));
                kept.push((disks.len(), identity));
                disks.push(disk);
            }
            Err(error) => lost.push(losing(&path, error)?),
        }
    }
    let inner = Inner {
        disks,
        lost,
        identities: Mutex::new(kept),
        threads: Mutex::new(threads),
        scrub: Mutex::new(Cursor::default()),
    };
    if inner.disks.is_empty() {
        let cause = inner.lost.first().and_then(|lost| lost.failure.clone()).unwrap_or_default();
        return Err(Error::DiskFailed { disk: "all directories".into(), cause });
    }
    remove_doubles(&inner.disks)?;
    Ok(inner)
}

/// Decides whether a directory may be gone without (its disk failed), or must not be used and so stops the start.
fn losing(path: &Path, error: Error) -> Result<DiskState> {
    if !matches!(error, Error::DiskFailed { .. } | Error::Damaged { .. } | Error::DiskFull { .. }) {
        return Err(error);
    }
    tracing::error!(disk = %path.display(), %error, "disk can't be opened");
    Ok(DiskState {
        directory: path.to_owned(),
        total_bytes: 0,
        free_bytes: 0,
        chunks: 0,
        failure: Some(error.to_string()),
    })
}

fn lock(files: &dyn Files, path: &Path) -> Result<Directory> {
    let disk = || path.display().to_string();
    let failed = |error| Error::failed(path, "opening", &error);
    files.create_directory(path).map_err(failed)?;
    let lock = files.lock(&path.join(LOCK_NAME)).map_err(failed)?;
    let lock = lock.ok_or_else(|| Error::Locked { disk: disk() })?;
    let identity = IdentityFile::load(files, path)?;
    files.create_directory(&chunk_directory(path)).map_err(failed)?;
    files.sync_directory(path).map_err(failed)?;
    Ok(Directory { path: path.to_owned(), lock, identity })
}

/// The identities of the directories, which are of one server; new ones where there is none.
fn agree(
    files: &dyn Files,
    directories: &mut [Directory],
    add_directories: bool,
    random: &dyn Random,
) -> Result<Vec<IdentityFile>> {
    let known = directories.iter().find_map(|directory| directory.identity.clone());
    let uuid = known.as_ref().map_or_else(|| Uuid::from_bytes(random.bits128()), |known| known.uuid);
    // From whichever has it: a registration that was cut off left it in some of them only.
    let registered = directories
        .iter()
        .find_map(|directory| directory.identity.as_ref().and_then(IdentityFile::registered));
    let mut agreed: Vec<IdentityFile> = Vec::new();
    for directory in &*directories {
        let wrong = |reason: &str| {
            let (disk, reason) = (directory.path.display().to_string(), reason.to_owned());
            Err(Error::WrongDirectory { disk, reason })
        };
        let tables = table::load(files, &directory.path);
        let identity = match (&directory.identity, &tables) {
            (Some(_), Ok(None)) => return wrong("emptied: it has an identity and nothing else"),
            (Some(identity), _) => identity.clone(),
            (None, Ok(Some(loaded))) if !loaded.chunks.is_empty() => {
                return wrong("it has chunks, but no identity");
            }
            (None, Ok(None)) if known.is_some() && !add_directories => {
                return wrong(
                    "empty, beside directories that are not: it was emptied, or is new and must be added as such",
                );
            }
            (None, _) => IdentityFile::new(uuid, Uuid::from_bytes(random.bits128()), registered),
        };
        if identity.uuid != uuid {
            return wrong("it belongs to another server than the first one");
        }
        if agreed.iter().any(|other| other.directory == identity.directory) {
            return wrong("it is given twice");
        }
        let identity = match identity.registered() {
            None => identity.with(registered),
            Some(_) if identity.registered() == registered => identity,
            Some(_) => return wrong("it belongs to another server than the first one"),
        };
        agreed.push(identity);
    }
    Ok(agreed)
}

/// Starts the log and the threads of a recovered disk.
fn start(
    directory: Directory,
    options: Options,
    files: &Arc<dyn Files>,
    (recovered, open_files, life): (Recovered, usize, u64),
) -> Result<(Arc<Disk>, worker::Threads)> {
    let failure = Arc::new(OnceLock::new());
    let work = Arc::new(Work::default());
    let (keeper, waker) = (work.clone(), work.clone());
    let inline = match &options.workers {
        Workers::Threads => None,
        Workers::Inline(_) => Some(Inline {
            make_room: Box::new(move || waker.make_room_now()),
            wake: Box::new({
                let work = work.clone();
                move || work.wake()
            }),
        }),
    };
    let log = Log::start(Start {
        life,
        next_sequence: recovered.next_sequence,
        segments: recovered.segments,
        segment_bytes: options.segment_bytes,
        segments_max: options.segments,
        failure: failure.clone(),
        want_room: Box::new(move || keeper.want_room()),
        inline,
    })?;
    let path = directory.path.clone();
    let table_bytes = recovered.tables.full_bytes;
    let disk = Arc::new(Disk {
        directory: directory.path,
        options,
        files: files.clone(),
        failure,
        log,
        work,
        chunks: RwLock::new(recovered.chunks),
        dirty: Mutex::default(),
        lazy: Mutex::default(),
        tables: Mutex::new(recovered.tables),
        table_bytes: AtomicU64::new(table_bytes),
        renewing: Mutex::default(),
        generation: AtomicU64::new(recovered.generation),
        // Of this disk alone: one that hangs when a file is opened holds up no other.
        open_files: OpenFiles::new(files.clone(), open_files),
        name_changes: AtomicU64::new(0),
        names_synced: Mutex::new(0),
        space_granted: AtomicU64::new(0),
        lock: Mutex::new(Some(directory.lock)),
    });
    let threads = worker::start(&disk).map_err(|error| Error::failed(&path, "starting threads", &error))?;
    Ok((disk, threads))
}

/// A replica that was deleted on one disk and made anew on another may have come back: the newer one stays. Of two at the
/// same version, as when a disk failed while it was made, that which has more: one of them was never written.
fn remove_doubles(disks: &[Arc<Disk>]) -> Result<()> {
    for (index, disk) in disks.iter().enumerate() {
        for other in &disks[index + 1..] {
            let doubles: Vec<_> = {
                let (ours, theirs) = (disk.chunks.read(), other.chunks.read());
                ours.keys().filter(|handle| theirs.contains_key(handle)).copied().collect()
            };
            for handle in doubles {
                let (Some(ours), Some(theirs)) = (disk.chunk(handle), other.chunk(handle)) else { continue };
                let worth = |it: &ReplicaState| {
                    (it.version, !it.partial, it.adopted, it.serial, it.length, !it.corrupt)
                };
                let (our, their) = (ours.summary(), theirs.summary());
                let (from, chunk, version) = if worth(&our) < worth(&their) {
                    (disk, ours, our.version)
                } else {
                    (other, theirs, their.version)
                };
                replica::delete(from, &chunk, version)?;
            }
        }
    }
    Ok(())
}
