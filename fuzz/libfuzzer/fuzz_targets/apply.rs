//! libFuzzer on `apply` of `master/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_master::fuzz::TARGETS, "apply");
