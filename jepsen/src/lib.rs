//! Jepsen-style checks.
