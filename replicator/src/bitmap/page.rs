//! One page of the bitmap: 32768 bits, which take memory only when they are neither all clear nor all set, and little when few are set.

use alloc::boxed::Box;
use core::ops::Range;

use super::few::{FEW_MAX, Few};

/// Bits of one page: 4 KiB of bitmap, 128 MiB of data.
pub const PAGE_BITS: u64 = 32_768;
/// Bytes of one page on disk.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words of one page.
pub(super) const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// A page that has its words gives them up when no more bits than these are left: well below [`FEW_MAX`], so that a few changes do not
/// bring them back.
const FEW_AGAIN: u32 = FEW_MAX as u32 / 4;

/// The words of a page that is neither all clear nor all set, and how many bits are set in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) words: [u64; PAGE_WORDS],
    pub(super) set: u32,
}

/// What a page holds. Bits past the end of the bitmap (last page) are never counted as set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Content {
    /// No bit is set.
    #[default]
    Clear,
    /// Every valid bit is set.
    Set,
    /// Some are, but few.
    Few(Few),
    /// Some are, some are not.
    Mixed(Box<Words>),
}

/// The bits `[from, to)` of one word.
const fn mask(from: u32, to: u32) -> u64 {
    if from >= to {
        return 0;
    }
    let upper = if to >= 64 { u64::MAX } else { (1 << to) - 1 };
    upper & (u64::MAX << from)
}

/// The words that a range of bits touches, each with the mask of the touched bits.
fn masks(range: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (range.start / 64, range.end.div_ceil(64));
    (first..last).map(move |word| {
        let base = word * 64;
        let from = range.start.saturating_sub(base);
        let to = (range.end - base).min(64);
        (word as usize, mask(from, to))
    })
}

impl Content {
    /// Bits set, of `valid` bits.
    pub(super) fn count(&self, valid: u32) -> u32 {
        match self {
            Content::Clear => 0,
            Content::Set => valid,
            Content::Few(few) => few.len() as u32,
            Content::Mixed(words) => words.set,
        }
    }

    pub(super) fn get(&self, bit: u32) -> bool {
        match self {
            Content::Clear => false,
            Content::Set => true,
            Content::Few(few) => few.get(bit),
            Content::Mixed(words) => words.words[(bit / 64) as usize] & (1 << (bit % 64)) != 0,
        }
    }

    /// One word of the page, with the bits from `valid` on clear.
    pub(super) fn word(&self, word: usize, valid: u32) -> u64 {
        match self {
            Content::Clear => 0,
            Content::Set => {
                let base = (word as u32).saturating_mul(64);
                mask(0, valid.saturating_sub(base).min(64))
            }
            Content::Few(few) => few.word(word),
            Content::Mixed(words) => words.words.get(word).copied().unwrap_or(0),
        }
    }

    /// All words of the page, as [`Content::word`] has them.
    pub(super) fn words(&self, valid: u32) -> [u64; PAGE_WORDS] {
        let mut words = [0; PAGE_WORDS];
        match self {
            Content::Clear => {}
            Content::Set => {
                for (index, word) in words.iter_mut().enumerate() {
                    *word = valid_mask(index, valid);
                }
            }
            Content::Few(few) => {
                for bit in few.iter() {
                    words[(bit / 64) as usize] |= 1 << (bit % 64);
                }
            }
            Content::Mixed(mixed) => words = mixed.words,
        }
        words
    }

    /// What these words are, of which only the first `valid` bits count.
    pub(super) fn of_words(mut words: [u64; PAGE_WORDS], valid: u32) -> Content {
        let mut set = 0;
        for (index, word) in words.iter_mut().enumerate() {
            *word &= valid_mask(index, valid);
            set += word.count_ones();
        }
        if set == 0 {
            Content::Clear
        } else if set == valid {
            Content::Set
        } else if set <= FEW_MAX as u32 {
            Content::Few(Few::of(ones(&words)))
        } else {
            Content::Mixed(Box::new(Words { words, set }))
        }
    }

    /// The few set bits of a page that has no words, if a range can be set in it without giving it words.
    fn few_with_room(&mut self, range: &Range<u32>) -> Option<&mut Few> {
        if matches!(self, Content::Clear) && range.len() <= FEW_MAX {
            *self = Content::Few(Few::default());
        }
        match self {
            Content::Few(few) => Some(few).filter(|few| few.has_room(range)),
            Content::Clear | Content::Set | Content::Mixed(_) => None,
        }
    }

    /// Sets a range; returns how many bits were clear before.
    pub(super) fn set(&mut self, range: Range<u32>, valid: u32) -> u32 {
        if range.is_empty() || matches!(self, Content::Set) {
            return 0;
        }
        if range.start == 0 && range.end >= valid {
            let before = self.count(valid);
            *self = Content::Set;
            return valid - before;
        }
        if let Some(few) = self.few_with_room(&range) {
            let changed = few.set(range);
            self.normalise(valid);
            return changed;
        }
        let words = self.materialise(valid);
        let mut changed = 0;
        for (word, mask) in masks(range) {
            changed += (mask & !words.words[word]).count_ones();
            words.words[word] |= mask;
        }
        words.set += changed;
        self.normalise(valid);
        changed
    }

    /// Clears a range; returns how many bits were set before.
    pub(super) fn clear(&mut self, range: Range<u32>, valid: u32) -> u32 {
        if range.is_empty() || matches!(self, Content::Clear) {
            return 0;
        }
        if range.start == 0 && range.end >= valid {
            let before = self.count(valid);
            *self = Content::Clear;
            return before;
        }
        if let Content::Few(few) = self {
            let changed = few.clear(range);
            self.normalise(valid);
            return changed;
        }
        let words = self.materialise(valid);
        let mut changed = 0;
        for (word, mask) in masks(range) {
            changed += (mask & words.words[word]).count_ones();
            words.words[word] &= !mask;
        }
        words.set -= changed;
        self.normalise(valid);
        changed
    }

    /// Adds the bits of one word (already masked to the valid bits); returns how many were clear before. The caller
    /// calls [`Content::normalise`] after the last word.
    pub(super) fn or_word(&mut self, word: usize, value: u64, valid: u32) -> u32 {
        if value == 0 || matches!(self, Content::Set) {
            return 0;
        }
        let base = word as u32 * 64;
        let span = base + value.trailing_zeros()..base + 64 - value.leading_zeros();
        if let Some(few) = self.few_with_room(&span) {
            let set = span.filter(|bit| value & 1 << (bit % 64) != 0);
            return set.map(|bit| few.set(bit..bit + 1)).sum();
        }
        let words = self.materialise(valid);
        let changed = (value & !words.words[word]).count_ones();
        words.words[word] |= value;
        words.set += changed;
        changed
    }

    /// Bits set in a range.
    pub(super) fn count_range(&self, range: Range<u32>) -> u32 {
        match self {
            Content::Clear => 0,
            Content::Set => range.end.saturating_sub(range.start),
            Content::Few(few) => few.count_range(range),
            Content::Mixed(words) => masks(range)
                .map(|(word, mask)| (words.words[word] & mask).count_ones())
                .sum(),
        }
    }

    /// First bit in `[from, to)` that is set (`wanted` all ones) or clear (`wanted` zero).
    pub(super) fn find(&self, range: Range<u32>, wanted: Wanted) -> Option<u32> {
        if range.is_empty() {
            return None;
        }
        match (self, wanted) {
            (Content::Clear, Wanted::Clear) | (Content::Set, Wanted::Set) => Some(range.start),
            (Content::Clear, Wanted::Set) | (Content::Set, Wanted::Clear) => None,
            (Content::Few(few), Wanted::Set) => few.first_set(&range),
            (Content::Few(few), Wanted::Clear) => few.first_clear(&range),
            (Content::Mixed(words), _) => masks(range).find_map(|(word, mask)| {
                let value = match wanted {
                    Wanted::Set => words.words[word],
                    Wanted::Clear => !words.words[word],
                } & mask;
                (value != 0).then(|| word as u32 * 64 + value.trailing_zeros())
            }),
        }
    }

    /// Turns the page into words; the valid bits keep their value, the others are clear.
    pub(super) fn materialise(&mut self, valid: u32) -> &mut Words {
        if !matches!(self, Content::Mixed(_)) {
            let words = Words {
                words: self.words(valid),
                set: self.count(valid),
            };
            *self = Content::Mixed(Box::new(words));
        }
        match self {
            Content::Mixed(words) => words,
            Content::Clear | Content::Set | Content::Few(_) => {
                unreachable!("the page was turned into words above")
            }
        }
    }

    /// Gives the memory back if the page became all clear or all set, and most of it if few bits are left.
    pub(super) fn normalise(&mut self, valid: u32) {
        let set = match self {
            Content::Clear | Content::Set => return,
            Content::Few(_) | Content::Mixed(_) => self.count(valid),
        };
        if set == 0 {
            *self = Content::Clear;
        } else if set == valid {
            *self = Content::Set;
        } else if let Content::Mixed(words) = self
            && set <= FEW_AGAIN
        {
            *self = Content::Few(Few::of(ones(&words.words)));
        }
    }

    /// Clears the bits from `valid` on and counts again: after the bitmap became shorter.
    pub(super) fn truncate(&mut self, valid: u32) {
        if let Content::Few(few) = self {
            few.clear(valid..PAGE_BITS as u32);
        }
        if let Content::Mixed(words) = self {
            for (index, word) in words.words.iter_mut().enumerate() {
                *word &= mask(0, valid.saturating_sub(index as u32 * 64).min(64));
            }
            words.set = words.words.iter().map(|word| word.count_ones()).sum();
        }
        self.normalise(valid);
    }
}

/// Positions of the set bits, ascending.
fn ones(words: &[u64; PAGE_WORDS]) -> impl Iterator<Item = u32> + '_ {
    (0..).zip(words).flat_map(|(index, word)| {
        let mut left = *word;
        core::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(index * 64 + bit)
        })
    })
}

/// Which bits a search looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Set,
    Clear,
}

/// The valid bits of a word of a page.
pub(super) const fn valid_mask(word: usize, valid: u32) -> u64 {
    let base = (word as u32).saturating_mul(64);
    let to = valid.saturating_sub(base);
    mask(0, if to > 64 { 64 } else { to })
}
