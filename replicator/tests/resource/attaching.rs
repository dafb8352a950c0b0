//! Attach: fresh, after a crash, with wrong or broken metadata.

use std::time::Duration;

use tandem_metadata::Flags;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{
    Command, Effect, Event, Force, MetaOperation, NetOptions, Protocol, Token,
};

use crate::harness::{
    Disk, VOLUME, World, durable_flags, protocol, writes_bitmap, writes_data, writes_superblock,
};

const ATTACH: Command = Command::Attach { volume: VOLUME };

fn force_primary() -> Command {
    Command::Primary {
        volume: VOLUME,
        force: Force::Yes,
    }
}

#[test]
fn a_fresh_disk_attaches_inconsistent_with_every_bit_set() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    let state = world.state(0);
    assert_eq!(state.disk, DiskState::Inconsistent);
    assert_eq!(state.pdsk, DiskState::DUnknown);
    assert_eq!(world.uuids(0), [4, 0, 0, 0]);
    let status = world.nodes[0].resource.status();
    assert_eq!(
        status.volumes[0].counters.out_of_sync_kib,
        status.volumes[0].bytes / 1024
    );
    assert!(status.volumes[0].al_suspended);
    let superblock = world.nodes[0].disk.superblock();
    assert!(superblock.needs_replay(), "in use: {:?}", superblock.flags);
    assert_eq!(superblock.la_size.0 * 512, status.volumes[0].bytes);
}

#[test]
fn a_second_attach_is_refused() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    assert_eq!(world.answer(0, ATTACH).number, 124);
}

#[test]
fn an_unknown_volume_is_refused() {
    let mut world = World::alone();
    let volume = tandem_replicator::VolumeNumber(7);
    let answer = world.answer(0, Command::Attach { volume });
    assert_eq!((answer.number, answer.exit), (127, 10));
}

#[test]
fn a_disk_that_cannot_be_opened_is_reported_with_its_number() {
    let mut world = World::alone();
    world.fail(0, |effect| matches!(effect, Effect::OpenBacking { .. }));
    let answer = world.answer(0, ATTACH);
    assert_eq!((answer.number, answer.exit), (104, 10));
    world.heal_disk(0);
    world.ok(0, ATTACH);
}

#[test]
fn a_disk_without_metadata_is_refused_with_the_command_to_type() {
    let mut world = World::alone();
    world.nodes[0].disk = Disk::without_metadata(8 << 20);
    let answer = world.answer(0, ATTACH);
    assert_eq!(answer.number, 119);
    assert!(answer.hint.unwrap().contains("create-md"));
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert!(!world.nodes[0].open);
}

#[test]
fn a_read_error_in_the_bitmap_refuses_the_attach_and_closes_the_disk() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(
        0,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    let bitmap = world.nodes[0].disk.layout.bitmap_offset().0;
    world.fail(0, move |effect| {
        matches!(effect, Effect::Meta { operation: MetaOperation::Read { offset, .. }, .. }
            if *offset == bitmap)
    });
    assert_eq!(world.answer(0, ATTACH).number, 118);
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert!(!world.nodes[0].open);
    world.heal_disk(0);
    world.ok(0, ATTACH);
}

#[test]
fn a_metadata_write_error_refuses_the_attach() {
    let mut world = World::alone();
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.fail(0, superblock);
    assert_eq!(world.answer(0, ATTACH).number, 118);
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    assert!(!world.nodes[0].open);
    world.heal_disk(0);
    world.ok(0, ATTACH);
}

#[test]
fn a_metadata_write_error_at_the_last_step_refuses_the_attach() {
    let mut world = World::alone();
    let superblock = writes_superblock(&world.nodes[0].disk);
    let mut seen = 0;
    world.fail(0, move |effect| {
        seen += usize::from(superblock(effect));
        seen > 1 && superblock(effect)
    });
    assert_eq!(world.answer(0, ATTACH).number, 118);
    world.run_until("the disk is gone", |world| {
        world.state(0).disk == DiskState::Diskless
    });
    assert!(!world.nodes[0].open);
    world.heal_disk(0);
    world.ok(0, ATTACH);
}

#[test]
fn extents_that_were_hot_at_a_crash_are_out_of_sync_on_disk_before_the_attach_is_answered() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, force_primary());
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    assert_eq!(world.out_of_sync(0), 0);
    // One write answered and marked, one in flight when the power goes.
    world.write_ok(0, 0, 4096, 1);
    world.hold(0, writes_data);
    let id = world.write(0, 20 << 20, 4096, 2);
    assert!(world.reply(0, id).is_none());
    assert_eq!(world.nodes[0].disk.hot_extents(), vec![0, 5]);
    world.crash(0);

    world.ok(0, ATTACH);
    assert_eq!(world.out_of_sync(0), 2 * 4096, "two extents of 4 MiB");
    assert_eq!(world.nodes[0].disk.bits_durable(), 2048);
    let flags = durable_flags(&world, 0);
    assert!(flags.contains(Flags::CRASHED_PRIMARY));
    assert!(!flags.contains(Flags::PRIMARY_IND));
    assert_eq!(world.state(0).disk, DiskState::UpToDate);
}

#[test]
fn the_primary_flag_is_cleared_only_when_the_bits_of_hot_extents_are_durable() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, force_primary());
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    world.write_ok(0, 9 << 20, 4096, 1);
    world.crash(0);
    world.hold(0, |effect| {
        matches!(
            effect,
            Effect::Meta {
                operation: MetaOperation::Flush,
                ..
            }
        )
    });
    let id = world.command(0, ATTACH);
    assert!(world.held(0) > 0 && !world.nodes[0].answers.contains_key(&id));
    assert!(durable_flags(&world, 0).contains(Flags::PRIMARY_IND));
    // A second loss of power loses nothing.
    world.crash(0);
    world.ok(0, ATTACH);
    assert_eq!(world.out_of_sync(0), 4096);
}

#[test]
fn a_crash_with_an_unusable_activity_log_marks_everything() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, force_primary());
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    world.write_ok(0, 0, 4096, 1);
    world.crash(0);
    let disk = &mut world.nodes[0].disk;
    let at = disk.layout.activity_log_offset().0 as usize;
    let len = disk.layout.activity_log_len().0 as usize;
    disk.current[at..at + len].fill(0xA5);
    disk.durable[at..at + len].fill(0xA5);
    world.ok(0, ATTACH);
    let status = world.nodes[0].resource.status();
    assert_eq!(world.out_of_sync(0), status.volumes[0].bytes / 1024);
    // The ring is usable again.
    assert!(world.nodes[0].disk.hot_extents().is_empty());
}

#[test]
fn a_disk_that_became_too_small_for_its_device_is_refused() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(0, force_primary());
    world.ok(0, Command::Secondary { volume: VOLUME });
    world.ok(
        0,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    let last = world.nodes[0].disk.superblock();
    let mut small = Disk::fresh(32 << 20);
    small.edit_superblock(|superblock| {
        superblock.la_size = last.la_size;
        superblock.flags = last.flags;
        superblock.uuids = last.uuids;
    });
    world.nodes[0].disk = small;
    let answer = world.answer(0, ATTACH);
    assert_eq!(answer.number, 119, "{answer:?}");
    assert!(answer.info[0].contains("la_size_sect"), "{answer:?}");
    assert_eq!(world.state(0).disk, DiskState::Diskless);
}

#[test]
fn an_attach_waits_for_slow_reads_without_losing_the_command() {
    let mut world = World::alone();
    world.ok(0, ATTACH);
    world.ok(
        0,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    world.hold(0, |effect| {
        matches!(
            effect,
            Effect::Meta {
                operation: MetaOperation::Read { .. },
                ..
            }
        )
    });
    let id = world.command(0, ATTACH);
    assert!(!world.nodes[0].answers.contains_key(&id));
    // Whoever detaches meanwhile waits for its end.
    let detach = Command::Detach {
        volume: VOLUME,
        force: Force::No,
    };
    let detach = world.command(0, detach);
    assert!(!world.nodes[0].answers.contains_key(&detach));
    world.release(0);
    world.run_until("the detach is answered", |world| {
        world.nodes[0].answers.contains_key(&detach)
    });
    assert_eq!(world.state(0).disk, DiskState::Diskless);
    world.run_until("the attach is answered", |world| {
        world.nodes[0].answers.contains_key(&id)
    });
    assert_eq!(world.nodes[0].answers[&id].exit, 0);
}

#[test]
fn a_completion_of_an_unknown_io_does_no_harm() {
    let mut world = World::alone();
    let token = Token(4711);
    world.event(
        0,
        Event::MetaDone {
            token,
            result: Ok(bytes::Bytes::new()),
        },
    );
    world.event(0, Event::BackingClosed { token });
    world.event(0, Event::HandlerDone { token, exit: 0 });
    world.event(0, Event::Timer);
    assert_eq!(world.state(0).conn, ConnState::StandAlone);
    let bitmap = writes_bitmap(&world.nodes[0].disk);
    assert!(!world.nodes[0].history.iter().any(bitmap));
}

#[test]
fn a_node_that_was_primary_and_alone_when_it_went_down_knows_it_at_the_next_attach() {
    let degraded =
        |world: &World, node: usize| world.nodes[node].resource.status().volumes[0].was_degraded;
    let mut world = World::ready(&NetOptions::default());
    world.cut_network();
    world.write_ok(0, 0, 4096, 1);
    world.advance(Duration::from_secs(10));
    for node in 0..2 {
        world.crash(node);
        world.ok(node, Command::Attach { volume: VOLUME });
    }
    assert!(degraded(&world, 0));
    assert!(!degraded(&world, 1), "a Secondary was not degraded");
    let mut world = World::ready(&NetOptions::default());
    world.crash(0);
    world.ok(0, Command::Attach { volume: VOLUME });
    assert!(!degraded(&world, 0), "its peer was there");
}

#[test]
fn metadata_in_a_slot_are_used_and_another_layout_of_the_log_is_refused_there() {
    let mut world = World::alone();
    world.nodes[0].with_metadata_in_a_slot(8 << 20);
    world.ok(0, ATTACH);
    assert_eq!(world.nodes[0].resource.status().volumes[0].bytes, 8 << 20);
    assert_eq!(world.nodes[0].disk.superblock().md_size_sect, 262_144);
    world.ok(0, force_primary());
    world.write_ok(0, 0, 4096, 3);
    world.crash(0);
    world.nodes[0]
        .disk
        .edit_superblock(|superblock| superblock.al_stripes = 2);
    let answer = world.answer(0, ATTACH);
    assert_eq!(answer.exit, 10, "{answer:?}");
    assert!(
        answer
            .info
            .iter()
            .any(|line| line.contains("activity-log stripe")),
        "{answer:?}"
    );
}

/// A disk of a crashed Primary is called old while it is being attached: what the crash may have left different on it is known all the same.
#[test]
fn what_says_that_a_disk_is_old_waits_until_its_attach_is_over() {
    for (command, left) in [
        (Command::Outdate { volume: VOLUME }, DiskState::Outdated),
        (
            Command::Invalidate { volume: VOLUME },
            DiskState::Inconsistent,
        ),
    ] {
        let mut world = World::ready(&NetOptions::default());
        world.write_ok(0, 0, 4096, 1);
        world.crash(0);
        world.hold(0, |effect| {
            let read = |operation: &MetaOperation| matches!(operation, MetaOperation::Read { length, .. } if *length > 4096);
            matches!(effect, Effect::Meta { operation, .. } if read(operation))
        });
        let attach = world.command(0, ATTACH);
        assert_eq!(world.state(0).disk, DiskState::Attaching);
        let id = world.command(0, command);
        assert_eq!(world.state(0).disk, DiskState::Attaching);
        world.release(0);
        world.advance(Duration::from_secs(1));
        let answers = &world.nodes[0].answers;
        assert_eq!((answers[&attach].exit, answers[&id].exit), (0, 0));
        assert_eq!(world.state(0).disk, left);
        assert!(world.out_of_sync(0) >= 4096, "the extent that was hot");
        assert!(durable_flags(&world, 0).contains(Flags::CRASHED_PRIMARY));
    }
}

/// The source never heard that the resync was over, and met its peer again while that had no disk: each corrects the generations of the
/// source by itself, and what was written since is copied over the same connection.
#[test]
fn a_disk_attached_late_is_synced_by_a_source_that_missed_the_end_of_a_resync() {
    let net = NetOptions::default();
    let mut world = World::ready(&net);
    world.cut_network();
    world.write_ok(0, 0, 4096, 1);
    world.crash(1);
    let [current, bitmap, newer, _] = world.uuids(0);
    world.nodes[1].disk.edit_superblock(|superblock| {
        superblock.uuids.current = current & !1;
        superblock.uuids.history = [bitmap, newer];
    });
    world.join();
    world.connect(1, &net);
    world.run_until("the diskless peer is connected", |world| {
        world.state(0).conn == ConnState::Connected
    });
    world.write_ok(0, 4096, 4096, 2);
    world.ok(1, ATTACH);
    world.run_until("the resync is over", |world| {
        (0..2).all(|node| world.state(node).is_up_to_date_pair())
    });
    let said = |node: usize, words: &str| {
        let log = &world.nodes[node].log;
        log.iter().filter(|line| line.contains(words)).count()
    };
    assert_eq!(said(0, "uuid_compare()=1 by rule 34"), 1);
    assert_eq!(said(1, "uuid_compare()=-1 by rule 35"), 1);
    assert_eq!(said(1, "uuid_compare()="), 1, "one comparison was enough");
    assert_eq!([world.out_of_sync(0), world.out_of_sync(1)], [0, 0]);
    let disk = &world.nodes[1].disk.current;
    assert_eq!((disk[0], disk[4096]), (1, 2));
}

/// Both disks are attached at once to a link without any: each node tells its generations twice, the second time after the other one has
/// corrected them (rules 71 and 51: the last sync UUID was lost).
#[test]
fn two_disks_attached_at_once_end_with_the_same_generations() {
    const STEP: u64 = 1 << 48;
    let net = NetOptions::default();
    let mut world = World::ready(&net);
    world.write_ok(0, 0, 4096, 1);
    world.ok(0, Command::Secondary { volume: VOLUME });
    let [current, ..] = world.uuids(0);
    let (before, older) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4320);
    for node in 0..2 {
        world.crash(node);
    }
    world.nodes[0].disk.edit_superblock(|superblock| {
        superblock.uuids.bitmap = before + STEP;
        superblock.uuids.history = [before, older];
    });
    world.nodes[1].disk.edit_superblock(|superblock| {
        superblock.uuids.current = before;
        superblock.uuids.history = [older, 0];
    });
    for node in 0..2 {
        world.connect(node, &net);
    }
    world.run_until("two nodes without disks are connected", |world| {
        (0..2).all(|node| world.state(node).conn == ConnState::Connected)
    });
    for node in 0..2 {
        world.hold(node, |effect| matches!(effect, Effect::Send { .. }));
        world.command(node, ATTACH);
    }
    world.release_all();
    world.run_until("the resync is over", |world| {
        (0..2).all(|node| world.state(node).is_up_to_date_pair())
    });
    let masked = |node: usize| world.uuids(node).map(|uuid| uuid & !1);
    assert_eq!(masked(0), masked(1));
    assert_eq!(masked(0), [current & !1, 0, before + STEP, before]);
}

/// The same on a connection: the peer has not yet said what it thinks of the disk, and would be taken for equal.
#[test]
fn what_says_that_a_disk_is_old_waits_until_the_peer_has_compared() {
    let net = NetOptions::default();
    let mut world = World::ready(&net);
    world.write_ok(0, 0, 4096, 1);
    world.crash(0);
    world.connect(0, &net);
    world.run_until("the crashed node is back without its disk", |world| {
        world.state(0).conn == ConnState::Connected
    });
    world.hold(1, |effect| matches!(effect, Effect::Send { .. }));
    let attach = world.command(0, ATTACH);
    assert_eq!(world.nodes[0].answers[&attach].exit, 0);
    let outdate = world.command(0, Command::Outdate { volume: VOLUME });
    assert_eq!(world.state(0).disk, DiskState::Negotiating);
    assert!(!world.nodes[0].answers.contains_key(&outdate));
    world.release(1);
    world.run_until("the resync is over", |world| {
        (0..2).all(|node| world.state(node).is_up_to_date_pair())
    });
    assert!(world.nodes[0].answers.contains_key(&outdate));
    assert_eq!([world.out_of_sync(0), world.out_of_sync(1)], [0, 0]);
}

/// The peer detaches its disk in a resync; what it had confirmed of that disk, on the other socket, arrives when the block has been written
/// again without it.
#[test]
fn a_late_acknowledgement_clears_no_bit_of_what_was_written_since_the_disk_was_lost() {
    /// P_RS_WRITE_ACK and P_BARRIER_ACK.
    const ACKS: [u16; 2] = [0x17, 0x1c];
    for letter in [Protocol::A, Protocol::B] {
        let mut world = World::ready(&protocol(letter));
        world.command(1, Command::Invalidate { volume: VOLUME });
        world.run_until("the resync runs", |world| {
            world.state(1).conn == ConnState::SyncTarget && world.out_of_sync(0) > 0
        });
        world.hold(1, |effect| match effect {
            Effect::Send { head, .. } => {
                head.len() >= 8 && ACKS.contains(&u16::from_be_bytes([head[6], head[7]]))
            }
            _ => false,
        });
        let last = world.nodes[0].resource.status().volumes[0].bytes - 4096;
        world.write_ok(0, last, 4096, 1);
        assert!(world.held(1) > 0, "the acknowledgement");
        let detach = Command::Detach {
            volume: VOLUME,
            force: Force::Yes,
        };
        world.command(1, detach);
        world.run_until("the peer has no disk", |world| {
            world.state(0).pdsk == DiskState::Diskless
        });
        world.write_ok(0, last, 4096, 2);
        world.release(1);
        world.advance(Duration::from_millis(300));
        world.ok(1, ATTACH);
        world.run_until("the resync is over", |world| {
            (0..2).all(|node| world.state(node).is_up_to_date_pair())
        });
        for node in 0..2 {
            let disk = &world.nodes[node].disk.current;
            assert_eq!(disk[last as usize], 2, "node {node}, {letter:?}");
        }
    }
}

/// The link of a Primary breaks, and its disk fails when the generation that this begins is written. Nobody was answered in it: a disk
/// that is well again is what the application knows.
#[test]
fn a_disk_that_failed_at_the_start_of_a_generation_is_attached_again() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&protocol(letter));
        world.write_ok(0, 0, 4096, 1);
        let superblock = writes_superblock(&world.nodes[0].disk);
        world.fail(0, superblock);
        world.cut_network();
        let unanswered = world.write(0, 4096, 4096, 2);
        world.run_until("the disk is lost", |world| {
            world.state(0).disk == DiskState::Diskless
        });
        let answered = world.reply(0, unanswered);
        assert!(matches!(answered, Some(Err(_))), "{letter:?}");
        world.heal_disk(0);
        world.ok(0, ATTACH);
        assert_eq!(world.state(0).disk, DiskState::UpToDate, "{letter:?}");
        assert_eq!(world.read_ok(0, 0, 4096)[0], 1, "{letter:?}");
    }
}

/// Once the generation is on the disk, writes are answered in it: a disk of the one before is older.
#[test]
fn a_disk_of_the_generation_before_is_refused_once_writes_were_answered() {
    let mut world = World::ready(&NetOptions::default());
    let older = world.nodes[0].disk.clone();
    world.cut_network();
    world.run_until("the generation is on the disk", |world| {
        world.nodes[0].disk.superblock().uuids.bitmap != 0
    });
    world.write_ok(0, 0, 4096, 1);
    let detach = Command::Detach {
        volume: VOLUME,
        force: Force::Yes,
    };
    world.ok(0, detach);
    world.nodes[0].disk = older;
    assert_eq!(world.answer(0, ATTACH).number, 150);
}
