//! Reads of this node's clients: from the local disk, or from the peer when it has the better copy
//! (state-machine.md 7.2). The answer of a failed path is a new choice, and an error only when no path is left.

use alloc::vec::Vec;
use bytes::Bytes;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BlockAck, BlockRequest, Data};

use super::request::{Io, WriteId};
use super::{Pending, Resource};
use crate::bitmap::coverage::bits_touched;
use crate::effect::DiskOperation;
use crate::event::{IoError, RequestError, RequestId, VolumeNumber};
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::state::word::DiskState;
use crate::time::Time;

/// Where a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Local,
    Remote { since: Time },
}

/// Who wants the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A client: a part of its request.
    Client(RequestId, usize),
    /// A write of a client that covers a sector in part, and merges with the rest of it.
    Edge(WriteId),
}

/// A part of a client's read, or the edge of a write.
#[derive(Debug)]
pub(crate) struct Read {
    owner: Owner,
    volume: VolumeNumber,
    offset: u64,
    length: u32,
    place: Place,
    /// The local disk failed it once: it is not asked again.
    local_failed: bool,
    /// The peer refused it once.
    remote_failed: bool,
}

impl Resource {
    pub(super) fn admit_read(
        &mut self,
        client: RequestId,
        volume: VolumeNumber,
        part: usize,
        offset: u64,
        length: u32,
    ) {
        self.start_read(Owner::Client(client, part), volume, offset, length);
    }

    /// A read of whole sectors, on the best path.
    pub(super) fn start_read(
        &mut self,
        owner: Owner,
        volume: VolumeNumber,
        offset: u64,
        length: u32,
    ) {
        let id = self.requests.next_id();
        let read = Read {
            owner,
            volume,
            offset,
            length,
            place: Place::Local,
            local_failed: false,
            remote_failed: false,
        };
        self.requests.reads.insert(id, read);
        self.route_read(id);
    }

    /// Chooses a path and starts on it.
    fn route_read(&mut self, id: u64) {
        let Some(read) = self.requests.reads.get(&id) else {
            return;
        };
        let Some(volume) = self.volumes.get(&read.volume) else {
            return;
        };
        let stale = self.planted(Planted::ReadStaleBlock);
        let bits = bits_touched(read.offset, u64::from(read.length), volume.bytes);
        let local_usable = match (volume.state.disk, volume.backing.as_ref()) {
            (DiskState::UpToDate, Some(_)) => true,
            (DiskState::Inconsistent, Some(backing)) => {
                stale || backing.bits_agreed && !backing.bitmap.any_set(bits)
            }
            _ => false,
        };
        let remote_usable =
            volume.state.pdsk == DiskState::UpToDate && self.connection.link.is_some();
        if local_usable && !read.local_failed {
            self.read_local(id);
        } else if remote_usable && !read.remote_failed {
            self.read_remote(id);
        } else {
            self.finish_read(id, Err(RequestError::Io));
        }
    }

    fn read_local(&mut self, id: u64) {
        let Some(read) = self.requests.reads.get_mut(&id) else {
            return;
        };
        read.place = Place::Local;
        let (volume, offset, length) = (read.volume, read.offset, read.length);
        if let Some(at) = self.volumes.get_mut(&volume) {
            at.counters.disk_read_kib += u64::from(length) / 1024;
        }
        let operation = DiskOperation::Read { offset, length };
        self.disk(volume, Pending::Request(volume, Io::Read(id)), operation);
    }

    fn read_remote(&mut self, id: u64) {
        let now = self.now;
        let Some(read) = self.requests.reads.get_mut(&id) else {
            return;
        };
        read.place = Place::Remote { since: now };
        let request = BlockRequest {
            sector: read.offset / 512,
            block_id: id.to_be_bytes(),
            blksize: read.length,
            pad: 0,
        };
        let volume = read.volume;
        self.send_barrier_if_closed();
        self.send(Some(volume), Packet::DataRequest(request));
    }

    pub(super) fn read_local_done(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let Some(read) = self.requests.reads.get_mut(&id) else {
            return;
        };
        if read.place != Place::Local || read.local_failed {
            return; // It was sent to the peer when the disk was given up.
        }
        match result {
            Ok(data) if data.len() == read.length as usize => self.finish_read(id, Ok(data)),
            failed => {
                read.local_failed = true;
                let (offset, length) = (read.offset, read.length);
                let error = failed.err().unwrap_or_else(|| IoError {
                    text: alloc::format!("short read of {length} bytes at {offset}"),
                });
                self.mark_out_of_sync(number, offset, length);
                self.local_io_error(number, DiskFault::Read, error);
                self.route_read(id);
            }
        }
    }

    fn finish_read(&mut self, id: u64, result: Result<Bytes, RequestError>) {
        if let Some(read) = self.requests.reads.remove(&id) {
            match read.owner {
                Owner::Client(client, part) => self.part_done(client, part, result),
                Owner::Edge(write) => self.edge_read(write, read.offset, result),
            }
        }
    }

    /// P_DATA_REPLY. Errors are protocol errors.
    pub(super) fn on_data_reply(
        &mut self,
        number: VolumeNumber,
        reply: Data,
    ) -> Result<(), &'static str> {
        let id = u64::from_be_bytes(reply.block_id);
        let read = self.remote_read(number, id, reply.sector)?;
        if reply.payload.len() != read.length as usize {
            return Err("answer to a read has another length");
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.counters.received_kib += reply.payload.len() as u64 / 1024;
        }
        self.finish_read(id, Ok(reply.payload));
        Ok(())
    }

    /// P_NEG_DREPLY: the peer could not read it.
    pub(super) fn on_read_refused(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        let id = u64::from_be_bytes(ack.block_id);
        self.remote_read(number, id, ack.sector)?;
        if let Some(read) = self.requests.reads.get_mut(&id) {
            read.remote_failed = true;
        }
        self.route_read(id);
        Ok(())
    }

    fn remote_read(
        &self,
        number: VolumeNumber,
        id: u64,
        sector: u64,
    ) -> Result<&Read, &'static str> {
        self.requests
            .reads
            .get(&id)
            .filter(|read| {
                read.volume == number
                    && read.offset / 512 == sector
                    && matches!(read.place, Place::Remote { .. })
            })
            .ok_or("answer to a read that was not asked for")
    }

    /// The local disk is gone: reads that it did not answer choose again.
    pub(super) fn reads_disk_gone(&mut self, number: VolumeNumber) {
        let local = self.requests.reads.iter().filter(|(_, read)| {
            read.volume == number && read.place == Place::Local && !read.local_failed
        });
        let local: Vec<u64> = local.map(|(id, _)| *id).collect();
        for id in local {
            if let Some(read) = self.requests.reads.get_mut(&id) {
                read.local_failed = true;
            }
            self.route_read(id);
        }
    }

    /// The link is lost: reads that the peer did not answer choose again.
    pub(super) fn reads_connection_lost(&mut self) {
        let remote: Vec<u64> = self
            .requests
            .reads
            .iter()
            .filter(|(_, read)| matches!(read.place, Place::Remote { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in remote {
            if let Some(read) = self.requests.reads.get_mut(&id) {
                read.remote_failed = true;
            }
            self.route_read(id);
        }
    }

    pub(super) fn oldest_remote_read(&self) -> Option<Time> {
        let remote = self
            .requests
            .reads
            .values()
            .filter_map(|read| match read.place {
                Place::Remote { since } => Some(since),
                Place::Local => None,
            });
        remote.min()
    }
}
