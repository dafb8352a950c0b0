//! Resyncs between two engines: full and by bitmap, in both directions, undisturbed and disturbed.

use std::time::Duration;

use bytes::Bytes;
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Command, DiskOperation, DiskOptions, Effect, Force, Fua, NetOptions, OnIoError, Operation,
    Protocol,
};

use super::harness::{
    VOLUME, World, durable_flags, flushes_data, protocol, writes_data, writes_superblock,
};

const MIB: u64 = 1 << 20;

pub fn force_primary(world: &mut World, node: usize) {
    world.ok(
        node,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
}

/// A resync takes a while: 4 MiB/s.
pub fn slow(world: &mut World) {
    for node in 0..2 {
        let options = DiskOptions {
            c_max_rate: 4096,
            ..DiskOptions::default()
        };
        world.ok(
            node,
            Command::DiskOptions {
                volume: VOLUME,
                options,
            },
        );
    }
}

fn is_synced(world: &World) -> bool {
    (0..2).all(|node| {
        let state = world.state(node);
        state.conn == ConnState::Connected
            && state.disk == DiskState::UpToDate
            && state.pdsk == DiskState::UpToDate
    })
}

pub fn wait_synced(world: &mut World) {
    world.run_until("both are UpToDate and Connected", is_synced);
    // Barrier acks of the last writes.
    world.advance(Duration::from_secs(1));
}

fn bytes_of_device(world: &World) -> usize {
    world.nodes[0].resource.status().volumes[0].bytes as usize
}

pub fn check_equal(world: &World) {
    let bytes = bytes_of_device(world);
    assert!(bytes > 0);
    let (a, b) = (
        &world.nodes[0].disk.current[..bytes],
        &world.nodes[1].disk.current[..bytes],
    );
    assert!(
        a == b,
        "disks differ at {:?}",
        a.iter().zip(b).position(|(a, b)| a != b)
    );
    for node in 0..2 {
        assert_eq!(world.out_of_sync(node), 0, "node {node}");
    }
    let mask = |uuids: [u64; 4]| uuids.map(|uuid| uuid & !1);
    assert_eq!(mask(world.uuids(0)), mask(world.uuids(1)));
    assert_eq!(world.uuids(0)[1], 0);
}

/// Different contents everywhere on both disks, written behind the engines' backs.
pub fn scramble(world: &mut World) {
    let usable = world.nodes[0].disk.layout.bitmap_offset().0.min(32 * MIB) as usize;
    for node in 0..2 {
        let disk = &mut world.nodes[node].disk;
        for (at, byte) in disk.current[..usable].iter_mut().enumerate() {
            *byte = (at / 4096 * 7 + at + node * 31) as u8;
        }
        let (current, durable) = (&disk.current, &mut disk.durable);
        durable[..usable].copy_from_slice(&current[..usable]);
    }
}

pub fn cut_and_write(world: &mut World, fills: &[(u64, u8)]) {
    world.cut_network();
    world.run_until("node 0 noticed", |world| {
        world.state(0).conn < ConnState::Connected
    });
    for (offset, fill) in fills {
        world.write_ok(0, *offset, 8192, *fill);
    }
}

#[test]
fn the_first_sync_copies_the_whole_disk() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    force_primary(&mut world, 0);
    wait_synced(&mut world);
    check_equal(&world);
    assert!(world.nodes[0].handlers.contains(&"before-resync-source"));
    assert!(world.nodes[1].handlers.contains(&"before-resync-target"));
    assert!(world.nodes[1].handlers.contains(&"after-resync-target"));
    let [current, _, sync, former] = world.uuids(0);
    assert_ne!(current & !1, 4);
    assert_ne!(sync, 0);
    assert_eq!(former, 4);
}

#[test]
fn what_was_written_while_the_peer_was_away_is_copied() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&protocol(letter));
        world.write_ok(0, 0, 65536, 1);
        world.advance(Duration::from_secs(1));
        cut_and_write(&mut world, &[(4096, 2), (20 * MIB, 3), (33 * MIB + 512, 4)]);
        let missed = world.out_of_sync(0);
        assert!((24..=36).contains(&missed), "{missed}");
        world.join();
        wait_synced(&mut world);
        check_equal(&world);
        assert_eq!(world.nodes[1].disk.current[33 * MIB as usize + 512], 4);
    }
}

#[test]
fn a_resync_without_bits_ends_at_once() {
    let mut world = World::ready(&protocol(Protocol::C));
    cut_and_write(&mut world, &[]);
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn the_application_writes_on_the_source_meanwhile() {
    let mut world = World::connected(&protocol(Protocol::C));
    slow(&mut world);
    scramble(&mut world);
    force_primary(&mut world, 0);
    world.run_until("the target asks", |world| {
        world.state(1).conn == ConnState::SyncTarget
    });
    let mut open = Vec::new();
    for round in 0..400_u64 {
        let offset = (round * 7919 % 4096) * 4096 + (round % 3) * 512;
        open.push(world.write(0, offset, 4096 + (round as usize % 5) * 1024, round as u8));
        world.advance(Duration::from_millis(30));
    }
    wait_synced(&mut world);
    for id in open {
        assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    }
    check_equal(&world);
}

#[test]
fn the_application_writes_on_a_primary_target() {
    let mut world = World::ready(&protocol(Protocol::C));
    slow(&mut world);
    world.write_ok(0, 0, 65536, 9);
    world.ok(0, Command::Invalidate { volume: VOLUME });
    world.run_until("node 0 is target", |world| {
        world.state(0).conn == ConnState::SyncTarget
    });
    assert_eq!(world.state(0).role, Role::Primary);
    assert_eq!(world.read_ok(0, 0, 512), Bytes::from(vec![9; 512]));
    for round in 0..300_u64 {
        let offset = (round * 6007 % 4096) * 4096 + (round % 7) * 512;
        world.write_ok(0, offset, 4096, round as u8);
        let read = world.read_ok(0, offset, 4096);
        assert_eq!(read, Bytes::from(vec![round as u8; 4096]));
        world.advance(Duration::from_millis(20));
    }
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_primary_target_does_not_go_on_with_data_that_its_promoted_peer_has_changed() {
    let net = protocol(Protocol::C);
    let mut world = World::ready(&net);
    slow(&mut world);
    world.write_ok(0, 0, 65536, 9);
    world.ok(0, Command::Invalidate { volume: VOLUME });
    world.run_until("node 0 is target", |world| {
        world.state(0).conn == ConnState::SyncTarget
    });
    assert_eq!(world.read_ok(0, 0, 512), Bytes::from(vec![9; 512]));
    world.cut_network();
    world.primary(1);
    world.write_ok(1, 0, 512, 7);
    world.ok(1, Command::Secondary { volume: VOLUME });
    world.join();
    world.run_until("node 0 refuses", |world| {
        world.state(0).conn == ConnState::StandAlone
    });
    let told = world.nodes[0].resource.status().last_error;
    assert!(told.is_some_and(|told| told.contains("tandem adm secondary")));
    // Nobody sees the old data any more.
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.connect(0, &net);
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn invalidate_remote_copies_everything_to_the_peer() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(0, 5 * MIB, 65536, 9);
    world.nodes[1].disk.current[5 * MIB as usize..5 * MIB as usize + 65536].fill(77);
    world.ok(0, Command::InvalidateRemote { volume: VOLUME });
    world.run_until("it began", |world| {
        world.state(0).conn == ConnState::SyncSource
    });
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_promotion_and_a_demotion_during_the_resync_lose_nothing() {
    let mut world = World::ready(&protocol(Protocol::C));
    slow(&mut world);
    world.write_ok(0, 0, 65536, 9);
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.ok(0, Command::Invalidate { volume: VOLUME });
    world.run_until("node 0 is target", |world| {
        world.state(0).conn == ConnState::SyncTarget
    });
    world.hold(1, |effect| matches!(effect, Effect::Disk { .. }));
    world.advance(Duration::from_millis(300));
    world.primary(0);
    let id = world.write(0, 4096, 4096, 33);
    world.release(1);
    world.run_until("answered", |world| world.reply(0, id).is_some());
    assert_eq!(world.read_ok(0, 4096, 4096), Bytes::from(vec![33; 4096]));
    world.ok(0, Command::Secondary { volume: VOLUME });
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn an_interrupted_resync_goes_on_where_it_was() {
    let mut world = World::connected(&protocol(Protocol::C));
    slow(&mut world);
    scramble(&mut world);
    force_primary(&mut world, 0);
    let all = world.out_of_sync(1);
    world.run_until("a part is synced", |world| {
        world.out_of_sync(1) < all - 4096
    });
    assert_eq!(world.state(1).conn, ConnState::SyncTarget);
    world.cut_network();
    world.advance(Duration::from_secs(2));
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    assert_eq!(world.state(0).pdsk, DiskState::Inconsistent);
    world.write_ok(0, 0, 4096, 55);
    let left = world.out_of_sync(0);
    assert!(left < all, "{left} of {all}");
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

/// Attaches and connects a node that came back.
fn bring_up(world: &mut World, node: usize, net: &NetOptions) {
    world.ok(node, Command::Attach { volume: VOLUME });
    world.connect(node, net);
}

#[test]
fn a_target_that_loses_power_anywhere_is_synced_completely_afterwards() {
    for moment in 0..6_u64 {
        let net = protocol(Protocol::C);
        let mut world = World::connected(&net);
        slow(&mut world);
        scramble(&mut world);
        force_primary(&mut world, 0);
        world.run_until("the resync runs", |world| {
            world.state(1).conn == ConnState::SyncTarget
        });
        world.advance(Duration::from_millis(moment * 1317));
        world.write_ok(0, 3 * MIB, 4096, 5);
        world.crash(1);
        world.write_ok(0, 9 * MIB, 4096, 6);
        bring_up(&mut world, 1, &net);
        world.run_until("they meet", |world| {
            world.state(1).conn >= ConnState::Connected
        });
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn a_source_that_loses_power_is_source_again() {
    let net = protocol(Protocol::C);
    let mut world = World::connected(&net);
    slow(&mut world);
    scramble(&mut world);
    force_primary(&mut world, 0);
    world.run_until("the resync runs", |world| {
        world.state(1).conn == ConnState::SyncTarget
    });
    world.advance(Duration::from_secs(3));
    world.write_ok(0, 3 * MIB, 4096, 5);
    world.crash(0);
    world.advance(Duration::from_secs(2));
    let answer = world.answer(
        1,
        Command::Primary {
            volume: VOLUME,
            force: Force::No,
        },
    );
    assert_eq!(answer.number, -2);
    bring_up(&mut world, 0, &net);
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn both_lose_power_during_a_resync() {
    let net = protocol(Protocol::C);
    for moment in 0..4_u64 {
        let mut world = World::connected(&net);
        slow(&mut world);
        scramble(&mut world);
        force_primary(&mut world, 0);
        world.run_until("the resync runs", |world| {
            world.state(1).conn == ConnState::SyncTarget
        });
        world.advance(Duration::from_millis(moment * 1711));
        world.crash(1);
        world.crash(0);
        bring_up(&mut world, 0, &net);
        bring_up(&mut world, 1, &net);
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn the_link_is_cut_at_every_step_of_the_way() {
    let net = protocol(Protocol::C);
    let mut world = World::ready(&net);
    for step in 1..140_u64 {
        cut_and_write(
            &mut world,
            &[(step % 100 * MIB / 2, step as u8), (7 * MIB, step as u8)],
        );
        // Everything happens without time passing: this many effects of one node are carried out.
        let node = (step % 2) as usize;
        world.hold(node, {
            let mut left = step;
            move |_| {
                left = left.saturating_sub(1);
                left == 0
            }
        });
        world.join();
        world.advance(Duration::from_secs(11));
        world.cut_network();
        world.release(node);
        world.advance(Duration::from_secs(3));
        world.join();
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn nothing_is_cleared_on_the_targets_disk_before_it_is_flushed() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    let all = bytes_of_device(&world) as u64 / 4096;
    world.hold(1, flushes_data);
    force_primary(&mut world, 0);
    world.run_until("blocks arrive", |world| {
        world.nodes[1].history.iter().any(writes_data)
    });
    world.advance(Duration::from_secs(20));
    assert_eq!(world.nodes[1].disk.bits_durable(), all);
    assert!(
        world.out_of_sync(0) < all * 4,
        "the source knows what is written"
    );
    world.release(1);
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn the_target_says_inconsistent_before_the_first_block_is_written() {
    let mut world = World::ready(&protocol(Protocol::C));
    cut_and_write(&mut world, &[(0, 1), (20 * MIB, 2)]);
    let writes = writes_superblock(&world.nodes[1].disk);
    world.nodes[1].history.clear();
    world.hold(1, writes_data);
    world.join();
    world.run_until("a block is to be written", |world| world.held(1) > 0);
    assert!(!durable_flags(&world, 1).contains(tandem_metadata::Flags::CONSISTENT));
    assert_eq!(
        world.nodes[1].disk.superblock().uuids.current,
        world.uuids(0)[1] & !1
    );
    world.release(1);
    // And the superblock is waited for, whatever else happens.
    cut_and_write(&mut world, &[(0, 3)]);
    world.join();
    world.hold(1, {
        let mut syncs = 0;
        move |effect| {
            syncs += usize::from(writes(effect));
            syncs > 1 && writes(effect)
        }
    });
    world.run_until("the superblock is to be written", |world| world.held(1) > 0);
    world.nodes[1].history.clear();
    world.advance(Duration::from_secs(1));
    assert!(!world.nodes[1].history.iter().any(writes_data));
    world.release(1);
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn the_target_is_up_to_date_only_when_its_superblock_says_so() {
    let mut world = World::ready(&protocol(Protocol::C));
    cut_and_write(&mut world, &[(0, 1)]);
    let writes = writes_superblock(&world.nodes[1].disk);
    let mut flushed = false;
    world.hold(1, move |effect| {
        flushed |= flushes_data(effect);
        flushed && writes(effect)
    });
    world.join();
    world.run_until("the superblock is to be written", |world| world.held(1) > 0);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    assert_eq!(world.state(0).conn, ConnState::SyncSource);
    world.release(1);
    wait_synced(&mut world);
    let flags = durable_flags(&world, 1);
    assert!(
        flags.contains(
            tandem_metadata::Flags::CONSISTENT.with(tandem_metadata::Flags::WAS_UP_TO_DATE)
        )
    );
    check_equal(&world);
}

#[test]
fn the_sync_uuid_is_durable_on_the_source_before_it_is_sent() {
    let mut world = World::ready(&protocol(Protocol::C));
    cut_and_write(&mut world, &[(0, 1)]);
    world.advance(Duration::from_secs(6));
    let writes = writes_superblock(&world.nodes[0].disk);
    let mut running = false;
    world.hold(0, move |effect| {
        running |= matches!(effect, Effect::RunHandler { .. });
        running && writes(effect)
    });
    world.join();
    world.run_until("the sync UUID is to be written", |world| world.held(0) > 0);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.state(0).conn, ConnState::WFBitMapS);
    assert_eq!(world.state(1).conn, ConnState::WFSyncUUID);
    world.release(0);
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn the_bitmap_on_the_sources_disk_learns_of_what_is_done() {
    let mut world = World::connected(&protocol(Protocol::C));
    slow(&mut world);
    scramble(&mut world);
    force_primary(&mut world, 0);
    world.run_until("the resync runs", |world| {
        world.state(0).conn == ConnState::SyncSource
    });
    let all = world.out_of_sync(0);
    world.advance(Duration::from_secs(5));
    assert_eq!(world.state(0).conn, ConnState::SyncSource);
    // What a killed daemon finds: the pages were written, a flush is not needed.
    world.nodes[0].disk.flush();
    let on_disk = 4 * world.nodes[0].disk.bits_durable();
    let left = world.out_of_sync(0);
    assert!(left <= on_disk && on_disk < all, "{left} {on_disk} {all}");
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_pause_on_either_node_holds_the_resync() {
    for node in 0..2 {
        let mut world = World::connected(&protocol(Protocol::C));
        slow(&mut world);
        scramble(&mut world);
        world.ok(node, Command::PauseSync { volume: VOLUME });
        force_primary(&mut world, 0);
        world.advance(Duration::from_secs(5));
        assert_eq!(world.state(0).conn, ConnState::PausedSyncS);
        assert_eq!(world.state(1).conn, ConnState::PausedSyncT);
        let left = world.out_of_sync(1);
        world.ok(node, Command::ResumeSync { volume: VOLUME });
        world.run_until("it goes on", |world| world.out_of_sync(1) < left);
        world.ok(1 - node, Command::PauseSync { volume: VOLUME });
        world.advance(Duration::from_secs(3));
        let left = world.out_of_sync(1);
        assert!(left > 0);
        let status = world.nodes[1].resource.status().volumes[0].resync.unwrap();
        assert!(status.left > 0 && status.total >= status.left);
        world.advance(Duration::from_secs(30));
        assert_eq!(world.out_of_sync(1), left);
        world.ok(1 - node, Command::ResumeSync { volume: VOLUME });
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn a_handler_that_refuses_drops_the_connection() {
    for node in 0..2 {
        let mut world = World::connected(&protocol(Protocol::C));
        world.nodes[node].handler_exit = 1;
        force_primary(&mut world, 0);
        world.run_until("the node is alone", |world| {
            world.state(node).conn == ConnState::StandAlone
        });
    }
}

#[test]
fn a_source_that_cannot_read_a_block_tells_so() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    world.fail(0, |effect| {
        matches!(effect, Effect::Disk { operation: DiskOperation::Read { offset, length }, .. }
            if (*offset..*offset + u64::from(*length)).contains(&(8 * MIB)))
    });
    force_primary(&mut world, 0);
    // on-io-error detach: the source's disk goes.
    world.run_until("the source is diskless", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    world.advance(Duration::from_secs(1));
    assert_eq!(world.state(1).conn, ConnState::Connected);
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    assert_eq!(world.state(1).pdsk, DiskState::Diskless);
}

#[test]
fn a_target_that_cannot_write_a_block_detaches_and_the_source_goes_on() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    world.fail(1, |effect| {
        matches!(effect, Effect::Disk { operation: DiskOperation::Write { offset, data, .. }, .. }
            if (*offset..*offset + data.len() as u64).contains(&(8 * MIB)))
    });
    force_primary(&mut world, 0);
    world.run_until("the target is diskless", |world| {
        world.state(1).disk == DiskState::Diskless
    });
    world.write_ok(0, 0, 4096, 3);
    assert_eq!(world.state(0).conn, ConnState::Connected);
    assert_eq!(world.state(0).pdsk, DiskState::Diskless);
    assert!(world.out_of_sync(0) > 0);
    world.heal_disk(1);
    world.ok(1, Command::Attach { volume: VOLUME });
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn defaults_reach_the_maximum_rate_on_a_fast_link() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    force_primary(&mut world, 0);
    world.run_until("the resync runs", |world| {
        world.state(1).conn == ConnState::SyncTarget
    });
    let began = world.now;
    world.run_until("both are UpToDate and Connected", is_synced);
    let spent = world.now.since(began);
    assert!(spent < Duration::from_secs(5), "64 MiB took {spent:?}");
    check_equal(&world);
}

#[test]
fn plain_bitmaps_work_as_well() {
    let net = NetOptions {
        use_rle: false,
        ..NetOptions::default()
    };
    let mut world = World::ready(&net);
    cut_and_write(&mut world, &[(0, 1), (30 * MIB, 2)]);
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn reads_of_a_source_are_not_overtaken_by_the_applications_writes() {
    let mut world = World::ready(&protocol(Protocol::C));
    cut_and_write(&mut world, &[(0, 1)]);
    world.join();
    // The source's read hangs; a write to the same block waits for it, one beside it does not.
    world.hold(0, |effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Read { .. },
                ..
            }
        )
    });
    world.run_until("the source reads", |world| world.held(0) > 0);
    let same = world.write(0, 0, 4096, 7);
    let beside = world.write(0, MIB, 4096, 8);
    world.advance(Duration::from_millis(500));
    assert!(world.reply(0, same).is_none());
    assert!(world.reply(0, beside).is_some());
    world.release(0);
    wait_synced(&mut world);
    assert_eq!(world.reply(0, same), Some(&Ok(Bytes::new())));
    check_equal(&world);
}

#[test]
fn fua_and_discards_go_on_during_a_resync() {
    let mut world = World::connected(&protocol(Protocol::C));
    slow(&mut world);
    scramble(&mut world);
    force_primary(&mut world, 0);
    world.run_until("the resync runs", |world| {
        world.state(1).conn == ConnState::SyncTarget
    });
    for round in 0..40_u64 {
        let offset = (round * 131 % 700) * 65536;
        let id = world.request(
            0,
            Operation::Discard {
                offset,
                length: 65536,
                fua: Fua::Yes,
            },
        );
        world.run_until("answered", |world| world.reply(0, id).is_some());
        assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
        world.advance(Duration::from_millis(40));
    }
    let id = world.request(0, Operation::Flush);
    world.run_until("flushed", |world| world.reply(0, id).is_some());
    wait_synced(&mut world);
    check_equal(&world);
}

/// Errors of the disk are passed on instead of detaching it.
fn pass_on(world: &mut World) {
    for node in 0..2 {
        let options = DiskOptions {
            on_io_error: OnIoError::PassOn,
            ..DiskOptions::default()
        };
        world.ok(
            node,
            Command::DiskOptions {
                volume: VOLUME,
                options,
            },
        );
    }
}

fn touches(effect: &Effect, at: u64) -> bool {
    let (offset, length) = match effect {
        Effect::Disk {
            operation: DiskOperation::Read { offset, length },
            ..
        } => (*offset, u64::from(*length)),
        Effect::Disk {
            operation: DiskOperation::Write { offset, data, .. },
            ..
        } => (*offset, data.len() as u64),
        _ => return false,
    };
    (offset..offset + length).contains(&at)
}

fn ended_with_one_bad_block(world: &mut World) {
    world.run_until("both sides ended", |world| {
        (0..2).all(|node| world.state(node).conn == ConnState::Connected)
            && world.state(1).disk == DiskState::Inconsistent
            && world.state(0).pdsk == DiskState::Inconsistent
            && world.nodes[1].handlers.contains(&"after-resync-target")
    });
    assert_eq!(world.out_of_sync(1), 4);
    assert_eq!(world.out_of_sync(0), 4);
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
}

#[test]
fn a_block_that_the_source_cannot_read_is_all_that_stays_out_of_sync() {
    let net = protocol(Protocol::C);
    let mut world = World::connected(&net);
    scramble(&mut world);
    pass_on(&mut world);
    world.fail(0, |effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Read { .. },
                ..
            }
        ) && touches(effect, 8 * MIB)
    });
    force_primary(&mut world, 0);
    ended_with_one_bad_block(&mut world);
    // The next connection finds it again.
    world.heal_disk(0);
    world.cut_network();
    world.advance(Duration::from_secs(1));
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_block_that_the_target_cannot_write_is_all_that_stays_out_of_sync() {
    let net = protocol(Protocol::C);
    let mut world = World::connected(&net);
    scramble(&mut world);
    pass_on(&mut world);
    world.fail(1, |effect| writes_data(effect) && touches(effect, 8 * MIB));
    force_primary(&mut world, 0);
    ended_with_one_bad_block(&mut world);
    world.heal_disk(1);
    world.cut_network();
    world.advance(Duration::from_secs(1));
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_target_that_cannot_flush_never_says_that_it_is_done() {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    pass_on(&mut world);
    world.fail(1, flushes_data);
    force_primary(&mut world, 0);
    world.advance(Duration::from_secs(60));
    assert_eq!(world.state(1).disk, DiskState::Inconsistent);
    assert_ne!(world.out_of_sync(1), 0);
    world.heal_disk(1);
    world.cut_network();
    world.advance(Duration::from_secs(1));
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn a_disk_that_goes_while_bitmaps_are_exchanged_leaves_nothing_held() {
    for node in 0..2 {
        for handler in [false, true] {
            let mut world = World::ready(&protocol(Protocol::C));
            cut_and_write(&mut world, &[(0, 1), (30 * MIB, 2)]);
            // The other node hangs at its handler, or right before it sends its bitmap.
            world.hold(1 - node, move |effect| match effect {
                Effect::RunHandler { .. } => handler,
                Effect::Send {
                    payload: None,
                    head,
                    ..
                } => !handler && head.len() > 100,
                _ => false,
            });
            world.join();
            world.advance(Duration::from_secs(2));
            world.ok(
                node,
                Command::Detach {
                    volume: VOLUME,
                    force: Force::Yes,
                },
            );
            world.advance(Duration::from_secs(1));
            world.release(1 - node);
            world.advance(Duration::from_secs(1));
            let id = world.write(0, 4096, 4096, 7);
            world.run_until("a write is answered", |world| world.reply(0, id).is_some());
            world.ok(node, Command::Attach { volume: VOLUME });
            world.advance(Duration::from_secs(20));
            if node == 1 {
                wait_synced(&mut world);
                check_equal(&world);
            }
        }
    }
}
