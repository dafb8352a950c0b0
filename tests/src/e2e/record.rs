//! What a client believes a device holds, and the comparison of a disk with it, block by block.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::history::BLOCK;

/// A client's record of a device: every byte that it wrote, zeroes where nobody wrote.
#[derive(Clone, Debug)]
pub struct Record {
    bytes: Vec<u8>,
    /// Sectors whose contents the client cannot know (it discarded them, or never got an answer).
    unknown: Vec<bool>,
}

const SECTOR: usize = 512;

impl Record {
    /// A device of `bytes` zeroes.
    pub fn new(bytes: u64) -> Record {
        let bytes = bytes as usize;
        Record {
            bytes: vec![0; bytes],
            unknown: vec![false; bytes.div_ceil(SECTOR)],
        }
    }

    /// Size of the device in bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether the device has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// `data` was written at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        self.bytes[start..start + data.len()].copy_from_slice(data);
        if !data.is_empty() {
            self.unknown[start / SECTOR..=(start + data.len() - 1) / SECTOR].fill(false);
        }
    }

    /// `length` bytes of `pattern` were written at `offset`.
    pub fn fill(&mut self, offset: u64, length: u64, pattern: u8) {
        self.write(offset, &vec![pattern; length as usize]);
    }

    /// The contents are not known any more.
    pub fn forget(&mut self, offset: u64, length: u64) {
        let (start, end) = (offset as usize, (offset + length) as usize);
        self.unknown[start / SECTOR..end.div_ceil(SECTOR)].fill(true);
    }

    /// What was written in a range.
    pub fn slice(&self, offset: u64, length: u64) -> &[u8] {
        &self.bytes[offset as usize..(offset + length) as usize]
    }

    /// The whole device.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Numbers of the blocks of `found` that contradict the record.
    pub fn contradicted(&self, found: &[u8]) -> Vec<u64> {
        let differs = |sector: usize| {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.bytes.len());
            !self.unknown[sector] && found.get(start..end) != Some(&self.bytes[start..end])
        };
        let mut blocks: Vec<u64> = (0..self.unknown.len())
            .filter(|sector| differs(*sector))
            .map(|sector| (sector * SECTOR / BLOCK) as u64)
            .collect();
        blocks.dedup();
        blocks
    }
}

/// Numbers of the blocks in which two equally long pieces differ.
pub fn differing(a: &[u8], b: &[u8]) -> Vec<u64> {
    let pairs = a.chunks(BLOCK).zip(b.chunks(BLOCK));
    (0..)
        .zip(pairs)
        .filter(|(_, (a, b))| a != b)
        .map(|(block, _)| block)
        .collect()
}

/// The first `bytes` bytes of a disk.
///
/// # Panics
/// When the disk cannot be read or is shorter.
pub fn read_disk(path: &Path, bytes: u64) -> Vec<u8> {
    let file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut data = Vec::with_capacity(bytes as usize);
    file.take(bytes)
        .read_to_end(&mut data)
        .expect("read a disk");
    let length = data.len() as u64;
    assert_eq!(
        length,
        bytes,
        "{} is smaller than its device",
        path.display()
    );
    data
}

/// Names blocks for a message: how many, and the first ten.
pub fn name_blocks(blocks: &[u64]) -> String {
    let first = &blocks[..blocks.len().min(10)];
    format!("{} blocks of {BLOCK} bytes, first {first:?}", blocks.len())
}

/// Bytes in which no two sectors are alike, chosen by `seed`.
pub fn pattern(seed: u32, length: usize) -> Vec<u8> {
    let word = |n: u32| n.wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
    let words = length.div_ceil(4) as u32;
    let mut bytes: Vec<u8> = (1..=words).flat_map(|n| word(n).to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_finds_one_wrong_sector_and_passes_over_what_it_cannot_know() {
        let mut record = Record::new(16 << 10);
        record.write(4096, &pattern(1, 4096));
        record.fill(8192, 512, 7);
        let mut found = record.bytes().to_vec();
        assert_eq!(record.contradicted(&found), Vec::<u64>::new());
        found[4096 + 600] ^= 1;
        found[12288] = 9;
        assert_eq!(record.contradicted(&found), vec![1, 3]);
        record.forget(4096 + 512, 512);
        assert_eq!(record.contradicted(&found), vec![3]);
        record.write(4096 + 512, &pattern(2, 512));
        assert_eq!(record.contradicted(&found), vec![1, 3]);
        assert_eq!(
            record.contradicted(&found[..12288]),
            vec![1, 3],
            "a short disk contradicts"
        );
    }

    #[test]
    fn differing_blocks_are_named() {
        let a = pattern(1, 5 * BLOCK);
        let mut b = a.clone();
        b[BLOCK] ^= 1;
        b[4 * BLOCK + 17] ^= 1;
        assert_eq!(differing(&a, &b), vec![1, 4]);
        assert_eq!(name_blocks(&[1, 4]), "2 blocks of 4096 bytes, first [1, 4]");
    }
}
