//! libFuzzer on `replica` of `chunkserver/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_chunkserver::fuzz::TARGETS, "replica");
