//! detach, outdate, pause and resume, suspend and resume, disk-options (state-machine.md 2.12).

use alloc::format;
use alloc::vec;
use core::time::Duration;

use tandem_metadata::Flags;

use super::{AfterPlan, Running};
use crate::activity_log::{ActivityLog, LogMode};
use crate::command::{Answer, Force};
use crate::event::{CommandId, VolumeNumber};
use crate::options::DiskOptions;
use crate::resource::Resource;
use crate::resource::change::Asker;
use crate::resource::generation::FlagValue;
use crate::resource::plan::{Stage, Then};
use crate::resource::volume::IoHold;
use crate::state::word::{DiskState, Request, State};
use crate::state::{Failure, Hardness, StateResult};
use crate::time::Time;

/// How long a detach waits for the peer to confirm what was answered.
const CONFIRM_WAIT: Duration = Duration::from_secs(10);

/// A graceful detach that has not been agreed to.
#[derive(Debug)]
pub(crate) struct Detaching {
    volume: VolumeNumber,
    asked: bool,
    /// It waits for the peer to have durably what was answered, until this time.
    confirms: Option<Time>,
}

impl Detaching {
    /// When it has waited long enough for the peer.
    pub(super) fn gives_up_at(&self) -> Time {
        let waits = self.confirms.filter(|_| !self.asked);
        waits.unwrap_or(Time::NEVER)
    }
}

/// New options of a disk that wait for the activity log to become quiet.
#[derive(Debug)]
pub(crate) struct Reconfiguring {
    volume: VolumeNumber,
    /// What applies again if the new options cannot.
    before: DiskOptions,
    written: bool,
}

impl Resource {
    pub(super) fn command_detach(&mut self, id: CommandId, number: VolumeNumber, force: Force) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.detach.is_some() {
            // It is on its way out already.
            self.commands.running.insert(id, Running::Elsewhere);
            self.detach_agreed(number, id);
            return;
        }
        if volume.state.disk == DiskState::Diskless && volume.attach.is_none() {
            self.answer(id, Answer::state(StateResult::NothingToDo));
            return;
        }
        if force == Force::Yes && volume.attach.is_none() {
            let result = self.detach_by_force(number);
            self.answer(id, Answer::state(result));
            return;
        }
        if volume.attach.is_none() {
            volume.io_holds.insert(IoHold::Detach);
        }
        let detaching = Detaching {
            volume: number,
            asked: false,
            confirms: None,
        };
        self.commands.running.insert(id, Running::Detach(detaching));
    }

    /// An attach and writes in flight end before anyone is asked.
    pub(super) fn step_detaching(&mut self, id: CommandId) {
        let Some(Running::Detach(detaching)) = self.commands.running.get(&id) else {
            return;
        };
        let (number, asked) = (detaching.volume, detaching.asked);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if asked || volume.attach.is_some() {
            return;
        }
        if volume.state.disk <= DiskState::Failed {
            // The attach failed, or the disk did meanwhile.
            volume.io_holds.remove(&IoHold::Detach);
            self.commands.running.remove(&id);
            self.command_detach(id, number, Force::No);
            return;
        }
        volume.io_holds.insert(IoHold::Detach);
        let suspended = volume.state.is_suspended();
        if !suspended && self.application_writes_in_flight(number) {
            return;
        }
        if !suspended && self.writes_open(number) {
            self.await_confirmation(id);
            return;
        }
        if let Some(Running::Detach(detaching)) = self.commands.running.get_mut(&id) {
            detaching.asked = true;
        }
        let wish = Request::disk(DiskState::Failed);
        self.request_state(Some(number), wish, Asker::Command(id));
    }

    /// The peer's copy is about to be the only one: it has to have what was answered before (under A and B it may still be on its way),
    /// durably, as no later flush of this disk can make it.
    fn await_confirmation(&mut self, id: CommandId) {
        let until = self.now + CONFIRM_WAIT;
        let Some(Running::Detach(detaching)) = self.commands.running.get_mut(&id) else {
            return;
        };
        if detaching.confirms.is_none() {
            detaching.confirms = Some(until);
            self.close_epoch();
        }
    }

    /// The peer has not confirmed in time: nothing is detached, and clients go on.
    pub(super) fn give_up_detaching(&mut self, id: CommandId) {
        let Some(Running::Detach(detaching)) = self.commands.running.get(&id) else {
            return;
        };
        let number = detaching.volume;
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.io_holds.remove(&IoHold::Detach);
        }
        let name = &self.name;
        let answer = Answer::state(StateResult::InTransientState)
            .with_info("the peer has not confirmed all that was written: its disk, or the network, is slow or hangs")
            .with_hint(format!("tandem adm detach {name} (again, when the peer has caught up)"));
        self.answer(id, answer);
    }

    pub(super) fn detach_decided(&mut self, id: CommandId, result: StateResult) {
        let Some(Running::Detach(detaching)) = self.commands.running.get(&id) else {
            return;
        };
        let number = detaching.volume;
        if result.is_success() {
            self.commands.running.insert(id, Running::Elsewhere);
            let draining = self
                .volumes
                .get(&number)
                .is_some_and(|volume| volume.state.disk == DiskState::Failed);
            if draining {
                self.detach_agreed(number, id);
                return;
            }
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.io_holds.remove(&IoHold::Detach);
        }
        let answer = match result {
            StateResult::IsDiskless => Answer::state(StateResult::NothingToDo),
            StateResult::NoUpToDateDisk => Answer::state(result)
                .with_info("this disk has the only UpToDate data that the Primary can reach")
                .with_hint(format!("tandem adm secondary {}", self.name)),
            result => Answer::state(result),
        };
        self.answer(id, answer);
    }

    pub(super) fn command_outdate(&mut self, id: CommandId, volume: VolumeNumber) {
        self.plain(id, volume, Request::disk(DiskState::Outdated));
    }

    fn plain(&mut self, id: CommandId, volume: VolumeNumber, wish: Request) {
        self.commands.running.insert(id, Running::Plain(volume));
        self.request_state(Some(volume), wish, Asker::Command(id));
    }

    /// What a command changed is on disk before it is answered: `outdate` is a promise to a fencing peer.
    pub(super) fn plain_decided(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        result: StateResult,
    ) {
        let dirty = self
            .volumes
            .get(&number)
            .is_some_and(crate::resource::volume::Volume::is_superblock_dirty);
        if result.is_success() && dirty {
            self.commands.running.insert(id, Running::Elsewhere);
            let then = Then::Command(AfterPlan::Answer(id));
            self.start_plan(number, vec![Stage::Superblock], then);
            return;
        }
        self.answer(id, Answer::state(result));
    }

    pub(super) fn command_pause_sync(&mut self, id: CommandId, number: VolumeNumber) {
        let paused = |state: &State| state.user_isp;
        if self
            .volumes
            .get(&number)
            .is_some_and(|at| paused(&at.state))
        {
            self.answer(id, Answer::failure(Failure::PauseAlreadySet));
            return;
        }
        let wish = Request {
            user_isp: Some(true),
            ..Request::default()
        };
        self.plain(id, number, wish);
    }

    pub(super) fn command_resume_sync(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(state) = self.volumes.get(&number).map(|volume| volume.state) else {
            return;
        };
        if !state.user_isp {
            let failure = if state.aftr_isp {
                Failure::PausedByDependency
            } else if state.peer_isp {
                Failure::PausedByPeer
            } else {
                Failure::PauseAlreadyClear
            };
            self.answer(id, Answer::failure(failure));
            return;
        }
        let wish = Request {
            user_isp: Some(false),
            ..Request::default()
        };
        self.plain(id, number, wish);
    }

    pub(super) fn command_suspend_io(&mut self, id: CommandId, number: VolumeNumber) {
        let result = self.change_state(number, |state| state.susp = true, Hardness::Hard);
        self.answer(id, Answer::state(result));
    }

    /// 7.7. A generation that is due was started when the contact was lost: see `effects`.
    pub(super) fn command_resume_io(&mut self, id: CommandId, number: VolumeNumber) {
        let resume = |state: &mut State| {
            state.susp = false;
            state.susp_nod = false;
            state.susp_fen = false;
        };
        let result = self.change_state(number, resume, Hardness::Hard);
        for volume in self.volume_numbers() {
            self.recheck_writes(volume);
        }
        self.answer(id, Answer::state(result));
    }

    pub(super) fn command_disk_options(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        options: DiskOptions,
    ) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let mut options = options;
        if volume.backing.is_some() {
            // The size of an attached disk changes with `resize`, which asks the peer.
            options.size = volume.options.size;
        }
        let before = core::mem::replace(&mut volume.options, options);
        if volume.backing.is_none() {
            self.answer(id, Answer::done());
            return;
        }
        let reconfiguring = Reconfiguring {
            volume: number,
            before,
            written: false,
        };
        let log_changes = volume.log_slots_wanted() != volume.log_slots();
        if log_changes {
            volume.io_holds.insert(IoHold::Options);
            // References of answered writes come back with the peer's barrier acks.
            self.close_epoch();
        }
        self.commands
            .running
            .insert(id, Running::Options(reconfiguring));
    }

    pub(super) fn step_reconfiguring(&mut self, id: CommandId) {
        let Some(Running::Options(reconfiguring)) = self.commands.running.get(&id) else {
            return;
        };
        let number = reconfiguring.volume;
        if reconfiguring.written {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.attach.is_some() && volume.backing.is_some() {
            return; // It makes the log from what is on disk.
        }
        let (slots, wanted) = (volume.log_slots(), volume.log_slots_wanted());
        let changes = wanted != slots;
        let suspended = volume.state.is_suspended();
        let updates = volume.options.al_updates;
        let connected = volume.state.conn.is_connected();
        let Some(backing) = volume.backing.as_mut() else {
            volume.io_holds.remove(&IoHold::Options);
            self.answer(id, Answer::done());
            return;
        };
        if changes {
            if !backing.activity_log.is_quiet() {
                if suspended {
                    self.options_stay(id);
                }
                return;
            }
            let number = backing.activity_log.next_number();
            backing.activity_log = ActivityLog::new(wanted, number);
            backing.activity_log.describe_all();
            backing.log_replaced = true;
        }
        let all_set = backing.bitmap.is_all_set() && !connected;
        let flag = if updates {
            FlagValue::Clear
        } else {
            FlagValue::Set
        };
        let mut stages = vec![Stage::Flag(Flags::AL_DISABLED, flag), Stage::Superblock];
        if updates && !all_set {
            // The flag stands in for the log until the log says everything itself.
            let described = backing.activity_log.resume();
            stages.insert(0, Stage::LogCommitted(described));
        }
        volume.io_holds.remove(&IoHold::Options);
        if let Some(Running::Options(reconfiguring)) = self.commands.running.get_mut(&id) {
            reconfiguring.written = true;
        }
        self.write_log(number);
        self.start_plan(number, stages, Then::Command(AfterPlan::OptionsWritten(id)));
    }

    /// The writes in the log may wait for the end of a suspension as long as a person likes: all options stay as they were.
    fn options_stay(&mut self, id: CommandId) {
        if let Some(Running::Options(reconfiguring)) = self.commands.running.remove(&id)
            && let Some(volume) = self.volumes.get_mut(&reconfiguring.volume)
        {
            volume.options = reconfiguring.before;
            volume.io_holds.remove(&IoHold::Options);
        }
        let answer = Answer::failure(Failure::InvalidRequest)
            .with_info(
                "al-extents cannot change while writes wait for the end of the suspension of I/O; nothing was changed",
            )
            .with_hint(format!("tandem adm resume-io {}", self.name));
        self.answer(id, answer);
    }

    /// The flag that stands in for the log is on disk: the log may stop.
    pub(super) fn log_options_written(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let updates = volume.options.al_updates;
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if !updates && backing.activity_log.mode() == LogMode::Logging {
            let through = backing.activity_log.suspend();
            self.start_committed(number, through);
        }
    }
}

impl crate::resource::volume::Volume {
    fn log_slots(&self) -> u16 {
        self.backing
            .as_ref()
            .map_or(0, |backing| backing.activity_log.slots())
    }

    fn log_slots_wanted(&self) -> u16 {
        self.backing.as_ref().map_or(0, |backing| {
            let geometry = backing.layout.geometry();
            geometry.al_extents_clamped(self.options.al_extents)
        })
    }
}
