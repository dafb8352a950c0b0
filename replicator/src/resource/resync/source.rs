//! The source's side: requests of the target are answered, its acknowledgements clear bits (wire-protocol.md 6.4, 6.5).
//!
//! A block is read while its interval is held, and the interval is given back right after the answer is queued: what the
//! application writes there later follows the answer on the socket, what it wrote before is in it.

use core::time::Duration;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BlockAck, BlockDesc, BlockRequest, Data, DpFlags, HashedRequest};

use super::{Io, Part, Phase, Resync, Run};
use crate::bitmap::{bits_covered, bits_touched};
use crate::effect::DiskOperation;
use crate::event::{IoError, VolumeNumber};
use crate::generations::{Uuids, masked};
use crate::intervals::{Admission, IntervalKind};
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::resource::plan::{Pages, Stage as PlanStage, Then};
use crate::resource::{Pending, Resource};
use crate::resync::controller::{Load, MinRateThrottle, Throttle};
use crate::state::word::{ConnState, DiskState, Role, State};
use crate::time::Time;

/// Bytes that are read for targets at one time before the data socket is not read any more.
pub(super) const READ_BYTES_MAX: u64 = 32 << 20;

/// Bytes that were handed to the data socket and not taken before it is not read any more: a target that asks and does not
/// listen.
pub(super) const UNSENT_BYTES_MAX: u64 = 128 << 20;

/// A request that comes while the application is busy waits this long (state-machine.md 6.9).
const DELAY: Duration = Duration::from_millis(100);

/// The bitmap on disk learns at most this often of what is done (metadata.md 4: write-out during resync).
const WRITE_OUT_INTERVAL: Duration = Duration::from_secs(2);

/// What only a source remembers.
#[derive(Debug, Default)]
pub(super) struct Source {
    throttle: MinRateThrottle,
    /// Sectors that were read for the target.
    pub(super) sectors: u64,
    /// Sectors that the target was sent and did not acknowledge.
    unacknowledged: u64,
    /// Blocks whose digests were equal.
    pub(super) same: u64,
    /// The target said that it is done, with its disk in this state, while bits were left here.
    pub(super) peer_done: Option<DiskState>,
    /// When the bitmap on disk is to learn next of what is done; none before the first block.
    write_out_due: Option<Time>,
}

impl Source {
    /// A block is done: whether the bitmap on disk is to learn of it now.
    fn write_out(&mut self, now: Time) -> bool {
        let due = *self.write_out_due.get_or_insert(now + WRITE_OUT_INTERVAL);
        if now < due {
            return false;
        }
        self.write_out_due = Some(now + WRITE_OUT_INTERVAL);
        true
    }
}

/// How a request asks.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// For the data.
    Data,
    /// For the data, or the word that all of it is zero.
    Thin,
    /// For the data unless its digest is this.
    Digest(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Held back for the application.
    Delayed(Time),
    /// Waits for writes that overlap it.
    Waits,
    /// The disk is reading.
    Started,
}

/// A block that the target asked for.
#[derive(Debug)]
pub(super) struct Read {
    request: BlockRequest,
    question: Question,
    /// The connection that asked, by its count.
    link: u64,
    /// The resync that it belongs to.
    run: Option<Run>,
    stage: Stage,
}

impl Read {
    pub(super) fn is_started(&self) -> bool {
        self.stage == Stage::Started
    }

    pub(super) fn length(&self) -> u32 {
        self.request.blksize
    }

    /// When a delayed one goes on.
    pub(super) fn due(&self) -> Option<Time> {
        match self.stage {
            Stage::Delayed(due) => Some(due),
            Stage::Waits | Stage::Started => None,
        }
    }
}

impl Resource {
    /// P_RS_DATA_REQUEST. Errors are protocol errors, in words.
    pub(crate) fn on_resync_request(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
    ) -> Result<(), &'static str> {
        self.on_sync_request(number, request, Question::Data)
    }

    /// P_RS_THIN_REQ.
    pub(crate) fn on_resync_thin_request(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
    ) -> Result<(), &'static str> {
        self.on_sync_request(number, request, Question::Thin)
    }

    /// P_CSUM_RS_REQUEST.
    pub(crate) fn on_resync_csum_request(
        &mut self,
        number: VolumeNumber,
        hashed: HashedRequest,
    ) -> Result<(), &'static str> {
        self.on_sync_request(number, hashed.request, Question::Digest(hashed.digest))
    }

    fn on_sync_request(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
        question: Question,
    ) -> Result<(), &'static str> {
        let volume = self
            .volumes
            .get(&number)
            .ok_or("a resync request for an unknown volume")?;
        let end = request
            .sector
            .checked_mul(512)
            .and_then(|offset| offset.checked_add(u64::from(request.blksize)))
            .ok_or("a resync request beyond every device")?;
        if volume.state.disk != DiskState::UpToDate || volume.backing.is_none() {
            self.refuse_block(number, request);
            return Ok(());
        }
        if end > volume.bytes {
            return Err("a resync request beyond the end of the device");
        }
        let stage = match self.source_throttle(number) {
            Throttle::Free => Stage::Waits,
            Throttle::Throttled => Stage::Delayed(self.now + DELAY),
        };
        let (id, link) = (self.requests.next_id(), self.connection.count);
        if let Some(volume) = self.volumes.get_mut(&number) {
            let run = volume.resync.as_ref().map(|resync| resync.run);
            let read = Read {
                request,
                question,
                link,
                run,
                stage,
            };
            volume.sync_io.insert_read(id, read);
        }
        if stage == Stage::Waits {
            self.take_read_interval(number, id);
        }
        Ok(())
    }

    fn source_throttle(&mut self, number: VolumeNumber) -> Throttle {
        let (now, waiting) = (self.now, self.log_waiters(number));
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Throttle::Free;
        };
        let left = volume.resync_left();
        let (peer, minimum) = (volume.state.peer, volume.options.c_min_rate);
        let all = 2 * (volume.counters.disk_read_kib + volume.counters.disk_written_kib);
        let Some(resync) = volume.resync.as_mut() else {
            return Throttle::Free;
        };
        let rate = resync.progress.rate(now, left);
        let Some(source) = resync.source() else {
            return Throttle::Free;
        };
        if peer == Role::Primary {
            return Throttle::Free;
        }
        let load = Load {
            waiting_for_activity_log: waiting,
            other_sectors: all.saturating_sub(source.sectors),
            rate,
        };
        source.throttle.check(minimum, &load)
    }

    /// Writes of applications that wait for the activity log.
    pub(in crate::resource) fn log_waiters(&self, number: VolumeNumber) -> usize {
        self.requests
            .log_waiters
            .get(&number)
            .map_or(0, |waiters| waiters.len())
    }

    pub(super) fn start_delayed_reads(&mut self, number: VolumeNumber) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let due: Vec<u64> = volume
            .sync_io
            .reads
            .iter_mut()
            .filter(|(_, read)| read.due().is_some_and(|due| due <= now))
            .map(|(id, read)| {
                read.stage = Stage::Waits;
                *id
            })
            .collect();
        volume.sync_io.delayed -= due.len();
        for id in due {
            self.take_read_interval(number, id);
        }
    }

    fn take_read_interval(&mut self, number: VolumeNumber, id: u64) {
        if self.planted(Planted::SourceReadsDuringWrite) {
            self.start_sync_read(number, id);
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(read) = volume.sync_io.reads.get(&id) else {
            return;
        };
        let offset = read.request.sector * 512;
        let range = offset..offset + u64::from(read.request.blksize);
        if volume.intervals.insert(id, range, IntervalKind::Resync) == Admission::Ready {
            self.start_sync_read(number, id);
        }
    }

    pub(super) fn start_sync_read(&mut self, number: VolumeNumber, id: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let usable = volume.state.disk == DiskState::UpToDate && volume.backing.is_some();
        let Some(read) = volume.sync_io.reads.get_mut(&id) else {
            return;
        };
        let (offset, length) = (read.request.sector * 512, read.request.blksize);
        if !usable {
            self.answer_read(number, id, None);
            return;
        }
        let delayed = read.due().is_some();
        read.stage = Stage::Started;
        volume.sync_io.delayed -= usize::from(delayed);
        volume.counters.disk_read_kib += u64::from(length) / 1024;
        if let Some(source) = volume.resync.as_mut().and_then(Resync::source) {
            source.sectors += u64::from(length) / 512;
        }
        let operation = DiskOperation::Read { offset, length };
        self.disk(number, Pending::Resync(number, Io::Read(id)), operation);
    }

    pub(super) fn finish_sync_read(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let length = self
            .volumes
            .get(&number)
            .and_then(|volume| volume.sync_io.reads.get(&id))
            .map_or(0, Read::length);
        let error = match result {
            Ok(data) if data.len() == length as usize => {
                self.answer_read(number, id, Some(data));
                return;
            }
            Ok(data) => IoError {
                text: format!("short read of {} instead of {length} bytes", data.len()),
            },
            Err(error) => error,
        };
        self.answer_read(number, id, None);
        self.local_io_error(number, DiskFault::Read, error);
    }

    /// The one answer of a request, and the end of its interval. None: the block cannot be read.
    fn answer_read(&mut self, number: VolumeNumber, id: u64, data: Option<Bytes>) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(read) = volume.sync_io.take_read(id) else {
            return;
        };
        let same_run = read.run == volume.resync.as_ref().map(|resync| resync.run);
        let linked = read.link == self.connection.count && self.connection.link.is_some();
        // A peer whose disk is gone asked before that: it wants no answer.
        if linked && same_run && volume.state.pdsk >= DiskState::Inconsistent {
            match data {
                Some(data) => self.answer_with(number, &read, data),
                None => {
                    self.count_failed(number, read.request.sector * 512, read.request.blksize);
                    self.refuse_block(number, read.request);
                }
            }
        }
        self.release_interval(number, id);
        self.receiving_may_go_on();
        self.check_end(number);
    }

    fn answer_with(&mut self, number: VolumeNumber, read: &Read, payload: Bytes) {
        let request = read.request;
        let failed = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.write_failed);
        if !failed
            && matches!(&read.question, Question::Digest(digest) if self.equals(digest, &payload))
        {
            self.answer_in_sync(number, request);
            return;
        }
        if let Some(source) = self.source_of(number) {
            source.unacknowledged += u64::from(request.blksize) / 512;
        }
        match &read.question {
            Question::Thin if self.tape.is(|| payload.iter().all(|byte| *byte == 0)) => {
                let range = BlockDesc {
                    sector: request.sector,
                    blksize: request.blksize,
                    pad: 0,
                };
                self.send(Some(number), Packet::RsDeallocated(range));
            }
            Question::Data | Question::Thin | Question::Digest(_) => {
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.counters.sent_kib += payload.len() as u64 / 1024;
                }
                let digest = self.integrity_digest(&payload);
                let reply = Data {
                    sector: request.sector,
                    block_id: request.block_id,
                    seq_num: 0,
                    dp_flags: DpFlags::NONE,
                    digest,
                    payload,
                };
                self.send(Some(number), Packet::RsDataReply(reply));
            }
        }
    }

    fn source_of(&mut self, number: VolumeNumber) -> Option<&mut Source> {
        let volume = self.volumes.get_mut(&number)?;
        volume.resync.as_mut().and_then(Resync::source)
    }

    /// Whether the target of this source, in this state, may have a disk that is UpToDate in this node's generation: it has everything, and
    /// was not heard (T23), since every set bit may be of a block that was sent, of a write on its way, or of what only this node's disk
    /// failed; or it had the same generation before, and may have lost its power before it was told that it is a target (rules 36, 40,
    /// 41); or the two are in sync.
    pub(crate) fn target_may_have_the_generation(
        &self,
        number: VolumeNumber,
        state: &State,
    ) -> bool {
        if self.asks_to_detach(number) {
            return true;
        }
        if state.pdsk == DiskState::UpToDate {
            // In sync, although this node's bitmap still counts: the peer's disk has it for certain.
            let volume = self.volumes.get(&number);
            return volume.is_some_and(|volume| volume.generations.uuids.bitmap != 0);
        }
        let is_source = matches!(
            state.conn,
            ConnState::StartingSyncS
                | ConnState::WFBitMapS
                | ConnState::SyncSource
                | ConnState::PausedSyncS
        );
        let Some(volume) = self.volumes.get(&number).filter(|_| is_source) else {
            return false;
        };
        let sent = match volume.resync.as_ref().map(|resync| &resync.role) {
            Some(Part::Source(source)) => source.unacknowledged,
            _ => 0,
        };
        let writes = self.requests.writes.values();
        let on_their_way: u64 = writes
            .filter(|write| write.volume == number && write.epoch.is_some())
            .map(|write| u64::from(write.length) / 512)
            .sum();
        let current = |set: &Uuids| masked(set.current);
        let same = volume
            .peer
            .uuids
            .is_some_and(|peer| current(&peer.set) == current(&volume.generations.uuids));
        // What this disk failed has bits here that the target need not have.
        let own_bits =
            volume.write_failed || volume.backing.as_ref().is_some_and(|at| at.read_failed);
        // The last bit of a device may cover less than 4 KiB.
        same || own_bits || volume.bits_set() <= (sent + on_their_way).div_ceil(8)
    }

    /// The target has the same: nothing is sent, and it acknowledges nothing any more (6.3).
    fn answer_in_sync(&mut self, number: VolumeNumber, request: BlockRequest) {
        let ack = self.block_ack(number, request);
        self.clear_synced(number, request.sector * 512, request.blksize);
        if let Some(source) = self.source_of(number) {
            source.same += u64::from(request.blksize.div_ceil(4096));
        }
        self.send(Some(number), Packet::RsIsInSync(ack));
    }

    /// Whether the digest by csums-alg is that of the data; an algorithm that this node does not have says no.
    fn equals(&mut self, digest: &[u8], data: &[u8]) -> bool {
        if self.planted(Planted::TakeAnyDigestForEqual) {
            return true;
        }
        let net = self.connection.net.as_ref();
        let algorithm = net.and_then(|net| DigestAlgorithm::from_name(&net.csums_alg));
        algorithm.is_some_and(|algorithm| self.tape.is(|| algorithm.matches(data, digest)))
    }

    pub(in crate::resource) fn refuse_block(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
    ) {
        let ack = self.block_ack(number, request);
        self.send(Some(number), Packet::NegRsDreply(ack));
    }

    fn block_ack(&mut self, number: VolumeNumber, request: BlockRequest) -> BlockAck {
        let volume = self.volumes.get_mut(&number);
        BlockAck {
            sector: request.sector,
            block_id: request.block_id,
            blksize: request.blksize,
            seq_num: volume.map_or(0, |volume| volume.peer.next_sequence()),
        }
    }

    /// P_RS_WRITE_ACK with the block id of resyncs: the target wrote a block. Errors are protocol errors, in words.
    pub(crate) fn on_resync_ack(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        self.on_block_ack(number, ack, Written::Yes)
    }

    /// P_NEG_ACK with the block id of resyncs: the target could not write a block.
    pub(crate) fn on_resync_neg_ack(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        self.on_block_ack(number, ack, Written::No)
    }

    fn on_block_ack(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
        written: Written,
    ) -> Result<(), &'static str> {
        let volume = self
            .volumes
            .get(&number)
            .ok_or("a resync acknowledgement for an unknown volume")?;
        let offset = ack
            .sector
            .checked_mul(512)
            .ok_or("a resync acknowledgement beyond every device")?;
        if offset
            .checked_add(u64::from(ack.blksize))
            .is_none_or(|end| end > volume.bytes)
        {
            return Err("a resync acknowledgement beyond the end of the device");
        }
        let source = matches!(
            volume.state.conn,
            ConnState::SyncSource | ConnState::PausedSyncS
        );
        if !source {
            return Ok(());
        }
        if let Some(source) = self.source_of(number) {
            let sectors = u64::from(ack.blksize) / 512;
            source.unacknowledged = source.unacknowledged.saturating_sub(sectors);
        }
        match written {
            Written::Yes => self.clear_synced(number, offset, ack.blksize),
            Written::No => self.count_failed(number, offset, ack.blksize),
        }
        self.check_end(number);
        Ok(())
    }

    /// Both nodes have the same here. Now and then the bitmap on disk learns of it: a source that dies goes on where it was.
    fn clear_synced(&mut self, number: VolumeNumber, offset: u64, length: u32) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let bits = bits_covered(offset, u64::from(length), volume.bytes);
        let Some(backing) = volume.backing.as_mut() else {
            volume.note_progress(now);
            return;
        };
        backing.bitmap.clear(bits);
        volume.note_progress(now);
        // A slow disk is asked once.
        let waits = volume.plans.has(Then::Nothing);
        let source = volume.resync.as_mut().and_then(Resync::source);
        if !waits && source.is_some_and(|source| source.write_out(now)) {
            let pages = vec![PlanStage::BitmapPages(Pages::AllChanged)];
            self.start_plan(number, pages, Then::Nothing);
        }
    }

    /// Blocks that stay out of sync, on either side.
    pub(super) fn count_failed(&mut self, number: VolumeNumber, offset: u64, length: u32) {
        self.differs_since(number, offset, length);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let bits = bits_touched(offset, u64::from(length), volume.bytes);
        if let Some(resync) = volume.resync.as_mut() {
            resync.failed += bits.end - bits.start;
        }
        let text = format!(
            "resync: {} KiB at {} KiB failed and stay out of sync",
            length / 1024,
            offset / 1024
        );
        self.log(crate::effect::Level::Warn, Some(number), text);
    }

    /// The target says (by P_STATE) that its resync is over and its disk UpToDate (wire-protocol.md 4.6 step 3).
    pub(crate) fn resync_target_finished(&mut self, number: VolumeNumber) {
        self.target_is_done(number, DiskState::UpToDate);
    }

    /// The target says that its resync is over, with blocks that failed. A kernel's source would wait for the next
    /// connection.
    pub(crate) fn resync_target_gave_up(&mut self, number: VolumeNumber) {
        self.target_is_done(number, DiskState::Inconsistent);
    }

    fn target_is_done(&mut self, number: VolumeNumber, disk: DiskState) {
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        if let Some(source) = resync.and_then(Resync::source) {
            source.peer_done = Some(disk);
            // Bits of the application's own writes go with their barrier acks: have the target send them.
            self.close_epoch();
            self.check_end(number);
        }
    }

    /// The target is done, and no bit is left but those of blocks that failed: so is the source.
    pub(super) fn check_source_end(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let left = volume.bits_set();
        let busy = !volume.sync_io.reads.is_empty();
        let Some(resync) = volume.resync.as_mut() else {
            return;
        };
        let (running, failed) = (resync.phase == Phase::Running, resync.failed);
        let Some(disk) = resync.source().and_then(|source| source.peer_done) else {
            return;
        };
        // Bits that are left with a target that failed are all that it could not write.
        let over = left <= failed || disk < DiskState::UpToDate;
        if running && over && !busy {
            self.finish_source(number, disk);
        }
    }
}

/// What an acknowledgement of the target says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// The block is on its disk.
    Yes,
    /// It could not write it.
    No,
}
