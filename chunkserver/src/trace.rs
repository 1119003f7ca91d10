//! What this server did with a chunk, line by line, for those who judge a run afterwards (`jepsen`): who was primary
//! when, what each member applied in which order, what was acknowledged.
//!
//! Off unless `RUST_LOG` has `gfs::lease=trace`. Lines of one chunk are written under its lock, so that their order is
//! that of the events.

use gfs_proto::id::{ChunkHandle, ChunkVersion, Serial};
use gfs_proto::time::machine_ns;

use crate::replica::Grant;

/// The version is on the disk; any role of an older one has ended.
pub(crate) fn stored(handle: ChunkHandle, grant: &Grant) {
    let members = || grant.members.iter().map(|member| member.server.raw().to_string()).collect::<Vec<_>>();
    tracing::trace!(
        target: "gfs::lease",
        handle = handle.raw(),
        version = grant.version.raw(),
        members = members().join(","),
        at_ns = machine_ns(),
        "stored"
    );
}

/// This server orders the mutations of the version from now on.
pub(crate) fn primary(handle: ChunkHandle, version: ChunkVersion) {
    let (handle, version) = (handle.raw(), version.raw());
    tracing::trace!(target: "gfs::lease", handle, version, at_ns = machine_ns(), "primary");
}

/// A mutation was applied here.
pub(crate) fn applied(handle: ChunkHandle, version: ChunkVersion, serial: Serial) {
    let (handle, version, serial) = (handle.raw(), version.raw(), serial.raw());
    tracing::trace!(target: "gfs::lease", handle, version, serial, at_ns = machine_ns(), "applied");
}

/// A mutation is about to be acknowledged to a client.
pub(crate) fn acknowledged(handle: ChunkHandle, version: ChunkVersion, serial: Serial) {
    let (handle, version, serial) = (handle.raw(), version.raw(), serial.raw());
    tracing::trace!(target: "gfs::lease", handle, version, serial, at_ns = machine_ns(), "acknowledged");
}
