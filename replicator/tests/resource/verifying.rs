//! Online verify: planted differences are found, marked and told on both nodes, and nobody's write is taken for one.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Command, DiskOperation, DiskOptions, Effect, Force, NetOptions, OnIoError, Protocol,
};

use crate::harness::{VOLUME, World, protocol};
use crate::resyncing::{check_equal, slow, wait_synced};

const OV_REQUEST: u16 = 0x1e;
const OV_REPLY: u16 = 0x1f;
const BARRIER_ACK: u16 = 0x1c;

fn with_verify(letter: Protocol) -> NetOptions {
    NetOptions {
        verify_alg: String::from("crc32c"),
        ..protocol(letter)
    }
}

fn ready(letter: Protocol) -> World {
    let mut world = World::small(&with_verify(letter), 8 << 20);
    world.write_ok(0, 0, 65_536, 1);
    world.advance(Duration::from_secs(1));
    world
}

fn verify(start: Option<u64>, stop: Option<u64>) -> Command {
    let volume = VOLUME;
    Command::Verify {
        volume,
        start,
        stop,
    }
}

/// A difference behind the engine's back.
fn plant(world: &mut World, node: usize, block: u64) {
    world.nodes[node].disk.put(block * 4096 + 100, &[0xEE; 3]);
}

fn is_over(world: &World) -> bool {
    (0..2).all(|node| world.state(node).conn == ConnState::Connected)
}

fn wait_over(world: &mut World) {
    world.run_until("the verify is over", is_over);
    world.advance(Duration::from_millis(10));
}

fn is_command(command: u16) -> impl FnMut(&Effect) -> bool + 'static {
    move |effect| {
        matches!(effect, Effect::Send { head, .. }
            if head.len() >= 16 && u16::from_be_bytes([head[6], head[7]]) == command)
    }
}

fn first_sector_asked(world: &World, node: usize, since: usize) -> Option<u64> {
    let mut asks = is_command(OV_REQUEST);
    world.nodes[node].history[since..]
        .iter()
        .find(|effect| asks(effect))
        .map(|effect| match effect {
            Effect::Send { head, .. } => u64::from_be_bytes(head[16..24].try_into().unwrap()),
            _ => 0,
        })
}

fn told(world: &World, node: usize, words: &str) -> bool {
    world.nodes[node]
        .log
        .iter()
        .any(|line| line.contains(words))
}

#[test]
fn equal_disks_have_no_difference() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        for starter in 0..2 {
            let mut world = ready(letter);
            world.ok(starter, verify(None, None));
            assert_eq!(world.state(starter).conn, ConnState::VerifyS);
            assert_eq!(world.state(1 - starter).conn, ConnState::VerifyT);
            wait_over(&mut world);
            for node in 0..2 {
                assert_eq!(world.out_of_sync(node), 0);
                assert!(told(&world, node, "online verify done"), "{node}");
                assert!(!world.nodes[node].handlers.contains(&"out-of-sync"));
            }
        }
    }
}

#[test]
fn planted_differences_are_marked_told_and_copied_by_the_next_resync() {
    for starter in 0..2 {
        let mut world = ready(Protocol::C);
        let bytes = world.nodes[0].resource.status().volumes[0].bytes;
        let last = bytes.div_ceil(4096) - 1;
        for block in [0, 100, 101, 102, last] {
            plant(&mut world, 1, block);
        }
        world.ok(starter, verify(None, None));
        wait_over(&mut world);
        for node in 0..2 {
            assert_eq!(world.out_of_sync(node), 20, "node {node}");
            assert!(told(&world, node, "out of sync: start=0, size=8 (sectors)"));
            assert!(told(
                &world,
                node,
                "out of sync: start=800, size=24 (sectors)"
            ));
            assert!(told(&world, node, "found 5 blocks of 4 KiB out of sync"));
            assert!(world.nodes[node].handlers.contains(&"out-of-sync"));
            let state = world.state(node);
            assert_eq!(state.disk, DiskState::UpToDate);
        }
        let force = Force::No;
        world.ok(1, Command::Disconnect { force });
        world.connect(1, &with_verify(Protocol::C));
        world.run_until("both are connected", |world| {
            (0..2).all(|node| world.state(node).conn >= ConnState::Connected)
        });
        wait_synced(&mut world);
        check_equal(&world);
    }
}

#[test]
fn writes_of_the_application_meanwhile_are_no_differences() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        for starter in 0..2 {
            let mut world = ready(letter);
            slow(&mut world);
            world.ok(starter, verify(None, None));
            let blocks = world.nodes[0].resource.status().volumes[0].bytes / 4096 - 4;
            for round in 0..120_u64 {
                let offset = (round * 7919 % blocks) * 4096 + (round % 3) * 512;
                world.write(0, offset, 4096 + (round as usize % 5) * 1024, round as u8);
                // Right at, before and behind the place that is being compared.
                let near = round * 33 % blocks;
                world.write(0, near * 4096, 8192, 255 - round as u8);
                world.advance(Duration::from_millis(30));
            }
            wait_over(&mut world);
            for node in 0..2 {
                assert_eq!(world.out_of_sync(node), 0, "{letter:?} {starter} {node}");
            }
            check_equal(&world);
        }
    }
}

#[test]
fn a_write_between_the_two_reads_waits() {
    for starter in 0..2 {
        let mut world = ready(Protocol::C);
        let target = 1 - starter;
        world.hold(target, is_command(OV_REPLY));
        world.ok(starter, verify(Some(0), None));
        world.run_until("a digest is on its way", |world| world.held(target) > 0);
        let id = world.write(0, 0, 4096, 99);
        world.advance(Duration::from_millis(100));
        assert_eq!(world.reply(0, id), None);
        world.release(target);
        wait_over(&mut world);
        assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
        assert_eq!(world.out_of_sync(0), 0);
        check_equal(&world);
    }
}

#[test]
fn a_node_promoted_or_demoted_meanwhile_makes_no_difference() {
    let mut world = ready(Protocol::C);
    slow(&mut world);
    world.ok(1, verify(None, None));
    let volume = VOLUME;
    for round in 0..6_u8 {
        let (old, new) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        world.ok(old, Command::Secondary { volume });
        world.primary(new);
        for at in 0..20_u64 {
            world.write(
                new,
                (at * 97 + u64::from(round) * 31) % 1900 * 4096,
                4096,
                round,
            );
            world.advance(Duration::from_millis(15));
        }
        world.advance(Duration::from_millis(50));
    }
    wait_over(&mut world);
    assert_eq!(world.state(0).role, Role::Primary);
    for node in 0..2 {
        assert_eq!(world.out_of_sync(node), 0);
    }
    check_equal(&world);
}

#[test]
fn a_verify_that_is_stopped_goes_on_where_it_was() {
    let mut world = ready(Protocol::C);
    slow(&mut world);
    let volume = VOLUME;
    world.ok(0, verify(None, None));
    world.advance(Duration::from_millis(500));
    let refused = world.answer(1, Command::VerifyStop { volume });
    assert_ne!(refused.exit, 0, "the other node drives it");
    let status = world.nodes[0].resource.status().volumes[0].resync.unwrap();
    assert!(status.left > 0 && status.left < status.total, "{status:?}");
    world.ok(0, Command::VerifyStop { volume });
    wait_over(&mut world);
    assert!(told(&world, 0, "online verify stopped"));
    assert!(told(&world, 1, "online verify stopped"));
    for starter in [0, 1] {
        let since = world.nodes[starter].history.len();
        world.ok(starter, verify(None, None));
        wait_over(&mut world);
        let start = first_sector_asked(&world, starter, since).unwrap();
        assert!(start > 0 || starter == 1, "{start}");
    }
    let since = world.nodes[0].history.len();
    world.ok(0, verify(None, None));
    wait_over(&mut world);
    assert_eq!(
        first_sector_asked(&world, 0, since),
        Some(0),
        "after a complete one"
    );
}

#[test]
fn a_lost_link_ends_it_and_its_position_is_kept_on_both_nodes() {
    for starter in 0..2 {
        let mut world = ready(Protocol::C);
        slow(&mut world);
        world.ok(0, verify(Some(160), None));
        world.advance(Duration::from_millis(700));
        world.hold(0, |effect| {
            matches!(
                effect,
                Effect::Disk {
                    operation: DiskOperation::Read { .. },
                    ..
                }
            )
        });
        world.advance(Duration::from_millis(300));
        let write = world.write(0, 4096, 4096, 8);
        world.cut_network();
        world.release(0);
        world.join();
        world.run_until("the write is answered", |world| {
            world.reply(0, write).is_some()
        });
        wait_synced(&mut world);
        assert!(told(&world, starter, "the next one starts there"));
        let since = world.nodes[starter].history.len();
        world.ok(starter, verify(None, None));
        wait_over(&mut world);
        assert!(first_sector_asked(&world, starter, since).unwrap() > 160);
        assert_eq!(world.out_of_sync(0), 0);
        check_equal(&world);
    }
}

#[test]
fn start_and_stop_bound_it() {
    let mut world = ready(Protocol::C);
    for block in [10, 20, 30] {
        plant(&mut world, 1, block);
    }
    let since = world.nodes[0].history.len();
    world.ok(0, verify(Some(15 * 8 + 3), Some(25 * 8)));
    wait_over(&mut world);
    assert_eq!(first_sector_asked(&world, 0, since), Some(15 * 8));
    for node in 0..2 {
        assert_eq!(world.out_of_sync(node), 4);
    }
}

#[test]
fn it_is_refused_where_there_is_nothing_to_compare() {
    let mut world = World::small(&protocol(Protocol::C), 16 << 20);
    let answer = world.answer(0, verify(None, None));
    assert_eq!((answer.number, answer.exit), (-14, 11));
    assert!(answer.hint.is_some());
    let mut world = World::connected(&with_verify(Protocol::C));
    let answer = world.answer(0, verify(None, None));
    assert_eq!(answer.number, -2, "both are Inconsistent");
    assert_eq!(world.state(0).disk, DiskState::Inconsistent);
    let mut world = ready(Protocol::C);
    world.cut_network();
    world.run_until("it noticed", |world| {
        world.state(0).conn < ConnState::Connected
    });
    let answer = world.answer(0, verify(None, None));
    assert_eq!((answer.number, answer.exit), (-15, 11));
}

#[test]
fn a_block_that_cannot_be_read_is_never_taken_for_equal() {
    for node in 0..2 {
        let mut world = ready(Protocol::C);
        let options = DiskOptions {
            on_io_error: OnIoError::PassOn,
            ..DiskOptions::default()
        };
        for node in 0..2 {
            let (volume, options) = (VOLUME, options.clone());
            world.ok(node, Command::DiskOptions { volume, options });
        }
        world.fail(node, |effect| {
            matches!(effect, Effect::Disk { operation: DiskOperation::Read { offset, .. }, .. }
                if *offset == 40 * 4096)
        });
        world.ok(0, verify(None, None));
        wait_over(&mut world);
        let marked = world.out_of_sync(0).max(world.out_of_sync(1));
        assert!(marked >= 4, "node {node}: {marked}");
    }
}

#[test]
fn a_disk_that_is_detached_ends_it() {
    let mut world = ready(Protocol::C);
    slow(&mut world);
    world.ok(0, verify(None, None));
    world.advance(Duration::from_millis(300));
    let (volume, force) = (VOLUME, Force::No);
    world.ok(1, Command::Detach { volume, force });
    world.run_until("it is over", is_over);
    world.write_ok(0, 0, 65_536, 5);
    world.ok(1, Command::Attach { volume });
    wait_synced(&mut world);
    check_equal(&world);
}

/// Protocol A, and the peer is taken for a kernel. Barrier acks of node 1 are held back from now on.
fn before_a_kernel_confirms() -> World {
    let mut world = World::pair();
    world.kernels = true;
    for node in &mut world.nodes {
        node.disk = crate::harness::Disk::fresh(8 << 20);
    }
    world.make_ready(&with_verify(Protocol::A));
    world.hold(1, is_command(BARRIER_ACK));
    world
}

#[test]
fn a_primary_asks_a_kernel_for_no_digest_of_a_block_that_it_has_not_confirmed() {
    let mut world = before_a_kernel_confirms();
    world.write_ok(0, 0, 4096, 7);
    let since = world.nodes[0].history.len();
    world.ok(0, verify(None, Some(64)));
    world.advance(Duration::from_secs(1));
    // A kernel counts from the first block that it is asked for: the others wait with it.
    assert_eq!(first_sector_asked(&world, 0, since), None);
    assert_eq!(world.state(0).conn, ConnState::VerifyS);
    world.release(1);
    wait_over(&mut world);
    assert_eq!(first_sector_asked(&world, 0, since), Some(0));
    assert!(told(&world, 0, "0 of 8 blocks differ"));
}

#[test]
fn a_primary_gives_a_kernel_no_digest_of_a_block_that_it_has_not_confirmed() {
    let mut world = before_a_kernel_confirms();
    world.write_ok(0, 0, 4096, 7);
    let since = world.nodes[0].history.len();
    world.ok(1, verify(None, Some(64)));
    world.advance(Duration::from_secs(1));
    let replies = |world: &World| {
        let mut replies = is_command(OV_REPLY);
        let history = world.nodes[0].history[since..].iter();
        history.filter(|effect| replies(effect)).count()
    };
    assert_eq!(replies(&world), 7);
    world.release(1);
    wait_over(&mut world);
    assert_eq!(replies(&world), 8);
    assert!(told(&world, 1, "0 of 8 blocks differ"));
}

/// A target that is asked for the second block first counts one too few, and ends before the last result.
#[test]
fn blocks_behind_one_that_waits_for_a_write_are_asked_for_after_it() {
    for starter in 0..2 {
        let mut world = ready(Protocol::C);
        world.hold(1, crate::harness::writes_data);
        let id = world.write(0, 0, 4096, 7);
        let since = world.nodes[starter].history.len();
        world.ok(starter, verify(Some(0), None));
        world.advance(Duration::from_secs(1));
        world.release(1);
        wait_over(&mut world);
        assert_eq!(first_sector_asked(&world, starter, since), Some(0));
        assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
        for node in 0..2 {
            assert!(told(&world, node, "online verify done"), "{node}");
            assert!(!told(&world, node, "could not be compared"), "{node}");
            assert!(!told(&world, node, "online verify stopped"), "{node}");
        }
    }
}

#[test]
fn a_verify_stops_although_a_block_waits_for_a_write() {
    let mut world = before_a_kernel_confirms();
    world.write_ok(0, 0, 4096, 7);
    let volume = VOLUME;
    world.ok(0, verify(None, None));
    world.advance(Duration::from_millis(50));
    world.ok(0, Command::VerifyStop { volume });
    wait_over(&mut world);
    assert!(told(&world, 0, "reached sector 0 of"));
    let id = world.write(0, 0, 4096, 8);
    world.settle();
    assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn garbage_in_place_of_a_digest_never_panics(
        at in 16..44_usize, value in 1..=255_u8,
    ) {
        let mut world = World::small(&with_verify(Protocol::C), 8 << 20);
        world.hold(1, is_command(OV_REPLY));
        world.command(0, verify(None, None));
        world.advance(Duration::from_millis(150));
        prop_assert!(world.held(1) > 0);
        let mut changed = false;
        world.change_held(1, |effect| {
            if let Effect::Send { head, .. } = effect
                && !std::mem::replace(&mut changed, true)
            {
                let mut bytes = BytesMut::from(&head[..]);
                bytes[at] ^= value;
                *head = bytes.freeze();
            }
        });
        world.release(1);
        // A digest that is wrong is a difference, a block that nobody asked about ends the connection.
        world.advance(Duration::from_secs(30));
        let id = world.write(0, 0, 4096, 9);
        world.run_until("clients are served", |world| world.reply(0, id).is_some());
        prop_assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
    }
}
