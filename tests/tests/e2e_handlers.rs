//! Handlers: when each is called, with which environment, and that nobody waits for one who need not. A handler that "hangs" waits for
//! a file beside the configuration to go.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::{Meta, Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::wait;

/// A second without traffic asks for a ping; its answer may take a second.
const PINGS: &str = "ping-int 1; ping-timeout 10;";

/// How long a handler hangs: several ping timeouts.
const HANG: Duration = Duration::from_secs(3);

fn with(handlers: &str) -> Settings {
    Settings {
        handlers: handlers.to_owned(),
        ..Settings::default().with_net(PINGS)
    }
}

/// A handler that notes its beginning, hangs while there is a file `.wait`, and notes its end.
fn hanging(name: &str) -> String {
    format!(
        "{name} \"echo {name} began >> $DRBD_CONF.notes; while [ -e $DRBD_CONF.wait ]; do sleep 0.05; done; \
         echo {name} ended >> $DRBD_CONF.notes; echo it is over\";"
    )
}

fn beside(node: &Node, name: &str) -> PathBuf {
    node.root.join(format!("etc/drbd.conf.{name}"))
}

/// From now on this node's handlers hang.
fn hang(node: &Node) {
    fs::write(beside(node, "wait"), "").unwrap();
}

/// They go on.
fn go_on(node: &Node) {
    fs::remove_file(beside(node, "wait")).unwrap();
}

fn notes(node: &Node) -> String {
    fs::read_to_string(beside(node, "notes")).unwrap_or_default()
}

fn wait_note(node: &Node, note: &str) {
    let noted = || notes(node).lines().any(|line| line == note).then_some(());
    let what = format!("the note {note:?} of {}", node.name);
    wait::until(&what, STATE_LIMIT, noted, || node.logs());
}

/// A line of the log with all these words.
fn wait_line(node: &Node, words: &[&str]) {
    let said = || {
        let log = node.whole_log();
        let fits = |line: &str| words.iter().all(|word| line.contains(word));
        log.lines().any(fits).then_some(())
    };
    let what = format!("a line with {words:?} in the log of {}", node.name);
    wait::until(&what, STATE_LIMIT, said, || node.logs());
}

/// A handler's environment as it wrote it down.
fn environment(node: &Node) -> BTreeMap<String, String> {
    let file = beside(node, "env");
    let there = || fs::read_to_string(&file).ok();
    let text = wait::until("a handler's environment", STATE_LIMIT, there, || {
        node.logs()
    });
    let own = ["PWD", "OLDPWD", "SHLVL", "_"];
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !own.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn a_handler_gets_the_variables_of_the_specification_and_nothing_of_the_daemons() {
    let settings =
        with("before-resync-target \"env > $DRBD_CONF.new; mv $DRBD_CONF.new $DRBD_CONF.env\";");
    let pair = Pair::synced(&settings, LinkKind::Direct);
    let mut found = environment(&pair.bravo);
    let state = found.remove("DRBD_CSTATE").unwrap();
    assert!(state.starts_with("WF") || state == "SyncTarget", "{state}");
    let disk = pair.bravo.disk(0).display().to_string();
    let conf = pair.bravo.root.join("etc/drbd.conf").display().to_string();
    let (own, peer) = pair.bravo_addresses;
    let (own, peer) = (own.ip().to_string(), peer.ip().to_string());
    // Which node has which number, their addresses decide (1.7): a property of the configuration, not of handlers.
    let (mine, theirs) = match found.get("DRBD_MY_NODE_ID").map(String::as_str) {
        Some("0") => ("0", "1"),
        _ => ("1", "0"),
    };
    let (my_id, peer_id) = (
        format!("DRBD_NODE_ID_{mine}"),
        format!("DRBD_NODE_ID_{theirs}"),
    );
    let expected = [
        ("HOME", "/"),
        ("TERM", "linux"),
        ("PATH", "/sbin:/usr/sbin:/bin:/usr/bin"),
        ("DRBD_RESOURCE", "r0"),
        ("DRBD_CONF", &conf),
        ("DRBD_MINOR", "0"),
        ("DRBD_MINOR_0", "0"),
        ("DRBD_VOLUME", "0"),
        ("DRBD_LL_DISK", &disk),
        ("DRBD_BACKING_DEV", &disk),
        ("DRBD_BACKING_DEV_0", &disk),
        ("DRBD_META_DISK", "internal"),
        ("DRBD_PEER", "alpha"),
        ("DRBD_PEERS", "alpha"),
        ("DRBD_PEER_AF", "ipv4"),
        ("DRBD_PEER_ADDRESS", &peer),
        ("DRBD_MY_NODE_ID", mine),
        ("DRBD_PEER_NODE_ID", theirs),
        (&my_id, "bravo"),
        (&peer_id, "alpha"),
        ("DRBD_MY_AF", "ipv4"),
        ("DRBD_MY_ADDRESS", &own),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(found, BTreeMap::from(expected), "{}", pair.logs());
}

#[test]
fn a_resync_waits_for_its_handler_and_pings_and_commands_do_not() {
    let handlers = hanging("before-resync-target");
    let pair = Pair::new(&with(&handlers), LinkKind::Direct);
    pair.connect_fresh();
    hang(&pair.bravo);
    pair.alpha.must(&["primary", "--force", "r0"]);
    wait_note(&pair.bravo, "before-resync-target began");
    let mut record = pair.record();
    let data = pattern(1, 4096);
    record.write(8192, &data);
    // It waits for the handler, too: the target takes nothing before its resync has begun.
    let mut client = pair.client(&pair.alpha);
    let writer = std::thread::spawn(move || {
        client.write(8192, &data, Fua::Yes).unwrap();
        client.disconnect().unwrap();
    });
    let start = Instant::now();
    while start.elapsed() < HANG {
        // Both answer, and the link stays.
        for (node, own) in [(&pair.alpha, "UpToDate"), (&pair.bravo, "Inconsistent")] {
            assert_ne!(node.word("cstate"), "WFConnection", "{}", pair.logs());
            assert!(node.word("dstate").starts_with(own), "{}", pair.logs());
        }
    }
    assert!(!writer.is_finished(), "{}", pair.logs());
    assert!(!notes(&pair.bravo).contains("ended"), "{}", pair.logs());
    go_on(&pair.bravo);
    pair.wait_synced();
    wait_line(&pair.bravo, &["before-resync-target", "handler begins"]);
    wait_line(&pair.bravo, &["before-resync-target", "it is over"]);
    wait_line(
        &pair.bravo,
        &["before-resync-target", "handler ended", "exit=0"],
    );
    let dialled = pair.alpha.whole_log().matches("-> WFReportParams").count();
    assert_eq!(dialled, 1, "the link broke\n{}", pair.logs());
    assert!(writer.join().is_ok(), "{}", pair.logs());
    pair.down_and_compare(&record);
}

#[test]
fn a_resync_whose_handler_refuses_drops_the_connection_and_goes_on_when_it_agrees() {
    let handlers = "before-resync-target \"test ! -e $DRBD_CONF.wait || exit 3\";";
    let pair = Pair::new(&with(handlers), LinkKind::Direct);
    pair.connect_fresh();
    hang(&pair.bravo);
    pair.alpha.must(&["primary", "--force", "r0"]);
    pair.bravo.wait_word("cstate", &["StandAlone"]);
    wait_line(&pair.bravo, &["handler before the resync", "exit code 3"]);
    go_on(&pair.bravo);
    pair.bravo.must(&["connect", "r0"]);
    if pair.alpha.word("cstate") == "StandAlone" {
        pair.alpha.must(&["connect", "r0"]);
    }
    pair.wait_synced();
}

/// `cmd-timeout-long` of the test of it, in seconds: time enough to connect a client to a busy machine, and to see that it waits.
const CMD_TIMEOUT_LONG: u32 = 3;

#[test]
fn writes_wait_for_a_handler_before_the_resync_until_cmd_timeout_long_and_get_no_error() {
    let mut pair = Pair::configured(
        &with("before-resync-target \"echo began >> $DRBD_CONF.notes; sleep 600 & sleep 600\";"),
        LinkKind::Direct,
        &std::env::temp_dir(),
    );
    for node in [&mut pair.alpha, &mut pair.bravo] {
        let path = node.root.join("etc/drbd.conf");
        let text = fs::read_to_string(&path).unwrap();
        let global = format!("global {{ cmd-timeout-long {CMD_TIMEOUT_LONG};");
        node.write_config(&text.replacen("global {", &global, 1));
        node.must(&["create-md", "r0"]);
        node.start();
    }
    pair.connect_fresh();
    pair.alpha.must(&["primary", "--force", "r0"]);
    wait_note(&pair.bravo, "began");
    let mut client = pair.client(&pair.alpha);
    let writer = std::thread::spawn(move || client.write(8192, &pattern(1, 4096), Fua::Yes));
    let killed = || {
        // In this order: the write is answered after the line, if at all.
        let answered = writer.is_finished();
        let log = pair.bravo.whole_log();
        let killed = log.contains("handler took too long and was killed");
        assert!(killed || !answered, "{}", pair.logs());
        killed.then_some(())
    };
    assert!(killed().is_none(), "too late to see a write wait");
    wait::until("the handler's end", STATE_LIMIT, killed, || pair.logs());
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}\n{}", pair.logs());
    wait_line(&pair.bravo, &["handler before the resync", "exit code 20"]);
    pair.bravo.wait_word("cstate", &["StandAlone"]);
}

#[test]
fn nobody_waits_for_a_handler_after_a_resync_and_sigterm_does_not_either() {
    let handlers = hanging("after-resync-target");
    let mut pair = Pair::new(&with(&handlers), LinkKind::Direct);
    hang(&pair.bravo);
    pair.bring_up();
    wait_note(&pair.bravo, "after-resync-target began");
    let mut client = pair.client(&pair.alpha);
    client.write(0, &pattern(1, 4096), Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    pair.bravo.signal("TERM");
    assert_eq!(pair.bravo.wait_for_end(), Some(0), "{}", pair.logs());
    assert!(!notes(&pair.bravo).contains("ended"), "{}", pair.logs());
    go_on(&pair.bravo);
    wait_note(&pair.bravo, "after-resync-target ended");
}

#[test]
fn local_io_error_runs_before_the_peer_is_told_and_waits_for_no_other_handler() {
    let settings = Settings {
        disk: String::from("c-plan-ahead 0; resync-rate 400M; on-io-error call-local-io-error;"),
        meta: Meta::External,
        ..with(&(hanging("local-io-error") + &hanging("out-of-sync")))
    };
    let mut pair = Pair::configured(&settings, LinkKind::Direct, &std::env::temp_dir());
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["create-md", "r0"]);
    }
    pair.alpha.start_with_file_limit(8 << 20);
    pair.bravo.start();
    pair.bring_up_without_sync();
    hang(&pair.alpha);
    let mut other = pair.alpha.adm_begun(&["out-of-sync", "r0"]);
    wait_note(&pair.alpha, "out-of-sync began");
    let socket = pair.alpha.socket();
    // This does not fit alpha's filesystem.
    let writer = std::thread::spawn(move || {
        let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
        client.write(12 << 20, &pattern(1, 64 << 10), Fua::Yes)
    });
    wait_note(&pair.alpha, "local-io-error began");
    pair.alpha.wait_state("Connected", "Failed/UpToDate");
    assert_eq!(
        pair.bravo.word("dstate"),
        "UpToDate/UpToDate",
        "{}",
        pair.logs()
    );
    go_on(&pair.alpha);
    wait_note(&pair.alpha, "local-io-error ended");
    pair.alpha.wait_state("Connected", "Diskless/UpToDate");
    pair.bravo.wait_state("Connected", "UpToDate/Diskless");
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}\n{}", pair.logs());
    assert!(other.wait().unwrap().success(), "{}", pair.logs());
}

#[test]
fn pri_on_incon_degr_is_called_when_a_primary_has_lost_its_disk_and_then_its_peer() {
    let mut pair = Pair::synced(&with(&hanging("pri-on-incon-degr")), LinkKind::Direct);
    pair.alpha.must(&["detach", "r0"]);
    pair.alpha.wait_state("Connected", "Diskless/UpToDate");
    assert_eq!(notes(&pair.alpha), "", "{}", pair.logs());
    pair.bravo.kill();
    wait_note(&pair.alpha, "pri-on-incon-degr ended");
    assert_eq!(
        pair.alpha.word("role"),
        "Primary/Unknown",
        "{}",
        pair.logs()
    );
    assert_eq!(notes(&pair.alpha).lines().count(), 2, "called once");
}

#[test]
fn a_handler_can_be_called_by_hand_and_its_exit_code_is_that_of_the_command() {
    let settings = with("out-of-sync \"echo by hand $DRBD_MINOR; exit 7\"; split-brain \"\";");
    let pair = Pair::new(&settings, LinkKind::Direct);
    pair.alpha.must(&["up", "r0"]);
    for target in ["r0", "minor-0"] {
        let ended = pair.alpha.adm(&["out-of-sync", target]);
        assert_eq!(ended.code, Some(7), "{}", ended.all());
    }
    wait_line(&pair.alpha, &["out-of-sync", "by hand 0"]);
    // Switched off, and not configured.
    for handler in ["split-brain", "local-io-error"] {
        pair.alpha.must(&[handler, "r0"]);
    }
}
