//! Both nodes were Primary while cut off from each other: nothing is lost silently, and the way out is said.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::{Record, pattern};
use tandem_tests::e2e::wait;

/// Handlers that leave a note beside the configuration.
fn noting() -> Settings {
    let note = |name: &str| {
        format!("{name} \"echo {name} $DRBD_RESOURCE $DRBD_VOLUME >> $DRBD_CONF.notes\";")
    };
    let handlers = format!("{} {}", note("initial-split-brain"), note("split-brain"));
    Settings {
        handlers,
        ..Settings::default()
    }
}

fn notes(node: &Node) -> String {
    fs::read_to_string(node.root.join("etc/drbd.conf.notes")).unwrap_or_default()
}

/// Block 1 is written by alpha, block 2 by bravo, while they do not see each other; alpha also writes `more` further blocks.
fn split(pair: &Pair, alpha: &mut Record, bravo: &mut Record, more: u64) {
    pair.cut();
    pair.bravo.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.bravo.must(&["primary", "r0"]);
    for (node, record, block, blocks) in [
        (&pair.alpha, alpha, 1, 1 + more),
        (&pair.bravo, bravo, 2 + more, 1),
    ] {
        let data = pattern(block as u32, blocks as usize * 4096);
        let mut client = pair.client(node);
        client.write(block * 4096, &data, Fua::Yes).unwrap();
        client.disconnect().unwrap();
        record.write(block * 4096, &data);
    }
}

/// Waits until both have seen the split and at least one is StandAlone (docs/spec/state-machine.md 5.7).
fn wait_detected(pair: &Pair) {
    let detected = || {
        let words = [pair.alpha.word("cstate"), pair.bravo.word("cstate")];
        let seen = [&pair.alpha, &pair.bravo]
            .iter()
            .all(|node| node.whole_log().contains("plit-Brain detected"));
        (seen && words.contains(&String::from("StandAlone"))).then_some(())
    };
    wait::until(
        "the split brain on both nodes",
        STATE_LIMIT,
        detected,
        || pair.logs(),
    );
}

fn serves(pair: &Pair, node: &Node, record: &Record) {
    let mut client = pair.client(node);
    let data = client.read(0, 1 << 20).unwrap();
    assert!(
        data == record.slice(0, 1 << 20),
        "{} serves other data than its own\n{}",
        node.name,
        pair.logs()
    );
    client.disconnect().unwrap();
}

#[test]
fn both_nodes_see_a_split_brain_keep_their_data_and_say_what_to_type() {
    let pair = Pair::synced(&noting(), LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 0);
    pair.heal();
    wait_detected(&pair);
    for node in [&pair.alpha, &pair.bravo] {
        let log = node.whole_log();
        assert!(
            log.contains("discard-my-data"),
            "the log names no way out\n{}",
            pair.logs()
        );
        if node.word("cstate") == "StandAlone" {
            let told = node.explained();
            let named = told.contains("connect --discard-my-data r0");
            assert!(
                named,
                "`tandem status` names no way out: {told}\n{}",
                pair.logs()
            );
        }
        let dstate = node.word("dstate");
        assert!(
            dstate.starts_with("UpToDate/"),
            "{} is {dstate}\n{}",
            node.name,
            pair.logs()
        );
        assert!(node.word("role").starts_with("Primary/"), "{}", pair.logs());
        let noted = || {
            notes(node)
                .contains("initial-split-brain r0 0")
                .then_some(())
        };
        wait::until("the handler", STATE_LIMIT, noted, || pair.logs());
    }
    let noted = || {
        let both = notes(&pair.alpha) + &notes(&pair.bravo);
        both.lines()
            .any(|line| line == "split-brain r0 0")
            .then_some(())
    };
    wait::until("the handler split-brain", STATE_LIMIT, noted, || {
        pair.logs()
    });
    serves(&pair, &pair.alpha, &a);
    serves(&pair, &pair.bravo, &b);
}

#[test]
fn discard_my_data_recovers_and_the_survivor_keeps_everything() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 0);
    pair.heal();
    wait_detected(&pair);
    let primary = pair.bravo.adm(&["disconnect", "r0"]);
    assert!(
        primary.code == Some(0) || primary.says("(162)"),
        "{}",
        primary.all()
    );
    // A Primary must not discard its data.
    let words = [
        "(123) --discard-my-data not allowed when primary",
        "secondary r0",
    ];
    pair.bravo
        .refused(&["connect", "--discard-my-data", "r0"], 10, &words);
    pair.bravo.must(&["secondary", "r0"]);
    pair.bravo.must(&["connect", "--discard-my-data", "r0"]);
    if pair.alpha.word("cstate") == "StandAlone" {
        pair.alpha.must(&["connect", "r0"]);
    }
    pair.wait_synced();
    assert_eq!(
        pair.alpha.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
    serves(&pair, &pair.alpha, &a);
    pair.down_and_compare(&a);
}

#[test]
fn neither_side_discarding_leaves_the_split_and_the_data_as_they_were() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 0);
    pair.heal();
    wait_detected(&pair);
    for node in [&pair.alpha, &pair.bravo] {
        if node.word("cstate") == "StandAlone" {
            node.must(&["connect", "r0"]);
        }
    }
    wait_detected(&pair);
    serves(&pair, &pair.alpha, &a);
    serves(&pair, &pair.bravo, &b);
}

#[test]
fn discard_my_data_on_a_node_that_is_already_connecting_changes_nothing_and_says_what_to_type() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 0);
    pair.bravo.must(&["secondary", "r0"]);
    let words = ["(102) Local address(port) already in use", "disconnect r0"];
    pair.bravo
        .refused(&["connect", "--discard-my-data", "r0"], 10, &words);
    pair.heal();
    wait_detected(&pair);
    serves(&pair, &pair.alpha, &a);
    pair.bravo.adm(&["disconnect", "r0"]);
    pair.bravo.must(&["connect", "--discard-my-data", "r0"]);
    if pair.alpha.word("cstate") == "StandAlone" {
        pair.alpha.must(&["connect", "r0"]);
    }
    pair.down_and_compare(&a);
}

#[test]
fn with_a_policy_the_node_with_fewer_changes_is_the_victim() {
    let settings = Settings::default().with_net("after-sb-0pri discard-least-changes;");
    let pair = Pair::synced(&settings, LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 9);
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["secondary", "r0"]);
    pair.heal();
    pair.wait_synced();
    pair.alpha.wait_log("automatically solved");
    pair.down_and_compare(&a);
}

#[test]
fn with_discard_secondary_the_primary_survives() {
    let settings = Settings::default().with_net("after-sb-1pri discard-secondary;");
    let pair = Pair::synced(&settings, LinkKind::Proxied);
    let (mut a, mut b) = (pair.record(), pair.record());
    split(&pair, &mut a, &mut b, 3);
    pair.alpha.must(&["secondary", "r0"]);
    pair.heal();
    pair.wait_synced();
    assert_eq!(
        pair.bravo.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
    serves(&pair, &pair.bravo, &b);
    pair.down_and_compare(&b);
}
