//! What the simulated clients write: each sector says which write it belongs to and where it should be, so that torn,
//! moved and stale sectors are recognised wherever they turn up.
//!
//! A sector is one 16-byte unit, 32 times: write number xor salt of the seed, position xor a mix of both.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Contents of one sector, in the words of the simulator.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// All zeroes: never written, discarded or zeroed.
    Zero,
    /// Written whole by this write, at this position.
    Stamp(u64),
    /// Anything else: metadata, a stamp at a wrong position, a mixture.
    Raw(Arc<[u8; 512]>),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Zero => f.write_str("zeroes"),
            Content::Stamp(write) => write!(f, "write {write}"),
            Content::Raw(bytes) => write!(f, "foreign bytes {:02x?}..", &bytes[..16]),
        }
    }
}

/// Writes and reads the stamps of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Stamper {
    salt: u64,
}

impl Stamper {
    /// The stamps of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Stamper {
        Stamper {
            salt: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn unit(self, write: u64, sector: u64) -> [u8; 16] {
        let first = write ^ self.salt;
        let second = sector ^ first.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut unit = [0; 16];
        unit[..8].copy_from_slice(&first.to_le_bytes());
        unit[8..].copy_from_slice(&second.to_le_bytes());
        unit
    }

    /// The bytes of a whole write.
    #[must_use]
    pub fn payload(self, write: u64, first_sector: u64, sectors: u64) -> Bytes {
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        for (index, sector) in bytes.chunks_exact_mut(512).enumerate() {
            self.put(&Content::Stamp(write), first_sector + index as u64, sector);
        }
        bytes.into()
    }

    /// Contents as bytes.
    pub fn put(self, content: &Content, sector: u64, bytes: &mut [u8]) {
        match content {
            Content::Zero => bytes.fill(0),
            Content::Stamp(write) => {
                let unit = self.unit(*write, sector);
                for chunk in bytes.chunks_exact_mut(16) {
                    chunk.copy_from_slice(&unit);
                }
            }
            Content::Raw(raw) => bytes.copy_from_slice(&raw[..]),
        }
    }

    /// Bytes as contents. `bytes` is one sector.
    #[must_use]
    pub fn get(self, sector: u64, bytes: &[u8]) -> Content {
        let mut raw = [0; 512];
        raw.copy_from_slice(bytes);
        // Every 16 bytes are the same in a stamp and in zeroes: then the sector equals itself moved by 16 bytes.
        let is_uniform = raw[16..] == raw[..496];
        let mut first = [0; 8];
        first.copy_from_slice(&raw[..8]);
        let write = u64::from_le_bytes(first) ^ self.salt;
        if is_uniform && raw[..16] == [0; 16] {
            return Content::Zero;
        }
        if is_uniform && raw[..16] == self.unit(write, sector) {
            return Content::Stamp(write);
        }
        Content::Raw(Arc::new(raw))
    }

    /// Where a stamped sector should be, if these bytes carry a stamp of this seed at all (for messages).
    #[must_use]
    pub fn explain(self, bytes: &[u8]) -> String {
        let unit_of = |at: usize| -> (u64, u64) {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            let first = u64::from_le_bytes(half);
            half.copy_from_slice(&bytes[at + 8..at + 16]);
            let second = u64::from_le_bytes(half);
            let sector = second ^ first.wrapping_mul(0xd6e8_feb8_6659_fd93);
            (first ^ self.salt, sector)
        };
        let (first, last) = (unit_of(0), unit_of(496));
        format!(
            "begins like write {} at sector {}, ends like write {} at sector {}",
            first.0, first.1, last.0, last.1
        )
    }
}
