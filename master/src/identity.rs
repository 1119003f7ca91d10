//! Who a data directory belongs to: made once, checked at every start, never carried over.
//!
//! ```text
//! DIR/LOCK            held while a process uses the directory
//! DIR/identity.json   {"format": 1, "uuid": .., "member": {"cluster": .., "id": ..}, "started": ..}
//! DIR/log DIR/state   stores of the member; there once it has started, or the disk was emptied
//! ```
//! A member that comes back without its log could vote twice in one term and lose acknowledged commands: an
//! emptied directory never comes back under its old id, it joins as a new member.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gfs_proto::id::{ClusterId, MasterId, Uuid};
use gfs_proto::random::Random;
use gfs_proto::{Error, Result};
use serde::{Deserialize, Serialize};

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
const IDENTITY: &str = "identity.json";
const LOCK: &str = "LOCK";

/// A member of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id there.
    pub id: MasterId,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    uuid: Uuid,
    member: Option<Membership>,
    started: bool,
}

/// Only the format, so that a later one is told apart from damage.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// A locked data directory.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    identity: Identity,
    /// The lock goes with the file.
    _lock: File,
}

fn unusable(dir: &Path, why: impl std::fmt::Display) -> Error {
    Error::bad_argument(format!("data directory {}: {why}", dir.display()))
}

/// Whether a data directory is that of a member that has started, so that its cluster is made; what can't be read is told by
/// [`Home::open`].
pub fn has_started(dir: &Path) -> bool {
    let identity = fs::read(dir.join(IDENTITY)).ok().and_then(|bytes| parse(dir, &bytes).ok());
    identity.is_some_and(|identity| identity.started)
}

impl Home {
    /// Locks a data directory; a fresh one gets an identity of its own.
    ///
    /// # Errors
    /// Why the directory can't be used: another process uses it, a later version wrote it, it was emptied.
    pub fn open(dir: &Path, random: &dyn Random) -> Result<Self> {
        let failed = |error: io::Error| unusable(dir, error);
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = lock(dir)?;
        let (log, state) = (Self::log_of(dir), Self::state_of(dir));
        let identity = match fs::read(dir.join(IDENTITY)) {
            Ok(bytes) => parse(dir, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if log.exists() || state.exists() {
                    return Err(unusable(dir, "it has a log or a state, but no identity"));
                }
                let uuid = Uuid::from_bytes(random.bits128());
                let identity = Identity { format: FORMAT, uuid, member: None, started: false };
                write(dir, &identity).map_err(failed)?;
                identity
            }
            Err(error) => return Err(failed(error)),
        };
        if identity.started && !(log.is_dir() && state.is_dir()) {
            return Err(unusable(
                dir,
                "it was emptied: start with an empty directory and --join (not --bootstrap) to join as a new member",
            ));
        }
        Ok(Self { dir: dir.to_owned(), identity, _lock: lock })
    }

    /// Identity of the directory, made once.
    pub fn uuid(&self) -> Uuid {
        self.identity.uuid
    }
    /// Which member it is, once it is one.
    pub fn member(&self) -> Option<Membership> {
        self.identity.member
    }
    /// Whether its stores are complete, so that a missing one means loss.
    pub fn has_started(&self) -> bool {
        self.identity.started
    }
    /// The error of a member that has started and whose log is gone, though its directory is there.
    pub fn log_is_lost(&self) -> Error {
        unusable(
            &self.dir,
            "its log was emptied: put back what was there (is a volume not mounted?), or start with an empty \
             directory and --join (not --bootstrap) to join as a new member",
        )
    }
    /// Where the operation log is.
    pub fn log_dir(&self) -> PathBuf {
        Self::log_of(&self.dir)
    }
    /// Where the state is.
    pub fn state_dir(&self) -> PathBuf {
        Self::state_of(&self.dir)
    }
    fn log_of(dir: &Path) -> PathBuf {
        dir.join("log")
    }
    fn state_of(dir: &Path) -> PathBuf {
        dir.join("state")
    }

    /// Makes this directory a member's, for ever.
    ///
    /// # Errors
    /// What the disk says, or that it is another member's.
    pub fn become_member(&mut self, member: Membership) -> Result<()> {
        match self.identity.member {
            Some(old) if old == member => Ok(()),
            Some(old) => {
                Err(unusable(&self.dir, format!("it belongs to {} of cluster {}", old.id, old.cluster)))
            }
            None => self.replace(Identity { member: Some(member), ..self.identity.clone() }),
        }
    }

    /// Remembers that the stores are complete.
    ///
    /// # Errors
    /// What the disk says.
    pub fn mark_started(&mut self) -> Result<()> {
        if self.identity.started {
            return Ok(());
        }
        self.replace(Identity { started: true, ..self.identity.clone() })
    }

    fn replace(&mut self, identity: Identity) -> Result<()> {
        write(&self.dir, &identity).map_err(|error| unusable(&self.dir, error))?;
        self.identity = identity;
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK))
        .map_err(|error| unusable(dir, error))?;
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&file, operation).map_err(|error| {
        if error == rustix::io::Errno::WOULDBLOCK {
            unusable(dir, "another process uses it")
        } else {
            unusable(dir, io::Error::from(error))
        }
    })?;
    Ok(file)
}

fn parse(dir: &Path, bytes: &[u8]) -> Result<Identity> {
    let damaged = |error: serde_json::Error| unusable(dir, format!("{IDENTITY} is damaged: {error}"));
    let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(Error::UnsupportedVersion {
            what: "data directory".into(),
            found: format,
            known: FORMAT,
        });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Fuzz target: an identity is refused, or it is one that this version writes and reads as the same.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_parse(data: &[u8]) {
    let dir = Path::new("/nowhere");
    if let Ok(identity) = parse(dir, data) {
        assert_eq!(identity.format, FORMAT);
        let written = serde_json::to_vec_pretty(&identity).unwrap_or_default();
        assert_eq!(parse(dir, &written), Ok(identity));
    }
}

/// Replaces the identity in one step, durably.
fn write(dir: &Path, identity: &Identity) -> io::Result<()> {
    let temporary = dir.join("identity.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(identity)?)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(IDENTITY))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use gfs_proto::random::SeededRandom;

    use super::*;

    fn open(dir: &Path) -> Result<Home> {
        Home::open(dir, &SeededRandom::new(1))
    }

    fn member(id: u64) -> Membership {
        Membership { cluster: ClusterId::from_bytes([7; 16]), id: MasterId::from_raw(id) }
    }

    #[test]
    fn an_identity_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = open(dir.path()).unwrap();
        let uuid = home.uuid();
        assert_eq!(home.member(), None);
        home.become_member(member(4)).unwrap();
        assert!(home.become_member(member(5)).is_err());
        drop(home);
        let home = Home::open(dir.path(), &SeededRandom::new(2)).unwrap();
        assert_eq!((home.uuid(), home.member()), (uuid, Some(member(4))));
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = open(dir.path()).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("another process"));
        drop(home);
        open(dir.path()).unwrap();
    }

    #[test]
    fn an_emptied_directory_does_not_come_back_under_its_old_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = open(dir.path()).unwrap();
        home.become_member(member(4)).unwrap();
        fs::create_dir(home.log_dir()).unwrap();
        fs::create_dir(home.state_dir()).unwrap();
        home.mark_started().unwrap();
        drop(home);
        drop(open(dir.path()).unwrap());
        fs::remove_dir(dir.path().join("log")).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("emptied"));
        fs::remove_file(dir.path().join(IDENTITY)).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("no identity"));
    }

    #[test]
    fn a_newer_format_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        fs::write(dir.path().join(IDENTITY), br#"{"format": 2, "more": []}"#).unwrap();
        assert_eq!(
            open(dir.path()).unwrap_err(),
            Error::UnsupportedVersion { what: "data directory".into(), found: 2, known: 1 }
        );
        fs::write(dir.path().join(IDENTITY), b"{}").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("damaged"));
    }
}
