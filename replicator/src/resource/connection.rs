//! The connection to the peer: its state, options, and what both sides agreed on. The sockets are in `link`.

use tandem_protocol::features::{Features, Versions};

use super::{dialling, link, liveness, trouble};
use crate::options::NetOptions;
use crate::receive_epochs::ReceiveEpochs;
use crate::state::word::ConnState;
use crate::time::Time;
use crate::transfer_log::{EPOCH_WRITES_DEFAULT, Epoch, SendEpochs};

/// The one connection of a resource.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Its state, at most WFReportParams: above that each volume has its own. Changed only by `change_connection`.
    pub(crate) cstate: ConnState,
    /// Options of the `net` section, from `connect` until StandAlone.
    pub(crate) net: Option<NetOptions>,
    /// What was agreed on, while there is a link (its version stays for the rules).
    pub(crate) agreed: Option<Agreed>,
    /// The two sockets, once first packets, features and authentication are through.
    pub(crate) link: Option<link::Link>,
    /// Connections made so far: names the link that a request of the peer came on.
    pub(crate) count: u64,
    /// This node accepted the socket on which InitialMeta arrived: its state changes win over the peer's.
    pub(crate) resolve_conflicts: bool,
    /// The handshake packets of the volumes were sent, and some volume is still in WFReportParams (0.3).
    pub(crate) state_sent: bool,
    /// How often a volume became Connected.
    pub(crate) connect_count: u64,
    /// `connect --discard-my-data`: armed for the next handshake.
    pub(crate) discard_my_data: bool,
    /// `connect --tentative`: find out what a connection would do, then end it.
    pub(crate) tentative: bool,
    /// The peer's P_PROTOCOL said that it only wants to know.
    pub(crate) peer_dry_run: bool,
    /// Why the last connection ended or the last attempt failed.
    pub(crate) trouble: trouble::Trouble,
    /// Epochs of the writes that this node sends.
    pub(crate) send_epochs: SendEpochs,
    /// Epochs of the writes that arrive; None without a link.
    pub(crate) receive_epochs: Option<ReceiveEpochs>,
    /// When the last write was sent.
    pub(crate) last_write_sent: Time,
    /// The link was lost while writes of the peer were on their way to the disk: they are flushed when they have ended.
    pub(crate) late_writes: bool,
    /// Something arrived, or can be handled now: `step_link` looks.
    pub(crate) link_work: bool,
    /// Making a link.
    pub(crate) dialling: dialling::Dialling,
    /// Watching a link.
    pub(crate) liveness: liveness::Liveness,
}

/// What the two nodes agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Protocol version.
    pub(crate) version: u32,
    /// What the peer speaks.
    pub(crate) peer_versions: Versions,
    /// Features that both know.
    pub(crate) features: Features,
    /// The peer announced Tandem's own extensions.
    pub(crate) tandem: bool,
}

impl Connection {
    /// StandAlone, never connected.
    pub(crate) fn new() -> Connection {
        Connection {
            cstate: ConnState::StandAlone,
            net: None,
            agreed: None,
            link: None,
            count: 0,
            resolve_conflicts: false,
            state_sent: false,
            connect_count: 0,
            discard_my_data: false,
            tentative: false,
            peer_dry_run: false,
            trouble: trouble::Trouble::default(),
            send_epochs: SendEpochs::new(Epoch(1), EPOCH_WRITES_DEFAULT),
            receive_epochs: None,
            last_write_sent: Time::default(),
            late_writes: false,
            link_work: false,
            dialling: dialling::Dialling::default(),
            liveness: liveness::Liveness::default(),
        }
    }

    /// The agreed protocol version; that of the last connection, or the newest one before the first.
    pub(crate) fn version(&self) -> u32 {
        self.agreed.map_or(101, |agreed| agreed.version)
    }
}
