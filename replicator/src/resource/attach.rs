//! Attaching a disk (state-machine.md 3.9), with the replay of a crashed Primary's activity log (metadata.md 3.9).
//!
//! ```text
//!  Opening ─► Superblock ─► Attaching? ─► Reading ─► Writing ─► Settling ─► Finishing ─► answered
//!      any failure ─────────────────────────────► Failing (reads drain) ─► Closing ─► answered
//! ```
//!
//! Order on disk: bits of the activity log's extents, flushed; the superblock "in use"; then the state, and the
//! superblock with its flags. Only then are clients let in and the command is answered.

mod reading;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

use tandem_metadata::{
    ByteLen, Flags, Layout, Placement, SectorCount, Superblock, SuperblockError, activity_log,
};

use super::change::Asker;
use super::generation::FlagValue;
use super::plan::{Pages, Stage, Then};
use super::volume::{Backing, IoHold};
use super::{Pending, Resource};
use crate::activity_log::ActivityLog;
use crate::bitmap::{Bitmap, PAGE_BYTES, bits_of_device};
use crate::command::Answer;
use crate::effect::{Effect, Level, MetaOperation};
use crate::event::{BackingInfo, CommandId, IoError, MetaKind, OpenError, VolumeNumber};
use crate::generations::Uuids;
use crate::planted::Planted;
use crate::state::effects::attach_states;
use crate::state::word::{ConnState, DiskState, Request, Role};
use crate::state::{Failure, Fencing, Hardness, StateResult};

use reading::chunks_to_read;

/// An I/O of an attach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {
    /// The backing device is being opened.
    Open,
    /// The superblock.
    Superblock,
    /// A piece of the activity log, from this byte of it on.
    Log(u64),
    /// A piece of the bitmap, from this page on.
    Bitmap(u32),
}

/// What follows a plan of an attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {
    /// Bits and superblock are on disk: the state may change.
    Written,
    /// The superblock has the flags of the new state.
    Finished,
}

/// An attach under way.
#[derive(Debug)]
pub(crate) struct Attach {
    asker: CommandId,
    phase: Phase,
    /// Pieces of metadata still to be read, in order.
    chunks: Vec<(Io, u64, u32)>,
    in_flight: usize,
    /// The activity log as read.
    log: BTreeMap<u64, Bytes>,
    failure: Option<Answer>,
    /// Size of the device before: a failed attach leaves it.
    bytes_before: u64,
}

impl Attach {
    /// What the activity log on disk says is not in the bitmap on disk yet: the log stays as it is.
    pub(crate) fn needs_the_log(&self) -> bool {
        !matches!(self.phase, Phase::Settling | Phase::Finishing)
    }

    /// The device of the peer has this size, whatever becomes of the attach.
    pub(super) fn device_has(&mut self, bytes: u64) {
        self.bytes_before = bytes;
    }
}

#[derive(Debug)]
enum Phase {
    Opening,
    Superblock(BackingInfo),
    /// Waits for the state Attaching.
    Asking(BackingInfo, alloc::boxed::Box<(Superblock, Layout)>),
    Reading,
    Writing,
    /// Waits until the state may change (a handshake may be under way).
    Settling,
    Finishing,
    /// It failed: what is in flight ends first.
    Failing,
    Closing,
}

impl Resource {
    /// The command `attach`.
    pub(crate) fn command_attach(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            self.answer(id, Answer::failure(Failure::MinorUnknown));
            return;
        };
        let busy = volume.state.disk > DiskState::Diskless
            || volume.attach.is_some()
            || volume.detach.is_some();
        if busy {
            self.answer(id, Answer::failure(Failure::DiskConfigured));
            return;
        }
        volume.disk_error = None;
        volume.attach = Some(Attach {
            asker: id,
            phase: Phase::Opening,
            chunks: Vec::new(),
            in_flight: 0,
            log: BTreeMap::new(),
            failure: None,
            bytes_before: volume.bytes,
        });
        let token = self.token(Pending::Attach(number, Io::Open));
        self.effects.push(Effect::OpenBacking {
            token,
            volume: number,
        });
    }

    /// The backing device is open, or could not be opened.
    pub(super) fn attach_opened(
        &mut self,
        number: VolumeNumber,
        result: Result<BackingInfo, OpenError>,
    ) {
        let info = match result {
            Ok(info) => info,
            Err(error) => {
                let answer = Answer::numbered(i32::from(error.number), &error.text);
                self.attach_over(number, answer);
                return;
            }
        };
        let placement = placement_of(&info);
        match placement.superblock_sector(ByteLen(info.meta_bytes)) {
            Ok(sector) => {
                self.set_attach_phase(number, Phase::Superblock(info));
                self.attach_read(number, Io::Superblock, sector.0 * 512, PAGE_BYTES as u32);
            }
            Err(error) => {
                let answer = superblock_answer(&SuperblockError::from(error), &self.name);
                self.attach_failed(number, answer);
            }
        }
    }

    fn set_attach_phase(&mut self, number: VolumeNumber, phase: Phase) {
        let attach = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.attach.as_mut());
        if let Some(attach) = attach {
            attach.phase = phase;
        }
    }

    fn attach_read(&mut self, number: VolumeNumber, io: Io, offset: u64, length: u32) {
        let token = self.token(Pending::Attach(number, io));
        self.effects.push(Effect::Meta {
            token,
            volume: number,
            operation: MetaOperation::Read { offset, length },
        });
    }

    /// A read of metadata ended.
    pub(super) fn attach_io_done(
        &mut self,
        number: VolumeNumber,
        io: Io,
        result: Result<Bytes, IoError>,
    ) {
        let Some(attach) = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.attach.as_mut())
        else {
            return;
        };
        if matches!(io, Io::Log(_) | Io::Bitmap(_)) {
            attach.in_flight -= 1;
        }
        if matches!(attach.phase, Phase::Failing | Phase::Closing) {
            return;
        }
        let data = match result {
            Ok(data) => data,
            Err(error) => {
                self.log(Level::Error, Some(number), error.text.clone());
                let answer = Answer::failure(Failure::MetadataIo).with_info(error.text);
                self.attach_failed(number, answer);
                return;
            }
        };
        match io {
            Io::Open => {}
            Io::Superblock if data.is_empty() => {
                self.attach_superblock_read(number, &Bytes::from_static(&[0; PAGE_BYTES]));
            }
            Io::Superblock => self.attach_superblock_read(number, &data),
            Io::Log(offset) => {
                attach.log.insert(offset, data);
                self.attach_read_more(number);
            }
            Io::Bitmap(page) => self.attach_bitmap_read(number, page, &data),
        }
    }

    fn attach_superblock_read(&mut self, number: VolumeNumber, block: &Bytes) {
        let Some(Phase::Superblock(info)) = self.attach_phase(number) else {
            return;
        };
        let info = *info;
        let opened = Superblock::open(placement_of(&info), ByteLen(info.meta_bytes), block);
        let checked = opened.and_then(|(superblock, layout)| {
            layout.check_attach_size()?;
            superblock.check_size(&layout)?;
            Ok((superblock, layout))
        });
        match checked {
            Ok(found) => {
                let found = alloc::boxed::Box::new(found);
                self.set_attach_phase(number, Phase::Asking(info, found));
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.io_holds.insert(IoHold::Attach);
                }
                let wish = Request::disk(DiskState::Attaching);
                self.request_state(Some(number), wish, Asker::Attach(number));
            }
            Err(error) => {
                let answer = superblock_answer(&error, &self.name);
                self.attach_failed(number, answer);
            }
        }
    }

    fn attach_phase(&self, number: VolumeNumber) -> Option<&Phase> {
        let attach = self.volumes.get(&number)?.attach.as_ref()?;
        Some(&attach.phase)
    }

    /// The state Attaching was reached, or refused.
    pub(super) fn attach_state_done(&mut self, number: VolumeNumber, result: StateResult) {
        if !result.is_success() {
            self.attach_failed(number, Answer::state(result));
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(attach) = volume.attach.as_mut() else {
            return;
        };
        let Phase::Asking(info, found) = core::mem::replace(&mut attach.phase, Phase::Reading)
        else {
            return;
        };
        if let Err(answer) = self.attach_open_metadata(number, info, *found) {
            self.attach_failed(number, answer);
            return;
        }
        self.attach_read_more(number);
    }

    /// Steps 3 and 4: whether these data and this size may be attached; then what has to be read.
    fn attach_open_metadata(
        &mut self,
        number: VolumeNumber,
        info: BackingInfo,
        (superblock, layout): (Superblock, Layout),
    ) -> Result<(), Answer> {
        let uuids = Backing::uuids_of(&superblock);
        if let Some(answer) = self.attach_refusal(number, &uuids) {
            return Err(answer);
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        let last = superblock.la_size.0 * 512;
        let bytes = volume.attach_size(&self.name, &superblock, &layout, &info)?;
        let on_disk = if last == 0 || superblock.flags.contains(Flags::FULL_SYNC) {
            0
        } else {
            last.min(bytes)
        };
        let too_large = |_| Answer::failure(Failure::OutOfMemory);
        let bitmap = Bitmap::unread(bits_of_device(on_disk)).map_err(too_large)?;
        let slots = layout
            .geometry()
            .al_extents_clamped(volume.options.al_extents);
        let chunks = chunks_to_read(&layout, bitmap.page_count());
        volume.generations = volume.generations.with_disk(uuids);
        // Only the daemon that was there knew whether a resync from here ended unheard, or whether the peer showed these data.
        volume.end_unknown = uuids.bitmap != 0;
        volume.grew_while_detached = last != 0 && bytes > last;
        volume.bytes = bytes;
        volume.backing = Some(Backing {
            info,
            layout,
            flags_on_disk: superblock.flags,
            superblock,
            superblock_dirty: None,
            bitmap,
            activity_log: ActivityLog::new(slots, 0),
            attached_as: None,
            primary_holds: 0,
            log_replaced: false,
            meta_failed: false,
            read_failed: false,
            bits_agreed: false,
        });
        if let Some(attach) = volume.attach.as_mut() {
            attach.chunks = chunks;
        }
        Ok(())
    }

    /// Why a disk with these generations may not be used now, if so: the application has seen, or written, what is not on it. Asked
    /// when the superblock is read, and again when the disk is about to be used: the peer may be lost in between.
    fn attach_refusal(&self, number: VolumeNumber, uuids: &Uuids) -> Option<Answer> {
        let volume = self.volumes.get(&number)?;
        if self.planted(Planted::IgnoreExposedGeneration) {
            return None;
        }
        let name = &self.name;
        let conn = volume.state.conn;
        let refused = |info: String| {
            let answer = Answer::failure(Failure::DataNotCurrent).with_info(info);
            Some(match conn {
                _ if conn.is_connected() => answer,
                ConnState::StandAlone => answer.with_hint(format!(
                    "tandem adm up {name} (connects first, then attaches)"
                )),
                _ => answer.with_hint(format!("tandem adm up {name} (on the peer)")),
            })
        };
        if volume.generations.refuses_attach(&volume.state, uuids) {
            return refused(format!(
                "the application last saw generation {:016X}, the disk has {:016X}",
                volume.generations.exposed, uuids.current
            ));
        }
        let connected = conn.is_connected();
        if let Some(info) = volume.may_lack_what_was_seen() {
            return refused(info);
        }
        if !volume.wrote_without_disk {
            return None;
        }
        let peers = volume.peer.uuids.map(|peer| peer.set.current & !1);
        // A peer's disk that was invalidated meanwhile carries the generation, but not what was written.
        let useful = volume.state.pdsk != DiskState::Inconsistent;
        if connected && useful && peers == Some(uuids.current & !1) {
            return refused(format!(
                "since this disk was lost, the application has written to the peer's disk alone, and both seem to have the same \
                 generation; try again; if it stays so, give this disk new metadata, and everything is copied: tandem adm create-md {name}"
            ));
        }
        if !volume.generations.needs_the_peer(&volume.state) {
            return None;
        }
        refused(String::from(if connected {
            "since this disk was lost, the application has written to the peer's disk alone, which is not UpToDate any more; to go on \
             without those writes, stop the application, make this node Secondary, and attach again"
        } else {
            "since this disk was lost, the application has written to the peer's disk alone; connect first, then the disk is brought \
             up to date"
        }))
    }

    /// A plan of the attach ended.
    pub(super) fn attach_plan_done(
        &mut self,
        number: VolumeNumber,
        step: AfterPlan,
        result: Result<(), IoError>,
    ) {
        if let Err(error) = result {
            let answer = Answer::failure(Failure::MetadataIo).with_info(error.text);
            self.attach_failed(number, answer);
            return;
        }
        match step {
            AfterPlan::Written => {
                self.set_attach_phase(number, Phase::Settling);
                // A link that was made meanwhile has resumed the log.
                self.write_log(number);
                self.attach_try_state(number);
            }
            AfterPlan::Finished => {
                self.attach_over(number, Answer::done());
            }
        }
    }

    /// Attaches that wait for the end of a handshake try again.
    pub(super) fn retry_attaches(&mut self) {
        for number in self.volume_numbers() {
            if matches!(self.attach_phase(number), Some(Phase::Settling)) {
                self.attach_try_state(number);
            }
        }
    }

    /// Steps 6 to 8.
    fn attach_try_state(&mut self, number: VolumeNumber) {
        let uuids = self
            .volumes
            .get(&number)
            .map(|volume| volume.generations.uuids);
        if let Some(answer) = uuids.and_then(|uuids| self.attach_refusal(number, &uuids)) {
            self.attach_failed(number, answer);
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let state = volume.state;
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        let found = attach_states(backing.superblock.flags.0, Fencing::DontCare);
        let connected = state.conn.is_connected();
        backing.attached_as = connected.then_some(found);
        if connected {
            volume.peer.uuids = None;
        }
        let result = self.change_state(
            number,
            |state| {
                if connected {
                    state.disk = DiskState::Negotiating;
                } else {
                    state.disk = found.disk;
                    state.pdsk = found.pdsk;
                }
            },
            Hardness::Soft,
        );
        match result {
            StateResult::InTransientState => {}
            result if result.is_success() => {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.generations.mark_role(volume.state.role);
                }
                self.log_generations(number, "attached");
                self.set_attach_phase(number, Phase::Finishing);
                let stages = vec![Stage::ReleasePrimary, Stage::Superblock];
                self.start_plan(number, stages, Then::Attach(AfterPlan::Finished));
            }
            result => self.attach_failed(number, Answer::state(result)),
        }
    }

    /// The attach ends without a disk: what is in flight drains, the backing is closed, then the command is answered.
    fn attach_failed(&mut self, number: VolumeNumber, answer: Answer) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(attach) = volume.attach.as_mut() else {
            return;
        };
        if volume.detach.is_some() {
            // The disk failed after it was attached: its detach closes it.
            self.attach_over(number, answer);
            return;
        }
        attach.chunks.clear();
        attach.failure = Some(answer);
        attach.phase = Phase::Failing;
    }

    /// Attaches that failed go on when nothing is in flight.
    pub(super) fn step_failed_attaches(&mut self) {
        for number in self.volumes_where(|volume| volume.attach.is_some()) {
            let failing = matches!(self.attach_phase(number), Some(Phase::Failing));
            if !failing || self.disk_io_in_flight(number) {
                continue;
            }
            self.set_attach_phase(number, Phase::Closing);
            let token = self.token(Pending::Close(number));
            self.effects.push(Effect::CloseBacking {
                token,
                volume: number,
            });
        }
    }

    /// The backing of an attach that failed is closed. False if this was not one.
    pub(super) fn failed_attach_closed(&mut self, number: VolumeNumber) -> bool {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return false;
        };
        let Some(attach) = volume
            .attach
            .as_mut()
            .filter(|attach| matches!(attach.phase, Phase::Closing))
        else {
            return false;
        };
        let answer = attach.failure.take();
        volume.bytes = attach.bytes_before;
        self.forget_disk(number);
        if let Some(answer) = answer {
            self.attach_over(number, answer);
        }
        true
    }

    fn attach_over(&mut self, number: VolumeNumber, answer: Answer) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.io_holds.remove(&IoHold::Attach);
        if answer.exit == 0 {
            // The peer may have refused it already, before its metadata were written.
            if volume.state.disk > DiskState::Failed {
                volume.disk_error = None;
            }
        } else if volume.disk_error.is_none() {
            let words = answer.info.first().unwrap_or(&answer.text);
            volume.disk_error = Some(words.clone());
        }
        if let Some(attach) = volume.attach.take() {
            if answer.exit == 0 && volume.bytes != attach.bytes_before {
                self.serve_size(number);
            }
            self.answer(attach.asker, answer);
        }
        self.recheck_writes(number);
    }
}

pub(super) fn placement_of(info: &BackingInfo) -> Placement {
    match info.meta_kind {
        MetaKind::Internal => Placement::Internal,
        MetaKind::FlexibleExternal => Placement::FlexibleExternal,
        MetaKind::Indexed => Placement::Indexed(0),
    }
}

/// Data that a process before this one left in the disk's cache is flushed before anybody can read it here; then bits, flushed; then
/// the ring, if it is damaged; then the superblock "in use".
fn attach_stages(backing: &Backing, al_updates: bool, ring: bool, all: bool) -> Vec<Stage> {
    let mut stages = vec![Stage::FlushData];
    if all {
        stages.push(Stage::Flag(Flags::FULL_SYNC, FlagValue::Set));
        stages.push(Stage::Superblock);
    }
    stages.push(Stage::BitmapPages(Pages::AllChanged));
    stages.push(Stage::FlushMeta);
    if ring {
        let block = Bytes::copy_from_slice(&activity_log::initialized_block()[..]);
        let blocks = (0..backing.layout.geometry().blocks())
            .map(|number| (backing.layout.activity_log_block(number).0, block.clone()));
        let blocks: Vec<(u64, Bytes)> = blocks.collect();
        for part in blocks.chunks(64) {
            stages.push(Stage::Meta(part.to_vec()));
        }
        stages.push(Stage::FlushMeta);
    }
    stages.push(Stage::Flag(Flags::FULL_SYNC, FlagValue::Clear));
    let disabled = if al_updates {
        FlagValue::Clear
    } else {
        FlagValue::Set
    };
    stages.push(Stage::Flag(Flags::AL_DISABLED, disabled));
    stages.push(Stage::Superblock);
    stages
}

fn superblock_answer(error: &SuperblockError, name: &str) -> Answer {
    let number = i32::try_from(error.drbd_code()).unwrap_or(119);
    let text = match number {
        112 => "Low.dev. too small.",
        118 => Failure::MetadataIo.message(),
        165 => Failure::MetadataUnclean.message(),
        _ => "No valid meta-data signature found.",
    };
    let answer = Answer::numbered(number, text).with_info(error.to_string());
    match error {
        SuperblockError::NotFound { .. } => answer.with_hint(format!(
            "tandem adm create-md {name} (only for a disk that is new to this pair)"
        )),
        SuperblockError::Damaged { .. } => answer
            .with_info(
                "copy the metadata (internal: the last 4 KiB of the disk) before anything is changed",
            )
            .with_hint(format!("tandem adm dump-md {name}")),
        _ => answer,
    }
}

impl super::volume::Volume {
    /// The size that the device gets from this disk (10.1), or why it must not be attached.
    fn attach_size(
        &self,
        name: &str,
        superblock: &Superblock,
        layout: &Layout,
        info: &BackingInfo,
    ) -> Result<u64, Answer> {
        let capacity = layout.capacity(SectorCount(info.data_bytes / 512)).0 * 512;
        let configured = self.options.size;
        let last = superblock.la_size.0 * 512;
        let refuse = |failure: Failure, text: String| Answer::failure(failure).with_info(text);
        if configured > capacity {
            let text = format!("the disk holds {capacity} bytes, configured are {configured}");
            return Err(refuse(Failure::DiskTooSmall, text));
        }
        let in_use = self.state.conn.is_connected() || self.state.role == Role::Primary;
        if in_use && capacity < self.bytes {
            let text = format!(
                "the disk holds {capacity} bytes, the device has {}",
                self.bytes
            );
            return Err(refuse(Failure::DiskTooSmall, text));
        }
        let bytes = self.agreed_bytes(capacity, last);
        let consistent = superblock.flags.contains(Flags::CONSISTENT);
        if consistent && bytes < last && bytes != configured {
            let text = format!("the device had {last} bytes and would get {bytes}");
            let answer = refuse(Failure::ImplicitShrink, text);
            return Err(answer.with_hint(format!(
                "tandem adm resize {name} (on the peer, if its device is the smaller one and its disk large enough)"
            )));
        }
        if bytes == 0 {
            let text = String::from("the disk has no room for data");
            return Err(refuse(Failure::DiskTooSmall, text));
        }
        Ok(bytes)
    }
}
