//! libFuzzer on `records` of `client/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_client::fuzz::TARGETS, "records");
