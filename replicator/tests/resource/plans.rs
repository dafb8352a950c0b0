//! Order on disk: activity log, bits, superblock.

use tandem_replicator::state::word::DiskState;
use tandem_replicator::{Command, DiskOptions, Force};

use crate::harness::{VOLUME, World, flushes_data, writes_bitmap, writes_data, writes_log};

/// A Primary without a peer, nothing out of sync, with the smallest activity log.
fn primary_alone() -> World {
    let mut world = World::alone();
    world.ok(0, Command::Attach { volume: VOLUME });
    world.ok(
        0,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    world
}

#[test]
fn a_cold_write_waits_for_its_transaction() {
    let mut world = primary_alone();
    let log = writes_log(&world.nodes[0].disk);
    world.hold(0, log);
    world.nodes[0].history.clear();
    let id = world.write(0, 12 << 20, 4096, 1);
    assert!(!world.nodes[0].history.iter().any(writes_data));
    assert!(world.reply(0, id).is_none());
    world.release(0);
    assert!(world.reply(0, id).unwrap().is_ok());
    assert_eq!(world.nodes[0].disk.hot_extents(), vec![3]);
}

#[test]
fn a_hot_write_needs_no_transaction() {
    let mut world = primary_alone();
    world.write_ok(0, 12 << 20, 4096, 1);
    world.nodes[0].history.clear();
    world.write_ok(0, (12 << 20) + 8192, 4096, 1);
    let log = writes_log(&world.nodes[0].disk);
    assert!(!world.nodes[0].history.iter().any(log));
}

#[test]
fn the_options_of_the_log_change_while_it_is_quiet() {
    let mut world = primary_alone();
    world.write_ok(0, 12 << 20, 4096, 1);
    let options = DiskOptions {
        al_extents: 67,
        ..DiskOptions::default()
    };
    let command = Command::DiskOptions {
        volume: VOLUME,
        options,
    };
    world.ok(0, command);
    world.write_ok(0, 20 << 20, 4096, 1);
    assert!(world.nodes[0].disk.hot_extents().contains(&5));
    world.write_ok(0, 12 << 20, 4096, 2);
    assert!(world.nodes[0].disk.hot_extents().contains(&3));
}

#[test]
fn without_log_updates_a_crash_means_a_full_sync() {
    let mut world = primary_alone();
    let options = DiskOptions {
        al_updates: false,
        ..DiskOptions::default()
    };
    world.ok(
        0,
        Command::DiskOptions {
            volume: VOLUME,
            options,
        },
    );
    let log = writes_log(&world.nodes[0].disk);
    world.nodes[0].history.clear();
    world.write_ok(0, 40 << 20, 4096, 1);
    assert!(!world.nodes[0].history.iter().any(log));
    world.crash(0);
    world.ok(0, Command::Attach { volume: VOLUME });
    let bytes = world.nodes[0].resource.status().volumes[0].bytes;
    assert_eq!(world.out_of_sync(0), bytes / 1024);
}

#[test]
fn bits_are_written_behind_a_flush_when_the_node_is_demoted() {
    let mut world = primary_alone();
    world.write_ok(0, 0, 1 << 20, 1);
    world.nodes[0].history.clear();
    world.ok(0, Command::Secondary { volume: VOLUME });
    let bitmap = writes_bitmap(&world.nodes[0].disk);
    let history = &world.nodes[0].history;
    let flush = history.iter().position(flushes_data).unwrap();
    let bits = history.iter().position(bitmap).unwrap();
    assert!(flush < bits);
    assert_eq!(world.nodes[0].disk.bits_durable(), 256);
}

#[test]
fn a_disk_that_fails_while_its_log_is_replaced_is_let_go_and_the_command_answered() {
    let mut world = primary_alone();
    world.write_ok(0, 12 << 20, 4096, 1);
    world.fail(0, flushes_data);
    let options = DiskOptions {
        al_extents: 67,
        ..DiskOptions::default()
    };
    let command = Command::DiskOptions {
        volume: VOLUME,
        options,
    };
    let answer = world.answer(0, command);
    assert!(answer.exit != 0, "{answer:?}");
    world.run_until("the disk is closed", |world| {
        world.state(0).disk == DiskState::Diskless
    });
}
