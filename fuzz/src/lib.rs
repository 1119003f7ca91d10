//! Fuzzing: what the targets of all crates share.
//!
//! A target is a function of bytes that panics when a promise is broken; it lives in `fuzz.rs` of the crate whose decoders
//! it tries. The same function is used three times: [`check`] in `make test` (the corpus and 256 random inputs), libFuzzer
//! with coverage (`fuzz/libfuzzer/`), and [`drive`] without coverage where libFuzzer can't reach it.

mod corpus;
mod dice;
mod drive;
mod mutate;

pub use corpus::{corpus, corpus_directory};
pub use dice::Dice;
pub use drive::drive;
pub use mutate::{Change, mutated};

use std::panic::{catch_unwind, resume_unwind};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

/// Random inputs that [`check`] tries beside the corpus; `PROPTEST_CASES` makes it more.
const CASES: u32 = 256;
/// Longest input of [`check`] that is random from end to end, in bytes.
const RANDOM_BYTES_MAX: usize = 512;
/// Bytes that a target may hold at once, whatever its input.
const HELD_BYTES: usize = 1 << 20;
/// A target may hold this many times its input, beside what it may hold anyway.
const HELD_PER_BYTE: usize = 16;

/// A function that must hold its promises for every input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Names it and the directory of its corpus.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Bytes that it may hold at once beside 16 times its input.
    pub held_bytes: usize,
}

impl Target {
    /// A target that may hold a mebibyte and 16 times its input.
    pub const fn new(name: &'static str, run: fn(&[u8])) -> Self {
        Self { name, run, held_bytes: HELD_BYTES }
    }
    /// The same, but it may hold so many bytes: a limit of the format, or of what the target itself builds.
    pub const fn holding(self, held_bytes: usize) -> Self {
        Self { held_bytes, ..self }
    }

    /// Tries one input, and counts the bytes that are held at once on the way: a length that comes from outside must not
    /// cost memory before it is proven.
    ///
    /// # Panics
    /// When a promise is broken, or too much is held.
    pub fn try_one(&self, data: &[u8]) {
        let mut outcome = Ok(());
        // A panic must not leave the counter half way.
        let counted = allocation_counter::measure(|| outcome = catch_unwind(|| (self.run)(data)));
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        let allowed = self.held_bytes + HELD_PER_BYTE * data.len();
        assert!(
            counted.bytes_max <= allowed as u64,
            "{}: {} bytes were held for an input of {}",
            self.name,
            counted.bytes_max,
            data.len()
        );
    }

    /// Tries the empty input without counting, so that what is made once for all inputs counts for none.
    pub fn warm_up(&self) {
        (self.run)(&[]);
    }
}

/// Tries the corpus of a target, then random and changed inputs: the same ones in every run, unless `PROPTEST_RNG_SEED` and
/// `PROPTEST_CASES` say otherwise. A failure is shrunk.
///
/// # Panics
/// When the target does, with the input.
pub fn check(target: &Target) {
    target.warm_up();
    let corpus = corpus(target.name);
    for (name, data) in &corpus {
        let tried = catch_unwind(|| target.try_one(data));
        assert!(tried.is_ok(), "{}: the corpus' {name} fails", target.name);
    }
    let default = Config::default();
    let wider = std::env::var_os("PROPTEST_CASES").is_some();
    let seeded = std::env::var_os("PROPTEST_RNG_SEED").is_some();
    let config = Config {
        cases: if wider { default.cases } else { CASES },
        rng_seed: if seeded { default.rng_seed } else { RngSeed::Fixed(1) },
        failure_persistence: None,
        ..default
    };
    let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, data)| data).collect();
    let result = TestRunner::new(config).run(&inputs(seeds), |data| {
        target.try_one(&data);
        Ok(())
    });
    let failure = result.err().map(|error| match error {
        TestError::Fail(reason, data) => format!("{reason} with {}", hex(&data)),
        TestError::Abort(reason) => reason.to_string(),
    });
    assert!(failure.is_none(), "{}: {}", target.name, failure.unwrap_or_default());
}

/// An input as text, so that it can be written into a file again.
pub fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes at random, and inputs of the corpus with a few changes.
fn inputs(mut seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    seeds.push(Vec::new());
    let random = prop::collection::vec(any::<u8>(), 0..RANDOM_BYTES_MAX);
    let changes = prop::collection::vec(any::<(u8, u32, u32)>(), 0..6);
    let changed = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), changes).prop_map(
        move |(seed, other, changes)| {
            let other = other.get(&seeds).clone();
            let change = |(kind, at, value)| Change { kind, at, value };
            mutated(seed.get(&seeds).clone(), &other, changes.into_iter().map(change))
        },
    );
    prop_oneof![1 => random, 2 => changed]
}
