//! `resize`: both disks have grown, one of them, or none; with and without a peer.

use std::time::Duration;

use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{
    Answer, Command, DiskOptions, Effect, Force, NetOptions, NewArea, PeerRoom,
};

use crate::harness::{VOLUME, World, writes_superblock};

const BEFORE: u64 = 16 << 20;
const AFTER: u64 = 24 << 20;

fn resize(room: PeerRoom, area: NewArea) -> Command {
    Command::Resize {
        volume: VOLUME,
        size: 0,
        room,
        area,
    }
}

fn plain() -> Command {
    resize(PeerRoom::Asked, NewArea::Resync)
}

fn bytes(world: &World, node: usize) -> u64 {
    world.nodes[node].resource.status().volumes[0].bytes
}

/// A synchronised pair with external metadata; node 0 is Primary.
fn ready() -> World {
    let mut world = World::pair();
    for node in &mut world.nodes {
        node.with_external_metadata(BEFORE);
    }
    world.make_ready(&NetOptions::default());
    world
}

fn grow(world: &mut World, nodes: &[usize]) {
    for node in nodes {
        world.nodes[*node].grow_data(AFTER);
    }
}

fn until_synced(world: &mut World) {
    world.run_until("both are in sync", |world| {
        (0..2).all(|node| {
            let state = world.state(node);
            state.conn == ConnState::Connected
                && state.disk == DiskState::UpToDate
                && world.out_of_sync(node) == 0
        })
    });
}

fn says(answer: &Answer, words: &str) -> bool {
    answer.info.iter().any(|line| line.contains(words))
}

#[test]
fn the_device_grows_on_both_nodes_and_the_new_area_is_copied_from_the_primary() {
    for asked in 0..2 {
        let mut world = ready();
        grow(&mut world, &[0, 1]);
        world.nodes[0]
            .data
            .as_mut()
            .unwrap()
            .put(20 << 20, &[7; 4096]);
        let answer = world.answer(asked, plain());
        assert_eq!(answer.exit, 0, "{answer:?}");
        assert!(says(&answer, "25165824 bytes (had 16777216)"), "{answer:?}");
        until_synced(&mut world);
        assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
        assert_eq!(world.nodes[0].served, Some(AFTER));
        let copied = world.nodes[1].data.as_ref().unwrap();
        assert_eq!(copied.current[20 << 20], 7, "asked on node {asked}");
        assert_eq!(world.nodes[1].disk.superblock().la_size.0 * 512, AFTER);
        world.write_ok(0, AFTER - 4096, 4096, 3);
        let written = world.nodes[1].data.as_ref().unwrap();
        assert_eq!(written.current[AFTER as usize - 1], 3);
    }
}

#[test]
fn the_new_area_is_left_alone_if_an_administrator_says_that_it_is_clean() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    let answer = world.answer(0, resize(PeerRoom::Asked, NewArea::AssumeClean));
    assert_eq!(answer.exit, 0, "{answer:?}");
    world.settle();
    for node in 0..2 {
        assert_eq!(bytes(&world, node), AFTER);
        assert_eq!(world.state(node).conn, ConnState::Connected);
        assert_eq!(world.out_of_sync(node), 0);
        assert_eq!(world.nodes[node].disk.bits_durable(), 0);
    }
    world.write_ok(0, AFTER - 4096, 4096, 3);
    assert_eq!(
        world.nodes[1].data.as_ref().unwrap().current[AFTER as usize - 1],
        3
    );
}

#[test]
fn a_peer_whose_disk_has_not_grown_keeps_the_device_as_it_is_and_is_named() {
    let mut world = ready();
    grow(&mut world, &[0]);
    let answer = world.answer(0, plain());
    assert_eq!((answer.number, answer.exit), (111, 10), "{answer:?}");
    assert!(says(&answer, "the peer's only 16777216"), "{answer:?}");
    assert!(answer.hint.is_some());
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (BEFORE, BEFORE));
    // The peer's disk follows: its administrator says so, and both grow.
    grow(&mut world, &[1]);
    world.ok(1, plain());
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
}

#[test]
fn without_anything_new_there_is_nothing_to_do() {
    let mut world = ready();
    let answer = world.answer(0, plain());
    assert_eq!(answer.exit, 0);
    assert!(says(&answer, "nothing to do"), "{answer:?}");
    assert_eq!(bytes(&world, 0), BEFORE);
}

#[test]
fn a_size_within_what_the_disks_offer_is_taken_and_a_smaller_one_refused() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    let sized = |size| Command::Resize {
        volume: VOLUME,
        size,
        room: PeerRoom::Asked,
        area: NewArea::Resync,
    };
    let too_large = world.answer(0, sized(AFTER * 2));
    assert_eq!((too_large.number, too_large.exit), (111, 10));
    let too_small = world.answer(0, sized(BEFORE / 2));
    assert_eq!((too_small.number, too_small.exit), (162, 10));
    assert!(says(&too_small, "would lose its end"), "{too_small:?}");
    world.ok(0, sized(20 << 20));
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (20 << 20, 20 << 20));
}

#[test]
fn clients_get_to_know_the_new_size_when_it_is_on_disk() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    let superblock = writes_superblock(&world.nodes[0].disk);
    world.hold(0, superblock);
    let id = world.command(0, plain());
    assert!(world.held(0) > 0);
    assert_eq!(world.nodes[0].served, Some(BEFORE));
    assert!(!world.nodes[0].answers.contains_key(&id));
    world.release(0);
    assert_eq!(world.nodes[0].served, Some(AFTER));
    assert_eq!(world.nodes[0].answers[&id].exit, 0);
}

#[test]
fn without_a_peer_nothing_grows_unless_its_room_is_vouched_for() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    world.cut_network();
    world.run_until("the loss is seen", |world| {
        world.state(0).peer == Role::Unknown
    });
    let refused = world.answer(0, plain());
    assert_eq!(refused.exit, 10, "{refused:?}");
    assert_eq!(bytes(&world, 0), BEFORE);
    let clean = world.answer(0, resize(PeerRoom::Assumed, NewArea::AssumeClean));
    assert_eq!((clean.number, clean.exit), (162, 10));
    world.ok(0, resize(PeerRoom::Assumed, NewArea::Resync));
    assert_eq!(bytes(&world, 0), AFTER);
    world.write_ok(0, AFTER - 4096, 4096, 5);
    let secondary = world.answer(1, resize(PeerRoom::Assumed, NewArea::Resync));
    assert_eq!((secondary.number, secondary.exit), (131, 10));
}

#[test]
fn a_resync_and_a_pair_of_secondaries_refuse_it() {
    let mut world = ready();
    world.ok(0, Command::Secondary { volume: VOLUME });
    let answer = world.answer(0, plain());
    assert_eq!((answer.number, answer.exit), (131, 10));
    world.hold(0, |effect| matches!(effect, Effect::Disk { .. }));
    world.ok(1, Command::Invalidate { volume: VOLUME });
    world.run_until("a resync runs", |world| {
        world.state(0).conn == ConnState::SyncSource
    });
    let answer = world.answer(0, plain());
    assert_eq!((answer.number, answer.exit), (130, 10));
    world.release(0);
}

#[test]
fn a_command_whose_link_breaks_is_answered() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    world.hold(1, |effect| matches!(effect, Effect::MeasureBacking { .. }));
    let id = world.command(0, plain());
    assert!(!world.nodes[0].answers.contains_key(&id));
    world.cut_network();
    world.advance(Duration::from_secs(1));
    let answer = &world.nodes[0].answers[&id];
    assert_eq!((answer.number, answer.exit), (-18, 11), "{answer:?}");
    world.release(1);
    assert_eq!(bytes(&world, 1), BEFORE, "nobody is left who asked");
}

#[test]
fn a_peer_that_does_not_answer_does_not_hold_the_command_for_ever() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    world.hold(1, |effect| matches!(effect, Effect::MeasureBacking { .. }));
    let id = world.command(0, plain());
    world.advance(Duration::from_secs(61));
    let answer = world.nodes[0].answers[&id].clone();
    assert_eq!(answer.exit, 11, "{answer:?}");
    // It answers at last: both grow as they would have.
    world.release(1);
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
}

/// Found by the simulator: the disk that was on its way out took the size of the other one, and could not be attached again.
#[test]
fn a_resize_that_crosses_a_detach_of_the_peer_leaves_its_disk_as_it_was() {
    for force in [Force::No, Force::Yes] {
        let mut world = ready();
        grow(&mut world, &[0]);
        world.hold(0, |effect| matches!(effect, Effect::MeasureBacking { .. }));
        let id = world.command(0, plain());
        // Its last words have to wait until the question is there.
        let superblock = writes_superblock(&world.nodes[1].disk);
        world.hold(1, move |effect| sends(effect) || superblock(effect));
        let volume = VOLUME;
        let detached = world.command(1, Command::Detach { volume, force });
        world.release(0);
        world.release(1);
        world.run_until("both are answered", |world| {
            world.nodes[0].answers.contains_key(&id)
                && world.nodes[1].answers.contains_key(&detached)
                && world.state(1).disk == DiskState::Diskless
        });
        let answer = world.nodes[0].answers[&id].clone();
        assert_ne!(answer.exit, 0, "{answer:?}");
        assert_eq!((bytes(&world, 0), bytes(&world, 1)), (BEFORE, BEFORE));
        world.ok(1, Command::Attach { volume });
        until_synced(&mut world);
        grow(&mut world, &[1]);
        world.ok(0, plain());
        until_synced(&mut world);
        assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
    }
}

fn sends(effect: &Effect) -> bool {
    matches!(effect, Effect::Send { .. })
}

#[test]
fn internal_metadata_that_would_have_to_move_refuse_it_in_words() {
    let mut world = World::ready(&NetOptions::default());
    let grown = world.nodes[0].disk.current.len() as u64 * 2;
    world.nodes[0].disk.grow(grown);
    let answer = world.answer(0, plain());
    assert_eq!((answer.number, answer.exit), (162, 10));
    assert!(
        says(&answer, "its metadata lies at its former end"),
        "{answer:?}"
    );
    assert!(answer.hint.unwrap().contains("check-resize"));
    // Asked by the peer, it says the same in its log and offers what it had.
    let answer = world.answer(1, plain());
    assert_eq!(answer.exit, 0, "{answer:?}");
    assert!(
        world.nodes[0]
            .log
            .iter()
            .any(|line| line.contains("former end"))
    );
    assert_eq!(world.state(0).conn, ConnState::Connected);
}

#[test]
fn without_a_disk_it_is_refused() {
    let mut world = ready();
    world.ok(
        1,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    let answer = world.answer(1, plain());
    assert_eq!((answer.number, answer.exit), (138, 10));
    let answer = world.answer(0, plain());
    assert_eq!((answer.number, answer.exit), (162, 10));
    assert!(says(&answer, "the peer has no disk"), "{answer:?}");
}

#[test]
fn growth_that_lost_its_power_on_the_way_is_complete_after_the_next_connection() {
    for writes in 0..4 {
        let mut world = ready();
        grow(&mut world, &[0, 1]);
        world.nodes[0]
            .data
            .as_mut()
            .unwrap()
            .put(20 << 20, &[7; 4096]);
        let mut left = writes;
        let superblock = writes_superblock(&world.nodes[1].disk);
        world.hold(1, move |effect| {
            if superblock(effect) && left > 0 {
                left -= 1;
                return false;
            }
            left == 0 && matches!(effect, Effect::Meta { .. })
        });
        world.command(0, plain());
        world.crash(1);
        world.ok(1, Command::Attach { volume: VOLUME });
        world.connect(1, &NetOptions::default());
        until_synced(&mut world);
        assert_eq!(
            (bytes(&world, 0), bytes(&world, 1)),
            (AFTER, AFTER),
            "{writes}"
        );
        let copied = world.nodes[1].data.as_ref().unwrap();
        assert_eq!(copied.current[20 << 20], 7, "{writes}");
    }
}

#[test]
fn new_options_of_an_attached_disk_leave_its_size_to_resize() {
    let mut world = ready();
    let options = DiskOptions {
        size: BEFORE / 2,
        resync_rate: 500,
        ..DiskOptions::default()
    };
    let volume = VOLUME;
    world.ok(0, Command::DiskOptions { volume, options });
    assert_eq!(bytes(&world, 0), BEFORE);
    grow(&mut world, &[0, 1]);
    world.ok(0, plain());
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
}

#[test]
fn clients_of_a_primary_get_to_know_what_an_attach_made_larger() {
    let mut world = ready();
    for node in [1, 0] {
        world.ok(
            node,
            Command::Detach {
                volume: VOLUME,
                force: Force::No,
            },
        );
        grow(&mut world, &[node]);
        world.ok(node, Command::Attach { volume: VOLUME });
        until_synced(&mut world);
    }
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
    assert_eq!(world.nodes[0].served, Some(AFTER));
}

#[test]
fn a_disk_that_grew_without_its_node_knowing_is_measured_before_the_next_connection() {
    let mut world = ready();
    grow(&mut world, &[0, 1]);
    world.cut_network();
    world.run_until("the loss is seen", |world| {
        world.state(0).peer == Role::Unknown
    });
    world.ok(0, resize(PeerRoom::Assumed, NewArea::Resync));
    world.write_ok(0, AFTER - 4096, 4096, 5);
    world.join();
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
    let copied = world.nodes[1].data.as_ref().unwrap();
    assert_eq!(copied.current[AFTER as usize - 4096], 5);
}

#[test]
fn a_peer_whose_disk_is_too_small_is_given_up_in_words_until_it_has_grown() {
    let mut world = ready();
    grow(&mut world, &[0]);
    world.cut_network();
    world.run_until("the loss is seen", |world| {
        world.state(0).peer == Role::Unknown
    });
    world.ok(0, resize(PeerRoom::Assumed, NewArea::Resync));
    world.join();
    let alone = |world: &World| world.state(0).conn == ConnState::StandAlone;
    world.run_until("the peer is given up", alone);
    let told = |world: &World, node: usize, words: &str| {
        world.nodes[node]
            .log
            .iter()
            .any(|line| line.contains(words))
    };
    assert!(told(
        &world,
        0,
        "let the peer's disk grow; then type: tandem adm connect"
    ));
    assert!(told(&world, 1, "this disk offers only 16777216"));
    grow(&mut world, &[1]);
    world.connect(0, &NetOptions::default());
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
}

#[test]
fn disks_that_grew_while_both_nodes_were_down_get_in_sync_with_the_next_connection() {
    let mut world = ready();
    world.ok(0, Command::Secondary { volume: VOLUME });
    grow(&mut world, &[0, 1]);
    for node in 0..2 {
        let force = Force::No;
        world.ok(node, Command::Down { force });
    }
    for node in 0..2 {
        world.ok(node, Command::Attach { volume: VOLUME });
        world.connect(node, &NetOptions::default());
    }
    until_synced(&mut world);
    assert_eq!((bytes(&world, 0), bytes(&world, 1)), (AFTER, AFTER));
}
