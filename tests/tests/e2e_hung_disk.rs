//! A disk that hangs: pings are answered, commands are answered, and nothing is lost when it goes on.
//!
//! The disk is a FUSE file whose server is stopped. Where FUSE cannot be used the tests say so and pass.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::thread;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::hung::StoppableDisk;
use tandem_tests::e2e::node::Settings;
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::pattern;

const BYTES: u64 = 8 << 20;

/// How long the disk hangs: several ping timeouts.
const HANG: Duration = Duration::from_secs(3);

/// A second without traffic asks for a ping; its answer may take a second.
const PINGS: &str = "ping-int 1; ping-timeout 10;";

/// Which node's disk hangs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Primary,
    Secondary,
}

/// A synced pair, one of whose disks can be stopped. None where FUSE cannot be used.
fn synced(whose: Whose, net: &str) -> Option<(Pair, StoppableDisk)> {
    let settings = Settings::default().with_disk_bytes(BYTES).with_net(net);
    let mut pair = Pair::configured(&settings, LinkKind::Direct, &std::env::temp_dir());
    let path = match whose {
        Whose::Primary => pair.alpha.disk(0),
        Whose::Secondary => pair.bravo.disk(0),
    };
    let disk = StoppableDisk::mount(&path, BYTES)?;
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.must(&["create-md", "r0"]);
        node.start();
    }
    pair.bring_up();
    Some((pair, disk))
}

/// The disk hangs in the middle of a write; the link stays, commands are answered, the write is answered when the disk goes on.
fn a_hang_is_survived(pair: &Pair, disk: &StoppableDisk) {
    let mut record = pair.record();
    let data = pattern(1, 64 << 10);
    disk.stop();
    let socket = pair.alpha.socket();
    let writer = {
        let data = data.clone();
        thread::spawn(move || {
            let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
            client.write(1 << 20, &data, Fua::Yes).unwrap();
            client.flush().unwrap();
            client.disconnect().unwrap();
        })
    };
    let start = Instant::now();
    while start.elapsed() < HANG {
        for node in [&pair.alpha, &pair.bravo] {
            assert_eq!(node.word("cstate"), "Connected", "{}", pair.logs());
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(
        !writer.is_finished(),
        "a write was answered though a disk hangs\n{}",
        pair.logs()
    );
    disk.go_on();
    let ended = writer.join();
    assert!(ended.is_ok(), "the client failed\n{}", pair.logs());
    record.write(1 << 20, &data);
    for node in [&pair.alpha, &pair.bravo] {
        let log = node.whole_log();
        assert_eq!(
            log.matches("-> WFReportParams").count(),
            1,
            "the link broke\n{}",
            pair.logs()
        );
    }
    pair.down_and_compare(&record);
}

#[test]
fn a_hanging_disk_of_the_secondary_breaks_no_link_and_loses_nothing() {
    if let Some((pair, disk)) = synced(Whose::Secondary, PINGS) {
        a_hang_is_survived(&pair, &disk);
    }
}

#[test]
fn a_hanging_disk_of_the_primary_breaks_no_link_and_loses_nothing() {
    if let Some((pair, disk)) = synced(Whose::Primary, PINGS) {
        a_hang_is_survived(&pair, &disk);
    }
}

#[test]
fn a_primary_goes_on_alone_when_its_peers_disk_hangs_for_too_long() {
    let net = "ping-int 60; timeout 10; ko-count 2;";
    if let Some((pair, disk)) = synced(Whose::Secondary, net) {
        let mut record = pair.record();
        let mut client = pair.client(&pair.alpha);
        disk.stop();
        let data = pattern(2, 4096);
        let start = Instant::now();
        client.write(0, &data, Fua::No).unwrap();
        record.write(0, &data);
        let waited = start.elapsed();
        assert!(
            waited < Duration::from_secs(12),
            "{waited:?}; timeout x ko-count is 2 s\n{}",
            pair.logs()
        );
        disk.go_on();
        client.write(8192, &data, Fua::Yes).unwrap();
        record.write(8192, &data);
        client.disconnect().unwrap();
        pair.down_and_compare(&record);
    }
}
