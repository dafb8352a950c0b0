//! The worked traces of docs/spec/state-machine.md section 11 that need no option we refuse: settled states, relations of
//! the generations, and equal data. Node 0 is A, node 1 is B.

use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, Effect, Force, NetOptions, Operation};

use crate::harness::{DISK_BYTES, Disk, VOLUME, World, writes_data};

const DELTA: u64 = 0x0001_0000_0000_0000;
const ATTACH: Command = Command::Attach { volume: VOLUME };

fn net() -> NetOptions {
    NetOptions::default()
}

fn primary(force: Force) -> Command {
    Command::Primary {
        volume: VOLUME,
        force,
    }
}

fn secondary() -> Command {
    Command::Secondary { volume: VOLUME }
}

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: Force::No,
    }
}

/// The UUIDs without their role bits.
fn set(world: &World, node: usize) -> [u64; 4] {
    world.uuids(node).map(|uuid| uuid & !1)
}

fn in_sync(world: &World) -> bool {
    (0..2).all(|node| {
        let state = world.state(node);
        state.conn == ConnState::Connected
            && state.disk == DiskState::UpToDate
            && state.pdsk == DiskState::UpToDate
    })
}

/// Waits for both to be UpToDate and connected, and compares everything.
fn assert_in_sync(world: &mut World) {
    world.run_until("both are UpToDate and connected", in_sync);
    world.advance(std::time::Duration::from_secs(1));
    assert_eq!((world.out_of_sync(0), world.out_of_sync(1)), (0, 0));
    let bytes = world.nodes[0].resource.status().volumes[0].bytes as usize;
    let [a, b] = [0, 1].map(|node| &world.nodes[node].disk.current[..bytes]);
    let differs = a.iter().zip(b).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first byte that differs");
    assert_eq!(set(world, 0), set(world, 1));
}

/// After a reconnect: `source` has the generations of `before` closed with one sync UUID.
fn assert_synced_from(world: &World, current: u64, sync: u64, history: u64) {
    let expected = [current & !1, 0, sync & !1, history & !1];
    assert_eq!(set(world, 0), expected);
}

fn lose_link(world: &mut World) {
    world.cut_network();
    world.run_until("both wait for a connection", |world| {
        (0..world.nodes.len()).all(|node| world.state(node).conn == ConnState::WFConnection)
    });
}

fn boot(world: &mut World, node: usize) {
    world.ok(node, ATTACH);
    world.connect(node, &net());
}

#[test]
fn t1_first_initial_sync() {
    let mut world = World::connected(&net());
    world.nodes[0].disk.current[5 << 20] = 77;
    world.nodes[0].disk.durable[5 << 20] = 77;
    assert_eq!(world.answer(0, primary(Force::No)).number, -2);
    world.ok(0, primary(Force::Yes));
    let a1 = world.uuids(0)[0];
    assert_in_sync(&mut world);
    let [current, bitmap, _, history] = set(&world, 0);
    assert_eq!((current, bitmap, history), (a1 & !1, 0, 4));
    assert!(world.nodes[0].handlers.contains(&"before-resync-source"));
    assert!(world.nodes[1].handlers.contains(&"before-resync-target"));
    assert!(world.nodes[1].handlers.contains(&"after-resync-target"));
    assert_eq!(world.nodes[1].disk.current[5 << 20], 77);
}

#[test]
fn t3_secondary_shut_down_for_an_hour() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0];
    world.ok(1, Command::Down { force: Force::No });
    let [a1, bitmap, ..] = world.uuids(0);
    assert_eq!(bitmap, c);
    for block in 0..3 {
        world.write_ok(0, block * 8192, 4096, 3);
    }
    assert_eq!(world.out_of_sync(0), 12);
    boot(&mut world, 1);
    assert_in_sync(&mut world);
    assert_synced_from(&world, a1, c.wrapping_add(DELTA), c);
}

#[test]
fn t4_network_cut_with_writes() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0];
    world.write_ok(0, 0, 4096, 1);
    lose_link(&mut world);
    let a1 = world.uuids(0)[0];
    world.write_ok(0, 1 << 20, 4096, 1);
    world.write_ok(0, 9 << 20, 4096, 2);
    world.join();
    assert_in_sync(&mut world);
    assert_synced_from(&world, a1, c.wrapping_add(DELTA), c);
    assert_eq!(world.state(0).role, Role::Primary);
}

#[test]
fn t5_link_flap_without_any_write() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0];
    lose_link(&mut world);
    let a1 = world.uuids(0)[0];
    assert_ne!(a1, c);
    world.join();
    assert_in_sync(&mut world);
    assert_synced_from(&world, a1, c.wrapping_add(DELTA), c);
}

#[test]
fn t6_link_flap_of_two_secondaries() {
    let mut world = World::ready(&net());
    world.ok(0, secondary());
    let before = set(&world, 0);
    lose_link(&mut world);
    world.join();
    assert_in_sync(&mut world);
    assert_eq!(set(&world, 0), before);
}

#[test]
fn t7_primary_crashes_and_comes_back() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0] & !1;
    world.write_ok(0, 0, 4096, 1);
    world.hold(1, writes_data);
    world.write(0, 20 << 20, 4096, 9);
    world.crash(0);
    world.release(1);
    boot(&mut world, 0);
    assert!(world.out_of_sync(0) >= 8192, "two hot extents");
    assert_in_sync(&mut world);
    let [current, bitmap, ..] = set(&world, 0);
    assert_eq!((current, bitmap), (c, 0));
    assert!(world.nodes[0].handlers.contains(&"before-resync-source"));
}

#[test]
fn t8_old_primary_returns_after_a_failover() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0] & !1;
    world.write_ok(0, 0, 4096, 1);
    world.hold(1, writes_data);
    let lost = world.write(0, 20 << 20, 4096, 9);
    assert!(world.reply(0, lost).is_none());
    world.crash(0);
    world.release(1);
    world.run_until("B waits", |world| {
        world.state(1).conn == ConnState::WFConnection
    });
    world.primary(1);
    assert_eq!(
        world.read_ok(1, 0, 4096)[0],
        1,
        "what was answered is there"
    );
    world.write_ok(1, 30 << 20, 4096, 2);
    boot(&mut world, 0);
    assert_in_sync(&mut world);
    let [_, bitmap, sync, history] = set(&world, 1);
    assert_eq!((bitmap, sync, history), (0, c.wrapping_add(DELTA), c));
    assert_eq!(world.nodes[0].disk.current[30 << 20], 2);
}

#[test]
fn t9_power_loss_on_both() {
    let mut world = World::ready(&net());
    world.write_ok(0, 0, 4096, 1);
    world.crash(0);
    world.crash(1);
    boot(&mut world, 0);
    boot(&mut world, 1);
    assert_in_sync(&mut world);
    assert!(world.nodes[0].handlers.contains(&"before-resync-source"));
}

#[test]
fn t12_split_brain_and_its_manual_recovery() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0];
    lose_link(&mut world);
    world.write_ok(0, 0, 4096, 1);
    world.primary(1);
    world.write_ok(1, 8 << 20, 4096, 2);
    let a1 = world.uuids(0)[0];
    world.join();
    world.run_until("both are StandAlone", |world| {
        (0..2).all(|node| world.state(node).conn == ConnState::StandAlone)
    });
    for node in 0..2 {
        assert!(world.nodes[node].handlers.contains(&"split-brain"));
    }
    world.ok(1, secondary());
    let discard = Command::Connect {
        net: net(),
        discard_my_data: true,
        tentative: false,
    };
    world.ok(1, discard);
    world.connect(0, &net());
    assert_in_sync(&mut world);
    assert_synced_from(&world, a1, c.wrapping_add(DELTA), c);
    assert_eq!(
        world.nodes[1].disk.current[8 << 20],
        0,
        "B's change is gone"
    );
}

#[test]
fn t24_disk_of_the_primary_fails_and_is_attached_again() {
    let mut world = World::ready(&net());
    world.write_ok(0, 0, 4096, 1);
    world.fail(0, writes_data);
    world.write_ok(0, 4096, 4096, 2);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    world.heal_disk(0);
    world.write_ok(0, 12 << 20, 4096, 3);
    let b1 = set(&world, 1)[0];
    world.ok(0, ATTACH);
    assert_in_sync(&mut world);
    assert_eq!(set(&world, 0)[0], b1);
    assert_eq!(world.state(0).role, Role::Primary);
    assert_eq!(world.nodes[0].disk.current[12 << 20], 3);
    world.write_ok(0, 16 << 20, 4096, 4);
    assert_eq!(world.nodes[1].disk.current[16 << 20], 4);
}

#[test]
fn t26_disk_of_the_secondary_fails_and_is_attached_again() {
    let mut world = World::ready(&net());
    let c = world.uuids(0)[0];
    world.fail(1, writes_data);
    world.write_ok(0, 0, 4096, 1);
    world.run_until("B's disk is gone", |world| {
        world.state(1).disk == DiskState::Diskless
    });
    world.heal_disk(1);
    let a1 = world.uuids(0)[0];
    world.write_ok(0, 12 << 20, 4096, 3);
    world.ok(1, ATTACH);
    assert_in_sync(&mut world);
    assert_synced_from(&world, a1, c.wrapping_add(DELTA), c);
}

#[test]
fn t27_disk_of_the_secondary_is_replaced_by_a_blank_one() {
    let mut world = World::ready(&net());
    world.write_ok(0, 3 << 20, 4096, 5);
    world.ok(1, detach());
    world.nodes[1].disk = Disk::fresh(DISK_BYTES);
    world.ok(1, ATTACH);
    assert_in_sync(&mut world);
    assert_eq!(world.nodes[1].disk.current[3 << 20], 5);
}

#[test]
fn t32_force_primary_on_an_outdated_node_is_split_brain_later() {
    let mut world = World::ready(&net());
    lose_link(&mut world);
    world.ok(1, Command::Outdate { volume: VOLUME });
    assert_eq!(world.answer(1, primary(Force::No)).number, -2);
    world.ok(1, primary(Force::Yes));
    world.join();
    world.run_until("both are StandAlone", |world| {
        (0..2).all(|node| world.state(node).conn == ConnState::StandAlone)
    });
}

#[test]
fn t35_invalidate_on_the_connected_secondary() {
    let mut world = World::ready(&net());
    let c = set(&world, 0)[0];
    world.write_ok(0, 0, 4096, 1);
    // Something that no bit knows about.
    world.nodes[1].disk.current[40 << 20] = 99;
    world.ok(1, Command::Invalidate { volume: VOLUME });
    assert_in_sync(&mut world);
    let [current, bitmap, sync, _] = set(&world, 0);
    assert_eq!((current, bitmap), (c, 0));
    assert_ne!(sync, 0);
}

#[test]
fn t36_invalidate_on_a_secondary_alone() {
    let mut world = World::ready(&net());
    world.ok(1, Command::Disconnect { force: Force::No });
    world.nodes[1].disk.current[40 << 20] = 99;
    world.ok(1, Command::Invalidate { volume: VOLUME });
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    world.connect(1, &net());
    assert_in_sync(&mut world);
}

#[test]
fn t40_clean_switchover() {
    let mut world = World::ready(&net());
    let c = set(&world, 0)[0];
    world.ok(0, secondary());
    world.primary(1);
    assert_eq!(set(&world, 0), set(&world, 1));
    lose_link(&mut world);
    assert_eq!(set(&world, 0)[0], c);
    assert_eq!(set(&world, 1)[1], c);
}

#[test]
fn t41_degraded_primary_crashes_and_reboots_alone() {
    let mut world = World::ready(&net());
    world.crash(1);
    world.write_ok(0, 0, 4096, 1);
    let flush = world.request(0, Operation::Flush);
    world.run_until("the flush is answered", |world| {
        world.reply(0, flush).is_some()
    });
    let before = set(&world, 0);
    world.crash(0);
    boot(&mut world, 0);
    assert_eq!(set(&world, 0), before);
    world.primary(0);
    // A kernel changes nothing here. Nothing on the disk says whether the peer has this generation by now (N3c).
    let after = set(&world, 0);
    assert_ne!(after[0], before[0]);
    assert_eq!([after[1], after[2]], [before[1], before[0]]);
    assert_eq!(world.read_ok(0, 0, 4096)[0], 1);
    world.crash(0);
    boot(&mut world, 0);
    world.primary(0);
    let again = set(&world, 0);
    assert_eq!(
        again[1..],
        after[1..],
        "the branch that nobody knows is replaced"
    );
}

#[test]
fn t45_promotions_while_one_node_is_diskless() {
    let mut world = World::ready(&net());
    world.ok(0, secondary());
    let before = set(&world, 1);
    world.ok(0, detach());
    assert_eq!(set(&world, 1), before, "nobody is Primary");
    world.primary(0);
    world.run_until("B starts a generation", |world| {
        set(world, 1)[1] == before[0]
    });
    let bumped = set(&world, 1);
    world.ok(0, secondary());
    world.primary(1);
    assert_eq!(set(&world, 1), bumped);
}

#[test]
fn a_target_that_crashes_is_synced_again_and_never_promoted_before() {
    let mut world = World::ready(&net());
    lose_link(&mut world);
    for block in 0..4 {
        world.write_ok(0, block << 20, 65536, 7);
    }
    world.hold(1, writes_data);
    world.join();
    world.run_until("B is target", |world| {
        world.state(1).conn == ConnState::SyncTarget && world.held(1) > 0
    });
    world.crash(1);
    world.ok(1, ATTACH);
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    assert_eq!(world.answer(1, primary(Force::No)).number, -2);
    world.connect(1, &net());
    assert_in_sync(&mut world);
}

#[test]
fn a_source_that_crashes_goes_on_as_source() {
    let mut world = World::ready(&net());
    lose_link(&mut world);
    for block in 0..4 {
        world.write_ok(0, block << 20, 65536, 7);
    }
    world.hold(1, writes_data);
    world.join();
    world.run_until("B is target", |world| {
        world.state(1).conn == ConnState::SyncTarget && world.held(1) > 0
    });
    world.crash(0);
    world.release(1);
    world.run_until("B waits", |world| {
        world.state(1).conn == ConnState::WFConnection
    });
    assert_eq!(world.answer(1, primary(Force::No)).number, -2);
    boot(&mut world, 0);
    assert_eq!(world.state(0).pdsk, DiskState::Outdated);
    assert_in_sync(&mut world);
    let sends = |effect: &Effect| matches!(effect, Effect::Send { .. });
    assert!(world.nodes[0].history.iter().any(sends));
}
