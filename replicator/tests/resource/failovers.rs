//! A node of a connected pair dies at every single thing it does: no answered write is lost, and both nodes are equal again
//! after the resync.
//!
//! Method: the same script runs again and again; from its n-th I/O or packet on nothing of one node completes or leaves any
//! more, then its power goes.

use std::collections::BTreeMap;

use bytes::Bytes;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{Command, Effect, Force, NetOptions, Operation, Protocol, RequestId};

use crate::harness::{VOLUME, World, protocol};

/// Bytes of a disk: four extents of the activity log.
const BYTES: u64 = 16 << 20;

/// Steps of the script, at most.
const STEPS_MAX: usize = 2000;

/// A node does something.
fn acts(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Disk { .. } | Effect::Meta { .. } | Effect::Send { .. }
    )
}

/// What was asked for: offset and fill of each write, in order.
#[derive(Default)]
struct Asked {
    writes: Vec<(RequestId, u64, u8)>,
    /// How many of them were before the flush that was answered.
    flush: Option<(RequestId, usize)>,
}

impl Asked {
    fn write(&mut self, world: &mut World, offset: u64, length: usize) {
        let fill = self.writes.len() as u8 + 1;
        let id = world.write(0, offset, length, fill);
        self.writes.push((id, offset, fill));
    }

    /// For each offset: what may be found there, given what was answered.
    fn allowed(&self, answered: impl Fn(usize, RequestId) -> bool) -> BTreeMap<u64, Vec<u8>> {
        let mut allowed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (at, (id, offset, fill)) in self.writes.iter().enumerate() {
            let values = allowed.entry(*offset).or_insert_with(|| vec![0]);
            if answered(at, *id) {
                values.clear();
            }
            values.push(*fill);
        }
        allowed
    }
}

fn script(world: &mut World) -> Asked {
    let mut asked = Asked::default();
    asked.write(world, 0, 4096);
    asked.write(world, 5 << 20, 65536);
    asked.write(world, 0, 4096);
    asked.write(world, (8 << 20) - 4096, 8192);
    let flush = world.request(0, Operation::Flush);
    asked.flush = Some((flush, asked.writes.len()));
    asked.write(world, 5 << 20, 4096);
    asked.write(world, 12 << 20, 4096);
    asked.write(world, 0, 512);
    asked
}

fn freeze(world: &mut World, node: usize, step: usize) {
    let mut seen = 0;
    world.hold(node, move |effect| {
        seen += usize::from(acts(effect));
        seen > step
    });
}

fn is_answered(world: &World, id: RequestId) -> bool {
    world.reply(0, id) == Some(&Ok(Bytes::new()))
}

fn check(world: &mut World, node: usize, allowed: &BTreeMap<u64, Vec<u8>>, what: &str) {
    for (offset, values) in allowed {
        let found = world.read_ok(node, *offset, 512)[0];
        assert!(
            values.contains(&found),
            "{what}: {found} at {offset}, not {values:?}"
        );
    }
}

fn boot(world: &mut World, node: usize, net: &NetOptions) {
    world.ok(node, Command::Attach { volume: VOLUME });
    world.connect(node, net);
}

fn assert_equal(world: &mut World, what: &str) {
    world.run_until(what, |world| {
        (0..2).all(|node| {
            let state = world.state(node);
            state.conn == ConnState::Connected
                && state.disk == DiskState::UpToDate
                && state.pdsk == DiskState::UpToDate
        })
    });
    let bytes = world.nodes[0].resource.status().volumes[0].bytes as usize;
    let equal = world.nodes[0].disk.current[..bytes] == world.nodes[1].disk.current[..bytes];
    assert!(equal, "{what}: the disks differ");
}

/// The Primary dies, the Secondary is promoted, the old Primary comes back.
fn primary_dies(net: &NetOptions, step: usize) -> bool {
    let what = format!("{:?}, the Primary dies after {step}", net.protocol);
    let mut world = World::small(net, BYTES);
    freeze(&mut world, 0, step);
    let asked = script(&mut world);
    let cut = world.held(0) > 0;
    // In A and B an answered write may be on its way only; here the network delivers everything at once.
    let allowed = asked.allowed(|_, id| is_answered(&world, id));
    world.crash(0);
    world.run_until("B waits", |world| {
        world.state(1).conn == ConnState::WFConnection
    });
    world.primary(1);
    check(&mut world, 1, &allowed, &what);
    world.write_ok(1, 10 << 20, 4096, 200);
    boot(&mut world, 0, net);
    assert_equal(&mut world, &what);
    check(&mut world, 1, &allowed, &what);
    cut
}

/// The Secondary dies and comes back: clients notice nothing.
fn secondary_dies(net: &NetOptions, step: usize) -> bool {
    let what = format!("{:?}, the Secondary dies after {step}", net.protocol);
    let mut world = World::small(net, BYTES);
    freeze(&mut world, 1, step);
    let asked = script(&mut world);
    let cut = world.held(1) > 0;
    world.crash(1);
    world.run_until("every write is answered", |world| {
        asked.writes.iter().all(|(id, ..)| is_answered(world, *id))
    });
    boot(&mut world, 1, net);
    assert_equal(&mut world, &what);
    let allowed = asked.allowed(|_, _| true);
    check(&mut world, 0, &allowed, &what);
    cut
}

/// Both die at once, with what their caches did not flush; what was flushed is there.
fn both_die(net: &NetOptions, step: usize) -> bool {
    let what = format!("{:?}, both die after {step} of the Primary", net.protocol);
    let mut world = World::small(net, BYTES);
    freeze(&mut world, 0, step);
    let asked = script(&mut world);
    let cut = world.held(0) > 0;
    let durable = match asked.flush {
        Some((id, writes)) if is_answered(&world, id) => writes,
        _ => 0,
    };
    let allowed = asked.allowed(|at, _| at < durable);
    world.crash(0);
    world.crash(1);
    boot(&mut world, 0, net);
    boot(&mut world, 1, net);
    assert_equal(&mut world, &what);
    world.primary(0);
    // An unflushed write may have been lost behind a later one: any value that was ever asked for will do.
    check(&mut world, 0, &allowed, &what);
    cut
}

fn everywhere(dies: fn(&NetOptions, usize) -> bool, letter: Protocol) {
    let net = protocol(letter);
    for step in 0..STEPS_MAX {
        if !dies(&net, step) {
            assert!(step > 10, "the script does too little: {step}");
            return;
        }
    }
    panic!("the script does not end");
}

#[test]
fn a_primary_that_dies_loses_no_answered_write() {
    everywhere(primary_dies, Protocol::C);
}

#[test]
fn a_primary_of_protocol_a_that_dies_leaves_equal_disks() {
    everywhere(primary_dies, Protocol::A);
}

#[test]
fn a_secondary_that_dies_is_not_noticed_by_clients() {
    everywhere(secondary_dies, Protocol::C);
}

#[test]
fn a_secondary_of_protocol_a_that_dies_is_not_noticed_by_clients() {
    everywhere(secondary_dies, Protocol::A);
}

#[test]
fn two_nodes_that_die_keep_what_was_flushed() {
    everywhere(both_die, Protocol::C);
}

#[test]
fn a_pair_goes_down_and_up_again_without_a_resync() {
    let net = NetOptions::default();
    let mut world = World::small(&net, BYTES);
    script(&mut world);
    world.settle();
    for node in [0, 1] {
        world.ok(node, Command::Down { force: Force::No });
        world.crash(node);
    }
    for node in [0, 1] {
        boot(&mut world, node, &net);
    }
    assert_equal(&mut world, "after a clean stop");
}
