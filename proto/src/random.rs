//! The randomness seam.

use parking_lot::Mutex;
use rand::{RngCore, SeedableRng, rngs::SmallRng};

/// Gives random numbers.
pub trait Random: Send + Sync {
    /// 64 random bits.
    fn bits64(&self) -> u64;

    /// 128 random bits.
    fn bits128(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.bits64().to_le_bytes());
        bytes[8..].copy_from_slice(&self.bits64().to_le_bytes());
        bytes
    }

    /// A number below `bound` (0 if that is 0).
    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.bits64() % bound }
    }
}

/// The machine's randomness.
#[derive(Debug)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn bits64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// The same numbers for the same seed.
#[derive(Debug)]
pub struct SeededRandom {
    rng: Mutex<SmallRng>,
}

impl SeededRandom {
    /// A sequence that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self { rng: Mutex::new(SmallRng::seed_from_u64(seed)) }
    }
}
impl Random for SeededRandom {
    fn bits64(&self) -> u64 {
        self.rng.lock().next_u64()
    }
}
