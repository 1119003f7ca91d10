//! libFuzzer on `log_record` of `chunkserver/src/fuzz.rs`.
#![no_main]

gfs_libfuzzer::target!(gfs_chunkserver::fuzz::TARGETS, "log_record");
