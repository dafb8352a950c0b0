//! The log of dm-log-writes as bytes: a super block, then entries, each with its data behind it.
//!
//! All integers are little-endian; places and lengths are in sectors of `sectorsize` bytes.
//!
//! | super, offset | size | meaning |
//! | --- | --- | --- |
//! | 0 | u64 | magic |
//! | 8 | u64 | version, 1 |
//! | 16 | u64 | number of entries |
//! | 24 | u32 | sectorsize |
//!
//! | entry, offset | size | meaning |
//! | --- | --- | --- |
//! | 0 | u64 | first sector on the device |
//! | 8 | u64 | sectors; so many follow the entry's own sector, unless it is a discard or a mark |
//! | 16 | u64 | flags: 1 flush, 2 FUA, 4 discard, 8 mark, 16 metadata |
//! | 24 | u64 | bytes of a mark's text, which follows at 32 |

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// Bytes of a sector, of the device and of its log.
pub const SECTOR: u64 = 512;

/// What happened to the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// These bytes were written at this byte; durable with FUA, else since the flush that follows.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        data: Bytes,
        /// Durable when it ended.
        fua: bool,
    },
    /// This range was discarded.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A flush ended: everything before it is durable.
    Flush,
    /// A mark of the test.
    Mark(String),
}

impl Entry {
    /// Everything before it, and itself, is on the medium for good.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        match self {
            Entry::Write { fua, .. } => *fua,
            Entry::Discard { .. } => false,
            Entry::Flush | Entry::Mark(_) => true,
        }
    }
}

/// Reads a log.
///
/// # Errors
/// It is not one, or it ends early.
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let file = File::open(path).map_err(|error| format!("open {}: {error}", path.display()))?;
    let take = |offset: u64, length: u64| -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset)
            .map_err(|error| format!("read the log at byte {offset}: {error}"))?;
        Ok(bytes)
    };
    decode(take)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn decode(take: impl Fn(u64, u64) -> Result<Vec<u8>, String>) -> Result<Vec<Entry>, String> {
    let head = take(0, SECTOR)?;
    let (magic, version, count) = (word(&head, 0), word(&head, 8), word(&head, 16));
    let sectorsize = word(&head, 24) & 0xffff_ffff;
    if magic != MAGIC || version != 1 || sectorsize != SECTOR {
        return Err(format!(
            "no log of dm-log-writes with sectors of {SECTOR}: magic {magic:#x}, version {version}, sectors {sectorsize}"
        ));
    }
    let mut at = SECTOR;
    let mut entries = Vec::new();
    for number in 0..count {
        let head = take(at, SECTOR)?;
        at += SECTOR;
        let (offset, length) = (word(&head, 0) * SECTOR, word(&head, 8) * SECTOR);
        let (flags, text) = (word(&head, 16), word(&head, 24) as usize);
        if flags & MARK != 0 {
            let bytes = head
                .get(32..32 + text)
                .ok_or_else(|| format!("entry {number}: a mark of {text} bytes"))?;
            entries.push(Entry::Mark(String::from_utf8_lossy(bytes).into_owned()));
            continue;
        }
        if flags & FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        if flags & DISCARD != 0 {
            entries.push(Entry::Discard { offset, length });
        } else if length > 0 {
            let (data, fua) = (take(at, length)?.into(), flags & FUA != 0);
            entries.push(Entry::Write { offset, data, fua });
            at += length;
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(words: &[u64], text: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(text);
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    fn log(count: u64) -> Vec<u8> {
        let mut bytes = sector(&[MAGIC, 1, count, SECTOR], &[]);
        bytes.extend(sector(&[8, 2, 0, 0], &[]));
        bytes.extend(vec![7; 1024]);
        bytes.extend(sector(&[0, 0, FLUSH, 0], &[]));
        bytes.extend(sector(&[0, 0, MARK, 3], b"one"));
        bytes.extend(sector(&[3, 1, FUA, 0], &[]));
        bytes.extend(vec![9; 512]);
        bytes.extend(sector(&[16, 8, DISCARD, 0], &[]));
        bytes
    }

    fn decode_bytes(bytes: &[u8]) -> Result<Vec<Entry>, String> {
        decode(|at, length| {
            let piece = bytes.get(at as usize..(at + length) as usize);
            piece
                .map(<[u8]>::to_vec)
                .ok_or_else(|| format!("short at {at}"))
        })
    }

    #[test]
    fn every_kind_of_entry_is_read_with_its_data() {
        let entries = decode_bytes(&log(5)).unwrap();
        assert_eq!(
            entries,
            [
                Entry::Write {
                    offset: 4096,
                    data: vec![7; 1024].into(),
                    fua: false
                },
                Entry::Flush,
                Entry::Mark("one".to_owned()),
                Entry::Write {
                    offset: 1536,
                    data: vec![9; 512].into(),
                    fua: true
                },
                Entry::Discard {
                    offset: 8192,
                    length: 4096
                },
            ]
        );
        let durable: Vec<bool> = entries.iter().map(Entry::is_durable).collect();
        assert_eq!(durable, [false, true, true, true, false]);
    }

    #[test]
    fn a_log_that_is_none_or_that_ends_early_is_an_error() {
        assert!(
            decode_bytes(&[0; 512])
                .unwrap_err()
                .starts_with("no log of dm-log-writes")
        );
        assert!(decode_bytes(&log(6)).is_err());
    }
}
