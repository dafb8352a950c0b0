//! Online verify between two daemons: what went bad on a disk is found, told, marked, and copied by the next resync; it can be
//! stopped and looked at, and a handler hears of it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::{fs, path::Path};

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::record::pattern;
use tandem_tests::e2e::wait;

fn verifying() -> Settings {
    Settings {
        handlers: String::from(
            "out-of-sync \"echo $DRBD_RESOURCE $DRBD_VOLUME >> $DRBD_CONF.notes\";",
        ),
        ..Settings::default().with_net("verify-alg crc32c; csums-alg sha1;")
    }
}

fn spoil(disk: &Path, blocks: &[u64]) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    for block in blocks {
        file.write_all_at(&[0x6e; 512], block * 4096 + 512).unwrap();
    }
    file.sync_all().unwrap();
}

/// The handler of a node ran for its volume.
fn heard(node: &Node) {
    let notes = node.root.join("etc/drbd.conf.notes");
    let noted = || {
        let text = fs::read_to_string(&notes).unwrap_or_default();
        (text == "r0 0\n").then_some(())
    };
    wait::until("the handler out-of-sync", STATE_LIMIT, noted, || {
        node.logs()
    });
}

#[test]
fn a_verify_finds_what_went_bad_and_the_next_resync_copies_only_that() {
    let pair = Pair::synced(&verifying(), LinkKind::Direct);
    let mut record = pair.record();
    let data = pattern(5, 1 << 20);
    let mut client = pair.client(&pair.alpha);
    client.write(0, &data, Fua::Yes).unwrap();
    client.disconnect().unwrap();
    record.write(0, &data);
    spoil(&pair.bravo.disk(0), &[7, 8, 300]);
    pair.bravo.must(&["verify", "r0"]);
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_log("found 3 blocks of 4 KiB out of sync");
        node.wait_log("out of sync: start=56, size=16 (sectors)");
        node.wait_log("out of sync: start=2400, size=8 (sectors)");
        heard(node);
        node.wait_state("Connected", "UpToDate/UpToDate");
        assert_eq!(node.counter(0, "oos"), 12, "{}", pair.logs());
        let explained = node.explained();
        assert!(
            explained.contains("3 blocks of 4 KiB differ"),
            "{explained}"
        );
        assert!(explained.contains("disconnect r0 &&"), "{explained}");
    }
    pair.alpha.must(&["disconnect", "r0"]);
    pair.alpha.must(&["connect", "r0"]);
    pair.wait_synced();
    let copied = || (pair.alpha.counter(0, "oos") == 0).then_some(());
    wait::until("the resync", STATE_LIMIT, copied, || pair.logs());
    pair.down_and_compare(&record);
}

#[test]
fn a_verify_is_looked_at_stopped_and_goes_on_where_it_was() {
    let settings = verifying().with_resync_rate("2M");
    let pair = Pair::new(&settings, LinkKind::Direct);
    pair.bring_up_without_sync();
    pair.alpha.must(&["verify", "r0"]);
    pair.alpha.wait_word("cstate", &["VerifyS"]);
    pair.bravo.wait_word("cstate", &["VerifyT"]);
    let begun = || pair.alpha.proc().contains("verified:").then_some(());
    wait::until("progress", STATE_LIMIT, begun, || pair.logs());
    let refused = pair.bravo.adm(&["verify-stop", "r0"]);
    assert_ne!(refused.code, Some(0), "{}", refused.all());
    pair.alpha.must(&["verify-stop", "r0"]);
    pair.wait_synced();
    pair.alpha.wait_log("the next one starts there");
    pair.alpha.must(&["verify", "--start=32000", "r0"]);
    pair.alpha
        .wait_log("began online verify as source at sector 32000");
    pair.alpha.wait_log("online verify done");
    pair.down();
}
