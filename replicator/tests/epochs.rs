//! Both sides of the epochs: a sender and a receiver joined by ordered queues, with completions in any order.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tandem_replicator::receive_epochs::*;
use tandem_replicator::transfer_log::*;

#[derive(Clone, Copy, Debug)]
enum Packet {
    Write(u64, Epoch),
    Barrier(Epoch),
}

#[derive(Clone, Debug)]
enum Op {
    Write,
    Close,
    Send,
    Receive,
    Done(prop::sample::Index),
    Step,
    FlushEnds,
    AckArrives,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Write),
        2 => Just(Op::Close),
        5 => Just(Op::Send),
        5 => Just(Op::Receive),
        5 => any::<prop::sample::Index>().prop_map(Op::Done),
        4 => Just(Op::Step),
        2 => Just(Op::FlushEnds),
        3 => Just(Op::AckArrives),
    ]
}

struct World {
    sender: SendEpochs,
    receiver: ReceiveEpochs,
    overlap: Overlap,
    ordering: Ordering,
    queued: VecDeque<(u64, Epoch)>,
    wire: VecDeque<Packet>,
    active: Vec<(u64, Epoch, ReceiveEpoch)>,
    /// Done at the receiver; true: on stable storage.
    done: BTreeMap<u64, bool>,
    covered_by_flush: Option<Vec<u64>>,
    acks: VecDeque<(u32, u32)>,
    epochs: BTreeMap<Epoch, Vec<u64>>,
    acknowledged: BTreeSet<Epoch>,
    next: u64,
}

impl World {
    fn new(overlap: Overlap, ordering: Ordering) -> Self {
        Self {
            sender: SendEpochs::new(Epoch(u64::from(u32::MAX) - 2), 5),
            receiver: ReceiveEpochs::new(overlap, ordering),
            overlap,
            ordering,
            queued: VecDeque::new(),
            wire: VecDeque::new(),
            active: Vec::new(),
            done: BTreeMap::new(),
            covered_by_flush: None,
            acks: VecDeque::new(),
            epochs: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            next: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write => {
                let epoch = self.sender.assign();
                self.epochs.entry(epoch).or_default().push(self.next);
                self.queued.push_back((self.next, epoch));
                self.next += 1;
            }
            Op::Close => {
                self.sender.close();
            }
            Op::Send => {
                if let Some(epoch) = self.sender.barrier_due() {
                    assert!(self.queued.front().is_none_or(|write| write.1 > epoch));
                    self.sender.barrier_sent(epoch);
                    self.wire.push_back(Packet::Barrier(epoch));
                } else if let Some((write, epoch)) = self.queued.pop_front() {
                    self.sender.sent(epoch);
                    self.wire.push_back(Packet::Write(write, epoch));
                }
            }
            Op::Receive => self.receive(),
            Op::Done(pick) if !self.active.is_empty() => {
                let (write, _, epoch) = self.active.swap_remove(pick.index(self.active.len()));
                self.done.insert(write, false);
                self.receiver.done(epoch);
            }
            Op::Done(_) => {}
            Op::Step => match self.receiver.next_step() {
                Some(NextStep::Flush { volumes }) => {
                    assert_eq!(self.ordering, Ordering::Flush);
                    assert!(!volumes.is_empty());
                    assert!(self.covered_by_flush.is_none());
                    self.covered_by_flush = Some(self.done.keys().copied().collect());
                }
                Some(NextStep::Acknowledge { number, count }) => {
                    self.acks.push_back((number, count))
                }
                None => {}
            },
            Op::FlushEnds => {
                if let Some(writes) = self.covered_by_flush.take() {
                    self.done
                        .extend(writes.into_iter().map(|write| (write, true)));
                    self.receiver.flushed(FlushOutcome::Stable);
                }
            }
            Op::AckArrives => {
                if let Some((number, count)) = self.acks.pop_front() {
                    let epoch = self.sender.barrier_ack(number, count).unwrap();
                    self.acknowledge(epoch);
                }
            }
        }
    }

    fn receive(&mut self) {
        if !self.receiver.may_receive() {
            return;
        }
        match self.wire.pop_front() {
            Some(Packet::Write(write, epoch)) => {
                if self.overlap == Overlap::Drain {
                    assert!(
                        self.active.iter().all(|other| other.1 == epoch),
                        "epochs overlap"
                    );
                }
                self.active
                    .push((write, epoch, self.receiver.write((write % 3) as u16)));
            }
            Some(Packet::Barrier(epoch)) => {
                assert_eq!(self.receiver.barrier(epoch.wire()), BarrierReceived::Closed);
            }
            None => {}
        }
    }

    fn acknowledge(&mut self, epoch: Epoch) {
        let writes = &self.epochs[&epoch];
        for write in writes {
            let stable = self.done.get(write).copied();
            assert!(
                stable == Some(true) || (stable == Some(false) && self.ordering == Ordering::Drain)
            );
        }
        assert!(
            self.acknowledged.iter().all(|older| *older < epoch),
            "acknowledgements out of order"
        );
        assert!(self.sender.is_acknowledged(epoch));
        self.acknowledged.insert(epoch);
    }

    fn drain(&mut self) {
        self.sender.close();
        for _ in 0..10_000 {
            if self.sender.newest_unacknowledged().is_none() {
                return;
            }
            for op in [
                Op::Send,
                Op::Receive,
                Op::Step,
                Op::FlushEnds,
                Op::Step,
                Op::AckArrives,
            ] {
                self.apply(op);
            }
            while let Some((write, _, epoch)) = self.active.pop() {
                self.done.insert(write, false);
                self.receiver.done(epoch);
            }
        }
        panic!(
            "{} epochs are never acknowledged",
            self.sender.unacknowledged()
        );
    }
}

proptest! {
    #[test]
    fn every_epoch_is_acknowledged_once_in_order_and_only_when_stable(
        overlap in prop_oneof![Just(Overlap::Drain), Just(Overlap::Overlapped)],
        ordering in prop_oneof![Just(Ordering::Flush), Just(Ordering::Drain)],
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut world = World::new(overlap, ordering);
        for op in ops {
            world.apply(op);
        }
        world.drain();
        prop_assert_eq!(world.acknowledged.len(), world.epochs.len());
        prop_assert_eq!(world.receiver.waiting(), 0);
    }
}

#[test]
fn an_acknowledgement_of_another_number_or_count_is_an_error() {
    let mut sender = SendEpochs::new(Epoch(7), 100);
    assert_eq!(
        sender.barrier_ack(7, 1),
        Err(BarrierMismatch::NoneExpected {
            number: 7,
            count: 1
        })
    );
    let epoch = sender.assign();
    sender.sent(epoch);
    assert_eq!(sender.barrier_due(), None, "the epoch is open");
    assert_eq!(sender.close_if_current(Epoch(6)), None);
    assert_eq!(sender.close_if_current(epoch), Some(epoch));
    assert_eq!(sender.close(), None, "an empty epoch stays");
    assert_eq!(sender.barrier_due(), Some(epoch));
    assert!(
        sender.barrier_ack(7, 1).is_err(),
        "its barrier was not sent"
    );
    sender.barrier_sent(epoch);
    assert!(sender.barrier_ack(7, 2).is_err());
    assert!(sender.barrier_ack(8, 1).is_err());
    assert_eq!(sender.barrier_ack(7, 1), Ok(epoch));
    assert_eq!(sender.oldest_unacknowledged(), None);
}

#[test]
fn an_epoch_of_which_nothing_was_sent_gets_no_barrier() {
    let mut sender = SendEpochs::new(Epoch(0), 100);
    let first = sender.assign();
    sender.close();
    sender.cancelled(first);
    let second = sender.assign();
    sender.sent(second);
    sender.close();
    assert_eq!(sender.barrier_due(), Some(second));
    assert!(sender.is_acknowledged(first) && !sender.is_acknowledged(second));
    sender.connection_lost();
    assert_eq!(sender.barrier_due(), None);
    assert!(sender.assign() > second, "numbers go on");
}

#[test]
fn a_barrier_for_an_empty_epoch_is_not_answered() {
    let mut receiver = ReceiveEpochs::new(Overlap::Drain, Ordering::Flush);
    assert_eq!(receiver.barrier(3), BarrierReceived::Empty);
    assert_eq!(receiver.next_step(), None);
    let epoch = receiver.write(0);
    assert_eq!(receiver.barrier(4), BarrierReceived::Closed);
    assert!(!receiver.may_receive());
    receiver.done(epoch);
    assert_eq!(
        receiver.next_step(),
        Some(NextStep::Flush { volumes: vec![0] })
    );
    receiver.flushed(FlushOutcome::Stable);
    assert_eq!(
        receiver.next_step(),
        Some(NextStep::Acknowledge {
            number: 4,
            count: 1
        })
    );
    assert!(receiver.may_receive());
}

#[test]
fn one_flush_covers_every_complete_epoch() {
    let mut receiver = ReceiveEpochs::new(Overlap::Overlapped, Ordering::Flush);
    for number in 0..3 {
        let epoch = receiver.write(number as u16);
        receiver.barrier(number);
        receiver.done(epoch);
    }
    let late = receiver.write(9);
    receiver.barrier(3);
    assert_eq!(
        receiver.next_step(),
        Some(NextStep::Flush {
            volumes: vec![0, 1, 2]
        })
    );
    receiver.done(late);
    receiver.flushed(FlushOutcome::Stable);
    for number in 0..3 {
        assert_eq!(
            receiver.next_step(),
            Some(NextStep::Acknowledge { number, count: 1 })
        );
    }
    assert_eq!(
        receiver.next_step(),
        Some(NextStep::Flush { volumes: vec![9] }),
        "it was done after the flush began"
    );
}

#[test]
fn after_a_failed_flush_nothing_is_acknowledged() {
    let mut receiver = ReceiveEpochs::new(Overlap::Overlapped, Ordering::Flush);
    let epoch = receiver.write(0);
    receiver.barrier(1);
    receiver.done(epoch);
    receiver.next_step();
    receiver.flushed(FlushOutcome::Failed);
    assert!(receiver.has_failed());
    assert_eq!(receiver.next_step(), None);
}
