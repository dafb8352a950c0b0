//! The activity log's blocks and their order on disk: `docs/spec/metadata.md` section 3.
//!
//! The log is a ring of 4 KiB blocks, all integers big-endian:
//!
//! | byte | size | field | content |
//! |---|---|---|---|
//! | 0 | u32 | magic | 69CB65A2 |
//! | 4 | u32 | tr_number | +1 for each block written, wraps |
//! | 8 | u32 | crc32c | see [`checksum`] |
//! | 12 | u16 | transaction_type | 0 = update, FFFF = INITIALIZED |
//! | 14 | u16 | n_updates | 0 to 64 |
//! | 16 | u16 | context_size | number of slots of the writer |
//! | 18 | u16 | context_start_slot_nr | first slot of the context |
//! | 20 | 16 | reserved | 0 |
//! | 36 | 64 x u16 | update_slot_nr | unused FFFF |
//! | 164 | 64 x u32 | update_extent_nr | **new** extent of the slot; unused FFFFFFFF |
//! | 420 | 919 x u32 | context | extents **before** this transaction; free FFFFFFFF |
//!
//! The order of writing, which callers keep: changed bitmap pages of evicted extents, then the block (with a
//! flush before and FUA), then the data writes of the new extents, locally and on the network (section 3.6).

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::codec::{be16, be32, put16, put32, zeroed};
use crate::error::{ActivityLogError, PlacementError};
use crate::units::{AlExtent, BLOCK_SECTORS, BLOCK_SIZE, Block, PageNumber, SectorCount};

/// Magic of a block of the 8.4 log.
pub(crate) const MAGIC: u32 = 0x69CB_65A2;
/// Type of a block that carries updates.
const TYPE_UPDATE: u16 = 0;
/// Type of the placeholder that `create-md` and `apply-al` write.
const TYPE_INITIALIZED: u16 = 0xFFFF;
/// On-disk slot number of an unused update.
const SLOT_UNUSED: u16 = 0xFFFF;
const CRC_AT: usize = 8;
const UPDATE_SLOTS_AT: usize = 36;
const UPDATE_EXTENTS_AT: usize = 164;
const CONTEXT_AT: usize = 420;

/// Slot changes that fit one transaction.
pub const UPDATES_MAX: usize = 64;
/// Slots that the context of one transaction describes.
pub const CONTEXT_MAX: usize = 919;
/// Slots that any log can have; slot numbers from here on are invalid on disk.
pub const SLOTS_MAX: u16 = 65_534;
/// The least `al-extents`; smaller values are raised to it.
pub const AL_EXTENTS_MIN: u32 = 67;
/// `al-extents` if nothing is configured.
pub const AL_EXTENTS_DEFAULT: u32 = 1237;

/// Stripes of the activity log: how its ring lies on disk (section 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlGeometry {
    stripes: u32,
    stripe_size_4k: u32,
}

impl AlGeometry {
    /// One stripe of 8 blocks.
    pub const DEFAULT: Self = Self {
        stripes: 1,
        stripe_size_4k: 8,
    };
    /// Least number of blocks in a ring.
    pub const BLOCKS_MIN: u32 = 8;
    /// Largest number of blocks in a ring: what the tools create and accept (32 MiB).
    pub const BLOCKS_MAX: u32 = 8192;

    /// A geometry of `stripes` stripes of `stripe_size_4k` blocks each.
    ///
    /// # Errors
    /// [`PlacementError::StripesOutOfRange`] unless the product is 8 to 8192.
    pub const fn new(stripes: u32, stripe_size_4k: u32) -> Result<Self, PlacementError> {
        match stripes.checked_mul(stripe_size_4k) {
            Some(Self::BLOCKS_MIN..=Self::BLOCKS_MAX) => Ok(Self {
                stripes,
                stripe_size_4k,
            }),
            _ => Err(PlacementError::StripesOutOfRange {
                stripes,
                stripe_size_4k,
            }),
        }
    }

    /// As stored in a superblock: both 0 means the default (section 2.1).
    ///
    /// # Errors
    /// As [`AlGeometry::new`].
    pub const fn from_disk(stripes: u32, stripe_size_4k: u32) -> Result<Self, PlacementError> {
        if stripes == 0 && stripe_size_4k == 0 {
            return Ok(Self::DEFAULT);
        }
        Self::new(stripes, stripe_size_4k)
    }

    /// Number of stripes.
    pub const fn stripes(self) -> u32 {
        self.stripes
    }

    /// Blocks in each stripe.
    pub const fn stripe_size_4k(self) -> u32 {
        self.stripe_size_4k
    }

    /// Blocks in the ring.
    pub const fn blocks(self) -> u32 {
        self.stripes * self.stripe_size_4k
    }

    /// Sectors of the activity-log area.
    pub const fn sectors(self) -> SectorCount {
        SectorCount(self.blocks() as u64 * BLOCK_SECTORS)
    }

    /// The block, in disk order, that holds ring position `position` (taken modulo the ring).
    pub const fn block_at(self, position: u32) -> u32 {
        let k = position % self.blocks();
        (k % self.stripes) * self.stripe_size_4k + k / self.stripes
    }

    /// The block, in disk order, of transaction `number`.
    pub const fn block_of(self, number: u32) -> u32 {
        self.block_at(number)
    }

    /// The largest `al-extents` that this ring can describe (section 3.2): with more, replay misses extents.
    pub const fn al_extents_max(self) -> u32 {
        let described = (self.blocks() - 1) * CONTEXT_MAX as u32;
        if described < SLOTS_MAX as u32 {
            described
        } else {
            SLOTS_MAX as u32
        }
    }

    /// The number of slots used for a configured `al-extents`: raised or lowered into the legal range.
    pub const fn al_extents_clamped(self, configured: u32) -> u16 {
        let max = self.al_extents_max();
        let value = if configured < AL_EXTENTS_MIN {
            AL_EXTENTS_MIN
        } else if configured > max {
            max
        } else {
            configured
        };
        value as u16
    }
}

/// CRC of a block with its checksum field taken as zero: Castagnoli polynomial, bit-reflected, initial value 0,
/// **no** final inversion. Not the standard CRC-32C (section 3.4).
///
/// # Errors
/// [`ActivityLogError::Short`].
pub fn checksum(block: &[u8]) -> Result<u32, ActivityLogError> {
    if block.len() < BLOCK_SIZE {
        return Err(ActivityLogError::Short {
            expected: BLOCK_SIZE,
            got: block.len(),
        });
    }
    // The library inverts on entry and on exit: start from all ones and undo the inversion at the end.
    let crc = crc32c::crc32c_append(u32::MAX, &block[..CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    Ok(!crc32c::crc32c_append(crc, &block[CRC_AT + 4..BLOCK_SIZE]))
}

/// The placeholder block of a fresh ring: magic, type FFFF, checksum, all else zero.
pub fn initialized_block() -> Block {
    let mut block = zeroed();
    put32(&mut block, 0, MAGIC);
    put16(&mut block, 12, TYPE_INITIALIZED);
    seal(&mut block);
    block
}

fn seal(block: &mut Block) {
    // A whole block is never short.
    let crc = checksum(block).unwrap_or(0);
    put32(block, CRC_AT, crc);
}

/// One change of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUpdate {
    /// The slot.
    pub slot: u16,
    /// Its new extent; `None` empties it, which no writer does in normal operation.
    pub extent: Option<AlExtent>,
}

/// A transaction as it stands in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The transaction's number; it decides the ring position.
    pub number: u32,
    /// The type: 0, or one that is not defined and is treated as an update (with a warning by the reader).
    pub kind: u16,
    /// Number of slots of the writer.
    pub slots: u16,
    /// First slot that `context` describes.
    pub context_start: u16,
    /// Contents of the slots from `context_start` on, before this transaction. At most 919.
    pub context: Vec<Option<AlExtent>>,
    /// The changes, at most 64.
    pub updates: Vec<SlotUpdate>,
}

impl Transaction {
    /// Encodes the block.
    ///
    /// # Errors
    /// Too many updates, or a slot out of range or named twice. A context beyond 919 entries is cut.
    pub fn encode(&self) -> Result<Block, ActivityLogError> {
        if self.updates.len() > UPDATES_MAX {
            return Err(ActivityLogError::TooManyUpdates {
                got: self.updates.len(),
            });
        }
        let mut block = zeroed();
        put32(&mut block, 0, MAGIC);
        put32(&mut block, 4, self.number);
        put16(&mut block, 12, self.kind);
        put16(&mut block, 14, self.updates.len() as u16);
        put16(&mut block, 16, self.slots);
        put16(&mut block, 18, self.context_start);
        // Unused entries must be all ones: drbdmeta applies any entry whose slot is not FFFF.
        block[UPDATE_SLOTS_AT..].fill(0xFF);
        let mut named = BTreeSet::new();
        for (index, update) in self.updates.iter().enumerate() {
            if update.slot >= SLOTS_MAX || !named.insert(update.slot) {
                return Err(ActivityLogError::BadSlot {
                    slot: update.slot,
                    slots: self.slots,
                });
            }
            put16(&mut block, UPDATE_SLOTS_AT + 2 * index, update.slot);
            put32(
                &mut block,
                UPDATE_EXTENTS_AT + 4 * index,
                AlExtent::to_disk(update.extent),
            );
        }
        for (index, extent) in self.context.iter().take(CONTEXT_MAX).enumerate() {
            put32(
                &mut block,
                CONTEXT_AT + 4 * index,
                AlExtent::to_disk(*extent),
            );
        }
        seal(&mut block);
        Ok(block)
    }

    /// The assignments of this block in the order replay makes them: context first, then updates. Context entries
    /// that are free and past the writer's slots say nothing and are left out (section 3.9 step 5).
    pub fn assignments(&self) -> impl Iterator<Item = (u32, Option<AlExtent>)> + '_ {
        let start = u32::from(self.context_start);
        let slots = u32::from(self.slots);
        let context = (start..)
            .zip(self.context.iter().copied())
            .filter(move |(slot, extent)| extent.is_some() || *slot < slots);
        context.chain(
            self.updates
                .iter()
                .map(|update| (u32::from(update.slot), update.extent)),
        )
    }
}

/// A valid block of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogBlock {
    /// The placeholder of a fresh ring.
    Initialized,
    /// A transaction.
    Transaction(Transaction),
}

impl LogBlock {
    /// Decodes a block. A block with the right magic and checksum is always accepted.
    ///
    /// # Errors
    /// [`ActivityLogError`]: short, wrong magic or wrong checksum.
    pub fn decode(block: &[u8]) -> Result<Self, ActivityLogError> {
        let computed = checksum(block)?;
        let magic = be32(block, 0);
        if magic != MAGIC {
            return Err(ActivityLogError::BadMagic { got: magic });
        }
        let stored = be32(block, CRC_AT);
        if stored != computed {
            return Err(ActivityLogError::BadChecksum { stored, computed });
        }
        let kind = be16(block, 12);
        if kind == TYPE_INITIALIZED {
            return Ok(Self::Initialized);
        }
        let slots = be16(block, 16);
        let context_start = be16(block, 18);
        Ok(Self::Transaction(Transaction {
            number: be32(block, 4),
            kind,
            slots,
            context_start,
            context: decode_context(block, slots, context_start),
            updates: decode_updates(block),
        }))
    }
}

/// Entries past `n_updates` count too unless their slot is FFFF: that is what drbdmeta does.
fn decode_updates(block: &[u8]) -> Vec<SlotUpdate> {
    let stated = usize::from(be16(block, 14));
    (0..UPDATES_MAX)
        .map(|index| SlotUpdate {
            slot: be16(block, UPDATE_SLOTS_AT + 2 * index),
            extent: AlExtent::from_disk(be32(block, UPDATE_EXTENTS_AT + 4 * index)),
        })
        .enumerate()
        .filter(|(index, update)| *index < stated || update.slot != SLOT_UNUSED)
        .map(|(_, update)| update)
        .collect()
}

/// The context up to the writer's last slot, or further if there are extents beyond (section 8, P17).
fn decode_context(block: &[u8], slots: u16, start: u16) -> Vec<Option<AlExtent>> {
    let mut context: Vec<_> = (0..CONTEXT_MAX)
        .map(|index| AlExtent::from_disk(be32(block, CONTEXT_AT + 4 * index)))
        .collect();
    let described = usize::from(slots.saturating_sub(start)).min(CONTEXT_MAX);
    let used = context
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |last| last + 1);
    context.truncate(described.max(used));
    context
}

/// The update type, for builders of [`Transaction`].
pub const KIND_UPDATE: u16 = TYPE_UPDATE;

/// A block that is built and not yet known to be on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingBlock {
    /// The transaction's number.
    pub number: u32,
    /// Its block, in disk order: see [`crate::Layout::activity_log_block`].
    pub block: u32,
    /// The bytes to write, with a flush before and FUA.
    pub bytes: Box<Block>,
    /// Bitmap pages of evicted extents: those that changed must be on disk before the block is written.
    pub evicted_pages: BTreeSet<PageNumber>,
    updates: Vec<SlotUpdate>,
}

/// Writes transactions in ring order and knows what every slot holds on disk.
///
/// Invariants: a slot's content changes only when its block is committed; the context window walks over all slots;
/// at most one block is pending (the caller commits or drops it before it builds the next).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWriter {
    geometry: AlGeometry,
    next_number: u32,
    context_start: u16,
    slots: Vec<Option<AlExtent>>,
}

impl LogWriter {
    /// A writer over a ring that holds nothing but INITIALIZED blocks (or one torn first block), as
    /// `create-md` and replay leave it.
    ///
    /// # Errors
    /// [`ActivityLogError::BadSlotCount`] if `al_extents` is 0 or more than the ring can describe.
    pub fn new(geometry: AlGeometry, al_extents: u16) -> Result<Self, ActivityLogError> {
        Self::starting_at(geometry, al_extents, 0)
    }

    /// As [`LogWriter::new`], with `first_number` as the first transaction's number.
    ///
    /// # Errors
    /// As [`LogWriter::new`].
    pub fn starting_at(
        geometry: AlGeometry,
        al_extents: u16,
        first_number: u32,
    ) -> Result<Self, ActivityLogError> {
        let max = geometry.al_extents_max();
        if al_extents == 0 || u32::from(al_extents) > max {
            return Err(ActivityLogError::BadSlotCount {
                got: u32::from(al_extents),
                min: 1,
                max,
                blocks: geometry.blocks(),
            });
        }
        Ok(Self {
            geometry,
            next_number: first_number,
            context_start: 0,
            slots: vec![None; usize::from(al_extents)],
        })
    }

    /// What the slots hold on disk.
    pub fn slots(&self) -> &[Option<AlExtent>] {
        &self.slots
    }

    /// The ring's geometry.
    pub const fn geometry(&self) -> AlGeometry {
        self.geometry
    }

    /// The number of the next transaction.
    pub const fn next_number(&self) -> u32 {
        self.next_number
    }

    /// Builds the next block for up to 64 slot changes (none is allowed: the block then only describes slots).
    /// The context window advances with every block built, also if it is never committed.
    ///
    /// # Errors
    /// Too many updates, a slot out of range or named twice, or transaction numbers used up.
    pub fn build(&mut self, updates: &[SlotUpdate]) -> Result<PendingBlock, ActivityLogError> {
        // Where the ring's length divides 2^32 the position goes on smoothly over the wrap.
        if self.next_number == u32::MAX && !self.geometry.blocks().is_power_of_two() {
            return Err(ActivityLogError::NumbersUsedUp);
        }
        let slots = self.slots.len() as u16;
        if let Some(update) = updates.iter().find(|update| update.slot >= slots) {
            return Err(ActivityLogError::BadSlot {
                slot: update.slot,
                slots,
            });
        }
        let start = usize::from(self.context_start);
        let end = (start + CONTEXT_MAX).min(self.slots.len());
        let transaction = Transaction {
            number: self.next_number,
            kind: TYPE_UPDATE,
            slots,
            context_start: self.context_start,
            context: self.slots[start..end].to_vec(),
            updates: updates.to_vec(),
        };
        let bytes = Box::new(transaction.encode()?);
        self.context_start = if end == self.slots.len() {
            0
        } else {
            end as u16
        };
        let evicted_pages = updates
            .iter()
            .filter_map(|update| self.slots[usize::from(update.slot)])
            .map(AlExtent::page)
            .collect();
        Ok(PendingBlock {
            number: self.next_number,
            block: self.geometry.block_of(self.next_number),
            bytes,
            evicted_pages,
            updates: transaction.updates,
        })
    }

    /// Notes that `pending` is durable. A block that failed is dropped instead: that is a disk failure, and the
    /// writes it was for must not start locally.
    pub fn commit(&mut self, pending: PendingBlock) {
        self.next_number = pending.number.wrapping_add(1);
        for update in pending.updates {
            if let Some(slot) = self.slots.get_mut(usize::from(update.slot)) {
                *slot = update.extent;
            }
        }
    }
}
