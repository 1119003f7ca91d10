//! Our own encoding of what openraft keeps and sends: protobuf, so that fields can be added.
//!
//! ```text
//! on disk  := format(1 byte, now 1) message          on the wire := RaftMessage { format, body: message }
//! ```
//! A format with a higher number is refused: it was written by a later version.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use super::types::{
    Entry, LeaderId, LogId, LogLeader, MasterNode, Membership, Operation, SnapshotMeta, StoredMembership,
    Vote,
};

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u8 = 1;

/// Encodes for the disk.
pub(crate) fn to_disk(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    bytes.extend(message.encode_to_vec());
    bytes
}

/// Decodes what [`to_disk`] wrote.
///
/// # Errors
/// `InvalidData` for a later format or damaged bytes.
pub(crate) fn from_disk<M: Message + Default>(bytes: impl Into<Bytes>) -> io::Result<M> {
    let mut bytes: Bytes = bytes.into();
    match bytes.first() {
        Some(&FORMAT) => M::decode(bytes.split_off(1)).map_err(|error| invalid(&error.to_string())),
        Some(format) => Err(invalid(&format!("format {format} is not known here, only up to {FORMAT}"))),
        None => Err(invalid("empty record")),
    }
}

/// The error of bytes that are no record.
pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The value, which a well-formed message has.
pub(crate) fn required<T>(field: Option<T>) -> io::Result<T> {
    field.ok_or_else(|| invalid("a field is missing"))
}

/// Position in the log.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LogIdRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    // 2 was the leader, which the term says; never reuse.
    #[prost(uint64, tag = "3")]
    index: u64,
}
impl From<&LogId> for LogIdRow {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}
impl From<LogIdRow> for LogId {
    fn from(row: LogIdRow) -> Self {
        Self::new(LogLeader::new(row.term), row.index)
    }
}

/// Whom a node follows or votes for.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}
impl From<&Vote> for VoteRow {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}
impl From<VoteRow> for Vote {
    fn from(row: VoteRow) -> Self {
        Self { leader_id: LeaderId { term: row.term, voted_for: row.node }, committed: row.committed }
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
struct NodeRow {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(bool, tag = "3")]
    shadow: bool,
}
#[derive(Clone, PartialEq, Eq, Message)]
struct VotersRow {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

/// Who votes (two sets while that changes) and who is a member.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MembershipRow {
    #[prost(message, repeated, tag = "1")]
    voters: Vec<VotersRow>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<NodeRow>,
}
impl From<&Membership> for MembershipRow {
    fn from(membership: &Membership) -> Self {
        let voters = membership.get_joint_config().iter();
        let node = |(id, node): (&u64, &MasterNode)| NodeRow {
            id: *id,
            address: node.address.clone(),
            shadow: node.shadow,
        };
        Self {
            voters: voters.map(|set| VotersRow { ids: set.iter().copied().collect() }).collect(),
            nodes: membership.nodes().map(node).collect(),
        }
    }
}
impl MembershipRow {
    fn into_membership(self) -> io::Result<Membership> {
        let voters: Vec<BTreeSet<u64>> =
            self.voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
        let nodes: BTreeMap<u64, MasterNode> = self
            .nodes
            .into_iter()
            .map(|node| (node.id, MasterNode { address: node.address, shadow: node.shadow }))
            .collect();
        if voters.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(voters, nodes).map_err(|error| invalid(&error.to_string()))
    }
}

/// A membership and the entry that set it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StoredMembershipRow {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdRow>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipRow>,
}
impl From<&StoredMembership> for StoredMembershipRow {
    fn from(stored: &StoredMembership) -> Self {
        Self { id: stored.log_id().as_ref().map(Into::into), membership: Some(stored.membership().into()) }
    }
}
impl StoredMembershipRow {
    /// The membership.
    pub(crate) fn into_stored(self) -> io::Result<StoredMembership> {
        let membership = required(self.membership)?.into_membership()?;
        Ok(StoredMembership::new(self.id.map(Into::into), membership))
    }
}

/// What a checkpoint contains.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SnapshotMetaRow {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdRow>,
    #[prost(message, optional, tag = "2")]
    membership: Option<StoredMembershipRow>,
}
impl From<&SnapshotMeta> for SnapshotMetaRow {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(Into::into),
            membership: Some((&meta.last_membership).into()),
        }
    }
}
impl SnapshotMetaRow {
    /// The metadata.
    pub(crate) fn into_meta(self) -> io::Result<SnapshotMeta> {
        Ok(SnapshotMeta {
            last_log_id: self.last.map(Into::into),
            last_membership: required(self.membership)?.into_stored()?,
        })
    }
}

/// One entry of the log. Kinds are persisted: never reuse one.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EntryRow {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdRow>,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}
const KIND_BLANK: u32 = 0;
const KIND_OPERATION: u32 = 1;
const KIND_MEMBERSHIP: u32 = 2;

impl From<&Entry> for EntryRow {
    fn from(entry: &Entry) -> Self {
        let (kind, data) = match &entry.payload {
            EntryPayload::Blank => (KIND_BLANK, Bytes::new()),
            EntryPayload::Normal(operation) => (KIND_OPERATION, operation.0.clone()),
            EntryPayload::Membership(membership) => {
                (KIND_MEMBERSHIP, MembershipRow::from(membership).encode_to_vec().into())
            }
        };
        Self { id: Some((&entry.log_id).into()), kind, data }
    }
}
impl EntryRow {
    /// The entry.
    pub(crate) fn into_entry(self) -> io::Result<Entry> {
        let payload = match self.kind {
            KIND_BLANK => EntryPayload::Blank,
            KIND_OPERATION => EntryPayload::Normal(Operation(self.data)),
            KIND_MEMBERSHIP => {
                let row = MembershipRow::decode(self.data).map_err(|error| invalid(&error.to_string()))?;
                EntryPayload::Membership(row.into_membership()?)
            }
            kind => return Err(invalid(&format!("entry of unknown kind {kind}"))),
        };
        Ok(Entry { log_id: required(self.id)?.into(), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogIdRow { term, index }.into()
    }

    fn membership() -> Membership {
        let node = |port: u64| MasterNode { address: format!("h:{port}"), shadow: port == 3 };
        Membership::new(
            vec![BTreeSet::from([1]), BTreeSet::from([1, 2])],
            BTreeMap::from([(1, node(1)), (2, node(2)), (3, node(3))]),
        )
        .unwrap()
    }

    #[test]
    fn every_kind_of_entry_survives_the_disk() {
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Operation(Bytes::from_static(b"op"))),
            EntryPayload::Membership(membership()),
        ] {
            let entry = Entry { log_id: id(3, 700), payload };
            let row: EntryRow = from_disk(to_disk(&EntryRow::from(&entry))).unwrap();
            assert_eq!(row.into_entry().unwrap(), entry);
        }
    }

    #[test]
    fn the_bytes_of_an_entry_never_change() {
        let entry =
            Entry { log_id: id(3, 700), payload: EntryPayload::Normal(Operation(Bytes::from_static(b"op"))) };
        let bytes = [1, 10, 5, 8, 3, 24, 188, 5, 16, 1, 26, 2, b'o', b'p'];
        assert_eq!(to_disk(&EntryRow::from(&entry)), bytes);
        // Once the leader stood there too.
        let older = vec![1, 10, 7, 8, 3, 16, 2, 24, 188, 5, 16, 1, 26, 2, b'o', b'p'];
        assert_eq!(from_disk::<EntryRow>(older).unwrap().into_entry().unwrap(), entry);
    }

    #[test]
    fn a_snapshot_meta_survives_and_damage_or_a_later_format_is_refused() {
        let meta = SnapshotMeta {
            last_log_id: Some(id(1, 9)),
            last_membership: StoredMembership::new(Some(id(1, 4)), membership()),
        };
        let bytes = to_disk(&SnapshotMetaRow::from(&meta));
        assert_eq!(from_disk::<SnapshotMetaRow>(bytes.clone()).unwrap().into_meta().unwrap(), meta);
        let mut later = bytes;
        later[0] = FORMAT + 1;
        assert!(from_disk::<SnapshotMetaRow>(later).unwrap_err().to_string().contains("format 2"));
        assert!(from_disk::<SnapshotMetaRow>(vec![FORMAT, 0xff]).is_err());
        assert!(EntryRow { id: None, kind: 9, data: Bytes::new() }.into_entry().is_err());
    }
}
