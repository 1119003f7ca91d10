//! Who are the members of a new grant, which of them are the base, and which is the primary.

use std::collections::BTreeSet;

use gfs_proto::id::{ChunkHandle, ServerId};
use gfs_proto::{Error, Result};

use super::mix;
use super::placement::{self, Candidate};

/// Fewest members under which a chunk with a larger goal is written: with one, a single disk could take
/// acknowledged data with it.
const WRITE_MEMBERS_MIN: usize = 2;

/// How many members are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// Those that have the content: nobody waits for a copy. Repair comes later.
    Survivors,
    /// As many as the goal: the others copy while the grant is made.
    Goal,
}

/// What is known when the members are chosen.
#[derive(Debug)]
pub(crate) struct Situation<'a> {
    /// The chunk.
    pub(crate) handle: ChunkHandle,
    /// Replicas wanted.
    pub(crate) goal: u32,
    /// Whether nobody has acknowledged content yet: all members start empty.
    pub(crate) fresh: bool,
    /// Whether a grant is pending that this one would end.
    pub(crate) pending: bool,
    /// Confirmed members that are alive and whole as far as is known, with their racks.
    pub(crate) current: &'a [(ServerId, String)],
    /// Live servers with room that may take an empty replica or join; may contain current ones.
    pub(crate) candidates: &'a [Candidate],
    /// Live servers, with room or not.
    pub(crate) alive: usize,
    /// The primary so far: stays it if it can, because its clients know it.
    pub(crate) primary: Option<ServerId>,
    /// Whether mutations will be allowed.
    pub(crate) writer: bool,
    /// How many members are wanted.
    pub(crate) reach: Reach,
}

/// The members of a new grant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    /// All members, in order of their ids.
    pub(crate) members: Vec<ServerId>,
    /// The current ones among them; none if the chunk is fresh.
    pub(crate) base: Vec<ServerId>,
    /// Who orders the mutations.
    pub(crate) primary: ServerId,
}

/// Chooses the members of a new grant.
///
/// # Errors
/// [`Error::NotEnoughServers`] if too few servers live for the goal and it is for writing,
/// [`Error::NoReplica`] if nobody who is left has the content, [`Error::Busy`] if replicas are wanted and nobody can join.
pub(crate) fn choose(situation: &Situation<'_>) -> Result<Choice> {
    let goal = usize::try_from(situation.goal).unwrap_or(usize::MAX);
    let not_enough = |alive: usize| Error::NotEnoughServers {
        wanted: situation.goal,
        alive: u32::try_from(alive).unwrap_or(u32::MAX),
    };
    // Differs from GFS: a write under fewer live servers than replicas says so (docs/decisions/0009).
    if situation.writer && situation.alive < goal {
        return Err(not_enough(situation.alive));
    }
    let salt = situation.handle.raw();
    if situation.fresh {
        let members = placement::pick(situation.candidates, &[], goal, salt);
        let Some(primary) = members.first().copied().filter(|_| members.len() == goal) else {
            return Err(not_enough(members.len()));
        };
        return Ok(Choice { members: sorted(members), base: Vec::new(), primary });
    }
    // Guard current_by_version: the base is made of confirmed whole members; a high version proves nothing.
    let base: Vec<ServerId> = situation.current.iter().map(|(server, _)| *server).collect();
    let primary = situation
        .primary
        .filter(|primary| base.contains(primary))
        .or_else(|| base.iter().copied().min_by_key(|server| mix(salt, server.raw())))
        .ok_or(Error::NoReplica { handle: situation.handle })?;
    let least = goal.min(WRITE_MEMBERS_MIN);
    let wanted = match (situation.reach, situation.writer) {
        (Reach::Goal, _) => goal,
        (Reach::Survivors, true) => least.max(base.len()),
        (Reach::Survivors, false) => base.len(),
    };
    let others: Vec<Candidate> =
        situation.candidates.iter().filter(|candidate| !base.contains(&candidate.server)).cloned().collect();
    let racks: Vec<&str> = situation.current.iter().map(|(_, rack)| rack.as_str()).collect();
    let joiners = placement::pick(&others, &racks, wanted.saturating_sub(base.len()), salt);
    if situation.writer && base.len() + joiners.len() < least {
        return Err(not_enough(base.len() + joiners.len()));
    }
    // A grant for the sake of new replicas that nobody joins would cost a version and two commits, again and again; but one
    // that is pending has to be ended, also without its joiners.
    if situation.reach == Reach::Goal && joiners.is_empty() && !situation.pending {
        return Err(Error::Busy { what: "every server that could take a replica".into() });
    }
    let members = sorted(base.iter().chain(&joiners).copied().collect());
    Ok(Choice { members, base: sorted(base), primary })
}

fn sorted(servers: Vec<ServerId>) -> Vec<ServerId> {
    servers.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u64]) -> Vec<ServerId> {
        raw.iter().copied().map(ServerId::from_raw).collect()
    }

    /// Chooses for goal 3 among live servers with ids `alive`.
    fn check(current: &[u64], alive: &[u64], writer: bool, reach: Reach, fresh: bool) -> Result<Choice> {
        let current: Vec<(ServerId, String)> =
            ids(current).into_iter().map(|server| (server, String::new())).collect();
        let candidates: Vec<Candidate> = ids(alive)
            .into_iter()
            .map(|server| Candidate { server, rack: String::new(), free_bytes: 1, total_bytes: 2, recent: 0 })
            .collect();
        choose(&Situation {
            handle: ChunkHandle::from_raw(1),
            goal: 3,
            fresh,
            pending: false,
            current: &current,
            candidates: &candidates,
            alive: alive.len(),
            primary: Some(ServerId::from_raw(2)),
            writer,
            reach,
        })
    }

    #[test]
    fn a_new_chunk_needs_as_many_servers_as_replicas() {
        assert_eq!(check(&[], &[1, 2, 3], true, Reach::Survivors, true).unwrap().members, ids(&[1, 2, 3]));
        let error = check(&[], &[1, 2], true, Reach::Survivors, true).unwrap_err();
        assert_eq!(error.to_string(), "3 replicas wanted, 2 chunkservers alive");
    }

    #[test]
    fn a_write_goes_on_with_the_two_survivors_and_no_one_waits_for_a_copy() {
        let choice = check(&[1, 2], &[1, 2, 4], true, Reach::Survivors, false).unwrap();
        assert_eq!((choice.members, choice.base), (ids(&[1, 2]), ids(&[1, 2])));
        assert_eq!(choice.primary, ServerId::from_raw(2));
    }

    #[test]
    fn a_single_survivor_is_not_written_alone() {
        let choice = check(&[1], &[1, 4, 5], true, Reach::Survivors, false).unwrap();
        assert_eq!((choice.members.len(), choice.base), (2, ids(&[1])));
        assert_eq!(choice.primary, ServerId::from_raw(1));
    }

    #[test]
    fn with_fewer_servers_than_replicas_writes_say_so_and_content_is_still_settled_for_reading() {
        assert!(check(&[1, 2], &[1, 2], true, Reach::Survivors, false).is_err());
        let choice = check(&[1, 2], &[1, 2], false, Reach::Survivors, false).unwrap();
        assert_eq!(choice.members, ids(&[1, 2]));
    }

    #[test]
    fn repair_fills_up_to_the_goal_and_the_joiners_are_no_base() {
        let choice = check(&[1, 2], &[1, 2, 4, 5], false, Reach::Goal, false).unwrap();
        assert_eq!((choice.members.len(), choice.base), (3, ids(&[1, 2])));
    }

    #[test]
    fn a_repair_without_a_joiner_is_none() {
        let error = check(&[1, 2], &[1, 2], false, Reach::Goal, false).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    }

    #[test]
    fn a_server_that_is_not_current_is_never_base_nor_primary() {
        // Guard current_by_version: server 2 was the primary, but it is not among the current ones.
        let choice = check(&[1], &[1, 2, 3], true, Reach::Goal, false).unwrap();
        assert_eq!((choice.primary, choice.base), (ServerId::from_raw(1), ids(&[1])));
        let nobody = check(&[], &[1, 2, 3], false, Reach::Goal, false).unwrap_err();
        assert_eq!(nobody, Error::NoReplica { handle: ChunkHandle::from_raw(1) });
    }
}
