//! invalidate, invalidate-remote, new-current-uuid (state-machine.md 2.12, 3.10).

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::{AfterPlan, Running};
use crate::activity_log::LogMode;
use crate::command::Answer;
use crate::event::{CommandId, VolumeNumber};
use crate::generations::{ClearBitmap, JUST_CREATED, NewCurrentCase, new_current_case};
use crate::resource::Resource;
use crate::resource::change::Asker;
use crate::resource::plan::{Stage, Then, rewrite_bitmap};
use crate::resource::volume::IoHold;
use crate::state::word::{ConnState, DiskState, Request, Role};
use crate::state::{Failure, Hardness, StateResult};

impl Resource {
    pub(super) fn command_invalidate(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(state) = self.volumes.get(&number).map(|volume| volume.state) else {
            return;
        };
        if matches!(state.disk, DiskState::Diskless | DiskState::Failed) {
            self.answer(id, Answer::failure(Failure::NoDiskConfig));
            return;
        }
        let alone = state.conn == ConnState::StandAlone && state.role == Role::Secondary;
        let (running, wish) = if alone {
            let wish = Request::disk(DiskState::Inconsistent);
            (Running::Rewrite(number), wish)
        } else {
            let wish = Request::conn(ConnState::StartingSyncT);
            (Running::Plain(number), wish)
        };
        self.commands.running.insert(id, running);
        self.request_state(Some(number), wish, Asker::Command(id));
    }

    pub(super) fn command_invalidate_remote(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(state) = self.volumes.get(&number).map(|volume| volume.state) else {
            return;
        };
        if matches!(state.disk, DiskState::Diskless | DiskState::Failed) {
            self.answer(id, Answer::failure(Failure::NoDiskConfig));
            return;
        }
        let alone = state.conn == ConnState::StandAlone && state.role == Role::Primary;
        let (running, wish) = if alone {
            let wish = Request::pdsk(DiskState::Inconsistent);
            (Running::Rewrite(number), wish)
        } else {
            let wish = Request::conn(ConnState::StartingSyncS);
            (Running::Plain(number), wish)
        };
        self.commands.running.insert(id, running);
        self.request_state(Some(number), wish, Asker::Command(id));
    }

    /// Alone: every bit is set and written, with clients held off.
    pub(super) fn rewrite_decided(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        result: StateResult,
    ) {
        if !result.is_success() {
            self.answer(id, Answer::state(result));
            return;
        }
        self.commands.running.insert(id, Running::Elsewhere);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.io_holds.insert(IoHold::Bitmap);
        if let Some(backing) = volume.backing.as_mut() {
            backing.bitmap.set_all();
        }
        let then = Then::Command(AfterPlan::BitmapWritten(id));
        self.start_plan(number, rewrite_bitmap(), then);
    }

    /// The whole bitmap is on disk: with every bit set the activity log need not be written any more.
    pub(super) fn command_bitmap_written(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.io_holds.remove(&IoHold::Bitmap);
        let alone = !volume.state.conn.is_connected();
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if alone && backing.bitmap.is_all_set() && backing.activity_log.mode() == LogMode::Logging {
            let through = backing.activity_log.suspend();
            self.start_committed(number, through);
        }
    }

    pub(super) fn command_new_current_uuid(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        clear_bitmap: bool,
    ) {
        let version = self.connection.version();
        let random = self.draw();
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if !volume.writes_locally() {
            self.answer(id, Answer::failure(Failure::NoDiskConfig));
            return;
        }
        let uuids = volume.generations.uuids;
        let clear = if clear_bitmap {
            ClearBitmap::Yes
        } else {
            ClearBitmap::No
        };
        let Some(case) = new_current_case(&volume.state, &uuids, version, clear) else {
            let answer = Answer::failure(Failure::NeedStandAlone)
                .with_hint(format!("tandem adm disconnect {}", self.name));
            self.answer(id, answer);
            return;
        };
        let role = volume.state.role;
        volume
            .generations
            .new_current_by_command(random, role, case);
        volume.superblock_changed(now);
        volume.generation_pending = true;
        self.commands.running.insert(id, Running::Elsewhere);
        self.log_generations(number, "new data generation by command");
        self.start_plan(number, vec![Stage::Superblock], Then::Generation);
        let stages = if clear_bitmap {
            self.clear_bitmap(number)
        } else {
            vec![Stage::Superblock]
        };
        if case == NewCurrentCase::SkipInitialSync {
            self.skip_initial_sync(number);
        }
        self.start_plan(number, stages, Then::Command(AfterPlan::BitmapWritten(id)));
    }

    fn clear_bitmap(&mut self, number: VolumeNumber) -> Vec<Stage> {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Vec::new();
        };
        volume.io_holds.insert(IoHold::Bitmap);
        let updates = volume.options.al_updates;
        let mut stages = rewrite_bitmap();
        if let Some(backing) = volume.backing.as_mut() {
            if updates {
                // The full bitmap stood in for the log; it does so until the log says everything itself.
                let described = backing.activity_log.resume();
                stages.insert(0, Stage::LogCommitted(described));
            }
            backing.bitmap.clear_all();
        }
        self.write_log(number);
        stages
    }

    /// Step 4 of 3.10: the peer takes over this generation, and both disks are UpToDate.
    fn skip_initial_sync(&mut self, number: VolumeNumber) {
        self.send_uuids_skip_initial_sync(number);
        // A peer that is not fresh itself does not skip.
        let fresh = self
            .volumes
            .get(&number)
            .and_then(|volume| volume.peer.uuids.as_ref())
            .is_some_and(|peer| peer.set.current == JUST_CREATED);
        if let Some(volume) = self.volumes.get_mut(&number) {
            // The peer takes this generation over without a P_UUIDS of its own: a later resync from it ends with these.
            let own = volume.generations.uuids;
            if let Some(uuids) = volume.peer.uuids.as_mut() {
                uuids.set = own;
            }
        }
        let up_to_date = |state: &mut crate::state::State| {
            state.disk = DiskState::UpToDate;
            state.pdsk = DiskState::UpToDate;
        };
        self.change_state(number, up_to_date, Hardness::Soft);
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.skip_untold = fresh;
        }
    }
}
