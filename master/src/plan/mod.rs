//! What the leader should do next: pure functions of the replicated state, the soft state and the time.
//! Ties are broken by a hash, so the same input gives the same plan.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub(crate) mod grant;
pub(crate) mod health;
pub(crate) mod placement;
pub(crate) mod repair;
pub(crate) mod sweep;

/// A well-mixed number from two others: breaks ties without favouring anyone.
pub(crate) fn mix(salt: u64, value: u64) -> u64 {
    // The finaliser of splitmix64.
    let mut bits = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
