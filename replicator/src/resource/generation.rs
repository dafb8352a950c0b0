//! The superblock in memory: its flags, its generations, and when it is written (state-machine.md 3.2, 3.3, 3.8).

use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

use tandem_metadata::{Flags, SectorCount, Uuids as DiskUuids};

use super::Resource;
use super::change::{Deferred, starts_generation};
use super::plan::{Stage, Then};
use super::volume::Volume;
use crate::effect::Level;
use crate::event::{IoError, VolumeNumber};
use crate::planted::Planted;
use crate::state::effects::{CrashedPrimary, flag, on_disk_flags};
use crate::state::word::{DiskState, Role, State};
use crate::time::Time;

/// A dirty superblock is written after this at the latest (2.14).
const SUPERBLOCK_DELAY: Duration = Duration::from_secs(5);

impl Resource {
    /// Starts a new data generation (N1 to N7 of 3.3): no write of this volume is answered before it is durable. What
    /// is to be told to the peer is the caller's.
    pub(crate) fn new_current_uuid(&mut self, number: VolumeNumber) {
        let random = if self.planted(Planted::ReuseGeneration) {
            0x5eed_5eed_5eed_5eed
        } else {
            self.draw()
        };
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.backing.is_none() {
            self.settle_generation(number);
            return;
        }
        volume.end_unknown = false;
        let lost = volume.generations.new_current(random, volume.state.role);
        volume.generation_pending = true;
        volume.superblock_changed(now);
        if let Some(lost) = lost {
            let text = alloc::format!("the bitmap UUID was already set, {lost:016X} is dropped");
            self.log(Level::Warn, Some(number), text);
        }
        self.log_generations(number, "new data generation");
        self.start_plan(number, vec![Stage::Superblock], Then::Generation);
    }

    /// A generation of its own for what is written here from now on, while the peer may go on with the current one: it shows it to its
    /// application without a disk (T42), its lost disk may have it (N1b), or it has finished its resync without this node knowing (T43).
    /// A kernel starts none, and one of the two would be taken for the other.
    pub(crate) fn branch_generation(&mut self, number: VolumeNumber) {
        let random = self.draw();
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.shown_by_peer = false;
        volume.end_unknown = false;
        volume.generations.branch(random, volume.state.role);
        volume.generation_pending = true;
        volume.superblock_changed(now);
        self.log_generations(number, "new data generation beside the peer's");
        self.start_plan(number, vec![Stage::Superblock], Then::Generation);
    }

    /// N1b of 3.3, unless another generation has begun since (a forced promotion).
    pub(super) fn generation_of_the_only_disk(&mut self, number: VolumeNumber) {
        let still = self.volumes.get(&number).is_some_and(|volume| {
            volume.end_unknown
                && volume.state.disk == DiskState::UpToDate
                && volume.backing.is_some()
        });
        if !still {
            self.settle_generation(number);
            return;
        }
        self.tell_generation_once_durable(number);
        self.branch_generation(number);
    }

    /// The peer takes the P_UUIDS of a new generation for the confirmation that no restart brings the former one back.
    fn tell_generation_once_durable(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.generation_untold = volume.state.conn.is_connected();
        }
    }

    /// A new generation is due with this change: it is created when the deferred effects run, and from now on no write
    /// is answered.
    pub(super) fn generation_is_due(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.generation_pending = true;
        }
    }

    /// 2.9 nos. 10 and 11.
    pub(super) fn generation_after_loss(&mut self, number: VolumeNumber) {
        let wanted = self.volumes.get(&number).is_some_and(|volume| {
            volume.state.disk == DiskState::UpToDate && volume.generations.uuids.bitmap == 0
        });
        if !wanted || self.planted(Planted::NoNewGeneration) {
            self.settle_generation(number);
            return;
        }
        self.tell_generation_once_durable(number);
        self.new_current_uuid(number);
    }

    /// The superblock of a generation is durable, or never will be because the disk failed.
    pub(super) fn generation_written(
        &mut self,
        number: VolumeNumber,
        result: &Result<(), IoError>,
    ) {
        if let Some(volume) = self.volumes.get_mut(&number)
            && result.is_ok()
            && !volume.plans.has(Then::Generation)
        {
            volume.generations.begun_on_disk();
        }
        self.settle_generation(number);
    }

    /// Writes may be answered again unless another generation is still on its way.
    pub(super) fn settle_generation(&mut self, number: VolumeNumber) {
        let due = self.deferred.iter().any(|work| match work {
            Deferred::State { volume, effect, .. } => {
                *volume == number && starts_generation(*effect)
            }
            Deferred::Branch(volume) => *volume == number,
            _ => false,
        });
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if due || volume.plans.has(Then::Generation) {
            return;
        }
        let pending = core::mem::take(&mut volume.generation_pending);
        if core::mem::take(&mut volume.generation_untold) {
            self.send_uuids(number);
        }
        if pending {
            self.generation_durable(number);
        }
    }

    /// A line with the four generations, as the kernel logs them.
    pub(crate) fn log_generations(&mut self, number: VolumeNumber, what: &str) {
        if let Some(volume) = self.volumes.get(&number) {
            let set = volume.generations.uuids.log(volume.bits_set(), 0);
            self.log(Level::Info, Some(number), alloc::format!("{what} {set}"));
        }
    }

    /// The superblock changed: it is written within five seconds, or with the next plan that writes it.
    pub(crate) fn write_superblock_soon(&mut self, number: VolumeNumber) {
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.superblock_changed(now);
        }
    }

    /// 2.9 no. 29.
    pub(super) fn write_dirty_superblock(&mut self, number: VolumeNumber) {
        let dirty = self
            .volumes
            .get(&number)
            .is_some_and(Volume::is_superblock_dirty);
        if dirty {
            self.start_plan(number, vec![Stage::Superblock], Then::Nothing);
        }
    }

    pub(super) fn superblock_deadline(&self) -> Time {
        // One that a plan will write waits for that plan, however long its disk takes.
        let dirty = self
            .volumes
            .values()
            .filter(|volume| volume.wants_superblock_write());
        let since = dirty.filter_map(|volume| volume.backing.as_ref()?.superblock_dirty);
        since
            .min()
            .map_or(Time::NEVER, |since| since + SUPERBLOCK_DELAY)
    }

    pub(super) fn tick_superblocks(&mut self) {
        let now = self.now;
        let due: Vec<VolumeNumber> = self
            .volumes
            .values()
            .filter(|volume| {
                volume.wants_superblock_write()
                    && volume.backing.as_ref().is_some_and(|backing| {
                        backing
                            .superblock_dirty
                            .is_some_and(|since| since + SUPERBLOCK_DELAY <= now)
                    })
            })
            .map(|volume| volume.number)
            .collect();
        for number in due {
            self.write_dirty_superblock(number);
        }
    }

    /// 2.8 no. 7, with the crashed-primary mark cleared at once where 2.9 no. 2 is about to clear it.
    pub(super) fn update_disk_flags(&mut self, number: VolumeNumber, old: &State, new: &State) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if new.is_up_to_date_pair() && !old.is_up_to_date_pair() {
            volume.crashed_primary = false;
        }
        // A promotion marks its role behind the generation that it may start (N3 of 3.3): see `commands::roles`.
        // A demotion while the disk was Negotiating is marked here, too, as soon as the disk takes part.
        if new.role != Role::Primary {
            volume.generations.mark_role(new.role);
        }
        if volume.recompute_disk_flags() == PrimaryFlag::Lost {
            self.deferred.push_back(Deferred::ReleasePrimary(number));
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.superblock_changed(now);
        }
    }

    /// The link is up: what stood in for the activity log while every bit was set does so no longer.
    pub(super) fn resume_activity_log(&mut self, number: VolumeNumber) {
        use crate::activity_log::LogMode;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let updates = volume.options.al_updates;
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if updates && backing.activity_log.mode() == LogMode::Suspended {
            backing.activity_log.resume();
            self.write_log(number);
        }
    }
}

/// What a new computation of the flags did to the primary flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrimaryFlag {
    /// It is not set any more: it stays on disk until the bits are written.
    Lost,
    /// Nothing of the kind.
    Kept,
}

impl Volume {
    /// The superblock on disk is older than the one in memory, and a plan could write it.
    pub(crate) fn is_superblock_dirty(&self) -> bool {
        self.state.disk >= DiskState::Inconsistent
            && self
                .backing
                .as_ref()
                .is_some_and(|backing| backing.superblock_dirty.is_some() && !backing.meta_failed)
    }

    /// The same, and no plan is going to write it anyway.
    fn wants_superblock_write(&self) -> bool {
        self.is_superblock_dirty() && !self.plans.will_write_superblock()
    }

    /// Computes the flags of the state (3.8).
    pub(super) fn recompute_disk_flags(&mut self) -> PrimaryFlag {
        let flags = self.flags_now();
        let Some(backing) = self.backing.as_mut() else {
            return PrimaryFlag::Kept;
        };
        let had = backing.has(Flags::PRIMARY_IND) && backing.primary_holds == 0;
        let lost = had && flags & flag::PRIMARY == 0;
        if lost {
            backing.primary_holds += 1;
        }
        self.refresh_disk_flags();
        if lost {
            PrimaryFlag::Lost
        } else {
            PrimaryFlag::Kept
        }
    }

    fn flags_now(&self) -> u32 {
        let crashed = if self.crashed_primary {
            CrashedPrimary::Yes
        } else {
            CrashedPrimary::No
        };
        let previous = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.superblock.flags.0);
        on_disk_flags(&self.state, crashed, previous)
    }

    /// Stores the flags, with the primary flag as long as a demotion's bits are not on disk.
    pub(super) fn refresh_disk_flags(&mut self) {
        if self.state.disk < DiskState::Inconsistent {
            // A disk on its way out (or in) keeps what its last state said.
            return;
        }
        let flags = Flags(self.flags_now());
        if let Some(backing) = self.backing.as_mut() {
            backing.superblock.flags = if backing.primary_holds > 0 {
                flags.with(Flags::PRIMARY_IND)
            } else {
                flags
            };
        }
    }

    /// The superblock as it belongs on disk now, with its place; it counts as clean from here on.
    pub(super) fn superblock_bytes(&mut self) -> Option<(u64, Bytes)> {
        let uuids = self.generations.slots_on_disk();
        let sectors = self.bytes / 512;
        let backing = self.backing.as_mut()?;
        backing.superblock.uuids = DiskUuids {
            current: uuids.current,
            bitmap: uuids.bitmap,
            history: uuids.history,
        };
        if sectors > 0 && self.state.disk != DiskState::Failed {
            backing.superblock.la_size = SectorCount(sectors);
        }
        backing.superblock.al_extents = u32::from(backing.activity_log.slots());
        backing.superblock = backing.superblock.clone().in_use();
        backing.superblock_dirty = None;
        let block = backing.superblock.encode();
        let offset = backing.layout.superblock_offset().0;
        Some((offset, Bytes::copy_from_slice(&block[..])))
    }

    /// Sets or clears a flag that outlives changes of state (full-sync, activity log disabled).
    pub(crate) fn set_disk_flag(&mut self, flag: Flags, set: FlagValue) {
        if let Some(backing) = self.backing.as_mut() {
            let flags = backing.superblock.flags;
            backing.superblock.flags = match set {
                FlagValue::Set => flags.with(flag),
                FlagValue::Clear => flags.without(flag),
            };
        }
    }
}

/// The new value of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagValue {
    /// It is set.
    Set,
    /// It is cleared.
    Clear,
}
