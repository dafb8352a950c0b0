//! Handlers of the configuration: run one at a time, in order, each after the superblock is on disk (2.13).

use alloc::collections::VecDeque;
use alloc::vec;

use super::plan::{self, Stage};
use super::{Pending, Resource, resync};
use crate::effect::Effect;
use crate::event::VolumeNumber;

/// What follows a handler. Each owner routes its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// The peer may be told that the disk failed.
    LocalIoError(VolumeNumber),
    /// A step of a resync.
    Resync(VolumeNumber, resync::AfterHandler),
}

#[derive(Debug)]
struct Call {
    name: &'static str,
    volume: Option<VolumeNumber>,
    then: Then,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// The superblock is being written.
    Syncing,
    /// The handler runs.
    Running,
}

/// Handlers waiting and running.
#[derive(Debug, Default)]
pub(crate) struct Handlers {
    /// The first one is the one that `phase` speaks of.
    queue: VecDeque<Call>,
    phase: Phase,
}

impl Resource {
    /// Runs a handler behind those that wait; `then` follows with its exit code.
    pub(crate) fn run_handler(
        &mut self,
        name: &'static str,
        volume: Option<VolumeNumber>,
        then: Then,
    ) {
        self.handlers.queue.push_back(Call { name, volume, then });
        self.step_handlers();
    }

    fn step_handlers(&mut self) {
        if self.handlers.phase != Phase::Idle {
            return;
        }
        let Some(call) = self.handlers.queue.front() else {
            return;
        };
        let dirty = call.volume.filter(|number| {
            self.volumes
                .get(number)
                .is_some_and(super::volume::Volume::is_superblock_dirty)
        });
        self.handlers.phase = Phase::Syncing;
        match dirty {
            Some(number) => self.start_plan(number, vec![Stage::Superblock], plan::Then::Handler),
            None => self.handler_may_run(),
        }
    }

    /// The superblock is on disk (or its disk is gone).
    pub(super) fn handler_may_run(&mut self) {
        let Some(call) = self.handlers.queue.front() else {
            self.handlers.phase = Phase::Idle;
            return;
        };
        let (name, volume) = (call.name, call.volume);
        self.handlers.phase = Phase::Running;
        let token = self.token(Pending::Handler);
        self.effects.push(Effect::RunHandler {
            token,
            name,
            volume,
        });
    }

    /// The handler that ran has ended.
    pub(super) fn handler_done(&mut self, exit: i32) {
        self.handlers.phase = Phase::Idle;
        let Some(call) = self.handlers.queue.pop_front() else {
            return;
        };
        match call.then {
            Then::Nothing => {}
            Then::LocalIoError(number) => self.local_io_error_handled(number),
            Then::Resync(number, step) => self.resync_handler_done(number, step, exit),
        }
        self.step_handlers();
    }
}
