//! A disk that hangs: pings are answered, commands are answered, and nothing is lost when it goes on.
//!
//! The disk is a FUSE file whose server is stopped. Where FUSE cannot be used the tests say so and pass.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::thread;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::day::fleet::{DISK_BYTES, Fleet, Side, first_primary};
use tandem_tests::e2e::hung::StoppableDisk;
use tandem_tests::e2e::node::{STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::pings;
use tandem_tests::e2e::proxy::{Flow, Proxy};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::wait;

const BYTES: u64 = 8 << 20;

/// Resources beside one whose disk hangs.
const OTHERS: usize = 4;

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
fn synced(whose: Whose, net: &str, link: LinkKind) -> Option<(Pair, StoppableDisk)> {
    let settings = Settings::default().with_disk_bytes(BYTES).with_net(net);
    let mut pair = Pair::configured(&settings, link, &std::env::temp_dir());
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
    if let Some((pair, disk)) = synced(Whose::Secondary, PINGS, LinkKind::Direct) {
        a_hang_is_survived(&pair, &disk);
    }
}

#[test]
fn a_hanging_disk_of_the_primary_breaks_no_link_and_loses_nothing() {
    if let Some((pair, disk)) = synced(Whose::Primary, PINGS, LinkKind::Direct) {
        a_hang_is_survived(&pair, &disk);
    }
}

/// Pings that the node whose disk hangs must answer before the disk goes on.
const PINGS_ANSWERED: usize = 2;

/// A node whose loop waited for the disk would answer after it only. The quickest answer counts: this machine may be busy.
const ANSWER_MAX: Duration = Duration::from_millis(50);

/// While a disk hangs with a write on its way, the peer's pings are answered at once.
fn pings_are_answered(whose: Whose) {
    // Pings alone decide: a write that is not acknowledged for long does not cost the link.
    let net = format!("{PINGS} ko-count 0;");
    let Some((pair, disk)) = synced(whose, &net, LinkKind::Proxied) else {
        return;
    };
    let proxies = pair.proxies.as_ref().unwrap();
    // The first proxy is in front of bravo, the second in front of alpha: this is the way to the node whose disk hangs.
    let ways = match whose {
        Whose::Primary => [Flow::Out, Flow::In],
        Whose::Secondary => [Flow::In, Flow::Out],
    };
    disk.stop();
    let socket = pair.alpha.socket();
    let writer = thread::spawn(move || {
        let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
        client.write(1 << 20, &pattern(1, 64 << 10), Fua::Yes)
    });
    proxies.iter().for_each(Proxy::listen);
    let answered = || {
        let of = |(proxy, way): (&Proxy, Flow)| pings::answers(&proxy.heard(), way);
        let answers = proxies.iter().zip(ways).flat_map(of);
        let answers: Vec<Duration> = answers.flatten().collect();
        (answers.len() >= PINGS_ANSWERED).then_some(answers)
    };
    let answers = wait::until("answers to pings", STATE_LIMIT, answered, || pair.logs());
    assert!(
        !writer.is_finished(),
        "the disk does not hang\n{}",
        pair.logs()
    );
    println!("answers to pings while a disk hangs: {answers:?}");
    assert!(answers.iter().min() <= Some(&ANSWER_MAX), "{answers:?}");
    assert_eq!(pair.alpha.word("cstate"), "Connected", "{}", pair.logs());
    disk.go_on();
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}\n{}", pair.logs());
}

#[test]
fn a_secondary_answers_pings_while_its_disk_hangs() {
    pings_are_answered(Whose::Secondary);
}

#[test]
fn a_primary_answers_pings_while_its_disk_hangs() {
    pings_are_answered(Whose::Primary);
}

#[test]
fn a_primary_goes_on_alone_when_its_peers_disk_hangs_for_too_long() {
    let net = "ping-int 60; timeout 10; ko-count 2;";
    if let Some((pair, disk)) = synced(Whose::Secondary, net, LinkKind::Direct) {
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

#[test]
fn sigterm_ends_a_daemon_one_of_whose_disks_hangs_and_the_others_are_in_order() {
    let mut fleet = Fleet::configured(&std::env::temp_dir(), 1 + OTHERS, &[]);
    let Some(disk) = StoppableDisk::mount(&fleet.disk(Side::Bravo, 0), DISK_BYTES) else {
        return;
    };
    fleet.bring_up();
    disk.stop();
    let mut client = fleet.client(Side::Alpha, 0);
    let writer = thread::spawn(move || client.write(1 << 20, &pattern(1, 4096), Fua::Yes));
    // The others are used until the end.
    for number in 1..=OTHERS {
        let mut client = fleet.client(first_primary(number), number);
        client.write(0, &pattern(2, 4096), Fua::No).unwrap();
    }
    fleet.bravo.signal("TERM");
    assert_eq!(fleet.bravo.wait_for_end(), Some(0), "{}", fleet.logs());
    for number in 1..=OTHERS {
        let found = fleet.disorder(Side::Bravo, number);
        assert!(found.is_empty(), "{found:?}\n{}", fleet.logs());
    }
    // The peer goes on alone with the resource.
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}\n{}", fleet.logs());
    disk.go_on();
}

#[test]
fn down_by_force_ends_a_resource_whose_disk_hangs() {
    let Some((pair, disk)) = synced(Whose::Secondary, PINGS, LinkKind::Direct) else {
        return;
    };
    let mut record = pair.record();
    let data = pattern(3, 64 << 10);
    disk.stop();
    let writer = {
        let (socket, data) = (pair.alpha.socket(), data.clone());
        thread::spawn(move || {
            let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
            client.write(1 << 20, &data, Fua::Yes).unwrap();
            client.disconnect().unwrap();
        })
    };
    // One that waits for the disk, and keeps the one with force waiting for a while.
    let mut patient = pair.bravo.adm_begun(&["down", "r0"]);
    pair.bravo
        .wait_word("cstate", &["Disconnecting", "StandAlone"]);
    let ended = pair.bravo.adm(&["down", "--force", "r0"]);
    assert_eq!(ended.code, Some(0), "{ended:?}\n{}", pair.logs());
    for words in ["those of a crash", "it stays locked"] {
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
    }
    // The one that waited sees that it is down; the client's write is answered by the node that is left.
    assert!(patient.wait().unwrap().success(), "{}", pair.logs());
    assert!(writer.join().is_ok(), "{}", pair.logs());
    record.write(1 << 20, &data);
    disk.go_on();
    // What was under way may still be on its way to the disk: the next attach waits for it, or is refused.
    let up = || pair.bravo.adm(&["adjust", "r0"]).code == Some(0);
    wait::until(
        "the disk is free",
        STATE_LIMIT,
        || up().then_some(()),
        || pair.logs(),
    );
    pair.wait_synced();
    pair.down_and_compare(&record);
}
