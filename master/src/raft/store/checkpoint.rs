//! Checkpoints: directories of hard links with a manifest (GFS §2.6.3).
//!
//! ```text
//! checkpoint.gfs := format(1) message(meta, files: name, length, crc32) crc32 of all before (4, big-endian)
//! ```
//! Without a whole manifest a directory is no checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::{DB, Options};

use super::{CURRENT, families, load_applied, sync_dir};
use crate::raft::codec::{self, SnapshotMetaRow};
use crate::raft::types::SnapshotMeta;

const MANIFEST: &str = "checkpoint.gfs";
/// Longest name of a file in a checkpoint.
const NAME_BYTES_MAX: usize = 64;
/// Most files of a checkpoint.
pub(crate) const FILES_MAX: usize = 1 << 20;

/// One file of a checkpoint.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct CheckpointFile {
    /// Without directory.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// In bytes.
    #[prost(uint64, tag = "2")]
    pub(crate) length: u64,
    /// CRC-32 of the content.
    #[prost(uint32, tag = "3")]
    pub(crate) crc: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ManifestRow {
    #[prost(message, optional, tag = "1")]
    meta: Option<SnapshotMetaRow>,
    #[prost(message, repeated, tag = "2")]
    files: Vec<CheckpointFile>,
}

/// A checkpoint; its directory stays as long as anybody holds this. Clones are the same one.
#[derive(Clone)]
pub(crate) struct CheckpointHandle(Arc<Checkpoint>);

struct Checkpoint {
    path: PathBuf,
    meta: SnapshotMeta,
    files: Vec<CheckpointFile>,
    retired: AtomicBool,
}

impl std::fmt::Debug for CheckpointHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "checkpoint({})", self.0.meta)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an old checkpoint stays until the next start");
        }
    }
}

impl CheckpointHandle {
    /// A directory whose files are complete and checked.
    pub(crate) fn new(path: PathBuf, meta: SnapshotMeta, files: Vec<CheckpointFile>) -> Self {
        Self(Arc::new(Checkpoint { path, meta, files, retired: AtomicBool::new(false) }))
    }
    /// What it contains.
    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.0.meta
    }
    /// Its files.
    pub(crate) fn files(&self) -> &[CheckpointFile] {
        &self.0.files
    }
    /// Where one of its files is.
    pub(crate) fn file_path(&self, file: &CheckpointFile) -> PathBuf {
        self.0.path.join(&file.name)
    }
    /// Removes the directory once nobody holds it any more.
    pub(crate) fn retire(&self) {
        self.0.retired.store(true, Ordering::Release);
    }

    /// Makes a durable directory with the same files: links for those that never change, else copies.
    pub(super) fn copy_to(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        for file in &self.0.files {
            let (source, target) = (self.file_path(file), path.join(&file.name));
            if !is_table(&file.name) || fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target)?;
                File::open(&target)?.sync_all()?;
            }
        }
        sync_dir(path)
    }
}

/// Table files are written once; everything else RocksDB may append to.
fn is_table(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "sst")
}

/// Checks a name that comes from outside: flat, and nothing that RocksDB or we would misread.
pub(crate) fn check_file_name(name: &str) -> io::Result<()> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if letters
        && !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= NAME_BYTES_MAX
        && name != MANIFEST
    {
        Ok(())
    } else {
        Err(codec::invalid("bad file name in a checkpoint"))
    }
}

/// Lists, checks and syncs what RocksDB has put into a directory, and writes the manifest. Checksums of files
/// that the previous checkpoint has too are taken from there.
pub(super) fn seal(path: &Path, previous: Option<&CheckpointHandle>) -> io::Result<SnapshotMeta> {
    // Before it is opened, which adds files of its own.
    let names = names(path)?;
    // From inside the checkpoint: the live database has gone on.
    let meta = {
        let db = DB::open_cf_for_read_only(&Options::default(), path, families(), false)
            .map_err(io::Error::other)?;
        let (last_log_id, last_membership) = load_applied(&db)?;
        SnapshotMeta { last_log_id, last_membership }
    };
    let known: BTreeMap<(u64, u64), u32> = previous.map(known_sums).unwrap_or_default();
    let mut files = Vec::new();
    for name in names {
        let file = File::open(path.join(&name))?;
        let (inode, length) = (file.metadata()?.ino(), file.metadata()?.len());
        let crc = match known.get(&(inode, length)) {
            Some(crc) if is_table(&name) => *crc,
            _ => checksum(&file)?,
        };
        file.sync_all()?;
        files.push(CheckpointFile { name, length, crc });
    }
    write_manifest(path, &meta, &files)?;
    Ok(meta)
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for item in fs::read_dir(path)? {
        let name = item?.file_name().into_string().map_err(|_| codec::invalid("odd file name"))?;
        check_file_name(&name)?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn known_sums(previous: &CheckpointHandle) -> BTreeMap<(u64, u64), u32> {
    let files = previous.files().iter().filter(|file| is_table(&file.name));
    files
        .filter_map(|file| {
            let inode = fs::metadata(previous.file_path(file)).ok()?.ino();
            Some(((inode, file.length), file.crc))
        })
        .collect()
}

fn checksum(mut file: &File) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Writes the manifest, durably: from now on the directory is a checkpoint.
pub(super) fn write_manifest(path: &Path, meta: &SnapshotMeta, files: &[CheckpointFile]) -> io::Result<()> {
    let mut bytes = codec::to_disk(&ManifestRow { meta: Some(meta.into()), files: files.to_vec() });
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    super::replace_file(&path.join(MANIFEST), &bytes)
}

/// Reads the manifest of a checkpoint and compares the files' lengths; their content is compared when it
/// is sent.
pub(crate) fn open(path: &Path) -> io::Result<CheckpointHandle> {
    let bytes = fs::read(path.join(MANIFEST))?;
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| codec::invalid("short manifest"))?;
    if crc32fast::hash(body).to_be_bytes() != *crc {
        return Err(codec::invalid("damaged manifest"));
    }
    let row: ManifestRow = codec::from_disk(body.to_vec())?;
    for file in &row.files {
        check_file_name(&file.name)?;
        if fs::metadata(path.join(&file.name))?.len() != file.length {
            return Err(codec::invalid("a file of a checkpoint has another length"));
        }
    }
    let meta = codec::required(row.meta)?.into_meta()?;
    Ok(CheckpointHandle::new(path.to_owned(), meta, row.files))
}

/// Removes what no start ever needs: checkpoints that were not received or built to their end.
///
/// # Errors
/// What the disk says.
pub(crate) fn drop_unfinished(dir: &Path) -> io::Result<()> {
    let items = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        items => items?,
    };
    for item in items {
        let item = item?;
        if matches!(item.file_name().to_string_lossy().split('-').next(), Some("building" | "receive")) {
            fs::remove_dir_all(item.path())?;
        }
    }
    Ok(())
}

/// Removes everything unfinished or replaced; returns the newest whole checkpoint and an unused serial.
pub(crate) fn sweep(dir: &Path, current: Option<&str>) -> io::Result<(Option<CheckpointHandle>, u64)> {
    let mut serial = 0;
    let mut checkpoints = Vec::new();
    for item in fs::read_dir(dir)? {
        let name = item?.file_name().to_string_lossy().into_owned();
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
        serial = serial.max(number(name.rsplit('-').next()).map_or(0, |number| number.saturating_add(1)));
        let path = dir.join(&name);
        if Some(name.as_str()) == current || name == CURRENT {
            continue;
        }
        match name.split('-').next() {
            Some("checkpoint") => {
                let mut numbers = name.split('-').skip(1);
                checkpoints.push((number(numbers.next()), number(numbers.next()), path));
            }
            Some("live" | "building" | "receive") => fs::remove_dir_all(&path)?,
            _ => {}
        }
    }
    checkpoints.sort();
    let mut newest = None;
    for (_, _, path) in checkpoints.into_iter().rev() {
        if newest.is_none() {
            match open(&path) {
                Ok(checkpoint) => {
                    newest = Some(checkpoint);
                    continue;
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "dropping a bad checkpoint"),
            }
        }
        fs::remove_dir_all(&path)?;
    }
    sync_dir(dir)?;
    Ok((newest, serial))
}
