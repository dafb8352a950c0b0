//! The engine's only source of randomness: the ChaCha20 key stream (RFC 8439 section 2.3, with a 64-bit block counter and a zero
//! nonce) under a key of 32 bytes given by the caller.
//!
//! The daemon seeds it from the system, the simulator from its seed, so that a run repeats exactly. Data generation
//! identifiers are no secrets, but authentication challenges must not be guessable from them: a stream cipher's output
//! tells nothing about the rest of the stream, which a fast statistical generator's does.

/// A deterministic generator.
#[derive(Clone)]
pub struct Random {
    key: [u32; 8],
    counter: u64,
    block: [u8; 64],
    /// Bytes of `block` already given out.
    used: usize,
}

impl core::fmt::Debug for Random {
    /// The key is a secret and never printed.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Random")
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl Random {
    /// A generator whose whole output is determined by `seed`.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let mut key = [0; 8];
        for (word, bytes) in key.iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self {
            key,
            counter: 0,
            block: [0; 64],
            used: 64,
        }
    }

    /// A generator for one number, as a simulator has it.
    pub fn from_u64(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self::from_seed(bytes)
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.block.len() {
                let mut nonce = [0; 4];
                nonce[0] = self.counter as u32;
                nonce[1] = (self.counter >> 32) as u32;
                self.block = chacha20_block(&self.key, &nonce);
                self.counter = self.counter.wrapping_add(1);
                self.used = 0;
            }
            *byte = self.block[self.used];
            // What was given out is not kept.
            self.block[self.used] = 0;
            self.used += 1;
        }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A number below `bound`, every one equally likely; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // Numbers from the last, incomplete multiple of the bound are drawn again.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let number = self.next_u64();
            if number < limit {
                return number % bound;
            }
        }
    }
}

/// One 64-byte block of the key stream; `tail` is counter and nonce.
fn chacha20_block(key: &[u32; 8], tail: &[u32; 4]) -> [u8; 64] {
    let mut state = [0; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    state[4..12].copy_from_slice(key);
    state[12..].copy_from_slice(tail);
    let start = state;
    for _ in 0..10 {
        quarter_round(&mut state, [0, 4, 8, 12]);
        quarter_round(&mut state, [1, 5, 9, 13]);
        quarter_round(&mut state, [2, 6, 10, 14]);
        quarter_round(&mut state, [3, 7, 11, 15]);
        quarter_round(&mut state, [0, 5, 10, 15]);
        quarter_round(&mut state, [1, 6, 11, 12]);
        quarter_round(&mut state, [2, 7, 8, 13]);
        quarter_round(&mut state, [3, 4, 9, 14]);
    }
    let mut out = [0; 64];
    for ((bytes, word), begin) in out.chunks_exact_mut(4).zip(state).zip(start) {
        bytes.copy_from_slice(&word.wrapping_add(begin).to_le_bytes());
    }
    out
}

fn quarter_round(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    let mut step = |sum: usize, add: usize, mix: usize, turn: u32| {
        state[sum] = state[sum].wrapping_add(state[add]);
        state[mix] = (state[mix] ^ state[sum]).rotate_left(turn);
    };
    step(a, b, d, 16);
    step(c, d, b, 12);
    step(a, b, d, 8);
    step(c, d, b, 7);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_function_gives_the_vector_of_rfc_8439() {
        let mut key = [0; 8];
        for (index, word) in key.iter_mut().enumerate() {
            let base = index as u32 * 4;
            *word = base | (base + 1) << 8 | (base + 2) << 16 | (base + 3) << 24;
        }
        let block = chacha20_block(&key, &[1, 0x0900_0000, 0x4a00_0000, 0]);
        assert_eq!(block[..8], [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
        assert_eq!(
            block[56..],
            [0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e]
        );
    }

    #[test]
    fn equal_seeds_repeat_and_others_differ() {
        let (mut a, mut b, mut c) = (
            Random::from_u64(1),
            Random::from_u64(1),
            Random::from_u64(2),
        );
        let (mut left, mut right, mut other) = ([0; 200], [0; 200], [0; 200]);
        a.fill(&mut left[..3]);
        a.fill(&mut left[3..]);
        b.fill(&mut right);
        c.fill(&mut other);
        assert_eq!(left, right);
        assert_ne!(left, other);
        assert!((0..1000).all(|_| a.below(7) < 7));
        assert_eq!(a.below(0), 0);
    }
}
