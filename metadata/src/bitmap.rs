//! The bitmap as bytes: `docs/spec/metadata.md` section 4. Little-endian: bit b is bit `b % 8` of byte `b / 8`.
//!
//! Everything after the last valid bit up to the end of its 4 KiB page may be garbage on disk: the functions here
//! that read take the number of valid bits and ignore the rest.

use core::ops::Range;

use crate::units::{
    AlExtent, BITS_PER_AL_EXTENT, BITS_PER_PAGE, BLOCK_SIZE, BitNumber, ByteLen, PageNumber,
    SECTORS_PER_BIT, Sector, SectorCount,
};

/// Bytes of bitmap that describe one activity-log extent.
pub const BYTES_PER_AL_EXTENT: usize = (BITS_PER_AL_EXTENT / 8) as usize;

/// Bytes of the bitmap of a device of `size` sectors, in whole 64-bit words.
pub const fn words_len(size: SectorCount) -> ByteLen {
    ByteLen(size.bits().div_ceil(64) * 8)
}

/// Bytes of the bitmap in whole 4 KiB pages: what tools dump and replay may touch.
pub const fn dump_len(size: SectorCount) -> ByteLen {
    ByteLen(words_len(size).0.div_ceil(BLOCK_SIZE as u64) * BLOCK_SIZE as u64)
}

/// Number of 4 KiB pages of the bitmap.
pub const fn pages(size: SectorCount) -> u64 {
    dump_len(size).0 / BLOCK_SIZE as u64
}

/// The bits to set when `[start, start + len)` is out of sync: all that are touched (section 4.3), clipped to a
/// device of `size` sectors. Empty if nothing of it is on the device.
pub fn bits_touched(start: Sector, len: SectorCount, size: SectorCount) -> Range<u64> {
    let end = start.0.saturating_add(len.0).min(size.0);
    if start.0 >= end {
        return 0..0;
    }
    start.bit_floor().0..Sector(end).bit_ceil().0
}

/// The bits to clear when `[start, start + len)` is in sync: those completely covered, where the last bit of the
/// device counts as covered if the range reaches the device's end (section 4.3).
pub fn bits_covered(start: Sector, len: SectorCount, size: SectorCount) -> Range<u64> {
    let end = start.0.saturating_add(len.0).min(size.0);
    if start.0 >= end {
        return 0..0;
    }
    let first = start.bit_ceil().0;
    let last = if end == size.0 {
        size.bits()
    } else {
        end / SECTORS_PER_BIT
    };
    if first < last { first..last } else { 0..0 }
}

/// The valid bits of a page, given how many bits the bitmap has.
pub fn valid_in_page(page: PageNumber, bits: u64) -> u64 {
    bits.saturating_sub(page.0.saturating_mul(BITS_PER_PAGE))
        .min(BITS_PER_PAGE)
}

/// The value of bit `index` of `bytes`; bits past the end are clear.
pub fn get(bytes: &[u8], index: u64) -> bool {
    usize::try_from(index / 8)
        .ok()
        .and_then(|byte| bytes.get(byte))
        .is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

/// Sets the bits of `range`, as far as `bytes` goes; returns how many were clear before.
pub fn set(bytes: &mut [u8], range: Range<u64>) -> u64 {
    change(bytes, range, |byte, mask| {
        let changed = mask & !*byte;
        *byte |= mask;
        changed.count_ones()
    })
}

/// Clears the bits of `range`, as far as `bytes` goes; returns how many were set before.
pub fn clear(bytes: &mut [u8], range: Range<u64>) -> u64 {
    change(bytes, range, |byte, mask| {
        let changed = mask & *byte;
        *byte &= !mask;
        changed.count_ones()
    })
}

fn change(bytes: &mut [u8], range: Range<u64>, mut apply: impl FnMut(&mut u8, u8) -> u32) -> u64 {
    let end = range.end.min(bytes.len() as u64 * 8);
    let mut at = range.start;
    let mut changed = 0;
    while at < end {
        let low = at % 8;
        let high = (end - (at - low)).min(8);
        let mask = (((1_u16 << high) - 1) & !((1_u16 << low) - 1)) as u8;
        changed += u64::from(apply(&mut bytes[(at / 8) as usize], mask));
        at += high - low;
    }
    changed
}

/// Counts the set bits among the first `valid` bits of `bytes`.
pub fn count(bytes: &[u8], valid: u64) -> u64 {
    let whole = usize::try_from(valid / 8)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut total: u64 = bytes[..whole]
        .iter()
        .map(|byte| u64::from(byte.count_ones()))
        .sum();
    if let Some(byte) = bytes.get(whole) {
        total += u64::from((byte & !(0xFF_u8 << (valid % 8))).count_ones());
    }
    total
}

/// Clears everything from bit `valid` on: what a writer does before a page goes to disk.
pub fn mask_padding(bytes: &mut [u8], valid: u64) {
    let whole = usize::try_from(valid / 8)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    if let Some(byte) = bytes.get_mut(whole) {
        *byte &= !(0xFF_u8 << (valid % 8));
    }
    if let Some(rest) = bytes.get_mut(whole + 1..) {
        rest.fill(0);
    }
}

/// The set bits among the first `valid` bits as ranges, in order.
pub fn ranges(bytes: &[u8], valid: u64) -> Ranges<'_> {
    Ranges {
        bytes,
        at: 0,
        end: valid.min(bytes.len() as u64 * 8),
    }
}

/// Iterator of [`ranges`].
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    bytes: &'a [u8],
    at: u64,
    end: u64,
}

impl Ranges<'_> {
    /// The first bit at or after `self.at` with this value, or the end.
    fn next_with(&self, value: bool) -> u64 {
        let skip = if value { 0x00 } else { 0xFF };
        let mut at = self.at;
        while at < self.end {
            if at.is_multiple_of(8) && self.bytes[(at / 8) as usize] == skip {
                at += 8;
            } else if get(self.bytes, at) == value {
                return at;
            } else {
                at += 1;
            }
        }
        self.end
    }
}

impl Iterator for Ranges<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        self.at = self.next_with(true);
        let start = self.at;
        if start >= self.end {
            return None;
        }
        self.at = self.next_with(false);
        Some(start..self.at)
    }
}

/// The byte range of an extent's bits within the bitmap page that holds them.
pub const fn extent_in_page(extent: AlExtent) -> Range<usize> {
    let start = (extent.0 as usize % 32) * BYTES_PER_AL_EXTENT;
    start..start + BYTES_PER_AL_EXTENT
}

/// Sets all 1024 bits of `extent` in its page, also those past the end of the device, which readers ignore
/// (section 3.9 step 7). Returns how many were clear before. A page shorter than 4096 bytes is set as far as it goes.
pub fn mark_extent(page: &mut [u8], extent: AlExtent) -> u64 {
    let bytes = extent_in_page(extent);
    set(page, bytes.start as u64 * 8..bytes.end as u64 * 8)
}

/// The bit with index `within` of `page`.
pub fn bit_of(page: PageNumber, within: u64) -> Option<BitNumber> {
    page.first_bit()
        .and_then(|bit| bit.0.checked_add(within))
        .map(BitNumber)
}
