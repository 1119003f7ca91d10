//! One number for the whole state, so that masters can be compared.

use super::table::{Table, View};

/// Rows read at one time.
const PAGE_ROWS: usize = 1000;
/// Behind every key: no key begins with so many of these.
const LAST: [u8; 32] = [0xff; 32];

/// How many rows there are, and a checksum of all keys and values in order.
pub fn hash(view: &dyn View) -> (u64, u32) {
    let mut hasher = crc32fast::Hasher::new();
    let mut rows = 0;
    for (number, table) in (0_u8..).zip(Table::ALL) {
        let mut from = Vec::new();
        loop {
            let page = view.scan(table, &from, &LAST, PAGE_ROWS);
            for (key, value) in &page {
                rows += 1;
                hasher.update(&[number]);
                for part in [key, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                }
            }
            let Some((last, _)) = page.last().filter(|_| page.len() == PAGE_ROWS) else { break };
            from.clone_from(last);
            from.push(0);
        }
    }
    (rows, hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::super::table::{Memory, Overlay};
    use super::*;

    fn state(rows: impl IntoIterator<Item = (Table, u32, u8)>) -> Memory {
        let mut memory = Memory::default();
        let mut overlay = Overlay::new(&memory);
        for (table, key, value) in rows {
            overlay.put(table, key.to_be_bytes().to_vec(), vec![value]);
        }
        let writes = overlay.into_writes();
        memory.write(writes);
        memory
    }

    #[test]
    fn a_hash_covers_every_row_of_every_table() {
        let all = || (0..2500).map(|key| (Table::Chunk, key, 1)).chain([(Table::Trash, 7, 1)]);
        let (rows, sum) = hash(&state(all()));
        assert_eq!((rows, hash(&state(all()))), (2501, (rows, sum)));
        for changed in
            [(Table::Chunk, 0, 2), (Table::Chunk, 2499, 2), (Table::Trash, 7, 2), (Table::Name, 7, 1)]
        {
            assert_ne!(hash(&state(all().chain([changed]))).1, sum, "{changed:?}");
        }
    }
}
