//! The types that openraft is generic over, and our names for its types: the only generics here.

use std::fmt;

use bytes::Bytes;
use openraft::alias;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::machine::Machine;
use crate::state;

openraft::declare_raft_types!(
    /// Our choice of types.
    pub(crate) TypeConfig:
        D = Operation,
        R = Reply,
        NodeId = u64,
        Node = MasterNode,
        // One leader a term, as in Raft's paper: orders to chunkservers and fences go by the term alone. openraft's default
        // lets a later leader of the same term take over.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type LeaderId = alias::LeaderIdOf<TypeConfig>;
pub(crate) type LogLeader = alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, MasterNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// An encoded proposal: the log carries it without looking inside.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Operation(pub(crate) Bytes);

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
// openraft's bounds ask for serde; disk and wire use `codec` instead.
impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}
impl<'de> Deserialize<'de> for Operation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|bytes| Self(bytes.into()))
    }
}

/// What applying an entry said; never leaves the process, so that no format hangs on it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// `None` for an entry of Raft's own.
    #[serde(skip)]
    pub(crate) state: Option<state::Reply>,
}

/// A member as Raft knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MasterNode {
    /// `host:port`.
    pub(crate) address: String,
    /// Never promoted.
    pub(crate) shadow: bool,
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::LeaderId;

    #[test]
    fn of_two_candidates_in_one_term_neither_is_the_later_one() {
        // With openraft's default the second one could lead after the first, in the same term (seed 12 of the simulation).
        let candidate = |node| LeaderId::new(7, node);
        assert_eq!(candidate(1).partial_cmp(&candidate(2)), None);
        assert!(LeaderId::new(8, 1) > candidate(2));
    }
}
