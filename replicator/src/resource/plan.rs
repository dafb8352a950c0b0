//! Durable sequences: what must be on disk, in which order, and what happens then.
//!
//! A [`Stage`] starts when the one before it has completed. The plans of a volume that may write the superblock run one
//! after another in the *main* lane; transactions of the activity log run beside them in the *log* lane.
//!
//! Invariants:
//! - A page of the bitmap is never written twice at the same time: who finds a write in flight waits for it and then
//!   writes what changed since.
//! - The superblock is a snapshot of the moment its stage starts.
//! - A plan that fails ends there: its continuation gets the error, the disk is detached, and plans behind it fail too.

#[cfg(feature = "planted")]
pub(crate) mod cut_points;

use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

use tandem_metadata::Flags;

use super::change::{Deferred, DiskFault};
use super::generation::FlagValue;
use super::volume::Backing;
use super::{Pending, Resource, attach, commands, link, resync};
use crate::activity_log::{Batch, Ticket};
use crate::bitmap::{PAGE_BYTES, PageChange, WriteOutcome};
use crate::effect::{DiskOperation, Effect, MetaOperation};
use crate::event::{Fua, IoError, VolumeNumber};
use crate::planted::Planted;

/// Runs of bitmap pages in flight for one plan.
const RUNS_IN_FLIGHT_MAX: usize = 8;

/// Pages of one write: 256 KiB.
const RUN_PAGES_MAX: usize = 64;

/// One step of a plan.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Writes to metadata blocks (offset in bytes on the metadata device), all at once; durable with `md-flushes`.
    Meta(Vec<(u64, Bytes)>),
    /// Makes earlier metadata writes durable (with `md-flushes`).
    FlushMeta,
    /// Makes earlier data writes durable (with `disk-flushes`).
    FlushData,
    /// Writes the superblock as it is when the stage starts; durable with `md-flushes`.
    Superblock,
    /// Writes pages of the bitmap that changed; not durable before a flush.
    BitmapPages(Pages),
    /// From here on one demotion less keeps the primary flag on disk.
    ReleasePrimary,
    /// Waits until this transaction of the activity log is on disk: what stood in for the log may go.
    LogCommitted(Ticket),
    /// Changes a flag of the superblock in memory: it reaches the disk with the next stage that writes it.
    Flag(Flags, FlagValue),
}

/// Which pages of the bitmap a stage writes: those of them that differ from the disk.
#[derive(Clone, Debug)]
pub(crate) enum Pages {
    /// These.
    List(Vec<u32>),
    /// All.
    AllChanged,
}

/// What follows a plan. Each owner routes its own; a failed plan has detached the disk already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// A transaction of the activity log.
    LogWritten,
    /// A new data generation.
    Generation,
    /// Clients get to know a new size, and whoever asked for it is answered.
    Sized,
    /// The superblock before a handler runs.
    Handler,
    /// A step of an attach.
    Attach(attach::AfterPlan),
    /// The last writes before a disk is closed.
    Detach,
    /// A step of a command.
    Command(commands::AfterPlan),
    /// A step of a resync or a bitmap exchange.
    Resync(resync::AfterPlan),
    /// A step of the handshake.
    Link(link::AfterPlan),
}

/// Which lane an I/O of a plan belongs to, and what it wrote.
#[derive(Clone, Debug)]
pub(crate) struct PlanIo {
    lane: Lane,
    /// What it means if this fails.
    fault: DiskFault,
    /// Bitmap pages with their write generations; empty for all else.
    pages: Vec<(u32, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Main,
    Log,
}

#[derive(Debug)]
struct Plan {
    stages: VecDeque<Stage>,
    then: Then,
}

#[derive(Debug)]
struct Running {
    plan: Plan,
    /// I/O of the current stage in flight.
    io: usize,
    /// Pages of the current stage still to be looked at, ascending.
    pages: VecDeque<u32>,
    /// Pages of the current stage that wait for a write of the other lane.
    waits: BTreeSet<u32>,
    /// The transaction that the current stage waits for.
    log: Option<Ticket>,
    /// The flags of the superblock that the current stage writes.
    flags: Option<Flags>,
    error: Option<IoError>,
}

#[derive(Debug, Default)]
struct Queue {
    running: Option<Running>,
    waiting: VecDeque<Plan>,
}

/// The plans of a volume.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    main: Queue,
    log: Queue,
}

impl Plans {
    /// A plan with this continuation runs or waits.
    pub(crate) fn has(&self, then: Then) -> bool {
        let queues = [&self.main, &self.log];
        queues.into_iter().any(|queue| {
            queue.waiting.iter().any(|plan| plan.then == then)
                || queue
                    .running
                    .as_ref()
                    .is_some_and(|running| running.plan.then == then)
        })
    }

    /// A plan that runs or waits will still take a snapshot of the superblock.
    pub(crate) fn will_write_superblock(&self) -> bool {
        let writes = |plan: &Plan| {
            let superblock = |stage: &Stage| matches!(stage, Stage::Superblock);
            plan.stages.iter().any(superblock)
        };
        self.main.waiting.iter().any(writes)
            || self
                .main
                .running
                .as_ref()
                .is_some_and(|at| writes(&at.plan))
    }

    /// The flags of a superblock that is on its way to the disk: they may be there already, or never.
    pub(crate) fn flags_in_flight(&self) -> Option<Flags> {
        let queues = [&self.main, &self.log];
        let mut running = queues.into_iter().filter_map(|at| at.running.as_ref());
        running.find_map(|running| running.flags)
    }

    fn lane(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Main => &mut self.main,
            Lane::Log => &mut self.log,
        }
    }
}

/// Every bit was set (or cleared) in memory: the bitmap on disk counts as "all set" until it says the same.
pub(crate) fn rewrite_bitmap() -> Vec<Stage> {
    vec![
        Stage::Flag(Flags::FULL_SYNC, FlagValue::Set),
        Stage::Superblock,
        Stage::BitmapPages(Pages::AllChanged),
        Stage::FlushMeta,
        Stage::Flag(Flags::FULL_SYNC, FlagValue::Clear),
        Stage::Superblock,
    ]
}

/// The flags of a node that was Primary: data flushed, bits on disk, then the superblock without the primary flag.
pub(crate) fn release_primary() -> Vec<Stage> {
    vec![
        Stage::FlushData,
        Stage::BitmapPages(Pages::AllChanged),
        Stage::FlushMeta,
        Stage::ReleasePrimary,
        Stage::Superblock,
    ]
}

impl Resource {
    /// Runs a durable sequence behind those that run or wait; `then` follows in any case, later.
    pub(crate) fn start_plan(&mut self, number: VolumeNumber, stages: Vec<Stage>, then: Then) {
        self.enqueue(number, Lane::Main, stages, then);
    }

    /// Writes a transaction of the activity log: bits of evicted extents first, flushed; then the block.
    pub(crate) fn start_log_plan(&mut self, number: VolumeNumber, batch: &Batch, then: Then) {
        let Some(backing) = self.volumes.get(&number).and_then(|at| at.backing.as_ref()) else {
            self.fail_later(number, then);
            return;
        };
        let mut stages = match log_stages(backing, batch) {
            Ok(stages) => stages,
            Err(error) => {
                let text = alloc::format!("activity log: {error}");
                self.deferred
                    .push_back(Deferred::PlanDone(number, then, Err(IoError { text })));
                return;
            }
        };
        if self.planted(Planted::EvictBeforeBits) {
            stages.retain(|stage| matches!(stage, Stage::Meta(_)));
        }
        if let Some(backing) = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.backing.as_mut())
        {
            backing.log_replaced = false;
        }
        self.enqueue(number, Lane::Log, stages, then);
    }

    fn fail_later(&mut self, number: VolumeNumber, then: Then) {
        let text = String::from("the volume has no disk");
        let failed = Deferred::PlanDone(number, then, Err(IoError { text }));
        self.deferred.push_back(failed);
    }

    fn enqueue(&mut self, number: VolumeNumber, lane: Lane, stages: Vec<Stage>, then: Then) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume
            .backing
            .as_ref()
            .is_none_or(|backing| backing.meta_failed)
        {
            self.fail_later(number, then);
            return;
        }
        volume.plans.lane(lane).waiting.push_back(Plan {
            stages: stages.into(),
            then,
        });
        self.next_plan(number, lane);
    }

    fn next_plan(&mut self, number: VolumeNumber, lane: Lane) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let queue = volume.plans.lane(lane);
        if queue.running.is_some() {
            return;
        }
        let Some(plan) = queue.waiting.pop_front() else {
            return;
        };
        queue.running = Some(Running {
            plan,
            io: 0,
            pages: VecDeque::new(),
            waits: BTreeSet::new(),
            log: None,
            flags: None,
            error: None,
        });
        self.advance(number, lane);
    }

    /// Goes on with a plan as far as possible: more pages, the next stage, the end.
    fn advance(&mut self, number: VolumeNumber, lane: Lane) {
        loop {
            self.write_pages(number, lane);
            let Some(volume) = self.volumes.get_mut(&number) else {
                return;
            };
            let gone = volume
                .backing
                .as_ref()
                .is_none_or(|backing| backing.meta_failed);
            let log = volume.backing.as_ref().map(|backing| &backing.activity_log);
            let committed = log.map(|log| log.committed());
            let log_failed = log.is_some_and(|log| log.is_failed());
            let Some(running) = volume.plans.lane(lane).running.as_mut() else {
                return;
            };
            if running.io > 0 {
                return;
            }
            if running.log <= committed {
                running.log = None;
            }
            if running.error.is_none() && gone {
                let text = String::from("metadata cannot be written any more");
                running.error = Some(IoError { text });
            }
            if running.error.is_none() && running.log.is_some() && log_failed {
                let text = String::from("the activity log cannot be written any more");
                running.error = Some(IoError { text });
            }
            let waits =
                !running.waits.is_empty() || !running.pages.is_empty() || running.log.is_some();
            if running.error.is_none() && waits {
                return;
            }
            let written = running.flags.take().filter(|_| running.error.is_none());
            let stage = match running.error {
                None => running.plan.stages.pop_front(),
                Some(_) => None,
            };
            if let (Some(flags), Some(backing)) = (written, volume.backing.as_mut()) {
                backing.flags_on_disk = flags;
                self.deferred.push_back(Deferred::DiskSaysIt(number));
            }
            match stage {
                Some(stage) => self.start_stage(number, lane, stage),
                None => {
                    self.end_plan(number, lane);
                    return;
                }
            }
        }
    }

    fn end_plan(&mut self, number: VolumeNumber, lane: Lane) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if let Some(ended) = volume.plans.lane(lane).running.take() {
            let result = ended.error.map_or(Ok(()), Err);
            self.deferred
                .push_back(Deferred::PlanDone(number, ended.plan.then, result));
        }
        self.next_plan(number, lane);
    }

    fn start_stage(&mut self, number: VolumeNumber, lane: Lane, stage: Stage) {
        let cached = match &stage {
            Stage::Meta(_) => self.planted(Planted::LogInCache),
            Stage::Superblock => self.planted(Planted::SuperblockInCache),
            Stage::FlushMeta => self.planted(Planted::BitmapInCache),
            _ => false,
        };
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let (md_flushes, disk_flushes) = (volume.options.md_flushes, volume.options.disk_flushes);
        let fua = if md_flushes && !cached {
            Fua::Yes
        } else {
            Fua::No
        };
        match stage {
            Stage::Meta(writes) => {
                for (offset, data) in writes {
                    let operation = MetaOperation::Write { offset, data, fua };
                    self.plan_meta(number, lane, operation, Vec::new());
                }
            }
            Stage::FlushMeta if md_flushes && !cached => {
                self.plan_meta(number, lane, MetaOperation::Flush, Vec::new());
            }
            Stage::FlushData if disk_flushes => {
                let io = PlanIo {
                    lane,
                    fault: match lane {
                        Lane::Log => DiskFault::Log,
                        Lane::Main => DiskFault::Write,
                    },
                    pages: Vec::new(),
                };
                self.count_io(number, lane);
                self.disk(number, Pending::Plan(number, io), DiskOperation::Flush);
            }
            Stage::FlushMeta | Stage::FlushData => {}
            Stage::Superblock => {
                let Some((offset, data)) = volume.superblock_bytes() else {
                    return;
                };
                let flags = volume.backing.as_ref().map(|at| at.superblock.flags);
                if let Some(running) = volume.plans.lane(lane).running.as_mut() {
                    running.flags = flags;
                }
                let operation = MetaOperation::Write { offset, data, fua };
                self.plan_meta(number, lane, operation, Vec::new());
            }
            Stage::BitmapPages(pages) => self.take_pages(number, lane, pages),
            Stage::ReleasePrimary => {
                if let Some(backing) = volume.backing.as_mut() {
                    backing.primary_holds = backing.primary_holds.saturating_sub(1);
                }
                volume.refresh_disk_flags();
            }
            Stage::LogCommitted(ticket) => {
                if let Some(running) = volume.plans.lane(lane).running.as_mut() {
                    running.log = Some(ticket);
                }
            }
            Stage::Flag(flag, value) => volume.set_disk_flag(flag, value),
        }
    }

    fn count_io(&mut self, number: VolumeNumber, lane: Lane) {
        let running = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.plans.lane(lane).running.as_mut());
        if let Some(running) = running {
            running.io += 1;
        }
    }

    fn plan_meta(
        &mut self,
        number: VolumeNumber,
        lane: Lane,
        operation: MetaOperation,
        pages: Vec<(u32, u64)>,
    ) {
        self.count_io(number, lane);
        let fault = DiskFault::Meta;
        let token = self.token(Pending::Plan(number, PlanIo { lane, fault, pages }));
        self.effects.push(Effect::Meta {
            token,
            volume: number,
            operation,
        });
    }

    fn take_pages(&mut self, number: VolumeNumber, lane: Lane, pages: Pages) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(backing) = volume.backing.as_ref() else {
            return;
        };
        let bitmap = &backing.bitmap;
        let differs = |page: &u32| bitmap.page_change(*page) != PageChange::None;
        let todo: VecDeque<u32> = match pages {
            Pages::List(list) => list.into_iter().filter(differs).collect(),
            Pages::AllChanged if bitmap.changed_pages() == 0 && bitmap.writes_in_flight() == 0 => {
                VecDeque::new()
            }
            Pages::AllChanged => (0..bitmap.page_count()).filter(differs).collect(),
        };
        if let Some(running) = volume.plans.lane(lane).running.as_mut() {
            running.pages = todo;
        }
    }

    /// Starts writes of pages up to the bound.
    fn write_pages(&mut self, number: VolumeNumber, lane: Lane) {
        loop {
            let Some(volume) = self.volumes.get_mut(&number) else {
                return;
            };
            let Some(running) = volume.plans.lane(lane).running.as_mut() else {
                return;
            };
            if running.error.is_some() {
                running.pages.clear();
                running.waits.clear();
            }
            if running.pages.is_empty() || running.io >= RUNS_IN_FLIGHT_MAX {
                return;
            }
            let Some(run) = volume.next_run(lane) else {
                continue;
            };
            volume.counters.bm_writes += 1;
            let fua = Fua::No; // A flush follows where it matters: see `Stage::BitmapPages`.
            let (offset, data) = (run.offset, Bytes::from(run.bytes));
            let operation = MetaOperation::Write { offset, data, fua };
            self.plan_meta(number, lane, operation, run.pages);
        }
    }

    /// An I/O of a plan ended.
    pub(crate) fn plan_io_done(
        &mut self,
        number: VolumeNumber,
        io: PlanIo,
        result: Result<(), IoError>,
    ) {
        let outcome = match result {
            Ok(()) => WriteOutcome::Written,
            Err(_) => WriteOutcome::Failed,
        };
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if let Some(backing) = volume.backing.as_mut() {
            for (page, generation) in &io.pages {
                backing.bitmap.finish_write(*page, *generation, outcome);
            }
        }
        if let Some(running) = volume.plans.lane(io.lane).running.as_mut() {
            running.io -= 1;
            if let Err(error) = &result {
                running.error.get_or_insert_with(|| error.clone());
            }
        }
        volume.wake_waiting_pages(&io.pages);
        if let Err(error) = result {
            self.local_io_error(number, io.fault, error);
        }
        self.advance(number, Lane::Main);
        self.advance(number, Lane::Log);
    }

    /// What follows a plan, by its owner.
    pub(crate) fn plan_done(
        &mut self,
        number: VolumeNumber,
        then: Then,
        result: Result<(), IoError>,
    ) {
        match then {
            Then::Nothing => {}
            Then::Sized => {
                self.serve_size(number);
                self.size_written(number, result);
            }
            Then::LogWritten => {
                self.log_written(number, result);
                // A plan of the main lane may wait for this transaction.
                self.advance(number, Lane::Main);
            }
            Then::Generation => self.generation_written(number, &result),
            Then::Handler => self.handler_may_run(),
            Then::Attach(step) => self.attach_plan_done(number, step, result),
            Then::Detach => self.detach_plan_done(number, result),
            Then::Command(step) => self.command_plan_done(number, step, result),
            Then::Resync(step) => self.resync_plan_done(number, step, result),
            Then::Link(step) => self.link_plan_done(number, step, result),
        }
    }
}

struct Run {
    offset: u64,
    bytes: Vec<u8>,
    pages: Vec<(u32, u64)>,
}

impl super::volume::Volume {
    /// Starts the write of the next adjoining pages of a stage. None if the first one needs none, or has to wait.
    fn next_run(&mut self, lane: Lane) -> Option<Run> {
        let running = self.plans.lane(lane).running.as_mut()?;
        let first = running.pages.pop_front()?;
        let backing = self.backing.as_mut()?;
        match backing.bitmap.page_change(first) {
            PageChange::None => return None,
            PageChange::Writing(_) | PageChange::WritingAndChanged(_) => {
                running.waits.insert(first);
                return None;
            }
            PageChange::Changed(_) => {}
        }
        let mut run = Run {
            offset: backing.page_offset(first),
            bytes: Vec::with_capacity(PAGE_BYTES),
            pages: Vec::new(),
        };
        let mut next = Some(first);
        while let Some(page) = next {
            // A page not read yet cannot be written, and need not: only what was set since would be lost, and the
            // attach writes it when it was read.
            let Some(write) = backing.bitmap.start_write(page) else {
                break;
            };
            run.bytes.extend_from_slice(&write.bytes);
            run.pages.push((page, write.generation));
            let adjoining = running.pages.front().copied() == Some(page + 1)
                && run.pages.len() < RUN_PAGES_MAX
                && matches!(backing.bitmap.page_change(page + 1), PageChange::Changed(_));
            next = adjoining.then(|| running.pages.pop_front()).flatten();
        }
        if run.pages.is_empty() {
            return None;
        }
        run.bytes.truncate(backing.room_from(run.offset));
        Some(run)
    }

    /// Writes of pages ended: stages of either lane that waited for them look again.
    fn wake_waiting_pages(&mut self, pages: &[(u32, u64)]) {
        for lane in [Lane::Main, Lane::Log] {
            if let Some(running) = self.plans.lane(lane).running.as_mut() {
                for (page, _) in pages {
                    if running.waits.remove(page) {
                        running.pages.push_back(*page);
                    }
                }
            }
        }
    }
}

impl Backing {
    fn page_offset(&self, page: u32) -> u64 {
        self.layout.bitmap_offset().0 + u64::from(page) * PAGE_BYTES as u64
    }

    /// Bytes from `offset` to the end of the bitmap area: its last page may be short on a device of an odd size.
    fn room_from(&self, offset: u64) -> usize {
        let end = self.layout.bitmap_offset().0 + self.layout.bitmap_len().0;
        usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX)
    }
}

fn log_stages(
    backing: &Backing,
    batch: &Batch,
) -> Result<Vec<Stage>, tandem_metadata::ActivityLogError> {
    let block = Bytes::copy_from_slice(&batch.transaction.encode()?[..]);
    let geometry = backing.layout.geometry();
    let position = geometry.block_of(batch.transaction.number);
    let offset = backing.layout.activity_log_block(position).0;
    let pages: Vec<u32> = batch
        .bitmap_pages()
        .into_iter()
        .filter(|page| backing.bitmap.blocks_eviction(*page))
        .collect();
    let mut stages = Vec::new();
    if backing.log_replaced {
        // All extents of the former log leave with the first block of the new one.
        stages.extend([
            Stage::FlushData,
            Stage::BitmapPages(Pages::AllChanged),
            Stage::FlushMeta,
        ]);
    }
    let bits = !pages.is_empty();
    if bits {
        stages.push(Stage::BitmapPages(Pages::List(pages)));
    }
    if !batch.evicted.is_empty() {
        // Acknowledged writes of an evicted extent must not be lost from a volatile cache: nothing would name them
        // after a power loss. With internal metadata one flush covers both.
        if !backing.is_internal() {
            stages.push(Stage::FlushData);
        }
        if bits || backing.is_internal() {
            stages.push(Stage::FlushMeta);
        }
    }
    stages.push(Stage::Meta(vec![(offset, block)]));
    Ok(stages)
}
