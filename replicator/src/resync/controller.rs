//! How fast to resync (spec/state-machine.md 6.9): the controller of the requesting side, which runs once in 100 ms, and
//! the throttle of both sides, which lets an application's I/O go first.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::time::Time;

/// Time between two turns of the controller.
pub const TURN: Duration = Duration::from_millis(100);
/// Least time between two progress marks.
pub const MARK_INTERVAL: Duration = Duration::from_secs(3);
/// Progress marks kept.
const MARKS: usize = 8;
/// Sectors of a block of 4 KiB.
const BLOCK_SECTORS: i64 = 8;
/// Sectors of I/O besides the resync that count as "the application is busy".
const BUSY_SECTORS: u64 = 64;
/// Most slots of the plan: the largest `c-plan-ahead`.
const STEPS_MAX: u32 = 300;

/// The options that the controller obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateOptions {
    /// `resync-rate` in KiB/s: the rate to start with, or the fixed one.
    pub resync_rate: u32,
    /// `c-plan-ahead` in 0.1 s; 0: fixed rate.
    pub plan_ahead: u32,
    /// `c-delay-target` in 0.1 s.
    pub delay_target: u32,
    /// `c-fill-target` in sectors; 0: steer by delay.
    pub fill_target: u32,
    /// `c-max-rate` in KiB/s.
    pub max_rate: u32,
    /// `max-buffers`: half of them bound what is in flight, in blocks of 4 KiB.
    pub max_buffers: u32,
}

/// The controller of one volume. A new one begins with every resync and verify.
#[derive(Clone, Debug, Default)]
pub struct RateController {
    plan: VecDeque<i64>,
    plan_total: i64,
    in_flight: i64,
    sectors_in: i64,
    rate_shown: u32,
}

impl RateController {
    /// A controller at rest.
    pub fn new() -> Self {
        Self::default()
    }

    /// An answer came: data, is-in-sync, deallocated, or a verify reply for `sectors` sectors.
    pub fn answered(&mut self, sectors: u32) {
        self.sectors_in = self.sectors_in.saturating_add(i64::from(sectors));
    }

    /// `blocks` blocks of 4 KiB were requested.
    pub fn requested(&mut self, blocks: u32) {
        self.in_flight = self
            .in_flight
            .saturating_add(BLOCK_SECTORS * i64::from(blocks));
    }

    /// Sectors requested and not answered, as of the last turn plus what was requested since.
    pub fn in_flight(&self) -> i64 {
        self.in_flight
    }

    /// The rate that status output shows as wanted, in KiB/s.
    pub fn rate_shown(&self) -> u32 {
        self.rate_shown
    }

    /// One turn: how many blocks of 4 KiB may be requested until the next one, at most what may be in flight at once.
    pub fn turn(&mut self, options: &RateOptions) -> u32 {
        let number = self.plan_turn(options);
        let room = i64::from(options.max_buffers / 2) - self.in_flight / BLOCK_SECTORS;
        number.min(u32::try_from(room.max(0)).unwrap_or(u32::MAX))
    }

    /// As [`RateController::turn`], for a caller that bounds what is in flight itself and goes on requesting within the
    /// turn as answers come.
    pub fn plan_turn(&mut self, options: &RateOptions) -> u32 {
        let sectors_in = core::mem::take(&mut self.sectors_in);
        self.in_flight -= sectors_in;
        let number = if options.plan_ahead > 0 {
            let number = self.planned(options, sectors_in) / BLOCK_SECTORS;
            self.rate_shown = u32::try_from(number * 4 * 10).unwrap_or(u32::MAX);
            number
        } else {
            self.rate_shown = options.resync_rate;
            i64::from(options.resync_rate) / 10 / 4
        };
        u32::try_from(number.max(0)).unwrap_or(u32::MAX)
    }

    /// Sectors to request, steered towards the wanted amount in flight.
    fn planned(&mut self, options: &RateOptions, sectors_in: i64) -> i64 {
        let steps = options.plan_ahead.min(STEPS_MAX);
        if self.plan.len() != steps as usize {
            // The option changed, or this is the first turn: a plan of another length means nothing.
            self.plan = core::iter::repeat_n(0, steps as usize).collect();
            self.plan_total = 0;
        }
        let steps = i64::from(steps);
        let want = if self.in_flight + sectors_in == 0 {
            (i64::from(options.resync_rate) * 2 / 10) * steps
        } else if options.fill_target > 0 {
            i64::from(options.fill_target)
        } else {
            sectors_in.saturating_mul(i64::from(options.delay_target))
        };
        let correction = want - self.in_flight - self.plan_total;
        let per_step = correction / steps;
        for slot in &mut self.plan {
            *slot += per_step;
        }
        self.plan_total += per_step * steps;
        let current = self.plan.pop_front().unwrap_or(0);
        self.plan.push_back(0);
        self.plan_total -= current;
        let limit = i64::from(options.max_rate) * 2 / 10;
        (sectors_in + current).max(0).min(limit)
    }
}

/// Whether progress is being made at all, or is held on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The resync runs.
    Running,
    /// It is paused: marks stand still.
    Paused,
}

/// How far a resync came and how fast it is: the marks that status output and the throttle use.
#[derive(Clone, Debug)]
pub struct Progress {
    marks: [(Time, u64); MARKS],
    last: usize,
    started: Time,
    total: u64,
}

impl Progress {
    /// A resync or verify of `total` blocks begins.
    pub fn new(now: Time, total: u64) -> Self {
        Self {
            marks: [(now, total); MARKS],
            last: 0,
            started: now,
            total,
        }
    }

    /// Blocks there were at the beginning.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When it began.
    pub fn started(&self) -> Time {
        self.started
    }

    /// Moves the marks on, if 3 s have passed since the last one and there was progress. `left`: blocks still to do,
    /// failed ones not counted.
    pub fn update(&mut self, now: Time, left: u64, pace: Pace) {
        let (at, then_left) = self.marks[self.last];
        if now.since(at) >= MARK_INTERVAL && then_left != left && pace == Pace::Running {
            self.last = (self.last + 1) % MARKS;
            self.marks[self.last] = (now, left);
        }
    }

    /// The present rate in KiB/s: the average since the mark before the last one.
    pub fn rate(&self, now: Time, left: u64) -> u64 {
        self.rate_since(self.marks[(self.last + MARKS - 1) % MARKS], now, left)
    }

    /// The rate in KiB/s over the longest time that the marks reach back (about 24 s).
    pub fn rate_long(&self, now: Time, left: u64) -> u64 {
        self.rate_since(self.marks[(self.last + 1) % MARKS], now, left)
    }

    /// The rate in KiB/s since the beginning.
    pub fn rate_overall(&self, now: Time, left: u64) -> u64 {
        self.rate_since((self.started, self.total), now, left)
    }

    fn rate_since(&self, (at, then_left): (Time, u64), now: Time, left: u64) -> u64 {
        let seconds = now.since(at).as_secs().max(1);
        then_left.saturating_sub(left).saturating_mul(4) / seconds
    }
}

/// What the throttle looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Application requests that wait for the activity log.
    pub waiting_for_activity_log: usize,
    /// Sectors that the local disk read and wrote for anything but the resync, since the beginning.
    pub other_sectors: u64,
    /// The present resync rate in KiB/s ([`Progress::rate`]).
    pub rate: u64,
}

/// Whether to hold the resync back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// Go on.
    Free,
    /// The application is busy and the resync is faster than its guaranteed minimum.
    Throttled,
}

/// The throttle of `c-min-rate`.
#[derive(Clone, Debug, Default)]
pub struct MinRateThrottle {
    other_sectors_seen: u64,
}

impl MinRateThrottle {
    /// A throttle that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a resync request should wait. `c_min_rate` in KiB/s; 0 never throttles.
    pub fn check(&mut self, c_min_rate: u32, load: &Load) -> Throttle {
        if c_min_rate == 0 {
            return Throttle::Free;
        }
        let other = load.other_sectors.saturating_sub(self.other_sectors_seen);
        if load.waiting_for_activity_log == 0 && other <= BUSY_SECTORS {
            return Throttle::Free;
        }
        // Counted from the last time it was too much, so that a steady trickle counts as well.
        self.other_sectors_seen = load.other_sectors;
        if load.rate > u64::from(c_min_rate) {
            Throttle::Throttled
        } else {
            Throttle::Free
        }
    }
}
