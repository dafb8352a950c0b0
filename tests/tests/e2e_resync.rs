//! Resync: only what changed, with writes going on, cut and continued, asked for by the administrator, and visible.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::load::{Load, Plan, read_back};
use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::verdict::{Rule, judge};
use tandem_tests::e2e::wait;

const SYNCING: [&str; 2] = ["SyncSource", "SyncTarget"];

/// A first sync that takes some seconds, so that it can be looked at and disturbed.
fn slow() -> Settings {
    Settings::default().with_resync_rate("4M")
}

fn start_first_sync(settings: &Settings, link: LinkKind) -> Pair {
    let pair = Pair::new(settings, link);
    pair.connect_fresh();
    pair.alpha.must(&["primary", "--force", "r0"]);
    pair.alpha.wait_word("cstate", &SYNCING);
    pair
}

fn plan(pair: &Pair, writers: u64) -> Plan {
    Plan {
        run: 7,
        socket: pair.alpha.socket(),
        export: String::from("r0"),
        writers,
        blocks: 256,
        first: 0,
        seed: 99,
    }
}

/// Waits until a resync has done at least `part` of the device, and says how much is left in KiB.
fn wait_progress(node: &Node, device_bytes: u64, part: f64) -> u64 {
    let limit = (device_bytes as f64 / 1024.0 * (1.0 - part)) as u64;
    let reached = || Some(node.counter(0, "oos")).filter(|left| *left <= limit);
    wait::until("progress of the resync", STATE_LIMIT, reached, || {
        node.logs()
    })
}

/// Lets the load write while the resync runs; not to its end, for under load it has only `c-min-rate`.
fn write_during_the_resync(pair: &Pair, load: &Load) {
    wait_progress(&pair.alpha, pair.device_bytes(), 0.2);
    let answered = || (load.acknowledged() > 200).then_some(());
    let explain = || pair.logs();
    wait::until("answers during the resync", STATE_LIMIT, answered, explain);
    let cstate = pair.alpha.word("cstate");
    let syncing = SYNCING.contains(&cstate.as_str());
    assert!(
        syncing,
        "the resync was over before the writes: {cstate}\n{}",
        pair.logs()
    );
}

fn everything_acknowledged_is_there(pair: &Pair, plan: &Plan, load: Load) {
    let histories = load.stop();
    pair.wait_synced();
    let found = read_back(plan, &plan.socket, &plan.export).unwrap();
    let verdict = judge(&histories, &found, Rule::NothingLost);
    assert!(
        verdict.acknowledged > 0,
        "nothing was written\n{}",
        pair.logs()
    );
    assert!(
        verdict.faults.is_empty(),
        "{:?}\n{}",
        verdict.faults,
        pair.logs()
    );
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn what_was_written_while_disconnected_is_resynced_and_nothing_else() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    pair.bravo.must(&["disconnect", "r0"]);
    pair.alpha.wait_state("WFConnection", "UpToDate/DUnknown");
    let received = pair.bravo.settled_counter(0, "nr");
    let mut client = pair.client(&pair.alpha);
    for block in 0..10u64 {
        let data = pattern(block as u32 + 1, 4096);
        client.write(block * (1 << 20), &data, Fua::No).unwrap();
        record.write(block * (1 << 20), &data);
    }
    client.disconnect().unwrap();
    assert_eq!(
        pair.alpha.settled_counter(0, "oos"),
        40,
        "ten blocks of 4 KiB\n{}",
        pair.logs()
    );
    pair.bravo.must(&["connect", "r0"]);
    pair.wait_synced();
    let resynced = pair.bravo.settled_counter(0, "nr") - received;
    assert!(
        (40..=48).contains(&resynced),
        "{resynced} KiB were sent to bring 40 KiB up to date\n{}",
        pair.logs()
    );
    assert_eq!(pair.alpha.settled_counter(0, "oos"), 0);
    pair.down_and_compare(&record);
}

#[test]
fn a_pair_that_was_cut_without_writes_needs_no_resync() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let sent = pair.alpha.settled_counter(0, "ns");
    pair.cut();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.bravo.wait_word("cstate", &["WFConnection"]);
    pair.heal();
    pair.wait_synced();
    assert_eq!(
        pair.alpha.settled_counter(0, "ns"),
        sent,
        "something was resynced\n{}",
        pair.logs()
    );
}

#[test]
fn writes_during_a_resync_at_the_source_arrive_at_the_target() {
    let pair = start_first_sync(&slow(), LinkKind::Direct);
    let plan = plan(&pair, 2);
    let load = Load::start(&plan);
    write_during_the_resync(&pair, &load);
    everything_acknowledged_is_there(&pair, &plan, load);
}

#[test]
fn writes_during_a_resync_at_the_target_are_kept_when_the_target_is_primary() {
    let pair = Pair::synced(&slow(), LinkKind::Direct);
    // Alpha stays Primary and gives up its disk: its data come back from bravo while it writes.
    pair.alpha.must(&["invalidate", "r0"]);
    assert_eq!(pair.alpha.wait_word("cstate", &SYNCING), "SyncTarget");
    let plan = plan(&pair, 2);
    let load = Load::start(&plan);
    write_during_the_resync(&pair, &load);
    everything_acknowledged_is_there(&pair, &plan, load);
}

#[test]
fn a_resync_that_was_cut_goes_on_where_it_was() {
    let pair = start_first_sync(&slow().with_disk_bytes(24 << 20), LinkKind::Proxied);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(5, 65_536);
    client.write(15 << 20, &data, Fua::No).unwrap();
    record.write(15 << 20, &data);
    wait_progress(&pair.alpha, pair.device_bytes(), 0.6);
    pair.cut();
    pair.bravo
        .wait_state("WFConnection", "Inconsistent/DUnknown");
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let words = ["(-2) Need access to UpToDate data"];
    pair.bravo.refused(&["primary", "r0"], 17, &words);
    let left = pair.alpha.settled_counter(0, "oos");
    assert!(
        left > 0,
        "the resync was over before the cut\n{}",
        pair.logs()
    );
    client.write(0, &data, Fua::Yes).unwrap();
    record.write(0, &data);
    client.disconnect().unwrap();
    let before = pair.bravo.settled_counter(0, "nr");
    pair.heal();
    pair.wait_synced();
    let resynced = pair.bravo.settled_counter(0, "nr") - before;
    // What the target got in the last seconds was not yet flushed: it comes again.
    let most = left + 10 * 1024;
    assert!(
        most < pair.device_bytes() / 1024,
        "{left} KiB left\n{}",
        pair.logs()
    );
    assert!(
        resynced <= most,
        "{left} KiB were left at the cut, {resynced} KiB were sent after it (most: {most})\n{}",
        pair.logs()
    );
    pair.down_and_compare(&record);
}

#[test]
fn invalidate_and_invalidate_remote_bring_the_whole_disk_again() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(8, 3 << 20);
    client.write(1 << 20, &data, Fua::No).unwrap();
    record.write(1 << 20, &data);
    client.disconnect().unwrap();
    for (node, command) in [
        (&pair.bravo, "invalidate"),
        (&pair.alpha, "invalidate-remote"),
    ] {
        let before = pair.bravo.counter(0, "nr");
        node.must(&[command, "r0"]);
        let whole = || {
            let received = pair.bravo.counter(0, "nr") - before;
            (received >= pair.device_bytes() / 1024).then_some(())
        };
        wait::until(command, STATE_LIMIT, whole, || pair.logs());
        pair.wait_synced();
    }
    pair.down_and_compare(&record);
}

#[test]
fn the_progress_of_a_resync_is_visible_everywhere() {
    let pair = start_first_sync(&slow(), LinkKind::Direct);
    wait_progress(&pair.bravo, pair.device_bytes(), 0.1);
    let text = pair.bravo.proc();
    for words in [
        " 0: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----",
        "\t[",
        "] sync'ed:",
        "\tfinish: 0:00:0",
        " want: ",
        " K/sec",
    ] {
        assert!(
            text.contains(words),
            "{words:?} is not in\n{text}\n{}",
            pair.logs()
        );
    }
    let text = pair.alpha.must(&["status", "r0"]);
    for words in ["replication:SyncSource", "peer-disk:Inconsistent", "done:"] {
        assert!(
            text.contains(words),
            "{words:?} is not in\n{text}\n{}",
            pair.logs()
        );
    }
    let status = pair.alpha.status();
    let device = &status["connections"][0]["peer_devices"][0];
    assert_eq!(device["replication-state"], "SyncSource", "{status:#}");
    assert!(device["out-of-sync"].as_u64().unwrap() > 0, "{status:#}");
    let percent = device["percent-in-sync"].as_f64().unwrap();
    assert!(percent > 5.0 && percent < 100.0, "{status:#}");
    pair.wait_synced();
    assert_eq!(
        pair.alpha.status()["connections"][0]["peer_devices"][0]["out-of-sync"],
        0
    );
}

#[test]
fn a_paused_resync_stands_still_until_it_is_resumed() {
    let pair = start_first_sync(&slow(), LinkKind::Direct);
    pair.bravo.must(&["pause-sync", "r0"]);
    pair.bravo.wait_word("cstate", &["PausedSyncT"]);
    pair.alpha.wait_word("cstate", &["PausedSyncS"]);
    pair.bravo.refused(
        &["pause-sync", "r0"],
        10,
        &["(134) Sync-pause flag is already set"],
    );
    assert!(
        pair.bravo.proc().contains("C r--u--"),
        "{}",
        pair.bravo.proc()
    );
    assert!(
        pair.alpha.proc().contains("C r-p---"),
        "{}",
        pair.alpha.proc()
    );
    let left = pair.bravo.counter(0, "oos");
    let start = std::time::Instant::now();
    let passed = || (start.elapsed() > Duration::from_secs(1)).then_some(());
    wait::until("a second", STATE_LIMIT, passed, String::new);
    // Requests on their way when it was paused may still be answered.
    let moved = left - pair.bravo.counter(0, "oos");
    assert!(
        moved <= 2048,
        "{moved} KiB were resynced during the pause\n{}",
        pair.logs()
    );
    assert!(pair.bravo.counter(0, "oos") > 0, "{}", pair.logs());
    pair.bravo.must(&["resume-sync", "r0"]);
    pair.wait_synced();
    pair.bravo.refused(
        &["resume-sync", "r0"],
        10,
        &["(135) Sync-pause flag is already cleared"],
    );
}
