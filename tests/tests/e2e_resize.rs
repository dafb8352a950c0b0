//! `resize` and `check-resize` with real daemons: both backing files grow, clients get the room, nothing that was there changes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::OpenOptions;
use std::path::Path;

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::{Meta, Node, Settings};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::pattern;

const DISK: u64 = 16 << 20;
const GROWN: u64 = 40 << 20;

fn set_len(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
}

fn size(node: &Node) -> u64 {
    let client = Client::connect(&node.socket(), "r0/0", CLIENT_LIMIT).unwrap();
    let bytes = client.bytes;
    client.disconnect().unwrap();
    bytes
}

fn external() -> Settings {
    Settings {
        meta: Meta::External,
        ..Settings::default().with_disk_bytes(DISK)
    }
}

#[test]
fn both_disks_grow_and_one_command_gives_the_device_the_room() {
    let pair = Pair::synced(&external(), LinkKind::Direct);
    let data = pattern(1, 8192);
    let mut client = pair.client(&pair.alpha);
    client.write(4096, &data, Fua::Yes).unwrap();
    let told = pair.alpha.must(&["resize", "r0"]);
    assert_eq!(told, "", "what is said is for a person");
    set_len(&pair.alpha.disk(0), GROWN);
    let words = ["Failure: (111)", "the peer's only", "next:", "resize r0"];
    pair.alpha.refused(&["resize", "r0"], 10, &words);
    assert_eq!(size(&pair.alpha), DISK);
    set_len(&pair.bravo.disk(0), GROWN);
    let ended = pair.alpha.adm(&["resize", "r0"]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), pair.logs());
    assert!(
        ended.says(&format!("the device has {GROWN} bytes (had {DISK})")),
        "{}",
        ended.all()
    );
    assert!(ended.says("when they connect again"), "{}", ended.all());
    pair.wait_synced();
    assert_eq!(size(&pair.alpha), GROWN);
    // A client that was connected goes on within what it knows.
    assert!(client.read(4096, 8192).unwrap() == data);
    client.disconnect().unwrap();
    let end = pattern(2, 8192);
    let mut client = pair.client(&pair.alpha);
    client.write(GROWN - 8192, &end, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    let mut client = pair.client(&pair.bravo);
    assert!(client.read(GROWN - 8192, 8192).unwrap() == end);
    assert!(client.read(4096, 8192).unwrap() == data);
    client.disconnect().unwrap();
    pair.compare_disks(0, GROWN);
}

#[test]
fn internal_metadata_is_moved_on_one_node_after_the_other() {
    let pair = Pair::synced(&Settings::default().with_disk_bytes(DISK), LinkKind::Direct);
    let before = pair.device_bytes();
    let data = pattern(3, 8192);
    let mut client = pair.client(&pair.alpha);
    client.write(before - 8192, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    for node in [&pair.bravo, &pair.alpha] {
        set_len(&node.disk(0), GROWN);
        let words = ["its former end", "next:", "check-resize r0"];
        node.refused(&["resize", "r0"], 10, &words);
        node.must(&["detach", "r0"]);
        // Without the move the attach finds nothing, and says what to type; new metadata are not made by mistake.
        let words = ["at the former end of", "check-resize r0"];
        node.refused(&["create-md", "r0"], 1, &words);
        node.refused(&["attach", "r0"], 10, &["(119)", "check-resize r0"]);
        let ended = node.adm(&["check-resize", "r0"]);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        assert!(ended.says("was moved to the new end"), "{}", ended.all());
        assert_eq!(node.must(&["check-resize", "r0"]), "");
        node.must(&["attach", "r0"]);
        pair.wait_synced();
    }
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    let after = size(&pair.bravo);
    assert!(after > before + (20 << 20), "{before} {after}");
    let mut client = pair.client(&pair.bravo);
    assert!(client.read(before - 8192, 8192).unwrap() == data);
    client.write(after - 8192, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    pair.down();
    pair.compare_disks(0, after);
}

#[test]
fn a_disk_without_a_record_of_its_former_size_is_left_alone_in_words() {
    let pair = Pair::configured(
        &Settings::default().with_disk_bytes(DISK),
        LinkKind::Direct,
        &std::env::temp_dir(),
    );
    let words = ["no suitable meta data found", "former size", "next:"];
    pair.alpha.refused(&["check-resize", "r0"], 1, &words);
    pair.alpha
        .refused(&["resize", "r0"], 20, &["tandemd is not running"]);
}
