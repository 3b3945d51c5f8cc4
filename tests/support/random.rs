//! A small generator of our own (xorshift64), so that a failure names its seed.

pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    pub fn seeded(seed: u64) -> Self {
        // The generator would stay at 0 for ever.
        Self(seed.max(1))
    }

    /// A number from 0 up to but not including `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
