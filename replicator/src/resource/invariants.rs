//! What must hold after every event (state-machine.md 12.1); the simulator asks.

use alloc::format;
use alloc::string::String;

use super::Resource;
use super::dialling::Phase;
use super::volume::Volume;
use crate::state::sanitise;
use crate::state::word::{ConnState, DiskState, Role};

impl Resource {
    /// Tests the invariants of bitmaps and activity logs, in time for all of them.
    ///
    /// # Errors
    /// What does not hold, in words: a bug of ours.
    pub fn check_structures(&self) -> Result<(), String> {
        for volume in self.volumes.values() {
            volume
                .check_resync()
                .map_err(|what| format!("volume {}: {what}", volume.number.0))?;
            let Some(backing) = volume.backing.as_ref() else {
                continue;
            };
            let bitmap = backing.bitmap.check_invariants();
            bitmap
                .and_then(|()| backing.activity_log.check_invariants())
                .map_err(|what| format!("volume {}: {what}", volume.number.0))?;
        }
        Ok(())
    }

    /// Tests the invariants of the states, in time for the number of volumes ([`Resource::check_structures`] tests the rest).
    ///
    /// # Errors
    /// What does not hold, in words: a bug of ours.
    pub fn check_invariants(&self) -> Result<(), String> {
        if !self.deferred.is_empty() {
            return Err(String::from("deferred work is left over"));
        }
        self.check_link().map_err(String::from)?;
        for volume in self.volumes.values() {
            self.check_volume(volume)
                .map_err(|what| format!("volume {}: {what}", volume.number.0))?;
        }
        Ok(())
    }

    fn check_link(&self) -> Result<(), &'static str> {
        let connection = &self.connection;
        let linked = connection.link.is_some();
        if linked != (connection.cstate == ConnState::WFReportParams) {
            return Err("a link exists in WFReportParams and above, and nowhere else");
        }
        if linked != matches!(connection.dialling.phase, Phase::Linked) {
            return Err("the phase of dialling does not tell that there is (or is no) link");
        }
        if connection.state_sent && !linked {
            return Err("a handshake is under way without a link");
        }
        let idle = matches!(connection.dialling.phase, Phase::Idle);
        if idle != (connection.cstate == ConnState::StandAlone) {
            return Err("a node looks for its peer exactly unless it is StandAlone");
        }
        if linked && (connection.net.is_none() || connection.agreed.is_none()) {
            return Err("a link without options or without an agreement");
        }
        Ok(())
    }

    fn check_volume(&self, volume: &Volume) -> Result<(), String> {
        let state = &volume.state;
        let wrong = |what: &str| Err(format!("{what}: {}", state.dump()));
        let context = self.rule_context(volume.number);
        if sanitise(state, *state, &context) != *state {
            return wrong("the state is not its own sanitised form");
        }
        let cstate = self.connection.cstate;
        if state.conn.min(ConnState::WFReportParams) != cstate {
            return wrong(&format!("conn does not fit the connection's {cstate}"));
        }
        if state.conn.is_connected() && self.connection.link.is_none() {
            return wrong("connected without a link");
        }
        let busy = volume.attach.is_some() || volume.detach.is_some();
        if (state.disk > DiskState::Diskless) != volume.backing.is_some() && !busy {
            return wrong("disk state and backing differ");
        }
        let role_bit = volume.generations.uuids.current & 1 == 1;
        let settled = state.disk >= DiskState::Inconsistent && !self.changes_role(volume.number);
        if settled && !busy && role_bit != (state.role == Role::Primary) {
            return wrong("bit 0 of the current UUID does not fit the role");
        }
        let alone = state.role == Role::Primary
            && state.disk == DiskState::UpToDate
            && state.conn < ConnState::Connected
            && settled
            && !busy;
        if alone && volume.generations.uuids.bitmap == 0 {
            return wrong("a Primary alone has started no generation");
        }
        Ok(())
    }
}
