//! Nodes that die, hang and end in order: whatever was acknowledged is there, and the disks are equal in the end.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::history::History;
use tandem_tests::e2e::load::{Load, Plan, read_back};
use tandem_tests::e2e::node::{STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::verdict::{Rule, judge};
use tandem_tests::e2e::wait;

fn plan(pair: &Pair) -> Plan {
    Plan {
        run: 11,
        socket: pair.alpha.socket(),
        export: String::from("r0"),
        writers: 3,
        blocks: 512,
        first: 0,
        seed: 4242,
    }
}

/// Waits until the load has had this many more answers.
fn wait_answers(pair: &Pair, load: &Load, more: u64) {
    let before = load.acknowledged();
    let answered = || (load.acknowledged() >= before + more).then_some(());
    wait::until("answers to the load", STATE_LIMIT, answered, || pair.logs());
}

/// Reads everything on the Primary alpha and judges it.
fn nothing_is_lost(pair: &Pair, plan: &Plan, histories: &[History]) {
    let found = read_back(plan, &plan.socket, &plan.export);
    let found = found.unwrap_or_else(|error| panic!("read back: {error}\n{}", pair.logs()));
    let verdict = judge(histories, &found, Rule::NothingLost);
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
}

fn down_and_equal(pair: &Pair) {
    pair.wait_synced();
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn a_killed_secondary_is_not_noticed_by_clients_and_is_brought_up_to_date() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let plan = plan(&pair);
    let load = Load::start(&plan);
    wait_answers(&pair, &load, 100);
    pair.bravo.kill();
    wait_answers(&pair, &load, 100);
    pair.alpha.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.wait_synced();
    wait_answers(&pair, &load, 100);
    let histories = load.stop();
    let failed = histories
        .iter()
        .flat_map(|history| &history.writes)
        .filter(|write| write.acknowledged.is_none());
    assert_eq!(failed.count(), 0, "a client saw an error\n{}", pair.logs());
    nothing_is_lost(&pair, &plan, &histories);
    down_and_equal(&pair);
}

#[test]
fn a_killed_primary_comes_back_with_everything_it_acknowledged() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let plan = plan(&pair);
    let load = Load::start(&plan);
    wait_answers(&pair, &load, 200);
    pair.alpha.kill();
    let histories = load.stop();
    pair.bravo.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    pair.wait_synced();
    pair.alpha.must(&["primary", "r0"]);
    nothing_is_lost(&pair, &plan, &histories);
    down_and_equal(&pair);
}

#[test]
fn a_killed_primary_returns_as_secondary_to_the_node_that_took_over() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut plan = plan(&pair);
    let load = Load::start(&plan);
    wait_answers(&pair, &load, 200);
    pair.alpha.kill();
    let histories = load.stop();
    pair.bravo.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.bravo.must(&["primary", "r0"]);
    plan.socket = pair.bravo.socket();
    nothing_is_lost(&pair, &plan, &histories);
    let mut client = pair.client(&pair.bravo);
    let data = pattern(9, 8192);
    client.write(8 << 20, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    pair.wait_synced();
    assert_eq!(
        pair.bravo.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
    nothing_is_lost(&pair, &plan, &histories);
    down_and_equal(&pair);
}

#[test]
fn after_both_were_killed_everything_acknowledged_is_there() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let plan = plan(&pair);
    let load = Load::start(&plan);
    wait_answers(&pair, &load, 200);
    pair.bravo.kill();
    wait_answers(&pair, &load, 50);
    pair.alpha.kill();
    let histories = load.stop();
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.start();
        node.must(&["up", "r0"]);
    }
    pair.wait_synced();
    pair.alpha.must(&["primary", "r0"]);
    nothing_is_lost(&pair, &plan, &histories);
    down_and_equal(&pair);
}

#[test]
fn a_peer_that_hangs_is_dropped_after_the_ping_timeout_and_comes_back() {
    let settings = Settings::default().with_net("ping-int 1; ping-timeout 5; timeout 15;");
    let pair = Pair::synced(&settings, LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    pair.bravo.signal("STOP");
    let data = pattern(4, 64 << 10);
    let start = Instant::now();
    client.write(1 << 20, &data, Fua::No).unwrap();
    let waited = start.elapsed();
    record.write(1 << 20, &data);
    assert!(
        waited < Duration::from_secs(10),
        "the write waited {waited:?} for a peer that hangs (ping-int 1 s, ping-timeout 0.5 s)\n{}",
        pair.logs()
    );
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.bravo.signal("CONT");
    pair.wait_synced();
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}

#[test]
fn sigterm_takes_everything_down_in_order() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let plan = plan(&pair);
    let load = Load::start(&plan);
    wait_answers(&pair, &load, 100);
    // With a client in the middle of its writes.
    pair.alpha.signal("TERM");
    assert_eq!(pair.alpha.wait_for_end(), Some(0), "{}", pair.logs());
    let histories = load.stop();
    assert!(
        !pair.alpha.control_socket().exists(),
        "a control socket without a daemon stays behind"
    );
    let cstate = pair.bravo.word("cstate");
    assert_ne!(cstate, "Connected", "{}", pair.logs());
    let received = pair.bravo.settled_counter(0, "nr");
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    if pair.bravo.word("cstate") == "StandAlone" {
        pair.bravo.must(&["connect", "r0"]);
    }
    pair.wait_synced();
    let resynced = pair.bravo.settled_counter(0, "nr") - received;
    assert!(
        resynced <= 64,
        "{resynced} KiB were resynced after an orderly end\n{}",
        pair.logs()
    );
    pair.alpha.must(&["primary", "r0"]);
    nothing_is_lost(&pair, &plan, &histories);
    down_and_equal(&pair);
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut command = std::process::Command::new(tandem_tests::e2e::node::binary());
    command.args(["daemon", "--root"]).arg(&pair.alpha.root);
    let ended = tandem_tests::e2e::process::run(&mut command, STATE_LIMIT);
    assert!(ended.code.is_some_and(|code| code != 0), "{}", ended.all());
    let pid = pair.alpha.pid().unwrap().to_string();
    assert!(
        ended.says("another tandemd runs") && ended.says(&pid),
        "{}",
        ended.all()
    );
    assert_eq!(pair.alpha.word("cstate"), "Connected", "{}", pair.logs());
}

#[test]
fn a_target_killed_in_the_first_sync_goes_on_after_it_comes_back() {
    let mut pair = Pair::new(
        &Settings::default().with_resync_rate("4M"),
        LinkKind::Direct,
    );
    pair.connect_fresh();
    pair.alpha.must(&["primary", "--force", "r0"]);
    let mut client = pair.client(&pair.alpha);
    let mut record = pair.record();
    let data = pattern(3, 1 << 20);
    client.write(3 << 20, &data, Fua::No).unwrap();
    record.write(3 << 20, &data);
    let whole = pair.device_bytes() / 1024;
    let some = || (pair.alpha.counter(0, "oos") < whole * 3 / 4).then_some(());
    wait::until("a quarter of the first sync", STATE_LIMIT, some, || {
        pair.logs()
    });
    pair.bravo.kill();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    client.write(0, &data, Fua::No).unwrap();
    record.write(0, &data);
    client.disconnect().unwrap();
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

#[test]
fn a_source_killed_in_the_first_sync_goes_on_after_it_comes_back() {
    let mut pair = Pair::new(
        &Settings::default().with_resync_rate("4M"),
        LinkKind::Direct,
    );
    pair.connect_fresh();
    pair.alpha.must(&["primary", "--force", "r0"]);
    let mut client = pair.client(&pair.alpha);
    let mut record = pair.record();
    let data = pattern(6, 1 << 20);
    client.write(5 << 20, &data, Fua::Yes).unwrap();
    record.write(5 << 20, &data);
    drop(client);
    pair.alpha.wait_word("cstate", &["SyncSource"]);
    pair.alpha.kill();
    pair.bravo
        .wait_state("WFConnection", "Inconsistent/DUnknown");
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

#[test]
fn a_daemon_killed_while_it_attaches_attaches_the_next_time() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(2, 256 << 10);
    client.write(2 << 20, &data, Fua::No).unwrap();
    record.write(2 << 20, &data);
    client.disconnect().unwrap();
    for round in 0..4 {
        pair.bravo.kill();
        pair.bravo.start();
        let up = {
            let mut command = std::process::Command::new(tandem_tests::e2e::node::binary());
            command
                .args(["adm", "--root"])
                .arg(&pair.bravo.root)
                .args(["up", "r0"]);
            command.env("__DRBD_NODE__", "bravo");
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            command.spawn().unwrap()
        };
        // Somewhere in the middle: later in each round.
        std::thread::sleep(Duration::from_millis(15 * round));
        pair.bravo.kill();
        wait_for_command(up);
    }
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

/// Waits for the end of a command whose daemon has died, and ends it if it does not.
fn wait_for_command(mut child: std::process::Child) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().ok();
            child.wait().ok();
            panic!("`up` did not notice within 20 s that its daemon died");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
