//! Tests of the pure replica: scripts in, outcomes out; each guard of protocol.md fails one when it is removed.
