//! Roles and disks of two connected nodes.

use std::time::Duration;

use bytes::Bytes;
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Command, DiskOptions, Effect, Force, NetOptions, OnIoError, Operation, Protocol, RequestError,
    RequestId,
};

use crate::harness::{VOLUME, World, protocol, writes_data, writes_superblock};

fn secondary() -> Command {
    Command::Secondary { volume: VOLUME }
}

fn primary(force: Force) -> Command {
    Command::Primary {
        volume: VOLUME,
        force,
    }
}

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: Force::No,
    }
}

#[test]
fn two_fresh_nodes_connect_and_nobody_can_be_promoted_without_force() {
    let mut world = World::connected(&NetOptions::default());
    for node in 0..2 {
        let state = world.state(node);
        assert_eq!(state.disk, DiskState::Inconsistent);
        assert_eq!(state.pdsk, DiskState::Inconsistent);
        assert_eq!(state.peer, Role::Secondary);
    }
    let answer = world.answer(0, primary(Force::No));
    assert_eq!((answer.number, answer.exit), (-2, 17));
}

#[test]
fn skipping_the_initial_sync_makes_both_up_to_date_with_one_generation() {
    let world = World::ready(&NetOptions::default());
    let (ours, theirs) = (world.uuids(0), world.uuids(1));
    assert_eq!(ours[0] & !1, theirs[0] & !1);
    assert_eq!((ours[1], theirs[1]), (0, 0));
    assert_eq!((world.out_of_sync(0), world.out_of_sync(1)), (0, 0));
    assert_eq!(world.state(1).peer, Role::Primary);
}

#[test]
fn a_second_primary_is_refused() {
    let mut world = World::ready(&NetOptions::default());
    let answer = world.answer(1, primary(Force::No));
    assert_eq!((answer.number, answer.exit), (-1, 11));
    assert_eq!(world.state(1).role, Role::Secondary);
}

#[test]
fn the_roles_switch_without_a_new_generation() {
    let mut world = World::ready(&NetOptions::default());
    let before = world.uuids(0);
    world.write_ok(0, 0, 4096, 1);
    world.ok(0, secondary());
    world.primary(1);
    assert_eq!(world.uuids(1)[0], before[0]);
    assert_eq!(world.uuids(0)[0], before[0] & !1);
    assert_eq!(world.uuids(0)[1], 0);
    world.write_ok(1, 4096, 4096, 2);
    assert_eq!(&world.read_ok(1, 0, 8192)[4095..4097], &[1, 2]);
    assert_eq!(world.nodes[0].disk.current[4096], 2);
}

#[test]
fn a_write_is_on_both_disks_when_it_is_answered() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&protocol(letter));
        world.write_ok(0, 1 << 20, 8192, 9);
        world.settle();
        assert_eq!(world.nodes[0].disk.current[1 << 20], 9);
        assert_eq!(world.nodes[1].disk.current[1 << 20], 9, "{letter:?}");
        assert_eq!(world.out_of_sync(0), 0);
    }
}

#[test]
fn the_generation_is_durable_before_a_write_that_the_peer_misses_is_answered() {
    let mut world = World::ready(&NetOptions::default());
    let before = world.uuids(0);
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.hold(0, superblock);
    // In flight at the peer when the link goes.
    world.hold(1, writes_data);
    let id = world.write(0, 0, 4096, 1);
    assert!(world.reply(0, id).is_none());
    world.cut_network();
    assert!(world.held(0) > 0);
    assert!(world.reply(0, id).is_none());
    let late = world.write(0, 4096, 4096, 2);
    assert!(world.reply(0, late).is_none());
    world.release(0);
    assert!(world.reply(0, id).unwrap().is_ok());
    assert!(world.reply(0, late).unwrap().is_ok());
    let superblock = world.nodes[0].disk.superblock();
    assert_eq!(superblock.uuids.bitmap, before[0]);
    assert_ne!(superblock.uuids.current, before[0]);
    assert_eq!(world.out_of_sync(0), 8);
}

#[test]
fn a_secondary_starts_no_generation_when_the_link_is_lost() {
    let mut world = World::ready(&NetOptions::default());
    let before = world.uuids(1);
    world.cut_network();
    assert_eq!(world.uuids(1), before);
    assert_eq!(world.state(1).pdsk, DiskState::DUnknown);
    assert_ne!(world.uuids(0)[1], 0);
}

#[test]
fn a_secondary_detaches_with_the_consent_of_the_primary_which_goes_on_alone() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(1, detach());
    assert_eq!(world.state(1).disk, DiskState::Diskless);
    world.run_until("the Primary knows", |world| {
        world.state(0).pdsk == DiskState::Diskless
    });
    assert_ne!(world.uuids(0)[1], 0, "a new generation");
    world.write_ok(0, 0, 4096, 1);
    assert_eq!(world.out_of_sync(0), 4);
    assert_eq!(world.state(0).conn, ConnState::Connected);
}

#[test]
fn the_last_up_to_date_disk_of_a_primary_is_not_detached() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(1, detach());
    let answer = world.answer(0, detach());
    assert_eq!((answer.number, answer.exit), (-2, 17));
    world.write_ok(0, 0, 4096, 1);
}

#[test]
fn a_diskless_primary_works_on_the_disk_of_its_peer() {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    world.ok(0, detach());
    world.run_until("the Secondary knows", |world| {
        world.state(1).pdsk == DiskState::Diskless
    });
    world.write_ok(0, 4096, 4096, 2);
    assert_eq!(&world.read_ok(0, 0, 8192)[4095..4097], &[1, 2]);
    assert_eq!(world.nodes[1].disk.current[4096], 2);
    let [_, bitmap, ..] = world.uuids(1);
    assert_ne!(bitmap, 0, "the only disk of a Primary starts a generation");
    assert_eq!(world.out_of_sync(1), 4);
    // Its disk is not what the application saw last.
    let answer = world.answer(1, secondary());
    assert_eq!(answer.exit, 0);
}

#[test]
fn a_disk_error_of_the_primary_is_not_seen_by_its_clients() {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    world.fail(0, |effect| matches!(effect, Effect::Disk { .. }));
    world.write_ok(0, 4096, 4096, 2);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert_eq!(&world.read_ok(0, 0, 8192)[4095..4097], &[1, 2]);
}

/// The disk of the Primary fails a write, and its peer cannot write its superblock so far.
fn failed_beside_a_slow_superblock() -> (World, RequestId) {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    let superblock = writes_superblock(&world.nodes[1].disk);
    world.hold(1, superblock);
    world.fail(0, |effect| matches!(effect, Effect::Disk { .. }));
    let id = world.write(0, 4096, 4096, 2);
    world.run_until("the Secondary knows", |world| {
        world.state(1).pdsk <= DiskState::Failed
    });
    world.advance(Duration::from_secs(1));
    assert_eq!(
        world.reply(0, id),
        None,
        "a restart would bring the disk back"
    );
    (world, id)
}

#[test]
fn what_a_failed_disk_lacks_is_answered_when_the_peer_s_generation_is_durable() {
    let (mut world, id) = failed_beside_a_slow_superblock();
    let flush = world.request(0, Operation::Flush);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.reply(0, flush), None);
    world.release(1);
    world.run_until("the write and the flush are answered", |world| {
        world.reply(0, id).is_some() && world.reply(0, flush).is_some()
    });
    assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    assert_eq!(world.reply(0, flush), Some(&Ok(Bytes::new())));
    world.write_ok(0, 8192, 4096, 3);
}

#[test]
fn a_disk_attached_again_does_not_make_its_peer_confirm_early() {
    let (mut world, id) = failed_beside_a_slow_superblock();
    world.heal_disk(0);
    world.run_until("the failed disk is let go", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.hold(0, superblock);
    world.command(0, Command::Attach { volume: VOLUME });
    // What the attach writes before it offers the disk.
    while world.state(0).disk < DiskState::Inconsistent {
        world.run_until("the attach goes on", |world| {
            world.held(0) > 0 || world.state(0).disk == DiskState::Inconsistent
        });
        if world.held(0) > 0 && world.state(0).disk < DiskState::Inconsistent {
            world.release_oldest(0);
        }
    }
    world.advance(Duration::from_secs(1));
    assert_eq!(
        world.reply(0, id),
        None,
        "neither disk says that one of them is old"
    );
    world.release(0);
    world.run_until("the own disk says so", |world| world.reply(0, id).is_some());
    world.release(1);
    world.run_until("both have everything", |world| {
        world.reply(0, id).is_some()
            && [0, 1]
                .iter()
                .all(|&node| world.state(node).is_up_to_date_pair())
    });
    assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    assert_eq!(&world.read_ok(0, 0, 8192)[4095..4097], &[1, 2]);
}

#[test]
fn a_peer_that_takes_its_time_to_confirm_is_told_of_once() {
    let (mut world, id) = failed_beside_a_slow_superblock();
    world.advance(Duration::from_secs(60));
    let told = |line: &&String| line.contains("`disconnect --force` ends the wait");
    assert_eq!(world.nodes[0].log.iter().filter(told).count(), 1);
    assert_eq!(world.reply(0, id), None);
    world.ok(0, Command::Disconnect { force: Force::Yes });
    assert_eq!(world.reply(0, id), Some(&Err(RequestError::Io)));
}

#[test]
fn what_a_failed_disk_lacks_is_an_error_if_the_peer_is_lost_before_it_confirms() {
    let (mut world, id) = failed_beside_a_slow_superblock();
    let flush = world.request(0, Operation::Flush);
    world.cut_network();
    world.run_until("both are answered", |world| {
        world.reply(0, id).is_some() && world.reply(0, flush).is_some()
    });
    assert_eq!(world.reply(0, id), Some(&Err(RequestError::Io)));
    assert_eq!(world.reply(0, flush), Some(&Err(RequestError::Io)));
}

#[test]
fn what_a_failed_disk_lacks_is_an_error_if_the_peer_s_disk_is_lost_before_it_confirms() {
    let (mut world, id) = failed_beside_a_slow_superblock();
    let flush = world.request(0, Operation::Flush);
    let force = Force::Yes;
    world.command(
        1,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    world.run_until("both are answered", |world| {
        world.reply(0, id).is_some() && world.reply(0, flush).is_some()
    });
    assert_eq!(world.reply(0, id), Some(&Err(RequestError::Io)));
    assert_eq!(world.reply(0, flush), Some(&Err(RequestError::Io)));
}

#[test]
fn with_pass_on_a_disk_that_lacks_a_write_of_its_peer_is_let_go() {
    let mut world = World::ready(&NetOptions::default());
    let options = DiskOptions {
        on_io_error: OnIoError::PassOn,
        ..DiskOptions::default()
    };
    let volume = VOLUME;
    world.ok(0, Command::DiskOptions { volume, options });
    world.write_ok(0, 0, 4096, 1);
    let reads = |effect: &Effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: tandem_replicator::DiskOperation::Read { .. },
                ..
            }
        )
    };
    world.fail(0, reads);
    assert_eq!(world.read_ok(0, 0, 4096)[0], 1, "read from the peer");
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
    world.fail(0, writes_data);
    world.write_ok(0, 4096, 4096, 2);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert_eq!(&world.read_ok(0, 0, 8192)[4095..4097], &[1, 2]);
}

#[test]
fn with_pass_on_a_write_that_only_a_lost_peer_has_is_an_error() {
    let volume = VOLUME;
    for lost in [World::cut_network, detach_peer] {
        let mut world = World::ready(&NetOptions::default());
        let options = DiskOptions {
            on_io_error: OnIoError::PassOn,
            ..DiskOptions::default()
        };
        world.ok(0, Command::DiskOptions { volume, options });
        world.write_ok(0, 0, 4096, 1);
        world.hold(0, writes_data);
        let id = world.write(0, 0, 4096, 2);
        lost(&mut world);
        world.fail(0, writes_data);
        world.release(0);
        assert_eq!(world.reply(0, id), Some(&Err(RequestError::Io)));
        world.heal_disk(0);
        assert_eq!(world.state(0).disk, DiskState::UpToDate);
        assert_eq!(world.read_ok(0, 0, 1)[0], 1, "what the disk has");
    }
}

fn detach_peer(world: &mut World) {
    world.ok(1, detach());
}

#[test]
fn a_write_of_a_peer_without_a_disk_waits_until_the_log_counts_after_a_restart() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(0, secondary());
    world.primary(1);
    world.write_ok(1, 0, 4096, 1);
    world.ok(1, secondary());
    world.ok(0, detach());
    let superblock = writes_superblock(&world.nodes[1].disk);
    world.hold(1, superblock);
    world.primary(0);
    world.write(0, 4096, 4096, 2);
    // Its extent is in the log already, but the disk does not say so far that the log counts.
    assert_eq!(world.nodes[1].disk.current[4096], 0);
    world.release(1);
    assert_eq!(world.nodes[1].disk.current[4096], 2);
    world.crash(1);
    world.ok(1, Command::Attach { volume: VOLUME });
    assert!(world.out_of_sync(1) >= 4);
}

#[test]
fn both_nodes_go_down_while_connected() {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    world.ok(0, Command::Down { force: Force::No });
    assert_eq!(world.state(0).conn, ConnState::StandAlone);
    assert!(!world.nodes[0].open);
    world.ok(1, Command::Down { force: Force::No });
    assert!(!world.nodes[1].open);
}

#[test]
fn the_down_of_a_diskless_primary_s_peer_is_refused() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(0, detach());
    world.run_until("the Secondary knows", |world| {
        world.state(1).pdsk == DiskState::Diskless
    });
    let answer = world.answer(1, Command::Down { force: Force::No });
    assert_eq!((answer.number, answer.exit), (-10, 11), "{answer:?}");
    assert!(
        answer
            .info
            .iter()
            .any(|line| line == "failed to disconnect")
    );
}

#[test]
fn a_link_lost_while_io_is_suspended_starts_the_generation_all_the_same() {
    let mut world = World::ready(&NetOptions::default());
    let before = world.uuids(0);
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    let id = world.write(0, 0, 4096, 1);
    world.cut_network();
    assert_eq!(world.uuids(0)[1], before[0]);
    assert!(world.reply(0, id).is_none());
    world.ok(0, Command::ResumeIo { volume: VOLUME });
    assert!(world.reply(0, id).unwrap().is_ok());
    assert_eq!(world.out_of_sync(0), 4);
}

#[test]
fn a_write_on_the_only_disk_waits_for_the_generation_that_says_so() {
    let mut world = World::ready(&NetOptions::default());
    let superblock = writes_superblock(&world.nodes[1].disk);
    world.hold(1, superblock);
    world.fail(0, writes_data);
    let id = world.write(0, 0, 4096, 1);
    // The disk of the Primary failed; its next write is on the peer's disk only.
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    world.heal_disk(0);
    let late = world.write(0, 4096, 4096, 2);
    assert!(world.reply(0, late).is_none());
    world.release(1);
    world.run_until("both are answered", |world| {
        world.reply(0, id).is_some() && world.reply(0, late).is_some()
    });
    assert!(world.reply(0, late).unwrap().is_ok());
    assert_ne!(world.nodes[1].disk.superblock().uuids.bitmap, 0);
}

#[test]
fn the_link_lost_in_the_middle_of_a_detach_lets_it_go_on_alone() {
    let mut world = World::ready(&NetOptions::default());
    world.hold(1, |effect| matches!(effect, Effect::Send { .. }));
    let id = world.command(1, detach());
    assert!(!world.nodes[1].answers.contains_key(&id));
    world.cut_network();
    world.release(1);
    world.run_until("the detach is answered", |world| {
        world.nodes[1].answers.contains_key(&id)
    });
    assert_eq!(world.state(1).disk, DiskState::Diskless);
}

#[test]
fn a_link_lost_while_an_attach_is_negotiated_leaves_a_settled_disk() {
    for written in [false, true] {
        let mut world = World::ready(&NetOptions::default());
        world.ok(1, detach());
        if written {
            world.write_ok(0, 0, 4096, 1);
        }
        world.hold(1, |effect| matches!(effect, Effect::Send { .. }));
        let attach = world.command(1, Command::Attach { volume: VOLUME });
        assert_eq!(world.state(1).disk, DiskState::Negotiating);
        world.cut_network();
        world.release(1);
        world.run_until("the attach is answered", |world| {
            world.nodes[1].answers.contains_key(&attach)
        });
        // The data of the Primary moved on: what this disk has is not what it would have had to offer.
        world.run_until("the disk is settled", |world| {
            world.state(1).disk != DiskState::Negotiating
        });
        assert_eq!(
            world.nodes[1].open,
            world.state(1).disk != DiskState::Diskless
        );
        world.join();
        if world.state(1).disk == DiskState::Diskless {
            world.ok(1, Command::Attach { volume: VOLUME });
        }
        world.run_until("both are UpToDate", |world| {
            (0..2).all(|node| {
                let state = world.state(node);
                state.conn == ConnState::Connected && state.disk == DiskState::UpToDate
            })
        });
    }
}

#[test]
fn an_attach_during_the_handshake_waits_for_its_end() {
    let mut world = World::ready(&NetOptions::default());
    world.cut_network();
    world.ok(1, detach());
    // The handshake of the volumes gets stuck half way.
    world.hold(0, |effect| matches!(effect, Effect::Send { .. }));
    world.join();
    world.advance(std::time::Duration::from_secs(2));
    let attach = world.command(1, Command::Attach { volume: VOLUME });
    world.release(0);
    world.run_until("the attach is answered", |world| {
        world.nodes[1].answers.contains_key(&attach)
    });
    assert_eq!(world.nodes[1].answers[&attach].exit, 0);
    world.run_until("both are UpToDate", |world| {
        (0..2).all(|node| {
            let state = world.state(node);
            state.conn == ConnState::Connected && state.disk == DiskState::UpToDate
        })
    });
}
