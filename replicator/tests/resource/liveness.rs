//! Dead and slow peers: pings, sends that make no progress, requests without an answer.

use std::time::Duration;

use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, Effect, Force, NetOptions};

use crate::harness::{World, writes_data};
use crate::linking::{both_connected, conn};

fn lost_by(world: &World, node: usize, words: &str) -> bool {
    world.nodes[node]
        .log
        .iter()
        .any(|line| line.contains("lost the connection") && line.contains(words))
}

#[test]
fn an_idle_connection_lives_for_ever() {
    let mut world = World::connected(&NetOptions::default());
    world.advance(Duration::from_secs(3600));
    both_connected(&mut world);
    assert!(!lost_by(&world, 0, ""));
}

#[test]
fn a_silent_peer_is_given_up_after_ping_int_and_ping_timeout() {
    let mut world = World::connected(&NetOptions::default());
    world.silent = true;
    world.cut = true;
    world.advance(Duration::from_millis(10_400));
    both_connected(&mut world);
    world.advance(Duration::from_millis(200));
    for node in 0..2 {
        assert_eq!(conn(&world, node), ConnState::WFConnection);
        assert!(lost_by(&world, node, "ping-timeout"));
    }
    world.silent = false;
    world.join();
    both_connected(&mut world);
}

#[test]
fn a_data_socket_that_takes_nothing_is_given_up_after_ko_count_timeouts() {
    let net = NetOptions {
        ko_count: 3,
        timeout: Duration::from_secs(2),
        ..NetOptions::default()
    };
    let mut world = World::ready(&net);
    // Only the data socket is stuck: whatever carries user data is large.
    world.hold(0, |effect| {
        matches!(
            effect,
            Effect::Send {
                payload: Some(_),
                ..
            }
        )
    });
    world.write(0, 0, 4096, 7);
    world.advance(Duration::from_millis(5900));
    assert_eq!(conn(&world, 0), ConnState::Connected);
    world.run_until("it is given up", |world| lost_by(world, 0, "timeout"));
    both_connected_again(&mut world);
}

fn both_connected_again(world: &mut World) {
    world.release(0);
    world.run_until("there is a link again", |world| {
        (0..2).all(|node| world.state(node).conn >= ConnState::Connected)
    });
}

#[test]
fn a_meta_socket_that_takes_nothing_is_given_up_at_once() {
    let mut world = World::ready(&NetOptions::default());
    world.stalled = true;
    world.cut = true;
    world.advance(Duration::from_secs(30));
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
}

#[test]
fn a_peer_whose_disk_hangs_is_given_up_although_it_answers_pings() {
    let net = NetOptions {
        ko_count: 2,
        timeout: Duration::from_secs(5),
        ..NetOptions::default()
    };
    let mut world = World::ready(&net);
    world.hold(1, writes_data);
    let id = world.write(0, 0, 4096, 7);
    world.advance(Duration::from_secs(9));
    assert!(world.reply(0, id).is_none());
    world.run_until("the write is answered", |world| {
        world.reply(0, id).is_some()
    });
    assert!(world.reply(0, id).unwrap().is_ok());
    assert!(lost_by(&world, 0, "ko-count"));
    // The peer makes no new link before its disk is done with the old one.
    world.advance(Duration::from_secs(20));
    assert!(conn(&world, 0) < ConnState::Connected);
    world.release(1);
    world.run_until("there is a link again", |world| {
        conn(world, 1) >= ConnState::Connected
    });
}

#[test]
fn a_peer_that_a_question_does_not_reach_is_given_up_although_it_answers_pings() {
    let net = NetOptions {
        ko_count: 2,
        timeout: Duration::from_secs(5),
        ..NetOptions::default()
    };
    let mut world = World::ready(&net);
    // The data socket is dead in one direction, and its buffer takes what little there is.
    world.silent = true;
    let id = world.command(0, Command::Disconnect { force: Force::No });
    world.silent = false;
    world.advance(Duration::from_secs(9));
    assert!(!world.nodes[0].answers.contains_key(&id));
    both_connected(&mut world);
    world.run_until("the command is answered", |world| {
        world.nodes[0].answers.contains_key(&id)
    });
    assert!(lost_by(&world, 0, "ko-count"));
    assert_eq!(world.nodes[0].answers[&id].exit, 0);
    assert_eq!(conn(&world, 0), ConnState::StandAlone);
}

#[test]
fn ko_count_zero_waits_for_ever() {
    let net = NetOptions {
        ko_count: 0,
        ..NetOptions::default()
    };
    let mut world = World::ready(&net);
    world.hold(1, writes_data);
    let id = world.write(0, 0, 4096, 7);
    world.advance(Duration::from_secs(600));
    assert!(world.reply(0, id).is_none());
    both_connected(&mut world);
    world.release(1);
    assert!(world.reply(0, id).unwrap().is_ok());
}
