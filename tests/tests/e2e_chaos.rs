//! Several things go wrong at once, or one thing again and again, under load: what was acknowledged stays, and the disks end up equal.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::history::History;
use tandem_tests::e2e::load::{Load, Plan, read_back};
use tandem_tests::e2e::node::{Meta, Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::verdict::{Rule, judge};
use tandem_tests::e2e::wait;

fn plan(node: &Node, export: &str, seed: u64) -> Plan {
    Plan {
        run: seed,
        socket: node.socket(),
        export: export.to_owned(),
        writers: 2,
        blocks: 512,
        first: 0,
        seed,
    }
}

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

fn no_client_saw_an_error(pair: &Pair, histories: &[History]) {
    let writes = histories.iter().flat_map(|history| &history.writes);
    let failed = writes.filter(|write| write.acknowledged.is_none()).count();
    assert_eq!(failed, 0, "a client saw an error\n{}", pair.logs());
}

/// Lets time pass in which the load works.
fn let_it_work(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn a_load_survives_a_link_that_is_cut_at_any_moment() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let plan = plan(&pair.alpha, "r0", 21);
    let load = Load::start(&plan);
    // Cuts in the handshake, in the exchange of bitmaps, in the resync, and while connected.
    for pause in [300, 20, 700, 1500, 60, 2100, 130, 1000] {
        pair.cut();
        let_it_work(pause % 90);
        pair.heal();
        let_it_work(pause);
    }
    let histories = load.stop();
    no_client_saw_an_error(&pair, &histories);
    pair.wait_synced();
    nothing_is_lost(&pair, &plan, &histories);
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn a_load_survives_a_secondary_that_dies_again_and_again() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let plan = plan(&pair.alpha, "r0", 22);
    let load = Load::start(&plan);
    for pause in [50, 1200, 300, 700] {
        let_it_work(pause);
        pair.bravo.crash_and_come_back();
    }
    pair.alpha.wait_word("cstate", &["Connected", "SyncSource"]);
    let histories = load.stop();
    no_client_saw_an_error(&pair, &histories);
    pair.wait_synced();
    nothing_is_lost(&pair, &plan, &histories);
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn nothing_is_lost_when_the_primary_dies_again_and_again() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut all: Vec<(Plan, Vec<History>)> = Vec::new();
    for round in 0..4u64 {
        let mut plan = plan(&pair.alpha, "r0", 30 + round);
        // Each round has a part of the device for itself.
        plan.writers = 2;
        plan.blocks = 100;
        plan.first = round * 200;
        let load = Load::start(&plan);
        let working = || (load.acknowledged() > 100).then_some(());
        wait::until("the load", STATE_LIMIT, working, || pair.logs());
        pair.alpha.kill();
        let histories = load.stop();
        pair.alpha.start();
        pair.alpha.must(&["up", "r0"]);
        if round % 2 == 0 {
            // Before the resync is over.
            pair.alpha.wait_word("cstate", &["Connected", "SyncSource"]);
        } else {
            pair.wait_synced();
        }
        pair.alpha.must(&["primary", "r0"]);
        nothing_is_lost(&pair, &plan, &histories);
        all.push((plan, histories));
    }
    pair.wait_synced();
    let (plan, histories) = all.last().unwrap();
    nothing_is_lost(&pair, plan, histories);
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn roles_go_to_and_fro_between_loads() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut earlier: Option<(Plan, Vec<History>)> = None;
    for round in 0..6u64 {
        let (from, to) = if round % 2 == 0 {
            (&pair.alpha, &pair.bravo)
        } else {
            (&pair.bravo, &pair.alpha)
        };
        if let Some((mut plan, histories)) = earlier.take() {
            plan.socket = from.socket();
            nothing_is_lost(&pair, &plan, &histories);
        }
        let plan = plan(from, "r0", 40 + round);
        let load = Load::start(&plan);
        let working = || (load.acknowledged() > 50).then_some(());
        wait::until("the load", STATE_LIMIT, working, || pair.logs());
        earlier = Some((plan, load.stop()));
        from.must(&["secondary", "r0"]);
        to.must(&["primary", "r0"]);
    }
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn two_volumes_under_load_survive_the_end_of_the_secondary_and_of_the_primary() {
    let settings = Settings {
        volumes: 2,
        disk_bytes: 8 << 20,
        ..Settings::default()
    };
    let mut pair = Pair::synced(&settings, LinkKind::Direct);
    let all_good = |pair: &Pair| {
        let good = || {
            let both = "UpToDate/UpToDate\n".repeat(2);
            let words = [
                pair.alpha.must(&["dstate", "r0"]),
                pair.bravo.must(&["dstate", "r0"]),
            ];
            (words == [both.clone(), both]).then_some(())
        };
        wait::until("two good volumes", STATE_LIMIT, good, || pair.logs());
    };
    all_good(&pair);
    let plans = [plan(&pair.alpha, "r0/0", 51), plan(&pair.alpha, "r0/1", 52)];
    let loads: Vec<Load> = plans.iter().map(Load::start).collect();
    let_it_work(300);
    pair.bravo.crash_and_come_back();
    let_it_work(1500);
    all_good(&pair);
    pair.alpha.kill();
    let histories: Vec<_> = loads.into_iter().map(Load::stop).collect();
    pair.bravo.wait_word("cstate", &["WFConnection"]);
    pair.bravo.must(&["primary", "r0"]);
    for (plan, histories) in plans.iter().zip(&histories) {
        let plan = Plan {
            socket: pair.bravo.socket(),
            ..plan.clone()
        };
        nothing_is_lost(&pair, &plan, histories);
    }
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    all_good(&pair);
    pair.down();
    for volume in 0..2 {
        pair.compare_disks(volume, pair.device_bytes());
    }
}

#[test]
fn a_diskless_primary_that_loses_its_peer_answers_with_errors_and_recovers() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(1, 64 << 10);
    client.write(0, &data, Fua::Yes).unwrap();
    record.write(0, &data);
    pair.alpha.must(&["detach", "r0"]);
    pair.bravo.kill();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let start = Instant::now();
    for (what, result) in [
        ("read", client.read(0, 4096).map(drop)),
        ("write", client.write(8 << 20, &data, Fua::No)),
    ] {
        let error = result.expect_err("there is no disk at all");
        assert_eq!(
            error.raw_os_error(),
            Some(5),
            "{what}: {error}\n{}",
            pair.logs()
        );
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{}", pair.logs());
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.alpha.wait_state("Connected", "Diskless/UpToDate");
    assert!(client.read(0, 64 << 10).unwrap() == data, "{}", pair.logs());
    client.write(1 << 20, &data, Fua::Yes).unwrap();
    record.write(1 << 20, &data);
    client.disconnect().unwrap();
    pair.alpha.must(&["attach", "r0"]);
    record.forget(8 << 20, 64 << 10);
    pair.down_and_compare(&record);
}

#[test]
fn a_target_whose_disk_fails_in_the_resync_is_diskless_and_starts_again_with_a_good_one() {
    let settings = Settings {
        meta: Meta::External,
        ..Settings::default()
    };
    let mut pair = Pair::configured(&settings, LinkKind::Direct, &std::env::temp_dir());
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["create-md", "r0"]);
    }
    pair.alpha.start();
    pair.bravo.start_with_file_limit(8 << 20);
    pair.connect_fresh();
    pair.alpha.must(&["primary", "--force", "r0"]);
    pair.alpha.wait_state("Connected", "UpToDate/Diskless");
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(2, 1 << 20);
    client.write(10 << 20, &data, Fua::Yes).unwrap();
    record.write(10 << 20, &data);
    client.disconnect().unwrap();
    pair.bravo.must(&["down", "r0"]);
    pair.bravo.kill();
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

#[test]
fn a_primary_that_hung_and_was_replaced_meanwhile_does_not_overwrite_its_successor() {
    let settings = Settings::default().with_net("ping-int 1; ping-timeout 5; timeout 15;");
    let pair = Pair::synced(&settings, LinkKind::Direct);
    let mut record = pair.record();
    let data = pattern(3, 128 << 10);
    let mut client = pair.client(&pair.alpha);
    client.write(0, &data, Fua::Yes).unwrap();
    record.write(0, &data);
    pair.alpha.signal("STOP");
    pair.bravo.wait_word("cstate", &["WFConnection"]);
    pair.bravo.must(&["primary", "r0"]);
    let mut successor = pair.client(&pair.bravo);
    successor.write(4 << 20, &data, Fua::Yes).unwrap();
    record.write(4 << 20, &data);
    pair.alpha.signal("CONT");
    // Both are Primary now: they must not mix their data, whatever they do.
    let apart = || {
        let words = [pair.alpha.word("cstate"), pair.bravo.word("cstate")];
        let whole = [pair.alpha.whole_log(), pair.bravo.whole_log()].concat();
        let refused = whole.contains("plit-Brain detected") || whole.contains("primaries");
        (refused && words.contains(&String::from("StandAlone"))).then_some(())
    };
    wait::until("a refused connection", STATE_LIMIT, apart, || pair.logs());
    assert!(
        successor.read(4 << 20, 128 << 10).unwrap() == data,
        "{}",
        pair.logs()
    );
    assert!(
        client.read(4 << 20, 4096).unwrap() == [0; 4096],
        "{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    successor.disconnect().unwrap();
    pair.alpha.must(&["secondary", "r0"]);
    pair.alpha.adm(&["disconnect", "r0"]);
    pair.alpha.must(&["connect", "--discard-my-data", "r0"]);
    if pair.bravo.word("cstate") == "StandAlone" {
        pair.bravo.must(&["connect", "r0"]);
    }
    pair.down_and_compare(&record);
}

#[test]
fn in_protocol_a_a_client_does_not_wait_for_a_peer_that_hangs() {
    let settings = Settings {
        net: tandem_tests::e2e::node::net('A'),
        ..Settings::default()
    };
    let pair = Pair::synced(&settings, LinkKind::Direct);
    let mut record = pair.record();
    let mut client = Client::connect(&pair.alpha.socket(), "r0", CLIENT_LIMIT).unwrap();
    pair.bravo.signal("STOP");
    let data = pattern(4, 16 << 10);
    let start = Instant::now();
    for part in 0..8 {
        client.write(part * (16 << 10), &data, Fua::No).unwrap();
        record.write(part * (16 << 10), &data);
    }
    let time = start.elapsed();
    pair.bravo.signal("CONT");
    assert!(
        time < Duration::from_millis(1500),
        "the writes took {time:?}\n{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}
