//! Waiting for the peer at boot: which limit counts after which past, and that no wait is for ever unless it was told so.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use tandem_tests::e2e::node::{Settings, net};
use tandem_tests::e2e::pair::{LinkKind, Pair};

/// Far less than the limits that must not count here.
const SHORT: Duration = Duration::from_secs(20);

fn with_limits(startup: &str) -> Settings {
    Settings {
        startup: startup.to_owned(),
        net: format!("{} timeout 20; ping-int 2;", net('C')),
        ..Settings::default()
    }
}

#[test]
fn a_node_that_was_alone_before_waits_as_long_as_degr_wfc_timeout_says() {
    let mut pair = Pair::synced(
        &with_limits("wfc-timeout 300; degr-wfc-timeout 2;"),
        LinkKind::Direct,
    );
    pair.bravo.kill();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.alpha.crash_and_come_back();
    pair.alpha.must(&["up", "r0"]);
    let begun = Instant::now();
    let words = [
        "gave up waiting",
        "degr-wfc-timeout",
        "without its peer",
        "next:",
    ];
    pair.alpha.refused(&["wait-connect", "r0"], 5, &words);
    // At boot the end of the wait is no failure.
    let ended = pair.alpha.adm(&["wait-con-int"]);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    assert!(ended.says("degr-wfc-timeout"), "{}", ended.all());
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    // What the command line says counts more.
    let words = ["gave up waiting", "degr-wfc-timeout"];
    let args = ["wait-connect", "--degr-wfc-timeout=1", "r0"];
    pair.alpha.refused(&args, 5, &words);
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.alpha
        .must(&["wait-connect", "--degr-wfc-timeout=60", "r0"]);
}

#[test]
fn a_node_that_had_its_peer_waits_as_long_as_wfc_timeout_says() {
    let mut pair = Pair::synced(
        &with_limits("wfc-timeout 2; degr-wfc-timeout 300;"),
        LinkKind::Direct,
    );
    pair.alpha.kill();
    pair.bravo.kill();
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    let begun = Instant::now();
    let words = ["gave up waiting", "wfc-timeout", "was not alone"];
    pair.alpha.refused(&["wait-connect", "r0"], 5, &words);
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
}

#[test]
fn a_node_that_knows_its_peer_to_be_outdated_waits_as_long_as_outdated_wfc_timeout_says() {
    let mut pair = Pair::synced(
        &with_limits("wfc-timeout 300; degr-wfc-timeout 250; outdated-wfc-timeout 2;"),
        LinkKind::Direct,
    );
    // The source of a resync that did not end knows that its peer's disk is the worse one, and remembers it.
    pair.alpha.must(&["pause-sync", "r0"]);
    pair.bravo.must(&["invalidate", "r0"]);
    pair.alpha.wait_word("cstate", &["PausedSyncS"]);
    pair.bravo.kill();
    pair.alpha.kill();
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    pair.alpha.wait_word("dstate", &["UpToDate/Outdated"]);
    let begun = Instant::now();
    let words = [
        "gave up waiting",
        "outdated-wfc-timeout",
        "known to be outdated",
        "next:",
    ];
    pair.alpha.refused(&["wait-connect", "r0"], 5, &words);
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.alpha
        .must(&["wait-connect", "--outdated-wfc-timeout=60", "r0"]);
    // The pause ended with the daemon that it was asked of.
    pair.alpha.wait_word("dstate", &["UpToDate/UpToDate"]);
}

#[test]
fn a_resource_that_is_not_up_is_not_waited_for() {
    let pair = Pair::new(&with_limits("wfc-timeout 0;"), LinkKind::Direct);
    let ended = pair.alpha.adm(&["wait-con-int"]);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    assert!(ended.says("r0: is not up"), "{}", ended.all());
}
