//! The disk of a Primary is lost beside a peer that has good data: when does the peer know, whatever happens to the two nodes?
//!
//! The peer is told with P_STATE and starts a data generation (N1 of state-machine.md 3.3), which it confirms with P_UUIDS. Until then
//! the disk that was lost has the same generation as the peer's, and after a restart of both nodes it would pass for current: no write
//! that this disk lacks is answered, and no flush that it did not take part in.
//!
//! ```text
//!  disk lost ─► P_STATE ─► (peer: generation on its disk) ─► P_UUIDS ─► answers
//!      └──────────── link or peer's disk lost ─────────────────────► errors
//! ```
//!
//! A disk that is lost when there is no good peer any more is told to nobody: what it lacks is answered with an error at once.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use tandem_metadata::Flags;

use super::Resource;
use super::change::Deferred;
use super::volume::Backing;
use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::generations::{Uuids, masked};
use crate::state::word::{ConnState, DiskState, Role, State};
use crate::time::Time;

/// After this a peer that is no Tandem is left, since nothing binds it to confirm; of another one the log says what is waited for.
const PATIENCE: Duration = Duration::from_secs(6);

/// A loss that the peer has not confirmed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LostDisk {
    /// The generation of the disk.
    generation: u64,
    /// Since when the peer could have known.
    since: Time,
    /// The log says that the peer takes its time.
    logged: bool,
}

impl LostDisk {
    /// These are the slots of a node that has gone on without that disk.
    fn is_left_behind_by(&self, peer: &Uuids) -> bool {
        let is_it = |uuid: &u64| masked(*uuid) == masked(self.generation);
        !is_it(&peer.current) && (is_it(&peer.bitmap) || peer.history.iter().any(is_it))
    }
}

impl Resource {
    /// Looks whether a change of state is the loss of this disk, or its return.
    pub(super) fn watch_for_loss(&mut self, number: VolumeNumber, old: &State, new: &State) {
        let since = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let taken_part = |state: &State| state.disk >= DiskState::Inconsistent;
        // It would say so after a restart, whatever it was in memory.
        let says_good = |backing: &Backing| {
            let flags = Flags::CONSISTENT | Flags::WAS_UP_TO_DATE;
            backing.flags_on_disk.contains(flags)
        };
        let good = volume.backing.as_ref().is_some_and(says_good);
        let lost = taken_part(old) && !taken_part(new) && good;
        let beside = new.conn.is_connected() && new.pdsk == DiskState::UpToDate;
        if lost && beside && new.role == Role::Primary {
            volume.lost_disk = Some(LostDisk {
                generation: volume.generations.uuids.current,
                since,
                logged: false,
            });
            // A detach that both agreed to: the peer may have been faster than its answer.
            self.peer_told_generation(number);
        } else if lost && new.role == Role::Primary {
            // The peer left before, or its disk did: what this disk lacks now was written there in a generation that this one has left
            // behind.
            self.fail_unconfirmed(&[number]);
        } else if volume.lost_disk.is_some() && beside && new.disk == DiskState::Inconsistent {
            // The target of that peer: what waits goes on waiting until this disk says so itself (`Volume::says_too_much`).
            volume.lost_disk = None;
        } else if volume.lost_disk.is_some() && (taken_part(new) || !beside) {
            // The peer has no good disk either, or this one is good: the peer's copy of what waits may be the one that is lost.
            self.deferred.push_back(Deferred::LossUnconfirmed(number));
        }
    }

    /// Whether what the own disk lacks may not be answered: a restart could bring that disk back as good.
    pub(crate) fn loss_is_unconfirmed(&self, number: VolumeNumber) -> bool {
        let volume = self.volumes.get(&number);
        volume.is_some_and(|volume| volume.lost_disk.is_some() || volume.says_too_much())
    }

    /// P_UUIDS came: perhaps the confirmation.
    pub(super) fn peer_told_generation(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(peer) = volume.peer.uuids else {
            return;
        };
        // What answers an offered disk may tell of a generation that is not on the peer's disk yet.
        if volume.state.disk == DiskState::Negotiating {
            return;
        }
        let confirmed = volume
            .lost_disk
            .take_if(|lost| lost.is_left_behind_by(&peer.set));
        if confirmed.is_some() {
            self.recheck_writes(number);
            self.recheck_flushes();
        }
    }

    /// The handler that comes before the message to the peer has ended.
    pub(super) fn loss_is_told(&mut self, number: VolumeNumber) {
        let since = self.now;
        let volume = self.volumes.get_mut(&number);
        if let Some(lost) = volume.and_then(|volume| volume.lost_disk.as_mut()) {
            lost.since = since;
        }
    }

    /// The link is lost: nobody will confirm it. Returns the volumes whose peer may not know.
    pub(super) fn losses_without_peer(&mut self) -> Vec<VolumeNumber> {
        let volumes = self.volumes.values_mut();
        volumes
            .filter_map(|volume| volume.lost_disk.take().map(|_| volume.number))
            .collect()
    }

    /// What waited for the confirmation of this volume's peer is answered with an error.
    pub(super) fn loss_stays_unconfirmed(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.lost_disk.take().is_none() {
            return; // It was confirmed just before.
        }
        self.fail_unconfirmed(&[number]);
        self.fail_unconfirmed_flushes(&[number]);
        self.recheck_writes(number);
        self.recheck_flushes();
    }

    /// When a peer has had its time.
    pub(super) fn loss_deadline(&self) -> Time {
        let lost = self.volumes.values().filter_map(|volume| volume.lost_disk);
        let silent = lost.filter(|lost| !lost.logged);
        silent
            .map(|lost| lost.since + PATIENCE)
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// A kernel that does not confirm is left. A Tandem will, as soon as its disk has it: a disk that hangs is for a person to judge.
    pub(super) fn tick_losses(&mut self) {
        if self.loss_deadline() > self.now {
            return;
        }
        if self.connection.agreed.is_some_and(|agreed| !agreed.tandem) {
            let text = "the peer did not tell in time that it goes on without this disk";
            self.link_lost(ConnState::NetworkFailure, text);
            return;
        }
        let now = self.now;
        let mut slow = Vec::new();
        for volume in self.volumes.values_mut() {
            if let Some(lost) = volume
                .lost_disk
                .as_mut()
                .filter(|lost| lost.since + PATIENCE <= now)
            {
                lost.logged = true;
                slow.push(volume.number);
            }
        }
        for number in slow {
            let text = "writes wait until the peer has stored on its disk that this node's disk is lost; if the peer's disk hangs, \
                        `disconnect --force` ends the wait: what waits is then answered with an error";
            self.log(Level::Warn, Some(number), String::from(text));
        }
    }
}
