//! What the person at the keyboard is told while a disk hangs, lacks what its peer has, or is held by requests that wait.
//!
//! A disk that hangs is a FUSE file whose server is stopped. Where FUSE cannot be used the tests say so and pass.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::Write as _;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::hung::StoppableDisk;
use tandem_tests::e2e::node::Settings;
use tandem_tests::e2e::pair::{LinkKind, Pair};

const BYTES: u64 = 8 << 20;

/// One access of a disk may take two seconds; the rest is for a loaded machine.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// From now on commands of the first node give up after two seconds.
fn give_up_soon(pair: &Pair) {
    let file = pair.alpha.root.join("etc/drbd.conf");
    let text = std::fs::read_to_string(file).unwrap();
    let short = text.replace("usage-count no;", "usage-count no; cmd-timeout-medium 2;");
    assert_ne!(short, text);
    pair.alpha.write_config(&short);
}

/// A pair whose first node has its disk on FUSE.
fn pair() -> Option<(Pair, StoppableDisk)> {
    let settings = Settings::default().with_disk_bytes(BYTES);
    let pair = Pair::configured(&settings, LinkKind::Direct, &std::env::temp_dir());
    let disk = StoppableDisk::mount(&pair.alpha.disk(0), BYTES)?;
    give_up_soon(&pair);
    Some((pair, disk))
}

#[test]
fn a_disk_that_does_not_answer_is_named_in_time() {
    let Some((pair, disk)) = pair() else { return };
    pair.alpha.must(&["create-md", "r0"]);
    let before = pair.alpha.must(&["get-gi", "r0"]);
    disk.stop();
    for words in [
        &["get-gi", "r0"][..],
        &["show-gi", "r0"],
        &["dump-md", "r0"],
        &["dstate", "r0"],
        &["outdate", "r0"],
        &["apply-al", "r0"],
        &["create-md", "--force", "r0"],
        &["check-resize", "r0"],
    ] {
        let begun = Instant::now();
        let path = pair.alpha.disk(0);
        let named = [path.to_str().unwrap(), "does not answer", "within 2 s"];
        pair.alpha.refused(words, 20, &named);
        assert!(begun.elapsed() < GIVEN_UP, "{words:?}");
    }
    disk.go_on();
    assert_eq!(pair.alpha.must(&["get-gi", "r0"]), before);
}

#[test]
fn a_good_disk_that_hung_is_shown_as_good_when_it_is_read_again() {
    let Some((mut pair, disk)) = pair() else {
        return;
    };
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.must(&["create-md", "r0"]);
        node.start();
    }
    pair.bring_up();
    pair.alpha.must(&["secondary", "r0"]);
    let good = |text: &str| text.split(':').skip(4).take(2).eq(["1", "1"]);
    let attached = pair.alpha.must(&["get-gi", "r0"]);
    assert!(good(&attached), "{attached}");
    disk.stop();
    pair.alpha
        .refused(&["get-gi", "r0"], 20, &["does not answer"]);
    // It is let go while it hangs.
    pair.alpha.must(&["detach", "--force", "r0"]);
    disk.go_on();
    let detached = pair.alpha.must(&["get-gi", "r0"]);
    assert!(good(&detached), "{detached}");
    let shown = pair.alpha.must(&["show-gi", "r0"]);
    assert!(shown.contains("UpToDate"), "{shown}");
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
