//! Internal metadata after the device has grown: finding them at the last known place and moving them to the new
//! end. `docs/spec/metadata.md` sections 1.7, 6.5, 8 (P8, P11) and 9.
//!
//! Every bit is kept also when the number of bitmap pages changes, where drbdmeta up to 9.34.0 loses some.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::apply::ring_write;
use crate::bitmap::dump_len;
use crate::create::{Content, Step, Write};
use crate::error::{PlacementError, SuperblockError};
use crate::placement::{Layout, Placement};
use crate::superblock::{Flags, Superblock, Version};
use crate::units::{BLOCK_SIZE, ByteLen, ByteOffset};

/// The record that `drbdmeta` keeps in `drbd-minor-<minor>.lkbd` of its state directory: where internal metadata were
/// last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// Size of the device.
    pub size: ByteLen,
    /// The device's path.
    pub device: String,
    /// The device UUID, if it was not 0.
    pub device_uuid: Option<u64>,
}

impl LastKnown {
    /// Parses the record; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (size, device) = lines.next()?.split_once('\t')?;
        let device_uuid = match lines.next() {
            None | Some("") => None,
            Some(line) => {
                let digits = line.strip_prefix("uuid:\t")?.trim_end();
                Some(
                    u64::from_str_radix(digits, 16)
                        .ok()
                        .filter(|_| digits.len() == 16)?,
                )
            }
        };
        let size = ByteLen(size.trim().parse().ok()?);
        Some(Self {
            size,
            device: String::from(device),
            device_uuid,
        })
    }

    /// The record as text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\t{}\n", self.size.0, self.device);
        if let Some(uuid) = self.device_uuid.filter(|uuid| *uuid != 0) {
            text.push_str(&format!("uuid:\t{uuid:016X}\n"));
        }
        text
    }

    /// Looks for metadata at the end that the device had. `block` was read where the superblock of a device of the
    /// last known size is. Damaged metadata count as well, as in [`crate::review::existing`].
    pub fn find(&self, present: ByteLen, block: &[u8]) -> Option<Former> {
        let offset = ByteOffset(Placement::Internal.superblock_sector(self.size).ok()?.0 * 512);
        if self.size >= present || !matches!(Version::of(block), Some(Version::V08(_))) {
            return None;
        }
        let movable = matches!(
            Move::plan(self, present, block),
            Ok(_) | Err(RelocateError::Unclean)
        );
        Some(Former {
            offset,
            size: self.size,
            movable,
        })
    }

    /// The name of the record's file.
    pub fn file_name(minor: u32) -> String {
        format!("drbd-minor-{minor}.lkbd")
    }
}

/// Metadata at the former end of a device that has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// Where their superblock is.
    pub offset: ByteOffset,
    /// The size that the device had.
    pub size: ByteLen,
    /// Whether they can be moved to the new end: not if they are damaged, or another device's.
    pub movable: bool,
}

/// Why metadata cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelocateError {
    /// Only internal metadata depend on the size of the data device.
    #[error("only internal metadata can be moved")]
    NotInternal,
    /// The log must be applied at the old place first, since it is not carried over.
    #[error(
        "the metadata are unclean: the activity log must be applied (apply-al) before they are moved"
    )]
    Unclean,
    /// The device shrank, or its metadata are larger now: data in use would be overwritten.
    #[error("the metadata at the new place would overwrite data: {used} in use, {usable} usable")]
    WouldTruncate {
        /// Bytes in use.
        used: ByteLen,
        /// Bytes usable.
        usable: ByteLen,
    },
    /// What is at the last known place is another device's.
    #[error(
        "the metadata at the last known place have device UUID {found:016X}, expected {expected:016X}"
    )]
    OtherDevice {
        /// The UUID on disk.
        found: u64,
        /// The UUID in the record.
        expected: u64,
    },
    /// The new place does not fit.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// What is at the old place is not valid.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
}

/// One step of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveStep {
    /// Write or flush.
    Do(Step),
    /// Copy a range whose old and new places may overlap: block by block in the given direction.
    Copy {
        /// Where it is.
        from: ByteOffset,
        /// Where it goes.
        to: ByteOffset,
        /// How much, a multiple of 4096.
        len: ByteLen,
        /// In which order blocks are copied.
        order: CopyOrder,
    },
}

/// The order of copying, so that no block is overwritten before it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOrder {
    /// From the first block to the last: the new place is before the old one.
    Ascending,
    /// From the last block to the first: the new place is after the old one.
    Descending,
}

/// A move of internal metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where they are.
    pub old: Layout,
    /// Where they go.
    pub new: Layout,
    /// The superblock at the new place.
    pub superblock: Superblock,
}

impl Move {
    /// Plans the move of the metadata found at the last known size of a device that has `present` bytes now. `block`
    /// was read where the superblock of a device of the last known size is. `None` if nothing has to move.
    ///
    /// # Errors
    /// [`RelocateError`].
    pub fn plan(
        last_known: &LastKnown,
        present: ByteLen,
        block: &[u8],
    ) -> Result<Option<Self>, RelocateError> {
        let (superblock, old) = Superblock::open(Placement::Internal, last_known.size, block)?;
        if let Some(expected) = last_known
            .device_uuid
            .filter(|expected| *expected != superblock.device_uuid)
        {
            return Err(RelocateError::OtherDevice {
                found: superblock.device_uuid,
                expected,
            });
        }
        Self::between(superblock, old, present)
    }

    /// Plans the move of known metadata to a device of `present` bytes.
    ///
    /// # Errors
    /// [`RelocateError`].
    pub fn between(
        mut superblock: Superblock,
        old: Layout,
        present: ByteLen,
    ) -> Result<Option<Self>, RelocateError> {
        if old.placement() != Placement::Internal {
            return Err(RelocateError::NotInternal);
        }
        let new = Layout::new(Placement::Internal, present, old.geometry())?;
        if new.area() == old.area() {
            return Ok(None);
        }
        if superblock.needs_replay() {
            return Err(RelocateError::Unclean);
        }
        superblock.check_size(&old)?;
        let usable = new.data_size_max();
        let used = superblock.la_size;
        if used > usable {
            let bytes = |sectors: u64| ByteLen(sectors.saturating_mul(512));
            let (used, usable) = (bytes(used.0), bytes(usable.0));
            return Err(RelocateError::WouldTruncate { used, usable });
        }
        superblock.place(&new);
        Ok(Some(Self {
            old,
            new,
            superblock,
        }))
    }

    /// The steps. If old and new areas are apart, the new superblock appears last and then the old one is erased. If
    /// they overlap, a superblock that demands a full sync stands at the new place while bits are on their way
    /// (section 1.7 step 5): a crash then costs a full sync and never a bit.
    pub fn steps(&self) -> Vec<MoveStep> {
        let (old_start, old_len) = self.old.area();
        let (new_start, new_len) = self.new.area();
        let apart =
            old_start.0 + old_len.0 <= new_start.0 || new_start.0 + new_len.0 <= old_start.0;
        let mut steps = Vec::new();
        if !apart {
            let mut guard = self.superblock.clone();
            guard.flags = guard.flags.with(Flags::FULL_SYNC.with(Flags::AL_DISABLED));
            steps.extend(self.superblock_steps(&guard));
        }
        steps.extend(self.bitmap_steps());
        steps.extend([
            MoveStep::Do(Step::Write(ring_write(&self.new))),
            MoveStep::Do(Step::Flush),
        ]);
        steps.extend(self.superblock_steps(&self.superblock));
        if !self.covers_old() {
            steps.extend(self.erase_old());
        }
        steps
    }

    /// Whether the block of the old superblock is part of the new area, and so was overwritten.
    fn covers_old(&self) -> bool {
        let (start, len) = self.new.area();
        let at = self.old.superblock_offset().0;
        (start.0..start.0 + len.0).contains(&at)
    }

    fn superblock_steps(&self, superblock: &Superblock) -> [MoveStep; 2] {
        let content = Content::Bytes(superblock.encode().to_vec());
        let write = Write {
            offset: self.new.superblock_offset(),
            content,
        };
        [MoveStep::Do(Step::Write(write)), MoveStep::Do(Step::Flush)]
    }

    /// The bits that mean something are copied; the rest of the new bitmap is cleared.
    fn bitmap_steps(&self) -> Vec<MoveStep> {
        let (from, to) = (self.old.bitmap_offset(), self.new.bitmap_offset());
        let len = dump_len(self.superblock.la_size);
        let order = if to > from {
            CopyOrder::Descending
        } else {
            CopyOrder::Ascending
        };
        let mut steps = Vec::new();
        if len.0 > 0 && from != to {
            steps.push(MoveStep::Copy {
                from,
                to,
                len,
                order,
            });
        }
        let rest = self.new.bitmap_len().0.saturating_sub(len.0);
        if rest > 0 {
            let offset = ByteOffset(to.0 + len.0);
            let content = Content::Zeroes(ByteLen(rest));
            steps.push(MoveStep::Do(Step::Write(Write { offset, content })));
        }
        steps
    }

    fn erase_old(&self) -> Vec<MoveStep> {
        let content = Content::Zeroes(ByteLen(BLOCK_SIZE as u64));
        let write = Write {
            offset: self.old.superblock_offset(),
            content,
        };
        vec![MoveStep::Do(Step::Write(write)), MoveStep::Do(Step::Flush)]
    }
}

/// The lines of `check-resize` when there is nothing to be found (standard error, exit 1).
pub const TEXT_NO_SUITABLE: &str = "no suitable meta data found :(";
