//! Split brain.

use super::*;

#[test]
fn t12_split_brain_and_its_manual_recovery() {
    let mut lab = Lab::start();
    lab.follow("T12");
    lab.cut();
    lab.write(A, &[0, 2]);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.row(
        "both write",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.plug();
    lab.split();
    lab.row(
        "link returns",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
    lab.ok(B, SECONDARY);
    lab.world.discard(B);
    lab.connect(B, true);
    lab.connect(A, false);
    lab.row(
        "handshake",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [B1, C, H1, H2] oos=1",
    );
    lab.handlers(&["initial-split-brain"], &["initial-split-brain"]);
    from_a_with_c(&mut lab, 3);
}

/// Both were Primary apart from each other: A wrote blocks 0 and 2, or none; B, promoted later, block 6.
fn both_wrote(net: impl FnOnce(&mut NetOptions), blocks: &[u64]) -> Lab {
    let mut settings = settings();
    net(&mut settings.net_options);
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab.cut();
    lab.write(A, blocks);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.ok(B, SECONDARY);
    lab
}

#[test]
fn t13_split_brain_of_two_secondaries_is_solved_by_discard_least_changes() {
    let mut lab = both_wrote(|net| net.after_sb_0pri = 4, &[0, 2]);
    lab.follow("T13");
    lab.ok(A, SECONDARY);
    lab.row(
        "both are demoted",
        "WFConnection Sec/Unk UpToDate/DUnknown [A1, C*, H1, H2] oos=2",
        "WFConnection Sec/Unk UpToDate/DUnknown [B1, C, H1, H2] oos=1",
    );
    lab.world.discard(B);
    lab.plug();
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [A1, C*, H1, H2] oos=2",
        "WFBitMapT Sec/Sec Outdated/UpToDate [B1, C, H1, H2] oos=1",
    );
    lab.handlers(&SPLIT[..1], &SPLIT[..1]);
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [A1, C+δ*, C*, H1] oos=3",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=3",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+δ*, C*] oos=0",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t14_split_brain_is_solved_by_discard_secondary() {
    let mut lab = both_wrote(|net| net.after_sb_1pri = 8, &[0, 2]);
    lab.follow("T14");
    lab.row(
        "B is demoted",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Sec/Unk UpToDate/DUnknown [B1, C, H1, H2] oos=1",
    );
    lab.world.discard(B);
    lab.plug();
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [B1, C, H1, H2] oos=1",
    );
    lab.handlers(&SPLIT[..1], &SPLIT[..1]);
    // "continues as usual"
    lab.follow("T12");
    from_a_with_c(&mut lab, 3);
}

#[test]
fn t15_split_brain_whose_primary_loses_and_cannot_demote_itself() {
    let policies = |net: &mut NetOptions| {
        net.after_sb_0pri = 2;
        net.after_sb_1pri = 9;
    };
    let mut lab = both_wrote(policies, &[]);
    lab.follow("T15");
    let b = "WFConnection Sec/Unk UpToDate/DUnknown [B1, C, H1, H2] oos=1";
    lab.row(
        "B is demoted",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        b,
    );
    lab.plug();
    lab.row(
        "connect",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        b,
    );
    lab.handlers(&[SPLIT[0], "pri-lost-after-sb", SPLIT[1]], &SPLIT[..1]);
}

#[test]
fn t32_outdated_node_is_forced() {
    let mut lab = Lab::start();
    lab.follow("T32");
    lab.cut();
    lab.ok(B, Command::Outdate { volume: VOLUME });
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    let a = "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0";
    lab.row(
        "B is Outdated",
        a,
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.ok(B, primary(Force::Yes));
    lab.row(
        "primary --force",
        a,
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=0",
    );
    lab.plug();
    lab.split();
    lab.row(
        "link returns",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=0",
    );
    lab.handlers(&SPLIT, &SPLIT);
}

/// Two nodes with nothing in common but history: A [P, Q, R, S] with 2 bits, B [T, U, S, R] with 1.
fn history_only(trace: &str, net: impl FnOnce(&mut NetOptions)) -> Lab {
    let mut settings = settings();
    net(&mut settings.net_options);
    let mut lab = Lab::blank_of(settings);
    lab.follow(trace);
    let names = ["P", "Q", "R", "S", "T", "U"];
    for (number, name) in (1..).zip(names) {
        lab.names
            .insert(name.to_owned(), number * 0x1111_0000_1110_0000);
    }
    for (node, slots, bits) in [(A, "PQRS", &[0, 1][..]), (B, "TUSR", &[2])] {
        let mut slot = slots.chars().map(|name| lab.names[&name.to_string()]);
        let mut next = || slot.next().unwrap();
        let uuids = Uuids {
            current: next(),
            bitmap: next(),
            history: [next(), next()],
        };
        let flags = Flags::CONSISTENT
            .with(Flags::WAS_UP_TO_DATE)
            .with(Flags::AL_CLEAN);
        make_disk(&mut lab, node, uuids, flags, bits);
    }
    lab.block([true; 2]);
    for node in [A, B] {
        lab.boot(node);
        lab.connect(node, false);
    }
    lab.row(
        "constructed metadata",
        "WFConnection Sec/Unk UpToDate/DUnknown [P, Q, R, S] oos=2",
        "WFConnection Sec/Unk UpToDate/DUnknown [T, U, S, R] oos=1",
    );
    lab
}

#[test]
fn t47_history_only_and_the_victim_is_named_by_a_person() {
    let mut lab = history_only("T47", |_| {});
    lab.plug();
    lab.split();
    lab.row(
        "connect",
        "StandAlone Sec/Unk UpToDate/DUnknown [P, Q, R, S] oos=2",
        "StandAlone Sec/Unk UpToDate/DUnknown [T, U, S, R] oos=1",
    );
    lab.handlers(&SPLIT, &SPLIT);
    lab.world.discard(B);
    lab.connect(B, true);
    lab.connect(A, false);
    lab.row(
        "connect --discard-my-data on B: by bitmap",
        "WFBitMapS Sec/Sec UpToDate/Consistent [P, Q, R, S] oos=2",
        "WFBitMapT Sec/Sec Outdated/UpToDate [T, U, S, R] oos=1",
    );
    lab.handlers(&SPLIT[..1], &SPLIT[..1]);
    history_only_runs(&mut lab, 3);
}

#[test]
fn t48_history_only_is_solved_by_discard_least_changes_with_a_full_sync() {
    let mut lab = history_only("T48", |net| {
        net.always_asbp = true;
        net.after_sb_0pri = 4;
    });
    lab.world.discard(B);
    lab.plug();
    lab.row(
        "connect: a full sync",
        "WFBitMapS Sec/Sec UpToDate/Consistent [P, Q, R, S] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [T, U, S, R] oos=8",
    );
    lab.handlers(&SPLIT[..1], &SPLIT[..1]);
    history_only_runs(&mut lab, 8);
}

/// "continues as in T3", with the generations of 3.4 and 3.5.
fn history_only_runs(lab: &mut Lab, bits: u64) {
    let why = "the trace ends before";
    lab.row_but(
        why,
        "resync runs",
        &format!("SyncSource Sec/Sec UpToDate/Inconsistent [P, Q+δ, Q, R] oos={bits}"),
        &format!("SyncTarget Sec/Sec Inconsistent/UpToDate [Q+δ, 0, S, R] oos={bits}"),
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    let done = "Connected Sec/Sec UpToDate/UpToDate [P, 0, Q+δ, Q] oos=0";
    lab.row_but(why, "resync finished", done, done);
    lab.wait("both are equal", World::compare_if_idle);
    lab.handlers(&[], &["after-resync-target"]);
}
