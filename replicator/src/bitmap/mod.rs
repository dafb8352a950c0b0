//! The quick-sync bitmap in memory: one bit per 4 KiB of data, set when the block must be resynced
//! (spec/metadata.md section 4).
//!
//! # Invariants
//!
//! * No bit at or past [`Bitmap::bits`] is ever set or counted; on disk such bits are written as zero and ignored when read.
//! * [`Bitmap::count`] is the number of set bits, kept with every change.
//! * A page takes memory for its words only while some of its valid bits are set and some are clear, and little while few are set.
//! * A page that changed since its last write was *started* is marked, so a change during a write marks it again; at most
//!   one write of a page is in flight, because two could reach the disk in either order.
//!
//! Cost: every operation takes time for the pages it touches, not for the size of the device.

pub mod coverage;
mod few;
mod page;
mod write_out;

pub use coverage::{BIT_BYTES, bits_covered, bits_of_device, bits_touched, bytes_of_bits};
pub use page::{PAGE_BITS, PAGE_BYTES};
pub use write_out::{PageChange, PageWrite, WriteOutcome, WriteSelection};

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use few::FEW_MAX;
use page::{Content, PAGE_WORDS, Wanted, valid_mask};

/// Bits of the largest device (1 PiB, spec/metadata.md 1.4): a larger bitmap is refused.
pub const BITS_MAX: u64 = (1 << 50) / BIT_BYTES;

/// Why an operation on the bitmap was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// The device is larger than 1 PiB.
    #[error("a bitmap of {bits} bits is too large (at most {BITS_MAX})")]
    TooLarge {
        /// Bits asked for.
        bits: u64,
    },
    /// A page that the bitmap does not have.
    #[error("bitmap page {page} does not exist, the bitmap has {pages} pages")]
    NoSuchPage {
        /// The page.
        page: u32,
        /// Pages of the bitmap.
        pages: u32,
    },
    /// A page read from disk, or a buffer for one, has the wrong length.
    #[error("bitmap page {page} has {got} bytes instead of {PAGE_BYTES}")]
    PageLength {
        /// The page.
        page: u32,
        /// Its length in bytes.
        got: usize,
    },
    /// Words or bits beyond the end of the bitmap.
    #[error("{what} {from} to {to} are beyond the end of the bitmap ({end})")]
    BeyondEnd {
        /// `words` or `bits`.
        what: &'static str,
        /// First one.
        from: u64,
        /// One past the last one.
        to: u64,
        /// Number of them in the bitmap.
        end: u64,
    },
}

/// The value that bits get which did not exist before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewBits {
    /// Out of sync: the ordinary case.
    Set,
    /// In sync: "assume clean".
    Clear,
}

/// How soon a change of bits must be on disk (spec/metadata.md 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// It may wait: bits were cleared, or set from the peer's bitmap, which the peer still knows.
    Lazy,
    /// Before the activity-log extent that covers the bits is evicted.
    BeforeEviction,
}

#[derive(Clone, Debug, Default)]
struct Page {
    content: Content,
    /// What was changed since the last write was started.
    change: Option<Urgency>,
    /// Not yet read from disk: what is here is only what was set since.
    unread: bool,
}

/// A run of equal bits, for the run-length code of the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The bits.
    pub bits: Range<u64>,
    /// Whether they are set.
    pub set: bool,
}

/// The bitmap. See the module for its invariants.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    bits: u64,
    pages: Vec<Page>,
    count: u64,
    changed_pages: u32,
    unread_pages: u32,
    writes: BTreeMap<u32, write_out::InFlight>,
    write_generation: u64,
}

impl Bitmap {
    /// A bitmap of `bits` bits with the given value, known to differ from the disk on every page.
    ///
    /// # Errors
    /// [`BitmapError::TooLarge`].
    pub fn new(bits: u64, value: NewBits) -> Result<Self, BitmapError> {
        let mut bitmap = Self::default();
        bitmap.resize(bits, value)?;
        Ok(bitmap)
    }

    /// A bitmap of `bits` bits of which nothing has been read from disk. [`Bitmap::load_page`] adds the disk's bits page
    /// by page; bits set before are kept. Until then a page shows only what was set since: see [`Bitmap::is_read`].
    ///
    /// # Errors
    /// [`BitmapError::TooLarge`].
    pub fn unread(bits: u64) -> Result<Self, BitmapError> {
        let mut bitmap = Self::new(bits, NewBits::Clear)?;
        for page in &mut bitmap.pages {
            page.change = None;
            page.unread = true;
        }
        bitmap.changed_pages = 0;
        bitmap.unread_pages = bitmap.page_count();
        Ok(bitmap)
    }

    /// Number of bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Number of 64-bit words, the last one counted even if partly used.
    pub fn words(&self) -> u64 {
        self.bits.div_ceil(64)
    }

    /// Number of 4 KiB pages.
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.pages.len()).unwrap_or(u32::MAX)
    }

    /// Number of set bits: blocks of 4 KiB out of sync.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Every bit is set. False for a bitmap without bits.
    pub fn is_all_set(&self) -> bool {
        self.bits > 0 && self.count == self.bits
    }

    /// No bit is set.
    pub fn is_all_clear(&self) -> bool {
        self.count == 0
    }

    /// Whether a bit is set. Bits past the end are clear.
    pub fn get(&self, bit: u64) -> bool {
        bit < self.bits && self.pages[page_of(bit)].content.get(in_page(bit))
    }

    /// Number of set bits in a range, cut at the end of the bitmap.
    pub fn count_range(&self, range: Range<u64>) -> u64 {
        if range.start == 0 && range.end >= self.bits {
            return self.count;
        }
        self.parts(range)
            .map(|(page, part)| u64::from(self.pages[page].content.count_range(part)))
            .sum()
    }

    /// Sets a range (cut at the end); returns how many bits were clear before.
    pub fn set(&mut self, range: Range<u64>, urgency: Urgency) -> u64 {
        let mut changed = 0;
        for (index, part) in self.parts(range) {
            let valid = self.valid(index);
            let newly = self.pages[index].content.set(part, valid);
            if newly > 0 {
                changed += u64::from(newly);
                self.mark(index, urgency);
            }
        }
        self.count += changed;
        changed
    }

    /// Clears a range (cut at the end); returns how many bits were set before. The pages are marked as lazy changes.
    /// On a page that is not read yet the disk's bits come back when it is: too many set bits do no harm.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        let mut changed = 0;
        for (index, part) in self.parts(range) {
            let valid = self.valid(index);
            let newly = self.pages[index].content.clear(part, valid);
            if newly > 0 {
                changed += u64::from(newly);
                self.mark(index, Urgency::Lazy);
            }
        }
        self.count -= changed;
        changed
    }

    /// Sets every bit and marks every page, whatever it held; nothing needs to be read from disk any more.
    pub fn set_all(&mut self) {
        self.fill(Content::Set);
        self.count = self.bits;
    }

    /// Clears every bit and marks every page, whatever it held; nothing needs to be read from disk any more.
    pub fn clear_all(&mut self) {
        self.fill(Content::Clear);
        self.count = 0;
    }

    fn fill(&mut self, content: Content) {
        for page in &mut self.pages {
            *page = Page {
                content: content.clone(),
                change: Some(Urgency::BeforeEviction),
                unread: false,
            };
        }
        self.changed_pages = self.page_count();
        self.unread_pages = 0;
    }

    /// First set bit at or after `from`.
    pub fn next_set(&self, from: u64) -> Option<u64> {
        self.find(from..self.bits, Wanted::Set)
    }

    /// First clear bit at or after `from`.
    pub fn next_clear(&self, from: u64) -> Option<u64> {
        self.find(from..self.bits, Wanted::Clear)
    }

    /// Whether any bit of the range is set: a read of an Inconsistent disk asks this.
    pub fn any_set(&self, range: Range<u64>) -> bool {
        self.find(range, Wanted::Set).is_some()
    }

    fn find(&self, range: Range<u64>, wanted: Wanted) -> Option<u64> {
        self.parts(range).find_map(|(page, part)| {
            let found = self.pages[page].content.find(part, wanted)?;
            Some(page as u64 * PAGE_BITS + u64::from(found))
        })
    }

    /// The runs of set bits in a range, in ascending order, cut at the range's ends.
    pub fn set_runs(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = range.end.min(self.bits);
        let mut at = range.start;
        core::iter::from_fn(move || {
            let start = self.find(at..end, Wanted::Set)?;
            at = self.find(start..end, Wanted::Clear).unwrap_or(end);
            Some(start..at)
        })
    }

    /// The run of equal bits that starts at `from`, for the run-length code (spec/wire-protocol.md 6.3). None at the end.
    pub fn run_at(&self, from: u64) -> Option<Run> {
        if from >= self.bits {
            return None;
        }
        let set = self.get(from);
        let end = self.find(
            from..self.bits,
            if set { Wanted::Clear } else { Wanted::Set },
        );
        Some(Run {
            bits: from..end.unwrap_or(self.bits),
            set,
        })
    }

    /// One 64-bit word; zero past the end.
    pub fn word(&self, word: u64) -> u64 {
        let index = (word / PAGE_WORDS as u64) as usize;
        match self.pages.get(index) {
            Some(page) => page
                .content
                .word((word % PAGE_WORDS as u64) as usize, self.valid(index)),
            None => 0,
        }
    }

    /// Adds received words from `word_offset` on (one P_BITMAP); returns how many bits were clear before. Bits past the
    /// end in the last word are ignored, as the kernel may send garbage there.
    ///
    /// # Errors
    /// [`BitmapError::BeyondEnd`].
    pub fn merge_words(
        &mut self,
        word_offset: u64,
        words: impl ExactSizeIterator<Item = u64>,
        urgency: Urgency,
    ) -> Result<u64, BitmapError> {
        let to = word_offset.saturating_add(words.len() as u64);
        if to > self.words() {
            return Err(BitmapError::BeyondEnd {
                what: "words",
                from: word_offset,
                to,
                end: self.words(),
            });
        }
        let mut changed = 0;
        let mut touched = None;
        for (word, value) in (word_offset..).zip(words) {
            let (index, word) = (
                (word / PAGE_WORDS as u64) as usize,
                (word % PAGE_WORDS as u64) as usize,
            );
            let valid = self.valid(index);
            let newly =
                self.pages[index]
                    .content
                    .or_word(word, value & valid_mask(word, valid), valid);
            if newly > 0 {
                changed += u64::from(newly);
                self.mark(index, urgency);
                if touched.is_some_and(|last| last != index) {
                    self.normalise(touched);
                }
                touched = Some(index);
            }
        }
        self.normalise(touched);
        self.count += changed;
        Ok(changed)
    }

    /// Sets a received run of bits (run-length code); returns how many were clear before. The change is lazy: the peer
    /// still knows it.
    ///
    /// # Errors
    /// [`BitmapError::BeyondEnd`].
    pub fn merge_run(&mut self, run: Range<u64>) -> Result<u64, BitmapError> {
        if run.end > self.bits {
            return Err(BitmapError::BeyondEnd {
                what: "bits",
                from: run.start,
                to: run.end,
                end: self.bits,
            });
        }
        Ok(self.set(run, Urgency::Lazy))
    }

    /// Changes the number of bits (spec/metadata.md 4.5). New bits get `value`; their pages, and the page that holds the
    /// old end, are marked, because what the disk has there is not to be trusted.
    ///
    /// # Errors
    /// [`BitmapError::TooLarge`].
    pub fn resize(&mut self, bits: u64, value: NewBits) -> Result<(), BitmapError> {
        if bits > BITS_MAX {
            return Err(BitmapError::TooLarge { bits });
        }
        let old = self.bits;
        let pages = usize::try_from(bits.div_ceil(PAGE_BITS))
            .map_err(|_| BitmapError::TooLarge { bits })?;
        if bits < old {
            self.shrink(bits, pages);
        } else if bits > old {
            if !old.is_multiple_of(PAGE_BITS) {
                // "All set" means the valid bits: more of them become valid now.
                let last = self.pages.len() - 1;
                let valid = self.valid(last);
                if matches!(self.pages[last].content, Content::Set) {
                    self.pages[last].content.materialise(valid);
                }
                self.mark(last, Urgency::BeforeEviction);
            }
            let fresh = Page {
                change: Some(Urgency::BeforeEviction),
                ..Page::default()
            };
            self.changed_pages += u32::try_from(pages - self.pages.len()).unwrap_or(u32::MAX);
            self.pages.resize(pages, fresh);
            self.bits = bits;
            if value == NewBits::Set {
                self.set(old..bits, Urgency::BeforeEviction);
            }
        }
        Ok(())
    }

    fn shrink(&mut self, bits: u64, pages: usize) {
        let surplus: u64 = (pages..self.pages.len())
            .map(|index| u64::from(self.pages[index].content.count(self.valid(index))))
            .sum();
        self.count -= surplus;
        for page in self.pages.drain(pages..) {
            self.changed_pages -= u32::from(page.change.is_some());
            self.unread_pages -= u32::from(page.unread);
        }
        self.writes.retain(|page, _| (*page as usize) < pages);
        if let Some(last) = pages.checked_sub(1) {
            let before = self.pages[last].content.count(self.valid(last));
            self.bits = bits;
            let valid = self.valid(last);
            self.pages[last].content.truncate(valid);
            self.count -= u64::from(before - self.pages[last].content.count(valid));
            self.mark(last, Urgency::BeforeEviction);
        }
        self.bits = bits;
    }

    /// Tests the invariants of the module, in time for the whole bitmap.
    ///
    /// # Errors
    /// What does not hold: a bug of ours.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let mut count = 0;
        for (index, page) in self.pages.iter().enumerate() {
            let valid = self.valid(index);
            count += u64::from(page.content.count(valid));
            match &page.content {
                Content::Clear | Content::Set => continue,
                Content::Few(few) if !few.is_ordered() || few.len() > FEW_MAX => {
                    return Err("the few bits of a page are too many, or in no order");
                }
                Content::Few(_) | Content::Mixed(_) => {}
            }
            let here: u32 = (0..PAGE_WORDS)
                .map(|word| page.content.word(word, PAGE_BITS as u32).count_ones())
                .sum();
            if page.content.count(valid) != here {
                return Err("a page's count differs from its bits");
            }
            if here == 0 || here == valid {
                return Err("a page of equal bits takes memory");
            }
            if page.content.count_range(0..valid) != here {
                return Err("a bit past the end is set");
            }
        }
        if count != self.count {
            return Err("the count of set bits is wrong");
        }
        if self.pages.len() as u64 != self.bits.div_ceil(PAGE_BITS) {
            return Err("the number of pages does not fit the number of bits");
        }
        let marked = |test: fn(&Page) -> bool| self.pages.iter().filter(|page| test(page)).count();
        if marked(|page| page.change.is_some()) != self.changed_pages as usize {
            return Err("the number of changed pages is wrong");
        }
        if marked(|page| page.unread) != self.unread_pages as usize {
            return Err("the number of unread pages is wrong");
        }
        Ok(())
    }

    fn normalise(&mut self, page: Option<usize>) {
        if let Some(index) = page {
            let valid = self.valid(index);
            self.pages[index].content.normalise(valid);
        }
    }

    fn mark(&mut self, index: usize, urgency: Urgency) {
        let change = &mut self.pages[index].change;
        if change.is_none() {
            self.changed_pages += 1;
        }
        *change = (*change).max(Some(urgency));
    }

    /// Valid bits of a page.
    fn valid(&self, index: usize) -> u32 {
        (self.bits - index as u64 * PAGE_BITS).min(PAGE_BITS) as u32
    }

    /// A range, cut at the end, as page indices with ranges inside the page.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (usize, Range<u32>)> + use<> {
        let (start, end) = (range.start, range.end.min(self.bits));
        let pages = if start >= end {
            0..0
        } else {
            page_of(start)..page_of(end - 1) + 1
        };
        pages.map(move |index| {
            let base = index as u64 * PAGE_BITS;
            let from = start.saturating_sub(base) as u32;
            let to = (end - base).min(PAGE_BITS) as u32;
            (index, from..to)
        })
    }
}

const fn page_of(bit: u64) -> usize {
    (bit / PAGE_BITS) as usize
}

const fn in_page(bit: u64) -> u32 {
    (bit % PAGE_BITS) as u32
}
