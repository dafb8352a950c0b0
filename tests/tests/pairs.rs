//! A world of two pairs: they share the clock, the queue and the network model, and nothing else. What befalls one leaves the other
//! alone, each has its own judge, and both end in sync and equal.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use tandem_metadata::Uuids;
use tandem_replicator::{Force, Protocol};
use tandem_tests::sim::clients::Habits;
use tandem_tests::sim::lab::{A, B, settings};
use tandem_tests::sim::network::MS;
use tandem_tests::sim::node::Node;
use tandem_tests::sim::pair::{nodes_of, pair_of, peer_of};
use tandem_tests::sim::{Settings, World};

/// The nodes of the second pair.
const C: usize = nodes_of(1)[0];
const D: usize = nodes_of(1)[1];

const PROTOCOLS: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

/// Virtual time within which something has to happen.
const LIMIT: u64 = 60_000 * MS;

/// Two pairs in sync; A and C are Primaries.
fn two_pairs(protocol: Protocol) -> World {
    let mut settings = Settings {
        pairs: 2,
        habits: Habits {
            depth: 4,
            pause: 5 * MS,
            sectors_max: 8,
            hot: 0,
            mix: [2, 6, 1, 1, 0, 0],
            odd: 4,
        },
        ..settings()
    };
    settings.net_options.protocol = protocol;
    let mut world = World::new(settings);
    for node in &mut world.nodes {
        node.create_metadata().unwrap();
        let uuids = Uuids {
            current: 0xc0c0_1234_5678_9a00 + 2 * pair_of(node.index) as u64,
            bitmap: 0,
            history: [0; 2],
        };
        node.set_generation(uuids).unwrap();
    }
    for node in [A, B, C, D] {
        world.up(node);
    }
    wait(&mut world, "all are in sync", |world| world.is_in_sync());
    for node in [A, C] {
        world.promote(node, Force::No);
    }
    wait(&mut world, "A and C are Primaries", |world| {
        world.nodes[A].is_primary() && world.nodes[C].is_primary()
    });
    world
}

/// The same, and their clients are busy.
fn two_busy_pairs(protocol: Protocol) -> World {
    let mut world = two_pairs(protocol);
    world.clients.quiet = false;
    world.wake_clients();
    wait(&mut world, "both Primaries are written to", |world| {
        acknowledged(world) > [20, 20]
    });
    world
}

fn wait(world: &mut World, what: &str, done: impl FnMut(&mut World) -> bool) {
    if let Err(why) = world.run_until(LIMIT, done) {
        panic!("{}\n{what}: {why}", world.trace.tail());
    }
}

/// Acknowledged writes of each pair, as its judge has them.
fn acknowledged(world: &World) -> [usize; 2] {
    [A, C].map(|node| world.oracle(node).counts().1)
}

/// No write of either pair was left without a good answer.
fn all_acknowledged(world: &World) -> bool {
    [A, C].into_iter().all(|node| {
        let (writes, acknowledged, _) = world.oracle(node).counts();
        // What was there before the first write counts as one.
        acknowledged == writes + 1
    })
}

/// Histories of each pair.
fn histories(world: &World) -> [usize; 2] {
    [A, C].map(|node| world.oracle(node).counts().2)
}

/// The pair of this Primary stays connected, its clients go on, and it is in sync and equal.
fn goes_on(world: &mut World, primary: usize) {
    let pair = [primary, peer_of(primary)];
    let before = world.oracle(primary).counts().1;
    wait(world, "the other pair goes on", |world| {
        assert!(pair.iter().all(|node| world.nodes[*node].is_connected()));
        world.oracle(primary).counts().1 > before + 50
    });
    world.clients.resting[primary] = true;
    wait(world, "the other pair is equal", |world| {
        world.compare_pair_if_idle(pair_of(primary))
    });
    world.clients.resting[primary] = false;
}

/// The clients stop, and both pairs are in sync and equal.
fn ends_well(world: &mut World) {
    wait(world, "all are in sync again", |world| world.is_in_sync());
    world.clients.quiet = true;
    wait(world, "both pairs are equal", World::compare_if_idle);
    assert_eq!(world.failure(), None);
}

#[test]
fn a_pair_without_its_network_leaves_the_other_one_alone() {
    for protocol in PROTOCOLS {
        let mut world = two_busy_pairs(protocol);
        world.block(0, [true; 2]);
        wait(&mut world, "the first pair is apart", |world| {
            [A, B].iter().all(|node| !world.nodes[*node].is_connected())
        });
        goes_on(&mut world, C);
        world.reset_streams(1, false);
        wait(&mut world, "the second pair is apart, too", |world| {
            !world.nodes[C].is_connected()
        });
        wait(&mut world, "the second pair connects again", |world| {
            world.is_pair_in_sync(1)
        });
        goes_on(&mut world, C);
        world.clients.resting[A] = true;
        wait(&mut world, "bits are compared", |world| {
            world.check_bits_if_apart(0)
        });
        assert!(!world.is_in_sync() && world.is_pair_in_sync(1));
        assert!(
            !world.check_bits_if_apart(1),
            "the second pair is not apart"
        );
        world.clients.resting[A] = false;
        world.block(0, [false; 2]);
        ends_well(&mut world);
        assert_eq!(histories(&world), [1, 1]);
        assert!(all_acknowledged(&world));
    }
}

#[test]
fn a_takeover_in_one_pair_is_nothing_to_the_other() {
    for (protocol, power) in PROTOCOLS.into_iter().flat_map(|p| [(p, false), (p, true)]) {
        let mut world = two_busy_pairs(protocol);
        world.stop(C, power);
        wait(&mut world, "D is alone", |world| {
            !world.nodes[D].is_connected()
        });
        goes_on(&mut world, A);
        world.promote(D, Force::No);
        goes_on(&mut world, A);
        assert!(world.nodes[D].is_primary());
        assert_eq!(histories(&world), [1, 2], "D has gone its own way");
        world.up(C);
        ends_well(&mut world);
        assert!(world.nodes[A].is_primary() && world.nodes[D].is_primary());
    }
}

#[test]
fn streams_of_one_pair_are_cut_and_those_of_the_other_go_on() {
    let mut world = two_busy_pairs(Protocol::C);
    for only_one in [true, false] {
        world.reset_streams(1, only_one);
        wait(&mut world, "the second pair has noticed", |world| {
            assert!(world.nodes[..C].iter().all(Node::is_connected));
            !world.nodes[C].is_connected()
        });
        goes_on(&mut world, A);
        wait(&mut world, "all are in sync", |world| world.is_in_sync());
    }
    ends_well(&mut world);
}

#[test]
fn a_judge_does_not_take_the_data_of_another_pair_for_its_own() {
    let mut world = two_pairs(Protocol::C);
    for node in [A, C] {
        world.request(node, 1, 8, 8);
    }
    ends_well(&mut world);
    assert!(all_acknowledged(&world));
    // The first write of each pair, of the same sectors.
    let bytes = world.nodes[A].data.read(8 * 512, 8 * 512);
    for node in [C, D] {
        world.nodes[node].data.write(8 * 512, &bytes, true);
    }
    assert!(world.compare_pair_if_idle(0));
    assert_eq!(world.failure(), None);
    world.compare_pair_if_idle(1);
    let failure = world.failure().unwrap();
    assert!(failure.contains("never written there"), "{failure}");
}

#[test]
#[should_panic(expected = "a node of another pair")]
fn a_judge_is_not_asked_of_a_node_of_another_pair() {
    let world = two_pairs(Protocol::C);
    let _ = world.oracle(A).lacks(C);
}
