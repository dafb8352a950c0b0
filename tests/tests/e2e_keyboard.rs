//! What the person at the keyboard is told while a disk lacks what its peer has, or is held by requests that wait.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::Write as _;
use std::net::Shutdown;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::Settings;
use tandem_tests::e2e::pair::{LinkKind, Pair};

const BYTES: u64 = 8 << 20;

/// From now on commands of the first node give up after two seconds.
fn give_up_soon(pair: &Pair) {
    let file = pair.alpha.root.join("etc/drbd.conf");
    let text = std::fs::read_to_string(file).unwrap();
    let short = text.replace("usage-count no;", "usage-count no; cmd-timeout-medium 2;");
    assert_ne!(short, text);
    pair.alpha.write_config(&short);
}

/// Alpha is Primary, has lost its disk while it was written to, and is alone.
fn diskless_and_alone(pair: &Pair) {
    pair.alpha.must(&["detach", "--force", "r0"]);
    let mut client = pair.client(&pair.alpha);
    client.write(0, &[1; 4096], Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.alpha.must(&["disconnect", "--force", "r0"]);
    pair.alpha.wait_state("StandAlone", "Diskless/DUnknown");
}

#[test]
fn a_disk_that_lacks_what_its_peer_has_is_attached_once_they_are_connected() {
    let settings = Settings::default().with_disk_bytes(BYTES);
    let pair = Pair::new(&settings, LinkKind::Direct);
    give_up_soon(&pair);
    pair.bring_up();
    for word in ["up", "adjust"] {
        diskless_and_alone(&pair);
        let words = ["(150)", "up r0   # connects first, then attaches"];
        pair.alpha.refused(&["attach", "r0"], 10, &words);
        let status = pair.alpha.explained();
        assert!(
            status.contains("up r0   # connects and attaches"),
            "{status}"
        );
        let told = pair.alpha.adm(&[word, "r0"]);
        assert_eq!(told.code, Some(0), "{}", told.all());
        assert!(told.says("once the peer is connected"), "{}", told.all());
        pair.wait_synced();
    }
    diskless_and_alone(&pair);
    pair.bravo.must(&["down", "r0"]);
    let words = ["(150)", "the peer was not connected"];
    pair.alpha.refused(&["up", "r0"], 10, &words);
    // It goes on trying to connect: what helps now is the other node.
    let words = ["(150)", "up r0   # on the peer"];
    pair.alpha.refused(&["attach", "r0"], 10, &words);
}

#[test]
fn a_demotion_held_by_requests_that_wait_says_what_lets_them_go() {
    let settings = Settings::default().with_disk_bytes(BYTES);
    let pair = Pair::synced(&settings, LinkKind::Direct);
    pair.alpha.must(&["suspend-io", "r0"]);
    let client = pair.client(&pair.alpha);
    let mut socket = client.breaker().unwrap();
    // A write of a block of zeroes (docs/spec/nbd.md 5), and the end, which is read behind it.
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0, 0, 0, 1]);
    request.extend([0; 16]);
    request.extend(4096_u32.to_be_bytes());
    request.extend([0; 4096]);
    socket.write_all(&request).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    let words = ["(-12)", "suspended", "resume-io r0"];
    let told = pair.alpha.refused(&["secondary", "r0"], 11, &words);
    assert!(!told.says("unmount"), "{}", told.all());
    pair.alpha.must(&["resume-io", "r0"]);
    pair.alpha.must(&["secondary", "r0"]);
}
