//! Options of a running resource by word, and metadata in the slots of one shared file.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::{Meta, Node, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::pattern;

#[test]
fn disk_options_count_at_once_and_net_options_with_the_next_connect_and_say_so() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let alpha = &pair.alpha;
    assert_eq!(
        alpha.must(&["disk-options", "r0"]),
        "",
        "nothing has changed"
    );
    alpha.must(&["disk-options", "--resync-rate=2M", "--al-extents=257", "r0"]);
    // The file says something else: adjust would go back to it, and says so beforehand.
    let steps = alpha.must(&["-d", "adjust", "r0"]);
    assert!(steps.contains("disk-options 0 --set-defaults"), "{steps}");
    alpha.must(&["disk-options", "r0"]);
    assert_eq!(alpha.must(&["-d", "adjust", "r0"]), "");
    let ended = alpha.adm(&["net-options", "--ping-int=5", "r0"]);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    for words in [
        "take effect with the next connect",
        "next:",
        "disconnect r0",
        "connect r0",
    ] {
        assert!(ended.says(words), "{words}: {}", ended.all());
    }
    assert_eq!(alpha.word("cstate"), "Connected", "nothing was interrupted");
    alpha.must(&["resource-options", "r0"]);
    assert_eq!(
        alpha.must(&["adjust-with-progress", "all"]),
        "[\n  adjust res: r0\n  adjust disk: r0\n  attempt to connect: r0\n]\n"
    );
    alpha.refused(
        &["disk-options", "--resync-rate=fast", "r0"],
        10,
        &["command line", "Nothing was changed"],
    );
    alpha.refused(
        &["disk-options", "--ping-int=5", "r0"],
        1,
        &["unrecognized option '--ping-int'"],
    );
    let dry = alpha.must(&["-d", "net-options", "r0"]);
    assert!(dry.starts_with("drbdsetup net-options ipv4:"), "{dry}");
    let ended = alpha.adm(&["disk-options", "--size=1M", "r0"]);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    assert!(ended.says("resize r0/0"), "{}", ended.all());
    pair.alpha.must(&["down", "r0"]);
    pair.alpha
        .refused(&["disk-options", "r0"], 10, &["(158)", "up r0"]);
}

/// The first blocks of both slots.
fn superblocks(file: &Path) -> Vec<u8> {
    let file = fs::File::open(file).unwrap();
    let mut bytes = vec![0; 2 * 65_536];
    for (at, half) in bytes.chunks_mut(65_536).enumerate() {
        file.read_exact_at(half, at as u64 * SLOT_BYTES).unwrap();
    }
    bytes
}

const SLOT_BYTES: u64 = 128 << 20;

fn settings() -> Settings {
    Settings {
        meta: Meta::External,
        volumes: 2,
        ..Settings::default()
    }
}

fn slots_of(node: &Node) -> PathBuf {
    node.root.join("slots.img")
}

/// A pair whose volumes have their metadata in the slots of one file on each node; no daemon runs, and nothing is formatted.
fn with_slots() -> Pair {
    let pair = Pair::configured(&settings(), LinkKind::Direct, &std::env::temp_dir());
    for node in [&pair.alpha, &pair.bravo] {
        let file = fs::File::create(slots_of(node)).unwrap();
        file.set_len(2 * SLOT_BYTES).unwrap();
        let mut text = fs::read_to_string(node.root.join("etc/drbd.conf")).unwrap();
        for volume in 0..2 {
            let own = format!("flexible-meta-disk {}", node.meta_disk(volume).display());
            let slot = format!("meta-disk {}[{volume}]", slots_of(node).display());
            text = text.replace(&own, &slot);
        }
        assert_eq!(text.matches("slots.img[").count(), 2, "{text}");
        node.write_config(&text);
    }
    pair
}

#[test]
fn two_volumes_have_their_metadata_in_slots_of_one_file() {
    let mut pair = with_slots();
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.must(&["create-md", "r0"]);
        node.start();
    }
    pair.bring_up();
    let data = pattern(4, 8192);
    let mut client = pair.client(&pair.alpha);
    client.write(1 << 20, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    assert_eq!(pair.alpha.must(&["sh-md-idx", "r0"]), "0\n1\n");
    // An attached slot is not written by anybody else, a free one beside it may be.
    pair.bravo.must(&["detach", "r0/1"]);
    let busy = pair.bravo.adm(&["create-md", "--force", "r0/0"]);
    assert_eq!(busy.code, Some(20), "{}", busy.all());
    let text = pair.bravo.must(&["dump-md", "--force", "r0/1"]);
    assert!(text.contains("md_size_sect 262144"), "{text}");
    pair.bravo.must(&["attach", "r0/1"]);
    pair.wait_synced();
    pair.down();
    for volume in 0..2 {
        pair.compare_disks(volume, settings().disk_bytes);
    }
    // What a slot has no room for is refused.
    let args = ["create-md", "--force", "--al-stripes=2", "r0/0"];
    pair.alpha.refused(&args, 10, &["activity-log stripe"]);
    // Both slots survive a restart.
    pair.alpha.must(&["up", "r0"]);
    assert_eq!(pair.alpha.must(&["dstate", "r0"]).lines().count(), 2);
}

#[test]
fn one_slot_for_two_volumes_is_refused_before_anything_is_written() {
    let mut pair = with_slots();
    pair.alpha.start();
    let file = pair.alpha.root.join("etc/drbd.conf");
    let text = fs::read_to_string(&file).unwrap();
    let meta = slots_of(&pair.alpha);
    let before = superblocks(&meta);
    let same = text.replace("slots.img[1]", "slots.img[0]");
    assert_ne!(same, text);
    fs::write(&file, &same).unwrap();
    let words = ["slot 0 of", "r0/0", "r0/1", "destroy each other", "next:"];
    for args in [&["create-md", "--force", "r0"][..], &["up", "r0"]] {
        pair.alpha.refused(args, 10, &words);
    }
    // Nor does a second name of the file help.
    let link = pair.alpha.root.join("other.img");
    std::os::unix::fs::symlink(&meta, &link).unwrap();
    let second = format!("{}[1]", meta.display());
    let linked = text.replace(&second, &format!("{}[0]", link.display()));
    assert_ne!(linked, text);
    fs::write(&file, &linked).unwrap();
    pair.alpha.refused(&["up", "r0"], 10, &words);
    assert!(superblocks(&meta) == before, "nothing was written");
}

#[test]
fn a_slot_of_a_device_that_something_else_has_is_asked_about() {
    let pair = with_slots();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(slots_of(&pair.alpha))
        .unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    for volume in ["r0/0", "r0/1"] {
        let words = ["Found some data", "Operation canceled", "--force"];
        pair.alpha.refused(&["create-md", volume], 1, &words);
    }
}

#[test]
fn a_corrected_address_is_used_as_soon_as_adjust_has_read_it() {
    let mut pair = Pair::new(&Settings::default(), LinkKind::Direct);
    let right = fs::read_to_string(pair.alpha.root.join("etc/drbd.conf")).unwrap();
    let (_, peer) = pair.alpha_addresses;
    let typo = tandem_tests::e2e::address::fresh();
    pair.alpha
        .write_config(&right.replace(&peer.to_string(), &typo.to_string()));
    pair.alpha.must(&["up", "r0"]);
    pair.bravo.must(&["up", "r0"]);
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.alpha.write_config(&right);
    let steps = pair.alpha.must(&["-d", "adjust", "r0"]);
    assert!(
        steps.contains("drbdsetup disconnect") && steps.contains("drbdsetup connect"),
        "{steps}"
    );
    let ended = pair.alpha.adm(&["adjust", "r0"]);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    assert!(
        ended.says("connects anew, by what has changed: address"),
        "{}",
        ended.all()
    );
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.wait_state("Connected", "Inconsistent/Inconsistent");
    }
    assert_eq!(pair.alpha.must(&["-d", "adjust", "r0"]), "");
}

#[test]
fn a_changed_connection_is_made_anew_unless_the_peer_has_to_follow() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let file = fs::read_to_string(pair.alpha.root.join("etc/drbd.conf")).unwrap();
    let with = |options: &str| file.replacen("net {", &format!("net {{ {options}"), 1);
    pair.alpha.write_config(&with("max-buffers 4000;"));
    let ended = pair.alpha.adm(&["adjust", "r0"]);
    assert!(
        ended.says("connects anew, by what has changed: max-buffers"),
        "{}",
        ended.all()
    );
    pair.wait_synced();
    // Alone with another policy they would part: it is said, and goes on being said.
    pair.alpha.write_config(&with(
        "max-buffers 4000; after-sb-0pri discard-zero-changes;",
    ));
    for _ in 0..2 {
        let steps = pair.alpha.must(&["-d", "adjust", "r0"]);
        assert!(
            steps.starts_with("# what has changed of the connection (after-sb-0pri)"),
            "{steps}"
        );
        let ended = pair.alpha.adm(&["adjust", "r0"]);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        for words in ["on both nodes", "next:", "disconnect r0"] {
            assert!(ended.says(words), "{words}: {}", ended.all());
        }
        assert_eq!(pair.alpha.word("cstate"), "Connected");
        let status = pair.alpha.explained();
        assert!(
            status.contains("older options") && status.contains("after-sb-0pri"),
            "{status}"
        );
    }
    // Back to what the connection goes by: nothing is left to say.
    pair.alpha.write_config(&with("max-buffers 4000;"));
    let ended = pair.alpha.adm(&["adjust", "r0"]);
    assert!(
        !ended.says("next connect") && !ended.says("anew"),
        "{}",
        ended.all()
    );
    assert!(!pair.alpha.explained().contains("older options"));
}
