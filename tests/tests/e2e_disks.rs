//! Disks that are missing, foreign, too small, taken, full, detached or deleted, and arguments that are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::{FileLimit, Meta, Node, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::{name_blocks, pattern, read_disk};
use tandem_tests::e2e::tool;

/// Nodes whose disks are blank; nothing runs.
fn blank(settings: &Settings) -> Pair {
    Pair::configured(settings, LinkKind::Direct, &std::env::temp_dir())
}

#[test]
fn a_disk_without_metadata_is_not_attached_and_create_md_is_named() {
    let mut pair = blank(&Settings::default());
    pair.alpha.start();
    let words = ["create-md r0"];
    let ended = pair.alpha.adm(&["up", "r0"]);
    assert!(ended.code.is_some_and(|code| code != 0), "{}", ended.all());
    let said = words.iter().all(|words| ended.says(words));
    assert!(said, "{words:?} is not in {}\n{}", ended.all(), pair.logs());
    let disk = read_disk(&pair.alpha.disk(0), 16 << 20);
    assert!(
        disk.iter().all(|byte| *byte == 0),
        "a refused `up` wrote to the disk"
    );
    pair.alpha.must(&["create-md", "r0"]);
    pair.alpha.must(&["up", "r0"]);
    assert_eq!(
        pair.alpha.word("dstate"),
        "Inconsistent/DUnknown",
        "{}",
        pair.logs()
    );
}

#[test]
fn create_md_does_not_touch_a_filesystem() {
    let pair = blank(&Settings::default());
    let disk = pair.alpha.disk(0);
    let path = disk.display().to_string();
    tool::must(
        pair.dir.path(),
        "mkfs.ext4",
        &["-q", "-F", &path],
        String::new,
    );
    let before = fs::read(&disk).unwrap();
    for args in [&["create-md", "r0"][..], &["create-md", "--force", "r0"]] {
        let ended = pair.alpha.adm(args);
        assert!(ended.code.is_some_and(|code| code != 0), "{}", ended.all());
        assert!(
            ended.says("ext") && ended.says("truncated"),
            "{}",
            ended.all()
        );
    }
    assert!(
        fs::read(&disk).unwrap() == before,
        "create-md changed a disk with a filesystem"
    );
}

#[test]
fn create_md_asks_before_it_overwrites_metadata_and_without_a_terminal_it_cancels() {
    let pair = blank(&Settings::default());
    pair.alpha.must(&["create-md", "r0"]);
    let before = fs::read(pair.alpha.disk(0)).unwrap();
    let ended = pair
        .alpha
        .refused(&["create-md", "r0"], 1, &["Operation cancelled."]);
    assert!(
        ended.stdout.contains("Operation cancelled."),
        "{}",
        ended.all()
    );
    assert!(
        fs::read(pair.alpha.disk(0)).unwrap() == before,
        "a cancelled create-md wrote"
    );
    let said = pair.alpha.must(&["create-md", "--force", "r0"]);
    assert!(
        said.contains("New drbd meta data block successfully created."),
        "{said}"
    );
}

#[test]
fn create_md_on_a_configured_disk_is_refused() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    pair.alpha
        .refused(&["create-md", "--force", "r0"], 20, &["configured"]);
    assert_eq!(
        pair.alpha.word("dstate"),
        "UpToDate/UpToDate",
        "{}",
        pair.logs()
    );
}

#[test]
fn a_disk_that_is_too_small_is_named_with_its_size() {
    let pair = blank(&Settings::default().with_disk_bytes(48 << 10));
    let ended = pair.alpha.adm(&["create-md", "r0"]);
    assert!(ended.code.is_some_and(|code| code != 0), "{}", ended.all());
    assert!(ended.says("49152 bytes"), "{}", ended.all());
}

#[test]
fn a_disk_that_is_missing_is_named() {
    let mut pair = blank(&Settings::default());
    let path = pair.alpha.disk(0);
    fs::remove_file(&path).unwrap();
    let path = path.display().to_string();
    let ended = pair.alpha.adm(&["create-md", "r0"]);
    assert!(
        ended.code.is_some_and(|code| code != 0) && ended.says(&path),
        "{}",
        ended.all()
    );
    pair.alpha.start();
    let ended = pair.alpha.adm(&["up", "r0"]);
    assert!(
        ended.code.is_some_and(|code| code != 0) && ended.says(&path),
        "{}",
        ended.all()
    );
}

#[test]
fn a_disk_that_the_other_daemon_uses_is_refused() {
    let pair = Pair::new(&Settings::default(), LinkKind::Direct);
    pair.alpha.must(&["up", "r0"]);
    let taken = pair.alpha.disk(0);
    fs::remove_file(pair.bravo.disk(0)).unwrap();
    fs::hard_link(&taken, pair.bravo.disk(0)).unwrap();
    let ended = pair.bravo.adm(&["up", "r0"]);
    let holder = format!("pid {}", pair.alpha.pid().unwrap());
    let busy = ended.code == Some(10) && ended.says("(114)") && ended.says(&holder);
    assert!(busy, "{}\n{}", ended.all(), pair.logs());
    assert_eq!(
        pair.alpha.word("dstate"),
        "Inconsistent/DUnknown",
        "{}",
        pair.logs()
    );
}

#[test]
fn wrong_arguments_end_with_exit_1_and_say_what_was_expected() {
    let pair = blank(&Settings::default());
    for (args, words) in [
        (&["up", "r7"][..], "'r7' not defined in your config"),
        (&["frobnicate", "r0"], "frobnicate"),
        (&["primary"], "primary"),
        (&["primary", "--frobnicate", "r0"], "--frobnicate"),
        (&["primary", "r0/9"], "9"),
        (&[], "usage"),
    ] {
        pair.alpha.refused(args, 1, &[words]);
    }
    pair.alpha
        .write_config("resource r0 {\n  net { protocol X; }\n}\n");
    let ended = pair
        .alpha
        .refused(&["up", "r0"], 10, &["drbd.conf:2:", "A, B or C"]);
    assert!(ended.says("expected"), "{}", ended.all());
}

/// A pair that is synced without having written anything, on which alpha's writes beyond 8 MiB of a file fail.
fn with_full_filesystem_on_alpha() -> Pair {
    let settings = Settings {
        meta: Meta::External,
        ..Settings::default()
    };
    let mut pair = blank(&settings);
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["create-md", "r0"]);
    }
    pair.alpha.start_with_file_limit(8 << 20);
    pair.bravo.start();
    pair.bring_up_without_sync();
    pair
}

#[test]
fn pass_on_keeps_the_last_disk_and_lets_one_go_that_lacks_what_the_peer_has() {
    let settings = Settings {
        meta: Meta::External,
        disk: "on-io-error pass_on;".to_owned(),
        ..Settings::default()
    };
    let mut pair = blank(&settings);
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["create-md", "r0"]);
    }
    pair.alpha.start_limitable();
    pair.bravo.start();
    pair.bring_up_without_sync();
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(1, 128 << 10);
    client.write(1 << 20, &data, Fua::Yes).unwrap();
    record.write(1 << 20, &data);
    // Alone: the client is told, and the only disk stays.
    pair.bravo.must(&["disconnect", "r0"]);
    pair.alpha.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.alpha.limit_files(FileLimit::Bytes(8 << 20));
    let failed = client.write(12 << 20, &data, Fua::No);
    assert!(failed.is_err(), "{}", pair.logs());
    assert_eq!(pair.alpha.word("dstate"), "UpToDate/DUnknown");
    pair.alpha.limit_files(FileLimit::None);
    client.write(12 << 20, &data, Fua::Yes).unwrap();
    record.write(12 << 20, &data);
    pair.bravo.must(&["connect", "r0"]);
    pair.wait_synced();
    // Beside a good disk: the client is not told, and the disk that lacks the write is let go.
    pair.alpha.limit_files(FileLimit::Bytes(8 << 20));
    let data = pattern(2, 128 << 10);
    client.write(12 << 20, &data, Fua::Yes).unwrap();
    record.write(12 << 20, &data);
    pair.alpha.wait_state("Connected", "Diskless/UpToDate");
    let read = client.read(12 << 20, data.len() as u32).unwrap();
    assert!(read == data, "{}", pair.logs());
    client.disconnect().unwrap();
    pair.alpha.wait_log("pass_on");
    pair.alpha.limit_files(FileLimit::None);
    pair.alpha.must(&["attach", "r0"]);
    pair.wait_synced();
    pair.down_and_compare(&record);
}

#[test]
fn a_primary_whose_filesystem_is_full_goes_on_with_the_peers_disk() {
    let pair = with_full_filesystem_on_alpha();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(1, 128 << 10);
    client.write(1 << 20, &data, Fua::No).unwrap();
    // This one does not fit alpha's filesystem any more.
    client.write(12 << 20, &data, Fua::Yes).unwrap();
    pair.alpha.wait_state("Connected", "Diskless/UpToDate");
    assert_eq!(
        pair.alpha.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
    for offset in [1 << 20, 12 << 20] {
        let read = client.read(offset, data.len() as u32).unwrap();
        assert!(
            read == data,
            "what was written at {offset} reads back otherwise\n{}",
            pair.logs()
        );
    }
    client.write(2 << 20, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    let log = pair.alpha.whole_log();
    assert!(
        log.to_lowercase().contains("error"),
        "the log does not tell of the error\n{}",
        pair.logs()
    );
    pair.down();
    let disk = read_disk(&pair.bravo.disk(0), 16 << 20);
    for offset in [1 << 20, 2 << 20, 12 << 20] {
        assert!(
            disk[offset..offset + data.len()] == data,
            "bravo lacks {offset}\n{}",
            pair.logs()
        );
    }
}

#[test]
fn a_secondary_whose_filesystem_is_full_is_diskless_and_clients_see_no_error() {
    let settings = Settings {
        meta: Meta::External,
        ..Settings::default()
    };
    let mut pair = blank(&settings);
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["create-md", "r0"]);
    }
    pair.alpha.start();
    pair.bravo.start_with_file_limit(8 << 20);
    pair.bring_up_without_sync();
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(1, 128 << 10);
    for offset in [1 << 20, 12 << 20, 2 << 20] {
        client.write(offset, &data, Fua::Yes).unwrap();
        record.write(offset, &data);
    }
    pair.alpha.wait_state("Connected", "UpToDate/Diskless");
    client.disconnect().unwrap();
    let told = pair.bravo.explained();
    for words in ["no local disk (", "File too large", "attach r0"] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    // The administrator makes room: the same disk comes back and gets what it missed.
    pair.bravo.must(&["down", "r0"]);
    pair.bravo.kill();
    pair.bravo.start();
    pair.bravo.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

#[test]
fn a_detached_secondary_is_brought_up_to_date_when_it_attaches_again() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    pair.bravo.must(&["detach", "r0"]);
    pair.alpha.wait_state("Connected", "UpToDate/Diskless");
    assert_eq!(
        pair.bravo.word("dstate"),
        "Diskless/UpToDate",
        "{}",
        pair.logs()
    );
    pair.bravo.must(&["detach", "r0"]);
    let mut client = pair.client(&pair.alpha);
    let data = pattern(2, 1 << 20);
    client.write(4 << 20, &data, Fua::No).unwrap();
    record.write(4 << 20, &data);
    client.disconnect().unwrap();
    pair.bravo.must(&["attach", "r0"]);
    pair.down_and_compare(&record);
}

#[test]
fn a_diskless_primary_works_on_its_peers_disk_and_gets_its_own_back() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(3, 512 << 10);
    client.write(0, &data, Fua::No).unwrap();
    record.write(0, &data);
    pair.alpha.must(&["detach", "r0"]);
    assert_eq!(
        pair.alpha.word("dstate"),
        "Diskless/UpToDate",
        "{}",
        pair.logs()
    );
    assert!(
        client.read(0, 512 << 10).unwrap() == data,
        "read through the peer\n{}",
        pair.logs()
    );
    client.write(8 << 20, &data, Fua::Yes).unwrap();
    record.write(8 << 20, &data);
    assert!(
        client.read(8 << 20, 512 << 10).unwrap() == data,
        "read of a remote write\n{}",
        pair.logs()
    );
    client.flush().unwrap();
    // The last good disk stays attached.
    pair.bravo
        .refused(&["detach", "r0"], 11, &["State change failed"]);
    pair.alpha.must(&["attach", "r0"]);
    pair.wait_synced();
    assert_eq!(
        pair.alpha.word("role"),
        "Primary/Secondary",
        "{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}

#[test]
fn a_primary_alone_does_not_let_go_of_its_last_disk() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    pair.bravo.must(&["down", "r0"]);
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    pair.alpha.refused(
        &["detach", "r0"],
        17,
        &["(-2) Need access to UpToDate data"],
    );
    assert_eq!(
        pair.alpha.word("dstate"),
        "UpToDate/DUnknown",
        "{}",
        pair.logs()
    );
}

#[test]
fn a_backing_file_deleted_while_down_is_named_and_the_other_node_goes_on() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    pair.bravo.must(&["down", "r0"]);
    let path = pair.bravo.disk(0);
    fs::remove_file(&path).unwrap();
    let ended = pair.bravo.adm(&["up", "r0"]);
    let named = ended.code.is_some_and(|code| code != 0) && ended.says(&path.display().to_string());
    assert!(named, "{}\n{}", ended.all(), pair.logs());
    let mut client = pair.client(&pair.alpha);
    let data = pattern(4, 64 << 10);
    client.write(0, &data, Fua::Yes).unwrap();
    record.write(0, &data);
    client.disconnect().unwrap();
    // A new disk, as after a replacement: everything is copied.
    fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    pair.bravo.must(&["create-md", "--force", "r0"]);
    pair.bravo.must(&["up", "r0"]);
    pair.down_and_compare(&record);
}

/// Another disk where the old one was: blank, of this size.
fn replace_disk(node: &Node, bytes: u64) {
    fs::remove_file(node.disk(0)).unwrap();
    let disk = fs::File::create(node.disk(0)).unwrap();
    disk.set_len(bytes).unwrap();
}

/// docs/guide.md, "A disk is replaced": the node stays up, and so does what uses the device.
#[test]
fn a_replaced_disk_of_either_node_is_filled_while_a_client_writes() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let mut write = |offset: u64, tag: u32| {
        let data = pattern(tag, 256 << 10);
        client.write(offset, &data, Fua::Yes).unwrap();
        record.write(offset, &data);
    };
    write(0, 1);
    for (node, other, tag) in [(&pair.bravo, &pair.alpha, 2), (&pair.alpha, &pair.bravo, 3)] {
        let before = other.counter(0, "ns") + other.counter(0, "nr");
        node.must(&["detach", "r0"]);
        other.wait_state("Connected", "UpToDate/Diskless");
        replace_disk(node, pair.settings.disk_bytes);
        write(u64::from(tag) << 20, tag);
        // The blank disk has no metadata: it is refused, and what to type is said.
        let ended = node.adm(&["attach", "r0"]);
        let refused = ended.code.is_some_and(|code| code != 0) && ended.says("create-md r0");
        assert!(refused, "{}\n{}", ended.all(), pair.logs());
        node.must(&["create-md", "r0"]);
        node.must(&["attach", "r0"]);
        write(8 << 20, tag + 10);
        pair.wait_synced();
        let copied = other.counter(0, "ns") + other.counter(0, "nr") - before;
        let all = pair.device_bytes() / 1024;
        assert!(
            copied >= all,
            "{copied} of {all} KiB were copied\n{}",
            pair.logs()
        );
    }
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}

#[test]
fn a_backing_file_deleted_while_attached_keeps_its_data_until_detach() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    fs::remove_file(pair.alpha.disk(0)).unwrap();
    let mut client = pair.client(&pair.alpha);
    let data = pattern(5, 256 << 10);
    client.write(1 << 20, &data, Fua::Yes).unwrap();
    assert!(
        client.read(1 << 20, 256 << 10).unwrap() == data,
        "{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    pair.alpha.must(&["down", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    let mut client = pair.client(&pair.bravo);
    assert!(
        client.read(1 << 20, 256 << 10).unwrap() == data,
        "{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    pair.bravo.must(&["down", "r0"]);
}

#[test]
fn a_smaller_disk_does_not_take_the_place_of_a_larger_one() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    pair.bravo.must(&["down", "r0"]);
    fs::File::create(pair.bravo.disk(0))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    pair.bravo.must(&["create-md", "--force", "r0"]);
    pair.bravo.must(&["up", "r0"]);
    pair.alpha.wait_log("small");
    let before = pair.alpha.word("dstate");
    assert!(before.starts_with("UpToDate/"), "{before}\n{}", pair.logs());
    let client = pair.client(&pair.alpha);
    assert_eq!(
        client.bytes,
        pair.device_bytes(),
        "the device shrank\n{}",
        pair.logs()
    );
}

#[test]
fn a_fresh_pair_with_disks_of_two_sizes_has_the_smaller_size() {
    let settings = Settings::default();
    let mut pair = blank(&settings);
    fs::File::create(pair.bravo.disk(0))
        .unwrap()
        .set_len(12 << 20)
        .unwrap();
    for node in [&mut pair.alpha, &mut pair.bravo] {
        node.must(&["create-md", "r0"]);
        node.start();
    }
    pair.bring_up();
    let mut client = pair.client(&pair.alpha);
    let bytes = client.bytes;
    assert!(
        bytes < 12 << 20 && bytes > 11 << 20,
        "{bytes} bytes\n{}",
        pair.logs()
    );
    let data = pattern(6, 8192);
    client.write(bytes - 8192, &data, Fua::No).unwrap();
    client.disconnect().unwrap();
    pair.down();
    pair.compare_disks(0, bytes);
    let disk = read_disk(&pair.bravo.disk(0), bytes);
    assert!(
        disk[bytes as usize - 8192..] == data,
        "{}",
        name_blocks(&[bytes / 4096 - 1])
    );
}

#[test]
fn a_primary_whose_disk_the_peer_does_not_know_is_told_why_by_status() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    pair.alpha.must(&["detach", "r0"]);
    let slots = "1234567890ABCDE0:2222222222222222:0:0:1:1:1:1:0:0:0";
    pair.alpha.must(&["set-gi", "--force", slots, "r0"]);
    pair.alpha.adm(&["attach", "r0"]);
    pair.alpha.wait_word("dstate", &["Diskless/UpToDate"]);
    let status = pair.alpha.explained();
    for words in ["no local disk (", "unrelated", "create-md"] {
        assert!(status.contains(words), "{words}: {status}");
    }
    let next = status.lines().find(|line| line.contains("next:")).unwrap();
    assert!(
        next.contains("create-md r0 &&") && next.contains("gives up"),
        "{status}"
    );
}
