//! A plain loop of random changes, without coverage: for what libFuzzer is not built into.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::{Change, Target, corpus, hex, mutated};

/// Most changes of one input.
const CHANGES_MAX: u64 = 8;

/// Tries changed inputs of the corpus for so long, and prints a line of figures. `GFS_FUZZ_SEED` makes other inputs.
///
/// # Panics
/// When the target does; the input is printed.
#[allow(clippy::print_stdout, reason = "the line is what it is for")]
pub fn drive(target: &Target, time: Duration) {
    target.warm_up();
    let mut seeds: Vec<Vec<u8>> = corpus(target.name).into_iter().map(|(_, data)| data).collect();
    seeds.push(Vec::new());
    let given = std::env::var("GFS_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(given.unwrap_or(1));
    let started = Instant::now();
    let mut tried = 0_u64;
    while started.elapsed() < time {
        let [seed, other] = [(); 2].map(|()| seeds[random.below(seeds.len())].clone());
        let changes: Vec<Change> = (0..random.next() % (CHANGES_MAX + 1)).map(|_| random.change()).collect();
        let data = mutated(seed, &other, changes);
        let outcome = catch_unwind(AssertUnwindSafe(|| target.try_one(&data)));
        assert!(outcome.is_ok(), "{}: fails after {tried} inputs with {}", target.name, hex(&data));
        tried += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = tried as f64 / seconds;
    println!(
        "{:<16} {tried:>12} executions {rate:>9.0}/s     without coverage            0 crashes",
        target.name
    );
}

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }
    fn change(&mut self) -> Change {
        let [kind, a, b, c, d, e, f, g] = self.next().to_le_bytes();
        Change { kind, at: u32::from_le_bytes([a, b, c, 0]), value: u32::from_le_bytes([d, e, f, g]) }
    }
}
