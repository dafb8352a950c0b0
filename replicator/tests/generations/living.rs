//! The life of generations: resyncs and their interruptions, the first sync, promotions.

use tandem_replicator::generations::*;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

use crate::{LINK, secondary, set, value};

fn generations(text: &str) -> Generations {
    let uuids = set(text);
    Generations::attached(uuids, uuids.current)
}

fn hg(a: &Generations, b: &Generations) -> (i32, Option<u8>) {
    let result = compare(&secondary(a.uuids), &secondary(b.uuids), &LINK);
    (result.hg, result.rule)
}

#[test]
fn a_correction_lasts_once_its_resync_has_begun_and_is_found_again_otherwise() {
    let target = generations("[c, 0, s, q]");
    let missed = generations("[c*, s*, q, 0]");
    let mut source = missed;
    let correct = |source: &mut Generations| {
        let result = compare(&secondary(source.uuids), &secondary(target.uuids), &LINK);
        assert_eq!((result.hg, result.rule), (1, Some(34)));
        let Some(Correction::Own(corrected)) = result.correction else {
            panic!("no correction: {result:?}");
        };
        source.correct(corrected);
        assert_eq!(source.uuids, corrected);
    };
    correct(&mut source);
    assert_eq!(source.slots_on_disk(), missed.uuids);
    // The role bit has its own life.
    source.mark_role(Role::Primary);
    assert_eq!(source.slots_on_disk().current, missed.uuids.current);
    source.take_back_correction();
    assert_eq!(source, missed);
    correct(&mut source);
    let corrected = source.uuids;
    source.start_as_source(0x5555_0000);
    assert_eq!(source.slots_on_disk(), source.uuids);
    source.take_back_correction();
    assert_eq!(source.uuids.history[0], corrected.history[0]);
    // A Primary whose link breaks before the resync goes on in a generation of its own, whose bitmap counts from the common one.
    let mut alone = missed;
    correct(&mut alone);
    alone.new_current(0x7777_0000, Role::Primary);
    alone.take_back_correction();
    assert_eq!(alone.uuids.bitmap, missed.uuids.current);
    assert_eq!(alone.slots_on_disk(), alone.uuids);
}

#[test]
fn a_resync_can_be_interrupted_anywhere_and_goes_on_in_the_same_direction() {
    let mut source = generations("[c*, 0, p, q]");
    let mut target = generations("[c, 0, p, q]");
    assert_eq!(source.new_current(0x7777_0000, Role::Primary), None);
    assert_eq!(
        source.uuids.slots(),
        [0x7777_0001, value("c*"), value("p"), value("q")]
    );
    assert_eq!(hg(&source, &target), (1, Some(70)));
    let sync = source.start_as_source(0x5555_0000);
    assert_eq!(sync, value("c*") + SYNC_UUID_STEP);
    // The packet with the sync UUID is lost: rule 71 here, 51 there.
    assert_eq!(hg(&source, &target), (1, Some(71)));
    assert_eq!(hg(&target, &source), (-1, Some(51)));
    target.start_as_target(sync, Role::Secondary);
    assert_eq!(masked(target.uuids.current), masked(source.uuids.bitmap));
    assert_eq!(target.uuids.bitmap, 0);
    assert_eq!(hg(&target, &source), (-1, Some(50)));
    // Cut again: each resync has its own sync UUID.
    let announced = source.uuids;
    let again = source.start_as_source(0x5555_0000);
    assert_eq!(again, sync + SYNC_UUID_STEP);
    assert_eq!(hg(&target, &source), (-1, Some(51)));
    target.start_as_target(again, Role::Secondary);
    // The target finished, the source never heard of it: rule 34 here, 35 there.
    target.finish_as_target(&announced, Role::Secondary);
    assert_eq!(hg(&source, &target), (1, Some(34)));
    assert_eq!(hg(&target, &source), (-1, Some(35)));
    source.finish_as_source();
    assert_eq!(hg(&source, &target), (0, Some(40)));
    assert_eq!(
        source.uuids.slots().map(masked),
        target.uuids.slots().map(masked)
    );
    assert_eq!(source.uuids.current, 0x7777_0001);
    assert_eq!(source.uuids.bitmap, 0);
}

#[test]
fn a_resync_of_equal_generations_uses_a_random_sync_uuid() {
    let mut source = generations("[c, 0, p, q]");
    let mut target = generations("[c, 0, p, q]");
    let announced = source.uuids;
    let sync = source.start_as_source(0x5555_0001);
    assert_eq!(sync, 0x5555_0001);
    assert_eq!(
        source.uuids.slots(),
        [value("c"), sync, value("p"), value("q")]
    );
    // Lost: rules 36 and 37.
    assert_eq!(hg(&source, &target), (1, Some(36)));
    assert_eq!(hg(&target, &source), (-1, Some(37)));
    target.start_as_target(sync, Role::Secondary);
    assert_eq!(target.uuids.current, masked(sync));
    target.finish_as_target(&announced, Role::Secondary);
    source.finish_as_source();
    // [source's current, 0, sync UUID, source's old h1] (section 3.5).
    assert_eq!(source.uuids.slots(), [value("c"), 0, sync, value("p")]);
    assert_eq!(
        target.uuids.slots(),
        [value("c"), 0, masked(sync), value("p")]
    );
}

#[test]
fn a_source_is_source_again_beside_a_former_source_that_has_not_stored_the_end() {
    let mut former = generations("[c, t, p, q]");
    let mut source = generations("[p, 0, q, 0]");
    let announced = former.uuids;
    let sync = former.start_as_source(0x5555_0000);
    source.start_as_target(sync, Role::Secondary);
    source.finish_as_target(&announced, Role::Secondary);
    // The end of that resync is not on the former source's disk when its power goes, and neither is the start of the next one.
    source.start_as_source(0x6666_0000);
    assert_eq!(hg(&source, &former), (1, Some(38)));
    assert_eq!(hg(&former, &source), (-1, Some(39)));
    let kernel = Link {
        tandem: false,
        ..LINK
    };
    let with_kernel = compare(&secondary(source.uuids), &secondary(former.uuids), &kernel);
    assert_eq!(with_kernel.hg, 0, "a kernel sees no difference");
}

#[test]
fn the_first_sync_leaves_what_a_kernel_stored() {
    // The numbers are those of tests/golden/wire/01-initial-sync and its neighbours.
    let (current, sync) = (0x9C01_3372_6FBC_8A4D, 0x5035_1A0C_ADFD_1534);
    let mut source = Generations::attached(Uuids::FRESH, 0);
    let mut target = Generations::attached(Uuids::FRESH, 0);
    source.new_current(current, Role::Primary);
    assert_eq!(source.uuids.slots(), [current, 4, 0, 0]);
    assert_eq!(hg(&source, &target), (2, Some(30)));
    assert_eq!(hg(&target, &source), (-2, Some(20)));
    let announced = source.uuids;
    assert_eq!(source.start_as_source(sync), sync);
    target.start_as_target(sync, Role::Secondary);
    target.finish_as_target(&announced, Role::Secondary);
    source.finish_as_source();
    assert_eq!(source.uuids.slots(), [current, 0, sync, 4]);
    assert_eq!(target.uuids.slots(), [masked(current), 0, sync, 4]);
    assert_eq!(
        source.uuids.log(0, 2),
        "9C0133726FBC8A4D:0000000000000000:50351A0CADFD1534:0000000000000004 bits:0 flags:2"
    );
}

#[test]
fn a_forced_generation_names_the_bitmap_uuid_that_it_forgets() {
    let mut node = generations("[c, n, p, q]");
    assert_eq!(node.new_current(0x1000, Role::Primary), Some(value("n")));
    assert_eq!(
        node.uuids.slots(),
        [0x1001, value("c"), value("p"), value("q")]
    );
    assert_eq!(node.exposed, 0x1001);
}

#[test]
fn random_numbers_with_a_meaning_are_not_used() {
    for random in [0, 1, 4, 5] {
        assert!(masked(usable(random)) != 0 && masked(usable(random)) != 4);
    }
    assert_eq!(usable(6), 6);
}

/// State-machine.md 12.1 no. 17, of everything that makes a generation of a random number.
#[test]
fn no_generation_is_made_of_a_number_with_a_meaning() {
    let draws: [fn(&mut Generations, u64); 4] = [
        |node, random| {
            node.new_current(random, Role::Primary);
        },
        |node, random| node.branch(random, Role::Secondary),
        |node, random| {
            node.new_current_by_command(random, Role::Secondary, NewCurrentCase::SkipInitialSync);
        },
        |node, random| {
            node.start_as_source(random);
        },
    ];
    for draw in draws {
        for random in [0, 1, 4, 5, !0, !1, !4, !5] {
            let mut node = generations("[c, 0, p, q]");
            draw(&mut node, random);
            let [current, bitmap, ..] = node.uuids.slots();
            assert!(masked(current) != 0 && masked(current) != 4, "{random}");
            assert!(masked(bitmap) != 4, "{random}");
        }
    }
}

#[test]
fn new_current_uuid_by_command_keeps_or_clears_the_bitmap_uuid() {
    let mut truck = generations("[c, n, p, q]");
    truck.new_current_by_command(0x1000, Role::Secondary, NewCurrentCase::StandAlone);
    assert_eq!(
        truck.uuids.slots(),
        [0x1000, value("c"), value("n"), value("p")]
    );
    let mut fresh = Generations::attached(Uuids::FRESH, 0);
    fresh.new_current_by_command(0x1000, Role::Secondary, NewCurrentCase::SkipInitialSync);
    assert_eq!(fresh.uuids.slots(), [0x1000, 0, 0, 0]);
    let mut peer = Generations::attached(Uuids::FRESH, 0);
    peer.skip_initial_sync(&fresh.uuids, Role::Secondary);
    assert_eq!(peer.uuids, fresh.uuids);
}

#[test]
fn the_initial_sync_is_skipped_only_on_a_fresh_connected_pair() {
    let connected = State {
        conn: ConnState::Connected,
        disk: DiskState::Inconsistent,
        ..State::UNCONFIGURED
    };
    let used = generations("[c, n, p, q]");
    let fresh = Generations::attached(Uuids::FRESH, 0);
    assert!(fresh.may_skip_initial_sync(&connected, 90, UUID_FLAG_SKIP_INITIAL_SYNC));
    assert!(!fresh.may_skip_initial_sync(&connected, 89, UUID_FLAG_SKIP_INITIAL_SYNC));
    assert!(!fresh.may_skip_initial_sync(&connected, 101, 7));
    assert!(!used.may_skip_initial_sync(&connected, 101, UUID_FLAG_SKIP_INITIAL_SYNC));
    let case = |state, uuids, clear| new_current_case(state, uuids, 101, clear);
    let skip = Some(NewCurrentCase::SkipInitialSync);
    assert_eq!(case(&connected, &fresh.uuids, ClearBitmap::Yes), skip);
    assert_eq!(case(&connected, &fresh.uuids, ClearBitmap::No), None);
    assert_eq!(case(&connected, &used.uuids, ClearBitmap::Yes), None);
    let alone = State::UNCONFIGURED;
    let truck = Some(NewCurrentCase::StandAlone);
    assert_eq!(case(&alone, &used.uuids, ClearBitmap::No), truck);
}

#[test]
fn the_application_of_a_diskless_node_never_sees_older_data() {
    let mut node = Generations::default();
    let diskless = State {
        role: Role::Primary,
        conn: ConnState::Connected,
        pdsk: DiskState::UpToDate,
        ..State::UNCONFIGURED
    };
    let (same, other) = (set("[c*, 0, p, q]"), set("[n, 0, c, p]"));
    node.expose_peer(&diskless, &set("[c, 0, p, q]"));
    assert_eq!(node.exposed, value("c"));
    // The role bit does not count; another generation does.
    let lost = State {
        conn: ConnState::WFConnection,
        pdsk: DiskState::DUnknown,
        ..diskless
    };
    assert!(!node.refuses_attach(&lost, &same));
    assert!(node.refuses_attach(&lost, &other));
    assert!(
        !node.refuses_attach(&diskless, &other),
        "the peer's data is read"
    );
    assert!(node.refuses_peer_data(&lost, &other));
    assert!(!node.refuses_peer_data(&lost, &same));
    assert!(
        !node.refuses_peer_data(&diskless, &other),
        "connected to a disk"
    );
}

#[test]
fn a_promotion_starts_a_generation_only_where_the_peer_misses_it() {
    let alone = State {
        conn: ConnState::WFConnection,
        role: Role::Primary,
        disk: DiskState::UpToDate,
        ..State::UNCONFIGURED
    };
    let clean = generations("[c, 0, p, q]");
    let split = generations("[c, n, p, q]");
    assert!(clean.promotion_starts_generation(&alone, Forced::No));
    assert!(!split.promotion_starts_generation(&alone, Forced::No));
    assert!(split.promotion_starts_generation(&alone, Forced::Yes));
    let together = State {
        conn: ConnState::Connected,
        pdsk: DiskState::UpToDate,
        ..alone
    };
    assert!(!clean.promotion_starts_generation(&together, Forced::No));
    let peer_diskless = State {
        pdsk: DiskState::Diskless,
        ..together
    };
    assert!(clean.promotion_starts_generation(&peer_diskless, Forced::No));
}

/// The superblock of a new generation fails: it may be on the disk or not, and nobody was answered in it.
#[test]
fn until_a_generation_is_on_the_disk_its_predecessor_will_do() {
    let alone = State {
        role: Role::Primary,
        ..State::UNCONFIGURED
    };
    let before = Uuids::from_slots([value("a"), 0, 0, 0]);
    let begin: [fn(&mut Generations); 2] = [
        |node| {
            node.new_current(value("c"), Role::Primary);
        },
        |node| node.branch(value("c"), Role::Primary),
    ];
    for begin in begin {
        let mut node = Generations::attached(before, before.current);
        begin(&mut node);
        begin(&mut node);
        let after = node.uuids;
        let refused = |node: &Generations| {
            [before, after].map(|uuids| node.with_disk(uuids).refuses_attach(&alone, &uuids))
        };
        assert_eq!(refused(&node), [false, false]);
        assert!(node.has_shown(before.current ^ 1) && node.has_shown(after.current));
        // The peer's disk need not have what the own one had answered alone (protocols A and B).
        assert!(node.refuses_peer_data(&alone, &before));
        node.begun_on_disk();
        assert_eq!(refused(&node), [true, false]);
        assert!(!node.has_shown(before.current) && node.has_shown(after.current));
    }
}
