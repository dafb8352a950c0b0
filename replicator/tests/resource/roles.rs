//! Roles, generations, and the commands that change them.

use std::time::Duration;

use bytes::Bytes;
use tandem_metadata::Flags;
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Command, Effect, Force, MetaOperation, NetOptions, Notification, Operation,
};

use crate::harness::{VOLUME, World, durable_flags, writes_bitmap, writes_log, writes_superblock};

/// P_STATE_CHG_REPLY (wire-protocol.md 3).
const STATE_CHG_REPLY: u16 = 0x1d;

const ATTACH: Command = Command::Attach { volume: VOLUME };

fn primary(force: Force) -> Command {
    Command::Primary {
        volume: VOLUME,
        force,
    }
}

#[test]
fn inconsistent_data_are_promoted_by_force_only() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let answer = world.answer(0, primary(Force::No));
    assert_eq!((answer.number, answer.exit), (-2, 17));
    assert!(answer.hint.is_some());
    world.ok(0, primary(Force::Yes));
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
    let [current, bitmap, ..] = world.uuids(0);
    assert_eq!(current & 1, 1, "the role bit");
    assert_eq!(bitmap, 4, "a new generation over the just created one");
    assert!(world.nodes[0].served.is_some());
    let superblock = world.nodes[0].disk.superblock();
    assert_eq!(superblock.uuids.current, current);
    assert!(superblock.flags.contains(Flags::PRIMARY_IND));
}

#[test]
fn a_diskless_node_cannot_be_promoted_even_by_force() {
    let mut world = World::alone();
    let answer = world.answer(0, primary(Force::Yes));
    assert_eq!((answer.number, answer.exit), (-2, 17));
}

#[test]
fn nobody_is_served_before_the_superblock_says_primary() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.hold(0, superblock);
    let id = world.command(0, primary(Force::Yes));
    assert!(world.held(0) > 0);
    assert!(!world.nodes[0].answers.contains_key(&id));
    assert_eq!(world.nodes[0].served, None);
    world.release(0);
    world.run_until("the promotion is answered", |world| {
        world.nodes[0].answers.contains_key(&id)
    });
    assert!(world.nodes[0].served.is_some());
}

#[test]
fn promoting_twice_and_demoting_twice_change_nothing() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    let uuids = world.uuids(0);
    world.ok(0, primary(Force::Yes));
    assert_eq!(world.uuids(0), uuids);
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.ok(0, Command::Secondary { volume: VOLUME });
    assert_eq!(world.state(0).role, Role::Secondary);
    assert_eq!(world.uuids(0)[0], uuids[0] & !1, "only the role bit");
    assert_eq!(world.nodes[0].served, None);
    // The bitmap UUID is set: another promotion starts no generation.
    world.ok(0, primary(Force::No));
    assert_eq!(world.uuids(0), uuids);
}

#[test]
fn an_open_device_cannot_be_demoted() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    world.event(0, tandem_replicator::Event::Opened { volume: VOLUME });
    let answer = world.answer(0, Command::Secondary { volume: VOLUME });
    assert_eq!((answer.number, answer.exit), (-12, 11));
    assert!(answer.info[0].contains("1 client"));
}

#[test]
fn a_demotion_under_suspended_requests_says_what_lets_their_clients_go() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    world.event(0, tandem_replicator::Event::Opened { volume: VOLUME });
    let demote = Command::Secondary { volume: VOLUME };
    let held = world.answer(0, demote.clone());
    assert!(held.hint.unwrap().contains("unmount"));
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    let held = world.answer(0, demote);
    assert_eq!((held.number, held.exit), (-12, 11));
    assert_eq!(held.hint.as_deref(), Some("tandem adm resume-io r0"));
    assert!(
        held.info.iter().any(|line| line.contains("suspended")),
        "{held:?}"
    );
}

#[test]
fn a_demotion_clears_the_primary_flag_behind_the_bits() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    assert!(durable_flags(&world, 0).contains(Flags::PRIMARY_IND));
    world.ok(0, Command::Secondary { volume: VOLUME });
    assert!(!durable_flags(&world, 0).contains(Flags::PRIMARY_IND));
}

#[test]
fn a_generation_that_cannot_be_written_leaves_the_node_without_its_disk() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.fail(0, superblock);
    world.command(0, primary(Force::Yes));
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert!(!world.nodes[0].open);
    let id = world.write(0, 0, 4096, 1);
    assert!(world.reply(0, id).unwrap().is_err());
}

#[test]
fn outdate_is_on_disk_when_it_is_answered() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let answer = world.answer(0, Command::Outdate { volume: VOLUME });
    assert_eq!((answer.number, answer.exit), (-16, 5));
    world.ok(0, primary(Force::Yes));
    let answer = world.answer(0, Command::Outdate { volume: VOLUME });
    assert_eq!((answer.number, answer.exit), (-2, 17));
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.ok(0, Command::Outdate { volume: VOLUME });
    assert_eq!(world.state(0).disk, DiskState::Outdated);
    let flags = durable_flags(&world, 0);
    assert!(flags.contains(Flags::CONSISTENT) && !flags.contains(Flags::WAS_UP_TO_DATE));
    world.crash(0);
    world.ok(0, ATTACH);
    assert_eq!(world.state(0).disk, DiskState::Outdated);
}

/// The disk of the Primary fails while its consent to a full sync from it is on its way.
#[test]
fn a_consent_that_a_failed_disk_has_overtaken_is_taken_back() {
    let mut world = World::ready(&NetOptions::default());
    world.primary(0);
    world.hold(0, is_consent);
    world.fail(0, |effect| {
        matches!(
            effect,
            Effect::Meta {
                operation: MetaOperation::Write { .. },
                ..
            }
        )
    });
    let command = world.command(1, Command::Invalidate { volume: VOLUME });
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert_eq!(world.held(0), 1, "the consent");
    world.release(0);
    let answer = world.nodes[1].answers[&command].clone();
    assert_eq!((answer.number, answer.exit), (-2, 17), "{answer:?}");
    assert_eq!(world.state(1).disk, DiskState::UpToDate);
    assert_eq!(world.state(0).pdsk, DiskState::UpToDate);
    world.write_ok(0, 0, 4096, 7);
}

fn is_consent(effect: &Effect) -> bool {
    match effect {
        Effect::Send { head, .. } => {
            head.len() >= 8 && u16::from_be_bytes([head[6], head[7]]) == STATE_CHG_REPLY
        }
        _ => false,
    }
}

/// Reads what was answered, on a Primary that has lost its disk.
fn shows(world: &mut World, offset: u64) -> Option<u8> {
    let length = 4096;
    let read = world.request(0, Operation::Read { offset, length });
    world.settle();
    let reply = world.reply(0, read).expect("it is answered");
    reply.as_ref().ok().map(|bytes| bytes[0])
}

/// After its consent to a full sync from it the Primary answers a write, and loses its disk; its peer never gets the consent, or too late.
#[test]
fn what_a_source_answers_before_a_full_sync_begins_is_on_its_peer() {
    for link in ["stays", "is lost"] {
        let mut world = World::ready(&NetOptions::default());
        world.primary(0);
        world.write_ok(0, 0, 4096, 1);
        world.hold(0, |effect| {
            let begins = "before-resync-source";
            is_consent(effect)
                || matches!(effect, Effect::RunHandler { name, .. } if *name == begins)
        });
        world.command(1, Command::Invalidate { volume: VOLUME });
        assert_eq!(world.state(0).conn, ConnState::StartingSyncS);
        world.write_ok(0, 0, 4096, 2);
        world.fail(0, |effect| matches!(effect, Effect::Disk { .. }));
        world.write(0, 8192, 4096, 3);
        assert_eq!(world.state(0).disk, DiskState::Diskless);
        if link == "stays" {
            world.release(0);
        } else {
            world.cut_network();
            world.join();
            world.advance(Duration::from_secs(60));
        }
        let shown = shows(&mut world, 0);
        assert!(
            shown.is_none_or(|byte| byte == 2),
            "the link {link}: {shown:?}"
        );
    }
}

/// The same with a write that waited for the activity log when the Primary agreed.
#[test]
fn what_waited_for_the_log_at_the_consent_to_a_full_sync_is_on_the_peer() {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 8 << 20, 4096, 1);
    let log = writes_log(&world.nodes[0].disk);
    let bits = writes_bitmap(&world.nodes[0].disk);
    world.hold(0, move |effect| {
        log(effect) || bits(effect) || is_consent(effect)
    });
    let id = world.write(0, 16 << 20, 4096, 2);
    assert_eq!(world.held(0), 1, "the transaction");
    world.command(1, Command::Invalidate { volume: VOLUME });
    world.release_oldest(0);
    assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    world.fail(0, |effect| {
        matches!(effect, Effect::Disk { .. } | Effect::Meta { .. })
    });
    let force = Force::Yes;
    let volume = VOLUME;
    world.command(0, Command::Detach { volume, force });
    world.release(0);
    let shown = shows(&mut world, 16 << 20);
    assert!(shown.is_none_or(|byte| byte == 2), "{shown:?}");
}

/// The consent is lost with the link when the source has its sync UUID already: it goes on in a generation of its own.
#[test]
fn a_source_that_loses_the_link_before_a_full_sync_begins_starts_a_generation() {
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    world.hold(0, |effect| {
        let begins = "before-resync-source";
        is_consent(effect) || matches!(effect, Effect::RunHandler { name, .. } if *name == begins)
    });
    world.command(1, Command::Invalidate { volume: VOLUME });
    assert_eq!(world.state(0).conn, ConnState::StartingSyncS);
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.hold(0, move |effect| is_consent(effect) || superblock(effect));
    world.change_held(0, |effect| {
        if is_consent(effect) {
            *effect = Effect::Notify(Notification::StatusChanged);
        }
    });
    world.release_oldest(0);
    world.release_oldest(0);
    assert_eq!(world.state(0).conn, ConnState::StartingSyncS);
    world.cut_network();
    world.advance(Duration::from_secs(30));
    world.release(0);
    world.advance(Duration::from_secs(5));
    let current = |world: &World, node: usize| world.uuids(node)[0] & !1;
    assert_ne!(current(&world, 0), current(&world, 1));
    world.write_ok(0, 0, 4096, 7);
    world.fail(0, |effect| matches!(effect, Effect::Disk { .. }));
    world.write(0, 8192, 4096, 3);
    world.advance(Duration::from_secs(2));
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    world.join();
    world.advance(Duration::from_secs(60));
    let shown = shows(&mut world, 0);
    assert!(shown.is_none_or(|byte| byte == 7), "{shown:?}");
}

/// A write waits for its transaction when the disk is lost, and goes on when the disk is back and I/O is resumed.
#[test]
fn a_write_that_was_frozen_has_its_extent_in_the_activity_log() {
    const AT: u64 = 16 << 20;
    let mut world = World::ready(&NetOptions::default());
    world.write_ok(0, 0, 4096, 1);
    world.advance(Duration::from_secs(5));
    world.ok(0, Command::Disconnect { force: Force::No });
    let log = writes_log(&world.nodes[0].disk);
    world.hold(0, log);
    let id = world.write(0, AT, 4096, 5);
    assert_eq!(world.held(0), 1);
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    world.fail(0, |effect| {
        matches!(effect, Effect::Disk { .. } | Effect::Meta { .. })
    });
    world.release(0);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert_eq!(world.reply(0, id), None);
    world.heal_disk(0);
    world.ok(0, ATTACH);
    world.ok(0, Command::ResumeIo { volume: VOLUME });
    assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    let flush = world.request(0, Operation::Flush);
    world.settle();
    assert_eq!(world.reply(0, flush), Some(&Ok(Bytes::new())));
    world.crash(0);
    world.ok(0, ATTACH);
    world.connect(0, &NetOptions::default());
    world.advance(Duration::from_secs(60));
    assert_eq!(world.state(0).conn, ConnState::Connected);
    assert_eq!(world.nodes[1].disk.current[AT as usize], 5);
}

/// The disk has failed and is being let go.
#[test]
fn a_failed_disk_is_not_invalidated() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.ok(0, Command::Disconnect { force: Force::No });
    world.hold(0, |effect| matches!(effect, Effect::CloseBacking { .. }));
    world.fail(0, |effect| matches!(effect, Effect::Meta { .. }));
    world.command(0, Command::Outdate { volume: VOLUME });
    world.advance(Duration::from_secs(10));
    assert_eq!(world.state(0).disk, DiskState::Failed);
    let answer = world.answer(0, Command::Invalidate { volume: VOLUME });
    assert_ne!(answer.exit, 0, "{answer:?}");
    world.heal_disk(0);
    world.release(0);
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    world.ok(0, ATTACH);
}

#[test]
fn invalidate_of_a_secondary_alone_sets_every_bit() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    let invalidate = Command::Invalidate { volume: VOLUME };
    assert_eq!(world.answer(0, invalidate.clone()).exit, 11);
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    world.ok(0, Command::Secondary { volume: VOLUME });
    assert_eq!(world.nodes[0].disk.bits_durable(), 0);
    world.ok(0, invalidate);
    assert_eq!(world.state(0).disk, DiskState::Inconsistent);
    let bytes = world.nodes[0].resource.status().volumes[0].bytes;
    assert_eq!(world.nodes[0].disk.bits_durable(), bytes / 4096);
    assert!(!durable_flags(&world, 0).contains(Flags::FULL_SYNC));
}

#[test]
fn pause_and_resume_have_their_own_numbers() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let pause = Command::PauseSync { volume: VOLUME };
    let resume = Command::ResumeSync { volume: VOLUME };
    assert_eq!(world.answer(0, resume.clone()).number, 135);
    world.ok(0, pause.clone());
    assert_eq!(world.answer(0, pause).number, 134);
    world.ok(0, resume);
}

#[test]
fn suspended_requests_wait_and_go_on() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, primary(Force::Yes));
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    let id = world.write(0, 0, 4096, 1);
    world.advance(std::time::Duration::from_secs(5));
    assert!(world.reply(0, id).is_none());
    world.ok(0, Command::ResumeIo { volume: VOLUME });
    assert!(world.reply(0, id).unwrap().is_ok());
}
