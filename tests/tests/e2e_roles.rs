//! Roles, refusals and status, as the administrator sees them; the Zimbra sequence of docs/spec/config-and-cli.md 4.11.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use tandem_tests::e2e::address;
use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::{tool, wait};

fn synced() -> Pair {
    Pair::synced(&Settings::default(), LinkKind::Direct)
}

#[test]
fn roles_change_places_and_the_data_come_along() {
    let pair = synced();
    let mut record = pair.record();
    for (round, (from, to)) in [(&pair.alpha, &pair.bravo), (&pair.bravo, &pair.alpha)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(from.word("role"), "Primary/Secondary", "{}", pair.logs());
        assert_eq!(to.word("role"), "Secondary/Primary", "{}", pair.logs());
        let data = pattern(round as u32 + 1, 20_480);
        let offset = (round as u64 + 1) << 20;
        let mut client = pair.client(from);
        client.write(offset, &data, Fua::No).unwrap();
        record.write(offset, &data);
        client.disconnect().unwrap();
        from.must(&["secondary", "r0"]);
        to.must(&["primary", "r0"]);
        let mut client = pair.client(to);
        assert!(
            client.read(offset, 20_480).unwrap() == data,
            "the other node has other data\n{}",
            pair.logs()
        );
        client.disconnect().unwrap();
    }
    // What is already so is done with exit 0 and without a word.
    assert_eq!(pair.alpha.must(&["primary", "r0"]), "");
    assert_eq!(pair.bravo.must(&["secondary", "r0"]), "");
    pair.down_and_compare(&record);
}

#[test]
fn a_second_primary_is_refused_with_the_command_that_would_help() {
    let pair = synced();
    for args in [&["primary", "r0"][..], &["primary", "--force", "r0"]] {
        let words = [
            "State change failed: (-1) Multiple primaries not allowed by config",
            "secondary r0",
        ];
        pair.bravo.refused(args, 11, &words);
    }
    assert_eq!(pair.alpha.word("role"), "Primary/Secondary");
    assert_eq!(pair.bravo.word("cstate"), "Connected");
}

#[test]
fn a_node_without_good_data_is_not_promoted_without_force() {
    let pair = Pair::new(&Settings::default(), LinkKind::Direct);
    pair.connect_fresh();
    let words = [
        "State change failed: (-2) Need access to UpToDate data",
        "--force",
    ];
    pair.alpha.refused(&["primary", "r0"], 17, &words);
    assert_eq!(pair.alpha.word("role"), "Secondary/Secondary");
}

#[test]
fn a_demotion_with_a_client_attached_is_refused_and_names_the_client() {
    let pair = synced();
    let mut client = pair.client(&pair.alpha);
    client.write(0, &[1; 4096], Fua::No).unwrap();
    let own = format!("pid {}", std::process::id());
    let words = [
        "State change failed: (-12) Device is held open by someone",
        &own,
    ];
    pair.alpha.refused(&["secondary", "r0"], 11, &words);
    pair.alpha.refused(&["down", "r0"], 11, &["(-12)", &own]);
    // Nothing changed: the client goes on.
    client.write(4096, &[2; 4096], Fua::Yes).unwrap();
    assert_eq!(pair.alpha.word("role"), "Primary/Secondary");
    assert_eq!(pair.alpha.word("cstate"), "Connected");
    client.disconnect().unwrap();
    pair.alpha.must(&["secondary", "r0"]);
    assert_eq!(pair.alpha.word("role"), "Secondary/Secondary");
}

#[test]
fn a_secondary_refuses_clients_and_says_why() {
    let pair = synced();
    let refusal = Client::connect(&pair.bravo.socket(), "r0/0", CLIENT_LIMIT).unwrap_err();
    let words = refusal.to_string();
    assert!(
        words.contains("Secondary") && words.contains("r0"),
        "{words}"
    );
    let unknown = Client::connect(&pair.alpha.socket(), "nobody/7", CLIENT_LIMIT).unwrap_err();
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
    // libnbd keeps the server's words to itself, qemu prints them.
    let ended = tool::run(pair.dir.path(), "nbdinfo", &[&pair.bravo.uri(0)]);
    assert_ne!(ended.code, Some(0), "{}", ended.all());
    let args = ["-f", "raw", "-c", "read 0 4k", &pair.bravo.uri(0)];
    let ended = tool::run(pair.dir.path(), "qemu-io", &args);
    assert_ne!(ended.code, Some(0), "{}", ended.all());
    assert!(ended.says("Secondary"), "{}", ended.all());
}

#[test]
fn status_role_cstate_dstate_and_proc_tell_the_same_story() {
    let pair = synced();
    let text = pair.alpha.must(&["status", "r0"]);
    assert!(text.starts_with("r0 role:Primary\n"), "{text}");
    assert!(text.contains("\n  disk:UpToDate"), "{text}");
    assert!(text.contains(" role:Secondary\n"), "{text}");
    assert!(text.contains("peer-disk:UpToDate"), "{text}");
    let status = pair.alpha.status();
    let say = || format!("{status:#}\n{}", pair.logs());
    assert_eq!(status["name"], "r0", "{}", say());
    assert_eq!(status["role"], "Primary", "{}", say());
    assert_eq!(status["devices"][0]["volume"], 0, "{}", say());
    assert_eq!(status["devices"][0]["disk-state"], "UpToDate", "{}", say());
    assert_eq!(
        status["devices"][0]["size"],
        pair.device_bytes() / 1024,
        "{}",
        say()
    );
    let connection = &status["connections"][0];
    assert_eq!(connection["connection-state"], "Connected", "{}", say());
    assert_eq!(connection["peer-role"], "Secondary", "{}", say());
    assert_eq!(
        connection["peer_devices"][0]["peer-disk-state"],
        "UpToDate",
        "{}",
        say()
    );
    assert_eq!(connection["peer_devices"][0]["out-of-sync"], 0, "{}", say());
    assert_eq!(pair.alpha.word("role"), "Primary/Secondary");
    assert_eq!(pair.alpha.word("cstate"), "Connected");
    assert_eq!(pair.alpha.word("dstate"), "UpToDate/UpToDate");
    let line = " 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----";
    assert!(
        pair.alpha.proc().lines().any(|found| found == line),
        "{}",
        pair.alpha.proc()
    );
    let file = pair.alpha.root.join("run/tandem/proc");
    let same = || {
        fs::read_to_string(&file)
            .ok()
            .filter(|text| text.contains(line))
            .map(drop)
    };
    wait::until("the proc file", STATE_LIMIT, same, || pair.logs());
    assert_eq!(pair.alpha.counter(0, "oos"), 0);
}

#[test]
fn an_unconfigured_resource_is_said_to_be_so() {
    let pair = Pair::new(&Settings::default(), LinkKind::Direct);
    assert_eq!(pair.alpha.word("role"), "Unconfigured");
    assert_eq!(pair.alpha.word("cstate"), "Unconfigured");
    assert_eq!(
        pair.alpha.word("dstate"),
        "Inconsistent",
        "from the metadata"
    );
    pair.alpha.must(&["down", "r0"]);
    let said = pair.alpha.adm(&["status"]);
    assert_eq!(said.code, Some(0), "{}", said.all());
    assert!(said.says("No currently configured"), "{}", said.all());
}

#[test]
fn without_a_daemon_nothing_can_be_asked_and_up_starts_one() {
    let base = std::env::temp_dir();
    let pair = Pair::configured(&Settings::default(), LinkKind::Direct, &base);
    pair.alpha.must(&["create-md", "r0"]);
    for args in [
        &["primary", "r0"][..],
        &["connect", "r0"],
        &["detach", "r0"],
    ] {
        let ended = pair.alpha.adm(args);
        let known = if args[0] == "detach" { 0 } else { 20 };
        assert_eq!(ended.code, Some(known), "{args:?}: {}", ended.all());
        assert!(
            known == 0 || ended.says("tandemd is not running"),
            "{args:?}: {}",
            ended.all()
        );
    }
    pair.alpha.must(&["down", "r0"]);
    pair.alpha.must(&["secondary", "r0"]);
    let started = pair.alpha.started_daemon();
    assert_eq!(started, None, "a daemon was started for nothing");
    pair.alpha.must(&["up", "r0"]);
    assert!(
        pair.alpha.started_daemon().is_some(),
        "`up` started no daemon"
    );
    assert_eq!(pair.alpha.word("dstate"), "Inconsistent/DUnknown");
    pair.alpha.must(&["down", "r0"]);
}

#[test]
fn several_volumes_share_one_connection_and_change_roles_together() {
    let settings = Settings {
        volumes: 3,
        disk_bytes: 8 << 20,
        ..Settings::default()
    };
    let pair = Pair::synced(&settings, LinkKind::Direct);
    let dstate = pair.alpha.must(&["dstate", "r0"]);
    wait::until(
        "three good volumes",
        STATE_LIMIT,
        || (pair.alpha.must(&["dstate", "r0"]) == "UpToDate/UpToDate\n".repeat(3)).then_some(()),
        || format!("{dstate}\n{}", pair.logs()),
    );
    let mut records = Vec::new();
    for volume in 0..3u16 {
        let mut record = pair.record();
        let name = format!("r0/{volume}");
        let mut client = Client::connect(&pair.alpha.socket(), &name, CLIENT_LIMIT).unwrap();
        let data = pattern(u32::from(volume) + 1, 1 << 20);
        client
            .write(u64::from(volume) * 4096, &data, Fua::No)
            .unwrap();
        client.disconnect().unwrap();
        record.write(u64::from(volume) * 4096, &data);
        records.push(record);
    }
    let name = Client::connect(&pair.alpha.socket(), "r0", CLIENT_LIMIT).unwrap_err();
    assert!(name.to_string().contains("3 volumes"), "{name}");
    let text = pair.alpha.must(&["status", "r0"]);
    for volume in 0..3 {
        assert!(text.contains(&format!("volume:{volume} ")), "{text}");
    }
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    assert_eq!(
        pair.bravo.must(&["role", "r0"]),
        "Primary/Secondary\n".repeat(3)
    );
    pair.down();
    for (volume, record) in (0..).zip(&records) {
        pair.compare_with(volume, record);
    }
}

/// A node of the Zimbra document: includes, a host name shorter than the one in the file, metadata on a device of its own.
fn zimbra_node(dir: &Path, name: &str, resource: &str) -> (Node, PathBuf, PathBuf) {
    let node = Node::bare(dir, name);
    let (data, meta) = (node.root.join("vdb1"), node.root.join("vdc1"));
    fs::create_dir(node.root.join("etc/drbd.d")).unwrap();
    node.write_config("include \"drbd.d/global_common.conf\";\ninclude \"drbd.d/*.res\";\n");
    fs::write(
        node.root.join("etc/drbd.d/global_common.conf"),
        "global { usage-count no; }\ncommon { }\n",
    )
    .unwrap();
    let text = resource
        .replace("/dev/vdb1", &data.display().to_string())
        .replace("/dev/vdc1", &meta.display().to_string());
    fs::write(node.root.join("etc/drbd.d/optzimbra.res"), text).unwrap();
    for (path, bytes) in [(&data, 24u64 << 20), (&meta, 4 << 20)] {
        // Something lies there, and the document's first dd makes it unrecognisable.
        let mut old = vec![0x5a; bytes as usize];
        old[..100 << 10].fill(0);
        fs::write(path, old).unwrap();
    }
    (node, data, meta)
}

/// The document's file with these addresses; its handler would halt the machine, so it is told to echo.
fn zimbra_resource() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/config/zimbra-8.4.res");
    let text = fs::read_to_string(path).unwrap();
    text.replace("172.17.18.191:7788", &address::fresh().to_string())
        .replace("172.17.18.192:7788", &address::fresh().to_string())
        .replace("halt -f", "echo would halt")
        .replace("rate 10M", "rate 60M")
}

#[test]
fn the_zimbra_sequence_runs_as_printed() {
    let dir = tempfile::TempDir::with_prefix("tandem-test-").unwrap();
    let resource = zimbra_resource();
    let (mut astapor, astapor_data, _) = zimbra_node(dir.path(), "astapor", &resource);
    let (mut braavos, braavos_data, _) = zimbra_node(dir.path(), "braavos", &resource);
    for node in [&mut astapor, &mut braavos] {
        let said = node.must(&["create-md", "optzimbra"]);
        assert!(
            said.contains("New drbd meta data block successfully created."),
            "{said}"
        );
        node.start();
    }
    astapor.must(&["up", "optzimbra"]);
    astapor.must(&["primary", "--force", "optzimbra"]);
    let text = "(102) Local address(port) already in use";
    astapor.refused(&["--discard-my-data", "connect", "optzimbra"], 10, &[text]);
    braavos.must(&["up", "optzimbra"]);
    zimbra_wait(
        &astapor,
        "ro:Primary/Secondary ds:UpToDate/UpToDate C r-----",
    );
    assert_eq!(astapor.must(&["role", "optzimbra"]), "Primary/Secondary\n");
    assert_eq!(braavos.must(&["role", "optzimbra"]), "Secondary/Primary\n");

    let image = dir.path().join("opt.img");
    fs::write(&image, vec![0; 24 << 20]).unwrap();
    let (image, must) = (
        image.display().to_string(),
        |program: &str, args: &[&str]| {
            tool::must(dir.path(), program, args, || astapor.logs()).stdout
        },
    );
    let uri = |node: &Node| format!("nbd+unix:///optzimbra?socket={}", node.socket().display());
    must("mkfs.ext4", &["-q", "-F", &image]);
    must("nbdcopy", &[&image, &uri(&astapor)]);
    astapor.must(&["secondary", "optzimbra"]);
    braavos.must(&["primary", "optzimbra"]);
    let copy = dir.path().join("copy.img").display().to_string();
    must("nbdcopy", &[&uri(&braavos), &copy]);
    must("e2fsck", &["-f", "-n", &copy]);
    braavos.must(&["secondary", "optzimbra"]);
    astapor.must(&["primary", "optzimbra"]);

    zimbra_splits_and_recovers(&astapor, &braavos);
    astapor.must(&["down", "optzimbra"]);
    braavos.must(&["down", "optzimbra"]);
    assert!(
        fs::read(astapor_data).unwrap() == fs::read(braavos_data).unwrap(),
        "the disks differ\n{}",
        astapor.logs()
    );
}

fn zimbra_wait(node: &Node, words: &str) {
    let reached = || node.proc().contains(words).then_some(());
    wait::until(words, STATE_LIMIT, reached, || node.logs());
}

/// Split brain by hand, and the document's way out of it.
fn zimbra_splits_and_recovers(astapor: &Node, braavos: &Node) {
    for node in [astapor, braavos] {
        node.must(&["disconnect", "optzimbra"]);
    }
    braavos.must(&["primary", "optzimbra"]);
    for (node, byte) in [(astapor, 1), (braavos, 2)] {
        let mut client = Client::connect(&node.socket(), "optzimbra", CLIENT_LIMIT).unwrap();
        client.write(12 << 20, &[byte; 8192], Fua::Yes).unwrap();
        client.disconnect().unwrap();
    }
    for node in [astapor, braavos] {
        node.must(&["connect", "optzimbra"]);
    }
    for node in [astapor, braavos] {
        node.wait_log("plit-Brain detected");
    }
    for node in [astapor, braavos] {
        // The node that ended StandAlone by itself has nothing to disconnect any more.
        let ended = node.adm(&["disconnect", "optzimbra"]);
        assert!(
            ended.code == Some(0) || ended.says("(162)"),
            "{}\n{}",
            ended.all(),
            node.logs()
        );
    }
    braavos.must(&["secondary", "optzimbra"]);
    braavos.must(&["connect", "--discard-my-data", "optzimbra"]);
    astapor.must(&["connect", "optzimbra"]);
    zimbra_wait(
        astapor,
        "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----",
    );
    zimbra_wait(
        braavos,
        "cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C r-----",
    );
    let mut client = Client::connect(&astapor.socket(), "optzimbra", CLIENT_LIMIT).unwrap();
    assert!(
        client.read(12 << 20, 8192).unwrap() == [1; 8192],
        "the survivor's data\n{}",
        astapor.logs()
    );
    client.disconnect().unwrap();
}

#[test]
fn a_node_without_its_peer_says_what_it_waits_for_and_what_to_type() {
    let pair = synced();
    pair.bravo.must(&["down", "r0"]);
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let told = pair.alpha.explained();
    for words in ["no connection to bravo", "on bravo: tandem adm up r0"] {
        assert!(
            told.contains(words),
            "{words:?} is not in {told}\n{}",
            pair.logs()
        );
    }
    pair.alpha.must(&["secondary", "r0"]);
    pair.alpha.must(&["outdate", "r0"]);
    let words = ["(-2) Need access to UpToDate data", "up r0", "Outdated"];
    pair.alpha.refused(&["primary", "r0"], 17, &words);
    let told = pair.alpha.explained();
    assert!(told.contains("older than the peer's"), "{told}");
    // Typing what was said, there and here, ends well.
    pair.bravo.must(&["up", "r0"]);
    pair.wait_synced();
    let told = pair.alpha.explained();
    assert!(!told.contains("next:"), "nothing is wrong any more: {told}");
}

#[test]
fn adjust_says_that_what_both_nodes_must_agree_on_waits_for_the_next_connect() {
    let mut pair = synced();
    assert_eq!(
        pair.alpha.must(&["adjust", "r0"]),
        "",
        "nothing has changed"
    );
    let settings = Settings::default().with_net("after-sb-0pri discard-zero-changes;");
    pair.configure(&settings);
    let ended = pair.alpha.adm(&["adjust", "r0"]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), pair.logs());
    assert!(
        ended.says("next connect"),
        "{}\n{}",
        ended.all(),
        pair.logs()
    );
    assert_eq!(pair.alpha.word("cstate"), "Connected", "{}", pair.logs());
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["disconnect", "r0"]);
        node.must(&["adjust", "r0"]);
    }
    pair.wait_synced();
    assert_eq!(
        pair.alpha.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
}
