//! Making a link: who dials, what both nodes have to agree on, and how it ends.

use std::time::Duration;

use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, Effect, Force, NetOptions, Protocol};

use crate::harness::{VOLUME, World, protocol};

pub fn attached_pair() -> World {
    let mut world = World::pair();
    for node in 0..2 {
        world.ok(node, Command::Attach { volume: VOLUME });
    }
    world
}

pub fn conn(world: &World, node: usize) -> ConnState {
    world.state(node).conn
}

pub fn both_connected(world: &mut World) {
    world.run_until("both are connected", |world| {
        (0..2).all(|node| conn(world, node) == ConnState::Connected)
    });
}

fn both_alone(world: &mut World) {
    world.run_until("both are StandAlone", |world| {
        (0..2).all(|node| conn(world, node) == ConnState::StandAlone)
    });
}

fn last_error(world: &World, node: usize) -> String {
    world.nodes[node]
        .resource
        .status()
        .last_error
        .unwrap_or_default()
}

fn secret(secret: &str, algorithm: &str) -> NetOptions {
    NetOptions {
        secret: Some((secret.as_bytes().to_vec(), String::from(algorithm))),
        ..NetOptions::default()
    }
}

fn disconnect(force: Force) -> Command {
    Command::Disconnect { force }
}

#[test]
fn whoever_connects_first_waits_for_the_other() {
    for first in 0..2 {
        let mut world = attached_pair();
        let net = NetOptions::default();
        world.connect(first, &net);
        world.advance(Duration::from_secs(35));
        assert_eq!(conn(&world, first), ConnState::WFConnection);
        world.connect(1 - first, &net);
        both_connected(&mut world);
        assert_eq!(world.state(0).pdsk, DiskState::Inconsistent);
        assert_eq!(world.state(0).peer, Role::Secondary);
    }
}

/// Both nodes dial at the same moment, again and again: how long the slowest link took to make.
fn slowest_crossing(net: &NetOptions) -> Duration {
    let mut world = attached_pair();
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let start = world.now;
        for node in 0..2 {
            world.hold(node, |effect| matches!(effect, Effect::Dial { .. }));
            world.connect(node, net);
        }
        world.release_all();
        both_connected(&mut world);
        slowest = slowest.max(world.now.since(start));
        world.ok(0, disconnect(Force::No));
        world.ok(1, disconnect(Force::No));
        both_alone(&mut world);
    }
    slowest
}

#[test]
fn dials_that_cross_end_in_one_link_within_seconds() {
    let few_seconds = Duration::from_secs(20);
    let slowest = slowest_crossing(&NetOptions::default());
    assert!(slowest < few_seconds, "{slowest:?}");
    // Patience with a link that exists is not patience with making one.
    let patient = NetOptions {
        ping_timeout: Duration::from_secs(30),
        socket_check_timeout: Duration::from_millis(200),
        ..NetOptions::default()
    };
    let slowest = slowest_crossing(&patient);
    assert!(slowest < few_seconds, "{slowest:?}");
}

#[test]
fn diskless_nodes_connect_too() {
    let mut world = World::pair();
    for node in 0..2 {
        world.connect(node, &NetOptions::default());
    }
    both_connected(&mut world);
    assert_eq!(world.state(0).pdsk, DiskState::Diskless);
}

#[test]
fn a_disk_that_is_attached_while_connected_is_compared_then() {
    let mut world = World::pair();
    world.ok(0, Command::Attach { volume: VOLUME });
    for node in 0..2 {
        world.connect(node, &NetOptions::default());
    }
    both_connected(&mut world);
    assert_eq!(world.state(0).pdsk, DiskState::Diskless);
    world.ok(1, Command::Attach { volume: VOLUME });
    world.run_until("the disk is known", |world| {
        world.state(0).pdsk == DiskState::Inconsistent
            && world.state(1).disk == DiskState::Inconsistent
    });
    both_connected(&mut world);
}

#[test]
fn nodes_with_the_same_secret_connect() {
    for algorithm in ["sha1", "sha256", "md5"] {
        let mut world = attached_pair();
        for node in 0..2 {
            world.connect(node, &secret("golden", algorithm));
        }
        both_connected(&mut world);
    }
}

#[test]
fn nodes_with_different_secrets_end_standalone() {
    let mut world = attached_pair();
    world.connect(0, &secret("golden", "sha1"));
    world.connect(1, &secret("silver", "sha1"));
    both_alone(&mut world);
    for node in 0..2 {
        assert!(
            last_error(&world, node).contains("shared-secret"),
            "{}",
            last_error(&world, node)
        );
        assert!(
            !world.nodes[node]
                .log
                .iter()
                .any(|line| line.contains("golden"))
        );
    }
    // Corrected, they connect.
    for node in 0..2 {
        world.connect(node, &secret("golden", "sha1"));
    }
    both_connected(&mut world);
}

#[test]
fn a_node_that_wants_authentication_gives_up_on_one_that_does_not() {
    let mut world = attached_pair();
    world.connect(0, &secret("golden", "sha1"));
    world.connect(1, &NetOptions::default());
    world.run_until("node 0 gives up", |world| {
        conn(world, 0) == ConnState::StandAlone
    });
    assert!(last_error(&world, 0).contains("cram-hmac-alg"));
    world.advance(Duration::from_secs(30));
    assert_eq!(conn(&world, 1), ConnState::WFConnection);
    let told = last_error(&world, 1);
    assert!(
        told.contains("authentication"),
        "what a person has to mend is not hidden by attempts that fail: {told}"
    );
    assert!(
        world.nodes[1]
            .log
            .iter()
            .any(|line| line.contains("authentication"))
    );
    // The other one gets the secret: no word is needed on this side.
    world.ok(1, disconnect(Force::No));
    for node in 0..2 {
        world.connect(node, &secret("golden", "sha1"));
    }
    both_connected(&mut world);
}

#[test]
fn nodes_with_different_algorithms_try_on_and_say_so() {
    let mut world = attached_pair();
    world.connect(0, &secret("golden", "sha1"));
    world.connect(1, &secret("golden", "sha256"));
    world.advance(Duration::from_secs(20));
    for node in 0..2 {
        assert_eq!(conn(&world, node), ConnState::WFConnection);
    }
    let told = (0..2).any(|node| last_error(&world, node).contains("cram-hmac-alg"));
    assert!(
        told,
        "{} / {}",
        last_error(&world, 0),
        last_error(&world, 1)
    );
}

#[test]
fn an_unknown_algorithm_is_refused_when_it_is_configured() {
    let mut world = attached_pair();
    let command = Command::Connect {
        net: secret("golden", "rot13"),
        discard_my_data: false,
        tentative: false,
    };
    let answer = world.answer(0, command);
    assert_eq!(answer.exit, 10);
    assert!(answer.info[0].contains("rot13"));
    assert_eq!(conn(&world, 0), ConnState::StandAlone);
}

#[test]
fn nodes_with_different_options_end_standalone_and_name_the_option() {
    let base = NetOptions::default();
    let cases: Vec<(&str, NetOptions)> = vec![
        ("protocol", protocol(Protocol::A)),
        ("protocol", protocol(Protocol::B)),
        (
            "after-sb-0pri",
            NetOptions {
                after_sb_0pri: 3,
                ..base.clone()
            },
        ),
        (
            "after-sb-1pri",
            NetOptions {
                after_sb_1pri: 8,
                ..base.clone()
            },
        ),
        (
            "after-sb-2pri",
            NetOptions {
                after_sb_2pri: 10,
                ..base.clone()
            },
        ),
        (
            "verify-alg",
            NetOptions {
                verify_alg: String::from("sha1"),
                ..base.clone()
            },
        ),
        (
            "csums-alg",
            NetOptions {
                csums_alg: String::from("md5"),
                ..base.clone()
            },
        ),
    ];
    for (option, other) in cases {
        let mut world = attached_pair();
        world.connect(0, &base);
        world.connect(1, &other);
        both_alone(&mut world);
        for node in 0..2 {
            let text = last_error(&world, node);
            assert!(text.contains(option), "{option}: {text}");
            let told = world.nodes[node]
                .log
                .iter()
                .any(|line| line.contains("tandem adm connect r0"));
            assert!(told, "{:?}", world.nodes[node].log);
        }
    }
}

#[test]
fn a_policy_that_discards_one_named_node_is_mirrored_on_the_other() {
    let mut world = attached_pair();
    world.connect(
        0,
        &NetOptions {
            after_sb_0pri: 5,
            ..NetOptions::default()
        },
    );
    world.connect(
        1,
        &NetOptions {
            after_sb_0pri: 6,
            ..NetOptions::default()
        },
    );
    both_connected(&mut world);
}

#[test]
fn a_cut_at_any_byte_of_the_handshake_is_followed_by_a_connection() {
    let mut world = attached_pair();
    for node in 0..2 {
        world.connect(node, &secret("golden", "sha1"));
    }
    for bytes in 0..1000 {
        world.cut_network();
        world.cut_after = Some(bytes);
        world.join();
        both_connected(&mut world);
        // A cut that comes late hits the established connection.
        world.advance(Duration::from_secs(12));
        both_connected(&mut world);
        assert_eq!(world.cut_after, None, "{bytes}");
    }
}

#[test]
fn a_connection_that_breaks_is_made_again_at_once() {
    let mut world = World::connected(&NetOptions::default());
    for _ in 0..5 {
        world.cut_network();
        assert_eq!(conn(&world, 0), ConnState::WFConnection);
        assert!(!last_error(&world, 0).is_empty());
        world.join();
        both_connected(&mut world);
        assert!(last_error(&world, 0).is_empty());
    }
}

#[test]
fn a_disconnect_leaves_this_node_standalone_and_the_peer_waiting() {
    for force in [Force::No, Force::Yes] {
        let mut world = World::connected(&NetOptions::default());
        world.ok(0, disconnect(force));
        assert_eq!(conn(&world, 0), ConnState::StandAlone);
        world.advance(Duration::from_secs(5));
        assert_eq!(conn(&world, 1), ConnState::WFConnection);
        let answer = world.answer(0, disconnect(force));
        assert_eq!((answer.number, answer.exit), (162, 10));
        assert_eq!(answer.info, ["unknown connection"]);
        world.connect(0, &NetOptions::default());
        both_connected(&mut world);
    }
}

#[test]
fn two_nodes_that_disconnect_at_the_same_moment_both_succeed() {
    let mut world = World::connected(&NetOptions::default());
    world.hold(0, |effect| matches!(effect, Effect::Send { .. }));
    world.hold(1, |effect| matches!(effect, Effect::Send { .. }));
    let commands = [
        world.command(0, disconnect(Force::No)),
        world.command(1, disconnect(Force::No)),
    ];
    world.release_all();
    world.run_until("both are answered", |world| {
        (0..2).all(|node| world.nodes[node].answers.contains_key(&commands[node]))
    });
    for (node, command) in commands.iter().enumerate() {
        assert_eq!(world.nodes[node].answers[command].exit, 0);
        assert_eq!(conn(&world, node), ConnState::StandAlone);
    }
}

#[test]
fn a_disconnect_works_in_every_phase_of_an_attempt() {
    for millis in (0..4000).step_by(100) {
        let mut world = attached_pair();
        for node in 0..2 {
            world.connect(node, &secret("golden", "sha1"));
        }
        world.advance(Duration::from_millis(millis));
        world.ok(0, disconnect(Force::No));
        assert_eq!(conn(&world, 0), ConnState::StandAlone);
        world.connect(0, &secret("golden", "sha1"));
        both_connected(&mut world);
    }
}

#[test]
fn a_second_connect_is_refused_and_changes_nothing() {
    let mut world = attached_pair();
    let command = |discard_my_data| Command::Connect {
        net: NetOptions::default(),
        discard_my_data,
        tentative: false,
    };
    world.ok(0, command(false));
    let answer = world.answer(0, command(true));
    assert_eq!((answer.number, answer.exit), (102, 10));
    assert!(answer.hint.unwrap().contains("tandem adm disconnect r0"));
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
    world.ok(1, command(false));
    both_connected(&mut world);
    let answer = world.answer(0, command(false));
    assert_eq!((answer.number, answer.exit), (102, 10));
    both_connected(&mut world);
}

#[test]
fn a_primary_does_not_discard_its_data() {
    let mut world = attached_pair();
    world.ok(
        0,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    let command = Command::Connect {
        net: NetOptions::default(),
        discard_my_data: true,
        tentative: false,
    };
    let answer = world.answer(0, command);
    assert_eq!((answer.number, answer.exit), (123, 10));
    assert!(answer.hint.unwrap().contains("tandem adm secondary r0"));
}

#[test]
fn a_primary_that_connects_is_not_led_to_discard_its_data() {
    let mut world = World::ready(&NetOptions::default());
    world.cut_network();
    let command = Command::Connect {
        net: NetOptions::default(),
        discard_my_data: true,
        tentative: false,
    };
    let answer = world.answer(0, command);
    assert_eq!((answer.number, answer.exit), (102, 10));
    assert!(answer.info[1].contains("for the other node"), "{answer:?}");
    assert_eq!(answer.hint.as_deref(), Some("tandem adm status r0"));
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
}

#[test]
fn two_primaries_do_not_connect() {
    let mut world = World::ready(&NetOptions::default());
    world.cut_network();
    world.primary(1);
    world.join();
    both_alone(&mut world);
    assert_eq!(world.state(0).role, Role::Primary);
    assert_eq!(world.state(1).role, Role::Primary);
}

#[test]
fn an_address_that_cannot_be_used_is_not_tried_again() {
    use tandem_replicator::Event;
    let mut world = attached_pair();
    world.connect(0, &NetOptions::default());
    let reason = String::from("cannot listen on 10.0.0.1:7788: address already in use");
    world.event(0, Event::ListenFailed { reason });
    assert_eq!(conn(&world, 0), ConnState::StandAlone);
    assert!(last_error(&world, 0).contains("10.0.0.1:7788"));
}

#[test]
fn the_state_of_the_disk_follows_the_peer_over_the_link() {
    let mut world = World::ready(&NetOptions::default());
    world.ok(
        1,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    world.run_until("node 0 sees it", |world| {
        world.state(0).pdsk == DiskState::Diskless
    });
    world.ok(0, Command::SuspendIo { volume: VOLUME });
    world.ok(0, Command::ResumeIo { volume: VOLUME });
    world.ok(0, Command::PauseSync { volume: VOLUME });
    world.run_until("node 1 sees it", |world| world.state(1).peer_isp);
}

#[test]
fn a_volume_that_the_peer_does_not_have_is_named_and_does_not_stop_the_others() {
    use tandem_replicator::{DiskOptions, Resource, ResourceOptions, VolumeNumber, VolumeOptions};
    let mut world = World::pair();
    let volume = |number| VolumeOptions {
        number: VolumeNumber(number),
        minor: u32::from(number),
        disk: DiskOptions::default(),
    };
    world.nodes[0].resource = Resource::new(ResourceOptions {
        name: String::from("r0"),
        volumes: vec![volume(0), volume(1)],
        seed: [9; 32],
    });
    for node in 0..2 {
        world.ok(node, Command::Attach { volume: VOLUME });
        world.connect(node, &NetOptions::default());
    }
    both_connected(&mut world);
    let force = Force::Yes;
    world.ok(
        0,
        Command::Primary {
            volume: VOLUME,
            force,
        },
    );
    let told = |world: &World, node: usize| {
        world.nodes[node]
            .log
            .iter()
            .any(|line| line.contains("volume 1"))
    };
    assert!(
        told(&world, 0) && told(&world, 1),
        "{:?}",
        world.nodes[0].log
    );
    let status = world.nodes[0].resource.status();
    assert_eq!(status.volumes[1].state.conn, ConnState::WFReportParams);
    world.ok(0, disconnect(Force::No));
    let states = world.nodes[0].resource.status().volumes;
    assert!(
        states
            .iter()
            .all(|volume| volume.state.conn == ConnState::StandAlone)
    );
}

#[test]
fn reading_stops_while_the_disk_is_behind_and_goes_on_after() {
    use crate::harness::writes_data;
    let mut world = World::ready(&protocol(Protocol::A));
    world.hold(1, writes_data);
    let ids: Vec<_> = (0..40)
        .map(|at| world.write(0, at << 20, 1 << 20, at as u8 + 1))
        .collect();
    let paused = |world: &World| {
        world.nodes[1]
            .history
            .iter()
            .any(|effect| matches!(effect, Effect::PauseRead { .. }))
    };
    assert!(paused(&world));
    world.advance(Duration::from_secs(30));
    both_connected(&mut world);
    world.release(1);
    world.run_until("all are answered", |world| {
        ids.iter()
            .all(|id| world.reply(0, *id).is_some_and(Result::is_ok))
    });
    world.run_until("the peer has everything", |world| {
        (0..40_usize).all(|at| world.nodes[1].disk.current[at << 20] == at as u8 + 1)
    });
}
