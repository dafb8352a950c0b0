//! Choices from a seed. Every part of a simulation has a stream of its own, so that one more choice in the disks does
//! not change those of the network.

/// A generator of choices (splitmix64): small, seedable, and good enough to pick faults.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// A stream from a seed and the name of the part that draws.
    #[must_use]
    pub fn new(seed: u64, part: &str) -> Dice {
        let mut state = seed ^ 0x5eed_0000_7a4d_e301;
        for byte in part.bytes() {
            state = mix(state ^ u64::from(byte));
        }
        Dice { state }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.bits() % end }
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first) + 1)
    }

    /// True `part` times of `whole`.
    pub fn chance(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// An index, by weight; 0 when all weights are 0.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut at = self.below(total);
        for (index, weight) in weights.iter().enumerate() {
            if at < u64::from(*weight) {
                return index;
            }
            at -= u64::from(*weight);
        }
        0
    }

    /// A length of time in nanoseconds around `mean`, now and then far above it.
    pub fn spread(&mut self, mean: u64) -> u64 {
        let base = self.between(mean / 4, mean + mean / 2);
        if self.chance(1, 40) { base * 12 } else { base }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
