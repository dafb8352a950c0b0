//! What a client wrote and what it was told: each block carries its writer, its place and a number, so that a lost, moved
//! or torn write is recognised by content alone.

use std::time::Instant;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// One write of one block.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Counts the writes of this writer, from 1.
    pub number: u64,
    /// The block of the device.
    pub block: u64,
    /// When it was issued.
    pub issued: Instant,
    /// When its success was told; None: never told.
    pub acknowledged: Option<Instant>,
}

/// Everything one writer did, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The writer.
    pub writer: u64,
    /// Its writes.
    pub writes: Vec<Write>,
}

/// The contents of a block: `number` 0 stands for "never written".
pub fn stamp(run: u64, writer: u64, number: u64, block: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    let words = [run, writer, number, block];
    while bytes.len() < BLOCK {
        for word in words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// A block that nobody wrote.
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// What a block's contents say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing was ever written.
    Empty,
    /// This write of this writer.
    Written {
        /// The writer.
        writer: u64,
        /// The number.
        number: u64,
    },
    /// Torn, moved, or not ours.
    Foreign,
}

/// Reads the stamp of a block.
pub fn contents(run: u64, block: u64, bytes: &[u8]) -> Contents {
    // Compared as a whole: byte by byte takes seconds for many disks, without optimisation.
    if bytes
        .chunks(BLOCK)
        .all(|part| *part == ZEROES[..part.len()])
    {
        return Contents::Empty;
    }
    let word = |at: usize| {
        bytes.get(at * 8..at * 8 + 8).map_or(0, |word| {
            let mut array = [0; 8];
            array.copy_from_slice(word);
            u64::from_le_bytes(array)
        })
    };
    let (writer, number) = (word(1), word(2));
    if bytes == stamp(run, writer, number, block) {
        Contents::Written { writer, number }
    } else {
        Contents::Foreign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_its_write_and_a_torn_or_moved_one_is_foreign() {
        let mut block = stamp(7, 2, 9, 33);
        assert_eq!(
            contents(7, 33, &block),
            Contents::Written {
                writer: 2,
                number: 9
            }
        );
        assert_eq!(contents(7, 34, &block), Contents::Foreign);
        assert_eq!(contents(8, 33, &block), Contents::Foreign);
        block[2048..].copy_from_slice(&stamp(7, 2, 8, 33)[2048..]);
        assert_eq!(contents(7, 33, &block), Contents::Foreign);
        assert_eq!(contents(7, 33, &[0; BLOCK]), Contents::Empty);
    }
}
