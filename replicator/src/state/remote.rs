//! Changes that need the peer's consent, and the peer's requests seen from here (docs/spec/state-machine.md section
//! 2.6; docs/spec/wire-protocol.md sections 9.1 to 9.3).

use super::word::{ConnState, DiskState, Request, Role, State, WordError};

/// Why a change has to be agreed to by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterWide {
    /// Own role becomes Primary.
    Promote,
    /// Full sync with this side as target.
    FullSyncTarget,
    /// Full sync with this side as source.
    FullSyncSource,
    /// Graceful detach.
    Detach,
    /// Graceful disconnect; asked once for the whole connection (P_CONN_ST_CHG_REQ from protocol 100 on).
    Disconnect,
    /// Online verify.
    Verify,
    /// A minor is removed from a live connection.
    RemoveMinor,
}

/// Whether a **soft** change from `old` to the sanitised `new` needs the peer. Hard changes never do.
pub fn cluster_wide(old: &State, new: &State) -> Option<ClusterWide> {
    use ConnState as C;
    if old.conn < C::Connected {
        return None;
    }
    if old.conn != new.conn {
        match new.conn {
            C::StartingSyncT => return Some(ClusterWide::FullSyncTarget),
            C::StartingSyncS => return Some(ClusterWide::FullSyncSource),
            C::Disconnecting => return Some(ClusterWide::Disconnect),
            C::VerifyS if old.conn == C::Connected => return Some(ClusterWide::Verify),
            C::WFReportParams if old.conn == C::Connected => return Some(ClusterWide::RemoveMinor),
            _ => {}
        }
    }
    if new.conn < C::Connected {
        return None;
    }
    if old.role != Role::Primary && new.role == Role::Primary {
        return Some(ClusterWide::Promote);
    }
    if old.disk != DiskState::Failed && new.disk == DiskState::Failed {
        return Some(ClusterWide::Detach);
    }
    None
}

impl Request {
    /// A request of the peer, from the point of view of this node: role and peer, disk and pdsk are swapped, and the
    /// connection state is that of the other side. Connection states that nobody can ask for are errors, and so are
    /// flags, half masks and meaningless numbers: answer them with [`super::StateResult::UnknownError`].
    pub fn from_peer(mask: u32, value: u32) -> Result<Request, WordError> {
        let sent = Request::from_wire(mask, value)?;
        Ok(Request {
            role: sent.peer,
            peer: sent.role,
            conn: sent.conn.map(seen_from_here).transpose()?,
            disk: sent.pdsk,
            pdsk: sent.disk,
            ..Request::default()
        })
    }

    /// The same for the peer's wish to disconnect: a requested Outdated that would raise a lower disk state is dropped,
    /// so that an Inconsistent or Diskless volume stays what it is instead of refusing.
    pub fn without_raising_disk(self, state: &State) -> Request {
        let raises = self.disk == Some(DiskState::Outdated) && state.disk < DiskState::Outdated;
        if raises {
            Request { disk: None, ..self }
        } else {
            self
        }
    }
}

fn seen_from_here(conn: ConnState) -> Result<ConnState, WordError> {
    match conn {
        ConnState::Disconnecting => Ok(ConnState::TearDown),
        ConnState::WFReportParams => Ok(ConnState::WFReportParams),
        ConnState::Connected => Ok(ConnState::Connected),
        ConnState::StartingSyncS => Ok(ConnState::StartingSyncT),
        ConnState::StartingSyncT => Ok(ConnState::StartingSyncS),
        ConnState::VerifyS => Ok(ConnState::VerifyT),
        other => Err(WordError::RequestedConn(other)),
    }
}
