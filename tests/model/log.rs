//! The content of a chunk in the model: a sequence of up to 7 records of 4 bits, the first one lowest.

/// The pad-and-seal record, last in a full chunk.
pub(crate) const SEAL: u32 = 15;

pub(crate) type Log = u32;
pub(crate) fn length(log: Log) -> u8 {
    ((35 - log.leading_zeros()) / 4) as u8
}
pub(crate) fn record(log: Log, index: u8) -> u32 {
    (log >> (4 * index)) & 15
}
pub(crate) fn push(log: Log, record: u32) -> Log {
    log | record << (4 * length(log))
}
pub(crate) fn prefix(log: Log, n: u8) -> Log {
    if n >= 8 { log } else { log & ((1u32 << (4 * n)) - 1) }
}
pub(crate) fn is_prefix(short: Log, long: Log) -> bool {
    prefix(long, length(short)) == short
}
pub(crate) fn compatible(a: Log, b: Log) -> bool {
    is_prefix(a, b) || is_prefix(b, a)
}
pub(crate) fn position(log: Log, wanted: u32) -> Option<u8> {
    (0..length(log)).find(|&i| record(log, i) == wanted)
}
pub(crate) fn has(mask: u8, i: usize) -> bool {
    mask >> i & 1 == 1
}
pub(crate) fn bit(i: usize) -> u8 {
    1 << i
}
