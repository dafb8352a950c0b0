//! Black boxes of real daemons: a pair with load, cuts and resyncs, whose boxes replay in the simulator to the same effects, and hold
//! nothing of what the clients wrote and no secret.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use tandem_replicator::planted::Plant;
use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::load::{Load, Plan};
use tandem_tests::e2e::node::{COMMAND_LIMIT, Node, STATE_LIMIT, Settings, binary};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::process::{self, Ended};
use tandem_tests::e2e::wait;
use tandem_tests::sim::black_box::{Replayed, Verdict, replay};

/// What clients write, and what nobody but the nodes may know.
const PATTERN: &[u8] = b"every-user-datum";
const SECRET: &str = "not-for-any-file-of-ours";

fn tandem(node: &Node, args: &[&str]) -> Ended {
    let mut command = Command::new(binary());
    command.arg("--root").arg(&node.root).args(args);
    command.env("__DRBD_NODE__", &node.name);
    process::run(&mut command, COMMAND_LIMIT)
}

/// The box of a node's resource, by command.
fn black_box(node: &Node, file: &Path) -> Vec<u8> {
    let ended = tandem(node, &["black-box", "r0", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), node.logs());
    assert!(ended.says("no user data, no secrets"), "{}", ended.all());
    std::fs::read(file).unwrap()
}

fn holds(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

fn same_effects(bytes: &[u8], whose: &str) -> Replayed {
    let replayed = replay(bytes, Plant::default(), false).unwrap();
    assert_eq!(
        replayed.verdict,
        Verdict::Same,
        "{whose}: {}\n{}\n{}",
        replayed.verdict,
        replayed.about,
        replayed.story
    );
    assert!(replayed.effects > 100, "{whose}: {replayed:?}");
    replayed
}

fn nothing_secret(bytes: &[u8], whose: &str) {
    // Whole patterns, and any part of one that would be readable.
    assert!(!holds(bytes, &PATTERN[..8]), "{whose}: data of a client");
    assert!(!holds(bytes, SECRET.as_bytes()), "{whose}: the secret");
}

fn data(bytes: usize) -> Vec<u8> {
    PATTERN.iter().copied().cycle().take(bytes).collect()
}

/// Writes that only the own node has, while the link is cut; a resync brings them over.
fn cut_write_and_heal(pair: &Pair, offset: u64) {
    pair.cut();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let mut client = pair.client(&pair.alpha);
    client.write(offset, &data(65_536), Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.heal();
    pair.wait_synced();
}

fn load(pair: &Pair, writes: u64) {
    let plan = Plan {
        run: 3,
        socket: pair.alpha.socket(),
        export: String::from("r0"),
        writers: 2,
        blocks: 64,
        first: 0,
        seed: 5,
    };
    let load = Load::start(&plan);
    let enough = || (load.acknowledged() >= writes).then_some(());
    wait::until("writes", STATE_LIMIT, enough, || pair.logs());
    load.stop();
}

#[test]
fn boxes_of_both_nodes_replay_after_load_a_cut_and_a_resync_and_hold_no_data() {
    let net =
        format!("cram-hmac-alg sha256; shared-secret \"{SECRET}\"; data-integrity-alg crc32c;");
    let settings = Settings::default().with_net(&net);
    let pair = Pair::synced(&settings, LinkKind::Proxied);
    let mut client = pair.client(&pair.alpha);
    client.write(1 << 20, &data(1 << 20), Fua::No).unwrap();
    assert_eq!(client.read(1 << 20, 4096).unwrap(), data(4096));
    client.disconnect().unwrap();
    load(&pair, 300);
    cut_write_and_heal(&pair, 4 << 20);
    for node in [&pair.alpha, &pair.bravo] {
        let file = pair.dir.path().join(format!("{}.blackbox", node.name));
        let bytes = black_box(node, &file);
        nothing_secret(&bytes, &node.name);
        let replayed = same_effects(&bytes, &node.name);
        assert!(replayed.about.contains("whole"), "{}", replayed.about);
        assert!(
            replayed.story.contains("Bytes") || replayed.story.contains("bytes s"),
            "{}",
            replayed.story
        );
        // A file that exists is not overwritten.
        let again = tandem(node, &["black-box", "r0", file.to_str().unwrap()]);
        assert_eq!(again.code, Some(20), "{}", again.all());
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
    // Without a name it lies with the boxes of failures; of a resource that is not there is none.
    let ended = tandem(&pair.alpha, &["black-box", "r0"]);
    assert!(ended.says("var/lib/tandem/crash/r0-"), "{}", ended.all());
    let ended = tandem(&pair.alpha, &["black-box", "r9"]);
    assert_eq!(ended.code, Some(10), "{}", ended.all());
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

fn recordings(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_full_recording_replays_whole_after_its_daemon_was_killed_and_after_its_end() {
    let settings = Settings::default().with_net("data-integrity-alg sha1;");
    let mut pair = Pair::configured(&settings, LinkKind::Proxied, &std::env::temp_dir());
    let dir = pair.dir.path().join("recordings");
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.must(&["create-md", "r0"]);
        let own = dir.join(&node.name);
        node.start_recording(&own);
    }
    pair.bring_up();
    load(&pair, 200);
    cut_write_and_heal(&pair, 2 << 20);
    // A killed daemon leaves what it had written until shortly before.
    pair.bravo.kill();
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let ended = tandem(&pair.alpha, &["black-box", "r0"]);
    assert!(
        ended.says("the whole history is being recorded in"),
        "{}",
        ended.all()
    );
    pair.alpha.must(&["down", "r0"]);
    for node in [&pair.alpha, &pair.bravo] {
        let files = recordings(&dir.join(&node.name));
        assert_eq!(files.len(), 1, "{files:?}");
        let bytes = std::fs::read(&files[0]).unwrap();
        nothing_secret(&bytes, &node.name);
        let replayed = same_effects(&bytes, &node.name);
        assert!(replayed.about.contains("recording"), "{}", replayed.about);
    }
}
