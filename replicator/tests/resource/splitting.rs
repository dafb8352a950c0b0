//! Split brain: found, reported, and solved by policies or by the administrator.

use std::time::Duration;

use tandem_replicator::state::word::{ConnState, Role};
use tandem_replicator::{Command, Force, NetOptions};

use crate::harness::{VOLUME, World};
use crate::linking::conn;

/// Node 0 was Primary when the network went, node 1 was promoted then; both wrote, node 1 less. Both are Secondary now
/// unless `primary` says otherwise.
fn split(net: &NetOptions, primary: Option<usize>) -> World {
    let mut world = World::ready(net);
    world.cut_network();
    for block in 0..4 {
        world.write_ok(0, block * 4096, 4096, 1);
    }
    world.primary(1);
    world.write_ok(1, 1 << 20, 4096, 2);
    for node in 0..2 {
        if primary != Some(node) {
            world.ok(node, Command::Secondary { volume: VOLUME });
        }
    }
    world
}

fn secondary(world: &mut World, node: usize) {
    world.ok(node, Command::Secondary { volume: VOLUME });
}

fn log_has(world: &World, node: usize, words: &str) -> bool {
    world.nodes[node]
        .log
        .iter()
        .any(|line| line.contains(words))
}

fn connect(world: &mut World, node: usize, net: &NetOptions, discard_my_data: bool) {
    world.ok(
        node,
        Command::Connect {
            net: net.clone(),
            discard_my_data,
            tentative: false,
        },
    );
}

#[test]
fn a_split_brain_is_reported_and_leaves_both_alone() {
    let net = NetOptions::default();
    for primary in [None, Some(0), Some(1)] {
        let mut world = split(&net, primary);
        let before = [world.uuids(0), world.uuids(1)];
        world.join();
        world.run_until("both are StandAlone", |world| {
            (0..2).all(|node| conn(world, node) == ConnState::StandAlone)
        });
        for (node, before) in before.into_iter().enumerate() {
            let handlers = &world.nodes[node].handlers;
            assert!(handlers.contains(&"initial-split-brain") && handlers.contains(&"split-brain"));
            assert!(log_has(&world, node, "Split-Brain detected but unresolved"));
            assert!(log_has(
                &world,
                node,
                "tandem adm connect --discard-my-data r0"
            ));
            assert_eq!(world.uuids(node), before, "nothing was changed");
        }
    }
}

#[test]
fn a_forced_promotion_of_a_disk_that_was_restarted_starts_one_generation() {
    let mut world = World::ready(&NetOptions::default());
    world.cut_network();
    world.write_ok(0, 0, 4096, 1);
    secondary(&mut world, 0);
    world.ok(0, Command::Outdate { volume: VOLUME });
    world.crash(0);
    world.ok(0, Command::Attach { volume: VOLUME });
    let [current, _, newer, older] = world.uuids(0);
    let force = Force::Yes;
    let volume = VOLUME;
    world.ok(0, Command::Primary { volume, force });
    let [_, bitmap, h1, h2] = world.uuids(0);
    // A second one would push the oldest out of the history.
    assert_eq!([bitmap & !1, h1, h2], [current & !1, newer, older]);
}

#[test]
fn the_victim_that_is_named_by_a_person_becomes_the_target() {
    let net = NetOptions::default();
    for victim in 0..2 {
        for first in 0..2 {
            let mut world = split(&net, None);
            world.join();
            world.run_until("both are StandAlone", |world| {
                (0..2).all(|node| conn(world, node) == ConnState::StandAlone)
            });
            for node in [first, 1 - first] {
                connect(&mut world, node, &net, node == victim);
            }
            world.run_until("it is decided", |world| {
                (0..2).all(|node| log_has(world, node, "manually solved"))
            });
            assert!(log_has(
                &world,
                victim,
                "manually solved. Sync from peer node"
            ));
            assert!(log_has(
                &world,
                1 - victim,
                "manually solved. Sync from this node"
            ));
            world.run_until("the resync is over", |world| {
                (0..2).all(|node| conn(world, node) == ConnState::Connected)
            });
            let survivor = 1 - victim;
            let expected = if survivor == 0 { (1, 0) } else { (0, 2) };
            for node in 0..2 {
                let disk = &world.nodes[node].disk.current;
                assert_eq!(
                    (disk[0], disk[1 << 20]),
                    expected,
                    "node {node}, victim {victim}"
                );
            }
        }
    }
}

#[test]
fn two_victims_solve_nothing() {
    let net = NetOptions::default();
    let mut world = split(&net, None);
    for node in 0..2 {
        world.ok(node, Command::Disconnect { force: Force::No });
        connect(&mut world, node, &net, true);
    }
    world.join();
    world.run_until("both are StandAlone", |world| {
        (0..2).all(|node| conn(world, node) == ConnState::StandAlone)
    });
    for node in 0..2 {
        assert!(log_has(&world, node, "Split-Brain detected but unresolved"));
        let told = world.nodes[node].resource.status().last_error.unwrap();
        assert!(
            told.contains("both nodes were told to discard their own data"),
            "{told}"
        );
    }
    // What it says: the option on one node only.
    connect(&mut world, 0, &net, true);
    connect(&mut world, 1, &net, false);
    world.run_until("the resync is over", |world| {
        (0..2).all(|node| conn(world, node) == ConnState::Connected)
    });
    assert_eq!(world.nodes[0].disk.current[1 << 20], 2);
}

#[test]
fn policies_choose_the_same_victim_on_both_nodes() {
    // Policy for no Primary, and the victim it names: node 1 was promoted later and has fewer changes.
    for (policy, victim) in [(1, 1), (2, 0), (4, 1)] {
        let net = NetOptions {
            after_sb_0pri: policy,
            ..NetOptions::default()
        };
        let mut world = split(&net, None);
        world.join();
        world.run_until("it is decided", |world| {
            (0..2).all(|node| log_has(world, node, "automatically solved"))
        });
        let from_peer = log_has(&world, victim, "automatically solved. Sync from peer node");
        let from_this = log_has(
            &world,
            1 - victim,
            "automatically solved. Sync from this node",
        );
        assert!(from_peer && from_this, "policy {policy}");
        world.run_until("the resync is over", |world| {
            (0..2).all(|node| conn(world, node) == ConnState::Connected)
        });
        let differ = (0..(2 << 20))
            .any(|at: usize| world.nodes[0].disk.current[at] != world.nodes[1].disk.current[at]);
        assert!(!differ, "policy {policy}");
    }
}

#[test]
fn discard_secondary_keeps_the_primary() {
    for primary in 0..2 {
        let net = NetOptions {
            after_sb_1pri: 8,
            ..NetOptions::default()
        };
        let mut world = split(&net, Some(primary));
        world.join();
        world.run_until("the resync is over", |world| {
            (0..2).all(|node| conn(world, node) == ConnState::Connected)
        });
        assert!(log_has(
            &world,
            primary,
            "1 primaries, automatically solved. Sync from this node"
        ));
        assert_eq!(world.state(primary).role, Role::Primary);
    }
}

#[test]
fn a_primary_that_loses_a_policy_calls_its_handler_and_stays_alone() {
    let net = NetOptions {
        after_sb_0pri: 4,
        after_sb_1pri: 9,
        ..NetOptions::default()
    };
    let mut world = split(&net, Some(1));
    world.join();
    world.run_until("node 1 is StandAlone", |world| {
        conn(world, 1) == ConnState::StandAlone
    });
    assert!(world.nodes[1].handlers.contains(&"pri-lost-after-sb"));
    assert_eq!(world.state(1).role, Role::Primary);
    world.advance(Duration::from_secs(5));
    assert!(conn(&world, 0) <= ConnState::WFConnection);
}

#[test]
fn a_dry_run_tells_what_would_happen_and_changes_nothing() {
    let net = NetOptions::default();
    let mut world = World::ready(&net);
    world.cut_network();
    world.write_ok(0, 0, 4096, 1);
    world.ok(1, Command::Disconnect { force: Force::No });
    world.join();
    world.ok(
        1,
        Command::Connect {
            net: net.clone(),
            discard_my_data: false,
            tentative: true,
        },
    );
    world.run_until("node 1 is StandAlone", |world| {
        conn(world, 1) == ConnState::StandAlone
    });
    assert!(log_has(
        &world,
        1,
        "dry-run connect: Would become SyncTarget, doing a bit-map based resync"
    ));
    world.advance(Duration::from_secs(5));
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
    assert_eq!(world.nodes[1].disk.current[0], 0);
}

#[test]
fn unrelated_data_is_refused() {
    let net = NetOptions::default();
    let mut world = World::pair();
    for node in 0..2 {
        world.ok(node, Command::Attach { volume: VOLUME });
        world.ok(
            node,
            Command::Primary {
                volume: VOLUME,
                force: Force::Yes,
            },
        );
        world.ok(
            node,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: false,
            },
        );
        world.ok(
            node,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: false,
            },
        );
        secondary(&mut world, node);
    }
    for node in 0..2 {
        world.connect(node, &net);
    }
    world.run_until("both are StandAlone", |world| {
        (0..2).all(|node| conn(world, node) == ConnState::StandAlone)
    });
}
