//! The end of a resync (state-machine.md 3.5, 6.1 steps 8 to 10, 6.4; wire-protocol.md 6.6).
//!
//! The target ends it. It tells the source only when all blocks are durable, when a ping has come back behind its last
//! acknowledgement, and when its generations and flags are durable.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use tandem_metadata::Flags;

use super::{AfterPlan, Part, Phase, Resync};
use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::planted::Planted;
use crate::resource::Resource;
use crate::resource::generation::FlagValue;
use crate::resource::handlers;
use crate::resource::plan::{Stage, Then};
use crate::resource::volume::PeerUuids;
use crate::state::Hardness;
use crate::state::word::{ConnState, DiskState};
use crate::time::Time;

/// How often, and after how long, a kernel is told again that its target is done.
const REPEATS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// P_STATE is sent again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat {
    at: Time,
    count: usize,
}

impl Repeat {
    pub(super) fn at(&self) -> Time {
        self.at
    }
}

impl Resource {
    /// Everything is written and flushed. Acknowledgements are on the meta socket: when a ping that follows them is
    /// answered, the source has handled them.
    pub(super) fn ping_before_end(&mut self, number: VolumeNumber) {
        self.log(
            Level::Debug,
            Some(number),
            String::from("resync: all is written"),
        );
        let ping = self.ping_now();
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        if let Some(target) = resync.and_then(Resync::target) {
            target.ping = ping;
        }
    }

    /// A ping was answered.
    pub(crate) fn resync_ping_answered(&mut self) {
        let answered = self.pings_answered();
        for number in self.volume_numbers() {
            let resync = self.volumes.get(&number).and_then(|at| at.resync.as_ref());
            let pinging = resync.is_some_and(|resync| match &resync.role {
                Part::Target(target) => resync.phase == Phase::Pinging && target.ping <= answered,
                Part::Source(_) => false,
            });
            if pinging {
                self.end_target(number);
            }
        }
    }

    fn end_target(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let left = volume.bits_set();
        let role = volume.state.role;
        let peer = volume.peer.uuids;
        let Some(resync) = volume.resync.as_mut() else {
            return;
        };
        let run = resync.run;
        if left > resync.failed {
            // A write failed meanwhile.
            resync.phase = Phase::Running;
            self.check_end(number);
            return;
        }
        resync.phase = Phase::Finishing;
        if left == 0 {
            let Some(peer) = peer else {
                self.link_lost(
                    ConnState::ProtocolError,
                    "the source never told its data generations",
                );
                return;
            };
            volume.generations.finish_as_target(&peer.set, role);
            volume.set_disk_flag(Flags::CONSISTENT, FlagValue::Set);
            volume.set_disk_flag(Flags::WAS_UP_TO_DATE, FlagValue::Set);
        }
        self.write_superblock_soon(number);
        let then = Then::Resync(AfterPlan::TargetFinished(run));
        self.start_plan(number, vec![Stage::Superblock], then);
    }

    /// The generations are durable: this disk is as good as the source's.
    pub(super) fn finish_target(&mut self, number: VolumeNumber) {
        let runs = self.volumes.get(&number).is_some_and(|volume| {
            matches!(
                volume.state.conn,
                ConnState::SyncTarget | ConnState::PausedSyncT
            )
        });
        if !runs {
            return;
        }
        let complete = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.bits_set() == 0);
        self.log_end(number);
        if complete {
            self.share_generations(number);
        }
        self.drop_resync(number);
        let disk = if complete {
            DiskState::UpToDate
        } else {
            DiskState::Inconsistent
        };
        self.change_state(
            number,
            |state| {
                state.conn = ConnState::Connected;
                state.disk = disk;
                state.pdsk = DiskState::UpToDate;
            },
            Hardness::Hard,
        );
        self.log_generations(number, "resync ended as target");
        self.run_handler("after-resync-target", Some(number), handlers::Then::Nothing);
        let kernel = self.connection.agreed.is_some_and(|agreed| !agreed.tandem);
        let first = self.now + REPEATS[0];
        if let Some(volume) = self.volumes.get_mut(&number).filter(|_| kernel) {
            volume.sync_io.repeat = Some(Repeat {
                at: first,
                count: 0,
            });
        }
    }

    /// The peer's generations are this node's from now on (3.5).
    fn share_generations(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            let flags = volume.peer.uuids.map_or(0, |peer| peer.flags);
            volume.peer.uuids = Some(PeerUuids {
                set: volume.generations.uuids,
                bits: 0,
                flags,
            });
        }
    }

    /// The source learned that its target is done.
    pub(super) fn finish_source(&mut self, number: VolumeNumber, disk: DiskState) {
        self.log_end(number);
        self.drop_resync(number);
        if disk == DiskState::UpToDate {
            let keeps = self.planted(Planted::KeepBitmapGeneration);
            if let Some(volume) = self.volumes.get_mut(&number).filter(|_| !keeps) {
                volume.generations.finish_as_source();
            }
            self.write_superblock_soon(number);
            self.share_generations(number);
        }
        self.change_state(
            number,
            |state| {
                state.conn = ConnState::Connected;
                state.pdsk = disk;
            },
            Hardness::Hard,
        );
        self.log_generations(number, "resync ended as source");
        if disk == DiskState::UpToDate {
            self.let_go_beside_a_good_target(number);
        }
    }

    fn log_end(&mut self, number: VolumeNumber) {
        let now = self.now;
        let Some(resync) = self.volumes.get(&number).and_then(|at| at.resync.as_ref()) else {
            return;
        };
        let spent = now
            .since(resync.progress.started())
            .saturating_sub(resync.paused);
        let (total, seconds) = (resync.progress.total(), spent.as_secs().max(1));
        let side = match resync.role {
            Part::Source(_) => "source",
            Part::Target(_) => "target",
        };
        let mut text = format!(
            "resync done as {side} (total {seconds} sec; {} K/sec)",
            total * 4 / seconds
        );
        let same = match &resync.role {
            Part::Target(target) => target.same,
            Part::Source(source) => source.same,
        };
        if same > 0 {
            text.push_str(&format!(
                "; {same} of {total} blocks had equal checksums and were not sent"
            ));
        }
        if resync.failed > 0 {
            text.push_str(&format!(
                "; {} blocks failed and stay out of sync",
                resync.failed
            ));
        }
        self.log(Level::Info, Some(number), text);
    }

    /// P_STATE once more, for a kernel that ignored the first because bits were left on its side.
    pub(super) fn repeat_end(&mut self, number: VolumeNumber) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(repeat) = volume.sync_io.repeat.filter(|repeat| repeat.at <= now) else {
            return;
        };
        let next = REPEATS.get(repeat.count + 1);
        volume.sync_io.repeat = next.map(|after| Repeat {
            at: now + *after,
            count: repeat.count + 1,
        });
        if volume.state.conn == ConnState::Connected {
            self.send_state(number);
        } else {
            volume.sync_io.repeat = None;
        }
    }
}
