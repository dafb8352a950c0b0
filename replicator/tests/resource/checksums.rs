//! `csums-alg`: blocks that are equal on both nodes are found by their checksums and not sent again.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tandem_replicator::state::word::{ConnState, Role};
use tandem_replicator::{Command, DiskOperation, Effect, NetOptions, Protocol};

use crate::harness::{VOLUME, World, protocol, writes_data};
use crate::resyncing::{check_equal, cut_and_write, scramble, slow, wait_synced};

const MIB: u64 = 1 << 20;

fn with_csums(letter: Protocol) -> NetOptions {
    NetOptions {
        csums_alg: String::from("sha1"),
        ..protocol(letter)
    }
}

/// Bytes of payload that a node sent with packets of one command.
pub fn payload_sent(world: &World, node: usize, command: u16) -> usize {
    let history = world.nodes[node].history.iter();
    history
        .map(|effect| match effect {
            Effect::Send {
                head,
                payload: Some(payload),
                ..
            } if head.len() >= 16 && u16::from_be_bytes([head[6], head[7]]) == command => {
                payload.len()
            }
            _ => 0,
        })
        .sum()
}

/// Packets of one command that a node sent.
pub fn count_sent(world: &World, node: usize, command: u16) -> usize {
    let history = world.nodes[node].history.iter();
    history
        .filter(|effect| {
            matches!(effect, Effect::Send { head, .. }
                if head.len() >= 16 && u16::from_be_bytes([head[6], head[7]]) == command)
        })
        .count()
}

const RS_DATA_REPLY: u16 = 0x02;
const RS_DATA_REQUEST: u16 = 0x09;
const CSUM_RS_REQUEST: u16 = 0x21;
const RS_IS_IN_SYNC: u16 = 0x22;
const BARRIER_ACK: u16 = 0x1c;

#[test]
fn only_the_blocks_that_differ_are_sent() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&with_csums(letter));
        world.write_ok(0, MIB, 65_536, 3);
        world.advance(Duration::from_secs(1));
        let planted = 5 * MIB as usize + 4096;
        world.nodes[1].disk.put(planted as u64, &[77; 4096]);
        world.ok(0, Command::InvalidateRemote { volume: VOLUME });
        wait_synced(&mut world);
        check_equal(&world);
        assert_eq!(world.nodes[1].disk.current[planted], 0);
        let sent = payload_sent(&world, 0, RS_DATA_REPLY);
        assert!((4096..=256 << 10).contains(&sent), "{sent}");
        assert_eq!(count_sent(&world, 1, RS_DATA_REQUEST), 0);
        assert!(count_sent(&world, 1, CSUM_RS_REQUEST) > 0);
        assert!(count_sent(&world, 0, RS_IS_IN_SYNC) > 0);
        let told = |line: &String| line.contains("had equal checksums");
        for node in 0..2 {
            assert!(world.nodes[node].log.iter().any(told), "node {node}");
        }
    }
}

#[test]
fn everything_that_differs_is_copied() {
    let mut world = World::ready(&with_csums(Protocol::C));
    scramble(&mut world);
    world.ok(1, Command::Invalidate { volume: VOLUME });
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn the_application_writes_on_the_source_meanwhile() {
    for letter in [Protocol::A, Protocol::C] {
        let mut world = World::ready(&with_csums(letter));
        slow(&mut world);
        world.ok(0, Command::InvalidateRemote { volume: VOLUME });
        world.run_until("the target asks", |world| {
            world.state(1).conn == ConnState::SyncTarget
        });
        for round in 0..300_u64 {
            let offset = (round * 7919 % 4096) * 4096 + (round % 3) * 512;
            world.write(0, offset, 4096 + (round as usize % 5) * 1024, round as u8);
            world.advance(Duration::from_millis(30));
        }
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn the_application_writes_on_a_primary_target() {
    let mut world = World::ready(&with_csums(Protocol::C));
    slow(&mut world);
    world.write_ok(0, 0, 65_536, 9);
    world.ok(0, Command::Invalidate { volume: VOLUME });
    world.run_until("node 0 is target", |world| {
        world.state(0).conn == ConnState::SyncTarget
    });
    assert_eq!(world.state(0).role, Role::Primary);
    for round in 0..300_u64 {
        let offset = (round * 6007 % 4096) * 4096 + (round % 7) * 512;
        world.write_ok(0, offset, 4096, round as u8);
        assert_eq!(
            world.read_ok(0, offset, 4096),
            Bytes::from(vec![round as u8; 4096])
        );
        world.advance(Duration::from_millis(20));
    }
    wait_synced(&mut world);
    check_equal(&world);
}

#[test]
fn equal_blocks_are_flushed_before_their_bits_are_cleared() {
    let mut world = World::ready(&with_csums(Protocol::C));
    cut_and_write(&mut world, &[(0, 5)]);
    // As an interrupted resync leaves it: the block is in the cache of the disk, and no flush has covered it.
    let block = Bytes::from(vec![5; 8192]);
    world.nodes[1]
        .disk
        .write(0, &block, tandem_replicator::Fua::No);
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
    assert_eq!(payload_sent(&world, 0, RS_DATA_REPLY), 0);
    world.nodes[1].disk.cut_power();
    assert_eq!(world.nodes[1].disk.current[..8192], [5; 8192]);
}

#[test]
fn a_block_of_the_target_that_cannot_be_read_is_asked_for_as_a_whole() {
    let mut world = World::ready(&with_csums(Protocol::C));
    let options = tandem_replicator::DiskOptions {
        on_io_error: tandem_replicator::OnIoError::PassOn,
        ..tandem_replicator::DiskOptions::default()
    };
    let volume = VOLUME;
    world.ok(1, Command::DiskOptions { volume, options });
    cut_and_write(&mut world, &[(MIB, 5)]);
    world.fail(1, |effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Read { .. },
                ..
            }
        )
    });
    world.join();
    wait_synced(&mut world);
    assert!(count_sent(&world, 1, RS_DATA_REQUEST) > 0);
    check_equal(&world);
}

#[test]
fn after_crash_only_means_not_after_a_lost_link() {
    let net = NetOptions {
        csums_after_crash_only: true,
        ..with_csums(Protocol::C)
    };
    let mut world = World::ready(&net);
    cut_and_write(&mut world, &[(0, 5)]);
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
    assert_eq!(count_sent(&world, 1, CSUM_RS_REQUEST), 0);
    assert!(count_sent(&world, 1, RS_DATA_REQUEST) > 0);
}

#[test]
fn a_lost_link_while_blocks_are_compared_loses_nothing() {
    let mut world = World::ready(&with_csums(Protocol::C));
    slow(&mut world);
    scramble(&mut world);
    world.ok(0, Command::InvalidateRemote { volume: VOLUME });
    for round in 0..5 {
        world.run_until("the target asks", |world| {
            world.state(1).conn == ConnState::SyncTarget
        });
        world.hold(1, move |effect| match effect {
            Effect::Disk {
                operation: DiskOperation::Read { .. },
                ..
            } => round % 2 == 0,
            other => round % 2 == 1 && writes_data(other),
        });
        world.advance(Duration::from_millis(300));
        world.cut_network();
        world.release(1);
        world.join();
    }
    wait_synced(&mut world);
    check_equal(&world);
}

/// Asked before it has written what it received, the kernel would answer with what was there before.
#[test]
fn a_primary_target_asks_a_kernel_for_no_block_that_it_has_not_confirmed() {
    for net in [protocol(Protocol::A), with_csums(Protocol::A)] {
        let mut world = World::pair();
        world.kernels = true;
        for node in &mut world.nodes {
            node.disk = crate::harness::Disk::fresh(8 << 20);
        }
        world.make_ready(&net);
        world.hold(1, |effect| {
            matches!(effect, Effect::Send { head, .. }
                if head.len() >= 16 && u16::from_be_bytes([head[6], head[7]]) == BARRIER_ACK)
        });
        world.write_ok(0, MIB, 4096, 7);
        world.ok(0, Command::Invalidate { volume: VOLUME });
        world.advance(Duration::from_secs(3));
        assert_eq!(
            world.state(0).conn,
            ConnState::SyncTarget,
            "{:#?}",
            world.nodes[0].log
        );
        let left = world.out_of_sync(0);
        assert!((4..=1024).contains(&left), "{left}");
        world.release(1);
        wait_synced(&mut world);
        check_equal(&world);
        assert_eq!(world.nodes[0].disk.current[MIB as usize], 7);
    }
}

#[test]
fn blocks_that_were_equal_do_not_count_as_sent_when_the_link_is_lost() {
    let mut world = World::small(&with_csums(Protocol::C), 8 << 20);
    slow(&mut world);
    world.cut_network();
    world.run_until("the link is gone", |world| {
        world.state(0).conn < ConnState::Connected
    });
    for at in 0..4 {
        world.write_ok(0, at * MIB, MIB as usize, 5);
    }
    // The last quarter differs: when the link is lost again, the target is far from being done.
    world.nodes[1].disk.put(0, &vec![5; 3 << 20]);
    world.join();
    world.run_until("what is equal is compared", |world| {
        world.state(0).conn == ConnState::SyncSource && world.out_of_sync(0) < 1400
    });
    let current = world.uuids(0)[0] & !1;
    world.cut_network();
    world.run_until("the source notices", |world| {
        world.state(0).conn < ConnState::Connected
    });
    world.advance(Duration::from_millis(100));
    assert_eq!(world.uuids(0)[0] & !1, current, "no new generation");
    world.join();
    wait_synced(&mut world);
    check_equal(&world);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn garbage_in_place_of_a_digest_never_panics_and_the_block_is_sent(
        at in 40..60_usize, value in 1..=255_u8,
    ) {
        let mut world = World::small(&with_csums(Protocol::C), 8 << 20);
        cut_and_write(&mut world, &[(0, 5)]);
        let is_request = |effect: &Effect| {
            matches!(effect, Effect::Send { head, .. }
                if head.len() >= 60 && u16::from_be_bytes([head[6], head[7]]) == CSUM_RS_REQUEST)
        };
        world.hold(1, is_request);
        world.join();
        world.run_until("a digest is on its way", |world| world.held(1) > 0);
        world.change_held(1, |effect| {
            if let Effect::Send { head, .. } = effect {
                let mut bytes = BytesMut::from(&head[..]);
                bytes[at] ^= value;
                *head = bytes.freeze();
            }
        });
        world.release(1);
        wait_synced(&mut world);
        check_equal(&world);
    }
}
