//! The master: replicated namespace, leases, background work.
