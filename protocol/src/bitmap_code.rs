//! The exchange of bitmaps: plain chunks, run-length code, and their mixture (wire 6.3).
//!
//! A coded chunk is one encoding byte (bits 0-3 code, always 2; bits 4-6 number of unused bits at the
//! end; bit 7 polarity of the first run, 1 = set) and a stream of run lengths with alternating
//! polarity. A number is a prefix and data bits, both least significant bit first, from bit 0 of
//! byte 0 upwards:
//!
//! | prefix in stream order | data bits | total | numbers |
//! | --- | --- | --- | --- |
//! | 0 | 1 | 2 | 1 to 2 |
//! | 10 | 1 | 3 | 3 to 4 |
//! | 110 | 2 | 5 | 5 to 8 |
//! | 1110 | 3 | 7 | 9 to 16 |
//! | 11110 | 5 | 10 | 17 to 48 |
//! | 111110 | 8 | 14 | 49 to 304 |
//! | 11111100 | 13 | 21 | 305 to 8,496 |
//! | 11111110 | 21 | 29 | 8,497 to 2,105,648 |
//! | 11111101 | 34 | 42 | 2,105,649 to 17,181,974,832 |
//! | 11111111 | 56 | 64 | 17,181,974,833 to 72,057,611,219,902,768 |

use alloc::vec::Vec;

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::ProtocolError;
use crate::limits::{BITMAP_BYTES_MAX, BITMAP_CODE_BYTES_MAX, BITMAP_WORDS_MAX};
use crate::packet::Packet;

/// The only code there is: run lengths in variable-length integers.
const CODE_RLE_VLI: u8 = 2;

/// A bitmap that is sent.
pub trait BitSource {
    /// Number of bits.
    fn bits(&self) -> u64;
    /// The first set bit at or after `from`.
    fn next_set(&self, from: u64) -> Option<u64>;
    /// The first clear bit at or after `from`, below [`BitSource::bits`].
    fn next_clear(&self, from: u64) -> Option<u64>;
    /// Bits `64 * index` and up, the first as least significant; 0 beyond the end.
    fn word(&self, index: u64) -> u64;
}

/// A bitmap that a received one is merged into (OR: nothing is ever cleared).
pub trait BitSink {
    /// Sets `count` bits from `first`; all lie within the bitmap.
    fn set_range(&mut self, first: u64, count: u64);
    /// Sets the bits of `word` at `64 * index` and up; all lie within the bitmap.
    fn merge_word(&mut self, index: u64, word: u64);
}

/// Whether a bitmap is compressed (`use-rle`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Only plain chunks.
    Plain,
    /// Run lengths where they are shorter than the bits.
    RunLength,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More packets must come.
    More,
    /// The whole bitmap was there.
    Complete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Chunks,
    /// The last chunk was plain: the empty P_BITMAP is due.
    Terminator,
    Done,
}

/// Sends one bitmap, packet by packet.
///
/// The source may change between packets only where the protocol allows writes to be announced by
/// P_OUT_OF_SYNC; what was passed is not looked at again.
#[derive(Debug, Clone)]
pub struct BitmapSender {
    compression: Compression,
    bits: u64,
    bit: u64,
    sending: Sending,
}

impl BitmapSender {
    /// A transfer of `bits` bits, from the first.
    #[must_use]
    pub const fn new(bits: u64, compression: Compression) -> Self {
        let sending = if bits == 0 {
            Sending::Terminator
        } else {
            Sending::Chunks
        };
        Self {
            compression,
            bits,
            bit: 0,
            sending,
        }
    }

    /// The next packet; `None` after the last. One packet's work: at most 510 words or 4079 bytes of
    /// code.
    pub fn next_packet(&mut self, source: &impl BitSource) -> Option<Packet> {
        match self.sending {
            Sending::Done => None,
            Sending::Terminator => {
                self.sending = Sending::Done;
                Some(Packet::Bitmap(Bytes::new()))
            }
            Sending::Chunks => {
                let coded = match self.compression {
                    Compression::RunLength => self.coded(source),
                    Compression::Plain => None,
                };
                Some(coded.unwrap_or_else(|| self.plain(source)))
            }
        }
    }

    /// Bits that the packets so far cover.
    #[must_use]
    pub const fn bits_sent(&self) -> u64 {
        self.bit
    }

    fn coded(&mut self, source: &impl BitSource) -> Option<Packet> {
        let first_set = source.next_set(self.bit) == Some(self.bit);
        let mut writer = CodeWriter::new();
        let (mut bit, mut set) = (self.bit, first_set);
        while bit < self.bits {
            let next = if set {
                source.next_clear(bit)
            } else {
                source.next_set(bit)
            };
            let end = next.map_or(self.bits, |next| next.min(self.bits));
            // A source that contradicts itself would give an empty run: plain chunks cannot.
            if end <= bit || !writer.put(end - bit) {
                break;
            }
            bit = end;
            set = !set;
        }
        let covered = bit - self.bit;
        if covered == 0 || covered < writer.bits() {
            return None;
        }
        self.bit = bit;
        if bit == self.bits {
            self.sending = Sending::Done;
        }
        Some(Packet::CompressedBitmap(writer.finish(first_set)))
    }

    fn plain(&mut self, source: &impl BitSource) -> Packet {
        let words = self.bits.div_ceil(64);
        let first = self.bit / 64;
        let end = words.min(first + BITMAP_WORDS_MAX);
        let mut chunk = BytesMut::with_capacity(BITMAP_BYTES_MAX);
        for index in first..end {
            chunk.put_u64_le(source.word(index) & word_mask(index, self.bits));
        }
        self.bit = self.bits.min(end * 64);
        if end == words {
            self.sending = Sending::Terminator;
        }
        Packet::Bitmap(chunk.freeze())
    }
}

/// The bits of word `index` that lie within a bitmap of `bits` bits.
const fn word_mask(index: u64, bits: u64) -> u64 {
    match bits.saturating_sub(index.saturating_mul(64)) {
        0 => 0,
        left @ 1..64 => (1 << left) - 1,
        _ => u64::MAX,
    }
}

/// Receives one bitmap, packet by packet.
#[derive(Debug, Clone)]
pub struct BitmapReceiver {
    bits: u64,
    bit: u64,
    word: u64,
    complete: bool,
}

impl BitmapReceiver {
    /// A transfer of `bits` bits, from the first.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self {
            bits,
            bit: 0,
            word: 0,
            complete: false,
        }
    }

    /// Bits that the packets so far cover.
    #[must_use]
    pub const fn bits_received(&self) -> u64 {
        self.bit
    }

    /// Merges the payload of a P_BITMAP. Bits beyond the end of the bitmap are ignored.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::BitmapChunk`] for any size but the one that is due,
    /// [`ProtocolError::BitmapAfterEnd`]. The sink is then untouched.
    pub fn plain(
        &mut self,
        chunk: &[u8],
        sink: &mut impl BitSink,
    ) -> Result<Progress, ProtocolError> {
        self.check_open()?;
        let due = (self.bits.div_ceil(64) - self.word).min(BITMAP_WORDS_MAX);
        if chunk.len() as u64 != due * 8 {
            let (length, expected) = (chunk.len() as u64, due * 8);
            return Err(ProtocolError::BitmapChunk {
                length,
                expected,
                word: self.word,
            });
        }
        for (index, bytes) in (self.word..).zip(chunk.as_chunks::<8>().0) {
            let word = u64::from_le_bytes(*bytes) & word_mask(index, self.bits);
            if word != 0 {
                sink.merge_word(index, word);
            }
        }
        self.word += due;
        self.bit = self.bits.min(self.word * 64);
        self.complete = due == 0;
        Ok(if self.complete {
            Progress::Complete
        } else {
            Progress::More
        })
    }

    /// Merges the payload of a P_COMPRESSED_BITMAP.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::BitmapCode`], [`ProtocolError::BitmapCodeCut`] and
    /// [`ProtocolError::BitmapOverrun`] (also for a clear run past the end, which would never
    /// complete); [`ProtocolError::BitmapAfterEnd`]. Runs before the bad one were merged: extra set
    /// bits are harmless, and the connection ends anyway.
    pub fn compressed(
        &mut self,
        payload: &[u8],
        sink: &mut impl BitSink,
    ) -> Result<Progress, ProtocolError> {
        self.check_open()?;
        let Some((&encoding, code)) = payload.split_first() else {
            return Err(ProtocolError::BitmapCodeCut);
        };
        if encoding & 0x0f != CODE_RLE_VLI {
            return Err(ProtocolError::BitmapCode {
                code: encoding & 0x0f,
            });
        }
        let mut reader = CodeReader::new(code, (encoding >> 4) & 7)?;
        let mut set = encoding & 0x80 != 0;
        while let Some(run) = reader.next_number()? {
            let left = self.bits - self.bit;
            if run > left {
                return Err(ProtocolError::BitmapOverrun {
                    bit: self.bits,
                    bits: self.bits,
                });
            }
            if set {
                sink.set_range(self.bit, run);
            }
            self.bit += run;
            set = !set;
        }
        self.word = self.bit / 64;
        self.complete = self.bit == self.bits;
        Ok(if self.complete {
            Progress::Complete
        } else {
            Progress::More
        })
    }

    fn check_open(&self) -> Result<(), ProtocolError> {
        if self.complete {
            Err(ProtocolError::BitmapAfterEnd)
        } else {
            Ok(())
        }
    }
}

/// One row of the table above.
struct Level {
    prefix: u64,
    prefix_bits: u32,
    total_bits: u32,
    smallest: u64,
}

const fn level(prefix: u64, prefix_bits: u32, total_bits: u32, smallest: u64) -> Level {
    Level {
        prefix,
        prefix_bits,
        total_bits,
        smallest,
    }
}

const LEVELS: [Level; 10] = [
    level(0x00, 1, 2, 1),
    level(0x01, 2, 3, 3),
    level(0x03, 3, 5, 5),
    level(0x07, 4, 7, 9),
    level(0x0f, 5, 10, 17),
    level(0x1f, 6, 14, 49),
    level(0x3f, 8, 21, 305),
    level(0x7f, 8, 29, 8_497),
    level(0xbf, 8, 42, 2_105_649),
    level(0xff, 8, 64, 17_181_974_833),
];

impl Level {
    const fn data_bits(&self) -> u32 {
        self.total_bits - self.prefix_bits
    }

    const fn largest(&self) -> u64 {
        self.smallest + (1 << self.data_bits()) - 1
    }
}

/// Writes numbers as code, up to the room of one packet.
struct CodeWriter {
    bytes: Vec<u8>,
    /// Bits that are not in `bytes` yet: fewer than 8.
    rest: u128,
    rest_bits: u32,
}

impl CodeWriter {
    fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(BITMAP_CODE_BYTES_MAX),
            rest: 0,
            rest_bits: 0,
        }
    }

    fn bits(&self) -> u64 {
        self.bytes.len() as u64 * 8 + u64::from(self.rest_bits)
    }

    /// `false`: it does not fit, or is 0 or beyond the code; nothing was written.
    fn put(&mut self, number: u64) -> bool {
        let Some(level) = LEVELS.iter().find(|level| number <= level.largest()) else {
            return false;
        };
        let bits = self.bits() + u64::from(level.total_bits);
        if number == 0 || bits > BITMAP_CODE_BYTES_MAX as u64 * 8 {
            return false;
        }
        let word = ((number - level.smallest) << level.prefix_bits) | level.prefix;
        self.rest |= u128::from(word) << self.rest_bits;
        self.rest_bits += level.total_bits;
        while self.rest_bits >= 8 {
            self.bytes.push(self.rest.to_le_bytes()[0]);
            self.rest >>= 8;
            self.rest_bits -= 8;
        }
        true
    }

    fn finish(mut self, first_set: bool) -> Bytes {
        let mut pad = 0;
        if self.rest_bits > 0 {
            self.bytes.push(self.rest.to_le_bytes()[0]);
            pad = 8 - self.rest_bits.to_le_bytes()[0];
        }
        let polarity = if first_set { 0x80 } else { 0 };
        let mut payload = BytesMut::with_capacity(self.bytes.len() + 1);
        payload.put_u8(polarity | (pad << 4) | CODE_RLE_VLI);
        payload.extend_from_slice(&self.bytes);
        payload.freeze()
    }
}

/// Reads numbers from code.
struct CodeReader<'a> {
    code: &'a [u8],
    bit: usize,
    bits: usize,
}

impl<'a> CodeReader<'a> {
    fn new(code: &'a [u8], pad: u8) -> Result<Self, ProtocolError> {
        let bits = (code.len() * 8).checked_sub(usize::from(pad));
        let bits = bits
            .filter(|&bits| bits > 0)
            .ok_or(ProtocolError::BitmapCodeCut)?;
        Ok(Self { code, bit: 0, bits })
    }

    fn next_number(&mut self) -> Result<Option<u64>, ProtocolError> {
        if self.bit == self.bits {
            return Ok(None);
        }
        let look = self.look();
        let matching = |level: &&Level| look & ((1 << level.prefix_bits) - 1) == level.prefix;
        let level = LEVELS
            .iter()
            .find(matching)
            .ok_or(ProtocolError::BitmapCodeCut)?;
        let total = level.total_bits as usize;
        if total > self.bits - self.bit {
            return Err(ProtocolError::BitmapCodeCut);
        }
        self.bit += total;
        let data = (look >> level.prefix_bits) & ((1 << level.data_bits()) - 1);
        Ok(Some(data + level.smallest))
    }

    /// The next 64 bits, first as least significant; 0 beyond the end.
    fn look(&self) -> u64 {
        let start = self.bit / 8;
        let mut window = [0; 16];
        let count = (self.code.len() - start).min(9);
        window[..count].copy_from_slice(&self.code[start..start + count]);
        let shifted = u128::from_le_bytes(window) >> (self.bit % 8);
        let low = shifted & u128::from(u64::MAX);
        u64::try_from(low).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    struct Bits(Vec<bool>);

    impl BitSource for Bits {
        fn bits(&self) -> u64 {
            self.0.len() as u64
        }
        fn next_set(&self, from: u64) -> Option<u64> {
            (from..self.bits()).find(|&bit| self.0[bit as usize])
        }
        fn next_clear(&self, from: u64) -> Option<u64> {
            (from..self.bits()).find(|&bit| !self.0[bit as usize])
        }
        fn word(&self, index: u64) -> u64 {
            let bits = (0..64).filter(|bit| self.0.get((index * 64 + bit) as usize) == Some(&true));
            bits.fold(0, |word, bit| word | 1 << bit)
        }
    }

    impl BitSink for Bits {
        fn set_range(&mut self, first: u64, count: u64) {
            self.0[first as usize..(first + count) as usize].fill(true);
        }
        fn merge_word(&mut self, index: u64, word: u64) {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                self.0[index as usize * 64 + bit] = true;
            }
        }
    }

    fn only_packet(bits: &[(usize, bool)]) -> Vec<u8> {
        let source = Bits(
            bits.iter()
                .flat_map(|&(count, set)| vec![set; count])
                .collect(),
        );
        let mut sender = BitmapSender::new(source.bits(), Compression::RunLength);
        let packet = sender.next_packet(&source);
        assert_eq!(sender.next_packet(&source), None);
        match packet {
            Some(Packet::CompressedBitmap(bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_vectors_of_the_specification_come_out() {
        let worked = [(100, false), (3, true), (397, false), (500, true)];
        assert_eq!(
            only_packet(&worked),
            [0x52, 0xdf, 0x4c, 0x7e, 0xb8, 0xc0, 0xcf, 0x30, 0]
        );
        assert_eq!(
            only_packet(&[(262_144, true)]),
            [0xb2, 0x7f, 0xcf, 0xde, 0x03]
        );
        assert_eq!(
            only_packet(&[(262_144, false)]),
            [0x32, 0x7f, 0xcf, 0xde, 0x03]
        );
        assert_eq!(
            only_packet(&[(1, true), (1, false), (14, true)]),
            [0xd2, 0x70, 0x05]
        );
    }

    #[test]
    fn the_levels_touch_each_other_and_are_prefix_free() {
        for (lower, upper) in LEVELS.iter().zip(&LEVELS[1..]) {
            assert_eq!(lower.largest() + 1, upper.smallest);
        }
        assert_eq!(LEVELS[9].largest(), 72_057_611_219_902_768);
        for look in 0..=255_u64 {
            let matching = |level: &&Level| look & ((1 << level.prefix_bits) - 1) == level.prefix;
            assert_eq!(LEVELS.iter().filter(matching).count(), 1);
        }
    }

    #[test]
    fn every_boundary_number_survives() {
        for level in &LEVELS {
            for number in [level.smallest, level.largest()] {
                let mut writer = CodeWriter::new();
                // One bit before, so that the word is not aligned.
                assert!(writer.put(4) && writer.put(number));
                assert_eq!(writer.bits(), 3 + u64::from(level.total_bits));
                let payload = writer.finish(true);
                let mut reader = CodeReader::new(&payload[1..], payload[0] >> 4 & 7).unwrap();
                assert_eq!(reader.next_number(), Ok(Some(4)));
                assert_eq!(reader.next_number(), Ok(Some(number)));
                assert_eq!(reader.next_number(), Ok(None));
            }
        }
        let mut writer = CodeWriter::new();
        assert!(!writer.put(0));
        assert!(!writer.put(LEVELS[9].largest() + 1));
        assert_eq!(writer.bits(), 0);
    }

    #[test]
    fn wrong_chunks_and_codes_are_refused() {
        let mut sink = Bits(vec![false; 1000]);
        let mut receiver = BitmapReceiver::new(1000);
        for length in [0, 8, 120, 136] {
            let refused = receiver.plain(&vec![0; length], &mut sink);
            assert!(matches!(
                refused,
                Err(ProtocolError::BitmapChunk { expected: 128, .. })
            ));
        }
        let mut code = |payload: &[u8]| receiver.compressed(payload, &mut sink);
        assert_eq!(code(&[0x03, 0]), Err(ProtocolError::BitmapCode { code: 3 }));
        assert_eq!(code(&[0x02]), Err(ProtocolError::BitmapCodeCut));
        assert_eq!(code(&[]), Err(ProtocolError::BitmapCodeCut));
        assert_eq!(code(&[0x02, 0xff]), Err(ProtocolError::BitmapCodeCut));
        let overrun = code(&[0xb2, 0x7f, 0xcf, 0xde, 0x03]);
        assert_eq!(
            overrun,
            Err(ProtocolError::BitmapOverrun {
                bit: 1000,
                bits: 1000
            })
        );
        assert!(!sink.0.contains(&true));
    }

    #[test]
    fn the_end_is_exact_after_code_and_empty_after_plain() {
        let mut sink = Bits(vec![false; 1000]);
        let mut receiver = BitmapReceiver::new(1000);
        let worked = [0x52, 0xdf, 0x4c, 0x7e, 0xb8, 0xc0, 0xcf, 0x30, 0];
        assert_eq!(
            receiver.compressed(&worked, &mut sink),
            Ok(Progress::Complete)
        );
        assert_eq!(sink.0.iter().filter(|&&bit| bit).count(), 503);
        assert_eq!(
            receiver.plain(&[], &mut sink),
            Err(ProtocolError::BitmapAfterEnd)
        );
        let mut receiver = BitmapReceiver::new(1000);
        // Bits beyond the end are ignored.
        assert_eq!(receiver.plain(&[0xff; 128], &mut sink), Ok(Progress::More));
        assert_eq!(receiver.plain(&[], &mut sink), Ok(Progress::Complete));
        assert!(sink.0.iter().all(|&bit| bit));
        let mut sender = BitmapSender::new(0, Compression::RunLength);
        let empty = Bits(vec![]);
        assert_eq!(
            sender.next_packet(&empty),
            Some(Packet::Bitmap(Bytes::new()))
        );
        assert_eq!(sender.next_packet(&empty), None);
        let mut receiver = BitmapReceiver::new(0);
        assert_eq!(receiver.plain(&[], &mut sink), Ok(Progress::Complete));
    }
}
