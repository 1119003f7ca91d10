//! Who belongs to the master group: joining, voting, leaving, and the leader's care for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{MasterId, Uuid};
use gfs_proto::{Error, Result};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use tokio::sync::Mutex;

use super::Member;
use super::clock::GroupClock;
use super::network::Network;
use super::node::{forwarded, propose};
use super::types::{MasterNode, Metrics, Raft, TypeConfig};
use crate::state::{Applied, Command, Proposal};

/// How often a member looks at the group.
pub(super) const CARE_PERIOD: Duration = Duration::from_millis(500);
/// A learner this close behind the leader can vote without holding up commits.
const PROMOTE_LAG_MAX: u64 = 1000;
/// Looks in a row at which that must hold, and after which a half-made change counts as abandoned.
const LOOKS: u32 = 3;
/// Who has not answered the leader for so long is not given a vote: the group would wait for its.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How long one change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Changes the group, one change at a time.
pub(super) struct Members {
    raft: Raft,
    clock: Arc<GroupClock>,
    network: Arc<Network>,
    /// Who we are, by our directory and by the name under which we can be reached.
    identity: (Uuid, String),
    /// Held across a change, because two at once may end in a group that nobody wanted.
    changing: Mutex<()>,
}

/// What was seen at the last looks.
#[derive(Debug, Default)]
pub(super) struct Looks {
    near: BTreeMap<u64, u32>,
    joint: u32,
    /// Members that were told where we are now, and who is said to lead.
    told: usize,
    leader: Option<String>,
}

fn change_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
    match error {
        RaftError::Fatal(fatal) => Error::unavailable(fatal),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forwarded(&forward),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            Error::unavailable("the leader changed")
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::LearnerNotFound(error) => {
                Error::NotFound { what: format!("m{}", error.node_id) }
            }
            ChangeMembershipError::InProgress(error) => Error::unavailable(error),
            ChangeMembershipError::UncommittedLeaderLog(error) => Error::unavailable(error),
            error @ (ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::UnsupportedMembershipTransition(_)
            | ChangeMembershipError::NodeMetadataChanged(_)) => Error::bad_argument(error),
        },
        RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => Error::unavailable(error),
    }
}

/// The group as these metrics show it.
pub(super) fn list(metrics: &Metrics) -> Vec<Member> {
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let member = |(id, node): (&u64, &MasterNode)| Member {
        id: MasterId::from_raw(*id),
        address: node.address.clone(),
        voter: voters.contains(id),
        shadow: node.shadow,
    };
    metrics.membership_config.nodes().map(member).collect()
}

/// How far behind each other member is that has ever answered this leader; empty unless this node leads.
pub(super) fn lags(metrics: &Metrics) -> Vec<(MasterId, u64)> {
    let lag = |(id, matching): (&u64, &Option<super::types::LogId>)| {
        Some((MasterId::from_raw(*id), metrics.last_log_index?.saturating_sub(matching.as_ref()?.index)))
    };
    let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
    others.filter_map(lag).collect()
}

/// The members that have answered this leader lately; none unless this node leads.
fn answering(metrics: &Metrics) -> BTreeSet<MasterId> {
    let answered = metrics.heartbeat.iter().flatten().filter_map(|(id, at)| Some((id, (*at)?)));
    answered.filter(|(_, at)| at.elapsed() < SILENCE_MAX).map(|(id, _)| MasterId::from_raw(*id)).collect()
}

impl Members {
    pub(super) fn new(
        raft: Raft,
        clock: Arc<GroupClock>,
        network: Arc<Network>,
        identity: (Uuid, String),
    ) -> Self {
        Self { raft, clock, network, identity, changing: Mutex::new(()) }
    }

    fn metrics(&self) -> Metrics {
        // Cloned at once: holding the reference stops openraft.
        self.raft.metrics().borrow_watched().clone()
    }

    fn find(&self, id: MasterId) -> Option<Member> {
        list(&self.metrics()).into_iter().find(|member| member.id == id)
    }

    async fn change(&self, change: ChangeMembers<u64, MasterNode>, retain: bool) -> Result<()> {
        let _changing = self.changing.lock().await;
        match tokio::time::timeout(CHANGE_TIMEOUT, self.raft.change_membership(change, retain)).await {
            Ok(changed) => changed.map(drop).map_err(change_error),
            Err(_) => Err(Error::unavailable("the change of the group takes long")),
        }
    }

    pub(super) async fn join(&self, uuid: Uuid, address: &str, shadow: bool) -> Result<MasterId> {
        let command = Command::RegisterMaster { uuid, address: address.to_owned(), shadow };
        let proposal = Proposal::internal(self.clock.date().await, command);
        let (_, answer) = propose(&self.raft, &proposal).await?;
        let Applied::MasterRegistered { master } = answer? else {
            return Err(Error::internal("odd answer to the registration of a master"));
        };
        self.add_learner(master, address, shadow).await?;
        Ok(master)
    }

    pub(super) async fn add_learner(&self, id: MasterId, address: &str, shadow: bool) -> Result<()> {
        let node = MasterNode { address: address.to_owned(), shadow };
        match self.find(id) {
            Some(member) if member.address == address && member.shadow == shadow => Ok(()),
            // The directory with this id asks from another address itself: it has moved.
            Some(_) => self.change(ChangeMembers::SetNodes(BTreeMap::from([(id.raw(), node)])), true).await,
            None => self.change(ChangeMembers::AddNodes(BTreeMap::from([(id.raw(), node)])), true).await,
        }
    }

    pub(super) async fn promote(&self, id: MasterId) -> Result<()> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.raw()])), true).await
    }

    pub(super) async fn remove(&self, id: MasterId) -> Result<()> {
        let members = list(&self.metrics());
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return Err(Error::NotFound { what: id.to_string() });
        };
        if !member.voter {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id.raw()])), false).await;
        }
        if members.iter().filter(|member| member.voter).count() == 1 {
            return Err(Error::bad_argument(format!("{id} is the only voter")));
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id.raw()])), false).await
    }

    /// One look of the leader: finishes changes that a dead leader left half made, lets learners vote that
    /// have caught up, corrects its own address. One look of another member: tells them where it is, if they are wrong.
    pub(super) async fn care(&self, looks: &mut Looks) -> Result<()> {
        let metrics = self.metrics();
        let nodes = metrics.membership_config.nodes();
        self.network.learn_addresses(nodes.map(|(id, node)| (*id, node.address.clone())));
        if metrics.current_leader != Some(metrics.id) || !metrics.state.is_leader() {
            (looks.near, looks.joint) = (BTreeMap::new(), 0);
            return self.announce(&metrics, looks).await;
        }
        if metrics.membership_config.get_joint_config().len() > 1 {
            looks.joint += 1;
            if looks.joint < LOOKS {
                return Ok(());
            }
            tracing::info!("finishing a change of the group that was left half made");
            return self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await;
        }
        looks.joint = 0;
        self.correct_address(&metrics).await?;
        let answering = answering(&metrics);
        let lags: Vec<_> = lags(&metrics).into_iter().filter(|(id, _)| answering.contains(id)).collect();
        let members = list(&metrics);
        // One at a look: the next change needs the members as they are after this one.
        if let Some(id) = looks.ready(&members, &lags) {
            tracing::info!(%id, "a master has caught up and votes from now on");
            let gone = replaced(&members, id, &answering);
            if gone.is_empty() {
                self.promote(id).await?;
            } else {
                self.replace(&members, &gone, id).await?;
            }
        }
        Ok(())
    }

    /// Lets a learner vote in the place of voters that can't be any more.
    async fn replace(&self, members: &[Member], gone: &[MasterId], id: MasterId) -> Result<()> {
        tracing::info!(%id, ?gone, "it replaces who had its address before");
        let stays = members.iter().filter(|member| member.voter && !gone.contains(&member.id));
        let voters = stays.map(|member| member.id.raw()).chain([id.raw()]).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters), false).await
    }

    /// Tells the others where this member is, if they think that it is somewhere else: they would go on sending there, and
    /// it would look well from its own log.
    async fn announce(&self, metrics: &Metrics, looks: &mut Looks) -> Result<()> {
        let (uuid, address) = &self.identity;
        let Some(node) = metrics.membership_config.get_node(&metrics.id) else { return Ok(()) };
        if node.address == *address {
            return Ok(());
        }
        let others = list(metrics).into_iter().filter(|member| member.id.raw() != metrics.id);
        let others: Vec<String> = others.map(|member| member.address).collect();
        let next = others.get(looks.told % others.len().max(1)).cloned();
        let Some(master) = looks.leader.take().or(next) else { return Ok(()) };
        looks.told += 1;
        tracing::info!(%address, before = node.address, %master, "telling a master where this one is now");
        match self.network.join(&master, *uuid, address, node.shadow).await {
            Err(Error::NotLeader { leader }) => looks.leader = leader,
            told => drop(told?),
        }
        Ok(())
    }

    async fn correct_address(&self, metrics: &Metrics) -> Result<()> {
        let (_, address) = &self.identity;
        match metrics.membership_config.get_node(&metrics.id) {
            Some(node) if node.address != *address => {
                let node = MasterNode { address: address.clone(), shadow: node.shadow };
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(metrics.id, node)])), true).await
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The voters in whose place a learner comes: silent, and at its address, where it answers now. Counting them on would cost
/// the group a failure that it could survive, and it does not come back: its directory is gone (`crate::identity`).
fn replaced(members: &[Member], learner: MasterId, answering: &BTreeSet<MasterId>) -> Vec<MasterId> {
    let address = members.iter().find(|member| member.id == learner).map(|member| &member.address);
    let there = |member: &&Member| Some(&member.address) == address && member.id != learner;
    let gone = members.iter().filter(there).filter(|member| member.voter && !answering.contains(&member.id));
    gone.map(|member| member.id).collect()
}

impl Looks {
    /// A learner that was near the leader's end at some looks in a row.
    fn ready(&mut self, members: &[Member], lags: &[(MasterId, u64)]) -> Option<MasterId> {
        let lags: BTreeMap<MasterId, u64> = lags.iter().copied().collect();
        let mut near = BTreeMap::new();
        for member in members.iter().filter(|member| !member.voter && !member.shadow) {
            if lags.get(&member.id).is_some_and(|lag| *lag < PROMOTE_LAG_MAX) {
                let id = member.id.raw();
                near.insert(id, self.near.get(&id).copied().unwrap_or(0) + 1);
            }
        }
        self.near = near;
        let ready = self.near.iter().find(|(_, looks)| **looks >= LOOKS);
        ready.map(|(id, _)| MasterId::from_raw(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_learner_that_stays_near_gets_a_vote_and_a_shadow_never() {
        let member =
            |id, voter, shadow| Member { id: MasterId::from_raw(id), address: String::new(), voter, shadow };
        let members = [member(1, true, false), member(2, false, false), member(3, false, true)];
        let lags = |lag| [(MasterId::from_raw(2), lag), (MasterId::from_raw(3), 0)];
        let mut looks = Looks::default();
        let mut seen = Vec::new();
        for lag in [0, 0, PROMOTE_LAG_MAX, 0, 5, 9] {
            seen.push(looks.ready(&members, &lags(lag)));
        }
        assert_eq!(seen, [None, None, None, None, None, Some(MasterId::from_raw(2))]);
    }
}
