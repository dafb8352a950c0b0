//! Nodes that lose their power.

use super::*;

fn crash_recovery_connects(lab: &mut Lab) {
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, 0, H1, H2] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

fn crash_recovery_runs(lab: &mut Lab) {
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1, H1] oos=0";
    lab.finished(done, done);
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t7_primary_crashes_with_hot_activity_log_and_comes_back() {
    let mut lab = crashed_primary("T7");
    boots_with_hot_log(
        &mut lab,
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t8_primary_crashes_secondary_is_promoted_old_primary_returns() {
    let mut lab = crashed_primary("T8");
    lab.ok(B, primary(Force::No));
    lab.write(B, &[5]);
    let b = "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1";
    lab.row("B promoted", "(down) [C*, 0, H1, H2] oos=0", b);
    boots_with_hot_log(&mut lab, b);
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=8",
        "WFBitMapS Pri/Sec UpToDate/Consistent [B1*, C, H1, H2] oos=1",
    );
    lab.row(
        "resync runs",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=8",
        "SyncSource Pri/Sec UpToDate/Inconsistent [B1*, C+δ, C, H1] oos=8",
    );
    lab.handlers(&FROM_A[1..], &FROM_A[..1]);
    lab.finished(
        "Connected Sec/Pri UpToDate/UpToDate [B1, 0, C+δ, C] oos=0",
        "Connected Pri/Sec UpToDate/UpToDate [B1*, 0, C+δ, C] oos=0",
    );
    lab.handlers(&["after-resync-target"], &[]);
}

#[test]
fn t9_power_loss_on_both() {
    let mut lab = Lab::start();
    lab.follow("T9");
    lab.write(A, &[4, 5]);
    lab.power_off(A);
    lab.power_off(B);
    lab.boot(B);
    boots_with_hot_log(
        &mut lab,
        "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(B, false);
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t17_target_crashes_during_resync() {
    let mut lab = half_synced("T17");
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.write(A, &[1]);
    let a = "WFConnection Pri/Unk UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3";
    lab.row("B loses power", a, "(down) [C+δ, 0, H1, H2] oos=any");
    lab.boot(B);
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    // The bits of B are those that it had on disk.
    let b = "StandAlone Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any";
    lab.row("B boots", a, b);
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+2δ*, C+δ*, C*] oos=any",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

/// Rows 1 and 2 of T18.
fn source_crashes() -> Lab {
    let mut lab = half_synced("T18");
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    lab.row(
        "A loses power",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab
}

#[test]
fn t18_sync_source_crashes_during_resync() {
    let mut lab = source_crashes();
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Inconsistent [A1, C+δ*, C*, H1] oos=8",
        "WFBitMapT Sec/Sec Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [A1, C+2δ*, C+δ*, C*] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
}

#[test]
fn t19_target_of_a_crashed_source_is_forced_then_the_source_returns() {
    let mut lab = source_crashes();
    lab.follow("T19");
    lab.ok(B, primary(Force::Yes));
    lab.row(
        "primary --force",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.boot(A);
    lab.connect(A, false);
    lab.split();
    lab.row(
        "A boots and connects",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
}

#[test]
fn t41_degraded_primary_crashes_and_reboots_alone() {
    let mut lab = Lab::start();
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.row(
        "B died",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    // The new generation is still on its way to the disk.
    let wait = lab.world.run_for(100_000_000);
    assert_eq!(wait, Ok(()));
    lab.power_off(A);
    lab.follow("T41");
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/DUnknown [A1, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    lab.ok(A, primary(Force::No));
    lab.row_but(
        "stricter: nothing on the disk of A says whether B has this generation by now (N3c)",
        "primary",
        "StandAlone Pri/Unk UpToDate/DUnknown [A2*, C*, A1, H1] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    // B lacks what is in the bitmap of A, whichever generation A has.
    lab.boot(B);
    lab.connect(A, false);
    lab.connect(B, false);
    lab.wait("both are equal", World::compare_if_idle);
}

/// A node of generation [C, 0, H1, H2] that crashed as Primary, with one bit set.
fn make_crashed_primary(lab: &mut Lab, node: usize, bit: u8) {
    let flags = Flags::CONSISTENT
        .with(Flags::WAS_UP_TO_DATE)
        .with(Flags::CRASHED_PRIMARY)
        .with(Flags::AL_CLEAN);
    let uuids = Uuids {
        current: lab.names["C"],
        bitmap: 0,
        history: [lab.names["H1"], lab.names["H2"]],
    };
    make_disk(lab, node, uuids, flags, &[bit]);
}

/// Two Primaries at a time are not supported: that both crashed as Primary is in their metadata.
#[test]
fn t10_power_loss_on_both_and_both_were_primary() {
    let mut lab = Lab::blank();
    lab.follow("T10");
    lab.know_names();
    make_crashed_primary(&mut lab, A, 1);
    make_crashed_primary(&mut lab, B, 2);
    lab.boot(A);
    lab.boot(B);
    let one = "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=1";
    lab.row("both boot", one, one);
    // A waits until B dials, and dials the other socket: B, which accepts it, holds the resolve-conflicts flag.
    lab.connect(A, false);
    let wait = lab.world.run_for(MS * 500);
    assert_eq!(wait, Ok(()));
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, 0, H1, H2] oos=1",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=1",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=2",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1, 0, H1, H2] oos=2",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1, H1] oos=0";
    lab.finished(done, done);
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t33_stale_node_is_promoted_alone() {
    let mut lab = Lab::start();
    lab.follow("T33");
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.write(A, &[3]);
    lab.power_off(A);
    let a = "(down) [A1*, C*, H1, H2]";
    lab.row("A wrote and died", a, "(down) [C, 0, H1, H2]");
    lab.boot(B);
    lab.ok(B, primary(Force::No));
    let b = "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=0";
    lab.row("B is promoted alone", a, b);
    lab.boot(A);
    lab.connect(B, false);
    lab.connect(A, false);
    lab.split();
    let a = "StandAlone Sec/Unk UpToDate/DUnknown [A1, C*, H1, H2] oos=8";
    lab.row("A boots and connects", a, b);
    lab.handlers(&SPLIT, &SPLIT);
}
