//! libFuzzer on `raft_codec` of `master/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_master::fuzz::TARGETS, "raft_codec");
