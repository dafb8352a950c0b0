//! Detaching a disk, by command or because it failed (state-machine.md 2.9 nos. 20 and 21, 7.8).
//!
//! ```text
//!  (graceful: clients held, writes finish, the peer agrees) ─► Failed ─► Draining ─► Writing ─► Closing ─► Diskless
//! ```
//!
//! A disk is closed after a flush of everything acknowledged on it: data, then bits, then the superblock.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use tandem_metadata::Flags;

use super::change::DiskFault;
use super::generation::FlagValue;
use super::plan::{Pages, Stage, Then};
use super::volume::IoHold;
use super::{Pending, Resource};
use crate::command::Answer;
use crate::effect::{Effect, Level};
use crate::event::{CommandId, IoError, VolumeNumber};
use crate::generations::Uuids;
use crate::options::OnIoError;
use crate::state::word::{DiskState, State};
use crate::state::{Hardness, StateResult};

/// A detach under way.
#[derive(Debug)]
pub(crate) struct Detach {
    cause: Cause,
    phase: Phase,
    /// Everything acknowledged on the disk is durable: it was flushed behind the last write.
    flushed: bool,
    /// Commands that wait for its end.
    askers: Vec<CommandId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Everybody agreed: the disk works.
    Command,
    /// By force, perhaps because it hangs.
    Force,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The disk is Failed; its deferred effects have not come so far.
    Announced,
    /// I/O in flight ends.
    Draining,
    /// Data, bits and superblock.
    Writing,
    /// The same could not be written: the superblock alone, with the full-sync flag.
    LastWords,
    /// All that was wanted is written; sequences that were begun meanwhile (a link was lost) end.
    Written,
    Closing,
}

impl Detach {
    /// The disk failed by itself.
    pub(crate) fn is_by_error(&self) -> bool {
        self.cause == Cause::Error
    }

    /// Everybody agreed to it, and the disk works.
    pub(crate) fn is_agreed(&self) -> bool {
        self.cause == Cause::Command
    }

    /// The disk works and is open: what was written before can still be flushed.
    pub(crate) fn can_flush(&self) -> bool {
        let open = matches!(
            self.phase,
            Phase::Announced | Phase::Draining | Phase::Writing
        );
        open && !self.is_by_error()
    }

    /// Everything acknowledged on the disk is durable.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed
    }
}

impl Resource {
    /// An I/O of the local disk failed: the policy of `on-io-error` decides (7.8). The caller answers or retries what
    /// it was for.
    pub(crate) fn local_io_error(
        &mut self,
        number: VolumeNumber,
        fault: DiskFault,
        error: IoError,
    ) {
        self.log(Level::Error, Some(number), error.text.clone());
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        // What follows the first error only follows from it.
        volume.disk_error.get_or_insert(error.text);
        let disk = volume.state.disk;
        let policy = volume.options.on_io_error;
        if let Some(backing) = volume.backing.as_mut() {
            backing.meta_failed |= fault == DiskFault::Meta;
            backing.read_failed |= fault == DiskFault::Read;
        }
        if disk <= DiskState::Failed {
            return; // Not attached yet (the attach fails), or on its way out.
        }
        let of_data = matches!(fault, DiskFault::Read | DiskFault::Write);
        if of_data && policy == OnIoError::PassOn && self.passes_on(number, fault) {
            return;
        }
        self.fail_disk(number, Cause::Error);
    }

    /// `on-io-error pass_on`: the request is answered with the error, or by the peer, and the disk stays, unless it lacks a write now that
    /// the good disk of the peer has. A kernel keeps that one, too, as Inconsistent, and takes it for UpToDate again in a verify or as the
    /// source of a resync (state-machine.md 7.8).
    fn passes_on(&mut self, number: VolumeNumber, fault: DiskFault) -> bool {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return true;
        };
        let state = &volume.state;
        if fault == DiskFault::Read || state.disk <= DiskState::Inconsistent {
            return true;
        }
        if state.conn.is_connected() && state.pdsk == DiskState::UpToDate {
            self.tell_that_the_disk_is_let_go(number);
            return false;
        }
        volume.write_failed = true;
        true
    }

    fn tell_that_the_disk_is_let_go(&mut self, number: VolumeNumber) {
        let text = "on-io-error pass_on: the peer's disk has what this one lacks now, so this one is let go";
        self.log(Level::Warn, Some(number), String::from(text));
    }

    /// The peer's disk became UpToDate as the target of a resync from here: one that has failed a write since, which the peer's gets all
    /// the same, goes.
    pub(super) fn let_go_beside_a_good_target(&mut self, number: VolumeNumber) {
        let volume = self.volumes.get(&number);
        let failed = volume
            .is_some_and(|volume| volume.write_failed && volume.state.disk > DiskState::Failed);
        if failed && self.peer_gets_what_failed_here(number) {
            self.tell_that_the_disk_is_let_go(number);
            self.fail_disk(number, Cause::Error);
        }
    }

    fn fail_disk(&mut self, number: VolumeNumber, cause: Cause) -> StateResult {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return StateResult::UnknownError;
        };
        if cause != Cause::Error {
            volume.disk_error = None;
        }
        if volume.detach.is_none() {
            volume.detach = Some(Detach {
                cause,
                phase: Phase::Announced,
                flushed: false,
                askers: Vec::new(),
            });
        }
        self.change_state(
            number,
            |state| state.disk = DiskState::Failed,
            Hardness::Hard,
        )
    }

    /// The disk became Failed by the consent of everyone: `asker` is answered when it is closed.
    pub(super) fn detach_agreed(&mut self, number: VolumeNumber, asker: CommandId) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let detach = volume.detach.get_or_insert(Detach {
            cause: Cause::Command,
            phase: Phase::Announced,
            flushed: false,
            askers: Vec::new(),
        });
        detach.askers.push(asker);
        volume.disk_error = None;
    }

    /// `detach --force`: nobody is asked.
    pub(super) fn detach_by_force(&mut self, number: VolumeNumber) -> StateResult {
        self.fail_disk(number, Cause::Force)
    }

    /// The disk is Failed, the handler (if any) has run: I/O in flight ends.
    pub(super) fn begin_draining(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let detach = volume.detach.get_or_insert(Detach {
            cause: Cause::Command,
            phase: Phase::Announced,
            flushed: false,
            askers: Vec::new(),
        });
        if detach.phase == Phase::Announced {
            detach.phase = Phase::Draining;
        }
    }

    /// The disk became Diskless. If it did so at once (a link that was lost in the handshake about it), its backing
    /// is closed now.
    pub(super) fn disk_released(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.backing.is_some() && volume.detach.is_none() {
            self.begin_draining(number);
        }
    }

    /// Whether an I/O of the volume's disk or metadata is in flight.
    pub(super) fn disk_io_in_flight(&self, number: VolumeNumber) -> bool {
        self.pending
            .values()
            .any(|pending| pending.disk_of() == Some(number))
    }

    /// Detaches (and attaches that failed) go on as far as they can.
    pub(super) fn step_detaches(&mut self) {
        self.step_failed_attaches();
        for number in self.volumes_where(|volume| volume.detach.is_some()) {
            let detach = self.volumes.get(&number).and_then(|at| at.detach.as_ref());
            match detach.map(|detach| detach.phase) {
                Some(phase @ (Phase::Draining | Phase::Written))
                    if !self.disk_io_in_flight(number) =>
                {
                    if phase == Phase::Draining {
                        self.write_last(number);
                    } else {
                        self.close_backing(number);
                    }
                }
                _ => {}
            }
        }
    }

    fn set_detach_phase(&mut self, number: VolumeNumber, phase: Phase) {
        let detach = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.detach.as_mut());
        if let Some(detach) = detach {
            detach.phase = phase;
        }
    }

    fn write_last(&mut self, number: VolumeNumber) {
        self.set_detach_phase(number, Phase::Writing);
        let stages = vec![
            Stage::FlushData,
            Stage::BitmapPages(Pages::AllChanged),
            Stage::FlushMeta,
            Stage::Superblock,
        ];
        self.start_plan(number, stages, Then::Detach);
    }

    /// The last writes ended. What could not be written is said in the superblock, if that still can be.
    pub(super) fn detach_plan_done(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(phase) = volume.detach.as_ref().map(|detach| detach.phase) else {
            return;
        };
        if result.is_err() && phase == Phase::Writing {
            self.set_detach_phase(number, Phase::LastWords);
            let Some(backing) = self
                .volumes
                .get_mut(&number)
                .and_then(|volume| volume.backing.as_mut())
            else {
                return;
            };
            backing.meta_failed = false;
            let stages = vec![
                Stage::Flag(Flags::FULL_SYNC, FlagValue::Set),
                Stage::Superblock,
            ];
            self.start_plan(number, stages, Then::Detach);
            return;
        }
        if let Some(detach) = volume.detach.as_mut() {
            detach.flushed = result.is_ok() && phase == Phase::Writing;
            detach.phase = Phase::Written;
        }
    }

    fn close_backing(&mut self, number: VolumeNumber) {
        self.set_detach_phase(number, Phase::Closing);
        let token = self.token(Pending::Close(number));
        self.effects.push(Effect::CloseBacking {
            token,
            volume: number,
        });
    }

    /// The backing is closed.
    pub(super) fn backing_is_closed(&mut self, number: VolumeNumber) {
        if self.failed_attach_closed(number) {
            return;
        }
        let askers = match self.volumes.get_mut(&number) {
            Some(volume) => volume.detach.take().map(|detach| detach.askers),
            None => return,
        };
        self.forget_disk(number);
        for asker in askers.unwrap_or_default() {
            self.answer(asker, Answer::done());
        }
    }

    /// The volume has no disk any more.
    pub(super) fn forget_disk(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.backing = None;
            volume.generations.uuids = Uuids::default();
            volume.crashed_primary = false;
            volume.io_holds.remove(&IoHold::Detach);
        }
        let diskless = |state: &mut State| state.disk = DiskState::Diskless;
        self.change_state(number, diskless, Hardness::Hard);
        self.settle_generation(number);
        self.log(
            Level::Info,
            Some(number),
            String::from("the disk is closed"),
        );
    }
}
