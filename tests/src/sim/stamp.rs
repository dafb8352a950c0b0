//! What the simulated clients write: each sector says which write it belongs to and where it should be, so that torn,
//! moved and stale sectors are recognised wherever they turn up.
//!
//! A sector is one 16-byte unit, 32 times: write number xor salt of the seed, position xor a mix of both. A request that does not
//! start or end on a sector is cut at a unit.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Bytes of the unit that a sector repeats: requests are cut at units, never inside one.
pub const UNIT: u64 = 16;
/// Units of a sector.
pub const UNITS: usize = (SECTOR / UNIT) as usize;

/// What one unit holds: `None` is zeroes.
pub type Unit = Option<u64>;

/// Contents of one sector, in the words of the simulator.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// All zeroes: never written, discarded or zeroed.
    Zero,
    /// Written whole by this write, at this position.
    Stamp(u64),
    /// Parts of several writes (or zeroes), each at its position.
    Mixed(Arc<[Unit; UNITS]>),
    /// Anything else: metadata, a stamp at a wrong position, a mixture.
    Raw(Arc<[u8; 512]>),
}

impl Content {
    /// What a unit of the sector holds; `None` for foreign bytes.
    #[must_use]
    pub fn unit(&self, at: usize) -> Option<Unit> {
        match self {
            Content::Zero => Some(None),
            Content::Stamp(write) => Some(Some(*write)),
            Content::Mixed(units) => units.get(at).copied(),
            Content::Raw(_) => None,
        }
    }

    /// The longest runs of equal units in a part of the sector, ascending; nothing for foreign bytes.
    #[must_use]
    pub fn runs(&self, part: Range<usize>) -> Vec<(Range<usize>, Unit)> {
        let mut runs: Vec<(Range<usize>, Unit)> = Vec::new();
        for at in part {
            let Some(unit) = self.unit(at) else {
                return Vec::new();
            };
            match runs.last_mut() {
                Some((run, held)) if *held == unit => run.end = at + 1,
                _ => runs.push((at..at + 1, unit)),
            }
        }
        runs
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Zero => f.write_str("zeroes"),
            Content::Stamp(write) => write!(f, "write {write}"),
            Content::Mixed(_) => {
                let runs = self.runs(0..UNITS);
                let words = runs.iter().map(|(run, unit)| match unit {
                    Some(write) => format!(
                        "write {write} in bytes {}..{}",
                        run.start * 16,
                        run.end * 16
                    ),
                    None => format!("zeroes in bytes {}..{}", run.start * 16, run.end * 16),
                });
                f.write_str(&words.collect::<Vec<_>>().join(" and "))
            }
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

    /// The stamps of a pair of a world: the data of another pair are foreign bytes to it.
    #[must_use]
    pub fn of_pair(seed: u64, pair: usize) -> Stamper {
        Stamper::new(seed ^ (pair as u64).rotate_right(8))
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
            Content::Mixed(units) => {
                for (chunk, unit) in bytes.chunks_exact_mut(16).zip(units.iter()) {
                    chunk.copy_from_slice(&unit.map_or([0; 16], |write| self.unit(write, sector)));
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
        match self.mixed(sector, &raw) {
            Some(units) => Content::Mixed(Arc::new(units)),
            None => Content::Raw(Arc::new(raw)),
        }
    }

    fn mixed(self, sector: u64, bytes: &[u8; 512]) -> Option<[Unit; UNITS]> {
        let mut units = [None; UNITS];
        for (unit, chunk) in units.iter_mut().zip(bytes.chunks_exact(16)) {
            *unit = self.read_unit(sector, chunk)?;
        }
        Some(units)
    }

    /// One unit; `None`: foreign bytes. `bytes` is one unit.
    fn read_unit(self, sector: u64, bytes: &[u8]) -> Option<Unit> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Some(None);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[..8]);
        let write = u64::from_le_bytes(first) ^ self.salt;
        (bytes == self.unit(write, sector)).then_some(Some(write))
    }

    /// Some units of a sector as contents: the units before `first` and behind the last are zeroes.
    #[must_use]
    pub fn get_part(self, sector: u64, first: usize, bytes: &[u8]) -> Content {
        let mut whole = [0; 512];
        whole[first * 16..first * 16 + bytes.len()].copy_from_slice(bytes);
        self.get(sector, &whole)
    }

    /// The bytes of a part of a write, in units from the start of the device.
    #[must_use]
    pub fn part(self, write: u64, units: Range<u64>) -> Bytes {
        let per_sector = UNITS as u64;
        let bytes = units.flat_map(|unit| self.unit(write, unit / per_sector));
        bytes.collect::<Vec<u8>>().into()
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
