//! Disks that fail, are detached, replaced and attached again.

use super::*;

const ATTACH: Command = Command::Attach { volume: VOLUME };
/// A resync in which B is the source.
const FROM_B: [&str; 2] = ["before-resync-target", "before-resync-source"];

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: Force::No,
    }
}

/// Attaches, and does not wait for the answer: the states on the way are to be seen.
fn attach(lab: &mut Lab, node: usize) {
    lab.world.command(node, ATTACH);
}

#[test]
fn t24_disk_of_the_primary_fails_and_is_attached_again() {
    let mut lab = Lab::start();
    lab.follow("T24");
    lab.world.nodes[A].fault = Some((IoFault::DataWrite, 1));
    lab.world.request(A, 1, 0, 8);
    lab.row(
        "a write fails",
        "Connected Pri/Sec Failed/UpToDate [C*, 0, H1, H2] oos=any",
        "Connected Sec/Pri UpToDate/Failed [B1, C, H1, H2] oos=0",
    );
    lab.write(A, &[3, 5]);
    lab.row(
        "A writes through B",
        "Connected Pri/Sec Diskless/UpToDate [C*, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/Diskless [B1, C, H1, H2] oos=2",
    );
    attach(&mut lab, A);
    lab.row(
        "A attaches",
        "Connected Pri/Sec Negotiating/UpToDate [C*, 0, H1, H2] oos=any",
        "Connected Sec/Pri UpToDate/Diskless [B1, C, H1, H2] oos=2",
    );
    lab.row(
        "negotiated",
        "WFBitMapT Pri/Sec Inconsistent/UpToDate [C*, 0, H1, H2] oos=any",
        "WFBitMapS Sec/Pri UpToDate/Consistent [B1, C, H1, H2] oos=2",
    );
    // A's log of activity is applied first: whole extents.
    lab.row(
        "resync runs",
        "SyncTarget Pri/Sec Inconsistent/UpToDate [C+δ*, 0, H1, H2] oos=8",
        "SyncSource Sec/Pri UpToDate/Inconsistent [B1, C+δ, C, H1] oos=8",
    );
    lab.handlers(&FROM_B[..1], &FROM_B[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [B1*, 0, C+δ*, C] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [B1, 0, C+δ, C] oos=0",
    );
    lab.handlers(&["after-resync-target"], &[]);
}

/// Without `on-no-data-accessible suspend-io`, which is not supported: requests fail instead of waiting, in row 2.
#[test]
fn t25_diskless_primary_loses_and_regains_its_peer() {
    let mut lab = Lab::start();
    lab.follow("T25");
    lab.ok(A, detach());
    let connected = [
        "Connected Pri/Sec Diskless/UpToDate [C*, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/Diskless [B1, C, H1, H2] oos=0",
    ];
    lab.row("A is Diskless", connected[0], connected[1]);
    lab.cut();
    lab.row_but(
        "no suspension",
        "link lost",
        "WFConnection Pri/Unk Diskless/DUnknown [C*, 0, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [B1, C, H1, H2] oos=0",
    );
    lab.handlers(&["pri-on-incon-degr"], &[]);
    lab.world.request(A, 1, 0, 8);
    lab.wait("the write is answered", |world| {
        world.clients.in_flight(A) == 0
    });
    assert_eq!(lab.world.clients.errors.len(), 1, "no data to be reached");
    lab.world.clients.errors.clear();
    lab.plug();
    lab.row("reconnect", connected[0], connected[1]);
    lab.write(A, &[1]);
    lab.handlers(&[], &[]);
}

#[test]
fn t26_disk_of_the_secondary_fails_and_is_attached_again() {
    let mut lab = Lab::start();
    lab.follow("T26");
    lab.world.nodes[B].fault = Some((IoFault::DataWrite, 1));
    // The block that B could not write is the one that A has more.
    lab.write(A, &[4]);
    lab.row(
        "B has no disk",
        "Connected Pri/Sec UpToDate/Diskless [A1*, C*, H1, H2] oos=1",
        "Connected Sec/Pri Diskless/UpToDate [C, 0, H1, H2] oos=0",
    );
    lab.write(A, &[4]);
    attach(&mut lab, B);
    lab.row(
        "B attaches",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=1",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [C, 0, H1, H2] oos=any",
    );
    from_a_with_c(&mut lab, 1);
}

#[test]
fn t27_disk_of_the_secondary_is_replaced_by_a_blank_one() {
    let mut lab = Lab::start();
    lab.write(A, &[3]);
    lab.follow("T27");
    lab.ok(B, detach());
    lab.world.nodes[B].data.zero(0, BLOCKS * 4096, true);
    lab.world.nodes[B].create_metadata().unwrap();
    attach(&mut lab, B);
    lab.row(
        "B attaches",
        "Connected Pri/Sec UpToDate/Diskless [A1*, C*, H1, H2] oos=0",
        "Connected Sec/Pri Negotiating/UpToDate [4, 0, 0, 0] oos=8",
    );
    lab.row_but(
        "A's bitmap came while B wrote its own: WFBitMapT is over at once",
        "negotiated",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, C*, H1, H2] oos=8",
        "WFSyncUUID Sec/Pri Inconsistent/UpToDate [4, 0, 0, 0] oos=8",
    );
    for (node, rule) in [(A, "=2 by rule 30"), (B, "=-2 by rule 20")] {
        let last = lab.world.nodes[node].comparisons.last().unwrap();
        assert!(last.ends_with(rule), "{last}");
    }
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=8",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, 0, 0] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+δ*, C*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

/// Stricter than the kernel: in row 1 B starts a generation beside the one that A shows to its application, so that A refuses B's
/// data in row 3, where a kernel accepts what was changed behind its back.
#[test]
fn t42_peer_of_a_diskless_primary_is_promoted() {
    let stricter = "B starts a generation beside the one that A shows";
    let mut lab = Lab::start();
    lab.ok(A, detach());
    lab.write(A, &[1]);
    lab.row(
        "A is Diskless",
        "Connected Pri/Sec Diskless/UpToDate [C*, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/Diskless [B1, C, H1, H2] oos=1",
    );
    lab.follow("T42");
    lab.cut();
    lab.handlers(&["pri-on-incon-degr"], &[]);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[2]);
    lab.row_but(
        stricter,
        "B is promoted",
        "WFConnection Pri/Unk Diskless/DUnknown [C*, 0, H1, H2] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B2*, C, B1, H1] oos=2",
    );
    lab.plug();
    lab.split();
    let a = "StandAlone Pri/Unk Diskless/DUnknown [C*, 0, H1, H2] oos=0";
    lab.row_but(
        stricter,
        "link returns",
        a,
        "StandAlone Pri/Unk UpToDate/DUnknown [B2*, C, B1, H1] oos=2",
    );
    lab.ok(B, SECONDARY);
    lab.connect(A, false);
    lab.connect(B, false);
    lab.wait("both have tried", |world| {
        world.nodes[A].state().unwrap().conn == ConnState::StandAlone
    });
    lab.row_but(
        stricter,
        "A refuses",
        a,
        "WFConnection Sec/Unk UpToDate/DUnknown [B2, C, B1, H1] oos=2",
    );
    // Demoted it takes what is there.
    lab.ok(A, SECONDARY);
    lab.connect(A, false);
    lab.row_but(
        stricter,
        "A is demoted",
        "Connected Sec/Sec Diskless/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Sec/Sec UpToDate/Diskless [B2, C, B1, H1] oos=2",
    );
    lab.ok(A, ATTACH);
    lab.wait("both are equal", World::compare_if_idle);
}

#[test]
fn t45_promotions_while_one_node_is_diskless() {
    let mut lab = Lab::pair();
    lab.follow("T45");
    lab.ok(A, detach());
    lab.row(
        "A is detached",
        "Connected Sec/Sec Diskless/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Sec/Sec UpToDate/Diskless [C, 0, H1, H2] oos=0",
    );
    lab.ok(A, primary(Force::No));
    lab.row(
        "A is promoted",
        "Connected Pri/Sec Diskless/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/Diskless [B1, C, H1, H2] oos=0",
    );
    lab.ok(A, SECONDARY);
    lab.ok(B, primary(Force::No));
    lab.row(
        "roles are swapped",
        "Connected Sec/Pri Diskless/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Pri/Sec UpToDate/Diskless [B1*, C, H1, H2] oos=0",
    );
    lab.handlers(&[], &[]);
}

#[test]
fn t46_outdated_node_meets_a_diskless_peer() {
    let mut lab = Lab::pair();
    lab.follow("T46");
    lab.cut();
    lab.ok(B, Command::Outdate { volume: VOLUME });
    lab.ok(A, detach());
    lab.row(
        "B is Outdated, A detached",
        "WFConnection Sec/Unk Diskless/DUnknown [C, 0, H1, H2] oos=0",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.plug();
    lab.row(
        "connect",
        "Connected Sec/Sec Diskless/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Sec/Sec UpToDate/Diskless [C, 0, H1, H2] oos=0",
    );
}

/// Without `on-no-data-accessible suspend-io`, which is not supported: row 2 has no suspension.
#[test]
fn t49_primary_that_is_a_target_loses_its_source() {
    let mut lab = Lab::start();
    lab.ok(A, detach());
    lab.write(A, &[3, 5]);
    attach(&mut lab, A);
    lab.follow("T49");
    lab.row(
        "most is done",
        "SyncTarget Pri/Sec Inconsistent/UpToDate [C+δ*, 0, H1, H2] oos=any",
        "SyncSource Sec/Pri UpToDate/Inconsistent [B1, C+δ, C, H1] oos=1",
    );
    lab.handlers(&FROM_B[..1], &FROM_B[1..]);
    lab.cut();
    lab.row_but(
        "no suspension",
        "link lost",
        "WFConnection Pri/Unk Inconsistent/DUnknown [C+δ*, 0, H1, H2] oos=any",
        "WFConnection Sec/Unk UpToDate/Inconsistent [B1, C+δ, C, H1] oos=any",
    );
    lab.handlers(&["pri-on-incon-degr"], &[]);
    lab.plug();
    lab.row(
        "reconnect",
        "WFBitMapT Pri/Sec Inconsistent/UpToDate [C+δ*, 0, H1, H2] oos=any",
        "WFBitMapS Sec/Pri UpToDate/Inconsistent [B1, C+δ, C, H1] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncTarget Pri/Sec Inconsistent/UpToDate [C+2δ*, 0, H1, H2] oos=any",
        "SyncSource Sec/Pri UpToDate/Inconsistent [B1, C+2δ, C+δ, C] oos=any",
    );
    lab.handlers(&FROM_B[..1], &FROM_B[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [B1*, 0, C+2δ*, C+δ] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [B1, 0, C+2δ, C+δ] oos=0",
    );
    lab.handlers(&["after-resync-target"], &[]);
}
