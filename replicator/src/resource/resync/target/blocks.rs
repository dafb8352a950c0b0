//! Blocks that arrive at the target: written, acknowledged, made durable.

use alloc::vec;

use bytes::Bytes;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BLOCK_ID_SYNCER, BlockAck, BlockDesc, Data};

use super::{Asked, Asking, BLOCK_BYTES, UNFLUSHED_MAX};
use crate::bitmap::bits_touched;
use crate::effect::DiskOperation;
use crate::event::{Fua, IoError, Unmap, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::resource::plan::{Pages, Stage as PlanStage, Then};
use crate::resource::resync::{AfterPlan, Io, Resync};
use crate::resource::volume::Volume;
use crate::resource::{Pending, Resource};
use crate::state::word::ConnState;

#[derive(Clone, Debug)]
enum Body {
    Data(Bytes),
    /// The source has only zeroes here.
    Zeroes,
}

/// A block that arrived.
#[derive(Debug)]
pub(in crate::resource::resync) struct Write {
    offset: u64,
    pub(super) length: u32,
    body: Body,
    /// The connection that brought it, by its count.
    link: u64,
    started: bool,
}

impl Write {
    pub(in crate::resource::resync) fn is_started(&self) -> bool {
        self.started
    }

    /// Blocks of 4 KiB, the last one of an oddly sized device not counted.
    pub(in crate::resource::resync) fn blocks(&self) -> u32 {
        self.length / BLOCK_BYTES
    }
}

impl Resource {
    /// P_RS_DATA_REPLY. Errors are protocol errors, in words.
    pub(crate) fn on_resync_reply(
        &mut self,
        number: VolumeNumber,
        reply: Data,
    ) -> Result<(), &'static str> {
        let length = u32::try_from(reply.payload.len()).unwrap_or(u32::MAX);
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.counters.received_kib += u64::from(length) / 1024;
        }
        self.block_arrived(number, reply.sector, length, Body::Data(reply.payload))
    }

    /// P_RS_DEALLOCATED: all of the block is zero on the source.
    pub(crate) fn on_resync_deallocated(
        &mut self,
        number: VolumeNumber,
        range: BlockDesc,
    ) -> Result<(), &'static str> {
        self.block_arrived(number, range.sector, range.blksize, Body::Zeroes)
    }

    fn block_arrived(
        &mut self,
        number: VolumeNumber,
        sector: u64,
        length: u32,
        body: Body,
    ) -> Result<(), &'static str> {
        let link = self.connection.count;
        let fresh = self.requests.next_id();
        let hurry = self.planted(Planted::TargetOverwritesNewer);
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a resync block of an unknown volume")?;
        if volume.resync.is_none() {
            // The disk failed in the meantime. Every block has its one acknowledgement.
            self.acknowledge_block(number, sector, length, Packet::NegAck);
            return Ok(());
        }
        let block = take_asked(volume, sector, length)?;
        let offset = sector * 512;
        let id = if block.interval { block.id } else { fresh };
        let write = Write {
            offset,
            length,
            body,
            link,
            started: false,
        };
        volume.sync_io.insert_write(id, write);
        let range = offset..offset + u64::from(length);
        let ready = if hurry {
            true
        } else if block.interval {
            volume.intervals.is_ready(id)
        } else {
            volume.intervals.insert(id, range, IntervalKind::Resync) == Admission::Ready
        };
        if ready {
            self.start_sync_write(number, id);
        }
        Ok(())
    }

    pub(in crate::resource::resync) fn start_sync_write(&mut self, number: VolumeNumber, id: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let usable = volume.writes_locally();
        let Some(write) = volume.sync_io.writes.get_mut(&id) else {
            return;
        };
        if core::mem::replace(&mut write.started, true) {
            return;
        }
        let (offset, length) = (write.offset, write.length);
        let operation = match &write.body {
            Body::Data(data) => DiskOperation::Write {
                offset,
                data: data.clone(),
                fua: Fua::No,
            },
            Body::Zeroes => DiskOperation::Zero {
                offset,
                length,
                unmap: Unmap::Allowed,
                fua: Fua::No,
            },
        };
        if !usable {
            self.block_done(number, id, false);
            return;
        }
        volume.counters.disk_written_kib += u64::from(length) / 1024;
        if let Some(target) = volume.resync.as_mut().and_then(Resync::target) {
            target.sectors += u64::from(length) / 512;
        }
        self.disk(number, Pending::Resync(number, Io::Write(id)), operation);
    }

    pub(in crate::resource::resync) fn finish_sync_write(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<(), IoError>,
    ) {
        self.block_done(number, id, result.is_ok());
        if let Err(error) = result {
            self.local_io_error(number, DiskFault::Write, error);
        }
    }

    /// A block is on the disk, or could not be written: its acknowledgement, and the end of its interval.
    fn block_done(&mut self, number: VolumeNumber, id: u64, written: bool) {
        let now = self.now;
        let early = self.planted(Planted::ClearBitsBeforeData);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(write) = volume.sync_io.take_write(id) else {
            return;
        };
        if write.link == self.connection.count && self.connection.link.is_some() {
            let target = volume.resync.as_mut().and_then(Resync::target);
            let counted = target.is_some();
            if let Some(target) = target.filter(|_| written) {
                let bits = bits_touched(write.offset, u64::from(write.length), volume.bytes);
                if let Some(backing) = volume.backing.as_mut().filter(|_| early) {
                    backing.bitmap.clear(bits.clone());
                }
                target.note_written(bits, now);
            }
            let ack = if written && counted {
                Packet::RsWriteAck
            } else {
                Packet::NegAck
            };
            self.acknowledge_block(number, write.offset / 512, write.length, ack);
            if !written {
                self.count_failed(number, write.offset, write.length);
            }
        }
        if early {
            let pages = vec![PlanStage::BitmapPages(Pages::AllChanged)];
            self.start_plan(number, pages, Then::Nothing);
        }
        self.release_interval(number, id);
        self.after_block(number);
    }

    /// A block is off the list: others may be asked for, or the end is reached.
    fn after_block(&mut self, number: VolumeNumber) {
        self.ask_more(number);
        let full = self
            .target_runs(number)
            .is_some_and(|target| target.written.len() >= UNFLUSHED_MAX);
        if full {
            self.flush_blocks(number);
        }
        self.check_end(number);
    }

    fn acknowledge_block(
        &mut self,
        number: VolumeNumber,
        sector: u64,
        length: u32,
        packet: fn(BlockAck) -> Packet,
    ) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.state.conn < ConnState::Connected {
            return;
        }
        let ack = BlockAck {
            sector,
            block_id: BLOCK_ID_SYNCER,
            blksize: length,
            seq_num: volume.peer.next_sequence(),
        };
        self.send(Some(number), packet(ack));
    }

    /// P_NEG_RS_DREPLY: the source cannot read the block. Errors are protocol errors, in words.
    pub(crate) fn on_resync_refused(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        if self.answered(number, ack)? {
            self.count_failed(number, ack.sector * 512, ack.blksize);
        }
        self.after_block(number);
        Ok(())
    }

    /// P_RS_CANCEL: the source gives no answer now. The bit stays, and the block is asked for again.
    pub(crate) fn on_resync_cancelled(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        self.answered(number, ack)?;
        self.after_block(number);
        Ok(())
    }

    /// P_RS_IS_IN_SYNC: the source has the same block. It may be in a volatile cache here, from a resync that was
    /// interrupted: its bits are cleared after a flush, like those of a written one. No further acknowledgement.
    pub(crate) fn on_resync_in_sync(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        let now = self.now;
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("an answer for an unknown volume")?;
        if volume.resync.is_none() {
            return Ok(());
        }
        let block = take_asked(volume, ack.sector, ack.blksize)?;
        if block.asking != Asking::SentDigest {
            return Err("a block is said to be in sync that was not compared");
        }
        let bits = bits_touched(ack.sector * 512, u64::from(ack.blksize), volume.bytes);
        if let Some(target) = volume.resync.as_mut().and_then(Resync::target) {
            target.same += bits.end - bits.start;
            target.note_written(bits, now);
        }
        if block.interval {
            self.release_interval(number, block.id);
        }
        self.after_block(number);
        Ok(())
    }

    /// Takes a request off the list. False if there is no resync any more.
    fn answered(&mut self, number: VolumeNumber, ack: &BlockAck) -> Result<bool, &'static str> {
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("an answer for an unknown volume")?;
        if volume.resync.is_none() {
            return Ok(false);
        }
        let block = take_asked(volume, ack.sector, ack.blksize)?;
        if block.interval {
            self.release_interval(number, block.id);
        }
        Ok(true)
    }

    /// Has the disk flushed; then the bits of what was written before are cleared.
    pub(super) fn flush_blocks(&mut self, number: VolumeNumber) {
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        let Some(resync) = resync else {
            return;
        };
        let run = resync.run;
        let Some(target) = resync.target() else {
            return;
        };
        if target.flush_running || target.written.is_empty() {
            return;
        }
        target.flush_running = true;
        target.flush_due = None;
        target.flushing = core::mem::take(&mut target.written);
        let then = Then::Resync(AfterPlan::Flushed(run));
        let stages = if self.planted(Planted::UpToDateWithoutFlush) {
            vec![]
        } else {
            vec![PlanStage::FlushData]
        };
        self.start_plan(number, stages, then);
    }

    pub(in crate::resource::resync) fn target_flushed(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(target) = volume.resync.as_mut().and_then(Resync::target) else {
            return;
        };
        target.flush_running = false;
        let durable = core::mem::take(&mut target.flushing);
        if let Some(backing) = volume.backing.as_mut() {
            for bits in durable {
                backing.bitmap.clear(bits);
            }
        }
        self.check_end(number);
        let runs = self.target_runs(number).is_some();
        if runs {
            // Not at the end: the change of state writes the pages then (2.9 no. 27).
            let pages = vec![PlanStage::BitmapPages(Pages::AllChanged)];
            self.start_plan(number, pages, Then::Nothing);
        }
    }

    /// The disk could not make blocks durable: what it lost is unknown, and it is judged as for any failed write.
    pub(in crate::resource::resync) fn flush_failed(&mut self, number: VolumeNumber) {
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        let Some(resync) = resync else {
            return;
        };
        let mut lost = 0;
        if let Some(target) = resync.target() {
            target.flush_running = false;
            target.progressed = false;
            lost = target
                .flushing
                .drain(..)
                .map(|range| range.end - range.start)
                .sum();
        }
        resync.failed += lost;
        self.check_end(number);
    }
}

fn take_asked(volume: &mut Volume, sector: u64, length: u32) -> Result<Asked, &'static str> {
    let target = volume.resync.as_mut().and_then(Resync::target);
    let target = target.ok_or("a resync block for a node that is no target")?;
    let offset = sector
        .checked_mul(512)
        .ok_or("a resync block beyond every device")?;
    let asked = target.asked.at(offset).copied();
    let block = asked
        .filter(|block| block.is_sent() && block.length == length)
        .ok_or("a resync block that was not asked for")?;
    target.asked.remove(offset);
    target.controller.answered(length / 512);
    Ok(block)
}
