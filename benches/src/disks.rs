//! Backing files: filled before anything starts, so that no row pays for the allocation of blocks, and equal on both sides.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::Failure;
use crate::rows::DEVICE_BYTES;

/// Bytes behind the device for Tandem's internal metadata: activity log, bitmap and superblock need some 64 KiB.
const TAIL_BYTES: u64 = 1 << 20;

/// What lies behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    None,
    /// Room for metadata.
    Metadata,
}

/// Makes a filled file; each call writes the same bytes.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn make(path: &Path, tail: Tail) -> Result<(), Failure> {
    let doing = || format!("fill {}", path.display());
    let mut file = File::create(path).map_err(Failure::system(doing()))?;
    let block = noise(1 << 20);
    let tail = match tail {
        Tail::None => 0,
        Tail::Metadata => TAIL_BYTES,
    };
    for _ in 0..DEVICE_BYTES >> 20 {
        file.write_all(&block).map_err(Failure::system(doing()))?;
    }
    let zeroes = vec![0; usize::try_from(tail).unwrap_or_default()];
    file.write_all(&zeroes).map_err(Failure::system(doing()))?;
    file.sync_all().map_err(Failure::system(doing()))
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
