//! One resync under way: which end this node is, how far it is, and what it counts.

use core::time::Duration;

use super::source::Source;
use super::target::Target;
use super::{Run, Side};
use crate::resource::volume::Volume;
use crate::resync::controller::{Pace, Progress};
use crate::state::word::ConnState;
use crate::time::Time;

/// How far a resync is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its handler, then its first durable sequence.
    Starting,
    /// Blocks are requested and answered.
    Running,
    /// Target: all is written and flushed; a ping makes sure that the source has seen every acknowledgement.
    Pinging,
    /// Target: the generations at the end are on their way to the disk.
    Finishing,
}

/// A resync that starts, runs or is paused.
#[derive(Debug)]
pub(crate) struct Resync {
    pub(super) run: Run,
    pub(super) phase: Phase,
    /// What the connection of the volume was when it started.
    pub(super) from: ConnState,
    pub(super) progress: Progress,
    /// Blocks that could not be read on the source or written on the target.
    pub(super) failed: u64,
    pub(super) paused_at: Option<Time>,
    pub(super) paused: Duration,
    pub(super) role: Part,
}

#[derive(Debug)]
pub(super) enum Part {
    Source(Source),
    Target(alloc::boxed::Box<Target>),
}

impl Resync {
    pub(super) fn target(&mut self) -> Option<&mut Target> {
        match &mut self.role {
            Part::Target(target) => Some(target),
            Part::Source(_) => None,
        }
    }

    pub(super) fn source(&mut self) -> Option<&mut Source> {
        match &mut self.role {
            Part::Source(source) => Some(source),
            Part::Target(_) => None,
        }
    }

    pub(super) fn side(&self) -> Side {
        match self.role {
            Part::Source(_) => Side::Source,
            Part::Target(_) => Side::Target,
        }
    }

    /// Blocks on the disk whose bits are not cleared yet.
    pub(super) fn unflushed(&self) -> u64 {
        match &self.role {
            Part::Target(target) => target.unflushed(),
            Part::Source(_) => 0,
        }
    }

    /// These bits were set: blocks that were written before, but are not flushed yet, are out of sync again.
    pub(crate) fn bits_marked(&mut self, bits: &core::ops::Range<u64>) {
        if let Some(target) = self.target() {
            target.forget(bits);
        }
    }

    pub(super) fn begin(&mut self, now: Time, total: u64) {
        self.progress = Progress::new(now, total);
        self.failed = 0;
        self.paused = Duration::ZERO;
    }
}

impl Volume {
    /// What a resync counts fits what it has on its way.
    pub(crate) fn check_resync(&self) -> Result<(), &'static str> {
        let fits = self
            .resync
            .as_ref()
            .is_none_or(|resync| match &resync.role {
                Part::Target(target) => target.fits(),
                Part::Source(_) => true,
            });
        if fits && self.sync_io.fits() {
            Ok(())
        } else {
            Err("what a resync counts differs from what it has on its way")
        }
    }

    /// Blocks that the resync still has to transfer.
    pub(super) fn resync_left(&self) -> u64 {
        let resync = self.resync.as_ref();
        let done = resync.map_or(0, |resync| resync.failed + resync.unflushed());
        self.bits_set().saturating_sub(done)
    }

    pub(super) fn note_progress(&mut self, now: Time) {
        let left = self.resync_left();
        if let Some(resync) = self.resync.as_mut() {
            let pace = if resync.paused_at.is_some() {
                Pace::Paused
            } else {
                Pace::Running
            };
            resync.progress.update(now, left, pace);
        }
    }
}
