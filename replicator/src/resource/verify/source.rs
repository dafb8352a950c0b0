//! The node that drives a verify: it asks for digests, compares, and tells the result.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{
    BLOCK_ID_IN_SYNC, BLOCK_ID_OUT_OF_SYNC, BLOCK_ID_SYNCER, BlockAck, BlockRequest, HashedRequest,
};

use super::{BLOCK_SECTORS, Verify, length_of};
use crate::bitmap::coverage::BIT_BYTES;
use crate::effect::DiskOperation;
use crate::event::{IoError, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::resource::volume::Volume;
use crate::resource::{Pending, Resource};
use crate::resync::controller::{
    Load, MinRateThrottle, RateController, RateOptions, TURN, Throttle,
};
use crate::state::word::{ConnState, Role};
use crate::time::Time;

/// Blocks asked for at one time: 4 MiB, as in a resync (wire-protocol.md 6.7).
const WINDOW_BLOCKS_MAX: u32 = 1024;

/// Turns that are made up for when a timer comes late.
const LATE_TURNS_MAX: u64 = 4;

/// What only the source remembers. All positions are in blocks of 4 KiB.
#[derive(Debug)]
pub(super) struct Source {
    /// The next block to ask for.
    cursor: u64,
    /// The block after the last.
    pub(super) end: u64,
    asked: BTreeMap<u64, Asked>,
    blocks_by_id: BTreeMap<u64, u64>,
    controller: RateController,
    throttle: MinRateThrottle,
    /// Blocks that may still be asked for in this turn, and what the turn began with.
    budget: u32,
    turn_budget: u32,
    next_turn: Time,
    sectors: u64,
    rate_shown: u32,
    /// The role for which intervals are held: a Primary's are held from before the request.
    primary: bool,
    /// Blocks that wait for the barrier ack of a write.
    parked: BTreeSet<u64>,
}

/// A block without a verdict.
#[derive(Debug)]
struct Asked {
    id: u64,
    /// It has an interval.
    interval: bool,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Writes that overlap it are in flight.
    Waits,
    /// The request is sent.
    Sent,
    /// The peer's digest came; writes before it are still in flight.
    Answered(Bytes),
    /// The own block is being read, to be compared with this.
    Reads(Bytes),
}

/// What came of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    Different,
}

impl Source {
    pub(super) fn new(now: Time, start: u64, end: u64) -> Source {
        Source {
            cursor: start,
            end,
            asked: BTreeMap::new(),
            blocks_by_id: BTreeMap::new(),
            controller: RateController::new(),
            throttle: MinRateThrottle::new(),
            budget: 0,
            turn_budget: 0,
            next_turn: now,
            sectors: 0,
            rate_shown: 0,
            primary: false,
            parked: BTreeSet::new(),
        }
    }

    /// The first block without a verdict.
    pub(super) fn position(&self) -> u64 {
        self.asked.keys().next().copied().unwrap_or(self.cursor)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.blocks_by_id.contains_key(&id)
    }

    /// The last block still waits for writes. Those behind it wait with it: the peer counts from the first one that it is asked for
    /// (wire-protocol.md 6.8 no. 5).
    fn is_held_up(&self) -> bool {
        let last = self.asked.last_key_value();
        last.is_some_and(|(_, asked)| asked.stage == Stage::Waits)
    }

    pub(super) fn rate_wanted(&self) -> u64 {
        u64::from(self.rate_shown)
    }

    /// Intervals that it holds.
    pub(super) fn intervals(&self) -> Vec<u64> {
        let held = self.asked.values().filter(|block| block.interval);
        held.map(|block| block.id).collect()
    }

    pub(super) fn parked(&mut self) -> BTreeSet<u64> {
        core::mem::take(&mut self.parked)
    }

    /// No further block is asked for; those that still wait for writes are not. Returns their number and their intervals.
    pub(super) fn stop(&mut self) -> (u64, Vec<u64>) {
        let waits = |asked: &Asked| asked.stage == Stage::Waits;
        let waiting = self.asked.iter().filter(|(_, asked)| waits(asked));
        let blocks: Vec<u64> = waiting.map(|(block, _)| *block).collect();
        let mut held = Vec::new();
        for block in &blocks {
            let taken = self.take(*block).filter(|asked| asked.interval);
            held.extend(taken.map(|asked| asked.id));
        }
        let count = blocks.len() as u64 + (self.end - self.cursor);
        self.cursor = blocks.first().map_or(self.cursor, |first| *first);
        self.end = self.cursor;
        (count, held)
    }

    fn find(&mut self, id: u64) -> Option<(u64, &mut Asked)> {
        let block = *self.blocks_by_id.get(&id)?;
        Some((block, self.asked.get_mut(&block)?))
    }

    fn take(&mut self, block: u64) -> Option<Asked> {
        let asked = self.asked.remove(&block)?;
        self.blocks_by_id.remove(&asked.id);
        Some(asked)
    }
}

impl Resource {
    fn verify_source(&mut self, number: VolumeNumber) -> Option<&mut Source> {
        let volume = self.volumes.get_mut(&number)?;
        volume.verify.as_mut().and_then(Verify::source)
    }

    /// Ends the verify of this node before its end, at the next block (`verify-stop`). False: it drives none.
    pub(in crate::resource) fn stop_verify(&mut self, number: VolumeNumber) -> bool {
        let Some(source) = self.verify_source(number) else {
            return false;
        };
        let (unasked, held) = source.stop();
        let volume = self.volumes.get_mut(&number);
        if let Some(verify) = volume.and_then(|at| at.verify.as_mut()) {
            verify.left = verify.left.saturating_sub(unasked);
            verify.total = verify.total.saturating_sub(unasked);
        }
        for id in held {
            self.release_interval(number, id);
        }
        self.check_verify_source_end(number);
        true
    }

    /// The sectors that the verify of this node compares: where it is, and the one behind the last.
    pub(in crate::resource) fn verify_bounds(&self, number: VolumeNumber) -> Option<(u64, u64)> {
        let volume = self.volumes.get(&number)?;
        match &volume.verify.as_ref()?.role {
            super::Part::Source(source) => {
                let end = (source.end * BLOCK_SECTORS).min(volume.bytes / 512);
                Some((source.position() * BLOCK_SECTORS, end))
            }
            super::Part::Target(_) => None,
        }
    }

    /// `verify` again while it runs: only the end changes.
    pub(in crate::resource) fn move_verify_stop(
        &mut self,
        number: VolumeNumber,
        stop: Option<u64>,
    ) {
        let verify = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.verify.as_mut());
        let Some(verify) = verify.filter(|verify| verify.ping.is_none()) else {
            return;
        };
        let blocks = verify.blocks;
        let Some(source) = verify.source() else {
            return;
        };
        let end = stop.unwrap_or(blocks).clamp(source.cursor, blocks);
        let was = core::mem::replace(&mut source.end, end);
        verify.left = (verify.left + end).saturating_sub(was);
        verify.total = (verify.total + end).saturating_sub(was);
        self.check_verify_source_end(number);
    }

    pub(in crate::resource) fn verify_deadline(&self) -> Time {
        let volumes = self.volumes.values().filter_map(|volume| {
            let verify = volume.verify.as_ref()?;
            match &verify.role {
                super::Part::Source(source) if verify.ping.is_none() => Some(source.next_turn),
                _ => None,
            }
        });
        volumes.min().unwrap_or(Time::NEVER)
    }

    pub(in crate::resource) fn tick_verify(&mut self) {
        let now = self.now;
        for number in self.volume_numbers() {
            let volume = self.volumes.get(&number);
            let due = volume.is_some_and(|volume| is_due(volume, now));
            if due {
                self.take_verify_turn(number);
                self.verify_more(number);
                self.check_verify_source_end(number);
            }
        }
    }

    /// One turn of the controller (6.9), as of a resync's target.
    fn take_verify_turn(&mut self, number: VolumeNumber) {
        let (now, waiting) = (self.now, self.log_waiters(number));
        let net = self.connection.net.as_ref();
        let max_buffers = net.map_or(2048, |net| net.max_buffers);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let all = 2 * (volume.counters.disk_read_kib + volume.counters.disk_written_kib);
        let options = &volume.options;
        let rates = RateOptions {
            resync_rate: options.resync_rate,
            plan_ahead: options.c_plan_ahead,
            delay_target: options.c_delay_target,
            fill_target: options.c_fill_target,
            max_rate: options.c_max_rate,
            max_buffers,
        };
        let minimum = options.c_min_rate;
        let Some(verify) = volume.verify.as_mut() else {
            return;
        };
        let rate = verify.progress.rate(now, verify.left);
        let Some(source) = verify.source() else {
            return;
        };
        let late = u64::try_from(now.since(source.next_turn).as_millis()).unwrap_or(u64::MAX) / 100;
        source.next_turn = now + TURN;
        let planned = source.controller.plan_turn(&rates);
        // Where all came within the turn, the turn doubles the one before, up to the limit.
        let unhindered = source.asked.is_empty() && source.budget == 0 && source.turn_budget > 0;
        let limit = (rates.max_rate / 40).max(1);
        let wanted = if rates.plan_ahead > 0 && unhindered {
            planned.max(source.turn_budget.saturating_mul(2)).min(limit)
        } else {
            planned
        };
        let load = Load {
            waiting_for_activity_log: waiting,
            other_sectors: all.saturating_sub(source.sectors),
            rate,
        };
        let throttled = source.throttle.check(minimum, &load) == Throttle::Throttled;
        source.rate_shown = wanted.saturating_mul(40);
        source.turn_budget = wanted;
        let turns = (late + 1).min(LATE_TURNS_MAX) as u32;
        source.budget = if throttled {
            0
        } else {
            wanted.saturating_mul(turns)
        };
    }

    /// Asks for digests as far as the turn and the window allow.
    pub(super) fn verify_more(&mut self, number: VolumeNumber) {
        let net = self.connection.net.as_ref();
        let buffers = net.map_or(2048, |net| net.max_buffers);
        let window = (buffers / 2).clamp(1, WINDOW_BLOCKS_MAX) as usize;
        self.follow_role_in_verify(number);
        loop {
            let id = self.requests.next_id();
            let Some(volume) = self.volumes.get_mut(&number) else {
                return;
            };
            let primary = volume.state.role == Role::Primary;
            let (bytes, runs) = (volume.bytes, volume.state.conn == ConnState::VerifyS);
            let verify = volume.verify.as_mut().filter(|at| at.ping.is_none());
            let Some(source) = verify.and_then(Verify::source).filter(|_| runs) else {
                return;
            };
            let full = source.asked.len() >= window || source.budget == 0;
            if full || source.cursor >= source.end || source.is_held_up() {
                return;
            }
            let block = source.cursor;
            source.cursor += 1;
            source.budget -= 1;
            source.controller.requested(1);
            source.blocks_by_id.insert(id, block);
            let asked = Asked {
                id,
                interval: primary,
                stage: Stage::Waits,
            };
            source.asked.insert(block, asked);
            let ready = !primary
                || volume
                    .intervals
                    .insert(id, range_of(block, bytes), IntervalKind::Resync)
                    == Admission::Ready;
            if ready {
                self.source_block_ready(number, id);
            }
        }
    }

    /// Nothing that overlaps a block is in flight: its digest is asked for, or its own data read.
    pub(super) fn source_block_ready(&mut self, number: VolumeNumber, id: u64) {
        if self.source_waits_for_kernel(number, id) {
            return;
        }
        let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        let Some((block, asked)) = self.verify_source(number).and_then(|at| at.find(id)) else {
            return;
        };
        match core::mem::replace(&mut asked.stage, Stage::Sent) {
            Stage::Waits => {
                let request = BlockRequest {
                    sector: block * BLOCK_SECTORS,
                    block_id: BLOCK_ID_SYNCER,
                    blksize: length_of(block, bytes),
                    pad: 0,
                };
                self.send(Some(number), Packet::OvRequest(request));
            }
            Stage::Answered(digest) => {
                asked.stage = Stage::Reads(digest);
                if let Some(source) = self.verify_source(number) {
                    source.sectors += BLOCK_SECTORS;
                }
                self.count_block(number);
                let operation = DiskOperation::Read {
                    offset: block * BIT_BYTES,
                    length: length_of(block, bytes),
                };
                self.disk(number, Pending::Verify(number, id), operation);
            }
            // A Secondary that was promoted took the interval later.
            other => asked.stage = other,
        }
    }

    /// A kernel that has not confirmed a write may read the block without it.
    fn source_waits_for_kernel(&mut self, number: VolumeNumber, id: u64) -> bool {
        if !self.peer_is_kernel() {
            return false;
        }
        let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        let found = self.verify_source(number).and_then(|at| at.find(id));
        let Some((block, _)) = found.filter(|(_, asked)| asked.stage == Stage::Waits) else {
            return false;
        };
        if !self.is_unconfirmed_at_kernel(number, &range_of(block, bytes)) {
            return false;
        }
        if let Some(source) = self.verify_source(number) {
            source.parked.insert(id);
        }
        true
    }

    /// P_OV_REPLY. Errors are protocol errors, in words.
    pub(in crate::resource) fn on_verify_reply(
        &mut self,
        number: VolumeNumber,
        hashed: HashedRequest,
    ) -> Result<(), &'static str> {
        let algorithm = self.verify_algorithm();
        let request = hashed.request;
        if self.verify_source(number).is_none() {
            // A verify that this node gave up, since a disk is gone. A kernel still wants an answer to each request; a Tandem
            // would count a block as compared that was not.
            if self.peer_is_kernel() {
                self.send_verdict(number, request.sector, request.blksize, Verdict::Equal);
            }
            return Ok(());
        }
        let hurry = self.planted(Planted::VerifyDuringWrite);
        let algorithm = algorithm.ok_or("there is no verify-alg")?;
        if hashed.digest.len() != algorithm.len() {
            return Err("the length of the digest is not that of verify-alg");
        }
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a digest of an unknown volume")?;
        let bytes = volume.bytes;
        let source = volume.verify.as_mut().and_then(Verify::source);
        let source = source.ok_or("a digest that was not asked for")?;
        let block = asked_block(source, request.sector, request.blksize, bytes)?;
        source.controller.answered(request.blksize.div_ceil(512));
        let asked = source
            .asked
            .get_mut(&block)
            .ok_or("a digest that was not asked for")?;
        asked.stage = Stage::Answered(hashed.digest);
        let id = asked.id;
        let ready = if core::mem::replace(&mut asked.interval, true) {
            volume.intervals.is_ready(id)
        } else {
            let range = range_of(block, bytes);
            volume.intervals.insert(id, range, IntervalKind::Resync) == Admission::Ready
        };
        if ready || hurry {
            self.source_block_ready(number, id);
        }
        Ok(())
    }

    /// The own block was read. One that cannot be read differs.
    pub(super) fn source_block_read(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let algorithm = self.verify_algorithm();
        let found = self.verify_source(number).and_then(|at| at.find(id));
        let reading = found.and_then(|(block, asked)| match &asked.stage {
            Stage::Reads(theirs) => Some((block, theirs.clone())),
            _ => None,
        });
        if let Some((block, theirs)) = reading {
            let equal = match (&result, algorithm) {
                (Ok(data), Some(algorithm)) => self.tape.is(|| algorithm.matches(data, &theirs)),
                _ => false,
            };
            let verdict = if equal {
                Verdict::Equal
            } else {
                Verdict::Different
            };
            self.finish_block(number, block, verdict);
        }
        if let Err(error) = result {
            self.local_io_error(number, DiskFault::Read, error);
        }
    }

    fn finish_block(&mut self, number: VolumeNumber, block: u64, verdict: Verdict) {
        let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        if verdict == Verdict::Different {
            self.mark_different(number, block);
        }
        let length = length_of(block, bytes);
        self.send_verdict(number, block * BLOCK_SECTORS, length, verdict);
        self.block_off(number, block);
    }

    fn send_verdict(&mut self, number: VolumeNumber, sector: u64, length: u32, verdict: Verdict) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let ack = BlockAck {
            sector,
            block_id: match verdict {
                Verdict::Equal => BLOCK_ID_IN_SYNC,
                Verdict::Different => BLOCK_ID_OUT_OF_SYNC,
            },
            blksize: length,
            seq_num: volume.peer.next_sequence(),
        };
        self.send(Some(number), Packet::OvResult(ack));
    }

    /// P_NEG_RS_DREPLY: the peer gives no digest. The block is not compared.
    pub(in crate::resource) fn on_verify_refused(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("an answer for an unknown volume")?;
        let bytes = volume.bytes;
        let Some(verify) = volume.verify.as_mut() else {
            return Ok(());
        };
        let source = verify
            .source()
            .ok_or("a refusal of what was not asked for")?;
        let block = asked_block(source, ack.sector, ack.blksize, bytes)?;
        source.controller.answered(ack.blksize.div_ceil(512));
        verify.skipped += 1;
        self.block_off(number, block);
        Ok(())
    }

    /// A block has its verdict, or gets none.
    fn block_off(&mut self, number: VolumeNumber, block: u64) {
        let now = self.now;
        let verify = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.verify.as_mut());
        let Some(verify) = verify else {
            return;
        };
        verify.block_judged(now);
        let taken = verify.source().and_then(|source| source.take(block));
        if let Some(asked) = taken.filter(|asked| asked.interval) {
            self.release_interval(number, asked.id);
        }
        self.verify_more(number);
        self.check_verify_source_end(number);
    }

    fn check_verify_source_end(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let runs = volume.state.conn == ConnState::VerifyS;
        let verify = volume.verify.as_mut().filter(|at| at.ping.is_none());
        let over = verify
            .and_then(Verify::source)
            .is_some_and(|source| source.cursor >= source.end && source.asked.is_empty());
        if runs && over {
            self.ping_before_verify_ends(number);
        }
    }

    /// This node was promoted or demoted during its verify. A Primary's applications must not write between the two reads of a
    /// block; where the peer may be promoted, its writes must not wait for blocks that it is not yet asked for.
    pub(super) fn follow_role_in_verify(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let (primary, bytes) = (volume.state.role == Role::Primary, volume.bytes);
        let Some(source) = volume.verify.as_mut().and_then(Verify::source) else {
            return;
        };
        if core::mem::replace(&mut source.primary, primary) == primary {
            return;
        }
        let (mut taken, mut given_back) = (Vec::new(), Vec::new());
        for (block, asked) in &mut source.asked {
            if primary && !core::mem::replace(&mut asked.interval, true) {
                taken.push((*block, asked.id));
            } else if !primary && asked.interval && asked.stage == Stage::Waits {
                asked.interval = false;
                given_back.push(asked.id);
            }
        }
        for (block, id) in taken {
            let range = range_of(block, bytes);
            // Whether it is ready is asked when the digest arrives.
            let _ = volume.intervals.insert(id, range, IntervalKind::Resync);
        }
        for id in given_back {
            self.release_interval(number, id);
            self.source_block_ready(number, id);
        }
    }
}

fn is_due(volume: &Volume, now: Time) -> bool {
    let verify = volume.verify.as_ref();
    verify.is_some_and(|verify| match &verify.role {
        super::Part::Source(source) => verify.ping.is_none() && source.next_turn <= now,
        super::Part::Target(_) => false,
    })
}

pub(super) fn range_of(block: u64, bytes: u64) -> core::ops::Range<u64> {
    let offset = block * BIT_BYTES;
    offset..offset + u64::from(length_of(block, bytes))
}

/// The block that an answer names, which was asked for and has no answer yet.
fn asked_block(source: &Source, sector: u64, length: u32, bytes: u64) -> Result<u64, &'static str> {
    let block = sector / BLOCK_SECTORS;
    let asked = source.asked.get(&block);
    let sent = asked.is_some_and(|asked| asked.stage == Stage::Sent);
    let whole = sector.is_multiple_of(BLOCK_SECTORS) && length == length_of(block, bytes);
    if sent && whole {
        Ok(block)
    } else {
        Err("an answer about a block that was not asked for")
    }
}
