//! Checksums of 64 KiB blocks (GFS §5.2).

use crc32fast::Hasher;
use gfs_proto::size::BLOCK_BYTES;

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// Index of the block with this byte.
pub(crate) fn block_of(offset: u32) -> u32 {
    offset / BLOCK_BYTES
}
/// The first byte of a block.
pub(crate) fn start_of(block: u32) -> u32 {
    block * BLOCK_BYTES
}
/// Bytes that a block has in a chunk of this length.
pub(crate) fn block_length(block: u32, chunk_length: u32) -> u32 {
    chunk_length.saturating_sub(start_of(block)).min(BLOCK_BYTES)
}

/// Checksums that change when `hole` zeros and then `data` follow `length` bytes, from the block of the first new byte.
///
/// The last block's checksum is extended from the stored one, never computed from what is on the disk: that would bless
/// damage to the bytes before (T36, GFS §5.2).
pub(crate) fn extended(crcs: &[u32], length: u32, hole: u32, data: &[u8]) -> (u32, Vec<u32>) {
    let first = block_of(length);
    let mut within = length % BLOCK_BYTES;
    let mut hasher = match crcs.get(first as usize) {
        Some(stored) if within > 0 => Hasher::new_with_initial(*stored),
        _ => Hasher::new(),
    };
    let mut changed = Vec::new();
    let mut feed = |mut bytes: &[u8]| {
        while !bytes.is_empty() {
            let piece = bytes.len().min((BLOCK_BYTES - within) as usize);
            hasher.update(&bytes[..piece]);
            bytes = &bytes[piece..];
            within = (within + u32::try_from(piece).unwrap_or(BLOCK_BYTES)) % BLOCK_BYTES;
            if within == 0 {
                changed.push(std::mem::take(&mut hasher).finalize());
            }
        }
    };
    let mut left = hole as usize;
    while left > 0 {
        let piece = left.min(ZEROS.len());
        feed(&ZEROS[..piece]);
        left -= piece;
    }
    feed(data);
    if within > 0 {
        changed.push(hasher.finalize());
    }
    (first, changed)
}

/// Puts changed checksums into a table; `first` is at most its length.
pub(crate) fn put_crcs(table: &mut Vec<u32>, first: u32, crcs: &[u32]) {
    let first = first as usize;
    let end = first + crcs.len();
    if table.len() < end {
        table.resize(end, 0);
    }
    table[first..end].copy_from_slice(crcs);
}

/// Copies the part of `data`, which lies at `offset`, that falls into `target`, which lies at `start`.
pub(crate) fn lay_over(target: &mut [u8], start: u32, data: &[u8], offset: u32) {
    let (start, offset) = (start as usize, offset as usize);
    let from = start.max(offset);
    let to = (start + target.len()).min(offset + data.len());
    if from < to {
        target[from - start..to - start].copy_from_slice(&data[from - offset..to - offset]);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checksums of these bytes, computed plainly.
    fn plain(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect()
    }

    proptest! {
        #[test]
        fn extending_gives_the_checksums_of_the_whole(
            length in 0usize..150_000, hole in prop_oneof![Just(0usize), 0usize..150_000], more in 1usize..150_000,
        ) {
            let whole: Vec<u8> = (0..length + hole + more)
                .map(|i| if (length..length + hole).contains(&i) { 0 } else { (i * 31 % 251) as u8 })
                .collect();
            let mut table = plain(&whole[..length]);
            let (first, changed) = extended(&table, length as u32, hole as u32, &whole[length + hole..]);
            put_crcs(&mut table, first, &changed);
            prop_assert_eq!(table, plain(&whole));
        }
    }
}
