//! Chunk files that rot on the disk of a running server, and what became of each corruption.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gfs_proto::id::ChunkHandle;
use gfs_tests::{Cluster, Role};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use super::Ring;

/// Time between two spots that rot, and how many there are.
const ROT_MS: std::ops::Range<u64> = 50..600;
const SPOTS: std::ops::Range<u32> = 1..12;
/// Bytes that become zeros at a time: a page.
const ZEROED_BYTES: u64 = 4096;
/// What a server logs that has found damage.
const MISMATCH: &str = "checksum mismatch";

/// Damage that was done to a file.
#[derive(Clone, Debug)]
pub(crate) struct Corruption {
    path: PathBuf,
    /// Another file may come to have the same name.
    number: u64,
    /// The chunk.
    handle: u64,
    what: &'static str,
    at: u64,
    /// What stands there since; nothing: the file ends there.
    bytes: Vec<u8>,
    /// The server's log, and how long it was.
    log: PathBuf,
    log_bytes: u64,
}

/// What became of damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// The server has noticed.
    Found,
    /// It was written over, or went with its file, before anybody looked.
    Gone,
    /// It is still there, and nobody has noticed.
    Hidden,
}

impl Corruption {
    /// Damages a server's file of a chunk; `None` if the file has gone, or is as it was.
    pub(crate) fn inflict(
        cluster: &Cluster,
        server: &str,
        path: PathBuf,
        dice: &mut StdRng,
    ) -> Result<Option<Self>> {
        // It may be gone by now.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(None) };
        let log = cluster.directory().join("logs").join(format!("{server}.log"));
        let log_bytes = fs::metadata(&log)?.len();
        let number = file.metadata()?.ino();
        let handle = handle_of(&path).context("no name of a chunk file")?;
        let spoilt = spoil(&file, dice)?;
        Ok(spoilt.map(|(what, at, bytes)| Self { path, number, handle, what, at, bytes, log, log_bytes }))
    }

    /// The chunk that it is in.
    pub(crate) fn handle(&self) -> u64 {
        self.handle
    }

    /// What has become of it.
    pub(crate) fn fate(&self) -> Result<Fate> {
        if self.is_told()? {
            return Ok(Fate::Found);
        }
        let Ok(file) = File::open(&self.path) else { return Ok(Fate::Gone) };
        let length = file.metadata()?.len();
        if file.metadata()?.ino() != self.number {
            return Ok(Fate::Gone);
        }
        let mut now = vec![0; self.bytes.len()];
        let stands = if self.bytes.is_empty() {
            length <= self.at
        } else {
            file.read_exact_at(&mut now, self.at).is_ok() && now == self.bytes
        };
        Ok(if stands { Fate::Hidden } else { Fate::Gone })
    }

    /// Whether the log speaks of the chunk after the damage was done.
    fn is_told(&self) -> Result<bool> {
        let mut since = Vec::new();
        let mut log = File::open(&self.log).with_context(|| self.log.display().to_string())?;
        log.seek(SeekFrom::Start(self.log_bytes))?;
        log.read_to_end(&mut since)?;
        let name = format!("handle=c{}", self.handle);
        let text = String::from_utf8_lossy(&since);
        let mut told = text.lines().filter(|line| line.contains(MISMATCH));
        Ok(told.any(|line| line.split_whitespace().any(|word| word == name)))
    }
}
impl std::fmt::Display for Corruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} of {}", self.what, self.at, self.path.display())
    }
}

/// The chunk whose content a file has, by its name.
fn handle_of(path: &Path) -> Option<u64> {
    let (handle, _) = path.file_name()?.to_str()?.split_once('-')?;
    u64::from_str_radix(handle, 16).ok()
}

/// A server's chunk files: some may have gone by now.
fn chunk_files(cluster: &Cluster, server: &str) -> Result<impl Iterator<Item = PathBuf>> {
    let files = fs::read_dir(cluster.data_of(server).join("chunks"))?;
    Ok(files.filter_map(|entry| Some(entry.ok()?.path())))
}

/// The file in which a server has a chunk, if it has one.
pub(crate) fn chunk_file(cluster: &Cluster, server: &str, chunk: ChunkHandle) -> Result<Option<PathBuf>> {
    Ok(chunk_files(cluster, server)?.find(|path| handle_of(path) == Some(chunk.raw())))
}

/// What was changed, where, and what stands there now; `None` if nothing is different from before.
fn spoil(file: &File, dice: &mut StdRng) -> Result<Option<(&'static str, u64, Vec<u8>)>> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(None);
    }
    let at = dice.random_range(0..length);
    let mut rest = vec![0; usize::try_from(length - at)?];
    let read = file.read_at(&mut rest, at)?;
    rest.truncate(read);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    Ok(match dice.random_range(0..4) {
        0 => {
            rest.truncate(usize::try_from(ZEROED_BYTES)?);
            let zeros = vec![0; rest.len()];
            file.write_all_at(&zeros, at)?;
            (!is_zero(&rest)).then_some(("zeros", at, zeros))
        }
        1 => {
            file.set_len(at)?;
            // Beyond its end a file has zeros.
            (!is_zero(&rest)).then_some(("a lost end", at, Vec::new()))
        }
        _ => {
            let Some(byte) = rest.first() else { return Ok(None) };
            let flipped = vec![byte ^ (1 << dice.random_range(0..8))];
            file.write_all_at(&flipped, at)?;
            Some(("a flipped bit", at, flipped))
        }
    })
}

impl Ring<'_> {
    /// Bits flip, pages become zeros and ends are lost in chunk files of a running server. It is always the same one, so that
    /// there is a good copy of everything. A file rots once: one mismatch speaks for the whole of it.
    pub(super) async fn rot(&mut self) -> Result<()> {
        let name =
            self.cluster.names(Role::Chunkserver).first().cloned().context("there is no such server")?;
        for _ in 0..self.dice.random_range(SPOTS) {
            let Some(path) = self.any_sound_file(&name)? else { return Ok(()) };
            if let Some(corruption) = Corruption::inflict(self.cluster, &name, path, &mut self.dice)? {
                self.recorder.nemesis(&corruption.to_string())?;
                self.corruptions.push(corruption);
                self.struck();
            }
            self.wait(ROT_MS).await;
        }
        Ok(())
    }

    /// A chunk file that nothing was done to.
    fn any_sound_file(&mut self, server: &str) -> Result<Option<PathBuf>> {
        let spoiled: Vec<&Path> = self.corruptions.iter().map(|corruption| &*corruption.path).collect();
        let sound = chunk_files(self.cluster, server)?.filter(|path| !spoiled.contains(&&**path));
        Ok(sound.choose(&mut self.dice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_damage_is_told_by_the_log_and_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("00000000000000ff-3"), directory.path().join("log"));
        assert_eq!(handle_of(&path), Some(255));
        let earlier = "WARN gfs: checksum mismatch handle=c255 block=1\n";
        fs::write(&log, earlier).unwrap();
        fs::write(&path, b"0123456789").unwrap();
        let number = fs::metadata(&path).unwrap().ino();
        let corruption = |at, bytes: &[u8]| Corruption {
            path: path.clone(),
            number,
            handle: 255,
            what: "a flipped bit",
            at,
            bytes: bytes.to_vec(),
            log: log.clone(),
            log_bytes: earlier.len() as u64,
        };
        assert_eq!(corruption(3, b"3").fate().unwrap(), Fate::Hidden);
        assert_eq!(corruption(3, b"x").fate().unwrap(), Fate::Gone);
        assert_eq!(corruption(10, b"").fate().unwrap(), Fate::Hidden, "the file still ends there");
        assert_eq!(corruption(5, b"").fate().unwrap(), Fate::Gone, "it was written on");
        fs::write(&log, format!("{earlier}WARN gfs: checksum mismatch handle=c25 block=1\n")).unwrap();
        assert_eq!(corruption(3, b"3").fate().unwrap(), Fate::Hidden, "another chunk");
        fs::write(&log, format!("{earlier}WARN gfs: checksum mismatch handle=c255\n")).unwrap();
        assert_eq!(corruption(3, b"3").fate().unwrap(), Fate::Found);
        fs::write(&log, earlier).unwrap();
        let other = Corruption { number: number + 1, ..corruption(3, b"3") };
        assert_eq!(other.fate().unwrap(), Fate::Gone, "another file of that name");
        fs::remove_file(&path).unwrap();
        assert_eq!(corruption(3, b"3").fate().unwrap(), Fate::Gone);
    }
}
