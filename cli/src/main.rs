//! The gfs command.
fn main() {}
