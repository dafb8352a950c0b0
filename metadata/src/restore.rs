//! The parser of `restore-md` and `verify-dump`: `docs/spec/metadata.md` section 6.3.
//!
//! The order of statements is fixed and nothing may be missing or added. The bitmap is kept as runs, so that memory
//! grows with the text and not with the numbers in it.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::activity_log::AlGeometry;
use crate::create::{Content, Step, Write};
use crate::error::PlacementError;
use crate::placement::Layout;
use crate::superblock::{Flags, Magic, Superblock, Uuids};
use crate::units::{BLOCK_SIZE, ByteOffset, SectorCount};

/// Most digits of a decimal number.
const DECIMAL_DIGITS_MAX: usize = 19;
/// The largest number of that many digits.
const JOINED_COUNT_MAX: u64 = 9_999_999_999_999_999_999;

/// Why a dump cannot be restored (exit 10).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Something else stands where the grammar has one thing only.
    #[error("Parse error in line {line}: {expected} expected")]
    Expected {
        /// Line, from 1.
        line: u32,
        /// What should stand there.
        expected: &'static str,
    },
    /// A number that is too long, or a hexadecimal one without exactly 8 or 16 digits.
    #[error("Parse error in line {line}: '{text}' is not a number")]
    BadNumber {
        /// Line, from 1.
        line: u32,
        /// The number as it stands there, cut.
        text: String,
    },
    /// The dump is of another version.
    #[error("dump is '{got}' you requested 'v08'.")]
    OtherVersion {
        /// The version of the dump.
        got: String,
    },
    /// A value that v08 does not have.
    #[error("Parse error in line {line}: {what} {got} is out of range")]
    OutOfRange {
        /// Line, from 1.
        line: u32,
        /// The statement.
        what: &'static str,
        /// The value.
        got: u64,
    },
    /// The stripes are outside what the format allows.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// A parsed dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The data generations.
    pub uuids: Uuids,
    /// The flags as in the file: AL_CLEAN only if the file says so.
    pub flags: Flags,
    /// Last agreed size.
    pub la_size: SectorCount,
    /// The device UUID.
    pub device_uuid: u64,
    /// The peer's largest request, in bytes.
    pub la_peer_max_bio_size: u32,
    /// The activity log's stripes.
    pub geometry: AlGeometry,
    /// The bitmap: how often which word. Counts are not limited; read no more than the size needs.
    pub bitmap: Vec<(u64, u64)>,
}

impl Restore {
    /// Parses the text of a dump.
    ///
    /// # Errors
    /// [`RestoreError`], with the line.
    pub fn parse(text: &str) -> Result<Self, RestoreError> {
        let mut parser = Parser {
            rest: text,
            line: 1,
        };
        parser.keyword("version", "keyword 'version'")?;
        let version = parser.string()?;
        if version != "v08" {
            return Err(RestoreError::OtherVersion {
                got: version.chars().take(16).collect(),
            });
        }
        parser.symbol(';', "';'")?;
        let (uuids, flags) = parser.uuid_block()?;
        let la_size =
            SectorCount(parser.decimal_statement("la-size-sect", "keyword 'la-size-sect'")?);
        let per_bit = parser.decimal_statement("bm-byte-per-bit", "keyword 'bm-byte-per-bit'")?;
        if per_bit != 4096 {
            return Err(parser.out_of_range("bm-byte-per-bit", per_bit));
        }
        parser.keyword("device-uuid", "keyword 'device-uuid'")?;
        let device_uuid = parser.hex(16)?;
        parser.symbol(';', "';'")?;
        let bio = parser.small("la-peer-max-bio-size", "keyword 'la-peer-max-bio-size'")?;
        let stripes = parser.small("al-stripes", "keyword 'al-stripes'")?;
        let stripe_size = parser.small("al-stripe-size-4k", "keyword 'al-stripe-size-4k'")?;
        let geometry = AlGeometry::new(stripes, stripe_size)?;
        let bitmap = parser.bitmap()?;
        parser.end()?;
        Ok(Self {
            uuids,
            flags,
            la_size,
            device_uuid,
            la_peer_max_bio_size: bio,
            geometry,
            bitmap,
        })
    }

    /// The superblock that restoring writes at the place of `layout`: clean magic, size clipped to what fits.
    pub fn superblock(&self, layout: &Layout) -> Superblock {
        let mut superblock = Superblock::fresh(layout);
        superblock.uuids = self.uuids;
        superblock.flags = self.flags;
        superblock.magic = Magic::Clean;
        superblock.device_uuid = self.device_uuid;
        superblock.la_peer_max_bio_size = self.la_peer_max_bio_size;
        superblock.la_size = self.la_size.min(layout.data_size_max());
        superblock
    }

    /// The bitmap's words in order.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.bitmap
            .iter()
            .flat_map(|(count, word)| (0..*count).map(move |_| *word))
    }

    /// The steps that restore the dump: bitmap (the rest of its area is cleared, unlike drbdmeta), a fresh activity
    /// log, and the superblock last. Long runs are described, not allocated; a bitmap longer than the size needs is cut.
    pub fn steps(&self, layout: &Layout) -> Vec<Step> {
        let superblock = self.superblock(layout);
        let mut steps = self.bitmap_writes(layout, superblock.la_size);
        steps.push(Step::Write(crate::apply::ring_write(layout)));
        steps.push(Step::Flush);
        let content = Content::Bytes(superblock.encode().to_vec());
        steps.push(Step::Write(Write {
            offset: layout.superblock_offset(),
            content,
        }));
        steps.push(Step::Flush);
        steps
    }

    fn bitmap_writes(&self, layout: &Layout, size: SectorCount) -> Vec<Step> {
        let area = layout.bitmap_len();
        let mut limit = crate::bitmap::words_len(size).0.min(area.0);
        let mut steps = vec![Step::Write(Write {
            offset: layout.bitmap_offset(),
            content: Content::Zeroes(area),
        })];
        let mut at = layout.bitmap_offset().0;
        let mut pending: Vec<u8> = Vec::new();
        for (count, word) in &self.bitmap {
            let mut bytes = count.saturating_mul(8).min(limit);
            limit -= bytes;
            // Zeros are there already; only what fits a block is collected.
            while bytes > 0 {
                let room = (BLOCK_SIZE - pending.len()) as u64;
                let take = bytes.min(room);
                for _ in 0..take.div_ceil(8) {
                    pending.extend_from_slice(&word.to_le_bytes());
                }
                bytes -= take;
                let whole_blocks = bytes / BLOCK_SIZE as u64;
                if pending.len() >= BLOCK_SIZE {
                    flush_pending(&mut steps, &mut at, &mut pending);
                    if whole_blocks > 0 {
                        bytes -= whole_blocks * BLOCK_SIZE as u64;
                        at = push_run(&mut steps, at, *word, whole_blocks);
                    }
                }
            }
        }
        flush_pending(&mut steps, &mut at, &mut pending);
        steps
    }
}

fn flush_pending(steps: &mut Vec<Step>, at: &mut u64, pending: &mut Vec<u8>) {
    if pending.is_empty() {
        return;
    }
    let len = pending.len() as u64;
    let mut bytes = core::mem::take(pending);
    // Disks are written in whole blocks; what follows the last word is zero.
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    if bytes.iter().any(|byte| *byte != 0) {
        steps.push(Step::Write(Write {
            offset: ByteOffset(*at),
            content: Content::Bytes(bytes),
        }));
    }
    *at += len;
}

fn push_run(steps: &mut Vec<Step>, at: u64, word: u64, blocks: u64) -> u64 {
    let end = at + blocks * BLOCK_SIZE as u64;
    if word == 0 {
        return end;
    }
    let mut block = [0; BLOCK_SIZE];
    for chunk in block.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    // A bitmap has at most 2^26 sectors, so its blocks fit 32 bits.
    let count = u32::try_from(blocks).unwrap_or(u32::MAX);
    let content = Content::Repeated {
        block: block.into(),
        count,
    };
    steps.push(Step::Write(Write {
        offset: ByteOffset(at),
        content,
    }));
    end
}

struct Parser<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Parser<'a> {
    const fn expected(&self, expected: &'static str) -> RestoreError {
        RestoreError::Expected {
            line: self.line,
            expected,
        }
    }

    const fn out_of_range(&self, what: &'static str, got: u64) -> RestoreError {
        RestoreError::OutOfRange {
            line: self.line,
            what,
            got,
        }
    }

    fn skip_space(&mut self) {
        loop {
            let trimmed = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
            let skipped = &self.rest[..self.rest.len() - trimmed.len()];
            let lines = skipped.bytes().filter(|byte| *byte == b'\n').count();
            self.line = self
                .line
                .saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
            self.rest = trimmed;
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }

    /// The next word of letters, digits, minus and underscore.
    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn keyword(&mut self, word: &str, expected: &'static str) -> Result<(), RestoreError> {
        if self.word() == word {
            Ok(())
        } else {
            Err(self.expected(expected))
        }
    }

    fn try_symbol(&mut self, symbol: char) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn symbol(&mut self, symbol: char, expected: &'static str) -> Result<(), RestoreError> {
        if self.try_symbol(symbol) {
            Ok(())
        } else {
            Err(self.expected(expected))
        }
    }

    fn string(&mut self) -> Result<&'a str, RestoreError> {
        self.symbol('"', "string")?;
        let line_end = self.rest.find('\n').unwrap_or(self.rest.len());
        let Some(end) = self.rest[..line_end].find('"') else {
            return Err(self.expected("closing '\"'"));
        };
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn bad_number(&self, text: &str) -> RestoreError {
        RestoreError::BadNumber {
            line: self.line,
            text: text.chars().take(32).collect::<String>(),
        }
    }

    fn hex_of(&self, word: &str, digits: usize) -> Result<u64, RestoreError> {
        word.strip_prefix("0x")
            .filter(|hex| hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .ok_or_else(|| self.bad_number(word))
    }

    fn hex(&mut self, digits: usize) -> Result<u64, RestoreError> {
        let word = self.word();
        self.hex_of(word, digits)
    }

    fn decimal_of(&self, word: &str) -> Result<u64, RestoreError> {
        let digits = !word.is_empty()
            && word.len() <= DECIMAL_DIGITS_MAX
            && word.bytes().all(|byte| byte.is_ascii_digit());
        word.parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| self.bad_number(word))
    }

    fn decimal_statement(
        &mut self,
        word: &str,
        expected: &'static str,
    ) -> Result<u64, RestoreError> {
        self.keyword(word, expected)?;
        let number = self.word();
        let value = self.decimal_of(number)?;
        self.symbol(';', "';'")?;
        Ok(value)
    }

    fn small(&mut self, word: &'static str, expected: &'static str) -> Result<u32, RestoreError> {
        let value = self.decimal_statement(word, expected)?;
        u32::try_from(value).map_err(|_| self.out_of_range(word, value))
    }

    fn uuid_block(&mut self) -> Result<(Uuids, Flags), RestoreError> {
        self.keyword("uuid", "keyword 'uuid'")?;
        self.symbol('{', "'{'")?;
        let mut values = [0; 4];
        for value in &mut values {
            *value = self.hex(16)?;
            self.symbol(';', "';'")?;
        }
        self.keyword("flags", "keyword 'flags'")?;
        // Exactly eight digits, so it fits 32 bits.
        let flags = Flags(self.hex(8)? as u32);
        self.symbol(';', "';'")?;
        self.symbol('}', "'}'")?;
        let [current, bitmap, younger, older] = values;
        Ok((
            Uuids {
                current,
                bitmap,
                history: [younger, older],
            },
            flags,
        ))
    }

    fn bitmap(&mut self) -> Result<Vec<(u64, u64)>, RestoreError> {
        self.keyword("bm", "keyword 'bm'")?;
        self.symbol('{', "'{'")?;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        while !self.try_symbol('}') {
            let word = self.word();
            let run = if word.starts_with("0x") {
                (1, self.hex_of(word, 16)?)
            } else if word.is_empty() {
                return Err(self.expected("bitmap word or '}'"));
            } else {
                let count = self.decimal_of(word)?;
                self.keyword("times", "keyword 'times'")?;
                (count, self.hex(16)?)
            };
            self.symbol(';', "';'")?;
            match runs.last_mut() {
                // A joined count must still be one that this parser reads.
                Some((count, word)) if *word == run.1 && *count <= JOINED_COUNT_MAX - run.0 => {
                    *count += run.0;
                }
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        self.skip_space();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.expected("end of file"))
        }
    }
}

/// Line of `restore-md` on standard output when done.
pub const TEXT_RESTORED: &str = "Successfully restored meta data";
/// Line of `verify-dump` on standard output.
pub const TEXT_PARSED: &str = "input file parsed ok";
/// Question of `restore-md` when there are valid metadata.
pub const TEXT_OVERWRITE_QUESTION: &str = "Valid meta-data in place, overwrite?";

impl Restore {
    /// The dump as text that parses to the same values, without comments.
    pub fn to_text(&self) -> String {
        use core::fmt::Write as _;
        let mut text = "version \"v08\";\nuuid {\n".to_string();
        let [younger, older] = self.uuids.history;
        for uuid in [self.uuids.current, self.uuids.bitmap, younger, older] {
            let _ = write!(text, " 0x{uuid:016X};");
        }
        let _ = writeln!(text, "\n flags 0x{:08X};\n}}", self.flags.0);
        let _ = writeln!(
            text,
            "la-size-sect {};\nbm-byte-per-bit 4096;",
            self.la_size.0
        );
        let _ = writeln!(text, "device-uuid 0x{:016X};", self.device_uuid);
        let _ = writeln!(text, "la-peer-max-bio-size {};", self.la_peer_max_bio_size);
        let _ = writeln!(text, "al-stripes {};", self.geometry.stripes());
        let _ = writeln!(
            text,
            "al-stripe-size-4k {};\nbm {{",
            self.geometry.stripe_size_4k()
        );
        for (count, word) in &self.bitmap {
            let _ = writeln!(text, " {count} times 0x{word:016X};");
        }
        text.push_str("}\n");
        text
    }
}
