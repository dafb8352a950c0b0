//! Online verify: both disks are compared block by block while applications go on (state-machine.md 6.10, wire-protocol.md
//! 6.8). Nothing is repaired: a block that differs is marked in both bitmaps, and the next resync copies it.
//!
//! ```text
//!  source (VerifyS)  P_OV_REQUEST ─► the digest comes ─► own block read, compared ─► P_OV_RESULT ─► ... ─► ping ─► Connected
//!  target (VerifyT)  the request comes ─► own block read ─► P_OV_REPLY ─► the result comes ─► ... ─► ping ─► Connected
//! ```
//!
//! Invariants:
//! - The two reads of a block see the same writes, so that nobody's write looks like a difference. The target holds an
//!   interval from its read until the result came. A Primary source holds one from before the request; any other source
//!   from the arrival of the digest on, which comes on the socket behind the writes that it covers.
//! - Blocks are asked for in ascending order: the target counts from the first one.
//! - A block that could not be compared is counted and told, never taken for equal.
//! - However a verify ends early, the block where the next one starts has not been compared.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::packets::BlockRequest;

use super::volume::Volume;
use super::{Resource, handlers};
use crate::bitmap::coverage::{BIT_BYTES, bits_of_device};
use crate::effect::Level;
use crate::event::{IoError, VolumeNumber};
use crate::planted::Planted;
use crate::resync::controller::{Pace, Progress};
use crate::state::Hardness;
use crate::state::word::ConnState;
use crate::status::{ResyncStatus, VerifiedStatus};
use crate::time::Time;

mod source;
mod target;

use source::Source;
use target::Target;

/// Sectors of a block.
const BLOCK_SECTORS: u64 = BIT_BYTES / 512;

/// Ranges that are named in the log, at most; what follows is only counted.
const RANGES_TOLD_MAX: u32 = 100;

/// What a verify is asked to compare, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The first one; None: where the last verify stopped.
    pub(crate) start: Option<u64>,
    /// The one after the last; None: the end of the device.
    pub(crate) stop: Option<u64>,
}

/// What a verify leaves behind, to be settled outside of the change of state that ended it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Gone {
    /// The connection that it ran on, by its count.
    link: u64,
    intervals: Vec<u64>,
    /// Requests of the peer without an answer.
    unanswered: Vec<BlockRequest>,
}

/// A verify that runs.
#[derive(Debug)]
pub(crate) struct Verify {
    progress: Progress,
    /// Blocks of the device.
    blocks: u64,
    /// Blocks to compare.
    total: u64,
    /// Blocks without a verdict.
    left: u64,
    /// Blocks that differ.
    found: u64,
    /// Blocks that the peer could not read.
    skipped: u64,
    /// Blocks that differ, one after the other, and are not named in the log yet.
    range: Range<u64>,
    told: u32,
    /// The ping whose answer ends it.
    ping: Option<u64>,
    role: Part,
}

#[derive(Debug)]
enum Part {
    Source(Source),
    Target(Target),
}

impl Verify {
    fn new(now: Time, blocks: u64, range: Range<u64>, role: Part) -> Verify {
        let left = range.end - range.start;
        Verify {
            progress: Progress::new(now, left),
            blocks,
            total: left,
            left,
            found: 0,
            skipped: 0,
            range: 0..0,
            told: 0,
            ping: None,
            role,
        }
    }

    fn source(&mut self) -> Option<&mut Source> {
        match &mut self.role {
            Part::Source(source) => Some(source),
            Part::Target(_) => None,
        }
    }

    fn target(&mut self) -> Option<&mut Target> {
        match &mut self.role {
            Part::Target(target) => Some(target),
            Part::Source(_) => None,
        }
    }

    /// The first block without a verdict; None: all of the device is compared.
    fn position(&self) -> Option<u64> {
        let block = match &self.role {
            Part::Source(source) => source.position(),
            Part::Target(target) => target.position(),
        };
        (block < self.blocks).then_some(block)
    }

    fn block_judged(&mut self, now: Time) {
        self.left = self.left.saturating_sub(1);
        self.progress.update(now, self.left, Pace::Running);
    }
}

/// The bytes of a block: fewer than 4096 only at the end of the device.
fn length_of(block: u64, bytes: u64) -> u32 {
    bytes.saturating_sub(block * BIT_BYTES).min(BIT_BYTES) as u32
}

impl Resource {
    /// The algorithm of verify-alg.
    fn verify_algorithm(&self) -> Option<DigestAlgorithm> {
        let net = self.connection.net.as_ref()?;
        DigestAlgorithm::from_name(&net.verify_alg)
    }

    pub(super) fn is_verifying(&self, number: VolumeNumber) -> bool {
        self.volumes
            .get(&number)
            .is_some_and(|at| at.verify.is_some())
    }

    /// 2.8 no. 6: Connected became VerifyS or VerifyT.
    pub(super) fn verify_started(&mut self, number: VolumeNumber, conn: ConnState) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let blocks = bits_of_device(volume.bytes);
        let wish = volume.verify_wish.take().unwrap_or_default();
        let verify = if conn == ConnState::VerifyS {
            let start = wish.start.unwrap_or(volume.verify_next);
            let start = start.min(blocks.saturating_sub(1));
            let stop = wish.stop.unwrap_or(blocks).clamp(start, blocks);
            let source = Source::new(now, start, stop);
            Verify::new(now, blocks, start..stop, Part::Source(source))
        } else {
            let target = Target::new(volume.verify_next);
            Verify::new(now, blocks, 0..blocks, Part::Target(target))
        };
        let text = match &verify.role {
            Part::Source(source) => format!(
                "began online verify as source at sector {}",
                source.position() * BLOCK_SECTORS
            ),
            Part::Target(_) => String::from("began online verify as target"),
        };
        volume.verify = Some(verify);
        self.log(Level::Info, Some(number), text);
    }

    /// 2.8 no. 4: it is over, or given up. The position is kept for the next one; intervals are given back by
    /// [`Resource::step_verify`], outside of the change of state.
    pub(super) fn verify_ended(&mut self, number: VolumeNumber) {
        let link = self.connection.count;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(verify) = volume.verify.take() else {
            return;
        };
        volume.verify_gone = match &verify.role {
            Part::Source(source) => Gone {
                link,
                intervals: source.intervals(),
                unanswered: Vec::new(),
            },
            Part::Target(target) => Gone {
                link,
                intervals: target.intervals(),
                unanswered: target.unanswered(),
            },
        };
        let position = verify.position();
        volume.verify_next = position.unwrap_or(0);
        volume.verified = Some(VerifiedStatus {
            compared: verify.total.saturating_sub(verify.left),
            different: verify.found,
            skipped: verify.skipped,
            next_sector: position.map(|block| block * BLOCK_SECTORS),
        });
        self.status_changed = true;
        let range = verify.range.clone();
        self.tell_range(number, &range);
        if let Some(block) = position {
            let text = format!(
                "online verify reached sector {} of {}; the next one starts there",
                block * BLOCK_SECTORS,
                verify.blocks * BLOCK_SECTORS
            );
            self.log(Level::Info, Some(number), text);
        }
    }

    /// Asked after every event, before clients' requests go on.
    pub(super) fn step_verify(&mut self) {
        let has_work =
            |volume: &Volume| volume.verify.is_some() || volume.verify_gone != Gone::default();
        for number in self.volumes_where(has_work) {
            let Some(volume) = self.volumes.get_mut(&number) else {
                continue;
            };
            let gone = core::mem::take(&mut volume.verify_gone);
            if volume.verify.is_some() {
                self.follow_role_in_verify(number);
            }
            self.let_go(number, gone);
        }
    }

    /// What is left of a verify that has ended: others may have its blocks, and what was asked gets its one answer.
    fn let_go(&mut self, number: VolumeNumber, gone: Gone) {
        if gone == Gone::default() {
            return;
        }
        for id in gone.intervals {
            self.release_interval(number, id);
        }
        let conn = self.volumes.get(&number).map(|volume| volume.state.conn);
        let linked = gone.link == self.connection.count && conn >= Some(ConnState::Connected);
        for request in gone.unanswered.into_iter().filter(|_| linked) {
            self.refuse_block(number, request);
        }
        self.receiving_may_go_on();
    }

    /// The peer confirmed writes: blocks that waited for them are looked at again.
    pub(super) fn verify_writes_confirmed(&mut self) {
        for number in self.volume_numbers() {
            let volume = self.volumes.get_mut(&number);
            match volume.and_then(|at| at.verify.as_mut().map(|verify| &mut verify.role)) {
                Some(Part::Source(source)) => {
                    for id in source.parked() {
                        self.source_block_ready(number, id);
                    }
                    self.verify_more(number);
                }
                Some(Part::Target(target)) => {
                    for id in target.parked() {
                        self.target_block_ready(number, id);
                    }
                }
                None => {}
            }
        }
    }

    /// Whether an interval is one of a verify; if so, it goes on.
    pub(super) fn verify_interval_ready(&mut self, number: VolumeNumber, id: u64) -> bool {
        let verify = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.verify.as_mut());
        let Some(verify) = verify else {
            return false;
        };
        match &mut verify.role {
            Part::Source(source) if source.has(id) => {
                self.source_block_ready(number, id);
                self.verify_more(number);
            }
            Part::Target(target) if target.has(id) => self.target_block_ready(number, id),
            _ => return false,
        }
        true
    }

    /// A block was read.
    pub(super) fn verify_io_done(
        &mut self,
        number: VolumeNumber,
        id: u64,
        result: Result<Bytes, IoError>,
    ) {
        let verify = self.volumes.get(&number).and_then(|at| at.verify.as_ref());
        match verify.map(|verify| &verify.role) {
            Some(Part::Source(_)) => self.source_block_read(number, id, result),
            Some(Part::Target(_)) => self.target_block_read(number, id, result),
            None => {
                if let Err(error) = result {
                    let fault = super::change::DiskFault::Read;
                    self.local_io_error(number, fault, error);
                }
            }
        }
    }

    fn count_block(&mut self, number: VolumeNumber) {
        let (now, bytes) = (self.now, BIT_BYTES / 1024);
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.counters.disk_read_kib += bytes;
            if let Some(verify) = volume.verify.as_mut() {
                let left = verify.left;
                verify.progress.update(now, left, Pace::Running);
            }
        }
    }

    /// Both nodes mark a block that differs.
    fn mark_different(&mut self, number: VolumeNumber, block: u64) {
        let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        if !self.planted(Planted::VerifyMarksNothing) {
            self.mark_out_of_sync(number, block * BIT_BYTES, length_of(block, bytes));
        }
        self.status_changed = true;
        let verify = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.verify.as_mut());
        let Some(verify) = verify else {
            return;
        };
        verify.found += 1;
        if verify.range.end == block && verify.range.start < block {
            verify.range.end = block + 1;
            return;
        }
        let before = core::mem::replace(&mut verify.range, block..block + 1);
        verify.told += 1;
        let told = verify.told;
        if told <= RANGES_TOLD_MAX {
            self.tell_range(number, &before);
        } else if told == RANGES_TOLD_MAX + 1 {
            let text = String::from("more ranges are out of sync: they are not listed");
            self.log(Level::Warn, Some(number), text);
        }
    }

    fn tell_range(&mut self, number: VolumeNumber, range: &Range<u64>) {
        if range.start == range.end {
            return;
        }
        let text = format!(
            "out of sync: start={}, size={} (sectors)",
            range.start * BLOCK_SECTORS,
            (range.end - range.start) * BLOCK_SECTORS
        );
        self.log(Level::Warn, Some(number), text);
    }

    /// The last verdict is out: everything on the meta socket before this ping is handled when it is answered.
    fn ping_before_verify_ends(&mut self, number: VolumeNumber) {
        let ping = self.ping_now();
        let verify = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.verify.as_mut());
        if let Some(verify) = verify {
            verify.ping = Some(ping);
        }
    }

    /// A ping was answered.
    pub(super) fn verify_ping_answered(&mut self) {
        let answered = self.pings_answered();
        for number in self.volume_numbers() {
            let verify = self.volumes.get(&number).and_then(|at| at.verify.as_ref());
            let ping = verify.and_then(|verify| verify.ping);
            if ping.is_some_and(|ping| ping <= answered) {
                self.finish_verify(number);
            }
        }
    }

    /// The peer's P_STATE says Connected: the verify that it drives is over, before the end perhaps (wire-protocol.md 4.6
    /// step 4).
    pub(super) fn verify_source_ended(&mut self, number: VolumeNumber) {
        self.finish_verify(number);
    }

    fn finish_verify(&mut self, number: VolumeNumber) {
        let now = self.now;
        let verify = self.volumes.get(&number).and_then(|at| at.verify.as_ref());
        let Some(verify) = verify else {
            return;
        };
        let seconds = now.since(verify.progress.started()).as_secs().max(1);
        let done = verify.total.saturating_sub(verify.left);
        let end = if verify.position().is_none() {
            "done"
        } else {
            "stopped"
        };
        let mut text = format!(
            "online verify {end} (total {seconds} sec; {} K/sec): {} of {done} blocks differ",
            done * 4 / seconds,
            verify.found
        );
        if verify.skipped > 0 {
            text.push_str(&format!(
                "; {} could not be compared, since the peer did not read them",
                verify.skipped
            ));
        }
        let level = if verify.skipped + verify.found > 0 {
            Level::Warn
        } else {
            Level::Info
        };
        self.log(level, Some(number), text);
        let connected = |state: &mut crate::state::word::State| state.conn = ConnState::Connected;
        self.change_state(number, connected, Hardness::Hard);
        self.tell_out_of_sync(number);
    }

    /// What is out of sync after a verify, found by it or before it.
    fn tell_out_of_sync(&mut self, number: VolumeNumber) {
        let bits = self
            .volumes
            .get(&number)
            .map_or(0, super::volume::Volume::bits_set);
        if bits == 0 {
            return;
        }
        let name = &self.name;
        let text = format!(
            "online verify found {bits} blocks of 4 KiB out of sync; to copy them to the Secondary type, while one node is \
             Primary: tandem adm disconnect {name}; then: tandem adm connect {name}"
        );
        self.log(Level::Error, Some(number), text);
        self.run_handler("out-of-sync", Some(number), handlers::Then::Nothing);
    }

    /// Whether the data socket may be read: the peer asked for no more than can be held.
    pub(super) fn verify_may_receive(&self) -> bool {
        let mut verifies = self.volumes.values().filter_map(|at| at.verify.as_ref());
        !verifies.any(|verify| match &verify.role {
            Part::Target(target) => target.is_full(),
            Part::Source(_) => false,
        })
    }

    /// Progress, for people.
    pub(super) fn verify_status(&self, number: VolumeNumber) -> Option<ResyncStatus> {
        let verify = self.volumes.get(&number)?.verify.as_ref()?;
        let want_kib = match &verify.role {
            Part::Source(source) => source.rate_wanted(),
            Part::Target(_) => 0,
        };
        Some(ResyncStatus {
            total: verify.total,
            left: verify.left,
            failed: verify.skipped,
            same: 0,
            elapsed: self.now.since(verify.progress.started()),
            rate_kib: verify.progress.rate(self.now, verify.left),
            want_kib,
        })
    }
}
