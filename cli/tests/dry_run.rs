//! What `--dry-run` prints without a daemon: steps, options, and what is on the disk.
//! Every test runs the real program below a root of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::Node;

#[test]
fn dry_run_of_up_prints_the_steps_of_the_8_4_tools() {
    let node = Node::new("astapor.got.com");
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/config/zimbra-8.4.res"
    );
    let run = node.adm(&["-c", golden, "-d", "up", "optzimbra"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(
        run.out,
        "drbdsetup new-resource optzimbra\n\
         drbdsetup new-minor optzimbra 0 0\n\
         drbdmeta 0 v08 /dev/vdc1 flex-external apply-al\n\
         drbdsetup attach 0 /dev/vdb1 /dev/vdc1 flexible --al-extents=257 --resync-rate=10M --on-io-error=detach\n\
         drbdsetup connect optzimbra ipv4:172.17.18.191:7788 ipv4:172.17.18.192:7788 --protocol=C\n"
    );
}

#[test]
fn a_dry_run_of_up_refuses_what_up_refuses() {
    let node = Node::pair("alpha");
    let text = String::from_utf8(node.read("etc/drbd.conf")).unwrap();
    for (option, why) in [
        (
            "disk { fencing resource-only; }",
            "fencing resource-only; } is refused",
        ),
        (
            "options { on-no-data-accessible suspend-io; }",
            "on-no-data-accessible suspend-io; } is refused",
        ),
        (
            "net { allow-two-primaries yes; }",
            "allow-two-primaries yes; } is refused",
        ),
        ("net { transport rdma; }", "transport rdma; } is refused"),
    ] {
        let without = text.replace("net { protocol C; }", "");
        let without = without.replace("disk { c-plan-ahead 0; resync-rate 100M; }", "");
        let with_option = without.replace("resource r0 {", &format!("resource r0 {{ {option}"));
        assert_ne!(with_option, without);
        node.write("etc/drbd.conf", with_option);
        let dry = node.adm(&["--dry-run", "up", "r0"]);
        let real = node.adm(&["up", "r0"]);
        assert_eq!(dry.code, real.code, "{dry:?} {real:?}");
        assert_ne!(dry.code, 0, "{dry:?}");
        assert!(dry.err.contains(why), "{dry:?}");
        assert_eq!(dry.out, "", "no step is shown");
    }
}

#[test]
fn a_dry_run_prints_the_options_of_the_command_line() {
    let node = Node::pair("alpha");
    let text = String::from_utf8(node.read("etc/drbd.conf")).unwrap();
    let startup = "resource r0 { startup { degr-wfc-timeout 60; wait-after-sb no; }";
    node.write("etc/drbd.conf", text.replace("resource r0 {", startup));
    let link = "ipv4:127.0.0.1:7788 ipv4:127.0.0.1:7789";
    let disk = "--resync-rate=4M --c-plan-ahead=0";
    let metadata = "drbdmeta 0 v08 ROOT/disk internal";
    for (words, step) in [
        ("resize --assume-clean", "drbdsetup resize 0 --assume-clean"),
        ("resize --size=1G", "drbdsetup resize 0 --size=1G"),
        (
            "disk-options --resync-rate=4M",
            &format!("drbdsetup disk-options 0 --set-defaults {disk}"),
        ),
        (
            "net-options --ping-int=3",
            &format!("drbdsetup net-options {link} --set-defaults --ping-int=3 --protocol=C"),
        ),
        (
            "resource-options --cpu-mask=3",
            "drbdsetup resource-options r0 --set-defaults --cpu-mask=3",
        ),
        (
            "disconnect --force",
            &format!("drbdsetup disconnect {link} --force"),
        ),
        ("down --force", "drbdsetup down r0 --force"),
        (
            "verify --start=8 --stop 1M",
            "drbdsetup verify 0 --start=8 --stop=1M",
        ),
        (
            "wait-connect --wfc-timeout=4",
            "drbdsetup wait-connect 0 --degr-wfc-timeout=60 --wfc-timeout=4",
        ),
        (
            "wait-sync --degr-wfc-timeout=4 --wait-after-sb",
            "drbdsetup wait-sync 0 --degr-wfc-timeout=4 --wait-after-sb",
        ),
        (
            "invalidate-remote --force",
            "drbdsetup invalidate-remote 0 --force",
        ),
        ("dump-md --force", &format!("{metadata} dump-md --force")),
    ] {
        let mut all = vec!["-d"];
        all.extend(words.split(' '));
        all.push("r0");
        let run = node.adm(&all);
        assert_eq!((run.code, run.out.trim_end()), (0, step), "{run:?}");
    }
    for words in [
        "resize --al-stripes=2",
        "resize --size=big",
        "verify --stop=end",
        "wait-connect --wfc-timeout=soon",
        "disk-options --resync-rate=fast",
        "secondary --force",
    ] {
        let mut all: Vec<&str> = words.split(' ').collect();
        all.push("r0");
        let done = node.adm(&all);
        all.push("-d");
        let dry = node.adm(&all);
        assert!(dry.code != 0 && dry.out.is_empty(), "{words}: {dry:?}");
        // Without a daemon most are not even looked at.
        assert!(
            done.code == 20 || done.code == dry.code || done.code == 0,
            "{done:?}"
        );
    }
}

#[test]
fn a_dry_run_of_what_a_disk_without_a_daemon_gets_says_so() {
    let node = Node::pair("alpha");
    assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
    let before = node.read("disk");
    for (words, out) in [
        (
            &["invalidate"][..],
            "drbdmeta 0 v08 ROOT/disk internal invalidate\n\
             # r0/0: not attached: its metadata would be marked (offline)\n",
        ),
        (
            &["apply-al"],
            "drbdmeta 0 v08 ROOT/disk internal apply-al\n\
             # ROOT/disk: clean, nothing would be applied\n",
        ),
        (
            &["check-resize"],
            "drbdmeta 0 v08 ROOT/disk internal check-resize\n\
             # ROOT/disk: the metadata is at its end, nothing would be moved\n",
        ),
    ] {
        let mut all = vec!["-d", "r0"];
        all.splice(1..1, words.iter().copied());
        let run = node.adm(&all);
        assert_eq!((run.code, run.out.as_str()), (0, out), "{run:?}");
    }
    let set = node.adm(&["-d", "set-gi", "--force", "1234567890ABCDEE:::0:1:1", "r0"]);
    assert!(
        set.out.starts_with(
            "drbdmeta 0 v08 ROOT/disk internal set-gi --force 1234567890ABCDEE:::0:1:1\n"
        ),
        "{set:?}"
    );
    assert!(node.read("disk") == before);
}

#[test]
fn a_dry_run_of_what_overwrites_says_what_is_there_and_what_would_be_asked() {
    let node = Node::pair("alpha");
    let dry = |words: &[&str]| {
        let before = node.read("disk");
        let mut all = vec!["-d"];
        all.extend(words);
        let run = node.adm(&all);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
        assert!(node.read("disk") == before, "{words:?}");
        run.out
    };
    let fresh = "drbdmeta 0 v08 ROOT/disk internal create-md\n\
                 # ROOT/disk: nothing was found, nothing would be asked\n";
    assert_eq!(dry(&["create-md", "r0"]), fresh);
    assert!(
        dry(&["wipe-md", "r0"]).contains("# There appears to be no drbd meta data to wipe out?\n")
    );
    assert!(dry(&["set-gi", "12", "r0"]).contains("# it would fail: ROOT/disk: "));
    assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
    let again = dry(&["create-md", "r0"]);
    for words in [
        "# There appears to be a v08 flexible-size internal meta data block\n",
        "# Do you really want to overwrite the existing meta-data?\n",
        "# (it asks that; --force answers with yes)\n",
    ] {
        assert!(again.contains(words), "{words}\n{again}");
    }
    let wipe = dry(&["wipe-md", "r0"]);
    assert!(
        wipe.contains("\n# 0000000000000004:") && wipe.contains("# Do you really want to wipe"),
        "{wipe}"
    );
    let set = dry(&["set-gi", "1234567890ABCDEE:::0:1:1", "r0"]);
    assert!(
        set.contains("# previously 0000000000000004:")
            && set.contains("# set GI to  1234567890ABCDEE:"),
        "{set}"
    );
    node.write("disk", vec![7; 1 << 20]);
    assert!(dry(&["create-md", "r0"]).contains("# Found some data\n"));
}
