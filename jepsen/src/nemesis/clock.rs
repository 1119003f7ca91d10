//! Clocks of servers that jump and run at rates of their own.
//!
//! What a fault has set stays until the next one or the healing, so that other faults strike servers whose clocks are
//! wrong. The servers' timers stay right, as in the simulation: what is tried is what they decide by comparing times.

use anyhow::{Context, Result};
use gfs_tests::Role;
use rand::Rng;

use super::Ring;
use crate::inside::Skew;

/// How much slower or faster than real time a server's clocks run, in parts per million: two servers together stay
/// within the tenth that the fence allows for (guard *slow_clock*). The simulation has the same bound.
const RATE_PPM_MAX: i64 = 40_000;
/// How much slower chunkservers' clocks run where nothing is promised any more: what they believe to be three seconds are six to
/// thirty.
const BEYOND_PPM: std::ops::Range<i64> = -900_000..-500_000;
/// How far a wall clock is off at most: less than half the life of a session, or clients do nothing but begin anew.
const JUMP_MS_MAX: i64 = 240_000;
/// How often a clock jumps in one fault, and how long it stays where it is.
const JUMPS: std::ops::Range<u32> = 1..8;
const STAYS_MS: std::ops::Range<u64> = 20..1500;
/// How long the rates are new.
const DRIFTING_MS: std::ops::Range<u64> = 500..4000;

impl Ring<'_> {
    fn servers_with_clocks(&self) -> Vec<String> {
        [Role::Master, Role::Shadow, Role::Chunkserver]
            .into_iter()
            .flat_map(|role| self.cluster.names(role))
            .collect()
    }

    fn set_clock(&mut self, name: &str, skew: Skew) -> Result<()> {
        self.inside.as_mut().context(super::NO_INSIDE)?.set_clock(name, skew)
    }

    fn skew(&self, name: &str) -> Result<Skew> {
        Ok(self.inside.as_ref().context(super::NO_INSIDE)?.skew(name))
    }

    /// The wall clock of one server jumps, forward and back, by milliseconds to minutes.
    pub(super) async fn jump_clock(&mut self) -> Result<()> {
        let name = self.any_server()?;
        for _ in 0..self.dice.random_range(JUMPS) {
            self.put_off(&name)?;
            self.wait(STAYS_MS).await;
        }
        Ok(())
    }

    /// One jump of one server's wall clock.
    fn put_off(&mut self, name: &str) -> Result<()> {
        let wall_ms = self.offset_ms();
        self.recorder.nemesis(&format!("wall clock of {name} is {wall_ms} ms off"))?;
        let skew = Skew { wall_ms, ..self.skew(name)? };
        self.set_clock(name, skew)?;
        self.count("clock-jumps", 1);
        self.struck();
        Ok(())
    }

    /// All sizes are as likely, from a millisecond up.
    fn offset_ms(&mut self) -> i64 {
        let bits = self.dice.random_range(1..=JUMP_MS_MAX.ilog2() + 1);
        let size = self.dice.random_range(0..1_i64 << bits).min(JUMP_MS_MAX);
        if self.dice.random() { size } else { -size }
    }

    /// Both clocks of every server run at a rate of its own from now on, and one of the wall clocks jumps.
    pub(super) async fn drift_clocks(&mut self) -> Result<()> {
        for name in self.servers_with_clocks() {
            self.set_rate(&name, -RATE_PPM_MAX..RATE_PPM_MAX + 1)?;
        }
        let name = self.any_server()?;
        self.put_off(&name)?;
        self.wait(DRIFTING_MS).await;
        Ok(())
    }

    /// The clocks of chunkservers run far slower than the fence allows for.
    pub(super) async fn slow_clocks(&mut self) -> Result<()> {
        for name in self.cluster.names(Role::Chunkserver) {
            self.set_rate(&name, BEYOND_PPM)?;
        }
        self.wait(DRIFTING_MS).await;
        Ok(())
    }

    fn set_rate(&mut self, name: &str, range: std::ops::Range<i64>) -> Result<()> {
        let rate_ppm = self.dice.random_range(range);
        self.recorder.nemesis(&format!("clocks of {name} run {rate_ppm} ppm fast"))?;
        let skew = Skew { rate_ppm, ..self.skew(name)? };
        self.set_clock(name, skew)?;
        self.count("clock-rates", 1);
        self.struck();
        Ok(())
    }

    /// All clocks are right and run as they should.
    pub(super) fn set_clocks_right(&mut self) -> Result<()> {
        if self.inside.is_none() {
            return Ok(());
        }
        self.servers_with_clocks().iter().try_for_each(|name| self.set_clock(name, Skew::default()))
    }
}
