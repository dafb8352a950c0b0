//! Effects of state changes: those that are atomic with the change (state-machine.md 2.8), and the "worker" that
//! carries out the deferred ones in order (2.9, 2.10).

use alloc::collections::VecDeque;
use alloc::vec;

use super::change::{Deferred, Receiver};
use super::{Resource, handlers, plan};
use crate::effect::{Effect, Notification};
use crate::event::VolumeNumber;
use crate::generations::UUID_FLAG_CRASHED_PRIMARY;
use crate::options::OnIoError;
use crate::planted::Planted;
use crate::state::effects::ConnectionEffect;
use crate::state::word::{ConnState, DiskState, Role, State};
use crate::state::{self, Immediate};

impl Resource {
    /// One effect of 2.8.
    pub(super) fn immediate(
        &mut self,
        number: VolumeNumber,
        effect: Immediate,
        old: &State,
        new: &State,
    ) {
        match effect {
            Immediate::CloseEpoch => self.replication_changed(),
            Immediate::HandshakeDone => self.connection.state_sent = false,
            Immediate::VerifyEnded => self.verify_ended(number),
            Immediate::VerifyStarted => self.verify_started(number, new.conn),
            Immediate::ResyncResumed => self.resync_resumed(number),
            Immediate::ResyncPaused => self.resync_paused(number),
            Immediate::UpdateDiskFlags => self.update_disk_flags(number, old, new),
            Immediate::ExposeCurrent => {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.generations.expose_own();
                }
            }
            Immediate::ConsiderResync => {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.consider_resync = true;
                }
            }
            Immediate::StopReceiver => self.tell_receiver(Receiver::Stop),
            Immediate::RestartReceiver => self.tell_receiver(Receiver::Restart),
            Immediate::Connected => {
                self.connection.connect_count += 1;
                self.resume_activity_log(number);
            }
            // disk-timeout is not offered, and ko-count counts from the time the link was made (liveness).
            Immediate::NoteAttachTime | Immediate::NoteConnectTime => {}
        }
    }

    fn tell_receiver(&mut self, what: Receiver) {
        self.deferred.push_back(Deferred::Receiver(what));
    }

    /// Carries out deferred work in order until none is left.
    pub(super) fn run_deferred(&mut self) {
        while let Some(work) = self.deferred.pop_front() {
            match work {
                Deferred::State {
                    volume,
                    effect,
                    new,
                } => self.deferred_effect(volume, effect, &new),
                Deferred::Connection(effect) => self.connection_effect(effect),
                Deferred::Receiver(Receiver::Stop) => self.receiver_stops(),
                Deferred::Receiver(Receiver::Restart) => self.receiver_restarts(),
                Deferred::PeerDiskChanged(volume) => self.peer_disk_changed(volume),
                Deferred::IntervalsReady(volume, ready) => self.intervals_ready(volume, ready),
                Deferred::FailureTold(volume) => self.failure_told(volume),
                Deferred::LossUnconfirmed(volume) => self.loss_stays_unconfirmed(volume),
                Deferred::DiskSaysIt(volume) => {
                    self.start_unsaid(volume);
                    self.recheck_writes(volume);
                    self.recheck_flushes();
                }
                Deferred::Branch(volume) => self.generation_of_the_only_disk(volume),
                Deferred::DiskGone(volume) => {
                    self.disk_gone(volume);
                    self.resync_disk_gone(volume);
                }
                Deferred::Demoted(volume) => {
                    let serve = Notification::Serve {
                        volume,
                        bytes: None,
                    };
                    self.effects.push(Effect::Notify(serve));
                }
                Deferred::ReleasePrimary(volume) => {
                    let mut stages = plan::release_primary();
                    if self.planted(Planted::DemoteWithoutFlush) {
                        stages.remove(0);
                    }
                    if self.planted(Planted::ReleaseMarkBeforeBits) {
                        stages.rotate_left(3);
                    }
                    self.start_plan(volume, stages, plan::Then::Nothing);
                }
                Deferred::PlanDone(volume, then, result) => self.plan_done(volume, then, result),
            }
        }
    }

    /// The application of a Primary without a disk sees the peer's data from now on, whichever of the two came first: the loss of the
    /// own disk, the promotion, or the P_UUIDS that told of the peer's generation (3.6).
    pub(super) fn expose_peer_data(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let state = volume.state;
        if state.role != Role::Primary || state.disk == DiskState::UpToDate {
            volume.shown_from_peer = None;
        } else if let Some(peer) = &volume.peer.uuids
            && state.conn.is_connected()
            && state.pdsk == DiskState::UpToDate
        {
            volume.generations.expose_peer(&state, &peer.set);
            let has_disk = state.disk >= DiskState::Inconsistent;
            volume.shown_from_peer = has_disk.then_some(peer.set.current);
        }
    }

    fn deferred_effect(&mut self, number: VolumeNumber, effect: state::Deferred, new: &State) {
        if let Some(stalled) = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.stalled.as_mut())
        {
            stalled.push_back(Deferred::State {
                volume: number,
                effect,
                new: *new,
            });
            return;
        }
        match effect {
            state::Deferred::Notify => self.status_changed = true,
            state::Deferred::ClearCrashedPrimary => self.clear_crashed_primary(number),
            state::Deferred::HandlerPriOnInconDegr => {
                self.run_handler("pri-on-incon-degr", Some(number), handlers::Then::Nothing);
            }
            // Suspension for want of data and for fencing cannot be configured: nothing was kept to be sent again.
            state::Deferred::ResendAndClearSuspNod
            | state::Deferred::RestartAndClearSuspNod
            | state::Deferred::ResendAndClearSuspFen => {}
            state::Deferred::SendSyncUuid => self.send_sync_uuid(number),
            state::Deferred::GreetPeerDisk => {
                self.resync_reset_counters(number);
                self.send_uuids(number);
                self.send_state(number);
            }
            state::Deferred::SendBitmap => {
                let waits = |state: &State| state.conn == ConnState::WFBitMapS;
                if self.volumes.get(&number).is_some_and(|at| waits(&at.state)) {
                    self.send_bitmap(number);
                }
            }
            // What was sent before a suspension is never sent again, so the peer misses it for good: the generation
            // starts at once, whether or not clients are told yet.
            state::Deferred::NewCurrentUuid | state::Deferred::NewCurrentPending => {
                self.generation_after_loss(number);
            }
            state::Deferred::WriteBitmap => {
                let stages = vec![plan::Stage::BitmapPages(plan::Pages::AllChanged)];
                self.start_plan(number, stages, plan::Then::Nothing);
            }
            state::Deferred::OfferDisk => self.start_late_attach(number),
            state::Deferred::SendState => self.send_state_snapshot(number, new),
            // Dependencies between resources are the node's: it follows the status.
            state::Deferred::PauseDependents | state::Deferred::RecheckDependents => {
                self.status_changed = true;
            }
            state::Deferred::StartFullSync => self.start_full_sync(number),
            state::Deferred::DiskFailed => self.disk_failed(number),
            state::Deferred::DiskReleased => self.disk_released(number),
            state::Deferred::ResyncGrownArea => {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.grew_while_detached = false;
                }
                if new.conn == ConnState::Connected {
                    self.resync_grown_area(number);
                }
            }
            state::Deferred::WriteSuperblock => self.write_dirty_superblock(number),
        }
    }

    fn connection_effect(&mut self, effect: ConnectionEffect) {
        match effect {
            ConnectionEffect::StartReceiver => self.receiver_starts(),
            ConnectionEffect::ForgetNetOptions => self.connection.net = None,
            ConnectionEffect::ResolveFencing => {}
        }
    }

    /// 2.9 no. 2. The flags were already computed without it (3.7: it may be cleared at once).
    fn clear_crashed_primary(&mut self, number: VolumeNumber) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if core::mem::take(&mut volume.crashed_primary) {
            volume.superblock_changed(now);
        }
        if let Some(uuids) = volume.peer.uuids.as_mut() {
            uuids.flags &= !UUID_FLAG_CRASHED_PRIMARY;
        }
    }

    /// 2.9 no. 20: the handler runs before the peer is told anything; the volume's effects wait for it.
    fn disk_failed(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let by_error = volume
            .detach
            .as_ref()
            .is_some_and(super::detach::Detach::is_by_error);
        if by_error && volume.options.on_io_error == OnIoError::CallLocalIoError {
            volume.stalled = Some(VecDeque::new());
            let then = handlers::Then::LocalIoError(number);
            self.run_handler("local-io-error", Some(number), then);
        } else {
            self.begin_draining(number);
        }
    }

    /// The handler local-io-error ended.
    pub(super) fn local_io_error_handled(&mut self, number: VolumeNumber) {
        let stalled = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.stalled.take());
        self.begin_draining(number);
        self.deferred.push_front(Deferred::FailureTold(number));
        for work in stalled.unwrap_or_default().into_iter().rev() {
            self.deferred.push_front(work);
        }
    }
}
