//! Backing files: filled before anything starts, so that no row pays for the allocation of blocks, and equal on both sides.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::Failure;

/// Least bytes behind the device for Tandem's internal metadata: activity log and superblock need 36 KiB, the bitmap a bit for 4 KiB.
const TAIL_BYTES_MIN: u64 = 1 << 20;

/// What lies behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    None,
    /// Room for metadata.
    Metadata,
}

impl Tail {
    /// Its bytes behind a device of `device_bytes`.
    fn bytes(self, device_bytes: u64) -> u64 {
        let bitmap = device_bytes.div_ceil(4096 * 8);
        match self {
            Tail::None => 0,
            Tail::Metadata => TAIL_BYTES_MIN + bitmap.next_multiple_of(TAIL_BYTES_MIN),
        }
    }
}

/// Makes a filled file; each call writes the same bytes. What is behind the last whole MiB of the device stays empty.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn make(path: &Path, device_bytes: u64, tail: Tail) -> Result<(), Failure> {
    let doing = || format!("fill {}", path.display());
    let mut file = File::create(path).map_err(Failure::system(doing()))?;
    let block = noise(1 << 20);
    for _ in 0..device_bytes >> 20 {
        file.write_all(&block).map_err(Failure::system(doing()))?;
    }
    let zeroes = vec![0; usize::try_from(tail.bytes(device_bytes)).unwrap_or_default()];
    file.write_all(&zeroes).map_err(Failure::system(doing()))?;
    file.sync_all().map_err(Failure::system(doing()))
}

/// Makes a file without any blocks.
///
/// # Errors
/// Those of the filesystem: it may not know files of such a size.
pub(crate) fn make_sparse(path: &Path, device_bytes: u64, tail: Tail) -> Result<(), Failure> {
    let bytes = device_bytes + tail.bytes(device_bytes);
    let doing = format!("make a sparse file of {bytes} bytes at {}", path.display());
    let made = File::create(path).and_then(|file| file.set_len(bytes));
    made.map_err(Failure::system(doing))
}

/// Bytes that no server takes for zeroes.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut dice = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        bytes.extend_from_slice(&dice.to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_bitmap_of_every_size() {
        assert_eq!(Tail::None.bytes(1 << 40), 0);
        assert_eq!(Tail::Metadata.bytes(1 << 20), 2 << 20);
        // docs/spec/metadata.md: 16 TiB need 512 MiB and 36 KiB.
        assert_eq!(Tail::Metadata.bytes(16 << 40), 513 << 20);
    }
}
