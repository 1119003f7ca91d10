//! The wall clock of the group: the middle of its voters' (decision 0023).
//!
//! Whoever does not lead asks the leader every 200 ms how far the log is. With the question goes what its own clock shows, with
//! the answer what the group's does; both go on here by the monotonic clock. So a leader whose own clock is wrong is
//! outvoted, and a new leader knows what the last one went by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::MasterId;
use gfs_proto::time::{Clock, Moment, UnixMs};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::types::Raft;

/// For how long it counts what a master said of its clock. Questions may wait for seconds.
const READING_AGE_MAX: Duration = Duration::from_secs(10);
/// For how long the group's clock goes on unasked: nearly as often as it is heard of.
const GROUP_AGE_MAX: Duration = Duration::from_secs(1);
/// Masters of whom something is remembered; voters always are.
pub(super) const MASTERS_MAX: usize = 64;
/// How long after a start commands wait for the group's time to be known.
const PATIENCE: Duration = Duration::from_secs(1);
/// Our own clock counts as it is if it is so near to the group's, which is late by the way of a message.
const NEAR: Duration = Duration::from_secs(5);
/// A clock that is so far from the middle is wrong: people are told. Right again it is at half of that.
const OFF: Duration = Duration::from_secs(30);

/// The voters, while this master leads.
pub(super) type Voters = Box<dyn Fn() -> Option<Vec<MasterId>> + Send + Sync>;

/// The group's wall clock, and this machine's monotonic one.
pub(super) struct GroupClock {
    own: Arc<dyn Clock>,
    id: MasterId,
    voters: Voters,
    /// Behind a lock for a few instructions only.
    readings: Mutex<Readings>,
    /// Whether there is a reading of the group's clock.
    known: watch::Sender<bool>,
}

#[derive(Default)]
struct Readings {
    /// What other masters told of their own clocks.
    others: BTreeMap<MasterId, Reading>,
    /// The group's clock when it was known last.
    group: Option<Reading>,
    /// Whose clock is known to be wrong.
    off: BTreeSet<MasterId>,
    /// When the group's time was first wanted and not known.
    waiting_since: Option<Moment>,
}

/// What a clock showed at a moment of this machine.
#[derive(Clone, Copy)]
struct Reading {
    at: Moment,
    wall: UnixMs,
}

impl Reading {
    /// What it shows now, if it runs as ours does.
    fn by(self, now: Moment) -> UnixMs {
        self.wall.plus(now.since(self.at))
    }
    fn is_younger(self, age: Duration, now: Moment) -> bool {
        now.since(self.at) <= age
    }
}

fn apart(one: UnixMs, other: UnixMs) -> Duration {
    one.since(other).max(other.since(one))
}

/// The voters by openraft's metrics, while this node leads.
pub(super) fn voters_of(raft: Raft) -> Voters {
    Box::new(move || {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state.is_leader() && metrics.current_leader == Some(metrics.id);
        leads.then(|| metrics.membership_config.voter_ids().map(MasterId::from_raw).collect())
    })
}

/// Remembers the last word of a master.
pub(super) fn remember<T>(
    known: &mut BTreeMap<MasterId, T>,
    (master, word): (MasterId, T),
    voters: impl FnOnce() -> Vec<MasterId>,
) {
    if known.len() >= MASTERS_MAX && !known.contains_key(&master) {
        let voters = voters();
        if !voters.contains(&master) {
            return;
        }
        known.retain(|other, _| voters.contains(other));
    }
    known.insert(master, word);
}

impl GroupClock {
    /// Knows this machine's clock only.
    pub(super) fn new(own: Arc<dyn Clock>, id: MasterId, voters: Voters) -> Self {
        let known = watch::Sender::new(false);
        Self { own, id, voters, readings: Mutex::default(), known }
    }

    /// On the leader: what another master's own clock shows, and what it takes the group's to show.
    pub(super) fn heard(&self, master: MasterId, wall: UnixMs, group: Option<UnixMs>) {
        let Some(voters) = (self.voters)() else { return };
        let now = self.own.moment();
        self.note(master, Reading { at: now, wall }, &voters);
        if let Some(group) = group.filter(|_| !*self.known.borrow()) {
            self.told(group);
        }
        let clocks = self.clocks(&voters, now);
        let Some(middle) = self.middle(&clocks, voters.len(), now) else { return };
        self.told(middle);
        // Of two that differ nobody can say which is wrong.
        if clocks.len() > 2 && voters.contains(&master) {
            self.judge(master, wall, middle);
            self.judge(self.id, self.own.wall(), middle);
        }
    }

    fn note(&self, master: MasterId, reading: Reading, voters: &[MasterId]) {
        let mut readings = self.readings.lock();
        remember(&mut readings.others, (master, reading), || voters.to_vec());
    }

    /// Tells people of a clock that is wrong, once, and when it is right again.
    fn judge(&self, master: MasterId, wall: UnixMs, middle: UnixMs) {
        let by = apart(wall, middle);
        let off = &mut self.readings.lock().off;
        if by > OFF && off.len() < MASTERS_MAX && off.insert(master) {
            let way = if wall > middle { "ahead" } else { "behind" };
            tracing::warn!(%master, ?by, way, "the wall clock of a master is wrong, the others outvote it: set it");
        }
        if by < OFF / 2 && off.remove(&master) {
            tracing::info!(%master, "the wall clock of a master is right again");
        }
    }

    /// What the group's clock shows, by the leader's word or by our own count.
    pub(super) fn told(&self, wall: UnixMs) {
        let at = self.own.moment();
        self.readings.lock().group = Some(Reading { at, wall });
        self.known.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// The clocks of the voters, as far as they are known, in their order.
    fn clocks(&self, voters: &[MasterId], now: Moment) -> Vec<UnixMs> {
        let readings = self.readings.lock();
        let shown = |voter: &MasterId| {
            if *voter == self.id {
                return Some(self.own.wall());
            }
            let reading = readings.others.get(voter);
            reading.filter(|reading| reading.is_younger(READING_AGE_MAX, now)).map(|reading| reading.by(now))
        };
        let mut clocks: Vec<UnixMs> = voters.iter().filter_map(shown).collect();
        clocks.sort_unstable();
        clocks
    }

    /// The middle of the clocks, if they are those of most voters. Of two in the middle it is the one that goes on as the
    /// group's clock did; if that is not known, and no third is heard of soon, the lower one.
    fn middle(&self, clocks: &[UnixMs], voters: usize, now: Moment) -> Option<UnixMs> {
        if clocks.len() <= voters / 2 {
            return None;
        }
        let (lower, upper) = (*clocks.get((clocks.len() - 1) / 2)?, *clocks.get(clocks.len() / 2)?);
        let expected = self.readings.lock().group.map(|group| group.by(now));
        match expected {
            Some(expected) if apart(upper, expected) < apart(lower, expected) => Some(upper),
            None if apart(upper, lower) > OFF && !self.patience_left(now).is_zero() => None,
            Some(_) | None => Some(lower),
        }
    }

    /// How long it is still waited for the others' clocks.
    fn patience_left(&self, now: Moment) -> Duration {
        let since = *self.readings.lock().waiting_since.get_or_insert(now);
        PATIENCE.saturating_sub(now.since(since))
    }

    /// The group's time, if it is known.
    pub(super) fn time(&self) -> Option<UnixMs> {
        let now = self.own.moment();
        let group = self.readings.lock().group;
        // Whoever is asked or asks hears of it all the time, and need not count anew.
        let young = group.filter(|group| group.is_younger(GROUP_AGE_MAX, now));
        let counted = || {
            let voters = (self.voters)()?;
            self.middle(&self.clocks(&voters, now), voters.len(), now)
        };
        let last = || group.map(|group| group.by(now));
        let time = young.map(|group| group.by(now)).or_else(counted).or_else(last)?;
        let own = self.own.wall();
        Some(if apart(own, time) <= NEAR { own } else { time })
    }

    /// The time for a command. While the group's is not known it is 1970, by which the state's clock does not move: nothing
    /// ends. Right after the start of a leader, commands wait for it a moment: a session that is opened by a clock
    /// that stands still ends when it goes on.
    pub(super) async fn date(&self) -> UnixMs {
        if let Some(time) = self.time() {
            return time;
        }
        let patience = self.patience_left(self.own.moment());
        // What anybody else proposes is refused.
        if !patience.is_zero() && (self.voters)().is_some() {
            let mut known = self.known.subscribe();
            if tokio::time::timeout(patience, known.wait_for(|known| *known)).await.is_err() {
                tracing::debug!("few masters have said what their clocks show, or two of them differ");
            }
        }
        self.time().unwrap_or_default()
    }
}

impl Clock for GroupClock {
    /// The group's time, or our own as long as that is not known: for people and for leases, which are safe without any.
    fn wall(&self) -> UnixMs {
        self.time().unwrap_or_else(|| self.own.wall())
    }
    fn moment(&self) -> Moment {
        self.own.moment()
    }
}

#[cfg(test)]
mod tests {
    use gfs_proto::time::ManualClock;
    use proptest::prelude::*;

    use super::*;

    /// Wall time at the start of each test.
    const START_MS: u64 = 1_000_000;
    const YEAR_MS: i64 = 365 * 24 * 3_600_000;

    /// A clock whose wall time can be set off.
    #[derive(Default)]
    struct Odd {
        time: ManualClock,
        off_ms: Mutex<i64>,
    }
    impl Clock for Odd {
        fn wall(&self) -> UnixMs {
            let right = START_MS + self.time.wall().raw();
            UnixMs::from_raw(right.saturating_add_signed(*self.off_ms.lock()))
        }
        fn moment(&self) -> Moment {
            self.time.moment()
        }
    }

    /// A master 1 of this many voters that leads.
    fn leader(voters: u64) -> (Arc<Odd>, GroupClock) {
        let own = Arc::new(Odd::default());
        let all: Vec<MasterId> = (1..=voters).map(MasterId::from_raw).collect();
        let clock = GroupClock::new(own.clone(), MasterId::from_raw(1), Box::new(move || Some(all.clone())));
        (own, clock)
    }

    fn right(own: &Odd) -> UnixMs {
        UnixMs::from_raw(START_MS).plus(own.moment().since(Moment::default()))
    }

    fn off(right: UnixMs, off_ms: i64) -> UnixMs {
        UnixMs::from_raw(right.raw().saturating_add_signed(off_ms))
    }

    #[test]
    fn one_wrong_clock_of_three_is_outvoted_whoevers_it_is() {
        for off_ms in [YEAR_MS, -YEAR_MS, 6_000] {
            for wrong in 1..=3 {
                let (own, clock) = leader(3);
                let shows = |master| off(right(&own), if master == wrong { off_ms } else { 0 });
                *own.off_ms.lock() = if wrong == 1 { off_ms } else { 0 };
                for master in [2, 3] {
                    clock.heard(MasterId::from_raw(master), shows(master), None);
                }
                for later in [0, 3, 3600] {
                    own.time.advance(Duration::from_secs(later));
                    assert_eq!(clock.time(), Some(right(&own)), "{wrong} {off_ms}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_jumps_goes_on_by_the_others_without_having_heard_them_anew() {
        let (own, clock) = leader(3);
        for master in [2, 3] {
            clock.heard(MasterId::from_raw(master), right(&own), None);
        }
        own.time.advance(Duration::from_secs(5));
        *own.off_ms.lock() = YEAR_MS;
        assert_eq!(clock.wall(), right(&own));
        assert_eq!(clock.date().await, right(&own));
    }

    #[test]
    fn of_two_clocks_that_one_counts_which_goes_on_as_before() {
        for off_ms in [YEAR_MS, -YEAR_MS] {
            let (own, clock) = leader(3);
            clock.told(right(&own));
            *own.off_ms.lock() = off_ms;
            own.time.advance(Duration::from_secs(60));
            clock.heard(MasterId::from_raw(2), right(&own), None);
            assert_eq!(clock.time(), Some(right(&own)), "it was told before");

            let (own, clock) = leader(3);
            *own.off_ms.lock() = off_ms;
            clock.heard(MasterId::from_raw(2), right(&own), Some(right(&own)));
            assert_eq!(clock.time(), Some(right(&own)), "who asks was told");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_before_two_clocks_that_differ_wait_for_a_third_and_then_the_lower_counts() {
        for (off_ms, third) in [(YEAR_MS, true), (-YEAR_MS, true), (YEAR_MS, false), (-YEAR_MS, false)] {
            let (own, clock) = leader(3);
            *own.off_ms.lock() = off_ms;
            clock.heard(MasterId::from_raw(2), right(&own), None);
            assert_eq!(clock.time(), None);
            own.time.advance(PATIENCE - Duration::from_millis(1));
            clock.heard(MasterId::from_raw(2), right(&own), None);
            assert_eq!(clock.time(), None);
            if third {
                clock.heard(MasterId::from_raw(3), right(&own), None);
                assert_eq!(clock.date().await, right(&own));
            } else {
                own.time.advance(Duration::from_millis(1));
                clock.heard(MasterId::from_raw(2), right(&own), None);
                assert_eq!(clock.date().await, own.wall().min(right(&own)));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_knows_nobodys_clock_waits_for_the_others_and_then_moves_nothing() {
        let (own, clock) = leader(3);
        *own.off_ms.lock() = YEAR_MS;
        let begun = tokio::time::Instant::now();
        let heard = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for master in [2, 3] {
                clock.heard(MasterId::from_raw(master), right(&own), None);
            }
        };
        assert_eq!(tokio::join!(clock.date(), heard).0, right(&own));
        assert_eq!(begun.elapsed(), Duration::from_millis(200));

        let (own, clock) = leader(3);
        // Callers that give up and come again wait no longer together.
        for (later, waits) in [(600, 1000), (399, 400), (1, 1), (0, 0)] {
            let begun = tokio::time::Instant::now();
            assert_eq!(clock.date().await, UnixMs::default());
            assert_eq!(begun.elapsed(), Duration::from_millis(waits));
            own.time.advance(Duration::from_millis(later));
        }
        assert_eq!(clock.wall(), own.wall());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_goes_by_its_own_and_who_does_not_lead_by_what_it_was_told() {
        let begun = tokio::time::Instant::now();
        let (own, clock) = leader(1);
        for off_ms in [77, YEAR_MS, 0] {
            *own.off_ms.lock() = off_ms;
            assert_eq!(clock.date().await, own.wall());
        }

        let own = Arc::new(Odd::default());
        let clock = GroupClock::new(own.clone(), MasterId::from_raw(1), Box::new(|| None));
        assert_eq!(clock.date().await, UnixMs::default(), "it may come to lead before it proposes");
        clock.heard(MasterId::from_raw(2), right(&own), None);
        assert_eq!(clock.time(), None, "it does not lead");
        assert_eq!(clock.wall(), own.wall());
        clock.told(off(own.wall(), 9_000));
        own.time.advance(Duration::from_secs(3600));
        assert_eq!(clock.wall(), off(own.wall(), 9_000));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_is_nearly_right_counts_as_it_is() {
        let (own, clock) = leader(3);
        for master in [2, 3] {
            clock.heard(MasterId::from_raw(master), off(right(&own), -1_900), None);
        }
        assert_eq!(clock.wall(), own.wall(), "a question was under way for long");
    }

    #[test]
    fn what_was_said_long_ago_and_by_who_does_not_vote_does_not_count() {
        let (own, clock) = leader(3);
        for master in [2, 3] {
            clock.heard(MasterId::from_raw(master), off(right(&own), 9_000), None);
        }
        own.time.advance(READING_AGE_MAX + Duration::from_millis(1));
        clock.heard(MasterId::from_raw(4), right(&own), None);
        assert_eq!(clock.clocks(&(clock.voters)().unwrap(), own.moment()), [right(&own)]);
        assert_eq!(clock.wall(), off(right(&own), 9_000), "the group's clock goes on");
    }

    proptest! {
        #[test]
        fn whatever_two_of_five_voters_and_strangers_say_the_other_three_decide(
            strangers in prop::collection::vec(6..u64::MAX, 0..2 * MASTERS_MAX),
            rounds in prop::collection::vec((4..100_u64, any::<u64>(), 0..9_000_u64), 1..100),
        ) {
            let (own, clock) = leader(5);
            for stranger in strangers {
                clock.heard(MasterId::from_raw(stranger), UnixMs::from_raw(stranger), None);
            }
            for (liar, wall, later_ms) in rounds {
                for master in [2, 3] {
                    clock.heard(MasterId::from_raw(master), right(&own), None);
                }
                clock.heard(MasterId::from_raw(liar), UnixMs::from_raw(wall), None);
                own.time.advance(Duration::from_millis(later_ms));
                let wrong = apart(clock.wall(), right(&own));
                prop_assert!(wrong <= NEAR, "{wrong:?}");
            }
            let readings = clock.readings.lock();
            prop_assert!(readings.others.len() <= MASTERS_MAX && readings.off.len() <= MASTERS_MAX);
        }
    }
}
