//! libFuzzer on `frame` of `proto/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_proto::fuzz::TARGETS, "frame");
