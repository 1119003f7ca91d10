//! Trees of local files: making them, and telling whether two are the same byte for byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Length and checksum of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Bytes.
    pub bytes: u64,
    /// CRC-32 of all bytes.
    pub crc: u32,
}

/// The files below a directory by relative path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// Every file.
    pub files: BTreeMap<String, Digest>,
}

impl Tree {
    /// Reads every file below `root`. Links are followed to files and left out if they lead to directories,
    /// as `gfs put -r` does.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut waiting = vec![root.to_owned()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
                let path = entry?.path();
                let metadata = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
                if metadata.is_dir() && !path.is_symlink() {
                    waiting.push(path);
                } else if metadata.is_file() {
                    let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                    tree.files.insert(name, digest_of_file(&path)?);
                }
            }
        }
        Ok(tree)
    }

    /// The sum of all lengths.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// What differs between two trees, at most ten lines.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> =
            self.files.keys().chain(other.files.keys()).collect();
        let pairs = names.into_iter().map(|name| (name, self.files.get(name), other.files.get(name)));
        let unlike = pairs.filter(|(_, here, there)| here != there);
        unlike.map(|(name, here, there)| format!("{name}: {here:?}, {there:?}")).take(10).collect()
    }

    /// Makes `count` files of many sizes, empty ones and some over several chunks among them, in directories.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn make(root: &Path, count: u32, chunk_bytes: u64, seed: u64) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        for index in 0..count {
            let directory = root.join(format!("d{}/e{}", index % 5, index % 3));
            std::fs::create_dir_all(&directory)?;
            let bytes = match index % 8 {
                0 => 0,
                1 => 1,
                2 => chunk_bytes,
                3 => chunk_bytes * 2 + random.next_u64() % chunk_bytes,
                4 => 65_536,
                _ => random.next_u64() % 100_000,
            };
            write_noise(&directory.join(format!("file {index} ä")), bytes, random.next_u64())?;
        }
        Ok(())
    }
}

/// Writes a file of random bytes; the same for the same seed.
///
/// # Errors
/// It can't be written.
pub fn write_noise(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut left = bytes;
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        random.fill_bytes(&mut piece);
        let count = usize::try_from(left.min(piece.len() as u64))?;
        file.write_all(&piece[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// Length and checksum of a local file.
///
/// # Errors
/// It can't be read.
pub fn digest_of_file(path: &Path) -> Result<Digest> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    digest_of(file).with_context(|| path.display().to_string())
}

/// Length and checksum of what a reader gives.
///
/// # Errors
/// It can't be read.
pub fn digest_of(mut source: impl Read) -> Result<Digest> {
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = 0;
    let mut piece = vec![0; 1 << 18];
    loop {
        let count = source.read(&mut piece)?;
        if count == 0 {
            return Ok(Digest { bytes, crc: hasher.finalize() });
        }
        hasher.update(&piece[..count]);
        bytes += count as u64;
    }
}
