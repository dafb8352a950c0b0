//! The handshake: the parameters of the connection and of each volume, once features and authentication are through
//! (wire-protocol.md 4.1, 4.5; state-machine.md 4).
//!
//! Both nodes send everything without waiting for each other, and each judges by itself. What a judgement leads to when
//! generations are compared is in `split`.

use alloc::format;
use alloc::string::String;

use tandem_protocol::features::{Agreed as AgreedFeatures, Capabilities, TANDEM_CAPABILITIES};
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{
    NameField, Protocol as ProtocolPacket, State as StatePacket, SyncParam89, Uuids as UuidsPacket,
};
use tandem_protocol::state_word::WireState;

use super::Resource;
use super::connection::Agreed;
use super::dialling::Phase;
use super::integrity::unknown_algorithm;
use super::link::Link;
use super::liveness::Liveness;
use super::plan::{Then, rewrite_bitmap};
use super::trouble::Telling;
use super::volume::PeerUuids;
use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::generations::{
    JUST_CREATED, UUID_FLAG_CRASHED_PRIMARY, UUID_FLAG_DISCARD_MY_DATA, UUID_FLAG_INCONSISTENT,
    UUID_FLAG_SKIP_INITIAL_SYNC, Uuids, masked,
};
use crate::options::{DiskOptions, NetOptions, Protocol};
use crate::planted::Planted;
use crate::receive_epochs::{Ordering, Overlap, ReceiveEpochs};
use crate::state::Hardness;
use crate::state::word::{ConnState, DiskState, State};

mod sizes;

use sizes::Current;

/// Largest request in bytes that every version 100 node takes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

impl Resource {
    /// Features and authentication are through: the link exists, and everything about this node is sent.
    pub(super) fn establish(&mut self, agreed: AgreedFeatures) {
        let dialling = &mut self.connection.dialling;
        let (Some(data), Some(meta)) = (dialling.data.take(), dialling.meta.take()) else {
            let text = "a socket was closed in the handshake";
            self.attempt_failed(Telling::Passing, text);
            return;
        };
        dialling.phase = Phase::Linked;
        let resolve = dialling.resolve;
        let tandem = agreed
            .capabilities
            .contains(Capabilities(TANDEM_CAPABILITIES.0));
        let flushes = self
            .volumes
            .values()
            .any(|volume| volume.options.disk_flushes);
        let net = self.connection.net.as_ref();
        let protocol_c = net.is_some_and(|net| net.protocol == Protocol::C);
        let overlap = if tandem && (protocol_c || self.planted(Planted::OverlapEpochs)) {
            Overlap::Overlapped
        } else {
            Overlap::Drain
        };
        let ordering = if flushes {
            Ordering::Flush
        } else {
            Ordering::Drain
        };
        let resolve = resolve || self.planted(Planted::BothResolve);
        let connection = &mut self.connection;
        connection.link = Some(Link::new(data, meta));
        connection.agreed = Some(Agreed {
            version: agreed.version,
            peer_versions: agreed.peer_versions,
            features: agreed.features,
            tandem,
        });
        connection.count += 1;
        connection.receive_epochs = Some(ReceiveEpochs::new(overlap, ordering));
        connection.resolve_conflicts = resolve;
        connection.liveness = Liveness::of_link(self.now);
        connection.peer_dry_run = false;
        connection.link_work = true;
        let text = format!("agreed on protocol version {}", agreed.version);
        self.log(Level::Debug, None, text);
        if let Some(algorithm) = self.own_integrity() {
            let text = format!("data-integrity-alg: {algorithm}");
            self.log(Level::Info, None, text);
        }
        self.introduce_volumes();
    }

    /// P_PROTOCOL, then the packets of each volume; the state of WFConnection is still shown.
    fn introduce_volumes(&mut self) {
        for number in self.volume_numbers() {
            let armed = self.connection.discard_my_data;
            if let Some(volume) = self.volumes.get_mut(&number) {
                volume.peer.restart_sequence();
                volume.resize_pending = false;
                volume.peer.sizes_asked = None;
                volume.peer.discard_armed = armed;
                volume.peer.uuids = None;
                volume.grew_with_peer = false;
            }
        }
        self.send_protocol();
        self.connection.state_sent = true;
        for number in self.volume_numbers() {
            self.send_sync_param(number);
            self.send_sizes(number, 0, Current::Told);
            self.send_uuids(number);
            self.send_state(number);
        }
        self.change_connection(
            |state| state.conn = ConnState::WFReportParams,
            Hardness::Hard,
        );
        self.connection.discard_my_data = false;
    }

    fn send_protocol(&mut self) {
        let discard = self.connection.discard_my_data;
        let tentative = self.connection.tentative;
        let Some(net) = self.connection.net.as_ref() else {
            return;
        };
        let mut conn_flags = 0;
        if discard {
            conn_flags |= ProtocolPacket::DISCARD_MY_DATA;
        }
        if tentative {
            conn_flags |= ProtocolPacket::DRY_RUN;
        }
        let packet = ProtocolPacket {
            protocol: wire_protocol(net.protocol),
            after_sb_0p: net.after_sb_0pri,
            after_sb_1p: net.after_sb_1pri,
            after_sb_2p: net.after_sb_2pri,
            conn_flags,
            two_primaries: 0,
            integrity_alg: net.integrity_alg.clone(),
        };
        self.send(None, Packet::Protocol(packet));
    }

    /// P_SYNC_PARAM89. A diskless node says the defaults.
    fn send_sync_param(&mut self, number: VolumeNumber) {
        let Some(net) = self.connection.net.as_ref() else {
            return;
        };
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let defaults = DiskOptions::default();
        let options = if volume.backing.is_some() {
            &volume.options
        } else {
            &defaults
        };
        let name = |text: &str| NameField::new(text).unwrap_or(NameField::NONE);
        let packet = SyncParam89 {
            resync_rate: options.resync_rate,
            verify_alg: name(&net.verify_alg),
            csums_alg: name(&net.csums_alg),
            c_plan_ahead: options.c_plan_ahead,
            c_delay_target: options.c_delay_target,
            c_fill_target: options.c_fill_target,
            c_max_rate: options.c_max_rate,
        };
        self.send(Some(number), Packet::SyncParam89(packet));
    }

    /// P_UUIDS; nothing without a disk.
    pub(crate) fn send_uuids(&mut self, number: VolumeNumber) {
        self.send_uuids_with(number, 0);
    }

    /// P_UUIDS that tells the peer to take this generation over without a resync (3.10). It still shows the bitmap UUID
    /// that is dropped right after.
    pub(crate) fn send_uuids_skip_initial_sync(&mut self, number: VolumeNumber) {
        self.send_uuids_with(number, UUID_FLAG_SKIP_INITIAL_SYNC);
    }

    fn send_uuids_with(&mut self, number: VolumeNumber, more: u64) {
        if self.connection.link.is_none() {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.state.disk < DiskState::Negotiating {
            return;
        }
        let attached_as = volume
            .backing
            .as_ref()
            .and_then(|backing| backing.attached_as);
        let negotiating = volume.state.disk == DiskState::Negotiating;
        let inconsistent =
            negotiating && attached_as.is_some_and(|result| result.disk == DiskState::Inconsistent);
        let mut flags = more;
        for (set, flag) in [
            (volume.peer.discard_armed, UUID_FLAG_DISCARD_MY_DATA),
            (volume.crashed_primary, UUID_FLAG_CRASHED_PRIMARY),
            (inconsistent, UUID_FLAG_INCONSISTENT),
        ] {
            if set {
                flags |= flag;
            }
        }
        let bits = volume.bits_set();
        volume.peer.bits_sent = bits;
        if volume.state.conn != ConnState::WFBitMapS {
            volume.generations.take_back_correction();
        }
        // Who compares with them has to come to the same correction: with the corrected ones it would see no need for the resync.
        let set = volume.generations.slots_on_disk();
        let skips = more & UUID_FLAG_SKIP_INITIAL_SYNC != 0;
        let packet = UuidsPacket {
            current: set.current,
            bitmap: if skips { JUST_CREATED } else { set.bitmap },
            history: set.history,
            dirty_bits: bits,
            flags,
        };
        self.send(Some(number), Packet::Uuids(packet));
    }

    /// P_STATE with the state of now.
    pub(crate) fn send_state(&mut self, number: VolumeNumber) {
        if let Some(state) = self.volumes.get(&number).map(|volume| volume.state) {
            self.send_state_snapshot(number, &state);
        }
    }

    /// P_STATE with the state that a change led to.
    pub(crate) fn send_state_snapshot(&mut self, number: VolumeNumber, state: &State) {
        let packet = StatePacket {
            state: WireState(state.pack_volume()),
        };
        self.send(Some(number), Packet::State(packet));
    }

    /// A disk was attached while connected: the peer compares (2.9 no. 14).
    pub(crate) fn start_late_attach(&mut self, number: VolumeNumber) {
        self.send_sizes(number, 0, Current::Told);
        self.send_uuids(number);
        self.send_state(number);
    }

    /// P_PROTOCOL: the options of the connection have to be the same on both nodes (4.5).
    pub(super) fn on_protocol(&mut self, peer: &ProtocolPacket) -> Result<(), String> {
        let Some(net) = self.connection.net.as_ref() else {
            return Err(String::from("this node has no network options"));
        };
        if self
            .connection
            .link
            .as_ref()
            .is_some_and(|link| link.protocol_known)
        {
            return Err(String::from("it comes once only"));
        }
        if let Some(difference) = protocol_difference(net, peer) {
            let text = format!("{difference}: make the net section of both nodes equal");
            self.refuse_connection(&text);
            return Ok(());
        }
        self.follow_peer_integrity(peer)?;
        self.connection.peer_dry_run = peer.conn_flags & ProtocolPacket::DRY_RUN != 0;
        if let Some(link) = self.connection.link.as_mut() {
            link.protocol_known = true;
        }
        Ok(())
    }

    /// P_PROTOCOL_UPDATE: an administrator of the peer changed its net options.
    pub(super) fn on_protocol_update(&mut self, peer: &ProtocolPacket) -> Result<(), String> {
        let protocol = match peer.protocol {
            1 => Protocol::A,
            2 => Protocol::B,
            3 => Protocol::C,
            other => return Err(format!("there is no protocol number {other}")),
        };
        self.follow_peer_integrity(peer)?;
        if peer.two_primaries != 0 {
            let text = String::from("the peer allows two Primaries now; this node does not");
            self.log(Level::Warn, None, text);
        }
        if let Some(net) = self.connection.net.as_mut() {
            net.protocol = protocol;
            net.after_sb_0pri = mirrored(peer.after_sb_0p);
            net.after_sb_1pri = peer.after_sb_1p;
            net.after_sb_2pri = peer.after_sb_2p;
        }
        self.status_changed = true;
        let text =
            String::from("the peer changed the options of the connection; this node follows");
        self.log(Level::Info, None, text);
        Ok(())
    }

    /// P_SYNC_PARAM89: the algorithms have to agree, the settings of the rate are taken over (4.1).
    pub(super) fn on_sync_param(
        &mut self,
        number: VolumeNumber,
        peer: &SyncParam89,
    ) -> Result<(), String> {
        let verify = peer.verify_alg.name().ok_or("verify-alg is not a name")?;
        let csums = peer.csums_alg.name().ok_or("csums-alg is not a name")?;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        let Some(net) = self.connection.net.as_mut() else {
            return Ok(());
        };
        let pairs = [
            ("verify-alg", &net.verify_alg, verify),
            ("csums-alg", &net.csums_alg, csums),
        ];
        let differs = pairs
            .into_iter()
            .find(|(_, own, theirs)| own.as_str() != *theirs);
        if let Some((option, own, theirs)) = differs {
            if volume.state.conn == ConnState::WFReportParams {
                let text = format!(
                    "{option} is '{own}' here and '{theirs}' on the peer: make the net section of both nodes equal"
                );
                self.refuse_connection(&text);
                return Ok(());
            }
            let mut adopted = net.clone();
            adopted.verify_alg = String::from(verify);
            adopted.csums_alg = String::from(csums);
            if let Some((option, name)) = unknown_algorithm(&adopted) {
                let text = format!("the peer changed {option} to {name}, which is not known here");
                self.refuse_connection(&text);
                return Ok(());
            }
            *net = adopted;
        }
        if volume.backing.is_some() {
            let options = &mut volume.options;
            options.resync_rate = peer.resync_rate;
            options.c_plan_ahead = peer.c_plan_ahead;
            options.c_delay_target = peer.c_delay_target;
            options.c_fill_target = peer.c_fill_target;
            // A rate of 0 would stop every resync: nobody can have meant that.
            if peer.c_max_rate > 0 {
                options.c_max_rate = peer.c_max_rate;
            }
        }
        Ok(())
    }

    /// P_UUIDS (3.11).
    pub(super) fn on_uuids(
        &mut self,
        number: VolumeNumber,
        packet: &UuidsPacket,
    ) -> Result<(), String> {
        let version = self.connection.version();
        let set = Uuids {
            current: packet.current,
            bitmap: packet.bitmap,
            history: packet.history,
        };
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        volume.peer.uuids = Some(PeerUuids {
            set,
            bits: packet.dirty_bits,
            flags: packet.flags,
        });
        let state = volume.state;
        if let Some(text) = self.other_data_was_shown(number, &set) {
            self.refuse_connection(&text);
            return Ok(());
        }
        self.peer_told_generation(number);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        if volume
            .generations
            .may_skip_initial_sync(&state, version, packet.flags)
        {
            self.take_over_generation(number, &set);
        } else {
            volume.generations.expose_peer(&state, &set);
            self.expose_peer_data(number);
        }
        Ok(())
    }

    /// Why the application of this Primary may not go on with the data of these slots: it has seen other data of the peer (3.6).
    fn other_data_was_shown(&self, number: VolumeNumber, set: &Uuids) -> Option<String> {
        let volume = self.volumes.get(&number)?;
        let (state, name) = (&volume.state, &self.name);
        let peer = masked(set.current);
        if volume.generations.refuses_peer_data(state, set) {
            let exposed = masked(volume.generations.exposed);
            return Some(format!(
                "this Primary has no disk and its application saw the data of generation {exposed:016X}, the peer has {peer:016X}; attach \
                 the disk with that data, or stop the application and here type: tandem adm secondary {name}"
            ));
        }
        let shown = masked(volume.shown_from_peer?);
        let ignore = self.planted(Planted::IgnoreExposedGeneration);
        if state.conn >= ConnState::Connected || shown == peer || ignore {
            return None;
        }
        Some(format!(
            "this Primary has no good disk and its application saw the peer's data of generation {shown:016X}, the peer has {peer:016X} \
             now; stop the application and here type: tandem adm secondary {name}"
        ))
    }

    /// The initial sync is skipped: the peer's generation is this node's too, and no block differs.
    fn take_over_generation(&mut self, number: VolumeNumber, set: &Uuids) {
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.generations.skip_initial_sync(set, volume.state.role);
            volume.superblock_changed(now);
            if let Some(uuids) = volume.peer.uuids.as_mut() {
                // The peer closes its bitmap UUID as well, without another P_UUIDS.
                uuids.set.bitmap = 0;
            }
            if let Some(backing) = volume.backing.as_mut() {
                backing.bitmap.clear_all();
            }
        }
        self.log_generations(number, "accepted the peer's generation without a resync");
        self.start_plan(number, rewrite_bitmap(), Then::Nothing);
        let up_to_date = |state: &mut State| {
            state.disk = DiskState::UpToDate;
            state.pdsk = DiskState::UpToDate;
        };
        self.change_state(number, up_to_date, Hardness::Hard);
        // The peer may have taken an Inconsistent state for the newer one: it was sent before and arrived after its command.
        self.send_state(number);
    }
}

fn wire_protocol(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::A => 1,
        Protocol::B => 2,
        Protocol::C => 3,
    }
}

fn letter(protocol: u32) -> char {
    match protocol {
        1 => 'A',
        2 => 'B',
        3 => 'C',
        _ => '?',
    }
}

/// A policy of the peer from this node's point of view: discard-local there is discard-remote here.
fn mirrored(policy: u32) -> u32 {
    match policy {
        5 => 6,
        6 => 5,
        other => other,
    }
}

/// The first option in which the two nodes differ, in words.
fn protocol_difference(net: &NetOptions, peer: &ProtocolPacket) -> Option<String> {
    let own = wire_protocol(net.protocol);
    if own != peer.protocol {
        return Some(format!(
            "protocol is {} here and {} on the peer",
            letter(own),
            letter(peer.protocol)
        ));
    }
    let policies = [
        (
            "after-sb-0pri",
            net.after_sb_0pri,
            mirrored(peer.after_sb_0p),
        ),
        ("after-sb-1pri", net.after_sb_1pri, peer.after_sb_1p),
        ("after-sb-2pri", net.after_sb_2pri, peer.after_sb_2p),
    ];
    for (option, own, theirs) in policies {
        if own != theirs {
            let (own, theirs) = (policy_name(own), policy_name(theirs));
            return Some(format!("{option} is {own} here and {theirs} on the peer"));
        }
    }
    if peer.two_primaries != 0 {
        return Some(String::from(
            "allow-two-primaries is not set here (and not supported), but on the peer it is",
        ));
    }
    if net.integrity_alg != peer.integrity_alg {
        return Some(format!(
            "data-integrity-alg is '{}' here and '{}' on the peer",
            net.integrity_alg, peer.integrity_alg
        ));
    }
    None
}

fn policy_name(number: u32) -> &'static str {
    match number {
        0 => "disconnect",
        1 => "discard-younger-primary",
        2 => "discard-older-primary",
        3 => "discard-zero-changes",
        4 => "discard-least-changes",
        5 => "discard-local",
        6 => "discard-remote",
        7 => "consensus",
        8 => "discard-secondary",
        9 => "call-pri-lost-after-sb",
        10 => "violently-as0p",
        _ => "an unknown policy",
    }
}
