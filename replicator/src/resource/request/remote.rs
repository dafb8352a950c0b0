//! The remote leg of a write: what is sent, and what the peer says about it.

use bytes::Bytes;
use tandem_protocol::features::Features;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BlockAck, BlockDesc, Data, DpFlags, Trim};

use super::{Body, Remote, Stage, WriteId};
use crate::event::{Fua, Unmap, VolumeNumber};
use crate::options::Protocol;
use crate::planted::Planted;
use crate::resource::Resource;
use crate::state::effects::writes_are_replicated;
use crate::state::word::{ConnState, DiskState};

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    /// P_RECV_ACK: in the peer's memory.
    Received,
    /// P_WRITE_ACK: on its disk.
    Written,
    /// P_RS_WRITE_ACK: on its disk, and its bits are cleared.
    WrittenInSync,
    /// P_NEG_ACK: its disk failed, or it has none.
    Refused,
}

impl Resource {
    /// Sends the write if this volume's writes are replicated; else, where the peer wants to know, that the range is
    /// out of sync (7.3).
    pub(super) fn start_remote(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get(&id) else {
            return;
        };
        let (number, offset, length) = (write.volume, write.offset, write.length);
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let state = volume.state;
        if self.connection.link.is_some() && writes_are_replicated(&state) {
            self.send_write(id);
            return;
        }
        let newly = self.mark_out_of_sync(number, offset, length);
        let announce = matches!(state.conn, ConnState::Ahead | ConnState::WFBitMapS);
        if announce && newly > 0 {
            self.send_barrier_if_closed();
            let packet = BlockDesc {
                sector: offset / 512,
                blksize: length,
                pad: 0,
            };
            self.send(Some(number), Packet::OutOfSync(packet));
        }
    }

    fn send_write(&mut self, id: WriteId) {
        let epoch = self.epoch_for_write();
        let Some((number, packet, length)) = self.write_packet(id) else {
            return;
        };
        let position = self.send(Some(number), packet);
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.counters.sent_kib += u64::from(length) / 1024;
        let peer_counts = volume.state.pdsk == DiskState::UpToDate;
        let peer_only = volume.state.disk != DiskState::UpToDate;
        if let Some(write) = self.requests.writes.get_mut(&id) {
            write.remote = Remote::Sent { position };
            write.epoch = Some(epoch);
            write.peer_counts = peer_counts;
            write.peer_only = peer_only;
            write.sent_at = now;
        }
        self.requests.epochs.entry(epoch).or_default().push(id);
        self.requests.unsent.push_back((position, id));
        self.close_full_epoch();
    }

    /// The packet of a write. Volumes number their packets from 1 on each connection (wire-protocol.md 5.7).
    fn write_packet(&mut self, id: WriteId) -> Option<(VolumeNumber, Packet, u32)> {
        let flags = self.write_flags(id)?;
        let features = self.agreed_features();
        let integrity = self.own_integrity();
        let short_zeroes = self.sends_short_zeroes();
        let write = self.requests.writes.get(&id)?;
        let volume = self.volumes.get_mut(&write.volume)?;
        let seq_num = volume.peer.next_sequence();
        let (sector, block_id) = (write.offset / 512, id.to_be_bytes());
        let range = |dp_flags| Trim {
            sector,
            block_id,
            seq_num,
            dp_flags,
            size: write.length,
        };
        let packet = match &write.body {
            Body::Discard if features.contains(Features::TRIM) => {
                Packet::Trim(range(flags.with(DpFlags::DISCARD)))
            }
            Body::Zeroes(unmap) if short_zeroes => {
                let flags = flags.with(DpFlags::ZEROES);
                Packet::Zeroes(range(match unmap {
                    Unmap::Allowed => flags.with(DpFlags::DISCARD),
                    Unmap::No => flags,
                }))
            }
            body => {
                let payload = match body {
                    Body::Data(data) => data.clone(),
                    _ => Bytes::from(alloc::vec![0; write.length as usize]),
                };
                Packet::Data(Data {
                    sector,
                    block_id,
                    seq_num,
                    dp_flags: flags,
                    digest: integrity
                        .map_or_else(Bytes::new, |algorithm| algorithm.digest(&payload).into()),
                    payload,
                })
            }
        };
        Some((write.volume, packet, write.length))
    }

    /// Whether zeroes go to the peer as a range instead of as data.
    pub(crate) fn sends_short_zeroes(&self) -> bool {
        // A kernel expects a digest with P_ZEROES that the packet cannot have (wire-protocol.md 11 no. 17).
        let tandem = self.connection.agreed.is_some_and(|agreed| agreed.tandem);
        let plain = self.own_integrity().is_some() && !tandem;
        self.agreed_features().contains(Features::WZEROES) && !plain
    }

    fn agreed_features(&self) -> Features {
        self.connection
            .agreed
            .as_ref()
            .map_or(Features(0), |agreed| agreed.features)
    }

    fn write_flags(&self, id: WriteId) -> Option<DpFlags> {
        let write = self.requests.writes.get(&id)?;
        let volume = self.volumes.get(&write.volume)?;
        let protocol = self
            .connection
            .net
            .as_ref()
            .map_or(Protocol::C, |net| net.protocol);
        let mut flags = DpFlags::RW_SYNC;
        if write.fua == Fua::Yes {
            flags = flags.with(DpFlags::FUA);
        }
        flags = match protocol {
            Protocol::A => flags,
            Protocol::B => flags.with(DpFlags::SEND_RECEIVE_ACK),
            Protocol::C => flags.with(DpFlags::SEND_WRITE_ACK),
        };
        if volume.state.disk != DiskState::UpToDate {
            // The peer's copy is the only good one, and the application outlives a power failure of the peer without
            // hearing of it: what it was told is written must still be there.
            flags = flags.with(DpFlags::SEND_WRITE_ACK);
            if !self.planted(Planted::NoFuaWhileDiskless) {
                flags = flags.with(DpFlags::FUA);
            }
        }
        let resync = ConnState::SyncSource..=ConnState::PausedSyncT;
        if resync.contains(&volume.state.conn) {
            flags = flags
                .with(DpFlags::MAY_SET_IN_SYNC)
                .with(DpFlags::SEND_WRITE_ACK);
        }
        Some(flags)
    }

    /// The data socket has taken everything up to `position`: the remote legs of protocol A end.
    pub(crate) fn writes_sent(&mut self, position: u64) {
        let handed = self
            .connection
            .net
            .as_ref()
            .is_some_and(|net| net.protocol == Protocol::A);
        while let Some(&(at, id)) = self.requests.unsent.front()
            && at <= position
        {
            self.requests.unsent.pop_front();
            if !handed {
                continue;
            }
            if let Some(write) = self.requests.writes.get_mut(&id)
                && matches!(write.remote, Remote::Sent { .. })
            {
                write.remote = Remote::Handed;
            }
            self.check_write(id);
        }
    }

    /// An acknowledgement of the peer. Errors are protocol errors (an id that we never sent).
    pub(crate) fn on_write_ack(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
        what: Ack,
    ) -> Result<(), &'static str> {
        let id = u64::from_be_bytes(ack.block_id);
        let known = self.requests.writes.get(&id).is_some_and(|write| {
            write.volume == number && write.offset / 512 == ack.sector && write.epoch.is_some()
        });
        if what == Ack::Refused {
            self.mark_refused(number, ack, known.then_some(id));
        }
        if !known {
            // Protocol A forgets a write at its barrier ack; a late refusal has marked its range all the same.
            return if what == Ack::Refused {
                Ok(())
            } else {
                Err("ack of an unknown write")
            };
        }
        // The peer's state may have come first: it is on the other socket.
        let explained = self.refusal_explained(number);
        if let Some(write) = self.requests.writes.get_mut(&id) {
            write.remote = match what {
                Ack::Received if write.remote == Remote::Written => Remote::Written,
                Ack::Received => Remote::Received,
                Ack::Written => Remote::Written,
                Ack::WrittenInSync => {
                    if !write.bits_stay {
                        self.requests.in_sync.insert(id);
                    }
                    Remote::Written
                }
                Ack::Refused if write.stage == Stage::Answered || explained => Remote::Failed,
                Ack::Refused => Remote::Refused,
            };
            if write.remote == Remote::Refused {
                self.requests.refused.insert(id);
            }
        }
        self.check_write(id);
        Ok(())
    }

    /// What the peer refused is out of sync. The write says where: a kernel without a disk gives no length with its refusal of a discard
    /// or of zeroes (wire-protocol.md 11 no. 18). Only for one that is forgotten the acknowledgement has to do.
    fn mark_refused(&mut self, number: VolumeNumber, ack: &BlockAck, known: Option<WriteId>) {
        let write = known.and_then(|id| self.requests.writes.get(&id));
        let (offset, length) = if let Some(write) = write {
            (write.offset, write.length)
        } else {
            let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
            let offset = ack.sector.saturating_mul(512).min(bytes);
            let length = u64::from(ack.blksize).min(bytes - offset);
            (offset, u32::try_from(length).unwrap_or(u32::MAX))
        };
        if length > 0 {
            self.mark_out_of_sync(number, offset, length);
        }
    }
}
