//! What this node does for its peer: its writes, their acknowledgements in the right order, and its reads.
//!
//! Invariants:
//! - An acknowledgement is sent on the connection that brought the write, or never.
//! - On the meta socket every ack of an epoch comes before its barrier ack, and that comes after a flush of every disk
//!   that the epoch wrote to.
//! - Writes that overlap reach the disk in the order in which the peer sent them; so do the peer's reads behind them.
//! - A write of a diskless Primary is marked out of sync when it arrives, and its extents are in this node's activity log
//!   before it is submitted: this is the only copy.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{
    Barrier, BarrierAck, BlockAck, BlockDesc, Data, DpFlags, Trim, Wsame,
};

use super::detach::Detach;
use super::flush::Waiter;
use super::request::{Body, Logged};
use super::{Pending, Resource};
use crate::effect::DiskOperation;
use crate::event::{Fua, IoError, Unmap, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::numbered::Numbered;
use crate::planted::Planted;
use crate::receive_epochs::{FlushOutcome, NextStep, ReceiveEpoch};
use crate::resource::change::DiskFault;
use crate::state::word::{ConnState, DiskState, Role};

mod reads;

use reads::PeerRead;

/// Bytes of the peer's writes in flight before its data socket is not read any more.
const BYTES_IN_FLIGHT_MAX: u64 = 32 << 20;

/// Bytes that are read for applications of the peer at one time before its data socket is not read any more.
const READ_BYTES_MAX: u64 = 32 << 20;

/// Largest P_WSAME that is expanded, in bytes; we announce that we take none.
const WSAME_BYTES_MAX: u32 = 1 << 20;

/// What a completion of an I/O for the peer belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {
    /// A write.
    Write(u64),
    /// A read.
    Read(u64),
}

/// A write of the peer.
#[derive(Debug)]
pub(crate) struct PeerWrite {
    pub(crate) volume: VolumeNumber,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    body: Body,
    flags: DpFlags,
    block_id: [u8; 8],
    epoch: ReceiveEpoch,
    /// The connection that it came on, by its count.
    link: u64,
    started: bool,
    pub(crate) logged: Logged,
    /// The peer has no disk: this is the only copy.
    only_copy: bool,
}

/// Everything in flight for the peer.
#[derive(Debug, Default)]
pub(crate) struct PeerIo {
    pub(crate) writes: Numbered<u64, PeerWrite>,
    reads: BTreeMap<u64, PeerRead>,
    bytes: u64,
    /// Bytes of the reads.
    read_bytes: u64,
    /// Disks whose flush for the epochs is still awaited, and whether one failed.
    flushing: u32,
    flush_failed: bool,
    /// Writes of a diskless Primary that came before the generation which says that only this disk has them.
    before_generation: Vec<(VolumeNumber, u64)>,
}

impl Resource {
    /// Whether the next packet of the data socket may be handled now. Asked before each; see `receiving_may_go_on`.
    pub(crate) fn may_receive_data(&self) -> bool {
        self.peer_io.bytes < BYTES_IN_FLIGHT_MAX
            && self.peer_io.read_bytes < READ_BYTES_MAX
            && self.resync_may_receive()
            && self.verify_may_receive()
            && self
                .connection
                .receive_epochs
                .as_ref()
                .is_none_or(|epochs| epochs.may_receive())
    }

    /// P_DATA. Errors are protocol errors, in words.
    pub(crate) fn on_peer_data(
        &mut self,
        number: VolumeNumber,
        packet: Data,
    ) -> Result<(), &'static str> {
        let length = packet.payload.len() as u32;
        let head = Trim {
            sector: packet.sector,
            block_id: packet.block_id,
            seq_num: packet.seq_num,
            dp_flags: packet.dp_flags,
            size: length,
        };
        self.on_peer_write(number, head, Body::Data(packet.payload))
    }

    /// P_TRIM.
    pub(crate) fn on_peer_trim(
        &mut self,
        number: VolumeNumber,
        packet: Trim,
    ) -> Result<(), &'static str> {
        self.on_peer_write(number, packet, Body::Discard)
    }

    /// P_ZEROES.
    pub(crate) fn on_peer_zeroes(
        &mut self,
        number: VolumeNumber,
        packet: Trim,
    ) -> Result<(), &'static str> {
        let unmap = if packet.dp_flags.contains(DpFlags::DISCARD) {
            Unmap::Allowed
        } else {
            Unmap::No
        };
        self.on_peer_write(number, packet, Body::Zeroes(unmap))
    }

    /// P_WSAME: one block repeated.
    pub(crate) fn on_peer_wsame(
        &mut self,
        number: VolumeNumber,
        packet: Wsame,
    ) -> Result<(), &'static str> {
        let size = packet.range.size;
        if size > WSAME_BYTES_MAX || packet.payload.is_empty() {
            return Err("a write-same larger than this node announced");
        }
        let mut data = BytesMut::with_capacity(size as usize);
        while data.len() < size as usize {
            let left = size as usize - data.len();
            data.extend_from_slice(&packet.payload[..left.min(packet.payload.len())]);
        }
        self.on_peer_write(number, packet.range, Body::Data(data.freeze()))
    }

    fn on_peer_write(
        &mut self,
        number: VolumeNumber,
        head: Trim,
        body: Body,
    ) -> Result<(), &'static str> {
        let link = self.connection.count;
        let early = self.planted(Planted::BarrierAckTooEarly);
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a write for an unknown volume")?;
        if volume.state.role == Role::Primary {
            return Err("a write for a Primary");
        }
        let epochs = self
            .connection
            .receive_epochs
            .as_mut()
            .ok_or("a write outside a connection")?;
        volume.counters.received_kib += u64::from(head.size) / 1024;
        let usable = volume.writes_locally();
        let (bytes, only_copy) = (volume.bytes, volume.state.pdsk < DiskState::Inconsistent);
        let offset = head
            .sector
            .checked_mul(512)
            .ok_or("a write beyond every device")?;
        let end = offset
            .checked_add(u64::from(head.size))
            .ok_or("a write beyond every device")?;
        if usable && (end > bytes || head.size == 0) {
            return Err("a write beyond the end of the device");
        }
        let epoch = epochs.write(number.0);
        if early {
            epochs.done(epoch);
        }
        let id = self.requests.next_id();
        let write = PeerWrite {
            volume: number,
            offset,
            length: head.size,
            body,
            flags: head.dp_flags,
            block_id: head.block_id,
            epoch,
            link,
            started: false,
            logged: Logged::default(),
            only_copy,
        };
        if !usable {
            self.acknowledge_write(&write, Packet::NegAck);
            self.epoch_write_done(epoch);
            return Ok(());
        }
        if head.dp_flags.contains(DpFlags::SEND_RECEIVE_ACK) {
            self.acknowledge_write(&write, Packet::RecvAck);
        }
        if self.planted(Planted::AckBeforeDisk) && head.dp_flags.contains(DpFlags::SEND_WRITE_ACK) {
            self.acknowledge_write(&write, Packet::WriteAck);
        }
        if only_copy && !self.planted(Planted::ForgetPeersOnlyCopy) {
            self.mark_out_of_sync(number, offset, head.size);
        }
        self.peer_io.bytes += u64::from(head.size);
        self.peer_io.writes.insert(id, write);
        self.take_peer_interval(number, id, offset..end);
        Ok(())
    }

    fn take_peer_interval(&mut self, number: VolumeNumber, id: u64, range: core::ops::Range<u64>) {
        let ignore = self.planted(Planted::IgnorePeerOverlap);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.intervals.insert(id, range, IntervalKind::Peer) == Admission::Ready || ignore {
            self.peer_interval_ready(number, id);
        }
    }

    fn generation_is_pending(&self, number: VolumeNumber) -> bool {
        self.volumes
            .get(&number)
            .is_some_and(|volume| volume.generation_pending)
    }

    /// The generation of the only disk is durable: writes that would be missed without it go on.
    pub(crate) fn peer_generation_durable(&mut self, number: VolumeNumber) {
        let (ready, others) = core::mem::take(&mut self.peer_io.before_generation)
            .into_iter()
            .partition(|(volume, _)| *volume == number);
        self.peer_io.before_generation = others;
        let ready: Vec<(VolumeNumber, u64)> = ready;
        for (_, id) in ready {
            if self.peer_io.writes.contains_key(&id) {
                self.log_write(id);
            }
        }
    }

    /// Nothing overlaps any more: the write or read goes on.
    pub(super) fn peer_interval_ready(&mut self, number: VolumeNumber, id: u64) {
        let started = self.peer_io.writes.get(&id).is_some_and(|at| at.started);
        if started && self.planted(Planted::IgnorePeerOverlap) {
            return;
        }
        match self.peer_io.writes.get(&id) {
            Some(write) if write.only_copy && self.generation_is_pending(number) => {
                self.peer_io.before_generation.push((number, id));
            }
            Some(write) if write.only_copy => self.log_write(id),
            Some(_) => self.start_peer_write(id),
            None => self.start_peer_read(number, id),
        }
    }

    /// The write's extents are in the activity log where that is needed.
    pub(super) fn start_peer_write(&mut self, id: u64) {
        let Some(write) = self.peer_io.writes.get(&id) else {
            return;
        };
        let (number, only_copy) = (write.volume, write.only_copy);
        if !self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.writes_locally())
        {
            self.finish_peer_write(id, Err(()));
            return;
        }
        if only_copy && self.waits_for_the_primary_mark(number, id) {
            return;
        }
        let Some(write) = self.peer_io.writes.get(&id) else {
            return;
        };
        if write.flags.contains(DpFlags::FLUSH) {
            self.flush_local(number, Waiter::PeerWrite(id));
        } else {
            self.submit_peer_write(id);
        }
    }

    /// The flush that a write asked for is done.
    pub(super) fn peer_write_flushed(&mut self, number: VolumeNumber, id: u64, ok: bool) {
        let usable = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.writes_locally());
        if ok && usable {
            self.submit_peer_write(id);
        } else {
            self.finish_peer_write(id, Err(()));
        }
    }

    fn submit_peer_write(&mut self, id: u64) {
        let Some(write) = self.peer_io.writes.get_mut(&id) else {
            return;
        };
        write.started = true;
        let fua = if write.flags.contains(DpFlags::FUA) {
            Fua::Yes
        } else {
            Fua::No
        };
        let (number, offset, length) = (write.volume, write.offset, write.length);
        let operation = match &write.body {
            Body::Data(data) => DiskOperation::Write {
                offset,
                data: data.clone(),
                fua,
            },
            Body::Discard => DiskOperation::Discard {
                offset,
                length,
                fua,
            },
            Body::Zeroes(unmap) => DiskOperation::Zero {
                offset,
                length,
                unmap: *unmap,
                fua,
            },
        };
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.counters.disk_written_kib += u64::from(length) / 1024;
        }
        self.disk(number, Pending::Peer(number, Io::Write(id)), operation);
    }

    /// An I/O for the peer ended.
    pub(super) fn peer_io_done(
        &mut self,
        number: VolumeNumber,
        io: Io,
        result: Result<Bytes, IoError>,
    ) {
        match io {
            Io::Write(id) => {
                let outcome = result.as_ref().map(|_| ()).map_err(|_| ());
                self.finish_peer_write(id, outcome);
                if let Err(error) = result {
                    self.local_io_error(number, DiskFault::Write, error);
                }
            }
            Io::Read(id) => self.finish_peer_read(number, id, result),
        }
    }

    fn finish_peer_write(&mut self, id: u64, outcome: Result<(), ()>) {
        let Some(write) = self.peer_io.writes.remove(&id) else {
            return;
        };
        self.peer_io.bytes -= u64::from(write.length);
        let number = write.volume;
        match outcome {
            Ok(()) => self.acknowledge_success(&write),
            Err(()) => {
                self.mark_out_of_sync(number, write.offset, write.length);
                self.acknowledge_write(&write, Packet::NegAck);
            }
        }
        if let Some(extents) = write.logged.extents.clone() {
            self.release_extents(number, extents);
        }
        self.release_interval(number, id);
        if write.link == self.connection.count {
            self.epoch_write_done(write.epoch);
        }
        self.receiving_may_go_on();
    }

    fn acknowledge_success(&mut self, write: &PeerWrite) {
        if write.link != self.connection.count || self.planted(Planted::AckBeforeDisk) {
            return;
        }
        let conn = self
            .volumes
            .get(&write.volume)
            .map(|volume| volume.state.conn);
        let resync = conn.is_some_and(ConnState::is_resync);
        let in_sync = resync && write.flags.contains(DpFlags::MAY_SET_IN_SYNC) && !write.only_copy;
        if in_sync {
            self.clear_in_sync(write.volume, write.offset, write.length);
        }
        if write.flags.contains(DpFlags::SEND_WRITE_ACK) {
            let ack = if in_sync {
                Packet::RsWriteAck
            } else {
                Packet::WriteAck
            };
            self.acknowledge_write(write, ack);
        }
    }

    /// Sends an acknowledgement, on the connection that brought the write only.
    fn acknowledge_write(&mut self, write: &PeerWrite, packet: fn(BlockAck) -> Packet) {
        let linked = write.link == self.connection.count && self.connection.link.is_some();
        let Some(volume) = self.volumes.get_mut(&write.volume) else {
            return;
        };
        if !linked || volume.state.conn < ConnState::Connected {
            return;
        }
        let seq_num = volume.peer.next_sequence();
        let ack = BlockAck {
            sector: write.offset / 512,
            block_id: write.block_id,
            blksize: write.length,
            seq_num,
        };
        self.send(Some(write.volume), packet(ack));
    }

    fn epoch_write_done(&mut self, epoch: ReceiveEpoch) {
        if let Some(epochs) = self.connection.receive_epochs.as_mut() {
            epochs.done(epoch);
        }
        self.step_receive_epochs();
    }

    /// P_BARRIER.
    pub(crate) fn on_barrier(&mut self, barrier: Barrier) {
        if let Some(epochs) = self.connection.receive_epochs.as_mut() {
            epochs.barrier(u32::from_be_bytes(barrier.barrier));
        }
        self.step_receive_epochs();
    }

    fn step_receive_epochs(&mut self) {
        loop {
            let step = self
                .connection
                .receive_epochs
                .as_mut()
                .and_then(|epochs| epochs.next_step());
            match step {
                None => break,
                Some(NextStep::Acknowledge { number, count }) => {
                    let ack = BarrierAck {
                        barrier: number.to_be_bytes(),
                        set_size: count,
                    };
                    self.send(None, Packet::BarrierAck(ack));
                }
                Some(NextStep::Flush { volumes }) => self.flush_for_epochs(&volumes),
            }
        }
        self.receiving_may_go_on();
    }

    fn flush_for_epochs(&mut self, volumes: &[u16]) {
        self.peer_io.flush_failed = false;
        let with_disk: Vec<VolumeNumber> = volumes
            .iter()
            .map(|number| VolumeNumber(*number))
            .filter(|number| {
                self.volumes.get(number).is_some_and(|volume| {
                    let flushed = (volume.detach.as_ref()).is_some_and(Detach::is_flushed);
                    volume.backing.is_some() && !flushed
                })
            })
            .collect();
        self.peer_io.flushing = with_disk.len() as u32;
        if with_disk.is_empty() || self.planted(Planted::BarrierAckWithoutFlush) {
            // Every write of these epochs was refused, or flushed before its disk was closed: there is nothing that could be lost.
            self.epochs_flushed(FlushOutcome::Stable);
            return;
        }
        let link = self.connection.count;
        for number in with_disk {
            self.flush_local(number, Waiter::PeerEpochs(link));
        }
    }

    /// The flush of one disk for the peer's epochs ended.
    pub(super) fn peer_epochs_flushed(&mut self, _number: VolumeNumber, ok: bool) {
        if self.peer_io.flushing == 0 {
            return; // Of a connection that is gone.
        }
        self.peer_io.flushing -= 1;
        self.peer_io.flush_failed |= !ok;
        if self.peer_io.flushing > 0 {
            return;
        }
        if self.peer_io.flush_failed {
            self.epochs_flushed(FlushOutcome::Failed);
            self.link_lost(
                ConnState::NetworkFailure,
                "the disk could not make the peer's writes durable",
            );
        } else {
            self.epochs_flushed(FlushOutcome::Stable);
            self.step_receive_epochs();
        }
    }

    fn epochs_flushed(&mut self, outcome: FlushOutcome) {
        if let Some(epochs) = self.connection.receive_epochs.as_mut() {
            epochs.flushed(outcome);
        }
    }

    /// P_OUT_OF_SYNC: the peer wrote here without sending it.
    pub(crate) fn on_out_of_sync(
        &mut self,
        number: VolumeNumber,
        range: BlockDesc,
    ) -> Result<(), &'static str> {
        let bytes = self
            .volumes
            .get(&number)
            .ok_or("a packet for an unknown volume")?
            .bytes;
        let offset = range
            .sector
            .checked_mul(512)
            .ok_or("a range beyond every device")?;
        if offset
            .checked_add(u64::from(range.blksize))
            .is_none_or(|end| end > bytes)
        {
            return Err("a range beyond the end of the device");
        }
        self.mark_out_of_sync(number, offset, range.blksize);
        Ok(())
    }

    /// The link is lost. What was received ends without an acknowledgement, also what waits for its range: under protocol B it is answered.
    /// What waits until this disk says that it has the only copy is forgotten: nobody has answered it.
    pub(crate) fn peer_io_connection_lost(&mut self) {
        self.connection.receive_epochs = None;
        self.peer_io.flushing = 0;
        let unstarted: Vec<u64> = self
            .peer_io
            .writes
            .iter()
            .filter(|(_, write)| !write.started && write.only_copy)
            .map(|(id, _)| id)
            .collect();
        for id in unstarted {
            if let Some(write) = self.peer_io.writes.remove(&id) {
                self.peer_io.bytes -= u64::from(write.length);
                self.forget_log_waiter(write.volume, id);
                if let Some(extents) = write.logged.extents {
                    self.release_extents(write.volume, extents);
                }
                self.release_interval(write.volume, id);
            }
        }
    }

    /// Whether disk I/O for the peer is still under way: a new connection waits for its end (2.11 step 3).
    pub(crate) fn peer_io_in_flight(&self) -> bool {
        !self.peer_io.writes.is_empty()
            || !self.peer_io.reads.is_empty()
            || self.resync_io_in_flight()
    }

    /// Requests of the peer on a volume that are not answered (`ua` of the status).
    pub(crate) fn unacked_of_peer(&self, number: VolumeNumber) -> u32 {
        let writes = self
            .peer_io
            .writes
            .values()
            .filter(|write| write.volume == number)
            .count();
        let reads = self
            .peer_io
            .reads
            .values()
            .filter(|read| read.volume == number)
            .count();
        (writes + reads) as u32
    }
}
