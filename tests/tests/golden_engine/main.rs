#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]
//! The engine in the place of one of two kernels: fed what the other one said in a capture, it says what the kernel said.
//!
//! Every capture is played from both sides, except: `19-two-primaries` (two Primaries are not supported), the Primary of
//! `17-ahead-behind` (the engine never pulls ahead), the target of `21-kill-sync-target` (which pieces it asks for at that rate is the
//! controller's choice).

mod disks;
mod player;

use player::{Action, Player, first_resync_payload, writes};
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{Command, Force, Fua, NetOptions, Protocol, VolumeNumber};
use tandem_tests::golden::Direction;

const VOLUME: VolumeNumber = VolumeNumber(0);

fn net(protocol: Protocol) -> NetOptions {
    NetOptions {
        protocol,
        ..NetOptions::default()
    }
}

fn with_secret(name: &str) -> NetOptions {
    let secret = Some((b"golden secret".to_vec(), String::from(name)));
    NetOptions {
        secret,
        ..NetOptions::default()
    }
}

fn run(command: Command) -> Action {
    Action::Run(Box::new(command))
}

fn primary(force: Force) -> Action {
    run(Command::Primary {
        volume: VOLUME,
        force,
    })
}

fn secondary() -> Action {
    run(Command::Secondary { volume: VOLUME })
}

fn skip_first_sync() -> Action {
    run(Command::NewCurrentUuid {
        volume: VOLUME,
        clear_bitmap: true,
    })
}

fn down() -> Action {
    run(Command::Down { force: Force::No })
}

fn disconnect() -> Action {
    run(Command::Disconnect { force: Force::No })
}

fn connect() -> Action {
    Action::Connect {
        discard_my_data: false,
    }
}

/// `yes WORDS`, without line ends, in a block.
fn pattern(block: u64, words: &str, bytes: usize) -> Action {
    let data = words.bytes().cycle().take(bytes).collect();
    Action::Write {
        offset: block * 4096,
        data,
        fua: Fua::No,
    }
}

#[test]
fn initial_sync_as_the_source() {
    let pattern = first_resync_payload("01-initial-sync");
    let actions = vec![primary(Force::Yes), secondary(), down()];
    let mut player = Player::new(
        "01-initial-sync",
        Direction::AToB,
        net(Protocol::C),
        &pattern,
        actions,
    );
    assert!(player.play() >= 15);
    assert_eq!(player.state().conn, ConnState::StandAlone);
}

#[test]
fn initial_sync_as_the_target() {
    let pattern = first_resync_payload("01-initial-sync");
    let mut player = Player::new(
        "01-initial-sync",
        Direction::BToA,
        net(Protocol::C),
        &[],
        vec![],
    );
    assert!(player.play() >= 14);
    assert_eq!(player.data(), &pattern[..]);
    assert_eq!(player.state().disk, DiskState::UpToDate);
}

fn writer(scenario: &'static str, protocol: Protocol) {
    let mut actions = vec![skip_first_sync(), primary(Force::No)];
    actions.extend(writes(scenario));
    actions.extend([secondary(), down()]);
    let mut player = Player::new(scenario, Direction::AToB, net(protocol), &[], actions);
    assert!(player.play() >= 16);
}

fn receiver(scenario: &'static str, protocol: Protocol) {
    let mut player = Player::new(scenario, Direction::BToA, net(protocol), &[], vec![]);
    assert!(player.play() >= 11);
    for action in writes(scenario) {
        if let Action::Write { offset, data, .. } = action {
            assert_eq!(
                player.data()[offset as usize..offset as usize + data.len()],
                data[..]
            );
        }
    }
}

#[test]
fn writes_of_protocol_a_as_the_writer() {
    writer("02-writes-A", Protocol::A);
}

#[test]
fn writes_of_protocol_a_as_the_receiver() {
    receiver("02-writes-A", Protocol::A);
}

#[test]
fn writes_of_protocol_b_as_the_writer() {
    writer("02-writes-B", Protocol::B);
}

#[test]
fn writes_of_protocol_b_as_the_receiver() {
    receiver("02-writes-B", Protocol::B);
}

#[test]
fn writes_of_protocol_c_as_the_writer() {
    writer("02-writes-C", Protocol::C);
}

#[test]
fn writes_of_protocol_c_as_the_receiver() {
    receiver("02-writes-C", Protocol::C);
}

#[test]
fn bitmap_resync_as_the_source() {
    let mut actions = vec![skip_first_sync(), primary(Force::No), Action::LinkEnds];
    actions.extend([0, 1, 7, 100, 255].map(|block| pattern(block, &format!("new-{block} "), 4096)));
    actions.push(Action::LinkEnds);
    actions.extend([pattern(3, "new-3 ", 4096), secondary(), down()]);
    let mut player = Player::new(
        "03-bitmap-resync",
        Direction::AToB,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 25);
}

#[test]
fn bitmap_resync_as_the_target() {
    let actions = vec![disconnect(), Action::LinkEnds, connect(), disconnect()];
    let mut player = Player::new(
        "03-bitmap-resync",
        Direction::BToA,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 28);
    assert!(player.data()[7 * 4096..].starts_with(b"new-7 "));
}

#[test]
fn split_brain_as_the_survivor() {
    let actions = vec![
        skip_first_sync(),
        primary(Force::No),
        Action::LinkEnds,
        pattern(1, "new-1 ", 4096),
        pattern(2, "new-2 ", 4096),
        Action::LinkEnds,
        connect(),
        secondary(),
        down(),
    ];
    let mut player = Player::new(
        "05-split-brain",
        Direction::AToB,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 30);
}

#[test]
fn split_brain_as_the_victim() {
    let actions = vec![
        disconnect(),
        Action::LinkEnds,
        primary(Force::No),
        pattern(2, "bbbb", 3 * 4096),
        secondary(),
        connect(),
        Action::LinkEnds,
        Action::Connect {
            discard_my_data: true,
        },
    ];
    let mut player = Player::new(
        "05-split-brain",
        Direction::BToA,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 30);
    assert!(player.data()[4096..].starts_with(b"new-1 "));
    assert!(player.data()[2 * 4096..].starts_with(b"new-2 "));
    assert!(
        player.data()[3 * 4096..].starts_with(&[0; 4096]),
        "its own changes are given up"
    );
}

#[test]
fn authentication_from_both_sides() {
    for (scenario, name) in [("06-auth-sha1", "sha1"), ("06-auth-sha256", "sha256")] {
        let actions = vec![skip_first_sync(), down()];
        let mut player = Player::new(scenario, Direction::AToB, with_secret(name), &[], actions);
        assert!(player.play() >= 10, "{scenario}");
        let mut player = Player::new(scenario, Direction::BToA, with_secret(name), &[], vec![]);
        assert!(player.play() >= 9, "{scenario}");
        assert_eq!(player.state().disk, DiskState::UpToDate);
    }
}

#[test]
fn a_wrong_secret_ends_the_attempt() {
    let net = with_secret("sha256");
    let mut player = Player::new("06-auth-wrong-secret", Direction::AToB, net, &[], vec![]);
    assert!(player.play() >= 3);
    assert_eq!(player.state().conn, ConnState::StandAlone);
}

/// What the lab put on the disks of several scenarios: the same pattern as in the first.
fn prefilled() -> Vec<u8> {
    first_resync_payload("01-initial-sync").to_vec()
}

fn net_with(verify_alg: &str, csums_alg: &str) -> NetOptions {
    NetOptions {
        verify_alg: String::from(verify_alg),
        csums_alg: String::from(csums_alg),
        ..net(Protocol::C)
    }
}

fn verify() -> Action {
    run(Command::Verify {
        volume: VOLUME,
        start: None,
        stop: None,
    })
}

#[test]
fn online_verify_as_the_node_that_starts_it() {
    let actions = vec![
        skip_first_sync(),
        primary(Force::No),
        verify(),
        disconnect(),
        Action::LinkEnds,
        connect(),
        verify(),
        secondary(),
        down(),
    ];
    let net = net_with("crc32c", "");
    let side = Direction::AToB;
    let mut player = Player::new("04-verify", side, net, &prefilled(), actions);
    // 256 requests and 256 results of each of the two.
    assert!(player.play() >= 4 * 256 + 20);
}

#[test]
fn online_verify_as_the_node_that_is_asked() {
    let mut data = prefilled();
    for block in [5, 6, 200] {
        data[block * 4096..(block + 1) * 4096].fill(0);
    }
    let net = net_with("crc32c", "");
    let side = Direction::BToA;
    let mut player = Player::new("04-verify", side, net, &data, vec![]);
    assert!(player.play() >= 2 * 256 + 15);
    assert_eq!(player.data(), prefilled());
}

#[test]
fn checksum_resync_as_the_source() {
    let old = |number: usize| Action::Write {
        offset: number as u64 * 4096,
        data: prefilled()[number * 4096..(number + 1) * 4096].to_vec(),
        fua: Fua::No,
    };
    let mut actions = vec![skip_first_sync(), primary(Force::No), Action::LinkEnds];
    actions.extend([0, 2, 4].map(old));
    actions.extend([6, 8].map(|block| pattern(block, &format!("new-{block} "), 4096)));
    // The connection is there already: this only says that what follows belongs to the next link.
    actions.extend([connect(), secondary(), down()]);
    let net = net_with("", "sha1");
    let side = Direction::AToB;
    let mut player = Player::new("08-csums-resync", side, net, &prefilled(), actions);
    assert!(player.play() >= 20);
}
