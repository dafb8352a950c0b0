//! Which part of the engine each packet of an established link goes to.

use alloc::format;
use alloc::string::{String, ToString};

use tandem_protocol::packet::{Frame, Packet};
use tandem_protocol::packets::BLOCK_ID_SYNCER;

use crate::effect::Level;
use crate::event::VolumeNumber;
use crate::resource::Resource;
use crate::resource::request::remote::Ack;
use crate::state::word::ConnState;

impl Resource {
    /// A packet of the meta socket.
    pub(super) fn on_meta_frame(&mut self, frame: Frame) {
        let number = VolumeNumber(frame.volume);
        let of_resync = |block_id: &[u8; 8]| *block_id == BLOCK_ID_SYNCER;
        let result = match frame.packet {
            Packet::Ping => {
                self.send(None, Packet::PingAck);
                Ok(())
            }
            Packet::PingAck => {
                self.ping_answered();
                Ok(())
            }
            Packet::RecvAck(ack) => self.on_write_ack(number, &ack, Ack::Received),
            Packet::WriteAck(ack) if of_resync(&ack.block_id) => self.on_resync_ack(number, &ack),
            Packet::WriteAck(ack) => self.on_write_ack(number, &ack, Ack::Written),
            Packet::RsWriteAck(ack) if of_resync(&ack.block_id) => self.on_resync_ack(number, &ack),
            Packet::RsWriteAck(ack) => self.on_write_ack(number, &ack, Ack::WrittenInSync),
            Packet::NegAck(ack) if of_resync(&ack.block_id) => self.on_resync_neg_ack(number, &ack),
            Packet::NegAck(ack) => self.on_write_ack(number, &ack, Ack::Refused),
            Packet::NegDreply(ack) => self.on_read_refused(number, &ack),
            Packet::NegRsDreply(ack) if self.is_verifying(number) => {
                self.on_verify_refused(number, &ack)
            }
            Packet::NegRsDreply(ack) => self.on_resync_refused(number, &ack),
            Packet::RsIsInSync(ack) => self.on_resync_in_sync(number, &ack),
            Packet::RsCancel(ack) => self.on_resync_cancelled(number, &ack),
            Packet::BarrierAck(ack) => {
                self.on_barrier_ack(&ack);
                Ok(())
            }
            Packet::StateChgReply(reply) => {
                self.on_state_change_reply(Some(number), reply.code);
                Ok(())
            }
            Packet::ConnStChgReply(reply) => {
                self.on_state_change_reply(None, reply.code);
                Ok(())
            }
            Packet::DelayProbe(_) => Ok(()),
            Packet::Superseded(_) | Packet::RetryWrite(_) => {
                Err("an answer that exists with two Primaries only")
            }
            Packet::OvResult(ack) => self.on_verify_result(number, &ack),
            _ => Err("a packet that does not belong on the meta socket"),
        };
        if let Err(text) = result {
            self.link_lost(ConnState::ProtocolError, text);
        }
    }

    /// A packet of the data socket.
    pub(super) fn on_data_frame(&mut self, frame: Frame) {
        let number = VolumeNumber(frame.volume);
        let command = frame.packet.command();
        let known = self
            .connection
            .link
            .as_ref()
            .is_some_and(|link| link.protocol_known);
        if !known && !matches!(frame.packet, Packet::Protocol(_)) {
            let text = if matches!(frame.packet, Packet::AuthChallenge(_)) {
                String::from(
                    "the peer wants authentication, but this node has no cram-hmac-alg and shared-secret",
                )
            } else {
                format!("{command} came where P_PROTOCOL was expected")
            };
            self.link_lost(ConnState::ProtocolError, &text);
            return;
        }
        if !command.is_connection_level()
            && !matches!(frame.packet, Packet::UnplugRemote | Packet::DelayProbe(_))
            && !self.volumes.contains_key(&number)
        {
            self.unknown_volume(number, &frame.packet);
            return;
        }
        if let Err(text) = self.route_data(number, frame.packet) {
            self.link_lost(ConnState::ProtocolError, &format!("{command}: {text}"));
        }
    }

    /// 2.3 of the wire's specification: parameters of a volume that is not configured here are skipped.
    fn unknown_volume(&mut self, number: VolumeNumber, packet: &Packet) {
        let command = packet.command();
        let text = format!(
            "{command} for volume {}, which is not configured on this node",
            number.0
        );
        match packet {
            Packet::SyncParam89(_) | Packet::Sizes(_) | Packet::Uuids(_) | Packet::State(_) => {
                self.log(Level::Warn, None, text);
            }
            _ => self.link_lost(ConnState::ProtocolError, &text),
        }
    }

    fn route_data(&mut self, number: VolumeNumber, packet: Packet) -> Result<(), String> {
        let words = |result: Result<(), &'static str>| result.map_err(ToString::to_string);
        self.check_integrity(&packet)?;
        match packet {
            Packet::Protocol(protocol) => self.on_protocol(&protocol),
            Packet::ProtocolUpdate(protocol) => self.on_protocol_update(&protocol),
            Packet::SyncParam89(param) => self.on_sync_param(number, &param),
            Packet::Sizes(sizes) => self.on_sizes(number, &sizes),
            Packet::Uuids(uuids) => self.on_uuids(number, &uuids),
            Packet::State(state) => self.on_state(number, state.state),
            Packet::StateChgReq(change) => {
                self.on_state_change_request(number, &change);
                Ok(())
            }
            Packet::ConnStChgReq(change) => {
                self.on_connection_change_request(&change);
                Ok(())
            }
            Packet::Data(data) => words(self.on_peer_data(number, data)),
            Packet::Trim(trim) => words(self.on_peer_trim(number, trim)),
            Packet::Zeroes(zeroes) => words(self.on_peer_zeroes(number, zeroes)),
            Packet::Wsame(wsame) => words(self.on_peer_wsame(number, wsame)),
            Packet::Barrier(barrier) => {
                self.on_barrier(barrier);
                Ok(())
            }
            Packet::OutOfSync(range) => words(self.on_out_of_sync(number, range)),
            Packet::DataRequest(request) => words(self.on_data_request(number, request)),
            Packet::DataReply(reply) => words(self.on_data_reply(number, reply)),
            Packet::SyncUuid(uuid) => words(self.on_sync_uuid(number, uuid.uuid)),
            Packet::Bitmap(chunk) => words(self.on_bitmap(number, chunk)),
            Packet::CompressedBitmap(chunk) => words(self.on_compressed_bitmap(number, chunk)),
            Packet::RsDataRequest(request) => words(self.on_resync_request(number, request)),
            Packet::RsThinReq(request) => words(self.on_resync_thin_request(number, request)),
            Packet::CsumRsRequest(request) => words(self.on_resync_csum_request(number, request)),
            Packet::RsDataReply(reply) => words(self.on_resync_reply(number, reply)),
            Packet::RsDeallocated(range) => words(self.on_resync_deallocated(number, range)),
            Packet::OvRequest(request) => words(self.on_verify_request(number, request)),
            Packet::OvReply(hashed) => words(self.on_verify_reply(number, hashed)),
            Packet::UnplugRemote | Packet::DelayProbe(_) => Ok(()),
            _ => Err(String::from("unexpected on an established link")),
        }
    }
}
