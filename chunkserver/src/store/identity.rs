//! Whose directory it is: a file that a copied or an emptied directory does not carry over.
//!
//! `identity` is two lines: `gfs-chunkserver FORMAT CRC32` and, under that checksum, JSON. It holds the number that the
//! file has in its filesystem: a copy has another one.

use std::io;
use std::path::Path;

use gfs_proto::fault;
use gfs_proto::id::{ClusterId, ServerId, Uuid};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::files::{Files, Open, create_anew};
use super::format::FORMAT;

const NAME: &str = "identity";
const TEMPORARY: &str = "identity.new";
const TITLE: &str = "gfs-chunkserver";
const BYTES_MAX: usize = 64 * 1024;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityFile {
    /// The server's, the same in all its directories.
    pub(crate) uuid: Uuid,
    /// This directory's.
    pub(crate) directory: Uuid,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) server: Option<ServerId>,
    /// Of the file itself.
    number: u64,
}

impl IdentityFile {
    pub(crate) fn new(uuid: Uuid, directory: Uuid, registered: Option<(ClusterId, ServerId)>) -> Self {
        let (cluster, server) = registered.unzip();
        Self { uuid, directory, cluster, server, number: 0 }
    }
    pub(crate) fn with(self, registered: Option<(ClusterId, ServerId)>) -> Self {
        let (cluster, server) = registered.unzip();
        Self { cluster, server, ..self }
    }
    pub(crate) fn registered(&self) -> Option<(ClusterId, ServerId)> {
        self.cluster.zip(self.server)
    }

    /// Reads the identity of a directory, if it has one.
    pub(crate) fn load(files: &dyn Files, directory: &Path) -> Result<Option<Self>> {
        let failed = |error: io::Error| Error::failed(directory, "reading the identity", &error);
        let file = match files.open(&directory.join(NAME), Open::Existing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut bytes = vec![0; BYTES_MAX];
        let read = file.read_at(&mut bytes, 0).map_err(failed)?;
        let identity = Self::parse(directory, &bytes[..read])?;
        if identity.number != file.number().map_err(failed)? {
            let reason = format!(
                "this is a copy of a directory of server {}: two servers must not be the same one",
                identity.uuid
            );
            return Err(Error::WrongDirectory { disk: directory.display().to_string(), reason });
        }
        Ok(Some(identity))
    }

    pub(super) fn parse(directory: &Path, bytes: &[u8]) -> Result<Self> {
        let disk = || directory.display().to_string();
        let damaged = || Error::Damaged { disk: disk(), what: NAME.into() };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let (head, body) = text.split_once('\n').ok_or_else(damaged)?;
        let mut words = head.split(' ');
        if words.next() != Some(TITLE) {
            return Err(damaged());
        }
        let found: u32 = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
        if found > FORMAT {
            return Err(Error::NewerFormat { disk: disk(), found, known: FORMAT });
        }
        if words.next() != Some(&format!("{:08x}", crc32fast::hash(body.as_bytes()))) {
            return Err(damaged());
        }
        serde_json::from_str(body).map_err(|_| damaged())
    }

    /// Remembers cluster and server id: durably first, so that a failed attempt is made again.
    pub(crate) fn register(
        &mut self,
        registered: (ClusterId, ServerId),
        files: &dyn Files,
        directory: &Path,
    ) -> Result<()> {
        let known = self.clone().with(Some(registered));
        known.save(files, directory)?;
        *self = known;
        Ok(())
    }

    /// Writes the identity, durably.
    pub(crate) fn save(&self, files: &dyn Files, directory: &Path) -> Result<()> {
        self.try_save(files, directory)
            .map_err(|error| Error::failed(directory, "writing the identity", &error))
    }

    fn try_save(&self, files: &dyn Files, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(TEMPORARY);
        let file = create_anew(files, &temporary)?;
        let body = serde_json::to_string(&Self { number: file.number()?, ..self.clone() })? + "\n";
        let head = format!("{TITLE} {FORMAT} {:08x}\n", crc32fast::hash(body.as_bytes()));
        file.write_at((head + &body).as_bytes(), 0)?;
        file.sync_all()?;
        fault::try_at("store::identity::before_rename")?;
        files.rename(&temporary, &directory.join(NAME))?;
        files.sync_directory(directory)
    }
}

#[cfg(test)]
mod tests {
    use gfs_proto::random::SeededRandom;

    use super::*;
    use crate::store::files::memory::MemoryFiles;

    /// The same as with tables.
    #[test]
    fn an_identity_whose_renaming_a_power_cut_has_torn_outlives_the_writing_of_the_next_one() {
        let directory = Path::new("/disk");
        let uuid = Uuid::from_bytes([1; 16]);
        let registered = |server| Some((ClusterId::from_bytes([2; 16]), ServerId::from_raw(server)));
        let save = |files: &MemoryFiles, server| {
            IdentityFile::new(uuid, uuid, registered(server)).save(files, directory)
        };
        let mut torn = 0;
        for (first, seed, second) in (1..10)
            .flat_map(|first| (0..8).flat_map(move |seed| (1..10).map(move |second| (first, seed, second))))
        {
            let files = MemoryFiles::new(1 << 20);
            files.create_directory(directory).unwrap();
            save(&files, 1).unwrap();
            files.die_after(first);
            save(&files, 2).unwrap_or_default();
            files.cut_power(&SeededRandom::new(seed));
            let names = files.list(directory).unwrap();
            let known = IdentityFile::load(&files, directory).unwrap().unwrap();
            torn += u32::from(known.registered() == registered(2) && names.contains(&TEMPORARY.to_owned()));
            files.die_after(second);
            save(&files, 3).unwrap_or_default();
            files.kill();
            let known = IdentityFile::load(&files, directory);
            assert!(matches!(known, Ok(Some(_))), "{first} {seed} {second}: {known:?}");
        }
        assert!(torn > 0, "no power cut has left two names");
    }
}
