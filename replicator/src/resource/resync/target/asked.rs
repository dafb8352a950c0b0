//! The blocks that a target waits for: found by their place and by their name, and counted.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::resync::merge::RequestKind;

/// How far a block is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// Something that overlaps is in flight.
    Waits,
    /// This node's own block is being read, for its digest.
    Reads,
    /// The request is sent.
    Sent,
    /// The same, with a digest.
    SentDigest,
}

/// A block on its way from the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Names it, and its interval.
    pub(super) id: u64,
    /// Blocks of 4 KiB.
    pub(super) bits: u32,
    pub(super) length: u32,
    /// It has an interval.
    pub(super) interval: bool,
    /// Whether the source may answer that all of it is zero.
    pub(super) kind: RequestKind,
    pub(super) asking: Asking,
}

impl Asked {
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.asking, Asking::Sent | Asking::SentDigest)
    }
}

/// All of them, by their first byte.
#[derive(Debug, Default)]
pub(super) struct AskedBlocks {
    by_offset: BTreeMap<u64, Asked>,
    /// Where the block of a name begins.
    offsets: BTreeMap<u64, u64>,
    /// Blocks of 4 KiB in all of them.
    bits: u32,
}

impl AskedBlocks {
    /// Adds a block; one that began there before is forgotten.
    pub(super) fn insert(&mut self, offset: u64, block: Asked) {
        self.remove(offset);
        self.bits += block.bits;
        self.offsets.insert(block.id, offset);
        self.by_offset.insert(offset, block);
    }

    /// Takes the block that begins there off the list.
    pub(super) fn remove(&mut self, offset: u64) -> Option<Asked> {
        let block = self.by_offset.remove(&offset)?;
        self.offsets.remove(&block.id);
        self.bits -= block.bits;
        Some(block)
    }

    /// The block that begins there.
    pub(super) fn at(&self, offset: u64) -> Option<&Asked> {
        self.by_offset.get(&offset)
    }

    /// The block of a name, and where it begins, if it is asked for so far.
    pub(super) fn find(&mut self, id: u64, asking: Asking) -> Option<(u64, &mut Asked)> {
        let offset = *self.offsets.get(&id)?;
        let block = self.by_offset.get_mut(&offset)?;
        (block.asking == asking).then_some((offset, block))
    }

    /// Each block, with where it begins. Its name and its length stay as they are.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Asked)> {
        let blocks = self.by_offset.iter_mut();
        blocks.map(|(offset, block)| (*offset, block))
    }

    /// Forgets all; returns the names of those that have an interval.
    pub(super) fn give_up(&mut self) -> Vec<u64> {
        let all = core::mem::take(self);
        let held = all.by_offset.values().filter(|block| block.interval);
        held.map(|block| block.id).collect()
    }

    /// Blocks of 4 KiB on their way.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_offset.is_empty()
    }

    /// The number and the names fit the blocks.
    pub(super) fn fits(&self) -> bool {
        let bits: u32 = self.by_offset.values().map(|block| block.bits).sum();
        let named = |(offset, block): (&u64, &Asked)| self.offsets.get(&block.id) == Some(offset);
        bits == self.bits
            && self.offsets.len() == self.by_offset.len()
            && self.by_offset.iter().all(named)
    }
}
