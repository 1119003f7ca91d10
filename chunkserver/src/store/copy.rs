//! A local copy of a whole replica under another handle: the copy of copy on write (GFS §3.4).

use gfs_proto::fault;
use gfs_proto::id::{ChunkHandle, ChunkVersion};

use super::Store;
use super::adopt::Origin;
use super::content::{Membership, ReplicaState};
use super::error::{Error, Result};

/// Bytes copied at a time.
const PIECE_BYTES: u32 = 1 << 20;

/// Copies the replica of a chunk that nobody writes. Every byte is checked against the checksums of the source, and
/// the copy keeps those (traps T20): damage is never copied under fresh checksums.
pub(crate) fn copy(
    store: &Store,
    (handle, version): (ChunkHandle, ChunkVersion),
    (copy, copy_version): (ChunkHandle, ChunkVersion),
) -> Result<ReplicaState> {
    check(store, handle, version)?;
    let made = store.store_version(copy, copy_version, Membership::Joiner)?;
    if made.adopted == copy_version {
        return Ok(made);
    }
    fault::at("store::copy::begin");
    let content = store.content(handle)?;
    let mut adoption = store.adopt((copy, copy_version), (content.clone(), Origin::Unknown))?;
    for range in adoption.missing() {
        let mut at = range.start;
        while at < range.end {
            let length = PIECE_BYTES.min(range.end - at);
            adoption.write(at, &store.read(handle, at, length)?.data)?;
            at += length;
        }
    }
    // Nobody may have changed the source meanwhile: its version would be another one, or its content.
    let source = check(store, handle, version)?;
    if source.serial != content.serial || source.length != content.length || source.sealed != content.sealed {
        return Err(Error::BadContent { handle, what: "it changed while it was copied" });
    }
    fault::at("store::copy::before_commit");
    adoption.commit()
}

/// The replica holds all that was acknowledged up to this version.
fn check(store: &Store, handle: ChunkHandle, version: ChunkVersion) -> Result<ReplicaState> {
    let state = store.state(handle)?;
    if state.version != version {
        return Err(Error::VersionMismatch { handle, asked: version, here: state.version });
    }
    if state.partial || state.adopted != version {
        return Err(Error::NotAdopted { handle, version });
    }
    if state.corrupt {
        return Err(Error::Corrupt { handle, block: 0 });
    }
    Ok(state)
}
