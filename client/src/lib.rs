//! The client SDK of gfs.
