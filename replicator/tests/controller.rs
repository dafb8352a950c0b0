//! Resync: the rate controller against the published table, the throttle, request merging against an oracle, and the locking
//! of resync extents against a model of both parties.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tandem_replicator::Time;
use tandem_replicator::bitmap::{BIT_BYTES, Bitmap, NewBits, Urgency, bits_of_device};
use tandem_replicator::resync::controller::*;
use tandem_replicator::resync::extents::*;
use tandem_replicator::resync::merge::*;

fn options() -> RateOptions {
    RateOptions {
        resync_rate: 250,
        plan_ahead: 4,
        delay_target: 10,
        fill_target: 100,
        max_rate: 102_400,
        max_buffers: 2048,
    }
}

#[test]
fn the_controller_gives_the_numbers_of_appendix_b3() {
    let mut controller = RateController::new();
    let mut numbers = Vec::new();
    for _ in 0..10 {
        let number = controller.turn(&options());
        controller.requested(number);
        controller.answered(number * 8);
        numbers.push(number);
    }
    assert_eq!(numbers, [6, 10, 15, 22, 24, 29, 34, 39, 43, 48]);
}

#[test]
fn a_fixed_rate_asks_for_the_same_number_in_every_turn() {
    let mut controller = RateController::new();
    let options = RateOptions {
        plan_ahead: 0,
        resync_rate: 40_000,
        ..options()
    };
    for _ in 0..5 {
        assert_eq!(controller.turn(&options), 1000);
        assert_eq!(controller.rate_shown(), 40_000);
    }
    controller.requested(1020);
    assert_eq!(
        controller.turn(&options),
        4,
        "half of max-buffers are in flight"
    );
    controller.requested(4);
    assert_eq!(controller.turn(&options), 0);
}

proptest! {
    #[test]
    fn the_controller_keeps_its_bounds(
        steps in prop::collection::vec((0_u32..4000, 1_u32..400, 0_u32..2000, 0_u32..200_000), 1..80),
    ) {
        let mut controller = RateController::new();
        for (answered, plan_ahead, fill_target, max_rate) in steps {
            let options = RateOptions { plan_ahead, fill_target, max_rate, ..options() };
            controller.answered(answered);
            let number = controller.turn(&options);
            prop_assert!(number <= max_rate * 2 / 10 / 8);
            controller.requested(number);
            prop_assert!(controller.in_flight() <= 1024 * 8);
        }
    }

    #[test]
    fn merged_requests_cover_every_set_bit_once_and_keep_the_rules(
        device in 1_u64..80 << 20,
        ranges in prop::collection::vec((0_u64..20_000, 1_u64..600), 0..20),
        bytes_max in prop_oneof![Just(4096_u32), Just(1 << 20), 4096_u32..2 << 20],
        granularity in prop_oneof![Just(None), Just(Some(65_536_u32))],
    ) {
        let bits = bits_of_device(device);
        let mut bitmap = Bitmap::new(bits, NewBits::Clear).unwrap();
        for (at, len) in ranges {
            bitmap.set(at..at + len, Urgency::BeforeEviction);
        }
        let limits = RequestLimits { bytes_max, device_bytes: device, discard_granularity: granularity };
        let (mut cursor, mut total) = (0, 0);
        while let Some(request) = next_request(&bitmap, cursor, &limits) {
            prop_assert!(request.bit >= cursor);
            prop_assert!(!bitmap.any_set(cursor..request.bit));
            prop_assert_eq!(bitmap.count_range(request.bit..request.end()), u64::from(request.bits));
            prop_assert!(request.len <= bytes_max.min(REQUEST_BYTES_MAX));
            prop_assert!(request.offset() + u64::from(request.len) <= device);
            prop_assert_eq!(request.bit % u64::from(request.bits).next_power_of_two(), 0);
            prop_assert_eq!(request.extent(), extent_of_bit(request.end() - 1));
            prop_assert!(request.len == request.bits * 4096 || request.end() == bits);
            prop_assert_eq!(request.kind == RequestKind::Thin, Some(request.len) == granularity);
            total += u64::from(request.bits);
            cursor = request.end();
        }
        prop_assert_eq!(total, bitmap.count());
    }
}

#[test]
fn a_fully_set_device_is_asked_for_in_largest_requests() {
    let device = (32 << 20) + 5 * 512;
    let bitmap = Bitmap::new(bits_of_device(device), NewBits::Set).unwrap();
    let limits = RequestLimits {
        bytes_max: 1 << 20,
        device_bytes: device,
        discard_granularity: None,
    };
    let mut lens = Vec::new();
    let mut cursor = 0;
    while let Some(request) = next_request(&bitmap, cursor, &limits) {
        lens.push(request.len);
        cursor = request.end();
    }
    assert_eq!(lens[..32], [1 << 20; 32]);
    assert_eq!(lens[32..], [5 * 512]);
    assert_eq!(cursor * BIT_BYTES, device.next_multiple_of(BIT_BYTES));
}

#[test]
fn the_throttle_holds_only_a_fast_resync_beside_a_busy_application() {
    let mut throttle = MinRateThrottle::new();
    let load = |waiting, other, rate| Load {
        waiting_for_activity_log: waiting,
        other_sectors: other,
        rate,
    };
    assert_eq!(throttle.check(250, &load(0, 64, 9999)), Throttle::Free);
    assert_eq!(throttle.check(250, &load(0, 65, 9999)), Throttle::Throttled);
    assert_eq!(throttle.check(250, &load(0, 129, 9999)), Throttle::Free);
    assert_eq!(throttle.check(250, &load(1, 129, 251)), Throttle::Throttled);
    assert_eq!(throttle.check(250, &load(1, 129, 250)), Throttle::Free);
    assert_eq!(throttle.check(0, &load(1, 9999, 9999)), Throttle::Free);
}

#[test]
fn progress_marks_move_every_three_seconds_with_progress_only() {
    let at = |seconds| Time::default() + Duration::from_secs(seconds);
    let mut progress = Progress::new(at(0), 10_000);
    progress.update(at(2), 9000, Pace::Running);
    assert_eq!(progress.rate(at(2), 9000), 2000);
    progress.update(at(3), 8500, Pace::Running);
    assert_eq!(progress.rate(at(4), 8000), 2000);
    progress.update(at(6), 8500, Pace::Running);
    progress.update(at(7), 7000, Pace::Paused);
    progress.update(at(8), 7000, Pace::Running);
    assert_eq!(progress.rate(at(9), 7000), (8500 - 7000) * 4 / 6);
    assert_eq!(progress.rate_overall(at(10), 5000), 2000);
}

/// Which activity-log extents have references, and which bits are set.
#[derive(Default)]
struct Model {
    al: BTreeMap<u32, u32>,
    left: BTreeMap<u32, u64>,
}

impl Surroundings for Model {
    fn in_use(&self, al_extent: u32) -> bool {
        self.al
            .get(&al_extent)
            .is_some_and(|references| *references > 0)
    }
    fn bits_left(&self, extent: u32) -> u64 {
        self.left.get(&extent).copied().unwrap_or(0)
    }
}

proptest! {
    #[test]
    fn application_and_resync_never_meet_in_an_extent(
        steps in prop::collection::vec((0_u8..7, 0_u32..6, any::<bool>(), any::<prop::sample::Index>()), 1..300),
    ) {
        let mut extents = ResyncExtents::new();
        let mut model = Model::default();
        let mut writes: Vec<u32> = Vec::new();
        let mut locked: Vec<u32> = Vec::new();
        let mut draining: Vec<u32> = Vec::new();
        for (what, extent, flag, pick) in steps {
            let throttle = if flag { Throttle::Throttled } else { Throttle::Free };
            match what {
                0 | 1 => {
                    let al = extent * 4 + u32::from(flag);
                    if extents.enter(al..=al) == Entry::Free {
                        prop_assert!(!locked.contains(&extent));
                        prop_assert!(!draining.contains(&extent));
                        *model.al.entry(al).or_default() += 1;
                        writes.push(al);
                    } else {
                        prop_assert!(extents.is_wanted(extent));
                    }
                }
                2 if !writes.is_empty() => {
                    let al = writes.swap_remove(pick.index(writes.len()));
                    *model.al.get_mut(&al).unwrap() -= 1;
                }
                3 => if extents.lock_for_request(extent, &model, throttle) == Lock::Locked {
                    locked.push(extent);
                },
                4 => match extents.lock_for_reply(extent, &model) {
                    Lock::Locked => locked.push(extent),
                    Lock::Draining => draining.push(extent),
                    Lock::Refused => {}
                },
                5 if !locked.is_empty() => {
                    let extent = locked.swap_remove(pick.index(locked.len()));
                    extents.release(extent);
                }
                _ => draining.retain(|extent| {
                    let now = extents.poll(*extent, &model) == Lock::Locked;
                    if now {
                        locked.push(*extent);
                    }
                    !now
                }),
            }
            for extent in &locked {
                prop_assert!(extents.is_locked(*extent));
                prop_assert!((extent * 4..extent * 4 + 4).all(|al| !model.in_use(al)));
            }
            prop_assert!(extents.tracked() <= TRACKED_MAX);
        }
        // Everything ends: writes finish, requests are answered, and nobody is held for ever.
        model.al.clear();
        for extent in draining.drain(..).chain(locked.drain(..)) {
            extents.release(extent);
        }
        prop_assert_eq!(extents.finish(), ResyncRelease::Free);
        for al in 0..24 {
            prop_assert_eq!(extents.enter(al..=al), Entry::Free);
        }
    }
}

#[test]
fn an_extent_drains_half_locked_and_is_locked_when_its_writes_are_over() {
    let mut extents = ResyncExtents::new();
    let mut model = Model::default();
    model.al.insert(5, 1);
    model.left.insert(1, 3);
    assert_eq!(
        extents.lock_for_request(1, &model, Throttle::Free),
        Lock::Draining
    );
    assert_eq!(
        extents.enter(6..=6),
        Entry::Blocked,
        "the region must drain"
    );
    assert_eq!(
        extents.lock_for_request(1, &model, Throttle::Free),
        Lock::Draining
    );
    model.al.clear();
    assert_eq!(
        extents.lock_for_request(1, &model, Throttle::Throttled),
        Lock::Locked
    );
    assert_eq!(extents.held(), 1);
    assert_eq!(extents.cleared(1, 2, &model), ExtentProgress::Open);
    assert_eq!(extents.failed(1, 1, &model), ExtentProgress::Complete);
    assert_eq!(extents.release(1), ResyncRelease::Free);
    assert_eq!(extents.enter(6..=6), Entry::Free);
}

#[test]
fn no_more_extents_are_held_than_there_is_room_for() {
    let mut extents = ResyncExtents::new();
    let model = Model::default();
    let locked = (0..200)
        .filter(|extent| extents.lock_for_request(*extent, &model, Throttle::Free) == Lock::Locked);
    let locked: BTreeSet<u32> = locked.collect();
    assert_eq!(locked.len(), 59);
    assert_eq!(extents.lock_for_reply(500, &model), Lock::Refused);
    assert_eq!(
        extents.lock_for_reply(3, &model),
        Lock::Locked,
        "one already held costs nothing"
    );
    extents.drop_all();
    assert_eq!(extents.held(), 0);
}
