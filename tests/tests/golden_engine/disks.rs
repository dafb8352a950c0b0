//! Captures about disks: discards, digests, a disk that is away, fails or dies with its node, plain bitmaps, external metadata.

use tandem_protocol::Packet;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{Command, Force, NetOptions, Protocol, Unmap};
use tandem_tests::golden::Direction::{AToB, BToA};

use super::player::{Action, Backing, Player, resynced, writes};
use super::*;

fn detach() -> Action {
    run(Command::Detach {
        volume: VOLUME,
        force: Force::No,
    })
}

fn attach() -> Action {
    run(Command::Attach { volume: VOLUME })
}

fn new_block(block: u64) -> Action {
    pattern(block, &format!("new-{block} "), 4096)
}

/// In sync without a sync, and Primary.
fn begun() -> Vec<Action> {
    vec![skip_first_sync(), primary(Force::No)]
}

fn without_rle() -> NetOptions {
    NetOptions {
        use_rle: false,
        ..net(Protocol::C)
    }
}

#[test]
fn plain_bitmap_resync_as_the_source() {
    let mut actions = begun();
    actions.push(Action::LinkEnds);
    actions.extend([0, 1, 7, 100, 255].map(new_block));
    actions.push(Action::LinkEnds);
    actions.extend([new_block(3), secondary(), down()]);
    let name = "03-bitmap-resync-no-rle";
    let mut player = Player::new(name, AToB, without_rle(), &[], actions);
    assert!(player.play() >= 25);
}

#[test]
fn plain_bitmap_resync_as_the_target() {
    let actions = vec![disconnect(), Action::LinkEnds, connect(), disconnect()];
    let name = "03-bitmap-resync-no-rle";
    let mut player = Player::new(name, BToA, without_rle(), &[], actions);
    assert!(player.play() >= 28);
    assert!(player.data()[100 * 4096..].starts_with(b"new-100 "));
}

#[test]
fn a_wrong_secret_ends_the_attempt_of_the_other_node_too() {
    let net = NetOptions {
        secret: Some((b"other secret".to_vec(), String::from("sha256"))),
        ..NetOptions::default()
    };
    let mut player = Player::new("06-auth-wrong-secret", BToA, net, &[], vec![]);
    assert!(player.play() >= 3);
    assert_eq!(player.state().conn, ConnState::StandAlone);
}

#[test]
fn discards_and_zeroes_as_the_writer() {
    let clear = |offset, length, zeroes, unmap| Action::Clear {
        offset,
        length,
        unmap,
        zeroes,
    };
    let mut actions = begun();
    actions.extend([
        clear(65_536, 65_536, false, Unmap::Allowed),
        clear(4096, 12_288, false, Unmap::Allowed),
        clear(262_144, 65_536, true, Unmap::No),
        clear(524_288, 32_768, true, Unmap::No),
        secondary(),
        down(),
    ]);
    let mut player = Player::new("07-trim", AToB, net(Protocol::C), &[], actions);
    assert!(player.play() >= 19);
}

#[test]
fn discards_and_zeroes_as_the_receiver() {
    let data = prefilled();
    let mut player = Player::new("07-trim", BToA, net(Protocol::C), &data, vec![]);
    assert!(player.play() >= 17);
    let mut wanted = data;
    for (start, length) in [
        (65_536, 65_536),
        (4096, 12_288),
        (262_144, 65_536),
        (524_288, 32_768),
    ] {
        wanted[start..start + length].fill(0);
    }
    assert_eq!(player.data(), wanted);
}

#[test]
fn checksum_resync_as_the_target() {
    let invalidate = run(Command::Invalidate { volume: VOLUME });
    let actions = vec![disconnect(), Action::LinkEnds, connect(), invalidate];
    let net = net_with("", "sha1");
    let mut player = Player::new("08-csums-resync", BToA, net, &prefilled(), actions);
    assert!(player.play() >= 25);
    assert!(player.data()[6 * 4096..].starts_with(b"new-6 "));
    assert!(player.data()[8 * 4096..].starts_with(b"new-8 "));
    assert_eq!(player.state().disk, DiskState::UpToDate);
}

fn with_integrity() -> NetOptions {
    NetOptions {
        integrity_alg: String::from("crc32c"),
        ..net(Protocol::C)
    }
}

#[test]
fn digests_of_payloads_as_the_primary_that_detaches() {
    let read = Action::Read {
        offset: 9 * 4096,
        length: 4096,
    };
    let mut actions = vec![primary(Force::Yes), new_block(9), new_block(10), detach()];
    actions.push(read);
    let data = first_resync_payload("09-data-integrity");
    let mut player = Player::new("09-data-integrity", AToB, with_integrity(), &data, actions);
    // Then it attaches again. Of its hot extent that kernel marks 192 bits of 256, as it counts them on a disk of 1 MiB: no
    // other node would.
    player.ends_with(|packet| matches!(packet, Packet::DataReply(_)));
    assert!(player.play() >= 20);
    assert!(
        player
            .answered_reads
            .iter()
            .any(|data| data.starts_with(b"new-9 "))
    );
    assert!(player.data()[10 * 4096..].starts_with(b"new-10 "));
}

#[test]
fn digests_of_payloads_as_the_secondary() {
    let mut player = Player::new("09-data-integrity", BToA, with_integrity(), &[], vec![]);
    assert!(player.play() >= 25);
    assert!(player.data()[9 * 4096..].starts_with(b"new-9 "));
}

#[test]
fn a_primary_without_its_disk_as_that_primary() {
    let read = |block: u64| Action::Read {
        offset: block * 4096,
        length: 4096,
    };
    let mut actions = begun();
    actions.push(detach());
    actions.extend([0, 17, 255].map(read));
    actions.extend([new_block(17), attach(), secondary(), down()]);
    let data = prefilled();
    let mut player = Player::new(
        "10-diskless-primary",
        AToB,
        net(Protocol::C),
        &data,
        actions,
    );
    assert!(player.play() >= 25);
    let blocks = [0, 17, 255].map(|block| data[block * 4096..(block + 1) * 4096].to_vec());
    assert_eq!(player.answered_reads, blocks);
    assert!(player.data()[17 * 4096..].starts_with(b"new-17 "));
}

#[test]
fn a_primary_without_its_disk_as_its_peer() {
    let data = prefilled();
    let mut player = Player::new("10-diskless-primary", BToA, net(Protocol::C), &data, vec![]);
    assert!(player.play() >= 20);
    assert!(player.data()[17 * 4096..].starts_with(b"new-17 "));
}

#[test]
fn thin_resync_as_the_source() {
    let data = resynced("11-thin-resync");
    let actions = vec![primary(Force::Yes), secondary(), down()];
    let mut player = Player::new("11-thin-resync", AToB, net(Protocol::C), &data, actions);
    // 64 parts with data and 64 holes.
    assert!(player.play() >= 128 + 14);
}

#[test]
fn thin_resync_as_the_target() {
    let backing = Backing {
        discard_granularity: 8192,
        ..Backing::USUAL
    };
    let mut player = Player::on(
        backing,
        "11-thin-resync",
        BToA,
        net(Protocol::C),
        &[],
        vec![down()],
    );
    assert!(player.play() >= 128 + 14);
}

/// Large, and hot when its Primary dies.
const LARGE: Backing = Backing {
    bytes: 256 << 20,
    ..Backing::USUAL
};

#[test]
fn a_killed_primary_as_the_survivor() {
    let mut player = Player::on(
        LARGE,
        "12-hard-kill-primary",
        BToA,
        net(Protocol::C),
        &[],
        vec![],
    );
    assert!(player.play() >= 60);
    assert!(player.data()[17 * 4096..].starts_with(b"ext-0 "));
    assert_eq!(player.state().disk, DiskState::UpToDate);
}

#[test]
fn a_killed_primary_as_that_primary() {
    let mut actions = begun();
    actions.extend(writes("12-hard-kill-primary"));
    actions.extend([Action::Crash, down()]);
    let mut player = Player::on(
        LARGE,
        "12-hard-kill-primary",
        AToB,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 60);
}

#[test]
fn a_pulled_cable_as_the_primary() {
    let mut actions = begun();
    actions.push(Action::LinkEnds);
    actions.extend([11, 12].map(new_block));
    actions.extend([connect(), secondary(), down()]);
    let mut player = Player::new("13-cable-cut", AToB, net(Protocol::C), &[], actions);
    assert!(player.play() >= 22);
}

#[test]
fn a_pulled_cable_as_the_secondary() {
    let mut player = Player::new("13-cable-cut", BToA, net(Protocol::C), &[], vec![]);
    assert!(player.play() >= 22);
    assert!(player.data()[11 * 4096..].starts_with(b"new-11 "));
    assert!(player.data()[12 * 4096..].starts_with(b"new-12 "));
}

#[test]
fn external_metadata_as_the_source() {
    let name = "16-flexible-external-md";
    let data = resynced(name);
    let mut actions = vec![primary(Force::Yes), Action::LinkEnds];
    actions.extend([0, 265].map(new_block));
    actions.extend([secondary(), down()]);
    let mut player = Player::on(
        Backing::EXTERNAL,
        name,
        AToB,
        net(Protocol::C),
        &data,
        actions,
    );
    assert!(player.play() >= 15);
    assert!(player.whole_disk()[265 * 4096..].starts_with(b"new-265 "));
}

#[test]
fn external_metadata_as_the_target() {
    let name = "16-flexible-external-md";
    let actions = vec![disconnect()];
    let mut player = Player::on(
        Backing::EXTERNAL,
        name,
        BToA,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 14);
    assert_eq!(player.whole_disk(), resynced(name));
}

#[test]
fn a_primary_that_pulls_ahead_as_its_peer() {
    let name = "17-ahead-behind";
    let net = net(Protocol::A);
    let mut player = Player::on(Backing::EXTERNAL, name, BToA, net, &[], vec![]);
    assert!(player.play() >= 20);
    assert_eq!(player.state().conn, ConnState::WFConnection);
    assert_eq!(player.state().disk, DiskState::UpToDate);
    let resynced = resynced(name);
    let differing = (0..resynced.len() / 4096)
        .map(|block| block * 4096..(block + 1) * 4096)
        .filter(|range| resynced[range.clone()].iter().any(|byte| *byte != 0))
        .find(|range| player.whole_disk()[range.clone()] != resynced[range.clone()]);
    assert_eq!(differing, None);
}

#[test]
fn a_failing_disk_of_the_peer_as_the_primary() {
    let mut actions = begun();
    actions.extend([1, 2].map(new_block));
    actions.push(Action::Unseen(Box::new(new_block(3))));
    actions.extend([secondary(), down()]);
    let name = "18-peer-io-error";
    let mut player = Player::on(
        Backing::EXTERNAL,
        name,
        AToB,
        net(Protocol::C),
        &[],
        actions,
    );
    assert!(player.play() >= 20);
}

#[test]
fn a_failing_disk_as_the_node_that_detaches() {
    let bad = Backing {
        bad_byte: Some(2 * 4096),
        ..Backing::EXTERNAL
    };
    let name = "18-peer-io-error";
    let actions = vec![attach()];
    let mut player = Player::on(bad, name, BToA, net(Protocol::C), &[], actions);
    assert!(player.play() >= 19);
    for block in [1, 2, 3] {
        let wanted = format!("new-{block} ");
        assert!(player.data()[block * 4096..].starts_with(wanted.as_bytes()));
    }
}

#[test]
fn a_killed_sync_target_as_the_source() {
    let name = "21-kill-sync-target";
    let data = resynced(name);
    let actions = vec![
        primary(Force::Yes),
        Action::LinkEnds,
        connect(),
        secondary(),
        down(),
    ];
    let slow = Backing {
        resync_rate: 100,
        ..Backing::USUAL
    };
    let mut player = Player::on(slow, name, AToB, net(Protocol::C), &data, actions);
    assert!(player.play() >= 60);
}
