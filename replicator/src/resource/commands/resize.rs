//! `resize` (state-machine.md 10.3): the device takes what both disks offer now.
//!
//! ```text
//!  asked ─► the own disk is measured ─► grown as far as is known ─► the peer is asked ─► it answers ─► durable ─► answered
//! ```
//!
//! The peer measures its disk, too, before it answers. Nothing shrinks: that would cut data off.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use tandem_metadata::{ByteLen, Layout, SectorCount};

use super::{Running, written};
use crate::bitmap::NewBits;
use crate::command::{Answer, NewArea, PeerRoom};
use crate::effect::{Effect, Level};
use crate::event::{BackingInfo, CommandId, IoError, MetaKind, OpenError, VolumeNumber};
use crate::resource::attach::placement_of;
use crate::resource::plan::Then;
use crate::resource::size::SizeChange;
use crate::resource::volume::Volume;
use crate::resource::{Pending, Resource};
use crate::state::word::{ConnState, DiskState, Role};
use crate::state::{Failure, StateResult};
use crate::time::Time;

/// How long the peer may take: it measures its disk, and makes the larger bitmap durable.
const PEER_WAIT: Duration = Duration::from_secs(60);

/// What `resize` was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// Bytes; 0: all that there is.
    pub(crate) size: u64,
    pub(crate) room: PeerRoom,
    pub(crate) area: NewArea,
}

impl Wish {
    pub(crate) fn new_bits(self) -> NewBits {
        match self.area {
            NewArea::Resync => NewBits::Set,
            NewArea::AssumeClean => NewBits::Clear,
        }
    }
}

/// A `resize` under way.
#[derive(Debug)]
pub(crate) struct Resizing {
    volume: VolumeNumber,
    wish: Wish,
    phase: Phase,
    /// Size of the device before.
    before: u64,
    until: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Measuring,
    /// Waits for the peer's P_SIZES.
    Asked,
    /// Waits until the new size is on disk.
    Writing,
}

impl Resizing {
    pub(super) fn due(&self) -> Time {
        self.until
    }
}

impl Resource {
    pub(super) fn command_resize(&mut self, id: CommandId, number: VolumeNumber, wish: Wish) {
        if let Some(refusal) = self.resize_refusal(number, wish) {
            self.answer(id, refusal);
            return;
        }
        let before = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        let resizing = Resizing {
            volume: number,
            wish,
            phase: Phase::Measuring,
            before,
            until: self.now + PEER_WAIT,
        };
        self.commands.running.insert(id, Running::Resize(resizing));
        self.measure_backing(number);
    }

    /// Asks for the present size of a volume's disk.
    pub(crate) fn measure_backing(&mut self, number: VolumeNumber) {
        let token = self.token(Pending::Measure(number));
        self.effects.push(Effect::MeasureBacking {
            token,
            volume: number,
        });
    }

    /// Why there can be no resize now, if so (state-machine.md 10.3).
    fn resize_refusal(&self, number: VolumeNumber, wish: Wish) -> Option<Answer> {
        let name = &self.name;
        let volume = self.volumes.get(&number)?;
        let state = volume.state;
        if volume.backing.is_none() || state.disk < DiskState::Inconsistent {
            let answer = Answer::failure(Failure::NoDiskConfig);
            return Some(answer.with_hint(format!("tandem adm attach {name}")));
        }
        if state.conn > ConnState::Connected {
            let answer = Answer::failure(Failure::ResizeDuringResync);
            return Some(answer.with_hint(format!("tandem adm wait-sync {name}")));
        }
        let asks = self.asks_to_copy_or_compare(number);
        if state.conn == ConnState::WFReportParams || volume.detach.is_some() || asks {
            return Some(Answer::state(StateResult::InTransientState));
        }
        let connected = state.conn == ConnState::Connected;
        if state.role != Role::Primary && state.peer != Role::Primary {
            let mut answer = Answer::failure(Failure::ResizeNeedsPrimary);
            if !connected {
                answer = answer
                    .with_info("the peer is not connected: this node would have to be Primary");
            }
            return Some(answer.with_hint(format!("tandem adm primary {name}")));
        }
        if !connected && wish.area == NewArea::AssumeClean {
            let answer = Answer::failure(Failure::InvalidRequest)
                .with_info("--assume-clean needs the peer: only together can both nodes leave the new area out of a resync");
            return Some(answer.with_hint(format!("tandem adm connect {name}")));
        }
        if connected && state.pdsk < DiskState::Inconsistent {
            let answer = Answer::failure(Failure::InvalidRequest)
                .with_info("the peer has no disk: it has to be attached first");
            return Some(answer.with_hint(format!("tandem adm attach {name} (on the peer)")));
        }
        if connected && (state.disk != DiskState::UpToDate || state.pdsk != DiskState::UpToDate) {
            // The resync of a new area begins without an exchange of bitmaps: what only the source counts would be lost.
            let whose = if state.disk == DiskState::UpToDate {
                "the peer's disk lacks"
            } else {
                "this disk lacks"
            };
            let answer = Answer::failure(Failure::ResizeDuringResync).with_info(format!(
                "{whose} blocks that a resync could not copy: it has to be attached again, and in sync, first"
            ));
            let hint = format!("tandem adm detach {name} && tandem adm attach {name}");
            return Some(answer.with_hint(match state.disk {
                DiskState::UpToDate => format!("{hint} (on the peer)"),
                _ => hint,
            }));
        }
        if wish.size != 0 && wish.size < volume.bytes {
            let text = format!(
                "the device has {} bytes, asked for were {}: it would lose its end, which is not supported",
                volume.bytes, wish.size
            );
            return Some(Answer::failure(Failure::InvalidRequest).with_info(text));
        }
        None
    }

    /// The disk was measured, for a command or for the peer's P_SIZES that asked for it.
    pub(crate) fn backing_measured(
        &mut self,
        number: VolumeNumber,
        result: Result<BackingInfo, OpenError>,
    ) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let adopted = match &result {
            // The peer judges by what it was told in the handshake.
            Ok(_) if volume.state.conn == ConnState::WFReportParams => Ok(()),
            Ok(info) => volume.adopt_measure(info),
            Err(error) => Err(error.text.clone()),
        };
        let asked = volume.peer.sizes_asked.take();
        let ids: Vec<CommandId> = self.resizing(number, Phase::Measuring);
        let alone = ids.is_empty();
        if let Err(text) = &adopted
            && alone
        {
            let hint = self.hint_to_move();
            self.log(Level::Warn, Some(number), format!("{text}; type: {hint}"));
        }
        for id in ids {
            match &adopted {
                Ok(()) => self.resize_measured(id, number),
                Err(text) => {
                    let answer = Answer::failure(Failure::InvalidRequest)
                        .with_info(text.clone())
                        .with_hint(self.hint_to_move());
                    self.answer(id, answer);
                }
            }
        }
        match asked {
            Some(sizes) => self.answer_sizes(number, &sizes),
            None if alone && adopted.is_ok() => self.tell_of_room(number),
            None => {}
        }
    }

    fn hint_to_move(&self) -> String {
        let name = &self.name;
        format!(
            "tandem adm detach {name} && tandem adm check-resize {name} && tandem adm attach {name}"
        )
    }

    /// Whether a resize of this volume is under way here: no verify or resync begins until it is over, since the new area may
    /// need a resync of its own.
    pub(crate) fn is_resizing(&self, number: VolumeNumber) -> bool {
        let found =
            |running: &Running| matches!(running, Running::Resize(at) if at.volume == number);
        self.commands.running.values().any(found)
    }

    fn resizing(&self, number: VolumeNumber, phase: Phase) -> Vec<CommandId> {
        let found = |(id, running): (&CommandId, &Running)| match running {
            Running::Resize(at) if at.volume == number && at.phase == phase => Some(*id),
            _ => None,
        };
        self.commands.running.iter().filter_map(found).collect()
    }

    fn resize_measured(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(Running::Resize(resizing)) = self.commands.running.get(&id) else {
            return;
        };
        let wish = resizing.wish;
        if let Some(refusal) = self.resize_refusal(number, wish) {
            self.answer(id, refusal);
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let (capacity, before) = (volume.capacity_bytes(), volume.bytes);
        if wish.size > capacity {
            let text = format!(
                "asked for were {} bytes, the disk offers {capacity}",
                wish.size
            );
            self.answer(id, Answer::failure(Failure::DiskTooSmall).with_info(text));
            return;
        }
        let connected = volume.state.conn == ConnState::Connected;
        if !connected && wish.room == PeerRoom::Assumed {
            volume.peer.disk_bytes = capacity;
        }
        volume.options.size = wish.size;
        let bytes = volume.agreed_bytes(capacity, before);
        let change = if bytes > before {
            self.apply_size(number, bytes, wish.new_bits())
        } else {
            SizeChange::Same
        };
        if !connected {
            self.resize_to_disk(id);
            return;
        }
        if change == SizeChange::Grew
            && let Some(volume) = self.volumes.get_mut(&number)
        {
            volume.resize_pending = true;
        }
        if let Some(Running::Resize(resizing)) = self.commands.running.get_mut(&id) {
            resizing.phase = Phase::Asked;
        }
        self.send_uuids(number);
        self.ask_for_sizes(number, wish.area);
    }

    /// The peer has answered with its sizes, and this node has followed.
    pub(crate) fn resize_answered(&mut self, number: VolumeNumber) {
        for id in self.resizing(number, Phase::Asked) {
            self.resize_to_disk(id);
        }
    }

    /// The answer waits until the new size, if there is one, is on disk.
    fn resize_to_disk(&mut self, id: CommandId) {
        let Some(Running::Resize(resizing)) = self.commands.running.get_mut(&id) else {
            return;
        };
        resizing.phase = Phase::Writing;
        let number = resizing.volume;
        let volume = self.volumes.get(&number);
        if volume.is_none_or(|volume| !volume.plans.has(Then::Sized)) {
            self.resized(id, number);
        }
    }

    /// A new size is on disk, or the disk is lost.
    pub(crate) fn size_written(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        for id in self.resizing(number, Phase::Writing) {
            match &result {
                Ok(()) => self.resized(id, number),
                Err(_) => self.answer(id, written(result.clone())),
            }
        }
    }

    fn resized(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(Running::Resize(resizing)) = self.commands.running.get(&id) else {
            return;
        };
        let (before, wish) = (resizing.before, resizing.wish);
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let answer = volume.resize_answer(&self.name, before, wish);
        self.answer(id, answer);
    }

    /// Looks whether the link that a resize waits for is still there.
    pub(super) fn step_resizing(&mut self, id: CommandId) {
        let Some(Running::Resize(resizing)) = self.commands.running.get(&id) else {
            return;
        };
        let number = resizing.volume;
        let state = self.volumes.get(&number).map(|at| at.state);
        let (conn, pdsk) = (state.map(|at| at.conn), state.map(|at| at.pdsk));
        if resizing.phase != Phase::Asked {
            return;
        }
        if conn < Some(ConnState::Connected) {
            self.give_up_resizing(id, "the connection was lost before the peer had answered");
        } else if pdsk < Some(DiskState::Inconsistent) {
            self.resize_without_the_peers_disk(id, number);
        }
    }

    /// The peer's disk is lost, and has not told what it offers. The peer may wait for the size that this device has now.
    fn resize_without_the_peers_disk(&mut self, id: CommandId, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.grew_while_detached |= core::mem::take(&mut volume.resize_pending);
        }
        self.tell_sizes(number);
        let name = &self.name;
        let answer = Answer::state(StateResult::InTransientState)
            .with_info("the peer's disk was lost before it had told what it offers")
            .with_hint(format!(
                "tandem adm attach {name} (on the peer), then tandem adm resize {name} again"
            ));
        self.answer(id, answer);
    }

    pub(super) fn resizing_late(&mut self, id: CommandId) {
        self.give_up_resizing(id, "the peer, or a disk, has not answered in time");
    }

    fn give_up_resizing(&mut self, id: CommandId, why: &str) {
        let answer = Answer::state(StateResult::InTransientState)
            .with_info(why)
            .with_info("the nodes agree on a size with the next connection; nothing is lost")
            .with_hint(format!(
                "tandem adm resize {} (again, once they are connected)",
                self.name
            ));
        self.answer(id, answer);
    }
}

impl Volume {
    /// Takes over what was measured, or says why the new size cannot be used.
    fn adopt_measure(&mut self, info: &BackingInfo) -> Result<(), String> {
        let Some(backing) = self.backing.as_mut() else {
            return Err(String::from("the disk was detached meanwhile"));
        };
        let old = backing.info;
        if info.data_bytes < old.data_bytes || info.meta_bytes < old.meta_bytes {
            return Err(format!(
                "the disk has become smaller: {} bytes (had {}), metadata device {} (had {})",
                info.data_bytes, old.data_bytes, info.meta_bytes, old.meta_bytes
            ));
        }
        if info.meta_kind == MetaKind::Internal {
            if info.data_bytes != old.data_bytes {
                return Err(format!(
                    "the disk has grown to {} bytes, but its metadata lies at its former end ({}): it is moved while the disk is \
                     detached; the peer's disk serves meanwhile",
                    info.data_bytes, old.data_bytes
                ));
            }
            return Ok(());
        }
        let geometry = backing.layout.geometry();
        let layout = Layout::new(placement_of(info), ByteLen(info.meta_bytes), geometry)
            .map_err(|error| format!("{error}"))?;
        backing.superblock.md_size_sect = layout.md_size_sect();
        backing.layout = layout;
        backing.info.data_bytes = info.data_bytes;
        backing.info.meta_bytes = info.meta_bytes;
        Ok(())
    }

    /// What came of a resize.
    fn resize_answer(&self, name: &str, before: u64, wish: Wish) -> Answer {
        let (bytes, capacity, peer) = (self.bytes, self.capacity_bytes(), self.peer.disk_bytes);
        if bytes > before {
            return Answer::done()
                .with_info(format!("the device has {bytes} bytes (had {before})"));
        }
        let wanted = if wish.size == 0 { capacity } else { wish.size };
        if wanted <= bytes {
            let mut text = format!("the device has {bytes} bytes already: nothing to do");
            if wish.size == 0 {
                text.push_str(&self.room_limit());
            }
            return Answer::done().with_info(text);
        }
        let connected = self.state.conn >= ConnState::Connected;
        if !connected && (peer == 0 || peer >= wanted) {
            return Answer::failure(Failure::InvalidRequest)
                .with_info(format!(
                    "the device keeps its {bytes} bytes: the peer, which is not connected, may not have room for {wanted}"
                ))
                .with_hint(format!(
                    "tandem adm connect {name} && tandem adm resize {name} (or resize --assume-peer-has-space, if its disk has grown)"
                ));
        }
        Answer::failure(Failure::DiskTooSmall)
            .with_info(format!(
                "the device keeps its {bytes} bytes: this node's disk offers {capacity}, the peer's only {peer}"
            ))
            .with_hint(format!(
                "tandem adm resize {name} (again, when the peer's disk has grown; there with internal metadata: detach, check-resize, attach)"
            ))
    }

    /// What keeps this node's disk from offering more, if it is the room for the bitmap.
    fn room_limit(&self) -> String {
        let limited = self.backing.as_ref().filter(|backing| {
            let room = backing.layout.data_size_max();
            !backing.is_internal() && room < SectorCount(backing.info.data_bytes / 512)
        });
        limited.map_or_else(String::new, |backing| {
            format!(
                "; the disk has {}, but its metadata device has room for the bitmap of {} only",
                backing.info.data_bytes,
                backing.layout.data_size_max().0 * 512
            )
        })
    }
}
