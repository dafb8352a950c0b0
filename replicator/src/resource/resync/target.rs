//! The target's side: which blocks it asks for and when, how they get to its disk, and when that is durable
//! (state-machine.md 6.3, 6.9; wire-protocol.md 6.4).

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::features::Features;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BLOCK_ID_SYNCER, BlockRequest, HashedRequest};

use super::{Io, Phase, Resync};
use crate::effect::DiskOperation;
use crate::event::{IoError, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::resource::change::DiskFault;
use crate::resource::volume::{IoHold, Volume};
use crate::resource::{Pending, Resource};
use crate::resync::controller::{
    Load, MinRateThrottle, RateController, RateOptions, TURN, Throttle,
};
use crate::resync::merge::{RequestKind, RequestLimits, next_request};
use crate::state::word::{ConnState, Role};
use crate::time::Time;

mod asked;
mod blocks;

use asked::{Asked, AskedBlocks, Asking};
pub(super) use blocks::Write;

/// Written blocks are flushed, and their bits cleared, at least this often (2.14, lazy bitmap write-out).
const FLUSH_INTERVAL: Duration = Duration::from_secs(2);

/// Ranges of written blocks that wait for a flush; more are not kept back.
const UNFLUSHED_MAX: usize = 4096;

/// Largest request in bytes: small enough that a write of an application waits for it only briefly.
const REQUEST_BYTES_MAX: u32 = 256 << 10;

/// What one bit of the bitmap stands for.
const BLOCK_BYTES: u32 = 4096;

/// Blocks asked for and not yet on disk, at most: 4 MiB, what a peer can buffer (wire-protocol.md 6.7).
const WINDOW_BLOCKS_MAX: u32 = 1024;

/// Turns that are made up for when a timer comes late.
const LATE_TURNS_MAX: u64 = 4;

/// What only a target remembers.
#[derive(Debug)]
pub(super) struct Target {
    /// The next bit to look at.
    cursor: u64,
    /// Blocks that the source was, or will be, asked for.
    asked: AskedBlocks,
    controller: RateController,
    throttle: MinRateThrottle,
    /// Blocks that may still be asked for in this turn, and what the turn began with.
    budget: u32,
    turn_budget: u32,
    last_turn: Time,
    next_turn: Time,
    /// Bits of blocks that are written, and not flushed.
    written: Vec<Range<u64>>,
    /// Bits of blocks that were written before the flush that is running.
    flushing: Vec<Range<u64>>,
    flush_running: bool,
    flush_due: Option<Time>,
    /// Blocks failed: this time each is asked for by itself, to find those that really cannot be copied.
    narrow: bool,
    /// A block was written since the cursor was last at the beginning.
    progressed: bool,
    /// The role for which intervals are held: a Primary's are held from before the request.
    primary: bool,
    /// Sectors written for the resync.
    sectors: u64,
    rate_shown: u32,
    /// The ping whose answer proves that the source has seen every acknowledgement.
    pub(super) ping: u64,
    /// The source is asked whether it has the same first (6.3).
    csums: Option<DigestAlgorithm>,
    /// Blocks that it had.
    pub(super) same: u64,
    /// Blocks that wait for the barrier ack of a write.
    parked: BTreeSet<u64>,
}

impl Target {
    pub(super) fn new(now: Time, csums: Option<DigestAlgorithm>) -> Target {
        Target {
            cursor: 0,
            asked: AskedBlocks::default(),
            controller: RateController::new(),
            throttle: MinRateThrottle::new(),
            budget: 0,
            turn_budget: 0,
            last_turn: now,
            next_turn: now,
            written: Vec::new(),
            flushing: Vec::new(),
            flush_running: false,
            flush_due: None,
            narrow: false,
            progressed: false,
            primary: false,
            sectors: 0,
            rate_shown: 0,
            ping: 0,
            csums,
            same: 0,
            parked: BTreeSet::new(),
        }
    }

    pub(super) fn turn_now(&mut self, now: Time) {
        self.next_turn = now;
    }

    pub(super) fn csums(&self) -> Option<DigestAlgorithm> {
        self.csums
    }

    pub(super) fn rate_wanted(&self) -> u64 {
        u64::from(self.rate_shown)
    }

    pub(super) fn unflushed(&self) -> u64 {
        let ranges = self.written.iter().chain(&self.flushing);
        ranges.map(|range| range.end - range.start).sum()
    }

    /// The resync goes no further: the intervals to give back.
    pub(super) fn give_up(&mut self) -> Vec<u64> {
        self.asked.give_up()
    }

    /// These bits are out of sync again.
    pub(super) fn forget(&mut self, bits: &Range<u64>) {
        for list in [&mut self.written, &mut self.flushing] {
            if list.iter().any(|range| overlap(range, bits)) {
                *list = list.iter().flat_map(|range| without(range, bits)).collect();
            }
        }
    }

    fn note_written(&mut self, bits: Range<u64>, now: Time) {
        self.flush_due.get_or_insert(now + FLUSH_INTERVAL);
        self.progressed = true;
        match self.written.last_mut() {
            Some(last) if last.end == bits.start => last.end = bits.end,
            _ => self.written.push(bits),
        }
    }

    /// What is counted fits what is there.
    pub(super) fn fits(&self) -> bool {
        self.asked.fits()
    }
}

fn request_of(offset: u64, length: u32) -> BlockRequest {
    BlockRequest {
        sector: offset / 512,
        block_id: BLOCK_ID_SYNCER,
        blksize: length,
        pad: 0,
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What is left of a range without another: up to two ranges.
fn without(range: &Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = range.start..range.end.min(hole.start).max(range.start);
    let after = range.start.max(hole.end).min(range.end)..range.end;
    [before, after]
        .into_iter()
        .filter(|left| left.start < left.end)
}

impl Resource {
    /// Bits and flags are durable: blocks may be asked for, and the data socket goes on.
    pub(super) fn begin_target(&mut self, number: VolumeNumber) {
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.io_holds.remove(&IoHold::BitmapExchange);
            if let Some(resync) = volume.resync.as_mut() {
                resync.phase = Phase::Running;
                if let Some(target) = resync.target() {
                    target.last_turn = now;
                    target.next_turn = now;
                }
            }
        }
        self.receiving_may_go_on();
        self.tick_target(number);
    }

    /// Blocks may be asked for.
    fn target_runs(&mut self, number: VolumeNumber) -> Option<&mut Target> {
        let volume = self.volumes.get_mut(&number)?;
        let runs = volume.state.conn == ConnState::SyncTarget;
        let resync = volume.resync.as_mut()?;
        if runs && resync.phase == Phase::Running {
            resync.target()
        } else {
            None
        }
    }

    pub(super) fn target_deadline(&self, volume: &Volume) -> Time {
        let Some(resync) = volume.resync.as_ref() else {
            return Time::NEVER;
        };
        let super::Part::Target(target) = &resync.role else {
            return Time::NEVER;
        };
        if resync.phase != Phase::Running {
            return Time::NEVER;
        }
        let turns = volume.state.conn == ConnState::SyncTarget;
        let turn = if turns { target.next_turn } else { Time::NEVER };
        let flush = if target.flush_running {
            None
        } else {
            target.flush_due
        };
        turn.min(flush.unwrap_or(Time::NEVER))
    }

    pub(super) fn tick_target(&mut self, number: VolumeNumber) {
        let now = self.now;
        if self
            .target_runs(number)
            .is_some_and(|target| target.next_turn <= now)
        {
            self.take_turn(number);
            self.ask_more(number);
            self.check_end(number);
        }
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        let due = resync
            .and_then(Resync::target)
            .and_then(|target| target.flush_due);
        if due.is_some_and(|due| due <= now) {
            self.status_changed = true;
            self.flush_blocks(number);
        }
    }

    /// One turn of the controller (6.9). Where the formula is slower than both the link and the limits, because all that
    /// it asked for came within the turn, the turn doubles the one before.
    fn take_turn(&mut self, number: VolumeNumber) {
        let (now, waiting) = (self.now, self.log_waiters(number));
        let buffers = self
            .connection
            .net
            .as_ref()
            .map_or(2048, |net| net.max_buffers);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.note_progress(now);
        let left = volume.resync_left();
        let options = volume.options.clone();
        let all = 2 * (volume.counters.disk_read_kib + volume.counters.disk_written_kib);
        let Some(resync) = volume.resync.as_mut() else {
            return;
        };
        let rate = resync.progress.rate(now, left);
        let Some(target) = resync.target() else {
            return;
        };
        let late = u64::try_from(now.since(target.last_turn).as_millis()).unwrap_or(u64::MAX) / 100;
        target.last_turn = now;
        target.next_turn = now + TURN;
        let rates = RateOptions {
            resync_rate: options.resync_rate,
            plan_ahead: options.c_plan_ahead,
            delay_target: options.c_delay_target,
            fill_target: options.c_fill_target,
            max_rate: options.c_max_rate,
            max_buffers: buffers,
        };
        let planned = target.controller.plan_turn(&rates);
        let unhindered = target.asked.is_empty() && target.budget == 0 && target.turn_budget > 0;
        let limit = (options.c_max_rate / 40).max(1);
        let wanted = if options.c_plan_ahead > 0 && unhindered {
            planned.max(target.turn_budget.saturating_mul(2)).min(limit)
        } else {
            planned
        };
        let load = Load {
            waiting_for_activity_log: waiting,
            other_sectors: all.saturating_sub(target.sectors),
            rate,
        };
        let throttled = target.throttle.check(options.c_min_rate, &load) == Throttle::Throttled;
        target.rate_shown = wanted.saturating_mul(40);
        target.turn_budget = wanted;
        let turns = late.clamp(1, LATE_TURNS_MAX) as u32;
        target.budget = if throttled {
            0
        } else {
            wanted.saturating_mul(turns)
        };
    }

    /// Asks for blocks as far as the turn and the window allow.
    fn ask_more(&mut self, number: VolumeNumber) {
        let buffers = self
            .connection
            .net
            .as_ref()
            .map_or(2048, |net| net.max_buffers);
        let window = (buffers / 2).clamp(1, WINDOW_BLOCKS_MAX);
        let agreed = self.connection.agreed;
        let thin = agreed.is_some_and(|agreed| agreed.features.contains(Features::THIN_RESYNC));
        while self.target_runs(number).is_some() {
            let id = self.requests.next_id();
            let Some(volume) = self.volumes.get_mut(&number) else {
                return;
            };
            let primary = volume.state.role == Role::Primary;
            let arriving = volume.sync_io.write_blocks;
            let device_bytes = volume.bytes;
            let granularity = volume.options.rs_discard_granularity;
            let thin = (thin && granularity > 0).then(|| granularity.next_multiple_of(BLOCK_BYTES));
            let (Some(backing), Some(resync)) = (volume.backing.as_ref(), volume.resync.as_mut())
            else {
                return;
            };
            let Some(target) = resync.target() else {
                return;
            };
            let room = window.saturating_sub(target.asked.bits().saturating_add(arriving));
            let most = room.min(target.budget);
            if most == 0 {
                return;
            }
            let limits = RequestLimits {
                bytes_max: if target.narrow {
                    BLOCK_BYTES
                } else {
                    most.saturating_mul(BLOCK_BYTES).min(REQUEST_BYTES_MAX)
                },
                device_bytes,
                discard_granularity: thin,
            };
            let Some(request) = next_request(&backing.bitmap, target.cursor, &limits) else {
                return;
            };
            target.cursor = request.end();
            target.budget -= request.bits.min(target.budget);
            target.controller.requested(request.bits);
            let offset = request.offset();
            let block = Asked {
                id,
                bits: request.bits,
                length: request.len,
                interval: primary,
                kind: request.kind,
                asking: Asking::Waits,
            };
            target.asked.insert(offset, block);
            let range = offset..offset + u64::from(request.len);
            let ready = !primary
                || volume.intervals.insert(id, range, IntervalKind::Resync) == Admission::Ready;
            if ready {
                self.ask_for(number, id);
            }
        }
    }

    /// Nothing that overlaps a block is in flight, or this node is Secondary: its request is sent, with checksums after
    /// the own block was read.
    ///
    /// A Secondary reads without an interval: the peer's writes that come meanwhile are those that the source has done, or
    /// waits for, before it compares. If it finds the same, they change nothing any more.
    pub(super) fn ask_for(&mut self, number: VolumeNumber, id: u64) {
        if self.waits_for_kernel(number, id) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let readable = volume.writes_locally();
        let Some(target) = volume.resync.as_mut().and_then(Resync::target) else {
            return;
        };
        let compares = readable && target.csums.is_some();
        let Some((offset, block)) = target.asked.find(id, Asking::Waits) else {
            return;
        };
        let length = block.length;
        if !compares {
            block.asking = Asking::Sent;
            let request = request_of(offset, length);
            let packet = match block.kind {
                RequestKind::Data => Packet::RsDataRequest(request),
                RequestKind::Thin => Packet::RsThinReq(request),
            };
            self.send(Some(number), packet);
            return;
        }
        block.asking = Asking::Reads;
        target.sectors += u64::from(length) / 512;
        volume.counters.disk_read_kib += u64::from(length) / 1024;
        let operation = DiskOperation::Read { offset, length };
        self.disk(number, Pending::Resync(number, Io::Own(id)), operation);
    }

    /// Under protocols A and B a Primary's write may be answered before a kernel has it on its disk: asked too early, the kernel
    /// would send what was there before, and it would be written over the application's.
    fn waits_for_kernel(&mut self, number: VolumeNumber, id: u64) -> bool {
        if !self.peer_is_kernel() {
            return false;
        }
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        let target = resync.and_then(Resync::target);
        let Some((offset, block)) = target.and_then(|target| target.asked.find(id, Asking::Waits))
        else {
            return false;
        };
        let range = offset..offset + u64::from(block.length);
        if !self.is_unconfirmed_at_kernel(number, &range) {
            return false;
        }
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        if let Some(target) = resync.and_then(Resync::target) {
            target.parked.insert(id);
        }
        true
    }

    /// The peer confirmed writes: blocks that waited for them are looked at again.
    pub(in crate::resource) fn resync_writes_confirmed(&mut self) {
        for number in self.volume_numbers() {
            let resync = self
                .volumes
                .get_mut(&number)
                .and_then(|at| at.resync.as_mut());
            let Some(target) = resync.and_then(Resync::target) else {
                continue;
            };
            for id in core::mem::take(&mut target.parked) {
                self.ask_for(number, id);
            }
        }
    }

    /// The own block was read: its digest goes to the source. Of one that cannot be read the data is asked for.
    pub(super) fn own_block_read(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        if let Some(target) = resync.and_then(Resync::target) {
            let csums = target.csums;
            if let Some((offset, block)) = target.asked.find(id, Asking::Reads) {
                let request = request_of(offset, block.length);
                let data = result.as_ref().ok();
                let data = data.filter(|data| data.len() == block.length as usize);
                let packet = match csums.zip(data) {
                    Some((algorithm, data)) => {
                        block.asking = Asking::SentDigest;
                        let digest = algorithm.digest(data).into();
                        Packet::CsumRsRequest(HashedRequest { request, digest })
                    }
                    None => {
                        block.asking = Asking::Sent;
                        Packet::RsDataRequest(request)
                    }
                };
                self.send(Some(number), packet);
            }
        }
        if let Err(error) = result {
            self.local_io_error(number, DiskFault::Read, error);
        }
    }

    /// This node was promoted or demoted during the resync. A Primary's application must not be overtaken by older blocks:
    /// intervals are taken for all that is on its way. A Secondary's peer is the writer, and orders by the socket: intervals
    /// of blocks that did not arrive are given back.
    pub(super) fn follow_role(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let primary = volume.state.role == Role::Primary;
        let Some(target) = volume.resync.as_mut().and_then(Resync::target) else {
            return;
        };
        if core::mem::replace(&mut target.primary, primary) == primary {
            return;
        }
        let (mut given_back, mut unsent) = (Vec::new(), Vec::new());
        for (offset, block) in target.asked.iter_mut() {
            if primary && !block.interval {
                block.interval = true;
                let range = offset..offset + u64::from(block.length);
                // Whether it is ready is asked when the block arrives.
                let _ = volume
                    .intervals
                    .insert(block.id, range, IntervalKind::Resync);
            } else if !primary && block.interval {
                block.interval = false;
                given_back.push(block.id);
                if block.asking == Asking::Waits {
                    unsent.push(block.id);
                }
            }
        }
        for id in given_back {
            self.release_interval(number, id);
        }
        for id in unsent {
            self.ask_for(number, id);
        }
    }

    /// Looks whether the resync is over.
    pub(super) fn check_end(&mut self, number: VolumeNumber) {
        self.check_source_end(number);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let arriving = !volume.sync_io.writes.is_empty();
        let runs = volume.state.conn == ConnState::SyncTarget;
        let (Some(backing), Some(resync)) = (volume.backing.as_ref(), volume.resync.as_mut())
        else {
            return;
        };
        let (left, failed, running) = (
            backing.bitmap.count(),
            resync.failed,
            resync.phase == Phase::Running,
        );
        let Some(target) = resync.target() else {
            return;
        };
        if !runs || !running || arriving || !target.asked.is_empty() || target.flush_running {
            return;
        }
        if backing.bitmap.next_set(target.cursor).is_some() {
            return;
        }
        if !target.written.is_empty() {
            self.flush_blocks(number);
            return;
        }
        let found = left <= failed && target.narrow;
        if left == 0 || found || (failed > 0 && !target.progressed) {
            resync.failed = if left == 0 { 0 } else { failed.max(left) };
            resync.phase = Phase::Pinging;
            self.ping_before_end(number);
            return;
        }
        // Bits were set behind the cursor, or some failed while others did not: once more from the beginning.
        target.cursor = 0;
        target.progressed = false;
        target.narrow = failed > 0;
        resync.failed = 0;
        let text = format!("resync: {left} bits are left, asked for once more");
        self.log(crate::effect::Level::Debug, Some(number), text);
    }
}
