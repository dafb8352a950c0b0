//! verify and verify-stop (state-machine.md 2.12, 6.10).

use alloc::format;

use super::Running;
use crate::command::Answer;
use crate::event::{CommandId, VolumeNumber};
use crate::resource::Resource;
use crate::resource::change::Asker;
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
            let answer = Answer::state(StateResult::NothingToDo);
            let answer = match self.verify_bounds(number) {
                Some((_, end)) => answer.with_info(format!(
                    "volume {}: an online verify is running already; it ends at sector {end} now",
                    number.0
                )),
                None => answer,
            };
            self.answer(id, answer);
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
        self.commands.running.insert(id, Running::Verify(number));
        let wish = Request::conn(ConnState::VerifyS);
        self.request_state(Some(number), wish, Asker::Command(id));
    }

    /// The peer agreed, or not: what began is told, and what to set where there is no algorithm.
    pub(super) fn verify_decided(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        result: StateResult,
    ) {
        let answer = Answer::state(result);
        let answer = match (result, self.verify_bounds(number)) {
            (StateResult::NoVerifyAlg, _) => answer
                .with_info(
                    "verify-alg (crc32c, sha1, ...) has to be in the net section on both nodes; it is agreed on when they connect",
                )
                .with_hint(format!(
                    "tandem adm disconnect {0} && tandem adm adjust {0}   # once it is in both files; adjust the other node, too",
                    self.name
                )),
            (result, Some((start, end))) if result.is_success() => answer.with_info(format!(
                "volume {}: online verify began, from sector {start} to {end}", number.0
            )),
            (result, None) if result.is_success() => answer.with_info(format!(
                "volume {}: nothing was compared, a disk is missing", number.0
            )),
            _ => answer,
        };
        self.answer(id, answer);
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
