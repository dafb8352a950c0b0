//! The activity log: which 4 MiB extents may differ between the two disks after a crash (spec/metadata.md section 3).
//!
//! # Invariants
//!
//! * For every write that was let in and not released, its extents are in the set that a replay of the log on disk yields
//!   (while the log is not suspended).
//! * A slot with references, or with a change that is not committed, is never given to another extent.
//! * An extent is evicted only by a transaction that names it in [`Batch::evicted`]: its bitmap pages reach the disk before
//!   the transaction's block does.
//! * At most one transaction is in flight; tickets are committed in ascending order.
//!
//! ```text
//!   begin ──► Hot                                    the write goes on
//!         ──► Pending(ticket) ──► next_transaction ──► (pages, flush, block) ──► commit ──► the write goes on
//!         ──► Full ──► the caller keeps it, first in first out, and tries again after a release or a commit
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use tandem_metadata::activity_log::{CONTEXT_MAX, KIND_UPDATE, SLOTS_MAX, UPDATES_MAX};
use tandem_metadata::units::AlExtent;
use tandem_metadata::{SlotUpdate, Transaction};

/// Bytes of data that one extent covers.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Extents whose bits share one 4 KiB page of the bitmap.
pub const EXTENTS_PER_BITMAP_PAGE: u32 = 32;
/// The "extent" of a slot that holds none.
const FREE: u32 = u32::MAX;
/// The extents that `len` bytes at `offset` touch. None for an empty range, or one beyond 2^32 extents.
pub fn extents_of(offset: u64, len: u64) -> Option<RangeInclusive<u32>> {
    let last = offset.checked_add(len.checked_sub(1)?)?;
    let first = u32::try_from(offset / EXTENT_BYTES).ok()?;
    let last = u32::try_from(last / EXTENT_BYTES)
        .ok()
        .filter(|last| *last != FREE)?;
    Some(first..=last)
}

/// Names a transaction, in ascending order from 1 on; not the number on disk, which wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Every slot is referenced, or so many that the request does not find enough. Nobody is let in until a reference
    /// count falls to zero, so that a cold request is not starved by hot ones. The caller should close the epoch, whose
    /// barrier acknowledgement gives references back.
    Slots,
    /// The transaction being collected has no room for the request's cold extents. It is over with the next
    /// [`ActivityLog::next_transaction`].
    Updates,
}

/// The answer to [`ActivityLog::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// References were taken; the write may go on.
    Hot,
    /// References were taken; the write may go on when this ticket is committed.
    Pending(Ticket),
    /// No reference was taken; try again later.
    Full(Shortage),
    /// The request touches more extents than one transaction or the whole log can hold: split it.
    TooWide {
        /// Extents that one request may touch.
        max: u32,
    },
    /// Writing the log failed: the local disk is lost, and no write may start on it.
    Failed,
}

/// What a release brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// At least one extent has no reference left: waiting requests may try again.
    Idle,
    /// All of them have references left.
    Held,
}

/// A transaction to write, and what must be on disk before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its ticket.
    pub ticket: Ticket,
    /// The block.
    pub transaction: Transaction,
    /// Extents that leave the log with it, ascending. If there are any, and metadata is on another device than data,
    /// the data device is flushed before the block (spec/metadata.md 3.6).
    pub evicted: Vec<u32>,
}

impl Batch {
    /// Bitmap pages that hold the bits of the evicted extents, ascending: those that changed are written before the
    /// block.
    pub fn bitmap_pages(&self) -> Vec<u32> {
        let pages: BTreeSet<u32> = self
            .evicted
            .iter()
            .map(|extent| extent / EXTENTS_PER_BITMAP_PAGE)
            .collect();
        pages.into_iter().collect()
    }
}

/// Whether the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// Changes are written before the writes they cover.
    Logging,
    /// The set is kept in memory only: `al-updates no` (flag AL_DISABLED on disk), or every bit of the bitmap is set, on
    /// disk too, and no peer is connected.
    Suspended,
}

#[derive(Clone, Debug)]
struct Slot {
    extent: u32,
    references: u32,
    /// When the last reference was dropped; key in `idle` while there is none.
    released: u64,
    /// Transaction that must be committed before the extent is covered.
    pending: Ticket,
}

#[derive(Clone, Debug)]
struct Change {
    slot: u16,
    old: u32,
    new: u32,
}

#[derive(Clone, Debug)]
struct InFlight {
    ticket: Ticket,
    changes: Vec<Change>,
}

/// The log. See the module for its invariants.
#[derive(Clone, Debug)]
pub struct ActivityLog {
    slots: Vec<Slot>,
    /// What the committed transactions say; differs from `slots` by the changes not yet committed.
    committed_slots: Vec<u32>,
    by_extent: BTreeMap<u32, u16>,
    /// Slots never used, the next one last.
    free: Vec<u16>,
    /// Slots without references and without pending change, least recently released first.
    idle: BTreeMap<u64, u16>,
    releases: u64,
    referenced: u32,
    collecting: Vec<Change>,
    /// Ticket of the changes being collected; means nothing while there are none.
    collecting_ticket: Ticket,
    in_flight: Option<InFlight>,
    /// Blocks without changes that still must be written so that the ring describes every slot (after a suspension).
    descriptions: u64,
    /// Ticket of the last transaction built.
    issued: Ticket,
    committed: Ticket,
    /// No extent is covered before this ticket is committed: the end of the descriptions.
    covered_from: Ticket,
    number: u32,
    context_start: u16,
    mode: LogMode,
    starving: bool,
    failed: bool,
}

impl ActivityLog {
    /// An empty log of `slots` slots ([`tandem_metadata::AlGeometry::al_extents_clamped`]; at least one) over an initialised ring. `number` is that of the next
    /// transaction: it must continue the ring's numbers, unless the ring holds none.
    pub fn new(slots: u16, number: u32) -> Self {
        let count = slots.clamp(1, SLOTS_MAX);
        let empty = Slot {
            extent: FREE,
            references: 0,
            released: 0,
            pending: Ticket(0),
        };
        Self {
            slots: vec![empty; usize::from(count)],
            committed_slots: vec![FREE; usize::from(count)],
            by_extent: BTreeMap::new(),
            free: (0..count).collect(),
            idle: BTreeMap::new(),
            releases: 0,
            referenced: 0,
            collecting: Vec::new(),
            collecting_ticket: Ticket(0),
            in_flight: None,
            descriptions: 0,
            issued: Ticket(0),
            committed: Ticket(0),
            covered_from: Ticket(0),
            number,
            context_start: 0,
            mode: LogMode::Logging,
            starving: false,
            failed: false,
        }
    }

    /// A log that goes on with what a replay of the ring found, as `(slot, extent)`, without writing the ring anew. Second
    /// value: extents that found no place (slot out of range or taken, extent named twice); their bits must be set and
    /// written by the caller before the first transaction.
    pub fn recovered(slots: u16, number: u32, contents: &[(u16, u32)]) -> (Self, Vec<u32>) {
        let mut log = Self::new(slots, number);
        let mut homeless = Vec::new();
        for (slot, extent) in contents
            .iter()
            .copied()
            .filter(|(_, extent)| *extent != FREE)
        {
            let index = usize::from(slot);
            let vacant = log.slots.get(index).is_some_and(|slot| slot.extent == FREE);
            if !vacant || log.by_extent.contains_key(&extent) {
                homeless.push(extent);
                continue;
            }
            log.slots[index].extent = extent;
            log.committed_slots[index] = extent;
            log.by_extent.insert(extent, slot);
            log.make_idle(slot);
        }
        log.free
            .retain(|slot| log.slots[usize::from(*slot)].extent == FREE);
        (log, homeless)
    }

    /// Number of slots.
    pub fn slots(&self) -> u16 {
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// Extents with references: what `congestion-extents` is compared with.
    pub fn referenced(&self) -> u32 {
        self.referenced
    }

    /// No extent has references and nothing is to be written: the log may be replaced by one of another size.
    pub fn is_quiet(&self) -> bool {
        self.referenced == 0 && self.collecting.is_empty() && self.in_flight.is_none()
    }

    /// Whether an extent has references, covered already or not: resync keeps out of it (spec/metadata.md section 5).
    pub fn in_use(&self, extent: u32) -> bool {
        self.by_extent
            .get(&extent)
            .is_some_and(|slot| self.slots[usize::from(*slot)].references > 0)
    }

    /// Whether the log is written.
    pub fn mode(&self) -> LogMode {
        self.mode
    }

    /// The last ticket that is committed.
    pub fn committed(&self) -> Ticket {
        self.committed
    }

    /// Whether a write that got [`Begin::Pending`] may go on.
    pub fn is_committed(&self, ticket: Ticket) -> bool {
        ticket <= self.committed
    }

    /// Number of the next transaction. When it wraps at 2^32 and the ring's number of blocks is no power of two, the ring must
    /// be written anew first (spec/metadata.md 3.5).
    pub fn next_number(&self) -> u32 {
        self.number
    }

    /// The extents of the set, referenced or not, ascending.
    pub fn extents(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_extent.keys().copied()
    }

    /// The extents that a replay of the log would find if no further transaction reached the disk.
    pub fn committed_extents(&self) -> impl Iterator<Item = u32> + '_ {
        self.committed_slots
            .iter()
            .copied()
            .filter(|extent| *extent != FREE)
    }

    /// Asks to let in a write that touches `extents`. Each [`Begin::Hot`] and [`Begin::Pending`] is answered by one
    /// [`ActivityLog::release`] of the same extents.
    pub fn begin(&mut self, extents: RangeInclusive<u32>) -> Begin {
        if self.failed {
            return Begin::Failed;
        }
        let max = UPDATES_MAX.min(self.slots.len());
        let (first, last) = (u64::from(*extents.start()), u64::from(*extents.end()));
        if last.saturating_sub(first) >= max as u64 {
            return Begin::TooWide { max: max as u32 };
        }
        if self.starving {
            return Begin::Full(Shortage::Slots);
        }
        let mut cold = Vec::new();
        let mut reused = 0;
        for extent in extents.clone() {
            match self.by_extent.get(&extent) {
                None => cold.push(extent),
                Some(slot) => reused += usize::from(self.is_idle(*slot)),
            }
        }
        if cold.len() > self.free.len() + self.idle.len() - reused {
            self.starving = true;
            return Begin::Full(Shortage::Slots);
        }
        if self.mode == LogMode::Logging && self.collecting.len() + cold.len() > UPDATES_MAX {
            return Begin::Full(Shortage::Updates);
        }
        let mut wait = self.covered_from;
        // Hits first: their slots must not be given to the cold ones.
        for extent in extents {
            if let Some(slot) = self.by_extent.get(&extent).copied() {
                self.reference(slot);
                wait = wait.max(self.slots[usize::from(slot)].pending);
            }
        }
        for extent in cold {
            wait = wait.max(self.take_slot(extent));
        }
        if self.is_committed(wait) {
            Begin::Hot
        } else {
            Begin::Pending(wait)
        }
    }

    /// Drops the references of one write: when it is finished here and towards the peer, its barrier acknowledgement
    /// included, and its bits are decided (spec/metadata.md 3.7).
    pub fn release(&mut self, extents: RangeInclusive<u32>) -> Released {
        let mut result = Released::Held;
        for extent in extents {
            let Some(slot) = self.by_extent.get(&extent).copied() else {
                continue;
            };
            let index = usize::from(slot);
            if self.slots[index].references == 0 {
                continue;
            }
            self.slots[index].references -= 1;
            if self.slots[index].references == 0 {
                self.referenced -= 1;
                self.starving = false;
                result = Released::Idle;
                if self.is_committed(self.slots[index].pending) {
                    self.make_idle(slot);
                }
            }
        }
        result
    }

    /// The next transaction to write, if there is something to write and none is in flight. It ends with
    /// [`ActivityLog::commit`] or [`ActivityLog::fail`].
    pub fn next_transaction(&mut self) -> Option<Batch> {
        let nothing = self.collecting.is_empty() && self.descriptions == 0;
        if self.in_flight.is_some() || self.failed || self.mode == LogMode::Suspended || nothing {
            return None;
        }
        self.issued = Ticket(self.issued.0 + 1);
        let changes = if !self.collecting.is_empty() && self.collecting_ticket == self.issued {
            core::mem::take(&mut self.collecting)
        } else {
            self.descriptions = self.descriptions.saturating_sub(1);
            Vec::new()
        };
        let evicted: BTreeSet<u32> = changes
            .iter()
            .map(|change| change.old)
            .filter(|old| *old != FREE)
            .collect();
        let updates = changes
            .iter()
            .rev()
            .map(|change| SlotUpdate {
                slot: change.slot,
                extent: on_disk(change.new),
            })
            .collect();
        let start = self.context_start;
        let end = start.saturating_add(CONTEXT_MAX as u16).min(self.slots());
        let window = &self.committed_slots[usize::from(start)..usize::from(end)];
        let context = window.iter().map(|extent| on_disk(*extent)).collect();
        self.context_start = if end == self.slots() { 0 } else { end };
        let transaction = Transaction {
            number: self.number,
            kind: KIND_UPDATE,
            slots: self.slots(),
            context_start: start,
            context,
            updates,
        };
        self.in_flight = Some(InFlight {
            ticket: self.issued,
            changes,
        });
        Some(Batch {
            ticket: self.issued,
            transaction,
            evicted: evicted.into_iter().collect(),
        })
    }

    /// The transaction in flight is on stable storage. Returns its ticket: writes that wait for it, or for a lower one, may
    /// go on. None if none was in flight.
    pub fn commit(&mut self) -> Option<Ticket> {
        let done = self.in_flight.take()?;
        self.number = self.number.wrapping_add(1);
        self.committed = self.committed.max(done.ticket);
        for change in done.changes {
            self.committed_slots[usize::from(change.slot)] = change.new;
            self.settle(change.slot);
        }
        Some(self.committed)
    }

    /// Writing the transaction in flight failed. The local disk is lost: no write that waits may start on it, and nothing is
    /// let in any more ([`Begin::Failed`]). Attaching again makes a new log.
    pub fn fail(&mut self) {
        self.in_flight = None;
        self.collecting.clear();
        self.failed = true;
    }

    /// Whether writing the log has failed: what is not committed never will be.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Stops writing the log. What makes that safe must be on disk before (see [`LogMode::Suspended`]). Every ticket given
    /// out counts as committed.
    pub fn suspend(&mut self) -> Ticket {
        self.mode = LogMode::Suspended;
        self.issued = Ticket(self.issued.0 + self.descriptions + 1);
        self.descriptions = 0;
        self.committed = self.issued;
        self.covered_from = self.issued;
        if let Some(flight) = &mut self.in_flight {
            // What it changes was changed in memory already; its answer only moves the number on.
            flight.changes.clear();
        }
        self.collecting.clear();
        self.adopt();
        self.committed
    }

    /// Writes the log again. Until the returned ticket is committed no extent is covered by it: writes that come in wait, and
    /// what stood in for the log (the flag, or the bitmap with every bit set) must stay on disk.
    pub fn resume(&mut self) -> Ticket {
        if self.mode == LogMode::Suspended {
            self.mode = LogMode::Logging;
            self.adopt();
            self.describe_all();
        }
        self.covered_from
    }

    /// Has the whole set written again, in as many blocks without changes as that takes: the ring was initialised or moved.
    /// Returns the ticket after which the ring describes every slot. Changes already collected keep their ticket and go first.
    pub fn describe_all(&mut self) -> Ticket {
        self.descriptions += self.slots.len().div_ceil(CONTEXT_MAX) as u64;
        self.context_start = 0;
        let collected = u64::from(!self.collecting.is_empty());
        self.covered_from = Ticket(self.issued.0 + self.descriptions + collected);
        self.covered_from
    }

    /// Tests the invariants of the module.
    ///
    /// # Errors
    /// What does not hold: a bug of ours.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let used = self.slots.iter().filter(|slot| slot.extent != FREE).count();
        if used != self.by_extent.len() || used + self.free.len() != self.slots.len() {
            return Err("a slot is neither free nor found by its extent");
        }
        let referenced = self.slots.iter().filter(|slot| slot.references > 0).count();
        if referenced != self.referenced as usize {
            return Err("the number of referenced extents is wrong");
        }
        let idle = self.slots.iter().filter(|slot| {
            slot.extent != FREE && slot.references == 0 && self.is_committed(slot.pending)
        });
        if idle.count() != self.idle.len() {
            return Err(
                "an extent without references cannot be recycled, or one with references can",
            );
        }
        let held: BTreeSet<u32> = self.committed_slots.iter().copied().collect();
        for slot in &self.slots {
            let covered = slot.extent == FREE || held.contains(&slot.extent);
            if self.mode == LogMode::Logging && self.is_committed(slot.pending) && !covered {
                return Err("an extent counts as covered that the log does not hold");
            }
        }
        if self.collecting.len() > UPDATES_MAX {
            return Err("more changes than a transaction holds");
        }
        Ok(())
    }

    /// The ticket for one more change: that of the changes being collected, or of the next transaction after the
    /// descriptions.
    fn join_collecting(&mut self) -> Ticket {
        if self.collecting.is_empty() {
            self.collecting_ticket = Ticket(self.issued.0 + self.descriptions + 1);
        }
        self.collecting_ticket
    }

    fn is_idle(&self, slot: u16) -> bool {
        let slot = &self.slots[usize::from(slot)];
        slot.references == 0 && self.idle.contains_key(&slot.released)
    }

    fn reference(&mut self, slot: u16) {
        let entry = &mut self.slots[usize::from(slot)];
        if entry.references == 0 {
            self.referenced += 1;
            if self.idle.get(&entry.released) == Some(&slot) {
                self.idle.remove(&entry.released);
            }
        }
        entry.references += 1;
    }

    fn make_idle(&mut self, slot: u16) {
        self.starving = false;
        self.releases += 1;
        self.slots[usize::from(slot)].released = self.releases;
        self.idle.insert(self.releases, slot);
    }

    /// After the commit of a slot's change: it can be recycled if its write is already over.
    fn settle(&mut self, slot: u16) {
        let entry = &self.slots[usize::from(slot)];
        if entry.references == 0 && self.is_committed(entry.pending) && !self.is_idle(slot) {
            self.make_idle(slot);
        }
    }

    /// Gives a slot to a cold extent, with one reference; the caller made sure that there is one.
    fn take_slot(&mut self, extent: u32) -> Ticket {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => match self.idle.pop_first() {
                Some((_, slot)) => slot,
                None => unreachable!("begin counted the slots that can be taken"),
            },
        };
        let pending = match self.mode {
            LogMode::Logging => self.join_collecting(),
            LogMode::Suspended => self.committed,
        };
        let entry = &mut self.slots[usize::from(slot)];
        let old = core::mem::replace(&mut entry.extent, extent);
        entry.pending = pending;
        entry.references = 1;
        self.referenced += 1;
        self.by_extent.remove(&old);
        self.by_extent.insert(extent, slot);
        match self.mode {
            LogMode::Logging => self.collecting.push(Change {
                slot,
                old,
                new: extent,
            }),
            LogMode::Suspended => self.committed_slots[usize::from(slot)] = extent,
        }
        pending
    }

    /// What is in memory is what the log is going to say.
    fn adopt(&mut self) {
        for index in 0..self.slots.len() {
            self.committed_slots[index] = self.slots[index].extent;
            self.slots[index].pending = self.slots[index].pending.min(self.committed);
            if self.slots[index].extent != FREE {
                self.settle(index as u16);
            }
        }
    }
}

/// A slot's contents in the words of the disk format.
fn on_disk(extent: u32) -> Option<AlExtent> {
    (extent != FREE).then_some(AlExtent(extent))
}
