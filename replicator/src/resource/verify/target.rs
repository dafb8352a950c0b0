//! The other node of a verify: it reads what it is asked for, and learns the result.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BLOCK_ID_OUT_OF_SYNC, BlockAck, BlockRequest, HashedRequest};

use super::source::range_of;
use super::{BLOCK_SECTORS, Verify, length_of};
use crate::bitmap::coverage::{BIT_BYTES, bits_of_device};
use crate::effect::DiskOperation;
use crate::event::{IoError, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::resource::{Pending, Resource};
use crate::resync::controller::Progress;
use crate::state::word::{ConnState, DiskState};

/// Blocks without a verdict before the data socket is not read any more: 32 MiB.
const BLOCKS_HELD_MAX: usize = 8192;

/// What only the target remembers.
#[derive(Debug)]
pub(super) struct Target {
    /// The source's first block is known.
    begun: bool,
    /// The block after the last that was asked for.
    cursor: u64,
    held: BTreeMap<u64, Held>,
    blocks_by_id: BTreeMap<u64, u64>,
    /// Blocks that wait for the barrier ack of a write.
    parked: BTreeSet<u64>,
}

/// A block that the source asked for.
#[derive(Debug)]
struct Held {
    id: u64,
    request: BlockRequest,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waits,
    Reads,
    /// The digest is sent; the result is awaited.
    Answered,
}

impl Target {
    pub(super) fn new(next: u64) -> Target {
        Target {
            begun: false,
            cursor: next,
            held: BTreeMap::new(),
            blocks_by_id: BTreeMap::new(),
            parked: BTreeSet::new(),
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.held.keys().next().copied().unwrap_or(self.cursor)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.blocks_by_id.contains_key(&id)
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= BLOCKS_HELD_MAX
    }

    /// Intervals that it holds.
    pub(super) fn intervals(&self) -> Vec<u64> {
        self.blocks_by_id.keys().copied().collect()
    }

    /// Requests that it has not answered.
    pub(super) fn unanswered(&self) -> Vec<BlockRequest> {
        let open = self.held.values();
        let open = open.filter(|held| held.stage != Stage::Answered);
        open.map(|held| held.request).collect()
    }

    pub(super) fn parked(&mut self) -> BTreeSet<u64> {
        core::mem::take(&mut self.parked)
    }

    fn find(&mut self, id: u64) -> Option<(u64, &mut Held)> {
        let block = *self.blocks_by_id.get(&id)?;
        Some((block, self.held.get_mut(&block)?))
    }
}

impl Resource {
    fn verify_target(&mut self, number: VolumeNumber) -> Option<&mut Target> {
        let volume = self.volumes.get_mut(&number)?;
        volume.verify.as_mut().and_then(Verify::target)
    }

    /// P_OV_REQUEST. Errors are protocol errors, in words.
    pub(in crate::resource) fn on_verify_request(
        &mut self,
        number: VolumeNumber,
        request: BlockRequest,
    ) -> Result<(), &'static str> {
        let (now, id) = (self.now, self.requests.next_id());
        let hurry = self.planted(Planted::VerifyDuringWrite);
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a verify of an unknown volume")?;
        let usable = volume.state.disk == DiskState::UpToDate
            && volume.state.conn == ConnState::VerifyT
            && volume.backing.is_some();
        let bytes = volume.bytes;
        let Some(verify) = volume.verify.as_mut().filter(|_| usable) else {
            self.refuse_block(number, request);
            return Ok(());
        };
        let block = request.sector / BLOCK_SECTORS;
        let whole = request.sector.is_multiple_of(BLOCK_SECTORS);
        if block >= bits_of_device(bytes) || !whole || request.blksize != length_of(block, bytes) {
            return Err("a verify request that is not one block of 4 KiB of the device");
        }
        let blocks = verify.blocks;
        let target = verify.target().ok_or("this node asks, it is not asked")?;
        if target.held.contains_key(&block) {
            return Err("a verify request of a block that has no result yet");
        }
        let begins = !core::mem::replace(&mut target.begun, true);
        target.cursor = if begins {
            block + 1
        } else {
            target.cursor.max(block + 1)
        };
        let stage = Stage::Waits;
        target.held.insert(block, Held { id, request, stage });
        target.blocks_by_id.insert(id, block);
        if begins {
            verify.total = blocks - block;
            verify.left = verify.total;
            verify.progress = Progress::new(now, verify.left);
        }
        let range = range_of(block, bytes);
        if volume.intervals.insert(id, range, IntervalKind::Resync) == Admission::Ready || hurry {
            self.target_block_ready(number, id);
        }
        Ok(())
    }

    /// Nothing that overlaps a block is in flight.
    pub(super) fn target_block_ready(&mut self, number: VolumeNumber, id: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let target = volume.verify.as_mut().and_then(Verify::target);
        let Some((block, held)) = target.and_then(|target| target.find(id)) else {
            return;
        };
        if held.stage != Stage::Waits {
            return;
        }
        let range = range_of(block, volume.bytes);
        if self.is_unconfirmed_at_kernel(number, &range) {
            // The source, a kernel, may compare with what it read before the write.
            if let Some(target) = self.verify_target(number) {
                target.parked.insert(id);
            }
            return;
        }
        let target = self.verify_target(number);
        let Some((block, held)) = target.and_then(|target| target.find(id)) else {
            return;
        };
        held.stage = Stage::Reads;
        let operation = DiskOperation::Read {
            offset: block * BIT_BYTES,
            length: held.request.blksize,
        };
        self.count_block(number);
        self.disk(number, Pending::Verify(number, id), operation);
    }

    /// A block was read: its digest goes to the source; of one that cannot be read a digest of zeroes (6.10).
    pub(super) fn target_block_read(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let algorithm = self.verify_algorithm();
        let volume = self.volumes.get_mut(&number);
        let target = volume.and_then(|at| at.verify.as_mut().and_then(Verify::target));
        if let Some((_, held)) = target.and_then(|target| target.find(id))
            && let Some(algorithm) = algorithm
            && held.stage == Stage::Reads
        {
            held.stage = Stage::Answered;
            let request = held.request;
            let digest = match &result {
                Ok(data) if data.len() == request.blksize as usize => algorithm.digest(data).into(),
                _ => Bytes::from(alloc::vec![0; algorithm.len()]),
            };
            let reply = HashedRequest { request, digest };
            self.send(Some(number), Packet::OvReply(reply));
        }
        if let Err(error) = result {
            self.local_io_error(number, DiskFault::Read, error);
        }
    }

    /// P_OV_RESULT. Errors are protocol errors, in words.
    pub(in crate::resource) fn on_verify_result(
        &mut self,
        number: VolumeNumber,
        ack: &BlockAck,
    ) -> Result<(), &'static str> {
        let now = self.now;
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a result for an unknown volume")?;
        let block = ack.sector / BLOCK_SECTORS;
        if block >= bits_of_device(volume.bytes) {
            return Err("a result of a verify beyond the end of the device");
        }
        let differs = ack.block_id == BLOCK_ID_OUT_OF_SYNC;
        let Some(verify) = volume.verify.as_mut() else {
            if differs {
                // The verify was given up here in the meantime; what it found counts all the same.
                self.mark_different(number, block);
            }
            return Ok(());
        };
        let target = verify
            .target()
            .ok_or("this node gives results, it gets none")?;
        let answered = target
            .held
            .get(&block)
            .is_some_and(|held| held.stage == Stage::Answered && held.request.sector == ack.sector);
        let held = target.held.remove(&block).filter(|_| answered);
        let held = held.ok_or("a result about a block without a digest")?;
        target.blocks_by_id.remove(&held.id);
        verify.block_judged(now);
        let over = verify.left == 0 && verify.ping.is_none();
        if differs {
            self.mark_different(number, block);
        }
        self.release_interval(number, held.id);
        self.receiving_may_go_on();
        if over {
            self.ping_before_verify_ends(number);
        }
        Ok(())
    }
}
