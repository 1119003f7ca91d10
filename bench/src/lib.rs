//! Benchmarks, each beside the bare limit in the same run.
