//! down: Secondary, disconnected, detached, in this order; it stops at the first failure (state-machine.md 2.12).

use alloc::collections::VecDeque;

use super::Running;
use crate::command::{Answer, Force};
use crate::event::{CommandId, RequestError, VolumeNumber};
use crate::resource::Resource;
use crate::state::Failure;
use crate::state::word::ConnState;

/// A `down` under way.
#[derive(Debug)]
pub(crate) struct Down {
    force: Force,
    steps: VecDeque<Step>,
    current: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Demote(VolumeNumber),
    Disconnect,
    Detach(VolumeNumber),
}

impl Step {
    fn failed(self) -> &'static str {
        match self {
            Step::Demote(_) => "failed to demote",
            Step::Disconnect => "failed to disconnect",
            Step::Detach(_) => "failed to detach",
        }
    }
}

impl Resource {
    pub(super) fn command_down(&mut self, id: CommandId, force: Force) {
        let demote = self.volume_numbers().map(Step::Demote);
        let detach = self.volume_numbers().map(Step::Detach);
        let down = Down {
            force,
            steps: demote.chain([Step::Disconnect]).chain(detach).collect(),
            current: None,
        };
        self.commands.downs.insert(id, down);
        self.next_down_step(id);
    }

    /// The step under way ended.
    pub(super) fn down_step_done(&mut self, id: CommandId, answer: Answer) {
        let Some(down) = self.commands.downs.get_mut(&id) else {
            return;
        };
        let step = down.current.take();
        // Nothing to disconnect is what is wanted here.
        let moot =
            step == Some(Step::Disconnect) && answer.number == Failure::InvalidRequest.number();
        if answer.is_success() || moot {
            self.next_down_step(id);
            return;
        }
        self.commands.downs.remove(&id);
        let answer = match step {
            Some(step) => answer.with_info(step.failed()),
            None => answer,
        };
        self.answer(id, answer);
    }

    fn next_down_step(&mut self, id: CommandId) {
        let Some(down) = self.commands.downs.get_mut(&id) else {
            return;
        };
        let force = down.force;
        let Some(step) = down.steps.pop_front() else {
            self.commands.downs.remove(&id);
            // What a suspension still holds is never answered otherwise.
            for number in self.volume_numbers() {
                self.refuse_clients(number);
                self.refuse_frozen(number, RequestError::ShuttingDown);
            }
            self.answer(id, Answer::done());
            return;
        };
        down.current = Some(step);
        match step {
            Step::Demote(volume) => self.start_demotion(id, volume, force),
            Step::Disconnect if self.connection.cstate == ConnState::StandAlone => {
                self.answer(id, Answer::done());
            }
            Step::Disconnect => self.command_disconnect(id, force),
            Step::Detach(volume) => self.detach_for_down(id, volume, force),
        }
    }

    fn detach_for_down(&mut self, id: CommandId, number: VolumeNumber, force: Force) {
        let attached = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.backing.is_some() && volume.attach.is_none());
        if force == Force::Yes && attached {
            // In any case, but not before the disk is closed: the resource is dropped next.
            self.commands.running.insert(id, Running::Elsewhere);
            self.detach_by_force(number);
            self.detach_agreed(number, id);
        } else {
            self.command_detach(id, number, Force::No);
        }
    }

    /// The resource goes down in any case: requests that did not start are refused.
    pub(super) fn refuse_clients(&mut self, number: VolumeNumber) {
        self.refuse_held(number, RequestError::ShuttingDown);
        self.refuse_unstarted(number, RequestError::ShuttingDown);
    }
}
