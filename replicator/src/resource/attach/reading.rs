//! What an attach reads from the metadata, and what it means: bits, and the replay of the activity log (metadata.md 3.9).

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

use tandem_metadata::superblock::Magic;
use tandem_metadata::{Coverage, Flags, Layout, Replay, Replayed};

use super::{AfterPlan, Io, Phase, attach_stages};
use crate::activity_log::{ActivityLog, EXTENT_BYTES};
use crate::bitmap::{NewBits, PAGE_BYTES, Urgency, bits_of_device, bits_touched};
use crate::command::Answer;
use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::planted::Planted;
use crate::resource::Resource;
use crate::resource::plan::Then;
use crate::state::Failure;

/// Largest piece of metadata that is read at once, in bytes: a disk answers it in a few milliseconds.
const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// Pages of the bitmap in such a piece; only the last one has less.
const CHUNK_PAGES_MAX: u32 = (CHUNK_BYTES_MAX / PAGE_BYTES as u64) as u32;

/// Reads of metadata in flight: enough for the speed of the device, and 2 MiB of memory.
const CHUNKS_IN_FLIGHT_MAX: usize = 8;

impl Resource {
    /// Keeps reads in flight; when all are done, goes on.
    pub(super) fn attach_read_more(&mut self, number: VolumeNumber) {
        loop {
            let Some(attach) = self
                .volumes
                .get_mut(&number)
                .and_then(|volume| volume.attach.as_mut())
            else {
                return;
            };
            if attach.in_flight >= CHUNKS_IN_FLIGHT_MAX {
                return;
            }
            let Some((io, offset, length)) = attach.chunks.pop() else {
                if attach.in_flight == 0 {
                    self.attach_all_read(number);
                }
                return;
            };
            attach.in_flight += 1;
            self.attach_read(number, io, offset, length);
        }
    }

    pub(super) fn attach_bitmap_read(&mut self, number: VolumeNumber, first: u32, data: &Bytes) {
        let Some(backing) = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.backing.as_mut())
        else {
            return;
        };
        if data.is_empty() {
            backing.bitmap.load_hole(first..first + CHUNK_PAGES_MAX);
        }
        for (number, bytes) in (first..).zip(data.chunks(PAGE_BYTES)) {
            let loaded = if bytes.len() == PAGE_BYTES {
                backing.bitmap.load_page(number, bytes)
            } else {
                // The last page of an oddly sized device is shorter on disk.
                let mut page = [0; PAGE_BYTES];
                page[..bytes.len()].copy_from_slice(bytes);
                backing.bitmap.load_page(number, &page)
            };
            if loaded.is_err() {
                break; // More than the bitmap has: its rest is nobody's.
            }
        }
        self.attach_read_more(number);
    }

    /// Step 5: bits, activity log, and what both mean; then everything goes to disk.
    fn attach_all_read(&mut self, number: VolumeNumber) {
        let replay = self.attach_replay(number);
        let forget = self.planted(Planted::ForgetCrash);
        let leave = self.planted(Planted::NoFlushAtAttach);
        let connected = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.state.conn.is_connected());
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let (bytes, options) = (volume.bytes, volume.options.clone());
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        let flags = backing.superblock.flags;
        let was_primary = flags.contains(Flags::PRIMARY_IND) && !forget;
        volume.crashed_primary = flags.contains(Flags::CRASHED_PRIMARY) || was_primary;
        volume.was_degraded =
            flags.contains(Flags::PRIMARY_IND) && !flags.contains(Flags::CONNECTED_IND);
        let lost_log = was_primary && replay.suspect;
        let disabled = volume.crashed_primary && flags.contains(Flags::AL_DISABLED);
        let all = flags.contains(Flags::FULL_SYNC) || disabled || lost_log;
        if backing
            .bitmap
            .resize(bits_of_device(bytes), NewBits::Set)
            .is_err()
        {
            self.attach_failed(number, Answer::failure(Failure::OutOfMemory));
            return;
        }
        if all {
            backing.bitmap.set_all();
        } else if was_primary {
            for extent in &replay.active {
                let bits = bits_touched(extent.first_sector().0 * 512, EXTENT_BYTES, bytes);
                backing.bitmap.set(bits, Urgency::BeforeEviction);
            }
        }
        backing.primary_holds = u32::from(was_primary);
        let slots = backing.activity_log.slots();
        backing.activity_log = ActivityLog::new(slots, replay.next_number);
        if replay.next_number != 0 {
            // What older blocks say about slots is said again before any extent counts as covered.
            backing.activity_log.describe_all();
        }
        let all_set = backing.bitmap.is_all_set() && !connected;
        if !options.al_updates || all_set {
            backing.activity_log.suspend();
        }
        let mut stages = attach_stages(backing, options.al_updates, replay.rewrite_ring, all);
        if leave {
            stages.remove(0);
        }
        let text = format!(
            "{} of {} bits set, {} hot extents{}",
            backing.bitmap.count(),
            backing.bitmap.bits(),
            replay.active.len(),
            if was_primary { " applied" } else { "" }
        );
        self.log(Level::Info, Some(number), text);
        self.set_attach_phase(number, Phase::Writing);
        self.start_plan(number, stages, Then::Attach(AfterPlan::Written));
    }

    fn attach_replay(&mut self, number: VolumeNumber) -> LogFound {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return LogFound::default();
        };
        let (Some(attach), Some(backing)) = (volume.attach.as_mut(), volume.backing.as_ref())
        else {
            return LogFound::default();
        };
        let mut ring = vec![0; backing.layout.activity_log_len().0 as usize];
        for (at, bytes) in core::mem::take(&mut attach.log) {
            // A hole has no bytes: it stays zeroes.
            ring[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        let geometry = backing.layout.geometry();
        let magic = backing.superblock.magic;
        let clean = magic == Magic::Clean && backing.has(Flags::AL_CLEAN);
        let replay =
            Replay::check_format(&ring, geometry, magic).and_then(|()| Replay::of(&ring, geometry));
        match replay {
            Ok(replay) => LogFound::of(&replay, geometry.blocks()),
            Err(_) if clean => LogFound {
                rewrite_ring: true,
                ..LogFound::default()
            },
            Err(error) => {
                self.log(Level::Warn, Some(number), error.to_string());
                LogFound {
                    suspect: true,
                    rewrite_ring: true,
                    ..LogFound::default()
                }
            }
        }
    }
}

/// What the ring of the activity log says.
#[derive(Debug, Default)]
struct LogFound {
    active: alloc::collections::BTreeSet<tandem_metadata::AlExtent>,
    /// Something hot may be missing: after the crash of a Primary every block is suspect.
    suspect: bool,
    /// The ring is damaged: it is initialised once the bits are on disk.
    rewrite_ring: bool,
    /// Number of the next transaction; 0 for a fresh ring.
    next_number: u32,
}

impl LogFound {
    fn of(replay: &Replay, blocks: u32) -> LogFound {
        let Replayed::Updates { active, coverage } = &replay.result else {
            return LogFound {
                rewrite_ring: replay.invalid > 0,
                ..LogFound::default()
            };
        };
        let newest = replay.numbers.map_or(0, |(_, newest)| newest);
        // Numbers that come near the wrap start anew with an initialised ring, whose size may be no power of two.
        let used_up = newest >= u32::MAX / 2;
        let damaged = replay.invalid > 1 || blocks == 0;
        let rewrite_ring = used_up || damaged;
        LogFound {
            active: active.clone(),
            suspect: *coverage == Coverage::Unknown,
            rewrite_ring,
            next_number: if rewrite_ring {
                0
            } else {
                newest.wrapping_add(1)
            },
        }
    }
}

/// Pieces to read, the first one last.
pub(super) fn chunks_to_read(layout: &Layout, pages: u32) -> Vec<(Io, u64, u32)> {
    let mut chunks = Vec::new();
    let log = layout.activity_log_len().0;
    let mut at = 0;
    while at < log {
        let length = (log - at).min(CHUNK_BYTES_MAX);
        let offset = layout.activity_log_offset().0 + at;
        chunks.push((Io::Log(at), offset, length as u32));
        at += length;
    }
    let end = (u64::from(pages) * PAGE_BYTES as u64).min(layout.bitmap_len().0);
    let mut at = 0;
    while at < end {
        let length = (end - at).min(CHUNK_BYTES_MAX);
        let page = (at / PAGE_BYTES as u64) as u32;
        chunks.push((
            Io::Bitmap(page),
            layout.bitmap_offset().0 + at,
            length as u32,
        ));
        at += length;
    }
    chunks.reverse();
    chunks
}
