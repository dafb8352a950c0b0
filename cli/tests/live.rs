//! Two nodes with real daemons, driven by the words of the Zimbra runbook (docs/spec/config-and-cli.md 4.11): what each
//! command prints and its exit code.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{quiet, synced_pair, two_nodes, until};

#[test]
fn the_runbook_from_first_sync_to_switch_over() {
    let (alpha, beta) = two_nodes();
    for node in [&alpha, &beta] {
        assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
        quiet(&node.adm(&["up", "r0"]));
    }
    quiet(&alpha.adm(&["wait-connect", "--wfc-timeout=60", "r0"]));
    let early = alpha.adm(&["primary", "r0"]);
    assert_eq!(early.code, 17);
    assert!(
        early
            .err
            .starts_with("0: State change failed: (-2) Need access to UpToDate data\n"),
        "{early:?}"
    );
    assert!(
        early
            .err
            .contains("Command 'drbdsetup primary 0' terminated with exit code 17\n"),
        "{early:?}"
    );
    assert!(
        early
            .err
            .contains("next: TANDEM adm --root ROOT primary --force r0"),
        "{early:?}"
    );
    quiet(&alpha.adm(&["primary", "--force", "r0"]));
    // The document runs it on the wrong node: it fails and changes nothing.
    let wrong = alpha.adm(&["--discard-my-data", "connect", "r0"]);
    assert_eq!(wrong.code, 10);
    assert!(
        wrong
            .err
            .starts_with("r0: Failure: (102) Local address(port) already in use.\n"),
        "{wrong:?}"
    );
    assert!(
        wrong.err.contains("counts only after a split brain") && !wrong.err.contains("disconnect"),
        "{wrong:?}"
    );
    quiet(&alpha.adm(&["wait-sync", "r0"]));
    until(&alpha, &["dstate", "r0"], "UpToDate/UpToDate\n");
    assert_eq!(alpha.adm(&["role", "r0"]).out, "Primary/Secondary\n");
    assert_eq!(beta.adm(&["role", "r0"]).out, "Secondary/Primary\n");
    assert_eq!(alpha.adm(&["cstate", "r0"]).out, "Connected\n");
    assert!(
        alpha
            .adm(&["proc"])
            .out
            .contains(" 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n")
    );
    let second = beta.adm(&["primary", "--force", "r0"]);
    assert_eq!(second.code, 11);
    assert!(
        second
            .err
            .starts_with("0: State change failed: (-1) Multiple primaries not allowed by config\n"),
        "{second:?}"
    );
    quiet(&alpha.adm(&["secondary", "r0"]));
    quiet(&beta.adm(&["primary", "r0"]));
    assert_eq!(beta.adm(&["role", "r0"]).out, "Primary/Secondary\n");
    for node in [&beta, &alpha] {
        quiet(&node.adm(&["down", "r0"]));
        assert_eq!(node.adm(&["role", "r0"]).out, "Unconfigured\n");
        quiet(&node.adm(&["down", "r0"]));
    }
}

#[test]
fn what_is_there_already_is_left_alone() {
    let (alpha, _beta) = synced_pair();
    quiet(&alpha.adm(&["up", "r0"]));
    quiet(&alpha.adm(&["primary", "r0"]));
    let attached = alpha.adm(&["attach", "r0"]);
    assert_eq!(attached.code, 20);
    assert!(
        attached.err.starts_with("Device '0' is configured!\nCommand 'drbdmeta 0 v08 ROOT/disk internal apply-al' terminated with exit code 20\n"),
        "{attached:?}"
    );
    let metadata = alpha.adm(&["create-md", "--force", "r0"]);
    assert_eq!(metadata.code, 20);
    assert!(
        metadata
            .err
            .ends_with("next: TANDEM adm --root ROOT detach r0\n"),
        "{metadata:?}"
    );
    let status = alpha.adm(&["status"]);
    assert_eq!(
        status.out,
        "r0 role:Primary\n  disk:UpToDate\n  peer role:Secondary\n    replication:Established peer-disk:UpToDate\n\n"
    );
    let unknown = alpha.adm(&["status", "r7"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (10, ""));
    let human = alpha.run(
        common::PROGRAM,
        &["status", "--root", &alpha.root(), "r0"],
        "",
    );
    assert!(
        human
            .out
            .starts_with("r0: Primary here, Secondary on beta ("),
        "{human:?}"
    );
    assert!(!human.out.contains('!'), "{human:?}");
}

#[test]
fn a_dry_run_of_what_gives_data_up_says_whose() {
    let (alpha, _beta) = synced_pair();
    let before = alpha.adm(&["get-gi", "r0"]).out;
    for (words, step, whose) in [
        (
            &["invalidate"][..],
            "drbdsetup invalidate 0\n",
            "# r0/0: all data on the disk of this node (UpToDate) would be given up, and copied again from the peer (UpToDate)\n",
        ),
        (
            &["invalidate-remote"],
            "drbdsetup invalidate-remote 0\n",
            "# r0/0: all data on the disk of the peer (UpToDate) would be given up, and copied again from this node (UpToDate)\n",
        ),
        (
            &["connect", "--discard-my-data"],
            "drbdsetup connect r0 ",
            " --discard-my-data\n# r0/0: after a split brain what was written on this node since then would be given up\n",
        ),
        (
            &["new-current-uuid", "--clear-bitmap"],
            "drbdsetup new-current-uuid --clear-bitmap 0\n",
            "# r0/0: both disks would count as equal, as they are: what differs would never be copied\n",
        ),
        // Nothing is lost by these.
        (&["primary", "--force"], "drbdsetup primary --force 0\n", ""),
        (&["new-current-uuid"], "drbdsetup new-current-uuid 0\n", ""),
    ] {
        let run = alpha.adm(&[&["-d"], words, &["r0"]].concat());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
        assert!(
            run.out.starts_with(step) && run.out.ends_with(whose),
            "{run:?}"
        );
        let lines = 1 + usize::from(!whose.is_empty());
        assert_eq!(run.out.lines().count(), lines, "{run:?}");
    }
    assert_eq!(alpha.adm(&["get-gi", "r0"]).out, before);
    assert_eq!(alpha.adm(&["dstate", "r0"]).out, "UpToDate/UpToDate\n");
}

#[test]
fn a_dry_run_prints_only_what_would_be_done() {
    let (alpha, _beta) = synced_pair();
    for word in ["up", "adjust", "new-resource"] {
        quiet(&alpha.adm(&["-d", word, "r0"]));
    }
    let file = String::from_utf8(alpha.read("etc/drbd.conf")).unwrap();
    let changed = file
        .replace("resync-rate 100M", "resync-rate 200M")
        .replace("protocol C;", "protocol C; max-buffers 4000;");
    alpha.write("etc/drbd.conf", &changed);
    let run = alpha.adm(&["-d", "adjust", "r0"]);
    let steps: Vec<&str> = run.out.lines().collect();
    assert_eq!(
        steps[0],
        "drbdsetup disk-options 0 --set-defaults --resync-rate=200M --c-plan-ahead=0"
    );
    assert!(
        steps[1].starts_with("drbdsetup disconnect ipv4:"),
        "{run:?}"
    );
    assert!(
        steps[2].starts_with("drbdsetup connect r0 ") && steps.len() == 3,
        "{run:?}"
    );
    assert_eq!(run.code, 0);
    let run = alpha.adm(&["adjust", "r0"]);
    assert!(
        run.err
            .contains("connects anew, by what has changed: max-buffers"),
        "{run:?}"
    );
    assert_eq!(run.code, 0);
    until(&alpha, &["dstate", "r0"], "UpToDate/UpToDate\n");
    quiet(&alpha.adm(&["-d", "adjust", "r0"]));
    for word in ["apply-al", "check-resize", "create-md"] {
        let attached = alpha.adm(&["-d", word, "r0"]);
        assert!(
            attached.code == 0
                && attached
                    .out
                    .ends_with("refused while it is attached: detach it first\n"),
            "{attached:?}"
        );
    }
    let invalidate = alpha.adm(&["-d", "invalidate", "--force", "r0"]);
    assert!(
        invalidate
            .out
            .starts_with("drbdsetup invalidate 0 --force\n# r0/0: "),
        "{invalidate:?}"
    );
    quiet(&alpha.adm(&["disconnect", "r0"]));
    alpha.write("etc/drbd.conf", &file);
    let run = alpha.adm(&["-d", "adjust", "--skip-net", "r0"]);
    assert_eq!(
        run.out,
        "drbdsetup disk-options 0 --set-defaults --resync-rate=100M --c-plan-ahead=0\n"
    );
    alpha.write("etc/drbd.conf", &changed);
    let run = alpha.adm(&["-d", "adjust", "r0"]);
    assert!(
        run.out.starts_with("drbdsetup connect r0 ") && run.out.lines().count() == 1,
        "{run:?}"
    );
    assert_eq!(
        alpha.adm(&["cstate", "r0"]).out,
        "StandAlone\n",
        "a dry run does nothing"
    );
    alpha.write("etc/drbd.conf", &file);
    quiet(&alpha.adm(&["connect", "r0"]));
    quiet(&alpha.adm(&["down", "r0"]));
    let all = alpha.adm(&["-d", "adjust", "r0"]).out;
    assert_eq!(all.lines().count(), 5, "{all}");
}

#[test]
fn a_split_brain_is_explained_and_mended() {
    let (alpha, beta) = synced_pair();
    quiet(&beta.adm(&["disconnect", "r0"]));
    until(&alpha, &["dstate", "r0"], "UpToDate/DUnknown\n");
    let twice = beta.adm(&["disconnect", "r0"]);
    assert_eq!(twice.code, 10);
    assert!(
        twice
            .err
            .starts_with("??: Failure: (162) Invalid configuration request\n"),
        "{twice:?}"
    );
    quiet(&alpha.adm(&["disconnect", "r0"]));
    quiet(&beta.adm(&["primary", "r0"]));
    quiet(&beta.adm(&["connect", "r0"]));
    quiet(&alpha.adm(&["connect", "r0"]));
    until(&beta, &["cstate", "r0"], "StandAlone\n");
    let told = beta.run(common::PROGRAM, &["status", "--root", &beta.root()], "");
    assert!(
        told.out.contains("split brain")
            && told
                .out
                .contains("TANDEM adm --root ROOT connect --discard-my-data r0"),
        "{told:?}"
    );
    // The survivor waits; whoever looks there learns that the other node has to be told, too.
    until(&alpha, &["cstate", "r0"], "StandAlone\n");
    quiet(&alpha.adm(&["connect", "r0"]));
    let told = alpha.run(common::PROGRAM, &["status", "--root", &alpha.root()], "");
    for words in [
        "after a split brain this node waits for beta",
        "next: on beta: tandem adm connect r0",
    ] {
        assert!(told.out.contains(words), "{words:?}: {told:?}");
    }
    let primary = beta.adm(&["connect", "--discard-my-data", "r0"]);
    assert_eq!(primary.code, 10);
    assert!(
        primary
            .err
            .starts_with("r0: Failure: (123) --discard-my-data not allowed when primary.\n"),
        "{primary:?}"
    );
    quiet(&beta.adm(&["secondary", "r0"]));
    quiet(&beta.adm(&["connect", "--discard-my-data", "r0"]));
    if alpha.adm(&["cstate", "r0"]).out == "StandAlone\n" {
        quiet(&alpha.adm(&["connect", "r0"]));
    }
    until(&alpha, &["dstate", "r0"], "UpToDate/UpToDate\n");
    until(&alpha, &["role", "r0"], "Primary/Secondary\n");
}

#[test]
fn wait_sync_waits_for_a_resync_that_is_about_to_begin() {
    // Goal: a script that waits right after `primary --force`, or `attach`, goes on with two good disks.
    // Method: the commands one after the other; the nodes have not agreed on the resync yet when the wait begins.
    let (alpha, beta) = two_nodes();
    for node in [&alpha, &beta] {
        assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
        quiet(&node.adm(&["up", "r0"]));
    }
    quiet(&alpha.adm(&["wait-connect", "--wfc-timeout=60", "r0"]));
    // Nothing to sync, and nothing to wait for.
    quiet(&alpha.adm(&["wait-sync", "--wfc-timeout=60", "r0"]));
    quiet(&alpha.adm(&["primary", "--force", "r0"]));
    quiet(&alpha.adm(&["wait-sync", "--wfc-timeout=60", "r0"]));
    assert_eq!(alpha.adm(&["dstate", "r0"]).out, "UpToDate/UpToDate\n");
    for node in [&beta, &alpha] {
        quiet(&node.adm(&["detach", "r0"]));
        quiet(&node.adm(&["attach", "r0"]));
        quiet(&node.adm(&["wait-sync", "--wfc-timeout=60", "r0"]));
        assert_eq!(node.adm(&["dstate", "r0"]).out, "UpToDate/UpToDate\n");
    }
    quiet(&beta.adm(&["invalidate", "r0"]));
    let run = beta.adm(&["wait-sync", "--wfc-timeout=60", "r0"]);
    quiet(&run);
    assert_eq!(beta.adm(&["dstate", "r0"]).out, "UpToDate/UpToDate\n");
}

#[test]
fn waiting_ends_when_its_time_is_up() {
    let (alpha, _beta) = two_nodes();
    assert_eq!(alpha.adm(&["create-md", "r0"]).code, 0);
    quiet(&alpha.adm(&["up", "r0"]));
    let begun = Instant::now();
    let run = alpha.adm(&["wait-connect", "--wfc-timeout=1", "r0"]);
    assert_eq!(run.code, 5, "{run:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(run.err.starts_with("r0: gave up waiting\n"), "{run:?}");
    let bad = alpha.adm(&["wait-connect", "--wfc-timeout=soon", "r0"]);
    assert_eq!(bad.code, 1);
}
