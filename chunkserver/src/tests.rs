//! Chunkservers in one process, driven by orders as a leader would send them.
