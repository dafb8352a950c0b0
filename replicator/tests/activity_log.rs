//! The activity log against a model of the ring on disk: whatever crash point is chosen, a replay yields every extent that
//! a running write touches.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use proptest::prelude::*;
use tandem_metadata::activity_log::initialized_block;
use tandem_metadata::units::AlExtent;
use tandem_metadata::{AlGeometry, Replay, Transaction};
use tandem_replicator::activity_log::*;

const RING: usize = 8;

/// The ring on disk, in real blocks, and the replay of the crate that recovers disks.
#[derive(Clone)]
struct Ring {
    bytes: Vec<u8>,
    replayed: BTreeSet<u32>,
}

impl Ring {
    fn new() -> Self {
        Self {
            bytes: initialized_block().repeat(RING),
            replayed: BTreeSet::new(),
        }
    }

    fn write(&mut self, transaction: &Transaction) {
        let slots: BTreeSet<u16> = transaction
            .updates
            .iter()
            .map(|update| update.slot)
            .collect();
        assert_eq!(
            slots.len(),
            transaction.updates.len(),
            "a slot is changed twice in one block"
        );
        let at = AlGeometry::DEFAULT.block_of(transaction.number) as usize * 4096;
        self.bytes[at..at + 4096].copy_from_slice(&transaction.encode().unwrap());
        let replay = Replay::of(&self.bytes, AlGeometry::DEFAULT).unwrap();
        self.replayed = replay.active().into_iter().map(|extent| extent.0).collect();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u32, u32),
    Release(prop::sample::Index),
    Start,
    Commit,
    Suspend,
    Resume,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0_u32..400, 0_u32..3).prop_map(|(at, more)| Op::Begin(at, more)),
        1 => (0_u32..400, 0_u32..70).prop_map(|(at, more)| Op::Begin(at, more)),
        6 => any::<prop::sample::Index>().prop_map(Op::Release),
        4 => Just(Op::Start),
        4 => Just(Op::Commit),
    ]
}

fn op_with_suspension() -> impl Strategy<Value = Op> {
    prop_oneof![20 => op(), 1 => Just(Op::Suspend), 1 => Just(Op::Resume)]
}

struct World {
    log: ActivityLog,
    ring: Ring,
    in_flight: Option<Batch>,
    waiting: Vec<(Ticket, RangeInclusive<u32>)>,
    running: Vec<RangeInclusive<u32>>,
    /// What stands in for the log counts until the descriptions are written.
    covered_from: Ticket,
}

impl World {
    fn new(log: ActivityLog) -> Self {
        let (ring, waiting, running) = (Ring::new(), Vec::new(), Vec::new());
        Self {
            log,
            ring,
            in_flight: None,
            waiting,
            running,
            covered_from: Ticket(0),
        }
    }

    fn wake(&mut self) {
        let (go, wait): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|(ticket, _)| self.log.is_committed(*ticket));
        self.running
            .extend(go.into_iter().map(|(_, extents)| extents));
        self.waiting = wait;
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Begin(at, more) => match self.log.begin(at..=at + more) {
                Begin::Hot => self.running.push(at..=at + more),
                Begin::Pending(ticket) => {
                    assert!(!self.log.is_committed(ticket));
                    self.waiting.push((ticket, at..=at + more));
                }
                Begin::Full(Shortage::Slots) => assert!(!self.log.is_quiet()),
                Begin::Full(Shortage::Updates) => {}
                Begin::TooWide { max } => assert!(more >= max),
                Begin::Failed => panic!("nothing failed"),
            },
            // A request that still waits may be dropped as well.
            Op::Release(pick) if !self.running.is_empty() && pick.index(5) > 0 => {
                let extents = self.running.swap_remove(pick.index(self.running.len()));
                self.log.release(extents);
            }
            Op::Release(pick) if !self.waiting.is_empty() => {
                let (_, extents) = self.waiting.swap_remove(pick.index(self.waiting.len()));
                self.log.release(extents);
            }
            Op::Release(_) => {}
            Op::Start => {
                if let Some(batch) = self.log.next_transaction() {
                    assert!(self.in_flight.is_none());
                    let running: BTreeSet<u32> = self.running.iter().cloned().flatten().collect();
                    assert!(batch.evicted.iter().all(|extent| !running.contains(extent)));
                    self.in_flight = Some(batch);
                }
            }
            Op::Commit => {
                if let Some(batch) = self.in_flight.take() {
                    self.ring.write(&batch.transaction);
                    assert!(self.log.commit().unwrap() >= batch.ticket);
                    self.wake();
                }
            }
            Op::Suspend => {
                self.log.suspend();
                self.wake();
            }
            Op::Resume => self.covered_from = self.log.resume(),
        }
    }

    fn check(&self) {
        self.log.check_invariants().unwrap();
        if self.log.mode() == LogMode::Suspended || !self.log.is_committed(self.covered_from) {
            return;
        }
        let mut found = vec![self.ring.replayed.clone()];
        if let Some(batch) = &self.in_flight {
            // The block in flight may be on disk already, in place of the oldest one.
            let mut ring = self.ring.clone();
            ring.write(&batch.transaction);
            found.push(ring.replayed.clone());
        }
        for extent in self.running.iter().cloned().flatten() {
            assert!(
                found.iter().all(|set| set.contains(&extent)),
                "extent {extent} is not covered"
            );
            assert!(self.log.in_use(extent));
        }
    }

    /// Lets everything finish; every request must get its turn.
    fn drain(&mut self) {
        for _ in 0..1000 {
            self.apply(Op::Start);
            self.apply(Op::Commit);
            self.check();
            while let Some(extents) = self.running.pop() {
                self.log.release(extents);
            }
            if self.waiting.is_empty() && self.log.is_quiet() {
                return;
            }
        }
        panic!("{} requests wait for ever", self.waiting.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_running_write_is_in_the_replayed_set_at_every_crash_point(
        slots in 67_u16..150,
        number in prop_oneof![Just(0_u32), Just(u32::MAX - 3)],
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut world = World::new(ActivityLog::new(slots, number));
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.drain();
        prop_assert_eq!(world.log.referenced(), 0);
    }

    #[test]
    fn a_log_switched_off_and_on_covers_again_after_its_descriptions(
        slots in prop_oneof![Just(67_u16), Just(2000_u16)],
        ops in prop::collection::vec(op_with_suspension(), 1..300),
    ) {
        let mut world = World::new(ActivityLog::new(slots, 7));
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.apply(Op::Resume);
        world.drain();
    }

    #[test]
    fn large_logs_are_described_within_one_round_of_the_ring(
        extents in prop::collection::vec(0_u32..20_000, 1..400),
    ) {
        let mut world = World::new(ActivityLog::new(AlGeometry::DEFAULT.al_extents_max() as u16, 0));
        for extent in extents {
            world.apply(Op::Begin(extent, 0));
            world.apply(Op::Start);
            world.apply(Op::Commit);
        }
        world.check();
    }
}

fn batch(log: &mut ActivityLog, extents: &[u32]) -> Option<Batch> {
    for extent in extents {
        assert!(matches!(
            log.begin(*extent..=*extent),
            Begin::Hot | Begin::Pending(_)
        ));
    }
    let batch = log.next_transaction();
    log.commit();
    for extent in extents {
        log.release(*extent..=*extent);
    }
    batch
}

fn updates(transaction: &Transaction) -> Vec<(u16, u32)> {
    let updates = transaction.updates.iter();
    updates
        .filter_map(|update| Some((update.slot, update.extent?.0)))
        .collect()
}

#[test]
fn the_blocks_are_those_of_the_example_in_the_specification() {
    let mut log = ActivityLog::new(67, 0);
    let first = batch(&mut log, &[3]).unwrap().transaction;
    assert_eq!(first.number, 0);
    assert_eq!(first.context, vec![None; 67]);
    assert_eq!(updates(&first), vec![(0x42, 3)]);
    let second = batch(&mut log, &[10, 11, 200]).unwrap().transaction;
    assert_eq!(
        (second.number, second.slots, second.context_start),
        (1, 67, 0)
    );
    assert_eq!(updates(&second), vec![(0x3f, 200), (0x40, 11), (0x41, 10)]);
    assert_eq!(second.context[66], Some(AlExtent(3)));
    assert_eq!(
        batch(&mut log, &[3, 200]),
        None,
        "hot extents write nothing"
    );
}

#[test]
fn the_least_recently_released_extent_is_evicted_and_its_page_named() {
    let mut log = ActivityLog::new(67, 0);
    for extent in 0..67 {
        batch(&mut log, &[extent * 40]);
    }
    batch(&mut log, &[0]);
    let evicting = batch(&mut log, &[5000, 5001]).unwrap();
    assert_eq!(evicting.evicted, vec![40, 80]);
    assert_eq!(evicting.bitmap_pages(), vec![1, 2]);
    let evicting = batch(&mut log, &[40]).unwrap();
    assert_eq!(evicting.evicted, vec![120]);
}

#[test]
fn a_cold_request_is_not_starved_by_hot_ones() {
    let mut log = ActivityLog::new(67, 0);
    for extent in 0..67 {
        assert!(matches!(
            log.begin(extent..=extent),
            Begin::Pending(_) | Begin::Full(Shortage::Updates)
        ));
        log.next_transaction();
        log.commit();
        if !log.in_use(extent) {
            assert!(matches!(log.begin(extent..=extent), Begin::Pending(_)));
            log.next_transaction();
            log.commit();
        }
    }
    assert_eq!(log.begin(900..=900), Begin::Full(Shortage::Slots));
    assert_eq!(
        log.begin(3..=3),
        Begin::Full(Shortage::Slots),
        "hits wait as well"
    );
    assert_eq!(log.release(3..=3), Released::Idle);
    assert!(matches!(log.begin(900..=900), Begin::Pending(_)));
    assert_eq!(log.begin(4..=4), Begin::Hot);
}

#[test]
fn a_failed_block_lets_nobody_in() {
    let mut log = ActivityLog::new(67, 0);
    let Begin::Pending(ticket) = log.begin(1..=1) else {
        panic!("extent 1 is cold")
    };
    log.next_transaction().unwrap();
    log.fail();
    assert!(!log.is_committed(ticket));
    assert_eq!(log.begin(2..=2), Begin::Failed);
    assert!(log.next_transaction().is_none());
}

#[test]
fn a_recovered_log_goes_on_where_the_ring_ended() {
    let (mut log, homeless) =
        ActivityLog::recovered(67, 12, &[(1, 7), (66, 9), (67, 8), (2, 7), (3, u32::MAX)]);
    assert_eq!(homeless, vec![8, 7]);
    assert_eq!(log.extents().collect::<Vec<_>>(), vec![7, 9]);
    assert_eq!(log.begin(7..=7), Begin::Hot);
    assert!(matches!(log.begin(8..=8), Begin::Pending(_)));
    let block = log.next_transaction().unwrap().transaction;
    assert_eq!(block.number, 12);
    assert_eq!(block.updates[0].slot, 65);
    assert_eq!(
        (block.context[1], block.context[66]),
        (Some(AlExtent(7)), Some(AlExtent(9)))
    );
}

#[test]
fn extents_are_those_that_the_bytes_touch() {
    assert_eq!(extents_of(0, 1), Some(0..=0));
    assert_eq!(extents_of(EXTENT_BYTES - 1, 2), Some(0..=1));
    assert_eq!(extents_of(5, 0), None);
    assert_eq!(extents_of(u64::MAX, 5), None);
}
