//! The life of writes, flushes and reads on a pair: who has them when they are answered, and in which order.

use std::time::Duration;

use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{
    Command, DiskOperation, Effect, Force, Fua, Operation, Protocol, RequestError, RequestId, Unmap,
};

use crate::harness::{
    VOLUME, World, flushes_data, protocol, writes_bitmap, writes_data, writes_log,
    writes_superblock,
};

const A: usize = 0;
const B: usize = 1;

/// P_NEG_ACK.
const NEG_ACK: u16 = 0x19;

/// P_BARRIER.
const BARRIER: u16 = 0x03;

fn same_data(world: &World) {
    let bytes = world.nodes[A].resource.status().volumes[0].bytes as usize;
    let equal = world.nodes[A].disk.current[..bytes] == world.nodes[B].disk.current[..bytes];
    assert!(equal, "the disks differ");
}

fn answered(world: &World, id: RequestId) -> bool {
    world.reply(A, id).is_some()
}

#[test]
fn under_c_a_write_is_answered_when_both_disks_have_it() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1); // Hot from here on.
    world.hold(B, writes_data);
    let id = world.write(A, 4096, 4096, 7);
    assert!(!answered(&world, id));
    world.release(B);
    assert!(answered(&world, id));
    same_data(&world);
}

#[test]
fn under_b_a_write_is_answered_when_the_peer_has_received_it() {
    let mut world = World::ready(&protocol(Protocol::B));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, writes_data);
    let id = world.write(A, 4096, 4096, 7);
    assert!(answered(&world, id));
    world.release(B);
    same_data(&world);
}

#[test]
fn under_a_a_write_is_answered_when_it_is_handed_to_the_socket() {
    let mut world = World::ready(&protocol(Protocol::A));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, |effect| {
        writes_data(effect) || matches!(effect, Effect::Send { .. })
    });
    let id = world.write(A, 4096, 4096, 7);
    assert!(answered(&world, id));
    world.release(B);
    same_data(&world);
}

#[test]
fn every_kind_of_write_reaches_the_peer() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 3 << 20, 5);
    let discard = Operation::Discard {
        offset: 4096,
        length: 8192,
        fua: Fua::No,
    };
    let zeroes = Operation::WriteZeroes {
        offset: 65536,
        length: 2 << 20,
        fua: Fua::Yes,
        unmap: Unmap::No,
    };
    for operation in [discard, zeroes] {
        let id = world.request(A, operation);
        world.run_until("the request is answered", |world| answered(world, id));
        assert!(world.reply(A, id).unwrap().is_ok());
    }
    same_data(&world);
    assert_eq!(&world.nodes[B].disk.current[4096..4097], [0]);
    assert_eq!(&world.nodes[B].disk.current[..1], [5]);
    let read = world.read_ok(A, 0, 3 << 20);
    assert_eq!(read[..], world.nodes[A].disk.current[..3 << 20]);
}

#[test]
fn a_flush_under_c_waits_for_the_peers_flush() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, flushes_data);
    let id = world.request(A, Operation::Flush);
    world.advance(Duration::from_millis(300));
    assert!(!answered(&world, id));
    world.release(B);
    assert!(world.reply(A, id).unwrap().is_ok());
    assert_eq!(&world.nodes[B].disk.durable[..1], [1]);
    assert_eq!(&world.nodes[A].disk.durable[..1], [1]);
}

#[test]
fn a_flush_without_writes_before_it_sends_nothing() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.advance(Duration::from_secs(1)); // The idle epoch is closed and acknowledged.
    world.nodes[A].history.clear();
    let id = world.request(A, Operation::Flush);
    assert!(world.reply(A, id).unwrap().is_ok());
    assert!(
        !world.nodes[A]
            .history
            .iter()
            .any(|effect| matches!(effect, Effect::Send { .. }))
    );
}

#[test]
fn flushes_that_come_together_share_one() {
    let mut world = World::ready(&protocol(Protocol::A));
    world.write_ok(A, 0, 4096, 1);
    world.hold(A, flushes_data);
    world.nodes[A].history.clear();
    let ids: Vec<RequestId> = (0..5).map(|_| world.request(A, Operation::Flush)).collect();
    world.release(A);
    world.run_until("all are answered", |world| {
        ids.iter().all(|id| answered(world, *id))
    });
    let flushes = world.nodes[A]
        .history
        .iter()
        .filter(|effect| flushes_data(effect))
        .count();
    assert_eq!(
        flushes, 2,
        "the first, and one for the four that came later"
    );
}

#[test]
fn writes_that_overlap_follow_each_other() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, writes_data);
    let first = world.write(A, 0, 8192, 2);
    let second = world.write(A, 4096, 8192, 3);
    assert_eq!(world.held(B), 1);
    world.release(B);
    world.run_until("both are answered", |world| {
        answered(world, first) && answered(world, second)
    });
    same_data(&world);
    assert_eq!(&world.nodes[B].disk.current[4096..4097], [3]);
}

#[test]
fn when_the_link_is_lost_a_write_is_answered_after_the_new_generation() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, writes_data);
    let id = world.write(A, 4096, 4096, 2);
    let before = world.uuids(A)[0];
    let superblock = writes_superblock(&world.nodes[A].disk);
    world.hold(A, superblock);
    world.cut_network();
    assert!(!answered(&world, id), "the generation is not durable yet");
    world.release(A);
    world.run_until("the write is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
    assert_ne!(world.uuids(A)[0], before);
    assert_eq!(
        world.nodes[A].disk.superblock().uuids.current,
        world.uuids(A)[0]
    );
    assert!(
        world.out_of_sync(A) >= 8,
        "what the peer did not confirm is out of sync"
    );
}

#[test]
fn a_generation_that_never_reaches_the_disk_makes_the_write_an_error() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, writes_data);
    let id = world.write(A, 4096, 4096, 2);
    let superblock = writes_superblock(&world.nodes[A].disk);
    world.fail(A, superblock);
    world.cut_network();
    world.run_until("the write is answered", |world| answered(world, id));
    assert_eq!(world.reply(A, id), Some(&Err(RequestError::Io)));
}

#[test]
fn a_write_that_the_peers_disk_fails_is_answered_and_marked() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    let before = world.uuids(A)[0];
    world.fail(B, writes_data);
    let id = world.write(A, 8192, 4096, 2);
    world.run_until("the write is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
    assert_ne!(
        world.uuids(A)[0],
        before,
        "the peer's copy is marked as old"
    );
    world.run_until("the peer is diskless", |world| {
        world.state(A).pdsk == DiskState::Diskless
    });
    assert!(world.out_of_sync(A) >= 4);
}

#[test]
fn when_the_local_disk_fails_the_peer_serves_reads_and_writes() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 8192, 1);
    world.fail(A, |effect| {
        writes_data(effect) || matches!(effect, Effect::Disk { .. })
    });
    world.write_ok(A, 0, 4096, 2);
    world.run_until("the disk is detached", |world| {
        world.state(A).disk == DiskState::Diskless
    });
    assert_eq!(
        world.read_ok(A, 0, 8192)[..4097],
        [vec![2; 4096], vec![1]].concat()
    );
    world.write_ok(A, 4096, 4096, 3);
    assert_eq!(world.read_ok(A, 4096, 4096)[..1], [3]);
    assert_eq!(
        &world.nodes[B].disk.durable[4096..4097],
        [3],
        "the only copy is durable when it is answered"
    );
    let id = world.request(A, Operation::Flush);
    world.run_until("the flush is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
    assert_eq!(&world.nodes[B].disk.durable[4096..4097], [3]);
}

/// The first two flushes after a disk was detached behind a write, and the peer was lost for a moment.
fn flushes_without_the_disk(force: Force) -> [Result<(), RequestError>; 2] {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    world.cut_network();
    world.run_until("the peer is lost", |world| {
        world.state(A).conn < ConnState::Connected
    });
    world.join();
    world.run_until("the peer is back", |world| {
        world.state(A).pdsk == DiskState::UpToDate
    });
    [(); 2].map(|()| {
        let id = world.request(A, Operation::Flush);
        world.run_until("the flush is answered", |world| answered(world, id));
        world.reply(A, id).unwrap().clone().map(|_| ())
    })
}

#[test]
fn a_flush_tells_of_writes_whose_last_copy_was_never_flushed() {
    let flushes = flushes_without_the_disk(Force::Yes);
    assert_eq!(flushes, [Err(RequestError::Io), Ok(())]);
}

#[test]
fn a_disk_that_is_detached_in_good_order_leaves_nothing_behind_that_was_never_flushed() {
    let flushes = flushes_without_the_disk(Force::No);
    assert_eq!(flushes, [Ok(()), Ok(())]);
}

#[test]
fn a_late_barrier_ack_of_a_diskless_primarys_write_leaves_no_bit_behind() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    world.write_ok(A, 0, 4096, 1);
    world.ok(A, Command::Attach { volume: VOLUME });
    // The barrier ack comes between the last block and the end of the resync.
    world.hold(A, writes_superblock(&world.nodes[A].disk));
    world.advance(Duration::from_secs(1));
    world.release(A);
    world.run_until("the resync is over", |world| {
        world.state(A).conn == ConnState::Connected
    });
    assert_eq!(world.state(A).disk, DiskState::UpToDate);
    assert_eq!([A, B].map(|node| world.out_of_sync(node)), [0, 0]);
}

#[test]
fn the_write_of_a_diskless_primary_is_in_the_peers_log_before_it_is_written() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    let log = writes_log(&world.nodes[B].disk);
    world.hold(B, log);
    world.nodes[B].history.clear();
    let id = world.write(A, 20 << 20, 4096, 9);
    assert!(!world.nodes[B].history.iter().any(writes_data));
    assert!(world.out_of_sync(B) >= 4, "it is marked when it arrives");
    world.release(B);
    world.run_until("the write is answered", |world| answered(world, id));
    assert!(world.nodes[B].disk.hot_extents().contains(&5));
}

#[test]
fn bits_of_an_evicted_extent_are_on_disk_before_the_log_forgets_it() {
    let mut world = World::alone();
    world.nodes[0].disk = crate::harness::Disk::fresh(256 << 20);
    world.ok(A, Command::Attach { volume: VOLUME });
    world.ok(
        A,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.ok(
        A,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    let options = tandem_replicator::DiskOptions {
        al_extents: 67,
        ..Default::default()
    };
    world.ok(
        A,
        Command::DiskOptions {
            volume: VOLUME,
            options,
        },
    );
    for extent in 0..60u64 {
        world.write_ok(A, extent << 22, 4096, 1);
    }
    assert_eq!(world.out_of_sync(A), 60 * 4);
    world.nodes[A].history.clear();
    let bitmap = writes_bitmap(&world.nodes[A].disk);
    let log = writes_log(&world.nodes[A].disk);
    for extent in (0..60u64).rev() {
        world.write_ok(A, extent << 22, 4096, 2);
    }
    let first_log = world.nodes[A].history.iter().position(&log);
    let first_bitmap = world.nodes[A].history.iter().position(&bitmap);
    // Whatever the log evicted, its bits went first.
    if let (Some(log), Some(bitmap)) = (first_log, first_bitmap) {
        assert!(bitmap < log);
    }
    world.crash(A);
    world.ok(A, Command::Attach { volume: VOLUME });
    assert!(
        world.out_of_sync(A) >= 60 * 4,
        "every written block is out of sync after a crash"
    );
}

#[test]
fn a_secondary_serves_nobody() {
    let mut world = World::ready(&protocol(Protocol::C));
    let id = world.request(
        B,
        Operation::Read {
            offset: 0,
            length: 4096,
        },
    );
    assert_eq!(world.reply(B, id), Some(&Err(RequestError::NotPrimary)));
}

#[test]
fn a_request_beyond_the_end_or_empty_is_refused() {
    let mut world = World::ready(&protocol(Protocol::C));
    let bytes = world.nodes[A].resource.status().volumes[0].bytes;
    for (offset, length) in [
        (bytes, 512),
        (bytes - 512, 1024),
        (u64::MAX - 511, 512),
        (bytes - 1, 2),
        (0, 0),
    ] {
        let id = world.request(A, Operation::Read { offset, length });
        assert_eq!(
            world.reply(A, id),
            Some(&Err(RequestError::Invalid)),
            "{offset} {length}"
        );
    }
}

#[test]
fn a_cut_under_load_leaves_bits_for_every_difference() {
    let mut world = World::ready(&protocol(Protocol::C));
    for block in 0..64u64 {
        world.write_ok(A, block << 16, 4096, 1);
    }
    world.cut_network();
    for block in 0..16u64 {
        world.write_ok(A, block << 16, 4096, 2);
    }
    world.run_until("the link is lost", |world| {
        world.state(A).conn < ConnState::Connected
    });
    assert!(world.out_of_sync(A) >= 16 * 4);
    world.join();
    world.run_until("both are UpToDate again", |world| {
        world.state(A).pdsk == DiskState::UpToDate && world.state(B).disk == DiskState::UpToDate
    });
    same_data(&world);
    assert_eq!(world.out_of_sync(A), 0);
}

#[test]
fn a_flush_that_began_before_the_link_was_lost_answers_no_barrier_of_the_next_connection() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    // The flush for the first barrier hangs; others that the loss of the link needs do not.
    let mut first = true;
    world.hold(B, move |effect| {
        flushes_data(effect) && std::mem::take(&mut first)
    });
    world.request(A, Operation::Flush);
    world.run_until("the peer flushes", |world| world.held(B) == 1);
    world.cut_network();
    world.run_until("both have lost the link", |world| {
        [A, B]
            .iter()
            .all(|at| world.state(*at).conn < ConnState::Connected)
    });
    world.join();
    world.run_until("both are in sync", |world| {
        [A, B]
            .iter()
            .all(|at| world.state(*at).disk == DiskState::UpToDate)
            && world.state(A).conn == ConnState::Connected
    });
    world.write_ok(A, 8192, 4096, 2);
    let id = world.request(A, Operation::Flush);
    world.advance(Duration::from_millis(300));
    world.hold(B, flushes_data);
    world.release_oldest(B);
    world.advance(Duration::from_millis(100));
    assert!(!answered(&world, id), "its data is not durable on the peer");
    world.release(B);
    world.run_until("the flush is answered", |world| answered(world, id));
    assert_eq!(world.nodes[B].disk.durable[8192], 2);
}

#[test]
fn a_flush_whose_peer_was_lost_while_io_was_suspended_is_answered_when_it_goes_on() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, flushes_data);
    let id = world.request(A, Operation::Flush);
    world.ok(A, Command::SuspendIo { volume: VOLUME });
    world.cut_network();
    world.run_until("the peer is lost", |world| {
        world.state(A).conn < ConnState::Connected
    });
    world.advance(Duration::from_millis(300));
    assert!(!answered(&world, id));
    world.ok(A, Command::ResumeIo { volume: VOLUME });
    world.run_until("the flush is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
}

#[test]
fn a_write_that_the_peer_refused_before_a_suspension_waits_for_nobody_after_it() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.fail(B, writes_data);
    world.hold(A, writes_data);
    let id = world.write(A, 0, 4096, 1);
    world.ok(A, Command::SuspendIo { volume: VOLUME });
    world.release(A);
    world.run_until("the peer has lost its disk", |world| {
        world.state(A).pdsk == DiskState::Diskless
    });
    world.heal_disk(B);
    world.ok(B, Command::Attach { volume: VOLUME });
    // The bitmaps are exchanged when no write is open any more, so that this waits for the end of the suspension.
    for _ in 0..20 {
        world.advance(Duration::from_secs(1));
        assert_eq!(world.state(A).conn, ConnState::WFBitMapS);
    }
    assert!(!answered(&world, id));
    world.ok(A, Command::ResumeIo { volume: VOLUME });
    world.run_until("the write is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
    world.run_until("both are in sync", |world| {
        world.state(A).pdsk == DiskState::UpToDate && world.state(A).conn == ConnState::Connected
    });
    same_data(&world);
    assert_eq!([A, B].map(|node| world.out_of_sync(node)), [0, 0]);
}

/// The disk of B fails a discard; its P_STATE has reached A, its P_NEG_ACK, changed as a kernel's (wire-protocol.md 11 no. 18), and what
/// follows that on its socket have not.
fn refused_without_a_length(world: &mut World, prepare: impl FnOnce(&mut World)) -> RequestId {
    let operation = Operation::Discard {
        offset: 8192,
        length: 8192,
        fua: Fua::No,
    };
    let discards = |effect: &Effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Discard { .. },
                ..
            }
        )
    };
    world.advance(Duration::from_secs(1));
    let before = world.nodes[A].log.len();
    world.fail(B, discards);
    // An epoch that ends while the disk of B is being closed would cost the link, and that has everything marked.
    world.hold(
        A,
        |effect| matches!(effect, Effect::Send { head, .. } if head[6..8] == BARRIER.to_be_bytes()),
    );
    let mut meta = None;
    world.hold(B, move |effect| {
        let Effect::Send { socket, head, .. } = effect else {
            return false;
        };
        if head[6..8] == NEG_ACK.to_be_bytes() {
            meta = Some(*socket);
        }
        meta == Some(*socket)
    });
    let id = world.request(A, operation);
    prepare(world);
    world.run_until("the peer has lost its disk", |world| {
        world.state(A).pdsk == DiskState::Diskless
    });
    let mut changed = 0;
    world.change_held(B, |effect| {
        if let Effect::Send { head, .. } = effect
            && head[6..8] == NEG_ACK.to_be_bytes()
        {
            let mut bytes = head.to_vec();
            assert_eq!(bytes[32..36], 8192_u32.to_be_bytes());
            bytes[32..36].fill(0);
            *head = bytes.into();
            changed += 1;
        }
    });
    assert_eq!(changed, 1);
    assert_eq!(world.held(A), 1);
    world.release(A);
    world.release(B);
    world.heal_disk(B);
    let lost = |line: &String| line.contains("Unconnected");
    assert!(!world.nodes[A].log.iter().skip(before).any(lost));
    id
}

#[test]
fn a_discard_that_a_peer_without_a_disk_refuses_without_a_length_is_copied_later() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&protocol(letter));
        world.write_ok(A, 0, 65536, 1);
        let id = refused_without_a_length(&mut world, |_| ());
        world.run_until("it is answered", |world| answered(world, id));
        assert!(world.reply(A, id).unwrap().is_ok());
        assert!(world.out_of_sync(A) >= 8, "{letter:?}");
        world.ok(B, Command::Attach { volume: VOLUME });
        world.run_until("both are in sync", |world| {
            world.state(A).pdsk == DiskState::UpToDate
                && world.state(A).conn == ConnState::Connected
        });
        same_data(&world);
    }
}

#[test]
fn a_refusal_that_comes_after_its_reason_costs_no_link_while_io_is_suspended() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 65536, 1);
    let id = refused_without_a_length(&mut world, |world| {
        world.ok(A, Command::SuspendIo { volume: VOLUME });
    });
    for _ in 0..60 {
        world.advance(Duration::from_secs(1));
        assert_eq!(world.state(A).conn, ConnState::Connected);
    }
    let gave_up = |line: &String| line.contains("did not tell why");
    assert!(!world.nodes[A].log.iter().any(gave_up));
    assert!(!answered(&world, id));
    world.ok(A, Command::ResumeIo { volume: VOLUME });
    world.run_until("it is answered", |world| answered(world, id));
    assert!(world.reply(A, id).unwrap().is_ok());
    assert_eq!(world.out_of_sync(A), 8);
}

#[test]
fn a_forced_detach_of_a_disk_that_hangs_frees_the_peers_flush() {
    let mut world = World::ready(&protocol(Protocol::C));
    world.write_ok(A, 0, 4096, 1);
    world.hold(B, flushes_data);
    let id = world.request(A, Operation::Flush);
    world.run_until("the peer flushes", |world| world.held(B) == 1);
    world.command(
        B,
        Command::Detach {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.run_until("the flush is answered", |world| answered(world, id));
    assert_eq!(world.nodes[A].disk.durable[0], 1);
    assert!(world.held(B) > 0, "the disk still hangs");
}

#[test]
fn a_write_that_is_answered_while_its_disk_comes_back_does_not_forbid_the_disk_later() {
    let mut world = World::ready(&protocol(Protocol::C));
    let detach = |force| Command::Detach {
        volume: VOLUME,
        force,
    };
    world.ok(A, detach(Force::No));
    world.hold(B, writes_data);
    let id = world.write(A, 0, 4096, 1);
    world.run_until("the peer writes", |world| world.held(B) == 1);
    world.command(A, Command::Attach { volume: VOLUME });
    world.run_until("the disk takes part again", |world| {
        world.state(A).disk >= DiskState::Inconsistent
    });
    world.release(B);
    world.run_until("the write is answered", |world| answered(world, id));
    world.run_until("both are in sync", |world| {
        world.state(A).disk == DiskState::UpToDate && world.state(A).conn == ConnState::Connected
    });
    world.cut_network();
    world.run_until("the peer is lost", |world| {
        world.state(A).conn < ConnState::Connected
    });
    world.ok(A, detach(Force::Yes));
    world.ok(A, Command::Attach { volume: VOLUME });
    assert_eq!(world.read_ok(A, 0, 1)[0], 1);
}

#[test]
fn a_long_row_of_writes_that_wait_for_each_other_fails_at_once_when_the_disk_is_lost() {
    let mut world = World::alone();
    world.ok(A, Command::Attach { volume: VOLUME });
    world.ok(
        A,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.hold(A, writes_data);
    let ids: Vec<_> = (0..4_000).map(|_| world.write(A, 700, 1, 1)).collect();
    assert_eq!(world.held(A), 1);
    world.command(
        A,
        Command::Detach {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.run_until("all are answered", |world| {
        ids.iter().all(|id| answered(world, *id))
    });
    assert_eq!(world.reply(A, ids[3_999]), Some(&Err(RequestError::Io)));
}
