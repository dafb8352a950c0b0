//! The activity log against a model of the ring on disk: whatever crash point is chosen, a replay yields every extent that
//! a running write touches.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use proptest::prelude::*;
use tandem_replicator::activity_log::*;

const RING: usize = 8;

/// The blocks on disk, and their replay (spec/metadata.md 3.9).
#[derive(Default)]
struct Ring {
    blocks: Vec<Transaction>,
}

impl Ring {
    fn write(&mut self, transaction: Transaction) {
        assert!(transaction.updates.len() <= UPDATES_MAX);
        assert!(transaction.context.len() <= usize::from(CONTEXT_MAX));
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
        self.blocks.push(transaction);
        if self.blocks.len() > RING {
            self.blocks.remove(0);
        }
    }

    fn replay(&self) -> BTreeSet<u32> {
        let mut slots: BTreeMap<u16, u32> = BTreeMap::new();
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(
                block.number,
                self.blocks[0].number.wrapping_add(index as u32)
            );
            for (slot, extent) in (block.context_start..).zip(&block.context) {
                slots.insert(slot, *extent);
            }
            for update in &block.updates {
                slots.insert(update.slot, update.extent);
            }
        }
        slots
            .into_values()
            .filter(|extent| *extent != FREE)
            .collect()
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
        let (ring, waiting, running) = (Ring::default(), Vec::new(), Vec::new());
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
                    self.ring.write(batch.transaction);
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
        let mut found = vec![self.ring.replay()];
        if let Some(batch) = &self.in_flight {
            // The block in flight may be on disk already, in place of the oldest one.
            let mut ring = Ring {
                blocks: self.ring.blocks.clone(),
            };
            ring.write(batch.transaction.clone());
            found.push(ring.replay());
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
    #![proptest_config(ProptestConfig::with_cases(200))]

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
        let mut world = World::new(ActivityLog::new(slots_for(6433, RING as u32), 0));
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

#[test]
fn the_blocks_are_those_of_the_example_in_the_specification() {
    let mut log = ActivityLog::new(67, 0);
    let first = batch(&mut log, &[3]).unwrap().transaction;
    assert_eq!(first.number, 0);
    assert_eq!(first.context, vec![FREE; 67]);
    assert_eq!(
        first.updates,
        vec![Update {
            slot: 0x42,
            extent: 3
        }]
    );
    let second = batch(&mut log, &[10, 11, 200]).unwrap().transaction;
    assert_eq!(
        (second.number, second.context_size, second.context_start),
        (1, 67, 0)
    );
    let updates: Vec<(u16, u32)> = second
        .updates
        .iter()
        .map(|update| (update.slot, update.extent))
        .collect();
    assert_eq!(updates, vec![(0x3f, 200), (0x40, 11), (0x41, 10)]);
    assert_eq!(second.context[66], 3);
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
        ActivityLog::recovered(67, 12, &[(1, 7), (66, 9), (67, 8), (2, 7), (3, FREE)]);
    assert_eq!(homeless, vec![8, 7]);
    assert_eq!(log.extents().collect::<Vec<_>>(), vec![7, 9]);
    assert_eq!(log.begin(7..=7), Begin::Hot);
    assert!(matches!(log.begin(8..=8), Begin::Pending(_)));
    let block = log.next_transaction().unwrap().transaction;
    assert_eq!(block.number, 12);
    assert_eq!(block.updates[0].slot, 65);
    assert_eq!((block.context[1], block.context[66]), (7, 9));
}

#[test]
fn slots_follow_the_option_and_the_ring() {
    assert_eq!(slots_for(1237, 8), 1237);
    assert_eq!(slots_for(1, 8), 67);
    assert_eq!(slots_for(9999, 8), 6433);
    assert_eq!(slots_for(99_999, 80), 65_534);
    assert_eq!(extents_of(0, 1), Some(0..=0));
    assert_eq!(extents_of(EXTENT_BYTES - 1, 2), Some(0..=1));
    assert_eq!(extents_of(5, 0), None);
    assert_eq!(extents_of(u64::MAX, 5), None);
}
