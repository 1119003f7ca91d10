//! Changes of inputs: what disks, networks and people do to bytes.

/// Longest input that changes may make, in bytes.
const BYTES_MAX: usize = 64 * 1024;

/// One change; every value of the three makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which kind of change.
    pub kind: u8,
    /// Where.
    pub at: u32,
    /// What, or how much.
    pub value: u32,
}

/// An input with these changes; pieces of `other` are spliced in.
pub fn mutated(mut bytes: Vec<u8>, other: &[u8], changes: impl IntoIterator<Item = Change>) -> Vec<u8> {
    for change in changes {
        apply(&mut bytes, other, change);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn apply(bytes: &mut Vec<u8>, other: &[u8], Change { kind, at, value }: Change) {
    let [low, high, ..] = value.to_le_bytes();
    let (length, at) = (bytes.len(), at as usize);
    let place = at % (length + 1);
    match kind % 8 {
        // A flipped bit, another byte, a border value.
        0 if place < length => bytes[place] ^= 1 << (value % 8),
        1 if place < length => bytes[place] = low,
        2 if place < length => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][value as usize % 5],
        // Cut off, or a piece cut out.
        3 => bytes.truncate(place),
        4 => {
            let end = (place + value as usize % 64).min(length);
            bytes.drain(place..end);
        }
        // A byte more, a piece twice, a piece of another input.
        5 => bytes.insert(place, high),
        6 => {
            let end = (place + value as usize % 64).min(length);
            let piece = bytes[place..end].to_vec();
            bytes.splice(place..place, piece);
        }
        7 => {
            let from = value as usize % (other.len() + 1);
            let to = (from + 1 + at % 64).min(other.len());
            bytes.splice(place..place, other[from..to].iter().copied());
        }
        _ => bytes.push(low),
    }
}
