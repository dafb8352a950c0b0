//! Detach, down, and disks that fail.

use tandem_metadata::Flags;
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Command, DiskOptions, Effect, Force, MetaOperation, OnIoError, Operation, Protocol,
    RequestError,
};

use crate::harness::{
    VOLUME, World, durable_flags, flushes_data, protocol, writes_bitmap, writes_data, writes_log,
    writes_superblock,
};

const ATTACH: Command = Command::Attach { volume: VOLUME };

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: Force::No,
    }
}

fn down() -> Command {
    Command::Down { force: Force::No }
}

/// Node 0 has this policy from here on.
fn on_io_error(world: &mut World, on_io_error: OnIoError) {
    let options = DiskOptions {
        on_io_error,
        ..DiskOptions::default()
    };
    world.ok(
        0,
        Command::DiskOptions {
            volume: VOLUME,
            options,
        },
    );
}

/// A Primary without a peer, with UpToDate data and no bit set.
fn primary_alone() -> World {
    let mut world = World::alone();
    world.ok(0, ATTACH);
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
fn a_secondary_detaches_and_its_disk_is_closed() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, detach());
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert!(!world.nodes[0].open);
    world.ok(0, detach());
    world.ok(0, ATTACH);
}

#[test]
fn a_primary_alone_keeps_its_disk() {
    let mut world = primary_alone();
    let answer = world.answer(0, detach());
    assert_eq!((answer.number, answer.exit), (-2, 17));
    assert!(answer.hint.is_some());
    world.write_ok(0, 0, 4096, 7);
}

#[test]
fn down_writes_data_then_bits_then_flags() {
    let mut world = primary_alone();
    world.write_ok(0, 8 << 20, 8192, 7);
    world.nodes[0].history.clear();
    world.ok(0, down());
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert_eq!(world.state(0).role, Role::Secondary);
    assert!(!world.nodes[0].open);
    let disk = &world.nodes[0].disk;
    let (bitmap, superblock) = (writes_bitmap(disk), writes_superblock(disk));
    let history = &world.nodes[0].history;
    let flush = history.iter().position(flushes_data).unwrap();
    let bits = history.iter().position(&bitmap).unwrap();
    let last = history.iter().rposition(&superblock).unwrap();
    assert!(flush < bits && bits < last, "{flush} {bits} {last}");
    assert!(!durable_flags(&world, 0).contains(Flags::PRIMARY_IND));
    assert_eq!(world.nodes[0].disk.bits_durable(), 2);
    world.nodes[0].disk.cut_power();
    let disk = &world.nodes[0].disk;
    assert_eq!(disk.durable[8 << 20], 7);
}

#[test]
fn down_waits_for_io_in_flight_and_ends() {
    let mut world = primary_alone();
    world.hold(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    let command = world.command(0, down());
    assert!(!world.nodes[0].answers.contains_key(&command));
    world.release(0);
    world.run_until("down is answered", |world| {
        world.nodes[0].answers.contains_key(&command)
    });
    assert_eq!(world.nodes[0].answers[&command].exit, 0);
    assert!(world.reply(0, id).unwrap().is_ok());
    assert!(!world.nodes[0].open);
}

#[test]
fn down_stops_at_an_open_device_and_changes_nothing() {
    let mut world = primary_alone();
    world.event(0, tandem_replicator::Event::Opened { volume: VOLUME });
    let answer = world.answer(0, down());
    assert_eq!((answer.number, answer.exit), (-12, 11));
    assert!(answer.info.iter().any(|line| line == "failed to demote"));
    assert_eq!(world.state(0).role, Role::Primary);
    world.event(0, tandem_replicator::Event::Released { volume: VOLUME });
    world.ok(0, down());
}

#[test]
fn a_failed_write_of_the_only_disk_fails_the_request_and_detaches() {
    let mut world = primary_alone();
    world.fail(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    world.run_until("the write is answered", |world| {
        world.reply(0, id).is_some()
    });
    assert!(world.reply(0, id).unwrap().is_err());
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert!(!world.nodes[0].open);
    // The primary flag stays: its activity log is applied at the next attach.
    assert!(durable_flags(&world, 0).contains(Flags::PRIMARY_IND));
}

#[test]
fn a_failed_write_of_the_activity_log_detaches_and_answers_everyone() {
    let mut world = primary_alone();
    let log = writes_log(&world.nodes[0].disk);
    world.fail(0, log);
    let ids: Vec<_> = (0..4).map(|at| world.write(0, at << 22, 4096, 1)).collect();
    world.run_until("the writes are answered", |world| {
        ids.iter().all(|id| world.reply(0, *id).is_some())
    });
    assert!(ids.iter().all(|id| world.reply(0, *id).unwrap().is_err()));
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
}

#[test]
fn the_handler_runs_when_the_policy_says_so() {
    let mut world = primary_alone();
    on_io_error(&mut world, OnIoError::CallLocalIoError);
    world.fail(0, writes_data);
    world.write(0, 0, 4096, 1);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert!(world.nodes[0].handlers.contains(&"local-io-error"));
    assert!(world.nodes[0].handlers.contains(&"pri-on-incon-degr"));
}

#[test]
fn with_pass_on_the_last_good_disk_stays_after_a_failed_write() {
    let mut world = primary_alone();
    on_io_error(&mut world, OnIoError::PassOn);
    world.fail(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    assert!(world.reply(0, id).unwrap().is_err());
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
    assert!(world.nodes[0].open);
    world.heal_disk(0);
    world.write_ok(0, 0, 4096, 2);
}

/// The peer was told to hold an older copy when the link broke: the next resync takes its content from this disk.
#[test]
fn with_pass_on_a_write_that_only_a_peer_left_behind_has_is_an_error() {
    let mut world = World::ready(&protocol(Protocol::B));
    world.primary(0);
    on_io_error(&mut world, OnIoError::PassOn);
    world.hold(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    world.settle();
    world.cut_network();
    world.run_until("the link is lost", |world| {
        world.state(0).conn < ConnState::Connected && world.state(1).conn < ConnState::Connected
    });
    world.fail(0, writes_data);
    world.release(0);
    world.run_until("the write is answered", |world| {
        world.reply(0, id).is_some()
    });
    assert!(world.reply(0, id).unwrap().is_err());
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
}

#[test]
fn a_bitmap_that_cannot_be_written_at_the_detach_leaves_the_full_sync_flag() {
    let mut world = primary_alone();
    world.write_ok(0, 0, 4096, 1);
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.primary(0);
    world.write_ok(0, 8 << 20, 4096, 1);
    let bitmap = writes_bitmap(&world.nodes[0].disk);
    world.fail(0, bitmap);
    world.command(0, Command::Secondary { volume: VOLUME });
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert!(durable_flags(&world, 0).contains(Flags::FULL_SYNC));
    world.heal_disk(0);
    world.ok(0, ATTACH);
    let status = world.nodes[0].resource.status();
    assert_eq!(world.out_of_sync(0), status.volumes[0].bytes / 1024);
}

#[test]
fn a_forced_down_ends_although_the_device_is_open() {
    let mut world = primary_alone();
    world.event(0, tandem_replicator::Event::Opened { volume: VOLUME });
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    let id = world.write(0, 0, 4096, 1);
    world.ok(0, Command::Down { force: Force::Yes });
    assert!(world.reply(0, id).unwrap().is_err());
    assert!(!world.nodes[0].open);
}

/// Found by the fuzz target `peer_stream`.
#[test]
fn a_forced_down_refuses_what_was_written_before_io_was_suspended() {
    let mut world = primary_alone();
    world.hold(0, |effect| writes_data(effect) || flushes_data(effect));
    let write = world.write(0, 0, 4096, 1);
    let flush = world.request(0, Operation::Flush);
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    world.release(0);
    assert!(world.reply(0, write).is_none() && world.reply(0, flush).is_none());
    world.ok(0, Command::Down { force: Force::Yes });
    for id in [write, flush] {
        assert_eq!(world.reply(0, id), Some(&Err(RequestError::ShuttingDown)));
    }
}

/// Found by the fuzz target `peer_stream`.
#[test]
fn down_answers_what_a_suspension_held_before_the_node_became_secondary() {
    for force in [Force::No, Force::Yes] {
        let mut world = primary_alone();
        world.hold(0, flushes_data);
        let flush = world.request(0, Operation::Flush);
        world.ok(0, Command::SuspendIo { volume: VOLUME });
        let read = world.request(
            0,
            Operation::Read {
                offset: 0,
                length: 4096,
            },
        );
        world.release(0);
        world.ok(0, Command::Secondary { volume: VOLUME });
        assert!(world.reply(0, read).is_none() && world.reply(0, flush).is_none());
        world.ok(0, Command::Down { force });
        for id in [flush, read] {
            assert_eq!(world.reply(0, id), Some(&Err(RequestError::ShuttingDown)));
        }
    }
}

#[test]
fn no_metadata_is_touched_after_the_disk_is_closed() {
    let mut world = primary_alone();
    world.ok(0, down());
    world.nodes[0].history.clear();
    world.advance(std::time::Duration::from_secs(30));
    let touched = world.nodes[0].history.iter().any(|effect| {
        matches!(
            effect,
            Effect::Meta {
                operation: MetaOperation::Write { .. },
                ..
            }
        )
    });
    assert!(!touched);
}

#[test]
fn options_that_a_suspension_forbids_leave_all_of_them_as_they_were() {
    let mut world = primary_alone();
    world.hold(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    world.release(0);
    let options = DiskOptions {
        on_io_error: OnIoError::PassOn,
        al_extents: 67,
        ..DiskOptions::default()
    };
    let command = Command::DiskOptions {
        volume: VOLUME,
        options,
    };
    let answer = world.answer(0, command);
    assert!(
        answer
            .info
            .iter()
            .any(|line| line.contains("nothing was changed"))
    );
    world.ok(0, Command::ResumeIo { volume: VOLUME });
    assert!(world.reply(0, id).unwrap().is_ok());
    world.fail(0, writes_data);
    world.write(0, 0, 4096, 2);
    world.run_until("the disk is detached, as it was configured", |world| {
        world.state(0).disk == DiskState::Diskless
    });
}
