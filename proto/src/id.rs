//! The ids of the system, each a type of its own: a handle can't be passed where a server id is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pb;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty), $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            /// The id with this number, as read from a disk or the wire.
            pub const fn from_raw(raw: $raw) -> Self {
                Self(raw)
            }
            /// The number, for a disk or the wire.
            pub const fn raw(self) -> $raw {
                self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// Names a chunk for ever; never reused (GFS §2.3).
    ChunkHandle(u64), "c"
);
id!(
    /// Counts the grants of one chunk; a replica with a lower one is stale (GFS §4.5).
    ChunkVersion(u64), "v"
);
id!(
    /// Position of a chunk in its file, from 0.
    ChunkIndex(u32), "#"
);
id!(
    /// Names a chunkserver for ever; given by the cluster at first registration.
    ServerId(u64), "s"
);
id!(
    /// Names a master or shadow for ever; never reused.
    MasterId(u64), "m"
);
id!(
    /// Names a file or directory for ever; never reused, unlike its path.
    EntryId(u64), "e"
);
id!(
    /// Names a client session.
    ClientId(u64), "k"
);
id!(
    /// Raft term of a leader.
    Term(u64), "t"
);
id!(
    /// Index in the operation log; `rev` of a reply.
    LogIndex(u64), "i"
);
id!(
    /// One life of a chunkserver process, or part of one: new at every start and every lapse it notices.
    Epoch(u64), "ep"
);
id!(
    /// Order of a mutation within one version of a chunk, from 1 (GFS §3.1).
    Serial(u64), "n"
);

impl ChunkVersion {
    /// Version of a chunk that has had no grant yet.
    pub const NONE: Self = Self(0);

    /// The version of the next grant.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl ChunkIndex {
    /// The index after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl Serial {
    /// The serial after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl EntryId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// Names one mutation of one client session, so that a repeat is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RequestId {
    /// The session.
    pub client: ClientId,
    /// Counts the session's mutations, from 1.
    pub sequence: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.client, self.sequence)
    }
}
impl From<pb::RequestId> for RequestId {
    fn from(id: pb::RequestId) -> Self {
        Self { client: ClientId(id.client), sequence: id.sequence }
    }
}
impl From<RequestId> for pb::RequestId {
    fn from(id: RequestId) -> Self {
        Self { client: id.client.0, sequence: id.sequence, first_unacked: 0 }
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
            /// The id with these bytes, if there are 16 of them.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
            /// Reads the 32 hexadecimal digits that [`fmt::Display`] writes.
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return None;
                }
                let mut bytes = [0; 16];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
                }
                Some(Self(bytes))
            }
            /// The bytes.
            pub const fn bytes(self) -> [u8; 16] {
                self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 32 hexadecimal digits"))
            }
        }
    };
}

id128!(
    /// Names a cluster; made at bootstrap, checked on every message between servers.
    ClusterId
);
id128!(
    /// Names pushed data in the buffers of the chunkservers (GFS §3.1 step 3); random.
    DataId
);
id128!(
    /// Identity of a set of data directories, made once; never carried over by a copy or an emptied disk.
    Uuid
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_ids_round_trip_and_refuse_anything_else() {
        let id = ClusterId::from_bytes([0xab; 16]);
        assert_eq!(ClusterId::from_hex(&id.to_string()), Some(id));
        for bad in ["", "ab", &"g".repeat(32), &"é".repeat(16), &"+1".repeat(16)] {
            assert_eq!(ClusterId::from_hex(bad).map(|id| id.to_string()), None, "{bad}");
        }
    }
}
