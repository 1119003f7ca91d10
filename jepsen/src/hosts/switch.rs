//! The switch: what becomes of a packet between two hosts. Pure: packets and times come from outside.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::packet;

/// Bytes that may wait for one host; more is dropped, as a real switch does.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// What happens on the way from one host to another. Nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Nothing arrives, and nobody is told.
    pub(crate) cut: bool,
    /// Every packet takes this long.
    pub(crate) delay: Duration,
    /// Each up to so much longer, at random: they overtake each other.
    pub(crate) jitter: Duration,
    /// Of a thousand packets, so many are lost.
    pub(crate) lost: u32,
    /// Of a thousand, so many arrive twice.
    pub(crate) doubled: u32,
    /// Of a thousand, so many have a bit flipped that TCP notices.
    pub(crate) corrupted: u32,
    /// Of a thousand, so many have a bit flipped that TCP does not notice.
    pub(crate) forged: u32,
    /// Bytes that get through in a second, if that is bounded.
    pub(crate) bytes_per_second: Option<u32>,
}

/// What to do with a packet that has come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// To this host, now.
    Deliver(usize),
    /// Nothing now: it waits, or is no more.
    Keep,
}

/// All cables and what waits on them. Hosts are numbers.
#[derive(Debug)]
pub(super) struct Switch {
    weather: BTreeMap<(usize, usize), Weather>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    waiting_bytes: BTreeMap<usize, usize>,
    /// When the last packet of a cable of bounded speed will be through.
    free_at: BTreeMap<(usize, usize), Duration>,
    came: u64,
    dice: StdRng,
}

/// Ordered by time, then by arrival.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    came: u64,
    to: usize,
    packet: Vec<u8>,
}

impl Switch {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            weather: BTreeMap::new(),
            waiting: BinaryHeap::new(),
            waiting_bytes: BTreeMap::new(),
            free_at: BTreeMap::new(),
            came: 0,
            dice: StdRng::seed_from_u64(seed),
        }
    }

    /// Changes what happens on the way from one host to another.
    pub(super) fn set(&mut self, from: usize, to: usize, weather: Weather) {
        self.free_at.remove(&(from, to));
        if weather == Weather::default() {
            self.weather.remove(&(from, to));
        } else {
            self.weather.insert((from, to), weather);
        }
    }

    /// Good weather everywhere.
    pub(super) fn clear(&mut self) {
        self.weather.clear();
        self.free_at.clear();
    }

    /// Takes a packet of a host at a time.
    pub(super) fn take(&mut self, (from, to): (usize, usize), packet: &mut [u8], now: Duration) -> Fate {
        let Some(weather) = self.weather.get(&(from, to)).copied() else {
            return Fate::Deliver(to);
        };
        if weather.cut || self.hits(weather.lost) {
            return Fate::Keep;
        }
        if self.hits(weather.corrupted) {
            packet::corrupt(packet, &mut self.dice);
        }
        if self.hits(weather.forged) {
            packet::forge(packet, &mut self.dice);
        }
        let mut due = now + weather.delay;
        if let Some(speed) = weather.bytes_per_second {
            let through = Duration::from_secs_f64(packet.len() as f64 / f64::from(speed.max(1)));
            let free_at = self.free_at.entry((from, to)).or_default();
            *free_at = (*free_at).max(now) + through;
            due = *free_at + weather.delay;
        }
        if self.hits(weather.doubled) {
            self.wait(due, weather.jitter, to, packet);
        }
        if due == now && weather.jitter.is_zero() {
            return Fate::Deliver(to);
        }
        self.wait(due, weather.jitter, to, packet);
        Fate::Keep
    }

    /// The next packet whose time has come.
    pub(super) fn due(&mut self, now: Duration) -> Option<(usize, Vec<u8>)> {
        self.waiting.peek().filter(|first| first.0.due <= now)?;
        let Reverse(first) = self.waiting.pop()?;
        if let Some(bytes) = self.waiting_bytes.get_mut(&first.to) {
            *bytes = bytes.saturating_sub(first.packet.len());
        }
        Some((first.to, first.packet))
    }

    /// When the next packet is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.waiting.peek().map(|first| first.0.due)
    }

    fn wait(&mut self, due: Duration, jitter: Duration, to: usize, packet: &[u8]) {
        let bytes = self.waiting_bytes.entry(to).or_default();
        if *bytes + packet.len() > WAITING_BYTES_MAX {
            return;
        }
        *bytes += packet.len();
        self.came += 1;
        let due = due + jitter.mul_f64(self.dice.random());
        self.waiting.push(Reverse(Waiting { due, came: self.came, to, packet: packet.to_vec() }));
    }

    fn hits(&mut self, of_a_thousand: u32) -> bool {
        of_a_thousand > 0 && self.dice.random_range(0..1000) < of_a_thousand
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends packets `0..count` from host 0 to host 1, one each millisecond; what arrives, and when.
    fn send(weather: Weather, count: u8) -> Vec<(u8, Duration)> {
        let mut switch = Switch::new(7);
        switch.set(0, 1, weather);
        let mut arrived = Vec::new();
        let mut now = Duration::ZERO;
        for number in 0..count {
            let mut packet = [number; 100];
            if switch.take((0, 1), &mut packet, now) == Fate::Deliver(1) {
                arrived.push((packet[0], now));
            }
            now += MS;
        }
        while let Some(due) = switch.next_due() {
            let (to, packet) = switch.due(due).unwrap();
            assert_eq!(to, 1);
            arrived.push((packet[0], due));
        }
        arrived
    }

    #[test]
    fn in_good_weather_everything_arrives_at_once_and_a_cut_lets_nothing_through_one_way() {
        assert_eq!(send(Weather::default(), 3), [(0, Duration::ZERO), (1, MS), (2, 2 * MS)]);
        assert_eq!(send(Weather { cut: true, ..Weather::default() }, 3), []);
        let mut switch = Switch::new(7);
        switch.set(0, 1, Weather { cut: true, ..Weather::default() });
        assert_eq!(switch.take((1, 0), &mut [1], Duration::ZERO), Fate::Deliver(0));
        switch.clear();
        assert_eq!(switch.take((0, 1), &mut [1], Duration::ZERO), Fate::Deliver(1));
    }

    #[test]
    fn delay_keeps_the_order_and_jitter_does_not() {
        let delayed = send(Weather { delay: 20 * MS, ..Weather::default() }, 100);
        assert!(delayed.iter().enumerate().all(|(at, (number, _))| at == usize::from(*number)));
        assert_eq!(delayed[5].1, 25 * MS);
        let shaken = send(Weather { delay: 20 * MS, jitter: 20 * MS, ..Weather::default() }, 100);
        assert_eq!(shaken.len(), 100);
        assert!(!shaken.is_sorted_by_key(|(number, _)| *number));
        assert!(shaken.iter().all(|(number, at)| {
            let took = *at - u32::from(*number) * MS;
            (20 * MS..=40 * MS).contains(&took)
        }));
    }

    #[test]
    fn about_as_many_are_lost_and_doubled_as_asked_for() {
        let left = send(Weather { lost: 300, ..Weather::default() }, 200).len();
        assert!((100..180).contains(&left), "{left}");
        let with_doubles = send(Weather { doubled: 300, ..Weather::default() }, 200).len();
        assert!((220..300).contains(&with_doubles), "{with_doubles}");
    }

    #[test]
    fn a_slow_cable_lets_through_what_it_can() {
        // 100 bytes take 10 ms, one comes each.
        let slow = send(Weather { bytes_per_second: Some(10_000), ..Weather::default() }, 10);
        assert_eq!(slow.last(), Some(&(9, 100 * MS)));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut switch = Switch::new(7);
        switch.set(0, 1, Weather { delay: 1000 * MS, ..Weather::default() });
        let mut packet = vec![0; 1 << 20];
        for _ in 0..20 {
            switch.take((0, 1), &mut packet, Duration::ZERO);
        }
        assert_eq!(std::iter::from_fn(|| switch.due(2000 * MS)).count(), 8);
        switch.take((0, 1), &mut packet, 2000 * MS);
        assert!(switch.next_due().is_some(), "what has left makes room");
    }
}
