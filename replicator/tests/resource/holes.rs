//! `rs-discard-granularity`: the target of a resync asks in a way that lets the source answer "all zero" (wire-protocol.md 5.4).

use tandem_replicator::{Command, DiskOptions, Protocol};

use crate::checksums::{count_sent, payload_sent};
use crate::harness::{VOLUME, World, protocol};
use crate::resyncing::{check_equal, force_primary, scramble, wait_synced};

const MIB: usize = 1 << 20;
const RS_DATA_REPLY: u16 = 0x02;
const RS_DATA_REQUEST: u16 = 0x09;
const RS_THIN_REQ: u16 = 0x32;
const RS_DEALLOCATED: u16 = 0x33;

/// Node 0 has 8 MiB of zeroes where node 1 has something; node 1 gets a full sync with this granularity.
fn synced(granularity: u32) -> World {
    let mut world = World::connected(&protocol(Protocol::C));
    scramble(&mut world);
    let source = &mut world.nodes[0].disk;
    for content in [&mut source.current, &mut source.durable] {
        content[8 * MIB..16 * MIB].fill(0);
    }
    let options = DiskOptions {
        rs_discard_granularity: granularity,
        resync_rate: 100_000,
        c_plan_ahead: 0,
        ..DiskOptions::default()
    };
    let volume = VOLUME;
    world.ok(1, Command::DiskOptions { volume, options });
    force_primary(&mut world, 0);
    wait_synced(&mut world);
    check_equal(&world);
    world
}

#[test]
fn a_target_that_asks_for_holes_is_told_of_them() {
    let world = synced(65_536);
    let holes = 8 * MIB / 65_536;
    assert!(count_sent(&world, 1, RS_THIN_REQ) >= holes);
    assert!(count_sent(&world, 0, RS_DEALLOCATED) >= holes);
    assert!(payload_sent(&world, 0, RS_DATA_REPLY) <= 26 * MIB);
    assert!(
        world.nodes[1].disk.current[8 * MIB..16 * MIB]
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_target_that_does_not_ask_gets_zeroes_as_data() {
    let world = synced(0);
    assert_eq!(count_sent(&world, 1, RS_THIN_REQ), 0);
    assert_eq!(count_sent(&world, 0, RS_DEALLOCATED), 0);
    assert!(count_sent(&world, 1, RS_DATA_REQUEST) > 0);
}
