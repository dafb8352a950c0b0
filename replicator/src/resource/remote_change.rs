//! State changes that the peer asks for (state-machine.md 2.6, wire-protocol.md 9).

use alloc::format;

use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{StateChange, StateChangeReply};

use super::Resource;
use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::state::word::{ConnState, Request, State, WordError};
use crate::state::{Hardness, StateResult};

impl Resource {
    /// P_STATE_CHG_REQ: judged as a soft local request, and answered.
    pub(crate) fn on_state_change_request(&mut self, number: VolumeNumber, change: &StateChange) {
        let wish = Request::from_peer(change.mask.0, change.value.0);
        let result = match self.agreeable(Some(number), wish) {
            Ok(wish) => {
                self.change_state(number, |state| *state = wish.apply(*state), Hardness::Soft)
            }
            Err(result) => result,
        };
        let code = result.number();
        self.send(
            Some(number),
            Packet::StateChgReply(StateChangeReply { code }),
        );
    }

    /// P_CONN_ST_CHG_REQ: the same for all volumes; in practice the peer's wish to disconnect.
    pub(crate) fn on_connection_change_request(&mut self, change: &StateChange) {
        let wish = Request::from_peer(change.mask.0, change.value.0);
        let result = match self.agreeable(None, wish) {
            Ok(wish) => {
                let apply =
                    |state: &mut State| *state = wish.without_raising_disk(state).apply(*state);
                self.change_connection(apply, Hardness::Soft)
            }
            Err(result) => result,
        };
        let code = result.number();
        self.send(None, Packet::ConnStChgReply(StateChangeReply { code }));
    }

    /// Two nodes that ask each other: the request of the one with the resolve-conflicts flag wins.
    fn agreeable(
        &mut self,
        volume: Option<VolumeNumber>,
        wish: Result<Request, WordError>,
    ) -> Result<Request, StateResult> {
        let wish = wish.map_err(|error| {
            let text = format!("the peer asked for a state change that means nothing: {error}");
            self.log(Level::Warn, volume, text);
            StateResult::UnknownError
        })?;
        let verify = [ConnState::VerifyS, ConnState::VerifyT];
        let wishes_verify = wish.conn.is_some_and(|conn| verify.contains(&conn));
        if wishes_verify && volume.is_some_and(|number| !self.may_verify(number)) {
            return Err(StateResult::NoUpToDateDisk);
        }
        let begins = [
            ConnState::StartingSyncS,
            ConnState::StartingSyncT,
            ConnState::VerifyS,
            ConnState::VerifyT,
        ];
        let copies_or_compares = wish.conn.is_some_and(|conn| begins.contains(&conn));
        if copies_or_compares && volume.is_some_and(|number| self.is_resizing(number)) {
            return Err(StateResult::InTransientState);
        }
        // What the disk is, its attach finds out.
        if wish.disk.is_some() && volume.is_some_and(|number| self.is_attaching(number)) {
            return Err(StateResult::InTransientState);
        }
        if self.connection.resolve_conflicts && self.awaits_consent() {
            return Err(StateResult::ConcurrentStateChange);
        }
        Ok(wish)
    }
}
