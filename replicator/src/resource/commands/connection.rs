//! connect and disconnect (state-machine.md 2.12).
// filled in by link

use crate::command::{Answer, Force};
use crate::event::CommandId;
use crate::options::NetOptions;
use crate::resource::Resource;
use crate::state::{Failure, StateResult};

/// A command of the connection under way.
#[derive(Debug)]
pub(crate) enum Running {}

impl Resource {
    /// The command `connect`.
    pub(crate) fn command_connect(
        &mut self,
        id: CommandId,
        _net: NetOptions,
        _discard_my_data: bool,
        _tentative: bool,
    ) {
        self.answer(id, Answer::failure(Failure::InvalidRequest));
    }

    /// The command `disconnect`, also as a part of `down`. Its end is told by `answer`.
    pub(crate) fn command_disconnect(&mut self, id: CommandId, _force: Force) {
        self.answer(id, Answer::failure(Failure::InvalidRequest));
    }

    /// A state request of a command of the connection is decided.
    pub(crate) fn connection_command_state_done(&mut self, _id: CommandId, _result: StateResult) {}

    /// Called after every round of deferred work: commands that wait for something look again.
    pub(crate) fn step_connection_commands(&mut self) {}
}
