//! The command line without a daemon: what it prints, what it refuses, and its exit codes.
//! Every test runs the real program below a root of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::Node;

#[test]
fn options_stand_anywhere() {
    let node = Node::pair("alpha");
    let wanted = node.adm(&["-d", "--discard-my-data", "connect", "r0"]);
    assert_eq!(wanted.code, 0, "{wanted:?}");
    assert_eq!(
        wanted.out,
        "drbdsetup connect r0 ipv4:127.0.0.1:7788 ipv4:127.0.0.1:7789 --protocol=C --discard-my-data\n"
    );
    for words in [
        vec!["connect", "-d", "--discard-my-data", "r0"],
        vec!["connect", "r0", "--discard-my-data", "--dry-run"],
        vec!["-d", "--", "--discard-my-data", "connect", "r0"],
        vec!["-d", "connect", "--disc=yes", "r0"],
        vec!["-d", "-W--discard-my-data", "connect", "r0"],
    ] {
        let run = node.adm(&words);
        assert_eq!((run.code, &run.out), (0, &wanted.out), "{words:?}");
    }
}

#[test]
fn every_old_word_for_force_is_force() {
    let node = Node::pair("alpha");
    for words in [
        vec!["-d", "primary", "--force", "r0"],
        vec!["-d", "--", "--overwrite-data-of-peer", "primary", "r0"],
        vec!["-d", "--", "--do-what-I-say", "primary", "all"],
        vec!["-d", "primary", "--forc", "r0/0"],
    ] {
        let run = node.adm(&words);
        assert_eq!(
            (run.code, run.out.as_str()),
            (0, "drbdsetup primary --force 0\n"),
            "{words:?} {run:?}"
        );
    }
    let forgotten = node.adm(&["-d", "--", "--overwrite-everything", "primary", "r0"]);
    assert_eq!(forgotten.code, 1);
    assert_eq!(
        forgotten.err,
        "'primary' does not know the backend option '--overwrite-everything'\n\
         Nothing was done: leaving it out would change what the command means.\n"
    );
}

#[test]
fn usage_errors_end_with_1_and_say_what_to_type() {
    let node = Node::pair("alpha");
    let cases: &[(&[&str], &str)] = &[
        (
            &["primry", "r0"],
            "Unknown command 'primry'\nDid you mean 'primary'?\nnext: TANDEM adm --root ROOT help primary\n",
        ),
        (
            &["primary", "r1"],
            "'r1' not defined in your config (for this host).\nnext: TANDEM adm --root ROOT dump r0\n",
        ),
        (
            &["primary", "r0/7"],
            "Resource 'r0' has no volume 7\nnext: TANDEM adm --root ROOT dump r0\n",
        ),
        (
            &["up", "r0/0"],
            "'up' works on a whole resource, not on one volume\nnext: TANDEM adm --root ROOT up r0\n",
        ),
        (
            &["connect", "r0:gamma"],
            "Not a valid connection (r0:gamma) for this host\nPeers of r0: beta\nnext: TANDEM adm --root ROOT connect r0:beta\n",
        ),
        (
            &["forget-peer", "r0"],
            "'forget-peer' is a command of drbdadm that is not supported yet\nNothing was done.\nnext: TANDEM adm --root ROOT help\n",
        ),
        (
            &["up", "--discard-my-data", "r0"],
            "unrecognized option '--discard-my-data'\n'up' has no options of its own.\n",
        ),
        (
            &["-S", "up", "r0"],
            "-S: stacked resources are not supported yet\nNothing was done.\n",
        ),
        (
            &["-t", "x", "up", "r0"],
            "-t, --config-to-test goes with 'dump' and 'sh-nop' only\n",
        ),
        (
            &["connect", "--discard-mine", "r0"],
            "unrecognized option '--discard-mine'\nnext: TANDEM adm help\n",
        ),
    ];
    for (words, message) in cases {
        let run = node.adm(words);
        assert_eq!((run.code, run.err.as_str()), (1, *message), "{words:?}");
        assert_eq!(run.out, "", "{words:?}");
    }
    assert_eq!(node.adm(&[]).code, 1);
    let usage = node.adm(&["up"]);
    assert_eq!(usage.code, 1);
    assert!(usage.out.starts_with("USAGE: TANDEM adm up RES...|all\n"));
}

#[test]
fn help_of_a_word_succeeds_and_of_none_fails() {
    let node = Node::pair("alpha");
    let all = node.adm(&["help"]);
    assert_eq!(all.code, 0);
    for word in ["up", "create-md", "wait-connect", "Exit codes"] {
        assert!(all.out.contains(word), "{word}");
    }
    assert_eq!(node.adm(&["--help"]).out, all.out);
    assert_eq!(node.adm(&["help", "connect"]).code, 0);
    let secondary = node.adm(&["help", "secondary"]);
    assert!(
        secondary.out.contains("--force (not supported yet)"),
        "{secondary:?}"
    );
    assert_eq!(node.adm(&["help", "sh-b-pri"]).code, 0);
    assert_eq!(node.adm(&["help", "xyzzy"]).code, 1);
    let hidden = node.adm(&["hidden-commands"]);
    assert!(
        hidden.out.contains("fence-peer RES|minor-N\n"),
        "{hidden:?}"
    );
}

#[test]
fn version_can_be_evaluated_by_a_shell() {
    let run = Node::pair("alpha").adm(&["--version"]);
    assert_eq!(run.code, 0);
    let names: Vec<&str> = run
        .out
        .lines()
        .map(|line| line.split_once('=').unwrap().0)
        .collect();
    assert_eq!(
        names,
        [
            "DRBDADM_BUILDTAG",
            "DRBDADM_API_VERSION",
            "DRBD_KERNEL_VERSION_CODE",
            "DRBDADM_VERSION_CODE",
            "DRBDADM_VERSION"
        ]
    );
    assert!(run.out.contains("DRBD_KERNEL_VERSION_CODE=0x08040b\n"));
}

#[test]
fn the_configuration_is_named_where_it_is_wrong() {
    let node = Node::new("alpha");
    let missing = node.adm(&["up", "all"]);
    assert_eq!(missing.code, 20);
    assert!(
        missing
            .err
            .starts_with("Can not open 'ROOT/etc/drbd.conf': "),
        "{missing:?}"
    );
    node.write(
        "etc/drbd.conf",
        "resource r0 {\n    net { sharedsecret x; }\n}\n",
    );
    let wrong = node.adm(&["up", "all"]);
    assert_eq!(wrong.code, 10);
    assert!(
        wrong.err.starts_with("ROOT/etc/drbd.conf:2:11: error: "),
        "{wrong:?}"
    );
    let boot = node.adm(&["wait-con-int"]);
    assert!(
        boot.code == 0 && boot.err.contains("warning: the peers are not waited for"),
        "a boot goes on: {boot:?}"
    );
    node.write("etc/drbd.conf", "");
    let empty = node.adm(&["up", "all"]);
    assert_eq!(
        (empty.code, empty.err.as_str()),
        (1, "no resources defined!\n")
    );
    assert_eq!(node.adm(&["sh-nop"]).code, 0);
    assert_eq!(node.adm(&["dump"]).code, 0);
}

#[test]
fn a_configuration_may_come_from_standard_input() {
    let node = Node::new("alpha");
    let run = node.adm_with_input(&["-c", "-", "sh-resources"], &common::configuration("ROOT"));
    assert_eq!((run.code, run.out.as_str()), (0, "r0\n"), "{run:?}");
    let wrong = node.adm_with_input(&["-c", "-", "sh-nop"], "resource {");
    assert_eq!(wrong.code, 10);
    assert!(wrong.err.starts_with("STDIN:1:10: error: "), "{wrong:?}");
}

#[test]
fn a_resource_of_other_hosts_says_so() {
    let node = Node::pair("gamma");
    let run = node.adm(&["up", "r0"]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.starts_with(
            "'r0' not defined in your config (for this host).\nIt is defined for alpha and beta; this host is gamma.\n"
        ),
        "{run:?}"
    );
    assert_eq!(node.adm(&["up", "all"]).code, 1);
    assert_eq!(node.adm(&["sh-resources"]).code, 0);
    let dump = node.adm(&["dump", "r0"]);
    assert!(
        dump.out
            .starts_with("# resource r0 on gamma: ignored, not stacked\n"),
        "{dump:?}"
    );
}

#[test]
fn dump_is_a_configuration_again() {
    let node = Node::pair("alpha");
    let first = node.adm(&["dump"]);
    assert_eq!(first.code, 0, "{first:?}");
    let again = node.adm_with_input(&["-c", "-", "dump"], &first.out);
    let without_comments = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(without_comments(&again.out), without_comments(&first.out));
}

#[test]
fn words_for_scripts_print_plain_values() {
    let node = Node::pair("alpha");
    for (word, value) in [
        ("sh-dev", "/dev/drbd0\n"),
        ("sh-minor", "0\n"),
        ("sh-ll-dev", "ROOT/disk\n"),
        ("sh-md-dev", "ROOT/disk\n"),
        ("sh-md-idx", "internal\n"),
        ("sh-ip", "127.0.0.1\n"),
        ("sh-resource", "r0\n"),
    ] {
        let run = node.adm(&[word, "r0"]);
        assert_eq!((run.code, run.out.as_str()), (0, value), "{word}");
    }
    assert_eq!(node.adm(&["sh-mod-parms"]).out, "minor_count=32\n");
    let status = node.adm(&["sh-status"]);
    assert!(
        status
            .out
            .contains("_known=Unconfigured\n\n_cstate=Unconfigured\n"),
        "{status:?}"
    );
}

#[test]
fn without_a_daemon_there_is_nothing_to_stop_and_nothing_to_promote() {
    let node = Node::pair("alpha");
    for word in ["down", "secondary", "disconnect", "detach"] {
        let run = node.adm(&[word, "r0"]);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{word}");
    }
    for word in [
        "primary",
        "attach",
        "connect",
        "pause-sync",
        "invalidate-remote",
    ] {
        let run = node.adm(&[word, "r0"]);
        assert_eq!(run.code, 20, "{word}");
        assert_eq!(
            run.err,
            "tandemd is not running: nobody listens on ROOT/run/tandem/control.sock\n\
             next: TANDEM adm --root ROOT up all\n",
            "{word}"
        );
    }
    assert_eq!(node.adm(&["role", "r0"]).out, "Unconfigured\n");
    assert_eq!(
        node.adm(&["state", "r0"]).err,
        "'state' is deprecated, use 'role' instead.\n"
    );
    assert_eq!(node.adm(&["cstate", "r0"]).out, "Unconfigured\n");
    assert_eq!(
        node.adm(&["status"]).out,
        "# No currently configured DRBD found.\n"
    );
    assert_eq!(node.adm(&["status", "r0"]).code, 10);
    assert_eq!(node.adm(&["status", "--json"]).out, "[\n\n]\n");
}

#[test]
fn fresh_metadata_are_written_and_shown() {
    let node = Node::pair("alpha");
    let none = node.adm(&["dump-md", "r0"]);
    assert_eq!(none.code, 1);
    assert!(
        none.err.starts_with("No valid meta data found\n"),
        "{none:?}"
    );
    assert!(
        none.err
            .contains("next: TANDEM adm --root ROOT create-md r0"),
        "{none:?}"
    );
    let made = node.adm(&["create-md", "r0"]);
    assert_eq!(
        (made.code, made.out.as_str(), made.err.as_str()),
        (
            0,
            "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n",
            "initializing bitmap (4 KB) to all zero\n"
        )
    );
    let gi = "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:0:0:0\n";
    assert_eq!(node.adm(&["get-gi", "r0"]).out, gi);
    assert_eq!(node.adm(&["dstate", "r0"]).out, "Inconsistent\n");
    let shown = node.adm(&["show-gi", "r0"]);
    assert!(
        shown
            .out
            .contains("flags: Secondary, StandAlone, Inconsistent\nmeta-data: clean\n"),
        "{shown:?}"
    );
    let dump = node.adm(&["dump-md", "r0"]).out;
    for line in [
        "# alpha> drbdmeta 0 v08 ROOT/disk internal dump-md",
        "version \"v08\";",
        "# md_offset 67104768",
        "la-size-sect 0;",
        "# bits-set 0;",
    ] {
        assert!(dump.lines().any(|l| l == line), "{line}\n{dump}");
    }
}

#[test]
fn nothing_is_overwritten_without_a_yes() {
    let node = Node::pair("alpha");
    assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
    let before = node.read("disk");
    let again = node.adm(&["create-md", "r0"]);
    assert_eq!(
        (again.code, again.out.as_str()),
        (1, "Operation cancelled.\n")
    );
    assert!(
        again.err.ends_with(
            "next: TANDEM adm --root ROOT create-md --force r0   # overwrites what was found\n"
        ),
        "{again:?}"
    );
    assert!(node.read("disk") == before);
    let yes = node.adm_with_input(&["create-md", "r0"], "yes\n");
    assert_eq!(yes.code, 1, "a yes that comes through a pipe is nobody's");
    assert_eq!(node.adm(&["create-md", "--force", "r0"]).code, 0);
}

#[test]
fn create_md_finds_what_a_grown_disk_left_at_its_former_end() {
    // Goal: growing a disk and making its metadata anew does not cost what is known of the data by mistake.
    // Method: commands on a disk whose file became longer, with the size that it had on record.
    let node = Node::pair("alpha");
    let record = || node.path("var/lib/tandem/drbd-minor-0.lkbd").exists();
    let grow = |mebibytes: u64| {
        let disk = std::fs::File::options()
            .write(true)
            .open(node.path("disk"))
            .unwrap();
        disk.set_len(mebibytes << 20).unwrap();
        node.read("disk")
    };
    let moves = "next: TANDEM adm --root ROOT check-resize r0   # the disk has grown: this moves its metadata to the new end\n";
    assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
    let generations =
        "1234567890ABCDEE:0000000000000000:0000000000000000:0000000000000000:1:1:0:0:0:0:0";
    let set = node.adm(&["set-gi", "--force", generations, "r0"]);
    assert_eq!(set.code, 0, "{set:?}");
    let before = grow(96);
    let run = node.adm(&["create-md", "r0"]);
    assert_eq!((run.code, run.out.as_str()), (1, "Operation cancelled.\n"));
    for words in [
        "at the former end of ROOT/disk, at byte offset 67104768: it had 67108864 bytes, and has 100663296 now\n",
        "to give the existing meta-data up: TANDEM adm --root ROOT create-md --force r0\n",
        moves,
    ] {
        assert!(run.err.contains(words), "{words}\n{}", run.err);
    }
    for words in ["get-gi", "dump-md", "apply-al", "outdate", "invalidate"] {
        let run = node.adm(&[words, "r0"]);
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.err.ends_with(moves), "{run:?}");
    }
    let dry = |words: &str| node.adm(&["-d", words, "r0"]).out;
    assert!(dry("create-md").contains("# at the former end of ROOT/disk"));
    assert!(dry("check-resize").contains("which would be moved to the new end\n"));
    assert!(dry("wipe-md").contains("at its former end (67108864 bytes)"));
    let run = node.adm(&["wipe-md", "--force", "r0"]);
    assert!(
        run.code == 0 && run.err.contains("at its former end (67108864 bytes)"),
        "{run:?}"
    );
    assert!(node.read("disk") == before && record());
    // What was named does it.
    assert_eq!(node.adm(&["check-resize", "r0"]).code, 0);
    assert_eq!(node.adm(&["get-gi", "r0"]).out, format!("{generations}\n"));
    grow(128);
    assert_eq!(node.adm(&["create-md", "--force", "r0"]).code, 0);
    assert!(
        node.adm(&["get-gi", "r0"])
            .out
            .starts_with("0000000000000004:")
    );
    // Without metadata there is nothing on record either.
    assert_eq!(node.adm(&["wipe-md", "--force", "r0"]).code, 0);
    assert!(!record());
    grow(160);
    let run = node.adm(&["check-resize", "r0"]);
    assert!(run.code == 1 && run.err.contains("no suitable meta data found"));
}

#[test]
fn a_file_system_that_would_be_cut_is_refused_even_with_force() {
    let node = Node::pair("alpha");
    let mut disk = node.read("disk");
    // The superblock of an ext4 of 16384 blocks of 4 KiB: the whole disk.
    disk[1024 + 4..1024 + 8].copy_from_slice(&16384u32.to_le_bytes());
    disk[1024 + 24..1024 + 28].copy_from_slice(&2u32.to_le_bytes());
    disk[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xEF]);
    node.write("disk", &disk);
    for words in [vec!["create-md", "r0"], vec!["create-md", "--force", "r0"]] {
        let run = node.adm(&words);
        assert_eq!(run.code, 40, "{run:?}");
        assert!(run.out.contains("Found ext3 filesystem\n"), "{run:?}");
        assert!(run.out.contains("shrink that filesystem first"), "{run:?}");
        assert!(node.read("disk") == disk);
    }
}

#[test]
fn a_disk_that_somebody_uses_is_left_alone() {
    let node = Node::pair("alpha");
    let disk = std::fs::File::open(node.path("disk")).unwrap();
    rustix::fs::flock(&disk, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let run = node.adm(&["create-md", "--force", "r0"]);
    assert_eq!(run.code, 20);
    assert_eq!(
        run.err,
        "Device '0' is configured!\n\
         ROOT/disk is in use: attached by tandemd, mounted, or held by another program. Nothing was changed.\n"
    );
}

#[test]
fn metadata_of_a_detached_disk_can_be_changed() {
    let node = Node::pair("alpha");
    assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
    let inconsistent = node.adm(&["outdate", "r0"]);
    assert_eq!(
        (inconsistent.code, inconsistent.err.as_str()),
        (
            5,
            "Device is inconsistent.\n\
             next: TANDEM adm --root ROOT up r0   # it is worse than outdated already: only a sync from the peer makes it good\n"
        )
    );
    let values = "1234567890ABCDEE:::0:1:1";
    let before = node.read("disk");
    let cancelled = node.adm(&["set-gi", values, "r0"]);
    assert_eq!(cancelled.out.lines().count(), 3);
    assert!(
        cancelled.code == 1 && cancelled.out.ends_with("Operation canceled.\n"),
        "{cancelled:?}"
    );
    assert!(
        cancelled
            .err
            .ends_with("next: TANDEM adm --root ROOT set-gi --force 1234567890ABCDEE:::0:1:1 r0\n"),
        "{cancelled:?}"
    );
    assert!(node.read("disk") == before);
    assert_eq!(node.adm(&["set-gi", "--force", values, "r0"]).code, 0);
    assert_eq!(node.adm(&["dstate", "r0"]).out, "Consistent\n");
    assert_eq!(node.adm(&["outdate", "r0"]).code, 0);
    assert_eq!(node.adm(&["dstate", "r0"]).out, "Outdated\n");
    assert_eq!(node.adm(&["invalidate", "r0"]).code, 0);
    assert_eq!(
        node.adm(&["get-gi", "r0"]).out,
        "1234567890ABCDEE:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:1:0:0\n"
    );
    assert_eq!(node.adm(&["apply-al", "r0"]).code, 0);
    assert_eq!(node.adm(&["wipe-md", "r0"]).code, 1);
    assert_eq!(node.adm(&["wipe-md", "--force", "r0"]).code, 0);
    assert_eq!(node.adm(&["dump-md", "r0"]).code, 1);
    let again = node.adm(&["wipe-md", "r0"]);
    assert_eq!(
        (again.code, again.err.as_str()),
        (0, "There appears to be no drbd meta data to wipe out?\n")
    );
}

#[test]
fn a_member_of_a_zfs_pool_is_refused_also_when_only_its_last_label_is_left() {
    let node = Node::pair("alpha");
    let mut disk = node.read("disk");
    let ring = disk.len() - (128 << 10);
    disk[ring + 4096..ring + 4104].copy_from_slice(&0x00BA_B10C_u64.to_be_bytes());
    node.write("disk", &disk);
    let run = node.adm(&["create-md", "--force", "r0"]);
    assert_eq!(run.code, 40, "{run:?}");
    assert!(
        run.out.contains("Found zfs pool member signature\n"),
        "{run:?}"
    );
    assert!(
        run.err.starts_with("next: wipefs ROOT/disk   # "),
        "{run:?}"
    );
    assert!(node.read("disk") == disk);
}

#[test]
fn called_as_drbdadm_it_is_drbdadm() {
    let node = Node::pair("alpha");
    std::os::unix::fs::symlink(common::PROGRAM, node.path("drbdadm")).unwrap();
    let run = node.run(
        node.path("drbdadm").to_str().unwrap(),
        &["--root", &node.root(), "primry", "r0"],
        "",
    );
    assert_eq!(run.code, 1);
    assert!(
        run.err
            .ends_with("next: ROOT/drbdadm --root ROOT help primary\n"),
        "{run:?}"
    );
}

#[test]
fn refused_options_are_named_before_anything_is_started() {
    let node = Node::pair("alpha");
    let text = common::configuration(&node.root()).replace(
        "protocol C;",
        "protocol C; fencing resource-and-stonith; allow-two-primaries yes;",
    );
    node.write("etc/drbd.conf", &text);
    let run = node.adm(&["up", "r0"]);
    assert_eq!(run.code, 10, "{run:?}");
    for option in ["fencing resource-and-stonith", "allow-two-primaries"] {
        assert!(run.err.contains(option), "{option}: {run:?}");
    }
    assert!(run.err.ends_with("Nothing was changed.\n"), "{run:?}");
    assert!(!node.path("run").exists());
}

#[test]
fn unknown_words_of_tandem_itself_are_usage_errors() {
    let node = Node::pair("alpha");
    assert_eq!(node.run(common::PROGRAM, &["dmeo"], "").code, 1);
    let help = node.run(common::PROGRAM, &["--help"], "");
    assert_eq!(help.code, 0);
    for word in ["adm", "daemon", "status", "demo"] {
        assert!(help.out.contains(word), "{help:?}");
    }
    let root = node.root();
    for (words, meant, next) in [
        (vec!["version"], "version", "version"),
        (vec!["help", "up"], "help", "help up"),
        (
            vec!["--root", &root, "down", "r0"],
            "down",
            "--root ROOT down r0",
        ),
    ] {
        let run = node.run(common::PROGRAM, &words, "");
        let text = format!(
            "Unknown command '{meant}'\nDid you mean 'TANDEM adm {meant}'?\nnext: TANDEM adm {next}\n"
        );
        assert_eq!((run.code, run.err), (1, text), "{words:?}");
    }
    let status = node.run(common::PROGRAM, &["status", "--root", &node.root()], "");
    assert_eq!(status.code, 20);
    assert!(
        status
            .err
            .ends_with("next: TANDEM adm --root ROOT up all\n"),
        "{status:?}"
    );
}
