//! Values out of an input's bytes, for targets whose inputs have a structure.

/// Reads values off the front of an input; when that is at its end, everything is 0.
#[derive(Debug)]
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    /// The values of this input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }
    /// Whether the input is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// A byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.byte() & 1 == 1
    }
    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let raw = if end <= 256 { u64::from(self.byte()) } else { self.raw() };
        raw.checked_rem(end).unwrap_or(0)
    }
    /// An index of a list of this length.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
    /// Eight bytes.
    pub fn raw(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.iter_mut().for_each(|byte| *byte = self.byte());
        u64::from_le_bytes(bytes)
    }
    /// A number, likely a small one or one at a border.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=191 => u64::from(small),
            power @ 192..=223 => (1_u64 << (2 * (power - 192))).wrapping_add(u64::from(power & 1)),
            border @ 224..=239 => u64::MAX - u64::from(border - 224),
            border @ 240..=247 => u64::from(u32::MAX) - u64::from(border - 240),
            _ => self.raw(),
        }
    }
    /// The same of 32 bits.
    pub fn small_number(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).unwrap_or(0)
    }
    /// At most so many of the bytes that come next.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = self.index(most + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
