//! Whether a chunk is as it should be, by what is known of its replicas: what `gfs fsck` tells.

/// What is known of a server's part in a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holding {
    /// It has everything: the replica is current.
    Whole,
    /// It joined and has not adopted, or may have lost something in a power cut.
    Partial,
    /// It has an older version than the confirmed one, or is no confirmed member.
    Stale,
    /// A checksum does not match.
    Corrupt,
    /// The server is there and has nothing of it.
    Missing,
    /// The server is silent.
    Away,
    /// The server has not told yet what it has.
    Unreported,
}

/// How a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// It has its replicas.
    Healthy,
    /// It has some; the others are made up for.
    BelowGoal,
    /// It has none that is whole, and one that may be is not heard of.
    Away,
    /// Every current replica is partial: an operator has to decide (docs/decisions/0020).
    Waiting,
    /// None is left that anybody could decide for.
    Lost,
}

/// Judges a chunk that was confirmed, by its members.
pub(crate) fn judge(goal: u32, members: &[Holding]) -> Health {
    let count = |holding: Holding| members.iter().filter(|member| **member == holding).count();
    let whole = count(Holding::Whole);
    if whole >= goal as usize {
        return Health::Healthy;
    }
    if whole > 0 {
        return Health::BelowGoal;
    }
    // Nobody is to decide as long as a whole replica may come back.
    if count(Holding::Away) + count(Holding::Unreported) > 0 {
        return Health::Away;
    }
    if count(Holding::Partial) > 0 { Health::Waiting } else { Health::Lost }
}

#[cfg(test)]
mod tests {
    use super::Holding::{Away, Corrupt, Missing, Partial, Stale, Unreported, Whole};
    use super::*;

    #[test]
    fn a_chunk_waits_for_a_decision_only_if_nobody_can_have_it_whole() {
        for (members, health) in [
            ([Whole, Whole, Whole], Health::Healthy),
            ([Whole, Whole, Corrupt], Health::BelowGoal),
            ([Whole, Partial, Away], Health::BelowGoal),
            ([Partial, Partial, Partial], Health::Waiting),
            ([Partial, Corrupt, Missing], Health::Waiting),
            ([Partial, Partial, Away], Health::Away),
            ([Partial, Unreported, Partial], Health::Away),
            ([Away, Missing, Corrupt], Health::Away),
            ([Corrupt, Missing, Stale], Health::Lost),
        ] {
            assert_eq!(judge(3, &members), health, "{members:?}");
        }
        assert_eq!(judge(2, &[Whole, Whole]), Health::Healthy);
        assert_eq!(judge(3, &[]), Health::Lost);
    }
}
