//! The set bits of a page that has few of them: a large device with scattered changes takes a few bytes for each, not a page.

use alloc::vec::Vec;
use core::ops::Range;

/// Most bits that are kept one by one: 128 bytes, and as many comparisons as a search through the words would take.
pub(super) const FEW_MAX: usize = 64;

/// Positions of the set bits, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Few {
    bits: Vec<u16>,
}

impl Few {
    /// From ascending positions, at most [`FEW_MAX`].
    pub(super) fn of(bits: impl Iterator<Item = u32>) -> Few {
        Few {
            bits: bits.map(|bit| bit as u16).collect(),
        }
    }

    /// Number of set bits.
    pub(super) fn len(&self) -> usize {
        self.bits.len()
    }

    /// Every set bit, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits.iter().map(|bit| u32::from(*bit))
    }

    /// Which of the positions lie in a range.
    fn span(&self, range: &Range<u32>) -> Range<usize> {
        let before = |end: u32| self.bits.partition_point(|bit| u32::from(*bit) < end);
        before(range.start)..before(range.end)
    }

    pub(super) fn get(&self, bit: u32) -> bool {
        !self.span(&(bit..bit + 1)).is_empty()
    }

    pub(super) fn word(&self, word: usize) -> u64 {
        let base = word as u32 * 64;
        let set = &self.bits[self.span(&(base..base + 64))];
        set.iter().fold(0, |value, bit| value | 1 << (bit % 64))
    }

    pub(super) fn count_range(&self, range: Range<u32>) -> u32 {
        self.span(&range).len() as u32
    }

    pub(super) fn first_set(&self, range: &Range<u32>) -> Option<u32> {
        let set = &self.bits[self.span(range)];
        set.first().map(|bit| u32::from(*bit))
    }

    pub(super) fn first_clear(&self, range: &Range<u32>) -> Option<u32> {
        let set = self.bits[self.span(range)].iter();
        let run = set
            .zip(range.clone())
            .take_while(|(bit, at)| u32::from(**bit) == *at);
        let clear = range.start + run.count() as u32;
        (clear < range.end).then_some(clear)
    }

    /// Whether a range can be set without there being too many.
    pub(super) fn has_room(&self, range: &Range<u32>) -> bool {
        self.len() - self.span(range).len() + range.len() <= FEW_MAX
    }

    /// Sets a range for which there is room; returns how many bits were clear before.
    pub(super) fn set(&mut self, range: Range<u32>) -> u32 {
        let span = self.span(&range);
        let clear = range.len() - span.len();
        self.bits.splice(span, range.map(|bit| bit as u16));
        clear as u32
    }

    /// Clears a range; returns how many bits were set before.
    pub(super) fn clear(&mut self, range: Range<u32>) -> u32 {
        let span = self.span(&range);
        self.bits.drain(span).len() as u32
    }

    /// The positions ascend.
    pub(super) fn is_ordered(&self) -> bool {
        self.bits.is_sorted_by(|one, next| one < next)
    }
}
