//! What the person at the keyboard is told when something is stuck, lost or of another version: two nodes with real daemons.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::time::Instant;

use common::{Node, Run, quiet, synced, two_nodes, until};
use rustix::process::{Pid, Signal};

/// A synced pair whose commands give up after a few seconds, the first node Primary.
fn hasty_pair() -> (Node, Node) {
    let (alpha, beta) = two_nodes();
    for node in [&alpha, &beta] {
        let text = String::from_utf8(node.read("etc/drbd.conf")).unwrap();
        node.write(
            "etc/drbd.conf",
            format!("global {{ cmd-timeout-medium 3; }}\n{text}"),
        );
    }
    synced(alpha, beta)
}

fn pid_of_daemon(node: &Node) -> Pid {
    let text = String::from_utf8(node.read("run/tandem/tandemd.pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

fn says(run: &Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, code, "{run:?}");
    for words in words {
        assert!(
            run.err.contains(words) || run.out.contains(words),
            "{words:?}: {run:?}"
        );
    }
}

#[test]
fn version_names_the_tool_the_daemon_and_what_was_agreed_with_the_peer() {
    let own = format!("tandem {}, protocol 100-101\n", env!("CARGO_PKG_VERSION"));
    let alone = Node::pair("alpha").adm(&["version"]);
    assert_eq!(alone.code, 0, "{alone:?}");
    assert_eq!(alone.out, format!("{own}tandemd is not running\n"));
    let (alpha, beta) = hasty_pair();
    let daemon = format!(
        "tandemd {} (pid {}), protocol 100-101, control socket 1\n",
        env!("CARGO_PKG_VERSION"),
        pid_of_daemon(&alpha).as_raw_nonzero()
    );
    let told = alpha.adm(&["version"]);
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    assert_eq!(
        told.out,
        format!("{own}{daemon}r0: protocol 101 agreed with beta, which speaks 100-101\n")
    );
    quiet(&beta.adm(&["down", "r0"]));
    until(&alpha, &["cstate", "r0"], "WFConnection\n");
    let told = alpha.adm(&["version"]);
    assert_eq!(
        told.out,
        format!("{own}{daemon}r0: beta is not connected (WFConnection)\n")
    );
    says(&alpha.adm(&["version", "r0"]), 1, &["takes no resource"]);
}

/// Stopped as long as it lives.
struct Frozen(Pid);

impl Frozen {
    fn daemon_of(node: &Node) -> Frozen {
        let pid = pid_of_daemon(node);
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        Frozen(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_command_to_a_frozen_daemon_may_still_be_carried_out_and_says_so() {
    let (alpha, _beta) = hasty_pair();
    let frozen = Frozen::daemon_of(&alpha);
    let pid = frozen.0.as_raw_nonzero();
    let unanswered = format!("tandemd (pid {pid}) did not answer within ");
    let look = format!("next: ps -o pid,stat,wchan:24,etime,args -p {pid} ");
    std::thread::scope(|scope| {
        let events = scope.spawn(|| alpha.adm(&["events2", "--now", "r0"]));
        let demotion = alpha.adm(&["secondary", "r0"]);
        says(
            &demotion,
            20,
            &[&unanswered, "may still be carried out", &look],
        );
        assert!(!demotion.err.contains("status"), "{demotion:?}");
        let version = alpha.adm(&["version"]);
        says(&version, 20, &["tandem ", "protocol 100-101", &look]);
        assert!(!version.err.contains("carried out"), "{version:?}");
        let events = events.join().unwrap();
        says(&events, 20, &[&unanswered, &look]);
        assert!(!events.err.contains("within 0 s"), "{events:?}");
    });
    drop(frozen);
    until(&alpha, &["role", "r0"], "Secondary/Secondary\n");
}

#[test]
fn a_frozen_daemon_is_told_of_soon_and_a_wait_for_it_ends_at_its_own_limit() {
    let (alpha, _beta) = hasty_pair();
    let text = String::from_utf8(alpha.read("etc/drbd.conf")).unwrap();
    let text = text
        .replace("global {", "global { cmd-timeout-short 1;")
        .replace("resource r0 {", "resource r0 { startup { wfc-timeout 3; }");
    alpha.write("etc/drbd.conf", text);
    let frozen = Frozen::daemon_of(&alpha);
    let pid = frozen.0.as_raw_nonzero();
    let unanswered = format!("tandemd (pid {pid}) did not answer within ");
    let look = format!("next: ps -o pid,stat,wchan:24,etime,args -p {pid} ");
    let timed = |words: &[&str]| {
        let begun = Instant::now();
        (alpha.adm(words), begun.elapsed())
    };
    std::thread::scope(|scope| {
        let waits = [
            &["wait-connect", "--wfc-timeout=3", "r0"][..],
            &["wait-sync", "--wfc-timeout=3", "r0"],
            &["wait-con-int"],
        ]
        .map(|words| (words, scope.spawn(|| timed(words))));
        let commands = [&["primary", "r0"][..], &["split-brain", "r0"]]
            .map(|words| (words, scope.spawn(|| timed(words))));
        for (words, wait) in waits {
            let (run, took) = wait.join().unwrap();
            let code = if words == ["wait-con-int"] { 0 } else { 5 };
            says(&run, code, &["r0: gave up waiting", &unanswered, &look]);
            assert!((3..12).contains(&took.as_secs()), "{took:?}: {run:?}");
            assert_eq!(run.err.contains("warning: "), code == 0, "{run:?}");
        }
        for (_, command) in commands {
            let (run, took) = command.join().unwrap();
            says(&run, 20, &[&unanswered, &look]);
            assert!(!run.err.contains("may still be carried out"), "{run:?}");
            assert!(took.as_secs() < 20, "{took:?}: {run:?}");
        }
    });
    drop(frozen);
    quiet(&alpha.adm(&["wait-con-int"]));
    quiet(&alpha.adm(&["wait-connect", "--wfc-timeout=3", "r0"]));
}

#[test]
fn events_of_a_resource_that_nobody_knows_are_refused_and_those_of_one_that_is_down_are_not() {
    let (alpha, _beta) = hasty_pair();
    let unknown = alpha.adm(&["events2", "nope"]);
    says(
        &unknown,
        1,
        &["'nope' not defined in your config (for this host)."],
    );
    assert_eq!(unknown.out, "");
    let now = alpha.adm(&["events2", "--now", "nope"]);
    says(&now, 0, &["'nope' not defined"]);
    assert_eq!(now.out, "exists -\n");
    quiet(&alpha.adm(&["down", "r0"]));
    let down = alpha.adm(&["events2", "--now", "r0"]);
    assert_eq!(
        (down.code, down.out.as_str()),
        (0, "exists -\n"),
        "{down:?}"
    );
}

#[test]
fn a_resource_that_is_not_there_is_named_with_what_can_be_typed() {
    let (alpha, _beta) = hasty_pair();
    let root = alpha.root();
    let human = |words: &[&str]| {
        let mut all = vec!["status", "--root", &root];
        all.extend(words);
        alpha.run(common::PROGRAM, &all, "")
    };
    let neither = "It is neither up nor in ROOT/etc/drbd.conf, which has: r0\n";
    for told in [
        alpha.adm(&["status", "nosuch"]),
        human(&["nosuch"]),
        human(&["--watch", "nosuch"]),
    ] {
        says(&told, 10, &["nosuch: No such resource\n", neither]);
        assert!(
            told.err.ends_with("next: TANDEM status --root ROOT\n"),
            "{told:?}"
        );
    }
    says(
        &human(&["ro"]),
        10,
        &["next: TANDEM status r0 --root ROOT\n"],
    );
    quiet(&alpha.adm(&["down", "r0"]));
    let up = "next: TANDEM adm --root ROOT up r0\n";
    says(&human(&["r0"]), 10, &["but it is not up", up]);
    let not_up =
        "r0: Failure: (158) Unknown resource\nr0 is in the configuration, but it is not up.\n";
    for words in [
        &["disconnect", "r0"][..],
        &["primary", "r0"],
        &["detach", "r0"],
        &["verify", "r0/0"],
    ] {
        let told = alpha.adm(words);
        says(&told, 10, &[not_up, up]);
    }
    alpha.write("etc/drbd.conf", "nonsense");
    says(
        &human(&["r0"]),
        10,
        &["cannot be read", "next: TANDEM adm --root ROOT sh-nop\n"],
    );
}

#[test]
fn a_resource_that_was_renamed_in_the_configuration_can_be_taken_down_by_its_former_name() {
    let (alpha, _beta) = hasty_pair();
    let text = String::from_utf8(alpha.read("etc/drbd.conf")).unwrap();
    alpha.write("etc/drbd.conf", text.replace("resource r0", "resource new"));
    let gone = "r0 is up, but not in ROOT/etc/drbd.conf any more";
    let dry = alpha.adm(&["-d", "down", "--force", "r0"]);
    assert_eq!(
        (dry.code, dry.out),
        (0, format!("drbdsetup down r0 --force\n# {gone}\n"))
    );
    let undefined = "'r0' not defined in your config";
    says(&alpha.adm(&["secondary", "r0"]), 1, &[undefined]);
    says(&alpha.adm(&["down", "r0/0"]), 1, &[undefined]);
    says(&alpha.adm(&["down", "r"]), 1, &["'r' not defined"]);
    let next = "next: TANDEM adm --root ROOT down r0\n";
    let all = alpha.adm(&["down", "all"]);
    says(&all, 0, &[gone, "'all' has left it up", next]);
    alpha.write("etc/drbd.conf", "");
    let none = alpha.adm(&["down", "all"]);
    says(&none, 1, &["no resources defined!", gone, next]);
    says(&alpha.adm(&["status"]), 0, &["r0 role:Primary"]);
    alpha.write("etc/drbd.conf", text.replace("resource r0", "resource new"));
    let down = alpha.adm(&["down", "new", "r0"]);
    quiet(&down);
    says(&down, 0, &[gone, "taking it down"]);
    says(&alpha.adm(&["status"]), 0, &["# No currently configured"]);
    says(&alpha.adm(&["down", "r0"]), 1, &[undefined]);
    let all = alpha.adm(&["down", "all"]);
    assert_eq!((all.code, all.err.as_str()), (0, ""));
}

#[test]
fn what_would_do_nothing_or_hang_is_explained() {
    let (alpha, beta) = hasty_pair();
    let sectors = (64 << 20) / 512;
    let verify = alpha.adm(&["verify", "--start", &sectors.to_string(), "r0"]);
    says(
        &verify,
        1,
        &["the device has ", "Nothing was begun.", "next: "],
    );
    quiet(&beta.adm(&["down", "r0"]));
    until(&alpha, &["cstate", "r0"], "WFConnection\n");
    let wait = alpha.adm(&["wait-sync", "--wfc-timeout=1", "r0"]);
    says(
        &wait,
        5,
        &["gave up waiting", "r0/0: WFConnection, disks UpToDate/"],
    );
    let attached = alpha.adm(&["dump-md", "r0"]);
    let next =
        "next: TANDEM adm --root ROOT detach r0 && TANDEM adm --root ROOT apply-al r0   # or: ";
    says(&attached, 1, &[next]);
    quiet(&alpha.adm(&["secondary", "r0"]));
    for words in [["detach", "r0"], ["apply-al", "r0"]] {
        assert_eq!(alpha.adm(&words).code, 0, "{words:?}");
    }
    assert_eq!(alpha.adm(&["dump-md", "r0"]).code, 0);
}
