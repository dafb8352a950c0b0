//! verify and verify-stop (state-machine.md 2.12, 6.10).

use alloc::format;

use crate::command::Answer;
use crate::event::{CommandId, VolumeNumber};
use crate::resource::Resource;
use crate::resource::verify::Wish;
use crate::state::word::{ConnState, DiskState, Request};
use crate::state::{Failure, StateResult};

/// Sectors of a block of 4 KiB.
const BLOCK_SECTORS: u64 = 8;

impl Resource {
    /// A verify is judged by the rules where a disk is missing; two disks have to be UpToDate both. (A kernel's rules would
    /// call an Inconsistent one UpToDate: sanitise rule S6.)
    pub(crate) fn may_verify(&self, number: VolumeNumber) -> bool {
        self.volumes.get(&number).is_some_and(|volume| {
            let state = &volume.state;
            let missing = state.disk <= DiskState::Failed || state.pdsk <= DiskState::Failed;
            missing || !state.conn.is_connected() || state.is_up_to_date_pair()
        })
    }

    /// A verify can end before the end of the device: the peer is told by a P_STATE that version 100 does not have.
    fn verify_can_stop(&self) -> bool {
        let version = self.connection.version();
        version >= 97 && version != 100
    }

    pub(super) fn command_verify(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        start: Option<u64>,
        stop: Option<u64>,
    ) {
        let Some(state) = self.volumes.get(&number).map(|volume| volume.state) else {
            return;
        };
        if stop.is_some() && !self.verify_can_stop() {
            let info = "with protocol version 100 a verify goes to the end of the device";
            let answer = Answer::state(StateResult::NotSupported).with_info(info);
            self.answer(id, answer);
            return;
        }
        let stop = stop.map(|sector| sector.div_ceil(BLOCK_SECTORS));
        if state.conn == ConnState::VerifyS {
            self.move_verify_stop(number, stop);
            self.answer(id, Answer::state(StateResult::NothingToDo));
            return;
        }
        if !state.conn.is_resync() && !self.may_verify(number) {
            let info = "a verify compares two UpToDate disks";
            let answer = Answer::state(StateResult::NoUpToDateDisk).with_info(info);
            self.answer(id, answer);
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            let start = start.map(|sector| sector / BLOCK_SECTORS);
            volume.verify_wish = Some(Wish { start, stop });
        }
        self.plain(id, number, Request::conn(ConnState::VerifyS));
    }

    pub(super) fn command_verify_stop(&mut self, id: CommandId, number: VolumeNumber) {
        let conn = self.volumes.get(&number).map(|volume| volume.state.conn);
        let answer = match conn {
            Some(ConnState::VerifyS) if !self.verify_can_stop() => {
                let info = "with protocol version 100 a verify goes to the end of the device";
                Answer::state(StateResult::NotSupported).with_info(info)
            }
            Some(ConnState::VerifyS) => {
                self.stop_verify(number);
                Answer::done()
            }
            Some(ConnState::VerifyT) => Answer::failure(Failure::InvalidRequest)
                .with_info("the peer started this verify")
                .with_hint(format!(
                    "tandem adm verify-stop {} (on the peer)",
                    self.name
                )),
            _ => Answer::state(StateResult::NothingToDo),
        };
        self.answer(id, answer);
    }
}
