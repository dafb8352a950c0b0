//! Commands of an administrator: each is answered exactly once, in drbdsetup's numbers (state-machine.md 2.7).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Resource;
use crate::command::{Answer, Command};
use crate::effect::Effect;
use crate::event::{CommandId, IoError, VolumeNumber};
use crate::state::word::DiskState;
use crate::state::{Failure, StateResult};
use crate::time::Time;

pub(crate) mod connection;
pub(crate) mod disks;
pub(crate) mod down;
pub(crate) mod generations;
pub(crate) mod resize;
pub(crate) mod roles;
pub(crate) mod verify;

/// What follows a plan of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {
    /// The command succeeded.
    Answer(CommandId),
    /// A promotion is on disk.
    Promoted(CommandId),
    /// The bitmap was rewritten by a command that held clients off.
    BitmapWritten(CommandId),
    /// New options of the activity log are on disk.
    OptionsWritten(CommandId),
}

/// A command under way.
#[derive(Debug)]
pub(crate) enum Running {
    /// `primary`.
    Promote(roles::Promotion),
    /// `secondary`.
    Demote(roles::Demotion),
    /// `detach`.
    Detach(disks::Detaching),
    /// `disk-options`.
    Options(disks::Reconfiguring),
    /// `resize`.
    Resize(resize::Resizing),
    /// A change of state, and nothing else; what it changed is on disk before the answer.
    Plain(VolumeNumber),
    /// `verify`: a change of state that is told.
    Verify(VolumeNumber),
    /// `invalidate` and `invalidate-remote` without a connection.
    Rewrite(VolumeNumber),
    /// `connect` or `disconnect`.
    Connection(connection::Running),
    /// One that begins when the attach of its volume is over.
    AfterAttach(Command),
    /// Something that tells its end by `answer`.
    Elsewhere,
}

impl Running {
    /// When it has to be looked at, whatever happens until then.
    fn due(&self) -> Time {
        match self {
            Running::Promote(promotion) => promotion.retry_at(),
            Running::Detach(detaching) => detaching.gives_up_at(),
            Running::Resize(resizing) => resizing.due(),
            _ => Time::NEVER,
        }
    }
}

/// Commands under way.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pub(crate) running: BTreeMap<CommandId, Running>,
    /// `down` commands; their current step runs under the same id.
    pub(crate) downs: BTreeMap<CommandId, down::Down>,
}

impl Resource {
    /// A command enters.
    pub(super) fn on_command(&mut self, id: CommandId, command: Command) {
        let unknown = |volume: &VolumeNumber| !self.volumes.contains_key(volume);
        if volume_of(&command).is_some_and(|volume| unknown(&volume)) {
            let answer = Answer::failure(Failure::MinorUnknown).with_info("unknown minor");
            self.answer(id, answer);
            return;
        }
        if self.waits_for_attach(&command) {
            self.commands
                .running
                .insert(id, Running::AfterAttach(command));
            return;
        }
        match command {
            Command::Attach { volume } => self.command_attach(id, volume),
            Command::Detach { volume, force } => self.command_detach(id, volume, force),
            Command::Connect {
                net,
                discard_my_data,
                tentative,
            } => self.command_connect(id, net, discard_my_data, tentative),
            Command::Disconnect { force } => self.command_disconnect(id, force),
            Command::Primary { volume, force } => self.command_primary(id, volume, force),
            Command::Secondary { volume } => self.command_secondary(id, volume),
            Command::Invalidate { volume } => self.command_invalidate(id, volume),
            Command::InvalidateRemote { volume } => self.command_invalidate_remote(id, volume),
            Command::Outdate { volume } => self.command_outdate(id, volume),
            Command::NewCurrentUuid {
                volume,
                clear_bitmap,
            } => self.command_new_current_uuid(id, volume, clear_bitmap),
            Command::PauseSync { volume } => self.command_pause_sync(id, volume),
            Command::ResumeSync { volume } => self.command_resume_sync(id, volume),
            Command::Verify {
                volume,
                start,
                stop,
            } => self.command_verify(id, volume, start, stop),
            Command::VerifyStop { volume } => self.command_verify_stop(id, volume),
            Command::SuspendIo { volume } => self.command_suspend_io(id, volume),
            Command::ResumeIo { volume } => self.command_resume_io(id, volume),
            Command::DiskOptions { volume, options } => {
                self.command_disk_options(id, volume, options);
            }
            Command::Down { force } => self.command_down(id, force),
            Command::Resize {
                volume,
                size,
                room,
                area,
            } => self.command_resize(id, volume, resize::Wish { size, room, area }),
        }
    }

    /// What says that a disk is old waits until an attach has found out what it is: whether its node crashed as Primary, say, and which
    /// blocks may differ; on a connection, also what the peer says of it. A kernel takes one command at a time.
    fn waits_for_attach(&self, command: &Command) -> bool {
        match command {
            Command::Outdate { volume }
            | Command::Invalidate { volume }
            | Command::InvalidateRemote { volume } => self.is_attaching(*volume),
            _ => false,
        }
    }

    pub(crate) fn is_attaching(&self, number: VolumeNumber) -> bool {
        let volume = self.volumes.get(&number);
        volume.is_some_and(|volume| {
            volume.attach.is_some() || volume.state.disk == DiskState::Negotiating
        })
    }

    /// Begins what has waited for an attach, if that is over, well or badly.
    fn step_after_attach(&mut self, id: CommandId) {
        let Some(Running::AfterAttach(command)) = self.commands.running.get(&id) else {
            return;
        };
        if !self.waits_for_attach(command) {
            let command = command.clone();
            self.commands.running.remove(&id);
            self.on_command(id, command);
        }
    }

    /// A command (or a step of `down`) ends.
    pub(crate) fn answer(&mut self, id: CommandId, answer: Answer) {
        self.commands.running.remove(&id);
        // A verify, say, waits for the end of a resize, which need not change any state.
        self.state_changed |= self.state_requests_wait();
        if self.commands.downs.contains_key(&id) {
            self.down_step_done(id, answer);
            return;
        }
        self.effects.push(Effect::Answer {
            command: id,
            answer,
        });
    }

    /// A state request of a command is decided.
    pub(super) fn command_state_done(&mut self, id: CommandId, result: StateResult) {
        match self.commands.running.get(&id) {
            Some(Running::Promote(_)) => self.promotion_decided(id, result),
            Some(Running::Detach(_)) => self.detach_decided(id, result),
            Some(Running::Plain(volume)) => {
                let volume = *volume;
                self.plain_decided(id, volume, result);
            }
            Some(Running::Verify(volume)) => {
                let volume = *volume;
                self.verify_decided(id, volume, result);
            }
            Some(Running::Rewrite(volume)) => {
                let volume = *volume;
                self.rewrite_decided(id, volume, result);
            }
            Some(Running::Connection(_)) => self.connection_command_state_done(id, result),
            Some(
                Running::Demote(_)
                | Running::Options(_)
                | Running::Resize(_)
                | Running::AfterAttach(_)
                | Running::Elsewhere,
            )
            | None => {}
        }
    }

    /// A plan of a command ended.
    pub(super) fn command_plan_done(
        &mut self,
        volume: VolumeNumber,
        step: AfterPlan,
        result: Result<(), IoError>,
    ) {
        match step {
            AfterPlan::Answer(id) => self.answer(id, written(result)),
            AfterPlan::Promoted(id) => self.promotion_written(id, volume),
            AfterPlan::OptionsWritten(id) => {
                if result.is_ok() {
                    self.log_options_written(volume);
                }
                self.answer(id, written(result));
            }
            AfterPlan::BitmapWritten(id) => {
                self.command_bitmap_written(volume);
                self.answer(id, written(result));
            }
        }
    }

    /// Commands that wait for something look again; called after every round of deferred work.
    pub(super) fn step_commands(&mut self) {
        let waiting: Vec<CommandId> = self.commands.running.keys().copied().collect();
        for id in waiting {
            match self.commands.running.get(&id) {
                Some(Running::Promote(_)) => self.step_promotion(id),
                Some(Running::Demote(_)) => self.step_demotion(id),
                Some(Running::Detach(_)) => self.step_detaching(id),
                Some(Running::Options(_)) => self.step_reconfiguring(id),
                Some(Running::Resize(_)) => self.step_resizing(id),
                Some(Running::AfterAttach(_)) => self.step_after_attach(id),
                _ => {}
            }
        }
        self.step_connection_commands();
    }

    pub(super) fn commands_deadline(&self) -> Time {
        let deadlines = self.commands.running.values().map(Running::due);
        deadlines.min().unwrap_or(Time::NEVER)
    }

    pub(super) fn tick_commands(&mut self) {
        let now = self.now;
        let due: Vec<CommandId> = self
            .commands
            .running
            .iter()
            .filter(|(_, running)| running.due() <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            match self.commands.running.get(&id) {
                Some(Running::Promote(_)) => self.retry_promotion(id),
                Some(Running::Detach(_)) => self.give_up_detaching(id),
                Some(Running::Resize(_)) => self.resizing_late(id),
                _ => {}
            }
        }
    }
}

/// A command whose last writes ended: with an error the disk is gone, and the change with it.
pub(crate) fn written(result: Result<(), IoError>) -> Answer {
    match result {
        Ok(()) => Answer::done(),
        Err(error) => Answer::failure(Failure::MetadataIo).with_info(error.text),
    }
}

fn volume_of(command: &Command) -> Option<VolumeNumber> {
    match command {
        Command::Attach { volume }
        | Command::Detach { volume, .. }
        | Command::Primary { volume, .. }
        | Command::Secondary { volume }
        | Command::Invalidate { volume }
        | Command::InvalidateRemote { volume }
        | Command::Outdate { volume }
        | Command::NewCurrentUuid { volume, .. }
        | Command::PauseSync { volume }
        | Command::ResumeSync { volume }
        | Command::Verify { volume, .. }
        | Command::VerifyStop { volume }
        | Command::SuspendIo { volume }
        | Command::ResumeIo { volume }
        | Command::DiskOptions { volume, .. }
        | Command::Resize { volume, .. } => Some(*volume),
        Command::Connect { .. } | Command::Disconnect { .. } | Command::Down { .. } => None,
    }
}

impl Answer {
    /// Success.
    pub(crate) fn done() -> Answer {
        Answer::numbered(Failure::NO_ERROR, "")
    }

    /// The result of a change of state.
    pub(crate) fn state(result: StateResult) -> Answer {
        Answer {
            number: result.number(),
            text: String::from(result.message()),
            info: Vec::new(),
            hint: None,
            exit: result.exit_code(),
        }
    }

    /// A refusal of a configuration operation.
    pub(crate) fn failure(failure: Failure) -> Answer {
        Answer::numbered(failure.number(), failure.message())
    }

    /// A result above 100 by its number.
    pub(crate) fn numbered(number: i32, text: &str) -> Answer {
        Answer {
            number,
            text: String::from(text),
            info: Vec::new(),
            hint: None,
            exit: if number == Failure::NO_ERROR {
                0
            } else {
                Failure::EXIT_CODE
            },
        }
    }

    /// The same with one more line of information.
    pub(crate) fn with_info(mut self, line: impl Into<String>) -> Answer {
        self.info.push(line.into());
        self
    }

    /// The same with what to type next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Answer {
        self.hint = Some(hint.into());
        self
    }

    /// The command did what it should.
    pub(crate) fn is_success(&self) -> bool {
        self.exit == 0
    }
}

/// `1 client holds`, `3 clients hold`: for refusals because a device is open.
pub(crate) fn clients_hold(count: u32) -> String {
    match count {
        1 => String::from("1 client holds the device open"),
        count => format!("{count} clients hold the device open"),
    }
}
