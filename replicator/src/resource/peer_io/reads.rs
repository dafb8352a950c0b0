//! Reads of the peer's applications.

use bytes::Bytes;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BlockAck, BlockRequest, Data, DpFlags};

use super::Io;
use crate::effect::DiskOperation;
use crate::event::{IoError, VolumeNumber};
use crate::resource::change::DiskFault;
use crate::resource::{Pending, Resource};
use crate::state::word::DiskState;

/// A read for an application of the peer.
#[derive(Debug)]
pub(super) struct PeerRead {
    pub(super) volume: VolumeNumber,
    request: BlockRequest,
    link: u64,
}

impl Resource {
    /// P_DATA_REQUEST: an application of the peer reads here.
    pub(crate) fn on_data_request(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
    ) -> Result<(), &'static str> {
        let volume = self
            .volumes
            .get(&number)
            .ok_or("a read of an unknown volume")?;
        let offset = request
            .sector
            .checked_mul(512)
            .ok_or("a read beyond every device")?;
        let end = offset
            .checked_add(u64::from(request.blksize))
            .ok_or("a read beyond every device")?;
        if volume.state.disk != DiskState::UpToDate || volume.backing.is_none() {
            self.refuse_read(number, request);
            return Ok(());
        }
        if end > volume.bytes {
            return Err("a read beyond the end of the device");
        }
        let id = self.requests.next_id();
        let link = self.connection.count;
        self.peer_io.read_bytes += u64::from(request.blksize);
        self.peer_io.reads.insert(
            id,
            PeerRead {
                volume: number,
                request,
                link,
            },
        );
        self.take_peer_interval(number, id, offset..end);
        Ok(())
    }

    pub(super) fn start_peer_read(&mut self, number: VolumeNumber, id: u64) {
        let Some(read) = self.peer_io.reads.get(&id) else {
            return;
        };
        let (offset, length) = (read.request.sector * 512, read.request.blksize);
        let usable = self.volumes.get(&number).is_some_and(|volume| {
            volume.state.disk == DiskState::UpToDate && volume.backing.is_some()
        });
        if !usable {
            let error = IoError {
                text: alloc::string::String::from("the disk is gone"),
            };
            self.finish_peer_read(number, id, Err(error));
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.counters.disk_read_kib += u64::from(length) / 1024;
        }
        let operation = DiskOperation::Read { offset, length };
        self.disk(number, Pending::Peer(number, Io::Read(id)), operation);
    }

    pub(super) fn finish_peer_read(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let Some(read) = self.peer_io.reads.remove(&id) else {
            return;
        };
        self.peer_io.read_bytes -= u64::from(read.request.blksize);
        self.release_interval(number, id);
        let linked = read.link == self.connection.count && self.connection.link.is_some();
        self.receiving_may_go_on();
        match result {
            Ok(payload) if payload.len() == read.request.blksize as usize => {
                if linked {
                    if let Some(volume) = self.volumes.get_mut(&number) {
                        volume.counters.sent_kib += payload.len() as u64 / 1024;
                    }
                    let digest = self.integrity_digest(&payload);
                    let reply = Data {
                        sector: read.request.sector,
                        block_id: read.request.block_id,
                        seq_num: 0,
                        dp_flags: DpFlags::NONE,
                        digest,
                        payload,
                    };
                    self.send(Some(read.volume), Packet::DataReply(reply));
                }
            }
            failed => {
                if linked {
                    self.refuse_read(number, read.request);
                }
                if let Err(error) = failed {
                    self.local_io_error(number, DiskFault::Read, error);
                }
            }
        }
    }

    fn refuse_read(&mut self, number: VolumeNumber, request: BlockRequest) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let ack = BlockAck {
            sector: request.sector,
            block_id: request.block_id,
            blksize: request.blksize,
            seq_num: volume.peer.next_sequence(),
        };
        self.send(Some(number), Packet::NegDreply(ack));
    }
}
