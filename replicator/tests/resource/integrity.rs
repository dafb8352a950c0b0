//! `data-integrity-alg`: every payload carries its digest, and one that was changed on the way is never used.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{Command, Effect, Event, Force, NetOptions, Operation, Protocol, Unmap};

use crate::harness::{VOLUME, World, protocol};
use crate::linking::both_connected;
use crate::resyncing::{check_equal, cut_and_write, wait_synced};

pub fn with_digest(letter: Protocol, name: &str) -> NetOptions {
    NetOptions {
        integrity_alg: String::from(name),
        ..protocol(letter)
    }
}

/// The command number in the header of a packet.
fn command_of(head: &[u8]) -> u16 {
    u16::from_be_bytes([head[6], head[7]])
}

/// Heads and payloads of the packets of one command that a node sent.
fn sent(world: &World, node: usize, command: u16) -> Vec<(Bytes, Bytes)> {
    let history = world.nodes[node].history.iter();
    history
        .filter_map(|effect| match effect {
            Effect::Send { head, payload, .. } if head.len() >= 16 => (command_of(head) == command)
                .then(|| (head.clone(), payload.clone().unwrap_or_default())),
            _ => None,
        })
        .collect()
}

/// Lets packets of a command be held back, once; then delivers them with one bit of the payload flipped.
fn flip_one(world: &mut World, node: usize, command: u16) {
    world.hold(node, move |effect| {
        matches!(effect, Effect::Send { head, payload: Some(_), .. }
            if head.len() >= 16 && command_of(head) == command)
    });
}

fn release_flipped(world: &mut World, node: usize) {
    world.change_held(node, |effect| {
        if let Effect::Send {
            payload: Some(payload),
            ..
        } = effect
        {
            let mut bytes = BytesMut::from(&payload[..]);
            bytes[100] ^= 4;
            *payload = bytes.freeze();
        }
    });
    world.release(node);
}

#[test]
fn every_payload_carries_the_digest_of_the_algorithm() {
    for (name, letter) in [
        ("crc32c", Protocol::A),
        ("md5", Protocol::B),
        ("sha1", Protocol::C),
        ("sha256", Protocol::C),
    ] {
        let algorithm = DigestAlgorithm::from_name(name).unwrap();
        {
            let mut world = World::small(&with_digest(letter, name), 32 << 20);
            world.write_ok(0, 8192, 12_288, 7);
            world.advance(Duration::from_secs(1));
            cut_and_write(&mut world, &[(4096, 2), (20 << 20, 3)]);
            world.join();
            wait_synced(&mut world);
            check_equal(&world);
            let written = sent(&world, 0, 0);
            let resynced = sent(&world, 0, 2);
            assert!(!written.is_empty() && !resynced.is_empty(), "{name}");
            for (head, payload) in written.iter().chain(&resynced) {
                assert_eq!(head.len(), 16 + 24 + algorithm.len(), "{name}");
                assert!(algorithm.matches(payload, &head[40..]), "{name}");
            }
        }
    }
}

#[test]
fn a_write_that_was_changed_on_the_way_is_not_used_and_comes_again() {
    for letter in [Protocol::A, Protocol::B, Protocol::C] {
        let mut world = World::ready(&with_digest(letter, "crc32c"));
        world.write_ok(0, 0, 4096, 1);
        world.advance(Duration::from_secs(1));
        flip_one(&mut world, 0, 0);
        let id = world.write(0, 0, 4096, 9);
        assert_eq!(world.held(0), 1);
        release_flipped(&mut world, 0);
        assert_eq!(
            world.nodes[1].disk.current[0], 1,
            "the changed data is not on the disk"
        );
        let words = |line: &String| line.contains("digest integrity check FAILED");
        assert!(
            world.nodes[1].log.iter().any(words),
            "{:?}",
            world.nodes[1].log
        );
        world.run_until("the write is answered", |world| {
            world.reply(0, id).is_some()
        });
        assert_eq!(world.reply(0, id), Some(&Ok(Bytes::new())));
        wait_synced(&mut world);
        check_equal(&world);
        assert_eq!(world.nodes[1].disk.current[..4096], [9; 4096]);
    }
}

#[test]
fn a_resynced_block_that_was_changed_on_the_way_is_not_used() {
    let mut world = World::ready(&with_digest(Protocol::C, "sha1"));
    cut_and_write(&mut world, &[(0, 5)]);
    flip_one(&mut world, 0, 2);
    world.join();
    world.run_until("a block is on its way", |world| world.held(0) > 0);
    release_flipped(&mut world, 0);
    assert_ne!(world.nodes[1].disk.current[100], 1);
    let words = |line: &String| line.contains("P_RS_DATA_REPLY: digest integrity check FAILED");
    assert!(
        world.nodes[1].log.iter().any(words),
        "{:?}",
        world.nodes[1].log
    );
    wait_synced(&mut world);
    check_equal(&world);
    assert_eq!(world.nodes[1].disk.current[..8192], [5; 8192]);
}

#[test]
fn a_read_from_the_peer_that_was_changed_on_the_way_is_asked_for_again_or_fails() {
    let mut world = World::ready(&with_digest(Protocol::C, "md5"));
    world.write_ok(0, 0, 4096, 6);
    world.advance(Duration::from_secs(1));
    let force = Force::No;
    world.ok(
        0,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    assert_eq!(world.read_ok(0, 0, 4096), Bytes::from(vec![6; 4096]));
    flip_one(&mut world, 1, 1);
    let read = world.request(
        0,
        Operation::Read {
            offset: 0,
            length: 4096,
        },
    );
    assert_eq!(world.held(1), 1);
    release_flipped(&mut world, 1);
    world.run_until("it is answered", |world| world.reply(0, read).is_some());
    assert_ne!(
        world
            .reply(0, read)
            .unwrap()
            .clone()
            .unwrap_or_default()
            .len(),
        4096
    );
}

#[test]
fn different_algorithms_do_not_connect_and_are_named() {
    for (own, other) in [("crc32c", "sha1"), ("", "md5"), ("sha256", "")] {
        let mut world = World::pair();
        for (node, name) in [(0, own), (1, other)] {
            world.ok(node, Command::Attach { volume: VOLUME });
            world.connect(node, &with_digest(Protocol::C, name));
        }
        world.run_until("one gave up", |world| {
            (0..2)
                .any(|node| world.nodes[node].resource.status().connection == ConnState::StandAlone)
        });
        let told = (0..2).any(|node| {
            let status = world.nodes[node].resource.status();
            status
                .last_error
                .is_some_and(|text| text.contains("data-integrity-alg is"))
        });
        assert!(told);
    }
}

#[test]
fn an_algorithm_that_is_not_known_is_refused_by_name() {
    for option in ["data-integrity-alg", "csums-alg", "verify-alg"] {
        let mut net = NetOptions::default();
        match option {
            "data-integrity-alg" => net.integrity_alg = String::from("rot13"),
            "csums-alg" => net.csums_alg = String::from("rot13"),
            _ => net.verify_alg = String::from("rot13"),
        }
        let mut world = World::alone();
        let connect = Command::Connect {
            net,
            discard_my_data: false,
            tentative: false,
        };
        let answer = world.answer(0, connect);
        assert_ne!(answer.exit, 0);
        assert!(answer.info[0].contains(option), "{answer:?}");
    }
}

#[test]
fn zeroes_and_discards_have_no_digest_and_go_on() {
    let mut world = World::ready(&with_digest(Protocol::C, "crc32c"));
    world.write_ok(0, 0, 65_536, 3);
    for unmap in [Unmap::Allowed, Unmap::No] {
        let operation = Operation::WriteZeroes {
            offset: 4096,
            length: 8192,
            fua: tandem_replicator::Fua::No,
            unmap,
        };
        let id = world.request(0, operation);
        world.run_until("it is answered", |world| world.reply(0, id).is_some());
    }
    world.write_ok(0, 16_384, 4096, 4);
    both_connected(&mut world);
    assert_eq!(world.nodes[1].disk.current[4096], 0);
    assert_eq!(world.nodes[1].disk.current[16_384], 4);
    assert_eq!(world.state(0).pdsk, DiskState::UpToDate);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn garbage_in_place_of_a_digest_never_panics_and_is_never_written(
        at in 40..60_usize, value in 1..=255_u8,
    ) {
        let mut world = World::small(&with_digest(Protocol::C, "sha1"), 8 << 20);
        world.hold(0, |effect| {
            matches!(effect, Effect::Send { head, payload: Some(_), .. } if command_of(head) == 0)
        });
        world.write(0, 0, 4096, 9);
        world.change_held(0, |effect| {
            if let Effect::Send { head, .. } = effect {
                let mut bytes = BytesMut::from(&head[..]);
                bytes[at] ^= value;
                *head = bytes.freeze();
            }
        });
        world.release(0);
        prop_assert_eq!(world.nodes[1].disk.current[0], 0);
        let now = world.now;
        world.event(0, Event::Timer);
        prop_assert!(now <= world.now);
    }
}
