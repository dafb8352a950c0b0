//! `apply-al`: what must be written so that unclean metadata may be attached, `docs/spec/metadata.md` section 3.9.
//!
//! The order on disk is bitmap pages, flush, ring, flush, superblock, flush. A crash in between is harmless: as
//! long as the superblock is unclean the work is repeated, and setting bits twice changes nothing.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::activity_log::initialized_block;
use crate::bitmap::{dump_len, mark_extent, pages, set};
use crate::create::{Content, Step, Write};
use crate::error::ActivityLogError;
use crate::gi::pretty_kib;
use crate::placement::Layout;
use crate::replay::{Coverage, Replay, Replayed};
use crate::superblock::{Flags, Magic, Superblock};
use crate::units::{AlExtent, BLOCK_SIZE, Block, PageNumber, SectorCount};

/// What replay wants to be out of sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marking {
    /// Nothing.
    Nothing,
    /// All bits of these extents.
    Extents(BTreeSet<AlExtent>),
    /// All bits of the bitmap: the log is damaged and something hot may be missing from it.
    Everything,
}

/// The plan of one `apply-al`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyAl {
    /// What to set in the bitmap, before anything else.
    pub marking: Marking,
    /// Hot extents beyond the end of the bitmap, which are ignored (reported by [`ApplyAl::messages`]).
    pub beyond: Vec<AlExtent>,
    /// Whether the whole ring is to be written with INITIALIZED blocks.
    pub initialize_ring: bool,
    /// The superblock to write last, if it changes.
    pub superblock: Option<Superblock>,
    /// What was read; `None` if the log was unusable and that was ignored.
    pub replay: Option<Replay>,
    /// The fault that was ignored because this node was not Primary.
    pub ignored: Option<ActivityLogError>,
    /// The size whose bitmap is marked.
    size: SectorCount,
    /// PRIMARY_IND: the active set counts.
    was_primary: bool,
}

impl ApplyAl {
    /// Plans the work for a superblock and its ring, which is given whole and in disk order.
    ///
    /// # Errors
    /// The log has another format, or it is unusable and PRIMARY_IND is set: then nothing may be changed, since
    /// nobody knows what was being written (step 6).
    pub fn plan(
        superblock: &Superblock,
        layout: &Layout,
        ring: &[u8],
    ) -> Result<Self, ActivityLogError> {
        let was_primary = superblock.flags.contains(Flags::PRIMARY_IND);
        Replay::check_format(ring, layout.geometry(), superblock.magic)?;
        let (replay, ignored) = match Replay::of(ring, layout.geometry()) {
            Ok(replay) => (Some(replay), None),
            Err(
                fault @ (ActivityLogError::NothingUsable { .. }
                | ActivityLogError::Indeterminate { .. }),
            ) if !was_primary => (None, Some(fault)),
            Err(fault) => return Err(fault),
        };
        let size = superblock
            .clip(layout)
            .map_or(superblock.la_size, |clipped| clipped.used);
        let mut plan = Self {
            marking: Marking::Nothing,
            beyond: Vec::new(),
            initialize_ring: ignored.is_some(),
            superblock: None,
            replay,
            ignored,
            size,
            was_primary,
        };
        if let Some(Replayed::Updates { active, coverage }) =
            plan.replay.as_ref().map(|replay| replay.result.clone())
        {
            plan.initialize_ring = true;
            if was_primary {
                plan.mark(active, coverage);
            }
        }
        if plan.marking != Marking::Nothing || superblock.needs_replay() {
            let mut clean = superblock.clone();
            clean.magic = Magic::Clean;
            clean.flags = clean.flags.with(Flags::AL_CLEAN);
            plan.superblock = Some(clean);
        }
        Ok(plan)
    }

    fn mark(&mut self, active: BTreeSet<AlExtent>, coverage: Coverage) {
        let (mut inside, mut beyond) = (BTreeSet::new(), Vec::new());
        for extent in active {
            if Layout::covers(self.size, extent) {
                inside.insert(extent);
            } else {
                beyond.push(extent);
            }
        }
        self.beyond = beyond;
        self.marking = match coverage {
            Coverage::Unknown if self.size.0 > 0 => Marking::Everything,
            _ if inside.is_empty() => Marking::Nothing,
            _ => Marking::Extents(inside),
        };
    }

    /// The bitmap pages to read, mark and write, in order.
    pub fn pages(&self) -> Vec<PageNumber> {
        match &self.marking {
            Marking::Nothing => Vec::new(),
            Marking::Extents(extents) => {
                let pages: BTreeSet<_> = extents.iter().map(|extent| extent.page()).collect();
                pages.into_iter().collect()
            }
            Marking::Everything => (0..pages(self.size)).map(PageNumber).collect(),
        }
    }

    /// Sets the bits in one page; returns how many were clear before. Bits past the end of the device are set too:
    /// readers ignore them.
    pub fn mark_page(&self, page: PageNumber, bytes: &mut [u8]) -> u64 {
        match &self.marking {
            Marking::Nothing => 0,
            Marking::Extents(extents) => {
                let first = page.0.saturating_mul(32);
                extents
                    .iter()
                    .filter(|extent| {
                        (first..first.saturating_add(32)).contains(&u64::from(extent.0))
                    })
                    .map(|extent| mark_extent(bytes, *extent))
                    .sum()
            }
            Marking::Everything => set(bytes, 0..BLOCK_SIZE as u64 * 8),
        }
    }

    /// What follows the bitmap pages: a flush, the ring, a flush, the superblock, a flush. Empty if nothing changes.
    pub fn steps_after_bitmap(&self, layout: &Layout) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.marking != Marking::Nothing {
            steps.push(Step::Flush);
        }
        if self.initialize_ring {
            steps.extend([Step::Write(ring_write(layout)), Step::Flush]);
        }
        if let Some(superblock) = &self.superblock {
            let content = Content::Bytes(superblock.encode().to_vec());
            let write = Write {
                offset: layout.superblock_offset(),
                content,
            };
            steps.extend([Step::Write(write), Step::Flush]);
        }
        steps
    }

    /// Lines for standard error, as drbdmeta has them (section 6.6), with our own where we are stricter.
    /// `newly_set` is the sum of what [`ApplyAl::mark_page`] returned.
    pub fn messages(&self, newly_set: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let invalid = self.replay.as_ref().map_or(0, |replay| replay.invalid);
        if invalid > 0 {
            lines.push(format!("{invalid} corrupt AL transactions found"));
        }
        if let Some(replay) = &self.replay {
            if replay.unknown_types > 0 {
                lines.push(format!(
                    "{} AL transactions of unknown type",
                    replay.unknown_types
                ));
            }
            if replay.slots_skipped > 0 {
                lines.push(format!(
                    "{} invalid AL slot numbers skipped",
                    replay.slots_skipped
                ));
            }
        }
        if let Some(fault) = &self.ignored {
            lines.push(format!("{fault}: ignored, since this node was not Primary"));
        }
        let end = dump_len(self.size).0;
        for extent in &self.beyond {
            let at = u64::from(extent.0) * 128;
            lines.push(format!(
                "extent {} beyond end of bitmap! ({at} >= {end})",
                extent.0
            ));
        }
        match (
            &self.marking,
            self.replay.as_ref().map(|replay| &replay.result),
        ) {
            (Marking::Everything, _) => lines.push(format!(
                "The activity log is damaged: marked everything ({} more) as out-of-sync.",
                pretty_kib(newly_set.saturating_mul(4))
            )),
            (Marking::Extents(_), _) => lines.push(format!(
                "Marked additional {} as out-of-sync based on AL.",
                pretty_kib(newly_set.saturating_mul(4))
            )),
            (Marking::Nothing, Some(Replayed::Updates { active, .. }))
                if self.was_primary && active.is_empty() =>
            {
                lines.push("Nothing to do.".to_string());
            }
            (Marking::Nothing, _) => {}
        }
        lines
    }
}

/// The whole ring as INITIALIZED blocks.
pub(crate) fn ring_write(layout: &Layout) -> Write {
    let block: Block = initialized_block();
    Write {
        offset: layout.activity_log_offset(),
        content: Content::Repeated {
            block: block.into(),
            count: layout.geometry().blocks(),
        },
    }
}
