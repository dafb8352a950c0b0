//! Resync extents: 16 MiB regions that resync and application writes keep each other out of (spec/metadata.md section 5,
//! spec/state-machine.md 6.5).
//!
//! # Invariants
//!
//! * No application write enters an extent from the moment resync wants it until resync's last reference is gone.
//! * Resync I/O runs in an extent only while it is *locked*: none of its four activity-log extents had references when it was
//!   locked, and none could get one since.
//! * At most 61 extents are tracked; those with references are never forgotten.
//!
//! The caller asks [`ResyncExtents::enter`] before [`crate::activity_log::ActivityLog::begin`], in one turn: both checks see
//! the same moment.

use alloc::collections::BTreeMap;
use core::ops::RangeInclusive;

use super::controller::Throttle;

/// Bits of the bitmap that one extent covers.
pub const EXTENT_BITS: u64 = 4096;
/// Activity-log extents in one resync extent.
pub const AL_EXTENTS_PER_EXTENT: u32 = 4;
/// Extents tracked at most.
pub const TRACKED_MAX: usize = 61;
/// The target takes no new extent while more than this many are held.
const HELD_MAX_TARGET: usize = 58;
/// The source takes no new extent while more than this many are held.
const HELD_MAX_SOURCE: usize = 30;

/// The bits of an extent.
pub fn bits_of_extent(extent: u32) -> core::ops::Range<u64> {
    let first = u64::from(extent) * EXTENT_BITS;
    first..first + EXTENT_BITS
}

/// The extent of a bit.
pub fn extent_of_bit(bit: u64) -> u32 {
    u32::try_from(bit / EXTENT_BITS).unwrap_or(u32::MAX)
}

#[derive(Clone, Debug, Default)]
struct Extent {
    references: u32,
    no_writes: bool,
    locked: bool,
    priority: bool,
    left: u64,
    failed: u64,
    used: u64,
}

/// What the extents ask of the rest of the volume.
pub trait Surroundings {
    /// Whether an activity-log extent has references, covered by the log already or not.
    fn in_use(&self, al_extent: u32) -> bool;
    /// Bits set in a resync extent.
    fn bits_left(&self, extent: u32) -> u64;
}

/// The activity log and the bitmap of a volume.
impl Surroundings for (&crate::activity_log::ActivityLog, &crate::bitmap::Bitmap) {
    fn in_use(&self, al_extent: u32) -> bool {
        self.0.in_use(al_extent)
    }

    fn bits_left(&self, extent: u32) -> u64 {
        self.1.count_range(bits_of_extent(extent))
    }
}

/// The answer to a request for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Resync I/O may run; one reference was taken.
    Locked,
    /// Not now. On the target: try again in the next turn. On the source: one reference was taken, no write enters any more;
    /// see [`ResyncExtents::poll`].
    Draining,
    /// Not now, and nothing was taken: too many extents are held, or the resync is throttled.
    Refused,
}

/// The answer to an application write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It may go on to the activity log.
    Free,
    /// It waits until an extent is given back ([`ResyncRelease::Free`]).
    Blocked,
}

/// What giving back a reference brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncRelease {
    /// Other requests hold the extent.
    Held,
    /// The extent is free: application writes that wait may try again.
    Free,
}

/// Whether an extent is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentProgress {
    /// Bits are left, or the extent is not tracked.
    Open,
    /// Every bit that did not fail is clear: the bitmap should be written soon (spec/metadata.md 4.4).
    Complete,
}

/// The extents of one volume.
#[derive(Clone, Debug, Default)]
pub struct ResyncExtents {
    extents: BTreeMap<u32, Extent>,
    /// The extent of which the target holds a reference while its application writes drain.
    half_locked: Option<u32>,
    uses: u64,
}

impl ResyncExtents {
    /// No extent is tracked.
    pub fn new() -> Self {
        Self::default()
    }

    /// The target wants to request blocks of an extent. Every [`Lock::Locked`] is answered by one
    /// [`ResyncExtents::release`].
    pub fn lock_for_request(
        &mut self,
        extent: u32,
        around: &impl Surroundings,
        throttle: Throttle,
    ) -> Lock {
        let remembered = self.half_locked == Some(extent);
        if throttle == Throttle::Throttled && !remembered {
            return Lock::Refused;
        }
        if !remembered {
            self.drop_half_locked();
        }
        if !remembered && !self.take(extent, HELD_MAX_TARGET, around) {
            return Lock::Refused;
        }
        if self.poll(extent, around) == Lock::Locked {
            self.half_locked = None;
            return Lock::Locked;
        }
        self.half_locked = Some(extent);
        if throttle == Throttle::Throttled {
            self.drop_half_locked();
        }
        Lock::Draining
    }

    /// The source wants to read blocks of an extent for the peer. A reference is taken unless refused; it is given back by
    /// [`ResyncExtents::release`], also to step aside for an application write that waits ([`ResyncExtents::is_wanted`]).
    pub fn lock_for_reply(&mut self, extent: u32, around: &impl Surroundings) -> Lock {
        if self.take(extent, HELD_MAX_SOURCE, around) {
            self.poll(extent, around)
        } else {
            Lock::Refused
        }
    }

    /// Whether an extent that is held has drained by now.
    pub fn poll(&mut self, extent: u32, around: &impl Surroundings) -> Lock {
        let Some(entry) = self.extents.get_mut(&extent) else {
            return Lock::Refused;
        };
        if !entry.locked && entry.references > 0 {
            let first = extent.saturating_mul(AL_EXTENTS_PER_EXTENT);
            let busy =
                (first..first.saturating_add(AL_EXTENTS_PER_EXTENT)).any(|al| around.in_use(al));
            entry.locked = !busy;
        }
        if entry.locked {
            Lock::Locked
        } else {
            Lock::Draining
        }
    }

    /// Gives back one reference.
    pub fn release(&mut self, extent: u32) -> ResyncRelease {
        let Some(entry) = self.extents.get_mut(&extent) else {
            return ResyncRelease::Free;
        };
        entry.references = entry.references.saturating_sub(1);
        if entry.references > 0 {
            return ResyncRelease::Held;
        }
        entry.no_writes = false;
        entry.locked = false;
        entry.priority = false;
        ResyncRelease::Free
    }

    /// An application write (or one that the peer's application made) touches these activity-log extents. If it is blocked
    /// the extents it waits for become wanted.
    pub fn enter(&mut self, al_extents: RangeInclusive<u32>) -> Entry {
        let extents =
            al_extents.start() / AL_EXTENTS_PER_EXTENT..=al_extents.end() / AL_EXTENTS_PER_EXTENT;
        let mut answer = Entry::Free;
        for (_, entry) in self
            .extents
            .range_mut(extents)
            .filter(|(_, entry)| entry.no_writes)
        {
            entry.priority = true;
            answer = Entry::Blocked;
        }
        answer
    }

    /// Whether an application write waits for the extent.
    pub fn is_wanted(&self, extent: u32) -> bool {
        self.extents
            .get(&extent)
            .is_some_and(|entry| entry.priority)
    }

    /// Whether resync I/O may run in the extent.
    pub fn is_locked(&self, extent: u32) -> bool {
        self.extents.get(&extent).is_some_and(|entry| entry.locked)
    }

    /// `bits` bits of the extent were cleared in the bitmap.
    pub fn cleared(
        &mut self,
        extent: u32,
        bits: u64,
        around: &impl Surroundings,
    ) -> ExtentProgress {
        if bits == 0 {
            return ExtentProgress::Open;
        }
        if let Some(entry) = self.extents.get_mut(&extent) {
            entry.left = entry.left.saturating_sub(bits);
            if entry.left < entry.failed {
                entry.left = around.bits_left(extent);
            }
        } else if !self.track(extent, around) {
            return ExtentProgress::Open;
        }
        self.progress(extent)
    }

    /// `bits` bits of the extent were set in the bitmap.
    pub fn set(&mut self, extent: u32, bits: u64) {
        if let Some(entry) = self.extents.get_mut(&extent) {
            entry.left = entry.left.saturating_add(bits);
        }
    }

    /// `bits` blocks of the extent could not be synced; their bits stay set.
    pub fn failed(&mut self, extent: u32, bits: u64, around: &impl Surroundings) -> ExtentProgress {
        if !self.extents.contains_key(&extent) && !self.track(extent, around) {
            return ExtentProgress::Open;
        }
        if let Some(entry) = self.extents.get_mut(&extent) {
            entry.failed = entry.failed.saturating_add(bits);
        }
        self.progress(extent)
    }

    /// Extents with references.
    pub fn held(&self) -> usize {
        self.extents
            .values()
            .filter(|entry| entry.references > 0)
            .count()
    }

    /// Extents tracked, held or not.
    pub fn tracked(&self) -> usize {
        self.extents.len()
    }

    /// The resync is over: gives back the extent that was half locked. The end is reached when no extent is held any more.
    pub fn finish(&mut self) -> ResyncRelease {
        self.drop_half_locked();
        if self.held() == 0 {
            ResyncRelease::Free
        } else {
            ResyncRelease::Held
        }
    }

    /// The link or the disk is gone: every reference is void. Application writes that wait may try again.
    pub fn drop_all(&mut self) {
        self.extents.clear();
        self.half_locked = None;
    }

    fn progress(&mut self, extent: u32) -> ExtentProgress {
        match self.extents.get_mut(&extent) {
            Some(entry) if entry.left <= entry.failed => {
                entry.failed = 0;
                ExtentProgress::Complete
            }
            _ => ExtentProgress::Open,
        }
    }

    fn drop_half_locked(&mut self) {
        if let Some(extent) = self.half_locked.take() {
            self.release(extent);
        }
    }

    /// Takes a reference and keeps new writes out; false if too many extents are held.
    fn take(&mut self, extent: u32, held_max: usize, around: &impl Surroundings) -> bool {
        let held_already = self
            .extents
            .get(&extent)
            .is_some_and(|entry| entry.references > 0);
        if !held_already && self.held() > held_max {
            return false;
        }
        if !self.extents.contains_key(&extent) && !self.track(extent, around) {
            return false;
        }
        self.uses += 1;
        if let Some(entry) = self.extents.get_mut(&extent) {
            entry.references += 1;
            entry.no_writes = true;
            entry.used = self.uses;
        }
        true
    }

    /// Begins to track an extent, in place of the least recently used one without references if there are too many.
    fn track(&mut self, extent: u32, around: &impl Surroundings) -> bool {
        if self.extents.len() >= TRACKED_MAX {
            let idle = self
                .extents
                .iter()
                .filter(|(_, entry)| entry.references == 0);
            let Some(oldest) = idle
                .min_by_key(|(_, entry)| entry.used)
                .map(|(number, _)| *number)
            else {
                return false;
            };
            self.extents.remove(&oldest);
        }
        self.uses += 1;
        let left = around.bits_left(extent);
        self.extents.insert(
            extent,
            Extent {
                left,
                used: self.uses,
                ..Extent::default()
            },
        );
        true
    }
}
