//! A network that cuts, loses, delays, shuffles, doubles and damages. What is cut is silent: nothing is refused.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gfs_tests::Role;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::Ring;
use crate::hosts::{CLIENTS, Weather};

/// How long a network is bad: shorter and longer than an election, a validation of a replica and its fence.
const BAD_MS: std::ops::Range<u64> = 300..8000;
/// How long a host that flaps is there or away.
const FLAP_MS: std::ops::Range<u64> = 100..2000;
/// How long one flaps.
const FLAPPING: Duration = Duration::from_secs(6);

/// Cables, each in one direction.
type Cables = Vec<(String, String)>;

const CUT: Weather = Weather { cut: true, ..CALM };
const CALM: Weather = Weather {
    cut: false,
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    lost: 0,
    doubled: 0,
    corrupted: 0,
    forged: 0,
    bytes_per_second: None,
};

/// Every cable from one of the first to one of the second.
fn from_to(from: &[String], to: &[String]) -> Cables {
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from.clone(), to.clone())));
    pairs.filter(|(from, to)| from != to).collect()
}

/// Every cable between the first and the second, both ways.
fn between(first: &[String], second: &[String]) -> Cables {
    [from_to(first, second), from_to(second, first)].concat()
}

/// Two halves that only the host in the middle reaches.
fn bridge(hosts: &[String]) -> (&str, Cables) {
    let (first, rest) = hosts.split_at(hosts.len() / 2);
    match rest.split_first() {
        Some((middle, second)) => (middle, between(first, second)),
        None => ("", Vec::new()),
    }
}

/// Everyone hears a majority, and each another one.
fn ring(hosts: &[String]) -> Cables {
    let majority = hosts.len() / 2 + 1;
    let mut cut = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        let deaf_to = hosts.iter().cycle().skip(at + majority).take(hosts.len() - majority);
        cut.extend(deaf_to.map(|other| (other.clone(), host.clone())));
    }
    cut
}

impl Ring<'_> {
    fn chunkservers(&self) -> Vec<String> {
        self.cluster.names(Role::Chunkserver)
    }

    fn masters(&self) -> Vec<String> {
        self.cluster.names(Role::Master)
    }

    fn servers(&self) -> Vec<String> {
        [self.masters(), self.cluster.names(Role::Shadow), self.chunkservers()].concat()
    }

    /// The servers and the clients.
    fn everyone(&self) -> Vec<String> {
        [self.servers(), vec![CLIENTS.to_owned()]].concat()
    }

    fn everyone_shuffled(&mut self) -> Vec<String> {
        let mut everyone = self.everyone();
        everyone.shuffle(&mut self.dice);
        everyone
    }

    /// Bad weather on these cables for a while.
    async fn storm(&mut self, what: &str, cables: Cables, weather: Weather) -> Result<()> {
        self.recorder.nemesis(&format!("{what} begins"))?;
        let network = self.network()?;
        for (from, to) in &cables {
            network.set(from, to, weather)?;
        }
        if !cables.is_empty() {
            self.struck();
        }
        self.wait(BAD_MS).await;
        network.clear();
        self.recorder.nemesis(&format!("{what} ends"))
    }

    pub(super) async fn cut(&mut self, role: Role) -> Result<()> {
        let name = self.any(role)?;
        self.cut_named(&name).await
    }

    pub(super) async fn cut_leader(&mut self) -> Result<()> {
        let name = self.cluster.leader().await?;
        self.cut_named(&name).await
    }

    async fn cut_named(&mut self, name: &str) -> Result<()> {
        let cables = between(&[name.to_owned()], &self.everyone());
        self.storm(&format!("cut of {name}"), cables, CUT).await
    }

    /// One hears nobody, or is heard by nobody, and does not know it at once.
    pub(super) async fn cut_one_way(&mut self, hears: bool) -> Result<()> {
        // The leader as often as all the others.
        let name = if self.dice.random() {
            self.cluster.leader().await?
        } else {
            self.servers().choose(&mut self.dice).cloned().context("there is no server")?
        };
        let (one, all) = ([name.clone()], self.everyone());
        if hears {
            self.storm(&format!("muteness of {name}"), from_to(&one, &all), CUT).await
        } else {
            self.storm(&format!("deafness of {name}"), from_to(&all, &one), CUT).await
        }
    }

    /// Two halves, or a minority and a majority, of everyone.
    pub(super) async fn cut_in_two(&mut self, evenly: bool) -> Result<()> {
        let everyone = self.everyone_shuffled();
        let smaller = if evenly { everyone.len() / 2 } else { self.dice.random_range(1..everyone.len() / 2) };
        let (first, second) = everyone.split_at(smaller);
        self.storm(&format!("cut of {} from the rest", first.join(", ")), between(first, second), CUT).await
    }

    pub(super) async fn cut_to_a_bridge(&mut self) -> Result<()> {
        let everyone = self.everyone_shuffled();
        let (middle, cables) = bridge(&everyone);
        self.storm(&format!("bridge over {middle}"), cables, CUT).await
    }

    /// The masters alone, or every server.
    pub(super) async fn cut_to_a_ring(&mut self) -> Result<()> {
        let mut hosts = if self.dice.random() { self.masters() } else { self.servers() };
        hosts.shuffle(&mut self.dice);
        self.storm(&format!("ring of {}", hosts.join(", ")), ring(&hosts), CUT).await
    }

    /// The clients lose some servers, or all of a role, which go on seeing each other.
    pub(super) async fn cut_clients(&mut self) -> Result<()> {
        let servers = match self.dice.random_range(0..3) {
            0 => self.masters(),
            1 => self.chunkservers(),
            _ => some(&self.servers(), &mut self.dice),
        };
        let cables = between(&[CLIENTS.to_owned()], &servers);
        self.storm(&format!("cut of the clients from {}", servers.join(", ")), cables, CUT).await
    }

    /// Chunkservers lose each other, and nobody else.
    pub(super) async fn cut_data(&mut self) -> Result<()> {
        let all = self.chunkservers();
        let some = some(&all, &mut self.dice);
        self.storm(&format!("cut of {} from other chunkservers", some.join(", ")), between(&some, &all), CUT)
            .await
    }

    /// Chunkservers lose some masters, and nobody else.
    pub(super) async fn cut_heartbeats(&mut self) -> Result<()> {
        let masters = if self.dice.random() { self.masters() } else { vec![self.cluster.leader().await?] };
        let some = some(&self.chunkservers(), &mut self.dice);
        let what = format!("cut of {} from {}", some.join(", "), masters.join(", "));
        self.storm(&what, between(&some, &masters), CUT).await
    }

    /// A chunkserver loses every other server, and clients still reach it: it hears of no newer grant from anybody, and only its own
    /// clock keeps it from serving stale reads (guards *no_fence_wait*, *slow_clock*).
    pub(super) async fn cut_from_servers(&mut self) -> Result<()> {
        let name = self.any(Role::Chunkserver)?;
        let cables = between(std::slice::from_ref(&name), &self.servers());
        self.storm(&format!("cut of {name} from all other servers"), cables, CUT).await
    }

    /// A server comes and goes.
    pub(super) async fn flap(&mut self) -> Result<()> {
        let name = self.servers().choose(&mut self.dice).cloned().context("there is no server")?;
        let cables = between(std::slice::from_ref(&name), &self.everyone());
        let network = self.network()?;
        let started = Instant::now();
        while started.elapsed() < FLAPPING {
            self.recorder.nemesis(&format!("flap: cut of {name}"))?;
            for (from, to) in &cables {
                network.set(from, to, CUT)?;
            }
            self.struck();
            self.wait(FLAP_MS).await;
            network.clear();
            self.recorder.nemesis(&format!("flap: {name} is back"))?;
            self.wait(FLAP_MS).await;
        }
        Ok(())
    }

    /// Weather of a kind on all cables, or on those of one server.
    async fn weather(&mut self, what: &str, weather: Weather) -> Result<()> {
        let everyone = self.everyone();
        if self.dice.random() {
            return self.storm(&format!("{what} everywhere"), from_to(&everyone, &everyone), weather).await;
        }
        let name = self.servers().choose(&mut self.dice).cloned().context("there is no server")?;
        let cables = between(std::slice::from_ref(&name), &everyone);
        self.storm(&format!("{what} at {name}"), cables, weather).await
    }

    pub(super) async fn delay(&mut self) -> Result<()> {
        let delay = Duration::from_millis(self.dice.random_range(5..150));
        self.weather(&format!("delay of {delay:?}"), Weather { delay, ..CALM }).await
    }

    pub(super) async fn lose(&mut self) -> Result<()> {
        let lost = self.dice.random_range(10..200);
        self.weather(&format!("loss of {lost} in 1000"), Weather { lost, ..CALM }).await
    }

    pub(super) async fn reorder(&mut self) -> Result<()> {
        let jitter = Duration::from_millis(self.dice.random_range(1..40));
        self.weather(&format!("jitter of {jitter:?}"), Weather { jitter, ..CALM }).await
    }

    pub(super) async fn duplicate(&mut self) -> Result<()> {
        let weather = Weather { doubled: 300, jitter: Duration::from_millis(3), ..CALM };
        self.weather("doubling", weather).await
    }

    pub(super) async fn corrupt(&mut self) -> Result<()> {
        self.weather("bit flips", Weather { corrupted: 50, ..CALM }).await
    }

    /// Bit flips that only our own checksums can find: between clients and chunkservers everything has one.
    pub(super) async fn forge(&mut self) -> Result<()> {
        let cables = between(&[CLIENTS.to_owned()], &self.chunkservers());
        self.storm("bit flips that TCP misses", cables, Weather { forged: 20, ..CALM }).await
    }

    pub(super) async fn slow(&mut self) -> Result<()> {
        let speed = self.dice.random_range(100_000..2_000_000);
        let weather = Weather { bytes_per_second: Some(speed), ..CALM };
        self.weather(&format!("{speed} bytes a second"), weather).await
    }
}

/// One or more of them, not all.
fn some(names: &[String], dice: &mut StdRng) -> Vec<String> {
    let count = dice.random_range(1..names.len().max(2));
    names.choose_multiple(dice, count).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    /// Whom a host hears when these cables are cut, itself included.
    fn heard(host: &str, hosts: &[String], cut: &Cables) -> Vec<String> {
        let cut = |from: &String| cut.contains(&(from.clone(), host.to_owned()));
        hosts.iter().filter(|other| !cut(other)).cloned().collect()
    }

    #[test]
    fn in_a_ring_each_hears_a_bare_majority_and_no_two_the_same() {
        for count in [3, 4, 5, 8] {
            let (hosts, mut seen) = (hosts(count), Vec::new());
            let cut = ring(&hosts);
            for host in &hosts {
                let heard = heard(host, &hosts, &cut);
                assert!(heard.contains(host));
                assert_eq!(heard.len(), count / 2 + 1);
                assert!(!seen.contains(&heard));
                seen.push(heard);
            }
        }
    }

    #[test]
    fn over_a_bridge_the_middle_hears_all_and_the_others_their_half_and_the_middle() {
        let hosts = hosts(9);
        let (middle, cut) = bridge(&hosts);
        assert_eq!(heard(middle, &hosts, &cut), hosts);
        assert_eq!(heard("0", &hosts, &cut), ["0", "1", "2", "3", "4"]);
        assert_eq!(heard("8", &hosts, &cut), ["4", "5", "6", "7", "8"]);
    }

    #[test]
    fn nobody_is_cut_from_itself() {
        let hosts = hosts(4);
        assert_eq!(from_to(&hosts, &hosts).len(), 12);
        assert_eq!(between(&hosts[..1], &hosts).len(), 6);
    }
}
