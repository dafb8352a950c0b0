//! Resyncs: how one starts, what belongs to both ends of it, and how it is given up (state-machine.md section 6).
//!
//! ```text
//!  source  handler ─► sync UUID durable ─► SyncSource, P_SYNC_UUID ─► answers requests ─► the target says it is done
//!  target  P_SYNC_UUID ─► handler ─► SyncTarget ─► bits and "Inconsistent" durable ─► requests ─► flush ─► done
//! ```
//!
//! Invariants:
//! - A block is read on the source, and written on the target, only while no write that overlaps it is in flight there:
//!   both hold an interval ([`crate::intervals`]) for it. On a Primary target the interval is held from before the
//!   request until the block is written: old data never overwrites newer.
//! - On the target a bit is cleared only when the block is written *and* flushed, and the bits and the state of the disk
//!   are durable before the first block is written: whatever a power loss leaves, the bits of both nodes together name
//!   every block that differs.
//! - The data socket of the target stands still from P_SYNC_UUID until that is so.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use tandem_protocol::digest::DigestAlgorithm;

use super::Resource;
use super::handlers;
use super::plan::{Pages, Stage, Then};
use super::volume::{IoHold, Volume};
use crate::effect::Level;
use crate::event::{IoError, VolumeNumber};
use crate::planted::Planted;
use crate::resync::controller::Progress;
use crate::state::Hardness;
use crate::state::word::{ConnState, DiskState, Role};
use crate::status::ResyncStatus;
use crate::time::Time;

mod end;
mod run;
mod source;
mod sync_io;
mod target;

pub(crate) use run::Resync;
use run::{Part, Phase};
pub(crate) use sync_io::SyncIo;
use target::Target;

/// Which end of a resync this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It has the better data.
    Source,
    /// It is brought up to date.
    Target,
}

/// Names one resync, so that what comes late does not touch the next one.
pub(crate) type Run = u64;

/// What a completion of an I/O belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {
    /// A block read for the target.
    Read(u64),
    /// A block from the source.
    Write(u64),
    /// A block of the target's own, for its digest.
    Own(u64),
}

/// What follows a durable sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {
    /// All bits are set for a full sync.
    AllBitsSet,
    /// The source's sync UUID.
    SyncUuid(Run),
    /// The target's bits and flags: requests may be sent.
    TargetReady(Run),
    /// The data that the target has written.
    Flushed(Run),
    /// The target's generations at the end.
    TargetFinished(Run),
}

/// What follows a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHandler {
    /// before-resync-source, before-resync-target.
    Before(Run),
}

impl Resource {
    /// Starts a resync: on the source when bitmaps are exchanged (or all bits set), on the target when P_SYNC_UUID came.
    pub(crate) fn start_resync(&mut self, number: VolumeNumber, side: Side) {
        let (now, run) = (self.now, self.requests.next_id());
        let (csums, after_crash_only) = match self.connection.net.as_ref() {
            Some(net) => (
                DigestAlgorithm::from_name(&net.csums_alg),
                net.csums_after_crash_only,
            ),
            None => (None, false),
        };
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.resync.is_some() || volume.backing.is_none() {
            return;
        }
        let (role, handler) = match side {
            Side::Source => (
                Part::Source(source::Source::default()),
                "before-resync-source",
            ),
            Side::Target => {
                let csums = csums.filter(|_| !after_crash_only || volume.crashed_primary);
                (
                    Part::Target(alloc::boxed::Box::new(Target::new(now, csums))),
                    "before-resync-target",
                )
            }
        };
        volume.sync_io.repeat = None;
        volume.resync = Some(Resync {
            run,
            phase: Phase::Starting,
            from: volume.state.conn,
            progress: Progress::new(now, volume.bits_set()),
            failed: 0,
            paused_at: None,
            paused: Duration::ZERO,
            role,
        });
        let then = handlers::Then::Resync(number, AfterHandler::Before(run));
        self.run_handler(handler, Some(number), then);
    }

    fn resync_of(&mut self, number: VolumeNumber, run: Run) -> Option<&mut Resync> {
        let resync = self.volumes.get_mut(&number)?.resync.as_mut()?;
        (resync.run == run).then_some(resync)
    }

    /// A handler of a resync ended.
    pub(crate) fn resync_handler_done(
        &mut self,
        number: VolumeNumber,
        step: AfterHandler,
        exit: i32,
    ) {
        let AfterHandler::Before(run) = step;
        let Some(side) = self.resync_of(number, run).map(|resync| resync.side()) else {
            return;
        };
        let refused = match side {
            Side::Source => exit > 0 && exit != 3,
            Side::Target => exit > 0,
        };
        if refused {
            let text = format!(
                "the handler before the resync ended with exit code {exit}: the connection is dropped"
            );
            self.log(Level::Warn, Some(number), text);
            self.drop_resync(number);
            self.change_connection(
                |state| state.conn = ConnState::Disconnecting,
                Hardness::Hard,
            );
            return;
        }
        if !self.may_start(number) {
            self.drop_resync(number);
            return;
        }
        match side {
            Side::Source => self.prepare_source(number, run),
            Side::Target => self.prepare_target(number, run),
        }
    }

    /// The link and the disks are still there (6.1, last paragraph).
    fn may_start(&self, number: VolumeNumber) -> bool {
        self.volumes.get(&number).is_some_and(|volume| {
            volume.state.conn >= ConnState::Connected
                && volume.state.disk >= DiskState::Inconsistent
                && volume.state.pdsk >= DiskState::Inconsistent
                && volume.backing.is_some()
        })
    }

    fn prepare_source(&mut self, number: VolumeNumber, run: Run) {
        let random = self.draw();
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.generations.start_as_source(random);
        }
        self.write_superblock_soon(number);
        self.log_generations(number, "resync starts as source");
        let then = Then::Resync(AfterPlan::SyncUuid(run));
        self.start_plan(number, vec![Stage::Superblock], then);
    }

    /// The sync UUID is durable. 2.9 no. 7 sends it.
    fn begin_source(&mut self, number: VolumeNumber) {
        if !self.may_start(number) {
            self.drop_resync(number);
            return;
        }
        let now = self.now;
        let early = self.planted(Planted::ClearBitmapEarly);
        if let Some(volume) = self.volumes.get_mut(&number) {
            let total = volume.bits_set();
            if let Some(resync) = volume.resync.as_mut() {
                resync.phase = Phase::Running;
                resync.begin(now, total);
            }
            if let Some(backing) = volume.backing.as_mut().filter(|_| early) {
                backing.bitmap.clear_all();
            }
        }
        let result = self.change_state(
            number,
            |state| {
                state.conn = ConnState::SyncSource;
                state.pdsk = DiskState::Inconsistent;
            },
            Hardness::Hard,
        );
        self.check_begun(number, result.is_success(), Side::Source);
    }

    fn prepare_target(&mut self, number: VolumeNumber, run: Run) {
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.io_holds.insert(IoHold::BitmapExchange);
            let total = volume.bits_set();
            if let Some(resync) = volume.resync.as_mut() {
                resync.begin(now, total);
            }
        }
        let result = self.change_state(
            number,
            |state| {
                state.conn = ConnState::SyncTarget;
                state.disk = DiskState::Inconsistent;
                state.pdsk = DiskState::UpToDate;
            },
            Hardness::Hard,
        );
        if !self.check_begun(number, result.is_success(), Side::Target) {
            return;
        }
        // The peer forgets a block when this node acknowledges it, before it is flushed here: after a power loss only
        // the bits on this disk name it. And a disk that is half overwritten must say so.
        let mut stages = vec![
            Stage::BitmapPages(Pages::AllChanged),
            Stage::FlushMeta,
            Stage::Superblock,
        ];
        if self.planted(Planted::TargetNotMarked) {
            stages.clear();
        }
        self.start_plan(number, stages, Then::Resync(AfterPlan::TargetReady(run)));
    }

    fn check_begun(&mut self, number: VolumeNumber, allowed: bool, side: Side) -> bool {
        let conn = self.volumes.get(&number).map(|volume| volume.state.conn);
        let begun = allowed
            && match side {
                Side::Source => {
                    matches!(conn, Some(ConnState::SyncSource | ConnState::PausedSyncS))
                }
                Side::Target => {
                    matches!(conn, Some(ConnState::SyncTarget | ConnState::PausedSyncT))
                }
            };
        if begun {
            self.log_begin(number, side);
        } else {
            let text = String::from("the resync cannot start: its states are not allowed now");
            self.log(Level::Warn, Some(number), text);
            self.drop_resync(number);
        }
        begun
    }

    fn log_begin(&mut self, number: VolumeNumber, side: Side) {
        let blocks = self.volumes.get(&number).map_or(0, Volume::bits_set);
        let side = match side {
            Side::Source => "source",
            Side::Target => "target",
        };
        let text = format!(
            "began resync as {side}: {} KiB, {blocks} bits set",
            blocks * 4
        );
        self.log(Level::Info, Some(number), text);
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        if let Some(algorithm) = resync.and_then(Resync::target).and_then(|at| at.csums()) {
            let text = format!("resync: checksums are compared first (csums-alg {algorithm})");
            self.log(Level::Info, Some(number), text);
        }
    }

    /// A durable sequence of a resync, or of a full sync's start, ended.
    pub(crate) fn resync_plan_done(
        &mut self,
        number: VolumeNumber,
        step: AfterPlan,
        result: Result<(), IoError>,
    ) {
        let run = match step {
            AfterPlan::AllBitsSet => {
                self.all_bits_set(number, result);
                return;
            }
            AfterPlan::SyncUuid(run)
            | AfterPlan::TargetReady(run)
            | AfterPlan::Flushed(run)
            | AfterPlan::TargetFinished(run) => run,
        };
        if self.resync_of(number, run).is_none() {
            return;
        }
        if result.is_err() {
            // A metadata error has detached the disk; a flush of data that failed is judged here.
            if matches!(step, AfterPlan::Flushed(_)) {
                self.flush_failed(number);
            } else {
                self.drop_resync(number);
            }
            return;
        }
        match step {
            AfterPlan::AllBitsSet => {}
            AfterPlan::SyncUuid(_) => self.begin_source(number),
            AfterPlan::TargetReady(_) => self.begin_target(number),
            AfterPlan::Flushed(_) => self.target_flushed(number),
            AfterPlan::TargetFinished(_) => self.finish_target(number),
        }
    }

    /// An I/O of a resync ended.
    pub(crate) fn resync_io_done(
        &mut self,
        number: VolumeNumber,
        io: Io,
        result: Result<Bytes, IoError>,
    ) {
        match io {
            Io::Read(id) => self.finish_sync_read(number, id, result),
            Io::Write(id) => self.finish_sync_write(number, id, result.map(|_| ())),
            Io::Own(id) => self.own_block_read(number, id, result),
        }
    }

    /// Nothing overlaps a block any more.
    pub(crate) fn resync_interval_ready(&mut self, number: VolumeNumber, id: u64) {
        if self.verify_interval_ready(number, id) {
            return;
        }
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        if volume.sync_io.reads.contains_key(&id) {
            self.start_sync_read(number, id);
        } else if volume.sync_io.writes.contains_key(&id) {
            self.start_sync_write(number, id);
        } else {
            self.ask_for(number, id);
        }
    }

    /// Bits were cleared by the data path: the end may be reached.
    pub(crate) fn bits_cleared(&mut self, number: VolumeNumber) {
        self.check_end(number);
    }

    /// References of the activity log were given back. Resyncs are ordered by intervals: nothing waits for it.
    pub(crate) fn extents_idle(&mut self, _number: VolumeNumber) {}

    /// A state change paused the resync.
    pub(crate) fn resync_paused(&mut self, number: VolumeNumber) {
        let now = self.now;
        if let Some(resync) = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut())
        {
            resync.paused_at.get_or_insert(now);
        }
    }

    /// It goes on.
    pub(crate) fn resync_resumed(&mut self, number: VolumeNumber) {
        let now = self.now;
        let resync = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut());
        let Some(resync) = resync else {
            return;
        };
        if let Some(since) = resync.paused_at.take() {
            resync.paused += now.since(since);
        }
        if let Some(target) = resync.target() {
            target.turn_now(now);
        }
    }

    /// 2.9 no. 8: the peer's disk appeared; nothing of a resync before it counts.
    pub(crate) fn resync_reset_counters(&mut self, number: VolumeNumber) {
        if let Some(resync) = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.resync.as_mut())
        {
            resync.failed = 0;
        }
    }

    /// The link is gone (2.11 step 3).
    pub(crate) fn resync_connection_lost(&mut self, number: VolumeNumber) {
        self.exchange_over(number);
        self.drop_resync(number);
        let unstarted: Vec<u64> = self
            .volumes
            .get_mut(&number)
            .map_or_else(Vec::new, |volume| {
                volume.sync_io.repeat = None;
                let reads = volume
                    .sync_io
                    .reads
                    .iter()
                    .filter(|(_, read)| !read.is_started());
                let writes = volume
                    .sync_io
                    .writes
                    .iter()
                    .filter(|(_, write)| !write.is_started());
                reads
                    .map(|(id, _)| *id)
                    .chain(writes.map(|(id, _)| *id))
                    .collect()
            });
        for id in unstarted {
            self.forget_sync_io(number, id);
        }
    }

    fn forget_sync_io(&mut self, number: VolumeNumber, id: u64) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.sync_io.take_read(id);
            volume.sync_io.take_write(id);
        }
        self.release_interval(number, id);
    }

    /// The local disk is Failed or Diskless.
    pub(crate) fn resync_disk_gone(&mut self, number: VolumeNumber) {
        self.exchange_over(number);
        self.drop_resync(number);
    }

    /// The peer pulled ahead (6.11): a resync from it ends here, what is not yet in sync stays marked, and the next
    /// P_SYNC_UUID starts another one.
    pub(crate) fn resync_left_behind(&mut self, number: VolumeNumber) {
        self.drop_resync(number);
    }

    /// Ends the bookkeeping of a resync that goes no further. I/O in flight ends by itself.
    fn drop_resync(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.io_holds.remove(&IoHold::BitmapExchange);
        let Some(mut resync) = volume.resync.take() else {
            return;
        };
        let held = resync.target().map(Target::give_up).unwrap_or_default();
        for id in held {
            self.release_interval(number, id);
        }
        self.receiving_may_go_on();
    }

    /// The device grew while connected (10.4): the source starts at once, the other node waits for its P_SYNC_UUID.
    pub(crate) fn resync_grown_area(&mut self, number: VolumeNumber) {
        let resolves = self.connection.resolve_conflicts;
        let Some(state) = self.volumes.get(&number).map(|volume| volume.state) else {
            return;
        };
        if state.conn != ConnState::Connected {
            return;
        }
        let source = if state.role == state.peer {
            resolves
        } else {
            state.role == Role::Primary
        };
        if source {
            self.start_resync(number, Side::Source);
        } else {
            self.change_state(
                number,
                |state| state.conn = ConnState::WFSyncUUID,
                Hardness::Hard,
            );
        }
    }

    /// A volume that is no longer in a resync (its peer's disk failed, say) has none.
    fn drop_stale(&mut self, number: VolumeNumber) {
        let stale = self.volumes.get(&number).is_some_and(|volume| {
            let conn = volume.state.conn;
            volume.resync.as_ref().is_some_and(|resync| {
                let waits = resync.phase == Phase::Starting && conn == resync.from;
                !waits && !conn.is_resync()
            })
        });
        if stale {
            self.drop_resync(number);
        }
    }

    /// Follows changes of state. Asked after every event, before clients' requests go on.
    pub(crate) fn step_resync(&mut self) {
        self.step_bitmap_exchange();
        for number in self.volumes_where(|volume| volume.resync.is_some()) {
            self.drop_stale(number);
            self.follow_role(number);
        }
    }

    /// Whether a resync lets the next packet of the data socket be handled.
    pub(crate) fn resync_may_receive(&self) -> bool {
        let link = self.connection.link.as_ref();
        let unsent = link.map_or(0, |link| link.data.queued.saturating_sub(link.data.taken));
        if unsent >= source::UNSENT_BYTES_MAX {
            return false;
        }
        !self.volumes.values().any(|volume| {
            let starting = volume.resync.as_ref().is_some_and(|resync| {
                resync.phase == Phase::Starting && resync.side() == Side::Target
            });
            starting
                || volume.exchange.stalls_receiver()
                || volume.sync_io.read_bytes >= source::READ_BYTES_MAX
        })
    }

    /// Whether blocks of a resync are on their way to or from a disk: a new connection waits for their end.
    pub(crate) fn resync_io_in_flight(&self) -> bool {
        self.volumes.values().any(|volume| volume.sync_io.is_busy())
    }

    /// Next time that this part wants to be woken.
    pub(crate) fn resync_deadline(&self) -> Time {
        let volumes = self.volumes.values().map(|volume| {
            let target = self.target_deadline(volume);
            let repeat = volume
                .sync_io
                .repeat
                .as_ref()
                .map_or(Time::NEVER, end::Repeat::at);
            target
                .min(volume.sync_io.next_due())
                .min(repeat)
                .min(volume.exchange.deadline())
        });
        volumes.min().unwrap_or(Time::NEVER)
    }

    /// Time has passed.
    pub(crate) fn tick_resync(&mut self) {
        for number in self.volume_numbers() {
            self.start_delayed_reads(number);
            self.tick_target(number);
            self.repeat_end(number);
        }
    }

    /// Progress of a resync, for people.
    pub(crate) fn resync_status(&self, number: VolumeNumber) -> Option<ResyncStatus> {
        let volume = self.volumes.get(&number)?;
        let resync = volume.resync.as_ref()?;
        if !volume.state.conn.is_resync() {
            return None;
        }
        let left = volume.resync_left();
        let now = resync.paused_at.unwrap_or(self.now);
        let want = match &resync.role {
            Part::Target(target) => target.rate_wanted(),
            Part::Source(_) => 0,
        };
        let same = match &resync.role {
            Part::Target(target) => target.same,
            Part::Source(source) => source.same,
        };
        Some(ResyncStatus {
            same,
            total: resync.progress.total(),
            left,
            failed: resync.failed,
            elapsed: now
                .since(resync.progress.started())
                .saturating_sub(resync.paused),
            rate_kib: resync.progress.rate(now, left),
            want_kib: want,
        })
    }
}
