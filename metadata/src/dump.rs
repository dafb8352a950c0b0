//! The text of `dump-md`, written as a stream: `docs/spec/metadata.md` section 6.2.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::bitmap::dump_len;
use crate::error::Clipped;
use crate::placement::Layout;
use crate::superblock::Superblock;
use crate::units::SectorCount;

/// Words of 64 bits on a line.
const WORDS_PER_LINE: u64 = 4;
/// The shortest run that becomes a `times` line.
const RUN_WORDS_MIN: u64 = 8;
/// Words from one `# at` mark to the next (8192 kB of data).
const WORDS_PER_MARK: u64 = 32;
/// Data that one word describes, in kB.
const KIB_PER_WORD: u64 = 256;

/// What the header says about this dump; the format has no place for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpHeader<'a> {
    /// Seconds since 1970 UTC.
    pub unix_time: i64,
    /// Local time zone, in minutes east of UTC.
    pub utc_offset_minutes: i32,
    /// Name of this host.
    pub host: &'a str,
    /// The command line, the program's name without its directory.
    pub command: &'a [&'a str],
}

/// Writes a dump: the head, then the bitmap word by word in order, then the end.
///
/// Call [`DumpWriter::words`] exactly [`DumpWriter::words_wanted`] times in all; [`DumpWriter::finish`] writes what is
/// still held back.
#[derive(Debug)]
pub struct DumpWriter<W> {
    out: W,
    wanted: u64,
    /// Index of the first word not yet written.
    line_at: u64,
    /// Words not yet written: a run of equal ones, then what ended it.
    run: Run,
    tail: Vec<u64>,
    bits_set: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Run {
    word: u64,
    count: u64,
}

impl Run {
    /// Runs are measured in 32-bit words, so only a word with equal halves can be in one.
    const fn continues_with(self, word: u64) -> bool {
        self.word == word && (self.word >> 32) == (self.word & 0xFFFF_FFFF)
    }
}

impl<W: Write> DumpWriter<W> {
    /// Writes everything before the bitmap's words.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(
        mut out: W,
        header: &DumpHeader<'_>,
        superblock: &Superblock,
        layout: &Layout,
    ) -> Result<Self, fmt::Error> {
        let mut size = superblock.la_size;
        if let Some(Clipped { stored, used }) = superblock.clip(layout) {
            write_clip_note(&mut out, stored, used)?;
            size = used;
        }
        write_header(&mut out, header)?;
        out.write_str("version \"v08\";\n\n")?;
        if superblock.needs_replay() {
            out.write_str(UNCLEAN)?;
        }
        writeln!(out, "# md_size_sect {}", superblock.md_size_sect)?;
        writeln!(out, "# md_offset {}", layout.superblock_offset().0)?;
        writeln!(out, "# al_offset {}", layout.activity_log_offset().0)?;
        writeln!(out, "# bm_offset {}\n", layout.bitmap_offset().0)?;
        write_scalars(&mut out, superblock, size)?;
        out.write_str("bm {")?;
        let wanted = dump_len(size).0 / 8;
        Ok(Self {
            out,
            wanted,
            line_at: 0,
            run: Run::default(),
            tail: Vec::new(),
            bits_set: 0,
        })
    }

    /// How many 64-bit words of the bitmap the dump shows.
    pub const fn words_wanted(&self) -> u64 {
        self.wanted
    }

    /// Adds bytes of the bitmap, a multiple of 8.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn words(&mut self, bytes: &[u8]) -> fmt::Result {
        for word in bytes.chunks_exact(8) {
            let mut array = [0; 8];
            array.copy_from_slice(word);
            self.word(u64::from_le_bytes(array))?;
        }
        Ok(())
    }

    /// Adds one word.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn word(&mut self, word: u64) -> fmt::Result {
        self.bits_set += u64::from(word.count_ones());
        self.accept(word)
    }

    fn accept(&mut self, word: u64) -> fmt::Result {
        if self.run.count == 0 {
            self.run = Run { word, count: 1 };
            return Ok(());
        }
        if self.tail.is_empty() && self.run.continues_with(word) {
            self.run.count += 1;
            return Ok(());
        }
        self.tail.push(word);
        self.settle()
    }

    /// Writes a line if enough is known, and looks again at what is left.
    fn settle(&mut self) -> fmt::Result {
        let whole = self.run.count - self.run.count % WORDS_PER_LINE;
        if whole >= RUN_WORDS_MIN {
            self.times_line(whole)?;
            self.run.count -= whole;
        } else if self.run.count + self.tail.len() as u64 >= WORDS_PER_LINE {
            let mut words = [self.run.word; WORDS_PER_LINE as usize];
            let from_run = self.run.count.min(WORDS_PER_LINE);
            let from_tail = (WORDS_PER_LINE - from_run) as usize;
            words[from_run as usize..].copy_from_slice(&self.tail[..from_tail]);
            self.words_line(words)?;
            self.run.count -= from_run;
            self.tail.drain(..from_tail);
        } else {
            return Ok(());
        }
        // The next line starts here: measure its run anew. Fewer than eight words are left.
        let mut left = alloc::vec![self.run.word; self.run.count as usize];
        left.append(&mut self.tail);
        self.run.count = 0;
        left.into_iter().try_for_each(|word| self.accept(word))
    }

    fn mark(&mut self) -> fmt::Result {
        if self.line_at.is_multiple_of(WORDS_PER_MARK) {
            write!(self.out, "\n   # at {}kB", self.line_at * KIB_PER_WORD)?;
        }
        Ok(())
    }

    fn times_line(&mut self, count: u64) -> fmt::Result {
        self.mark()?;
        self.line_at += count;
        write!(self.out, "\n    {count} times 0x{:016X};", self.run.word)
    }

    fn words_line(&mut self, words: [u64; 4]) -> fmt::Result {
        self.mark()?;
        self.line_at += WORDS_PER_LINE;
        self.out.write_str("\n   ")?;
        words
            .iter()
            .try_for_each(|word| write!(self.out, " 0x{word:016X};"))
    }

    /// Writes what is held back and the end of the dump.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(mut self) -> Result<W, fmt::Error> {
        // Words come in whole pages, so what is left is a run of a multiple of four words, or one line.
        while self.run.count > 0 {
            let whole = self.run.count - self.run.count % WORDS_PER_LINE;
            if self.tail.is_empty() && whole >= RUN_WORDS_MIN {
                self.times_line(whole)?;
                self.run.count -= whole;
            } else if self.tail.is_empty() && whole >= WORDS_PER_LINE {
                self.words_line([self.run.word; 4])?;
                self.run.count -= WORDS_PER_LINE;
            } else {
                break;
            }
        }
        write!(self.out, "\n}}\n# bits-set {};\n", self.bits_set)?;
        Ok(self.out)
    }
}

const UNCLEAN: &str = "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.
# You should \"apply-al\" first, if you plan to restore this.

";

/// The message of a refused dump of unclean metadata (standard error, exit 1).
pub const TEXT_UNCLEAN: &str = "Found meta data is \"unclean\", please apply-al first";
/// The message when there are no valid metadata (standard error, exit 1).
pub const TEXT_NOT_FOUND: &str = "No valid meta data found";

/// The note about a size that the metadata cannot hold.
pub fn write_clip_note(
    out: &mut impl Write,
    stored: SectorCount,
    used: SectorCount,
) -> fmt::Result {
    writeln!(
        out,
        "# la-size-sect was too big ({}), truncated ({})!",
        stored.0, used.0
    )
}

fn write_header(out: &mut impl Write, header: &DumpHeader<'_>) -> fmt::Result {
    let minutes = header.utc_offset_minutes;
    let local = header.unix_time.saturating_add(i64::from(minutes) * 60);
    let (year, month, day) = civil_date(local.div_euclid(86_400));
    let second = local.rem_euclid(86_400);
    out.write_str("# DRBD meta data dump\n")?;
    writeln!(
        out,
        "# {year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} {}{:02}{:02} [{}]",
        second / 3600,
        second / 60 % 60,
        second % 60,
        if minutes < 0 { '-' } else { '+' },
        minutes.unsigned_abs() / 60,
        minutes.unsigned_abs() % 60,
        header.unix_time,
    )?;
    write!(out, "# {}>", header.host)?;
    header
        .command
        .iter()
        .try_for_each(|word| write!(out, " {word}"))?;
    out.write_str("\n#\n\n")
}

/// Year, month and day of a day number since 1970-01-01, in the Gregorian calendar.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // Count from 0000-03-01, so that the leap day is the last of its year; 146097 days make 400 years.
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn write_scalars(out: &mut impl Write, superblock: &Superblock, size: SectorCount) -> fmt::Result {
    let uuids = &superblock.uuids;
    writeln!(out, "uuid {{")?;
    writeln!(
        out,
        "    0x{:016X}; 0x{:016X}; 0x{:016X}; 0x{:016X};",
        uuids.current, uuids.bitmap, uuids.history[0], uuids.history[1]
    )?;
    writeln!(out, "    flags 0x{:08X};\n}}", superblock.flags.0)?;
    writeln!(out, "# al-extents {};", superblock.al_extents)?;
    writeln!(out, "la-size-sect {};", size.0)?;
    writeln!(out, "bm-byte-per-bit {};", superblock.bm_bytes_per_bit)?;
    writeln!(out, "device-uuid 0x{:016X};", superblock.device_uuid)?;
    writeln!(
        out,
        "la-peer-max-bio-size {};",
        superblock.la_peer_max_bio_size
    )?;
    let stripes = superblock.geometry().unwrap_or(crate::AlGeometry::DEFAULT);
    writeln!(out, "al-stripes {};", stripes.stripes())?;
    writeln!(out, "al-stripe-size-4k {};", stripes.stripe_size_4k())?;
    writeln!(out, "# bm-bytes {};", dump_len(size).0)
}

/// A whole dump as one text, for bitmaps that are in memory. Missing bitmap bytes are taken as zeros.
pub fn dump_md(
    header: &DumpHeader<'_>,
    superblock: &Superblock,
    layout: &Layout,
    bitmap: &[u8],
) -> String {
    let dump = || -> Result<String, fmt::Error> {
        let mut writer = DumpWriter::new(String::new(), header, superblock, layout)?;
        let wanted = usize::try_from(writer.words_wanted() * 8).unwrap_or(usize::MAX);
        let shown = &bitmap[..bitmap.len().min(wanted)];
        writer.words(shown)?;
        for _ in shown.len() / 8..wanted / 8 {
            writer.word(0)?;
        }
        writer.finish()
    };
    // Writing to a String never fails.
    dump().unwrap_or_default()
}
