//! What the activity log says after a crash: `docs/spec/metadata.md` section 3.9.
//!
//! Replay reads the whole ring and yields the set of extents that may have had writes in flight. It is stricter
//! than drbdmeta where blocks are damaged: see [`Coverage`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use crate::activity_log::{AlGeometry, KIND_UPDATE, LogBlock, MAGIC, SLOTS_MAX, Transaction};
use crate::codec::be32;
use crate::error::ActivityLogError;
use crate::superblock::Magic;
use crate::units::{AlExtent, BLOCK_SIZE};

/// Start of a DRBD 9 log in persistent memory.
const MAGIC_PERSISTENT_MEMORY: u32 = 0x6AA6_67A6;

/// How far the replayed set can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coverage {
    /// Exactly the set before the transaction whose write was cut off, or the newest one.
    Exact,
    /// Blocks are damaged, but later ones describe every slot: the set has all that was hot, and maybe more.
    Union,
    /// Blocks are damaged and something hot may be missing: after a crash of a Primary all bits must be set.
    Unknown,
}

/// The result of reading a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// There is no update: nothing is hot, and the ring may stay as it is.
    Nothing,
    /// There are updates.
    Updates {
        /// The extents that may have had writes in flight.
        active: BTreeSet<AlExtent>,
        /// How far `active` can be trusted.
        coverage: Coverage,
    },
}

/// A replayed ring with what a log line should say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What is hot.
    pub result: Replayed,
    /// Blocks in the ring.
    pub blocks: u32,
    /// Blocks with a wrong magic or checksum.
    pub invalid: u32,
    /// Valid blocks with transactions.
    pub transactions: u32,
    /// Oldest and newest transaction number, if there is any.
    pub numbers: Option<(u32, u32)>,
    /// Transactions of an undefined type, treated as updates.
    pub unknown_types: u32,
    /// Assignments to slots that no log can have, skipped.
    pub slots_skipped: u32,
}

impl Replay {
    /// The extents that are hot; empty if there are no updates.
    pub fn active(&self) -> BTreeSet<AlExtent> {
        match &self.result {
            Replayed::Nothing => BTreeSet::new(),
            Replayed::Updates { active, .. } => active.clone(),
        }
    }

    /// Refuses logs of other formats (step 2): from before 8.4, or DRBD 9 in persistent memory. `ring` is in disk
    /// order.
    ///
    /// # Errors
    /// [`ActivityLogError::OldFormat`] or [`ActivityLogError::PersistentMemory`].
    pub fn check_format(
        ring: &[u8],
        geometry: AlGeometry,
        magic: Magic,
    ) -> Result<(), ActivityLogError> {
        let magic_of = |block: usize| {
            ring.get(block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE)
                .map(|bytes| be32(bytes, 0))
        };
        if magic_of(0) == Some(MAGIC_PERSISTENT_MEMORY) {
            return Err(ActivityLogError::PersistentMemory);
        }
        let current = magic == Magic::Unclean
            || geometry != AlGeometry::DEFAULT
            || magic_of(0) == Some(MAGIC)
            || magic_of(1) == Some(MAGIC);
        if current {
            Ok(())
        } else {
            Err(ActivityLogError::OldFormat)
        }
    }

    /// Replays a ring given in disk order.
    ///
    /// # Errors
    /// [`ActivityLogError::Short`]; [`ActivityLogError::NothingUsable`] (E1) and
    /// [`ActivityLogError::Indeterminate`] (E2), which only a Primary's crash makes fatal (step 6).
    pub fn of(ring: &[u8], geometry: AlGeometry) -> Result<Self, ActivityLogError> {
        let blocks = geometry.blocks();
        let expected = blocks as usize * BLOCK_SIZE;
        if ring.len() < expected {
            return Err(ActivityLogError::Short {
                expected,
                got: ring.len(),
            });
        }
        let decoded: Vec<_> = (0..blocks)
            .map(|position| {
                let start = geometry.block_at(position) as usize * BLOCK_SIZE;
                LogBlock::decode(&ring[start..start + BLOCK_SIZE]).ok()
            })
            .collect();
        Self::of_blocks(&decoded)
    }

    /// Replays blocks in ring order, where `None` is an invalid block.
    ///
    /// # Errors
    /// As [`Replay::of`].
    fn of_blocks(decoded: &[Option<LogBlock>]) -> Result<Self, ActivityLogError> {
        let blocks = decoded.len() as u32;
        let invalid = decoded.iter().filter(|block| block.is_none()).count() as u32;
        if invalid == blocks {
            return Err(ActivityLogError::NothingUsable { blocks });
        }
        let ring = Ring { decoded };
        let Some((oldest, newest)) = ring.ends() else {
            // A cut-off first transaction leaves exactly the first block invalid.
            let torn_first = invalid == 1 && decoded.first().is_some_and(Option::is_none);
            if invalid == 0 || torn_first {
                return Ok(Self::nothing(blocks, invalid));
            }
            return Err(ActivityLogError::Indeterminate { invalid, blocks });
        };
        let mut set = ActiveSet::new();
        for transaction in ring.from(oldest) {
            set.apply(transaction);
        }
        let coverage = ring.coverage(oldest, newest, invalid);
        let mut active = set.extents();
        if coverage != Coverage::Exact {
            active.extend(ring.all_extents());
        }
        let number = |position: usize| ring.transaction(position).map_or(0, |t| t.number);
        Ok(Self {
            result: Replayed::Updates { active, coverage },
            blocks,
            invalid,
            transactions: ring.from(0).count() as u32,
            numbers: Some((number(oldest), number(newest))),
            unknown_types: ring.from(0).filter(|t| t.kind != KIND_UPDATE).count() as u32,
            slots_skipped: set.skipped,
        })
    }

    const fn nothing(blocks: u32, invalid: u32) -> Self {
        Self {
            result: Replayed::Nothing,
            blocks,
            invalid,
            transactions: 0,
            numbers: None,
            unknown_types: 0,
            slots_skipped: 0,
        }
    }
}

/// The ring's blocks in ring order.
struct Ring<'a> {
    decoded: &'a [Option<LogBlock>],
}

impl<'a> Ring<'a> {
    fn transaction(&self, position: usize) -> Option<&'a Transaction> {
        match self.decoded.get(position % self.decoded.len()) {
            Some(Some(LogBlock::Transaction(transaction))) => Some(transaction),
            _ => None,
        }
    }

    fn is_invalid(&self, position: usize) -> bool {
        self.decoded
            .get(position % self.decoded.len())
            .is_some_and(Option::is_none)
    }

    /// All transactions from `start` once around the ring.
    fn from(&self, start: usize) -> impl Iterator<Item = &'a Transaction> + '_ {
        (start..start + self.decoded.len()).filter_map(|position| self.transaction(position))
    }

    /// Positions of the oldest and the newest transaction, compared with wrap-around.
    fn ends(&self) -> Option<(usize, usize)> {
        let mut ends: Option<(usize, usize)> = None;
        for position in 0..self.decoded.len() {
            let Some(number) = self.transaction(position).map(|t| t.number) else {
                continue;
            };
            let newer_than = |other: usize| {
                self.transaction(other)
                    .is_some_and(|t| is_newer(number, t.number))
            };
            ends = Some(match ends {
                None => (position, position),
                Some((oldest, newest)) => (
                    if newer_than(oldest) { oldest } else { position },
                    if newer_than(newest) { position } else { newest },
                ),
            });
        }
        ends
    }

    fn all_extents(&self) -> impl Iterator<Item = AlExtent> + '_ {
        self.from(0)
            .flat_map(Transaction::assignments)
            .filter_map(|(_, extent)| extent)
    }

    /// Whether the set after `newest` is exact. A single invalid block right after the newest is the write that
    /// the crash cut off. Anything else is damage: then the last contexts must describe every slot, and nothing
    /// newer may be lost. Numbers that are not consecutive are damage too: a lost write, or a ring over which a
    /// writer started anew (section 8, P4), where the highest number is not the newest.
    fn coverage(&self, oldest: usize, newest: usize, invalid: u32) -> Coverage {
        let torn_next = self.is_invalid(newest + 1);
        let whole = invalid == 0 || (invalid == 1 && torn_next);
        if whole && self.is_consecutive(oldest, newest) {
            return Coverage::Exact;
        }
        // Two damaged blocks after the newest: the first of them may have been a finished transaction.
        if torn_next && self.is_invalid(newest + 2) {
            return Coverage::Unknown;
        }
        if self.describes_all_slots(newest) {
            Coverage::Union
        } else {
            Coverage::Unknown
        }
    }

    /// Whether every position from `oldest` to `newest` has the number that follows the one before, and no other
    /// position has a transaction.
    fn is_consecutive(&self, oldest: usize, newest: usize) -> bool {
        let Some(first) = self.transaction(oldest) else {
            return false;
        };
        let blocks = self.decoded.len();
        let span = (newest + blocks - oldest) % blocks;
        (0..blocks).all(|step| match self.transaction(oldest + step) {
            Some(t) => step <= span && t.number == first.number.wrapping_add(step as u32),
            None => step > span,
        })
    }

    /// Whether the contexts of consecutive transactions, walking back from `newest`, describe every slot.
    fn describes_all_slots(&self, newest: usize) -> bool {
        let Some(last) = self.transaction(newest) else {
            return false;
        };
        let slots = usize::from(last.slots);
        let mut described: BTreeMap<usize, usize> = BTreeMap::new();
        for back in 0..self.decoded.len() {
            let position = newest + self.decoded.len() - back;
            let expected = last.number.wrapping_sub(back as u32);
            let Some(transaction) = self.transaction(position) else {
                return false;
            };
            if transaction.number != expected || transaction.slots != last.slots {
                return false;
            }
            let start = usize::from(transaction.context_start);
            let end = described.entry(start).or_default();
            *end = (*end).max(start + transaction.context.len());
            if reaches(&described, slots) {
                return true;
            }
        }
        false
    }
}

/// Whether the windows (start to end) cover 0 to `slots` without a gap.
fn reaches(windows: &BTreeMap<usize, usize>, slots: usize) -> bool {
    let mut covered = 0;
    for (start, end) in windows {
        if *start > covered {
            return false;
        }
        covered = covered.max(*end);
    }
    covered >= slots
}

/// Whether transaction `a` is newer than `b`: numbers wrap at 2^32.
const fn is_newer(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// The slots while the ring is walked.
struct ActiveSet {
    slots: Vec<Option<AlExtent>>,
    skipped: u32,
}

impl ActiveSet {
    fn new() -> Self {
        Self {
            slots: vec![None; usize::from(SLOTS_MAX)],
            skipped: 0,
        }
    }

    fn apply(&mut self, transaction: &Transaction) {
        for (slot, extent) in transaction.assignments() {
            match self.slots.get_mut(slot as usize) {
                Some(content) => *content = extent,
                None => self.skipped = self.skipped.saturating_add(1),
            }
        }
    }

    fn extents(&self) -> BTreeSet<AlExtent> {
        self.slots.iter().flatten().copied().collect()
    }
}
