//! Worked traces of `docs/spec/state-machine.md` section 11, row by row: states, data generations, set bits and handlers of two
//! nodes of 8 blocks in the simulator, without random faults.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commands;
mod crashes;
mod disks;
mod links;
mod splits;

use tandem_metadata::{Flags, Uuids};
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, Force, NetOptions};
use tandem_tests::sim::lab::{A, B, BLOCKS, Lab, primary, settings};
use tandem_tests::sim::network::MS;
use tandem_tests::sim::node::{IoFault, VOLUME};
use tandem_tests::sim::{World, worked};

/// The log holds whole extents of 4 MiB: here all of the device.
const ALL: &str = "oos=8";

const SECONDARY: Command = Command::Secondary { volume: VOLUME };

/// A resync in which A is the source.
const FROM_A: [&str; 2] = ["before-resync-source", "before-resync-target"];

/// A split brain that nobody resolves runs both, one that is resolved only the first.
const SPLIT: [&str; 2] = ["initial-split-brain", "split-brain"];

#[test]
fn every_trace_of_the_specification_is_a_test_or_listed_with_what_is_missing() {
    let sources = [
        include_str!("commands.rs"),
        include_str!("crashes.rs"),
        include_str!("disks.rs"),
        include_str!("links.rs"),
        include_str!("splits.rs"),
    ];
    let page = include_str!("../../../docs/reliability.md");
    let (_, page) = page.split_once("\nNot played:\n").unwrap();
    let titles = worked::titles();
    assert_eq!(titles.len(), 52);
    for (number, title) in titles {
        let name = format!("#[test]\nfn t{number}_");
        let played = sources.iter().any(|source| source.contains(&name));
        let row = format!("| T{number} |");
        let listed = page.lines().any(|line| line.starts_with(&row));
        assert!(played != listed, "T{number}: {title}: {played} {listed}");
    }
}

/// Metadata of a node that is down: generations, flags, set bits of the first eight blocks.
fn make_disk(lab: &mut Lab, node: usize, uuids: Uuids, flags: Flags, bits: &[u8]) {
    let node = &mut lab.world.nodes[node];
    node.set_generation(uuids).unwrap();
    node.edit_superblock(|block| block.flags = flags).unwrap();
    let bitmap = node.layout().unwrap().bitmap_offset().0;
    let mut page = vec![0; 4096];
    page[0] = bits.iter().fold(0, |byte, bit| byte | 1 << bit);
    node.meta_disk().write(bitmap, &page, true);
}

/// Bitmaps exchanged and resync finished, as in T3, T4, T5 and T12.
fn from_a_with_c(lab: &mut Lab, bits: u64) {
    lab.row(
        "resync runs",
        &format!("SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos={bits}"),
        &format!("SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos={bits}"),
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+δ*, C*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

/// The link is lost, then A writes these blocks.
fn cut_with_writes(lab: &mut Lab, blocks: &[u64]) {
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.write(A, blocks);
    let bits = blocks.len();
    lab.row(
        "A writes",
        &format!("WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos={bits}"),
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
}

fn reconnect(lab: &mut Lab, bits: usize) {
    lab.plug();
    lab.row(
        "reconnect",
        &format!("WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos={bits}"),
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

/// A Primary with a hot activity log loses power; B waits; A is attached again.
fn crashed_primary(trace: &str) -> Lab {
    let mut lab = Lab::start();
    lab.follow(trace);
    lab.write(A, &[0, 1, 2, 3]);
    lab.power_off(A);
    lab.row(
        "A loses power",
        "(down) [C*, 0, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab
}

fn boots_with_hot_log(lab: &mut Lab, b: &str) {
    lab.boot(A);
    let a = format!("StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] {ALL}");
    lab.row("A boots", &a, b);
}

/// Half of four blocks are synced.
fn half_synced(trace: &str) -> Lab {
    let mut lab = Lab::start();
    cut_with_writes(&mut lab, &[0, 2, 4, 6]);
    lab.plug();
    lab.follow(trace);
    // A target clears bits only when it has flushed the blocks, so it still has more.
    lab.row(
        "half of 4 blocks synced",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab
}
