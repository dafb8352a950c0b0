//! Goal: after a power cut at any moment a node's disk is one that its promises allow, and the pair comes together without loss.
//! Method: Tandem in the machine on dm-log-writes, its peer on this host; the log gives the disk of every power cut.

use tandem_tests::logwrites::ledger::{GuestDisk, GuestRole, Pace};
use tandem_tests::logwrites::log::Entry;
use tandem_tests::logwrites::stage::{CELL, End, Recording, Scene};
use tandem_tests::logwrites::trial::{self, Effort, Report};
use tandem_tests::logwrites::{Burst, Side, Stage, cuts};

/// Two extents of the activity log, a resync of some seconds.
fn small(seed: u64) -> Scene {
    let near = (0..16).map(|cell| cell * 3 * CELL);
    let far = (0..8).map(|cell| 8192 + cell * 5 * CELL);
    let end = (16 << 20) / 512 - 256;
    Scene {
        seed,
        disk_bytes: 16 << 20,
        disk: "c-plan-ahead 0; resync-rate 2M; al-extents 67;",
        cells: near.chain(far).chain([end]).collect(),
    }
}

const QUICK: Effort = Effort {
    cuts: cuts::Thoroughness {
        subsets: 12,
        torn_of: 2,
    },
    engine_of: 1,
    daemons: 4,
};

fn bursts(stage: &mut Stage, on: Side, count: u64, name: &str) {
    for number in 0..count {
        let end = if number % 3 == 2 {
            End::Flushed
        } else {
            End::Answered
        };
        let fua_of = [4, 1000, 12][number as usize % 3];
        stage.burst(Burst {
            on,
            writes: 24 + 12 * (number % 2),
            fua_of,
            end,
        });
        stage.mark(name, Pace::Steady);
    }
}

fn judge(stage: Stage, effort: Effort) -> Report {
    judge_recording(&stage.finish(), effort)
}

fn judge_recording(recording: &Recording, effort: Effort) -> Report {
    let report = trial::run(recording, effort).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{report:?}");
    assert!(
        report.counts.flushes > 10 && report.counts.images > 100,
        "{report:?}"
    );
    assert!(
        report.engines > 0 && report.daemons == effort.daemons,
        "{report:?}"
    );
    report
}

/// The same log without the superblocks of a running node: a disk that forgets them must not pass.
fn must_fail_without_superblocks(mut recording: Recording, effort: Effort) {
    let superblock = recording.scene.disk_bytes - 4096;
    let before = recording.log.len();
    let lost = |entry: &Entry| matches!(entry, Entry::Write { offset, fua: true, .. } if *offset == superblock);
    recording.log.retain(|entry| !lost(entry));
    assert!(recording.log.len() < before);
    let why = trial::run(&recording, effort).unwrap_err();
    assert!(why.contains("a Primary's mark is missing"), "{why}");
}

fn promote_guest(stage: &mut Stage) {
    stage.guest_adm("primary r0");
    stage.role = GuestRole::Primary;
    stage.mark("promoted", Pace::Transition);
}

/// What the node in the machine missed comes to it, while clients go on writing.
fn catch_up(stage: &mut Stage, on: Side) {
    stage.host.wait_word("cstate", &["SyncSource", "Connected"]);
    stage.mark_target("target");
    for _ in 0..3 {
        stage.burst(Burst {
            on,
            writes: 8,
            fua_of: 4,
            end: End::Answered,
        });
        stage.mark_target("target, written to");
    }
    stage.wait_good();
    stage.disk = GuestDisk::Good;
    stage.mark("in sync again", Pace::Transition);
}

#[test]
fn a_primary_keeps_its_promises_through_every_power_cut() {
    let mut stage = Stage::open(small(1));
    promote_guest(&mut stage);
    bursts(&mut stage, Side::Guest, 6, "connected");
    stage.host.must(&["disconnect", "r0"]);
    stage.mark("disconnected", Pace::Transition);
    bursts(&mut stage, Side::Guest, 3, "alone");
    stage.host.must(&["connect", "r0"]);
    stage.wait_good();
    stage.mark("in sync again", Pace::Transition);
    bursts(&mut stage, Side::Guest, 3, "connected again");
    stage.close_clients();
    stage.guest_adm("secondary r0");
    stage.role = GuestRole::Secondary;
    stage.mark("demoted", Pace::Transition);
    let recording = stage.finish();
    let report = judge_recording(&recording, QUICK);
    assert!(report.primaries > 20, "{report:?}");
    must_fail_without_superblocks(recording, QUICK);
}

#[test]
fn a_secondary_and_the_target_of_a_resync_know_after_every_power_cut_what_they_lack() {
    let mut stage = Stage::open(small(2));
    stage.host.must(&["primary", "r0"]);
    stage.mark("the host is Primary", Pace::Transition);
    bursts(&mut stage, Side::Host, 6, "connected");
    stage.guest_adm("disconnect r0");
    stage.disk = GuestDisk::Absent;
    stage.mark("disconnected", Pace::Transition);
    bursts(&mut stage, Side::Host, 2, "missed");
    stage.guest_adm("connect r0");
    catch_up(&mut stage, Side::Host);
    stage.guest_adm("detach r0");
    stage.disk = GuestDisk::Absent;
    stage.mark("detached", Pace::Transition);
    bursts(&mut stage, Side::Host, 2, "missed without a disk");
    stage.guest_adm("attach r0");
    catch_up(&mut stage, Side::Host);
    stage.guest_adm("invalidate r0");
    catch_up(&mut stage, Side::Host);
    bursts(&mut stage, Side::Host, 3, "connected again");
    let report = judge(stage, QUICK);
    assert!(report.not_up_to_date > 0, "{report:?}");
}

#[test]
fn a_primary_without_its_disk_gets_it_back_through_every_power_cut() {
    let mut stage = Stage::open(small(3));
    promote_guest(&mut stage);
    bursts(&mut stage, Side::Guest, 3, "connected");
    stage.guest_adm("detach r0");
    stage.disk = GuestDisk::Absent;
    stage.mark("detached", Pace::Transition);
    bursts(&mut stage, Side::Guest, 3, "without a disk");
    stage.guest_adm("attach r0");
    catch_up(&mut stage, Side::Guest);
    bursts(&mut stage, Side::Guest, 3, "connected again");
    judge(stage, QUICK);
}

#[test]
fn a_killed_primary_that_returns_keeps_its_promises_through_every_power_cut() {
    let mut stage = Stage::open(small(4));
    promote_guest(&mut stage);
    bursts(&mut stage, Side::Guest, 4, "connected");
    kill(&mut stage);
    stage.host.must(&["primary", "r0"]);
    bursts(&mut stage, Side::Host, 2, "taken over");
    stage.start_guest();
    stage.guest_adm("up r0");
    catch_up(&mut stage, Side::Host);
    stage.close_clients();
    stage.host.must(&["secondary", "r0"]);
    promote_guest(&mut stage);
    bursts(&mut stage, Side::Guest, 2, "connected");
    kill(&mut stage);
    stage.start_guest();
    stage.guest_adm("up r0");
    stage.wait_good();
    stage.disk = GuestDisk::Good;
    stage.mark("back as the source", Pace::Transition);
    judge(stage, QUICK);
}

fn kill(stage: &mut Stage) {
    stage.kill_guest();
    stage.role = GuestRole::Secondary;
    stage.disk = GuestDisk::Absent;
    stage.host.wait_state("WFConnection", "UpToDate/DUnknown");
    stage.mark("killed", Pace::Transition);
}

/// More extents than the activity log has places, one cell in each.
fn large(seed: u64) -> Scene {
    Scene {
        seed,
        disk_bytes: 72 * (4 << 20) + (1 << 20),
        disk: "c-plan-ahead 0; resync-rate 400M; al-extents 67;",
        cells: (0..72)
            .map(|extent| extent * 8192 + (extent % 7) * CELL)
            .collect(),
    }
}

#[test]
fn extents_leave_the_activity_log_only_with_their_bits_on_disk_through_every_power_cut() {
    let mut stage = Stage::open(large(5));
    promote_guest(&mut stage);
    for round in 0..2 {
        for end in [End::Answered, End::Flushed, End::Answered, End::Answered] {
            stage.burst(Burst {
                on: Side::Guest,
                writes: 60,
                fua_of: 30,
                end,
            });
            stage.mark("all extents", Pace::Steady);
        }
        if round == 0 {
            stage.host.must(&["disconnect", "r0"]);
            stage.mark("disconnected", Pace::Transition);
        }
    }
    stage.host.must(&["connect", "r0"]);
    stage.wait_good();
    stage.mark("in sync again", Pace::Transition);
    let cuts = cuts::Thoroughness {
        subsets: 12,
        torn_of: 2,
    };
    judge(
        stage,
        Effort {
            cuts,
            engine_of: 60,
            daemons: 1,
        },
    );
}
