//! The consensus of masters as a whole: openraft's own suite, crashes at every write, groups over loopback.

mod clocks;
mod crash;
mod flip;
mod group;
mod large;
mod replace;
mod room;
mod suite;
